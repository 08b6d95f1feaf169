"""The start of a classifier. Traceable under `jit`."""

from typing import Any

import jax
import jax.numpy as jnp

from para_jax import nest, unnest
from train.data.batch import Batch
from train.models.adapted import Model


def draw(model: Model, key: jax.Array, batch: Batch) -> dict[str, Any]:
    """Draw a classifier as transformers does: a deviation of 0.02, no bias.

    Args:
      model: The model; without a classifier the result is empty.
      key: The key of the draw.
      batch: A batch of the shapes that the model takes.
    """
    params = jax.eval_shape(model.init, key, batch.inputs)["params"]
    shapes = unnest(params.get("classifier", {}))

    def one(number: int, path: str) -> jax.Array:
        if path.endswith("bias"):
            return jnp.zeros(shapes[path].shape)
        # The first has the key itself, so that a single kernel is drawn by no number.
        own = jax.random.fold_in(key, number) if number else key
        return 0.02 * jax.random.normal(own, shapes[path].shape)

    # Kernels first: biases draw nothing and must not shift the numbers of the keys.
    paths = sorted(shapes, key=lambda path: path.endswith("bias"))
    return nest({path: one(number, path) for number, path in enumerate(paths)})
