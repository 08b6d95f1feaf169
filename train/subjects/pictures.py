"""Characters in small pictures, by an encoder pretrained on glyphs from free fonts.

The encoder has SigLIP's form: 6 layers of width 192, on 64 patches of 32 x 32 pixels.
It ships; `python -m train.pretrain.vision` made it, in four minutes on a GPU.
"""

import pathlib
from collections.abc import Sequence

import jax
import numpy as np

from train.data import arrays, digits, pixels, sentiment
from train.data.batch import NO_LABEL, Batch
from train.evaluation import evaluate
from train.models import checkpoint, siglip, weights
from train.runs.settings import Run
from train.subjects.subject import Subject

TASKS = digits.TASKS

ENCODER = pathlib.Path(__file__).parent.parent / "assets" / "glyphs" / "encoder"
"""The folder of its `config.json` and `model.safetensors`."""

_BATCH = 128
_REMEDY = "`python -m train.pretrain.vision` makes an encoder of glyphs."

PEFT = {
    "base_model_name_or_path": "glyph-encoder",
    "modules_to_save": ["classifier"],
    "task_type": "FEATURE_EXTRACTION",
}
"""The model's entries in an adapter's configuration."""


def load(run: Run, folder: pathlib.Path = ENCODER) -> Subject:
    """Load the subject of a run.

    Args:
      run: The run's settings; `max_length` has no effect here.
      folder: The encoder's folder.

    Raises:
      FileNotFoundError: if the encoder is not there.
      ModuleNotFoundError: if the package that holds the pictures is not installed.
      ValueError: if it is another encoder than the run's.
    """
    weights.check(folder / checkpoint.WEIGHTS, run.backbone, remedy=_REMEDY)
    config = siglip.read_config(folder)
    parts = {part: digits.load(run.task, part) for part in sentiment.PARTS}
    return Subject(
        model=siglip.SiglipClassifier(config, len(digits.CLASSES[run.task])),
        base={"vision_model": siglip.load(folder, config, dtype=np.float32)},
        data=arrays.Data(
            train=pixels.Pictures(*map(arrays.filled_up, parts["train"])),
            examples=len(parts["train"].labels),
        ),
        validation=evaluate.Part(batches(parts["validation"])),
        tests={run.task: evaluate.Part(batches(parts["test"]))},
        peft=PEFT,
    )


def backbone() -> str:
    """Return the hash of the encoder on disk.

    Raises:
      FileNotFoundError: if there is none.
    """
    return weights.found(ENCODER / checkpoint.WEIGHTS, remedy=_REMEDY)


def batches(part: digits.Images) -> Sequence[Batch]:
    """Return pictures in batches of one size, as inputs of the model."""
    count = len(part.labels)
    full = pixels.Pictures(*(arrays.filled_up(x, _BATCH) for x in part))
    # Padding must not count as class 0.
    full.labels[count:] = NO_LABEL
    rows = np.arange(len(full.labels)).reshape(-1, _BATCH)
    return [jax.device_get(full.batch(x)) for x in rows]
