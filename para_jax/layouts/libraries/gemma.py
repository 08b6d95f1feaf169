"""Read trees of gemma (`gm.nn.LoRA`, `gemma.peft`): `lora/{a,b}` below a module.

`a [inputs.., r]` and `b [r, outputs..]` for Dense, DenseGeneral and Einsum; no alpha.
If the base parameter is not a module's own, the library puts a wrapper between:
`_LoRAEinsum_0` below an Einsum, `_LoRAEinsum_<name>` for a bare parameter. One LoRA
serves keys and values (`kv_einsum`) or gate and up (`gating_einsum`): each part is an
adapter of its own here, and `to_tree` joins the parts again.

`gm.nn.LoRA(rank=k)` has one rank for all modules: it runs
`para_jax.to_tree(child, rank=k)`. To run each module at its own rank, use
`peft.ModuleInterceptor` with the ranks from `module_ranks`, by the path of the module
or, below an Einsum, of its wrapper.

Source: gemma/peft/_lora.py, gemma/peft/_einsum_utils.py, gemma/gm/nn/_lora.py.
"""

import re

from para_jax.layouts.layout import Half, Layout
from para_jax.layouts.libraries import tunix
from para_jax.layouts.pairs import Key

_WRAPPER = re.compile(r"_LoRAEinsum_(?P<name>\w+)$")


def _half(key: Key) -> Half | None:
    found = len(key) > 2 and key[-2] == "lora" and key[-1] in ("a", "b")
    return Half(key[:-2], "", key[-1]) if found else None


def _path(module: Key) -> Key:
    match = _WRAPPER.match(module[-1]) if module else None
    if match is None:
        return module
    # Flax numbers the wrapper of an Einsum; the library names that of a parameter.
    return module[:-1] if match["name"].isdigit() else (*module[:-1], match["name"])


def _kernels(half: Half) -> list[Key]:
    path = _path(half.module)
    # Dense names its weight `kernel`, Einsum `w`; a bare parameter has no level below.
    return [(*path, "kernel"), (*path, "w"), path]


LAYOUT = Layout(
    name="gemma",
    half=_half,
    kernels=_kernels,
    path=_path,
    parts=tunix.parts,
)
