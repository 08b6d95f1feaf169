"""Rows of a data set, from the Hugging Face hub or from a folder.

A folder DATA holds each repository under its name on the hub, as

    hf download uoft-cs/cifar10 --repo-type dataset --local-dir DATA/uoft-cs/cifar10

leaves it: parquet or JSON files and, for several configurations, the README that lists
them. What `DatasetDict.save_to_disk` wrote there is read too; a configuration has a
folder of its own then. Where the hub's folder is not there, the files of a repository
on GitHub are read, see `clones`. Runs on the host.
"""

import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
from jaxtyping import Int

from train.data import clones, sources
from train.data.sources import Part, Source

if TYPE_CHECKING:
    import datasets

FOLDER_VARIABLE = "PARA_DATA"
"""The environment variable for the folder of data sets."""

_SAVED = "dataset_dict.json"

_SHOWN = 3
"""Missing names to show; a set may have many."""


def root(data: pathlib.Path | None = None) -> pathlib.Path | None:
    """Return the folder of data sets: `data`, or `PARA_DATA`, or none."""
    if data is None and FOLDER_VARIABLE in os.environ:
        data = pathlib.Path(os.environ[FOLDER_VARIABLE])
    return data


def load(
    name: str, part: str, *, data: pathlib.Path | None = None, subset: bool = False
) -> "datasets.Dataset":
    """Load one part of a set, with only the columns in use.

    Columns have the names that `Source.columns` gives them; a question from GitHub may
    have those of `clones.WRITTEN`. Images are decoded when a row is taken, not before.

    Args:
      name: One of `sources.SOURCES`.
      part: One of the set's parts.
      data: A folder of data sets, see above. By default that of the environment
        variable `PARA_DATA`, or else the hub.
      subset: Whether fewer rows are meant to be there than the set has.

    Raises:
      OSError: if the set is not there, or the hub cannot be reached.
      ValueError: if there is no such set or part, or it does not have the columns,
        classes or number of rows that it should.
    """
    import datasets

    source = sources.find(name)
    if part not in source.parts:
        raise ValueError(
            f"'{name}' has no part '{part}', expected {', '.join(source.parts)}."
        )
    place = root(data)
    wanted = source.parts[part]
    where = f"'{name}' ({folder_of(source, place) if place else source.hub}), {part}"
    if place and (clone := _clone(source, place)):
        rows = clones.load(name, part, clone)
    else:
        read = [
            _split(source, config, split, place)
            for config in source.configs or ("",)
            for split in wanted.split.split("+")
        ]
        # Each by itself: columns that nothing reads may differ.
        rows = datasets.concatenate_datasets([_columns(source, x, where) for x in read])
    _check(source, wanted, rows, where, subset=subset)
    return rows


def folder_of(source: Source, place: pathlib.Path) -> pathlib.Path:
    """Return the folder of a set in a folder of data sets, where it is or would be."""
    return _clone(source, place) or place / source.hub


def _clone(source: Source, place: pathlib.Path) -> pathlib.Path | None:
    """Return the clone that a set is read from; None if it is the hub's folder."""
    if source.name not in clones.CLONES:
        return None
    clone = place / clones.CLONES[source.name].repo
    if not source.hub:
        return clone
    return clone if clone.is_dir() and not (place / source.hub).is_dir() else None


def _split(
    source: Source, config: str, split: str, place: pathlib.Path | None
) -> "datasets.Dataset":
    """Load one split with the library."""
    import datasets

    if place is None:
        return _download(source, config, split)
    folder = place / source.hub
    if not folder.is_dir():
        raise FileNotFoundError(
            f"Data set '{source.name}' not found: there is no folder '{folder}'. Run\n"
            f"{_ways(source, place)}\n"
            "or give no folder of data sets, to load it from the hub."
        )
    saved = folder / config
    if (saved / _SAVED).is_file():
        parts = datasets.DatasetDict.load_from_disk(str(saved))
        if split not in parts:
            raise ValueError(
                f"'{saved}' has no split '{split}', got {', '.join(map(str, parts))}."
            )
        return parts[split]
    # The counts that the README states would be checked; ours says more, and a subset
    # is sometimes meant.
    return datasets.load_dataset(
        str(folder), config or None, split=split, verification_mode="no_checks"
    )


def _download(source: Source, config: str, split: str) -> "datasets.Dataset":
    import datasets

    ways = f"""Where there is a network, run
{_ways(source, pathlib.Path("DATA"))}
bring the folder DATA here, and set {FOLDER_VARIABLE} to it."""
    if not source.hub:
        raise FileNotFoundError(f"Data set '{source.name}' is not on the hub. {ways}")
    try:
        return datasets.load_dataset(
            source.hub, config or None, split=split, revision=source.revision
        )
    except ConnectionError as error:
        raise ConnectionError(
            f"Data set '{source.name}' is not here, and the hub cannot be reached "
            f"({error}). {ways}"
        ) from error


def command(source: Source, folder: pathlib.Path) -> str:
    """Return the command to download a set to `folder`."""
    if not source.hub:
        return clones.command(source.name, folder)
    revision = f" --revision {source.revision}" if source.revision else ""
    return (
        f"hf download {source.hub} --repo-type dataset{revision} --local-dir {folder}"
    )


def _ways(source: Source, place: pathlib.Path) -> str:
    """Return the commands that bring a set to a folder of data sets."""
    ways = [command(source, place / source.hub)] if source.hub else []
    if source.name in clones.CLONES:
        clone = place / clones.CLONES[source.name].repo
        ways.append(clones.command(source.name, clone))
    return "\nor\n".join(f"    {x}" for x in ways)


def _columns(
    source: Source, rows: "datasets.Dataset", where: str
) -> "datasets.Dataset":
    """Return `rows` with only the columns in use, under our names."""
    if missing := sorted(set(source.columns.values()) - set(rows.column_names)):
        raise ValueError(
            f"{where} has the columns {sorted(rows.column_names)}, and not {missing}. "
            f"Is it {source.hub} of the hub?"
        )
    ours = {theirs: name for name, theirs in source.columns.items()}
    names = {k: v for k, v in ours.items() if k != v}
    selected = cast("datasets.Dataset", rows.select_columns(list(ours)))
    return selected.rename_columns(names)


def _check(
    source: Source, part: Part, rows: "datasets.Dataset", where: str, *, subset: bool
) -> None:
    got = len(rows)
    if subset and not 0 < got <= part.count:
        raise ValueError(
            f"{where} has {got:,} rows, expected 1 to {part.count:,} of a subset."
        )
    if not subset and got != part.count:
        raise ValueError(
            f"{where} has {got:,} rows, expected {part.count:,}. Is it incomplete? "
            "If a subset is meant, say so: subset=True."
        )
    classes = class_names(rows)
    if source.classes is not None and classes and len(classes) != source.classes:
        raise ValueError(
            f"{where} has {len(classes)} classes, expected {source.classes}."
        )


def class_names(rows: "datasets.Dataset") -> Sequence[str]:
    """Return the names of the classes in the column "label"; empty if it has none."""
    return tuple(getattr(rows.features.get("label"), "names", None) or ())


def labels(
    rows: "datasets.Dataset", name: str, *, part: str = "", hint: str
) -> tuple[Int[np.ndarray, "N"], tuple[str, ...]]:
    """Return the column "label" and the name of each class, by default its number.

    Args:
      rows: The rows of one part of a set.
      name: The set's name.
      part: The part's name, for the message.
      hint: What to check if a label is out of range, for the message.

    Raises:
      ValueError: if a label is not the number of a class.
    """
    count = sources.find(name).classes or 0
    result = np.asarray(rows["label"][:], np.int32)
    if bad := sorted({int(x) for x in result} - set(range(count))):
        where = f"'{name}', {part}," if part else f"'{name}'"
        raise ValueError(
            f"{where} has the label {bad[0]}, expected 0 to {count - 1}. {hint}"
        )
    return result, tuple(class_names(rows)) or tuple(map(str, range(count)))


def missing(source: Source, data: pathlib.Path | None = None) -> str:
    """Describe the files missing for `load`; empty if there are none.

    It looks for the files of every part, and reads no rows: how many there are is found
    out by loading them.
    """
    if (place := root(data)) is None:
        return "" if _prepared(source) else "not prepared"
    if not (there := folder_of(source, place)).is_dir():
        return f"not in {there}"
    if clone := _clone(source, place):
        names = clones.missing(source.name, clone)
    else:
        splits = [x for part in source.parts.values() for x in part.split.split("+")]
        found = {x: _found(there, x) for x in source.configs or ("",)}
        names = [
            f"{config}/{split}".strip("/")
            for config, those in found.items()
            for split in splits
            if split not in those
        ]
    if not names:
        return ""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"no files of {', '.join(names[:_SHOWN])}{more} in {there}"


def _found(folder: pathlib.Path, config: str) -> set[str]:
    """Return the splits of a configuration with files, as `_split` finds them."""
    import datasets

    saved = folder / config
    if (saved / _SAVED).is_file():
        return {x.parent.name for x in saved.glob("*/*.arrow")}
    try:
        builder = datasets.load_dataset_builder(str(folder), config or None)
    except (OSError, ValueError):  # No files, or none of this configuration.
        return set()
    return set(map(str, builder.config.data_files or ()))


def _prepared(source: Source) -> bool:
    """Test whether the library has prepared a set from the hub before."""
    import datasets

    if not source.hub:
        return False
    namespace, name = source.hub.split("/")
    folder = f"{namespace}___{datasets.naming.camelcase_to_snakecase(name)}"
    cache = pathlib.Path(datasets.config.HF_DATASETS_CACHE, folder)

    def there(config: str) -> bool:
        found = cache.glob(f"{config}/*/*/dataset_info.json")
        return any(not x.parent.name.endswith(".incomplete") for x in found)

    return all(there(x or "*") for x in source.configs or ("",))
