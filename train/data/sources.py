"""Addresses of the paper's data sets, and their expected contents.

The names are repositories on the Hugging Face hub; `clones` has those on GitHub. A size
is the first load's download, rounded, if known. Runs on the host.
"""

from collections.abc import Mapping
from typing import Any

from train.data.source import Part as Part, Source as Source

IMAGES = (
    Source(
        name="cifar10",
        hub="uoft-cs/cifar10",
        parts={"train": Part("train", 50_000), "test": Part("test", 10_000)},
        columns={"image": "img", "label": "label"},
        classes=10,
        remark="32 x 32 pixels; no licence stated",
        size=144_000_000,
    ),
    Source(
        name="cifar100",
        hub="uoft-cs/cifar100",
        parts={"train": Part("train", 50_000), "test": Part("test", 10_000)},
        columns={"image": "img", "label": "fine_label"},
        classes=100,
        remark="32 x 32 pixels; no licence stated",
        size=142_000_000,
    ),
    Source(
        name="eurosat",
        hub="timm/eurosat-rgb",
        parts={"all": Part("train+validation+test", 27_000)},
        columns={"image": "image", "label": "label"},
        classes=10,
        remark="MIT; no official split: see `images.eurosat_split`",
        size=92_100_000,
    ),
    Source(
        name="flowers",
        hub="dpdl-benchmark/oxford_flowers102",
        parts={
            "train": Part("train", 1_020),
            "validation": Part("validation", 1_020),
            "test": Part("test", 6_149),
        },
        columns={"image": "image", "label": "label"},
        classes=102,
        remark="no licence stated; six times more to test on than to train on",
        size=3_360_000_000,
    ),
    Source(
        name="pets",
        hub="timm/oxford-iiit-pet",
        parts={"train": Part("train", 3_680), "test": Part("test", 3_669)},
        columns={"image": "image", "label": "label"},
        classes=37,
        remark="CC BY-SA 4.0",
        size=791_000_000,
    ),
    Source(
        name="cars",
        hub="isaacchung/StanfordCars",
        parts={"train": Part("train", 8_144), "test": Part("test", 8_041)},
        columns={"image": "image", "label": "label"},
        classes=196,
        remark="no licence stated; the original page is gone",
        size=1_980_000_000,
    ),
    Source(
        name="food",
        hub="ethz/food101",
        parts={"train": Part("train", 75_750), "test": Part("validation", 25_250)},
        columns={"image": "image", "label": "label"},
        classes=101,
        remark="no licence stated; some labels to train on are wrong",
        size=5_060_000_000,
    ),
)
"""Table 1 of the paper."""


_GLUE_LICENCE = "each task has the licence of its own source"


def _glue(
    name: str,
    train: int,
    test: int,
    columns: tuple[str, ...],
    metrics: tuple[str, ...],
    size: int | None,
) -> Source:
    """Return a task of GLUE. Its test labels are secret: the dev set is the test."""
    return Source(
        name=name,
        hub="nyu-mll/glue",
        configs=(name,),
        parts={"train": Part("train", train), "test": Part("validation", test)},
        columns=dict(zip(("first", "second"), columns, strict=False))
        | {"label": "label"},
        classes=2,
        metrics=metrics,
        remark=_GLUE_LICENCE,
        size=size,
    )


GLUE = (
    Source(
        name="mnli",
        hub="nyu-mll/glue",
        configs=("mnli",),
        parts={
            "train": Part("train", 392_702),
            "test": Part("validation_matched", 9_815),
            "mismatched": Part("validation_mismatched", 9_832),
        },
        columns={"first": "premise", "second": "hypothesis", "label": "label"},
        classes=3,
        remark=_GLUE_LICENCE,
        size=57_200_000,
    ),
    _glue("sst2", 67_349, 872, ("sentence",), ("accuracy",), 3_330_000),
    _glue("cola", 8_551, 1_043, ("sentence",), ("accuracy", "matthews"), 326_000),
    _glue("qnli", 104_743, 5_463, ("question", "sentence"), ("accuracy",), 19_300_000),
    _glue(
        "mrpc", 3_668, 408, ("sentence1", "sentence2"), ("accuracy", "f1"), 1_030_000
    ),
)
"""Table 2. CoLA's official metric is Matthews' correlation; the paper's is accuracy."""


# Repositories of a script alone, which `datasets` no longer runs; the hub has converted
# what the script gave.
_CONVERTED = "refs/convert/parquet"


def _choices(name: str, hub: str, test: Part, columns: str, **more: Any) -> Source:
    """Return a test set of questions with given answers; columns keep their names."""
    names = {x: x for x in columns.split()}
    return Source(name=name, hub=hub, parts={"test": test}, columns=names, **more)


_SIQA = "context question answerA answerB answerC label"
_ARC = "question choices answerKey"

COMMONSENSE = (
    Source(
        name="commonsense170k",
        hub="zwhe99/commonsense_170k",
        parts={"train": Part("train", 170_420)},
        columns={x: x for x in ("instruction", "output", "answer")},
        metrics=(),
        remark="of LLM-Adapters: what the eight sets have to train on, as instructions",
    ),
    _choices(
        *("boolq", "google/boolq", Part("validation", 3_270), "question answer"),
        size=4_940_000,
    ),
    _choices(
        *("piqa", "ybisk/piqa", Part("validation", 1_838), "goal sol1 sol2 label"),
        revision=_CONVERTED,
    ),
    _choices(
        *("siqa", "allenai/social_i_qa", Part("validation", 1_954), _SIQA),
        revision=_CONVERTED,
    ),
    _choices(
        "hellaswag",
        "Rowan/hellaswag",
        Part("validation", 10_042),
        "activity_label ctx endings label",
    ),
    _choices(
        "winogrande",
        "allenai/winogrande",
        Part("validation", 1_267),
        "sentence option1 option2 answer",
        configs=("winogrande_xl",),
    ),
    _choices(
        *("arc-e", "allenai/ai2_arc", Part("test", 2_376), _ARC),
        configs=("ARC-Easy",),
    ),
    _choices(
        *("arc-c", "allenai/ai2_arc", Part("test", 1_172), _ARC),
        configs=("ARC-Challenge",),
    ),
    _choices(
        "obqa",
        "allenai/openbookqa",
        Part("test", 500),
        "question_stem choices answerKey",
        configs=("main",),
    ),
)
"""Table 3: one set to train on, eight to test on."""

MATHEMATICS = (
    Source(
        name="metamathqa",
        hub="meta-math/MetaMathQA",
        parts={"train": Part("train", 395_000)},
        columns={"question": "query", "solution": "response"},
        metrics=(),
        remark="MIT",
        size=396_000_000,
    ),
    Source(
        name="gsm8k",
        hub="openai/gsm8k",
        configs=("main",),
        parts={"train": Part("train", 7_473), "test": Part("test", 1_319)},
        columns={"question": "question", "solution": "answer"},
        remark="MIT",
        size=2_730_000,
    ),
    Source(
        name="math",
        hub="EleutherAI/hendrycks_math",
        configs=(
            "algebra",
            "counting_and_probability",
            "geometry",
            "intermediate_algebra",
            "number_theory",
            "prealgebra",
            "precalculus",
        ),
        parts={"train": Part("train", 7_500), "test": Part("test", 5_000)},
        columns={"question": "problem", "solution": "solution"},
        remark="MIT",
    ),
)
"""Table 4."""

MORE = (
    _glue("rte", 2_490, 277, ("sentence1", "sentence2"), ("accuracy",), None),
    Source(
        name="commonsense17k",
        hub="",
        parts={"train": Part("train", 17_754)},
        columns={x: x for x in ("instruction", "output", "answer")},
        metrics=(),
        remark="of LLM-Adapters: of BoolQ, both of ARC and OpenBookQA, on GitHub alone",
    ),
)
"""Sets that are not among the paper's."""

SOURCES: Mapping[str, Source] = {
    x.name: x for x in (*IMAGES, *GLUE, *COMMONSENSE, *MATHEMATICS, *MORE)
}
"""All of them by name."""


def find(name: str) -> Source:
    """Return the set by its name.

    Raises:
      ValueError: if there is none.
    """
    if name not in SOURCES:
        raise ValueError(
            f"Unknown data set '{name}', expected one of {', '.join(SOURCES)}."
        )
    return SOURCES[name]
