"""Adapters of one rank in a batch: their `r x r` parts, and the products with factors.

Factors of different shapes share the batch of `r x r` matrices alone.

Traceable under `jit`.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from para_jax._adapters.adapter import Adapter
from para_jax._pruning.batches import Group, groups, joined, separate, together
from para_jax._pruning.decompose import Spectra, Spectrum
from para_jax.linalg import sharding

Pair = tuple[jax.Array, jax.Array]
Times = Callable[[Pair, jax.Array, jax.Array], Pair]
"""`(a, b), left, right -> a @ left, right @ b`, in a precision of its own."""


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

    def factors(self, adapters: Mapping[str, Adapter]) -> list[Pair]:
        """Return the factors of each group, joined.

        Args:
          adapters: `self.adapters`, or the same in the place of a mesh.
        """
        whole = [joined(group, adapters) for group in self.groups]
        return [(jnp.asarray(x.a), jnp.asarray(x.b)) for x in whole]

    def products(
        self,
        factors: Sequence[Pair],
        left: Float[Array, "*stack r w"],
        right: Float[Array, "*stack w r"],
        times: Times,
    ) -> dict[str, Pair]:
        """Return the new factors of every path."""
        pairs: list[Pair] = []
        start = 0
        for group, factor in zip(self.groups, factors, strict=True):
            columns, rows = left, right
            if group is not self.whole:
                columns, rows = group.part(left, start), group.part(right, start)
            start += group.rows
            pairs.append(times(factor, columns, rows))
        return separate(self.groups, pairs)


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
