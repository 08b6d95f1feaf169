"""Results of a preset, drawn at random: the rows asked for by its plan."""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tests.train.experiments import synthetic
from train.experiments import store
from train.experiments.rows import SETS, Row, Spectrum
from train.grid.plan import Entry, Plan
from train.methods import lora
from train.presets import PLANS

MODULES = 6


class Draw:
    """Rows of one generator."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.seeds = (*plan.search_seeds, *plan.other_seeds)
        self.random = np.random.default_rng(7)

    def row(self, task: str, method: str, policy: str, seed: int, **more: Any) -> Row:
        values = {
            "task": task,
            "method": method,
            "policy": policy,
            "seed": seed,
            "rank_total": int(self.random.integers(1, 16 * MODULES)),
            "modules": MODULES,
            "params": 1000,
            "accuracy": self.random.uniform(0.6, 0.7),
            "validation": 0.7,
            "learning_rate": self.plan.rates[0],
            "config": "lora-16",
            "steps": 3000,
        }
        return Row(**values | more)

    def tested(self, task: str, *what: str, **more: Any) -> Iterator[Row]:
        """Every seed on every set of a task."""
        for name in SETS.get(task, (task,)):
            for seed in self.seeds:
                yield self.row(name, *what, seed, **more)


def trained(draw: Draw, names: Sequence[str]) -> Iterator[Row]:
    for entry in draw.plan.entries:
        if entry.name in names:
            for task in draw.plan.tasks:
                for policy in _policies(entry):
                    yield from draw.tested(
                        task, entry.method, policy, config=entry.name
                    )
                lost = {"accuracy": None, "validation": 0.6, "config": entry.name}
                policy = "rank 4" if entry.ranks else _policies(entry)[0]
                for rate in draw.plan.rates[1:]:
                    for seed in draw.plan.search_seeds:
                        yield draw.row(
                            task, entry.method, policy, seed, learning_rate=rate, **lost
                        )


def _policies(entry: Entry) -> list[str]:
    if isinstance(entry.config, lora.Lora):
        return [f"rank {entry.config.rank}"]
    if entry.ranks:
        return [f"rank {x}" for x in entry.ranks]
    return ["rank 4.8" if entry.method == "sora" else "rank 4"]


def children(draw: Draw) -> Iterator[Row]:
    plan = draw.plan
    pruners = ["para" if x == "sigma" else x for x in plan.pruners]
    models = [(x, f"rank {y:g}") for x in (*pruners, "local") for y in plan.cuts]
    models += [(x, f"params {y:g}") for x in pruners for y in plan.shares]
    models += [("para", f"epsilon {x:g}") for x in plan.energies]
    models += [("drop-top", f"drop {x}") for x in plan.dropped]
    for task in plan.tasks:
        for model in models:
            yield from draw.tested(task, *model)


def spectra(draw: Draw) -> Iterator[Spectrum]:
    for task in draw.plan.tasks:
        for seed in draw.seeds:
            for layer in range(MODULES):
                values = np.sort(draw.random.lognormal(sigma=0.5, size=16))[::-1]
                yield Spectrum(
                    task=task,
                    seed=seed,
                    module=f"layers/{layer}/attention/query",
                    m=8,
                    n=6,
                    values=tuple(values.tolist()),
                )


def write(folder: pathlib.Path, preset: str, names: Sequence[str] = ()) -> None:
    """Write the files of `collect`, for some entries of a preset or all of them."""
    draw = Draw(PLANS[preset])
    found = {
        "trained": trained(draw, names or [x.name for x in draw.plan.entries]),
        "children": children(draw),
        "spectra": spectra(draw),
    }
    for name, made in found.items():
        rows = list(made)
        configs = {x.config for x in rows if isinstance(x, Row)}
        results = synthetic.results(rows, sorted(configs))
        command = f"python -m train grid --preset {preset}"
        results = dataclasses.replace(results, command=command)
        store.write(folder / f"{name}.json", results)
