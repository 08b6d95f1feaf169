"""mlx-lm's folders: `adapters.safetensors` and `adapter_config.json`.

The factors have Flax's orientation, `<module>.lora_a [in, r]` and `<module>.lora_b
[r, out]`, and the update is `scale * a @ b` with the raw `scale` of `lora_parameters`.
The experts of a mixture are stacked in torch's: `lora_a [E, r, in]`, `lora_b
[E, out, r]` (mlx_lm 0.32.2, `tuner/lora.py`). All modules have one rank, so smaller
ones are padded with zeros; a module without tensors has no update. Runs on the host.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from para_jax._adapters.adapter import Adapter, check_pair, ordered
from para_jax._adapters.checkpoint import Checkpoint, Layer
from para_jax._adapters.messages import Argument, Message
from para_jax._engines import profiles
from para_jax.formats import other_files, record, tensor_files
from para_jax.formats.mlx import (
    CONFIG as CONFIG,
    WEIGHTS as WEIGHTS,
    config as mlx_config,
)

_RANKS = "para_jax_ranks"
# The embeddings of mlx-lm's models, by their last name: LoRA looks up their rows.
_EMBEDDINGS = {
    *("embed_tokens", "embed_tokens_per_layer", "wte", "wpe", "embeddings"),
    *("word_embeddings", "tok_embeddings", "token_embeddings", "embedding", "embed_in"),
}


def load(folder: pathlib.Path) -> Checkpoint:
    """Read the adapter in a folder of mlx-lm, with its scale by mlx-lm's rule.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if a file is broken, a pair incomplete, or the adapter is not plain
        LoRA. The message names the file and the module.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"'{folder / name}' is missing: an adapter of mlx-lm has {WEIGHTS}, "
                f"and {CONFIG} with its scale."
            )
    config = tensor_files.read_json(folder / CONFIG)
    try:
        rank, scale = mlx_config.rank_and_scale(config)
        found, metadata = tensor_files.read(folder / WEIGHTS)
        return _checkpoint(found, metadata, config, rank, scale)
    except ValueError as error:
        raise ValueError(
            Message(f"Cannot read the adapter in '{folder}': ", error)
        ) from error


def _checkpoint(
    found: Mapping[str, np.ndarray],
    metadata: Mapping[str, str],
    config: Mapping[str, Any],
    rank: int,
    scale: float,
) -> Checkpoint:
    modules, extra = _by_module(found)
    if not modules:
        raise ValueError(f"{WEIGHTS} {other_files.no_factors(extra)}")
    adapters, layers = {}, {}
    for name in ordered(modules):
        path = name.replace(".", "/")
        adapters[path], layer = _adapter(name, modules[name], rank, scale)
        check_pair(name, adapters[path])
        if layer != Layer():
            layers[path] = layer
    # `save` pads all modules to one rank; the record has their own.
    adapters |= _trimmed(adapters, metadata)
    result = Checkpoint(adapters=adapters, layers=layers, extra=extra, config=config)
    if "para_jax" in metadata:
        return record.restored(result, record.from_json(metadata["para_jax"]))
    return result


def _by_module(
    found: Mapping[str, np.ndarray],
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Return the two factors of each module by its name, and all other tensors."""
    modules: dict[str, dict[str, np.ndarray]] = {}
    extra: dict[str, np.ndarray] = {}
    for key, value in found.items():
        module, _, end = key.rpartition(".")
        if "/" in key:
            raise ValueError(
                f"'{key}' has a slash in its name, which parts paths here."
            )
        # `m` is the magnitude of mlx-lm's DoRA.
        if end == "m" and f"{module}.lora_a" in found:
            raise ValueError(
                f"'{key}' makes this a DoRA adapter: its update is not the product of "
                "two factors alone, so it cannot be compressed as LoRA."
            )
        if module and end in ("lora_a", "lora_b"):
            modules.setdefault(module, {})[end] = value
        elif "lora" in end:
            raise ValueError(f"'{key}' is a LoRA tensor of a kind not known here.")
        else:
            extra[key] = value
    return modules, extra


def _adapter(
    name: str, factors: Mapping[str, np.ndarray], rank: int, scale: float
) -> tuple[Adapter, Layer]:
    if missing := {"lora_a", "lora_b"} - factors.keys():
        raise ValueError(f"'{name}' has no {missing.pop()}, one of the two factors.")
    a, b = factors["lora_a"], factors["lora_b"]
    shapes = f"lora_a {list(a.shape)}, lora_b {list(b.shape)}"
    layer = Layer()
    # Only experts are stacked. An embedding has the shapes of a dense layer.
    if a.ndim == b.ndim == 3:
        (a, b), layer = oriented(a, b), Layer(kind="experts")
    elif name.rpartition(".")[2] in _EMBEDDINGS:
        layer = Layer(kind="embedding")
    fit = a.ndim == b.ndim in (2, 3) and a.shape[:-2] == b.shape[:-2]
    if not (fit and a.shape[-1] == b.shape[-2] == rank):
        raise ValueError(
            f"'{name}': {shapes}, and {CONFIG} says rank {rank}: expected [in, rank] "
            "and [rank, out], or [experts, rank, in] and [experts, out, rank]."
        )
    if a.dtype != b.dtype:
        raise ValueError(
            f"'{name}': lora_a is {a.dtype} and lora_b {b.dtype}: expected one dtype."
        )
    return Adapter(a=a, b=b, scale=scale), layer


def _trimmed(
    adapters: Mapping[str, Adapter], metadata: Mapping[str, str]
) -> dict[str, Adapter]:
    """Cut the zeros added by `save` off adapters, back to their own ranks."""
    ranks = json.loads(metadata.get(_RANKS, "{}"))
    result = {}
    for path in adapters.keys() & ranks.keys():
        x, rank = adapters[path], ranks[path]
        # Whatever is cut off must be padding.
        if x.a[..., rank:].any() or x.b[..., rank:, :].any():
            raise ValueError(f"its metadata '{_RANKS}' is damaged ('{path}').")
        small = dataclasses.replace(x, a=x.a[..., :rank], b=x.b[..., :rank, :])
        result[path] = small
    return result


def save(checkpoint: Checkpoint, folder: pathlib.Path) -> Checkpoint:
    """Write the two files of an adapter into an existing folder, with a scale of 1.

    Args:
      checkpoint: The adapters. Stacks are unstacked, except for experts.
      folder: The folder. Its files are overwritten: `para_jax.save` protects them.

    Returns:
      The checkpoint that the files should read back as.

    Raises:
      ValueError: if nothing is left to write, or mlx-lm has no form for it.
    """
    flat = profiles.shaped(checkpoint, "ragged")
    if not flat.adapters:
        raise ValueError(
            "No module has an adapter left: all are cut, or zero. Keep at least one "
            "rank of one that is not zero."
        )
    _check(flat)
    # mlx-lm builds every layer with the one rank of the configuration.
    rank = max(x.rank for x in flat.adapters.values())
    names = [path.replace("/", ".") for path in ordered(flat.adapters)]
    config = mlx_config.child(flat.config, names, rank)
    # The file's own shapes no longer tell these ranks.
    small = {path: x.rank for path, x in flat.adapters.items() if x.rank < rank}
    metadata = {
        "format": "mlx",
        "para_jax": record.to_json(flat),
        _RANKS: json.dumps(small),
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8")
    tensor_files.write(folder / WEIGHTS, dict(_named(flat, rank)), metadata)
    return flat


def _check(flat: Checkpoint) -> None:
    for path, x in flat.adapters.items():
        kind = flat.layers.get(path, Layer()).kind
        if kind not in ("linear", "embedding", "experts") or path in flat.biases:
            what = "bias" if path in flat.biases else f"layer of the kind '{kind}'"
            raise ValueError(f"'{path}' has a {what}, for which mlx-lm has no LoRA.")
        if x.a.dtype.name not in ("float32", "float16", "bfloat16"):
            raise ValueError(
                Message(
                    f"'{path}' is {x.a.dtype}, and mlx-lm reads float32, float16 and "
                    "bfloat16 alone. Store it in one of these, with ",
                    Argument("dtype", "bfloat16"),
                    ".",
                )
            )


def keys(path: str) -> tuple[str, str]:
    """Return the names of both factors of a module."""
    name = path.replace("/", ".")
    return f"{name}.lora_a", f"{name}.lora_b"


def oriented(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turn factors from mlx-lm's orientation to ours, or back."""
    return (a.mT, b.mT) if a.ndim == 3 else (a, b)


def _named(flat: Checkpoint, rank: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield every tensor of a checkpoint with its name, padded to one rank."""
    for path, x in flat.adapters.items():
        more = rank - x.rank
        stack = [(0, 0) for _ in x.stack]
        a = np.pad(np.asarray(x.a), [*stack, (0, 0), (0, more)])
        b = np.pad(np.asarray(x.b), [*stack, (0, more), (0, 0)])
        yield from zip(keys(path), oriented(a, b), strict=True)
    yield from flat.extra.items()
