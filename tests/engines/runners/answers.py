"""Load adapters one by one, for runners that generate no tokens."""

import json
import os
import pathlib
import sys
from collections.abc import Callable

import numpy as np
import transformers


def checkout() -> pathlib.Path:
    """Return the folder of the engine's only repository."""
    (path,) = json.loads(os.environ["ENGINES_CHECKOUTS"]).values()
    return pathlib.Path(path)


def commit() -> str:
    """Return the abbreviated commit of the engine's only repository."""
    return checkout().name.rpartition("-")[2][:7]


def write(
    loaded: Callable[..., dict[str, np.ndarray]], version: str, **facts: object
) -> None:
    """Load all adapters of the job, and write the updates in the engine's memory.

    Args:
      loaded: Takes an adapter's folder, the model's configuration and the largest rank;
        returns `s B A` of each module, `[out, in]`. Its exceptions are kept as the
        engine's refusal.
      version: The engine's.
      **facts: Further facts to report.
    """
    job = json.loads(pathlib.Path(sys.argv[1]).read_text())
    out, refused, arrays = pathlib.Path(job["out"]), {}, {}
    config = transformers.AutoConfig.from_pretrained(job["model"])
    for label, path in job["adapters"].items():
        try:
            found = loaded(path, config, job["max_lora_rank"])
        except Exception as error:  # What it says is what is wanted.
            refused[label] = f"{type(error).__name__}: {error}"
            continue
        arrays |= {f"{label}/{name}": x for name, x in found.items()}
    np.savez(out / "arrays.npz", **arrays)
    facts |= {"version": version, "refused": refused}
    (out / "facts.json").write_text(json.dumps(facts))
