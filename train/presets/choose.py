"""Ways to spend a budget, on eight sets of questions by a language model.

    python -m train grid --preset choose --weights WEIGHTS --data DATA --out DIR
    python -m train grid --preset choose --model HuggingFaceTB/SmolLM2-135M-Instruct ...

The model, Gemma 3 270M or another, learns from four sets to find the right answer of a
question the most likely text, and is tested on the first 300 questions of eight.
`docs/models.md` says where both come from. LoRA of rank 16 at all projections is the
parent; its children are cut by eight scores without data, to shares of its parameters
and of its ranks. LoRA trained at ranks 4 and 1 stands beside them. One seed chooses
among three learning rates on questions held out of the training part, and four more
train at the chosen one.
"""

from train.commands.needs import Needs, Weights
from train.data import commonsense
from train.grid import plan
from train.runs.settings import Run
from train.subjects.multiple_choice import CHOICE, TASKS

_ENTRIES = ("lora-16", "lora-4", "lora-1")

# With two budgets of ranks and five of parameters, and the local cuts, 63 children of a
# parent: two calls of the evaluator, on which most of the time goes.
_PRUNERS = (
    *("sigma", "by-frobenius", "by-update", "by-update-0.5", "by-tail"),
    *("sigma-floor", "by-update-floor", "by-type"),
)

PLAN = plan.Plan(
    tasks=TASKS,
    settings=Run(
        task=TASKS[0],
        steps=600,
        batch=16,
        max_length=48,
        dtype="bfloat16",
        backbone="",
    ),
    entries=tuple(x for x in plan.ENTRIES if x.name in _ENTRIES),
    rates=(2e-4, 6e-4, 2e-3),
    outer=(),
    search_seeds=(0,),
    other_seeds=(1, 2, 3, 4),
    cuts=(4, 1),
    pruners=_PRUNERS,
    energies=(),
    dropped=(),
    retuned=(),
)

NEEDS = Needs(
    weights=Weights(
        repo=CHOICE.own, files=(), families=tuple(CHOICE.families), size=253_113_024
    ),
    data=(commonsense.SMALL, *commonsense.TASKS),
)
