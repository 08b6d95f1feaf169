"""Move a checkpoint's modules to other names, splitting or joining them on the way.

Runs on the host: a checkpoint from a file is NumPy.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from para_jax._adapters.adapter import Adapter, Array
from para_jax._adapters.checkpoint import Checkpoint
from para_jax.names.diffusion import fused
from para_jax.names.diffusion.family import Form


class Split(NamedTuple):
    """The destinations of one module's outputs.

    Attributes:
      targets: The new path of each part.
      form: The order of the parts in the outputs.
    """

    targets: tuple[str, ...]
    form: Form = "same"


class Join(NamedTuple):
    """The modules to join into a new one, their outputs side by side.

    Attributes:
      sources: The path of each part; None if the file lacks the module.
      form: The order of the parts in the outputs.
    """

    sources: tuple[str | None, ...]
    form: Form = "same"


def split(checkpoint: Checkpoint, moves: Mapping[str, Split]) -> Checkpoint:
    """Return the same update in the parts of its modules.

    Args:
      checkpoint: From a file: one adapter per kernel.
      moves: The destinations of each of its modules.

    Raises:
      ValueError: if two modules would have one path, or a shape does not divide.
    """
    _check_targets([(p, t) for p, x in moves.items() for t in x.targets])
    adapters: dict[str, Adapter] = {}
    absent: dict[str, tuple[int, int]] = {}
    biases: dict[str, Array] = {}
    for path, move in moves.items():
        shape = _shape(checkpoint, path)
        widths = fused.sizes(move.form, shape, path)
        if path in checkpoint.adapters:
            adapters |= _split_adapter(checkpoint.adapters[path], move, shape, widths)
        else:
            absent |= _split_absent(move, shape, widths)
        if path in checkpoint.biases:
            bias = _divided(checkpoint.biases[path], move, shape, widths)
            biases |= dict(zip(move.targets, bias, strict=True))
    layers = {
        target: layer
        for path, layer in checkpoint.layers.items()
        if path in moves
        for target in moves[path].targets
    }
    return _renamed(
        checkpoint, adapters=adapters, absent=absent, biases=biases, layers=layers
    )


def _split_adapter(
    adapter: Adapter, move: Split, shape: tuple[int, int], widths: Sequence[int]
) -> dict[str, Adapter]:
    bs = _divided(adapter.b, move, shape, widths)
    parts = [dataclasses.replace(adapter, b=b) for b in bs]
    # A module that stays whole keeps its rank, even if some components are zero.
    if len(parts) > 1:
        parts = [fused.used(part) for part in parts]
    return dict(zip(move.targets, parts, strict=True))


def _split_absent(
    move: Split, shape: tuple[int, int], widths: Sequence[int]
) -> dict[str, tuple[int, int]]:
    inputs, outputs = shape
    # A module that stays whole may have two widths, of halves that change places.
    many = widths if len(move.targets) > 1 else (outputs,)
    return {t: (inputs, w) for t, w in zip(move.targets, many, strict=True)}


def _renamed(checkpoint: Checkpoint, **fields: Any) -> Checkpoint:
    """Replace fields, and drop the records of the old names."""
    return dataclasses.replace(checkpoint, **fields, modules=(), shared={}, spelling={})


def _divided(
    array: Array, move: Split, shape: tuple[int, int], widths: Sequence[int]
) -> list[Array]:
    if len(move.targets) > 1:
        return fused.columns(array, widths)
    return [fused.turned(array) if fused.is_turned(move.form, shape) else array]


def _shape(checkpoint: Checkpoint, path: str) -> tuple[int, int]:
    if path in checkpoint.absent:
        return checkpoint.absent[path]
    x = checkpoint.adapters[path]
    return x.inputs, x.outputs


def _check_targets(pairs: Sequence[tuple[str, str]]) -> None:
    found: dict[str, str] = {}
    for path, target in pairs:
        if target in found:
            raise ValueError(
                f"'{path}' and '{found[target]}' are both '{target}' in other words."
            )
        found[target] = path


def join(checkpoint: Checkpoint, moves: Mapping[str, Join]) -> Checkpoint:
    """Return the same update in the fused modules. The inverse is `split`.

    Args:
      checkpoint: One adapter per kernel.
      moves: The modules to join at each new path.

    Raises:
      ValueError: if the parts do not fit together.
    """
    adapters: dict[str, Adapter] = {}
    absent: dict[str, tuple[int, int]] = {}
    biases: dict[str, Array] = {}
    layers: dict[str, Any] = {}
    for target, move in moves.items():
        there = [x for x in move.sources if x is not None]
        widths = _widths(target, move, checkpoint)
        shape = _shape(checkpoint, there[0])[0], sum(widths)
        parts = [checkpoint.adapters.get(x or "") for x in move.sources]
        if any(x is not None for x in parts):
            adapters[target] = _joined(parts, widths, move, shape)
        else:
            absent[target] = shape
        if any(x in checkpoint.biases for x in there):
            biases[target] = _bias(checkpoint, move, widths)
        if there[0] in checkpoint.layers:
            layers[target] = checkpoint.layers[there[0]]
    return _renamed(
        checkpoint, adapters=adapters, absent=absent, biases=biases, layers=layers
    )


def _widths(target: str, move: Join, checkpoint: Checkpoint) -> tuple[int, ...]:
    """Return the outputs of each part, including the parts missing in the file."""
    shapes = [None if x is None else _shape(checkpoint, x) for x in move.sources]
    known = next(x for x in shapes if x is not None)
    if len(shapes) == 1:
        return (known[1],)
    # Thirds have equal widths; the width of FLUX.1's `linear1` follows from its inputs.
    whole = 3 * known[1] if move.form == "thirds" else 7 * known[0]
    widths = fused.sizes(move.form, (known[0], whole), target)
    for shape, width in zip(shapes, widths, strict=True):
        if shape is not None and shape != (known[0], width):
            raise ValueError(
                f"'{target}' cannot be made of its parts: one has {shape[0]} inputs "
                f"and {shape[1]} outputs, expected {known[0]} and {width}."
            )
    return widths


def _joined(
    parts: Sequence[Adapter | None],
    widths: Sequence[int],
    move: Join,
    shape: tuple[int, int],
) -> Adapter:
    if len(parts) == 1 and parts[0] is not None:
        x = parts[0]
        turned = fused.is_turned(move.form, shape)
        return dataclasses.replace(x, b=fused.turned(x.b)) if turned else x
    return fused.joined(parts, widths)


def _bias(checkpoint: Checkpoint, move: Join, widths: Sequence[int]) -> Array:
    # A part without a bias adds nothing: zeros are exact.
    found = [checkpoint.biases.get(x or "") for x in move.sources]
    like = next(x for x in found if x is not None)
    parts = [
        np.zeros(w, np.asarray(like).dtype) if x is None else np.asarray(x)
        for x, w in zip(found, widths, strict=True)
    ]
    whole = np.concatenate(parts)
    inputs = _shape(checkpoint, next(x for x in move.sources if x is not None))[0]
    turned = fused.is_turned(move.form, (inputs, len(whole)))
    return fused.turned(whole) if turned else whole
