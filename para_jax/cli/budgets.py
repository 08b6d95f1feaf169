"""Budgets: a flag for each policy, and the policies of a command."""

from collections import Counter

import para_jax as para
from para_jax._engines.registry import ENGINES
from para_jax._pruning.policies import POLICIES
from para_jax.cli.request import Cut

BUDGETS = {
    "gamma": "keep this share of all ranks, in (0, 1]",
    "rank": "keep this many ranks per module, on average",
    "epsilon": "keep this share of the energy, in (0, 1]",
    "threshold": "keep singular values at or above this one",
    "params": "keep at most this many parameters, such as 100k",
    "bytes": "keep at most this many bytes of factors, such as 1.5MB",
}
"""The help of each policy's flag, in the order of the help."""


def policies(cut: Cut, engine: str | None = None) -> list[para.Policy]:
    """Make the policies of a cut, within the ranks of an engine.

    Raises:
      ValueError: if there is none, two are equal, or one makes no sense.
    """
    if not cut.budgets:
        raise ValueError(f"Name a budget: {', '.join(f'--{x}' for x in BUDGETS)}.")
    max_rank = cut.max_rank
    # An engine refuses a rank above its buffers, so its largest is a limit as well.
    if engine and (most := max(ENGINES[engine].ranks, default=0)):
        max_rank = min(max_rank or most, most)
    found: list[para.Policy] = [
        POLICIES[name](
            value,
            scope=cut.scope,
            min_rank=cut.min_rank,
            max_rank=max_rank,
            multiple_of=cut.multiple_of,
        )
        for name, value in cut.budgets
    ]
    # Equal policies have equal names: one child would replace the other.
    if twice := sorted(x.name for x, n in Counter(found).items() if n > 1):
        raise ValueError(f"{twice[0]} is asked for twice.")
    return found
