"""Write one model's adapter in all forms, and check the updates in engines' memory."""

import pathlib
from typing import NamedTuple

import numpy as np

from tests.engines import harness, models

ALL = models.ATTENTION + models.MLP


class Loaded(NamedTuple):
    """The results of loading files into an engine.

    Attributes:
      engine: Its name in `environments.ENVIRONMENTS`.
      files: The adapters' folders, by label.
      answer: The updates in its memory, by LABEL/MODULE.
      family: The model's, in `models.FAMILIES`.
    """

    engine: str
    files: dict[str, pathlib.Path]
    answer: harness.Answer
    family: str = "llama"


def written(
    folder: pathlib.Path,
    forms: dict[str, tuple[str, ...]],
    *,
    family: str = "llama",
    targets: tuple[str, ...] = ALL,
    experts: bool = False,
) -> tuple[pathlib.Path, dict[str, pathlib.Path]]:
    """Write a model, a parent for it, and the parent's children.

    Args:
      folder: The target folder.
      forms: The words of the command line, by a child's label.
      family: The model's, in `models.FAMILIES`.
      targets: The ends of the names of the modules to adapt.
      experts: Whether to adapt the experts as well.

    Returns:
      The model's folder, and the adapters' folders, including the parent's.
    """
    base = models.make(family, folder / "base")
    adapted = models.linear_shapes(base, targets)
    adapted |= models.expert_shapes(base) if experts else {}
    files = {"parent": models.adapter(folder / "parent", adapted)}
    for form, words in forms.items():
        files[form] = harness.compress(files["parent"], folder / form, *words)
    return base, files


def shapes(base: pathlib.Path, *more: str) -> dict[str, tuple]:
    """Return the shapes of all projections, and of further named modules."""
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


def check_held(loaded: Loaded, label: str, row, *, wanted: dict | None = None) -> None:
    """Check an engine's updates against a file's, and keep the difference."""
    engine, files, answer, family = loaded
    assert answer.refused.get(label) is None
    wanted = models.updates(files[label]) if wanted is None else wanted
    got = harness.furthest(answer, label, wanted)

    row(
        engine=engine,
        version=answer.version,
        loaded=f"{family}: {label}",
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
        loaded=f"{loaded.family}: {label}",
        refused=refused.splitlines()[0],
    )
    assert match in refused
