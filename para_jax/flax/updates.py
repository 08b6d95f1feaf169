"""Add an adapter's update to the output of a Linen layer. Traceable under `jit`."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Float, Int, Num

from para_jax._adapters.adapter import Array
from para_jax._adapters.params import unnest
from para_jax.flax import checks, contraction
from para_jax.flax.contraction import Contraction

LAYERS = (nn.Dense, nn.DenseGeneral, nn.Einsum, nn.Conv, nn.Embed)


def add(
    module: nn.Module, y: jax.Array, a: Any, b: Any, *args: Any, **kwargs: Any
) -> jax.Array:
    """Return `y + (x @ a) @ b`, in the dtype of `y`.

    Args:
      module: The layer, bound, after it computed `y`.
      y: Its output.
      a: `[m, r]`, where `m` are the kernel's contracted axes, flattened.
      b: `[r, n]`, where `n` are the kernel's other axes, flattened.
      *args: The arguments of the layer's call.
      **kwargs: Likewise.

    Raises:
      ValueError: if the factors do not fit the kernel, or the layer is not one of
        `LAYERS`, or its update is not a product of two small layers.
    """
    match module:
        case nn.Dense():
            update = _dense(module, a, b, *args, **kwargs)
        case nn.DenseGeneral():
            update = _general(module, a, b, *args, **kwargs)
        case nn.Einsum():
            update = _einsum(module, a, b, *args, **kwargs)
        case nn.Conv():
            update = _conv(module, a, b, *args, **kwargs)
        case nn.Embed():
            update = _embed(module, a, b, *args, **kwargs)
        case _:
            raise refusal(module, "this kind of layer has no kernel that we know")
    return y + update.astype(y.dtype)


def path_of(module: nn.Module) -> str:
    """Return the slash-joined path of a bound module."""
    return "/".join(module.path)


def kernels(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the kernels in a bound module, by the path of the layer."""
    # A model that annotates its params with the names of mesh axes has them boxed.
    params = unnest(nn.unbox(module.variables.get("params", {})))
    paths = {(*module.path, *name.split("/")): x.shape for name, x in params.items()}
    return {
        "/".join(layer): shape
        for (*layer, name), shape in paths.items()
        if name in ("kernel", "embedding")
    }


def refusal(module: nn.Module, why: str) -> ValueError:
    """Return the error for a layer without support; it lists the supported ones."""
    return ValueError(
        f"An adapter cannot be applied to '{path_of(module)}', a "
        f"{type(module).__name__}: {why}. Expected one of "
        f"{', '.join(x.__name__ for x in LAYERS)}; otherwise add `a @ b` to its kernel."
    )


# The parameters keep the names of Flax's `__call__`, since callers may pass by keyword.
def _dense(
    module: nn.Dense, a: Array, b: Array, inputs: Num[Array, "*B m"]
) -> Float[jax.Array, "*B n"]:
    return _linear(module, contraction.DENSE, a, b, inputs)


def _general(
    module: nn.DenseGeneral, a: Array, b: Array, inputs: Num[Array, "..."]
) -> Float[jax.Array, "..."]:
    if module.batch_dims:
        raise refusal(module, f"its kernel has batch axes, {module.batch_dims=}")
    axis = np.atleast_1d(module.axis).tolist()
    axes = contraction.general(inputs.ndim, axis, np.size(module.features))
    return _linear(module, axes, a, b, inputs)


def _einsum(
    module: nn.Einsum,
    a: Array,
    b: Array,
    inputs: Num[Array, "..."],
    einsum_str: str | None = None,
) -> Float[jax.Array, "..."]:
    equation = nn.merge_param("einsum_str", module.einsum_str, einsum_str)
    axes = contraction.parse(equation, path=path_of(module))
    return _linear(module, axes, a, b, inputs)


def _linear(
    module: nn.Dense | nn.DenseGeneral | nn.Einsum,
    axes: Contraction,
    a: Any,
    b: Any,
    x: Any,
) -> Float[jax.Array, "..."]:
    kernel = kernels(module)[path_of(module)]
    # A Flax transformation can give the layer a kernel with other axes than its own.
    if len(kernel) != len(axes.kernel):
        raise refusal(module, f"a transformation gave its kernel the shape {kernel}")
    m, n = axes.matrix(kernel)
    checks.check(path_of(module), a.shape, b.shape, m=m, n=n)
    promote: Any = module.promote_dtype
    x, a, b = promote(x, a, b, dtype=module.dtype)
    return axes.update(x, a, b, kernel, precision=module.precision)


def _conv(
    module: nn.Conv, a: Array, b: Array, inputs: Num[Array, "..."]
) -> Float[jax.Array, "..."]:
    if module.feature_group_count != 1 or module.mask is not None:
        raise refusal(module, "it has groups of features or a mask")
    *window, n = kernels(module)[path_of(module)]
    path = path_of(module)
    # `a` is a convolution with the same window and `r` features, `b` a 1x1 one on top:
    # no kernel of `window n` is formed.
    checks.check(path, a.shape, b.shape, m=math.prod(window), n=n)
    narrow = module.clone(parent=None, features=a.shape[1], use_bias=False)
    params = {"kernel": jnp.reshape(a, (*window, -1))}
    z = jnp.asarray(narrow.apply({"params": params}, inputs))
    return jnp.matmul(z, b.astype(z.dtype), precision=module.precision)


def _embed(
    module: nn.Embed, a: Array, b: Array, inputs: Int[Array, "*B"]
) -> Float[jax.Array, "*B n"]:
    m, n = kernels(module)[path_of(module)]
    checks.check(path_of(module), a.shape, b.shape, m=m, n=n)
    # A lookup in `a` replaces the product of a one-hot input with it.
    narrow = module.clone(parent=None, features=a.shape[1])
    z = jnp.asarray(narrow.apply({"params": {"embedding": a}}, inputs))
    return jnp.matmul(z, b.astype(z.dtype))
