"""Return the ranks with which a library runs a child in its own tree.

Runs on the host: ranks are shapes.
"""

import re
import typing
from typing import Any

from para_jax._adapters.checkpoint import Checkpoint
from para_jax.layouts.tree import placed

if typing.TYPE_CHECKING:
    import qwix


def module_ranks(child: Checkpoint, *, rank: int | None = None) -> dict[str, int]:
    """Return the rank of each module in the tree made by `para_jax.to_tree`.

    Use them with libraries that make a module with its rank (`nnx.LoRA(rank=...)`, a
    gemma interceptor by path). If the library has an alpha, set it to the rank.

    Example:
      >>> x = adapters["up"]
      >>> parent = para_jax.from_tree({"mlp": {"lora_a": x.a, "lora_b": x.b}})
      >>> child = para_jax.compress(parent, para_jax.Gamma(0.5))
      >>> para_jax.layouts.module_ranks(child)
      {'mlp': 2}

    Args:
      child: The checkpoint to put back.
      rank: As for `para_jax.to_tree`.

    Raises:
      ValueError: as `para_jax.to_tree`.
    """
    return {pair.module: adapter.rank for pair, adapter in placed(child, rank)}


def qwix_rules(
    child: Checkpoint, *, rank: int | None = None, **options: Any
) -> "list[qwix.LoraRule]":
    """Return qwix's rules for a child, each module at its own rank.

    Each module has one rule for its exact path, with `alpha` equal to the rank, since
    the factors of a child hold its scale. With one rule for all modules, an einsum
    would silently use the wrong scale.

    Example:
      >>> import qwix
      >>> x = adapters["up"]
      >>> params = {"mlp": {"kernel_lora_a": x.a, "kernel_lora_b": x.b}}
      >>> parent = para_jax.from_tree(params, layout="qwix", alpha=16)
      >>> child = para_jax.compress(parent, para_jax.Gamma(0.5))
      >>> rules = para_jax.layouts.qwix_rules(child)
      >>> [(x.module_path, x.rank, x.alpha) for x in rules]
      [('mlp', 2, 2)]
      >>> provider = qwix.LoraProvider(rules)  # For qwix.apply_lora_to_model.

    Args:
      child: A checkpoint that `para_jax.compress` made from a tree of qwix, tunix or
        MaxText.
      rank: As for `para_jax.to_tree`.
      **options: Other fields of `qwix.LoraRule`, such as `dropout` or `weight_qtype`.
    """
    import qwix

    # qwix reads `module_path` as a regular expression.
    return [
        qwix.LoraRule(module_path=re.escape(path), rank=r, alpha=r, **options)
        for path, r in module_ranks(child, rank=rank).items()
    ]
