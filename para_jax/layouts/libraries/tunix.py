"""Read trees of tunix: qwix on its own NNX models, their fused projections named.

Checkpoints are `<step>/model_params`, with an extra level `value` and layers numbered
by strings. A `kv_einsum` of `[2, K, D, H]` holds keys and values; each is an adapter of
its own (`/k`, `/v`), as in tunix's own export to its servers.

Source: tunix/models/*/model.py, tunix/models/gemma3/params.py.
"""

import re
from collections.abc import Sequence

from para_jax._adapters.messages import Argument, Message
from para_jax.layouts.layout import Layout
from para_jax.layouts.libraries import qwix

FUSED = {
    "kv_einsum": ("k", "v"),
    "qkv_einsum": ("q", "k", "v"),
    "gating_einsum": ("gate", "up"),
}
_MODULE = re.compile(r"layers/\d+/(attn|mlp)/\w+$")


def parts(path: str) -> tuple[str, ...]:
    """Return the names of the projections in a fused one; none if not fused."""
    return FUSED.get(path.rpartition("/")[2], ())


def _known(paths: Sequence[str]) -> bool:
    # One path is enough: a run may also adapt modules outside of the layers.
    return any(_MODULE.match(path) for path in paths)


LAYOUT = Layout(
    name="tunix",
    half=qwix.half,
    kernels=qwix.kernels,
    alpha=Message(
        Argument("alpha"), ": alpha of lora_config, or of the qwix.LoraProvider"
    ),
    parts=parts,
    known=_known,
    refines="qwix",
)
