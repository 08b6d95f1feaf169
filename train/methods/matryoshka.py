"""MatryoshkaLoRA: one LoRA trained at several ranks at once.

I.-V. Modoranu, M. Safaryan, D. Alistarh, "MatryoshkaLoRA: Learning Accurate
Hierarchical Low-Rank Representations for LLM Fine-Tuning", 2026.

In training the model sees the sum of the adapters cut at each rank `s` of a set `S`,

    sum_s weight(s) a[:, :s] @ b[:s] = a @ diag(p) @ b,    p_i = sum_{s >= i} weight(s),

and afterwards one of them, `weight(s) a[:, :s] @ b[:s]`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from para_jax import Adapter
from train.methods import method
from train.methods.method import Adapters, Kernels, Method, State


@dataclasses.dataclass(frozen=True, kw_only=True)
class Matryoshka:
    """MatryoshkaLoRA.

    Attributes:
      ranks: The ranks that are trained, ascending.
      target: The one that a run ends with. `at_rank` gives the others.
      weight: The weight of a rank `s`: 1, `1 / s` or `1 / sqrt(s)`, as in the authors'
        example.
    """

    ranks: tuple[int, ...] = (1, 2, 4, 8, 16)
    target: int = 4
    weight: Literal["one", "inverse", "inverse_sqrt"] = "inverse_sqrt"

    def method(self, steps: int) -> Method:
        """Return MatryoshkaLoRA, changing to its target after step `steps`.

        Raises:
          ValueError: if the ranks do not ascend from 1 or more, or lack the target.
        """
        self._check()

        def after_step(
            before: State, after: State, grads: Any, step: jax.Array
        ) -> State:
            last = step == steps - 1
            # The validation of the last step, and the export, are at the target.
            weights = jnp.where(last, self._cut(self.target), before.memory)
            return State(after.params, weights)

        return Method(
            init=self._init,
            adapters=_adapters,
            finish=self._finish,
            after_step=after_step,
        )

    def at_rank(self, state: State, rank: int | jax.Array) -> Adapters:
        """Return the adapters cut at a rank, possibly a traced one.

        Args:
          state: The state of a run of any length.
          rank: From 1 to the highest. Components beyond it are zero.
        """
        return _adapters(State(state.params, self._cut(rank)))

    def sums(self) -> Float[jax.Array, " r"]:
        """Return `p`, the weights of the components in training."""
        return jnp.stack([self._cut(s) for s in self.ranks]).sum(0)

    def _check(self) -> None:
        ascending = sorted({x for x in self.ranks if x > 0})
        if list(self.ranks) != ascending or self.target not in self.ranks:
            raise ValueError(
                f"ranks are {self.ranks} and target is {self.target}, expected ranks "
                "in ascending order, from 1 or more, and the target among them."
            )

    def _cut(self, rank: int | jax.Array) -> jax.Array:
        """Return the weights of the components for one rank: zero beyond it."""
        power = {"one": 0.0, "inverse": -1.0, "inverse_sqrt": -0.5}[self.weight]
        weight = jnp.asarray(rank, jnp.float32) ** power
        return jnp.where(jnp.arange(self.ranks[-1]) < rank, weight, 0)

    def _init(
        self, key: jax.Array, kernels: Kernels, gradients: Kernels | None
    ) -> State:
        a = method.kaiming(key, kernels, self.ranks[-1])
        b = method.zeros(kernels, self.ranks[-1])
        params = {path: {"a": a[path], "b": b[path]} for path in kernels}
        return State(params, self.sums())

    def _finish(self, state: State) -> Adapters:
        adapters = self.at_rank(state, self.target)
        keep = jnp.arange(self.ranks[-1]) < self.target
        return method.kept(adapters, dict.fromkeys(adapters, keep))


def _adapters(state: State) -> Adapters:
    return {
        path: Adapter(a=pair["a"], b=pair["b"] * state.memory[:, None])
        for path, pair in state.params.items()
    }


def aurac(
    ranks: Sequence[int],
    scores: Sequence[float],
    *,
    axis: Literal["linear", "log2"] = "linear",
) -> float:
    """Return the area under the curve of score by rank, over the ranks' range.

    An average score in which a rank counts by the gap to its neighbours, by the
    trapezoidal rule.

    Args:
      ranks: Two or more, ascending.
      scores: One a rank, such as accuracies.
      axis: Whether a gap is a difference or a ratio of ranks.
    """
    x = np.asarray(ranks, np.float64)
    # On a logarithmic axis each doubling of the rank weighs the same.
    x = np.log2(x) if axis == "log2" else x
    return float(np.trapezoid(scores, x) / (x[-1] - x[0]))
