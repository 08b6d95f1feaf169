"""Gemma 3's text model in Linen, with the module names of Hugging Face transformers.

`model.layers.3.self_attn.q_proj.weight` is slice 3 of the kernels at
`model/layers/self_attn/q_proj`; its adapter in the collection `lora` lies there too, or
at `model/layers/3/self_attn/q_proj` (see `train.models.layers`).
Gemma Team, "Gemma 3 Technical Report", 2025.

Axis letters: `L` layers, `B` sequences, `T` tokens, `d` model width, `h` heads, `g`
heads of keys and values, `e` their width, `V` vocabulary. Traceable under `jit`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Int

from train.models import rope
from train.models.decoder import (
    ADAPTED as ADAPTED,
    MLP,
    STACK as STACK,
    Attention,
    Causal,
    Decoder,
    Kind,
    Layer,
    State,
)
from train.models.gemma3_config import (
    GEMMA3_4B as GEMMA3_4B,
    Config as Config,
    read_config as read_config,
)
from train.models.gemma3_weights import leaves as leaves, load as load


class Block(Layer):
    """One layer, with norms before and after both halves."""

    @nn.compact
    def __call__(
        self, state: State, kind: Kind, positions: Int[jax.Array, "#B T"]
    ) -> State:
        c, x = self.config, state.x
        fields = (c, self.dtype, self.implementation)
        attend = Attention(
            *fields,
            scale=c.query_pre_attn_scalar**-0.5,
            window=c.sliding_window,
            softcap=c.attn_logit_softcapping,
            normed=True,
            name="self_attn",
        )
        normal = State(self.norm("input_layernorm")(x), state.cache)
        y, cache = attend(normal, kind, positions)
        x = x + self.norm("post_attention_layernorm")(y)
        y = self.norm("pre_feedforward_layernorm")(x)
        # `jax.nn.gelu` is its approximation by tanh.
        y = MLP(*fields, activation=jax.nn.gelu, name="mlp")(y)
        return State(x + self.norm("post_feedforward_layernorm")(y), cache)


class Gemma3(Causal):
    """Gemma 3 as a causal language model.

    Attributes:
      config: The model's shape.
      dtype: As for `Causal`, like the others.
      implementation: Likewise.
      remat: Likewise.
    """

    config: Config

    def setup(self) -> None:
        c = self.config
        # cuDNN's kernel has no cap on scores.
        capped = c.attn_logit_softcapping is not None
        self.model = Decoder(
            c,
            self.dtype,
            "xla" if capped else self.implementation,
            self.remat,
            block=Block,
            scale=float(np.sqrt(c.hidden_size)),
        )

    def kinds(self) -> Kind:
        """Return the constants of the layers, of which most are sliding."""
        c = self.config
        whole = rope.frequencies(c.head_dim, c.rope_theta, factor=c.rope_factor)
        local = rope.frequencies(c.head_dim, c.rope_local_base_freq)
        numbers = np.arange(c.num_hidden_layers, dtype=np.int32)
        sliding = ~np.isin(numbers, c.global_layers)
        # Both kinds' angles in one array, so that a scan can run over the layers.
        angles = np.where(sliding[:, None], local[None], whole[None])
        return Kind(jnp.asarray(numbers), jnp.asarray(sliding), jnp.asarray(angles))

    @property
    def softcap(self) -> float | None:
        """The bound of the logits, if they have one."""
        return self.config.final_logit_softcapping
