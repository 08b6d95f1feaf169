"""Adapters out of other things: two full checkpoints, or a PiSSA-like adapter.

Runs on the host.
"""

import dataclasses
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from para_jax._adapters.adapter import Adapter, Adapters, check_pair
from para_jax._adapters.checkpoint import Checkpoint, as_checkpoint
from para_jax._adapters.precision import wide
from para_jax.linalg import energy, factorize

# By name, since those of scanned layers have two axes too.
_NO_KERNELS = ("bias", "embedding", "scale")

Weights = Mapping[str, jax.Array | np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extraction:
    """Adapters extracted from full weights.

    Attributes:
      adapters: The best update of the asked rank for each matrix that changed.
      energy: The share of each matrix's squared difference that its adapter holds.
      unadapted: The Frobenius norm of the difference of each tensor that changed and
        is not a kernel (norms, biases, embeddings).
    """

    adapters: dict[str, Adapter]
    energy: dict[str, float]
    unadapted: dict[str, float]


def extract(base: Weights, tuned: Weights, *, rank: int) -> Extraction:
    """Extract LoRA adapters from the change by fine-tuning (PhLoRA).

    The truncated SVD of `tuned - base`, in float64, in balanced factors of scale 1:
    `m n min(m, n)` operations a matrix, one matrix at a time. Give it a generous rank
    and cut with `compress`, which then chooses as it would from the full updates.

    Example:
      >>> base = {"up/kernel": np.ones((5, 7)), "up/bias": np.zeros(7)}
      >>> tuned = {"up/kernel": base["up/kernel"] + np.eye(5, 7), "up/bias": np.ones(7)}
      >>> found = para_jax.extract(base, tuned, rank=4)
      >>> found.adapters["up/kernel"].rank, round(found.energy["up/kernel"], 6)
      (4, 0.8)
      >>> list(found.unadapted)
      ['up/bias']

    Args:
      base: The original weights by path: kernels `[*stack, m, n]` in Flax's
        orientation, and anything else. A tensor with fewer than two axes, or one of
        Flax's names `bias`, `scale` or `embedding`, is reported, not adapted. Leave
        convolutions out: their window would be taken for a stack.
      tuned: The fine-tuned weights: the same paths and shapes.
      rank: The rank of every adapter, or that of the matrix if it is less.

    Raises:
      ValueError: if the two differ in paths or shapes, contain NaN or infinity, or
        `rank` is less than 1.
    """
    if rank < 1:
        raise ValueError(f"rank must be 1 or more, got {rank}.")
    result = Extraction(adapters={}, energy={}, unadapted={})
    for path, delta in _differences(base, tuned):
        dtype = np.dtype(tuned[path].dtype)
        named = path.rpartition("/")[2] in _NO_KERNELS
        if delta.ndim < 2 or named or not jnp.issubdtype(dtype, jnp.floating):
            result.unadapted[path] = float(np.linalg.norm(delta))
        else:
            adapter, share = _truncated(delta, rank)
            result.adapters[path] = _cast(adapter, dtype)
            result.energy[path] = share
    return result


def plain(trained: Checkpoint | Adapters, initial: Checkpoint | Adapters) -> Checkpoint:
    """Convert a PiSSA or MiLoRA adapter to a LoRA on the original weights.

    Such an adapter starts at `a0 b0`, which was taken out of the weights, so it has
    learned `scale * (a b - a0 b0) = scale * [a, a0] @ [b; -b0]`, of rank `2 r` at
    most. Budgets still count the nominal `r`. Do this before any pruning: cutting
    `a b` itself would delete components of the pretrained weights.

    Example:
      >>> initial = {"up": adapter(5, 7, 8, 4)}
      >>> trained = {"up": adapter(5, 7, 8, 5)}
      >>> learned = para_jax.plain(trained, initial).adapters["up"]
      >>> learned.rank, learned.nominal
      (4, 2)
      >>> round(float(np.linalg.norm(learned.a @ learned.b)), 6)
      1.0

    Args:
      trained: The adapters after training.
      initial: The adapters before training, the same paths, shapes and scales.

    Raises:
      ValueError: if the two do not belong together.
    """
    checkpoint, before = as_checkpoint(trained), as_checkpoint(initial).adapters
    _same_keys(before, checkpoint.adapters, "initial", "trained")
    adapters = {
        path: _minus(path, adapter, before[path])
        for path, adapter in checkpoint.adapters.items()
    }
    return dataclasses.replace(checkpoint, adapters=adapters, residual="")


def _minus(path: str, trained: Adapter, initial: Adapter) -> Adapter:
    check_pair(path, trained)
    same = (
        trained.a.shape == initial.a.shape
        and trained.b.shape == initial.b.shape
        and trained.scale == initial.scale
    )
    if not same:
        raise ValueError(
            f"'{path}': the initial adapter a {list(initial.a.shape)}, b "
            f"{list(initial.b.shape)}, scale {initial.scale:g} is not of the trained "
            f"one's form a {list(trained.a.shape)}, b {list(trained.b.shape)}, scale "
            f"{trained.scale:g}."
        )
    return Adapter(
        a=np.concatenate([np.asarray(trained.a), np.asarray(initial.a)], axis=-1),
        b=np.concatenate([np.asarray(trained.b), -np.asarray(initial.b)], axis=-2),
        scale=trained.scale,
        nominal=trained.nominal or trained.rank,
    )


def _differences(base: Weights, tuned: Weights) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the path and the float64 difference of each changed tensor."""
    _same_keys(base, tuned, "base", "tuned")
    for path, after in tuned.items():
        before = base[path]
        if before.shape != after.shape:
            raise ValueError(
                f"'{path}': base is {list(before.shape)}, tuned {list(after.shape)}."
            )
        # In float64: bfloat16 weights differ by few units in the last place.
        delta = np.asarray(after, np.float64) - np.asarray(before, np.float64)
        if not np.isfinite(delta).all():
            raise ValueError(f"'{path}': the weights contain NaN or infinity.")
        if delta.any():
            yield path, delta


def _same_keys(one: Mapping, two: Mapping, name_one: str, name_two: str) -> None:
    if difference := sorted(one.keys() ^ two.keys()):
        owner = name_one if difference[0] in one else name_two
        raise ValueError(
            f"{name_one} and {name_two} are of different models: only {owner} has "
            f"'{difference[0]}' ({len(difference)} such paths)."
        )


def _truncated(delta: np.ndarray, rank: int) -> tuple[Adapter, float]:
    stack, shape = delta.shape[:-2], delta.shape[-2:]
    rank = min(rank, *shape)
    with wide():
        u, s, vt = map(np.asarray, _svd(delta.reshape(-1, *shape)))
    root = np.sqrt(s[:, :rank])  # Balanced: both factors have equal norms.
    adapter = Adapter(
        a=(u[:, :, :rank] * root[:, None, :]).reshape(*stack, shape[0], rank),
        b=(root[:, :, None] * vt[:, :rank]).reshape(*stack, rank, shape[1]),
    )
    kept = np.broadcast_to(np.arange(s.shape[-1]) < rank, s.shape)
    return adapter, 1 - energy.dropped(s, kept)


_svd = jax.jit(factorize.svd)


def _cast(adapter: Adapter, dtype: np.dtype) -> Adapter:
    return dataclasses.replace(
        adapter, a=adapter.a.astype(dtype), b=adapter.b.astype(dtype)
    )
