"""Predictions and scores of many linear classifiers, against NumPy's of each."""

import dataclasses

import numpy as np
import pytest
from sklearn import metrics

from train.data import glue
from train.data.batch import Batch
from train.evaluation import evaluate, predict

COUNT = 5


@dataclasses.dataclass(frozen=True)
class Linear:
    """A model of 3 inputs: the adapter shifts them, and the base turns them."""

    adapted: None = None

    def init(self, rngs, inputs):
        turn, kernel = np.eye(inputs.shape[-1]), np.zeros((inputs.shape[-1], 2))
        return {"params": {"turn": turn, "classifier": {"kernel": kernel}}}

    def apply(self, variables, inputs):
        params = variables["params"]
        x = (inputs + variables["lora"]["shift"][None]) @ params["turn"]
        return x @ params["classifier"]["kernel"]


@pytest.fixture
def base():
    return {"turn": np.random.default_rng(2).normal(size=(3, 3)).astype(np.float32)}


@pytest.fixture
def classifiers():
    """As many heads and adapters, leaves `[C, ...]`."""
    generator = np.random.default_rng(1)
    kernels = generator.normal(size=(COUNT, 3, 2)).astype(np.float32)
    shifts = 0.1 * generator.normal(size=(COUNT, 3)).astype(np.float32)
    return {"kernel": kernels}, {"shift": shifts}


@pytest.fixture
def batches():
    """Two batches of unequal sizes, with filling rows among the others."""
    generator = np.random.default_rng(0)

    def batch(rows, without):
        inputs = generator.normal(size=(rows, 3)).astype(np.float32)
        labels = generator.integers(2, size=rows, dtype=np.int32)
        labels[without] = -1
        return Batch(inputs, labels)

    return [batch(13, [3, 12]), batch(7, [0])]


@pytest.fixture
def wanted(base, classifiers, batches):
    """The labels, and each classifier's predictions: `[C, N]`."""
    (kernels,), (shifts,) = (x.values() for x in classifiers)
    inputs, labels = map(np.concatenate, zip(*batches, strict=True))
    each = zip(kernels, shifts, strict=True)
    logits = [(inputs + shift) @ base["turn"] @ kernel for kernel, shift in each]
    return labels[labels >= 0], np.argmax(logits, axis=-1)[:, labels >= 0]


@pytest.mark.parametrize("at_once", [2, 32])
def test_predictions_and_labels_are_in_the_order_of_the_batches(
    base, classifiers, batches, wanted, at_once
):
    got = predict.predictions(Linear(), base, *classifiers, batches, at_once=at_once)

    assert got.shape == (COUNT, 17)
    np.testing.assert_array_equal(got, wanted[1])
    np.testing.assert_array_equal(predict.labels(batches), wanted[0])
    assert len({tuple(x) for x in got.tolist()}) > 3
    accuracies = evaluate.accuracies(Linear(), base, *classifiers, batches)
    np.testing.assert_allclose(accuracies, np.mean(got == wanted[0], axis=1))


@pytest.mark.parametrize(
    ("score", "oracle"),
    [(glue.matthews, metrics.matthews_corrcoef), (glue.f1, metrics.f1_score)],
)
def test_each_classifier_has_the_score_of_its_own_predictions(
    base, classifiers, batches, wanted, score, oracle
):
    got = predict.scored(score)(Linear(), base, *classifiers, batches, at_once=2)

    labels, named = wanted
    np.testing.assert_allclose(got, [oracle(labels, x) for x in named])
    turned = [oracle(labels[::-1], x) for x in named]
    assert np.abs(got - turned).max() > 0.1  # The order matters.


def test_no_examples_are_refused():
    with pytest.raises(ValueError, match="Nothing to evaluate"):
        predict.predictions(Linear(), {}, {}, {}, [])
