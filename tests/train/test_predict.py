"""Predictions and scores of many classifiers, against each of them by itself."""

import jax
import numpy as np
import pytest
from sklearn import metrics

from train import evaluate, predict
from train.data import glue
from train.data import tokens as data
from train.models import bert

COUNT = 5


@pytest.fixture
def model(tiny):
    return bert.BertClassifier(tiny, 2)


@pytest.fixture
def batches():
    """Two batches of unequal widths, with rows that only fill up among the others."""
    generator = np.random.default_rng(0)

    def batch(rows, width, without):
        ids = generator.integers(1, 11, size=(rows, width), dtype=np.int32)
        labels = generator.integers(2, size=rows, dtype=np.int32)
        labels[without] = -1
        return data.Batch(bert.Tokens(ids, ids > 0), labels)

    return [batch(13, 5, [3, 12]), batch(7, 4, [0])]


@pytest.fixture
def classifiers(lora):
    """As many heads and adapters, leaves `[C, ...]`."""
    generator = np.random.default_rng(1)

    def draw(*shape):
        return generator.normal(size=(COUNT, *shape)).astype(np.float32)

    heads = {"kernel": draw(6, 2), "bias": 0.1 * draw(2)}
    return heads, jax.tree.map(lambda x: 2 * draw(*x.shape), lora)


def alone(model, base, classifiers, index, batches):
    """The predictions of one of them and the labels, example by example."""
    head, lora = jax.tree.map(lambda x: x[index], classifiers)
    variables = {"params": {**base, "classifier": head}, "lora": lora}
    apply = jax.jit(model.apply)
    found, wanted = [], []
    for batch in batches:
        for ids, label in zip(batch.inputs.ids, batch.labels, strict=True):
            if label >= 0:
                one = bert.Tokens(ids[None], ids[None] > 0)
                found.append(int(np.argmax(apply(variables, one)[0])))
                wanted.append(int(label))
    return found, wanted


@pytest.mark.parametrize("at_once", [2, 32])
def test_predictions_and_labels_are_in_the_order_of_the_batches(
    model, params, classifiers, batches, at_once
):
    base = {"bert": jax.tree.map(lambda x: 5 * x, params["bert"])}

    got = predict.predictions(model, base, *classifiers, batches, at_once=at_once)

    assert got.shape == (COUNT, 17)
    for index, mine in enumerate(got):
        found, wanted = alone(model, base, classifiers, index, batches)
        assert mine.tolist() == found
        assert predict.labels(batches).tolist() == wanted
    assert len({tuple(x) for x in got.tolist()}) > 2
    right = np.mean(got == predict.labels(batches), axis=1)
    accuracies = evaluate.accuracies(model, base, *classifiers, batches)
    np.testing.assert_allclose(accuracies, right, rtol=1e-6)


@pytest.mark.parametrize(
    ("score", "oracle"),
    [(glue.matthews, metrics.matthews_corrcoef), (glue.f1, metrics.f1_score)],
)
def test_each_classifier_has_the_score_that_it_has_alone(
    model, params, classifiers, batches, score, oracle
):
    base = {"bert": jax.tree.map(lambda x: 5 * x, params["bert"])}

    got = predict.scored(score)(model, base, *classifiers, batches, at_once=2)

    pairs = [alone(model, base, classifiers, x, batches) for x in range(COUNT)]
    want = [oracle(wanted, found) for found, wanted in pairs]
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-9)
    turned = [oracle(wanted[::-1], found) for found, wanted in pairs]
    assert np.abs(np.subtract(got, turned)).max() > 0.1  # The order matters.


def test_no_examples_are_refused(model):
    with pytest.raises(ValueError, match="Nothing to evaluate"):
        predict.predictions(model, {}, {}, {}, [])
