"""`python -m train grid` and `python -m train collect`: all runs, and their results."""

import dataclasses
import pathlib
import subprocess
from collections.abc import Sequence

import rich.console

from train import presets, subjects
from train.commands import arguments, tables
from train.experiments import results
from train.grid import plan as plans, work
from train.presets.paper import tiny as tinies
from train.runs import folder

_SENTIMENT = "sentiment"


def grid(
    *,
    preset: str = _SENTIMENT,
    out: pathlib.Path | None = None,
    tasks: tuple[str, ...] = (),
    methods: tuple[str, ...] = (),
    steps: int | None = None,
    rates: tuple[float, ...] = (),
    devices: int = 1,
    model: str = "",
    weights: pathlib.Path | None = None,
    data: pathlib.Path | None = None,
    tiny: bool = False,
    commit: str = "",
) -> None:
    """Make all results of a comparison; finished ones are kept.

    When the last of them is there, it joins them in `results` in the folder, prints all
    tables, and draws all figures into `figures`.

    The one of sentiment takes about 20 minutes on four H200, with one process for each:

        for i in 0 1 2 3; do CUDA_VISIBLE_DEVICES=$i python -m train grid & done; wait

    Args:
      preset: The comparison: sentiment, vision, problems, choose, glue, paper/vision,
        paper/glue, paper/commonsense, paper/math.
      out: The folder of the results, by default in runs/. Processes that share it
        share the work.
      tasks: Some of the comparison's tasks, instead of all.
      methods: Some of the comparison's entries, instead of all; see `train.grid.plan`.
      steps: The number of steps of every run.
      rates: The only learning rates to try; 5e-5 is the paper's.
      devices: The number of devices to divide a batch over.
      model: Another model for the paper's tasks: its repository on the hub.
      weights: A folder of models, instead of the hub.
      data: A folder of data sets, instead of the hub.
      tiny: Use random tiny models and data, and a few steps, to see that all works.
      commit: The commit of this code, if git is not at hand.
    """
    out = _place(preset, out)
    plan = _plan(preset, out, model, weights, data, tiny=tiny)
    if steps is not None:
        settings = dataclasses.replace(plan.settings, steps=steps)
        # `steps` of the user's applies to every task: the plan's own go.
        plan = dataclasses.replace(plan, settings=settings, steps={})
    if rates:
        # Rates that were given are the whole search, without an extension.
        plan = dataclasses.replace(plan, rates=rates, outer=())
    settings = dataclasses.replace(plan.settings, devices=devices)
    plan = dataclasses.replace(plan, settings=settings)
    # All words are checked before any training starts.
    for task in tasks:
        arguments.known("task", task, plan.tasks)
    names = _names(plan, methods)
    place = _folder(plan, out, commit, f"grid{_words(preset, model, tiny=tiny)}")
    work.run(place, tasks or plan.tasks, names)
    _show(place)


def cost(
    *,
    preset: str = _SENTIMENT,
    out: pathlib.Path | None = None,
    methods: tuple[str, ...] = (),
    model: str = "",
    weights: pathlib.Path | None = None,
    data: pathlib.Path | None = None,
    tiny: bool = False,
    commit: str = "",
) -> None:
    """Measure the time and the memory of a training step of each method.

    Args:
      preset: The comparison, as for `grid`; the step is one on its first task.
      out: The folder of the results, by default that of `grid`. Processes that share
        it share the work.
      methods: Some of the comparison's entries, instead of all; see `train.grid.plan`.
      model: Another model, as for `grid`.
      weights: A folder of models, instead of the hub.
      data: A folder of data sets, instead of the hub.
      tiny: Use random tiny models and data, to see that all works.
      commit: The commit of this code, if git is not at hand.
    """
    out = _place(preset, out)
    plan = _plan(preset, out, model, weights, data, tiny=tiny)
    place = _folder(plan, out, commit, f"cost{_words(preset, model, tiny=tiny)}")
    work.measure(place, _names(plan, methods))


def collect(
    *, source: pathlib.Path = pathlib.Path("runs/grid"), out: pathlib.Path | None = None
) -> None:
    """Join the results of `grid` into the files for tables and figures.

    Args:
      source: The folder of `grid`.
      out: The folder of the joined files; by default `train/results`.
    """
    target = results.FOLDER if out is None else out
    folder.check_place(target)
    counts = work.collect(source, target)
    for kind, count in counts.items():
        print(f"{kind}: {count:,} rows")


def _show(place: work.Folder) -> None:
    """Join and show the results of a complete comparison."""
    if not work.is_complete(place):
        place.say(
            "The comparison is not complete. `python -m train collect --source "
            f"{place.path} --out DIR` joins what is there."
            # Status 0: several processes may share the work, and each ends here.
        )
        return
    joined = place.path / "results"
    collect(source=place.path, out=joined)
    tables.table("all", folder=joined)
    tables.figure("all", folder=joined, out=place.path / "figures")


def _plan(
    preset: str,
    out: pathlib.Path,
    model: str,
    weights: pathlib.Path | None,
    data: pathlib.Path | None,
    *,
    tiny: bool,
) -> plans.Plan:
    plan = presets.PLANS[arguments.known("preset", preset, presets.PLANS)]
    if model:
        settings = dataclasses.replace(plan.settings, model=model)
        plan = dataclasses.replace(plan, settings=settings)
    for task in plan.tasks:
        subjects.check_model(plan.settings_of(task))
    if tiny and (weights or data):
        raise ValueError(
            "--tiny makes models and data of its own, so it goes with neither "
            "--weights nor --data: leave these out, or --tiny."
        )
    if tiny:
        return tinies.shrunk(plan, out)
    folders = dataclasses.replace(plan.folders, weights=weights, data=data)
    return dataclasses.replace(plan, folders=folders)


def _words(preset: str, model: str, *, tiny: bool) -> str:
    """Return a command's arguments, to be shown with its results."""
    words = "" if preset == _SENTIMENT else f" --preset {preset}"
    words += f" --model {model}" if model else ""
    return f"{words}{' --tiny' * tiny}"


def _place(preset: str, out: pathlib.Path | None) -> pathlib.Path:
    """Return the folder of the results. It must not be a file."""
    if out is None:
        out = pathlib.Path("runs", "grid" if preset == _SENTIMENT else preset)
    folder.check_place(out)
    return out


def _names(plan: plans.Plan, methods: Sequence[str]) -> Sequence[str]:
    known = [x.name for x in plan.entries]
    for name in methods:
        arguments.known("method", name, known)
    return methods or known


def _folder(
    plan: plans.Plan, out: pathlib.Path, commit: str, command: str
) -> work.Folder:
    # Lines stay whole, so that logs can be searched.
    console = rich.console.Console(soft_wrap=True, highlight=False)
    return work.Folder(
        path=out,
        command=f"python -m train {command}",
        commit=commit or _commit(),
        plan=plan,
        say=console.print,
    )


def _commit() -> str:
    try:
        asked = subprocess.run(
            # `--dirty`: numbers of an uncommitted state must say so.
            ["git", "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            check=True,
            cwd=pathlib.Path(__file__).parent,
        )
    # Git, or the checkout, may be missing.
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return asked.stdout.strip()
