"""PEFT's folders: `adapter_config.json` and `adapter_model.safetensors`. Host.

Torch's orientation lives here and nowhere else: `lora_A [r, in]` is our `a^T` and
`lora_B [out, r]` our `b^T`. A convolution's factors are flattened in Flax's axis
order, an embedding's `m` is the vocabulary.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np

from para_jax.adapters import Adapter, Checkpoint, Layer, ordered, unstack
from para_jax.formats import peft_config, tensors
from para_jax.repack import pad
from para_jax.spectrum import check

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
Profile = Literal["ragged", "padded"]

_PREFIX = "base_model.model."
_KEY = re.compile(
    r"(?P<module>.+)\.(?:lora_(?P<factor>[AB])\.weight|lora_embedding_(?P<table>[AB])"
    r"|lora_(?P<bias>B)\.bias)$"
)
Tensors = dict[str, np.ndarray]


@dataclasses.dataclass
class _Module:
    """The tensors of one module, as they are found."""

    a: np.ndarray | None = None
    b: np.ndarray | None = None
    bias: np.ndarray | None = None
    embedding: bool = False


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
        modules, extra = _sorted(found)
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


def _sorted(found: Tensors) -> tuple[dict[str, _Module], Tensors]:
    """Returns the LoRA tensors by module, and the others under their names."""
    modules: dict[str, _Module] = {}
    extra: Tensors = {}
    for name, value in found.items():
        match = _KEY.match(name.removeprefix(_PREFIX))
        if match is None:
            if ".lora_" in name:
                raise ValueError(f"'{name}' is a LoRA tensor of a kind not known here.")
            extra[name] = value
            continue
        module = modules.setdefault(match["module"], _Module())
        if match["bias"]:
            module.bias = value
        else:
            module.embedding = bool(match["table"])
            setattr(module, (match["factor"] or match["table"]).lower(), value)
    return modules, extra


def _checkpoint(
    config: dict, modules: Mapping[str, _Module], extra: Tensors, metadata: Mapping
) -> Checkpoint:
    if not modules:
        raise ValueError(f"{WEIGHTS} holds no LoRA factors ({len(extra)} tensors).")
    adapters, layers, biases = {}, {}, {}
    for name in ordered(modules):
        module, path = modules[name], name.replace(".", "/")
        scale = peft_config.scale(config, name)
        _check_pair(name, module, peft_config.rank(config, name))
        a, b, layer = _from_torch(name, module)
        adapters[path] = Adapter(a=a, b=b, scale=scale)
        check(name, adapters[path])
        if layer != Layer():
            layers[path] = layer
        if module.bias is not None:
            # PEFT scales what lora_B gives, its bias included.
            bias = module.bias.astype(np.float64) * scale
            biases[path] = bias.astype(module.bias.dtype)
    ours = json.loads(metadata.get("para_jax", "{}"))
    return Checkpoint(
        adapters=adapters,
        layers=layers,
        biases=biases,
        absent={path: tuple(shape) for path, shape in ours.get("absent", {}).items()},
        extra=extra,
        config=config,
        provenance=ours.get("provenance", {}),
        residual=peft_config.residual(config),
    )


def _check_pair(name: str, module: _Module, rank: int) -> None:
    a, b = module.a, module.b
    if a is None or b is None:
        there, missing = ("A", "B") if b is None else ("B", "A")
        raise ValueError(f"'{name}' has lora_{there} but no lora_{missing}.")
    if "base_layer" in name.split("."):
        raise ValueError(
            f"'{name}' is adapted inside another adapted module (as PEFT does for "
            "MultiheadAttention), which is not supported."
        )
    if a.ndim < 2 or b.ndim < 2 or a.shape[0] != b.shape[1]:
        if a.ndim > 2 and b.ndim == a.ndim and a.shape[0] % b.shape[1] == 0:
            raise ValueError(f"'{name}' is a grouped convolution: not supported.")
        raise ValueError(
            f"'{name}': the ranks disagree: A {list(a.shape)}, B {list(b.shape)}."
        )
    if a.shape[0] != rank:
        raise ValueError(
            f"'{name}' has rank {a.shape[0]}, but {CONFIG} says {rank}, so its scale "
            "is not known. Correct r or rank_pattern there."
        )
    if a.dtype != b.dtype:
        raise ValueError(
            f"'{name}': A is {a.dtype} and B {b.dtype}, expected one dtype."
        )


def _from_torch(name: str, module: _Module) -> tuple[np.ndarray, np.ndarray, Layer]:
    """Returns `a [m, r]`, `b [r, n]` and the kind of layer they came from."""
    a, b = module.a, module.b
    if module.embedding:
        return a.T, b.T, Layer(kind="embedding")
    if a.ndim == 2:
        return a.T, b.T, Layer()
    if b.size != b.shape[0] * b.shape[1]:
        raise ValueError(f"'{name}': lora_B {list(b.shape)} is no 1 x 1 convolution.")
    # [r, channels, *window] to Flax's [*window, channels, r].
    kernel = np.moveaxis(a, (0, 1), (-1, -2))
    flat = kernel.reshape(-1, a.shape[0])
    return flat, b.reshape(b.shape[:2]).T, Layer(kind="conv", window=kernel.shape[:-1])


def save(
    checkpoint: Checkpoint, folder: pathlib.Path, *, profile: Profile = "ragged"
) -> None:
    """Writes the two files of an adapter into an existing folder, and reads them again.

    All scales are folded in and written as 1, so engines that know one scale for all
    modules, those that divide by each tensor's own rank, and PEFT agree.

    Args:
      checkpoint: What to write. Stacks are unstacked.
      folder: Where to. Nothing there is protected: see `para_jax.save`.
      profile: `ragged`: each module at its own rank, by patterns; absent modules left
        out. `padded`: zeros up to one rank, no patterns, absent modules as zeros.

    Raises:
      ValueError: if nothing is left to write, names cannot be told apart by PEFT's
        rules, or what was written does not read back as what it should be.
    """
    flat = _flat(checkpoint, profile)
    if not flat.adapters:
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
    metadata = {
        "format": "pt",
        "para_jax": json.dumps(
            {"absent": flat.absent, "provenance": dict(flat.provenance)}
        ),
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tensors.write(folder / WEIGHTS, dict(_to_torch(flat)), metadata)
    _verify(folder, flat, profile)


def _flat(checkpoint: Checkpoint, profile: Profile) -> Checkpoint:
    """Returns one adapter of scale 1 a module, as the profile wants them."""
    adapters = {path: _scaled(x) for path, x in unstack(checkpoint.adapters).items()}
    dtype = next((x.a.dtype for x in adapters.values()), np.float32)
    # A module without an adapter has no place for a bias either.
    needed = checkpoint.absent if profile == "padded" else checkpoint.biases
    for path in needed.keys() - adapters.keys():
        m, n = checkpoint.absent[path]
        adapters[path] = Adapter(a=np.zeros((m, 1), dtype), b=np.zeros((1, n), dtype))
    if profile == "padded":
        adapters = pad(adapters)
    absent = {p: x for p, x in checkpoint.absent.items() if p not in adapters}
    return dataclasses.replace(checkpoint, adapters=adapters, absent=absent)


def _scaled(adapter: Adapter) -> Adapter:
    b = np.asarray(adapter.b)
    if adapter.scale != 1:
        b = (b.astype(np.float64) * adapter.scale).astype(b.dtype)
    return Adapter(a=np.asarray(adapter.a), b=b)


def _to_torch(checkpoint: Checkpoint) -> Iterator[tuple[str, np.ndarray]]:
    """Yields PEFT's name and tensor of all that the checkpoint holds."""
    for path, adapter in checkpoint.adapters.items():
        module = _PREFIX + path.replace("/", ".")
        layer = checkpoint.layers.get(path, Layer())
        if layer.kind == "embedding":
            yield f"{module}.lora_embedding_A", adapter.a.T
            yield f"{module}.lora_embedding_B", adapter.b.T
            continue
        a, b = adapter.a.T, adapter.b.T
        if layer.kind == "conv":
            kernel = adapter.a.reshape(*layer.window, adapter.rank)
            a = np.moveaxis(kernel, (-1, -2), (0, 1))
            b = b.reshape(*b.shape, *(1 for _ in layer.window[:-1]))
        yield f"{module}.lora_A.weight", a
        yield f"{module}.lora_B.weight", b
        if path in checkpoint.biases:
            yield f"{module}.lora_B.bias", checkpoint.biases[path]
    for name, value in checkpoint.extra.items():
        yield _name_of_extra(name, checkpoint), value


def _name_of_extra(name: str, checkpoint: Checkpoint) -> str:
    """Returns where PEFT looks for a tensor that is no LoRA factor.

    In an adapted module the base's own tensors lie below `base_layer`; no longer, once
    the module has no adapter.
    """
    bare = name.removeprefix(_PREFIX)
    module, inside, leaf = bare.rpartition(".base_layer.")
    if inside and module.replace(".", "/") in checkpoint.absent:
        bare = f"{module}.{leaf}"
    return _PREFIX + bare


def _verify(folder: pathlib.Path, wanted: Checkpoint, profile: Profile) -> None:
    """Raises ValueError unless the files mean to their readers what they should."""
    got = load(folder)
    alike = got.adapters.keys() == wanted.adapters.keys()
    for path in wanted.adapters if alike else ():
        one, two = wanted.adapters[path], got.adapters[path]
        same = _equal(one.a, two.a) and _equal(one.b, two.b)
        alike = alike and same and two.scale == 1
    if profile == "padded":
        # Engines that read `r` and `lora_alpha` alone.
        config = got.config
        alike = alike and config["lora_alpha"] == config["r"]
        alike = alike and {x.rank for x in got.adapters.values()} == {config["r"]}
    if not alike:
        raise ValueError(
            f"What was written to '{folder}' does not read back as the adapter that "
            "it should be. Are there dots in the paths of the modules?"
        )


def _equal(one: np.ndarray, two: np.ndarray) -> bool:
    return one.dtype == two.dtype and one.shape == two.shape and (one == two).all()
