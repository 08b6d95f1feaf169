"""Apply adapters to an unchanged Linen model. Traceable under `jit`."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from flax import linen as nn

from para_jax._adapters.adapter import Adapters, folded, ordered
from para_jax.flax import checks, updates


@contextlib.contextmanager
def applied(adapters: Adapters) -> Iterator[None]:
    """Add the adapters' updates to the layers of every Linen model called inside.

    Each layer keeps its own rank; layers without an adapter stay the same. Supported
    are `nn.Dense`, `nn.DenseGeneral`, `nn.Einsum`, `nn.Conv`, `nn.Embed` and modules
    built from them, such as `nn.MultiHeadDotProductAttention`.

    Layers are found while the model is traced: enter the context inside the function
    that is compiled, with the adapters as its argument. Gradients flow to them.

    Example:
      >>> from flax import linen as nn
      >>> from para_jax.flax import linen
      >>> model = nn.Sequential([nn.Dense(7), nn.relu, nn.Dense(5)])
      >>> x = jnp.ones((1, 5))
      >>> base = model.init(jax.random.key(0), x)
      >>> @jax.jit
      ... def outputs(base, adapters, x):
      ...     with linen.applied(adapters):
      ...         return model.apply(base, x)
      >>> lora = {"layers_0": adapters["up"], "layers_2": adapters["down"]}
      >>> outputs(base, lora, x).shape
      (1, 5)

    Args:
      adapters: The updates by the path of the module in the model, such as
        `encoder/layer_0/query`. Layers under `nn.scan` share one path and get no
        stack: use `para_jax.flax.linen.Dense` there.

    Raises:
      ValueError: while the model is called, if an adapter does not fit its kernel or
        belongs to a layer of another kind; at the end, if no layer used it.
    """
    # Folded once here, so that the layers compute `(x @ a) @ b` alone.
    interceptor = _Interceptor({path: folded(x) for path, x in adapters.items()})
    with nn.intercept_methods(interceptor):
        yield
    if unused := [path for path in ordered(adapters) if path not in interceptor.used]:
        raise ValueError(
            f"The adapter '{unused[0]}' was used by no layer of the model, which has "
            f"{checks.nearest(unused[0], interceptor.seen)}, ... Rename it; or, if the "
            "model was compiled before, enter the context inside its function."
        )


class _Interceptor:
    def __init__(self, adapters: Adapters) -> None:
        self._adapters = adapters
        self._running: set[str] = set()
        self._kernels: dict[str, tuple[int, ...]] | None = None
        self.used: set[str] = set()
        self.seen: set[str] = set()

    def __call__(
        self,
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        if self._kernels is not None:
            return self._inside(call, args, kwargs, context)
        # The outermost call is that of the whole model, whose kernels show the stacks
        # that `nn.scan` hides from the layers inside.
        self._kernels = updates.kernels(context.module)
        try:
            return self._inside(call, args, kwargs, context)
        finally:
            self._kernels = None

    def _inside(
        self,
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        module, path = context.module, updates.path_of(context.module)
        # A subclass that calls `super().__call__` is intercepted at each level.
        adapted = path in self._adapters and path not in self._running
        # `nn.Embed.attend` multiplies with the transposed table: an update added to the
        # lookup alone would leave the logits without it.
        if adapted and context.method_name == "attend":
            raise updates.refusal(module, "it also computes the logits, in `attend`")
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        if isinstance(module, updates.LAYERS):
            self.seen.add(path)
        if adapted:
            return self._adapted(path, module, call, args, kwargs)
        return call(*args, **kwargs)

    def _adapted(
        self,
        path: str,
        module: nn.Module,
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        self._running.add(path)
        try:
            y = call(*args, **kwargs)
        finally:
            self._running.remove(path)
        self.used.add(path)
        self._check_unstacked(path, module)
        adapter = self._adapters[path]
        return updates.add(module, y, adapter.a, adapter.b, *args, **kwargs)

    def _check_unstacked(self, path: str, module: nn.Module) -> None:
        """Raise ValueError if one update would apply to all layers of a stack."""
        whole = (self._kernels or {}).get(path)  # None while it is initialised.
        if whole and whole != (own := updates.kernels(module)[path]):
            raise ValueError(
                f"'{path}' is a stack of layers: its kernel has shape {whole}, each "
                f"layer's {own}. Expected one layer: build the model with "
                "`para_jax.flax.linen.Dense`, which scans stacked adapters too."
            )
