"""Adapters of one rank in a batch: their `r x r` parts, and the products with factors.

Factors of different shapes share the batch of `r x r` matrices alone.

Traceable under `jit`.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from para_jax._adapters.adapter import Adapter
from para_jax._pruning.batches import Group, groups, joined, together
from para_jax._pruning.decompose import Spectra, Spectrum
from para_jax.linalg import sharding
from para_jax.linalg.multiply import Product, multiply

Pair = tuple[jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """Modules of equal rank and dtype.

    Attributes:
      groups: The modules of each shape, in the order of the rows.
      whole: All of them.
      spectrum: Their spectra, `[L, ...]`; of a single stack, `[*stack, ...]`.
      mask: Their masks, `[L, k]` or `[*stack, k]`.
      adapters: Their factors by path.
    """

    groups: Sequence[Group]
    whole: Group
    spectrum: Spectrum
    mask: Array
    adapters: dict[str, Adapter]

    @property
    def places(self) -> dict[str, tuple[P, P]]:
        """The mesh axes of new factors: those of the old, none for the rank.

        Explicit axes alone: the compiler places the others.
        """
        return {
            path: (
                sharding.place(x.a, rank_axis=-1),
                sharding.place(x.b, rank_axis=-2),
            )
            for path, x in self.adapters.items()
        }

    def factors(
        self, adapters: Mapping[str, Adapter]
    ) -> tuple[list[list[jax.Array]], list[list[jax.Array]]]:
        """Return `a` and `b` of the modules of each group.

        Args:
          adapters: `self.adapters`, or the same in the place of a mesh.
        """
        rows = [[adapters[path] for path in group.stacks] for group in self.groups]
        return (
            [[jnp.asarray(x.a) for x in row] for row in rows],
            [[jnp.asarray(x.b) for x in row] for row in rows],
        )

    def products(
        self,
        adapters: Mapping[str, Adapter],
        left: Float[Array, "*stack r w"],
        right: Float[Array, "*stack w r"],
        *,
        dtype: str | None,
    ) -> dict[str, Pair]:
        """Return `a @ left` and `right @ b` of every path.

        In float64 if the matrices are; see `para_jax.linalg.multiply`.

        Args:
          adapters: `self.adapters`, or the same in the place of a mesh.
          left: `[L, r, w]`, or with the axes of a single stack.
          right: The same.
          dtype: That of the products; None for each factor's own.
        """
        todo: list[Product] = []
        start = 0
        for group, a, b in zip(self.groups, *self.factors(adapters), strict=True):
            of_a, of_b = (dtype or x[0].dtype.name for x in (a, b))
            todo.append(Product(a, left, start, tall=True, dtype=of_a))
            todo.append(Product(b, right, start, tall=False, dtype=of_b))
            start += group.rows
        made = multiply(todo)
        paths = [path for group in self.groups for path in group.stacks]
        of_a, of_b = ([y for x in part for y in x] for part in (made[::2], made[1::2]))
        return dict(zip(paths, zip(of_a, of_b, strict=True), strict=True))


def batches(
    spectra: Spectra, masks: Mapping[str, Any], adapters: Mapping[str, Adapter]
) -> Iterator[Batch]:
    """Yield the modules of each rank and dtype; on a mesh, each stack by itself."""
    found: dict[tuple[object, ...], dict[str, Adapter]] = {}
    for path, x in spectra.items():
        apart = path if sharding.mesh_of(adapters[path]) is not None else None
        key = (x.rank, x.s.shape[-1], x.s.dtype, x.dtype, apart)
        found.setdefault(key, {})[path] = adapters[path]
    for part in found.values():
        members = groups(part)
        # A stack by itself keeps its axes: on a mesh it cannot be reshaped in place.
        whole = members[0] if len(members) == 1 else together(members)
        yield Batch(
            groups=members,
            whole=whole,
            spectrum=jax.tree.map(jnp.asarray, joined(whole, spectra)),
            mask=jnp.asarray(whole.join(masks)),
            adapters=part,
        )
