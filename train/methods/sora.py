"""SoRA: gates between the factors, driven to zero by a proximal step.

N. Ding et al., "Sparse Low-rank Adaptation of Pre-trained Language Models", EMNLP 2023.

    delta = scale * a @ diag(g) @ b,    g ~ N(0, 1) and b = 0 at the start.

After the gates' optimizer has moved them, a threshold sets the small ones to 0. There
are two variants:

- "paper": the proximal step of `lam * ||g||_1`, a soft threshold of `gate_lr * lam`,
  after `warmup` steps and until a share of `target_sparsity` is 0; from then on those
  stay 0. This is our reading of the settings of PARA's comparison, whose code is not
  public.
- "official": what the authors' code does (TsinghuaC3I/SoRA): the mean `|g|` is part of
  the loss, and the threshold is a constant, `xi`, from the first step to the last,
  which also sets to 0 what it has just shrunk below itself. It aims at no sparsity.

Both take out slowly. A gate without a gradient, of the median size of .67, takes 6,745
steps of "paper" to 0; a short run ends well above its target unless `hard_finish`.

Axis letters: `m` inputs, `n` outputs, `r` rank. All but `finish` is traced.
"""

import dataclasses
import functools
import math
from collections.abc import Hashable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Scalar, ScalarLike

from train.methods import method, schedule, triplets
from train.methods.method import Adapters, Kernels, Method, State
from train.methods.schedule import Schedule
from train.methods.triplets import Triplets


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sora:
    """SoRA in the settings of PARA's comparison.

    Attributes:
      rank: The rank of every module at the start.
      scale: `alpha / rank`.
      variant: "paper" or "official".
      target_sparsity: The share of all gates that is to be 0 at the end.
      hard_finish: Whether the last step reaches the target by setting the components
        of smallest `|g| ||a|| ||b||` of the whole model to 0, where training has not.
        SoRA itself has no such step: tell its results apart.
      warmup: Of "paper": the number of steps before the first threshold; fitted to the
        run.
      gate_lr: Of "paper": the constant learning rate of the gates. "official" trains
        them at the rate of the factors.
      lam: Of "paper": the weight of `||g||_1`, the paper's lambda.
      xi: Of "official": the threshold; the code's `sparse_lambda_2`.
      sparse_lambda: Of "official": the weight of the mean `|g|` in the loss.
    """

    rank: int = 16
    scale: float = 2.0
    variant: Literal["paper", "official"] = "paper"
    target_sparsity: float = 0.7
    hard_finish: bool = False
    warmup: int = 500
    gate_lr: float = 1e-3
    lam: float = 0.1
    xi: float = 3e-4
    sparse_lambda: float = 10.0

    @property
    def target(self) -> float:
        """The average rank at the end: 4.8 at the defaults, not a quarter of `rank`."""
        return self.rank * (1 - self.target_sparsity)

    def schedule(self, steps: int) -> Schedule:
        """Return the warm-up of a run of `steps` steps, as `t_init`."""
        if self.variant == "official":
            return Schedule(t_init=0, t_final=0, delta_t=1)
        return schedule.warmup(steps, self.warmup)

    def method(self, steps: int) -> Method:
        """Return SoRA for a run of `steps` steps.

        Raises:
          ValueError: if a setting is impossible, or the run is too short.
        """
        if self.variant not in ("paper", "official"):
            raise ValueError(
                f"variant is '{self.variant}', expected 'paper' or 'official'."
            )
        if not 0 <= self.target_sparsity < 1:
            raise ValueError(
                f"target_sparsity is {self.target_sparsity}, expected at least 0 and "
                "less than 1."
            )
        schedule.check(self.rank, self.target)
        periods = self.schedule(steps)
        return Method(
            init=self._init,
            adapters=self._adapters,
            finish=self._finish,
            penalty=self._penalty,
            optimizer=self._optimizer,
            after_step=functools.partial(self._after_step, steps, periods),
            note=periods.note,
        )

    def _init(
        self, key: jax.Array, kernels: Kernels, gradients: Kernels | None
    ) -> State:
        # The key itself draws `a`, so that it is what LoRA starts from at that seed.
        keys = jax.random.split(jax.random.fold_in(key, 1), len(kernels))
        g = {
            path: jax.random.normal(key, (self.rank,))
            for path, key in zip(sorted(kernels), keys, strict=True)
        }
        a = method.kaiming(key, kernels, self.rank)
        return State(Triplets(a=a, e=g, b=method.zeros(kernels, self.rank)))

    def _adapters(self, state: State) -> Adapters:
        return triplets.fold(state.params, self.scale)

    def _finish(self, state: State) -> Adapters:
        keep = {path: g != 0 for path, g in state.params.e.items()}
        return method.kept(self._adapters(state), keep)

    def _penalty(self, state: State) -> ScalarLike:
        if self.variant == "paper":  # The proximal step takes its place.
            return 0.0
        gates = jnp.concatenate(list(state.params.e.values()))
        return self.sparse_lambda * jnp.mean(jnp.abs(gates))

    def _optimizer(
        self, learning_rate: optax.Schedule, weight_decay: float
    ) -> optax.GradientTransformation:
        rate = self.gate_lr if self.variant == "paper" else learning_rate
        parts: dict[Hashable, optax.GradientTransformation] = {
            "value": optax.adamw(rate, weight_decay=0),
            "factor": optax.adamw(learning_rate, weight_decay=weight_decay),
        }
        return optax.partition(parts, triplets.factors_and_values)

    def _after_step(
        self,
        steps: int,
        periods: Schedule,
        before: State,
        after: State,
        grads: Any,
        step: jax.Array,
    ) -> State:
        old, params = before.params.e, after.params
        need = zeros(self.target_sparsity, self.rank * len(old))
        if self.variant == "official":
            g = {path: shrink_twice(x, self.xi) for path, x in params.e.items()}
        else:
            tau = jnp.where(step >= periods.t_init, self.gate_lr * self.lam, 0)
            g = {path: soft_threshold(x, tau) for path, x in params.e.items()}
            dead = {path: x == 0 for path, x in old.items()}
            frozen = triplets.zeroed(params.e, dead)
            g = optax.tree.where(_count(dead) >= need, frozen, g)
        if self.hard_finish:
            low = triplets.lowest(_sizes(params._replace(e=g)), need)
            g = optax.tree.where(step == steps - 1, triplets.zeroed(g, low), g)
        return after._replace(params=params._replace(e=g))


def zeros(sparsity: float, gates: int) -> int:
    """Return the number of zero gates for a sparsity. Runs on the host."""
    return math.ceil(round(sparsity * gates, 6))  # .7 * 10 may be 7.000...1.


def soft_threshold(g: Float[Array, " r"], tau: ScalarLike) -> Float[Array, " r"]:
    """Return `argmin_z (z - g)^2 / 2 + tau |z|`: `g` moved to 0 by `tau`."""
    return jnp.sign(g) * jnp.maximum(jnp.abs(g) - tau, 0)


def shrink_twice(g: Float[Array, " r"], xi: float) -> Float[Array, " r"]:
    """Shrink the gates as the authors' code does, unlike a soft threshold.

    Its last line tests the values that the first two have moved: `|g| < 2 xi` becomes
    0, but `|g| = xi` stays, and from `2 xi` on it is a soft threshold.
    """
    g = jnp.where(g > xi, g - xi, g)
    g = jnp.where(g < -xi, g + xi, g)
    return jnp.where(jnp.abs(g) < xi, 0, g)


def _count(where: dict[str, jax.Array]) -> Scalar:
    return jnp.sum(jnp.stack([jnp.sum(x) for x in where.values()]))


def _sizes(params: Triplets) -> dict[str, jax.Array]:
    """Return the Frobenius norm of each component, `|g| ||a|| ||b||`."""
    norm = jnp.linalg.norm
    return {
        path: jnp.abs(g) * norm(params.a[path], axis=0) * norm(params.b[path], axis=1)
        for path, g in params.e.items()
    }
