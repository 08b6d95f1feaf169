"""What an optimizer remembers of the factors, taken along when these change. Traced.

For new factors `a' = a @ l` and `b' = r @ b` of an update `delta = scale * a @ b`, with
`G` the gradient of the loss with respect to `delta`, the chain rule gives

    dL/da  = scale * G @ b^T,    dL/da' = scale * G @ b^T @ r^T = dL/da @ r^T,
    dL/db  = scale * a^T @ G,    dL/db' = scale * l^T @ a^T @ G = l^T @ dL/db:

the gradient of one factor goes through the transform of the other. What is linear in
past gradients (momentum) goes the same way, and is then what these gradients would have
left, had `l` and `r` been applied from the start. Where nothing is dropped, `l r = 1`:
gradients transform contravariantly, by the inverse transposes, and so the change of the
loss that a momentum predicts, `<m_a, da> + <m_b, db>`, is that of before.

Means of squares (Adam's `nu`) go through the squares of the transform, entry by entry:

    nu_a' = nu_a @ (r^T)^2,    nu_b' = (l^T)^2 @ nu_b.

That is an approximation. It is exact where the gradients of the entries that are mixed
do not correlate; a mean of squares does not say how they do.

Nothing here needs optax: a state is known by its structure and its fields' names.
"""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from para_jax import linalg, precision, sharding
from para_jax.adapters import Adapter, Array

_SQUARED = {
    **dict.fromkeys(("mu", "trace", "ema", "acc_grads"), False),
    **dict.fromkeys(("nu", "nu_max", "sum_of_squares"), True),
}
"""optax's names of moments, and whether they are of squared gradients."""

_FACTORS = {"a": "a", "b": "b", "lora_a": "a", "lora_b": "b"}
"""What `to_params` and flax.nnx call the factors, both as `[m, r]` and `[r, n]`."""

_Key = Any  # One of jax.tree_util's keys: they share no type.


@typing.no_type_check  # JAX also calls `__init__` with non-arrays: jaxtyping#277.
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Transform:
    """How the gradients of an adapter change with its factors.

    Attributes:
      a: `dL/da' = dL/da @ a`, `[*stack, r, k]`.
      b: `dL/db' = b @ dL/db`, `[*stack, k, r]`.
      parent: The path of the adapter before the change.
      index: Which kernel of its stack; `()` for all of it.
    """

    a: Array
    b: Array
    parent: str = dataclasses.field(metadata={"static": True})
    index: tuple[int, ...] = dataclasses.field(default=(), metadata={"static": True})


@precision.kept
def project_moments(
    state: Any, transforms: Mapping[str, Transform], *, like: Any = None
) -> Any:
    """Returns an optimizer's state with its moments in the new factors' coordinates.

    First moments become what the same gradients would have left there; second moments
    become an approximation of it (see the formulas of this module). All else, such as
    counts and the moments of other parameters, stays.

    It knows optax's `mu`, `trace`, `ema`, `acc_grads` as linear in gradients and `nu`,
    `nu_max`, `sum_of_squares` as means of squares, within any wrappers. A `nu` that is
    something else, such as the largest gradient in adamax, should be reset.

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
        Adapter, of what `to_params` makes of it, or of a tree with either inside. Of an
        `nnx.Optimizer` of layers with `para_jax.flax.nnx.attach`, its `nnx.state`.
      transforms: From `squeeze` or `shrink`.
      like: A state of the new parameters, where their tree changed: only its
        structure counts.

    Raises:
      ValueError: if the state keeps something else of an adapter, such as adafactor's
        factored moments. The message names it.
    """
    old, target = _by_name(state), state if like is None else like
    factors = _factors(target, transforms)
    missing = transforms.keys() - {module for module, _ in factors.values()}
    if missing and any(np.ndim(x) for x in old.values()):
        raise ValueError(
            f"The optimizer keeps no moments of '{min(missing)}', of its a and b, but "
            "others. Is it of the tree that to_params makes? Else use reset_moments."
        )

    def one(path: tuple[_Key, ...], _: Any) -> Any:
        name = _name(path)
        if name not in factors:
            return _found(name, old)
        module, last = factors[name]
        transform = transforms[module]
        before = f"{name.removesuffix(f'{module}/{last}')}{transform.parent}/{last}"
        squared, factor = _squared(path, name), _FACTORS[last]
        return _projected(_found(before, old), transform, factor, squared, before)

    return jax.tree.map_with_path(one, target)


def reset_moments(state: Any, fresh: Any) -> Any:
    """Returns `fresh`, with the schedules of `state`: what has no moments goes on.

    An optimizer that keeps moments also counts its steps, to correct the bias of young
    ones: its count starts anew with them. Counts of others, such as a learning rate's
    schedule, and injected hyperparameters are kept.

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
      ValueError: if `state` lacks what is to be kept: it is of another optimizer.
    """
    old, leaves = _by_name(state), _leaves(fresh)
    with_moments = {_owner(path) for path, x in leaves if _holds_arrays(x)}

    def one(path: tuple[_Key, ...], leaf: Any) -> Any:
        kept = _owner(path) not in with_moments
        return _found(_name(path), old) if kept else leaf

    return jax.tree.map_with_path(one, fresh, is_leaf=_is_adapter)


def _projected(
    moment: Any, transform: Transform, factor: str, squared: bool, name: str
) -> jax.Array:
    matrix = transform.a if factor == "a" else transform.b
    matrix = sharding.replicated(jnp.asarray(matrix))
    stacked = np.ndim(moment) == matrix.ndim + len(transform.index)
    inner = -1 if factor == "a" else -2
    rank = matrix.shape[-2 if factor == "a" else -1]
    if not stacked or moment.shape[inner] != rank:
        raise ValueError(
            f"The optimizer keeps '{name}' of shape {list(np.shape(moment))}, which is "
            f"not that of a factor of rank {rank}. Use reset_moments."
        )
    moment = jnp.asarray(moment)[transform.index]
    wide = np.promote_types(moment.dtype, np.float32)
    matrix, values = matrix.astype(wide), moment.astype(wide)
    matrix = matrix * matrix if squared else matrix
    pair = (values, matrix) if factor == "a" else (matrix, values)
    place = sharding.place(values, rank_axis=inner)
    return sharding.in_place(linalg.matmul, *pair, out=place).astype(moment.dtype)


def _squared(path: tuple[_Key, ...], name: str) -> bool:
    """Returns whether the moment at `path` is of squared gradients."""
    at = _moment(path)
    if at is None:
        raise ValueError(
            f"The optimizer keeps '{name}', which is none of the moments that can be "
            f"projected ({', '.join(_SQUARED)}). Use reset_moments."
        )
    return _SQUARED[_name(path[at : at + 1])]


def _factors(
    state: Any, transforms: Mapping[str, Transform]
) -> dict[str, tuple[str, str]]:
    """Returns the leaves that are moments: the adapter and last name of each, by name.

    Where one module's path is the end of another's that has no transform, such as `q`
    and `other/q`, the one nearer to the root of the parameters is meant.
    """
    nearest: dict[tuple[str, str, str], str] = {}
    for path, _ in jax.tree.leaves_with_path(state):
        name = _name(path)
        *parts, factor = name.split("/")
        ends = ("/".join(parts[i:]) for i in range(len(parts)))
        module = next((x for x in ends if x in transforms), None)
        if module is not None and factor in _FACTORS:
            place = (_field(path), module, factor)
            if len(name) < len(nearest.get(place, name + "/")):
                nearest[place] = name
    return {name: (module, factor) for (_, module, factor), name in nearest.items()}


def _field(path: tuple[_Key, ...]) -> str:
    """Returns the path of the moments that a leaf is in, such as `0/mu`."""
    at = _moment(path)
    return "" if at is None else _name(path[: at + 1])


def _moment(path: tuple[_Key, ...]) -> int | None:
    """Returns where in a path the name of the moments is.

    Of fields it is the innermost. In a state of flax.nnx, where all names are keys, it
    is the outermost: below it are the names of modules, which may be the same.
    """
    fields = [i for i, x in enumerate(path) if getattr(x, "name", None) in _SQUARED]
    keys = [i for i, x in enumerate(path) if getattr(x, "key", None) in _SQUARED]
    return fields[-1] if fields else keys[0] if keys else None


def _owner(path: tuple[_Key, ...]) -> tuple[_Key, ...]:
    """Returns the path of the state whose field a leaf lies in."""
    fields = [i for i, x in enumerate(path) if isinstance(x, jax.tree_util.GetAttrKey)]
    return path[: fields[-1]] if fields else path


def _holds_arrays(leaf: Any) -> bool:
    return _is_adapter(leaf) or np.ndim(leaf) > 0


def _is_adapter(x: Any) -> bool:
    return isinstance(x, Adapter)


def _leaves(tree: Any) -> list[tuple[tuple[_Key, ...], Any]]:
    return jax.tree.leaves_with_path(tree, is_leaf=_is_adapter)


def _by_name(tree: Any) -> dict[str, Any]:
    return {_name(path): x for path, x in jax.tree.leaves_with_path(tree)}


def _name(path: tuple[_Key, ...]) -> str:
    """Returns the names of a path; the `value` of a variable of flax.nnx is none."""
    path = path[:-1] if getattr(path[-1], "name", None) == "value" else path
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _found(name: str, leaves: Mapping[str, Any]) -> Any:
    if name not in leaves:
        raise ValueError(
            f"The optimizer's state has no '{name}', which the new one has. Are both "
            "of the same optimizer?"
        )
    return leaves[name]
