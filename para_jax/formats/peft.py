"""PEFT's folders: `adapter_config.json` and `adapter_model.safetensors`. Host."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from para_jax.adapters import (
    Adapter,
    Checkpoint,
    Layer,
    by_member,
    ordered,
    unstack,
)
from para_jax.formats import Profile, facts, peft_config, peft_tensors, tensors
from para_jax.repack import pad
from para_jax.spectrum import check

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def load(folder: pathlib.Path) -> Checkpoint:
    """Returns the adapter in a PEFT folder, its scales by PEFT's own rules.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if a file is broken, a pair incomplete, or the adapter is no plain
        LoRA. The message names the file and the module.
    """
    config = tensors.read_json(_existing(folder, CONFIG))
    weights = _existing(folder, WEIGHTS)
    try:
        peft_config.check(config)
        found, metadata = tensors.read(weights)
        modules, extra = peft_tensors.by_module(found)
        return _checkpoint(config, modules, extra, metadata)
    except ValueError as error:
        raise ValueError(f"Cannot read the adapter in '{folder}': {error}") from error


def _existing(folder: pathlib.Path, name: str) -> pathlib.Path:
    path = folder / name
    if path.is_file():
        return path
    pickles = sorted(x.name for x in folder.glob("*.bin"))
    if name == WEIGHTS and pickles:
        raise ValueError(
            f"'{folder / pickles[0]}' is a pickle, which could run any code and is "
            f"never opened. Save the adapter as {WEIGHTS}, PEFT's default."
        )
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
        raise ValueError(f"{WEIGHTS} holds no LoRA factors ({len(extra)} tensors).")
    adapters, layers, biases = {}, {}, {}
    for name in ordered(modules):
        module, path = modules[name], name.replace(".", "/")
        scale = peft_config.scale(config, name)
        a, b = peft_tensors.pair(name, module, peft_config.rank(config, name))
        layer = peft_tensors.layer(module, a)
        adapters[path] = peft_tensors.from_torch(a, b, layer, scale)
        check(name, adapters[path])
        if layer != Layer():
            layers[path] = layer
        if module.bias is not None:
            # PEFT scales what lora_B gives, its bias included.
            bias = module.bias.astype(np.float64) * scale
            biases[path] = bias.astype(module.bias.dtype)
    residual = peft_config.residual(config)
    checkpoint = Checkpoint(
        adapters=adapters,
        layers=layers,
        biases=biases,
        extra=extra,
        config=config,
        residual=residual,
    )
    if "para_jax" in metadata:
        return _with_facts(checkpoint, metadata["para_jax"])
    return checkpoint


def _with_facts(checkpoint: Checkpoint, text: str) -> Checkpoint:
    """Returns the checkpoint with what `save` knew and PEFT has no place for."""
    ours = facts.from_json(text)
    extra = {ours.renamed.get(name, name): x for name, x in checkpoint.extra.items()}
    adapters = {
        path: dataclasses.replace(x, nominal=ours.nominal.get(path))
        for path, x in checkpoint.adapters.items()
    }
    return dataclasses.replace(
        checkpoint,
        adapters=adapters,
        extra=extra,
        layers={**ours.layers, **checkpoint.layers},
        absent=ours.absent,
        provenance=ours.provenance,
    )


def save(
    checkpoint: Checkpoint, folder: pathlib.Path, *, profile: Profile = "ragged"
) -> Checkpoint:
    """Writes the two files of an adapter into an existing folder.

    All scales are folded in and written as 1, so engines that know one scale for all
    modules, those that divide by each tensor's own rank, and PEFT agree.

    Args:
      checkpoint: What to write. Stacks are unstacked.
      folder: Where to. Nothing there is protected: see `para_jax.save`.
      profile: `ragged`: each module at its own rank, by patterns; absent modules left
        out. `padded`: zeros up to one rank, no patterns, absent modules as zeros.

    Returns:
      What the files should read back as.

    Raises:
      ValueError: if nothing is left to write, or names cannot be told apart by PEFT's
        rules.
    """
    flat = _flat(checkpoint, profile)
    if not checkpoint.adapters or not flat.adapters:
        raise ValueError(
            "No module has an adapter left, and PEFT has no form for that. Keep at "
            "least one rank."
        )
    names = {path: path.replace("/", ".") for path in ordered(flat.adapters)}
    ranks = {name: flat.adapters[path].rank for path, name in names.items()}
    if profile == "padded":
        config = peft_config.padded(checkpoint.config, ranks)
    else:
        gone = [path.replace("/", ".") for path in flat.absent]
        config = peft_config.ragged(checkpoint.config, ranks, gone)
    config["lora_bias"] = bool(flat.biases)
    renamed = {peft_tensors.name_of_extra(x, flat): x for x in flat.extra}
    metadata = {"format": "pt", "para_jax": facts.to_json(flat, renamed)}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tensors.write(folder / WEIGHTS, dict(peft_tensors.named(flat)), metadata)
    return flat


def _flat(checkpoint: Checkpoint, profile: Profile) -> Checkpoint:
    """Returns one adapter of scale 1 a module, as the profile wants them."""
    adapters = {path: _scaled(x) for path, x in _kernels(checkpoint, profile).items()}
    layers = by_member(checkpoint.layers, checkpoint.adapters)
    biases = by_member(checkpoint.biases, checkpoint.adapters)
    shapes = {path: (x.inputs, x.rank, x.outputs) for path, x in adapters.items()}
    if profile == "padded":
        most = max((rank for _, rank, _ in shapes.values()), default=1)
        shapes = {
            **{path: (m, 1, n) for path, (m, n) in checkpoint.absent.items()},
            **shapes,
        }
        shapes = {path: (m, most, n) for path, (m, _, n) in shapes.items()}
    else:  # A module without an adapter would have no place for its bias.
        needed = biases.keys() & checkpoint.absent.keys()
        shapes |= {
            path: (m, 1, n) for path in needed for m, n in [checkpoint.absent[path]]
        }
    dtype = next((x.a.dtype for x in adapters.values()), np.dtype(np.float32))
    like = {path: _zeros(shape, dtype) for path, shape in shapes.items()}
    return dataclasses.replace(
        checkpoint,
        adapters=pad(adapters, like=like),
        layers=layers,
        biases=biases,
        absent={p: x for p, x in checkpoint.absent.items() if p not in like},
    )


def _kernels(checkpoint: Checkpoint, profile: Profile) -> dict[str, Adapter]:
    """Returns one adapter a module; those of a padded stack are trimmed if ragged."""
    flat = unstack(checkpoint.adapters)
    if profile == "padded":
        return flat
    whole = checkpoint.adapters.keys()
    trimmed = {path: x if path in whole else _trim(x) for path, x in flat.items()}
    return {path: x for path, x in trimmed.items() if x.rank}


def _trim(adapter: Adapter) -> Adapter:
    """Returns the adapter without the zeros that fill up its last components."""
    a, b = np.asarray(adapter.a), np.asarray(adapter.b)
    used = np.flatnonzero(a.any(axis=0) & b.any(axis=1))
    rank = int(used.max(initial=-1)) + 1
    return dataclasses.replace(adapter, a=a[:, :rank], b=b[:rank])


def _zeros(shape: tuple[int, int, int], dtype: np.dtype) -> Adapter:
    m, rank, n = shape
    return Adapter(a=np.zeros((m, rank), dtype), b=np.zeros((rank, n), dtype))


def _scaled(adapter: Adapter) -> Adapter:
    b = np.asarray(adapter.b)
    if adapter.scale != 1:
        b = (b.astype(np.float64) * adapter.scale).astype(b.dtype)
    return dataclasses.replace(adapter, a=np.asarray(adapter.a), b=b, scale=1.0)
