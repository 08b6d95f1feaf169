"""GoRA: ranks and first factors from the gradients of the kernels.

H. He et al., "GoRA: Gradient-Driven Adaptive Low Rank Adaptation", 2025.

Before training, `g = dloss / dkernel` is averaged over some batches. A module's share
of the budget is its share of the importance `mean |kernel * g|`, which gives its rank.
Then `a` is drawn as in LoRA, and `b` makes the first update the best descent step
within the columns of `a`,

    b = -xi * pinv(a) @ g,    xi = gamma * sqrt(m) / alpha,

so that with the scale `alpha / sqrt(r)` its norm is about `gamma` times the norm of
`g`. The update is not zero at the start, and the kernel is not changed.

The factors have `most` columns. Those beyond a module's rank are zero in both, hence
without gradient, and stay zero.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from para_jax import Adapter, linalg
from train.methods import method
from train.methods.method import Adapters, Kernels, Method, State


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gora:
    """GoRA.

    Attributes:
      rank: The average rank that the budget is for. What is given out may differ by
        rounding, and by the limits.
      least: The lowest rank of a module.
      most: The highest; no more than the kernel's smaller side.
      alpha: The scale is `alpha / sqrt(rank)` of each module.
      gamma: The norm of the first update, in gradients.
      gradient_batches: The number of batches to average the gradients over.
      size: The cost of a rank of a kernel `[m, n]`: `m + n`, as released, or its
        square root.
      rounding: `official` rounds a module's share to an integer and the rank down;
        `nearest` rounds the rank alone.
    """

    rank: int = 4
    least: int = 1
    most: int = 16
    alpha: float = 16.0
    gamma: float = 0.05
    gradient_batches: int = 64
    size: Literal["identity", "sqrt"] = "identity"
    rounding: Literal["official", "nearest"] = "official"

    @property
    def target(self) -> float:
        return self.rank

    def method(self, steps: int) -> Method:
        """Return GoRA; it has no schedule.

        Raises:
          ValueError: if not `0 <= least <= rank <= most`, or no batch is asked for.
        """
        if not 0 <= self.least <= self.rank <= self.most or self.rank < 1:
            raise ValueError(
                f"least, rank and most are {self.least}, {self.rank} and {self.most}, "
                "expected 0 <= least <= rank <= most, and a rank of at least 1."
            )
        if self.gradient_batches < 1:
            raise ValueError(
                f"gradient_batches is {self.gradient_batches}, expected at least 1."
            )
        return Method(
            init=self._init,
            adapters=self._adapters,
            finish=self._finish,
            gradient_batches=self.gradient_batches,
        )

    def ranks(
        self, importance: Float[Array, " N"], shapes: Int[np.ndarray, "N 2"]
    ) -> Int[Array, " N"]:
        """Return the rank of each module. Traceable under `jit`.

        Args:
          importance: The importance of the modules, in any unit.
          shapes: `(m, n)` of their kernels.
        """
        # In float32, as the importances are: the quotient is rounded below.
        sizes = shapes.sum(axis=1).astype(np.float32)
        if self.size == "sqrt":
            sizes = np.sqrt(sizes)
        share = self.rank * sizes.sum() * importance / importance.sum()
        if self.rounding == "official":
            # As released: rounded down, so that less than the budget is given out.
            ranks = jnp.round(share) // sizes
        else:
            ranks = jnp.round(share / sizes)
        # A kernel has no more components than its smaller side.
        most = np.minimum(self.most, shapes.min(axis=1))
        return jnp.clip(ranks, min=self.least, max=most).astype(jnp.int32)

    def _init(
        self, key: jax.Array, kernels: Kernels, gradients: Kernels | None
    ) -> State:
        if gradients is None:
            raise ValueError(
                "GoRA starts from the gradients of the kernels, got none. Give their "
                f"mean over {self.gradient_batches} batches."
            )
        paths = sorted(kernels)
        # Sorted, since the ranks come back as one array.
        importance = [jnp.abs(kernels[x] * gradients[x]).mean() for x in paths]
        shapes = np.array([kernels[path].shape for path in paths])
        ranks = dict(zip(paths, self.ranks(jnp.stack(importance), shapes), strict=True))
        # Drawn at the highest rank: shapes under `jit` do not depend on the ranks.
        drawn = method.kaiming(key, kernels, self.most)
        a = {path: drawn[path] * self._keep(ranks[path])[None] for path in paths}
        b = descent(a, gradients, gamma=self.gamma, alpha=self.alpha)
        return State({x: {"a": a[x], "b": b[x]} for x in paths}, memory=ranks)

    def _keep(self, rank: jax.Array) -> jax.Array:
        return jnp.arange(self.most) < rank

    def _adapters(self, state: State) -> Adapters:
        def fold(path: str, a: jax.Array, b: jax.Array) -> Adapter:
            # The scale is an array, one a module: an adapter's own is a static number.
            # A module of rank 0 would be scaled by infinity, and 0 * inf is NaN.
            rank = jnp.maximum(state.memory[path], 1)
            return Adapter(a=a, b=b * (self.alpha / jnp.sqrt(rank)))

        return {path: fold(path, **pair) for path, pair in state.params.items()}

    def _finish(self, state: State) -> Adapters:
        keep = {path: self._keep(rank) for path, rank in state.memory.items()}
        return method.kept(self._adapters(state), keep)


def descent(
    a: Mapping[str, jax.Array], gradients: Kernels, *, gamma: float, alpha: float
) -> dict[str, jax.Array]:
    """Return `b = -xi pinv(a) @ g` of each module, `xi = gamma sqrt(m) / alpha`.

    Args:
      a: First factors `[m, r]`, all of one `r`. They may have columns of zeros, and
        then `b` has such rows.
      gradients: `[m, n]`.
      gamma: The norm of the update over the norm of the gradient.
      alpha: The scale's numerator.
    """
    # Stacked: one batched decomposition instead of one a module.
    inverses = _inverses(jnp.stack([linalg.matmul(x.mT, x) for x in a.values()]))
    result = {}
    for (path, x), inverse in zip(a.items(), inverses, strict=True):
        xi = gamma * np.sqrt(x.shape[0]) / alpha
        projected = linalg.matmul(x.mT, gradients[path])
        result[path] = -xi * linalg.matmul(inverse, projected)
    return result


def _inverses(grams: Float[Array, "N r r"]) -> Float[Array, "N r r"]:
    """Return the pseudo-inverses of symmetric matrices `>= 0`."""
    values, vectors = linalg.eigh(grams)
    # Columns beyond a module's rank are zero, and so are their eigenvalues.
    eps = grams.shape[-1] * jnp.finfo(grams.dtype).eps
    is_zero = values <= eps * values[:, -1:]
    inverse = jnp.where(is_zero, 0, 1 / jnp.where(is_zero, 1, values))
    return linalg.matmul(vectors * inverse[:, None, :], vectors.mT)
