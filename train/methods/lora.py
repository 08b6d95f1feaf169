"""LoRA, and rsLoRA, with another scale.

E. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022.
D. Kalajdzievski, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA", 2023.

`delta = scale * a @ b` with `b = 0` at the start. The scale is `alpha / r`; the same at
every rank here, so that ranks are compared and nothing else. rsLoRA has
`alpha / sqrt(r)`.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from para_jax import Adapter
from train.methods import method
from train.methods.method import Adapters, Kernels, Method, State


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lora:
    """LoRA of one rank.

    Attributes:
      rank: The rank of every adapted module.
      scale: `alpha / rank`.
      share: The share of the adapted modules. Below 1 the seed draws them,
        which gives LoRA at an average rank below one.
    """

    rank: int = 16
    scale: float = 2.0
    share: float = 1.0

    @property
    def target(self) -> float:
        return self.rank * self.share

    def method(self, steps: int) -> Method:
        """Return LoRA; it has no schedule.

        Raises:
          ValueError: if the share is none.
        """
        if not 0 < self.share <= 1:
            raise ValueError(f"share is {self.share:g}, expected above 0, up to 1.")
        return plain(self.rank, self.scale, share=self.share)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RsLora:
    """Rank-stabilized LoRA.

    Attributes:
      rank: The rank of every module.
      alpha: The scale is `alpha / sqrt(rank)`: at the default, 2 at rank 16.
    """

    rank: int = 4
    alpha: float = 8.0

    @property
    def target(self) -> float:
        return self.rank

    def method(self, steps: int) -> Method:
        """Return LoRA with the scale of rsLoRA."""
        _check(self.rank)
        return plain(self.rank, self.alpha / math.sqrt(self.rank))


def plain(rank: int, scale: float, *, share: float = 1.0) -> Method:
    """Return LoRA with the scale `scale`, on a share of the modules.

    A module without an adapter has zeros in both factors, which stay zeros: neither
    factor has a gradient.

    Raises:
      ValueError: if the rank is not positive.
    """
    _check(rank)

    def init(key: jax.Array, kernels: Kernels, gradients: Kernels | None) -> State:
        # A share of 1 leaves the key alone: plain LoRA's draw.
        key, place = (key, None) if share == 1 else jax.random.split(key)
        a, b = method.kaiming(key, kernels, rank), method.zeros(kernels, rank)
        if place is not None:
            a = _some(place, a, share)
        return State({path: {"a": a[path], "b": b[path]} for path in kernels})

    def adapters(state: State) -> Adapters:
        return {path: Adapter(**x, scale=scale) for path, x in state.params.items()}

    def finish(state: State) -> Adapters:
        # Columns of zeros in both factors never train: each gradient has the other
        # factor in it.
        keep = {path: (x["a"] != 0).any(0) for path, x in state.params.items()}
        return method.kept(adapters(state), keep)

    return Method(init=init, adapters=adapters, finish=finish)


def _check(rank: int) -> None:
    if rank < 1:
        raise ValueError(f"rank is {rank}, expected at least 1.")


def _some(
    key: jax.Array, a: dict[str, jax.Array], share: float
) -> dict[str, jax.Array]:
    """Zero the factors of all but a share of the modules."""
    # 1e-9: 0.3 * 10 is 2.999... in floating point.
    count = max(1, math.floor(share * len(a) + 1e-9))
    place = jax.random.permutation(key, len(a))
    return {
        path: jnp.where(place[i] < count, a[path], 0)
        # Sorted paths, so that the draw does not depend on the dictionary.
        for i, path in enumerate(sorted(a))
    }
