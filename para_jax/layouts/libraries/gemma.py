"""gemma (`gm.nn.LoRA`, `gemma.peft`): `lora/{a,b}` below the adapted module.

`a [inputs.., r]` and `b [r, outputs..]` for Dense, DenseGeneral and Einsum; no alpha.
Where the base parameter is not a module's own, the library puts a wrapper between:
`_LoRAEinsum_0` below an Einsum, `_LoRAEinsum_<name>` for a bare parameter. One LoRA
serves keys and values (`kv_einsum`) or gate and up (`gating_einsum`): its parts are
adapters by themselves here, and are joined again on putting back.

`gm.nn.LoRA(rank=k)` knows one rank: it runs `para_jax.to_tree(child, rank=k)`. Each
module at its own is for `peft.ModuleInterceptor`, with the ranks that `module_ranks`
gives: by the module's path, or by that of the wrapper, below an Einsum.

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
    return module[:-1] if match["name"].isdigit() else (*module[:-1], match["name"])


def _kernels(half: Half) -> list[Key]:
    path = _path(half.module)
    return [(*path, "kernel"), (*path, "w"), path]


LAYOUT = Layout(
    name="gemma",
    half=_half,
    kernels=_kernels,
    path=_path,
    parts=tunix.parts,
)
