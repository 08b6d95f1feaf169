"""LoRA adapters as JAX sees them, and the checkpoint that holds them.

Axis letters, here and everywhere: `m` inputs, `n` outputs, `r` the adapter's rank,
`k` kept components, `stack` any leading axes (scanned layers, experts). As in Flax:

    a: [*stack, m, r],  b: [*stack, r, n],  delta = scale * a @ b,
    y = x @ kernel + scale * (x @ a) @ b.

PEFT's transposed `lora_A`, `lora_B` exist only inside `para_jax/formats/peft.py`.
"""

import dataclasses
import functools
import math
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from para_jax import precision

if typing.TYPE_CHECKING:
    from para_jax.layouts import Tree
    from para_jax.report import Report

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
        stack. Static, so that no optimizer ever trains it. A traced scale belongs
        into `b`.
      nominal: The rank that budgets count, where it is not that of `a`: a PiSSA
        adapter made plain stores `2 r` columns and counts `r` (see
        `para_jax.extract.plain`).

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
    """What kind of layer an adapter belongs to, where it is not a dense one.

    Attributes:
      kind: `linear`, `embedding` (`m` is the vocabulary), `conv`, or `experts`: a bare
        parameter of a mixture, whose stack is its experts.
      window: For `conv`, the kernel's spatial shape and its input channels,
        `(*window, channels)`: the axes that `m` flattens, in Flax's order.

    Example:
      >>> layers = {"stem": para_jax.Layer(kind="conv", window=(3, 3, 2))}
      >>> stem = {"stem": adapter(3 * 3 * 2, 5, 4, 1)}
      >>> parent = para_jax.Checkpoint(adapters=stem, layers=layers)
    """

    kind: str = "linear"
    window: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spelling:
    """Name the tensors of one module in a single safetensors file.

    Attributes:
      a: The down factor, such as `unet.mid.to_q.lora.down.weight`.
      b: The up factor.
      alpha: The scale's numerator, or "" where the file has none.
      bias: The bias of the up factor, or "" where the file has none.
    """

    a: str
    b: str
    alpha: str = ""
    bias: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model's adapters, with everything that was stored beside them.

    Attributes:
      adapters: The LoRA updates by path.
      layers: The kinds of the layers that are not dense. A path that is missing
        here is dense.
      biases: The additive bias `[n]` that belongs to an update (PEFT's `lora_bias`),
        with its scale folded in.
      absent: `(m, n)` of the modules that kept nothing, by path. Formats that want an
        entry for every module write zeros for these.
      shared: The modules whose update is another's, and which one's: see `shared.py`.
      extra: Tensors that are no LoRA factors (a classifier head, norms), under the
        names that they were stored with. They pass through bit for bit.
      config: The source's configuration, such as PEFT's `adapter_config.json`.
      modules: The paths that `config` was read with, and whose short names it has.
      spelling: The names of the tensors in the single file that it was read from, by
        path. Children are written under the same names; other paths get the default.
      provenance: How the adapters came to be: plain JSON values.
      residual: Where the adapters do not belong to the original weights: the name of
        the initialisation (PiSSA, ...) that changed these. Not to be pruned before
        `para_jax.extract.plain`.
      source: The name of the file or folder that it was read from.
      tree: The tree of arrays that the adapters were found in, for
        `para_jax.to_tree` to put a child back.

    Example:
      >>> head = {"classifier": np.ones((3, 5))}
      >>> parent = para_jax.Checkpoint(adapters=adapters, extra=head)
      >>> para_jax.compress(parent, para_jax.Gamma(0.5)).extra["classifier"].shape
      (3, 5)
    """

    adapters: Adapters
    layers: Mapping[str, Layer] = dataclasses.field(default_factory=dict)
    biases: Mapping[str, Array] = dataclasses.field(default_factory=dict)
    absent: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    shared: Mapping[str, str] = dataclasses.field(default_factory=dict)
    extra: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    modules: tuple[str, ...] = ()
    spelling: Mapping[str, Spelling] = dataclasses.field(default_factory=dict)
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    residual: str = ""
    source: str = ""
    tree: "Tree | None" = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Child(Checkpoint):
    """A compressed checkpoint, and the account of what was kept.

    Attributes:
      report: Ranks, parameters, energy and error of the compression.
    """

    report: "Report"


@precision.kept
def folded(adapter: Adapter) -> Adapter:
    """Returns the same update with its scale folded into `b`: a scale of 1. Traced."""
    if adapter.scale == 1:
        return adapter
    host = isinstance(adapter.b, np.ndarray)  # float64 costs nothing there.
    wide = np.promote_types(adapter.b.dtype, np.float64 if host else np.float32)
    b = (adapter.b.astype(wide) * adapter.scale).astype(adapter.b.dtype)
    return dataclasses.replace(adapter, b=b, scale=1.0)


def ordered(paths: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """Returns `paths` in the model's order: `layer/2` before `layer/10`.

    Ties between equal singular values, and the rows of tables, go by it.
    """
    return sorted(paths, key=lambda path: (_natural(path), path))


@functools.lru_cache(maxsize=2**16)  # A sweep asks for one order again and again.
def _natural(path: str) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", path)
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in parts if p]


def unstack(adapters: Adapters) -> dict[str, Adapter]:
    """Returns one adapter a kernel: the stack's index becomes part of the path.

    `{"mlp": Adapter(a=[2, m, r], ...)}` becomes `{"mlp/0": ..., "mlp/1": ...}`.
    Adapters without a stack stay as they are. The inverse is `stack`.

    Example:
      >>> scanned = {"mlp": para_jax.Adapter(np.ones((2, 5, 3)), np.ones((2, 3, 7)))}
      >>> {path: x.a.shape for path, x in para_jax.unstack(scanned).items()}
      {'mlp/0': (5, 3), 'mlp/1': (5, 3)}

    Raises:
      ValueError: if an unstacked path is already taken.
    """
    result: dict[str, Adapter] = {}
    for path, adapter in adapters.items():
        for index in np.ndindex(adapter.stack):
            name = member(path, index)
            if name in result or (index and name in adapters):
                raise ValueError(
                    f"Cannot unstack '{path}': '{name}' is the path of another "
                    "adapter. Rename one of them."
                )
            result[name] = dataclasses.replace(
                adapter, a=adapter.a[index], b=adapter.b[index]
            )
    return result


def by_member(values: Mapping[str, Any], adapters: Adapters) -> dict[str, Any]:
    """Returns what belongs to each stack as what belongs to each of its kernels.

    Arrays `[*stack, ...]` are indexed, anything else is the same for all.
    """
    return {
        member(path, index): value[index] if isinstance(value, Array) else value
        for path, value in values.items()
        for index in np.ndindex(adapters[path].stack if path in adapters else ())
    }


def stack(
    adapters: Adapters, stacks: Mapping[str, tuple[int, ...]]
) -> dict[str, Adapter]:
    """Returns `adapters` with the members of each stack joined again.

    The members must have equal shapes and scales: pad them first if they do not.

    Example:
      >>> kernels = {"mlp/0": adapter(5, 7, 8, 4), "mlp/1": adapter(5, 7, 2, 1)}
      >>> para_jax.stack(kernels, {"mlp": (2,)})["mlp"].b.shape
      (2, 2, 7)

    Args:
      adapters: One adapter a kernel, as `unstack` gives them.
      stacks: The shape of each stack by its path, such as `{"mlp": (2,)}`.

    Raises:
      ValueError: if a member is missing or differs in shape or scale.
    """
    rest = dict(adapters)
    result: dict[str, Adapter] = {}
    for path, shape in stacks.items():
        names = [member(path, index) for index in np.ndindex(shape)]
        if missing := [name for name in names if name not in rest]:
            raise ValueError(f"Cannot stack '{path}': '{missing[0]}' is missing.")
        members = [rest.pop(name) for name in names]
        forms = {(x.a.shape, x.b.shape, x.scale, x.nominal) for x in members}
        if len(forms) > 1:
            raise ValueError(
                f"Cannot stack '{path}': its members differ in shape or scale "
                f"{sorted(map(str, forms))[:2]}. Pad them to one rank first."
            )
        result[path] = dataclasses.replace(
            members[0],
            a=_join([x.a for x in members], shape),
            b=_join([x.b for x in members], shape),
        )
    return result | rest


def _join(arrays: Sequence[Any], shape: tuple[int, ...]) -> Any:
    xp = np if all(isinstance(x, np.ndarray) for x in arrays) else jax.numpy
    return xp.stack(arrays).reshape(*shape, *arrays[0].shape)


def member(path: str, index: tuple[int, ...]) -> str:
    """Returns the path of one kernel of a stack."""
    return "/".join([path, *map(str, index)])
