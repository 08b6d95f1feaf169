"""The policies of a command."""

import dataclasses
import functools
import pathlib
import threading
from collections import Counter

import numpy as np

import para_jax as para
from para_jax._adapters import sharing
from para_jax._engines.registry import ENGINES
from para_jax._pruning.policies import POLICIES
from para_jax.cli.request import Cut

_ONE = threading.Lock()


def policies(cut: Cut, engine: str | None = None) -> list[para.Policy]:
    """Make the policies of a cut, within the ranks of an engine.

    Raises:
      FileNotFoundError: if there is no base model where one is named.
      ValueError: if two are equal, or one makes no sense.
    """
    if cut.base and not any(cut.base.glob("*.safetensors")):
        raise FileNotFoundError(f"--base: '{cut.base}' holds no *.safetensors.")
    max_rank = cut.max_rank
    # An engine refuses a rank above its buffers, so its largest is a limit as well.
    if engine and (most := max(ENGINES[engine].ranks, default=0)):
        max_rank = min(max_rank or most, most)
    found: list[para.Policy] = [
        POLICIES[name](
            value,
            scope=cut.scope,
            # The norms are those of SRC's modules, see `based`.
            score=para.Score(norms={}) if cut.base else cut.score,
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


def based(policy: para.Policy, cut: Cut, parent: para.Checkpoint) -> para.Policy:
    """Return a policy with the norms of the base's kernels, if the cut asks for them.

    Raises:
      FileNotFoundError: if there is no base model in the folder.
      ValueError: if it is not this adapter's.
    """
    if cut.base is None:
        return policy
    modules = tuple(
        (path, x.stack, x.inputs, x.outputs)
        for path, x in sharing.owners(parent).items()
    )
    # One tenant of a fleet reads the base, and the others wait for it.
    with _ONE:
        score = _score(cut.base, modules)
    return dataclasses.replace(policy, score=score)


@functools.lru_cache(maxsize=8)  # A fleet's tenants have one base, and like modules.
def _score(
    base: pathlib.Path, modules: tuple[tuple[str, tuple[int, ...], int, int], ...]
) -> para.Score:
    # Shapes are all that the norms need of an adapter, and no memory is taken.
    empty = np.zeros((), np.float32)
    like = {
        path: para.Adapter(
            np.broadcast_to(empty, (*stack, m, 1)),
            np.broadcast_to(empty, (*stack, 1, n)),
        )
        for path, stack, m, n in modules
    }
    return para.Score(norms=para.kernel_norms(base, like))
