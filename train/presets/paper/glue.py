"""Five tasks of GLUE by RoBERTa-base: the paper's tables 2 and 5.

    python -m train check paper/glue
    python -m train grid --preset paper/glue --out DIR

It ends with the tables, and the figures in DIR/figures. After an interruption, the same
command resumes. Several processes with the same DIR share the work, one for each GPU:
CUDA_VISIBLE_DEVICES=0, 1, ... Or --devices 4 divides every batch. With --tiny it runs
on a CPU, with random models and sentences. With --model REPO another encoder takes
RoBERTa's place, such as sentence-transformers/all-mpnet-base-v2; give another --out.

The official development parts are tested on and give the accuracy, also of CoLA: the
numbers below are all possible so, in one run. Matthews' correlation of CoLA, F1 of MRPC
and the accuracy on MNLI's mismatched part are in the rows, and in a block of table a.

Cost: 50 trainings of RoBERTa-base on 128 tokens, with five members each; 2.2 hours on
one H200 at the speed of LoRA's steps, measured with random weights on MNLI's format,
and with that 10.7 GB. Estimated: twice that with the slower methods, and some hours to
evaluate. 600 MB to download.

Not run at this scale yet. The paper's reported scores at an average rank of 4:

    averages of table 2 (from a summary): LoRA 85.59, PARA 86.45
    PARA (from a summary): QNLI 88.71, MRPC 86.76, CoLA 82.26, SST-2 93.46; which
        leaves 81.06 for MNLI
    local (from a summary): QNLI 86.85, MRPC 83.17, CoLA 81.64, SST-2 92.22; the last
        three are not possible in one run, so table 5 is not like for like
"""

from train.commands.needs import Needs, Weights
from train.data import glue
from train.presets.paper import protocol
from train.subjects.glue import CHOICE

PLAN = protocol.planned(glue.TASKS, steps={"mrpc": 1500}, max_length=glue.MAX_LENGTH)

NEEDS = Needs(
    weights=Weights(
        repo=CHOICE.own,
        files=("config.json", "tokenizer.json"),
        families=tuple(CHOICE.families),
        size=500_000_000,
        remark="MIT",
    ),
    data=glue.TASKS,
    memory_bytes=16_000_000_000,  # 10.7 GB measured: see `Needs`.
)
