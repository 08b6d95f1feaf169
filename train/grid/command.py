"""`python -m train grid` and `python -m train collect`: all runs, and their results."""

import dataclasses
import pathlib
import subprocess
import sys

import rich.console

from train.experiments import results
from train.grid import plan, work


def grid(
    *,
    out: pathlib.Path = pathlib.Path("runs/grid"),
    tasks: tuple[str, ...] = plan.TASKS,
    methods: tuple[str, ...] = tuple(x.name for x in plan.ENTRIES),
    steps: int = plan.SETTINGS.steps,
    commit: str = "",
) -> None:
    """Makes all results of the comparison; what is there already is kept.

    About 20 minutes on four H200, with one process for each:

        for i in 0 1 2 3; do CUDA_VISIBLE_DEVICES=$i python -m train grid & done; wait

    Args:
      out: Where results go. Processes that share it share the work.
      tasks: Of the four.
      methods: Entries of `train.grid.plan`.
      steps: Of every run.
      commit: Of this code, where git cannot say it.
    """
    for task in tasks:
        if task not in plan.TASKS:
            sys.exit(f"Unknown task '{task}', expected: {', '.join(plan.TASKS)}.")
    work.run(_folder(out, methods, steps, commit), tasks, methods)


def cost(
    *,
    out: pathlib.Path = pathlib.Path("runs/grid"),
    methods: tuple[str, ...] = tuple(x.name for x in plan.ENTRIES),
    commit: str = "",
) -> None:
    """Measures the time and the memory of a training step of each method.

    Args:
      out: Where results go. Processes that share it share the work.
      methods: Entries of `train.grid.plan`.
      commit: Of this code, where git cannot say it.
    """
    folder = _folder(out, methods, plan.SETTINGS.steps, commit, command="cost")
    work.measure(folder, methods)


def collect(
    *, source: pathlib.Path = pathlib.Path("runs/grid"), out: pathlib.Path | None = None
) -> None:
    """Joins the results of `grid` into the files that tables and figures are made of.

    Args:
      source: What `grid` wrote.
      out: Where the joined files go; by default `train/results`.
    """
    counts = work.collect(source, results.FOLDER if out is None else out)
    for kind, count in counts.items():
        print(f"{kind}: {count:,} rows")


def _folder(
    out: pathlib.Path,
    methods: tuple[str, ...],
    steps: int,
    commit: str,
    command: str = "grid",
) -> work.Folder:
    known = [x.name for x in plan.ENTRIES]
    for name in methods:
        if name not in known:
            sys.exit(f"Unknown method '{name}', expected: {', '.join(known)}.")
    console = rich.console.Console(soft_wrap=True, highlight=False)
    return work.Folder(
        path=out,
        command=f"python -m train {command}",
        commit=commit or _commit(),
        settings=dataclasses.replace(plan.SETTINGS, steps=steps),
        say=console.print,
    )


def _commit() -> str:
    try:
        asked = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            check=True,
            cwd=pathlib.Path(__file__).parent,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return asked.stdout.strip()
