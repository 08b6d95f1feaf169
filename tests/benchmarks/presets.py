"""Measure the time and memory of the paper's presets at their models' true shapes.

    python -m tests.benchmarks.presets --folder DIR --json rows.jsonl
    python -m tests.benchmarks.presets --tiny --folder DIR --json rows.jsonl
    python -m tests.benchmarks.presets --from rows.jsonl

The models have random weights and are saved by transformers; the data sets are a few
random rows in the hub's own format. Everything else is the preset's: its loading, its
program, its settings except the number of steps, and its evaluation. The results show
speed and memory, not accuracy.

Every preset is a process of its own, so that its memory is measured separately.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

# Set before JAX is imported: plans for an 80 GB GPU may need most of it.
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")

import jax
import numpy as np

from tests.benchmarks import preset_models
from train import subjects
from train.data.batch import NO_LABEL
from train.grid import work
from train.grid.plan import Plan
from train.presets import PLANS
from train.presets.paper import tiny
from train.runs import outcome, settings as runs
from train.subjects import Folders
from train.subjects.subject import Subject

PRESETS = ("paper/glue", "paper/vision", "paper/commonsense", "paper/math")
METHODS = ("lora-16", "dora", "adalora")
CHUNK = 5
ROWS = {"train": 1000, "validation": 64, "test": 64}
"""Of each split."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One method of one preset.

    Attributes:
      preset: Its name.
      task: The task, the preset's first.
      method: The name of the entry.
      device: The device's name.
      versions: The versions of the libraries.
      members: The number of members trained side by side: the learning rates.
      load: Seconds to load the model and the rows.
      first: Seconds until the first steps were done, including compilation.
      step: Median seconds of a step of all members.
      peak: The most bytes in use at a time until then.
      hours: Of all trainings of the preset, if each method took as long.
      evaluate: Seconds to evaluate all members, including compilation, if it finished.
      examples: The number of evaluated examples.
      reason: Why there are no numbers.
    """

    preset: str
    task: str
    method: str
    device: str = ""
    versions: str = ""
    members: int = 0
    load: float = 0
    first: float = 0
    step: float = 0
    peak: int | None = None
    hours: float = 0
    evaluate: float | None = None
    examples: int = 0
    reason: str = ""


def measure(preset: str, method: str, plan: Plan, steps: int) -> Iterator[Row]:
    """Train one method on the first task and yield its row, then evaluate it too."""
    task = plan.tasks[0]
    (config,) = (x.config for x in plan.entries if x.name == method)
    settings = dataclasses.replace(plan.settings_of(task), steps=steps)
    settings = plan.search(task, config, settings)
    begin = time.perf_counter()
    subject = subjects.load(settings, plan.folders)
    given = runs.inputs(settings, subject.model, subject.base, subject.data)
    jax.block_until_ready(given.base)
    loaded = time.perf_counter() - begin
    learners, times = _trained(given)
    step, members = statistics.median(times[1:]) / CHUNK, len(settings.members)
    row = Row(
        preset=preset,
        task=task,
        method=method,
        device=jax.devices()[0].device_kind,
        versions=", ".join(f"{k} {v}" for k, v in work.versions().items()),
        members=members,
        load=loaded,
        first=times[0],
        step=step,
        peak=_peak(),
        hours=hours(plan, step / members),
    )
    yield row
    begin = time.perf_counter()
    trained = outcome.trained(given, learners, [None] * members, subject.peft)
    outcome.rows(trained, subject)
    seconds, examples = time.perf_counter() - begin, _examples(subject)
    yield dataclasses.replace(row, evaluate=seconds, examples=examples, peak=_peak())


def _examples(subject: Subject) -> int:
    """Return the number of evaluation examples: pictures, sentences or questions."""
    parts = (subject.validation, *subject.tests.values())
    labels = (np.asarray(x.labels) for part in parts for x in part.batches)
    return sum(int((x != NO_LABEL).reshape(len(x), -1).any(1).sum()) for x in labels)


def _peak() -> int | None:
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def _trained(given: runs.Inputs) -> tuple[Any, list[float]]:
    """Return the members, and the seconds of each group of steps."""
    times, begin = [], time.perf_counter()
    learners = runs.begin(given)
    for progress in runs.advance(given, learners, chunk=CHUNK):
        learners = jax.block_until_ready(progress.learners)
        times.append(time.perf_counter() - begin)
        begin = time.perf_counter()
    return learners, times


def hours(plan: Plan, seconds: float) -> float:
    """Return the hours of all trainings, from the seconds of a member's step."""
    members = len(plan.rates) * len(plan.search_seeds) + len(plan.other_seeds)
    steps = sum(plan.settings_of(task).steps for task in plan.tasks)
    return len(plan.entries) * members * steps * seconds / 3600


def markdown(rows: Iterable[Row]) -> str:
    """Format the rows as a table."""
    head = ("preset", "method", "members", "load s", "first steps s", "step ms")
    head = (*head, "peak GB", "trainings h", "evaluation s")
    lines = [f"| {' | '.join(head)} |", f"| {' | '.join(['---'] * len(head))} |"]
    for x in rows:
        cells = [x.preset, x.method, x.reason]
        if not x.reason:
            peak = f"{x.peak / 1e9:.1f}" if x.peak else ""
            cells = [*cells[:2], x.members, f"{x.load:.0f}", f"{x.first:.0f}"]
            evaluate = "" if x.evaluate is None else f"{x.evaluate:.0f}"
            cells += [f"{1e3 * x.step:.0f}", peak, f"{x.hours:.1f}", evaluate]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def load(file: pathlib.Path) -> list[Row]:
    """Read the last row of each method in a file; none if there is no file."""
    rows = [Row(**json.loads(x)) for x in _lines(file)]
    return list({(x.preset, x.method): x for x in rows}.values())


def _all(given: argparse.Namespace) -> None:
    """Run each preset's methods in processes, until the time is used up."""
    end = time.monotonic() + given.limit_total
    words = ["--folder", str(given.folder), *(["--tiny"] if given.tiny else [])]
    words += ["--steps", str(given.steps), "--json", str(given.json)]
    subprocess.run([*_COMMAND, *words, "--make"], check=True)
    for preset in given.presets:
        for method in given.methods:
            left = end - time.monotonic()
            if left < given.least:
                return
            before = len(_lines(given.json))
            part = ["--one", preset, method]
            try:
                done = subprocess.run(
                    [*_COMMAND, *words, *part], timeout=left, check=False
                ).returncode
            except subprocess.TimeoutExpired:
                done = f"cut off after {left:.0f} s"
            if len(_lines(given.json)) == before:
                row = Row(
                    preset=preset, task="", method=method, reason=f"ended: {done}"
                )
                _append(given.json, row)
            print(load(given.json)[-1], flush=True)


def _lines(file: pathlib.Path) -> list[str]:
    return file.read_text().splitlines() if file.is_file() else []


def _append(file: pathlib.Path, row: Row) -> None:
    with file.open("a") as lines:
        lines.write(json.dumps(dataclasses.asdict(row)) + "\n")


_COMMAND = (sys.executable, "-m", "tests.benchmarks.presets")


def _plan(preset: str, given: argparse.Namespace) -> Plan:
    """Return the preset's plan, on models and rows that are created if missing."""
    if given.tiny:
        return tiny.shrunk(PLANS[preset], given.folder)
    weights, data = given.folder / "weights", given.folder / "data"
    if not data.exists():
        preset_models.make(weights)
        tiny.write_data(data, ROWS)
    folders = Folders(weights=weights, data=data, subset=True)
    return dataclasses.replace(PLANS[preset], folders=folders)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=pathlib.Path, help="for models and rows")
    parser.add_argument("--json", type=pathlib.Path, default="presets.jsonl")
    parser.add_argument("--tiny", action="store_true", help="a look, on CPU")
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=PRESETS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS[:1])
    parser.add_argument("--steps", type=int, default=6 * CHUNK)
    parser.add_argument("--limit-total", type=float, default=400, help="seconds")
    parser.add_argument("--least", type=float, default=40, help="seconds for a method")
    parser.add_argument("--make", action="store_true", help="models and rows alone")
    parser.add_argument("--one", nargs=2, help="this preset and method, in here")
    parser.add_argument("--from", dest="source", type=pathlib.Path, help="saved rows")
    return parser


def main(words: Sequence[str] | None = None) -> None:
    given = _parser().parse_args(words)
    if given.make:
        _plan(PRESETS[0], given)
        return None
    if given.one:
        preset, method = given.one
        for row in measure(preset, method, _plan(preset, given), given.steps):
            _append(given.json, row)
        return None
    if not given.source:
        _all(given)
    print(markdown(load(given.source or given.json)))
    return None


if __name__ == "__main__":
    main()
