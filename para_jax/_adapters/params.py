"""Adapters as Flax params: a nested dict of arrays, and back.

The form of a Linen variable collection and of Orbax files, for models of any rank: each
module's own dict holds `a` and `b`. The budget `para_jax.Params` is something else: a
number of parameters.

Traceable under `jit`.
"""

from collections.abc import Mapping
from typing import Any

from para_jax._adapters.adapter import Adapter, folded


def to_params(adapters: Mapping[str, Adapter]) -> dict[str, Any]:
    """Convert to nested dicts: `{"mlp": {"up": {"a": ..., "b": ...}}}` for `mlp/up`.

    The scale is folded into `b`, so `delta = a @ b`: only arrays are left.

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
    """Convert nested dicts to adapters: the inverse of `to_params`.

    Example:
      >>> lora = {"mlp": {"up": {"a": np.ones((5, 4)), "b": np.ones((4, 7))}}}
      >>> found = para_jax.from_params(lora, scale=16 / 4)
      >>> found["mlp/up"].rank, found["mlp/up"].scale
      (4, 4.0)

    Args:
      params: Nested dicts, where each module with an adapter holds `a` and `b`.
        Other leaves are ignored.
      scale: The factor of `a @ b`, the same for all modules: 1 for the result of
        `to_params`, `alpha / r` for params trained with a scale outside.

    Raises:
      ValueError: if a module has one factor without the other.
    """
    # Not a walk for dicts of exactly `a` and `b`: a module may hold other leaves too.
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
    """Convert slash-joined paths to nested dicts. The inverse is `unnest`.

    Example:
      >>> para_jax.nest({"mlp/up": 1, "mlp/down": 2, "head": 3})
      {'mlp': {'up': 1, 'down': 2}, 'head': 3}

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
    """Convert nested dicts and lists to slash-joined paths. The inverse is `nest`.

    Example:
      >>> para_jax.unnest({"mlp": {"up": 1, "down": 2}, "heads": [3, 4]})
      {'mlp/up': 1, 'mlp/down': 2, 'heads/0': 3, 'heads/1': 4}
    """
    result: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, list | tuple):
            value = dict(enumerate(value))
        if isinstance(value, Mapping):
            result |= {f"{key}/{path}": x for path, x in unnest(value).items()}
        else:
            result[str(key)] = value
    return result
