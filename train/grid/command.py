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

    About 16 minutes on four H200, with one process for each:

        for i in 0 1 2 3; do CUDA_VISIBLE_DEVICES=$i python -m train grid & done; wait

    Args:
      out: Where results go. Processes that share it share the work.
      tasks: Of the four.
      methods: Entries of `train.grid.plan`.
      steps: Of every run.
      commit: Of this code, where git cannot say it.
    """
    known = [x.name for x in plan.ENTRIES]
    for what, got, all_ in (("task", tasks, plan.TASKS), ("method", methods, known)):
        if unknown := sorted(set(got) - set(all_)):
            sys.exit(f"Unknown {what} '{unknown[0]}', expected: {', '.join(all_)}.")
    console = rich.console.Console(soft_wrap=True, highlight=False)
    folder = work.Folder(
        path=out,
        command="python -m train grid",
        commit=commit or _commit(),
        settings=dataclasses.replace(plan.SETTINGS, steps=steps),
        say=console.print,
    )
    work.run(folder, tasks, methods)


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
