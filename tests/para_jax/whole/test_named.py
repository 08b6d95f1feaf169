"""Test programs over one array a module: results, and what does not grow with them."""

import collections
import re

import jax
import numpy as np
import pytest

import para_jax

# Shapes and ranks that alternate from module to module, so that groups are spread.
FORMS = [(9, 7, 3), (7, 9, 3), (9, 7, 2), (2, 11, 3)]


def adapters(layers):
    rng = np.random.default_rng(0)
    return {
        f"layers/{i}/{name}": para_jax.Adapter(
            a=(rng.normal(size=(m, r)) * (1 + i)).astype(np.float32),
            b=rng.normal(size=(r, n)).astype(np.float32),
            scale=0.5 + j,
        )
        for i in range(layers)
        for j, (name, (m, n, r)) in enumerate(zip("qkvo", FORMS, strict=True))
    }


def cut(adapters, policy):
    spectra = para_jax.decompose(adapters)
    kept = para_jax.masks(spectra, policy)
    return kept, para_jax.repack(spectra, kept, adapters, form="masked")


@pytest.mark.parametrize("wide", [True, False])
def test_every_module_keeps_its_own_components(wide):
    parents = adapters(9)
    updates = {p: x.scale * np.float64(x.a) @ x.b for p, x in parents.items()}
    svd = {p: np.linalg.svd(x, full_matrices=False) for p, x in updates.items()}
    ranks = {p: min(x.rank, *updates[p].shape) for p, x in parents.items()}
    values = np.sort(np.concatenate([svd[p][1][:k] for p, k in ranks.items()]))
    bound = (values[50] + values[51]) / 2

    with jax.enable_x64(wide):
        kept, child = jax.jit(cut)(parents, para_jax.Threshold(bound))

    assert list(child) == list(jax.tree.map(lambda x: x, parents))
    for path, (u, s, vt) in svd.items():
        rank = int((s[: ranks[path]] > bound).sum())
        assert kept[path].tolist() == [i < rank for i in range(ranks[path])]
        want = (u[:, :rank] * s[:rank]) @ vt[:rank]
        got = np.float64(child[path].a) @ np.float64(child[path].b)
        np.testing.assert_allclose(got, want, atol=1e-4 * s[0])


def operations(layers):
    """Return the operations of the optimised program, without those of its results."""
    program = jax.jit(lambda x: cut(x, para_jax.Gamma(0.5))[1])
    text = program.lower(adapters(layers)).compile().as_text()
    main = text[text.index("ENTRY") :]
    return collections.Counter(re.findall(r"= \S+ ([a-z-]+)\(", main))


@pytest.mark.slow
def test_between_the_factors_and_the_child_no_operation_names_a_module():
    few, many = operations(6), operations(12)

    # A module has two results, of one operation each, and two factors to be joined.
    modules = 6 * len(FORMS)
    free = {"parameter", "bitcast", "get-tuple-element", "constant", "copy", "reshape"}
    grown = {x: many[x] - few[x] for x in many if x not in free}
    assert sum(max(n, 0) for n in grown.values()) <= 3 * modules, grown
