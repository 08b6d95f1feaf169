"""Define adapters with the shapes of known models, and draw random factors for them.

Modules are stacked by projection, `[layers, m, r]` and `[layers, r, n]`, as scanned
models have them; experts add an axis.
"""

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

import para_jax as para

SCALE = 2.0  # A common value of alpha / r; it is not 1, so it has to be folded in.
DECAY = 30.0  # The ratio of the norms of a factor's first and last columns.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """The shapes of an adapter.

    Attributes:
      rank: The rank of every module.
      layers: The length of the leading axis of all stacks.
      projections: `(m, n)` of each projection.
      experts: The length of a second axis; there is none if 0.
    """

    name: str
    rank: int
    layers: int
    projections: Mapping[str, tuple[int, int]]
    experts: int = 0

    @property
    def stack(self) -> tuple[int, ...]:
        return (self.layers, self.experts) if self.experts else (self.layers,)

    @property
    def modules(self) -> int:
        return len(self.projections) * math.prod(self.stack)

    @property
    def parameters(self) -> int:
        ends = sum(m + n for m, n in self.projections.values())
        return math.prod(self.stack) * self.rank * ends

    @property
    def smallest(self) -> str:
        """The projection with the cheapest full SVD."""
        return min(self.projections, key=lambda x: full_svd(*self.projections[x]))

    @property
    def full_svds(self) -> float:
        """The cost of full SVDs of all updates, in units of the smallest one."""
        total = sum(full_svd(m, n) for m, n in self.projections.values())
        one = full_svd(*self.projections[self.smallest])
        return math.prod(self.stack) * total / one

    def factors(self, dtype: str) -> dict[str, para.Adapter]:
        """Return random factors on the default device, the same ones every time.

        The columns of `a` decrease in norm, and kernels differ in norm, so the kept
        ranks are ragged.
        """
        keys = jax.random.split(jax.random.key(0), len(self.projections))
        return {
            name: _random(key, self.stack, m, n, self.rank, dtype)
            for key, (name, (m, n)) in zip(keys, self.projections.items(), strict=True)
        }


def full_svd(m: int, n: int) -> int:
    """Return the cost of a matrix's SVD, up to a constant factor."""
    return m * n * min(m, n)


def nbytes(adapters: Mapping[str, para.Adapter]) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(dict(adapters)))


def part(adapters: Mapping[str, para.Adapter], layers: int) -> dict[str, para.Adapter]:
    """Return the adapters of the first layers."""
    return {
        path: dataclasses.replace(x, a=x.a[:layers], b=x.b[:layers])
        for path, x in adapters.items()
    }


def _random(
    key: jax.Array, stack: tuple[int, ...], m: int, n: int, r: int, dtype: str
) -> para.Adapter:
    @jax.jit
    def make(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        keys = jax.random.split(key, 3)
        length = jnp.exp(jax.random.uniform(keys[0], (*stack, 1, 1), minval=-1))
        fall = DECAY ** -jnp.linspace(0, 1, r).reshape(*(1 for _ in stack), 1, r)
        a = jax.random.normal(keys[1], (*stack, m, r)) * (fall * length / math.sqrt(m))
        b = jax.random.normal(keys[2], (*stack, r, n)) / math.sqrt(n)
        return a.astype(dtype), b.astype(dtype)

    a, b = make(key)
    return para.Adapter(a, b, SCALE)


def _llama(name: str, rank: int, *, large: bool = False) -> Case:
    layers, d, kv, ffn = (80, 8192, 1024, 28672) if large else (32, 4096, 1024, 14336)
    return Case(
        name=name,
        rank=rank,
        layers=layers,
        projections={
            "q": (d, d),
            "k": (d, kv),
            "v": (d, kv),
            "o": (d, d),
            "gate": (d, ffn),
            "up": (d, ffn),
            "down": (ffn, d),
        },
    )


_ALL = (
    Case(
        name="siglip2",
        rank=16,
        layers=12,
        projections={
            **dict.fromkeys(("q", "k", "v", "out"), (768, 768)),
            "fc1": (768, 3072),
            "fc2": (3072, 768),
        },
    ),
    Case(
        name="gemma3-4b",
        rank=16,
        layers=34,
        projections={
            "q": (2560, 2048),
            "k": (2560, 1024),
            "v": (2560, 1024),
            "o": (2048, 2560),
            "gate": (2560, 10240),
            "up": (2560, 10240),
            "down": (10240, 2560),
        },
    ),
    # The experts of four layers of Qwen3-30B-A3B.
    Case(
        name="moe128",
        rank=16,
        layers=4,
        experts=128,
        projections={"gate": (2048, 768), "up": (2048, 768), "down": (768, 2048)},
    ),
    _llama("llama3-8b-r16", 16),
    _llama("llama3-8b-r64", 64),
    _llama("llama3-8b-r256", 256),
    _llama("llama3-70b-r64", 64, large=True),
    Case(  # Small enough for trying out the program.
        name="tiny", rank=5, layers=3, projections={"q": (37, 29), "up": (37, 61)}
    ),
)

CASES = {case.name: case for case in _ALL}
