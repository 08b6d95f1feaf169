"""The choice among answers, against all logits of the language model."""

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


@pytest.fixture(scope="module")
def questions():
    from train.models.multiple_choice import Questions

    rng = np.random.default_rng(0)
    return Questions(
        ids=rng.integers(50, size=(4, 12)).astype(np.int32),
        last=np.array([11, 3, 0, 7], np.int32),
        answers=np.array([[3, 9, 41], [49, 0, -1], [7, 8, 9], [5, 4, -1]], np.int32),
    )


@pytest.fixture(scope="module")
def params(model, questions):
    found = model.init(jax.random.key(0), questions.ids)["params"]
    return jax.tree.map(
        lambda x: (
            x + 0.3 * np.sin(np.arange(x.size)).reshape(x.shape).astype(np.float32)
        ),
        found,
    )


def test_logits_are_those_of_the_next_tokens(model, params, questions):
    from train.models.multiple_choice import Chooser

    whole = np.asarray(model.apply({"params": params}, questions.ids))

    found = np.asarray(Chooser(model).apply({"params": params}, questions))

    for row, (last, answers) in enumerate(zip(*questions[1:], strict=True)):
        for column, answer in enumerate(answers):
            if answer < 0:
                assert found[row, column] == -np.inf
            else:
                np.testing.assert_allclose(
                    found[row, column], whole[row, last, answer], rtol=1e-5, atol=1e-5
                )


def test_what_follows_a_question_has_no_effect(model, params, questions):
    from train.models.multiple_choice import Chooser

    changed = questions.ids.copy()
    changed[np.arange(12) > questions.last[:, None]] = 1
    chooser = Chooser(model)

    one = chooser.apply({"params": params}, questions)
    two = chooser.apply({"params": params}, questions._replace(ids=changed))

    np.testing.assert_allclose(one, two, rtol=1e-6)


def test_the_loss_is_the_cross_entropy_of_the_answers(model, params, questions):
    from train.data.batch import Batch
    from train.models.multiple_choice import Chooser
    from train.models.score import score

    labels = np.array([2, 0, -1, 1], np.int32)
    chooser = Chooser(model)
    logits = np.asarray(chooser.apply({"params": params}, questions), np.float64)
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
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
