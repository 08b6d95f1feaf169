"""LoRA, and rsLoRA, which differs in its scale alone.

E. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022.
D. Kalajdzievski, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA", 2023.

`delta = scale * a @ b` with `b = 0` at the start. The scale is `alpha / r`; the same at
every rank here, so that ranks are compared and nothing else. rsLoRA has
`alpha / sqrt(r)`.
"""

import dataclasses
import math

import jax

from para_jax.adapters import Adapter
from train.methods import method
from train.methods.method import Adapters, Kernels, Method, State


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lora:
    """LoRA of one rank.

    Attributes:
      rank: Of every module.
      scale: `alpha / rank`.
    """

    rank: int = 16
    scale: float = 2.0

    @property
    def target(self) -> float:
        return self.rank

    def method(self, steps: int) -> Method:
        """Returns LoRA, which has no schedule."""
        return plain(self.rank, self.scale)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RsLora:
    """Rank-stabilized LoRA.

    Attributes:
      rank: Of every module.
      alpha: The scale is `alpha / sqrt(rank)`: at the default, 2 at rank 16.
    """

    rank: int = 4
    alpha: float = 8.0

    @property
    def target(self) -> float:
        return self.rank

    def method(self, steps: int) -> Method:
        """Returns LoRA with the scale of rsLoRA."""
        _check(self.rank)
        return plain(self.rank, self.alpha / math.sqrt(self.rank))


def plain(rank: int, scale: float) -> Method:
    """Returns LoRA with the scale `scale`.

    Raises:
      ValueError: if the rank is not positive.
    """
    _check(rank)

    def init(key: jax.Array, kernels: Kernels, gradients: Kernels | None) -> State:
        a, b = method.kaiming(key, kernels, rank), method.zeros(kernels, rank)
        return State({path: {"a": a[path], "b": b[path]} for path in kernels})

    def adapters(state: State) -> Adapters:
        return {
            path: Adapter(**pair, scale=scale) for path, pair in state.params.items()
        }

    def finish(state: State) -> Adapters:
        return method.whole(adapters(state))

    return Method(init=init, adapters=adapters, finish=finish)


def _check(rank: int) -> None:
    if rank < 1:
        raise ValueError(f"rank is {rank}, expected at least 1.")
