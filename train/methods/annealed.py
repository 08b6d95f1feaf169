"""Annealed ranks: LoRA whose total rank falls during training, by squeezing.

    delta = scale * a @ b,    b = 0 at the start.

Training starts at one rank for all modules. The number of all ranks then falls along
AdaLoRA's cubic: every few steps `para_jax.squeeze` keeps the largest singular values of
the whole model within the budget of that step, and `para_jax.project_moments` brings
Adam's moments into the coordinates of the new factors. A dropped component is zero in
both factors from then on, and what is left learns to do without it.

One threshold decides for all modules, as PARA's does for a trained parent; here what a
cut loses is learned again before the next one. Ours, not from a paper.

Axis letters: `m` inputs, `n` outputs, `r` rank. All but `budgets` and `finish` is
traced.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Scalar

import para_jax as para
from train.methods import adalora, method, schedule
from train.methods.method import Adapters, Kernels, Method, State
from train.methods.schedule import Schedule


class Moments(NamedTuple):
    """The state of the optimizer.

    Attributes:
      step: The number of finished steps.
      adamw: The state of AdamW, in the coordinates of the last factors.
    """

    step: jax.Array
    adamw: Any


class Budgets(NamedTuple):
    """The ranks of each step of a run; one entry a step.

    Attributes:
      average: The average rank of a module after the step, float32.
      due: Whether the step ends with a squeeze.
    """

    average: np.ndarray
    due: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Annealed:
    """LoRA that is squeezed to its target while it is trained.

    Attributes:
      rank: The rank of every module at the start.
      target: The average rank at the end.
      scale: `alpha / rank`, with the rank of the start for ever.
      t_init: The share of the steps before the first squeeze: as AdaLoRA's in a run of
        3000 steps, or in one that its periods are shrunk to.
      t_final: The share of the steps at the end through which the ranks stay as they
        are.
      every: Steps between two squeezes: those at its multiples, and the last.
    """

    rank: int = 16
    target: float = 4.0
    scale: float = 2.0
    t_init: float = 1 / 6
    t_final: float = 1 / 6
    every: int = 50

    def schedule(self, steps: int) -> Schedule:
        """Return the three periods of a run of `steps` steps.

        Raises:
          ValueError: if they are impossible, or leave no step between them.
        """
        # 1e-9: a sixth of 300 may be 49.999... in floating point.
        first, last = (int(x * steps + 1e-9) for x in (self.t_init, self.t_final))
        last = max(last, 1)
        shares = min(self.t_init, self.t_final)
        if shares < 0 or self.every < 1 or first + last >= steps:
            raise ValueError(
                f"t_init={self.t_init:g}, t_final={self.t_final:g}, every={self.every} "
                f"in {steps} steps: expected shares from 0 up, a step between them in "
                "which ranks fall, and at least 1 step between two squeezes."
            )
        return Schedule(first, last, self.every)

    def method(self, steps: int) -> Method:
        """Return the method for a run of `steps` steps.

        Raises:
          ValueError: if the target is above the rank, or the schedule is impossible.
        """
        schedule.check(self.rank, self.target)
        periods = self.schedule(steps)

        # The optimizer squeezes, since it alone has both the factors and the moments.
        def optimizer(
            learning_rate: optax.Schedule, weight_decay: float
        ) -> optax.GradientTransformation:
            adamw = method.adamw(learning_rate, weight_decay)
            return self._squeezing(adamw, steps, periods)

        return Method(
            init=self._init,
            adapters=self._adapters,
            finish=self._finish,
            optimizer=optimizer,
        )

    def _init(
        self, key: jax.Array, kernels: Kernels, gradients: Kernels | None
    ) -> State:
        a, b = method.kaiming(key, kernels, self.rank), method.zeros(kernels, self.rank)
        return State({path: {"a": a[path], "b": b[path]} for path in kernels})

    def _adapters(self, state: State) -> Adapters:
        return self._folded(state.params)

    def _folded(self, params: Any) -> Adapters:
        return {
            path: para.Adapter(a=x["a"], b=x["b"], scale=self.scale)
            for path, x in params.items()
        }

    def _finish(self, state: State) -> Adapters:
        # A dropped component is zero in both factors, and has had no gradient since.
        keep = {path: (x["b"] != 0).any(1) for path, x in state.params.items()}
        return method.kept(self._adapters(state), keep)

    def _squeezing(
        self, adamw: optax.GradientTransformation, steps: int, periods: Schedule
    ) -> optax.GradientTransformation:
        """Return an optimizer whose updates end at the squeezed factors, where due."""

        def init(params: Any) -> Moments:
            return Moments(jnp.zeros((), jnp.int32), adamw.init(params))

        def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Moments]:
            table = budgets(
                steps, periods, modules=len(params), rank=self.rank, target=self.target
            )
            average, due = (jnp.asarray(x)[state.step] for x in table)
            moved = adamw.update(updates, state.adamw, params)

            def squeezed(average: jax.Array, moved: Any) -> Any:
                new = self._squeezed(params, moved, para.Rank(average))
                return optax.tree.where(due, new, moved)

            # The budget is an operand, so that it is traced in every caller's program.
            updates, adamw_state = jax.lax.cond(
                anywhere(due), squeezed, lambda _, moved: moved, average, moved
            )
            return updates, Moments(state.step + 1, adamw_state)

        return optax.GradientTransformation(init, update)

    def _squeezed(
        self, params: Any, moved: tuple[Any, Any], policy: para.Policy
    ) -> tuple[Any, Any]:
        """Return `moved`, updates and moments, with the squeezed factors as goal."""
        updates, moments = moved
        factors = self._folded(optax.apply_updates(params, updates))
        small, transforms = para.squeeze(factors, policy)
        goal = {path: {"a": x.a, "b": x.b} for path, x in small.items()}
        # Exact where it must be: x + (0 - x) is 0.
        updates = jax.tree.map(jnp.subtract, goal, params)
        return updates, para.project_moments(moments, transforms)


def budgets(
    steps: int, periods: Schedule, *, modules: int, rank: int, target: float
) -> Budgets:
    """Return the budget after each step of a run, of AdaLoRA's cubic.

    The last squeeze is at the end of the cubic, `steps - t_final`. Runs on the host:
    the cubic must be rounded in float64.

    Args:
      steps: The number of steps of the whole run.
      periods: `t_init`, `t_final`, and the steps between two squeezes.
      modules: The number of adapted modules.
      rank: The rank of each at the start.
      target: The average rank at the end.
    """
    start, end = rank * modules, round(target * modules)
    last = steps - periods.t_final
    table = [
        adalora.budget(t, steps, periods, start=start, end=end) for t in range(steps)
    ]
    totals, masks = zip(*table, strict=True)
    # AdaLoRA masks on through the last period; a dropped component of ours stays so.
    due = np.array(masks) & (np.arange(steps) <= last)
    return Budgets(np.array(totals, np.float32) / np.float32(modules), due)


@jax.custom_batching.custom_vmap
def anywhere(flag: Bool[Array, ""]) -> Bool[Scalar, ""]:
    """Return whether a flag is true for any of the members mapped over.

    That is one value for all: a `cond` on it stays one under `jax.vmap`, where one on a
    flag a member would compute both branches in each step.
    """
    return flag


@anywhere.def_vmap
def _(
    size: int, batched: Sequence[bool], flags: Bool[Array, " M"]
) -> tuple[jax.Array, bool]:
    # Once more: there may be another map around this one.
    return anywhere(flags.any()), False
