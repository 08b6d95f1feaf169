"""MiLoRA: PiSSA with the smallest components instead of the largest.

H. Wang, Y. Li, S. Wang, G. Chen, Y. Chen, "MiLoRA: Harnessing Minor Singular Components
for Parameter-Efficient LLM Finetuning", NAACL 2025.

Where a kernel is nearly rank-deficient its smallest components are nearly zero. Then so
are both factors, hence both gradients, and such a module hardly trains.
"""

import dataclasses

from train.methods import pissa
from train.methods.method import Method


@dataclasses.dataclass(frozen=True, kw_only=True)
class Milora:
    """MiLoRA.

    Attributes:
      rank: The rank of every module; the adapters' nominal rank.
      scale: `alpha / rank`. The authors set `alpha = rank`.
    """

    rank: int = 4
    scale: float = 1.0

    @property
    def target(self) -> float:
        return self.rank

    def method(self, steps: int) -> Method:
        """Return MiLoRA; it has no schedule."""
        return pissa.of_components(slice(-self.rank, None), self.rank, self.scale)
