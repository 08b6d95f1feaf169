"""The policies of a command."""

from collections import Counter

import para_jax as para
from para_jax._engines.registry import ENGINES
from para_jax._pruning.policies import POLICIES
from para_jax.cli.request import Cut


def policies(cut: Cut, engine: str | None = None) -> list[para.Policy]:
    """Make the policies of a cut, within the ranks of an engine.

    Raises:
      ValueError: if two are equal, or one makes no sense.
    """
    max_rank = cut.max_rank
    # An engine refuses a rank above its buffers, so its largest is a limit as well.
    if engine and (most := max(ENGINES[engine].ranks, default=0)):
        max_rank = min(max_rank or most, most)
    found: list[para.Policy] = [
        POLICIES[name](
            value,
            scope=cut.scope,
            score=cut.score,
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
