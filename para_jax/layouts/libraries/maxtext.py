"""Read trees of MaxText: keys with a dot (its own LoRA), or qwix on its decoder.

Its own form has `lora_a.kernel` and `lora_b.kernel` in the module; the newer form is
qwix's. Both run one rank for all modules. Scanned layers lie on `param_scan_axis`,
1 by default. A checkpoint's `custom_metadata["lora"]` holds rank and alpha.

Source: src/maxtext/utils/lora_utils.py, src/maxtext/common/checkpointing.py.
"""

import re
from collections.abc import Sequence

from para_jax._adapters.messages import Argument, Message
from para_jax.layouts.layout import Half, Layout
from para_jax.layouts.libraries import qwix
from para_jax.layouts.pairs import Key

# Keys and shapes are qwix's: only the names of the decoder identify MaxText, which
# requires one rank of all modules.
_MODULE = re.compile(
    r"(.*/)?decoder/(layers|dense_layers|moe_layers|moe_stack|scanned_blocks)\w*/"
    r"(\w+/)*\w*(attention|mlp|shared_experts|MoeBlock)\w*(/\w+)?$"
)


def _half(key: Key) -> Half | None:
    sides = {"lora_a.kernel": "a", "lora_b.kernel": "b"}
    return Half(key[:-1], "kernel", sides[key[-1]]) if key[-1] in sides else None


def _known(paths: Sequence[str]) -> bool:
    return bool(paths) and all(_MODULE.match(path) for path in paths)


NATIVE = Layout(
    name="maxtext",
    half=_half,
    kernels=qwix.kernels,
    alpha=Message(Argument("alpha"), ": lora_alpha of adapter_config.json"),
    one_rank=True,
)

QWIX = Layout(
    name="maxtext-qwix",
    half=qwix.half,
    kernels=qwix.kernels,
    alpha=Message(Argument("alpha"), ": lora.lora_alpha of the run"),
    one_rank=True,
    known=_known,
    refines="qwix",
)
