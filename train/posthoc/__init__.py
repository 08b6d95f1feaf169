"""Pruning a trained parent, by all methods of the comparison.

    base = posthoc.statistics(params)
    parent = posthoc.Parent(adapters=..., model=model, params=params, statistics=base,
                            validation=posthoc.Examples(tokens, labels))
    children = []
    for name, pruner in posthoc.PRUNERS.items():
        ranking = pruner(parent)
        children += [posthoc.prune(ranking, policy) for policy in policies]
    lora = para_jax.to_params(posthoc.stack(children, like=parent.adapters))

Data-free: PARA and the other scores of `SCORES`. With labelled batches: Fisher-PARA,
by example and by batch, and sensitivity. With unlabelled batches: whitening, full and
diagonal. Any of them global or local, within a budget of ranks or of parameters:

    para_jax.Rank(4), para_jax.Rank(0.5, scope="local", remainder="greedy"),
    para_jax.Params(100_000)

And `child(parts, drop_top(parts, 8))` with `parts = decompose(adapters)`: all but the
strongest components, the paper's Figure 3.
"""

from train.posthoc.base import (
    Statistics as Statistics,
    of_kernels as of_kernels,
    statistics as statistics,
)
from train.posthoc.components import (
    Components as Components,
    child as child,
    decompose as decompose,
    stack as stack,
)
from train.posthoc.examples import Examples as Examples, examples_of as examples_of
from train.posthoc.pruners import (
    PRUNERS as PRUNERS,
    Parent as Parent,
    Pruner as Pruner,
    Ranking as Ranking,
    prune as prune,
)
from train.posthoc.scores import SCORES as SCORES
from train.posthoc.selection import choose as choose, drop_top as drop_top
