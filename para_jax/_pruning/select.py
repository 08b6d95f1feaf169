"""Selection of components by a policy, as ragged rank masks.

Two faces of one rule. `masks` is traceable under `jit`: arrays in, arrays out, static
shapes. `exact_masks` and `ranks` run on the host in float64, for files. `N` components
in the pool.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from para_jax._adapters import precision
from para_jax._pruning import pool_traced
from para_jax._pruning.decompose import Spectra
from para_jax._pruning.policies import Policy, single
from para_jax._pruning.pool import Pool, pool as pool_of
from para_jax._pruning.scores import scored
from para_jax._pruning.spending import Candidates
from para_jax.linalg import energy, sharding, tolerances


@precision.kept
def masks(spectra: Spectra, policy: Policy) -> dict[str, jax.Array]:
    """Choose the components to keep: booleans `[*stack, k]` by path.

    One row a module, whose number of true values is the module's rank. The shapes are
    those of the singular values, whatever is kept, so this works under `jit`.

    The policy may be an argument of the compiled function: one program serves every
    value. An impossible traced budget neither raises nor warns: it is clamped, up to
    the cost of `min_rank`, and down to that of the parent.

    Example:
      >>> spectra = para_jax.decompose(adapters)
      >>> kept = jax.jit(para_jax.masks)(spectra, para_jax.Gamma(0.25))
      >>> {path: int(mask.sum(-1)) for path, mask in kept.items()}  # The ranks.
      {'down': 0, 'up': 1}
      >>> many = para_jax.Gamma(jnp.linspace(0.1, 1.0, 10))
      >>> jax.vmap(para_jax.masks, in_axes=(None, 0))(spectra, many)["up"].shape
      (10, 4)

    Args:
      spectra: The spectra of all modules. They are pooled.
      policy: What to keep.

    Raises:
      ValueError: if the policy's budget is known, and impossible for these modules; or
        is more than one.
    """
    policy = single(policy)
    pool, groups = pool_of(spectra), pool_traced.by_shape(spectra)

    def chosen(s: dict[str, Any], policy: Policy = policy) -> dict[str, jax.Array]:
        pooled = pool_traced.gather(pool, groups, sharding.replicated(s))
        kept = _select(pooled, pool, policy, jnp)
        kept = pool_traced.scatter(pool, groups, kept)
        return sharding.replicated(kept)

    # A known budget has to stay known, and an argument may become an array.
    traced = [policy] if policy.is_traced else []
    s = {path: x.s for path, x in spectra.items()}
    kept = sharding.in_place(chosen, s, *traced)
    return {path: kept[path] for path in pool.shapes}


def exact_masks(
    spectra: Spectra, policy: Policy, pool: Pool | None = None
) -> dict[str, np.ndarray]:
    """Choose the components to keep as `masks` does, in float64 on the host.

    Args:
      spectra: Concrete arrays.
      policy: What to keep.
      pool: The pool of `spectra`, if it is at hand.

    Raises:
      ValueError: as `masks`, and if the policy is traced.
    """
    pool = pool or pool_of(spectra)
    return pool.scatter(exact_choice(pooled(spectra, pool), policy, pool))


def pooled(spectra: Spectra, pool: Pool) -> np.ndarray:
    """Return the singular values of all modules in float64, `[N]`."""
    return pool.gather({p: np.asarray(x.s, np.float64) for p, x in spectra.items()}, np)


def exact_choice(s: np.ndarray, policy: Policy, pool: Pool) -> np.ndarray:
    """Choose the components to keep as `exact_masks` does: booleans `[N]`.

    Args:
      s: The singular values of `pool`, float64 `[N]`.
      policy: What to keep.
      pool: The pool.

    Raises:
      ValueError: as `exact_masks`.
    """
    policy = single(policy)
    if policy.is_traced:
        raise ValueError(
            f"The value of this {policy.kind} is traced, and a rank must be known. "
            "Inside jit, use masks and repack(form='masked')."
        )
    return _select(s, pool, policy, np)


def ranks(spectra: Spectra, policy: Policy) -> dict[str, np.ndarray]:
    """Return the rank of each module, exactly: integers `[*stack]` by path.

    Example:
      >>> found = para_jax.ranks(para_jax.decompose(adapters), para_jax.Gamma(0.5))
      >>> {path: int(x) for path, x in found.items()}
      {'down': 1, 'up': 2}

    Args:
      spectra: Concrete arrays: a rank becomes a shape.
      policy: What to keep.

    Raises:
      ValueError: as `exact_masks`.
    """
    return exact_ranks(spectra, policy)


def exact_ranks(
    spectra: Spectra, policy: Policy, pool: Pool | None = None
) -> dict[str, np.ndarray]:
    """Return the rank of each module as `ranks` does.

    Arguments and errors are those of `exact_masks`.
    """
    found = exact_masks(spectra, policy, pool)
    return {path: np.asarray(mask.sum(-1)) for path, mask in found.items()}


def _select(s: Any, pool: Pool, policy: Policy, xp: Any) -> Any:
    """Return the mask `[N]` of the kept components; `xp` is `jnp` or `np`."""
    free = policy.scale_free
    # By themselves, and not beside larger ones, in whose scale small ones are zero.
    score = scored(s, policy.score, pool, xp, scale_free=free)
    # Squares would leave the dtype's range; a fixed threshold forbids any scaling.
    if free:
        s, score = energy.near_one(s, xp), energy.near_one(score, xp)
    limits = policy.limits(pool)
    # A component below the resolution of float32 is zero, and never worth its cost.
    rank = pool.rank.astype(s.dtype)
    resolved = s > tolerances.floor(s[pool.first], rank)
    allowed = resolved & (pool.index < limits.high)
    forced = allowed & (pool.index < limits.low)
    return policy.keep(Candidates(pool, score, allowed, forced), xp)
