"""Modules that an engine reads only beside others, added as zeros or refused.

Runs on the host.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from para_jax._adapters.adapter import ordered
from para_jax._adapters.checkpoint import Checkpoint
from para_jax._engines import profiles
from para_jax._engines.profiles import Shape


def check_layers(shapes: Mapping[str, Shape], config: Mapping[str, Any]) -> None:
    """Raise ValueError for a type of module that some layers lack."""
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


# Projections that such an engine computes together, with factors for each.
_FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
# These pairs have equal shapes in every model, so one tells the shape of the other.
_ALIKE = {
    "k_proj": "v_proj",
    "v_proj": "k_proj",
    "gate_proj": "up_proj",
    "up_proj": "gate_proj",
}


def siblings(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Return the shapes of modules missing from a fusion such as q, k and v."""
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
                        f"it reads '{path}' only beside '{beside}', which no layer of "
                        f"this adapter has. Adapt {', '.join(group)} together, or use "
                        "an engine that reads each by itself, such as vllm."
                    )
                result[beside] = shapes.get(like) or types[kind]
    return result


# The parameters of fused experts in transformers 5.
_PARAMETERS = ("gate_up_proj", "down_proj")


def parameters(flat: Checkpoint, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Return the shapes of the parameters missing beside others of fused experts.

    vLLM looks the pair up by PEFT's keys, `experts.base_layer` and `experts`, and
    stops if one is not there.

    Args:
      flat: A result of `profiles.flatten`.
      shapes: The shapes of all kernels to write.

    Raises:
      ValueError: if a missing parameter was none of the adapter's modules.
    """
    held: dict[str, set[str]] = {}
    for path in shapes:
        if profiles.is_expert(flat, path):
            owner, _, name = profiles.module(flat, path).rpartition("/")
            held.setdefault(owner, set()).add(name)
    result: dict[str, Shape] = {}
    for owner in ordered(held):
        _check_parameters(owner, held[owner])
        for name in set(_PARAMETERS) - held[owner]:
            stack = f"{owner}/{name}/"
            # Rank 1 is the smallest that a file can hold; its factors are zeros.
            other = {
                p: (m, 1, n) for p, (m, n) in flat.absent.items() if p.startswith(stack)
            }
            if not other:
                raise ValueError(
                    f"'{owner}' has factors for {sorted(held[owner])} alone, and it "
                    f"loads {list(_PARAMETERS)} only together. List both in "
                    "target_parameters when training."
                )
            result |= other
    return result


def _check_parameters(owner: str, found: set[str]) -> None:
    if other := sorted(found - set(_PARAMETERS)):
        raise ValueError(
            f"'{owner}/{other[0]}' is a parameter that it does not load: expected "
            f"{list(_PARAMETERS)}."
        )
