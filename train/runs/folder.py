"""The folder of one run: its settings, its records, its results. Runs on the host.

config.json      The settings and what they ran on. A folder without it is no run's.
metrics.jsonl    A line a step.
checkpoints/     The newest states, to go on from.
parent/          The trained adapters, a folder a member.
children/        The children cut from them, a folder a policy.
results.json     The results. Written last: with it, the folder is complete.
"""

import contextlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from para_jax.formats import atomic

CONFIG, METRICS, RESULTS = "config.json", "metrics.jsonl", "results.json"
CHECKPOINTS, PARENT, CHILDREN = "checkpoints", "parent", "children"

_REMEDY = "Choose another place with --out, or delete the folder."

Settings = Mapping[str, Any]
"""Plain JSON values, nested."""


@contextlib.contextmanager
def opened(folder: pathlib.Path, config: Settings) -> Iterator[None]:
    """Lock the folder for one run while the body runs, creating it if necessary.

    Args:
      folder: The folder.
      config: The settings of a new one. The part `run` is compared with an existing
        one: a run is resumed only with equal settings.

    Raises:
      OSError: if it holds something else, or another process runs in it.
      ValueError: if it holds a run with other settings, or is damaged.
    """
    # Once before the lock, for a quick answer, and again with it.
    check(folder, config["run"])
    folder.mkdir(parents=True, exist_ok=True)
    with atomic.alone(folder, _taken(folder)):
        check(folder, config["run"])
        if not (folder / CONFIG).exists():
            # Under the lock, so that two processes cannot both begin.
            write(folder / CONFIG, config)
        yield


def check(folder: pathlib.Path, run: Settings) -> None:
    """Raise unless the folder is new or belongs to a run with the settings `run`."""
    check_place(folder)
    if not (folder / CONFIG).exists():
        # A run that was killed at its very start left a hidden folder.
        names = folder.iterdir() if folder.exists() else ()
        inside = sorted(x.name for x in names if not x.name.startswith("."))
        if inside:
            raise FileExistsError(
                f"'{folder}' holds '{inside[0]}' and no {CONFIG}, so it is no run's "
                f"folder. {_REMEDY}"
            )
        return
    made, wanted = _flat(read(folder / CONFIG).get("run")), _flat(run)
    for name in sorted(made.keys() | wanted.keys()):
        old, new = made.get(name, "not there"), wanted.get(name, "not there")
        if old != new:
            raise ValueError(
                f"'{folder}' holds another run: its {name} is {json.dumps(old)}, and "
                f"{json.dumps(new)} is asked for. {_REMEDY}"
            )


def check_place(folder: pathlib.Path) -> None:
    """Raise FileExistsError if a file is in the way of the folder or a parent of it."""
    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            raise FileExistsError(
                f"'{place}' is a file, expected a folder. Choose another place with "
                "--out."
            )


def results(folder: pathlib.Path) -> list[dict[str, Any]] | None:
    """Return the rows of a complete folder, or None.

    Raises:
      ValueError: if they cannot be read.
    """
    path = folder / RESULTS
    if not path.exists():
        return None
    rows = read(path).get("rows")
    if not isinstance(rows, list) or not all(isinstance(x, dict) for x in rows):
        raise ValueError(f"'{path}' is damaged: it has no rows. {_REMEDY}")
    return rows


def read(path: pathlib.Path) -> dict[str, Any]:
    """Read a JSON file by `write`.

    Raises:
      ValueError: if it is none.
    """
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"'{path}' is damaged ({error}). {_REMEDY}") from error
    if not isinstance(value, dict):
        raise ValueError(f"'{path}' is damaged: it holds no JSON object. {_REMEDY}")
    return value


def write(path: pathlib.Path, value: Settings) -> None:
    """Write a JSON file atomically."""
    with atomic.replacing_file(path, overwrite=True) as new:
        new.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """Return the value as it reads back from JSON, with lists instead of tuples."""
    # Tuples become lists, so that settings compare equal to those read back.
    return json.loads(json.dumps(value))


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted names, such as `method.rank`."""
    if not isinstance(value, Mapping):
        return {name: value}
    below = (_flat(x, f"{name}.{key}" if name else key) for key, x in value.items())
    return {key: x for part in below for key, x in part.items()}


def _taken(folder: pathlib.Path) -> OSError:
    return FileExistsError(
        f"Another process runs in '{folder}'. Wait for it, or choose another place "
        "with --out."
    )
