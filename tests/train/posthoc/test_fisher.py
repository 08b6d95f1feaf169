import jax
import jax.numpy as jnp
import numpy as np
import pytest

import para_jax as para
from para_jax._adapters.adapter import Adapter
from train import posthoc
from train.models.bert import BertClassifier
from train.posthoc import examples as sampling, fisher
from train.posthoc.fisher import Factors


def closed_form(u, s, vt, gradients):
    """`I_j` from the gradients `[N, m, n]` of the update itself, in float64."""
    u, s, vt = (np.asarray(x, np.float64) for x in (u, s, vt))
    scores = [
        s**2 * np.square(g @ vt.T).sum(0)
        + np.square(np.diagonal(u.T @ g @ vt.T))
        + s**2 * np.square(g.T @ u).sum(0)
        for g in np.asarray(gradients, np.float64)
    ]
    return np.mean(scores, axis=0)


def squared_error(factors, example):
    x, target = example
    y = x @ ((factors["w"].u * factors["w"].s[None]) @ factors["w"].vt)
    return 0.5 * jnp.sum((y - target) ** 2)


def linear(factors, gradient):
    """A loss with the given gradient by the update."""
    return jnp.vdot(gradient, (factors["w"].u * factors["w"].s[None]) @ factors["w"].vt)


def information(loss, factors, data, mode="example", size=None):
    """The information of one update by examples in batches of `size`."""
    count = len(jax.tree.leaves(data)[0])
    size = size or count
    data = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), data)
    weights = jnp.ones((count // size, size))
    return fisher.information(loss, {"w": factors}, data, weights, mode=mode)["w"]


TWO = Factors(jnp.eye(2), jnp.array([2.0, 1.0]), jnp.eye(2))
INPUTS = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
TARGETS = jnp.array([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]])


@pytest.fixture
def factors(generator):
    """A random update of `[5, 4]` with three components."""
    u, s, vt = np.linalg.svd(generator.normal(size=(5, 4)))
    return Factors(*(jnp.asarray(x, jnp.float32) for x in (u[:, :3], s[:3], vt[:3])))


@pytest.fixture
def gradients(generator):
    return jnp.asarray(generator.normal(size=(6, 5, 4)), jnp.float32)


def test_three_examples_that_can_be_checked_by_hand():
    got = information(squared_error, TWO, (INPUTS, TARGETS))

    np.testing.assert_allclose(got.total, [49 / 3, 4 / 3], rtol=1e-6)
    np.testing.assert_allclose(got.s, [5 / 3, 1 / 3], rtol=1e-6)


def test_the_same_examples_as_one_batch():
    got = information(squared_error, TWO, (INPUTS, TARGETS), "batch")

    np.testing.assert_allclose(got.total, [85 / 9, 4 / 9], rtol=1e-6)


def test_autodiff_gives_the_closed_form(factors, gradients):
    got = information(linear, factors, gradients)

    np.testing.assert_allclose(got.total, closed_form(*factors, gradients), rtol=1e-5)


def test_by_batch_gives_the_closed_form_of_the_mean_gradients(factors, gradients):
    got = information(linear, factors, gradients, "batch", size=2)

    means = np.asarray(gradients).reshape(3, 2, 5, 4).mean(1)
    np.testing.assert_allclose(got.total, closed_form(*factors, means), rtol=1e-5)


def test_by_example_is_at_least_by_batch(factors, gradients):
    example = information(linear, factors, gradients)
    batch = information(linear, factors, gradients, "batch")

    assert (example.total > batch.total).all()


def test_equal_examples_make_the_modes_equal(factors, gradients):
    same = jnp.repeat(gradients[:1], 4, axis=0)

    example = information(linear, factors, same)
    batch = information(linear, factors, same, "batch")

    np.testing.assert_allclose(example.total, batch.total, rtol=1e-5)


def test_twice_the_data_changes_nothing(factors, gradients):
    twice = jnp.concatenate([gradients, gradients])

    got = information(linear, factors, twice, size=4)

    want = information(linear, factors, gradients)
    np.testing.assert_allclose(got.total, want.total, rtol=1e-5)


def test_the_information_grows_with_the_square_of_the_loss(factors, gradients):
    got = information(lambda *args: 3 * linear(*args), factors, gradients)

    want = information(linear, factors, gradients)
    np.testing.assert_allclose(got.total, 9 * want.total, rtol=1e-5)


def test_under_gradients_of_noise_it_ranks_as_the_singular_values_do(generator):
    parts = posthoc.decompose(
        {
            path: Adapter(np.diag(s), generator.permutation(np.eye(3)))
            for path, s in {"p": [6.0, 2.0, 0.5], "q": [4.0, 3.0, 1.0]}.items()
        }
    )
    noise = jnp.asarray(generator.normal(size=(4000, 3, 3)), jnp.float32)
    found = {
        path: information(
            linear,
            Factors(*(jnp.asarray(y, jnp.float32) for y in (x.u, x.s, x.vt))),
            noise,
        ).total
        for path, x in parts.items()
    }

    for path, score in found.items():  # E||G v||^2 = E||G^T u||^2 = 3, E(u G v)^2 = 1.
        np.testing.assert_allclose(score, 6 * parts[path].s ** 2 + 1, rtol=0.1)
    scores = {path: np.asarray(x, float) for path, x in found.items()}
    for rank in (0.5, 1, 1.5, 2, 2.5):
        got = posthoc.choose(parts, scores, para.Rank(rank))
        want = posthoc.choose(
            parts, {path: x.s for path, x in parts.items()}, para.Rank(rank)
        )
        assert all((got[path] == want[path]).all() for path in parts)


def test_a_component_of_zero_has_the_information_of_its_own_direction(
    factors, gradients
):
    factors = factors._replace(s=factors.s.at[2].set(0.0))

    got = information(linear, factors, gradients)

    u, vt = np.asarray(factors.u)[:, 2], np.asarray(factors.vt)[2]
    want = np.mean([(u @ g @ vt) ** 2 for g in np.asarray(gradients)])
    assert want > 0
    np.testing.assert_allclose(got.total[2], want, rtol=1e-5)


def test_rows_that_fill_up_a_batch_do_not_count(factors, gradients):
    filled = jnp.concatenate([gradients, 9 * gradients[:2]]).reshape(2, 4, 5, 4)
    weights = jnp.array([[1.0] * 4, [1.0, 1.0, 0.0, 0.0]])

    for mode in ("example", "batch"):
        got = fisher.information(linear, {"w": factors}, filled, weights, mode=mode)

        kept = np.asarray(gradients)
        if mode == "batch":
            kept = np.stack([kept[:4].mean(0), kept[4:].mean(0)])
        want = closed_form(*factors, kept)
        np.testing.assert_allclose(got["w"].total, want, rtol=1e-5)


@pytest.mark.slow
def test_in_the_encoder_it_is_the_closed_form_of_the_kernels_gradients(
    tiny, params, adapters, examples
):
    model = BertClassifier(tiny, 3)
    parts = posthoc.decompose(adapters)
    sample = sampling.batches(examples, size=3, count=2)
    lora = para.to_params(adapters)

    def loss(params, batch, weights):
        logits = model.apply({"params": params, "lora": lora}, batch.inputs)
        chosen = jnp.take_along_axis(
            jax.nn.log_softmax(logits), batch.labels[:, None], 1
        )
        return -weights @ chosen[:, 0]

    gradient = jax.jit(jax.grad(loss))
    weights = {"example": np.eye(3), "batch": np.full((1, 3), 1 / 3)}
    halves = [jax.tree.map(lambda x, i=i: x[i], sample) for i in range(2)]
    for mode, rows in weights.items():
        got = fisher.fisher(model, params, parts, sample, mode=mode)

        grads = [
            gradient(params, batch, jnp.asarray(row))
            for batch in halves
            for row in rows.astype(np.float32)
        ]
        for path, x in parts.items():
            kernels = [para.unnest(g)[f"{path}/kernel"] for g in grads]
            want = closed_form(x.u, x.s, x.vt, kernels)
            np.testing.assert_allclose(got[path].total, want, rtol=2e-3, atol=1e-9)


@pytest.mark.slow
def test_of_sequences_the_loss_is_the_mean_over_their_labels(generator):
    from tests.train.models import tiny_gemma3
    from train.models import gemma3, layers

    labels = generator.integers(0, 37, (4, 11)).astype(np.int32)
    labels[0, 2:] = labels[1, :3] = labels[3] = -1
    ids = generator.integers(1, 37, (4, 11)).astype(np.int32)
    batches = sampling.Examples(ids[None], labels[None])
    model, params = gemma3.Gemma3(tiny_gemma3.CONFIG), tiny_gemma3.params()
    lora = tiny_gemma3.lora()
    parts = posthoc.decompose(layers.unstacked(para.from_params(lora)))

    got = fisher.fisher(model, params, parts, batches)

    @jax.jit
    @jax.grad
    def gradient(params, ids, labels):
        logits = model.apply({"params": params, "lora": lora}, ids[None])
        own = jnp.take_along_axis(
            jax.nn.log_softmax(logits[0]), jnp.maximum(labels, 0)[:, None], 1
        )[:, 0]
        return -jnp.mean(own, where=labels >= 0)

    grads = [gradient(params, ids[i], labels[i]) for i in range(3)]
    for path, x in parts.items():
        _, _, number, module = path.split("/", 3)
        kernels = [
            para.unnest(g)[f"model/layers/{module}/kernel"][int(number)] for g in grads
        ]
        want = closed_form(x.u, x.s, x.vt, kernels)
        np.testing.assert_allclose(got[path].total, want, rtol=2e-3, atol=1e-9)
