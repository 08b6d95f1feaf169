"""Adapters as Flax params: a nested dict of arrays, and back.

The form that a Linen variable collection has, that Orbax writes, and that a model
applies whatever the ranks: each module's own dict holds `a` and `b`.
"""

from collections.abc import Mapping
from typing import Any

from para_jax._adapters.adapter import Adapter, folded


def to_params(adapters: Mapping[str, Adapter]) -> dict[str, Any]:
    """Returns `{"mlp": {"up": {"a": ..., "b": ...}}}` for the path `mlp/up`. Traced.

    The scale is folded into `b`, so `delta = a @ b`: nothing but arrays is left.

    Example:
      >>> lora = para_jax.to_params({"mlp/up": adapters["up"]})
      >>> jax.tree.map(np.shape, lora)  # What goes to model.apply({"lora": lora, ...}).
      {'mlp': {'up': {'a': (5, 4), 'b': (4, 7)}}}

    Raises:
      ValueError: if one path lies inside another's module (`mlp` and `mlp/a`).
    """
    return nest(
        {
            f"{path}/{name}": factor
            for path, x in adapters.items()
            for name, factor in (("a", x.a), ("b", folded(x).b))
        }
    )


def from_params(params: Mapping[str, Any], *, scale: float = 1.0) -> dict[str, Adapter]:
    """Returns the adapters of a nested dict that `to_params` made: its inverse.

    Example:
      >>> lora = {"mlp": {"up": {"a": np.ones((5, 4)), "b": np.ones((4, 7))}}}
      >>> found = para_jax.from_params(lora, scale=16 / 4)
      >>> found["mlp/up"].rank, found["mlp/up"].scale
      (4, 4.0)

    Args:
      params: Nested dicts, where each module with an adapter holds `a` and `b`.
        Other leaves are passed over.
      scale: What to multiply `a @ b` with, the same for all modules: 1 for what
        `to_params` made, `alpha / r` for params trained with a scale outside.

    Raises:
      ValueError: if a module has one factor without the other.
    """
    factors: dict[str, dict[str, Any]] = {}
    for path, value in unnest(params).items():
        module, _, name = path.rpartition("/")
        if name in ("a", "b"):
            factors.setdefault(module, {})[name] = value
    for module, pair in factors.items():
        if len(pair) == 1:
            raise ValueError(f"'{module}' has the factor '{min(pair)}' alone.")
    return {path: Adapter(**pair, scale=scale) for path, pair in factors.items()}


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns nested dicts for slash-joined paths. The inverse is `unnest`.

    Raises:
      ValueError: if a path goes on below a value.
    """
    result: dict[str, Any] = {}
    for path, value in values.items():
        *parents, name = path.split("/")
        node = result
        for part in parents:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise ValueError(f"'{path}' lies below another value.")
        if name in node:
            raise ValueError(f"'{path}' is taken: other paths go on below it.")
        node[name] = value
    return result


def unnest(tree: Mapping[Any, Any]) -> dict[str, Any]:
    """Returns the leaves of nested dicts and lists by slash-joined path."""
    result: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, list | tuple):
            value = dict(enumerate(value))
        if isinstance(value, Mapping):
            result |= {f"{key}/{path}": x for path, x in unnest(value).items()}
        else:
            result[str(key)] = value
    return result
