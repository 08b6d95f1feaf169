"""PEFT's folders: `adapter_config.json` and `adapter_model.safetensors`."""

import dataclasses
import json
import pathlib
import types
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from para_jax._adapters import sharing
from para_jax._adapters.adapter import Adapter, check_pair, ordered
from para_jax._adapters.checkpoint import Checkpoint, Layer
from para_jax._adapters.messages import Message, Remedy
from para_jax._engines import profiles
from para_jax._engines.profiles import Profile
from para_jax.formats import other_files, record, tensor_files
from para_jax.formats.peft import (
    CONFIG as CONFIG,
    WEIGHTS as WEIGHTS,
    child as peft_child,
    config as peft_config,
    experts as peft_experts,
    tensors as peft_tensors,
)


def load(
    folder: pathlib.Path,
    known: Mapping[str, np.ndarray] = types.MappingProxyType({}),
) -> Checkpoint:
    """Read the adapter in a PEFT folder, with scales by PEFT's own rules.

    Args:
      folder: The folder.
      known: Arrays in memory already, see `tensor_files.read`.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if a file is broken, a pair incomplete, or the adapter is not plain
        LoRA. The message names the file and the module.
    """
    config = tensor_files.read_json(_existing(folder, CONFIG))
    weights = _existing(folder, WEIGHTS)
    try:
        peft_config.check(config)
        found, metadata = tensor_files.read(weights, known)
        modules, extra = peft_tensors.by_module(found)
        return _checkpoint(config, modules, extra, metadata)
    except ValueError as error:
        raise ValueError(
            Message(f"Cannot read the adapter in '{folder}': ", error)
        ) from error


def _existing(folder: pathlib.Path, name: str) -> pathlib.Path:
    path = folder / name
    if path.is_file():
        return path
    raise FileNotFoundError(
        f"'{path}' is missing: a PEFT adapter has {CONFIG} and {WEIGHTS}."
    )


def _checkpoint(
    config: dict[str, Any],
    modules: Mapping[str, peft_tensors.Module],
    extra: Mapping[str, np.ndarray],
    metadata: Mapping[str, str],
) -> Checkpoint:
    if not modules:
        raise ValueError(f"{WEIGHTS} {other_files.no_factors(extra)}")
    modules = peft_experts.by_parameter(modules, config)
    tied = peft_tensors.tied(modules) if config.get("ensure_weight_tying") else set()
    adapters, layers, biases = {}, {}, {}
    for name in ordered(modules):
        module, path = modules[name], name.replace(".", "/")
        adapters[path], layer = _adapter(name, module, config, tied=name in tied)
        check_pair(name, adapters[path])
        if layer != Layer():
            layers[path] = layer
        if module.bias is not None:
            # PEFT scales the output of lora_B, its bias included.
            bias = module.bias.astype(np.float64) * adapters[path].scale
            biases[path] = bias.astype(module.bias.dtype)
    residual = peft_config.residual(config)
    checkpoint = Checkpoint(
        adapters=adapters,
        layers=layers,
        biases=biases,
        extra=extra,
        config=config,
        modules=tuple(adapters),
        residual=residual,
    )
    if "para_jax" in metadata:
        own = record.from_json(metadata["para_jax"])
        checkpoint = record.restored(checkpoint, own)
    # Equal arrays tell which modules share an update; of absent modules only the record
    # does.
    gone = {x: y for x, y in checkpoint.shared.items() if y in checkpoint.absent}
    equal = sharing.found(adapters, checkpoint.layers)
    return dataclasses.replace(checkpoint, shared=gone | equal)


def _adapter(
    name: str, module: peft_tensors.Module, config: dict[str, Any], *, tied: bool
) -> tuple[Adapter, Layer]:
    rank, scale = peft_config.rank(config, name), peft_config.scale(config, name)
    if tied and module.a is not None:
        # PEFT ties the factors after computing the scale by the layer's own rank.
        rank = module.a.shape[0]
    if module.parameter:
        a, b = peft_experts.pair(name, module, rank)
        return peft_experts.from_torch(a, b, rank, scale), Layer(kind="experts")
    a, b = peft_tensors.pair(name, module, rank)
    layer = peft_tensors.layer(module, a)
    return peft_tensors.from_torch(a, b, layer, scale), layer


def save(
    checkpoint: Checkpoint, folder: pathlib.Path, *, profile: Profile = "ragged"
) -> Checkpoint:
    """Write the two files of an adapter into an existing folder.

    Args:
      checkpoint: The adapters. Stacks are unstacked, except for fused experts.
      folder: The folder. Its files are overwritten: `para_jax.save` protects them.
      profile: The form of ranks and alphas, see `para_jax.formats.shaped`.

    Returns:
      The checkpoint that the files should read back as.

    Raises:
      ValueError: if nothing is left to write, or names cannot be told apart by PEFT's
        rules.
    """
    flat = profiles.shaped(checkpoint, profile)
    if not checkpoint.adapters or not flat.adapters:
        raise ValueError(
            "No module has an adapter left: all are cut, or zero, and PEFT has no form "
            "for that. Keep at least one rank of one that is not zero."
        )
    _check_kinds(flat)
    config = _config(flat, profile)
    # Inside an adapted module PEFT renames the base's own tensors.
    renamed = {peft_tensors.name_of_extra(x, flat): x for x in flat.extra}
    metadata = {"format": "pt", "para_jax": record.to_json(flat, renamed)}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tensor_files.write(folder / WEIGHTS, dict(named(flat)), metadata)
    return flat


def _check_kinds(flat: Checkpoint) -> None:
    for path, layer in flat.layers.items():
        if layer.kind == "einsum" and path in flat.adapters:
            raise ValueError(
                Message(
                    f"'{path}' is an einsum of Keras with the input axes "
                    f"{list(layer.window)}, and PEFT has Linear alone. Rename it ",
                    Remedy.RENAME_FIRST,
                    ".",
                )
            )


def _config(flat: Checkpoint, profile: Profile) -> dict[str, Any]:
    paths, both = ordered(flat.adapters), sharing.held(flat)
    # Experts are targeted as one parameter, so absent ones are named by their stack.
    gone = {_dotted(profiles.module(flat, path)) for path in flat.absent}
    content = peft_child.Content(
        ranks={_dotted(path): flat.adapters[path].rank for path in paths},
        others=sorted(gone),
        bare={_dotted(path) for path in paths if profiles.is_expert(flat, path)},
        tied={
            _dotted(path)
            for path, owner in both.items()
            if sharing.transposed(path, owner, flat.layers)
        },
        extra=[peft_tensors.name_of_extra(x, flat) for x in flat.extra],
        whole=flat.adapters.keys() == set(flat.modules),
    )
    config = peft_child.config(flat.config, content, profile)
    return config | {"lora_bias": bool(flat.biases)}


def keys(flat: Checkpoint) -> dict[str, tuple[str, str]]:
    """Return PEFT's names of the two factors of each module, by path."""
    experts = [path for path in flat.adapters if profiles.is_expert(flat, path)]
    # A wrapper's key depends on all targeted parameters of its module.
    wrapper = peft_experts.wrappers([_dotted(path) for path in experts])
    return {
        path: peft_tensors.keys(
            wrapper.get(_dotted(path), _dotted(path)), flat.layers.get(path, Layer())
        )
        for path in flat.adapters
    }


def named(flat: Checkpoint) -> Iterator[tuple[str, np.ndarray]]:
    """Yield every tensor of a checkpoint with PEFT's name."""
    for path, names in keys(flat).items():
        kind, adapter = flat.layers.get(path, Layer()), flat.adapters[path]
        if kind.kind == "experts":
            factors = peft_experts.to_torch(adapter)
        else:
            factors = peft_tensors.to_torch(adapter, kind)
        yield from zip(names, factors, strict=True)
        if path in flat.biases:
            name = f"{peft_tensors.PREFIX}{_dotted(path)}.lora_B.bias"
            yield name, np.asarray(flat.biases[path])
    for name, value in flat.extra.items():
        yield peft_tensors.name_of_extra(name, flat), value


def _dotted(path: str) -> str:
    return path.replace("/", ".")
