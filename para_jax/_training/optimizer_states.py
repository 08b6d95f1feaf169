"""Find the moments in an optimizer's state, by the state's class and its field. Host.

A field's name alone does not tell what is in it: optax's sm3 keeps a list of
accumulators for each axis under `mu`, and adadelta's `e_x` is of updates, not of
gradients. So a state counts as known if it is of a class in this table. In a state of
flax.nnx, where classes are lost and all names are keys, the fields that lie side by
side must be those of a class.

Nothing here needs optax: classes are known by module and name.

Source: optax 0.2.8, `_src/transform.py`, `_src/accumulation.py`, `contrib/`.
"""

from collections.abc import Mapping
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
"""Moments by class and field, and whether they are of squared gradients."""

_COUNTS = {"count", "count_m2", "t", "ns_coeffs", "mini_step", "gradient_step"}
_COUNTS |= {"inner_opt_state", "is_initial_step", "skip_state"}
"""Fields of these classes that are not moments."""

FLAGS = "ZeroNansState.found_nan"
"""What optax's zero_nans found in the last gradients: not kept over a change."""

FACTORS = {"a": "a", "b": "b", "lora_a": "a", "lora_b": "b"}
"""The names of factors in `to_params` and flax.nnx, both as `[m, r]` and `[r, n]`."""


class Moment(NamedTuple):
    """A leaf of an optimizer's state that belongs to a factor of an adapter.

    Attributes:
      module: The path of the adapter.
      factor: The last name of the leaf, a key of `FACTORS`.
      field: The path of the state's field, such as `0/mu`.
      kind: The class and the field, such as `ScaleByAdamState.mu`.
      squared: Whether it is of squared gradients; None if this is not known.
    """

    module: str
    factor: str
    field: str
    kind: str
    squared: bool | None


def moments(state: Any, modules: Mapping[str, Any]) -> dict[str, Moment]:
    """Find the leaves that belong to the factors of adapters, by their names.

    Where one module's path is the end of another's that is not among `modules`, such as
    `q` and `other/q`, the one nearer to the root of the parameters is meant.

    Args:
      state: The state of an optimizer.
      modules: The paths of the adapters.

    Raises:
      ValueError: if it keeps arrays, but none of some adapter.
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
    """Return where in a path the field of a known state is, its kind and meaning.

    Among fields it is the innermost. In a state of flax.nnx, where all names are keys,
    it is the outermost: below it are names of modules, which may be the same.
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
    """Return the moments of the class whose fields are the keys of a dict."""
    keys = {str(x) for x in node}
    for fields in STATES.values():
        if fields.keys() <= keys and keys - fields.keys() <= _COUNTS:
            return fields
    return {}


def _nodes(path: tuple[_Key, ...], state: Any) -> list[Any]:
    """Return the node that each key of a path is looked up in, as far as it goes."""
    nodes = [state]
    for key in path[:-1]:
        try:
            if isinstance(key, jax.tree_util.GetAttrKey):
                state = getattr(state, key.name)
            else:
                state = state[key.idx if hasattr(key, "idx") else key.key]
        except (AttributeError, IndexError, KeyError, TypeError):
            break
        nodes.append(state)
    return nodes


def name_of(path: tuple[_Key, ...]) -> str:
    """Return the names of a path; the `value` of a variable of flax.nnx is left out."""
    path = path[:-1] if path and getattr(path[-1], "name", None) == "value" else path
    return jax.tree_util.keystr(path, simple=True, separator="/")


def after_scaling(name: str, found: Mapping[str, Moment]) -> str:
    """Return the earlier state in the same chain that scales each entry by itself.

    What comes behind it in `optax.chain` accumulates scaled updates, not gradients:
    these do not change with the factors as gradients do. The empty string: none.
    """
    moment = found[name]
    for other in found.values():
        same = (other.module, other.factor) == (moment.module, moment.factor)
        if not (same and other.squared):
            continue
        one, two = moment.field.split("/"), other.field.split("/")
        i = next((i for i, x in enumerate(zip(one, two)) if x[0] != x[1]), 0)  # noqa: B905
        if one[i].isdigit() and two[i].isdigit() and int(two[i]) < int(one[i]):
            return other.kind
    return ""
