"""The command `run`: trains a preset, cuts its children, shows the results.

    python -m train run PRESET [--method NAME] [--seed N] [overrides] [--out DIR]

A run's folder is runs/TASK/METHOD-HASH; the hash covers all settings. A stopped run
resumes from its newest checkpoint, and a complete one is skipped. The learning rate is
chosen on the validation part; the test part is read for that rate alone.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
import shlex
import time
from collections.abc import Sequence
from typing import Any

import jax
import rich.console

import para_jax as para
from train import subjects
from train.commands import arguments, output, progress
from train.commands.arguments import Words
from train.posthoc import children
from train.runs import fit, folder
from train.runs.settings import Run

_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def main(words: Sequence[str]) -> None:
    """Train a preset by one of the methods, and show the results.

    Raises:
      FloatingPointError: if the training diverged.
      OSError: if the folder cannot be used, or the encoder is missing.
      ValueError: if the words make no sense, or the folder is another run's.
    """
    given = arguments.parse(words)
    # The backbone's hash becomes a setting, so that resuming checks it.
    named = subjects.identified(given.run, given.folders)
    given = dataclasses.replace(given, run=named)
    # Before anything imports a backend: XLA reads its flags once.
    _make_reproducible()
    console = rich.console.Console()
    # A cut has LoRA's folder: children lie within the parent's.
    name = "lora" if given.cut else given.name
    run = settings(name, given.run)
    place = given.out or _default_place(name, given.run.task, run)
    config = {"run": run, **_circumstances(given.preset, words)}
    start = time.monotonic()
    given.run.check()
    _introduce(console, given, place)
    # Before training: a folder of another run must stop the command at once.
    _look(console, place, config)
    _make(console, given, name, place, config)
    output.say(console, f"Took {time.monotonic() - start:.0f} s. All is in {place}.")


def _make(
    console: rich.console.Console,
    given: Words,
    name: str,
    place: pathlib.Path,
    config: folder.Settings,
) -> None:
    """Train and cut what is missing, and print all results."""
    with progress.shown(console, given.run.steps) as on_steps:
        rows = fit.fit(
            given.run,
            place,
            config,
            folders=given.folders,
            every=given.checkpoint_every,
            on_steps=on_steps,
        )
    console.print(progress.table(rows, title=name))
    if given.cut:
        found = children.cut(
            given.name, given.cut, given.run, place, folders=given.folders
        )
        for child, rows in found.items():
            console.print(progress.table(rows, title=f"{given.name}, {child}"))


def _make_reproducible() -> None:
    """Make GPU results equal across processes; call before JAX looks for devices.

    XLA otherwise times its algorithms anew in each, and takes the fastest.
    """
    given = os.environ.get("XLA_FLAGS", "")
    # A user's own choice of the flag stays.
    if "xla_gpu_deterministic_ops" not in given:
        os.environ["XLA_FLAGS"] = f"{given} --xla_gpu_deterministic_ops=true".strip()


def _look(
    console: rich.console.Console, place: pathlib.Path, config: folder.Settings
) -> None:
    """Print the state of the run's folder, and changes in its circumstances."""
    folder.check(place, config["run"])
    if folder.results(place) is not None:
        output.say(console, "It is complete already.")
    elif (place / folder.CONFIG).exists():
        made = folder.read(place / folder.CONFIG)
        for name in ("device", "versions"):
            if made.get(name) != config[name]:
                output.say(
                    console,
                    f"It was begun with {name} {made.get(name)}, and goes on with "
                    f"{config[name]}: the last digits may differ.",
                )


def settings(name: str, run: Run) -> dict[str, Any]:
    """Return all settings of a run as plain JSON values, with its method's name."""
    values: dict[str, Any] = {**dataclasses.asdict(run)}
    values["method"] = {"name": name, **values["method"]}
    if not run.model:
        # As in the folders of before there was a choice, which keep their names.
        del values["model"]
    return folder.plain(values)


def _default_place(name: str, task: str, run: folder.Settings) -> pathlib.Path:
    # Sorted keys, so that equal settings give equal names.
    digest = hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()
    return pathlib.Path("runs", task, f"{name}-{digest[:8]}")


def _circumstances(preset: str, words: Sequence[str]) -> dict[str, Any]:
    """Return circumstances to record that do not distinguish runs."""
    device = jax.devices()[0]
    versions = {x: importlib.metadata.version(x) for x in _LIBRARIES}
    return {
        "preset": preset,
        "command": shlex.join(["python", "-m", "train", "run", *words]),
        "device": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "versions": {"para_jax": para.__version__, **versions},
    }


def _introduce(
    console: rich.console.Console, given: Words, place: pathlib.Path
) -> None:
    """Print the plan of a run."""
    run = given.run
    # The method's note, such as periods that were shrunk, is known only here.
    method = run.method.method(run.steps)
    seeds = ", ".join(map(str, run.seeds))
    rates = ", ".join(f"{x:g}" for x in run.learning_rates)
    lines = [
        f"{given.name} on {run.task}: {run.method}",
        f"{run.steps} steps of {run.batch} examples, seeds {seeds}, rates {rates}",
        f"Folder {place}",
    ]
    for line in [*lines, *([method.note] if method.note else [])]:
        output.say(console, line)
