"""The paper's image sets and GLUE, with tiny models and a few rows of each."""

import dataclasses
import functools
import hashlib

import jax
import numpy as np
import PIL.Image
import pytest


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    from train.presets.paper import tiny

    return tiny.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name in ("PARA_DATA", "PARA_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)


def settings(task, **changes):
    from train.runs.settings import Run

    return Run(task=task, backbone="", max_length=16, batch=5, steps=4, **changes)


def rows(folders, name, part):
    from train.data import hub

    return hub.load(name, part, data=folders.data, subset=True)


def test_images_are_trained_on_as_a_stream_and_evaluated_in_order(folders):
    from train import subjects
    from train.data.batch import Stream

    subject = subjects.load(settings("cars"), folders)

    assert isinstance(subject.data.train, Stream)
    batches = subject.tests["cars"].batches
    test = list(batches)
    assert len(test) == len(batches) == 1
    assert subject.data.examples == 36  # A tenth of 40 is held out.
    assert sum(x.examples for x in subject.validation.batches) == 4
    want = rows(folders, "cars", "test")
    (batch,) = test
    np.testing.assert_array_equal(batch.labels[:12], want["label"][:])
    assert set(batch.labels[12:]) == {-1}
    # 21 x 18 pixels: the middle 18 x 18.
    square = want[3]["image"].crop((1, 0, 19, 18))
    picture = square.resize((16, 16), PIL.Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(batch.inputs[3], np.asarray(picture))
    again = batches[0]
    np.testing.assert_array_equal(again.inputs, batch.inputs)


@pytest.mark.slow
def test_a_model_on_bytes_is_the_one_on_pixels_from_minus_one_to_one(folders):
    import jax.numpy as jnp

    from train import subjects

    subject = subjects.load(settings("pets"), folders)
    (batch,) = subject.tests["pets"].batches
    head = {"kernel": jnp.ones((24, 37)), "bias": jnp.arange(37.0)}
    params = {**subject.base, "classifier": head}

    got = subject.model.apply({"params": params}, batch.inputs)

    pixels = jnp.asarray(batch.inputs / 127.5 - 1, jnp.float32)
    want = subject.model.model.apply({"params": params}, pixels)
    np.testing.assert_allclose(got, want, atol=1e-5)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    assert subject.model.apply({"params": half}, batch.inputs).dtype == jnp.bfloat16


def test_flowers_have_a_validation_part_of_their_own(folders):
    from train import subjects

    subject = subjects.load(settings("flowers"), folders)

    assert subject.data.examples == 40
    labels = np.concatenate([x.labels for x in subject.validation.batches])
    want = rows(folders, "flowers", "validation")["label"][:]
    np.testing.assert_array_equal(labels[labels >= 0], want)


def test_what_is_held_out_is_neither_trained_on_nor_tested_on(folders):
    from train.data import parts

    train, validation = parts.held_out(12_345)

    assert len(validation) == 1_235
    assert sorted([*train, *validation]) == list(range(12_345))
    assert len(parts.held_out(392_702)[1]) == parts.LARGEST
    assert [*parts.held_out(30)[1]] != [*parts.held_out(30, seed=1)[1]]


@pytest.mark.parametrize(("task", "classes"), [("mnli", 3), ("sst2", 2)])
def test_sentences_are_those_of_the_set_in_roberta_s_form(folders, task, classes):
    from train import subjects

    subject = subjects.load(settings(task), folders)

    assert subject.model.classes == classes
    found = rows(folders, task, "test")
    want = []
    for row in found:
        ids = [[int(x[1:]) + 4 for x in row["first"].split()]]
        if "second" in row:
            ids.append([int(x[1:]) + 4 for x in row["second"].split()])
        # <s> a </s>, or <s> a </s></s> b </s>.
        want.append((*[0, *ids[0], 2], *([2, *ids[1], 2] if ids[1:] else [])))
    got = {}
    for batch in subject.tests[task].batches:
        for ids, mask, label in zip(*batch.inputs, batch.labels, strict=True):
            if label >= 0:
                got[tuple(ids[mask].tolist())] = int(label)
    assert got == dict(zip(want, found["label"][:], strict=True))
    assert subject.data.examples == 36
    train = set(map(tuple, np.asarray(subject.data.train.ids[:36]).tolist()))
    assert len(train) == 36


def test_a_run_names_the_weights_that_it_found_and_refuses_others(folders, tmp_path):
    import shutil

    from train import subjects
    from train.subjects import Folders, images

    run = subjects.identified(settings("cifar10"), folders)

    file = folders.weights / images.REPO / "model.safetensors"
    assert run.backbone == hashlib.sha256(file.read_bytes()).hexdigest()
    assert subjects.identified(run, Folders(weights=tmp_path)) == run
    other = tmp_path / "weights"
    shutil.copytree(folders.weights, other)
    changed = bytearray(file.read_bytes())
    changed[-1] ^= 1
    (other / images.REPO / "model.safetensors").write_bytes(changed)
    with pytest.raises(ValueError, match=r"have the sha256 .*, expected"):
        subjects.load(run, dataclasses.replace(folders, weights=other))


MPNET = "sentence-transformers/all-mpnet-base-v2"


def test_a_run_may_name_another_encoder(folders):
    import transformers

    from train import subjects
    from train.models import mpnet

    run = subjects.identified(settings("mrpc", model=MPNET), folders)

    file = folders.weights / MPNET / "model.safetensors"
    assert run.backbone == hashlib.sha256(file.read_bytes()).hexdigest()
    subject = subjects.load(run, folders)
    assert isinstance(subject.model, mpnet.MPNetClassifier)
    assert subject.peft["base_model_name_or_path"] == MPNET
    want = transformers.AutoModel.from_pretrained(file.parent).state_dict()
    got = subject.base["mpnet"]["encoder"]["relative_attention_bias"]["embedding"]
    bias = want["encoder.relative_attention_bias.weight"].float().numpy()
    np.testing.assert_array_equal(got, bias)


def test_the_task_s_own_model_is_the_same_run_with_or_without_its_name(folders):
    from train import subjects
    from train.subjects import glue

    named = subjects.identified(settings("mrpc", model=glue.REPO), folders)

    assert named == subjects.identified(settings("mrpc"), folders)


@pytest.mark.parametrize(
    ("task", "model", "said"),
    [
        ("mrpc", "google/gemma-3-4b-it", "type 'gemma3_text', and the task 'mrpc' ta"),
        ("mrpc", "google/gemma-3-4b-it", "takes roberta or mpnet. Give another --mod"),
        ("cars", MPNET, "'cars' takes siglip or siglip_vision_model. Give another"),
        ("commonsense", MPNET, "is of the type 'mpnet', and the task 'commonsense' ta"),
    ],
)
@pytest.mark.parametrize("begin", ["identified", "load"])
def test_a_model_that_a_task_cannot_take_is_refused(folders, task, model, said, begin):
    from train import subjects

    with pytest.raises(ValueError, match=said) as refused:
        getattr(subjects, begin)(settings(task, model=model), folders)

    assert str(folders.weights / model) in str(refused.value)


@pytest.mark.parametrize("task", ["movie", "problems", "armenian"])
def test_a_task_with_a_shipped_model_takes_no_other(task):
    from train import subjects

    said = f"'{task}' has a model of its own, and model is 'a/b'. Leave --model out"
    for begin in (subjects.identified, subjects.load):
        with pytest.raises(ValueError, match=said):
            begin(settings(task, model="a/b"))


def save_mrpc(folder, source):
    """Saves as many pairs as MRPC has: a run of the command takes no subset."""
    import datasets

    generator = np.random.default_rng(0)
    found = datasets.DatasetDict()
    for split, count in source.parts.values():
        numbers = generator.integers(36, size=(2, count))
        first, second = ([f"w{x}" for x in row] for row in numbers)
        labels = (numbers[0] > numbers[1]).astype(int).tolist()
        columns = {"first": first, "second": second, "label": labels}
        found[split] = datasets.Dataset.from_dict(
            {source.columns[name]: column for name, column in columns.items()}
        )
    found.save_to_disk(str(folder / source.hub / source.configs[0]))


@pytest.mark.slow
def test_a_run_takes_weights_and_data_from_where_the_command_says(
    folders, tmp_path, monkeypatch, capsys
):
    import json
    import shutil

    from train import __main__ as main
    from train.data import sources

    monkeypatch.chdir(tmp_path)
    save_mrpc(tmp_path / "data", sources.find("mrpc"))
    weights = str(folders.weights)
    words = ["run", "tiny", "--task", "mrpc", "--backbone", "", "--steps", "3"]
    data = ["--data", "data"]

    main.main([*words, *data, "--weights", weights])

    (place,) = (tmp_path / "runs" / "mrpc").iterdir()
    made = json.loads((place / "config.json").read_text())
    file = folders.weights / "FacebookAI/roberta-base/model.safetensors"
    assert made["run"]["backbone"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert not {"weights", "data", "folders"} & made["run"].keys()
    assert weights not in json.dumps(made["run"])
    # Elsewhere the same weights are the same run, and its parent can be cut there.
    shutil.copytree(folders.weights, tmp_path / "moved")
    capsys.readouterr()
    moved = [*data, "--weights", "moved"]
    main.main([*words, *moved, "--method", "para", "--cut.gammas", "0.5"])
    assert "It is complete already." in capsys.readouterr().out
    assert [*(tmp_path / "runs" / "mrpc").iterdir()] == [place]
    (child,) = (place / "children").iterdir()
    assert child.name == "para-gamma-0.5"
    with pytest.raises(SystemExit):
        main.main([*words, *data, "--weights", "nowhere"])
    assert "no folder 'nowhere/FacebookAI/roberta-base'" in capsys.readouterr().err


def test_several_files_of_tensors_have_one_hash(tmp_path):
    import subprocess

    from train.models import repository

    for name in ("b", "a"):
        (tmp_path / f"{name}.safetensors").write_text(name)
    lines = subprocess.run(
        "sha256sum *.safetensors | sha256sum",
        shell=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert repository.sha256(tmp_path) == lines.stdout.split()[0]


def test_a_model_that_is_not_there_comes_with_the_command(folders, tmp_path):
    from train import subjects
    from train.subjects import Folders

    with pytest.raises(FileNotFoundError, match="hf download FacebookAI/roberta-base"):
        subjects.load(settings("cola"), Folders(weights=tmp_path))
    with pytest.raises(FileNotFoundError, match="set PARA_WEIGHTS to it"):
        subjects.load(settings("cola"), Folders(data=folders.data))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "method", "model"),
    [
        ("eurosat", "lora", ""),
        ("eurosat", "gora", ""),
        ("mrpc", "dora", ""),
        ("mrpc", "gora", MPNET),
    ],
)
def test_every_family_trains(folders, task, method, model):
    from train import subjects
    from train.methods import METHODS, gora
    from train.runs import settings as runs

    config = METHODS[method] if method != "gora" else gora.Gora(gradient_batches=2)
    rates = {"seeds": (0, 1), "learning_rates": (0.03,)}
    run = settings(task, method=config, model=model, **rates)
    run = dataclasses.replace(run, steps=6, dtype="bfloat16")
    subject = subjects.load(run, folders)
    given = runs.inputs(run, subject.model, subject.base, subject.data)

    found = [
        jax.device_get(progress.metrics.loss)
        for progress in runs.advance(given, runs.begin(given), chunk=4)
    ]

    losses = np.concatenate(found, axis=1)
    assert losses.shape == (2, 6)
    assert np.isfinite(losses).all()
    assert not np.array_equal(losses[0], losses[1])


def test_pictures_and_sentences_that_are_held_out_keep_their_labels(folders):
    from train import subjects
    from train.data import parts

    train, held_out = parts.held_out(40)
    want = rows(folders, "cars", "train")
    subject = subjects.load(settings("cars"), folders)
    data = subject.data
    np.testing.assert_array_equal(
        data.train.images.labels, np.array(want["label"][:])[train]
    )
    for place in (0, 35):
        picture = want[int(train[place])]["image"]
        assert data.train.images.pictures[place].tobytes() == picture.tobytes()
    (batch,) = subject.validation.batches
    np.testing.assert_array_equal(
        batch.labels[:4], np.array(want["label"][:])[held_out]
    )

    want = rows(folders, "sst2", "train")
    found = subjects.load(settings("sst2"), folders).data.train
    for place, row in enumerate(train):
        words = [int(x[1:]) + 4 for x in want[int(row)]["first"].split()]
        ids = found.ids[place, : found.lengths[place]]
        np.testing.assert_array_equal(ids, [0, *words, 2])
        assert found.labels[place] == want[int(row)]["label"]


def tokenized(found):
    """The rows of a set in RoBERTa's form, in their order, as one batch."""
    from train.models.bert import Tokens

    ids = np.full((len(found), 16), 1, np.int32)
    for place, row in zip(ids, found, strict=True):
        first, *second = (
            [int(word[1:]) + 4 for word in row[name].split()]
            for name in ("first", "second")
            if name in row
        )
        words = [0, *first, 2, *([2, *second[0], 2] if second else [])]
        place[: len(words)] = words
    return Tokens(ids, ids != 1)


def classifiers(subject, found):
    """Three heads and no adapters; each head names several classes in a set."""
    generator = np.random.default_rng(5)
    result = []
    for _ in range(3):
        dense, out = generator.normal(size=(2, 24, 24)).astype(np.float32) / 5
        bias = np.zeros(24, np.float32)
        out = {"kernel": out[:, : subject.model.classes]}
        out["bias"] = bias[: subject.model.classes]
        head = {"dense": {"kernel": dense, "bias": bias}, "out_proj": out}
        out["bias"] = -np.median(logits(subject, head, found), axis=0)
        result.append(head)
    return jax.tree.map(lambda *x: np.stack(x), *result), {}


def logits(subject, head, found):
    """The logits of one model without adapters, `[N, classes]`, in the set's order."""
    variables = {"params": {**subject.base, "classifier": head}}
    return np.asarray(apply(subject.model, variables, tokenized(found)))


@functools.partial(jax.jit, static_argnums=0)
def apply(model, variables, tokens):
    return model.apply(variables, tokens)


@pytest.mark.parametrize(
    ("task", "name", "part"),
    [
        ("cola", "matthews", "test"),
        ("mrpc", "f1", "test"),
        ("mnli", "mismatched", "mismatched"),
    ],
)
def test_what_glue_reports_beside_the_accuracy_is_what_sklearn_says(
    folders, task, name, part
):
    from sklearn import metrics

    from train import subjects
    from train.grid import training
    from train.presets import PLANS

    score = {
        "matthews": metrics.matthews_corrcoef,
        "f1": metrics.f1_score,
        "mismatched": metrics.accuracy_score,
    }[name]
    run = settings(task)
    subject = subjects.load(run, folders)
    found, tested = rows(folders, task, part), rows(folders, task, "test")
    heads, lora = classifiers(subject, found)
    place = training.Place(task, subject, run, PLANS["paper/glue"])

    got = training.tested(place, models(task), heads, lora)

    labels = np.array(found["label"][:])
    assert [(x.task, x.seed) for x in got] == [(task, 0), (task, 1), (task, 2)]
    turned = []
    for index, row in enumerate(got):
        head = jax.tree.map(lambda x: x[index], heads)  # noqa: B023
        mine = logits(subject, head, found).argmax(1)
        assert row.measures == {name: pytest.approx(score(labels, mine))}
        turned.append(abs(score(labels[::-1], mine) - score(labels, mine)))
        right = logits(subject, head, tested).argmax(1) == tested["label"][:]
        assert row.accuracy == pytest.approx(np.mean(right))
    assert max(turned) > 0.1  # Labels in another order give something else.


def models(task):
    from train.experiments.rows import Row

    values = {"task": task, "method": "lora", "policy": "rank 4", "rank_total": 4}
    values |= {"modules": 1, "params": 9, "learning_rate": 1e-3, "config": "lora-4"}
    return [Row(**values, seed=seed, steps=3) for seed in range(3)]
