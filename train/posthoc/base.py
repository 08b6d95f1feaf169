"""Statistics of the base's adapted kernels, for scores without data.

The inputs `x` of a kernel are taken as independent features with a mean and a variance
that follow from the weights:

- after a LayerNorm, `x = gain * z + bias` with `z` of mean 0 and variance 1, over
  the features of a token by its definition, and so over tokens if features are alike:
  E[x] = bias, Var[x] = gain^2, E[x^2] = gain^2 + bias^2;
- the input of `attention/output/dense` is a mean of values `v = x W + c` with the
  attention's weights. As if each token looked at one other:
  E[v] = bias W + c, Var[v] = gain^2 (W * W);
- the input of `output/dense` is `gelu(h)`, `h = x W + c` of the intermediate layer.
  A sum of many terms is normal, so E[gelu(h)^2] is a Gauss-Hermite quadrature.

Axis letters: `m` inputs, `n` outputs, `q` nodes of the quadrature, `V` vocabulary.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from para_jax import linalg, unnest

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(32)
_erf = np.vectorize(math.erf, otypes=[float])
_POSITIONS = 64
"""Tokens of the longest sentences of the tasks."""


class Features(NamedTuple):
    """The mean and the variance of each feature of a layer's inputs."""

    mean: Float[np.ndarray, " m"]
    variance: Float[np.ndarray, " m"]

    @property
    def square(self) -> Float[np.ndarray, " m"]:
        """The second moment."""
        return self.mean**2 + self.variance


class Statistics(NamedTuple):
    """Statistics of one kernel, without data.

    Attributes:
      frobenius: The Frobenius norm of the kernel.
      spectral: Its largest singular value.
      square: The second moment of its inputs, `[m]`, after the LayerNorm alone. Of
        models of another form than BERT's it is not known.
      embedded: The same, but that layer 0 reads the embeddings of the vocabulary.
    """

    frobenius: float
    spectral: float
    square: Float[np.ndarray, " m"] | None = None
    embedded: Float[np.ndarray, " m"] | None = None


def statistics(params: Mapping[str, Any]) -> dict[str, Statistics]:
    """Return the statistics of all kernels of the encoder's blocks, by path.

    They take some seconds, and serve all parents on the same base.

    Args:
      params: The params of `train.models.bert.BertClassifier`, or of any model with
        its encoder at `bert`.
    """
    values = {path: np.asarray(x) for path, x in unnest(params).items()}
    normalised = layer_norm(values, "bert/embeddings/LayerNorm")
    squares = _squares(values, normalised)
    embedded = _squares(values, embeddings(values))

    def one(path: str) -> Statistics:
        known = _of_kernel(values[f"{path}/kernel"])
        return known._replace(square=squares[path], embedded=embedded[path])

    # One thread a product: on a busy machine BLAS's own wait for one another.
    return dict(zip(squares, linalg.in_threads(one, squares), strict=True))


def of_kernels(kernels: Mapping[str, Any]) -> dict[str, Statistics]:
    """Return the statistics of kernels of any model, by path.

    Args:
      kernels: `[m, n]` each, as `train.models.adapted.Adapted.kernels` gives them.
    """
    found = linalg.in_threads(_of_kernel, kernels.values())
    return dict(zip(kernels, found, strict=True))


def _of_kernel(kernel: Any) -> Statistics:
    kernel = np.asarray(kernel, np.float64)
    # In float64: the largest singular value comes from a squared matrix.
    return Statistics(float(np.linalg.norm(kernel)), _spectral(kernel))


def layer_norm(values: Mapping[str, np.ndarray], path: str) -> Features:
    """Return the features after the LayerNorm at `path`."""
    # LayerNorm fixes both moments: mean `bias`, variance `scale^2`.
    gain, bias = (np.asarray(values[f"{path}/{x}"], float) for x in ("scale", "bias"))
    return Features(bias, gain**2)


def embeddings(values: Mapping[str, np.ndarray]) -> Features:
    """Return the features after the embeddings' LayerNorm, all words equally frequent.

    Over the whole vocabulary `[V, m]`, each word at the mean of the first positions.
    """
    at = "bert/embeddings"
    positions = values[f"{at}/position_embeddings/embedding"][:_POSITIONS]
    x = values[f"{at}/word_embeddings/embedding"] + positions.mean(0)
    x = x + values[f"{at}/token_type_embeddings/embedding"][0]
    centered = x - x.mean(-1, keepdims=True)
    z = centered / centered.std(-1, keepdims=True)
    y = z * values[f"{at}/LayerNorm/scale"] + values[f"{at}/LayerNorm/bias"]
    return Features(y.mean(0, dtype=float), y.var(0, dtype=float))


def dense(values: Mapping[str, np.ndarray], path: str, x: Features) -> Features:
    """Return the outputs of the dense layer at `path`, for independent inputs."""
    kernel = np.asarray(values[f"{path}/kernel"], np.float64)
    bias = values[f"{path}/bias"]
    # Independent inputs: variances add with squared weights.
    return Features(x.mean @ kernel + bias, x.variance @ kernel**2)


def gelu_square(h: Features) -> Float[np.ndarray, " n"]:
    """Return E[gelu(h)^2] of normal `h`, by Gauss-Hermite quadrature."""
    nodes = h.mean + np.sqrt(h.variance) * _NODES[:, None]  # [q, n]
    gelu = nodes * (1 + _erf(nodes / math.sqrt(2))) / 2
    return _WEIGHTS @ gelu**2 / math.sqrt(2 * math.pi)


def _squares(values: Mapping[str, np.ndarray], x: Features) -> dict[str, np.ndarray]:
    """Return the second moments of the inputs of all kernels, by path."""
    result, number = {}, 0
    while f"{(block := f'bert/encoder/layer/{number}')}/output/dense/kernel" in values:
        for name in ("query", "key", "value"):
            result[f"{block}/attention/self/{name}"] = x.square
        attended = dense(values, f"{block}/attention/self/value", x)
        result[f"{block}/attention/output/dense"] = attended.square
        x = layer_norm(values, f"{block}/attention/output/LayerNorm")
        result[f"{block}/intermediate/dense"] = x.square
        h = dense(values, f"{block}/intermediate/dense", x)
        result[f"{block}/output/dense"] = gelu_square(h)
        x = layer_norm(values, f"{block}/output/LayerNorm")
        number += 1
    return result


def _spectral(kernel: Float[np.ndarray, "m n"]) -> float:
    """Return the largest singular value, from the smaller of the two Gram matrices."""
    # The smaller Gram matrix has the same largest eigenvalue.
    wide = kernel if kernel.shape[0] <= kernel.shape[1] else kernel.T
    return float(np.sqrt(np.linalg.eigvalsh(wide @ wide.T)[-1]))
