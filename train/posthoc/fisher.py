"""Fisher-PARA: components by the empirical Fisher information of their factors.

PARA's ablation. With `delta = U diag(s) V^T`, all three trained as free tensors,

    I_j = sum_p F(U_pj) + F(s_j) + sum_q F(V_qj),   F(w) = mean (dL/dw)^2,

the mean over examples with their true labels. For `G = dL/d(delta)` of one example,

    I_j = mean [ s_j^2 ||G v_j||^2 + (u_j^T G v_j)^2 + s_j^2 ||G^T u_j||^2 ].

Axis letters: `m` inputs, `n` outputs, `k` components, `S` batches, `B` examples of a
batch. Traced: no gradient is kept longer than its squares take to be summed.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from para_jax import Adapter, Array
from train.data.batch import NO_LABEL, Batch
from train.models.adapted import Model
from train.models.score import score
from train.posthoc.components import Components
from train.posthoc.examples import Examples

Mode = Literal["example", "batch"]


class Factors(NamedTuple):
    """The free tensors of one update `(u * s) @ vt`."""

    u: Float[jax.Array, "m k"]
    s: Float[jax.Array, " k"]
    vt: Float[jax.Array, "k n"]


class Information(NamedTuple):
    """The Fisher information of each component's entries, summed, by factor."""

    u: Float[Array, " k"]
    s: Float[Array, " k"]
    vt: Float[Array, " k"]

    @property
    def total(self) -> Float[Array, " k"]:
        """Fisher-PARA's score `I_j`."""
        return self.u + self.s + self.vt


def information(
    loss: Callable[[dict[str, Factors], Any], jax.Array],
    factors: dict[str, Factors],
    examples: Any,
    weights: Float[jax.Array, "S B"],
    *,
    mode: Mode = "example",
) -> dict[str, Information]:
    """Return the empirical Fisher information of all components.

    `example` is the definition. `batch` squares the gradient of a batch's mean loss,
    which is quicker and never more; away from an optimum it may rank differently.

    Memory: one batch of the factors' gradients in `example`, one gradient in `batch`.

    Args:
      loss: The loss of one example.
      factors: The factors of the whole parent, nothing pruned.
      examples: Arrays `[S, B, ...]`.
      weights: 1, or 0 for what only fills up a batch, in no batch for all.
      mode: The unit to square: each example's gradient, or each batch's.
    """

    def example(x: Any) -> dict[str, Information]:
        return _summed(jax.grad(loss)(factors, x))

    def mean_loss(factors: Any, batch: Any, weight: jax.Array) -> jax.Array:
        losses = jax.vmap(loss, (None, 0))(factors, batch)
        # Weights of padding are 0; the mean is over the others.
        return weight @ losses / weight.sum()

    def one(args: tuple[Any, jax.Array]) -> dict[str, Information]:
        batch, weight = args
        if mode == "batch":
            return _summed(jax.grad(mean_loss)(factors, batch, weight))
        # Per-example gradients exist for one batch at a time, then only their squares.
        return jax.tree.map(lambda x: weight @ x, jax.vmap(example)(batch))

    # Sequential, for the same reason.
    squares = jax.lax.map(one, (examples, weights))
    count = len(weights) if mode == "batch" else weights.sum()
    return jax.tree.map(lambda x: x.sum(0) / count, squares)


def _summed(grads: dict[str, Factors]) -> dict[str, Information]:
    return {
        path: Information(
            u=jnp.square(g.u).sum(0), s=jnp.square(g.s), vt=jnp.square(g.vt).sum(1)
        )
        for path, g in grads.items()
    }


def fisher(
    model: Model,
    params: Mapping[str, Any],
    components: Mapping[str, Components],
    batches: Examples,
    *,
    mode: Mode = "example",
) -> dict[str, Information]:
    """Return the information of a parent's components in a model.

    Where an example has a label at each position, its loss is the mean over those that
    count. With the true labels, base and classifier frozen, in float32 unless the model
    has a dtype of its own; products are as exact as the device's default, TF32 on a
    GPU. Compiled once for all parents of one shape.

    Args:
      model: As for `train.models.score.score`.
      params: Its parameters.
      components: The parent's, from `train.posthoc.components.decompose`.
      batches: Labelled examples `[S, B, ...]`.
      mode: The unit to square: each example's gradient, or each batch's.
    """
    factors = {
        path: Factors(*(jnp.asarray(y, jnp.float32) for y in (x.u, x.s, x.vt)))
        for path, x in components.items()
    }
    return _fisher(model, params, factors, batches, mode=mode)


@functools.partial(jax.jit, static_argnames=("model", "mode"))
def _fisher(
    model: Model,
    params: Mapping[str, Any],
    factors: dict[str, Factors],
    batches: Examples,
    *,
    mode: Mode,
) -> dict[str, Information]:
    def loss(factors: dict[str, Factors], example: Examples) -> jax.Array:
        lora = model.adapted.collection(
            {p: Adapter(a=x.u, b=x.s[:, None] * x.vt) for p, x in factors.items()}
        )
        # A batch of one: the vmap runs over examples.
        batch = Batch(*jax.tree.map(lambda x: x[None], tuple(example)))
        return score(model, {"params": params, "lora": lora}, batch).loss

    counts = jnp.asarray(batches.labels != NO_LABEL)
    # An example counts if any of its positions has a label.
    weights = counts.any(range(2, counts.ndim)).astype(jnp.float32)
    return information(loss, factors, batches, weights, mode=mode)
