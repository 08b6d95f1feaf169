"""GSM8K and MATH by Gemma3-4B-IT: the paper's table 4.

    python -m train check paper/math
    python -m train grid --preset paper/math --out DIR

It ends with the tables, and the figures in DIR/figures. After an interruption, the same
command resumes. Several processes with the same DIR share the work, one for each GPU:
CUDA_VISIBLE_DEVICES=0, 1, ... Or --devices 4 divides every batch. With --tiny it runs
on a CPU, with random models and rows. With --model REPO another language model takes
its place, such as google/gemma-3-270m; give another --out for that.

Trained on MetaMathQA, on sequences of up to 512 tokens; answers are written greedily
and graded. Tables have a column for each of the two sets, and their mean; one learning
rate is chosen for both. Those that need more ranks or children say so.

Cost, estimated and not measured: 30 trainings of Gemma3-4B, of 3000 steps, a day on one
H200 if a step takes twice as long as in `paper/commonsense`, where it was measured; and
a day or two for 6,300 answers of up to 1,024 tokens from each of 24 models. 9 GB to
download.

Not run at this scale yet. The paper's reported scores at an average rank of 4:

    averages of table 4 (from a summary): LoRA 60.80, PARA 61.80
    PARA (a third party's listing, unverified): GSM8K 78.2, MATH 45.5
"""

from train.commands.needs import Needs, Weights
from train.data import mathematics
from train.presets.paper import protocol
from train.subjects.instructions import CHOICE

PLAN = protocol.written("mathematics", max_length=512)

NEEDS = Needs(
    weights=Weights(
        repo=CHOICE.own,
        files=("config.json", "tokenizer.json"),
        families=tuple(CHOICE.families),
        size=8_600_000_000,
        remark="accept the licence on the hub, and run `hf auth login`",
    ),
    data=(mathematics.TRAIN, *mathematics.TASKS),
    # Reckoned, not measured: of the 20.8 GB of `commonsense` the base is 7.8, and the
    # rest doubles with the length, to 33.8 GB; and half as much again: see `Needs`.
    memory_bytes=51_000_000_000,
)
