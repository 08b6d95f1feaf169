"""The interface of a training method for adapters: a record of pure functions.

The model never knows which method trains it. It is given adapters, and a method says
where they come from:

    state = method.init(key, kernels, gradients)     # What is trained, and remembered.
    logits = model.apply({"params": base, "lora": to_params(method.adapters(state))}, x)
    loss = cross_entropy(logits) + method.penalty(state)
    state = method.after_step(before, state, grads, step)    # Masks, budgets, samples.
    adapters = method.finish(state)                  # What is saved and served.

All but `finish` is traced: shapes are static, a component that a method takes out is
zero until `finish` cuts it off, and a whole run may be mapped over seeds.

Axis letters: `m` inputs and `n` outputs of a kernel, `r` rank.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import ScalarLike

from para_jax import Adapter, Array

Adapters = dict[str, Adapter]
Kernels = Mapping[str, jax.Array]
"""The frozen kernels `[m, n]` of the adapted modules, by path; or their gradients."""


class State(NamedTuple):
    """The trained parameters of a method, and its statistics.

    Attributes:
      params: Arrays that the optimizer moves.
      memory: Arrays that only the method itself changes: statistics, masks, the
        factors it started from. Empty for most.
    """

    params: Any
    memory: Any = ()


@runtime_checkable
class Optimizer(Protocol):
    """The optimizer of a method's `params`."""

    def __call__(
        self, learning_rate: optax.Schedule, weight_decay: float
    ) -> optax.GradientTransformation:
        """Return the optimizer of `State.params`."""
        ...


def adamw(
    learning_rate: optax.Schedule, weight_decay: float
) -> optax.GradientTransformation:
    """Return the optimizer of most methods, and of every classifier."""
    return optax.adamw(learning_rate, weight_decay=weight_decay)


def _no_penalty(state: State) -> ScalarLike:
    return 0.0


def _unchanged(before: State, after: State, grads: Any, step: jax.Array) -> State:
    return after


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """One method of training adapters.

    Attributes:
      init: `(key, kernels, gradients) -> state`. `gradients` are those of the kernels,
        the mean over `gradient_batches` batches, or None where that is 0.
      adapters: `state -> adapters`: what the model sees, everything folded in. After
        the last step they are the update that `finish` exports.
      finish: `state -> adapters` without what the method took out: ragged, NumPy
        arrays. A module that keeps nothing is absent. Runs on the host.
      penalty: `state -> scalar`, added to the loss.
      optimizer: Makes the optimizer of `state.params`.
      after_step: `(before, after, grads, step) -> state`: the states around one update,
        the gradients of `params` that it took (clipped, the penalty's included), and
        its number, from 0.
      gradient_batches: The number of batches of gradients for `init`.
      note: A remark on the settings, such as a schedule that was shrunk to fit the
        run; mostly nothing.
    """

    init: Callable[[jax.Array, Kernels, Kernels | None], State]
    adapters: Callable[[State], Adapters]
    finish: Callable[[State], Adapters]
    penalty: Callable[[State], ScalarLike] = _no_penalty
    optimizer: Optimizer = adamw
    after_step: Callable[[State, State, Any, jax.Array], State] = _unchanged
    gradient_batches: int = 0
    note: str = ""


@runtime_checkable
class Config(Protocol):
    """The settings of one method: a frozen dataclass of plain values."""

    @property
    def target(self) -> float:
        """The average rank at the end of training."""
        ...

    def method(self, steps: int) -> Method:
        """Return the method, with its schedules for a run of `steps` steps.

        Raises:
          ValueError: if a setting is impossible, or a schedule does not fit.
        """
        ...


def kaiming(key: jax.Array, kernels: Kernels, rank: int) -> dict[str, jax.Array]:
    """Draw a first factor `[m, rank]` for each kernel, in float32.

    Uniform in `+-1/sqrt(m)`, as PyTorch's `kaiming_uniform_(a=sqrt(5))` draws. A
    module's draw depends on the key and on its place among the sorted paths.
    """
    # Sorted, so that the draw does not depend on the order of the dictionary.
    paths = sorted(kernels)
    keys = dict(zip(paths, jax.random.split(key, len(paths)), strict=True))

    def draw(path: str) -> jax.Array:
        m = kernels[path].shape[0]
        bound = 1 / np.sqrt(m)
        return jax.random.uniform(keys[path], (m, rank), minval=-bound, maxval=bound)

    return {path: draw(path) for path in kernels}


def zeros(kernels: Kernels, rank: int) -> dict[str, jax.Array]:
    """Return a second factor of zeros, `[rank, n]`, for each kernel."""
    return {path: jnp.zeros((rank, x.shape[1])) for path, x in kernels.items()}


def whole(adapters: Mapping[str, Adapter]) -> Adapters:
    """Return the adapters unchanged, as NumPy arrays. Runs on the host."""
    return jax.tree.map(np.asarray, dict(adapters))


def kept(adapters: Mapping[str, Adapter], keep: Mapping[str, Array]) -> Adapters:
    """Return the kept components of the adapters, as NumPy arrays. Runs on the host.

    Args:
      adapters: Adapters of one kernel each.
      keep: Booleans `[r]` by path. A module without a true value is absent.
    """
    result = {}
    # On the host: kept components change shapes.
    for path, adapter in whole(adapters).items():
        mask = np.asarray(keep[path])
        if mask.any():
            a, b = adapter.a[:, mask], adapter.b[mask]
            result[path] = dataclasses.replace(adapter, a=a, b=b)
    return result


def size(adapters: Mapping[str, Adapter]) -> tuple[int, int]:
    """Count the ranks and the parameters of adapters, as budgets do.

    Without components that are zero; and an adapter that starts from the kernel's own
    components counts the rank it was trained at.
    """
    # PiSSA serves 2 r columns for a nominal rank of r.
    ranks = {path: x.nominal or _rank(x) for path, x in adapters.items()}
    costs = {path: x.inputs + x.outputs for path, x in adapters.items()}
    return sum(ranks.values()), sum(ranks[path] * costs[path] for path in ranks)


def _rank(adapter: Adapter) -> int:
    a, b = np.asarray(adapter.a), np.asarray(adapter.b)
    # A component needs both vectors: one of zeros adds nothing.
    return int(((a != 0).any(0) & (b != 0).any(1)).sum())
