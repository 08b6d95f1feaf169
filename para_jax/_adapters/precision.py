"""Computing in float64 for float64 arguments, whatever the caller's setting.

JAX has float64 inside `jax.enable_x64` alone. Arrays made there outlive the block, and
outside of it JAX mixes precisions: other operands are float32, and operations on bits
take each number for two.

Traceable under `jit`.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np

P = ParamSpec("P")
R = TypeVar("R")


def kept(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate `function` to run in JAX's 64-bit mode for float64 arguments.

    It then returns the same inside and outside of `jax.enable_x64`, also while it is
    traced. NumPy arrays do not count: JAX makes them float32 outside, as it documents.
    """

    @functools.wraps(function)
    def in_precision(*args: P.args, **kwargs: P.kwargs) -> R:
        # Any argument counts: a float64 spectrum may meet float32 factors.
        leaves = (x for arg in (*args, *kwargs.values()) for x in _leaves(arg))
        if any(isinstance(x, jax.Array) and x.dtype == np.float64 for x in leaves):
            with jax.enable_x64(True):
                return function(*args, **kwargs)
        return function(*args, **kwargs)

    return in_precision


def _leaves(arg: Any) -> list[Any]:
    """Return the arrays of an argument, also of a mapping unknown to JAX."""
    return jax.tree.leaves(dict(arg) if isinstance(arg, Mapping) else arg)


@contextlib.contextmanager
def wide() -> Iterator[None]:
    """Turn on float64, except on TPU, for lack of float64 factorisations."""
    if backend() == "tpu":
        yield
    else:
        with jax.enable_x64(True):
            yield


def backend() -> str:
    """Return the platform that JAX computes on: `cpu`, `gpu` or `tpu`."""
    # The setting first: the first question to JAX itself starts all its backends.
    named = getattr(jax.config, "jax_platforms", None)
    return "cpu" if named == "cpu" else jax.default_backend()
