"""Functions that compute in float64 when they are given float64. Traced and host.

JAX has float64 inside `jax.enable_x64` alone. Arrays made there outlive the block, and
outside of it JAX computes with them in a mixture: what they are combined with is
float32, and operations that look at their bits take each number for two.
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
    """Return `function`, run in JAX's 64-bit mode where an argument is float64.

    It then returns the same inside and outside of `jax.enable_x64`, also while it is
    traced. NumPy arrays do not count: JAX makes them float32 outside, as it documents.
    """

    @functools.wraps(function)
    def in_precision(*args: P.args, **kwargs: P.kwargs) -> R:
        leaves = (x for arg in (*args, *kwargs.values()) for x in _leaves(arg))
        if any(isinstance(x, jax.Array) and x.dtype == np.float64 for x in leaves):
            with jax.enable_x64(True):
                return function(*args, **kwargs)
        return function(*args, **kwargs)

    return in_precision


def _leaves(arg: Any) -> list[Any]:
    """Return the arrays of an argument; JAX knows no mappings but dicts."""
    return jax.tree.leaves(dict(arg) if isinstance(arg, Mapping) else arg)


@contextlib.contextmanager
def wide() -> Iterator[None]:
    """Turns on float64, but on TPU, which has no float64 factorisations."""
    if jax.default_backend() == "tpu":
        yield
    else:
        with jax.enable_x64(True):
            yield
