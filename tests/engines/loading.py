"""Engines of which the loading alone is run, on a Llama's adapters, against `s B A`."""

import pathlib
from typing import NamedTuple

import numpy as np

from tests.engines import harness, models

ALL = models.ATTENTION + models.MLP


class Loaded(NamedTuple):
    """What an engine loaded, and from what.

    Attributes:
      engine: Its name in `environments.ENVIRONMENTS`.
      files: The adapters' folders, by label.
      answer: What it holds of each, by LABEL/MODULE.
    """

    engine: str
    files: dict[str, pathlib.Path]
    answer: harness.Answer


def written(
    folder: pathlib.Path, forms: dict[str, tuple[str, ...]]
) -> tuple[pathlib.Path, dict[str, pathlib.Path]]:
    """Write a Llama, a parent for all of its projections, and the parent's children.

    Args:
      folder: Where to.
      forms: The words of the command line, by a child's label.

    Returns:
      The model's folder, and those of the adapters, the parent among them.
    """
    base = models.make("llama", folder / "base")
    files = {"parent": models.adapter(folder / "parent", shapes(base))}
    for form, words in forms.items():
        files[form] = harness.compress(files["parent"], folder / form, *words)
    return base, files


def shapes(base: pathlib.Path, *more: str) -> dict[str, tuple]:
    """Return the shapes of all projections, and of what else is named."""
    return models.linear_shapes(base, (*ALL, *more))


def run(
    engine: str,
    base: pathlib.Path,
    files: dict[str, pathlib.Path],
    folder: pathlib.Path,
) -> Loaded:
    """Load all files in one process."""
    job = {"model": base, "adapters": files, "max_lora_rank": 8}
    return Loaded(engine, files, harness.run(engine, job, folder))


def check_held(loaded: Loaded, label: str, row) -> None:
    """Check that an engine holds the updates of a file, and keep the difference."""
    engine, files, answer = loaded
    assert answer.refused.get(label) is None
    wanted = models.updates(files[label])
    got = harness.furthest(answer, label, wanted)

    row(
        engine=engine,
        version=answer.version,
        loaded=f"llama: {label}",
        difference=got,
        of="updates",
    )
    assert max(np.abs(x).max() for x in wanted.values()) > 0.5
    assert got < 1e-6


def check_refused(loaded: Loaded, label: str, row, *, match: str) -> None:
    """Check that an engine refuses a file with these words, and keep all of them."""
    refused = loaded.answer.refused[label]
    row(
        engine=loaded.engine,
        version=loaded.answer.version,
        loaded=f"llama: {label}",
        refused=refused.splitlines()[0],
    )
    assert match in refused
