import jax
import numpy as np
import pytest

import para_jax as para
from para_jax._adapters.adapter import Adapter
from train import posthoc
from train.models import bert


def dense(adapter):
    a, b = np.asarray(adapter.a, np.float64), np.asarray(adapter.b, np.float64)
    return adapter.scale * a @ b


def test_components_are_the_singular_ones_of_the_scaled_product(adapters):
    got = posthoc.decompose(adapters)

    assert got.keys() == adapters.keys()
    for path, x in got.items():
        delta = dense(adapters[path])
        want = np.linalg.svd(delta, compute_uv=False)[:3]
        np.testing.assert_allclose(x.s, want, rtol=1e-7)
        np.testing.assert_allclose((x.u * x.s) @ x.vt, delta, atol=1e-7)
        np.testing.assert_allclose(x.a @ x.b, delta, atol=1e-7)
        np.testing.assert_allclose(x.u.T @ x.u, np.eye(3), atol=1e-6)
        np.testing.assert_allclose(x.vt @ x.vt.T, np.eye(3), atol=1e-6)
        np.testing.assert_allclose(x.a.T @ x.a, x.b @ x.b.T, atol=1e-6)


def test_a_component_of_zero_is_unresolved_and_has_no_direction(generator):
    a = generator.normal(size=(5, 2)) @ np.array([[1.0, 2.0], [0.0, 0.0]])
    parts = posthoc.decompose({"x": Adapter(a, generator.normal(size=(2, 7)))})

    np.testing.assert_array_equal(parts["x"].resolved, [True, False])
    np.testing.assert_array_equal(parts["x"].u[:, 1], np.zeros(5))


def test_a_child_of_all_components_is_the_parent(adapters):
    parts = posthoc.decompose(adapters)

    child = posthoc.child(parts, {path: x.resolved for path, x in parts.items()})

    for path, x in child.items():
        assert x.scale == 1
        assert (x.a.dtype, x.b.dtype) == (np.float32, np.float32)
        np.testing.assert_allclose(dense(x), dense(adapters[path]), atol=1e-5)


def test_a_child_is_made_of_any_components_and_lacks_empty_modules(adapters):
    parts = posthoc.decompose(adapters)
    first, *others = parts
    masks = {path: np.zeros(3, bool) for path in others}
    masks[first] = np.array([True, False, True])

    child = posthoc.child(parts, masks)

    u, s, vt = np.linalg.svd(dense(adapters[first]))
    want = s[0] * np.outer(u[:, 0], vt[0]) + s[2] * np.outer(u[:, 2], vt[2])
    assert child.keys() == {first}
    np.testing.assert_allclose(dense(child[first]), want, atol=1e-5)


def test_stacked_children_are_evaluated_by_one_program(tiny, params, tokens, adapters):
    model = bert.BertClassifier(tiny, 3)
    parts = posthoc.decompose(adapters)
    ranking = posthoc.Ranking(parts, {path: x.s for path, x in parts.items()})
    children = [posthoc.prune(ranking, para.Rank(r)) for r in (0, 0.5, 2, 3)]
    children += [adapters]  # Its scale is not 1.

    def run(lora):
        return model.apply({"params": params, "lora": lora}, tokens)

    lora = para.to_params(posthoc.stack(children, like=adapters))
    got = jax.jit(jax.vmap(run))(lora)

    want = [run(para.to_params(x)) for x in children]
    np.testing.assert_allclose(got, np.stack(want), atol=1e-4)
    np.testing.assert_allclose(got[3], got[4], atol=1e-4)
    assert not np.allclose(got[0], got[2], atol=1e-2)


def test_what_cannot_be_stacked_is_refused(adapters):
    path, x = next(iter(adapters.items()))
    wide = {path: Adapter(np.zeros((6, 4), np.float32), np.zeros((4, 6), np.float32))}
    turned = {path: Adapter(np.zeros((5, 2), np.float32), np.zeros((2, 6), np.float32))}

    with pytest.raises(ValueError, match="no children"):
        posthoc.stack([], like=adapters)
    for child in (wide, turned):
        with pytest.raises(ValueError, match=f"'{path}'.*do not fit"):
            posthoc.stack([child], like={path: x})
    with pytest.raises(ValueError, match="'other' is not a module"):
        posthoc.stack([{"other": x}], like=adapters)


def test_stacks_of_kernels_are_refused(generator):
    stacked = Adapter(
        generator.normal(size=(2, 5, 3)), generator.normal(size=(2, 3, 4))
    )

    with pytest.raises(ValueError, match=r"'x' is a stack.*unstack"):
        posthoc.decompose({"x": stacked})
