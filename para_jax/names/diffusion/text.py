"""List the text encoders of image models, by the names of transformers.

The authors' names and those of diffusers are the same, since all trainers use the
classes of transformers.
"""

from para_jax.names.diffusion.family import Family, Module

_CLIP = (
    *(f"self_attn.{x}_proj" for x in ("q", "k", "v", "out")),
    "mlp.fc1",
    "mlp.fc2",
)
# `wi` is the input projection of T5 1.0; `wi_0` and `wi_1` are the gated ones of 1.1.
_T5 = (
    *(f"0.SelfAttention.{x}" for x in "qkvo"),
    *(f"1.DenseReluDense.{x}" for x in ("wi", "wi_0", "wi_1", "wo")),
)


def _alike(*names: str) -> tuple[Module, ...]:
    return tuple(Module(x, (x,)) for x in names)


CLIP = Family(
    name="CLIP's text encoder",
    component="",
    modules=_alike(
        *(f"text_model.encoder.layers.{{}}.{x}" for x in _CLIP), "text_projection"
    ),
)
T5 = Family(
    name="T5's encoder",
    component="",
    modules=_alike(*(f"encoder.block.{{}}.layer.{x}" for x in _T5)),
)


def in_full(name: str) -> str:
    """Add the level `text_model`, which transformers 5 drops from CLIP's names."""
    return f"text_model.{name}" if name.startswith("encoder.layers.") else name
