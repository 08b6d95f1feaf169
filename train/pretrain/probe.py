"""Linear probes: the accuracy of a linear classifier on an encoder's outputs.

Ridge regression in closed form: nothing is trained, so the number tells of the encoder
alone. Axis letters: `N` pictures, `d` the encoder's width. Runs on the host.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, UInt8

from train.data import digits

Encode = Callable[[UInt8[np.ndarray, "N 32 32"]], Float[np.ndarray, "N d"]]
"""From pictures to the encoder's outputs."""

_RIDGE = 1e-3  # Of the mean square of an output, which is 1.


def accuracy(encode: Encode, task: str) -> float:
    """Return the accuracy on the test part of `task`.

    The classifier is fitted to the part `train`.

    Args:
      encode: The encoder.
      task: One of `digits.TASKS`.

    Raises:
      ModuleNotFoundError: as for `digits.load`.
    """
    train, test = digits.load(task, "train"), digits.load(task, "test")
    x, y = (np.asarray(encode(part.images), np.float64) for part in (train, test))
    # 1e-6: a feature may be constant.
    mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-6
    x, y = (_with_one((part - mean[None]) / scale[None]) for part in (x, y))
    wanted = np.eye(len(digits.CLASSES[task]))[train.labels]
    # Ridge regression has a closed form: no optimizer to tune.
    gram = x.T @ x + _RIDGE * len(x) * np.eye(x.shape[1])
    weights = np.linalg.solve(gram, x.T @ wanted)
    return float(np.mean((y @ weights).argmax(axis=1) == test.labels))


def _with_one(x: Float[np.ndarray, "N d"]) -> Float[np.ndarray, "N d+1"]:
    return np.concatenate([x, np.ones((len(x), 1))], axis=1)
