"""Llama in Linen, with the module names of Hugging Face transformers.

SmolLM2, TinyLlama and others have its form. Params and adapters lie as those of
`train.models.gemma3` do; a head that is not the table of embeddings is at `lm_head`.
H. Touvron et al., "Llama 2: Open Foundation and Fine-Tuned Chat Models", 2023.

Axis letters: `L` layers, `B` sequences, `T` tokens, `d` model width, `V` vocabulary.
Traceable under `jit`.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Float, Int

from para_jax import Array
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
from train.models.llama_config import Config as Config, read_config as read_config
from train.models.llama_weights import leaves as leaves, load as load


class Block(Layer):
    """One layer, with a norm before each half."""

    @nn.compact
    def __call__(
        self, state: State, kind: Kind, positions: Int[jax.Array, "#B T"]
    ) -> State:
        c, x = self.config, state.x
        fields = (c, self.dtype, self.implementation)
        attend = Attention(*fields, scale=c.head_dim**-0.5, name="self_attn")
        normal = State(self.norm("input_layernorm")(x), state.cache)
        y, cache = attend(normal, kind, positions)
        x = x + y
        y = self.norm("post_attention_layernorm")(x)
        return State(x + MLP(*fields, name="mlp")(y), cache)


class Head(nn.Module):
    """The product with a head of its own, in float32.

    Attributes:
      size: The number of tokens `V`.
    """

    size: int

    @nn.compact
    def __call__(self, x: Float[jax.Array, "*B d"]) -> Float[jax.Array, "*B V"]:
        shape = (x.shape[-1], self.size)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        y = kernel.astype(x.dtype)
        return jnp.matmul(x, y, preferred_element_type=jnp.float32)


class Llama(Causal):
    """Llama as a causal language model.

    Attributes:
      config: The model's shape.
      dtype: As for `Causal`, like the others.
      implementation: Likewise.
      remat: Likewise.
    """

    config: Config

    def setup(self) -> None:
        c = self.config
        self.model = Decoder(
            c, self.dtype, self.implementation, self.remat, block=Block
        )
        if not c.tie_word_embeddings:
            self.lm_head = Head(c.vocab_size)

    def kinds(self) -> Kind:
        """Return the constants of the layers, the same for all but their numbers."""
        c = self.config
        if c.rope_bounds is None:
            angles = rope.frequencies(c.head_dim, c.rope_theta, factor=c.rope_factor)
        else:
            angles = rope.frequencies(c.head_dim, c.rope_theta)
            angles = rope.stretched(angles, c.rope_factor, c.rope_bounds)
        numbers = jnp.arange(c.num_hidden_layers, dtype=jnp.int32)
        every = jnp.asarray(np.tile(angles, (len(numbers), 1)))
        return Kind(numbers, jnp.zeros(len(numbers), bool), every)

    def logits(self, x: Float[jax.Array, "*B d"]) -> Float[jax.Array, "*B V"]:
        """Return the logits of the hidden states, float32."""
        tied = self.config.tie_word_embeddings
        return super().logits(x) if tied else self.lm_head(x)

    @nn.nowrap
    def head(self, params: Mapping[str, Any]) -> Float[Array, "V d"]:
        """Return the table that logits are products with, of its own or not."""
        if self.config.tie_word_embeddings:
            return super().head(params)
        return params["lm_head"]["kernel"].T
