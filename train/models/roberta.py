"""RoBERTa in Linen, with the module names of Hugging Face transformers.

BERT's blocks on other embeddings, stacked: `roberta/encoder/layer/output/dense/kernel`
is `[L, m, n]`. Adapters in the collection `lora` lie under the same paths, or under
each layer's number as in PEFT: see `train.models.layers`.

Y. Liu et al., "RoBERTa: A Robustly Optimized BERT Pretraining Approach", 2019.

Axis letters: `B` sentences, `T` tokens, `d` model width, `c` classes. Traceable under
`jit`, except for reading files.
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
from train.models import bert, checkpoint, configuration, mirrored
from train.models.adapted import Adapted
from train.models.bert import Tokens
from train.models.checkpoint import Leaf
from train.models.layers import Container, Remat

STACK = "roberta/encoder/layer"
"""The path of the stacked blocks in a `RobertaClassifier`."""

ADAPTED = bert.ADAPTED
"""The adapted modules of a block: all its linear layers."""

_FORM = {
    "model_type": "roberta",
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}

OTHERS = ("lm_head.*", "classifier.*", "*pooler.dense.*", "*.position_ids")
"""Tensors beside the encoder's: a file may be of a language model or a classifier."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape(bert.Shape):
    """What encoders that count positions as RoBERTa have in their `config.json`.

    Positions are counted from `pad_token_id + 1`.
    """

    pad_token_id: int

    @property
    def longest(self) -> int:
        """The greatest number of tokens of a sentence."""
        # The first rows of the table belong to padding.
        return self.max_position_embeddings - self.pad_token_id - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Shape):
    """The shape of a RoBERTa encoder, under the names of its `config.json`."""

    type_vocab_size: int


def read_config(folder: pathlib.Path) -> Config:
    """Read the configuration in a model folder of transformers.

    Raises:
      FileNotFoundError: if it has no `config.json`.
      ValueError: if the model is of another architecture than the one written here.
    """
    values = configuration.read(folder)
    return configuration.build(Config, values, folder=folder, form=_FORM)


class Embeddings(nn.Module):
    """The sum of word, position and token type embeddings, normalised."""

    config: Config

    @nn.compact
    def __call__(
        self, ids: Int[jax.Array, "B T"], mask: Bool[jax.Array, "B T"]
    ) -> Float[jax.Array, "B T d"]:
        c, d = self.config, self.config.hidden_size
        words = nn.Embed(c.vocab_size, d, name="word_embeddings")(ids)
        positions = nn.Embed(c.max_position_embeddings, d, name="position_embeddings")
        types = nn.Embed(c.type_vocab_size, d, name="token_type_embeddings")
        # There is one type of token: pairs of sentences are told apart by </s></s>.
        x = words + positions(places(c, ids, mask)) + types(jnp.zeros_like(ids))
        return nn.LayerNorm(c.layer_norm_eps, name="LayerNorm")(x)


def places(
    shape: Shape, ids: Int[jax.Array, "B T"], mask: Bool[jax.Array, "B T"]
) -> Int[jax.Array, "B T"]:
    """Return each token's position, counted without the padding before it.

    Raises:
      ValueError: if there are more tokens than positions.
    """
    if ids.shape[1] > shape.longest:
        raise ValueError(
            f"The batch is {ids.shape[1]} tokens wide, expected at most "
            f"{shape.longest}: the model has no embeddings of later positions. "
            "Truncate the sentences."
        )
    real = mask & (ids != shape.pad_token_id)
    # A running count, so that padding on the left does not move the words.
    return jnp.cumsum(real, axis=1, dtype=ids.dtype) + shape.pad_token_id


class Block(bert.Block):
    """BERT's block, with the signature for `Layers`."""

    def __call__(
        self, x: Float[jax.Array, "B T d"], _: None, mask: Bool[jax.Array, "B T"]
    ) -> Float[jax.Array, "B T d"]:
        return super().__call__(x, mask)


class Roberta(nn.Module):
    """The encoder, without a pooler.

    Attributes:
      config: The model's shape.
      remat: The values to recompute in a backward pass, see `Layers`.
    """

    config: Config
    remat: Remat = "none"

    @nn.compact
    def __call__(self, tokens: Tokens) -> Float[jax.Array, "B T d"]:
        ids, mask = map(jnp.asarray, tokens)
        x = Embeddings(self.config, name="embeddings")(ids, mask)
        block = functools.partial(Block, self.config)
        count = self.config.num_hidden_layers
        encoder = Container(block, count, self.remat, "layer", name="encoder")
        return encoder(x, mask)


class Head(nn.Module):
    """A dense layer with tanh on the first token, <s>, and a linear classifier."""

    config: bert.Shape
    classes: int

    @nn.compact
    def __call__(self, x: Float[jax.Array, "B T d"]) -> Float[jax.Array, "B c"]:
        # RoBERTa has no pooler: the head's own dense layer takes its place.
        x = jnp.tanh(Dense(self.config.hidden_size, name="dense")(x[:, 0]))
        return Dense(self.classes, name="out_proj")(x)


class RobertaClassifier(nn.Module):
    """RoBERTa with its head, as `RobertaForSequenceClassification`.

    Attributes:
      config: The encoder's shape.
      classes: The number of classes `c`.
      remat: As for `Roberta`.
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
        x = Roberta(self.config, self.remat, name="roberta")(tokens)
        return Head(self.config, self.classes, name="classifier")(x)


def leaves(config: Config) -> dict[str, Leaf]:
    """Return the tensors of the params of `Roberta(config)`."""
    tokens = Tokens(np.zeros((1, 1), np.int32), np.ones((1, 1), bool))
    stacks = {"encoder/layer": config.num_hidden_layers}
    return mirrored.leaves(Roberta(config), tokens, stacks=stacks)


def load(
    folder: pathlib.Path,
    config: Config,
    dtype: jax.typing.DTypeLike | None = None,
) -> dict[str, Any]:
    """Load the params of `Roberta(config)`, saved with or without a head.

    Raises:
      FileNotFoundError: as for `checkpoint.load`.
      ValueError: likewise.
    """
    return checkpoint.load(
        folder,
        leaves(config),
        dtype=dtype,
        ignored=OTHERS,
        bases=("roberta.", ""),
    )


def load_classifier(
    folder: pathlib.Path,
    config: Config,
    classes: int,
    dtype: jax.typing.DTypeLike | None = None,
) -> dict[str, Any]:
    """Return the params of the head of a `RobertaForSequenceClassification`.

    Raises:
      FileNotFoundError: as for `checkpoint.load`.
      ValueError: likewise.
    """
    return load_head(folder, config, classes, dtype, encoder="roberta")


def load_head(
    folder: pathlib.Path,
    shape: bert.Shape,
    classes: int,
    dtype: jax.typing.DTypeLike | None = None,
    *,
    encoder: str,
) -> dict[str, Any]:
    """Return the params of `Head(shape, classes)`, saved beside its encoder.

    Args:
      folder: The model's folder.
      shape: The encoder's shape.
      classes: The number of classes `c`.
      dtype: The dtype of the params; by default the file's.
      encoder: The name of the encoder's tensors.

    Raises:
      FileNotFoundError: as for `checkpoint.load`.
      ValueError: likewise.
    """
    x = np.zeros((1, 1, shape.hidden_size), np.float32)
    return checkpoint.load(
        folder,
        mirrored.leaves(Head(shape, classes), x, stacks={}),
        dtype=dtype,
        ignored=(f"{encoder}.*",),
        bases=("classifier.",),
    )
