"""The paper's image sets, by a SigLIP's vision encoder: SigLIP2-Base at 224 pixels.

A linear classifier on the pooled embedding is trained with the adapters; the pooling
head has no adapters. Flowers has a validation part; the other sets cut theirs from the
training part, see `train.data.parts`.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from train.data import arrays, images, parts, preprocess, sources, stream
from train.data.batch import Batch
from train.data.images import Images
from train.evaluation import evaluate
from train.models import siglip
from train.models.adapted import Adapted
from train.runs.settings import Run
from train.subjects.choice import Choice
from train.subjects.folders import Folders
from train.subjects.subject import Subject

TASKS = images.NAMES

REPO = "google/siglip2-base-patch16-224"

CHOICE = Choice(
    own=REPO, families=dict.fromkeys(("siglip", "siglip_vision_model"), siglip)
)
"""The models: SigLIPs, and their vision encoders alone."""

_BATCH = 32  # Many adapters are evaluated at once: a batch of each is in memory.


@dataclasses.dataclass(frozen=True)
class OnBytes:
    """A vision model on pixels as bytes, converted to its inputs on the device."""

    model: siglip.SiglipClassifier

    @property
    def adapted(self) -> Adapted:
        return self.model.adapted

    def apply(self, variables: Mapping[str, Any], inputs: Any) -> Any:
        """Return the logits `[B, classes]` of images `[B, H, W, 3]`."""
        # The base's dtype: the trainer casts it for bfloat16.
        dtype = jax.tree.leaves(variables["params"])[0].dtype
        return self.model.apply(variables, preprocess.normalise(inputs).astype(dtype))

    def init(self, rngs: Any, inputs: Any) -> Any:
        """Initialise variables, with the shapes that `apply` reads."""
        return self.model.init(rngs, preprocess.normalise(inputs))


@dataclasses.dataclass(frozen=True)
class Evaluated(Sequence[Batch]):
    """Images in batches, decoded anew in every pass.

    Attributes:
      images: The images, in their order.
      size: The side of the model's images, in pixels.
    """

    images: Images
    size: int

    def __len__(self) -> int:
        return -(-len(self.images.labels) // _BATCH)

    def __iter__(self) -> Iterator[Batch]:
        given = {"batch": _BATCH, "size": self.size}
        for pixels, labels in preprocess.evaluation_batches(self.images, **given):
            yield Batch(pixels, labels)

    def __getitem__(self, index: Any) -> Any:
        rows = np.arange(len(self))[index]
        if isinstance(index, slice):
            return [self[int(x)] for x in rows]
        # A single batch decodes its own images only.
        some = np.arange(len(self.images.labels))[rows * _BATCH :][:_BATCH]
        return next(iter(Evaluated(_some(self.images, some), self.size)))


def load(run: Run, folders: Folders) -> Subject:
    """Load the subject of a run.

    Args:
      run: The run's settings; `max_length` has no effect here.
      folders: The folders of the encoder and the images.

    Raises:
      OSError: if the encoder or the images are not there.
      ValueError: if their contents are wrong.
    """
    model = CHOICE.find(run, folders)
    config = siglip.read_config(model.folder)
    found = _parts(run.task, folders)
    classes = sources.find(run.task).classes or 0
    return Subject(
        model=OnBytes(siglip.SiglipClassifier(config, classes)),
        base=_base(model.folder),
        data=arrays.Data(
            train=stream.Pictures(images=found["train"], size=config.image_size),
            examples=len(found["train"].labels),
        ),
        validation=_evaluated(found["validation"], config),
        tests={run.task: _evaluated(found["test"], config)},
        peft={
            "base_model_name_or_path": model.repo,
            "modules_to_save": ["classifier"],
            "task_type": "FEATURE_EXTRACTION",
        },
    )


def _evaluated(part: Images, config: siglip.Config) -> evaluate.Part:
    return evaluate.Part(Evaluated(part, config.image_size))


def _parts(task: str, folders: Folders) -> dict[str, Images]:
    read = functools.partial(
        images.load, task, data=folders.data, subset=folders.subset
    )
    found = {part: read(part) for part in ("train", "test")}
    if "validation" in sources.find(task).parts:
        return found | {"validation": read("validation")}
    train, validation = parts.held_out(len(found["train"].labels))
    return found | {
        "train": _some(found["train"], train),
        "validation": _some(found["train"], validation),
    }


def _some(whole: Images, rows: np.ndarray) -> Images:
    pictures = parts.Some(whole.pictures, rows)
    return whole._replace(pictures=pictures, labels=whole.labels[rows])


@functools.lru_cache(maxsize=1)  # The sets share it, on the device too.
def _base(folder: pathlib.Path) -> Mapping[str, Any]:
    params = siglip.load(folder, siglip.read_config(folder), dtype=np.float32)
    return cast("dict[str, Any]", jax.tree.map(jnp.asarray, {"vision_model": params}))
