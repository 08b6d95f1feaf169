"""Check by experiment that an optimizer's moments agree with their names.

The class of a state does not show everything. optax's adamax, yogi and adopt keep other
quantities in the class of Adam's state, and momentum behind a trust ratio or a coupled
weight decay does not depend on gradients alone. The response to gradients identifies a
moment: with `D(g)` the moment after a sequence of gradients `g`, minus the moment after
gradients of zero,

    D(g + h) = D(g) + D(h)                      for a moment linear in gradients,
    D(g + h) + D(g - h) = 2 D(g) + 2 D(h)       for one of squares (a quadratic form),

entry by entry. Runs on the host, in float64.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from para_jax._adapters.precision import wide
from para_jax._training.moments import check_moments
from para_jax._training.optimizer_states import FACTORS, FLAGS, Moment, moments, name_of

_STEPS = 4  # Past the first of three accumulated gradients, and of a warm-up of two.
_SIZE = 1e-3  # Of gradients: below the norms that these are usually clipped to.
_LARGEST = "ScaleByAmsgradState.nu_max"  # Of quadratic forms: projected as a bound.


def check_optimizer(
    optimizer: Any, params: Any, *, extra: Mapping[str, Any] | None = None
) -> None:
    """Check that `project_moments` can carry an optimizer's state over.

    It runs a few steps with small random gradients. Call it once, before training, with
    any optimizer not named in `project_moments`.

    Example:
      >>> import optax
      >>> para_jax.check_optimizer(optax.adam(1e-3), adapters)
      >>> try:
      ...     para_jax.check_optimizer(optax.adamax(1e-3), adapters)
      ... except ValueError as error:
      ...     print(str(error).partition(",")[0])
      The optimizer keeps '0/nu/down/a' (ScaleByAdamState.nu)

    Args:
      optimizer: An `optax.GradientTransformation`, or any object with its `init` and
        `update`.
      params: The argument of its `init`. Only the shapes count, and the values for a
        weight decay.
      extra: Arguments by name that its `update` needs beside gradients, state and
        params, such as `{"value": 1.0}`.

    Raises:
      ValueError: if a moment cannot be projected. The message names it. `reset_moments`
        remains.
    """
    modules = {name.rpartition("/")[0] for name in _names(params) if _is_factor(name)}
    found = moments(optimizer.init(params), dict.fromkeys(modules))
    check_moments(found)
    # Flags are not projected, and an optimizer without moments has none to check.
    found = {name: x for name, x in found.items() if x.kind != FLAGS}
    if not found:
        return
    with wide():
        runs = _runs(optimizer, params, dict(extra or {}))
    for name, moment in found.items():
        _check(name, moment, {run: np.asarray(x[name]) for run, x in runs.items()})


def _runs(
    optimizer: Any, params: Any, extra: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return the leaves of the state after each of six sequences of gradients."""
    params = jax.tree.map(_double, params)
    rng = np.random.default_rng(0)

    def gradients() -> Any:
        return jax.tree.map(lambda x: _random(rng, x), params)

    g, h = ([gradients() for _ in range(_STEPS)] for _ in range(2))
    factors = {"0": (0, 0), "g": (1, 0), "h": (0, 1), "g+h": (1, 1), "g-h": (1, -1)}
    factors["2g"] = (2, 0)
    update = jax.jit(optimizer.update)  # Compiles faster than one operation each.
    runs = {}
    for name, (x, y) in factors.items():
        state = optimizer.init(params)
        for one, two in zip(g, h, strict=True):
            # Bound as defaults: a closure would see the loop's last `x` and `y`.
            both = jax.tree.map(lambda p, q, x=x, y=y: x * p + y * q, one, two)
            _, state = update(both, state, params, **extra)
        runs[name] = {name_of(path): leaf for path, leaf in _leaves(state)}
    return runs


def _double(x: Any) -> Any:
    floating = jax.dtypes.issubdtype(x.dtype, np.floating)
    return jax.numpy.asarray(x, np.float64) if floating else jax.numpy.asarray(x)


def _random(rng: np.random.Generator, x: Any) -> Any:
    """Return gradients of many sizes, since an optimizer may branch on them."""
    size = _SIZE * rng.lognormal(size=x.shape) * rng.choice([-1, 1], size=x.shape)
    return jax.numpy.asarray(size, x.dtype)


def _check(name: str, moment: Moment, runs: Mapping[str, np.ndarray]) -> None:
    # The moment's own dtype, which optax's `mu_dtype` sets apart from the gradients'.
    eps = float(jax.numpy.finfo(runs["0"].dtype).eps)
    rest = np.float64(runs["0"])
    d = {run: np.float64(x) - rest for run, x in runs.items()}
    # A running maximum is not additive, but still scales with the squared gradients.
    if moment.kind == _LARGEST:
        off, what = d["2g"] - 4 * d["g"], "a largest mean of squared gradients"
    elif moment.squared:
        off = d["g+h"] + d["g-h"] - 2 * d["g"] - 2 * d["h"]
        what = "a mean or sum of squared gradients"
    else:
        # The moment after gradients of zero must be zero; a weight decay leaves some.
        off = np.maximum(np.abs(d["g+h"] - d["g"] - d["h"]), np.abs(rest))
        what = "linear in past gradients"
    size = np.abs(d["g+h"]).max(initial=0)
    # `not <=` also refuses NaN, such as from a division by the norm of no gradient.
    if not np.abs(off).max(initial=0) <= (1e-6 + 32 * eps) * size:
        raise ValueError(
            f"The optimizer keeps '{name}' ({moment.kind}), which is not {what}: it "
            "cannot be projected. Use reset_moments."
        )


def _is_factor(name: str) -> bool:
    return name.rpartition("/")[2] in FACTORS


def _names(params: Any) -> list[str]:
    return [name_of(path) for path, _ in _leaves(params)]


def _leaves(tree: Any) -> list[tuple[tuple[Any, ...], Any]]:
    return jax.tree.leaves_with_path(tree)
