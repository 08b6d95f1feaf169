"""kohya's adapters: single safetensors files, read by ComfyUI and sd-scripts. Host.

A module has `<name>.lora_down.weight [r, in]`, `<name>.lora_up.weight [out, r]`, and
`<name>.alpha`, a number: its scale is `alpha / r`, or 1 if there is none. Some write
`lora_A` and `lora_B` for the two factors. Convolutions are stored as PEFT stores them.

Names such as `lora_unet_down_blocks_0_attn_to_q` stand for paths whose dots became
underscores, which no one can undo: they stay as they are.
"""

import pathlib
import types
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from para_jax.adapters import Adapter, Checkpoint, Layer, ordered
from para_jax.formats import facts, peft_tensors, profiles, tensors
from para_jax.spectrum import check

_PARTS = {
    "lora_down.weight": "a",
    "lora_A.weight": "a",
    "lora_up.weight": "b",
    "lora_B.weight": "b",
    "alpha": "alpha",
}
_DIFFUSERS = "lora_adapter_metadata"  # Its `loaders/lora_base.py`.
# Updates that are not the product of two factors alone (LyCORIS and others).
_VARIANTS = {
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "lora_mid": "LoCon with a core tensor (Tucker)",
    "oft_": "OFT",
    "glora_": "GLoRA",
}


def load(
    path: pathlib.Path,
    known: Mapping[str, np.ndarray] = types.MappingProxyType({}),
) -> Checkpoint:
    """Returns the adapter in a kohya file; its metadata become the configuration.

    Args:
      path: The file.
      known: What may be in it and is in memory already, see `tensors.read`.

    Raises:
      ValueError: if the file is broken, a pair incomplete, or the adapter is no plain
        LoRA. The message names the file and the module.
    """
    found, metadata = tensors.read(path, known)
    try:
        return _checkpoint(found, metadata)
    except ValueError as error:
        raise ValueError(f"Cannot read the adapter in '{path}': {error}") from error


def _checkpoint(
    found: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> Checkpoint:
    modules, extra = _by_module(found)
    if not modules:
        raise ValueError(f"it holds no LoRA factors ({len(extra)} tensors).")
    prefix = peft_tensors.PREFIX
    if all(x.startswith(prefix) and "alpha" not in modules[x] for x in modules):
        raise ValueError(
            "its names are PEFT's, and without adapter_config.json its scales are not "
            "known. Put both files into one folder, and load that."
        )
    if _DIFFUSERS in metadata and any("alpha" not in x for x in modules.values()):
        raise ValueError(
            f"diffusers wrote it, with alphas in the metadata '{_DIFFUSERS}' alone, "
            "which is not read. Save it with an .alpha for each module."
        )
    adapters, layers = {}, {}
    for name in ordered(modules):
        path = name.replace(".", "/")
        adapters[path], layer = _adapter(name, modules[name])
        check(name, adapters[path])
        if layer != Layer():
            layers[path] = layer
    config = {key: x for key, x in metadata.items() if key != "para_jax"}
    result = Checkpoint(adapters=adapters, layers=layers, extra=extra, config=config)
    if "para_jax" in metadata:
        return facts.restored(result, facts.from_json(metadata["para_jax"]))
    return result


def _by_module(
    found: Mapping[str, np.ndarray],
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Returns the parts of each module by its name, and all other tensors."""
    modules: dict[str, dict[str, np.ndarray]] = {}
    extra: dict[str, np.ndarray] = {}
    for key, value in found.items():
        end = key.removesuffix(".weight").rpartition(".")[2]
        for mark, variant in _VARIANTS.items():
            if end.startswith(mark):
                raise ValueError(
                    f"'{key}' makes this a {variant} adapter: its update is not the "
                    "product of two factors alone, so it cannot be compressed as LoRA."
                )
        if "/" in key:
            raise ValueError(
                f"'{key}' has a slash in its name, which parts paths here."
            )
        for ending, part in _PARTS.items():
            if key.endswith(f".{ending}"):
                module = modules.setdefault(key.removesuffix(f".{ending}"), {})
                if part in module:
                    raise ValueError(f"'{key}' is there under another name too.")
                module[part] = value
                break
        else:
            extra[key] = value
    return modules, extra


def _adapter(name: str, parts: Mapping[str, np.ndarray]) -> tuple[Adapter, Layer]:
    if missing := {"a", "b"} - parts.keys():
        half = "lora_down" if "a" in missing else "lora_up"
        raise ValueError(f"'{name}' has no {half}, one of the two factors.")
    module = peft_tensors.Module(a=parts["a"], b=parts["b"])
    rank = parts["a"].shape[0] if parts["a"].ndim else 0
    a, b = peft_tensors.pair(name, module, rank)
    layer = peft_tensors.layer(module, a)
    return peft_tensors.from_torch(a, b, layer, _scale(name, parts, rank)), layer


def _scale(name: str, parts: Mapping[str, np.ndarray], rank: int) -> float:
    if "alpha" not in parts:
        return 1.0
    alpha = parts["alpha"]
    if alpha.size != 1 or not np.isfinite(alpha.astype(np.float64)).all():
        raise ValueError(f"'{name}.alpha' is {alpha}: expected one finite number.")
    return float(alpha.reshape(())) / rank


def save(checkpoint: Checkpoint, path: pathlib.Path) -> Checkpoint:
    """Writes a file, each module at its own rank, `alpha` equal to it: a scale of 1.

    Args:
      checkpoint: What to write. Stacks are unstacked; slashes in paths become dots.
      path: The file. Nothing there is protected: see `para_jax.save`.

    Returns:
      What the file should read back as.

    Raises:
      ValueError: if nothing is left to write, or kohya has no form for it.
    """
    flat = profiles.shaped(checkpoint, "ragged")
    if not flat.adapters:
        raise ValueError("No module has an adapter left. Keep at least one rank.")
    for module in flat.adapters:
        kind = flat.layers.get(module, Layer()).kind
        if kind not in ("linear", "conv") or module in flat.biases:
            what = "bias" if module in flat.biases else f"layer of the kind '{kind}'"
            raise ValueError(f"'{module}' has a {what}: kohya's files hold no such.")
    tensors.write(path, dict(named(flat)), _metadata(flat))
    return flat


def named(flat: Checkpoint) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the name and tensor of all that the checkpoint holds."""
    for path, adapter in flat.adapters.items():
        name = path.replace("/", ".")
        down, up = peft_tensors.to_torch(adapter, flat.layers.get(path, Layer()))
        yield f"{name}.lora_down.weight", down
        yield f"{name}.lora_up.weight", up
        yield f"{name}.alpha", np.asarray(adapter.rank, np.float32)
    yield from flat.extra.items()


def _metadata(flat: Checkpoint) -> dict[str, str]:
    """Returns the file's metadata: those it was read with, if from such a file."""
    other = {"peft_type", "lora_parameters"} & flat.config.keys()
    source: Mapping[str, Any] = {} if other else flat.config
    kept = {key: x for key, x in source.items() if isinstance(x, str)}
    kept.pop(_DIFFUSERS, None)  # The ranks and alphas of the source.
    ranks = {x.rank for x in flat.adapters.values()}
    dim = str(ranks.pop()) if len(ranks) == 1 else "Dynamic"  # As resize_lora.py says.
    ours = {"ss_network_dim": dim, "ss_network_alpha": dim}
    return {"format": "pt"} | kept | ours | {"para_jax": facts.to_json(flat)}
