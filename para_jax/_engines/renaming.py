"""Rename modules for an engine, or explain why it cannot find them."""

import dataclasses
import functools
import warnings
from typing import Any

from para_jax._adapters.checkpoint import Checkpoint
from para_jax._adapters.messages import Message, Remedy
from para_jax._engines import registry, rules as engine_rules
from para_jax._engines.rules import Engine, Format
from para_jax.layouts.libraries.keras import NUMBER
from para_jax.layouts.pairs import members
from para_jax.names import MODELS, diffusion
from para_jax.names.patterns import match, slashed

# Last names of modules outside of layers, in Hugging Face's language models.
_ENDS = {
    *("embed_tokens", "lm_head", "embed_out", "wte", "wpe", "word_embeddings"),
    *("embeddings", "score", "classifier"),
}
_WHAT = {
    "hf": "not a name in any image or video model known here",
    "module": "a name in a model of diffusers",
    "diffusers": "a name in a pipeline of diffusers",
    "original": "a name in the authors' code of an image model",
    "comfyui": "a name of ComfyUI's",
    "kohya": "a name of kohya's",
}


def named(checkpoint: Checkpoint, engine: str, *, form: Format) -> Checkpoint:
    """Rename the modules as an engine finds them.

    Some kernels change with their names, and so do their singular values. Compress
    the result, not the original.

    Example:
      >>> path = "lora_unet_mid_block_attentions_0_proj_in"
      >>> parent = para_jax.Checkpoint(adapters={path: adapters["up"]})
      >>> found = para_jax.formats.named(parent, "diffusers", form="peft")
      >>> list(found.adapters)
      ['mid_block/attentions/0/proj_in']

    Args:
      checkpoint: The adapter to serve.
      engine: A name in `para_jax.formats.ENGINES`.
      form: The format of the file.

    Raises:
      ValueError: if the engine cannot find a module, and its name cannot be converted.
        The message names the module.
    """
    rules = registry.known(engine)
    try:
        return _named(checkpoint, rules, form)
    except ValueError as error:
        raise ValueError(
            Message(f"{engine} cannot serve this adapter: ", error)
        ) from error


def _named(checkpoint: Checkpoint, rules: Engine, form: Format) -> Checkpoint:
    if rules.layouts:  # It runs a tree, whose layout tells the names.
        _check_tree(checkpoint, rules)
        return checkpoint
    if _has_jax_paths(checkpoint, rules):
        return checkpoint
    if path := next(filter(NUMBER.fullmatch, checkpoint.adapters), None):
        raise ValueError(
            Message(
                f"'{path}' is the number of a layer in a file of keras-hub. Rename it ",
                Remedy.RENAME_FIRST,
                ".",
            )
        )
    target = engine_rules.target(rules, form)
    wrong = _unread(checkpoint, rules, form)
    if wrong and target is None:
        raise ValueError(
            f"'{wrong[0]}' is {_WHAT[wrong[1]]}, and it finds modules by Hugging "
            "Face's names alone."
        )
    if wrong and target is not None:
        _check_image(checkpoint)
        return diffusion.convert(checkpoint, target)
    return checkpoint


def warn(checkpoint: Checkpoint, engine: str) -> None:
    """Warn of names unlike any language model's, for an engine of language models."""
    rules = registry.known(engine)
    if "hf" not in rules.reads or rules.names is not None or rules.layouts:
        return
    paths = [path.split("/") for path in checkpoint.adapters]
    # A layer has a number. Embeddings and heads have none, and may be the only modules.
    if paths and not any(_is_placed(parts) for parts in paths):
        warnings.warn(
            f"'{min(checkpoint.adapters)}' and the others are not names of layers, "
            f"embeddings or heads of a language model. If {engine} finds no such "
            "modules, it serves the base model without a word: give them the names "
            "of its model.",
            stacklevel=3,
        )


def _is_placed(parts: list[str]) -> bool:
    return any(x.isdigit() for x in parts) or not _ENDS.isdisjoint(parts)


def _check_image(checkpoint: Checkpoint) -> None:
    names = diffusion.read([*checkpoint.adapters, *checkpoint.absent])
    if path := next((p for p, x in names.items() if x.scheme == "hf"), None):
        raise ValueError(
            f"it finds modules of image and video models, and '{path}' is in none that "
            "is known here."
        )


def _unread(
    checkpoint: Checkpoint, rules: Engine, form: Format
) -> tuple[str, diffusion.Scheme] | None:
    """Find a module of a name unknown to the engine, and its scheme."""
    names = diffusion.read([*checkpoint.adapters, *checkpoint.absent])
    # Names in the target scheme need no conversion.
    reads = {*rules.reads, engine_rules.target(rules, form)}
    return next(
        ((p, x.scheme) for p, x in names.items() if x.scheme not in reads), None
    )


def _check_tree(checkpoint: Checkpoint, rules: Engine) -> None:
    tree = checkpoint.tree
    if tree is None or tree.layout not in rules.layouts:
        found = "no tree" if tree is None else f"a tree of {tree.layout}"
        raise ValueError(
            f"it runs trees of {' and '.join(rules.layouts)}, and this came from "
            f"{found}."
        )


def _has_jax_paths(checkpoint: Checkpoint, rules: Engine) -> bool:
    """Decide whether the modules have JAX paths, which only some engines read."""
    if checkpoint.tree is None:
        return False
    known = {name for pair in checkpoint.tree.pairs for name in members(pair)}
    ours = sorted(path for path in checkpoint.adapters.keys() & known if not _hf(path))
    if ours and "jax" not in rules.reads:
        raise ValueError(
            Message(
                f"'{ours[0]}' is a JAX path, and it knows modules by Hugging Face's "
                "names. Rename them ",
                Remedy.RENAME_FIRST,
                ".",
            )
        )
    return bool(ours)


def _hf(path: str) -> bool:
    """Check whether a path of a tree is also a name in a model of transformers.

    Models of EasyDeL, and Flax classes of Hugging Face, keep its names.
    """
    return path.rpartition("/")[2] in _ENDS or any(match(x, path) for x in _hf_names())


@functools.cache
def _hf_names() -> frozenset[str]:
    """Return the patterns of all modules known by transformers' names."""
    tables = (table for found in MODELS.values() for table in found.values())
    return frozenset(slashed(x.name) for table in tables for x in table.values())


def spelled(checkpoint: Checkpoint, rules: Engine, form: Format) -> Checkpoint:
    """Name the tensors of a single file as the engine wants them."""
    target = engine_rules.target(rules, form)
    if form != "kohya" or target is None:
        return checkpoint
    if target == "diffusers":
        return diffusion.spelled(checkpoint)
    if target == "kohya":  # The only spelling that sd-scripts reads.
        return dataclasses.replace(checkpoint, spelling={})
    return checkpoint


def listed(checkpoint: Checkpoint, rules: Engine) -> Checkpoint:
    """List the types of modules in PEFT's configuration, if the engine compares them.

    A type is the last name of a path. PEFT applies it to modules of the base that the
    file lacks, too, and initialises their updates to zero.
    """
    if not rules.short:
        return checkpoint
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
    }
    if checkpoint.config.get("peft_type") == "LORA":
        config = {**checkpoint.config}
    # These would narrow the list again.
    for key in ("exclude_modules", "layers_to_transform", "layers_pattern"):
        config.pop(key, None)
    config["target_modules"] = sorted(
        {path.rpartition("/")[2] for path in checkpoint.adapters}
    )
    modules = tuple(checkpoint.adapters)
    return dataclasses.replace(checkpoint, config=config, modules=modules)
