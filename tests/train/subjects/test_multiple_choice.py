"""Questions answered by choosing, with tiny language models and a few rows a set."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

LLAMA = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    from train.presets.paper import tiny

    return tiny.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def subject(folders, tmp_path, monkeypatch):
    import datasets

    from train import subjects
    from train.runs.settings import Run

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def load(**changes):
        run = Run(task="choose", backbone="", **{"max_length": 96, **changes})
        return subjects.load(run, folders)

    return load


@pytest.fixture(scope="module")
def tokenizer(folders):
    import tokenizers

    folder = folders.weights / "google/gemma-3-270m"
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def questions(batches):
    """Yield the tokens before the answer, the answers' tokens and the label of each."""
    for inputs, labels in batches:
        for ids, last, answers, label in zip(*inputs, labels, strict=True):
            if label != -1:
                found = [x[x != -1].tolist() for x in answers]
                yield ids[0, : last + 1].tolist(), [x for x in found if x], int(label)


def test_all_sets_are_tested_on_by_the_texts_of_their_answers(subject, tokenizer):
    from train.data import commonsense
    from train.experiments.rows import SETS

    found = subject()

    assert [*found.tests] == [f"choose/{x}" for x in commonsense.TASKS]
    assert [*found.tests] == [*SETS["choose"]]
    texts = {
        "choose/boolq": ["true", "false"],
        "choose/siqa": ["p", "q", "r"],
        "choose/hellaswag": ["p", "q", "r", "s"],
        "choose/piqa": ["p", "q"],
        "choose/winogrande": ["p", "q"],
    }
    for name, (batches, _) in found.tests.items():
        rows = [*questions(batches)]
        assert len(rows) == 12
        assert len({label for *_, label in rows}) > 1
        want = [
            tokenizer.encode(f" {x}", add_special_tokens=False).ids
            for x in texts.get(name, ["red", "blue"])
        ]
        for _, answers, label in rows:
            assert answers == want
            assert label < len(answers)


def test_the_label_is_the_answer_of_its_question(subject, tokenizer):
    (batches, _) = subject().tests["choose/boolq"]

    for ids, answers, label in questions(batches):
        (number,) = [x for x in tokenizer.decode(ids).split() if x.isdigit()]
        # The tiny set's question: "is 7 even".
        want = "false" if int(number) % 2 else "true"
        assert tokenizer.decode(answers[label]).strip() == want


def test_the_small_corpus_is_learned_from_and_part_of_it_held_out(subject):
    found = subject()

    assert found.data.examples == 36  # A tenth of 40 is held out.
    assert sum(x.examples for x in found.validation.batches) == 4
    packed = jax.tree.map(np.asarray, found.data.train)
    assert (packed.labels != -1).sum() == 36
    assert packed.ids.shape[1:] == (4, 96)
    learned = {tuple(ids) for ids, *_ in questions([packed.batch(np.arange(36))])}
    held_out = {tuple(ids) for ids, *_ in questions(found.validation.batches)}
    assert len(learned) == 36  # The numbers in the tiny corpus are different ones.
    assert not learned & held_out


def test_what_is_too_long_is_not_trained_on(subject, monkeypatch):
    from train.data import choices

    def training(corpus, **where):
        # The first 10 are one word longer than the others.
        return [
            x._replace(text=f"the {x.text}") if number < 10 else x
            for number, x in enumerate(load(corpus, **where))
        ]

    load = choices.training
    monkeypatch.setattr(choices, "training", training)
    long = subject().data
    lengths = np.asarray(long.train.last[:36]) + 1
    assert {*lengths} == {lengths.min(), lengths.min() + 1}

    # With an answer of one token.
    short = subject(max_length=int(lengths.min()) + 1).data

    assert short.examples == 27  # A tenth of 30 is held out.
    assert np.asarray(short.train.last[:27]).max() + 1 == lengths.min()


def test_no_more_than_the_first_questions_of_a_set_are_tested(subject, monkeypatch):
    from train.subjects import multiple_choice

    whole = subject().tests["choose/siqa"]
    monkeypatch.setattr(multiple_choice, "TESTED", 7)

    fewer = subject().tests["choose/siqa"]

    def shown(part):
        return sorted((ids, label) for ids, _, label in questions(part[0]))

    assert len(shown(fewer)) == 7
    assert all(x in shown(whole) for x in shown(fewer))


@pytest.mark.parametrize("repo", ["", LLAMA])
def test_an_answer_s_likelihood_is_that_of_transformers(subject, folders, repo):
    import torch
    import transformers

    found = subject(model=repo)
    (batch, *_) = found.tests["choose/hellaswag"].batches
    some = jax.tree.map(lambda x: x[:3], batch)
    folder = folders.weights / (repo or "google/gemma-3-270m")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )

    got = np.asarray(found.model.apply({"params": found.base}, some.inputs))

    for (ids, answers, _), logits in zip(questions([some]), got, strict=True):
        for answer, found_one in zip(answers, logits, strict=True):
            with torch.no_grad():
                whole = theirs(torch.tensor([ids + answer])).logits[0].double()
            chances = torch.log_softmax(whole, dim=-1).numpy()
            places = len(ids) - 1 + np.arange(len(answer))
            np.testing.assert_allclose(
                found_one, chances[places, answer].mean(), rtol=1e-4, atol=1e-4
            )
    name = repo or "google/gemma-3-270m"
    assert found.peft == {"base_model_name_or_path": name, "task_type": "CAUSAL_LM"}


def test_the_model_has_the_run_s_dtype(subject):
    found = subject(dtype="bfloat16")

    assert {x.dtype for x in jax.tree.leaves(found.base)} == {jnp.dtype("bfloat16")}


def test_a_model_of_another_kind_is_refused(subject):
    with pytest.raises(ValueError, match="is of the type 'roberta', and the task 'cho"):
        subject(model="FacebookAI/roberta-base")


@pytest.mark.slow
@pytest.mark.parametrize("repo", ["", LLAMA])
def test_a_language_model_learns_to_choose(subject, repo):
    from train.methods import lora
    from train.runs import settings as runs
    from train.runs.settings import Run

    found = subject(model=repo)
    run = Run(
        task="choose",
        model=repo,
        method=lora.Lora(rank=4),
        learning_rates=(0.03,),
        steps=40,
        batch=8,
        max_length=96,
    )
    given = runs.inputs(run, found.model, found.base, found.data)
    losses = [
        jax.device_get(x.metrics.loss)
        for x in runs.advance(given, runs.begin(given), chunk=10)
    ]
    # At first it guesses between two answers.
    assert losses[0][0, 0] > 0.5
    assert losses[-1][0, -1] < 0.5 * losses[0][0, 0]
