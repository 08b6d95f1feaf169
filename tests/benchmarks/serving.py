"""Put a frozen model and its tenants' adapters on the device; check memory and results.

Memory is computed for the whole model, and read from the allocator for the bank of the
timed modules.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from tests.benchmarks import backbones, banks
from tests.benchmarks.backbones import Backbone
from tests.benchmarks.banks import Factors, Way
from tests.benchmarks.serve_rows import Memory, Miss

WORST = 0.05  # Above bfloat16's and TF32's rounding, below a wrong tenant's error.
CHECKED = np.array([1, 0, 2, 1, 0])  # The tenants of the checked rows.


class Fleet:
    """A backbone, and banks of its tenants' adapters, which are built on demand."""

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
        self.programs = {k: jax.jit(self._with(x)) for k, x in banks.WAYS.items()}
        one = self._with(banks.ALONE)
        self.base = jax.jit(lambda p, x: backbone.forward(p, lambda *_: 0.0, x))
        self.alone = jax.jit(lambda p, b, t, x: one(p, b, dict.fromkeys(b, t), x))

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
        """Return the ranks of the timed modules with an adapter of any tenant."""
        ranks = self.ranks[adapters]
        return {x: ranks[x] for x in self.backbone.timed if ranks[x].any()}

    def bank(self, adapters: str, make: Callable[[Factors], Any]) -> Any:
        return self._made(adapters, make)[0]

    def allocated(self, adapters: str, make: Callable[[Factors], Any]) -> int:
        """Return the device allocator's bytes for a bank."""
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
    """Yield the bytes of one tenant's adapter in each layout."""
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


def miss(fleet: Fleet, adapters: str, name: str) -> Miss:
    """Compare a way with NumPy's plain products, for one module's batch.

    Raises:
      ValueError: if the error exceeds rounding.
    """
    way, child = banks.WAYS[name], fleet.ranks["child"]
    path = max(fleet.adapted(adapters), key=lambda x: np.std(child[x]))
    factors = fleet.factors(adapters, path)
    shape = (len(CHECKED), tokens(fleet), factors.a.shape[1])
    x = backbones.drawn(shape, 1, fleet.backbone.dtype)
    bank, plan = fleet.bank(adapters, way.bank)[path], way.plan(factors.ranks, CHECKED)
    got = np.asarray(jax.jit(way.update)(bank, plan, x), np.float64)
    want = plain(factors, CHECKED, x)
    error = np.linalg.norm(got - want) / np.linalg.norm(want)
    if not error < WORST:
        raise ValueError(
            f"'{name}' misses the plain products of '{path}' by {error:.0e}, "
            f"expected less than {WORST}."
        )
    return Miss(
        model=fleet.backbone.name, adapters=adapters, way=name, error=float(error)
    )


def tokens(fleet: Fleet) -> int:
    """Return the number of tokens in a row."""
    return jax.tree.leaves(fleet.backbone.inputs(1))[0].shape[1]


def plain(factors: Factors, tenants: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Compute the update of each row by its own adapter, in float64, row by row."""
    begin = banks.starts(factors.ranks)
    parts = [slice(begin[t], begin[t] + factors.ranks[t]) for t in tenants]
    a, b, x = (np.asarray(y, np.float64) for y in (factors.a, factors.b, x))
    return np.stack([(row @ a[p].T) @ b[p] for row, p in zip(x, parts, strict=True)])
