"""Records of the steps of a run: lines of JSON, one a step. Runs on the host.

Each line has the step and the examples per second, and the loss, the accuracy, the norm
of the gradient and the learning rate of every member. Values that are not finite are
null. The first steps after a start include compilation.
"""

import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from train.runs.trainer import Metrics


def lines(
    metrics: Metrics,
    rates: Float[np.ndarray, "M S"],
    *,
    first: int,
    examples_per_second: float,
) -> list[dict[str, Any]]:
    """Return the lines of consecutive steps.

    Args:
      metrics: `[M, S]` each.
      rates: The learning rates.
      first: The number of the first step, from 1.
      examples_per_second: Over all members.
    """
    columns = {**metrics._asdict(), "learning_rate": rates}
    steps = rates.shape[1]
    return [
        {
            "step": first + i,
            **{name: _finite(x[:, i]) for name, x in columns.items()},
            "examples_per_second": round(examples_per_second, 1),
        }
        for i in range(steps)
    ]


def append(path: pathlib.Path, new: Sequence[dict[str, Any]]) -> None:
    """Append lines to a file, and flush them to disk."""
    with path.open("ab") as file:
        # One write: a crash leaves whole lines, and at most one that is torn.
        file.write(b"".join(json.dumps(x).encode() + b"\n" for x in new))
        file.flush()
        # On disk before the checkpoint, whose step the lines must reach.
        os.fsync(file.fileno())


def cut_back(path: pathlib.Path, steps: int) -> list[dict[str, Any]]:
    """Cut a file back to the steps up to `steps`; return their lines.

    Raises:
      ValueError: if one of these is missing or damaged.
    """
    text = path.read_bytes() if path.exists() else b""
    # Lines past the checkpoint belong to steps that are computed again.
    kept = text.splitlines(keepends=True)[:steps]
    found = [_parsed(path, number, line) for number, line in enumerate(kept, 1)]
    if len(found) < steps:
        raise ValueError(
            f"'{path}' ends at step {len(found)}, and the checkpoint is of step "
            f"{steps}. Delete the folder, or choose another place with --out."
        )
    if path.exists():
        os.truncate(path, sum(map(len, kept)))
    return found


def diverged(found: Sequence[dict[str, Any]], members: int) -> list[int | None]:
    """Return the first step of each member with a non-finite loss or norm."""
    result: list[int | None] = [None] * members
    for line in found:
        for member in range(members):
            values = line["loss"][member], line["norm"][member]
            if result[member] is None and None in values:
                result[member] = line["step"]
    return result


def _finite(values: Float[np.ndarray, "M"]) -> list[float | None]:
    # JSON has no NaN.
    return [float(x) if np.isfinite(x) else None for x in values]


def _parsed(path: pathlib.Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
        # A torn last line has no line break.
        if line.endswith(b"\n") and found["step"] == number:
            return found
    except (KeyError, TypeError, ValueError):
        pass
    raise ValueError(
        f"'{path}' is damaged: line {number} is not that of step {number}. Delete the "
        "folder, or choose another place with --out."
    )
