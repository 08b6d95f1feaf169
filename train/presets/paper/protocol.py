"""The common protocol of the paper's comparisons.

The paper says: one H100, rank 16 cut to 4 on average (gamma 0.25), learning rate 5e-5.
It leaves out most else. Here the scale is alpha / r = 2, without dropout; AdamW with a
weight decay of 0.01; batches of 32; 6 % of the steps to warm up, then a linear fall;
gradients clipped at 1; computed in bfloat16, trained and evaluated in float32. There
are 3000 steps, or 1500 where a set is so small that 3000 would be more than 26 epochs.
One seed chooses among three learning rates, the paper's and two larger ones, on
examples held out of the training part, and two more seeds train at the chosen one.
`--rates 5e-5` takes the paper's alone: give another --out for that.

Gemma writes its answers, which takes long: it has fewer methods and fewer children.
"""

import dataclasses
from collections.abc import Mapping

from train.grid import plan
from train.runs.settings import Run

NAMES = (
    *(f"lora-{rank}" for rank in plan.RANKS),
    *("adalora", "sora", "dora", "gora", "dylora"),
)
"""The trained entries: LoRA's native ranks, and the methods of table 1."""

ENTRIES = tuple(x for x in plan.ENTRIES if x.name in NAMES)


def planned(
    tasks: tuple[str, ...], *, steps: Mapping[str, int], max_length: int = 48
) -> plan.Plan:
    """Return the plan of some tasks; `steps` are those of small sets."""
    return plan.Plan(
        tasks=tasks,
        settings=Run(
            task=tasks[0],
            steps=3000,
            batch=32,
            max_length=max_length,
            dtype="bfloat16",
            backbone="",
        ),
        entries=ENTRIES,
        steps=steps,
        rates=(5e-5, 2e-4, 1e-3),
        outer=(),
        search_seeds=(0,),
        other_seeds=(1, 2),
        cuts=(8, 4, 2, 1),
        shares=(),
        pruners=("sigma", "fisher"),
        retuned=(),
    )


def written(task: str, *, max_length: int) -> plan.Plan:
    """Return the plan of a task with generated answers.

    LoRA at 16 and 4, and the methods of table 1; PARA and local pruning at 4.
    """
    names = ("lora-16", "lora-4", "adalora", "sora", "dora", "gora")
    whole = planned((task,), steps={}, max_length=max_length)
    return dataclasses.replace(
        whole,
        entries=tuple(x for x in whole.entries if x.name in names),
        cuts=(4,),
        pruners=("sigma",),
        energies=(),
        dropped=(),
    )
