"""Inspection of an adapter: shapes, ranks, scales, and how fast spectra fall.

Runs on the host.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from para_jax._adapters.adapter import Adapters, ordered
from para_jax._adapters.checkpoint import Checkpoint, as_checkpoint
from para_jax._adapters.stacks import kernels
from para_jax._pruning import outlook
from para_jax._pruning.batches import Progress
from para_jax._pruning.pipeline import spectra_of
from para_jax._pruning.policies import Epsilon
from para_jax._pruning.pool import pool as pool_of
from para_jax._pruning.report import Report, report
from para_jax._pruning.select import exact_ranks, pooled
from para_jax.linalg.cores import Method

SHARES = (0.9, 0.95, 0.99, 0.999)
"""The shares of energy that are asked for by default."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One kernel.

    Attributes:
      path: Its path; a stack's index is the last part.
      inputs: `m`.
      outputs: `n`.
      rank: `r`.
      scale: What `a @ b` is multiplied with.
      largest: The largest singular value of the update.
      needed: The rank that holds each share of its own energy.
    """

    path: str
    inputs: int
    outputs: int
    rank: int
    scale: float
    largest: float
    needed: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Inspection:
    """The contents of an adapter.

    Attributes:
      rows: One entry a kernel, in the model's order.
      shares: The shares of energy that `needed` is for.
      needed: The total rank that holds each share of the whole model's energy: what
        `Epsilon` would keep.
      parameters: The number of values in the factors.
      bytes: Their size.
      dtypes: The dtypes of the factors.
      extra: The names of the tensors that are no LoRA factors.
      report: The spectrum of every module, all of it kept.
      notes: What became of the children of adapters with a like spectrum, in words.
    """

    rows: tuple[Row, ...]
    shares: tuple[float, ...]
    needed: tuple[int, ...]
    parameters: int
    bytes: int
    dtypes: tuple[str, ...]
    extra: tuple[str, ...]
    report: Report
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as plain JSON values."""
        spectra = {x.path: x.sigma.tolist() for x in self.report.modules}
        return {
            "parameters": self.parameters,
            "bytes": self.bytes,
            "dtypes": list(self.dtypes),
            "extra": list(self.extra),
            "shares": list(self.shares),
            "needed": list(self.needed),
            "notes": list(self.notes),
            "modules": [
                dataclasses.asdict(x) | {"sigma": spectra[x.path]} for x in self.rows
            ],
        }


def inspect(
    checkpoint: Checkpoint | Adapters,
    *,
    shares: Sequence[float] = SHARES,
    method: Method = "auto",
    progress: Progress = iter,
) -> Inspection:
    """Inspect an adapter, its singular values included.

    Example:
      >>> found = para_jax.inspect(adapters, shares=(0.9, 0.99))
      >>> found.needed  # Ranks that hold 90 % and 99 % of all energy.
      (3, 5)
      >>> [(x.path, x.rank, round(x.largest, 3), x.needed) for x in found.rows]
      [('down', 2, 6.0, (1, 1)), ('up', 4, 8.0, (2, 4))]

    Args:
      checkpoint: A loaded checkpoint, or just its adapters by path.
      shares: The shares of energy to find the needed ranks for, in (0, 1].
      method: See `decompose`.
      progress: As for `compress`.

    Raises:
      ValueError: as `compress`.
    """
    checkpoint = as_checkpoint(checkpoint)
    spectra = spectra_of(checkpoint, method=method, progress=progress)
    pool = pool_of(spectra)
    # Both are needed: a module's own share, and its part of the whole model's.
    alone = [exact_ranks(spectra, Epsilon(x, scope="local"), pool) for x in shares]
    together = [exact_ranks(spectra, Epsilon(x), pool) for x in shares]
    kept = {path: np.ones(x.s.shape, bool) for path, x in spectra.items()}
    adapters = {path: checkpoint.adapters[path] for path in ordered(spectra)}
    return Inspection(
        rows=tuple(
            Row(
                path=kernel.name,
                inputs=adapters[path].inputs,
                outputs=adapters[path].outputs,
                rank=adapters[path].rank,
                scale=float(adapters[path].scale),
                largest=float(spectra[path].s[index][0]),
                needed=tuple(int(x[path][index]) for x in alone),
            )
            for kernel in kernels({path: x.stack for path, x in adapters.items()})
            for path, index in [kernel]
        ),
        shares=tuple(shares),
        needed=tuple(sum(int(x.sum()) for x in found.values()) for found in together),
        parameters=sum(x.parameters for x in adapters.values()),
        bytes=sum(x.a.nbytes + x.b.nbytes for x in adapters.values()),
        dtypes=tuple(sorted({np.dtype(x.a.dtype).name for x in adapters.values()})),
        extra=tuple(sorted(checkpoint.extra)),
        report=report(spectra, kept, Epsilon(1.0), pool),
        notes=outlook.notes(pooled(spectra, pool)),
    )
