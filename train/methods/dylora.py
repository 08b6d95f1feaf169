"""DyLoRA: one LoRA, trained for every rank up to its own.

M. Valipour, M. Rezagholizadeh, I. Kobyzev, A. Ghodsi, "DyLoRA: Parameter-Efficient
Tuning of Pre-trained Models using Dynamic Search-Free Low-Rank Adaptation", EACL 2023.

Each step draws a rank, the same for all modules, and trains the adapter that is cut
there: `delta = alpha / rank * a[:, :rank] @ b[:rank]`.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from para_jax import Adapter
from train.methods import method
from train.methods.method import Adapters, Kernels, Method, State


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dylora:
    """DyLoRA, with ranks drawn evenly from 1 to the highest.

    Attributes:
      rank: The highest rank.
      target: The rank that a run ends with. `at_rank` gives the others.
      alpha: The scale at a rank is `alpha / rank`.
      mode: `frozen`, as released, gives a gradient to the last component of a step's
        rank alone; `unfrozen` to all of its components.
      strict: Whether what had no gradient stays where it is. Otherwise momentum and
        weight decay go on moving it, as in the released code.
    """

    rank: int = 16
    target: int = 4
    alpha: float = 32.0
    mode: Literal["frozen", "unfrozen"] = "frozen"
    strict: bool = False

    def method(self, steps: int) -> Method:
        """Return DyLoRA, drawing ranks until step `steps`.

        Raises:
          ValueError: if not `1 <= target <= rank`.
        """
        if not 1 <= self.target <= self.rank:
            raise ValueError(
                f"target is {self.target}, expected 1 to the highest rank {self.rank}."
            )

        def after_step(
            before: State, after: State, grads: Any, step: jax.Array
        ) -> State:
            params = self._restored(before, after) if self.strict else after.params
            # Typed keys cannot be saved: checkpoints hold arrays of numbers.
            memory = self._drawn(jax.random.wrap_key_data(before.memory["key"]))
            # The last state is served, and that must have the target's rank.
            last = jnp.where(step == steps - 1, self.target, memory["rank"])
            return State(params, memory | {"rank": last})

        return Method(
            init=self._init,
            adapters=self._adapters,
            finish=self._finish,
            after_step=after_step,
        )

    def at_rank(self, state: State, rank: int | jax.Array) -> Adapters:
        """Return the adapters cut at a rank, possibly a traced one.

        Args:
          state: The state of a run of any length.
          rank: From 1 to the highest. Components beyond it are zero.
        """
        keep = jnp.arange(self.rank) < rank
        # DyLoRA scales by the rank drawn, not by the highest one.
        scale = jnp.where(keep, self.alpha / rank, 0)
        return {
            path: Adapter(a=pair["a"] * keep[None], b=pair["b"] * scale[:, None])
            for path, pair in state.params.items()
        }

    def _init(
        self, key: jax.Array, kernels: Kernels, gradients: Kernels | None
    ) -> State:
        key, sampler = jax.random.split(key)
        a, b = method.kaiming(key, kernels, self.rank), method.zeros(kernels, self.rank)
        params = {path: {"a": a[path], "b": b[path]} for path in kernels}
        return State(params, self._drawn(sampler))

    def _drawn(self, key: jax.Array) -> dict[str, jax.Array]:
        """Draw the next step's rank; return the key as integers, for checkpoints."""
        key, sampler = jax.random.split(key)
        rank = jax.random.randint(sampler, (), 1, self.rank + 1)
        return {"rank": rank, "key": jax.random.key_data(key)}

    def _trained(self, rank: jax.Array) -> jax.Array:
        index = jnp.arange(self.rank)
        return index == rank - 1 if self.mode == "frozen" else index < rank

    def _adapters(self, state: State) -> Adapters:
        rank = state.memory["rank"]
        # Frozen components still act in the forward pass, without a gradient.
        fixed = jax.tree.map(lax.stop_gradient, state.params)
        params = self._chosen(self._trained(rank), state.params, fixed)
        return self.at_rank(State(params), rank)

    def _restored(self, before: State, after: State) -> Any:
        trained = self._trained(before.memory["rank"])
        return self._chosen(trained, after.params, before.params)

    def _chosen(self, where: jax.Array, params: Any, others: Any) -> Any:
        """Select the components of `params` by a mask, else those of `others`."""
        return {
            path: {
                "a": jnp.where(where[None], pair["a"], others[path]["a"]),
                "b": jnp.where(where[:, None], pair["b"], others[path]["b"]),
            }
            for path, pair in params.items()
        }

    def _finish(self, state: State) -> Adapters:
        keep = jnp.arange(self.rank) < self.target
        adapters = self.at_rank(state, self.target)
        return method.kept(adapters, dict.fromkeys(adapters, keep))
