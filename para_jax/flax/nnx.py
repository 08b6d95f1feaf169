"""Attach adapters to an existing NNX model, each layer at its own rank.

    nnx.attach(model, child.adapters)  # The model computes with them from here on.
    nnx.merge(model)  # They are in the kernels; or
    adapters = nnx.detach(model)  # the model is what it was.

All three change the model in place, as is NNX's idiom, and run on the host, outside
of `nnx.jit`. The factors are `flax.nnx.LoRAParam`s named `lora_a` and `lora_b`, beside
the layer's `kernel`. The layers stay the same objects under the same paths, so all
references to them stay valid: only their class is replaced by a subclass of itself.

Layers stacked by `nnx.vmap` need adapters with the same stack: `a: [L, m, r]` for a
kernel `[L, m, n]`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Num

from para_jax._adapters.adapter import Adapter, Adapters, Array, folded
from para_jax.flax import checks, contraction
from para_jax.flax.contraction import Contraction, Shape

Layer = nnx.Linear | nnx.LinearGeneral | nnx.Einsum


def attach(model: nnx.Module, adapters: Adapters) -> None:
    """Attach `adapters` to the layers of `model`, in place.

    `nnx.state(model, nnx.LoRAParam)` is their state afterwards, and an optimizer with
    `wrt=nnx.LoRAParam` trains them alone. Scales are folded into `lora_b`.

    Example:
      >>> from flax import nnx
      >>> from para_jax.flax import nnx as lora
      >>> model = nnx.List([nnx.Linear(5, 7, rngs=nnx.Rngs(0))])
      >>> lora.attach(model, {"0": adapters["up"]})
      >>> model[0].lora_a.shape, model[0](jnp.ones((1, 5))).shape
      ((5, 4), (1, 7))

    Args:
      model: A module with `nnx.Linear`, `nnx.LinearGeneral` or `nnx.Einsum` layers,
        also inside other modules, such as `nnx.MultiHeadAttention`.
      adapters: The updates by the slash-joined path of the layer in the model, such as
        `layers/0/query`. For a kernel of many axes, the layer contracts those of `m`
        and keeps those of `n`, each flattened in the kernel's order.

    Raises:
      ValueError: if a path has no layer, or one of another kind, or the factors do not
        fit its kernel, or it has an adapter already. The model is unchanged then.
    """
    modules = _modules(model)
    for path, adapter in adapters.items():
        if path not in modules:
            layers = [x for x, module in modules.items() if isinstance(module, Layer)]
            raise checks.unknown(path, layers)
        _check(path, modules[path], adapter)
    # A second loop, so that an error above leaves the model unchanged.
    for path, adapter in adapters.items():
        _attach(modules[path], folded(adapter))


def detach(model: nnx.Module) -> dict[str, Adapter]:
    """Remove the adapters from `model`, in place, and return them.

    Their scale is 1. The inverse is `attach`.

    Example:
      >>> from flax import nnx
      >>> from para_jax.flax import nnx as lora
      >>> model = nnx.List([nnx.Linear(5, 7, rngs=nnx.Rngs(0))])
      >>> lora.attach(model, {"0": adapters["up"]})
      >>> lora.detach(model)["0"].rank, hasattr(model[0], "lora_a")
      (4, False)
    """
    return {
        path: _detach(module)
        for path, module in _modules(model).items()
        if _is_adapted(module)
    }


def merge(model: nnx.Module) -> None:
    """Add each update to its kernel and remove the adapters, in place.

    The sum is computed in float32 or wider and rounded once, to the kernel's dtype.

    Example:
      >>> from flax import nnx
      >>> from para_jax.flax import nnx as lora
      >>> model = nnx.List([nnx.Linear(5, 7, rngs=nnx.Rngs(0))])
      >>> before = model[0].kernel[...]
      >>> lora.attach(model, {"0": adapters["up"]})
      >>> lora.merge(model)
      >>> np.round(model[0].kernel[...] - before).diagonal().tolist()
      [8.0, 4.0, 2.0, 1.0, 0.0]
    """
    modules = _modules(model)
    for path, adapter in detach(model).items():
        axes, shape = _kernel(path, modules[path])
        kernel = modules[path].kernel[...]
        wide = np.promote_types(kernel.dtype, np.float32)
        delta = axes.delta(adapter.a, adapter.b, shape, wide)
        modules[path].kernel[...] = (kernel.astype(wide) + delta).astype(kernel.dtype)


def _call(
    self: Any, inputs: Num[Array, "..."], *args: Any, **kwargs: Any
) -> Num[jax.Array, "..."]:
    """Call the layer's own class, and add the update."""
    # Not `super()`: the function belongs to no class body, and serves every layer's.
    layer: Any = type(self).__base__
    y = layer.__call__(self, inputs, *args, **kwargs)
    return y + _update(self, inputs, *args, **kwargs).astype(y.dtype)


@functools.cache  # One subclass per class: `nnx.jit` compiles anew for another.
def _adapted(layer: Any) -> Any:
    # A second base class would change the layout of the object: Python refuses that.
    return type(f"Adapted{layer.__name__}", (layer,), {"__call__": _call})


def _is_adapted(module: nnx.Module) -> bool:
    return vars(type(module)).get("__call__") is _call


def _attach(module: Any, adapter: Adapter) -> None:
    # By assignment, NNX would record the class as an attribute of the module.
    object.__setattr__(module, "__class__", _adapted(type(module)))
    module.lora_a = nnx.LoRAParam(jnp.asarray(adapter.a))
    module.lora_b = nnx.LoRAParam(jnp.asarray(adapter.b))


def _detach(module: Any) -> Adapter:
    adapter = Adapter(module.lora_a[...], module.lora_b[...])
    del module.lora_a, module.lora_b
    object.__setattr__(module, "__class__", type(module).__base__)
    return adapter


def _modules(model: nnx.Module) -> dict[str, Any]:
    return {
        "/".join(map(str, path)): module for path, module in nnx.iter_modules(model)
    }


def _check(path: str, module: Any, adapter: Adapter) -> None:
    if _is_adapted(module):
        raise ValueError(
            f"'{path}' has an adapter already. `detach` it, or `merge` it."
        )
    axes, shape = _kernel(path, module)
    got = module.kernel.shape
    stack = got[: len(got) - len(shape)]
    if got != (*stack, *shape):
        raise ValueError(
            f"The kernel of '{path}' has shape {got}, expected {shape} with any stack "
            "in front. Stack the layers on axis 0."
        )
    m, n = axes.matrix(shape)
    a, b = adapter.a.shape, adapter.b.shape
    checks.check(path, a, b, m=m, n=n, stack=stack)


def _kernel(path: str, module: nnx.Module) -> tuple[Contraction, Shape]:
    """Return the axes of a layer's kernel, and their sizes without a stack."""
    match module:
        case nnx.Linear():
            return contraction.DENSE, (module.in_features, module.out_features)
        # A batch axis gives each of its members a kernel, so an update is not `a @ b`.
        case nnx.LinearGeneral() if not module.batch_axis:
            m, n = module.in_features, module.out_features
            axes = contraction.general(len(m), range(len(m)), len(n))
            return axes, (*m, *n)
        case nnx.Einsum():
            axes = contraction.parse(module.einsum_str, path=path)
            return axes, tuple(module.kernel_shape)
    batched = " with batch axes" if isinstance(module, nnx.LinearGeneral) else ""
    raise ValueError(
        f"'{path}' is a {type(module).__name__}{batched}, expected a Linear, "
        "LinearGeneral without batch axes, or Einsum. Add `a @ b` to its kernel."
    )


def _update(
    module: Any, x: Num[Array, "..."], *args: Any, **kwargs: Any
) -> Float[jax.Array, "..."]:
    match module:
        case nnx.Linear():
            return _apply(module, contraction.DENSE, x, *args, **kwargs)
        case nnx.LinearGeneral():
            features = len(module.out_features)
            axes = contraction.general(x.ndim, module.axis, features)
            return _apply(module, axes, x, *args, **kwargs)
        case _:
            return _einsum(module, x, *args, **kwargs)


# The parameters keep the names of Flax's `__call__`, since callers may pass by keyword.
def _einsum(
    module: nnx.Einsum,
    x: Num[Array, "..."],
    einsum_str: str | None = None,
    out_sharding: Any = None,
) -> Float[jax.Array, "..."]:
    equation = einsum_str or module.einsum_str
    axes = contraction.parse(equation, path=type(module).__name__)
    return _apply(module, axes, x, out_sharding)


def _apply(
    module: Any, axes: Contraction, x: Num[Array, "..."], out_sharding: Any = None
) -> Float[jax.Array, "..."]:
    factors = module.lora_a[...], module.lora_b[...]
    x, a, b = module.promote_dtype((x, *factors), dtype=module.dtype)
    return axes.update(
        x,
        a,
        b,
        module.kernel.shape,
        precision=module.precision,
        out_sharding=out_sharding,
    )
