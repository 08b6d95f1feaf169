"""Tell a tree's adapters from copies of them: moments of an optimizer, averages.

Runs on the host: keys alone are read.
"""

import re
from collections.abc import Collection, Sequence

from para_jax.layouts.pairs import Key

# A training state repeats the tree of the factors in its optimizer, so an adapter would
# be found three times with Adam.
_OPTIMIZERS = {"opt", "optim", "opt_state", "optimizer_state", "optimizer", "tx"}
_MOMENTS = {"mu", "nu", "trace", "nu_max", "sum_of_squares", "acc_grads"}
_AVERAGES = re.compile(r"(.*_)?ema(_.*)?")

ModuleWeight = tuple[Key, str]
"""The key of a module, and the name of the adapted weight in it."""


def is_optimizer(key: Key) -> bool:
    """Check whether a leaf belongs to an optimizer, whose moments repeat its names."""
    return not _OPTIMIZERS.isdisjoint(key[:-1])


def moments(sites: Collection[ModuleWeight]) -> list[ModuleWeight]:
    """List the sites below a name of optax's moments that repeat all other sites.

    A module of a model may be called `mu` or `trace` too. It is not mistaken for a
    moment, since it does not repeat the paths of all other modules.
    """
    others = [site for site in sites if _MOMENTS.isdisjoint(site[0])]
    ends = _ends(others)
    found = []
    for start, group in _below_moments(sites).items():
        rests = [(module[len(start) :], weight) for module, weight in group]
        if len(group) == len(others) and ends.issuperset(rests):
            found += group
    return found


def _ends(sites: Collection[ModuleWeight]) -> set[ModuleWeight]:
    """Return every end of each module's path, the whole path included."""
    # The state of an optimizer may lack the outer levels of the parameters' tree, such
    # as the collection `params`.
    return {
        (module[i:], weight)
        for module, weight in sites
        for i in range(len(module) or 1)
    }


def _below_moments(
    sites: Collection[ModuleWeight],
) -> dict[Key, list[ModuleWeight]]:
    """Group the sites by their path down to the first name of a moment."""
    groups: dict[Key, list[ModuleWeight]] = {}
    for module, weight in sites:
        depths = [i for i, name in enumerate(module) if name in _MOMENTS]
        if depths:
            start = module[: depths[0] + 1]
            groups.setdefault(start, []).append((module, weight))
    return groups


def check_averages(modules: Sequence[Key]) -> None:
    """Raise ValueError if a tree holds weights and an average of them."""
    # Pruned together, an average and its weights would count every module twice, and
    # might keep different ranks.
    firsts = {module[:1]: "/".join(module) for module in modules}
    means = [x for x in firsts if x and _AVERAGES.fullmatch(x[0])]
    if means and len(means) < len(firsts):
        other = next(path for x, path in firsts.items() if x not in means)
        raise ValueError(
            f"'{firsts[means[0]]}' and '{other}' are two copies of a model's adapters. "
            "Give one of them alone."
        )
