"""Tensors of the params for models with the module names of transformers.

In the stack `encoder/layer`, `encoder/layer/output/dense/kernel` stacks the tensors
`encoder.layer.0.output.dense.weight`, `encoder.layer.1.output.dense.weight`, ...
"""

from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn

from para_jax import unnest
from train.models import checkpoint
from train.models.checkpoint import Leaf

# PyTorch's names of the params of Flax's layers.
_NAMES = {"kernel": "weight", "embedding": "weight", "scale": "weight"}


def leaves(
    model: nn.Module, batch: Any, *, stacks: Mapping[str, int]
) -> dict[str, Leaf]:
    """Return the tensors of each of the params, by path.

    Args:
      model: The Linen model.
      batch: Anything that it can be called with; only shapes are computed.
      stacks: The number of layers of each stack, by its path.
    """
    # Shapes only: nothing is allocated, whatever the model's size.
    variables = jax.eval_shape(model.init, jax.random.key(0), batch)
    params = unnest(variables["params"])
    return {path: _leaf(path, x.shape, stacks) for path, x in params.items()}


def _leaf(path: str, shape: tuple[int, ...], stacks: Mapping[str, int]) -> Leaf:
    *modules, last = path.split("/")
    name = ".".join([*modules, _NAMES.get(last, last)])
    convert = checkpoint.transposed if last == "kernel" else checkpoint.unchanged
    for stack, count in stacks.items():
        if path.startswith(f"{stack}/"):
            root = stack.replace("/", ".")
            below = name.removeprefix(root)
            names = tuple(f"{root}.{i}{below}" for i in range(count))
            return Leaf(names, shape, convert, stacked=True)
    return Leaf((name,), shape, convert)
