"""Store one module's adapters of all tenants in a bank, and apply mixed batches.

Each way consists of three functions. `bank` lays the factors out, on the host, once.
`plan` prepares a batch on the host: integer arrays with shapes that do not depend on
the tenants in the batch. `update` is traced and computes the adapters' contribution.

- `padded`: every tenant has `R` rows, and the rows of a batch's tenants are gathered
  for each row of the batch. Punica's BGMV (Chen et al. 2023) in plain JAX.
- `paged`: the ranks of all tenants end to end, and a table of each tenant's rows,
  filled up with the index of a row of zeros. A page is one rank, as in S-LoRA (Sheng et
  al. 2023), so a swapped-in adapter can use any free rows.
- `segments`: on the same bank, the rows of the batch's tenants are gathered once, every
  row of the batch is multiplied with all of them, and a mask keeps its own tenant's.
- `ragged_dot`: rows sorted by tenant, then `jax.lax.ragged_dot` with the padded factors
  of the tenants in the batch.

Axis letters: `N` tenants, `R` their largest rank, `S` the sum of their ranks, `B` rows
of a batch, `T` tokens a row, `C` capacity, `m` inputs, `n` outputs.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

DEVIATIONS = 5  # The capacity's margin above the mean, in standard deviations.


class Factors(NamedTuple):
    """One module's adapters of all tenants, with their ranks end to end."""

    a: np.ndarray  # [S, m]
    b: np.ndarray  # [S, n]
    ranks: np.ndarray  # [N]


class Way(NamedTuple):
    bank: Callable[[Factors], Any]
    plan: Callable[[np.ndarray, np.ndarray], Any]  # From ranks [N] and tenants [B].
    update: Callable[[Any, Any, jax.Array], jax.Array]  # From [B, T, m] to [B, T, n].


class Pair(NamedTuple):
    a: Any
    b: Any


def starts(ranks: np.ndarray) -> np.ndarray:
    """Return the index of each tenant's first row, `[N]`."""
    return np.cumsum(ranks) - ranks


def padded(factors: Factors) -> Pair:
    """Pad with zeros to the largest rank: `a: [N, R, m]` and `b: [N, R, n]`."""
    within = np.arange(factors.ranks.max()) < factors.ranks[:, None]

    def spread(rows: np.ndarray) -> np.ndarray:
        result = np.zeros((*within.shape, rows.shape[-1]), rows.dtype)
        result[within] = rows
        return result

    return Pair(spread(factors.a), spread(factors.b))


def paged(factors: Factors) -> Pair:
    """Prepend a row of zeros: `a: [1 + S, m]` and `b: [1 + S, n]`."""
    return Pair(*(np.pad(x, ((1, 0), (0, 0))) for x in (factors.a, factors.b)))


def _upright(factors: Factors) -> Pair:
    a, b = padded(factors)
    return Pair(np.ascontiguousarray(np.swapaxes(a, 1, 2)), b)


def table(ranks: np.ndarray) -> np.ndarray:
    """Return the rows of each tenant in a paged bank, `[N, R]`, 0 beyond its rank."""
    place = np.arange(ranks.max())
    rows = 1 + starts(ranks)[:, None] + place
    return np.where(place < ranks[:, None], rows, 0).astype(np.int32)


def capacity(ranks: np.ndarray, present: int) -> int:
    """Return the number of rows to reserve for a batch with `present` distinct tenants.

    It is at most `present * R`, and otherwise the mean plus five standard deviations,
    rounded to two binary digits so that many modules share a shape.
    """
    most = present * int(ranks.max())
    likely = present * ranks.mean()
    likely += DEVIATIONS * ranks.std() * math.sqrt(present)
    step = 2 ** max(math.floor(math.log2(max(likely, 1))) - 2, 3)
    return min(most, step * math.ceil(likely / step))


def _segments_plan(ranks: np.ndarray, tenants: np.ndarray) -> Any:
    present = np.unique(tenants)
    found, size = table(ranks)[present], capacity(ranks, len(present))
    rows, owners = found[found > 0], np.repeat(present, ranks[present])
    if len(rows) > size:
        raise ValueError(
            f"A batch of {len(present)} tenants has {len(rows)} ranks in a module, "
            f"expected at most {size}. Divide the batch."
        )
    fill = (0, size - len(rows))
    return (
        np.pad(rows, fill).astype(np.int32),
        np.pad(owners, fill, constant_values=-1).astype(np.int32),
        tenants.astype(np.int32),
    )


def _ragged_plan(_: np.ndarray, tenants: np.ndarray) -> Any:
    order = np.argsort(tenants, kind="stable")
    present, sizes = np.unique(tenants, return_counts=True)
    found = (order, np.argsort(order), present, sizes)
    return tuple(x.astype(np.int32) for x in found)


def _gathered(bank: Pair, plan: jax.Array, x: jax.Array) -> jax.Array:
    a, b = bank.a[plan], bank.b[plan]
    return jnp.einsum("btr,brn->btn", jnp.einsum("btm,brm->btr", x, a), b)


def _segmented(bank: Pair, plan: Any, x: jax.Array) -> jax.Array:
    rows, owners, tenants = plan
    z = jnp.einsum("btm,cm->btc", x, bank.a[rows])
    own = owners[None, None, :] == tenants[:, None, None]
    return jnp.einsum("btc,cn->btn", jnp.where(own, z, 0), bank.b[rows])


def _ragged(bank: Pair, plan: Any, x: jax.Array) -> jax.Array:
    order, back, present, sizes = plan
    tokens, sizes = x[order].reshape(-1, x.shape[-1]), sizes * x.shape[1]
    z = jax.lax.ragged_dot(tokens, bank.a[present], sizes)
    y = jax.lax.ragged_dot(z, bank.b[present], sizes)
    return y.reshape(*x.shape[:2], -1)[back]


def _alone(bank: Pair, plan: jax.Array, x: jax.Array) -> jax.Array:
    return (x @ bank.a[plan].mT) @ bank.b[plan]


def _tenants(_: np.ndarray, tenants: np.ndarray) -> np.ndarray:
    return tenants.astype(np.int32)


def _rows(ranks: np.ndarray, tenants: np.ndarray) -> np.ndarray:
    return table(ranks)[tenants]


ALONE = Way(padded, _tenants, _alone)
"""One tenant for the whole batch; its plan is a number."""

WAYS = {
    "padded": Way(padded, _tenants, _gathered),
    "paged": Way(paged, _rows, _gathered),
    "segments": Way(paged, _segments_plan, _segmented),
    "ragged_dot": Way(_upright, _ragged_plan, _ragged),
}
