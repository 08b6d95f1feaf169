"""Second moments of the adapters' inputs, from a few unlabelled sentences.

Axis letters: `m` inputs, `r` rank, `S` batches, `B` sentences, `T` tokens.
"""

import functools
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Bool, Float

import para_jax as para
from para_jax import Adapter, Array
from train.models.bert import Tokens


class Moments(NamedTuple):
    """Means over all tokens, for one adapter `x @ a @ b`.

    Attributes:
      square: `E[x^2]`, the diagonal of `C = E[x^T x]`, `[m]`.
      gram: `a^T C a = E[(x a)^T (x a)]`, `[r, r]`: all of `C` that the adapter sees.
    """

    square: Float[jax.Array, " m"]
    gram: Float[jax.Array, "r r"]


def inputs(
    model: nn.Module,
    variables: Mapping[str, Any],
    tokens: Tokens,
    paths: Collection[str],
) -> dict[str, Float[jax.Array, "B T m"]]:
    """Return the inputs of the modules at `paths`.

    Raises:
      ValueError: if the model calls no such module.
    """
    found: dict[str, jax.Array] = {}

    # Linen keeps no inputs; an interceptor sees each module's call.
    def keep(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        path = "/".join(context.module.path)
        if context.method_name == "__call__" and path in paths:
            found[path] = args[0]
        return call(*args, **kwargs)

    with nn.intercept_methods(keep):
        model.apply(variables, tokens)
    if missing := sorted(set(paths) - found.keys()):
        raise ValueError(f"'{missing[0]}' is not a module that the model calls.")
    return {path: found[path] for path in paths}


@functools.partial(jax.jit, static_argnames="model")
def moments(
    model: nn.Module,
    params: Mapping[str, Any],
    adapters: dict[str, Adapter],
    batches: Tokens,
) -> dict[str, Moments]:
    """Return the moments of each adapter's inputs, with all adapters active.

    Args:
      model: Maps `Tokens` to anything.
      params: Its parameters.
      adapters: The parent, one kernel each.
      batches: Sentences `[S, B, T]`; tokens that are masked do not count.

    Raises:
      ValueError: if the model has no module for an adapter.
    """
    variables = {"params": params, "lora": para.to_params(adapters)}

    def one(tokens: Tokens) -> dict[str, Moments]:
        found = inputs(model, variables, tokens, adapters)
        mask = jnp.asarray(tokens.mask)
        return {p: _sums(x, adapters[p].a, mask) for p, x in found.items()}

    total = jnp.sum(batches.mask)
    # One batch at a time: all activations at once would not fit.
    sums = jax.lax.map(one, batches)
    return jax.tree.map(lambda x: x.sum(0) / total, sums)


def _sums(
    x: Float[jax.Array, "B T m"],
    a: Float[Array, "m r"],
    mask: Bool[jax.Array, "B T"],
) -> Moments:
    # Padding must not count in the moments.
    x = jnp.where(mask[..., None], x, 0).reshape(-1, x.shape[-1])
    # TF32 would lose the small eigenvalues of the Gram matrix.
    y = jnp.matmul(x, a, precision=jax.lax.Precision.HIGHEST)
    gram = jnp.matmul(y.T, y, precision=jax.lax.Precision.HIGHEST)
    return Moments(square=jnp.square(x).sum(0), gram=gram)
