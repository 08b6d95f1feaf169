"""The score of a batch: of classifiers, of positions, and of Gemma 3's few logits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import para_jax as para
from train.data.batch import Batch


@pytest.fixture(scope="module")
def gemma():
    """A tiny model, its params, the adapters of three members, and labelled tokens."""
    from tests.train.models import tiny_gemma3 as tiny
    from train.models import gemma3

    generator = np.random.default_rng(4)
    labels = generator.integers(0, 37, (2, 11)).astype(np.int32)
    labels[0, :4] = labels[1, 9:] = labels[1, 2] = -1
    model, params = gemma3.Gemma3(tiny.CONFIG), tiny.params()
    logits = jax.jit(model.apply)({"params": params}, tiny.IDS)
    likely = np.asarray(logits).argmax(-1)
    labels[:, 4:7] = likely[:, 4:7]
    lora = jax.tree.map(lambda x: jnp.stack([0 * x, x, 2 * x]), tiny.lora())
    return model, params, lora, Batch(tiny.IDS, labels)


def by_hand(logits, labels):
    """Return the mean cross entropy and the accuracy, by NumPy in float64."""
    logits = np.asarray(logits, np.float64)
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    counts = labels >= 0
    own = np.take_along_axis(logs, np.maximum(labels, 0)[..., None], -1)[..., 0]
    return -own[counts].mean(), (logits.argmax(-1) == labels)[counts].mean()


class Logits:
    """A model with its inputs as logits."""

    def apply(self, variables, inputs):
        return inputs


@pytest.mark.parametrize("shape", [(5,), (3, 4)])
def test_labels_that_do_not_count_are_left_out(shape):
    from train.models.score import score

    generator = np.random.default_rng(0)
    logits = generator.normal(size=(*shape, 7)).astype(np.float32)
    labels = generator.integers(-1, 7, shape).astype(np.int32)
    labels[0] = -1
    labels[-1] = logits[-1].argmax(-1)

    got = score(Logits(), {}, Batch(jnp.asarray(logits), labels))

    want = by_hand(logits, labels)
    assert 0 < want[1] < 1
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_a_batch_without_labels_scores_nothing_and_has_no_gradient():
    from train.models.score import score

    logits, labels = jnp.ones((2, 3)), np.full(2, -1, np.int32)

    def loss(x):
        return score(Logits(), {}, Batch(x, labels)).loss

    value, slope = jax.value_and_grad(loss)(logits)
    assert value == 0
    assert (slope == 0).all()


@pytest.mark.slow
def test_members_score_what_all_their_logits_say(gemma):
    from train.models.score import score

    model, params, lora, batch = gemma

    def whole(lora):
        logits = model.apply({"params": params, "lora": lora}, batch.inputs)
        return score(Logits(), {}, Batch(logits, batch.labels))

    def ours(lora):
        return score(model, {"params": params, "lora": lora}, batch)

    got, want = (
        jax.jit(jax.vmap(jax.value_and_grad(lambda x, f=f: f(x).loss)))(lora)
        for f in (ours, whole)
    )

    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), got, want)
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(want[1])) > 1e-2


def test_members_score_what_their_logits_say_by_hand(gemma):
    from train.models.score import score

    model, params, lora, batch = gemma

    @jax.jit
    @jax.vmap
    def both(lora):
        variables = {"params": params, "lora": lora}
        logits = model.apply(variables, batch.inputs)
        return score(model, variables, batch), logits

    scores, logits = both(lora)

    want = [by_hand(x, batch.labels) for x in logits]
    np.testing.assert_allclose(np.transpose(scores), want, rtol=1e-5)
    assert 0 < scores.accuracy[0] < 1


def test_the_share_that_is_right_has_no_gradient(gemma):
    from train.models.score import score

    model, params, lora, batch = gemma
    one = jax.tree.map(lambda x: x[1], lora)

    def accuracy(lora):
        return score(model, {"params": params, "lora": lora}, batch).accuracy

    slopes = jax.jit(jax.grad(accuracy))(one)
    assert all((x == 0).all() for x in jax.tree.leaves(slopes))


@pytest.mark.slow
def test_a_training_step_never_has_the_logits_of_all_tokens(monkeypatch, gemma):
    from train.data import arrays, sequences
    from train.methods import lora
    from train.models import loss
    from train.runs import settings as runs, trainer

    model, params, _, batch = gemma
    few = functools.partial(loss.causal_score, chunk=4)
    monkeypatch.setattr(loss, "causal_score", few)
    pairs = [sequences.Pair(x[:3].tolist(), x[3:].tolist()) for x in batch.inputs]
    data = arrays.Data(sequences.pack(pairs, width=11), 2)
    run = runs.Run(method=lora.Lora(rank=2), steps=2, batch=2, seeds=(0, 1))
    given = runs.inputs(run, model, params, data)

    jaxpr = str(
        jax.make_jaxpr(trainer.advance, static_argnums=0)(
            given.trainer,
            runs.begin(given),
            given.rates,
            given.base,
            given.data,
            given.rows,
        )
    )

    assert "2,4,37]" in jaxpr
    assert "11,37]" not in jaxpr
    assert "22,37]" not in jaxpr


@pytest.mark.slow
def test_the_first_steps_loss_is_that_of_the_responses_tokens(gemma):
    from train.data import arrays, sequences
    from train.methods import lora
    from train.runs import settings as runs

    model, params, _, batch = gemma
    pairs = [sequences.Pair(x[:3].tolist(), x[3:].tolist()) for x in batch.inputs]
    data = arrays.Data(sequences.pack(pairs, width=11), 2)
    run = runs.Run(method=lora.Lora(rank=2), steps=1, batch=2)
    given = runs.inputs(run, model, params, data)

    (progress,) = runs.advance(given, runs.begin(given))

    labels = np.full((2, 11), -1)
    labels[:, 2:10] = batch.inputs[:, 3:]
    logits = jax.jit(model.apply)({"params": params}, batch.inputs)
    want = by_hand(logits, labels)
    metrics = progress.metrics
    np.testing.assert_allclose(metrics.loss[0, 0], want[0], rtol=1e-5)
    np.testing.assert_allclose(metrics.accuracy[0, 0], want[1], rtol=1e-5)
    assert progress.learners.head == {}
    assert para.unnest(progress.learners.state.params)
