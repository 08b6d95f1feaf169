"""Checks of adapters that are converted from or to mlx-lm.

mlx-lm names and stacks the experts of a mixture in its own way, loads factors alone,
and adds the update of an embedding to a head that is tied to it. None of this can be
seen in the files of either side, so it is checked where the format changes.
"""

import re
import warnings
from collections.abc import Collection, Mapping

from para_jax._adapters.checkpoint import Checkpoint
from para_jax._adapters.messages import Argument, Message
from para_jax._engines.rules import Format
from para_jax.formats import configuration

_EXPERT = re.compile(r"(^|/)experts/\d+/")


def check_to_mlx(checkpoint: Checkpoint) -> None:
    """Check an adapter to be saved for mlx-lm.

    Warns of embeddings, whose update mlx-lm adds to a tied head too, unlike PEFT.

    Raises:
      ValueError: if it holds experts, whose modules have other names and shapes there,
        or tensors of PEFT's that mlx-lm would not load.
    """
    # One module an expert, as in transformers: mlx-lm stacks them at `switch_mlp`.
    numbered = [x for x in checkpoint.adapters if _EXPERT.search(x)]
    if not numbered and not configuration.is_peft(checkpoint.config):
        return
    _check_experts(checkpoint, "mlx", numbered)
    if checkpoint.extra:
        raise ValueError(
            Message(
                f"'{min(checkpoint.extra)}' is not a LoRA factor "
                f"({len(checkpoint.extra)} such tensors), and mlx-lm loads factors "
                "alone. Merge it into the base model, then leave it out with ",
                Argument("adapters_only", True),
                ".",
            )
        )
    _warn_of_embeddings(checkpoint)


def check_from_mlx(checkpoint: Checkpoint, form: Format) -> None:
    """Check an adapter of mlx-lm to be saved in another library's format.

    Warns of embeddings, as `check_to_mlx` does.

    Raises:
      ValueError: if it holds experts.
    """
    if configuration.is_mlx(checkpoint.config):
        _check_experts(checkpoint, form)
        _warn_of_embeddings(checkpoint)


def _check_experts(
    checkpoint: Checkpoint, form: Format, numbered: Collection[str] = ()
) -> None:
    kinds = _kinds(checkpoint)
    fused = [x for x in checkpoint.adapters if kinds.get(x) == "experts"]
    if named := [*numbered, *fused, *_members(checkpoint, kinds)]:
        raise ValueError(
            f"'{named[0]}' belongs to a mixture's experts, which mlx-lm stacks under "
            "other "
            f"names (switch_mlp) than the model it was made from: {form} cannot hold "
            "them. Save it in the format that it came in."
        )


def _kinds(checkpoint: Checkpoint) -> dict[str, str]:
    return {path: x.kind for path, x in checkpoint.layers.items()}


def _members(checkpoint: Checkpoint, kinds: Mapping[str, str]) -> list[str]:
    """Find the stacks of unstacked experts."""
    owners = (x.rpartition("/")[0] for x in checkpoint.adapters)
    return [x for x in owners if kinds.get(x) == "experts"]


def _warn_of_embeddings(checkpoint: Checkpoint) -> None:
    kinds = _kinds(checkpoint)
    tables = [x for x in checkpoint.adapters if kinds.get(x) == "embedding"]
    # A head with an update of its own is not tied.
    if tables and not any("lm_head" in x for x in checkpoint.adapters):
        warnings.warn(
            f"'{tables[0]}' is an embedding. If the model's head is tied to it, mlx-lm "
            "adds this update to the head too, and PEFT does not: leave it out then.",
            stacklevel=4,
        )
