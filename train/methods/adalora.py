"""AdaLoRA: a budget of triplets, allocated by importance during training.

Q. Zhang et al., "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient
Fine-Tuning", ICLR 2023; where print and the authors' code (QingruZhang/AdaLoRA)
differ, the code.

    delta = alpha / (rank + 1e-5) * a @ diag(e) @ b,    e = 0 at the start.

A triplet is a column of `a` (a row of the paper's Q), an entry of `e` (its Lambda) and
a row of `b` (a column of its P). Each entry's importance is a smoothed `|w * gradient|`
times its smoothed deviation; a triplet's is the importance of `e_k` plus the mean
importance of each of its two vectors. Triplets below one threshold for the whole model
get `e_k = 0`, and may grow again until the last masking.

Axis letters: `m` inputs, `n` outputs, `r` rank. All but `budget` and `finish` is
traced.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Scalar, ScalarLike

from train.methods import method, schedule, triplets
from train.methods.method import Adapters, Kernels, Method, State
from train.methods.schedule import Schedule
from train.methods.triplets import Triplets


class Memory(NamedTuple):
    """Statistics of AdaLoRA.

    Attributes:
      importance: The smoothed sensitivity of each entry, the paper's I.
      uncertainty: Its smoothed deviation, the paper's U.
      keep: Booleans `[r]` by path: the triplets that the last masking left.
    """

    importance: Triplets
    uncertainty: Triplets
    keep: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaLora:
    """AdaLoRA in the settings of PARA's comparison.

    Attributes:
      rank: The rank of every module at the start.
      target: The average rank at the end.
      scale: `alpha / rank`. The update is scaled by `alpha / (rank + 1e-5)`, with the
        rank of the start for ever.
      t_init: Steps before the first masking.
      t_final: Steps at the end through which the ranks stay as they are.
      delta_t: Steps between two maskings. All three are fitted to the run.
      orth_weight: The weight of the penalty that keeps `a` and `b` orthonormal.
      beta1: The decay of the smoothed importance, a step.
      beta2: The decay of the smoothed uncertainty, a step.
    """

    rank: int = 16
    target: float = 4.0
    scale: float = 2.0
    t_init: int = 500
    t_final: int = 500
    delta_t: int = 500
    orth_weight: float = 1e-5
    beta1: float = 0.85
    beta2: float = 0.85

    def schedule(self, steps: int) -> Schedule:
        """Return the three periods of a run of `steps` steps."""
        return schedule.fit(
            steps, t_init=self.t_init, t_final=self.t_final, delta_t=self.delta_t
        )

    def method(self, steps: int) -> Method:
        """Return AdaLoRA for a run of `steps` steps.

        Raises:
          ValueError: if the target is above the rank, or the run is too short.
        """
        schedule.check(self.rank, self.target)
        periods = self.schedule(steps)
        return Method(
            init=self._init,
            adapters=self._adapters,
            finish=self._finish,
            penalty=lambda state: self.orth_weight * orthogonality(state.params),
            optimizer=triplets.adamw,
            after_step=functools.partial(self._after_step, steps, periods),
            note=periods.note,
        )

    def _init(
        self, key: jax.Array, kernels: Kernels, gradients: Kernels | None
    ) -> State:
        params = triplets.draw(key, kernels, self.rank, _normal)
        zeros = jax.tree.map(jnp.zeros_like, params)
        keep = {path: jnp.ones(self.rank, bool) for path in kernels}
        return State(params, Memory(zeros, zeros, keep))

    def _adapters(self, state: State) -> Adapters:
        # As in the authors' code, which divides by `rank + 1e-5`.
        scale = self.scale * self.rank / (self.rank + 1e-5)
        return triplets.fold(state.params, scale)

    def _finish(self, state: State) -> Adapters:
        return method.kept(self._adapters(state), state.memory.keep)

    def _after_step(
        self,
        steps: int,
        periods: Schedule,
        before: State,
        after: State,
        grads: Triplets,
        step: jax.Array,
    ) -> State:
        (params, memory), modules = after, len(after.params.e)
        # The budget is of the whole model: one threshold ranks triplets across modules.
        start, end = self.rank * modules, round(self.target * modules)
        # As a table of constants: the cubic must be rounded in float64, on the host.
        table = [budget(t, steps, periods, start=start, end=end) for t in range(steps)]
        budgets, masked = (np.array(column) for column in zip(*table, strict=True))
        learned = observe(memory, params, grads, beta1=self.beta1, beta2=self.beta2)
        # During the last `t_final` steps the ranks are final, and so are the averages.
        memory = optax.tree.where(step < steps - periods.t_final, learned, memory)
        low = triplets.lowest(scores(memory), start - jnp.asarray(budgets)[step])
        now = jnp.asarray(masked)[step]
        # Only `e` becomes 0. Its vectors keep training, so that a triplet can return.
        e = {p: jnp.where(now & low[p], 0, x) for p, x in params.e.items()}
        keep = {p: jnp.where(now, ~low[p], x) for p, x in memory.keep.items()}
        return State(params._replace(e=e), memory._replace(keep=keep))


def budget(
    t: int, steps: int, periods: Schedule, *, start: int, end: int
) -> tuple[int, bool]:
    """Return the number of triplets left after step `t`, and whether it masks.

    With `last = steps - t_final`, a cubic leads from `start` at `t_init` to `end` at
    `last`, cut to an integer; masking happens there at the multiples of `delta_t`, at
    `last`, and at each step after it. (PEFT's form: the authors' code masks at `last`
    only if that is a multiple, and otherwise one step later.) Host code: in float32 the
    cubic is one triplet off here and there.

    Args:
      t: The step, from 0.
      steps: The number of steps of the whole run.
      periods: `t_init`, `t_final`, `delta_t`.
      start: The number of all triplets.
      end: The number of triplets to keep.
    """
    last = steps - periods.t_final
    if t <= periods.t_init:
        return start, False
    if t >= last:
        return end, True
    left = 1 - (t - periods.t_init) / (last - periods.t_init)
    return int(end + (start - end) * left**3), t % periods.delta_t == 0


def observe(
    memory: Memory,
    params: Triplets,
    grads: Triplets,
    *,
    beta1: ScalarLike,
    beta2: ScalarLike,
) -> Memory:
    """Update the averages with one more step.

    With `s = |w * gradient|`, of the parameters after the step and the gradient that it
    took: `I' = beta1 I + (1 - beta1) s`, `U' = beta2 U + (1 - beta2) |s - I'|`.
    """
    # First order: the change of the loss when the entry becomes 0.
    seen = jax.tree.map(lambda w, g: jnp.abs(w * g), params, grads)
    importance = jax.tree.map(
        lambda i, s: beta1 * i + (1 - beta1) * s, memory.importance, seen
    )
    uncertainty = jax.tree.map(
        lambda u, s, i: beta2 * u + (1 - beta2) * jnp.abs(s - i),
        memory.uncertainty,
        seen,
        importance,
    )
    return memory._replace(importance=importance, uncertainty=uncertainty)


def scores(memory: Memory) -> dict[str, Float[Array, " r"]]:
    """Return the score of each triplet: `I U` of `e_k`, and its means over a and b."""
    entries = jax.tree.map(jnp.multiply, memory.importance, memory.uncertainty)
    return {
        # Means, not sums, so that wide modules do not win by their size alone.
        path: e + jnp.mean(entries.a[path], 0) + jnp.mean(entries.b[path], 1)
        for path, e in entries.e.items()
    }


def orthogonality(params: Triplets) -> Scalar:
    """Return the mean of `||a^T a - I||` and `||b b^T - I||` over all modules.

    Frobenius norms, not squared.
    """
    # TF32 would hide deviations from orthogonality below 1e-3.
    gram = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    grams = [gram(a.mT, a) for a in params.a.values()]
    grams += [gram(b, b.mT) for b in params.b.values()]
    return jnp.mean(jnp.stack([_norm(x - jnp.eye(len(x))) for x in grams]))


def _norm(x: Float[Array, "r r"]) -> Scalar:
    # The gradient of a root is NaN at 0, and a `where` around it alone leaves it so.
    square = jnp.sum(x**2)
    root = jnp.sqrt(jnp.where(square > 0, square, 1))
    return jnp.where(square > 0, root, 0)


def _normal(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    return 0.02 * jax.random.normal(key, shape)
