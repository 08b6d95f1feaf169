"""The parts that causal decoders share: Gemma 3's and Llama's.

Module names are those of Hugging Face transformers. The blocks differ in their norms
and in constants, which are fields here.

Axis letters: `L` layers, `B` sequences, `T` tokens, `d` model width, `h` heads, `g`
heads of keys and values, `e` their width, `V` vocabulary. Traceable under `jit`.
"""

import abc
import functools
from collections.abc import Callable, Mapping
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
from train.models.rms_norm import RMSNorm
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


class Layer(nn.Module):
    """The base class of a layer's modules.

    Attributes:
      config: The model's shape, with the names of transformers.
      dtype: The dtype of activations, and of weights in products.
      implementation: Attention's, of whole sequences.
    """

    config: Any
    dtype: DTypeLike = jnp.float32
    implementation: attention.Implementation = "xla"

    def norm(self, name: str) -> RMSNorm:
        c = self.config
        return RMSNorm(c.rms_norm_eps, c.norm_offset, name=name)

    def project(self, size: int, name: str, x: jax.Array) -> jax.Array:
        y = Dense(size, use_bias=False, dtype=self.dtype, name=name)(x)
        # Named, so that `remat="named"` keeps products and recomputes the rest.
        return checkpoint_name(y, layers.SAVED)


class Attention(Layer):
    """Grouped-query attention with rotated queries and keys.

    Attributes:
      scale: The scale of the products.
      window: The number of positions that a sliding layer sees.
      softcap: The bound of the products, or None.
      normed: Whether queries and keys are normalised before.
    """

    scale: float = 1.0
    window: int = np.iinfo(np.int32).max
    softcap: float | None = None
    normed: bool = False

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
        if self.normed:
            q, k = self.norm("q_norm")(q), self.norm("k_norm")(k)
        q, k = (rope.rotate(y, positions, kind.angles) for y in (q, k))
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
        span: Any = {"sliding": kind.sliding, "window": self.window}
        # The cuDNN kernel takes whole sequences only, not a cache.
        if cache is None and self.implementation == "cudnn":
            return attention.flash(q, k, v, scale=self.scale, **span), None
        if cache is not None:
            # Rotated keys are cached: their positions never change.
            cache = attention.write(cache, kind.number, positions, k, v)
            k, v = cache.k[kind.number], cache.v[kind.number]
        mask = attention.visible(positions, k.shape[1], **span)
        y = attention.masked(q, k, v, mask, scale=self.scale, softcap=self.softcap)
        return y, cache


class MLP(Layer):
    """The gated feed-forward network.

    Attributes:
      activation: The gate's.
    """

    activation: Callable[[jax.Array], jax.Array] = jax.nn.silu

    @nn.compact
    def __call__(self, x: Float[jax.Array, "B T d"]) -> Float[jax.Array, "B T d"]:
        gate = self.project(self.config.intermediate_size, "gate_proj", x)
        up = self.project(self.config.intermediate_size, "up_proj", x)
        # In float32, as PyTorch computes it on any input.
        y = self.activation(gate.astype(jnp.float32)).astype(gate.dtype) * up
        return self.project(self.config.hidden_size, "down_proj", y)


class Decoder(Layer):
    """The embeddings, the layers and the last norm.

    Attributes:
      remat: The values to recompute in a backward pass, see `layers.Layers`.
      block: The class of the layers.
      scale: The factor of the embeddings.
    """

    remat: layers.Remat = "none"
    block: type[Layer] = Layer
    scale: float = 1.0

    @nn.compact
    def __call__(
        self,
        ids: Int[jax.Array, "B T"],
        positions: Int[jax.Array, "#B T"],
        cache: Cache | None,
        kinds: Kind,
    ) -> State:
        c = self.config
        fields = (c, self.dtype, self.implementation)
        embed = nn.Embed(
            c.vocab_size, c.hidden_size, dtype=self.dtype, name="embed_tokens"
        )
        # In the dtype of the embeddings: in bfloat16, the root of 2560 is 50.5.
        x = embed(ids) * jnp.asarray(self.scale, self.dtype)
        blocks = layers.Layers(
            functools.partial(self.block, *fields),
            c.num_hidden_layers,
            self.remat,
            name="layers",
        )
        state = blocks(State(x, cache), kinds, positions)
        return State(self.norm("norm")(state.x), state.cache)


class Causal(nn.Module):
    """The base class of causal language models; each defines `setup` and `kinds`.

    Attributes:
      config: The model's shape.
      dtype: The dtype of activations, and of weights in products. Norms, rotations,
        softmax and logits are computed in float32.
      implementation: Attention's: `cudnn` for training on an Nvidia GPU in 16 bits.
        With a cache, and where products are capped, it is always `xla`.
      remat: The values to recompute in a backward pass, see `layers.Layers`.
    """

    config: Any
    dtype: DTypeLike = jnp.float32
    implementation: attention.Implementation = "xla"
    remat: layers.Remat = "none"

    @property
    def adapted(self) -> Adapted:
        """All projections of the layers, stacked."""
        count = self.config.num_hidden_layers
        return Adapted(blocks=STACK, modules=ADAPTED, stack=count)

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
        return self.model(jnp.asarray(ids), positions, cache, self.kinds())

    @abc.abstractmethod
    def kinds(self) -> Kind:
        """Return the constants of the layers."""

    @property
    def softcap(self) -> float | None:
        """The bound of the logits `c tanh(x / c)`, if they have one."""
        return None

    @nn.nowrap
    def head(self, params: Mapping[str, Any]) -> Float[Array, "V d"]:
        """Return the table that logits are products with: that of the embeddings."""
        return params["model"]["embed_tokens"]["embedding"]

    def logits(self, x: Float[jax.Array, "*B d"]) -> Float[jax.Array, "*B V"]:
        """Return the logits of the hidden states, float32."""
        head = self.head(self.variables["params"]).T.astype(x.dtype)
        y = jnp.matmul(x, head, preferred_element_type=jnp.float32)
        cap = self.softcap
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
