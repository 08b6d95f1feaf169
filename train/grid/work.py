"""The grid as resumable work, shared by several processes of one machine.

A process locks an entry of the plan and trains it on all tasks, so that its program is
compiled once. Each result is a file of its own; existing ones are kept. The lock ends
with its process, even when it is killed. Runs on the host.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import pathlib
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax

from para_jax.formats import atomic
from train import posthoc, subjects
from train.experiments import store
from train.experiments.rows import Cost, Row, Spectrum
from train.grid import cost, offspring, plan as plans, retuning, training
from train.runs import settings as runs

KINDS: dict[str, Any] = {
    "trained": Row,
    "children": Row,
    "retuned": Row,
    "spectra": Spectrum,
    "cost": Cost,
}
"""The files of results, and the types of their rows."""

_OF_PARENTS = ("trained", "children", "spectra")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folder:
    """The folder of the results, and the circumstances to record.

    Attributes:
      path: The folder.
      command: The command that makes them.
      commit: The commit of the code.
      plan: The plan of the runs.
      say: Called with a line on each result.
    """

    path: pathlib.Path
    command: str
    commit: str
    plan: plans.Plan
    say: Callable[[str], object]

    def file(self, kind: str, name: str) -> pathlib.Path:
        """Return the path of one result."""
        return self.path / kind / f"{name}.json"

    def write(
        self, kind: str, name: str, rows: Sequence[Any], settings: runs.Run
    ) -> None:
        """Write one result of runs with these settings."""
        entries = {x.name: x for x in self.plan.entries}
        used = sorted({row.config for row in rows if isinstance(row, Row)})
        configs = {x: _described(settings, entries[x].config) for x in used}
        results = store.Results(
            command=self.command,
            commit=self.commit,
            versions=versions(),
            device=device(),
            configs=configs,
            rows=rows,
        )
        store.write(self.file(kind, name), results)


def run(folder: Folder, tasks: Sequence[str], names: Sequence[str]) -> None:
    """Make each result that neither exists nor is in another process's hands.

    Args:
      folder: The folder of the results.
      tasks: Tasks of the plan.
      names: Names of its entries.
    """
    places = load(tasks, folder.plan)
    chosen = [x for x in folder.plan.entries if x.name in names]
    # Before the loop: after it, everything exists.
    there = all(_is_made(folder, task, x) for x in chosen for task in tasks)
    for entry in chosen:
        # One lock for all tasks of an entry, since these share a compiled program.
        with locked(folder.path / f"{entry.name}.lock") as ours:
            for place in places if ours else ():
                _make(folder, place, entry)
    if there:
        folder.say("All of it was there already.")


def is_complete(folder: Folder) -> bool:
    """Test whether the whole comparison has results."""
    plan = folder.plan
    return all(_is_made(folder, task, x) for x in plan.entries for task in plan.tasks)


def measure(folder: Folder, names: Sequence[str]) -> None:
    """Measure the cost of each method's steps, unless another process does."""
    (place,) = load(folder.plan.tasks[:1], folder.plan)
    for entry in folder.plan.entries:
        with locked(folder.path / f"{entry.name}.cost.lock") as ours:
            if (
                entry.name in names
                and ours
                and not folder.file("cost", entry.name).is_file()
            ):
                found = cost.measure(place, entry)
                folder.write("cost", entry.name, [found], place.settings)
                folder.say(f"{entry.name}: {1e3 * found.step_seconds:.2f} ms a step")


def load(tasks: Sequence[str], plan: plans.Plan) -> list[training.Place]:
    """Load the places of the tasks."""
    return [_place(task, plan) for task in tasks]


def _place(task: str, plan: plans.Plan) -> training.Place:
    settings = subjects.identified(plan.settings_of(task), plan.folders)
    subject = subjects.load(settings, plan.folders)
    return training.Place(task, subject, settings, plan)


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Iterator[bool]:
    """Lock a file while the context lasts; yield whether the lock is ours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    with atomic.held(path) as ours:
        yield ours


def collect(source: pathlib.Path, target: pathlib.Path) -> dict[str, int]:
    """Join the results of a grid's folder into one file a kind; return their rows.

    Raises:
      FileNotFoundError: if there are none.
    """
    counts = {}
    for kind, row in KINDS.items():
        files = sorted((source / kind).glob("*.json"))
        if not files:
            continue
        parts = [store.read(file, row) for file in files]
        rows = [x for part in parts for x in part.rows]
        configs: dict[str, Any] = {}
        for key, config in ((k, v) for part in parts for k, v in part.configs.items()):
            # Tasks may differ, in steps: then each row has its own.
            before = configs.get(key, config)
            configs[key] = {k: v for k, v in config.items() if before.get(k) == v}
        joined = store.Results(
            command=_each(part.command for part in parts),
            commit=_each(part.commit for part in parts),
            versions={
                name: _each(part.versions[name] for part in parts)
                for name in parts[0].versions
            },
            device=_each(part.device for part in parts),
            configs=configs,
            rows=rows,
        )
        store.write(target / f"{kind}.json", joined)
        counts[kind] = len(rows)
    if not counts:
        raise FileNotFoundError(f"{source} holds no results: `python -m train grid`.")
    return counts


def versions() -> dict[str, str]:
    """Return the versions of the libraries behind the numbers."""
    names = ("jax", "jaxlib", "flax", "optax", "numpy")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), **found}


def device() -> str:
    """Return the kind of JAX's device."""
    return jax.devices()[0].device_kind


def _each(values: Iterable[str]) -> str:
    """Return the distinct values, joined."""
    return ", ".join(sorted(set(values)))


def _name(task: str, entry: plans.Entry) -> str:
    return f"{entry.name}-{task}"


def _files(folder: Folder, task: str, entry: plans.Entry) -> list[pathlib.Path]:
    """Return the files with the results of one entry on one task."""
    wanted: tuple[str, ...] = ("trained",)
    if entry == plans.PARENT:
        wanted = (*_OF_PARENTS, "retuned") if folder.plan.retuned else _OF_PARENTS
    return [folder.file(kind, _name(task, entry)) for kind in wanted]


def _is_made(folder: Folder, task: str, entry: plans.Entry) -> bool:
    return all(file.is_file() for file in _files(folder, task, entry))


def _make(folder: Folder, place: training.Place, entry: plans.Entry) -> None:
    name, files = _name(place.task, entry), _files(folder, place.task, entry)
    if _is_made(folder, place.task, entry):
        _check(files[0], place.settings, entry)
        return
    for file in files:  # These belong together only if from one training.
        file.unlink(missing_ok=True)
    start = time.monotonic()
    trained = training.train(place, entry.config)
    rows = training.rows(place, trained, entry)
    folder.write("trained", name, rows, place.settings)
    tested = [x.accuracy for x in rows if x.accuracy is not None]
    # Of several ranks, the last one's accuracies are shown.
    last = tested[-len(trained.seeds) * len(place.subject.tests) :]
    folder.say(
        f"{entry.name} {place.task}: rate {trained.rate:g}, test "
        f"{sum(last) / len(last):.4f}, {time.monotonic() - start:.0f} s"
    )
    if entry == plans.PARENT:
        _make_children(folder, place, trained, name)


def _make_children(
    folder: Folder, place: training.Place, trained: training.Trained, name: str
) -> None:
    parents = offspring.parents(trained)
    spectra = [x for parent in parents for x in offspring.spectra(place, parent)]
    folder.write("spectra", name, spectra, place.settings)
    start, rows = time.monotonic(), []
    base = _statistics(place)
    for parent in parents:
        rows += offspring.rows(place, trained.rate, parent, base)
    folder.write("children", name, rows, place.settings)
    took = f"{time.monotonic() - start:.0f} s"
    folder.say(f"{len(rows)} rows of children {place.task}: {took}")
    if place.plan.retuned:
        _retune(folder, place, parents, name)


def _retune(
    folder: Folder,
    place: training.Place,
    parents: Sequence[offspring.Parent],
    name: str,
) -> None:
    start, rows = time.monotonic(), []
    for share in place.plan.more:  # Equal numbers of steps share a program.
        for rank in place.plan.retuned:
            rows += retuning.rows(place, parents, rank, share)
    folder.write("retuned", name, rows, place.settings)
    folder.say(f"retuned {place.task}: {time.monotonic() - start:.0f} s")


def _statistics(place: training.Place) -> dict[str, posthoc.Statistics]:
    """Return the statistics of the base's kernels; for BERT, of their inputs too."""
    model, base = place.subject.model, place.subject.base
    # Only BERT's blocks have a known form to propagate moments through.
    if "bert" in base:
        return posthoc.statistics(base)
    return posthoc.of_kernels(model.adapted.kernels(base))


def _check(file: pathlib.Path, settings: runs.Run, entry: plans.Entry) -> None:
    """Raise ValueError if an existing result has other settings than this run."""
    found = store.read(file, Row).configs[entry.name]
    # As JSON has them: a tuple comes back as a list.
    wanted = json.loads(json.dumps(_described(settings, entry.config)))
    for key in found:
        if found[key] != wanted.get(key):
            raise ValueError(
                f"{file} was made with {key} {found[key]}, and {wanted.get(key)} is "
                "asked for. Choose another --out, or delete it."
            )


def _described(settings: runs.Run, config: Any) -> dict[str, Any]:
    """Return the settings of a run as plain values, including the method's."""
    method = {"name": type(config).__name__} | dataclasses.asdict(config)
    values = dataclasses.asdict(settings) | {"method": method}
    for name in ("task", "seeds", "learning_rates"):
        del values[name]  # Each row has its own.
    return values
