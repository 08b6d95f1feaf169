"""LoRA+: LoRA with a higher learning rate for the second factor.

S. Hayou, N. Ghosh, B. Yu, "LoRA+: Efficient Low Rank Adaptation of Large Models",
ICML 2024.
"""

import dataclasses

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from train.methods import lora, method
from train.methods.method import Method


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraPlus:
    """LoRA with two learning rates.

    Attributes:
      rank: The rank of every module.
      scale: `alpha / rank`.
      ratio: The learning rate of `b` over the learning rate of `a`.
    """

    rank: int = 4
    scale: float = 2.0
    ratio: float = 16.0

    @property
    def target(self) -> float:
        return self.rank

    def method(self, steps: int) -> Method:
        """Return LoRA with the optimizer of LoRA+."""
        return dataclasses.replace(
            lora.plain(self.rank, self.scale), optimizer=self._optimizer
        )

    def _optimizer(
        self, learning_rate: optax.Schedule, weight_decay: float
    ) -> optax.GradientTransformation:
        """Return AdamW for `a`, and AdamW with the higher rate for `b`."""

        def faster(step: ArrayLike) -> ArrayLike:
            return self.ratio * jnp.asarray(learning_rate(step))

        slow = method.adamw(learning_rate, weight_decay)
        fast = method.adamw(faster, weight_decay)
        return optax.partition({"a": slow, "b": fast}, _names)


def _names(params: dict[str, dict[str, object]]) -> dict[str, dict[str, str]]:
    return {path: {name: name for name in pair} for path, pair in params.items()}
