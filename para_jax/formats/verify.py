"""Verify written files under the engines' own rules of scaling.

The raw files are read, tensor by tensor, without the code that loads a checkpoint. So a
file that passes is right for the engines, and any other is never put in place.

- `pattern`: `alpha_i / r_i`, each module's own by name. PEFT; vLLM since 0.32.0
  (`lora/peft_helper.py`).
- `global`: `lora_alpha / r` for all (vLLM before 0.32.0; SGLang `srt/lora/lora.py`;
  LoRAX `adapters/lora.py`; LMDeploy `adapter/adapter.py`; sglang-jax; S-LoRA; MaxText).
- `none`: 1 for all: diffusers reads no configuration, and no alpha is in a folder's
  tensors (since 0.40.0, `utils/peft_utils.py`).
- `tensor`: `lora_alpha / rank`, the rank of each tensor itself (llama.cpp
  `llama-adapter.h`, where 0 means 1; TensorRT-LLM `lora_manager.py`).
- kohya: `alpha / rank` of each module, 1 without an alpha (ComfyUI
  `comfy/weight_adapter/lora.py`; sd-scripts `networks/lora.py`; A1111
  `extensions-builtin/Lora/network.py`).
- diffusers, of kohya's files: the most common alpha of all, over each module's rank
  (`loaders/lora_conversion_utils.py` files alphas of attention under names that match
  no module; `utils/peft_utils.py` then uses the most common one).
- mlx: one raw `scale` for all (mlx-lm `tuner/lora.py`).
- keras: 1 for all, and one rank (keras-hub `models/backbone.py`).

The rules are simulated here. `docs/engines.md` says which engines were run on files.
Runs on the host.
"""

import dataclasses
import json
import pathlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from para_jax._adapters.adapter import Adapter
from para_jax._adapters.checkpoint import Checkpoint, Layer
from para_jax._adapters.stacks import member, unstack
from para_jax._engines.profiles import Profile
from para_jax.formats import tensor_files
from para_jax.formats.mlx import folder as mlx
from para_jax.formats.peft import (
    config as peft_config,
    experts as peft_experts,
    folder as peft,
    tensors as peft_tensors,
)

Rule = Callable[[Mapping[str, Any], str, int], float]

RULES: dict[str, Rule] = {
    "pattern": lambda config, name, rank: peft_config.scale(config, name),
    "global": lambda config, name, rank: config["lora_alpha"] / config["r"],
    "none": lambda config, name, rank: 1.0,
    "tensor": lambda config, name, rank: config["lora_alpha"] / rank,
}
READERS: dict[Profile, tuple[str, ...]] = {
    "ragged": ("pattern", "global", "none"),
    "padded": ("pattern", "global", "none", "tensor"),
    "uniform-by-type": ("pattern", "global", "none"),
    "per-tensor-alpha": ("pattern", "tensor"),
}
"""The rules under which a file of each profile must be right."""


def check_peft(
    folder: pathlib.Path, written: Checkpoint, wanted: Checkpoint, profile: Profile
) -> None:
    """Check a folder of PEFT by the rule of each engine of its profile.

    Args:
      folder: The folder.
      written: The result of the format's `save`: the names, and each module's scale.
      wanted: The checkpoint that was to be saved.
      profile: The profile of the folder.

    Raises:
      ValueError: unless all these engines compute the wanted updates.
    """
    config = json.loads((folder / peft.CONFIG).read_text(encoding="utf-8"))
    # Kernels found in the file are removed; the rest must be zero.
    left, names = unstack(wanted.adapters), peft.keys(written)
    for path, (a, b) in _raw(folder / peft.WEIGHTS, names):
        kind, wrote = written.layers.get(path, Layer()), written.adapters[path]
        if kind.kind == "experts":
            got = peft_experts.from_torch(a, b, wrote.rank, wrote.scale)
        else:
            got = peft_tensors.from_torch(a, b, kind, wrote.scale)
        for rule in READERS[profile]:
            factor = RULES[rule](config, path.replace("/", "."), got.rank)
            _check_scale(path, rule, factor, wrote.scale)
        _check_update(path, got, left)
    _check_rest(left)


def check_kohya(file: pathlib.Path, written: Checkpoint, wanted: Checkpoint) -> None:
    """Check a single file by kohya's and diffusers' rules, as `check_peft`."""
    left = unstack(wanted.adapters)
    names = {
        path: [name for name in (x.a, x.b, x.alpha) if name]
        for path, x in written.spelling.items()
    }
    alphas = _alphas(file, written)
    for path, (a, b, *alpha) in _raw(file, names):
        kind, rank = written.layers.get(path, Layer()), a.shape[0]
        # Both readers must agree: see the rules at the top.
        scale = float(alpha[0]) / rank if alpha else 1.0
        common = alphas.most_common(1)[0][0] / rank if alphas else 1.0
        _check_scale(path, "kohya", scale, written.adapters[path].scale)
        _check_scale(path, "diffusers", common, scale)
        _check_update(path, peft_tensors.from_torch(a, b, kind, scale), left)
    _check_rest(left)


def check_mlx(folder: pathlib.Path, written: Checkpoint, wanted: Checkpoint) -> None:
    """Check a folder of mlx-lm by its one rank and one scale, as `check_peft`."""
    given = json.loads((folder / mlx.CONFIG).read_text(encoding="utf-8"))
    rank, scale = (given["lora_parameters"][name] for name in ("rank", "scale"))
    left = unstack(wanted.adapters)
    names = {path: mlx.keys(path) for path in written.adapters}
    for path, factors in _raw(folder / mlx.WEIGHTS, names):
        got = Adapter(*mlx.oriented(*factors), scale=scale)
        if got.rank != rank:
            raise ValueError(
                f"'{path}' has rank {got.rank}, and mlx-lm makes all of rank {rank}."
            )
        _check_update(path, got, left)
    _check_rest(left)


def check_keras(file: pathlib.Path, written: Checkpoint, wanted: Checkpoint) -> None:
    """Check a file of keras-hub by its one rank and its scale of 1, as `check_peft`."""
    from para_jax.formats.keras import hdf5, weights  # h5py is optional.

    arrays, _ = hdf5.read(file)
    left = unstack(wanted.adapters)
    for path in written.adapters:
        a, b = (arrays[name] for name in weights.names(path))
        got = Adapter(a.reshape(-1, a.shape[-1]), b)
        if got.rank != arrays[weights.RANK]:
            raise ValueError(
                f"'{path}' has rank {got.rank}, and keras-hub makes all of rank "
                f"{int(arrays[weights.RANK])}."
            )
        _check_update(path, got, left)
    _check_rest(left)


def _alphas(file: pathlib.Path, written: Checkpoint) -> Counter[float]:
    """Return how often each alpha is in a single file."""
    names = {path: [x.alpha] for path, x in written.spelling.items() if x.alpha}
    return Counter(float(alpha) for _, (alpha,) in _raw(file, names))


def _raw(
    file: pathlib.Path, names: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Yield the tensors of each module by its path."""
    wanted = [name for group in names.values() for name in group]
    # In one pass, so that only one module is in memory at a time.
    found = tensor_files.each(file, wanted)
    for path, group in names.items():
        yield path, [next(found)[1] for _ in group]


def _check_scale(path: str, rule: str, got: float, wanted: float) -> None:
    if got != wanted:
        raise ValueError(
            f"'{path}': an engine that scales by the rule '{rule}' would multiply with "
            f"{got:g}, not {wanted:g}: this profile cannot hold the adapter. Use "
            "'padded'."
        )


class _Pair(NamedTuple):
    a: np.ndarray
    b: np.ndarray


def _check_update(path: str, got: Adapter, left: dict[str, Adapter]) -> None:
    """Check one module, and remove its kernels from `left`."""
    for index in np.ndindex(got.stack):
        want = left.pop(member(path, index), None)
        pair = _Pair(np.asarray(got.a[index]), np.asarray(got.b[index]))
        if want is None:
            same = _is_zero(pair)
        else:
            # A tied output layer has the factors of the embedding transposed.
            same = _same(pair, got.scale, want) or _same(
                _flipped(pair), got.scale, _flipped_adapter(want)
            )
        if not same:
            raise ValueError(
                f"'{path}': the files do not hold the update that was to be saved. "
                "Do the factors fit the range of their dtype?"
            )


def _flipped(pair: _Pair) -> _Pair:
    return _Pair(pair.b.mT, pair.a.mT)


def _flipped_adapter(x: Adapter) -> Adapter:
    """Transpose an update: a tied output layer has its scale in `a`."""
    return dataclasses.replace(x, a=np.asarray(x.b).mT, b=np.asarray(x.a).mT)


def _check_rest(left: Mapping[str, Adapter]) -> None:
    for path, x in left.items():
        if not _is_zero(_Pair(np.asarray(x.a), np.asarray(x.b))):
            raise ValueError(f"'{path}' is not in the files, but its update is not 0.")


def _same(got: _Pair, scale: float, want: Adapter) -> bool:
    """Decide whether two updates are equal, up to two roundings of `b`.

    Compared by their components, in order: no product is formed.
    """
    a, b = np.asarray(want.a), np.asarray(want.b)
    # Equal bits, the common case, need no copy in float64.
    if scale == want.scale and np.array_equal(got.a, a) and np.array_equal(got.b, b):
        return True
    kept = min(got.a.shape[1], a.shape[1])
    rests = _Pair(got.a[:, kept:], got.b[kept:]), _Pair(a[:, kept:], b[kept:])
    if not all(map(_is_zero, rests)):
        return False
    got, (a, b) = _without_zeros(_Pair(got.a[:, :kept], got.b[:kept]), a, b)
    # `b` is rounded when its scale is folded in, and in some forms once more for the
    # rank. A subnormal is off by a unit at most.
    wide = b.astype(np.float64) * want.scale
    info = jnp.finfo(b.dtype)
    error = np.abs(got.b.astype(np.float64) * scale - wide)
    bound = float(info.eps) * np.abs(wide) + float(info.smallest_subnormal)
    if np.linalg.norm(error) > 2 * float(info.eps) * np.linalg.norm(wide):
        return False  # Many values below the dtype's range were lost.
    return np.array_equal(got.a, a) and bool((error <= bound).all())


def _without_zeros(got: _Pair, a: np.ndarray, b: np.ndarray) -> tuple[_Pair, _Pair]:
    """Return the components that are not zero in both updates.

    A component of which one factor is zero is written as zeros in both.
    """
    want = _Pair(a[:, : got.a.shape[1]], b[: got.b.shape[0]])
    used = _used(got) | _used(want)
    if used.all():  # No copy.
        return got, want
    first, second = (_Pair(x.a[:, used], x.b[used]) for x in (got, want))
    return first, second


def _used(pair: _Pair) -> np.ndarray:
    return np.asarray(pair.a.any(axis=0) & pair.b.any(axis=1))


def _is_zero(pair: _Pair) -> bool:
    # Zero if one of the factors of each component is: no product is formed.
    return not _used(pair).any()
