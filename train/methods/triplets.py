"""An update in removable components: `scale * a @ diag(e) @ b`.

AdaLoRA, SoRA and DoRA train these: `e` is AdaLoRA's Lambda, SoRA's gate `g`, DoRA's
`c`. Where it is 0, its column of `a` and its row of `b` have no effect.

Axis letters: `m` inputs, `n` outputs, `r` rank. Traceable under `jit`.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, ScalarLike

from para_jax import Adapter
from train.methods.method import Adapters, Kernels


class Triplets(NamedTuple):
    """The factors of all modules by path, or one value for each of their entries."""

    a: dict[str, jax.Array]  # [m, r].
    e: dict[str, jax.Array]  # [r].
    b: dict[str, jax.Array]  # [r, n].


def draw(
    key: jax.Array,
    kernels: Kernels,
    rank: int,
    factor: Callable[[jax.Array, tuple[int, int]], jax.Array],
) -> Triplets:
    """Draw random factors with `e = 0`, for an update of zero.

    Args:
      key: Split between the factors in the order of the paths, so that the draw does
        not depend on the order of the dictionary.
      kernels: The kernels, by path.
      rank: The rank of every module.
      factor: Draws one factor of a shape, `[m, r]` or `[r, n]`.
    """
    paths = sorted(kernels)
    keys = dict(zip(paths, jax.random.split(key, (len(paths), 2)), strict=True))
    return Triplets(
        a={p: factor(keys[p][0], (x.shape[0], rank)) for p, x in kernels.items()},
        e={p: jnp.zeros(rank) for p in kernels},
        b={p: factor(keys[p][1], (rank, x.shape[1])) for p, x in kernels.items()},
    )


def fold(triplets: Triplets, scale: float) -> Adapters:
    """Fold the triplets into adapters, with `e` in their `b`."""
    a, e, b = triplets
    return {
        path: Adapter(a=a[path], b=e[path][:, None] * b[path], scale=scale)
        for path in a
    }


def factors_and_values(triplets: Triplets) -> Triplets:
    """Label each `a` and `b` "factor", and each `e` "value"."""
    values = dict.fromkeys(triplets.e, "value")
    return jax.tree.map(lambda _: "factor", triplets)._replace(e=values)


def adamw(
    learning_rate: optax.Schedule, weight_decay: float
) -> optax.GradientTransformation:
    """Return AdamW with weight decay on `a` and `b` alone."""

    def decayed(triplets: Triplets) -> Triplets:
        labels = factors_and_values(triplets)
        return jax.tree.map(lambda label: label == "factor", labels)

    return optax.adamw(learning_rate, weight_decay=weight_decay, mask=decayed)


def lowest(
    scores: Mapping[str, Float[Array, " r"]], count: ScalarLike
) -> dict[str, Bool[Array, " r"]]:
    """Return a mask of the `count` smallest scores of all modules.

    None are for a count of 0. A tie at this threshold is taken whole, so that there may
    be more than `count`.

    Args:
      scores: The scores of each module's components, by path.
      count: An integer from 0 to the number of all scores; it may be traced.
    """
    count = jnp.asarray(count)
    ascending = jnp.sort(jnp.concatenate(list(scores.values())))
    threshold = jnp.where(count > 0, ascending[jnp.maximum(count, 1) - 1], -jnp.inf)
    return {path: score <= threshold for path, score in scores.items()}


def zeroed(
    e: Mapping[str, Float[Array, " r"]], where: Mapping[str, Bool[Array, " r"]]
) -> dict[str, Float[Array, " r"]]:
    """Return `e` with zeros under a mask."""
    return {path: jnp.where(where[path], 0, x) for path, x in e.items()}
