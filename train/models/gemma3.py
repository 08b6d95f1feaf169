"""Gemma 3's text model in Linen, with the module names of Hugging Face transformers.

`model.layers.3.self_attn.q_proj.weight` is slice 3 of the kernels at
`model/layers/self_attn/q_proj`; its adapter in the collection `lora` lies there too, or
at `model/layers/3/self_attn/q_proj` (see `train.models.layers`).
Gemma Team, "Gemma 3 Technical Report", 2025.

Axis letters: `L` layers, `B` sequences, `T` tokens, `d` model width, `h` heads, `g`
heads of keys and values, `e` their width, `V` vocabulary. Traceable under `jit`.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from para_jax import Array
from para_jax.flax.linen import Dense
from train.data.batch import Batch
from train.models import attention, layers, loss, rope
from train.models.adapted import Adapted
from train.models.attention import Cache
from train.models.gemma3_config import (
    GEMMA3_4B as GEMMA3_4B,
    Config as Config,
    read_config as read_config,
)
from train.models.gemma3_weights import leaves as leaves, load as load
from train.models.score import Score

STACK = "model/layers"
"""The path of the stacked blocks."""

ADAPTED = (
    "self_attn/q_proj",
    "self_attn/k_proj",
    "self_attn/v_proj",
    "self_attn/o_proj",
    "mlp/gate_proj",
    "mlp/up_proj",
    "mlp/down_proj",
)
"""The adapted modules of a block: all its linear layers."""


class Kind(NamedTuple):
    """Constants of the layers, different for local and global ones: `[L, ...]`."""

    number: Int[jax.Array, "*L"]
    sliding: jax.Array  # Boolean `[L]`: whether it sees the last positions alone.
    angles: Float[jax.Array, "*L half"]  # Of its rotations.


class State(NamedTuple):
    """The values passed from layer to layer."""

    x: jax.Array  # [B, T, d]
    cache: Cache | None


class RMSNorm(nn.Module):
    """`x / rms(x) * (1 + scale)`, in float32, cast back."""

    eps: float

    @nn.compact
    def __call__(self, x: Float[jax.Array, "*B n"]) -> Float[jax.Array, "*B n"]:
        scale = self.param("scale", nn.initializers.zeros, x.shape[-1:])
        wide = x.astype(jnp.float32)
        mean = jnp.square(wide).mean(axis=-1, keepdims=True)
        factor = jnp.expand_dims(1 + scale.astype(jnp.float32), range(x.ndim - 1))
        return (wide * jax.lax.rsqrt(mean + self.eps) * factor).astype(x.dtype)


class Layer(nn.Module):
    """The base class of a layer's modules.

    Attributes:
      config: The model's shape.
      dtype: The dtype of activations, and of weights in products.
      implementation: Attention's, of whole sequences.
    """

    config: Config
    dtype: DTypeLike = jnp.float32
    implementation: attention.Implementation = "xla"

    def norm(self, name: str) -> RMSNorm:
        return RMSNorm(self.config.rms_norm_eps, name=name)

    def project(self, size: int, name: str, x: jax.Array) -> jax.Array:
        y = Dense(size, use_bias=False, dtype=self.dtype, name=name)(x)
        # Named, so that `remat="named"` keeps products and recomputes the rest.
        return checkpoint_name(y, layers.SAVED)


class Attention(Layer):
    """Grouped-query attention with normalised, rotated queries and keys."""

    @nn.compact
    def __call__(
        self, state: State, kind: Kind, positions: Int[jax.Array, "#B T"]
    ) -> State:
        c, x = self.config, state.x

        def heads(count: int, name: str) -> Float[jax.Array, "B T h e"]:
            y = self.project(count * c.head_dim, name, x)
            return y.reshape(*x.shape[:2], count, c.head_dim)

        q, k, v = (
            heads(c.num_attention_heads, "q_proj"),
            heads(c.num_key_value_heads, "k_proj"),
            heads(c.num_key_value_heads, "v_proj"),
        )
        q = rope.rotate(self.norm("q_norm")(q), positions, kind.angles)
        k = rope.rotate(self.norm("k_norm")(k), positions, kind.angles)
        y, cache = self._attend(q, k, v, state.cache, kind, positions)
        y = y.reshape(*x.shape[:2], -1)
        return State(self.project(c.hidden_size, "o_proj", y), cache)

    def _attend(
        self,
        q: Float[jax.Array, "B T h e"],
        k: Float[jax.Array, "B T g e"],
        v: Float[jax.Array, "B T g e"],
        cache: Cache | None,
        kind: Kind,
        positions: Int[jax.Array, "#B T"],
    ) -> tuple[Float[jax.Array, "B T h e"], Cache | None]:
        c = self.config
        scale = c.query_pre_attn_scalar**-0.5
        span: Any = {"sliding": kind.sliding, "window": c.sliding_window}
        # The cuDNN kernel takes whole sequences only, not a cache.
        if cache is None and self.implementation == "cudnn":
            return attention.flash(q, k, v, scale=scale, **span), None
        if cache is not None:
            # Rotated keys are cached: their positions never change.
            cache = attention.write(cache, kind.number, positions, k, v)
            k, v = cache.k[kind.number], cache.v[kind.number]
        mask = attention.visible(positions, k.shape[1], **span)
        cap = c.attn_logit_softcapping
        return attention.masked(q, k, v, mask, scale=scale, softcap=cap), cache


class MLP(Layer):
    """The gated feed-forward network, with the GELU's approximation by tanh."""

    @nn.compact
    def __call__(self, x: Float[jax.Array, "B T d"]) -> Float[jax.Array, "B T d"]:
        gate = self.project(self.config.intermediate_size, "gate_proj", x)
        up = self.project(self.config.intermediate_size, "up_proj", x)
        # In float32, as PyTorch computes it on any input.
        wide = jax.nn.gelu(gate.astype(jnp.float32), approximate=True)
        y = wide.astype(gate.dtype) * up
        return self.project(self.config.hidden_size, "down_proj", y)


class Block(Layer):
    """One layer, with norms before and after both halves."""

    @nn.compact
    def __call__(
        self, state: State, kind: Kind, positions: Int[jax.Array, "#B T"]
    ) -> State:
        fields = (self.config, self.dtype, self.implementation)
        x = state.x
        normal = State(self.norm("input_layernorm")(x), state.cache)
        y, cache = Attention(*fields, name="self_attn")(normal, kind, positions)
        x = x + self.norm("post_attention_layernorm")(y)
        y = self.norm("pre_feedforward_layernorm")(x)
        y = MLP(*fields, name="mlp")(y)
        return State(x + self.norm("post_feedforward_layernorm")(y), cache)


class Decoder(Layer):
    """The embeddings, the layers and the last norm.

    Attributes:
      remat: The values to recompute in a backward pass, see `layers.Layers`.
    """

    remat: layers.Remat = "none"

    @nn.compact
    def __call__(
        self,
        ids: Int[jax.Array, "B T"],
        positions: Int[jax.Array, "#B T"],
        cache: Cache | None,
    ) -> State:
        c = self.config
        fields = (c, self.dtype, self.implementation)
        embed = nn.Embed(
            c.vocab_size, c.hidden_size, dtype=self.dtype, name="embed_tokens"
        )
        # In the dtype of the embeddings: in bfloat16, the root of 2560 is 50.5.
        x = embed(ids) * jnp.asarray(np.sqrt(c.hidden_size), self.dtype)
        blocks = layers.Layers(
            functools.partial(Block, *fields),
            c.num_hidden_layers,
            self.remat,
            name="layers",
        )
        state = blocks(State(x, cache), _kinds(c), positions)
        return State(self.norm("norm")(state.x), state.cache)


class Gemma3(nn.Module):
    """Gemma 3 as a causal language model.

    Attributes:
      config: The model's shape.
      dtype: The dtype of activations, and of weights in products. Norms, rotations,
        softmax and logits are computed in float32.
      implementation: Attention's: `cudnn` for training on an Nvidia GPU in 16 bits.
        With a cache, and where products are capped, it is always `xla`.
      remat: The values to recompute in a backward pass, see `layers.Layers`.
    """

    config: Config
    dtype: DTypeLike = jnp.float32
    implementation: attention.Implementation = "xla"
    remat: layers.Remat = "none"

    @property
    def adapted(self) -> Adapted:
        """All projections of the layers, stacked."""
        count = self.config.num_hidden_layers
        return Adapted(blocks=STACK, modules=ADAPTED, stack=count)

    def setup(self) -> None:
        capped = self.config.attn_logit_softcapping is not None
        # cuDNN's kernel has no cap on scores.
        implementation = "xla" if capped else self.implementation
        self.model = Decoder(self.config, self.dtype, implementation, self.remat)

    def __call__(self, ids: Int[Array, "B T"]) -> Float[jax.Array, "B T V"]:
        """Return the logits, float32.

        Args:
          ids: Sequences from their beginning. What pads them comes after their end.
        """
        return self.logits(self.hidden(ids).x)

    def hidden(
        self,
        ids: Int[Array, "B T"],
        positions: Int[jax.Array, "#B T"] | None = None,
        cache: Cache | None = None,
    ) -> State:
        """Return the last hidden states, and the cache with these tokens.

        Args:
          ids: Tokens.
          positions: The tokens' positions, with a cache; else 0, 1, 2, ...
          cache: The keys and values so far, from `empty_cache` at first.
        """
        if positions is None:
            positions = jnp.arange(ids.shape[1])[None]
        return self.model(jnp.asarray(ids), positions, cache)

    def logits(self, x: Float[jax.Array, "*B d"]) -> Float[jax.Array, "*B V"]:
        """Return the logits of the hidden states, float32."""
        table = self.variables["params"]["model"]["embed_tokens"]["embedding"]
        y = jnp.matmul(x, table.T.astype(x.dtype), preferred_element_type=jnp.float32)
        cap = self.config.final_logit_softcapping
        return y if cap is None else cap * jnp.tanh(y / cap)

    @nn.nowrap
    def score(self, variables: Mapping[str, Any], batch: Batch) -> Score:
        """Return the score of labels `[B, T]`, the next tokens; few logits at a time.

        Args:
          variables: The variables for `apply`.
          batch: Tokens and labels.
        """
        return loss.causal_score(self, variables, batch)

    def empty_cache(self, batch: int, length: int) -> Cache:
        """Return an empty cache for a number of sequences and of tokens."""
        c = self.config
        shape = (batch, length, c.num_key_value_heads, c.head_dim)
        return attention.empty((c.num_hidden_layers, *shape), self.dtype)


def _kinds(c: Config) -> Kind:
    whole = rope.frequencies(c.head_dim, c.rope_theta, factor=c.rope_factor)
    local = rope.frequencies(c.head_dim, c.rope_local_base_freq)
    numbers = np.arange(c.num_hidden_layers, dtype=np.int32)
    sliding = ~np.isin(numbers, c.global_layers)
    # Both kinds' angles in one array, so that a scan can run over the layers.
    angles = np.where(sliding[:, None], local[None], whole[None])
    return Kind(jnp.asarray(numbers), jnp.asarray(sliding), jnp.asarray(angles))
