"""The factors in keras-hub's `*.lora.h5`, by the number of their layer.

`lora/<number>/vars/lora_kernel_a [*inputs, r]` and `lora_kernel_b [r, out]`, where the
number counts the layers of the backbone that have weights, and `lora/vars/rank`. An
adapter's path is `lora/<number>`, which `para_jax.names` converts (ecosystem
`keras-file`).

keras-hub makes all layers with the one rank of the file, at scale 1, and requires every
layer for which it enables LoRA. So smaller ranks are padded with zeros, and a layer
that kept nothing is written as zeros. A child's own record lies beside, where keras-hub
does not look: `para_jax/...`.

Source: keras_hub/src/models/backbone.py of keras-hub 0.32.0. Runs on the host.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Iterator, Mapping

import numpy as np

from para_jax._adapters.adapter import Adapter, check_pair, ordered
from para_jax._adapters.checkpoint import Checkpoint, Layer
from para_jax._adapters.messages import Argument, Message
from para_jax._engines import profiles
from para_jax.formats import record
from para_jax.formats.format import Hints
from para_jax.formats.keras import hdf5, scales
from para_jax.layouts.libraries.keras import NUMBER, of_inputs

RANK = "lora/vars/rank"
_RECORD, _RANKS, _EXTRA = "para_jax/record", "para_jax/ranks", "para_jax/extra/"
_FACTOR = re.compile(r"(?P<path>lora/\d+)/vars/lora_kernel_(?P<side>[ab])")

_Factors = dict[str, dict[str, np.ndarray]]


def load(path: pathlib.Path, given: Hints) -> Checkpoint:
    """Read the adapter in a file of keras-hub.

    Args:
      path: The file.
      given: Alpha or the scale, unless `save` wrote the file.

    Raises:
      ValueError: if the file is something else, a factor is missing, all updates are
        zero, or the scale is not given. The message names the file and the layer.
    """
    arrays, texts = hdf5.read(path)
    try:
        return _checkpoint(path, arrays, texts, given)
    except ValueError as error:
        raise ValueError(
            Message(f"Cannot read the adapter in '{path}': ", error)
        ) from error


def _checkpoint(
    path: pathlib.Path,
    arrays: Mapping[str, np.ndarray],
    texts: Mapping[str, str],
    given: Hints,
) -> Checkpoint:
    factors, extra = _by_layer(arrays)
    adapters, layers = {}, {}
    own = record.from_json(texts[_RECORD]) if _RECORD in texts else None
    ranks = json.loads(texts.get(_RANKS, "{}"))
    for name in ordered(factors):
        if own is not None and name in own.absent:
            continue
        adapters[name], layers[name] = _adapter(name, factors[name], ranks.get(name))
        check_pair(name, adapters[name])
    if own is None:
        _check_zero(adapters)
    layers = {name: x for name, x in layers.items() if x != Layer()}
    found = scales.of_layers(path, adapters, given, known=own is not None)
    scaled = {
        name: dataclasses.replace(x, scale=found[name]) for name, x in adapters.items()
    }
    result = Checkpoint(adapters=scaled, layers=layers, extra=extra)
    return result if own is None else record.restored(result, own)


def _by_layer(
    arrays: Mapping[str, np.ndarray],
) -> tuple[_Factors, dict[str, np.ndarray]]:
    """Return the factors of each layer, and the arrays that `save` kept beside."""
    factors: _Factors = {}
    extra = {}
    for name, value in arrays.items():
        if match := _FACTOR.fullmatch(name):
            factors.setdefault(match["path"], {})[match["side"]] = value
        elif name.startswith(_EXTRA):
            extra[name.removeprefix(_EXTRA)] = value
        elif name != RANK:
            raise ValueError(
                f"it holds '{name}', which is no LoRA factor. Expected a file of "
                "keras-hub's Backbone.save_lora_weights; a model's weights "
                "(save_weights) have LoRA merged into their kernels."
            )
    if not factors:
        raise ValueError("it holds no LoRA factors (lora/<number>/vars/lora_kernel_a).")
    return factors, extra


def _adapter(
    name: str, found: Mapping[str, np.ndarray], rank: int | None
) -> tuple[Adapter, Layer]:
    if missing := {"a", "b"} - found.keys():
        raise ValueError(f"'{name}' has no lora_kernel_{missing.pop()}.")
    a, b = found["a"], found["b"]
    fit = a.ndim >= 2 and b.ndim == 2 and a.shape[-1] == b.shape[0]
    if not fit or a.dtype != b.dtype:
        raise ValueError(
            f"'{name}': lora_kernel_a {list(a.shape)} in {a.dtype.name} and "
            f"lora_kernel_b {list(b.shape)} in {b.dtype.name}: expected [*inputs, r] "
            "and [r, out] of one dtype."
        )
    if rank is not None:
        # What is cut off must be the padding that `save` added.
        if a[..., rank:].any() or b[rank:].any():
            raise ValueError(f"its '{_RANKS}' is damaged ('{name}').")
        a, b = a[..., :rank], b[:rank]
    layer = of_inputs(a.shape[:-1])
    return Adapter(a=a.reshape(-1, a.shape[-1]), b=b), layer


def _check_zero(adapters: Mapping[str, Adapter]) -> None:
    if not any(factor.any() for x in adapters.values() for factor in (x.a, x.b)):
        raise ValueError(
            "all of its factors are zero, so it changes nothing. Keras merges LoRA "
            "into the kernels when it saves a model (save, save_weights), and zeros "
            "the factors when it loads one: call save_lora_weights before that, in the "
            "process that trained them."
        )


def save(checkpoint: Checkpoint, path: pathlib.Path) -> Checkpoint:
    """Write the file of an adapter, of one rank, with a scale of 1.

    Args:
      checkpoint: The adapters, by paths such as `lora/10`.
      path: The new file.

    Returns:
      The checkpoint that the file should read back as.

    Raises:
      ValueError: if a path is not the number of a layer, nothing is left to write, or
        Keras reads no such dtype.
    """
    flat = profiles.shaped(checkpoint, "ragged")
    _check(flat)
    rank = max(x.rank for x in flat.adapters.values())
    arrays = {RANK: np.asarray(rank), **dict(_named(flat, rank))}
    arrays |= {f"{_EXTRA}{name}": x for name, x in flat.extra.items()}
    # The file's own shapes no longer tell these ranks.
    ranks = {name: x.rank for name, x in flat.adapters.items() if x.rank < rank}
    texts = {_RECORD: record.to_json(flat), _RANKS: json.dumps(ranks)}
    hdf5.write(path, arrays, texts)
    return flat


def _check(flat: Checkpoint) -> None:
    if not flat.adapters:
        raise ValueError(
            "No module has an adapter left: all are cut, or zero. Keep at least one "
            "rank of one that is not zero."
        )
    for path in [*flat.adapters, *flat.absent]:
        if not NUMBER.fullmatch(path):
            raise ValueError(
                Message(
                    f"'{path}' is no layer's number, as keras-hub's files have "
                    "('lora/10'). Rename it with para_jax.names.from_hf, ",
                    Argument("ecosystem", "keras-file"),
                    ".",
                )
            )
    for path, x in flat.adapters.items():
        kind = flat.layers.get(path, Layer()).kind
        if kind not in ("linear", "einsum", "conv") or path in flat.biases:
            what = "bias" if path in flat.biases else f"layer of the kind '{kind}'"
            raise ValueError(f"'{path}' has a {what}: keras-hub's files hold no such.")
        if x.a.dtype.name not in ("float64", "float32", "float16", "bfloat16"):
            raise ValueError(
                Message(
                    f"'{path}' is {x.a.dtype}, and Keras reads float32, float16 and "
                    "bfloat16. Store it in one of these, with ",
                    Argument("dtype", "bfloat16"),
                    ".",
                )
            )


def _named(flat: Checkpoint, rank: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield every factor with its name, in the shape that Keras gives it."""
    dtype = next(iter(flat.adapters.values())).a.dtype
    sizes = {path: (x.inputs, x.outputs) for path, x in flat.adapters.items()}
    for path, (m, n) in {**flat.absent, **sizes}.items():
        inputs = flat.layers.get(path, Layer()).window or (m,)
        a, b = np.zeros((m, rank), dtype), np.zeros((rank, n), dtype)
        if path in flat.adapters:
            x = flat.adapters[path]
            a, b = a.astype(x.a.dtype), b.astype(x.b.dtype)
            a[:, : x.rank], b[: x.rank] = x.a, x.b
        yield from zip(names(path), (a.reshape(*inputs, rank), b), strict=True)


def names(path: str) -> tuple[str, str]:
    """Return the names of both factors of a layer."""
    return f"{path}/vars/lora_kernel_a", f"{path}/vars/lora_kernel_b"
