"""Dataclasses as pytrees with their first field as the one leaf, all else static."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax


def register(kind: type[Any]) -> None:
    """Register a dataclass as a pytree: its first field is the leaf.

    Args:
      kind: The dataclass. Its other fields have to be hashable.
    """
    unflatten = functools.partial(_unflatten, kind)
    jax.tree_util.register_pytree_with_keys(kind, _flatten, unflatten)


def _flatten(value: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return the leaf with its key, and the static rest."""
    names = [x.name for x in dataclasses.fields(value)]
    leaf, *static = (getattr(value, name) for name in names)
    return ((jax.tree_util.GetAttrKey(names[0]), leaf),), tuple(static)


def _unflatten(kind: type[Any], static: tuple[Any, ...], leaves: Sequence[Any]) -> Any:
    """Return an instance, unchecked: JAX builds them of tracers, shapes and None."""
    result = object.__new__(kind)
    # Without `__init__`, whose checks a tracer or a shape would fail.
    names = [x.name for x in dataclasses.fields(kind)]
    vars(result).update(zip(names, (*leaves, *static), strict=True))
    return result
