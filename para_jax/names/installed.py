"""Rename a checkpoint to the names that the installed transformers reads.

Releases of transformers rename modules, and load older weights by renaming these too.
An adapter keeps the names of its day: PEFT renames some of them and drops the others.
"""

import dataclasses
import difflib
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from para_jax._adapters.adapter import Adapter, Adapters, Array, folded
from para_jax._adapters.checkpoint import Checkpoint, Layer, as_checkpoint
from para_jax._adapters.messages import Message, Remedy
from para_jax.names import from_config, gate_up
from para_jax.names.skeleton import Place, Skeleton

_Places = Mapping[str, Sequence[Place]]
# By new path, then by expert and by half; None stands for "of all" in both.
_Parts = dict[str, dict[tuple[int | None, int | None], Adapter]]

_SHOWN = 3
_PREFIX = "base_model.model."
# What PEFT puts between a module and its own tensors.
_INSIDE = re.compile(
    r"(?P<module>.+?)\.(?P<inside>(?:base_layer|token_adapter|modules_to_save)\..+)"
)


def to_installed(
    checkpoint: Checkpoint | Adapters, model: str | pathlib.Path
) -> Checkpoint:
    """Return the adapters under the names that the installed transformers reads.

    Names of today stay. A former name gets the new name of its weight, by transformers'
    own conversion. Experts with one module each become the stack of the parameter that
    holds them all, with zeros for those without an adapter; gate and up are joined at
    the sum of their ranks, and a projection that was divided is divided exactly. Needs
    transformers 5 and torch, but no weights and no network.

    Example:
      >>> import torch
      >>> import transformers
      >>> config = transformers.ViTConfig(
      ...     hidden_size=5, intermediate_size=7, num_attention_heads=1,
      ...     num_hidden_layers=1, architectures=["ViTModel"],
      ... )
      >>> config.save_pretrained("vit")
      >>> former = {"encoder/layer/0/intermediate/dense": adapters["up"]}
      >>> list(para_jax.names.to_installed(former, "vit").adapters)
      ['layers/0/mlp/fc1']

    Args:
      checkpoint: The adapters by Hugging Face name.
      model: The folder of the base model, or its `config.json`. The class that the
        adapter was trained on (PEFT's `auto_mapping` or `task_type`) goes before the
        one in there.

    Raises:
      ModuleNotFoundError: if transformers or torch is not installed.
      FileNotFoundError: if there is no configuration.
      ValueError: if the model has no module of a name, or one of another shape, or if
        transformers computes it from the former one in a way that is not known here.
    """
    checkpoint = as_checkpoint(checkpoint)
    if checkpoint.tree is not None:
        raise ValueError(
            Message(
                f"'{next(iter(checkpoint.adapters))}' is a JAX path, not a Hugging "
                "Face name. Rename it ",
                Remedy.RENAME_FIRST,
                ".",
            )
        )
    found = from_config.read(model, checkpoint.config)
    paths = {**checkpoint.adapters, **checkpoint.absent, **checkpoint.biases}
    places = {path: found.places(path) for path in paths}
    if lost := [path for path, x in places.items() if not x]:
        raise ValueError(_unknown(lost, found))
    if all(x == [Place(path)] for path, x in places.items()):
        _check_shapes(checkpoint.adapters, found)
        return checkpoint
    return _moved(checkpoint, places, found)


def _unknown(paths: Sequence[str], found: Skeleton) -> str:
    every = [*found.modules, *found.parameters]
    near = difflib.get_close_matches(paths[0], every, n=1, cutoff=0)[0]
    shown = ", ".join(f"'{path}'" for path in paths[:_SHOWN])
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return (
        f"{shown}{more}: {found.title} has no such module, neither by this name nor by "
        f"one of before. The nearest is '{near}'. Give the configuration of the model "
        "that the adapter was trained on."
    )


def _moved(checkpoint: Checkpoint, places: _Places, found: Skeleton) -> Checkpoint:
    parts: _Parts = {}
    for path, adapter in checkpoint.adapters.items():
        for place in places[path]:
            _put(parts, adapter, place, path)
    adapters = {path: _whole(slots, path, found) for path, slots in parts.items()}
    _check_shapes(adapters, found)
    new = {place.path for several in places.values() for place in several}
    bare = {path for path in new if path in found.parameters}
    one = {path: x[0].path for path, x in places.items() if len(x) == 1}
    both = checkpoint.shared.items()
    return dataclasses.replace(
        checkpoint,
        adapters=adapters,
        layers=_layers(checkpoint, places, bare),
        biases=_biases(checkpoint, places, found),
        absent=_absent(checkpoint, places, found, adapters),
        shared={one[x]: one[y] for x, y in both if x in one and y in one},
        extra={_extra(key, found): x for key, x in checkpoint.extra.items()},
        config=_config(checkpoint.config, parameters=bool(bare)),
        spelling={},
    )


def _layers(
    checkpoint: Checkpoint, places: _Places, bare: Iterable[str]
) -> dict[str, Layer]:
    kept = {
        place.path: checkpoint.layers[path]
        for path, several in places.items()
        for place in several
        if path in checkpoint.layers
    }
    return kept | dict.fromkeys(bare, Layer(kind="experts"))


def _put(parts: _Parts, adapter: Adapter, place: Place, path: str) -> None:
    slots = parts.setdefault(place.path, {})
    if (key := (place.expert, place.half)) in slots:
        raise ValueError(
            f"'{path}' and another adapter are both '{place.path}'. Remove one of them."
        )
    slots[key] = dataclasses.replace(adapter, b=adapter.b[..., place.outputs])


def _whole(
    slots: Mapping[tuple[int | None, int | None], Adapter], path: str, found: Skeleton
) -> Adapter:
    """Return the adapter of a module, or of a parameter as a stack."""
    joined: dict[int | None, dict[int | None, Adapter]] = {}
    for (expert, half), part in slots.items():
        joined.setdefault(expert, {})[half] = part
    several = {expert: _joined(x, path) for expert, x in joined.items()}
    if None not in several:
        experts, inputs, outputs = found.parameters[path]
        return _stacked(several, (experts, inputs, outputs), path)
    whole = several[None]
    if path in found.parameters and not whole.stack:
        return dataclasses.replace(whole, a=whole.a[None], b=whole.b[None])
    return whole


def _joined(halves: Mapping[int | None, Adapter], path: str) -> Adapter:
    given = {half: x for half, x in halves.items() if half is not None}
    return gate_up.join(given, path) if given else halves[None]


def _stacked(
    several: Mapping[int | None, Adapter], shape: tuple[int, int, int], path: str
) -> Adapter:
    """Stack experts at the largest of their ranks, with zeros for those missing."""
    experts, inputs, outputs = shape
    kinds = sorted({str(x.a.dtype) for x in several.values()})
    if len(kinds) > 1:
        raise ValueError(
            f"'{path}' holds experts whose adapters are {' and '.join(kinds)}: "
            "expected one dtype. Convert them first."
        )
    first = next(iter(several.values()))
    xp = np if isinstance(first.a, np.ndarray) else jnp
    r = max(x.rank for x in several.values())
    scales = {x.scale for x in several.values()}
    # One common scale stays outside of the factors, which keeps their bits.
    same = len(scales) == 1
    zeros = xp.zeros((inputs, r), first.a.dtype), xp.zeros((r, outputs), first.a.dtype)
    pairs = []
    for e in range(experts):
        if (x := several.get(e)) is None:
            pairs.append(zeros)
            continue
        b = x.b if same else folded(x).b
        more = r - x.rank
        pairs.append((xp.pad(x.a, ((0, 0), (0, more))), xp.pad(b, ((0, more), (0, 0)))))
    a, b = (xp.stack(x) for x in zip(*pairs, strict=True))
    return Adapter(a=a, b=b, scale=scales.pop() if same else 1.0)


def _check_shapes(adapters: Adapters, found: Skeleton) -> None:
    for path, x in adapters.items():
        got = (*x.stack, x.inputs, x.outputs)
        want = found.modules.get(path, found.parameters.get(path, ()))
        # A convolution's inputs are its window's too, which the layer's kind tells.
        if want and got != want:
            raise ValueError(
                f"'{path}' of {found.title} takes an update of {list(want)}, and the "
                f"adapter's is {list(got)}. Give the configuration of the model that "
                "the adapter was trained on."
            )


def _biases(
    checkpoint: Checkpoint, places: _Places, found: Skeleton
) -> dict[str, Array]:
    result = {}
    for path, values in checkpoint.biases.items():
        for place in places[path]:
            if place.half is not None or place.path in found.parameters:
                raise ValueError(
                    f"'{path}' has a bias, but is part of '{place.path}' in "
                    f"{found.title}, where an update can have none. Train it without "
                    "lora_bias."
                )
            result[place.path] = values[..., place.outputs]
    return result


def _absent(
    checkpoint: Checkpoint, places: _Places, found: Skeleton, adapters: Adapters
) -> dict[str, tuple[int, int]]:
    result = {}
    for path, shape in checkpoint.absent.items():
        for place in places[path]:
            # Of several parts, one may be absent while another has an adapter.
            if place.path in adapters:
                continue
            if place.path in found.parameters:  # Each of its experts is absent.
                experts, *of = found.parameters[place.path]
                members = [f"{place.path}/{e}" for e in range(experts)]
                result |= dict.fromkeys(members, (of[0], of[1]))
            else:
                of = found.modules[place.path]
                result[place.path] = (of[0], of[1]) if of else shape
    return result


def _extra(key: str, found: Skeleton) -> str:
    """Return the new name of a tensor other than a LoRA factor."""
    name = key.removeprefix(_PREFIX)
    start = key[: len(key) - len(name)]
    if inside := _INSIDE.fullmatch(name):
        module = found.renamed(f"{inside['module']}.weight").removesuffix(".weight")
        return f"{start}{module}.{inside['inside']}"
    return start + found.renamed(name)


def _config(config: Mapping[str, Any], *, parameters: bool) -> dict[str, Any]:
    """Return PEFT's configuration without the names of before."""
    result = dict(config)
    if result.get("exclude_modules"):  # The child's list is of full names.
        result["exclude_modules"] = None
    # PEFT refuses it for bare parameters. It is of training alone.
    if parameters and result.get("lora_dropout"):
        result["lora_dropout"] = 0.0
    return result
