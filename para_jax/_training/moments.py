"""Carry an optimizer's moments over to new factors. Traceable under `jit`.

For new factors `a' = a @ l` and `b' = r @ b` of an update `delta = scale * a @ b`, with
`G` the gradient of the loss with respect to `delta`, the chain rule gives

    dL/da  = scale * G @ b^T,    dL/da' = scale * G @ b^T @ r^T = dL/da @ r^T,
    dL/db  = scale * a^T @ G,    dL/db' = scale * l^T @ a^T @ G = l^T @ dL/db:

the gradient of one factor is multiplied by the transform of the other. A moment linear
in past gradients (momentum) is multiplied in the same way. The result equals the moment
of the same gradients with `l` and `r` applied from the start. If nothing is dropped,
`l r = 1`: gradients transform contravariantly, by the inverse transposes, so the change
of the loss that a momentum predicts, `<m_a, da> + <m_b, db>`, stays the same.

Means of squares (Adam's `nu`) are multiplied by the squares of the transform, entry by
entry:

    nu_a' = nu_a @ (r^T)^2,    nu_b' = (l^T)^2 @ nu_b.

This is an approximation. It is exact if the gradients of the mixed entries do not
correlate; a mean of squares holds no correlations.

`para_jax._training.optimizer_states` finds the leaves that are moments.
"""

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from para_jax._adapters import precision
from para_jax._adapters.adapter import Adapter, Array
from para_jax._training.optimizer_states import (
    FACTORS,
    FLAGS,
    Moment,
    after_scaling,
    moments,
    name_of,
)
from para_jax._training.projections import Projection, projected

_Key = Any  # One of jax.tree_util's keys: they share no type.


@typing.no_type_check  # JAX also calls `__init__` with non-arrays: jaxtyping#277.
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Transform:
    """The map of an adapter's gradients from its old factors to its new ones.

    Attributes:
      a: `dL/da' = dL/da @ a`, `[*stack, r, k]`.
      b: `dL/db' = b @ dL/db`, `[*stack, k, r]`.
      parent: The path of the adapter before the change.
      index: The kernel's index in its stack; `()` for the whole stack.
    """

    a: Array
    b: Array
    parent: str = dataclasses.field(metadata={"static": True})
    index: tuple[int, ...] = dataclasses.field(default=(), metadata={"static": True})


@precision.kept
def project_moments(
    state: Any, transforms: Mapping[str, Transform], *, like: Any = None
) -> Any:
    """Transform the moments in an optimizer's state to the new factors' coordinates.

    First moments become those of the same gradients in the new coordinates; second
    moments become an approximation of them (see the formulas of this module). All other
    leaves, such as counts and the moments of other parameters, stay the same.

    Known are the states of optax's adam, adamw, nadam, radam, lamb, amsgrad, adabelief,
    acprop, adan, ademamix, adagrad, rmsprop, lion, muon, and momentum, within any
    wrappers. A state of another class that keeps an array of an adapter is refused.
    The class of a state does not show everything: adamax, yogi and adopt use the class
    of Adam's state for other quantities, lars accumulates scaled updates, and momentum
    behind `add_decayed_weights` includes the weights. Call `check_optimizer` once for
    any optimizer not named here.

    Example:
      >>> import optax
      >>> optimizer = optax.adam(1e-3)
      >>> state = optimizer.init(adapters)
      >>> small, transforms = para_jax.shrink(adapters, para_jax.Gamma(0.5))
      >>> fresh = optimizer.init(small)
      >>> state = para_jax.project_moments(state, transforms, like=fresh)
      >>> adapters["up"].a.shape, state[0].mu["up"].a.shape
      ((5, 4), (5, 2))

    Args:
      state: The state of an optimizer of the adapters: of the mapping from path to
        Adapter, of its `to_params`, or of a tree with either inside. For an
        `nnx.Optimizer` of layers with `para_jax.flax.nnx.attach`, its `nnx.state`.
      transforms: From `squeeze` or `shrink`.
      like: A state of the new parameters, if their tree changed: only its structure
        counts.

    Raises:
      ValueError: if the state keeps another quantity of an adapter, such as adafactor's
        factored moments, or momentum of updates that were scaled entry by entry. The
        message names it.
    """
    old, target = _by_name(state), state if like is None else like
    found = moments(target, transforms)
    check_moments(found)

    def one(path: tuple[_Key, ...], fresh: Any) -> Any:
        name = name_of(path)
        if name not in found:
            return _found(name, old)
        # Flags of the last gradients have no meaning for the next ones.
        if found[name].kind == FLAGS:
            return fresh
        return _projection(name, found[name], old, transforms)

    leaves, tree = jax.tree.flatten(jax.tree.map_with_path(one, target), _is_todo)
    todo = [x for x in leaves if _is_todo(x)]
    done = iter(projected(todo, list(transforms)))
    return tree.unflatten([next(done) if _is_todo(x) else x for x in leaves])


def reset_moments(state: Any, fresh: Any) -> Any:
    """Replace the moments in `state` by those in `fresh`, and keep the schedules.

    An optimizer that keeps moments also counts its steps to correct their early bias:
    this count restarts with them. Other counts, such as a learning rate's schedule, and
    injected hyperparameters are kept.

    Example:
      >>> import optax
      >>> optimizer = optax.sgd(optax.linear_schedule(0.1, 0, 100), momentum=0.9)
      >>> state = optimizer.init(adapters)
      >>> _, state = optimizer.update(adapters, state)  # One step of the schedule.
      >>> small, _ = para_jax.shrink(adapters, para_jax.Gamma(0.5))
      >>> state = para_jax.reset_moments(state, optimizer.init(small))
      >>> int(state[1].count), float(abs(state[0].trace["up"].a).max())
      (1, 0.0)

    Args:
      state: The optimizer's state so far.
      fresh: Its `init` of the new parameters.

    Raises:
      ValueError: if `state` lacks a leaf to keep: it belongs to another optimizer.
    """
    old, leaves = _by_name(state), _leaves(fresh)
    with_moments = {_owner(path) for path, x in leaves if _holds_arrays(x)}

    def one(path: tuple[_Key, ...], leaf: Any) -> Any:
        kept = _owner(path) not in with_moments
        return _found(name_of(path), old) if kept else leaf

    return jax.tree.map_with_path(one, fresh, is_leaf=_is_adapter)


def _projection(
    name: str,
    found: Moment,
    old: Mapping[str, Any],
    transforms: Mapping[str, Transform],
) -> Projection:
    """Return what brings a leaf of the new state over from the old one."""
    transform = transforms[found.module]
    # `shrink` may turn a stack into an adapter per kernel: the old state still has the
    # moment under the path of the stack.
    end = f"{found.module}/{found.factor}"
    name = f"{name.removesuffix(end)}{transform.parent}/{found.factor}"
    moment, is_a = _found(name, old), FACTORS[found.factor] == "a"
    matrix = transform.a if is_a else transform.b
    stacked = np.ndim(moment) == matrix.ndim + len(transform.index)
    rank_axis = -1 if is_a else -2
    rank = matrix.shape[-2 if is_a else -1]
    if not stacked or moment.shape[rank_axis] != rank:
        raise ValueError(
            f"The optimizer keeps '{name}' of shape {list(np.shape(moment))}, which is "
            f"not that of a factor of rank {rank}. Use reset_moments."
        )
    if transform.index:
        moment = jnp.asarray(moment)[transform.index]
    return Projection(moment, matrix, is_a, bool(found.squared), found.module)


def _is_todo(x: Any) -> bool:
    return isinstance(x, Projection)


def check_moments(found: Mapping[str, Moment]) -> None:
    """Check that all leaves found by `moments` can be projected.

    Raises:
      ValueError: if not. The message names the leaf, and the class of its state.
    """
    beside: dict[tuple[str, str], list[Moment]] = {}
    for moment in found.values():
        beside.setdefault((moment.module, moment.factor), []).append(moment)
    for name, moment in found.items():
        if moment.kind != FLAGS:
            _check(name, moment, beside[moment.module, moment.factor])


def _check(name: str, moment: Moment, beside: Sequence[Moment]) -> None:
    """Check one leaf, given all of the same factor."""
    where = f"'{name}' ({moment.kind})" if moment.kind else f"'{name}'"
    if moment.squared is None:
        raise ValueError(
            f"The optimizer keeps {where}, which is none of the moments that can be "
            "projected. Use reset_moments."
        )
    if scaled := after_scaling(moment, beside):
        raise ValueError(
            f"The optimizer keeps {where} of updates that were scaled entry by entry "
            f"(by {scaled}), not of gradients: it cannot be projected. Use "
            "reset_moments."
        )


def _owner(path: tuple[_Key, ...]) -> tuple[_Key, ...]:
    """Return the path of the innermost state around a leaf."""
    fields = [i for i, x in enumerate(path) if isinstance(x, jax.tree_util.GetAttrKey)]
    return path[: fields[-1]] if fields else path


def _holds_arrays(leaf: Any) -> bool:
    return _is_adapter(leaf) or np.ndim(leaf) > 0


def _is_adapter(x: Any) -> bool:
    return isinstance(x, Adapter)


def _leaves(tree: Any) -> list[tuple[tuple[_Key, ...], Any]]:
    return jax.tree.leaves_with_path(tree, is_leaf=_is_adapter)


def _by_name(tree: Any) -> dict[str, Any]:
    return {name_of(path): x for path, x in jax.tree.leaves_with_path(tree)}


def _found(name: str, leaves: Mapping[str, Any]) -> Any:
    if name not in leaves:
        raise ValueError(
            f"The optimizer's state has no '{name}', which the new one has. Are both "
            "of the same optimizer?"
        )
    return leaves[name]
