"""Read and write single safetensors files: kohya's, diffusers', and others'.

Each module has a down factor `[r, in]`, an up factor `[out, r]`, and may have an alpha.
Its scale is `alpha / r`, or 1 without an alpha. `spellings` has the names, `scales` the
scales stated outside the tensors, `headers` the metadata. Convolutions are stored as in
PEFT.

A child is written under its parent's names. If the parent had alphas, all modules of
the child have the same one: diffusers' reader of kohya's files gives the most common
alpha to attention modules (its `loaders/lora_conversion_utils.py`), others divide each
module's own by its rank, and only one alpha for all is right under both. Runs on the
host.
"""

import dataclasses
import math
import pathlib
import types
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from para_jax._adapters.adapter import Adapter, check_pair, ordered
from para_jax._adapters.checkpoint import Checkpoint, Layer, Spelling
from para_jax._adapters.messages import Message
from para_jax._engines import profiles
from para_jax.formats import configuration, other_files, record, tensor_files
from para_jax.formats.format import Hints
from para_jax.formats.kohya import headers, scales as file_scales, spellings, stated
from para_jax.formats.peft import tensors as peft_tensors

_OURS = "para_jax"


def load(
    path: pathlib.Path,
    known: Mapping[str, np.ndarray] = types.MappingProxyType({}),
    given: Hints = Hints(),  # noqa: B008
) -> Checkpoint:
    """Read the adapter in a single file; its metadata become the configuration.

    Args:
      path: The file.
      known: Arrays in memory already, see `tensor_files.read`.
      given: Scales that the file does not hold.

    Raises:
      ValueError: if the file is broken, a pair incomplete, a scale not clear, or the
        adapter is not plain LoRA. The message names the file and the tensor.
    """
    found, metadata = tensor_files.read(path, known)
    try:
        return _checkpoint(path, found, metadata, given)
    except ValueError as error:
        raise ValueError(
            Message(f"Cannot read the adapter in '{path}': ", error)
        ) from error


def _checkpoint(
    path: pathlib.Path,
    found: Mapping[str, np.ndarray],
    metadata: Mapping[str, str],
    given: Hints,
) -> Checkpoint:
    modules, extra = spellings.by_module(found)
    if not modules:
        raise ValueError(f"it {other_files.no_factors(found)}")
    said = _statements(path, modules, metadata)
    scales = file_scales.of_modules(modules, said, given)
    adapters, layers, biases, names = {}, {}, {}, {}
    for name in ordered(modules):
        module, where = modules[name], name.replace(".", "/")
        adapters[where], layer = _adapter(name, module, scales[name])
        check_pair(name, adapters[where])
        names[where] = module.spelling
        if layer != Layer():
            layers[where] = layer
        if module.bias is not None:
            biases[where] = _times(module.bias, scales[name])
    result = Checkpoint(
        adapters=adapters,
        layers=layers,
        biases=biases,
        extra=extra,
        config={key: x for key, x in metadata.items() if key != _OURS},
        spelling=names,
        residual=next((x.residual for x in said if x.residual), ""),
    )
    if _OURS in metadata:
        return record.restored(result, record.from_json(metadata[_OURS]))
    return result


def _statements(
    path: pathlib.Path,
    modules: Mapping[str, spellings.Module],
    metadata: Mapping[str, str],
) -> list[stated.Statement]:
    """Return all statements of scales outside the tensors."""
    if _OURS in metadata:  # All scales are in the tensors, whatever lies beside it.
        return [stated.ones(f"'{_OURS}' in the header")]
    shapes = {name: file_scales.shape(x) for name, x in modules.items()}
    said = stated.statements(metadata, shapes)
    # Alphas in the tensors need no help, and old files may lie beside.
    if any(x.alpha is None for x in modules.values()):
        said += stated.beside(path)
    return said


def _adapter(name: str, found: spellings.Module, scale: float) -> tuple[Adapter, Layer]:
    module = peft_tensors.Module(a=found.a, b=found.b)
    rank = file_scales.shape(found).rank
    a, b = peft_tensors.pair(name, module, rank)
    layer = peft_tensors.layer(module, a)
    return peft_tensors.from_torch(a, b, layer, scale), layer


def _times(bias: Any, factor: float) -> np.ndarray:
    """Multiply a bias with the scale: PEFT scales the output of the up factor."""
    bias = np.asarray(bias)
    return (bias.astype(np.float64) * factor).astype(bias.dtype)


def save(checkpoint: Checkpoint, path: pathlib.Path) -> Checkpoint:
    """Write a file, each module at its own rank, under its names in the parent.

    Args:
      checkpoint: The adapters. Stacks are unstacked. Paths without a spelling become
        dotted names with `lora_down`, `lora_up` and `alpha`.
      path: The file. It is overwritten: `para_jax.save` protects it.

    Returns:
      The checkpoint that the file should read back as, with every spelling.

    Raises:
      ValueError: if nothing is left to write, or a file has no form for it.
    """
    flat = _shaped(checkpoint)
    metadata = _metadata(flat)
    tensor_files.write(path, dict(named(flat)), metadata)
    return flat


def _shaped(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint as in the file, with its scales and names."""
    if any(x.stack for x in checkpoint.adapters.values()):
        checkpoint = profiles.flatten(checkpoint, trim=True)
    names = _spelled(checkpoint)
    alpha = _alpha(checkpoint, names)
    if alpha is not None:  # One rounding for the scale and the rank.
        adapters = {
            path: dataclasses.replace(x, scale=x.scale * x.rank / alpha)
            for path, x in checkpoint.adapters.items()
        }
        checkpoint = dataclasses.replace(checkpoint, adapters=adapters)
    flat = profiles.shaped(checkpoint, "ragged")
    _check(flat, names)
    adapters = {
        path: dataclasses.replace(x, scale=1.0 if alpha is None else alpha / x.rank)
        for path, x in flat.adapters.items()
    }
    names = {path: names[path] for path in adapters}
    return dataclasses.replace(flat, adapters=adapters, spelling=names)


def _spelled(checkpoint: Checkpoint) -> dict[str, Spelling]:
    """Return the names of all tensors by path: all modules have an alpha, or none.

    Beside a bias there are none, because some readers multiply it by the scale and
    others do not. Nor in eight bits, which cannot hold `b` times unequal ranks.
    """
    known = checkpoint.spelling
    paths = [*checkpoint.adapters, *(checkpoint.biases.keys() & checkpoint.absent)]
    mine = [known[path] for path in paths if path in known]
    ranks = {x.rank for x in checkpoint.adapters.values()}
    narrow = any(x.b.dtype.itemsize == 1 for x in checkpoint.adapters.values())
    # A child follows its parent. Without one it has alphas, as kohya's own files do.
    alphas = not mine or any(x.alpha for x in mine)
    alphas = alphas and not checkpoint.biases and not (narrow and len(ranks) > 1)
    result = {}
    for path in paths:
        one = known.get(path) or spellings.default(path.replace("/", "."))
        alpha = (one.alpha or spellings.alpha(one)) if alphas else ""
        result[path] = dataclasses.replace(one, alpha=alpha)
    return result


def _alpha(checkpoint: Checkpoint, names: Mapping[str, Spelling]) -> float | None:
    """Return the one alpha of all modules: 1, or the rank itself if they share it.

    If `b` times the rank exceeds the range of its dtype, it is a power of two instead,
    which divides `b` without rounding.
    """
    if not any(x.alpha for x in names.values()):
        return None
    adapters = [x for x in checkpoint.adapters.values() if x.rank]
    ranks = {x.rank for x in adapters}
    if len(ranks) == 1:
        return float(ranks.pop())
    over = max((_excess(x) for x in adapters), default=0.0)
    return 2.0 ** max(math.ceil(math.log2(over)), 0) if 0 < over < math.inf else 1.0


def _excess(adapter: Adapter) -> float:
    """Return the largest value of `b` times the rank, relative to its dtype's range."""
    largest = float(jnp.finfo(adapter.b.dtype).max)
    # In float64, since the product may be outside the range that is tested.
    most = np.abs(np.asarray(adapter.b).astype(np.float64)).max(initial=0.0)
    return float(most) * abs(adapter.scale) * adapter.rank / largest


def _check(flat: Checkpoint, names: Mapping[str, Spelling]) -> None:
    if not flat.adapters:
        raise ValueError(
            "No module has an adapter left: all are cut, or zero. Keep at least one "
            "rank of one that is not zero."
        )
    if flat.residual:
        raise ValueError(
            f"This adapter was initialised by {flat.residual}, so it belongs to "
            "changed base weights, which no single file can say. Make it plain first: "
            "para_jax.plain(trained, initial)."
        )
    for path in flat.adapters:
        kind = flat.layers.get(path, Layer()).kind
        bias = path in flat.biases and not names[path].bias
        if kind not in ("linear", "conv") or bias:
            what = "bias" if bias else f"layer of the kind '{kind}'"
            raise ValueError(f"'{path}' has a {what}: kohya's files hold no such.")


def named(flat: Checkpoint) -> Iterator[tuple[str, np.ndarray]]:
    """Yield every tensor of a checkpoint with its name in the file.

    Args:
      flat: A result of `save`.
    """
    for path, adapter in flat.adapters.items():
        name = flat.spelling[path]
        down, up = peft_tensors.to_torch(adapter, flat.layers.get(path, Layer()))
        yield name.a, down
        yield name.b, up
        if name.alpha:
            # In float32: bfloat16 does not hold every rank above 256.
            yield name.alpha, np.asarray(adapter.scale * adapter.rank, np.float32)
        if path in flat.biases:
            yield name.bias, np.asarray(flat.biases[path])
    yield from flat.extra.items()


def _metadata(flat: Checkpoint) -> dict[str, str]:
    """Return the file's metadata: the parent's, if it was a single file."""
    other = configuration.is_peft(flat.config) or configuration.is_mlx(flat.config)
    source: Mapping[str, Any] = {} if other else flat.config
    # safetensors holds text alone as metadata.
    parent = {key: x for key, x in source.items() if isinstance(x, str)}
    alphas = [
        x.scale * x.rank for p, x in flat.adapters.items() if flat.spelling[p].alpha
    ]
    ranks = [x.rank for x in flat.adapters.values()]
    own = dataclasses.replace(flat, spelling={})  # The tensors have these names.
    return headers.child(
        parent,
        ranks,
        alphas[0] if alphas else None,
        lambda: tensor_files.digest(dict(named(flat))),
    ) | {_OURS: record.to_json(own)}
