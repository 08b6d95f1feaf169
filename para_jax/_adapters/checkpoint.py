"""Checkpoints: a model's adapters with everything that was stored beside them."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

import numpy as np

from para_jax._adapters.adapter import Adapters, Array

if typing.TYPE_CHECKING:
    from para_jax._pruning.report import Report
    from para_jax.layouts import Tree


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
      shared: The modules whose update is another's, and which one's: see `sharing.py`.
      extra: Tensors that are no LoRA factors (a classifier head, norms), under the
        names that they were stored with. They pass through bit for bit.
      config: The source's configuration, such as PEFT's `adapter_config.json`.
      modules: The paths that `config` was read with, and whose short names it has.
      spelling: The names of the tensors in the single file that it was read from, by
        path. Children are written under the same names; other paths get the default.
      provenance: How the adapters came to be: plain JSON values.
      residual: Where the adapters do not belong to the original weights: the name of
        the initialisation (PiSSA, ...) that changed these. Not to be pruned before
        `para_jax.plain`.
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


def as_checkpoint(parent: Checkpoint | Adapters) -> Checkpoint:
    """Returns `parent`, or the checkpoint that holds just these adapters."""
    return parent if isinstance(parent, Checkpoint) else Checkpoint(adapters=parent)
