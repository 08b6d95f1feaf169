"""Checkpoints: a model's adapters with everything stored beside them.

Runs on the host.
"""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

import numpy as np

from para_jax._adapters.adapter import Adapters, Array

# By name only: the folders above import this one.
if typing.TYPE_CHECKING:
    from para_jax._pruning.report import Report
    from para_jax.layouts import Tree


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
    """The kind of an adapter's layer, if it is not dense.

    Attributes:
      kind: `linear`, `embedding` (`m` is the vocabulary), `conv`, `experts`: a bare
        parameter of a mixture, whose stack is its experts, or `einsum`: a kernel of
        Keras's EinsumDense, all of whose axes but the last are inputs of the update.
      window: For `conv`, the kernel's spatial shape and its input channels,
        `(*window, channels)`: the axes flattened to `m`, in Flax's order. For
        `einsum`, the axes flattened to `m`.

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
    """A model's adapters, with everything stored beside them.

    Attributes:
      adapters: The LoRA updates by path.
      layers: The kinds of the layers that are not dense, by path.
      biases: The additive bias `[n]` of an update (PEFT's `lora_bias`), with its scale
        folded in, by path.
      absent: `(m, n)` of the modules that kept nothing, by path. Formats with an entry
        for every module write zeros for these.
      shared: The owner of each shared update, `{path: owner}`: see `sharing.py`.
      extra: Tensors other than LoRA factors (a classifier head, norms), under their
        stored names. They pass through bit for bit.
      config: The source's configuration, such as PEFT's `adapter_config.json`.
      modules: The paths of the modules when `config` was read, which abbreviates them.
      spelling: The names of the tensors in a single source file, by path. Children are
        written under the same names; other paths get the default.
      provenance: The history of the adapters, plain JSON values.
      residual: Name of the initialisation that changed the base weights (PiSSA, ...),
        or "". Call `para_jax.plain` before pruning.
      source: The name of the source file or folder.
      tree: The source tree of arrays, so that `para_jax.to_tree` can put a child back.

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
    """A compressed checkpoint, with the report of the compression.

    Attributes:
      report: Ranks, parameters, energy and error of the compression.
    """

    report: "Report"


def as_checkpoint(parent: Checkpoint | Adapters) -> Checkpoint:
    """Return `parent`, wrapped in a checkpoint if it is bare adapters."""
    return parent if isinstance(parent, Checkpoint) else Checkpoint(adapters=parent)
