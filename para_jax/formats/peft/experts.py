"""PEFT's LoRA on bare parameters (`target_parameters`): fused experts.

A parameter of `E` experts gets one pair of factors: `lora_A [E * r, in]`, where the
expert is the slower index of the rows, and `lora_B [out, r * E]`, where it is the
faster one of the columns (`ParamWrapper.get_delta_weight`, PEFT 0.21). `in` and `out`
are PEFT's reading of the parameter. Where a model stores its experts in an order
unknown to PEFT (Llama 4), they are swapped, and so are our `m` and `n`.

Our path is the module's, then the parameter's name. PEFT's keys have the module alone:
each further parameter wraps the module once more, so the first lies in `base_layer`.
Runs on the host.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from para_jax._adapters.adapter import Adapter
from para_jax.formats.peft import config as peft_config
from para_jax.formats.peft.tensors import Module

# PEFT wraps the parameters in the order of their definition, which no file records.
# All models of transformers 5.23 with fused experts have this order.
_ORDER = ("gate_proj", "gate_up_proj", "up_proj", "down_proj")
_INNER = ".base_layer"


def by_parameter(
    modules: Mapping[str, Module], config: peft_config.Config
) -> dict[str, Module]:
    """Rename the wrappers of parameters in `modules` to the parameters.

    Raises:
      ValueError: if it cannot be told which parameter a wrapper is of.
    """
    result: dict[str, Module] = {}
    wrapped: dict[str, int] = {}
    for name, found in modules.items():
        owner = _unwrapped(name)
        if peft_config.parameters(config, owner):
            wrapped[owner] = wrapped.get(owner, 0) + 1
        else:
            result[name] = found
    for owner, count in wrapped.items():
        names = _in_order(owner, peft_config.parameters(config, owner), count)
        for name, wrapper in wrappers([f"{owner}.{x}" for x in names]).items():
            if wrapper not in modules:
                raise ValueError(f"'{owner}' has no tensors for '{wrapper}'.")
            result[name] = dataclasses.replace(modules[wrapper], parameter=True)
    return result


def wrappers(parameters: Sequence[str]) -> dict[str, str]:
    """Return the name of each parameter's wrapper: PEFT's key.

    Args:
      parameters: All targeted parameters, `module.parameter`.

    Raises:
      ValueError: if the order in which a module defines its parameters is not known.
    """
    owners: dict[str, list[str]] = {}
    for name in parameters:
        owner, _, parameter = name.rpartition(".")
        owners.setdefault(owner, []).append(parameter)
    return {
        f"{owner}.{name}": owner + _INNER * depth
        for owner, names in owners.items()
        for depth, name in enumerate(reversed(_in_order(owner, names, len(names))))
    }


def _in_order(owner: str, names: Sequence[str], count: int) -> list[str]:
    """Sort the parameters of one module from the innermost wrapper outwards."""
    if len(names) != count:
        raise ValueError(
            f"'{owner}' has {count} pairs of factors, but target_parameters names the "
            f"parameters {sorted(names)} of it. Write the full names there."
        )
    if count > 1 and not set(names) <= set(_ORDER):
        raise ValueError(
            f"'{owner}' has several targeted parameters {sorted(names)}, and PEFT's "
            f"files do not tell them apart: only {list(_ORDER)} are known."
        )
    return sorted(names, key=lambda x: _ORDER.index(x) if count > 1 else 0)


def _unwrapped(name: str) -> str:
    while name.endswith(_INNER):
        name = name.removesuffix(_INNER)
    return name


def pair(name: str, module: Module, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Return A and B of a parameter; check them against each other and the rank."""
    a, b = module.a, module.b
    if a is None or b is None:
        there, missing = ("A", "B") if b is None else ("B", "A")
        raise ValueError(f"'{name}' has lora_{there} but no lora_{missing}.")
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or a.shape[0] % rank:
        raise ValueError(
            f"'{name}': A {list(a.shape)} and B {list(b.shape)} are not factors of "
            f"rank {rank} for each expert."
        )
    if a.dtype != b.dtype:
        raise ValueError(
            f"'{name}': A is {a.dtype} and B {b.dtype}: expected one dtype."
        )
    return a, b


def from_torch(a: np.ndarray, b: np.ndarray, rank: int, scale: float) -> Adapter:
    """Convert PEFT's factors to a stack of all experts; the inverse of `to_torch`."""
    experts = a.shape[0] // rank
    return Adapter(
        a=a.reshape(experts, rank, -1).swapaxes(1, 2),
        b=b.reshape(-1, rank, experts).transpose(2, 1, 0),
        scale=scale,
    )


def to_torch(adapter: Adapter) -> tuple[Any, Any]:
    """Convert a stack `[E]` of adapters to PEFT's factors."""
    a, b = np.asarray(adapter.a), np.asarray(adapter.b)
    a = a.swapaxes(1, 2).reshape(-1, adapter.inputs)
    return a, b.transpose(2, 1, 0).reshape(adapter.outputs, -1)
