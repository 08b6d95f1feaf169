"""mlx-lm's folders: `adapters.safetensors` and `adapter_config.json`. Host.

The factors have Flax's orientation, `<module>.lora_a [in, r]` and `<module>.lora_b
[r, out]`, and the update is `scale * a @ b` with the raw `scale` of `lora_parameters`.
The experts of a mixture are stacked in torch's: `lora_a [E, r, in]`, `lora_b
[E, out, r]` (mlx_lm 0.32.2, `tuner/lora.py`). All modules have one rank, so smaller
ones are filled with zeros here; a module without tensors has no update.
"""

import dataclasses
import json
import pathlib
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from para_jax._adapters.adapter import Adapter, check_pair, ordered
from para_jax._adapters.checkpoint import Checkpoint, Layer
from para_jax._adapters.messages import Argument, Message
from para_jax._engines import profiles
from para_jax.formats import other_files, record, tensor_files
from para_jax.formats.mlx import config as mlx_config

CONFIG = "adapter_config.json"
WEIGHTS = "adapters.safetensors"
_EXPERT = re.compile(r"(^|/)experts/\d+/")
_RANKS = "para_jax_ranks"
# The embeddings of mlx-lm's models, by their last name: LoRA looks up their rows.
_EMBEDDINGS = {
    *("embed_tokens", "embed_tokens_per_layer", "wte", "wpe", "embeddings"),
    *("word_embeddings", "tok_embeddings", "token_embeddings", "embedding", "embed_in"),
}


def load(folder: pathlib.Path) -> Checkpoint:
    """Read the adapter in a folder of mlx-lm, its scale by mlx-lm's own rule.

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
    """Return the adapters that `save` filled with zeros, at their own ranks."""
    ranks = json.loads(metadata.get(_RANKS, "{}"))
    result = {}
    for path in adapters.keys() & ranks.keys():
        x, rank = adapters[path], ranks[path]
        if x.a[..., rank:].any() or x.b[..., rank:, :].any():
            raise ValueError(f"its metadata '{_RANKS}' is damaged ('{path}').")
        small = dataclasses.replace(x, a=x.a[..., :rank], b=x.b[..., :rank, :])
        result[path] = small
    return result


def save(checkpoint: Checkpoint, folder: pathlib.Path) -> Checkpoint:
    """Write the two files of an adapter into an existing folder, with a scale of 1.

    Args:
      checkpoint: What to write. Stacks are unstacked, but for experts.
      folder: Where to. Nothing there is protected: see `para_jax.save`.

    Returns:
      What the files should read back as.

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
    rank = max(x.rank for x in flat.adapters.values())
    names = [path.replace("/", ".") for path in ordered(flat.adapters)]
    config = mlx_config.child(flat.config, names, rank)
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
            raise ValueError(f"'{path}' has a {what}, which mlx-lm has no LoRA for.")
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
    """Return factors of mlx-lm in our orientation, or ours in mlx-lm's."""
    return (a.mT, b.mT) if a.ndim == 3 else (a, b)


def _named(flat: Checkpoint, rank: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name and tensor of all that the checkpoint holds, at one rank."""
    for path, x in flat.adapters.items():
        more = rank - x.rank
        stack = [(0, 0) for _ in x.stack]
        a = np.pad(np.asarray(x.a), [*stack, (0, 0), (0, more)])
        b = np.pad(np.asarray(x.b), [*stack, (0, more), (0, 0)])
        yield from zip(keys(path), oriented(a, b), strict=True)
    yield from flat.extra.items()


def check_crossing(checkpoint: Checkpoint, form: str) -> None:
    """Check an adapter that goes from mlx-lm's models to others', or back.

    Warns of embeddings, whose update mlx-lm adds to a tied head too, and PEFT does not.

    Args:
      checkpoint: What is to be saved.
      form: The format to save it in.

    Raises:
      ValueError: if it holds experts, whose modules have other names and shapes there,
        or tensors of PEFT's that mlx-lm would not load.
    """
    kinds = {path: x.kind for path, x in checkpoint.layers.items()}
    to_mlx = form == "mlx"
    numbered = [x for x in checkpoint.adapters if to_mlx and _EXPERT.search(x)]
    crosses = "peft_type" if to_mlx else "lora_parameters"
    if not numbered and (form == "orbax" or crosses not in checkpoint.config):
        return
    fused = [x for x in checkpoint.adapters if kinds.get(x) == "experts"]
    if named := [*numbered, *fused, *_members(checkpoint, kinds)]:
        raise ValueError(
            f"'{named[0]}' is of a mixture's experts, which mlx-lm stacks under other "
            f"names (switch_mlp) than the model it was made from: {form} cannot hold "
            "them. Save it in the format that it came in."
        )
    if to_mlx and checkpoint.extra:
        raise ValueError(
            Message(
                f"'{min(checkpoint.extra)}' is not a LoRA factor "
                f"({len(checkpoint.extra)} such tensors), and mlx-lm loads factors "
                "alone. Merge it into the base model, and leave it out, with ",
                Argument("adapters_only", True),
                ".",
            )
        )
    tables = [x for x in checkpoint.adapters if kinds.get(x) == "embedding"]
    if tables and not any("lm_head" in x for x in checkpoint.adapters):
        warnings.warn(
            f"'{tables[0]}' is an embedding. If the model's head is tied to it, mlx-lm "
            "adds this update to the head too, and PEFT does not: leave it out then.",
            stacklevel=3,
        )


def _members(checkpoint: Checkpoint, kinds: Mapping[str, str]) -> list[str]:
    """Return the experts that compressing has unstacked."""
    owners = (x.rpartition("/")[0] for x in checkpoint.adapters)
    return [x for x in owners if kinds.get(x) == "experts"]
