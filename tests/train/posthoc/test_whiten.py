import itertools

import jax
import numpy as np
import pytest

import para_jax as para
from para_jax._adapters.adapter import Adapter
from train import posthoc
from train.models import bert
from train.posthoc import activations, whiten


def dense(adapter):
    a, b = np.asarray(adapter.a, np.float64), np.asarray(adapter.b, np.float64)
    return adapter.scale * a @ b


def covariance(generator, m):
    x = generator.normal(size=(40, m)) * generator.uniform(0.1, 3, m) + 0.5
    return x.T @ x / len(x)


def grams(adapters, covariances):
    return {p: x.a.T @ covariances[p] @ x.a for p, x in adapters.items()}


@pytest.fixture
def toys(generator):
    """Three updates of unequal shapes with the covariances of their inputs."""
    shapes = {"p": (7, 5), "q": (5, 6), "r": (4, 9)}
    adapters = {
        path: Adapter(generator.normal(size=(m, 3)), generator.normal(size=(3, n)), 0.7)
        for path, (m, n) in shapes.items()
    }
    return adapters, {p: covariance(generator, m) for p, (m, _) in shapes.items()}


def error(adapters, covariances, child):
    """The mean squared error of all modules' outputs."""
    total = 0.0
    for path, adapter in adapters.items():
        lost = dense(adapter) - (dense(child[path]) if path in child else 0)
        total += np.trace(lost.T @ covariances[path] @ lost)
    return total


def test_the_strengths_are_those_of_the_whitened_product(toys):
    adapters, covariances = toys

    parts = whiten.whitened(adapters, grams(*toys))

    for path, x in parts.items():
        root = np.linalg.cholesky(covariances[path]).T
        want = np.linalg.svd(root @ dense(adapters[path]), compute_uv=False)[:3]
        np.testing.assert_allclose(x.s, want, rtol=1e-8)
        np.testing.assert_allclose(x.a @ x.b, dense(adapters[path]), atol=1e-10)
        assert x.spectrum.shape == dense(adapters[path]).shape


def test_a_child_projects_the_update_and_loses_the_dropped_squares(toys):
    adapters, covariances = toys
    parts = whiten.whitened(adapters, grams(*toys))
    scores = {path: x.s for path, x in parts.items()}

    for total in range(10):
        masks = posthoc.choose(parts, scores, para.Rank(total / 3))
        child = posthoc.child(parts, masks)
        dropped = sum((x.s[~masks[path]] ** 2).sum() for path, x in parts.items())
        np.testing.assert_allclose(error(*toys, child), dropped, atol=1e-9)
        for path, x in child.items():
            root = np.linalg.cholesky(covariances[path]).T
            _, _, vt = np.linalg.svd(root @ dense(adapters[path]))
            v = vt[: x.rank].T
            np.testing.assert_allclose(
                dense(x), dense(adapters[path]) @ v @ v.T, atol=1e-9
            )


def test_no_allocation_of_ranks_and_no_singular_child_loses_less(toys):
    adapters, _ = toys
    parts = whiten.whitened(adapters, grams(*toys))
    scores = {path: x.s for path, x in parts.items()}
    plain = posthoc.decompose(adapters)

    for total in range(1, 9):
        masks = posthoc.choose(parts, scores, para.Rank(total / 3))
        got = error(*toys, posthoc.child(parts, masks))
        for split in itertools.product(range(4), repeat=3):
            if sum(split) == total:
                prefix = {
                    path: np.arange(3) < k for path, k in zip(parts, split, strict=True)
                }
                for candidates in (parts, plain):
                    other = error(*toys, posthoc.child(candidates, prefix))
                    assert got <= other + 1e-9


def test_no_other_update_of_the_same_rank_loses_less(toys, generator):
    adapters, covariances = ({"p": x["p"]} for x in toys)
    parts = whiten.whitened(adapters, grams(adapters, covariances))
    best = posthoc.child(parts, {"p": np.array([True, True, False])})["p"]
    least = error(adapters, covariances, {"p": best})

    for scale in (1e-3, 1e-2, 0.1, 1):
        for _ in range(50):
            a = best.a + scale * generator.normal(size=best.a.shape)
            b = best.b + scale * generator.normal(size=best.b.shape)
            assert error(adapters, covariances, {"p": Adapter(a, b)}) > least


def test_small_inputs_make_a_large_singular_value_the_lesser_one():
    adapters = {"w": Adapter(np.diag([2.0, 1.0]), np.eye(2))}
    covariances = {"w": np.diag([0.01, 1.0])}
    one = para.Rank(1)
    plain, white = (
        posthoc.decompose(adapters),
        whiten.whitened(adapters, grams(adapters, covariances)),
    )
    children = [
        posthoc.child(x, posthoc.choose(x, {"w": x["w"].s}, one))
        for x in (plain, white)
    ]

    np.testing.assert_allclose(dense(children[0]["w"]), np.diag([2, 0]), atol=1e-12)
    np.testing.assert_allclose(dense(children[1]["w"]), np.diag([0, 1]), atol=1e-12)
    losses = [error(adapters, covariances, x) / 2 for x in children]
    np.testing.assert_allclose(losses, [0.5, 0.02])


def test_white_inputs_give_the_singular_components(toys):
    adapters, _ = toys
    eye = {path: np.eye(x.inputs) for path, x in adapters.items()}

    got = whiten.whitened(adapters, grams(adapters, eye))

    for path, x in posthoc.decompose(adapters).items():
        np.testing.assert_allclose(got[path].s, x.s, rtol=1e-8)
        np.testing.assert_allclose(np.abs(got[path].a), np.abs(x.a), atol=1e-7)


def test_fewer_tokens_than_ranks_leave_components_that_count_as_zero(toys, generator):
    adapters, _ = ({"p": x["p"]} for x in toys)
    x = generator.normal(size=(2, 7))

    parts = whiten.whitened(adapters, grams(adapters, {"p": x.T @ x}))

    np.testing.assert_array_equal(parts["p"].resolved, [True, True, False])
    child = posthoc.child(parts, {"p": parts["p"].resolved})
    np.testing.assert_allclose(
        x @ dense(child["p"]), x @ dense(adapters["p"]), atol=1e-6
    )


def test_the_diagonal_form_takes_inputs_as_uncorrelated(toys):
    adapters, covariances = toys
    squares = {path: np.diag(x) for path, x in covariances.items()}

    got = whiten.diagonal(adapters, squares)

    only = {path: np.diag(x) for path, x in squares.items()}
    for path, want in grams(adapters, only).items():
        np.testing.assert_allclose(got[path], want)


def test_moments_are_means_over_the_tokens_that_are_there(
    tiny, params, adapters, tokens
):
    model = bert.BertClassifier(tiny, 3)
    variables = {"params": params, "lora": para.to_params(adapters)}
    inputs = activations.inputs(model, variables, tokens, adapters)
    junk = bert.Tokens(
        np.where(tokens.mask, tokens.ids, 7).astype(np.int32), tokens.mask
    )

    got = [
        activations.moments(
            model, params, adapters, jax.tree.map(lambda x: x[:, None], batch)
        )
        for batch in (tokens, junk)
    ]

    for path, adapter in adapters.items():
        x = np.asarray(inputs[path], np.float64)[tokens.mask]
        assert x.shape == (8, adapter.inputs)
        y = x @ adapter.a
        for found in got:
            np.testing.assert_allclose(found[path].square, (x**2).mean(0), rtol=1e-3)
            np.testing.assert_allclose(found[path].gram, y.T @ y / 8, atol=1e-4)


def test_inputs_are_those_that_each_kernel_reads(tiny, params, adapters, tokens):
    """An adapter's contribution to the output follows from its inputs."""
    model = bert.BertClassifier(tiny, 3)
    path = "bert/encoder/layer/1/output/dense"
    variables = {"params": params, "lora": para.to_params(adapters)}

    x = activations.inputs(model, variables, tokens, [path])[path]

    _, state = model.apply(variables, tokens, capture_intermediates=True)
    outputs = state["intermediates"]["bert"]["encoder"]["layer"]["1"]["output"]["dense"]
    kernel = params["bert"]["encoder"]["layer"]["1"]["output"]["dense"]
    whole = kernel["kernel"] + dense(adapters[path])
    np.testing.assert_allclose(
        outputs["__call__"][-1], x @ whole + kernel["bias"][None, None], atol=1e-4
    )


def test_an_adapter_without_a_module_is_refused(tiny, params, adapters, tokens):
    model = bert.BertClassifier(tiny, 3)
    wrong = {"bert/encoder/layer/7/output/dense": adapters.popitem()[1]}
    batches = jax.tree.map(lambda x: x[None], tokens)

    with pytest.raises(ValueError, match="layer/7/output/dense' is not a module"):
        activations.moments(model, params, wrong, batches)
