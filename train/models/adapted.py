"""The adapted kernels of a model, and adapters in the model's own form.

A method of training knows one kernel `[m, n]` a module, under the name that PEFT has
for it: `encoder/layers/3/mlp/fc1`. A model may hold the kernels of all its blocks as
one array `[L, m, n]`, at `encoder/layers/mlp/fc1`; it is then given its adapters in the
same form where they have one rank, which compiles the blocks once.

Axis letters: `L` blocks, `m` inputs, `n` outputs, `r` rank. Traceable under `jit`.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp

import para_jax as para
from para_jax import Adapter, Array, folded, nest, unnest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapted:
    """The kernels of a model with adapters.

    Attributes:
      blocks: The path of the blocks, such as `bert/encoder/layer`.
      modules: The modules of a block, by their paths in it.
      stack: The number of blocks `L` if their kernels are one array a module; None if
        each block has its own.
    """

    blocks: str
    modules: tuple[str, ...]
    stack: int | None = None

    def kernels(self, base: Mapping[str, Any]) -> dict[str, Any]:
        """Return the kernels `[m, n]`, by the path of their module."""
        leaves = unnest(base)
        if self.stack is not None:
            return {
                self._path(index, name): leaves[self._kernel(name)][index]
                for index in range(self.stack)
                for name in self.modules
            }
        names = "|".join(map(re.escape, self.modules))
        kernel = re.compile(rf"({re.escape(self.blocks)}/\d+/(?:{names}))/kernel")
        return {y[1]: x for path, x in leaves.items() if (y := kernel.fullmatch(path))}

    def replaced(
        self, base: Mapping[str, Any], kernels: Mapping[str, Array]
    ) -> dict[str, Any]:
        """Return the params with other kernels, by path."""
        changed = {f"{path}/kernel": x for path, x in kernels.items()}
        if self.stack is not None:
            changed = {
                self._kernel(name): jnp.stack([kernels[x] for x in self._paths(name)])
                for name in self.modules
            }
        return nest(unnest(base) | changed)

    def collection(self, adapters: Mapping[str, Adapter]) -> dict[str, Any]:
        """Return the collection `lora` of adapters by the paths of `kernels`.

        Args:
          adapters: Factors `[..., m, r]` and `[..., r, n]`. Where the adapters of a
            module differ in rank from block to block, or some have none, the blocks
            are compiled one by one.
        """
        if self.stack is None or not self._are_alike(adapters):
            return para.to_params(adapters)
        stacks = {}
        for name in self.modules:
            found = [folded(adapters[x]) for x in self._paths(name) if x in adapters]
            if found:
                stacks[f"{self.blocks}/{name}"] = Adapter(
                    a=jnp.stack([x.a for x in found], axis=-3),
                    b=jnp.stack([x.b for x in found], axis=-3),
                )
        return para.to_params(stacks)

    def _are_alike(self, adapters: Mapping[str, Adapter]) -> bool:
        for name in self.modules:
            paths = self._paths(name)
            if len({adapters[x].rank if x in adapters else 0 for x in paths}) > 1:
                return False
        return True

    def _paths(self, name: str) -> list[str]:
        return [self._path(index, name) for index in range(self.stack or 0)]

    def _path(self, index: int, name: str) -> str:
        return f"{self.blocks}/{index}/{name}"

    def _kernel(self, name: str) -> str:
        return f"{self.blocks}/{name}/kernel"


@runtime_checkable
class Model(Protocol):
    """A Linen model with trainable adapters. Static: equal ones are one."""

    @property
    def adapted(self) -> Adapted:
        """The kernels with adapters."""
        ...

    def apply(self, variables: Mapping[str, Any], inputs: Any) -> Any:
        """Return the logits `[..., classes]` of a batch."""
        ...

    def init(self, rngs: Any, inputs: Any) -> Any:
        """Initialise variables, with the shapes that `apply` reads."""
        ...
