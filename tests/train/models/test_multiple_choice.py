"""The choice among answers, against all logits of the language model in float64."""

import jax
import numpy as np
import pytest


@pytest.fixture(scope="module")
def model():
    from train.models import gemma3
    from train.models.gemma3_config import Config

    return gemma3.Gemma3(
        Config(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            sliding_window=4,
            global_layers=(1,),
        )
    )


LENGTHS = np.array([[1, 3, 6], [5, 2, 0], [6, 1, 4], [2, 2, 0]])
"""Tokens of each answer; 0 for none."""


@pytest.fixture(scope="module")
def questions():
    from train.models.multiple_choice import NO_TOKEN, Questions

    rng = np.random.default_rng(0)
    last = np.array([5, 3, 0, 4])
    ids = rng.integers(50, size=(4, 3, 12))
    answers = np.full((4, 3, 6), NO_TOKEN)
    for row, (end, lengths) in enumerate(zip(last, LENGTHS, strict=True)):
        ids[row, :, : end + 1] = ids[row, 0, : end + 1]
        for choice, length in enumerate(lengths):
            answers[row, choice, :length] = ids[row, choice, end + 1 :][:length]
            ids[row, choice, end + 1 + length :] = 0
    kind = np.int32
    return Questions(ids.astype(kind), last.astype(kind), answers.astype(kind))


@pytest.fixture(scope="module")
def params(model, questions):
    found = model.init(jax.random.key(0), questions.ids[:, 0])["params"]
    return jax.tree.map(
        lambda x: (
            x + 0.3 * np.sin(np.arange(x.size)).reshape(x.shape).astype(np.float32)
        ),
        found,
    )


def likelihoods(model, params, questions):
    """Return the mean log-likelihood of each answer, from all logits."""
    result = np.full(LENGTHS.shape, -np.inf)
    for row, (ids, last, answers) in enumerate(zip(*questions, strict=True)):
        logits = np.asarray(model.apply({"params": params}, ids), np.float64)
        chances = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        for choice, length in enumerate(LENGTHS[row]):
            if length:
                where = np.arange(length)
                each = chances[choice, last + where, answers[choice, :length]]
                result[row, choice] = each.mean()
    return result


def test_an_answer_counts_by_the_mean_likelihood_of_its_tokens(
    model, params, questions
):
    from train.models.multiple_choice import Chooser

    found = np.asarray(Chooser(model).apply({"params": params}, questions))

    wanted = likelihoods(model, params, questions)
    assert np.isneginf(wanted).sum() == 2
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_what_follows_an_answer_has_no_effect(model, params, questions):
    from train.models.multiple_choice import Chooser

    changed = questions.ids.copy()
    ends = questions.last[:, None] + LENGTHS
    changed[np.arange(12) > ends[..., None]] = 1
    chooser = Chooser(model)

    one = chooser.apply({"params": params}, questions)
    two = chooser.apply({"params": params}, questions._replace(ids=changed))

    assert (changed != questions.ids).any()
    np.testing.assert_allclose(one, two, rtol=1e-6)


def test_the_loss_is_the_cross_entropy_of_the_answers(model, params, questions):
    from train.data.batch import Batch
    from train.models.multiple_choice import Chooser
    from train.models.score import score

    labels = np.array([2, 0, -1, 1], np.int32)
    chooser = Chooser(model)
    chances = np.exp(likelihoods(model, params, questions))
    chances /= chances.sum(1, keepdims=True)
    wanted = -np.mean([np.log(chances[x, labels[x]]) for x in (0, 1, 3)])

    def loss(params):
        return score(chooser, {"params": params}, Batch(questions, labels)).loss

    found, grads = jax.value_and_grad(loss)(params)

    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    # An answer that is not there must not make gradients NaN.
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))


def test_all_projections_are_adapted(model, params):
    from train.models.multiple_choice import Chooser

    assert len(Chooser(model).adapted.kernels(params)) == 2 * 7
