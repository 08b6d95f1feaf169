"""Test modules sharing one update: counted once, cut once, and equal afterwards.

Spectra are NumPy's, of the full matrices.
"""

import dataclasses

import numpy as np
import pytest

import para_jax as para
from para_jax._adapters import sharing

EMBEDDING = {"embed": para.Layer(kind="embedding")}


def adapter(m, n, r, *, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    return para.Adapter(rng.normal(size=(m, r)), rng.normal(size=(r, n)), scale)


def flipped(x):
    return para.Adapter(x.b.T, x.a.T, x.scale)


def tied(scale=0.5):
    """Return an embedding, the output layer with its factors, and another module."""
    embed = adapter(11, 6, 3, scale=scale)
    adapters = {"head": flipped(embed), "embed": embed, "q": adapter(6, 5, 3, seed=1)}
    return para.Checkpoint(
        adapters=adapters, layers=EMBEDDING, shared={"head": "embed"}
    )


def delta(x):
    return x.scale * np.asarray(x.a) @ np.asarray(x.b)


def block(names, x, y):
    return {f"{name}/q": x for name in names} | {f"{name}/v": y for name in names}


def test_a_transposed_embedding_and_a_block_of_two_names_are_found():
    same = block(["encoder", "decoder"], adapter(6, 5, 2), adapter(6, 5, 2, seed=4))
    parent = tied()

    got = sharing.found(parent.adapters | same, parent.layers)

    assert got == {
        "head": "embed",
        "encoder/q": "decoder/q",
        "encoder/v": "decoder/v",
    }


def test_what_only_looks_alike_is_not_shared():
    x = adapter(6, 6, 2)
    zeros = para.Adapter(np.zeros((6, 2)), np.zeros((2, 6)))
    near = para.Adapter(x.a, np.nextafter(x.b, 1))
    adapters = {
        "0/q": x,
        "1/q": near,
        "2/q": dataclasses.replace(x, scale=2.0),
        "3/q": para.Adapter(x.a.astype(np.float32), x.b.astype(np.float32)),
        "0/v": x,  # A block has one name for one module.
        "4/q": flipped(x),  # Of a dense layer, not of an embedding.
        "5/q": zeros,
        "6/q": zeros,
    }

    assert sharing.found(adapters, {}) == {}


@pytest.mark.parametrize("form", ["ragged", "padded", "masked"])
@pytest.mark.parametrize("budget", range(1, 7))
def test_it_is_cut_once_and_counted_once(budget, form):
    parent = tied()

    child = para.compress(parent, para.Rank(budget / 2), form=form)

    deltas = {path: delta(parent.adapters[path]) for path in ("embed", "q")}
    svds = {path: np.linalg.svd(x) for path, x in deltas.items()}
    pool = sorted((s for x in svds.values() for s in x.S[:3]), reverse=True)
    assert {x.path for x in child.report.modules} == {"embed", "q"}
    assert child.report.kept_rank == budget
    assert child.report.total_rank == 6
    for path, (u, s, vt) in svds.items():
        k = int((s >= pool[budget - 1]).sum())
        want = (u[:, :k] * s[:k]) @ vt[:k]
        got = child.adapters.get(path)
        np.testing.assert_allclose(0 if got is None else delta(got), want, atol=1e-12)
    if "embed" in child.adapters:
        head, embed = child.adapters["head"], child.adapters["embed"]
        np.testing.assert_array_equal(head.a, embed.b.T)
        np.testing.assert_array_equal(head.b, embed.a.T)
    else:
        assert child.absent == {"embed": (11, 6), "head": (6, 11)}
    assert child.shared == {"head": "embed"}
    assert any("'head' shares" in note for note in child.report.notes)


def test_a_family_and_a_second_cut_know_it_too():
    children = para.family(tied(), [para.Rank(2.5), para.Rank(1)])

    again = para.compress(children[0], para.Rank(1))

    assert again.report.total_rank == 5
    for path in ("head", "embed", "q"):
        one, two = (x.adapters.get(path) for x in (again, children[1]))
        assert (one is None) == (two is None)
        if one is not None:
            np.testing.assert_allclose(delta(one), delta(two), atol=1e-12)


def test_an_update_that_was_changed_is_not_shared_any_more():
    parent = tied()
    other = adapter(6, 11, 3, seed=9)
    changed = dataclasses.replace(parent, adapters={**parent.adapters, "head": other})

    child = para.compress(changed, para.Gamma(1.0))

    assert child.shared == {}
    assert child.report.total_rank == 9
    np.testing.assert_allclose(delta(child.adapters["head"]), delta(other), atol=1e-12)


def test_an_inspection_counts_it_once():
    found = para.inspect(tied())

    assert [x.path for x in found.rows] == ["embed", "q"]
    assert found.parameters == 3 * (11 + 6) + 3 * (6 + 5)


@pytest.mark.parametrize("format", ["peft", "orbax"])
@pytest.mark.parametrize("kept", [0.5, 1.0])
def test_it_outlives_a_format(format, kept, tmp_path):  # noqa: A002
    child = para.compress(tied(), para.Gamma(kept))

    para.save(child, tmp_path / "x", format=format)

    again = para.compress(para.load(tmp_path / "x"), para.Gamma(1.0))
    assert again.report.total_rank == child.report.kept_rank
    assert again.shared == {"head": "embed"}
