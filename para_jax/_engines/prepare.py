"""Adapters as a serving engine takes them, and what each engine pays for them. Host.

An engine that would read an adapter wrongly, or in part, is refused with the reason.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from para_jax._adapters.adapter import ordered
from para_jax._adapters.checkpoint import Checkpoint, Layer
from para_jax._adapters.messages import Argument, Message
from para_jax._engines import (
    experts as expert_modules,
)
from para_jax._engines import (
    profiles,
    registry,
    renaming,
)
from para_jax._engines import (
    rules as engine_rules,
)
from para_jax._engines.profiles import Profile, Shape
from para_jax._engines.rules import Engine, Format


class Prepared(NamedTuple):
    """What to save for an engine, and how."""

    checkpoint: Checkpoint
    format: Format
    profile: Profile


class Cost(NamedTuple):
    """What an engine pays for an adapter.

    Attributes:
      engine: Its name in `engines.ENGINES`.
      format: The format of the file.
      profile: The profile of the file.
      rank: The largest rank in the file.
      allocated: The rank of the engine's buffers.
      bytes: Of the factors in the file.
      ragged: The bytes that each module at its own rank would take.
      memory: What the engine holds: its buffers, or the factors.
      refused: Why the engine cannot serve the adapter, in which case all else is 0.
    """

    engine: str
    format: str
    profile: str
    rank: int
    allocated: int
    bytes: int
    ragged: int
    memory: int
    refused: str = ""


def prepare(checkpoint: Checkpoint, engine: str, *, one_file: bool = False) -> Prepared:
    """Returns equal updates as an engine takes them.

    Modules get the names that it finds them by. Ranks are padded up to those it needs,
    and modules that it wants beside others are filled in as zeros.

    Example:
      >>> from para_jax.formats import serving
      >>> parent = para_jax.Checkpoint(adapters=adapters)
      >>> ready = serving.prepare(parent, "lorax")  # Its ranks are 8, 16, 32 ...
      >>> ready.profile, ready.checkpoint.adapters["up"].rank
      ('padded', 8)

    Args:
      checkpoint: What is to be served.
      engine: A name in `engines.ENGINES`.
      one_file: Whether the target is a single file. Engines of a folder alone get a
        folder.

    Raises:
      ValueError: if the engine cannot serve the adapter. The message says why.
    """
    rules = registry.known(engine)
    form = engine_rules.form(rules, one_file=one_file)
    checkpoint = renaming.named(checkpoint, engine, form=form)
    flat = profiles.flatten(checkpoint, trim=rules.profile != "padded")
    flat = profiles.fit(flat, _shapes(engine, flat))
    if flat.tree is not None and rules.layouts:
        tree = dataclasses.replace(flat.tree, one_rank=True)
        flat = dataclasses.replace(flat, tree=tree)
    profile = rules.profile if form == "peft" else "ragged"
    flat = renaming.listed(renaming.spelled(flat, rules, form), rules)
    return Prepared(flat, form, profile)


def costs(checkpoint: Checkpoint) -> list[Cost]:
    """Returns what each engine would pay for an adapter, or why it cannot serve it.

    Example:
      >>> from para_jax.formats import serving
      >>> parent = para_jax.Checkpoint(adapters=adapters)
      >>> paid = {x.engine: x.bytes for x in serving.costs(parent)}
      >>> paid["peft"], paid["vllm"], paid["sglang"]
      (288, 288, 384)
    """
    bare = {
        path: dataclasses.replace(x, scale=1.0)  # So nothing is copied.
        for path, x in checkpoint.adapters.items()
    }
    checkpoint = dataclasses.replace(checkpoint, adapters=bare)
    return [_cost(checkpoint, engine) for engine in registry.ENGINES]


def _cost(checkpoint: Checkpoint, engine: str) -> Cost:
    rules = registry.known(engine)
    flat = profiles.flatten(checkpoint, trim=True)
    size = max((x.a.dtype.itemsize for x in flat.adapters.values()), default=0)
    ragged = size * sum(x.parameters for x in flat.adapters.values())
    try:
        form, named = _named(checkpoint, engine)
        flat = profiles.flatten(named, trim=rules.profile != "padded")
        fitted = _shapes(engine, flat)
    except ValueError as error:
        why = Message(error)
        return Cost(engine, rules.form, rules.profile, 0, 0, 0, ragged, 0, why)
    ranks = {path: r for path, (_, r, _) in fitted.items()}
    rank = max(ranks.values())
    written = size * sum(r * (m + n) for m, r, n in fitted.values())
    allocated = _at_least(_checked(ranks, rules), rules.ranks)
    absent = {path: (m, 0, n) for path, (m, n) in flat.absent.items()}
    every = size * sum(m + n for m, _, n in (absent | fitted).values())
    memory = allocated * every if rules.buffers else written
    return Cost(engine, form, rules.profile, rank, allocated, written, ragged, memory)


def _checked(ranks: Mapping[str, int], rules: Engine) -> int:
    """Return the largest rank that an engine compares with that of its buffers.

    vLLM 0.32 looks through all of `rank_pattern`, where PEFT needs the ranks of the
    parameters that it stacks experts to: those of gate and up are twice a module's.
    """
    most = max(ranks.values())
    if not rules.buffers or rules.profile != "ragged":
        return most
    return max([most, *expert_modules.stacked_ranks(ranks, most).values()])


def _named(checkpoint: Checkpoint, engine: str) -> tuple[Format, Checkpoint]:
    """Returns the modules as an engine finds them, in the first format that can."""
    rules = registry.known(engine)
    forms = {engine_rules.form(rules, one_file=x): None for x in (False, True)}
    *others, last = forms
    for form in others:
        try:
            return form, renaming.named(checkpoint, engine, form=form)
        except ValueError:  # Such as components that a folder cannot hold together.
            continue
    return last, renaming.named(checkpoint, engine, form=last)


def _shapes(engine: str, flat: Checkpoint) -> dict[str, Shape]:
    """Returns the shapes that an engine wants, or raises ValueError."""
    rules = registry.known(engine)
    try:
        _check_kinds(flat, rules)
        _check_extra(flat, rules)
        shapes = profiles.shapes(flat, profiles.GROUPS[rules.profile])
        if rules.fused:
            shapes |= _siblings(shapes)
        if rules.whole:
            others = expert_modules.missing(shapes, every=True)
            shapes |= {path: (m, 1, n) for path, (m, _, n) in others.items()}
        if rules.every:
            _check_layers(shapes, flat.config)
        return _check_ranks(shapes, rules)
    except ValueError as error:
        why = Message(f"{engine} cannot serve this adapter: ", error)
        raise ValueError(why) from error


def _check_kinds(flat: Checkpoint, rules: Engine) -> None:
    for path in flat.adapters:
        kind = flat.layers.get(path, Layer()).kind
        if kind not in rules.kinds:
            raise ValueError(
                f"'{path}' is of the kind '{kind}', which it takes no LoRA for."
            )
        name = path.rpartition("/")[2]
        if name in rules.unseen or (rules.only and name not in rules.only):
            raise ValueError(f"it passes over '{path}' without a word.")
    if flat.biases and not rules.biases:
        raise ValueError(f"'{min(flat.biases)}' has a bias, which it does not add.")


def _check_extra(flat: Checkpoint, rules: Engine) -> None:
    """Raises ValueError for a tensor that an engine would refuse, or pass over."""
    if not rules.plain:
        return
    left = [
        x
        for x in sorted(flat.extra)
        if not (x.endswith(rules.adds) or _is_skipped(x, flat, rules))
    ]
    if left:
        why = Message(
            f"'{left[0]}' is not a LoRA factor ({len(left)} such tensors, as of "
            "modules_to_save): merge these into the base model, and leave them "
            "out, with ",
            Argument("adapters_only", True),
            ".",
        )
        raise ValueError(why)


def _is_skipped(name: str, flat: Checkpoint, rules: Engine) -> bool:
    """Decide whether a tensor is a copy of the base's, which an engine needs not read.

    PEFT names it so only beside an adapted module: without an adapter, it is the
    module's own tensor.
    """
    module, inside, _ = name.rpartition(".base_layer.")
    bare = module.removeprefix("base_model.model.").replace(".", "/")
    return bool(inside) and bare not in flat.absent and name.endswith(rules.skips)


def _check_ranks(shapes: Mapping[str, Shape], rules: Engine) -> dict[str, Shape]:
    """Returns the shapes at ranks that the engine has buffers for."""
    if not shapes:
        raise ValueError(
            "no module has an adapter left: all are cut, or zero. Keep at least one "
            "rank of one that is not zero."
        )
    result = {}
    for path, (m, rank, n) in shapes.items():
        if rules.ranks and rank > max(rules.ranks):
            raise ValueError(
                Message(
                    f"'{path}' has rank {rank}, above {max(rules.ranks)}, the most "
                    "that it takes. Compress with ",
                    Argument("max_rank", max(rules.ranks)),
                    ".",
                )
            )
        result[path] = m, _at_least(rank, rules.ranks) if rules.exact else rank, n
    return result


def _at_least(rank: int, ranks: tuple[int, ...]) -> int:
    return min((x for x in ranks if x >= rank), default=rank)


def _check_layers(shapes: Mapping[str, Shape], config: Mapping[str, Any]) -> None:
    rule = "it reads a type of module rightly only where all layers have it"
    counts = Counter(profiles.module_type(path) for path in shapes)
    few = [name for name, count in counts.items() if count < max(counts.values())]
    if few:
        raise ValueError(
            f"'{few[0]}' is in {counts[few[0]]} of {max(counts.values())} layers, and "
            f"{rule}."
        )
    if config.get("layers_to_transform") not in (None, []):
        raise ValueError(
            f"adapter_config.json has layers_to_transform, and {rule}. If it names all "
            "layers, set it to null."
        )


_FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
# Of one shape in every model, so that one tells that of the other.
_ALIKE = {
    "k_proj": "v_proj",
    "v_proj": "k_proj",
    "gate_proj": "up_proj",
    "up_proj": "gate_proj",
}


def _siblings(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Returns the shapes of modules that are missing beside those of one fusion."""
    types = {profiles.module_type(path): x for path, x in shapes.items()}
    result: dict[str, Shape] = {}
    for path in ordered(shapes):
        owner, slash, name = path.rpartition("/")
        for group in _FUSED:
            for other in group if name in group else ():
                if (beside := owner + slash + other) in shapes:
                    continue
                like = owner + slash + _ALIKE.get(other, "")
                kind = profiles.module_type(beside)
                if like not in shapes and kind not in types:
                    raise ValueError(
                        f"it reads '{path}' only beside '{beside}', which this adapter "
                        "has in no layer, so that its shape is not known. Adapt "
                        f"{', '.join(group)} together, or use an engine that reads "
                        "each by itself, such as vllm."
                    )
                result[beside] = shapes.get(like) or types[kind]
    return result
