"""A dense layer that applies the LoRA adapter it finds under its own path.

Adapters are variables of the collection `lora`, beside the frozen `params`:

    logits = model.apply({"params": base, "lora": adapters}, batch)

with `adapters = para_jax.to_params(...)`: at a layer's path the factors
`a: [m, r]` and `b: [r, n]`, the scale folded in. A layer that finds none is a plain
dense layer, so the shape of the adapters is their only configuration. Traced.
"""

from collections.abc import Mapping
from typing import Any

import flax
import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Float


class Dense(nn.Module):
    """The map `y = x @ kernel + bias + (x @ a) @ b`, the last term where it exists.

    Attributes:
      features: The number of outputs `n`.
    """

    features: int

    @nn.compact
    def __call__(self, x: Float[jax.Array, "*B m"]) -> Float[jax.Array, "*B n"]:
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        y = x @ kernel
        y += bias.reshape((1,) * (y.ndim - 1) + (-1,))
        if self.has_variable("lora", "a"):
            a, b = self.get_variable("lora", "a"), self.get_variable("lora", "b")
            y += (x @ a) @ b
        return y


def check(lora: Mapping[str, Any], params: Mapping[str, Any]) -> None:
    """Checks that every adapter of `lora` has a kernel in `params` that it fits.

    Flax ignores variables that no module asks for: an adapter under a wrong path would
    have no effect, and no error would say so. Host code.

    Raises:
      ValueError: if a path has no kernel, or the factors do not fit the kernel.
    """
    leaves: dict[tuple[str, ...], Any] = flax.traverse_util.flatten_dict(params)
    kernels = {path[:-1]: x.shape for path, x in leaves.items() if path[-1] == "kernel"}
    factors: dict[tuple[str, ...], Any] = flax.traverse_util.flatten_dict(lora)
    for path in dict.fromkeys(path[:-1] for path in factors):
        name = "/".join(path)
        if path not in kernels:
            raise ValueError(
                f"The adapter '{name}' belongs to no dense layer of the model, which "
                f"has {sorted('/'.join(p) for p in kernels)[:3]}, ... Rename it."
            )
        _check_pair(name, factors, path, kernels[path])


def _check_pair(
    name: str,
    factors: Mapping[tuple[str, ...], jax.Array | np.ndarray],
    path: tuple[str, ...],
    kernel: tuple[int, ...],
) -> None:
    got = [factors[*path, x].shape if (*path, x) in factors else None for x in "ab"]
    a, b = got
    if a is None or b is None or (a[0], b[1]) != kernel or a[1] != b[0]:
        raise ValueError(
            f"The adapter '{name}' does not fit its layer: a, b have shapes {a}, {b}; "
            f"expected [{kernel[0]}, r], [r, {kernel[1]}]."
        )
