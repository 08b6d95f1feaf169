"""Rename a whole checkpoint from JAX to Hugging Face, or back."""

import dataclasses
from collections.abc import Mapping

from para_jax._adapters.adapter import Adapter, Adapters, Array
from para_jax._adapters.checkpoint import Checkpoint, Layer, as_checkpoint
from para_jax.names import gate_up, head_axes, head_forms, models, plan
from para_jax.names.head_forms import Direction
from para_jax.names.models import Names
from para_jax.names.patterns import Module, backward, forward, number, place
from para_jax.names.plan import Move, Moves

_EXPERTS = Layer(kind="experts")
# By new path, then by half of the fused gate and up; `None` holds an unfused module.
_Parts = dict[str, dict[int | None, Adapter]]


def to_hf(
    checkpoint: Checkpoint | Adapters,
    names: Names,
    *,
    ecosystem: str | None = None,
    head_dim: int | None = None,
    layers: int | None = None,
) -> Checkpoint:
    """Return the adapters under Hugging Face's names; the inverse is `from_hf`.

    All paths must fit the patterns of one ecosystem, whose table is used. Stacked
    layers become one adapter per layer. Experts keep their stack, under the name of the
    parameter that holds them. Gate and up, one parameter there, are joined at the sum
    of their ranks.

    Example:
      >>> from para_jax import names
      >>> parent = {"layers/3/q": adapters["up"]}
      >>> mine = {"layers/{i}/q": "model.layers.{i}.self_attn.q_proj"}
      >>> list(names.to_hf(parent, mine).adapters)
      ['model/layers/3/self_attn/q_proj']

    Args:
      checkpoint: The adapters by JAX path, with or without `params/` or `base/` before.
      names: A name in `MODELS`, or your own table: see `tables`.
      ecosystem: The owner of the paths, if the paths alone do not tell.
      head_dim: The size of an attention head, if a kernel's form depends on it.
      layers: The number of layers, if a layer's number depends on it.

    Raises:
      ValueError: if no table fits all paths, or several differing tables do, or a fact
        is missing. The message names the paths.
    """

    def renumber(module: Module, i: int, path: str) -> int | None:
        return number(module, i, path, layers)

    checkpoint = as_checkpoint(checkpoint)
    found = models.tables(names)
    if ecosystem is not None:
        found = dict([models.one(found, ecosystem)])
    stacks = _stacks(checkpoint)
    pairs = {name: forward(table) for name, table in found.items()}
    every = {name: plan.of(stacks, x, renumber) for name, x in pairs.items()}
    chosen = plan.chosen(every, found, models.title(names))
    return _moved(checkpoint, chosen, "to_hf", head_dim)


def from_hf(
    checkpoint: Checkpoint | Adapters,
    names: Names,
    *,
    ecosystem: str | None = None,
    head_dim: int | None = None,
    layers: int | None = None,
) -> Checkpoint:
    """Return the adapters under JAX paths: the inverse of `to_hf`.

    Layers stacked by the ecosystem become the members of a stack, `.../query/3`, for
    `para_jax.stack` to join. A fused `gate_up_proj` is split: each half has the
    components that it uses.

    Example:
      >>> from para_jax import names
      >>> parent = {"model/layers/3/self_attn/q_proj": adapters["up"]}
      >>> list(names.from_hf(parent, "gemma3", ecosystem="tunix").adapters)
      ['layers/3/attn/q_einsum']

    Args:
      checkpoint: The adapters by Hugging Face name.
      names: As for `to_hf`.
      ecosystem: The table to use, if the model has several.
      head_dim: As for `to_hf`.
      layers: As for `to_hf`.

    Raises:
      ValueError: as for `to_hf`, or if the ecosystem is left open.
    """

    def renumber(module: Module, layer: int, path: str) -> int | None:
        return place(module, layer, path, layers)

    checkpoint = as_checkpoint(checkpoint)
    name, table = models.one(models.tables(names), ecosystem)
    pairs = backward(table)
    found = {name: plan.of(_stacks(checkpoint), pairs, renumber)}
    sources = {name: [pair.source for pair in pairs]}
    chosen = plan.chosen(found, sources, models.title(names))
    return _moved(checkpoint, chosen, "from_hf", head_dim)


def _stacks(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    others = {**checkpoint.absent, **checkpoint.biases}
    stacks = {path: x.stack for path, x in checkpoint.adapters.items()}
    return {**dict.fromkeys(others, ()), **stacks}


def _moved(
    checkpoint: Checkpoint, found: Moves, direction: Direction, head_dim: int | None
) -> Checkpoint:
    if direction == "to_hf":
        outputs = {path: x.outputs for path, x in checkpoint.adapters.items()}
        head_axes.check(checkpoint.layers, outputs, found)
    # Two passes, since gate and up come from two modules and make up one.
    parts: _Parts = {}
    for path, adapter in checkpoint.adapters.items():
        for move in found[path]:
            part = _part(adapter, move, direction)
            part = head_forms.update(part, move.module, direction, head_dim, path)
            part = _headed(checkpoint, part, move, direction, head_dim, path)
            _put(parts, part, move, direction, path)
    modules = {x.path: x.module for several in found.values() for x in several}
    every = {
        path: _whole(slots, path, modules[path], direction)
        for path, slots in parts.items()
    }
    # Splitting a fused parameter can leave one half without any component.
    empty = {path: (x.inputs, x.outputs) for path, x in every.items() if not x.rank}
    adapters = {path: x for path, x in every.items() if x.rank}
    return dataclasses.replace(
        checkpoint,
        adapters=adapters,
        layers=_layers(checkpoint, found, direction, head_dim),
        biases=_biases(checkpoint, found, direction, head_dim),
        absent=empty | _absent(checkpoint, found, direction, adapters, head_dim),
        spelling={},
    )


def _part(adapter: Adapter, move: Move, direction: Direction) -> Adapter:
    a, b = adapter.a[move.index], adapter.b[move.index]
    part = dataclasses.replace(adapter, a=a, b=b)
    if direction == "to_hf":
        return part
    if move.module.turned:
        part = _turned(part)
    if move.module.half is None:
        return part
    half, turns = move.module.half, move.module.alternating
    return gate_up.split(part, half, move.path, alternating=turns)


def _headed(
    checkpoint: Checkpoint,
    part: Adapter,
    move: Move,
    direction: Direction,
    head_dim: int | None,
    path: str,
) -> Adapter:
    if direction == "from_hf":
        return head_axes.from_hf(part, move.module, head_dim, path)
    return head_axes.to_hf(
        part, move.module, checkpoint.layers.get(path, Layer()), path
    )


def _put(
    parts: _Parts, part: Adapter, move: Move, direction: Direction, path: str
) -> None:
    slots = parts.setdefault(move.path, {})
    half = move.module.half if direction == "to_hf" else None
    if half in slots:
        raise ValueError(
            f"'{path}' and another adapter are both '{move.path}'. Remove one of them."
        )
    slots[half] = part


def _whole(
    slots: Mapping[int | None, Adapter],
    path: str,
    module: Module,
    direction: Direction,
) -> Adapter:
    given = {half: x for half, x in slots.items() if half is not None}
    if given:
        whole = gate_up.join(given, path, alternating=module.alternating)
    else:
        whole = slots[None]
    return _turned(whole) if module.turned and direction == "to_hf" else whole


def _turned(adapter: Adapter) -> Adapter:
    return dataclasses.replace(adapter, a=adapter.b.mT, b=adapter.a.mT)


def _layers(
    checkpoint: Checkpoint, found: Moves, direction: Direction, head_dim: int | None
) -> dict[str, Layer]:
    kinds = {
        move.path: _kind(checkpoint, path, move.module, direction, head_dim)
        for path, several in found.items()
        for move in several
    }
    return {path: kind for path, kind in kinds.items() if kind != Layer()}


def _kind(
    checkpoint: Checkpoint,
    path: str,
    module: Module,
    direction: Direction,
    head_dim: int | None,
) -> Layer:
    # A name that ends in `{e}` is a parameter with all experts of a layer.
    if module.name.endswith("{e}"):
        return _EXPERTS
    kind = checkpoint.layers.get(path, Layer())
    if module.heads is None:
        return kind
    if direction == "to_hf":
        return Layer()
    m, n = _sizes(checkpoint, path)
    return head_axes.layer(module, m, n, head_dim, path)


def _sizes(checkpoint: Checkpoint, path: str) -> tuple[int, int]:
    if path in checkpoint.adapters:
        x = checkpoint.adapters[path]
        return x.inputs, x.outputs
    return checkpoint.absent[path]


def _biases(
    checkpoint: Checkpoint, found: Moves, direction: Direction, head_dim: int | None
) -> dict[str, Array]:
    result = {}
    for path, values in checkpoint.biases.items():
        for move in found[path]:
            if move.module.half is not None:
                raise ValueError(
                    f"'{path}' has a bias, but is one half of '{move.module.name}', "
                    "which can have none. Train experts without lora_bias."
                )
            part = values[move.index]
            result[move.path] = head_forms.bias(
                part, move.module, direction, head_dim, path
            )
    return result


def _absent(
    checkpoint: Checkpoint,
    found: Moves,
    direction: Direction,
    adapters: Mapping[str, Adapter],
    head_dim: int | None,
) -> dict[str, tuple[int, int]]:
    result = {}
    for path, (m, n) in checkpoint.absent.items():
        for move in found[path]:
            fused, turned = move.module.half is not None, move.module.turned
            # Of gate and up, one may be absent while the other has an adapter.
            if move.path in adapters:
                continue
            if direction == "to_hf":
                layer = checkpoint.layers.get(path, Layer())
                outputs = 2 * n if fused else n
                shape = head_axes.shape_to_hf(move.module, layer, m, outputs)
                result[move.path] = shape[::-1] if turned else shape
            else:
                inputs, outputs = (n, m) if turned else (m, n)
                result[move.path] = head_axes.shape_from_hf(
                    move.module,
                    inputs,
                    outputs // 2 if fused else outputs,
                    head_dim,
                    path,
                )
    return result
