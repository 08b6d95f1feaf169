"""Test `--score` and `--base`, against NumPy's choice in float64."""

import json

import numpy as np
import pytest
import safetensors.numpy

import para_jax as para
from para_jax import cli
from tests import reference

pytestmark = pytest.mark.user_defaults

SHAPES = {"layer/0/q": (8, 6), "layer/0/up": (8, 20), "layer/1/q": (8, 6)}
SCALES = {"layer/0/q": 1.0, "layer/0/up": 20.0, "layer/1/q": 0.05}


@pytest.fixture(autouse=True)
def own_cache(no_trace_of_the_settings, monkeypatch, tmp_path_factory):
    """Let commands choose where their compiled programs are kept."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def parent():
    rng = np.random.default_rng(5)
    return {
        path: para.Adapter(
            np.float32(SCALES[path] * rng.normal(size=(m, 4))),
            np.float32(rng.normal(size=(4, n))),
        )
        for path, (m, n) in SHAPES.items()
    }


@pytest.fixture(scope="module")
def folder(parent, tmp_path_factory):
    place = tmp_path_factory.mktemp("adapter") / "a"
    para.save(para.Checkpoint(adapters=parent), place)
    return place


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Write a base model whose names have another prefix; return it and its norms."""
    place, rng = tmp_path_factory.mktemp("base"), np.random.default_rng(6)
    norms, tensors = {}, {}
    for path, (m, n) in SHAPES.items():
        kernel = np.float32(rng.normal(size=(n, m)) * SCALES[path])
        norms[path] = float(np.linalg.norm(kernel.astype(np.float64)))
        tensors[f"model.{path.replace('/', '.')}.weight"] = kernel
    safetensors.numpy.save_file(tensors, place / "model.safetensors")
    return place, norms


def ranks(report):
    return {x["path"]: x["kept"] for x in json.loads(report)["modules"]}


def wanted(parent, policy):
    found = reference.cut(reference.kernels(parent), policy)
    assert found.gap > 1e-4
    return {path: rank for (path,), rank in found.ranks.items()}


def test_compress_by_each_score(parent, folder, base, tmp_path, capsys):
    place, norms = base
    scores = {
        (): "sigma",
        ("--score", "relative"): "relative",
        ("--base", str(place)): para.Score(norms=norms),
    }
    seen = set()
    for number, (words, score) in enumerate(scores.items()):
        target = str(tmp_path / str(number))
        done = cli.main(
            ["compress", str(folder), target, "--rank", "1.4", "--json", *words]
        )
        assert not done
        got = ranks(capsys.readouterr().out)
        assert got == wanted(parent, para.Rank(1.4, score=score))
        kept = para.load(target).adapters
        assert {path: x.rank for path, x in kept.items()} == {
            path: rank for path, rank in got.items() if rank
        }
        seen.add(tuple(got.values()))
    assert len(seen) >= 2


def test_a_sweep_names_its_children_by_the_score(folder, base, tmp_path):
    words = ["--gamma", "0.25", "0.5", "--base", str(base[0])]
    assert not cli.main(["sweep", str(folder), str(tmp_path / "s"), *words])
    names = sorted(x.name for x in (tmp_path / "s").iterdir())
    assert names == ["gamma-0.25-base", "gamma-0.5-base"]


def test_a_fleet_is_cut_by_the_base_too(parent, folder, base, tmp_path):
    place, norms = base
    words = ["--rank", "1.4", "--base", str(place)]
    done = cli.main(["fleet", str(folder.parent / "*"), str(tmp_path / "f"), *words])
    assert not done
    kept = para.load(tmp_path / "f" / "a").adapters
    policy = para.Rank(1.4, score=para.Score(norms=norms))
    found = wanted(parent, policy)
    assert {path: x.rank for path, x in kept.items()} == {
        path: rank for path, rank in found.items() if rank
    }
    # The same fleet by another score is another one.
    again = cli.main(
        ["fleet", str(folder.parent / "*"), str(tmp_path / "f"), "--rank", "1.4"]
    )
    assert again


def test_words_that_do_not_go_together(folder, base, tmp_path, capsys):
    words = ["compress", str(folder), str(tmp_path / "c"), "--rank", "1"]
    assert cli.main([*words, "--score", "relative", "--base", str(base[0])]) == 2
    assert "not allowed with" in capsys.readouterr().err
    assert cli.main([*words, "--score", "size"]) == 2
    assert cli.main([*words, "--base", str(tmp_path)])
    assert "holds no *.safetensors" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()
    # A fleet is refused once, and not a tenant at a time.
    fleet = ["fleet", str(folder.parent / "*"), str(tmp_path / "f"), "--rank", "1"]
    assert cli.main([*fleet, "--base", str(tmp_path)])
    assert not (tmp_path / "f").exists()
