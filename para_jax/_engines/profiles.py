"""The ranks that a file gives its modules, by what is to read it. Host.

Engines disagree on a module's scale: PEFT reads one alpha a module, others divide one
alpha by one rank, or by each tensor's own rank; and some want equal ranks. A profile is
a form that a class of engines reads rightly (`verify.py` checks it on the files).
All fold the scale into the factors first.
"""

import dataclasses
import re
import typing
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np

from para_jax._adapters import sharing
from para_jax._adapters.adapter import Adapter, folded
from para_jax._adapters.checkpoint import Checkpoint, Layer
from para_jax._adapters.padding import pad
from para_jax._adapters.stacks import by_member, stack, unstack
from para_jax._engines import experts as expert_modules
from para_jax._engines.experts import Shape as Shape

Profile = Literal["ragged", "padded", "uniform-by-type", "per-tensor-alpha"]
PROFILES: tuple[Profile, ...] = typing.get_args(Profile)

_NUMBER = re.compile(r"^(?:((?:layer|block)s?)_)?\d+$")


def shaped(checkpoint: Checkpoint, profile: Profile) -> Checkpoint:
    """Returns equal updates in the form that a profile wants, one adapter a module.

    - `ragged`: each module at its own rank; those that kept nothing are left out.
    - `padded`: zeros up to one rank for all, absent modules as zeros.
    - `uniform-by-type`: zeros up to the largest rank over the layers of each type of
      module (the path without its layer's number), absent layers of it as zeros.
    - `per-tensor-alpha`: `ragged`, where `alpha` is 1 for all modules: `b` is
      multiplied by the module's rank, by which the engine divides.

    Fused experts (a kind of layer) are one stack, at one rank. Experts of one module
    each have one rank too where a reader stacks them, and zeros where one of them kept
    nothing: see `experts.py`. So have modules that share an update.

    Example:
      >>> from para_jax.formats import profiles
      >>> parent = para_jax.Checkpoint(adapters=adapters)
      >>> padded = profiles.shaped(parent, "padded").adapters
      >>> {path: x.rank for path, x in padded.items()}
      {'down': 4, 'up': 4}

    Args:
      checkpoint: What to write. Other stacks are unstacked.
      profile: One of `PROFILES`.

    Returns:
      Adapters of scale 1, or `1 / r` for `per-tensor-alpha`.

    Raises:
      ValueError: if the adapters belong to changed base weights (PiSSA), or
        `per-tensor-alpha` would have to hold a bias.
    """
    if checkpoint.residual:
        raise ValueError(
            f"This adapter was initialised by {checkpoint.residual}, so it belongs to "
            "changed base weights, which no file of adapters says. Make it plain "
            "first: para_jax.plain(trained, initial)."
        )
    both = sharing.held(checkpoint)
    flat = flatten(checkpoint, trim=profile != "padded")
    flat = join_experts(fit(flat, shapes(flat, GROUPS[profile])))
    if profile != "per-tensor-alpha":
        return flat
    if flat.biases:
        raise ValueError(
            f"'{min(flat.biases)}' has a bias beside its factors (lora_bias), and the "
            "programs that per-tensor-alpha is for read factors alone. Use the ragged "
            "or the padded profile."
        )
    adapters = {path: _over_rank(x) for path, x in flat.adapters.items()}
    return sharing.spread(dataclasses.replace(flat, adapters=adapters), both)


def flatten(checkpoint: Checkpoint, *, trim: bool) -> Checkpoint:
    """Returns one adapter of scale 1 a kernel, as NumPy arrays.

    Args:
      checkpoint: Adapters with any stacks and scales.
      trim: Whether to leave out the zeros that fill up the kernels of a stack. Kernels
        of which nothing is left are left out too.
    """
    whole = checkpoint.adapters.keys()
    flat = {path: _on_host(x) for path, x in unstack(checkpoint.adapters).items()}
    if trim:
        flat = {path: x if path in whole else _trim(x) for path, x in flat.items()}
        flat = {path: x for path, x in flat.items() if x.rank}
    result = dataclasses.replace(
        checkpoint,
        adapters=flat,
        layers=_layers(checkpoint),
        biases=by_member(checkpoint.biases, checkpoint.adapters),
    )
    # A scale that is folded into each by itself would make two updates of one.
    return sharing.spread(result, sharing.held(checkpoint))


def _layers(checkpoint: Checkpoint) -> dict[str, Layer]:
    """Returns the kind of layer of each kernel, those of absent stacks included."""
    layers = by_member(checkpoint.layers, checkpoint.adapters)
    stacks = {path: path.rpartition("/")[0] for path in checkpoint.absent}
    members = {path: layers[x] for path, x in stacks.items() if x in layers}
    return {p: x for p, x in layers.items() if p not in stacks.values()} | members


def shapes(flat: Checkpoint, group: Callable[[str], str]) -> dict[str, Shape]:
    """Returns the shapes of all kernels, where those of a group have one rank.

    A kernel of an absent module is there if its group has a rank, or if it has a bias,
    which would have no place else; an expert's, if any expert's is, in any layer: PEFT
    takes a name for that of all layers.

    Args:
      flat: From `flatten`.
      group: The name of the group that a module's path belongs to.
    """
    found = {p: (m, int(p in flat.biases), n) for p, (m, n) in flat.absent.items()}
    for path, x in flat.adapters.items():
        found[path] = x.inputs, x.rank, x.outputs
    fitted = _grouped(flat, found, group)
    if any(rank and expert_modules.expert(p) for p, (_, rank, _) in fitted.items()):
        fitted = _grouped(flat, found | expert_modules.missing(found), group)
        fitted |= {
            path: (m, max(rank, 1), n)
            for path, (m, rank, n) in fitted.items()
            if expert_modules.expert(path)
        }
    return {path: shape for path, shape in fitted.items() if shape[1]}


def _grouped(
    flat: Checkpoint, found: Mapping[str, Shape], group: Callable[[str], str]
) -> dict[str, Shape]:
    """Returns the shapes at the largest rank of each one's group."""
    groups = {x: group(module(flat, flat.shared.get(x, x))) for x in found}
    most: dict[str, int] = {}
    for path, (_, rank, _) in found.items():
        most[groups[path]] = max(rank, most.get(groups[path], 0))
    return {path: (m, most[groups[path]], n) for path, (m, _, n) in found.items()}


def fit(flat: Checkpoint, wanted: Mapping[str, Shape]) -> Checkpoint:
    """Returns the same updates in factors of the shapes `wanted`."""
    dtype = next((x.a.dtype for x in flat.adapters.values()), np.dtype(np.float32))
    like = {path: _zeros(shape, dtype) for path, shape in wanted.items()}
    absent = {path: x for path, x in flat.absent.items() if path not in wanted}
    adapters = pad(flat.adapters, like=like)
    return dataclasses.replace(flat, adapters=adapters, absent=absent)


def join_experts(flat: Checkpoint) -> Checkpoint:
    """Returns the checkpoint with the kernels of each expert parameter as one stack."""
    stacks: dict[str, tuple[int, ...]] = {}
    for path in flat.layers:
        if is_expert(flat, path) and module(flat, path) != path:
            count = stacks.get(module(flat, path), (0,))[0]
            stacks[module(flat, path)] = (count + 1,)
    used = {module(flat, path) for path in flat.adapters if is_expert(flat, path)}
    stacks = {path: shape for path, shape in stacks.items() if path in used}
    gone = {path for path in flat.layers if module(flat, path) in stacks}
    layers = {path: x for path, x in flat.layers.items() if path not in gone}
    return dataclasses.replace(
        flat,
        adapters=stack(flat.adapters, stacks),
        layers=layers | dict.fromkeys(stacks, Layer(kind="experts")),
    )


def is_expert(checkpoint: Checkpoint, path: str) -> bool:
    """Returns whether a path is of fused experts, or of one of them."""
    return checkpoint.layers.get(path, Layer()).kind == "experts"


def module(flat: Checkpoint, path: str) -> str:
    """Returns the path of what a file stores as one: an expert's is that of its stack.

    Args:
      flat: From `flatten`.
      path: One of its kernels.
    """
    return path.rpartition("/")[0] if is_expert(flat, path) else path


def module_type(path: str) -> str:
    """Returns the path without the numbers of layers: `layers/3/q` is a `layers/q`.

    `layer_3` and `blocks_3` are such numbers too; in `fc1` and `Dense_1` the number
    tells one module of a layer from another.
    """
    parts = (_NUMBER.sub(r"\1", part) for part in path.split("/"))
    return "/".join(part for part in parts if part)


GROUPS: dict[Profile, Callable[[str], str]] = {
    "ragged": expert_modules.group,
    "padded": lambda path: "",
    "uniform-by-type": lambda path: module_type(expert_modules.group(path)),
    "per-tensor-alpha": expert_modules.group,
}


def _over_rank(adapter: Adapter) -> Adapter:
    """Returns the same update, where `b` is larger by the rank: alpha is 1.

    An alpha as large as the ranks would make `b` smaller instead, which float16 cannot
    always hold.
    """
    larger = folded(dataclasses.replace(adapter, scale=float(adapter.rank)))
    return dataclasses.replace(larger, scale=1 / adapter.rank)


def _on_host(adapter: Adapter) -> Adapter:
    a, b = np.asarray(adapter.a), np.asarray(adapter.b)
    return folded(dataclasses.replace(adapter, a=a, b=b))


def _trim(adapter: Adapter) -> Adapter:
    """Returns the adapter without the zeros that fill up its last components."""
    used = np.flatnonzero(adapter.a.any(axis=0) & adapter.b.any(axis=1))
    rank = int(used.max(initial=-1)) + 1
    return dataclasses.replace(adapter, a=adapter.a[:, :rank], b=adapter.b[:rank])


def _zeros(shape: Shape, dtype: np.dtype) -> Adapter:
    m, rank, n = shape
    return Adapter(a=np.zeros((m, rank), dtype), b=np.zeros((rank, n), dtype))
