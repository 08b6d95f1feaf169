"""MPNet in Linen, with the module names of Hugging Face transformers.

RoBERTa's blocks without types of tokens, and with one bias of attention for all layers:
the scaled product of two tokens gets a term of their distance, a number for each head
and range of distances. The blocks are stacked: `mpnet/encoder/layer/attention/attn/q`
is `[L, d, d]`; see `train.models.layers` for their adapters.

K. Song, X. Tan, T. Qin, J. Lu, T.-Y. Liu, "MPNet: Masked and Permuted Pre-training for
Language Understanding", NeurIPS 2020.

Axis letters: `B` sentences, `T` tokens, `d` model width, `h` heads, `c` classes.
Traceable under `jit`, except for reading files.
"""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import jax.typing
import numpy as np
from flax import linen as nn
from jaxtyping import Bool, Float, Int

from para_jax.flax.linen import Dense
from train.models import bert, checkpoint, configuration, mirrored, roberta
from train.models.adapted import Adapted
from train.models.bert import Tokens
from train.models.checkpoint import Leaf
from train.models.layers import Layers, Remat

STACK = "mpnet/encoder/layer"
"""The path of the stacked blocks in an `MPNetClassifier`."""

ADAPTED = (
    "attention/attn/q",
    "attention/attn/k",
    "attention/attn/v",
    "attention/attn/o",
    "intermediate/dense",
    "output/dense",
)
"""The adapted modules of a block: all its linear layers."""

_BUCKETS = 32
# transformers computes with these, whatever the configuration says.
_FORM = {
    "model_type": "mpnet",
    "hidden_act": "gelu",
    "pad_token_id": 1,
    "relative_attention_num_buckets": _BUCKETS,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(roberta.Shape):
    """The shape of an MPNet encoder, under the names of its `config.json`."""


def read_config(folder: pathlib.Path) -> Config:
    """Read the configuration in a model folder of transformers.

    Raises:
      FileNotFoundError: if it has no `config.json`.
      ValueError: if the model is of another architecture than the one written here.
    """
    values = configuration.read(folder)
    return configuration.build(Config, values, folder=folder, form=_FORM)


class Embeddings(nn.Module):
    """The sum of word and position embeddings, normalised."""

    config: Config

    @nn.compact
    def __call__(
        self, ids: Int[jax.Array, "B T"], mask: Bool[jax.Array, "B T"]
    ) -> Float[jax.Array, "B T d"]:
        c, d = self.config, self.config.hidden_size
        words = nn.Embed(c.vocab_size, d, name="word_embeddings")(ids)
        positions = nn.Embed(c.max_position_embeddings, d, name="position_embeddings")
        x = words + positions(roberta.places(c, ids, mask))
        return nn.LayerNorm(c.layer_norm_eps, name="LayerNorm")(x)


class SelfAttention(nn.Module):
    """Attention with several heads, with the output projection."""

    config: Config

    @nn.compact
    def __call__(
        self,
        x: Float[jax.Array, "B T d"],
        mask: Bool[jax.Array, "B T"],
        bias: Float[jax.Array, "h T T"],
    ) -> Float[jax.Array, "B T d"]:
        d, heads = self.config.hidden_size, self.config.num_attention_heads
        q, k, v = (Dense(d, name=name)(x) for name in "qkv")
        y = bert.attend(q, k, v, mask, heads=heads, bias=bias)
        return Dense(d, name="o")(y)


class Attention(nn.Module):
    """The attention half of a block."""

    config: Config

    @nn.compact
    def __call__(
        self,
        x: Float[jax.Array, "B T d"],
        mask: Bool[jax.Array, "B T"],
        bias: Float[jax.Array, "h T T"],
    ) -> Float[jax.Array, "B T d"]:
        y = SelfAttention(self.config, name="attn")(x, mask, bias)
        return nn.LayerNorm(self.config.layer_norm_eps, name="LayerNorm")(y + x)


class Block(nn.Module):
    """One transformer block, with the signature for `Layers`."""

    config: Config

    @nn.compact
    def __call__(
        self,
        x: Float[jax.Array, "B T d"],
        _: None,
        mask: Bool[jax.Array, "B T"],
        bias: Float[jax.Array, "h T T"],
    ) -> Float[jax.Array, "B T d"]:
        x = Attention(self.config, name="attention")(x, mask, bias)
        y = bert.Intermediate(self.config, name="intermediate")(x)
        return bert.Output(self.config, name="output")(y, x)


class Encoder(nn.Module):
    """The bias of attention, and the blocks that share it.

    Attributes:
      config: The model's shape.
      remat: The values to recompute in a backward pass, see `Layers`.
    """

    config: Config
    remat: Remat = "none"

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "B T d"], mask: Bool[jax.Array, "B T"]
    ) -> Float[jax.Array, "B T d"]:
        c = self.config
        table = nn.Embed(
            _BUCKETS, c.num_attention_heads, name="relative_attention_bias"
        )
        bias = jnp.moveaxis(table(buckets(x.shape[1])), -1, 0)
        block = functools.partial(Block, c)
        layers = Layers(block, c.num_hidden_layers, self.remat, name="layer")
        return layers(x, None, mask, bias)


def buckets(tokens: int) -> Int[np.ndarray, "T T"]:
    """Return the range of each pair's distance: T5's, up to 128 tokens.

    Half of the buckets are for what stands before a token, half for what follows. In
    each half, distances up to 7 have their own bucket; then a bucket spans a factor
    of sqrt(2), and the last takes all from 91 on.
    """
    place = np.arange(tokens)
    distance = place[None] - place[:, None]
    side, exact = _BUCKETS // 2, _BUCKETS // 4
    far = np.abs(distance)
    # 8 + floor(2 * log2(far / 8)), in integers: no logarithm rounds at its steps.
    steps = exact**2 * 2 ** np.arange(1, side - exact)
    wide = exact + (far[..., None] ** 2 >= steps).sum(axis=-1)
    return side * (distance > 0) + np.where(far < exact, far, wide)


class MPNet(nn.Module):
    """The encoder, without a pooler.

    Attributes:
      config: The model's shape.
      remat: As for `Encoder`.
    """

    config: Config
    remat: Remat = "none"

    @nn.compact
    def __call__(self, tokens: Tokens) -> Float[jax.Array, "B T d"]:
        ids, mask = map(jnp.asarray, tokens)
        x = Embeddings(self.config, name="embeddings")(ids, mask)
        return Encoder(self.config, self.remat, name="encoder")(x, mask)


class MPNetClassifier(nn.Module):
    """MPNet with RoBERTa's head, as `MPNetForSequenceClassification`.

    Attributes:
      config: The encoder's shape.
      classes: The number of classes `c`.
      remat: As for `Encoder`.
    """

    config: Config
    classes: int
    remat: Remat = "none"

    @property
    def adapted(self) -> Adapted:
        """All linear layers of the blocks, stacked."""
        count = self.config.num_hidden_layers
        return Adapted(blocks=STACK, modules=ADAPTED, stack=count)

    @nn.compact
    def __call__(self, tokens: Tokens) -> Float[jax.Array, "B c"]:
        x = MPNet(self.config, self.remat, name="mpnet")(tokens)
        return roberta.Head(self.config, self.classes, name="classifier")(x)


def leaves(config: Config) -> dict[str, Leaf]:
    """Return the tensors of the params of `MPNet(config)`."""
    tokens = Tokens(np.zeros((1, 1), np.int32), np.ones((1, 1), bool))
    stacks = {"encoder/layer": config.num_hidden_layers}
    return mirrored.leaves(MPNet(config), tokens, stacks=stacks)


def load(
    folder: pathlib.Path,
    config: Config,
    dtype: jax.typing.DTypeLike | None = None,
) -> dict[str, Any]:
    """Load the params of `MPNet(config)`, saved with or without a head.

    Raises:
      FileNotFoundError: as for `checkpoint.load`.
      ValueError: likewise.
    """
    return checkpoint.load(
        folder,
        leaves(config),
        dtype=dtype,
        ignored=roberta.OTHERS,
        bases=("mpnet.", ""),
    )


def load_classifier(
    folder: pathlib.Path,
    config: Config,
    classes: int,
    dtype: jax.typing.DTypeLike | None = None,
) -> dict[str, Any]:
    """Return the params of the head of an `MPNetForSequenceClassification`.

    Raises:
      FileNotFoundError: as for `checkpoint.load`.
      ValueError: likewise.
    """
    return roberta.load_head(folder, config, classes, dtype, encoder="mpnet")
