"""The ranks and alphas in a file, for each class of its readers.

Engines disagree on a module's scale: PEFT reads one alpha a module, others divide one
alpha by one rank, or by each tensor's own rank; and some require equal ranks. A profile
is a form that a class of engines reads correctly, which
`para_jax/formats/verify.py` checks on the files. All of them fold the scale into the
factors first. Runs on the host.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np

from para_jax._adapters import sharing
from para_jax._adapters.adapter import Adapter, folded
from para_jax._adapters.checkpoint import Checkpoint, Layer
from para_jax._adapters.choices import PROFILES as PROFILES, Profile as Profile
from para_jax._adapters.padding import pad
from para_jax._adapters.stacks import by_member, stack, unstack
from para_jax._engines import experts as expert_modules
from para_jax._engines.experts import Shape as Shape

_NUMBER = re.compile(r"^(?:((?:layer|block)s?)_)?\d+$")


def shaped(checkpoint: Checkpoint, profile: Profile) -> Checkpoint:
    """Convert a checkpoint to equal updates in the form of a profile.

    - `ragged`: each module at its own rank; modules that kept nothing are left out.
    - `padded`: zeros up to one rank for all, absent modules as zeros.
    - `uniform-by-type`: zeros up to the largest rank over the layers of each type of
      module (the path without its layer's number), absent layers as zeros.
    - `per-tensor-alpha`: `ragged` with an `alpha` of 1 for all modules: `b` is
      multiplied by the module's rank, by which the engine divides.

    Fused experts (a kind of layer) are one stack of one rank. Experts with one module
    each get one rank too if a reader stacks them, and zeros if one of them kept nothing
    (see `experts.py`). Modules that share an update are treated in the same way.

    Example:
      >>> parent = para_jax.Checkpoint(adapters=adapters)
      >>> padded = para_jax.formats.shaped(parent, "padded").adapters
      >>> {path: x.rank for path, x in padded.items()}
      {'down': 4, 'up': 4}

    Args:
      checkpoint: The adapters to write. Other stacks are unstacked.
      profile: One of `PROFILES`.

    Returns:
      Adapters of scale 1, or `1 / r` for `per-tensor-alpha`.

    Raises:
      ValueError: if the adapters belong to changed base weights (PiSSA), or
        `per-tensor-alpha` would need to hold a bias.
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
    """Unstack adapters to one of scale 1 for each kernel, as NumPy arrays.

    Args:
      checkpoint: Adapters with any stacks and scales.
      trim: Whether to remove the zeros that fill up the kernels of a stack, and
        kernels that are zero.
    """
    whole = checkpoint.adapters.keys()
    flat = {path: _on_host(x) for path, x in unstack(checkpoint.adapters).items()}
    layers, absent = _layers(checkpoint), dict(checkpoint.absent)
    if trim:
        flat = {path: x if path in whole else _trim(x) for path, x in flat.items()}
        gone = {path: x for path, x in flat.items() if not x.rank}
        flat = {path: x for path, x in flat.items() if x.rank}
        # An expert that no token was sent to: its stack needs an entry for it.
        absent |= {
            path: (x.inputs, x.outputs)
            for path, x in gone.items()
            if layers.get(path, Layer()).kind == "experts"
        }
    result = dataclasses.replace(
        checkpoint,
        adapters=flat,
        layers=layers,
        absent=absent,
        biases=by_member(checkpoint.biases, checkpoint.adapters),
    )
    # Scales folded into shared factors one by one would make two updates of one.
    return sharing.spread(result, sharing.held(checkpoint))


def _layers(checkpoint: Checkpoint) -> dict[str, Layer]:
    """Return the kind of layer of each kernel, absent stacks included."""
    layers = by_member(checkpoint.layers, checkpoint.adapters)
    # `by_member` expands only stacks with adapters. The kernels of others are absent
    # modules, `<stack>/0`, `<stack>/1`, ...
    owners = {path: path.rpartition("/")[0] for path in checkpoint.absent}
    members = {path: layers[x] for path, x in owners.items() if x in layers}
    expanded = set(owners.values())
    return {p: x for p, x in layers.items() if p not in expanded} | members


def shapes(flat: Checkpoint, group: Callable[[str], str]) -> dict[str, Shape]:
    """Return the shapes of all kernels, with one rank for each group.

    Kernels of absent modules are included if their group has a rank.

    Args:
      flat: From `flatten`.
      group: The name of the group of a module, given its path.
    """
    # A bias has no place but beside factors, so its module needs at least one rank.
    found = {p: (m, int(p in flat.biases), n) for p, (m, n) in flat.absent.items()}
    found |= {p: (x.inputs, x.rank, x.outputs) for p, x in flat.adapters.items()}
    fitted = _grouped(flat, found, group)
    if any(rank and expert_modules.expert(p) for p, (_, rank, _) in fitted.items()):
        # PEFT applies a parameter's name to all layers: if any expert is
        # adapted anywhere, every expert of every layer needs factors.
        fitted = _grouped(flat, found | expert_modules.missing(found), group)
        fitted = {p: _at_least_one(p, shape) for p, shape in fitted.items()}
    return {path: shape for path, shape in fitted.items() if shape[1]}


def _at_least_one(path: str, shape: Shape) -> Shape:
    m, rank, n = shape
    return (m, max(rank, 1), n) if expert_modules.expert(path) else shape


def _grouped(
    flat: Checkpoint, found: Mapping[str, Shape], group: Callable[[str], str]
) -> dict[str, Shape]:
    """Raise every rank to the largest of its group."""
    # Modules that share an update are in the group of the update's owner.
    groups = {x: group(module(flat, flat.shared.get(x, x))) for x in found}
    most: dict[str, int] = {}
    for path, (_, rank, _) in found.items():
        most[groups[path]] = max(rank, most.get(groups[path], 0))
    return {path: (m, most[groups[path]], n) for path, (m, _, n) in found.items()}


def fit(flat: Checkpoint, wanted: Mapping[str, Shape]) -> Checkpoint:
    """Pad the factors to the shapes `wanted`; the updates stay equal."""
    # A checkpoint of nothing but absent modules still needs a dtype for its zeros.
    dtype = next((x.a.dtype for x in flat.adapters.values()), np.dtype(np.float32))
    like = {path: _like(shape, dtype) for path, shape in wanted.items()}
    absent = {path: x for path, x in flat.absent.items() if path not in wanted}
    adapters = pad(flat.adapters, like=like)
    return dataclasses.replace(flat, adapters=adapters, absent=absent)


def join_experts(flat: Checkpoint) -> Checkpoint:
    """Stack the kernels of each parameter of fused experts; `flatten` unstacks them.

    Args:
      flat: Kernels `<parameter>/0`, `<parameter>/1`, ... of one rank a parameter.
    """
    owners = {path: module(flat, path) for path in flat.layers if is_expert(flat, path)}
    held = {owners[path] for path in flat.adapters if path in owners}
    # Layers list absent experts too: a stack has an entry for each, as zeros.
    counts = Counter(owner for owner in owners.values() if owner in held)
    others = {p: x for p, x in flat.layers.items() if owners.get(p) not in held}
    return dataclasses.replace(
        flat,
        adapters=stack(flat.adapters, {path: (n,) for path, n in counts.items()}),
        layers=others | dict.fromkeys(counts, Layer(kind="experts")),
    )


def is_expert(checkpoint: Checkpoint, path: str) -> bool:
    """Decide whether a path belongs to fused experts, or to one of them."""
    return checkpoint.layers.get(path, Layer()).kind == "experts"


def module(flat: Checkpoint, path: str) -> str:
    """Return the path under which a file stores a kernel: an expert's is its stack's.

    Args:
      flat: A result of `flatten`.
      path: The path of one of its kernels.
    """
    return path.rpartition("/")[0] if is_expert(flat, path) else path


def module_type(path: str) -> str:
    """Remove the numbers of layers from a path: `layers/3/q` becomes `layers/q`.

    `layer_3` and `blocks_3` are numbers of layers too. In `fc1` and `Dense_1` the
    number tells one module of a layer from another.
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
    """Multiply `b` by the rank and set alpha to 1; the update stays equal.

    The alternative, an alpha as large as the ranks, makes `b` smaller, which may
    underflow in float16.
    """
    larger = folded(dataclasses.replace(adapter, scale=float(adapter.rank)))
    return dataclasses.replace(larger, scale=1 / adapter.rank)


def _on_host(adapter: Adapter) -> Adapter:
    a, b = np.asarray(adapter.a), np.asarray(adapter.b)
    return folded(dataclasses.replace(adapter, a=a, b=b))


def _trim(adapter: Adapter) -> Adapter:
    """Remove the last components if they are zeros that fill up a stack."""
    # Padding is at the end alone: an earlier component of zeros is the adapter's own.
    used = np.flatnonzero(adapter.a.any(axis=0) & adapter.b.any(axis=1))
    rank = int(used.max(initial=-1)) + 1
    return dataclasses.replace(adapter, a=adapter.a[:, :rank], b=adapter.b[:rank])


def _like(shape: Shape, dtype: np.dtype) -> Adapter:
    """Return factors of a shape and a dtype without the memory for them."""
    m, rank, n = shape
    zero = np.zeros((), dtype)
    return Adapter(
        a=np.broadcast_to(zero, (m, rank)), b=np.broadcast_to(zero, (rank, n))
    )
