"""Test answers and grades against an independent loop with transformers and PEFT."""

import numpy as np
import peft
import pytest
import torch
import transformers

import para_jax as para
from tests.train import tiny_sums
from tests.train.models import tiny_gemma3
from train.data import arrays, sequences
from train.evaluation import evaluate
from train.evaluation.exact_match import ExactMatch
from train.models import gemma3, layers
from train.runs import outcome
from train.subjects import Subject
from train.subjects.problems import PEFT

TEXTS = (
    "Anna has 3 boxes.",
    "How many apples",
    "12 + 5",
    "are there? With 4 apples each",
    "The answer",
    "is: 17",
    "5",
)
TOKENS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("model")
    tiny_sums.write(place)
    return place


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Save a parent and its ragged child in PEFT's format."""
    config = tiny_sums.config()
    stacks = para.from_params(tiny_gemma3.lora(config, rank=3))
    parent = layers.unstacked(stacks)
    child = para.compress(parent, para.Gamma(0.4)).adapters
    assert len({x.rank for x in child.values()}) > 1
    place = tmp_path_factory.mktemp("adapters")
    for name, x in (("parent", parent), ("child", child)):
        checkpoint = para.Checkpoint(adapters=x, extra={}, config=dict(PEFT))
        para.save(checkpoint, place / name, format="peft")
    return place


def written(folder, adapter, stop):
    """Return the continuations transformers generates, one text at a time."""
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json")
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32
    )
    model = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload().eval()
    result = []
    for text in TEXTS:
        ids = tokenizer(text, return_tensors="pt")
        got = model.generate(
            input_ids=ids["input_ids"],
            attention_mask=ids["attention_mask"],
            do_sample=False,
            max_new_tokens=TOKENS,
            eos_token_id=stop,
            pad_token_id=0,
        )
        result.append(got[0, ids["input_ids"].shape[1] :].tolist())
    return result


@pytest.mark.slow
def test_parents_and_ragged_children_answer_as_in_transformers(folder, adapters):
    tokenizer = tiny_sums.tokenizer()
    free = written(folder, adapters / "parent", stop=None)
    stop = free[0][2]
    answers = {x: written(folder, adapters / x, stop) for x in ("parent", "child")}
    texts = {
        name: [tokenizer.decode([x for x in ids if x != stop]) for ids in each]
        for name, each in answers.items()
    }
    # The right answers are the parent's for the first five texts, then the child's.
    right = [texts["parent" if i < 5 else "child"][i] for i in range(len(TEXTS))]
    assert len(set(texts["parent"])) > 3
    pairs = sequences.encode(tokenizer, list(zip(TEXTS, right, strict=True)), end=stop)
    width = max(len(x.prompt) + len(x.response) for x in pairs)
    batches = sequences.batches(pairs, width=width, size=4)
    config = gemma3.read_config(folder)
    graded = ExactMatch(
        tokenizer=tokenizer,
        is_right=lambda want, got: want == got,
        tokens=TOKENS,
        stop=(stop,),
    )
    part = evaluate.Part(batches, graded.accuracies)
    subject = Subject(
        model=gemma3.Gemma3(config),
        base=gemma3.load(folder, config, dtype=np.float32),
        data=arrays.Data(sequences.pack(pairs, width=width), 7),
        validation=part,
        tests={"sums": part},
        peft=PEFT,
    )
    members = [
        outcome.Member(seed, 0.1, para.load(adapters / name))
        for seed, name in enumerate(texts)
    ]

    rows = outcome.rows(members, subject)

    want = [
        np.mean([x == y for x, y in zip(t, right, strict=True)]) for t in texts.values()
    ]
    assert [x["test"] for x in rows] == pytest.approx(want)
    assert len(set(want)) == 2
