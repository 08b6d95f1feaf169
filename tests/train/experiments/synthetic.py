"""Results such as the experiments give, drawn at random: every file, every method."""

import pathlib
from collections.abc import Iterator

import numpy as np

from train.data.sentiment import TASKS
from train.experiments import store
from train.experiments.rows import Cost, Row, Spectrum

SEEDS = range(3)
RATES = (0.0002, 0.0005)
CHOSEN = 0.0005
RANKS = (8.0, 4.0, 2.0, 1.0, 0.5)
SCORES = (
    "fisher",
    "fisher-batch",
    "sensitivity",
    "per-parameter",
    "by-frobenius",
    "by-spectral",
    "by-update",
    "at-inputs",
    "at-embeddings",
    "whitened",
    "whitened-diagonal",
)
AT_FOUR = (
    "rslora",
    "lora+",
    "pissa",
    "milora",
    "adalora",
    "dora",
    "gora",
)
KERNELS = {
    "attention/self/query": (384, 384),
    "attention/self/key": (384, 384),
    "attention/self/value": (384, 384),
    "attention/output/dense": (384, 384),
    "intermediate/dense": (384, 1536),
    "output/dense": (1536, 384),
}
LAYERS = 6
LEVEL = {"movie": 0.815, "amazon": 0.762, "tweets": 0.861, "nyt": 0.664}
COST_OF_A_RANK = sum(m + n for m, n in KERNELS.values()) / len(KERNELS)


class Draw:
    """Rows of one generator: seeds share their luck, so pairing them helps."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(7)
        self.luck = {
            (task, seed): self.random.normal(scale=0.004)
            for task in TASKS
            for seed in SEEDS
        }

    def row(self, task, method, policy, seed, rank, loss, **changes):
        noise = self.random.normal(scale=0.002)
        accuracy = LEVEL[task] + self.luck[task, seed] - loss + noise
        values = {
            "task": task,
            "method": method,
            "policy": policy,
            "seed": seed,
            "rank_total": round(36 * rank),
            "modules": 36,
            "params": round(36 * rank * COST_OF_A_RANK * self.random.uniform(0.8, 1)),
            "accuracy": accuracy,
            "validation": accuracy + self.random.normal(scale=0.003),
            "learning_rate": CHOSEN,
            "config": method,
            "steps": 1200,
        }
        return Row(**values | changes)


def trained(draw: Draw) -> Iterator[Row]:
    models = [("lora", x, 0.006 / x) for x in (16.0, *RANKS)]
    models += [("sora", 4.8, 0.003), ("sora-official", 4.8, 0.004)]
    models += [("sora-hard", 4.0, 0.005)]
    models += [(x, 4.0, draw.random.uniform(0, 0.008)) for x in AT_FOUR]
    models += [("dylora", x, 0.012 / x + 0.002) for x in (16.0, 8.0, 4.0, 2.0, 1.0)]
    models += [("dylora-unfrozen", 4.0, 0.006)]
    models += [("matryoshka", x, 0.01 / x + 0.002) for x in (16.0, 8.0, 4.0, 2.0, 1.0)]
    for method, rank, loss in models:
        for task in TASKS:
            for seed in SEEDS:
                for rate in RATES:
                    extra = {} if rate == CHOSEN else {"accuracy": None}
                    worse = loss + (0.02 if rate != CHOSEN else 0)
                    row = draw.row(
                        task, method, f"rank {rank:g}", seed, rank, worse,
                        learning_rate=rate, **extra,
                    )  # fmt: skip
                    yield row


def children(draw: Draw) -> Iterator[Row]:
    models = []
    for rank in RANKS:
        loss = 0.004 / rank**1.5
        models.append(("para", f"rank {rank:g}", rank, loss))
        models.append(("local", f"rank {rank:g}", rank, loss * 1.3))
        models += [(x, f"rank {rank:g}", rank, loss * 1.1) for x in SCORES]
    for share in (0.5, 0.25, 0.125, 0.0625, 0.03125):
        loss = 0.001 / share
        models.append(("para", f"params {share:g}", 16 * share, loss))
        models += [(x, f"params {share:g}", 16 * share, loss * 0.9) for x in SCORES]
    for share in (0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0):
        rank = 0.3 * np.exp(4 * share**4)
        models.append(("para", f"epsilon {share:g}", rank, 0.004 / rank))
    for number in (0, 1, 2, 4, 8, 16, 32, 64, 128, 288):
        loss = 0.25 * (1 - np.exp(-number / 20))
        models.append(("drop-top", f"drop {number}", 16 - number / 36, loss))
    for method, policy, rank, loss in models:
        for task in TASKS:
            for seed in SEEDS:
                yield draw.row(task, method, policy, seed, rank, loss)


def retuned(draw: Draw) -> Iterator[Row]:
    for rank in (2.0, 1.0, 0.5):
        for share in (0.01, 0.05, 0.1):
            for task in TASKS:
                for seed in SEEDS:
                    loss = 0.004 / rank**1.5 * (1 - 6 * share)
                    policy = f"rank {rank:g} steps {share:g}"
                    steps = round(1200 * share)
                    yield draw.row(
                        task, "retuned", policy, seed, rank, loss, steps=steps
                    )


def spectra(draw: Draw) -> Iterator[Spectrum]:
    size = {
        (kernel, layer): np.exp(draw.random.normal(scale=0.4) + 0.1 * layer)
        for kernel in KERNELS
        for layer in range(LAYERS)
    }
    for task in TASKS:
        for seed in SEEDS:
            for (kernel, layer), scale in size.items():
                luck = np.exp(draw.random.normal(scale=0.2))
                raw = draw.random.lognormal(sigma=0.5, size=16)
                values = scale * luck * raw * 0.7 ** np.arange(16)
                m, n = KERNELS[kernel]
                yield Spectrum(
                    task=task,
                    seed=seed,
                    module=f"bert/encoder/layer/{layer}/{kernel}",
                    m=m,
                    n=n,
                    values=tuple(np.sort(values)[::-1].tolist()),
                )


def cost(draw: Draw) -> Iterator[Cost]:
    for method in ("lora", *AT_FOUR, "dylora", "matryoshka"):
        policies = ("rank 16", "rank 4") if method == "lora" else ("rank 4",)
        for policy in policies:
            time = 0.0031 * draw.random.uniform(1, 2)
            peak = round(draw.random.uniform(1e9, 2e9))
            yield Cost(method=method, policy=policy, step_seconds=time, peak_bytes=peak)


def results(rows, configs=()):
    return store.Results(
        command="python -m train grid",
        commit="0123456789abcdef",
        versions={"jax": "0.11.2", "flax": "0.12.8"},
        device="a device",
        configs={name: {"rank": 4} for name in configs},
        rows=list(rows),
    )


def write(folder: pathlib.Path) -> None:
    """Write all five files."""
    draw = Draw()
    for maker in (trained, children, retuned):
        rows = list(maker(draw))
        configs = {x.config for x in rows}
        store.write(folder / f"{maker.__name__}.json", results(rows, sorted(configs)))
    for maker in (spectra, cost):
        store.write(folder / f"{maker.__name__}.json", results(maker(draw)))
