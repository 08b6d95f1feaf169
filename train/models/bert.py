"""BERT in Linen, with the module names of Hugging Face transformers.

A tensor's name is its path: `bert.encoder.layer.0.attention.self.query.weight` is the
kernel at `bert/encoder/layer/0/attention/self/query`, and a PEFT adapter of that module
lies under the same path in the collection `lora`.

J. Devlin, M.-W. Chang, K. Lee, K. Toutanova, "BERT: Pre-training of Deep Bidirectional
Transformers for Language Understanding", NAACL 2019.

Axis letters: `B` sentences, `T` tokens, `d` model width, `h`
heads, `e` their width, `c` classes. Traceable under `jit`.
"""

import dataclasses
import json
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Bool, Float, Int

from para_jax.flax.linen import Dense
from train.models.adapted import Adapted

ADAPTED = (
    "attention/self/query",
    "attention/self/key",
    "attention/self/value",
    "attention/output/dense",
    "intermediate/dense",
    "output/dense",
)
"""The adapted modules of a block: all its linear layers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """What all encoders with BERT's blocks have in their `config.json`."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    layer_norm_eps: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Shape):
    """The shape of a BERT encoder, under the names of its `config.json`."""

    type_vocab_size: int


def read_config(folder: pathlib.Path) -> Config:
    """Read the configuration in a model folder of transformers.

    Raises:
      ValueError: if the model is of another architecture than the one written here.
    """
    values = json.loads((folder / "config.json").read_text())
    expected = {
        "model_type": "bert",
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
    }
    for key, value in expected.items():
        if values.get(key, value) != value:
            raise ValueError(
                f"{folder / 'config.json'}: {key} is '{values[key]}', expected "
                f"'{value}'. Only this form of BERT is implemented."
            )
    return Config(**{f.name: values[f.name] for f in dataclasses.fields(Config)})


class Tokens(NamedTuple):
    """A batch of tokenized sentences."""

    ids: Int[jax.Array | np.ndarray, "B T"]
    mask: Bool[jax.Array | np.ndarray, "B T"]  # False where a sentence is padded.


class Embeddings(nn.Module):
    """The sum of word, position and token type embeddings, normalised."""

    config: Config

    @nn.compact
    def __call__(self, ids: Int[jax.Array, "B T"]) -> Float[jax.Array, "B T d"]:
        c, d = self.config, self.config.hidden_size
        words = nn.Embed(c.vocab_size, d, name="word_embeddings")(ids)
        positions = nn.Embed(c.max_position_embeddings, d, name="position_embeddings")
        types = nn.Embed(c.type_vocab_size, d, name="token_type_embeddings")
        # One sentence an input: every token is of type 0.
        x = (
            words
            + positions(jnp.arange(ids.shape[1])[None])
            + types(jnp.zeros_like(ids))
        )
        return nn.LayerNorm(c.layer_norm_eps, name="LayerNorm")(x)


def attend(
    q: Float[jax.Array, "B T d"],
    k: Float[jax.Array, "B T d"],
    v: Float[jax.Array, "B T d"],
    mask: Bool[jax.Array, "B T"],
    *,
    heads: int,
    bias: Float[jax.Array, "h T T"] | None = None,
) -> Float[jax.Array, "B T d"]:
    """Attend with several heads to the tokens that are there.

    Args:
      q: The queries of all heads, side by side.
      k: The keys.
      v: The values.
      mask: Whether there is a token, or padding.
      heads: The number of heads `h`.
      bias: The terms to add to the scaled products, of each pair of places.
    """
    q, k, v = (x.reshape(*x.shape[:-1], heads, -1) for x in (q, k, v))
    scores = jnp.einsum("bthd,bshd->bhts", q, k) / np.sqrt(q.shape[-1])
    if bias is not None:
        scores += bias[None]
    # A finite minimum: a row of padding alone would be NaN with -inf.
    scores = jnp.where(mask[:, None, None, :], scores, jnp.finfo(scores.dtype).min)
    # In float32 at least: in bfloat16, many weights of a long sentence are lost.
    wide = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    weights = jax.nn.softmax(wide, axis=-1).astype(v.dtype)
    y = jnp.einsum("bhts,bshd->bthd", weights, v)
    return y.reshape(*y.shape[:2], -1)


class SelfAttention(nn.Module):
    """Attention with several heads, without the output projection."""

    config: Shape

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "B T d"], mask: Bool[jax.Array, "B T"]
    ) -> Float[jax.Array, "B T d"]:
        q, k, v = (
            Dense(self.config.hidden_size, name=name)(x)
            for name in ("query", "key", "value")
        )
        return attend(q, k, v, mask, heads=self.config.num_attention_heads)


class Output(nn.Module):
    """A projection to the model's width, added to the residual and normalised."""

    config: Shape

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "B T m"], residual: Float[jax.Array, "B T d"]
    ) -> Float[jax.Array, "B T d"]:
        y = Dense(self.config.hidden_size, name="dense")(x)
        return nn.LayerNorm(self.config.layer_norm_eps, name="LayerNorm")(y + residual)


class Attention(nn.Module):
    """The attention half of a block."""

    config: Shape

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "B T d"], mask: Bool[jax.Array, "B T"]
    ) -> Float[jax.Array, "B T d"]:
        y = SelfAttention(self.config, name="self")(x, mask)
        return Output(self.config, name="output")(y, x)


class Intermediate(nn.Module):
    """The wide half of the feed-forward network, with the exact GELU."""

    config: Shape

    @nn.compact
    def __call__(self, x: Float[jax.Array, "B T d"]) -> Float[jax.Array, "B T m"]:
        y = Dense(self.config.intermediate_size, name="dense")(x)
        # BERT's GELU is exact, unlike the tanh form of later models.
        return jax.nn.gelu(y, approximate=False)


class Block(nn.Module):
    """One transformer block, normalised after each residual (post-LN)."""

    config: Shape

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "B T d"], mask: Bool[jax.Array, "B T"]
    ) -> Float[jax.Array, "B T d"]:
        x = Attention(self.config, name="attention")(x, mask)
        y = Intermediate(self.config, name="intermediate")(x)
        return Output(self.config, name="output")(y, x)


class Layers(nn.Module):
    """The blocks, named by their number, as in `layer/0`."""

    config: Config

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "B T d"], mask: Bool[jax.Array, "B T"]
    ) -> Float[jax.Array, "B T d"]:
        for index in range(self.config.num_hidden_layers):
            x = Block(self.config, name=str(index))(x, mask)
        return x


class Encoder(nn.Module):
    """The scope of transformers around the blocks."""

    config: Config

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "B T d"], mask: Bool[jax.Array, "B T"]
    ) -> Float[jax.Array, "B T d"]:
        return Layers(self.config, name="layer")(x, mask)


class Pooler(nn.Module):
    """A dense layer with tanh on the first token, [CLS]."""

    config: Config

    @nn.compact
    def __call__(self, x: Float[jax.Array, "B T d"]) -> Float[jax.Array, "B d"]:
        # The first token is [CLS].
        return jnp.tanh(Dense(self.config.hidden_size, name="dense")(x[:, 0]))


class Bert(nn.Module):
    """The encoder and its pooled output."""

    config: Config

    @nn.compact
    def __call__(self, tokens: Tokens) -> Float[jax.Array, "B d"]:
        ids, mask = map(jnp.asarray, tokens)
        x = Embeddings(self.config, name="embeddings")(ids)
        x = Encoder(self.config, name="encoder")(x, mask)
        return Pooler(self.config, name="pooler")(x)


class BertClassifier(nn.Module):
    """BERT with a linear classifier on the pooled output.

    Attributes:
      config: The encoder's shape.
      classes: The number of classes `c`.
    """

    config: Config
    classes: int

    @property
    def adapted(self) -> Adapted:
        """All linear layers of the blocks."""
        return Adapted(blocks="bert/encoder/layer", modules=ADAPTED)

    @nn.compact
    def __call__(self, tokens: Tokens) -> Float[jax.Array, "B c"]:
        x = Bert(self.config, name="bert")(tokens)
        return Dense(self.classes, name="classifier")(x)
