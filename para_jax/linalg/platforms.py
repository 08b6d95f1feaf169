"""A choice between functions, by the platform that a program is lowered for.

`jax.lax.platform_dependent` traces all of them, which takes as long for each. Here the
choice is one operation until a program is lowered, and only then is the function of
that platform traced. Differentiated or on a mesh of devices, it is `platform_dependent`
after all.

A program may be lowered in another precision than it was traced in, and some operations
are traced once more by then. So the functions are traced and lowered in the precision
that the choice was made in.

Traceable under `jit`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import AxisType

PLATFORMS = ("cpu", "cuda", "tpu")

_by_platform = Primitive("by_platform")
_by_platform.multiple_results = True


def by_platform(
    *args: Any,
    out: Any,
    cpu: Callable[..., Any],
    cuda: Callable[..., Any],
    tpu: Callable[..., Any],
    default: Callable[..., Any],
) -> Any:
    """Return what the function for the platform returns for `args`.

    Args:
      *args: Trees of arrays.
      out: The shapes and dtypes of the result.
      cpu: A traceable function, in no need of anything but its arguments.
      cuda: The same for NVIDIA GPUs.
      tpu: The same for TPUs.
      default: The same for all others.
    """
    leaves, tree = jax.tree.flatten(args)
    functions = tuple(
        _Flat(f, tree, jax.dtypes.canonicalize_dtype(float) == np.float64)
        for f in (cpu, cuda, tpu, default)
    )
    shapes, out_tree = jax.tree.flatten(out)
    if any(is_placed(x) for x in leaves):
        found = _traced(*leaves, functions=functions)
    else:
        avals = tuple((x.shape, np.dtype(x.dtype)) for x in shapes)
        found = _by_platform.bind(*leaves, functions=functions, avals=avals)
    return jax.tree.unflatten(out_tree, found)


class _Flat:
    """A function of a list of arrays, in the precision that it was called in."""

    def __init__(self, function: Callable[..., Any], tree: Any, wide: bool) -> None:
        self.key = (function, tree, wide)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Flat) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __call__(self, *leaves: Any) -> list[Any]:
        function, tree, wide = self.key
        with jax.enable_x64(wide):
            return jax.tree.leaves(function(*jax.tree.unflatten(tree, leaves)))

    def mapped(self, dims: Sequence[Any]) -> "_Flat":
        """Return the function of arrays with one more axis each, at `dims`."""
        function, tree, wide = self.key
        return _Flat(_mapped(function, tree, tuple(dims)), tree, wide)


@functools.lru_cache  # So that equal functions are equal mapped, too.
def _mapped(
    function: Callable[..., Any], tree: Any, dims: tuple[Any, ...]
) -> Callable[..., Any]:
    return jax.vmap(function, in_axes=jax.tree.unflatten(tree, dims))


def is_placed(x: Any) -> bool:
    """Return whether the type of `x` says how it lies on a mesh: not on Auto axes."""
    kind = jax.typeof(x)
    known = any(axis != AxisType.Auto for axis in kind.sharding.mesh.axis_types)
    return known or bool(getattr(kind, "vma", None))


def _traced(*leaves: Any, functions: Sequence[_Flat], **_: Any) -> list[Any]:
    *known, default = functions
    named = dict(zip(PLATFORMS, known, strict=True))
    return lax.platform_dependent(*leaves, **named, default=default)


@functools.partial(jax.jit, static_argnames=("functions", "avals"))
def _computed(*leaves: Any, **params: Any) -> list[Any]:
    """Return the result outside of a program: compiled once for equal functions."""
    # Not traced where `jax.disable_jit` is in force: it would end here again.
    is_traced = any(isinstance(x, jax.core.Tracer) for x in leaves)
    return (_by_platform.bind if is_traced else _traced)(*leaves, **params)


def _batched(
    args: Sequence[Any],
    dims: Sequence[Any],
    *,
    functions: Sequence[_Flat],
    avals: Sequence[Any],
) -> Any:
    pairs = zip(args, dims, strict=True)
    size = next(x.shape[dim] for x, dim in pairs if dim is not None)
    found = _by_platform.bind(
        *args,
        functions=tuple(f.mapped(list(dims)) for f in functions),
        avals=tuple(((size, *shape), dtype) for shape, dtype in avals),
    )
    return found, [0] * len(found)


def _differentiated(
    primals: Sequence[Any], tangents: Sequence[Any], **params: Any
) -> Any:
    tangents = tuple(ad.instantiate_zeros(x) for x in tangents)
    return jax.jvp(functools.partial(_traced, **params), tuple(primals), tangents)


def _lowered(index: int) -> Any:
    def function(*leaves: Any, functions: Sequence[_Flat], **_: Any) -> list[Any]:
        return functions[index](*leaves)

    rule = mlir.lower_fun(function, multiple_results=True)

    def lower(context: Any, *args: Any, functions: Sequence[_Flat], **rest: Any) -> Any:
        *_, wide = functions[index].key
        with jax.enable_x64(wide):
            return rule(context, *args, functions=functions, **rest)

    return lower


@_by_platform.def_abstract_eval
def _(*_: Any, avals: Sequence[Any], **__: Any) -> list[Any]:
    return [jax.core.ShapedArray(shape, dtype) for shape, dtype in avals]


_by_platform.def_impl(_computed)
batching.primitive_batchers[_by_platform] = _batched
ad.primitive_jvps[_by_platform] = _differentiated
mlir.register_lowering(_by_platform, _lowered(len(PLATFORMS)))
for _index, _platform in enumerate(PLATFORMS):
    mlir.register_lowering(_by_platform, _lowered(_index), platform=_platform)
