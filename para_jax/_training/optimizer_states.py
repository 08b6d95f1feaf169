"""Find the moments in an optimizer's state, by the state's class and its field.

The name of a field does not identify its quantity: optax's sm3 keeps a list of
accumulators for each axis under `mu`, and adadelta's `e_x` is of updates, not of
gradients. So a state is known only if its class is in this table. In a state of
flax.nnx, which keeps names as keys and no classes, the keys side by side must be the
fields of one class.

Nothing here imports optax: classes are identified by module and name. Runs on the host,
on the structure of a state alone, so its leaves may be tracers.

Source: optax 0.2.8, `_src/transform.py`, `_src/accumulation.py`, `contrib/`.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

_Key = Any  # One of jax.tree_util's keys: they share no type.

_LINEAR, _SQUARED = False, True
STATES: Mapping[str, Mapping[str, bool]] = {
    "EmaState": {"ema": _LINEAR},
    "MultiStepsState": {"acc_grads": _LINEAR},
    "MuonState": {"mu": _LINEAR},
    "ScaleByAdamState": {"mu": _LINEAR, "nu": _SQUARED},
    "ScaleByAdanState": {"m": _LINEAR, "v": _LINEAR, "n": _SQUARED, "g": _LINEAR},
    "ScaleByAdemamixState": {"m1": _LINEAR, "m2": _LINEAR, "nu": _SQUARED},
    "ScaleByAmsgradState": {"mu": _LINEAR, "nu": _SQUARED, "nu_max": _SQUARED},
    "ScaleByBeliefState": {"mu": _LINEAR, "nu": _SQUARED},
    "ScaleByLionState": {"mu": _LINEAR},
    "ScaleByOptimisticGradientState": {"previous_gradient": _LINEAR},
    "ScaleByRStdDevState": {"mu": _LINEAR, "nu": _SQUARED},
    "ScaleByRStdDevWithCountState": {"mu": _LINEAR, "nu": _SQUARED},
    "ScaleByRmsState": {"nu": _SQUARED},
    "ScaleByRmsWithCountState": {"nu": _SQUARED},
    "ScaleByRssState": {"sum_of_squares": _SQUARED},
    "ScaleBySimplifiedAdEMAMixState": {"m": _LINEAR, "n": _SQUARED},
    "TraceState": {"trace": _LINEAR},
}
"""Moments by class and field; the value is whether they are of squared gradients."""

_COUNTS = {"count", "count_m2", "t", "ns_coeffs", "mini_step", "gradient_step"}
_COUNTS |= {"inner_opt_state", "is_initial_step", "skip_state"}
"""Fields of these classes that are not moments."""

FLAGS = "ZeroNansState.found_nan"
"""The flags of optax's zero_nans for the last gradients: not kept over a change."""

FACTORS = {"a": "a", "b": "b", "lora_a": "a", "lora_b": "b"}
"""The names of factors in `to_params` and flax.nnx, both as `[m, r]` and `[r, n]`."""


class Moment(NamedTuple):
    """A leaf of an optimizer's state for a factor of an adapter.

    Attributes:
      module: The path of the adapter.
      factor: The last name of the leaf, a key of `FACTORS`.
      field: The path of the state's field, such as `0/mu`.
      kind: The class and the field, such as `ScaleByAdamState.mu`.
      squared: Whether it is of squared gradients; None if not known.
    """

    module: str
    factor: str
    field: str
    kind: str
    squared: bool | None


def moments(state: Any, modules: Mapping[str, Any]) -> dict[str, Moment]:
    """Find the leaves of an optimizer's state for the factors of adapters, by name.

    If one module's path is the end of another's that is not among `modules`, such as
    `q` and `other/q`, the leaf nearer to the root of the parameters is found.

    Args:
      state: The state of an optimizer.
      modules: The paths of the adapters.

    Raises:
      ValueError: if it keeps arrays, but not for every adapter.
    """
    found: dict[str, Moment] = {}
    nearest: dict[tuple[str, str, str], str] = {}
    for path, _ in jax.tree.leaves_with_path(state):
        moment = _moment(path, state, modules)
        if moment is None:
            continue
        name = name_of(path)
        place = (moment.field, moment.module, moment.factor)
        if len(name) < len(nearest.get(place, name + "/")):
            nearest[place], found[name] = name, moment
    missing = modules.keys() - {x.module for x in found.values()}
    if missing and any(np.ndim(x) for x in jax.tree.leaves(state)):
        raise ValueError(
            f"The optimizer keeps no moments of '{min(missing)}', of its a and b, but "
            "others. Is it of the tree that to_params makes? Else use reset_moments."
        )
    return {name: found[name] for name in nearest.values()}


def _moment(
    path: tuple[_Key, ...], state: Any, modules: Mapping[str, Any]
) -> Moment | None:
    names = name_of(path).split("/")
    # From the end, as a module of the model may be called `a` or `b` too. A leaf below
    # the factor's name, as in a list of accumulators, belongs to it with no known kind.
    for end in range(len(names) - 1, 0, -1):
        ends = ("/".join(names[i:end]) for i in range(end))
        module = next((x for x in ends if x in modules), None)
        if module is None or names[end] not in FACTORS:
            continue
        at, kind, squared = _field(path, state)
        whole = end == len(names) - 1
        field = name_of(path[: at + 1]) if at is not None else ""
        return Moment(module, names[end], field, kind, squared if whole else None)
    return None


def _field(path: tuple[_Key, ...], state: Any) -> tuple[int | None, str, bool | None]:
    """Return the index of a known state's field in a path, its kind and its meaning.

    Among fields the innermost counts. In a state of flax.nnx, which has keys only, the
    outermost counts: the names below it are those of modules, and may coincide.
    """
    unknown: tuple[int | None, str, bool | None] = (None, "", None)
    nodes = _nodes(path, state)
    for i in reversed(range(len(nodes))):
        name = getattr(path[i], "name", None)
        if name is None or not hasattr(nodes[i], "_fields"):
            continue
        owner = type(nodes[i])
        kind = f"{owner.__name__}.{name}"
        fields = STATES.get(owner.__name__, {})
        if owner.__module__.partition(".")[0] == "optax" and name in fields:
            return i, kind, fields[name]
        unknown = unknown if unknown[1] else (i, kind, None)
    for i, node in enumerate(nodes):
        name = str(getattr(path[i], "key", ""))
        if isinstance(node, Mapping) and (fields := _of_keys(node)) and name in fields:
            return i, name, fields[name]
    return unknown


def _of_keys(node: Mapping[Any, Any]) -> Mapping[str, bool]:
    """Return the moments of the class with the keys of a dict as its fields."""
    keys = {str(x) for x in node}
    for fields in STATES.values():
        if fields.keys() <= keys and keys - fields.keys() <= _COUNTS:
            return fields
    return {}


def _nodes(path: tuple[_Key, ...], state: Any) -> list[Any]:
    """Return the nodes along a path, as far as its keys can be looked up."""
    nodes = [state]
    for key in path[:-1]:
        try:
            if isinstance(key, jax.tree_util.GetAttrKey):
                state = getattr(state, key.name)
            else:
                state = state[key.idx if hasattr(key, "idx") else key.key]
        # A registered node may flatten by keys that it cannot be indexed with.
        except (AttributeError, IndexError, KeyError, TypeError):
            break
        nodes.append(state)
    return nodes


def name_of(path: tuple[_Key, ...]) -> str:
    """Return the slash-joined names of a path, without the `value` of flax.nnx."""
    path = path[:-1] if path and getattr(path[-1], "name", None) == "value" else path
    return jax.tree_util.keystr(path, simple=True, separator="/")


def after_scaling(moment: Moment, beside: Iterable[Moment]) -> str:
    """Return the earlier state of a chain, if any, that scales entry by entry.

    A state behind it in `optax.chain` accumulates scaled updates, not gradients, and
    those do not transform as gradients do. Return the empty string if there is none.

    Args:
      moment: The leaf.
      beside: All leaves of the same factor.
    """
    for other in beside:
        if not other.squared:
            continue
        one, two = moment.field.split("/"), other.field.split("/")
        # Two states of one chain differ first in the number that is their place in it.
        i = next((i for i, x in enumerate(zip(one, two)) if x[0] != x[1]), 0)  # noqa: B905
        if one[i].isdigit() and two[i].isdigit() and int(two[i]) < int(one[i]):
            return other.kind
    return ""
