"""A frozen model with its tenants' adapters on the device: what fits, and how fast.

Memory is the arithmetic of the whole model, and what the allocator took for the bank of
the modules that are timed. Time is that of whole batches, the ways in turn, again and
again: a load that comes and goes meets all of them. What a way's `plan` does on the
host, while the batch before runs, is not in it.
"""

import concurrent.futures
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from tests.benchmarks import backbones, banks, clock
from tests.benchmarks.backbones import Backbone
from tests.benchmarks.banks import Factors, Way
from tests.benchmarks.serve_rows import Memory, Step

ALONE = "one by one"
WORST = 0.05  # More than bfloat16 and TF32 do, less than a wrong tenant.
DENSE_GROUPS = 64  # Without a kernel for it, ragged_dot multiplies with every group.


class Fleet:
    """A backbone, and banks of its tenants' adapters that are made when asked for."""

    def __init__(self, backbone: Backbone, tenants: int) -> None:
        self.backbone, self.tenants = backbone, tenants
        child = backbones.rank_maps(backbone.singular, tenants)
        parent = np.full_like(child, backbone.singular.shape[1])
        self.ranks: dict[str, dict[str, np.ndarray]] = {
            name: dict(zip(backbone.kernels, x, strict=True))
            for name, x in {"parent": parent, "child": child}.items()
        }
        self.params = jax.device_put(backbone.params)
        self._banks: dict[Any, tuple[Any, int]] = {}
        self._programs = {x: jax.jit(self._with(x)) for x in banks.WAYS.values()}
        one = self._with(banks.ALONE)
        self.base = jax.jit(lambda p, x: backbone.forward(p, lambda *_: 0.0, x))
        self.alone = jax.jit(lambda p, b, t, x: one(p, b, dict.fromkeys(b, t), x))

    def program(self, way: Way) -> Callable[..., jax.Array]:
        """Returns the compiled model: params, bank, plans and batch."""
        return self._programs[way]

    def _with(self, way: Way) -> Callable[..., jax.Array]:
        def forward(params: Any, bank: Any, plans: Any, inputs: Any) -> jax.Array:
            def update(path: str, x: jax.Array) -> Any:
                return way.update(bank[path], plans[path], x) if path in bank else 0.0

            return self.backbone.forward(params, update, inputs)

        return forward

    def factors(self, adapters: str, path: str) -> Factors:
        ranks, (m, n) = self.ranks[adapters][path], self.backbone.kernels[path]
        return Factors(*backbones.factors(m, n, ranks, self.backbone.dtype), ranks)

    def adapted(self, adapters: str) -> dict[str, np.ndarray]:
        """Returns the ranks of the timed modules that any tenant adapts."""
        ranks = self.ranks[adapters]
        return {x: ranks[x] for x in self.backbone.timed if ranks[x].any()}

    def bank(self, adapters: str, make: Callable[[Factors], Any]) -> Any:
        return self._made(adapters, make)[0]

    def allocated(self, adapters: str, make: Callable[[Factors], Any]) -> int:
        """Returns the bytes that the device's allocator took for a bank."""
        return self._made(adapters, make)[1]

    def _made(self, adapters: str, make: Callable[[Factors], Any]) -> tuple[Any, int]:
        if (adapters, make) not in self._banks:
            host = {x: make(self.factors(adapters, x)) for x in self.adapted(adapters)}
            before = _used()
            bank = jax.block_until_ready(jax.device_put(host))
            self._banks[adapters, make] = (bank, _used() - before)
        return self._banks[adapters, make]


def _used() -> int:
    stats = jax.devices()[0].memory_stats()
    if stats:
        return stats["bytes_in_use"]
    return sum(x.nbytes for x in jax.live_arrays())


def memory(fleet: Fleet) -> Iterator[Memory]:
    """Yields the bytes of one tenant's adapter in each layout."""
    backbone, child = fleet.backbone, fleet.ranks["child"]
    size = np.dtype(jax.numpy.dtype(backbone.dtype)).itemsize

    def mean(ranks: Mapping[str, float]) -> float:
        return sum(r * sum(backbone.kernels[x]) * size for x, r in ranks.items())

    most = {path: int(x.max()) for path, x in child.items()}
    parent = {path: int(x.max()) for path, x in fleet.ranks["parent"].items()}
    average = {path: x.mean() for path, x in child.items()}
    layouts = {
        "parent": (parent, "parent", banks.padded),
        "child, one rank": (dict.fromkeys(most, max(most.values())), None, None),
        "child, padded": (most, "child", banks.padded),
        "child, ragged": (average, "child", banks.paged),
    }
    for layout, (ranks, adapters, make) in layouts.items():
        timed = mean({x: ranks[x] for x in backbone.timed}) * fleet.tenants
        took = None if make is None else fleet.allocated(adapters, make) / timed
        yield Memory(
            model=backbone.name,
            dtype=backbone.dtype,
            tenants=fleet.tenants,
            layout=layout,
            bytes=mean(ranks),
            allocated=took,
        )


def errors(fleet: Fleet, rows: int, present: int) -> dict[tuple[str, str], float]:
    """Returns what each way misses NumPy's plain products by, for one module's batch.

    Raises:
      ValueError: if it is more than rounding.
    """
    tokens, found = _tokens(fleet), {}
    for adapters, name, way in contenders(tokens, present):
        path = max(
            fleet.adapted(adapters), key=lambda x: np.std(fleet.ranks["child"][x])
        )
        factors, tenants = fleet.factors(adapters, path), mixed(fleet, rows, present)
        shape = (rows, tokens, factors.a.shape[1])
        x = backbones.drawn(shape, 1, fleet.backbone.dtype)
        bank = fleet.bank(adapters, way.bank)[path]
        got = jax.jit(way.update)(bank, way.plan(factors.ranks, tenants), x)
        want = plain(factors, tenants, x)
        miss = np.linalg.norm(np.asarray(got, np.float64) - want) / np.linalg.norm(want)
        if not miss < WORST:
            raise ValueError(
                f"'{name}' misses the plain products of '{path}' by {miss:.0e}, "
                f"expected less than {WORST}."
            )
        found[adapters, name] = float(miss)
    return found


def plain(factors: Factors, tenants: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Returns what each row's own adapter adds, in float64, a row at a time."""
    begin = banks.starts(factors.ranks)
    parts = [slice(begin[t], begin[t] + factors.ranks[t]) for t in tenants]
    a, b, x = (np.asarray(y, np.float64) for y in (factors.a, factors.b, x))
    return np.stack([(row @ a[p].T) @ b[p] for row, p in zip(x, parts, strict=True)])


def contenders(tokens: int, present: int) -> Iterator[tuple[str, str, Way]]:
    """Yields adapters, name and way of what is run for such a batch."""
    for name, way in banks.WAYS.items():
        if name.endswith("-sum") and tokens > 1:
            continue
        if name == "ragged_dot" and present > DENSE_GROUPS:
            continue
        if name in ("padded", "padded-sum", "segments"):
            yield "parent", name, way
        yield "child", name, way


def mixed(fleet: Fleet, rows: int, present: int) -> np.ndarray:
    """Returns the tenants of a batch's rows, so many of them distinct, in turn."""
    generator = np.random.default_rng(present)
    return np.resize(generator.choice(fleet.tenants, present, replace=False), rows)


class Run(NamedTuple):
    """A program, and the arguments of each of its calls."""

    program: Callable[..., jax.Array]
    calls: Sequence[tuple[Any, ...]]

    def __call__(self) -> list[jax.Array]:
        return [self.program(*x) for x in self.calls]

    @property
    def compiled(self) -> tuple[Any, str]:
        """What two runs share that are compiled once."""
        return self.program, str(jax.tree.map(np.shape, self.calls[0]))


def steps(
    fleet: Fleet, batches: Sequence[tuple[int, int]], *, limit: float
) -> Iterator[Step]:
    """Yields the time of every way for each batch.

    Args:
      fleet: The model and its tenants.
      batches: The rows, and the distinct tenants in them.
      limit: About the seconds to spend on a batch, once all is compiled.
    """
    runs = {x: _runs(fleet, *x) for x in batches}
    _warm([run for found in runs.values() for run in found.values()])
    tokens = _tokens(fleet)
    for rows, present in batches:
        times = clock.interleaved(runs[rows, present], limit=limit)
        base = np.array(times["none", "base"])
        for (adapters, way), seconds in times.items():
            low, middle, high = 1e3 * np.quantile(seconds, [0.25, 0.5, 0.75])
            yield Step(
                model=fleet.backbone.name,
                dtype=fleet.backbone.dtype,
                modules=len(fleet.backbone.timed),
                tenants=fleet.tenants,
                rows=rows,
                tokens=tokens,
                present=present,
                adapters=adapters,
                way=way,
                ms=middle,
                low_ms=low,
                high_ms=high,
                throughput=float(np.median(base / seconds)),
            )


def _warm(runs: Sequence[Run]) -> None:
    """Compiles all programs, as many at once as there are cores."""
    distinct = {x.compiled: x for x in runs}
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        for _ in threads.map(lambda x: jax.block_until_ready(x()), distinct.values()):
            pass


def _tokens(fleet: Fleet) -> int:
    return jax.tree.leaves(fleet.backbone.inputs(1))[0].shape[1]


def _runs(fleet: Fleet, rows: int, present: int) -> dict[tuple[str, str], Run]:
    """Returns a run of one batch by adapters and way."""
    inputs = jax.device_put(fleet.backbone.inputs(rows))
    tenants = mixed(fleet, rows, present)
    runs = {("none", "base"): Run(fleet.base, [(fleet.params, inputs)])}
    for adapters, name, way in contenders(_tokens(fleet), present):
        ranks, bank = fleet.adapted(adapters), fleet.bank(adapters, way.bank)
        plans = {path: way.plan(x, tenants) for path, x in ranks.items()}
        call = (fleet.params, bank, jax.device_put(plans), inputs)
        runs[adapters, name] = Run(fleet.program(way), [call])
    return runs | {("child", ALONE): _one_by_one(fleet, rows, present)}


def _one_by_one(fleet: Fleet, rows: int, present: int) -> Run:
    """Returns a run that calls the model for each tenant's part of the batch."""
    bank = fleet.bank("child", banks.padded)
    inputs = jax.device_put(fleet.backbone.inputs(rows // present))
    tenants = [jax.device_put(np.int32(x)) for x in mixed(fleet, present, present)]
    return Run(fleet.alone, [(fleet.params, bank, x, inputs) for x in tenants])
