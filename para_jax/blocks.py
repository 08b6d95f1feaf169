"""The SVD of many square matrices that are too large for a library's batch. Traced.

A GPU's library finds the eigenvectors of many matrices at once up to a size, and beyond
it one matrix after another, a hundred times slower. So this makes small problems of
large ones: one-sided Jacobi as in `para_jax.kernels.jacobi`, on blocks of columns
instead of columns. The eigenvectors of `z^T z` make the columns of a pair of blocks `z`
orthogonal; after some sweeps over all pairs, all columns are.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from para_jax import linalg

LEAST = 128
"""A library's batch serves up to this size, and two blocks make one so large."""

_WIDTH = LEAST // 2
# The largest cosine of two columns after which a sweep was the last: it squares it.
_ORTHOGONAL = 1e-6
_MOST_SWEEPS = 12


def svd(
    x: Float[Array, "N r r"],
) -> tuple[Float[Array, "N r r"], Float[Array, "N r"], Float[Array, "N r r"]]:
    """Returns `u, s, vt` of each matrix, `s` descending."""
    rank = x.shape[-1]
    more = -rank % (2 * _WIDTH)
    image = _orthogonal_columns(jnp.pad(x, [(0, 0), (0, 0), (0, more)]))
    s = jnp.linalg.norm(image, axis=-2)
    order = jnp.argsort(-s, axis=-1)[:, :rank]
    s = jnp.take_along_axis(s, order, axis=-1)
    image = jnp.take_along_axis(image, order[:, None, :], axis=-1)
    over = 1 / jnp.where(s > 0, s, 1)
    u = image * over[:, None, :]
    return u, s, linalg.matmul(u.mT, x) * over[:, :, None]


def _orthogonal_columns(x: Float[Array, "N r c"]) -> Float[Array, "N r c"]:
    """Returns `x J` with an orthogonal `J` that makes its columns orthogonal."""
    blocks = jnp.moveaxis(x.reshape(*x.shape[:2], -1, _WIDTH), 2, 0)
    pairs = jnp.asarray(_tournament(len(blocks)))

    def sweep(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        (blocks, cosines), done = lax.scan(_round, state[0], pairs), state[2]
        return blocks, cosines.max(), done + 1

    def unfinished(state: tuple[Array, Array, Array]) -> Array:
        return (state[1] > _ORTHOGONAL) & (state[2] < _MOST_SWEEPS)

    start = blocks, jnp.ones((), x.dtype), jnp.zeros((), jnp.int32)
    blocks = lax.while_loop(unfinished, sweep, start)[0]
    return jnp.moveaxis(blocks, 0, 2).reshape(x.shape)


def _tournament(players: int) -> Int[np.ndarray, "rounds 2 games"]:
    """Returns who meets whom, the smaller number first: all meet all once."""
    others = np.arange(1, players)
    rounds = []
    for i in range(players - 1):
        seats = np.concatenate([[0], np.roll(others, i)])
        rounds.append(
            np.sort([seats[: players // 2], seats[: players // 2 - 1 : -1]], 0)
        )
    return np.stack(rounds)


def _round(
    blocks: Float[Array, "B N r w"], pairs: Int[Array, "2 games"]
) -> tuple[Float[Array, "B N r w"], Array]:
    """Makes the columns of each pair of blocks orthogonal; also their worst cosine.

    The longer half goes to the first of the two. So in the end all are in order, and
    stay where they are, which makes the last sweeps quick.
    """
    both = jnp.concatenate([blocks[pairs[0]], blocks[pairs[1]]], axis=-1)
    gram = linalg.matmul(both.mT, both)
    _, vectors = linalg.eigh(gram.reshape(-1, *gram.shape[-2:]))
    both = linalg.matmul(both, vectors.reshape(gram.shape)[..., ::-1])
    longer, shorter = jnp.split(both, 2, axis=-1)
    blocks = blocks.at[pairs[0]].set(longer).at[pairs[1]].set(shorter)
    return blocks, _largest_cosine(gram)


def _largest_cosine(gram: Float[Array, "*stack c c"]) -> Array:
    lengths = jnp.sqrt(jnp.diagonal(gram, axis1=-2, axis2=-1))
    over = jnp.where(lengths > 0, 1 / jnp.where(lengths > 0, lengths, 1), 0)
    cosines = jnp.abs(gram) * over[..., :, None] * over[..., None, :]
    return jnp.max(jnp.where(jnp.eye(gram.shape[-1], dtype=bool), 0, cosines))
