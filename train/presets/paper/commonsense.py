"""Eight sets of questions by Gemma3-4B-IT: the paper's table 3.

    python -m train check paper/commonsense
    python -m train grid --preset paper/commonsense --out DIR

It ends with the tables, and the figures in DIR/figures. After an interruption, the same
command resumes. Several processes with the same DIR share the work, one for each GPU:
CUDA_VISIBLE_DEVICES=0, 1, ... Or --devices 4 divides every batch. With --tiny it runs
on a CPU, with random models and rows. With --model REPO another language model takes
its place, such as google/gemma-3-270m; give another --out for that.

Trained on Commonsense-170k, on sequences of up to 256 tokens; answers are written
greedily and graded. Tables have a column for each of the eight sets, and their mean;
one learning rate is chosen for all. Those that need more ranks or children say so.

Cost: 30 trainings of Gemma3-4B, of 3000 steps; 8.8 hours on one H200 at the speed of
LoRA's steps, measured with random weights, and with that 20.8 GB. Estimated: half a day
with the slower methods, and 3 hours for 22,000 answers from each of 24 models. 9 GB to
download.

Not run at this scale yet. The paper's reported scores at an average rank of 4:

    averages of table 3 (from a summary): LoRA 58.70, PARA 60.40
    PARA (a third party's listing, unverified): BoolQ 84.4
"""

from train.commands.needs import Needs, Weights
from train.data import commonsense
from train.presets.paper import protocol
from train.subjects.instructions import CHOICE

PLAN = protocol.written("commonsense", max_length=256)

NEEDS = Needs(
    weights=Weights(
        repo=CHOICE.own,
        files=("config.json", "tokenizer.json"),
        families=tuple(CHOICE.families),
        size=8_600_000_000,
        remark="accept the licence on the hub, and run `hf auth login`",
    ),
    data=(commonsense.TRAIN, *commonsense.TASKS),
    memory_bytes=31_000_000_000,  # 20.8 GB measured: see `Needs`.
)
