"""DoRA: components of rank one, pruned by their share of their module's update.

Y. Mao et al., "DoRA: Enhancing Parameter-Efficient Fine-Tuning with Dynamic Rank
Distribution", ACL 2024; where print and the authors' code (MIkumikumi0116/DoRA) differ,
the code. Not the weight-decomposed adaptation of the same name.

    delta = alpha / rank * a @ diag(c) @ b,    c = 0 at the start.

A component's score is a smoothed `||c_k a_k b_k|| / ||delta||`, so that a module with a
small update competes on equal terms. The lowest of the whole model get `c_k = 0`, few
at first and most at the end, and may grow again until the last pruning. Training sees
all components up to then, and `finish` leaves out, at any step, the components of the
latest pruning.

Axis letters: `m` inputs, `n` outputs, `r` rank. All but `pruned` and `finish` is
traced.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Scalar

from train.methods import method, schedule, triplets
from train.methods.method import Adapters, Kernels, Method, State
from train.methods.schedule import Schedule
from train.methods.triplets import Triplets


class Memory(NamedTuple):
    """Statistics of DoRA.

    Attributes:
      score: The smoothed scores `[r]` by path.
      keep: Booleans `[r]` by path: the components that the last pruning left.
      steps: The number of steps taken.
    """

    score: dict[str, jax.Array]
    keep: dict[str, jax.Array]
    steps: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dora:
    """DoRA in the settings of PARA's comparison.

    Attributes:
      rank: The rank of every module at the start.
      target: The average rank at the end.
      scale: `alpha / rank`, with the rank of the start for ever. (The authors' alpha is
        8; here all methods have one scale.)
      t_init: The step of the first pruning, counted from 1.
      t_final: Steps after the last pruning.
      delta_t: Steps between two prunings. All three are fitted to the run.
      eta: The weight of the penalty on the variance of `a` and `b`. By the paper's
        formula, which divides by half as much, it would be half of this.
      beta: The decay of the smoothed score, a step.
    """

    rank: int = 16
    target: float = 4.0
    scale: float = 2.0
    t_init: int = 500
    t_final: int = 500
    delta_t: int = 500
    eta: float = 0.3
    beta: float = 0.9

    def schedule(self, steps: int) -> Schedule:
        """Return the three periods of a run of `steps` steps."""
        return schedule.fit(
            steps, t_init=self.t_init, t_final=self.t_final, delta_t=self.delta_t
        )

    def method(self, steps: int) -> Method:
        """Return DoRA for a run of `steps` steps.

        Raises:
          ValueError: if the target is above the rank, or the run is too short.
        """
        schedule.check(self.rank, self.target)
        periods = self.schedule(steps)
        return Method(
            init=self._init,
            adapters=self._adapters,
            finish=self._finish,
            penalty=functools.partial(self._penalty, steps - periods.t_final),
            optimizer=triplets.adamw,
            after_step=functools.partial(self._after_step, steps, periods),
            note=periods.note,
        )

    def _init(
        self, key: jax.Array, kernels: Kernels, gradients: Kernels | None
    ) -> State:
        _refuse_vectors(kernels)
        params = triplets.draw(key, kernels, self.rank, _kaiming)
        # Zero scores: the first pruning is ordered by the steps since the start.
        score = jax.tree.map(jnp.zeros_like, params.e)
        keep = {path: jnp.ones(self.rank, bool) for path in kernels}
        return State(params, Memory(score, keep, jnp.zeros((), jnp.int32)))

    def _adapters(self, state: State) -> Adapters:
        return triplets.fold(state.params, self.scale)

    def _finish(self, state: State) -> Adapters:
        return method.kept(self._adapters(state), state.memory.keep)

    def _penalty(self, last: int, state: State) -> Scalar:
        # After the last pruning the factors are trained by the loss alone.
        on = state.memory.steps < last
        return jnp.where(on, self.eta * variance(state.params), 0)

    def _after_step(
        self,
        steps: int,
        periods: Schedule,
        before: State,
        after: State,
        grads: Any,
        step: jax.Array,
    ) -> State:
        (params, memory), modules = after, len(after.params.e)
        remove = self.rank * modules - round(self.target * modules)
        # As a table of constants: the cubic must be rounded in float64, on the host.
        table = [pruned(t + 1, steps, periods, remove) for t in range(steps)]
        count, last = jnp.asarray(np.array(table))[step], steps - periods.t_final
        smoothed = smooth(memory.score, params, self.beta)
        score = optax.tree.where(step < last, smoothed, memory.score)
        low = triplets.lowest(score, count)
        keep = {p: jnp.where(count > 0, ~low[p], x) for p, x in memory.keep.items()}
        # After the last pruning every step zeroes again: the optimizer's momentum would
        # revive them.
        out = {p: ((count > 0) | (step >= last)) & ~x for p, x in keep.items()}
        params = params._replace(e=triplets.zeroed(params.e, out))
        return State(params, Memory(score, keep, memory.steps + 1))


def pruned(t: int, steps: int, periods: Schedule, remove: int) -> int:
    """Return the number of zero components after step `t`; 0 if it does not prune.

    Pruning happens every `delta_t` steps from `t_init` on, and at the end of the
    window, `t_final` steps before the end of the run. The count is `remove * (share
    of the window)^3`, cut to an integer, but at least 1. Runs on the host.

    Args:
      t: The step, from 1.
      steps: The number of steps of the whole run.
      periods: `t_init`, `t_final`, `delta_t`.
      remove: The number of components to remove by the end of the window.
    """
    now, window = t - periods.t_init, steps - periods.t_final - periods.t_init
    due = now % periods.delta_t == 0 or now == window
    if remove == 0 or not 0 <= now <= window or not due:
        return 0
    # At the start of the window the share is 0, and yet one component goes.
    return max(int(remove * (now / window) ** 3), 1)


def smooth(
    score: dict[str, jax.Array], params: Triplets, beta: float
) -> dict[str, jax.Array]:
    """Return `beta * score + (1 - beta) * share` for every module."""
    a, c, b = params
    return {
        path: beta * old + (1 - beta) * share(a[path], c[path], b[path])
        for path, old in score.items()
    }


def share(
    a: Float[Array, "m r"], c: Float[Array, " r"], b: Float[Array, "r n"]
) -> jax.Array:
    """Return `||c_k a_k b_k|| / (||a diag(c) b|| + 1e-8)`, Frobenius norms.

    In closed form, `m x n` is never formed: the upper is `|c_k| ||a_k|| ||b_k||`, the
    lower the root of `sum_kl (a^T a)_kl (c b b^T c)_kl`.
    """
    gram = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    cb = c[:, None] * b
    parts = jnp.linalg.norm(a, axis=0) * jnp.linalg.norm(cb, axis=1)
    square = jnp.sum(gram(a.mT, a) * gram(cb, cb.mT))
    # Rounding can make a sum of products negative; the root would be NaN.
    return parts / (jnp.sqrt(jnp.maximum(square, 0)) + 1e-8)


def variance(params: Triplets) -> Scalar:
    """Return the mean variance of the columns of `a` and the rows of `b`.

    The unbiased one, over the `m` or `n` entries. The paper's DEM.
    """
    rows = [jnp.var(a, axis=0, ddof=1) for a in params.a.values()]
    columns = [jnp.var(b, axis=1, ddof=1) for b in params.b.values()]
    return jnp.mean(jnp.concatenate(rows + columns))


def _refuse_vectors(kernels: Kernels) -> None:
    for path, x in kernels.items():
        if 1 in x.shape:
            raise ValueError(
                f"'{path}' is {x.shape[0]} x {x.shape[1]}: DoRA's penalty is a "
                "variance, which needs at least 2 inputs and 2 outputs. Leave the "
                "module out."
            )


def _kaiming(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Draw a factor as PyTorch's `kaiming_uniform_(a=0)` does: `b` is large too."""
    bound = np.sqrt(6 / shape[0])
    return jax.random.uniform(key, shape, minval=-bound, maxval=bound)
