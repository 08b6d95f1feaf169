"""The paper's models and data sets in their own formats, random and tiny.

With them a preset runs from end to end on a CPU in a minute: it shows that everything
is wired up, and its numbers say nothing: a dozen steps learn little. Only the sentences
can be learned, each has a word of its class. Runs on the host.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from train.data import clones, commonsense, sources
from train.data.sources import Source
from train.grid.plan import Plan
from train.presets.paper import tiny_text
from train.presets.paper.tiny_models import MODELS, WORDS
from train.subjects.folders import Folders

if TYPE_CHECKING:
    import datasets

ROWS = {"train": 40, "validation": 12, "test": 12}
"""Rows of each split, by the beginning of its name."""

_CLASSES = 3
"""The first words each name a class of sentences."""


def shrunk(plan: Plan, folder: pathlib.Path) -> Plan:
    """Return a plan of few steps, seeds and children, on models and data made here.

    Args:
      plan: A preset's.
      folder: The folder for models and data, in `tiny` below it.

    Raises:
      ValueError: if the plan names a model of which there is no tiny one.
    """
    if (model := plan.settings.model) and model not in MODELS:
        raise ValueError(
            f"--tiny makes its models, and --model is '{model}', expected "
            f"{' or '.join(MODELS)}. Name one of these, or leave --tiny out."
        )
    settings = dataclasses.replace(
        plan.settings, steps=12, batch=4, max_length=80, dtype="float32"
    )
    return dataclasses.replace(
        plan,
        settings=settings,
        steps={},
        rates=(0.03,),  # In so few steps, less changes nothing.
        outer=(),
        search_seeds=(0,),
        other_seeds=(1,),
        cuts=(4, 1),
        shares=plan.shares[:1],
        energies=plan.energies[-1:],
        dropped=plan.dropped[:1],
        retuned=(),
        folders=make(folder / "tiny"),
    )


def make(folder: pathlib.Path) -> Folders:
    """Write the models and the sets of all presets, unless they exist.

    Args:
      folder: The target; `weights` and `data` are made in it.
    """
    folders = Folders(weights=folder / "weights", data=folder / "data", subset=True)
    # The mark is written last: an interrupted make starts over.
    done, mark = folder / "complete", f"Random data and {', '.join(MODELS)}.\n"
    if not done.exists() or done.read_text() != mark:
        for repo, write in MODELS.items():
            write(folder / "weights" / repo)
        write_data(folder / "data")
        done.write_text(mark)
    return folders


def write_data(folder: pathlib.Path, rows: Mapping[str, int] = ROWS) -> None:
    """Write all sets as `DatasetDict.save_to_disk` does.

    Args:
      folder: The folder of the sets, by repository.
      rows: The rows of each split, by the beginning of its name.
    """
    for source in sources.IMAGES:
        _set(folder / source.hub, source, _pictures, rows)
    for source in (*sources.GLUE, sources.find("rte")):
        _set(folder / source.hub / source.configs[0], source, _sentences, rows)
    for source in (*sources.COMMONSENSE, *sources.MATHEMATICS):
        for config in source.configs or ("",):
            _set(folder / source.hub / config, source, _texts, rows)
    _clone(folder, sources.find(commonsense.SMALL), rows["train"])


def _set(
    folder: pathlib.Path,
    source: Source,
    make: Callable[[Source, int, np.random.Generator], "datasets.Dataset"],
    rows: Mapping[str, int],
) -> None:
    import datasets

    # The same seed for every set: a test can count on its rows.
    generator = np.random.default_rng(0)
    splits = [x for part in source.parts.values() for x in part.split.split("+")]
    found = datasets.DatasetDict()
    for split in splits:
        found[split] = make(source, rows[split.split("_")[0]], generator)
    datasets.disable_progress_bars()
    found.save_to_disk(str(folder))
    datasets.enable_progress_bars()


def _clone(folder: pathlib.Path, source: Source, count: int) -> None:
    """Write a set of questions that is on GitHub alone, as its repository has it."""
    clone = clones.CLONES[source.name]
    (names,) = clone.parts.values()
    make = tiny_text.ROWS[source.name]
    for number, name in enumerate(names):
        file = folder / clone.repo / name
        file.parent.mkdir(parents=True, exist_ok=True)
        # No row is in two files.
        rows = [make(x) for x in range(number, count, len(names))]
        file.write_text(json.dumps(rows))


def _labels(source: Source, count: int) -> tuple[list[int], Any]:
    import datasets

    classes = source.classes or 1
    names = [f"class {x}" for x in range(classes)]
    # Classes take turns, so that every part has all of them.
    return [x % classes for x in range(count)], datasets.ClassLabel(names=names)


def _pictures(
    source: Source, count: int, generator: np.random.Generator
) -> "datasets.Dataset":
    import datasets
    import PIL.Image

    labels, kind = _labels(source, count)
    # Unequal sides, as real images have.
    pixels = generator.integers(256, size=(count, 18, 21, 3), dtype=np.uint8)
    image, label = source.columns["image"], source.columns["label"]
    return datasets.Dataset.from_dict(
        {image: [*map(PIL.Image.fromarray, pixels)], label: labels},
        features=datasets.Features({image: datasets.Image(), label: kind}),
    )


def _sentences(
    source: Source, count: int, generator: np.random.Generator
) -> "datasets.Dataset":
    import datasets

    labels, kind = _labels(source, count)
    columns: dict[str, list[Any]] = {source.columns["label"]: labels}
    features: dict[str, Any] = {source.columns["label"]: kind}
    for name, column in source.columns.items():
        if name != "label":
            columns[column] = [_sentence(x, generator) for x in labels]
            features[column] = datasets.Value("string")
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def _sentence(label: int, generator: np.random.Generator) -> str:
    """Return random words, with the word of the class at a random place."""
    words = generator.choice(WORDS[_CLASSES:], size=generator.integers(2, 7))
    # One word decides, at any place: learnable in a few steps.
    words[generator.integers(len(words))] = WORDS[label]
    return " ".join(words)


def _texts(
    source: Source, count: int, generator: np.random.Generator
) -> "datasets.Dataset":
    import datasets

    make = tiny_text.ROWS[source.name]
    count = max(1, count // max(1, len(source.configs)))  # Of each configuration.
    numbers = generator.integers(50, size=count).tolist()
    return datasets.Dataset.from_list([make(x) for x in numbers])
