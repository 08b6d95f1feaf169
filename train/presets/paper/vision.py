"""Seven image sets by SigLIP2-Base: the paper's tables 1 and 5, figures 1 to 9.

    python -m train check paper/vision
    python -m train grid --preset paper/vision --out DIR

It ends with the tables, and the figures in DIR/figures. After an interruption, the same
command resumes. Several processes with the same DIR share the work, one for each GPU:
CUDA_VISIBLE_DEVICES=0, 1, ... Or --devices 4 divides every batch. With --tiny it runs
on a CPU, with random models and pictures. With --model REPO another SigLIP takes its
place; give another --out for that.

Cost: 70 trainings of SigLIP2-Base, with five members each; 4.9 hours on one H200 at the
speed of LoRA's steps, measured with random weights on pictures of CIFAR-10's size, and
with that 18.3 GB. Estimated: twice that with the slower methods, and some hours for 30
children of each of 21 parents. 13 GB to download.

Not run at this scale yet. The paper's reported scores at an average rank of 4:

    averages of table 1 (from a summary): AdaLoRA, SoRA, DoRA, GoRA and LoRA 76.96,
        79.25, 82.39, 82.45 and 84.30, PARA 88.83
    PARA (from a summary): CIFAR-100 79.08, Food 86.40, Flowers 86.03, Cars 84.58
    PARA (a third party's listing, unverified): CIFAR-10 97.89, Pets 89.97
    local (from a summary): CIFAR-100 78.23, Food 84.49, Flowers 85.15, Cars 83.82

These levels are low for this model, so expect higher ones here; what to compare are the
order of the methods and the differences between them.
"""

from train.commands.needs import Needs, Weights
from train.data import images
from train.presets.paper import protocol
from train.subjects.images import CHOICE

PLAN = protocol.planned(images.NAMES, steps={"flowers": 1500, "pets": 1500})

NEEDS = Needs(
    weights=Weights(
        repo=CHOICE.own,
        families=tuple(CHOICE.families),
        size=1_500_000_000,
        remark="Apache-2.0",
    ),
    data=images.NAMES,
    memory_bytes=27_000_000_000,  # 18.3 GB measured: see `Needs`.
)
