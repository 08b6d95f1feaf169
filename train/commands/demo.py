"""The demo: two real adapters, smaller ones cut from them, and their accuracies.

    python -m train demo

Both parents have rank 16. PEFT trained the `movie` adapter, for three-way sentiment of
film reviews and the sentence encoder all-MiniLM-L6-v2; `python -m train run armenian`
trained the `armenian` adapter, for 76 letters and the small vision encoder that ships.
The demo takes less than three minutes on two CPU cores, mostly to classify 2,170
sentences eight times. Expect these accuracies, of the parent and of its children:

              parent   gamma 0.25   gamma 0.0625
    movie      81.6 %       81.5 %         79.8 %
    armenian   86.8 %       86.8 %         84.0 %
"""

import os
import pathlib
import time
from collections.abc import Sequence

import rich.console
import rich.progress

import para_jax as para
from para_jax import plot
from train.commands import output, summary
from train.subjects import tasks

POLICIES = (
    para.Gamma(0.5),
    para.Gamma(0.25),
    para.Gamma(0.125),
    para.Gamma(0.0625),
    para.Epsilon(0.99),
    para.Epsilon(0.9),
    para.Gamma(0.0625, scope="local"),
)
"""The children. The last cuts every module alike, the paper's ablation."""

DRAWN = para.Gamma(0.25)
"""The child with its ranks drawn: the policy of the paper's Figure 1."""


def save(children: Sequence[para.Child], out: pathlib.Path) -> list[pathlib.Path]:
    """Write each child in both formats; return the folders by child."""
    folders = [out / child.report.policy.replace(" ", "-") for child in children]
    for child, folder in zip(children, folders, strict=True):
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("peft", "orbax"):
            para.save(child, folder / name, format=name, overwrite=True)
    return folders


def draw(children: Sequence[para.Child], out: pathlib.Path) -> None:
    """Write the two pictures: the ranks of one child, and the thresholds of all."""
    reports = {child.report.policy: child.report for child in children}
    drawn = reports[DRAWN.name]
    thresholds = {
        x.name: reports[x.name].threshold for x in POLICIES if x.scope == "global"
    }
    plot.rank_map(drawn).savefig(out / "ranks.png")
    plot.spectrum(drawn, thresholds).savefig(out / "spectrum.png")


def main(
    *,
    out: pathlib.Path = pathlib.Path("out/demo"),
    limit: int | None = None,
    folder: pathlib.Path | None = None,
) -> None:
    """Cut two real adapters into smaller ones, and evaluate all of them.

    Args:
      out: The folder of the adapters and pictures; earlier ones are replaced.
      limit: The number of sentences, and of pictures, to evaluate on. By default
        all 2,170 and all 608.
      folder: The files of all-MiniLM-L6-v2. By default those of the installed package.
    """
    if limit is not None and limit < 1:
        raise SystemExit(f"--limit is {limit}, expected at least 1.")
    start, console = time.monotonic(), rich.console.Console()
    with console.status("Loading two models"):  # Before any output: one may be missing.
        shown = tasks.movie(limit=limit, folder=folder), tasks.armenian(limit=limit)
    for task in shown:
        _show(task, out / task.name, console)
    console.print(f"Took {time.monotonic() - start:.0f} s.")


def _show(task: tasks.Task, out: pathlib.Path, console: rich.console.Console) -> None:
    """Cut the adapter of one task, evaluate parent and children, and print all."""
    with console.status(f"{task.name}: cutting {len(POLICIES)} children of one parent"):
        parent = para.load(task.parent)
        children = para.family(parent, POLICIES)
        folders = save(children, out)
        draw(children, out)
    accuracies = _evaluate_all(task, parent, folders, console)
    rows = [_parent_row(task, children[0].report, accuracies[0])]
    rows += map(_row, children, folders, accuracies[1:])
    title = f"{task.name}: {task.examples:,} test {task.noun}"
    console.print(summary.table(rows, title=title))
    _print_places(console, out)


def _evaluate_all(
    task: tasks.Task,
    parent: para.Checkpoint,
    folders: Sequence[pathlib.Path],
    console: rich.console.Console,
) -> list[float]:
    """Evaluate the parent and the children, loaded back from disk."""
    # Read back from disk, so that the table is of the files.
    adapters = [parent, *(para.load(folder / "peft") for folder in folders)]
    with rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.TaskProgressColumn(),
        rich.progress.TextColumn("time left"),
        rich.progress.TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as progress:
        bar = progress.add_task("", total=len(adapters) * task.examples)
        result = []
        for number, adapter in enumerate(adapters, 1):
            what = f"{task.name}: adapter {number} of {len(adapters)}"
            progress.update(bar, description=what)
            # Padded to the parent, so that all adapters share one program.
            right = tasks.accuracy(
                task, adapter, like=parent, on_batch=lambda n: progress.advance(bar, n)
            )
            result.append(right)
    return result


def _parent_row(task: tasks.Task, report: para.Report, accuracy: float) -> summary.Row:
    return summary.Row(
        name="parent",
        average_rank=report.total_rank / len(report.modules),
        max_rank=max(x.rank for x in report.modules),
        parameters=report.parent_parameters,
        size=_size(task.parent),
        energy=1.0,
        accuracy=accuracy,
    )


def _row(child: para.Child, folder: pathlib.Path, accuracy: float) -> summary.Row:
    return summary.Row(
        name=child.report.policy,
        average_rank=child.report.average_rank,
        max_rank=child.report.max_rank,
        parameters=child.report.parameters,
        size=_size(folder / "peft"),
        energy=child.report.energy,
        accuracy=accuracy,
    )


def _size(folder: pathlib.Path) -> int:
    return (folder / "adapter_model.safetensors").stat().st_size


def _print_places(console: rich.console.Console, out: pathlib.Path) -> None:
    where = os.path.relpath(out)
    lines = (
        f"Adapters  {where}/*/peft and {where}/*/orbax",
        f"Pictures  {where}/ranks.png and {where}/spectrum.png",
    )
    for line in lines:  # A path is neither marked up nor broken over lines.
        output.say(console, line)
    console.print()
