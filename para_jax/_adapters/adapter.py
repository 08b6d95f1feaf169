"""LoRA adapters: two factors and a scale.

Axis letters, here and everywhere: `m` inputs, `n` outputs, `r` the adapter's rank,
`k` kept components, `stack` any leading axes (scanned layers, experts). As in Flax:

    a: [*stack, m, r],  b: [*stack, r, n],  delta = scale * a @ b,
    y = x @ kernel + scale * (x @ a) @ b.

PEFT's transposed `lora_A`, `lora_B` exist only inside `para_jax/formats/peft`.

Traceable under `jit`: paths and shapes are static.
"""

import dataclasses
import functools
import math
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from para_jax._adapters import precision

Array = jax.Array | np.ndarray


@typing.no_type_check  # JAX also calls `__init__` with non-arrays: jaxtyping#277.
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Adapter:
    """The update `delta = scale * a @ b` of one kernel, or of a stack of kernels.

    Attributes:
      a: The down projection, `[*stack, m, r]`, floating point.
      b: The up projection, `[*stack, r, n]`, of the dtype of `a`.
      scale: `alpha / r`, or `alpha / sqrt(r)` for rsLoRA; one number for a whole
        stack. Static, so that no optimizer ever trains it. Multiply a traced scale
        into `b`.
      nominal: The rank that budgets count, if not the rank of `a`: a PiSSA adapter
        made plain stores `2 r` columns and counts `r` (see `para_jax.plain`).

    Example:
      >>> x = para_jax.Adapter(np.ones((2, 5, 3)), np.ones((2, 3, 7)), scale=0.5)
      >>> x.rank, x.stack, x.inputs, x.outputs, x.modules, x.parameters
      (3, (2,), 5, 7, 2, 72)
    """

    a: Array
    b: Array
    scale: float = dataclasses.field(default=1.0, metadata={"static": True})
    nominal: int | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def rank(self) -> int:
        return self.a.shape[-1]

    @property
    def stack(self) -> tuple[int, ...]:
        return tuple(self.a.shape[:-2])

    @property
    def inputs(self) -> int:
        return self.a.shape[-2]

    @property
    def outputs(self) -> int:
        return self.b.shape[-1]

    @property
    def modules(self) -> int:
        """The number of kernels in the stack."""
        return math.prod(self.stack)

    @property
    def parameters(self) -> int:
        """The number of stored values, padding included."""
        return self.modules * self.rank * (self.inputs + self.outputs)


Adapters = Mapping[str, Adapter]
"""A model's adapters: the slash-joined path of each adapted module, and its update."""


@precision.kept
def folded(adapter: Adapter) -> Adapter:
    """Fold the scale of an update into `b`: the same update with a scale of 1.

    Traceable under `jit`.

    Example:
      >>> x = para_jax.Adapter(np.ones((5, 2)), np.ones((2, 3)), scale=0.5)
      >>> y = para_jax.folded(x)
      >>> y.scale, y.b[0].tolist()
      (1.0, [0.5, 0.5, 0.5])
    """
    if adapter.scale == 1:
        return adapter
    host = isinstance(adapter.b, np.ndarray)  # float64 costs nothing there.
    wide = np.promote_types(adapter.b.dtype, np.float64 if host else np.float32)
    b = (adapter.b.astype(wide) * adapter.scale).astype(adapter.b.dtype)
    return dataclasses.replace(adapter, b=b, scale=1.0)


def ordered(paths: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """Sort `paths` in the model's order: `layer/2` before `layer/10`.

    It breaks ties between equal singular values, and orders the rows of tables.

    Example:
      >>> para_jax.ordered(["layer/10/up", "layer/2/up", "layer/2/down"])
      ['layer/2/down', 'layer/2/up', 'layer/10/up']
    """
    return sorted(paths, key=lambda path: (_natural(path), path))


@functools.lru_cache(maxsize=2**16)  # A sweep asks for one order again and again.
def _natural(path: str) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", path)
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in parts if p]


def check_pair(path: str, adapter: Adapter) -> None:
    """Check that two factors fit together, for arrays that enter the library.

    Raises:
      ValueError: if not. The message names `path`.
    """
    a, b = adapter.a, adapter.b
    if a.ndim < 2 or b.ndim != a.ndim or a.shape[:-2] != b.shape[:-2]:
        raise ValueError(
            f"'{path}': expected a [*stack, m, r] and b [*stack, r, n], got "
            f"{list(a.shape)} and {list(b.shape)}."
        )
    if a.shape[-1] != b.shape[-2]:
        raise ValueError(
            f"'{path}': the ranks disagree: a {list(a.shape)} has {a.shape[-1]}, "
            f"b {list(b.shape)} has {b.shape[-2]}."
        )
    if 0 in a.shape or 0 in b.shape:
        raise ValueError(
            f"'{path}': an axis of a {list(a.shape)} or b {list(b.shape)} is empty. "
            "A module of rank 0 is left out instead."
        )
    # Integers would decompose without a complaint, into values of their codes.
    for name, x in (("a", a), ("b", b)):
        check_dtype(f"'{path}': {name}", x.dtype)


def check_dtype(name: str, dtype: Any) -> None:
    """Check that factors can be stored in a dtype.

    Args:
      name: The name of the array or option, for the message.
      dtype: The dtype. float8_e8m0fnu has powers of two alone, and no zero.

    Raises:
      ValueError: if not.
    """
    if jnp.issubdtype(dtype, jnp.floating) and dtype != jnp.float8_e8m0fnu:
        return
    raise ValueError(
        f"{name} is {np.dtype(dtype).name}, expected floating point with a fraction. "
        "Quantisation leaves such values (bitsandbytes, torchao, MX formats): "
        "dequantise the factors with the program that wrote them, and save them in "
        "bfloat16."
    )
