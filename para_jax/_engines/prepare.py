"""Prepare adapters for a serving engine, and estimate the memory each one needs.

An adapter that an engine would read wrongly, or in part, is refused with the reason.
Runs on the host.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

from para_jax._adapters.checkpoint import Checkpoint, Layer
from para_jax._adapters.messages import Argument, Message, Remedy
from para_jax._engines import (
    experts as expert_modules,
    profiles,
    registry,
    renaming,
    rules as engine_rules,
    together,
)
from para_jax._engines.profiles import Profile, Shape
from para_jax._engines.rules import Engine, Format


class Prepared(NamedTuple):
    """A checkpoint to save for an engine, with its format and profile."""

    checkpoint: Checkpoint
    format: Format
    profile: Profile


class Cost(NamedTuple):
    """The size of an adapter in one engine.

    Attributes:
      engine: Its name in `para_jax.formats.ENGINES`.
      format: The format of the file.
      profile: The profile of the file.
      rank: The largest rank in the file.
      allocated: The rank of the engine's buffers.
      bytes: The size of the factors in the file.
      ragged: The size of the factors, each module at its own rank.
      memory: The size of the engine's buffers, or of the factors if it has none.
      refused: Why the engine cannot serve the adapter; all sizes are 0 then.
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
    """Convert a checkpoint to equal updates in the form of an engine.

    Modules are renamed to the engine's names, ranks are padded to its sizes, and
    modules that it needs beside others are added as zeros.

    Example:
      >>> parent = para_jax.Checkpoint(adapters=adapters)
      >>> ready = para_jax.formats.prepare(parent, "lorax")  # Of ranks 8, 16, ...
      >>> ready.profile, ready.checkpoint.adapters["up"].rank
      ('padded', 8)

    Args:
      checkpoint: The adapter to serve.
      engine: A name in `para_jax.formats.ENGINES`.
      one_file: Whether the target is a single file. Engines that read only folders
        get a folder.

    Raises:
      ValueError: if the engine cannot serve the adapter. The message says why.
    """
    rules = registry.known(engine)
    form = engine_rules.form(rules, one_file=one_file)
    checkpoint = renaming.named(checkpoint, engine, form=form)
    flat = profiles.flatten(checkpoint, trim=rules.profile != "padded")
    flat = profiles.fit(flat, _shapes(engine, flat))
    if flat.tree is not None and rules.layouts:
        # Its model is built with a single rank, so the tree must have one too.
        tree = dataclasses.replace(flat.tree, one_rank=True)
        flat = dataclasses.replace(flat, tree=tree)
    # Only PEFT's configuration has several forms of alphas.
    profile = rules.profile if form == "peft" else "ragged"
    flat = renaming.listed(renaming.spelled(flat, rules, form), rules)
    return Prepared(flat, form, profile)


def costs(checkpoint: Checkpoint) -> list[Cost]:
    """Estimate the size of an adapter in each engine, or explain why it is refused.

    Example:
      >>> parent = para_jax.Checkpoint(adapters=adapters)
      >>> paid = {x.engine: x.bytes for x in para_jax.formats.costs(parent)}
      >>> paid["peft"], paid["vllm"], paid["sglang"]
      (288, 288, 384)
    """
    # Folding a scale of 1 copies nothing, and the sizes do not depend on it.
    given = checkpoint.adapters.items()
    bare = {path: dataclasses.replace(x, scale=1.0) for path, x in given}
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
    # A buffer is allocated for every module, whether or not it kept a rank.
    memory = allocated * every if rules.buffers else written
    return Cost(engine, form, rules.profile, rank, allocated, written, ragged, memory)


def _checked(ranks: Mapping[str, int], rules: Engine) -> int:
    """Return the largest rank to compare with an engine's buffers.

    vLLM 0.32 compares every rank in `rank_pattern`, where PEFT needs the ranks of the
    stacked experts too: for gate and up these are twice a module's.
    """
    most = max(ranks.values())
    if not rules.buffers or rules.profile != "ragged":
        return most
    return max([most, *expert_modules.stacked_ranks(ranks, most).values()])


def _named(checkpoint: Checkpoint, engine: str) -> tuple[Format, Checkpoint]:
    """Rename the modules for an engine, in its first format able to hold them."""
    rules = registry.known(engine)
    # A dict keeps the order and drops a repeated format.
    forms = {engine_rules.form(rules, one_file=x): None for x in (False, True)}
    *others, last = forms
    for form in others:
        try:
            return form, renaming.named(checkpoint, engine, form=form)
        except ValueError:  # Such as components that a folder cannot hold together.
            continue
    return last, renaming.named(checkpoint, engine, form=last)


def _shapes(engine: str, flat: Checkpoint) -> dict[str, Shape]:
    """Compute the shapes of all factors in an engine's file."""
    rules = registry.known(engine)
    try:
        _check_kinds(flat, rules)
        _check_extra(flat, rules)
        shapes = profiles.shapes(flat, profiles.GROUPS[rules.profile])
        if rules.fused:
            shapes |= together.siblings(shapes)
        if rules.whole:
            others = expert_modules.missing(shapes, every=True)
            # Rank 1 is the smallest that a file can hold; its factors are zeros.
            shapes |= {path: (m, 1, n) for path, (m, _, n) in others.items()}
        if rules.paired:
            shapes |= together.parameters(flat, shapes)
        if rules.every:
            together.check_layers(shapes, flat.config)
        return _check_ranks(shapes, rules)
    except ValueError as error:
        why = Message(f"{engine} cannot serve this adapter: ", error)
        raise ValueError(why) from error


def _check_kinds(flat: Checkpoint, rules: Engine) -> None:
    for path in flat.adapters:
        kind = flat.layers.get(path, Layer()).kind
        if kind == "einsum":
            raise ValueError(
                Message(
                    f"'{path}' is an einsum of Keras. Rename it ",
                    Remedy.RENAME_FIRST,
                    ".",
                )
            )
        if kind not in rules.kinds:
            raise ValueError(
                f"'{path}' is of the kind '{kind}', for which it accepts no LoRA."
            )
        name = path.rpartition("/")[2]
        if name in rules.unseen or (rules.only and name not in rules.only):
            raise ValueError(f"it passes over '{path}' without a word.")
    if flat.config.get("layer_replication") and not rules.replicates:
        raise ValueError(
            "adapter_config.json has layer_replication, expected none: it serves the "
            "base model with the layers of the base's own config.json. Save the base "
            "with its layers repeated, and set layer_replication to null."
        )
    if flat.biases and not rules.biases:
        raise ValueError(f"'{min(flat.biases)}' has a bias, which it does not add.")


def _check_extra(flat: Checkpoint, rules: Engine) -> None:
    """Raise ValueError for a tensor refused or ignored by an engine."""
    if not rules.plain:
        return
    left = [
        x
        for x in sorted(flat.extra)
        if not (
            x.endswith(rules.adds)
            or _is_head(x, flat, rules)
            or _is_skipped(x, flat, rules)
        )
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


def _is_head(name: str, flat: Checkpoint, rules: Engine) -> bool:
    """Decide whether a tensor belongs to a trained head that the engine serves."""
    parts = name.split(".")
    # vLLM compares the last name of the module alone, and takes the weight of a module
    # that `modules_to_save` does not list for a factor.
    saved = flat.config.get("modules_to_save") or ()
    module = parts[-2] if len(parts) > 1 else ""
    return module in rules.heads and module in saved and parts[-1] in ("weight", "bias")


def _is_skipped(name: str, flat: Checkpoint, rules: Engine) -> bool:
    """Decide whether a tensor is a copy of the base's own, safe to ignore.

    PEFT uses the name `base_layer` only inside an adapted module. Once the module has
    no adapter, the tensor is the module's own, which the engine must read.
    """
    module, inside, _ = name.rpartition(".base_layer.")
    bare = module.removeprefix("base_model.model.").replace(".", "/")
    return bool(inside) and bare not in flat.absent and name.endswith(rules.skips)


def _check_ranks(shapes: Mapping[str, Shape], rules: Engine) -> dict[str, Shape]:
    """Round the ranks up to sizes of the engine's buffers."""
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
