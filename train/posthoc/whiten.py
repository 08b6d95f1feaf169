"""Components ordered by their effect on the outputs: whitening by the inputs.

The error of a child `delta_k` that matters is the error of the outputs. With the
inputs' second moments `C = E[x^T x]`, for any root `R^T R = C`,

    E||x delta - x delta_k||^2 = ||R delta - R delta_k||_F^2.

By Eckart-Young no `delta_k` of rank `k` does better than the truncated SVD of `R delta
= U S V^T`, with the sum of the dropped `s^2` as its error, and

    delta_k = delta V_k V_k^T

reaches it, since `R delta V_k V_k^T = U_k S_k V_k^T`. So `R` is never inverted. Nor is
it needed: `delta = a b`, so the same `V` and `S` come from `root b` with any
`root^T root = a^T C a`, an `r x r` matrix. Its balanced factors are `root left` and
`right b`, and with the parent's own `a` in the place of `root`

    (a left_k) (right_k b) = a b V_k V_k^T = delta_k.

A global pool of the `s` of all modules then gives the least sum of the errors of all
outputs, as if no module read another's. Ours, not the paper's; for whole weights it is
known from SVD-LLM (X. Wang et al., 2024), and with a diagonal `C` from ASVD (Z. Yuan et
al., 2023).

Axis letters: `m` inputs, `n` outputs, `r` rank, `k` components.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from para_jax import Adapter, Array, spectra_of
from train.posthoc import components
from train.posthoc.components import Components

Grams = Mapping[str, Float[np.ndarray, "r r"]]


def whitened(adapters: Mapping[str, Adapter], grams: Grams) -> dict[str, Components]:
    """Return components with `s^2` equal to the cost of dropping them, on the outputs.

    Rows of `b` are orthogonal, `b b^T = S`; columns of `a` are so in the metric of the
    inputs, `a^T C a = S`.

    Args:
      adapters: The parent, one kernel each.
      grams: `a^T C a` by path, of the factor `a` without the adapter's scale.
    """
    roots = {
        # The root stands in for `a`: `root b` has the error of the outputs.
        path: dataclasses.replace(x, a=_root(grams[path]), b=np.asarray(x.b, float))
        for path, x in adapters.items()
    }
    spectra = {
        path: dataclasses.replace(
            x,
            # The stored shapes, not those of the root.
            shape=(adapters[path].inputs, adapters[path].outputs),
            dtype=np.dtype(adapters[path].a.dtype).name,
        )
        for path, x in spectra_of(roots).items()
    }
    return components.applied(spectra, adapters)


def diagonal(
    adapters: Mapping[str, Adapter], squares: Mapping[str, Float[np.ndarray, " m"]]
) -> dict[str, Float[np.ndarray, "r r"]]:
    """Return `a^T diag(E[x^2]) a` by path: `C` for uncorrelated inputs."""

    def one(a: Array, square: np.ndarray) -> Float[np.ndarray, "r r"]:
        a = np.asarray(a, np.float64)
        return a.T @ (np.asarray(square, np.float64)[:, None] * a)

    return {path: one(x.a, squares[path]) for path, x in adapters.items()}


def _root(gram: Float[np.ndarray, "r r"]) -> Float[np.ndarray, "r r"]:
    """Return `R` with `R^T R = gram`, by eigenvectors, as Cholesky may fail."""
    values, vectors = np.linalg.eigh(np.asarray(gram, np.float64))
    # Rounding makes small eigenvalues negative.
    return np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
