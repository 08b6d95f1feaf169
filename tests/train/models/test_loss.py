"""The loss and its gradients in chunks, against all logits at once."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

N, D, V = 11, 5, 17


@pytest.fixture
def loss():
    from train.models import loss

    return loss


@pytest.fixture
def drawn(loss):
    generator = np.random.default_rng(0)
    x, table = (generator.normal(size=(k, D)).astype(np.float32) for k in (N, V))
    weights = np.array([1, 0, 1, 1, 0.5, 1, 1, 0, 1, 1, 1], np.float32)
    ids = generator.integers(0, V, N).astype(np.int32)
    return jnp.asarray(x), jnp.asarray(table), loss.Targets(ids, weights)


def whole(x, table, targets, cap):
    logits = x @ table.T
    logits = logits if cap is None else cap * jnp.tanh(logits / cap)
    return targets.weights @ optax.softmax_cross_entropy_with_integer_labels(
        logits, targets.ids
    )


@pytest.mark.parametrize("cap", [None, 1.5])
@pytest.mark.parametrize("chunk", [4, 11, 100])
def test_loss_and_gradients_are_those_of_all_logits_at_once(loss, drawn, cap, chunk):
    x, table, targets = drawn

    def ours(x, table):
        return 3 * loss.cross_entropy(x, table, targets, cap, chunk).loss

    def theirs(x, table):
        return 3 * whole(x, table, targets, cap)

    got = jax.jit(jax.value_and_grad(ours, argnums=(0, 1)))(x, table)
    want = jax.value_and_grad(theirs, argnums=(0, 1))(x, table)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)
    np.testing.assert_allclose(ours(x, table), want[0], rtol=1e-6)


def test_in_bfloat16_the_loss_is_still_summed_in_float32(loss, drawn):
    x, table, targets = drawn
    x, table = x.astype(jnp.bfloat16), table.astype(jnp.bfloat16)

    def ours(x):
        return loss.cross_entropy(x, table, targets, None, 4).loss

    got, slope = jax.value_and_grad(ours)(x)

    wide = (x.astype(jnp.float32), table.astype(jnp.float32))
    want, gradient = jax.value_and_grad(whole)(*wide, targets, None)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert slope.dtype == jnp.bfloat16
    np.testing.assert_allclose(slope.astype(jnp.float32), gradient, atol=0.03)


def test_logits_of_all_tokens_never_exist_and_frozen_embeddings_cost_nothing(
    loss, drawn
):
    def jaxpr(argnums):
        def ours(x, table, targets):
            return loss.cross_entropy(x, table, targets, None, 4).loss

        return str(jax.make_jaxpr(jax.grad(ours, argnums))(*drawn))

    assert f"[4,{V}]" in jaxpr(0)
    assert f"[{N},{V}]" not in jaxpr(0)
    assert jaxpr(0).count("dot_general") == 2
    assert jaxpr((0, 1)).count("dot_general") == 3


@pytest.mark.parametrize("chunk", [4, 11, 100])
def test_what_is_right_has_the_largest_logit_and_counts_by_its_weight(
    loss, drawn, chunk
):
    x, table, targets = drawn
    likely = np.asarray(x @ table.T).argmax(-1)
    ids = np.where(np.arange(N) % 3 == 1, (likely + 1) % V, likely).astype(np.int32)

    got = loss.cross_entropy(x, table, targets._replace(ids=ids), None, chunk).right

    # Of the weights, 8.5 in all, each third is wrong: 0, 0.5, 0 and 1.
    np.testing.assert_allclose(got, 8.5 - 1.5, rtol=1e-6)


def test_the_causal_loss_is_the_mean_over_the_tokens_of_the_mask(loss):
    from tests.train.models import tiny_gemma3 as tiny
    from train.models import gemma3

    mask = np.zeros((2, 11), bool)
    mask[0, 5:] = mask[1, 2:7] = mask[1, 0] = True
    model, variables = gemma3.Gemma3(tiny.CONFIG), {"params": tiny.params()}

    got = loss.causal_loss(model, variables, tiny.IDS, mask, chunk=4)

    logits = np.asarray(model.apply(variables, tiny.IDS), np.float64)[:, :-1]
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    own = np.take_along_axis(logits, tiny.IDS[:, 1:, None], axis=-1)[..., 0]
    np.testing.assert_allclose(got, -own[mask[:, 1:]].mean(), rtol=1e-5)


def test_what_pads_a_sequence_does_not_count(loss):
    from tests.train.models import tiny_gemma3 as tiny
    from train.models import gemma3

    mask = np.ones((2, 11), bool)
    mask[:, 6:] = False
    model, variables = gemma3.Gemma3(tiny.CONFIG), {"params": tiny.params()}

    longer = loss.causal_loss(model, variables, tiny.IDS, mask)
    cut = loss.causal_loss(model, variables, tiny.IDS[:, :6], mask[:, :6])

    np.testing.assert_allclose(longer, cut, rtol=1e-5)
