"""Read trees of flax.nnx: `LoRA` around a module, `LoRALinear`, and their composites.

`lora_a [in, r]` and `lora_b [r, out]` of a module, `y = base(x) + x @ a @ b`: no alpha.
The base kernel is in `base_module`, or beside the `lora` of a `LoRALinear`.

Source: flax/nnx/nn/lora.py.
"""

from para_jax.layouts.layout import Half, Layout
from para_jax.layouts.pairs import Key


def _half(key: Key) -> Half | None:
    sides = {"lora_a": "a", "lora_b": "b"}
    return Half(key[:-1], "", sides[key[-1]]) if key[-1] in sides else None


def _kernels(half: Half) -> list[Key]:
    return [(*half.module, "base_module", "kernel"), (*half.module[:-1], "kernel")]


def _path(module: Key) -> Key:
    # `LoRALinear` is a `Linear` with its LoRA in the attribute `lora`.
    return module[:-1] if module[-1:] == ("lora",) else module


LAYOUT = Layout(name="nnx", half=_half, kernels=_kernels, path=_path, flat=True)
