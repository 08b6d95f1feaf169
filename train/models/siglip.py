"""The vision encoder of SigLIP in Linen, with the module names of transformers.

The form with a fixed resolution, in which SigLIP 2 is published too. The blocks are
stacked: `vision_model/encoder/layers/mlp/fc1/kernel` is `[L, m, n]`. Adapters in the
collection `lora` lie under the same paths, or under each layer's number as in PEFT:
see `train.models.layers`.

M. Tschannen et al., "SigLIP 2: Multilingual Vision-Language Encoders with Improved
Semantic Understanding, Localization, and Dense Features", 2025.

Axis letters: `B` images, `H W C` their height, width and channels, `T` patches, `S`
queries, `d` model width, `c` classes. Traceable under `jit`, except for reading files.
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
from jaxtyping import Float

from para_jax import Array
from para_jax.flax.linen import Dense
from train.models import bicubic, checkpoint, configuration, mirrored
from train.models.adapted import Adapted
from train.models.checkpoint import Leaf
from train.models.layers import Container, Remat

STACK = "vision_model/encoder/layers"
"""The path of the stacked blocks in a `SiglipClassifier`."""

ADAPTED = (
    "self_attn/q_proj",
    "self_attn/k_proj",
    "self_attn/v_proj",
    "self_attn/out_proj",
    "mlp/fc1",
    "mlp/fc2",
)
"""The adapted modules of a block: all its linear layers."""

_FORM = {
    "model_type": "siglip_vision_model",
    "hidden_act": "gelu_pytorch_tanh",
    "vision_use_head": True,
}
# The text tower of a whole model, and the scales of the contrastive loss.
_OTHERS = (
    "text_model.*",
    "logit_scale",
    "logit_bias",
    "classifier.*",
    "*.position_ids",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The shape of a vision encoder, under the names of its `config.json`.

    Defaults are SigLIP-Base at 224 pixels, as for transformers.
    """

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 16
    layer_norm_eps: float = 1e-6

    @property
    def grid(self) -> int:
        """The number of patches on each side of an image of `image_size`."""
        return self.image_size // self.patch_size


def read_config(folder: pathlib.Path) -> Config:
    """Read the vision encoder's configuration in a model folder of transformers.

    The folder has a whole SigLIP or its vision encoder alone.

    Raises:
      FileNotFoundError: if it has no `config.json`.
      ValueError: if the model is of another architecture than the one written here.
    """
    values = configuration.read(folder)
    # A whole SigLIP nests the vision encoder's values.
    if values.get("model_type") == "siglip":
        values = values.get("vision_config", {})
    return configuration.build(Config, values, folder=folder, form=_FORM)


class Embeddings(nn.Module):
    """A linear projection of every patch, and the embedding of its position."""

    config: Config

    @nn.compact
    def __call__(self, images: Float[Array, "B H W C"]) -> Float[jax.Array, "B T d"]:
        c, window = self.config, (self.config.patch_size,) * 2
        x = nn.Conv(
            c.hidden_size,
            window,
            strides=window,
            padding="VALID",
            name="patch_embedding",
        )(images)
        # As an Embed, so that its path is the one in transformers.
        table = nn.Embed(c.grid**2, c.hidden_size, name="position_embedding").embedding
        positions = bicubic.resized(table.reshape(c.grid, c.grid, -1), *x.shape[1:3])
        x = x + positions.astype(x.dtype)[None]
        return x.reshape(x.shape[0], -1, c.hidden_size)


class Attention(nn.Module):
    """Attention with several heads."""

    config: Config

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "B S d"], context: Float[jax.Array, "B T d"]
    ) -> Float[jax.Array, "B S d"]:
        d, heads = self.config.hidden_size, self.config.num_attention_heads

        def project(name: str, x: jax.Array) -> jax.Array:
            return Dense(d, name=name)(x).reshape(*x.shape[:2], heads, -1)

        y = jax.nn.dot_product_attention(
            project("q_proj", x), project("k_proj", context), project("v_proj", context)
        )
        return Dense(d, name="out_proj")(y.reshape(x.shape))


class Mlp(nn.Module):
    """The feed-forward network, with the tanh form of the GELU."""

    config: Config

    @nn.compact
    def __call__(self, x: Float[jax.Array, "B T d"]) -> Float[jax.Array, "B T d"]:
        y = Dense(self.config.intermediate_size, name="fc1")(x)
        # The tanh form, as `gelu_pytorch_tanh` in config.json says.
        y = jax.nn.gelu(y, approximate=True)
        return Dense(self.config.hidden_size, name="fc2")(y)


class Block(nn.Module):
    """One transformer block, normalised before each part (pre-LN)."""

    config: Config

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "B T d"], _: None
    ) -> Float[jax.Array, "..."]:
        c = self.config
        y = nn.LayerNorm(c.layer_norm_eps, name="layer_norm1")(x)
        x = x + Attention(c, name="self_attn")(y, y)
        y = nn.LayerNorm(c.layer_norm_eps, name="layer_norm2")(x)
        return x + Mlp(c, name="mlp")(y)


class Pooling(nn.Module):
    """A learned query over all patches (MAP), and a network after it."""

    config: Config

    @nn.compact
    def __call__(self, x: Float[jax.Array, "B T d"]) -> Float[jax.Array, "B d"]:
        c, d = self.config, self.config.hidden_size
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, d))
        query = jnp.broadcast_to(probe, (x.shape[0], 1, d))
        x = Attention(c, name="attention")(query, x)
        y = nn.LayerNorm(c.layer_norm_eps, name="layernorm")(x)
        return (x + Mlp(c, name="mlp")(y))[:, 0]


class Siglip(nn.Module):
    """The vision encoder with its pooling head.

    Images may be of another size than `image_size`: the embeddings of the positions
    are resized.

    Attributes:
      config: The model's shape.
      remat: The values to recompute in a backward pass, see `Layers`.
    """

    config: Config
    remat: Remat = "none"

    @nn.compact
    def __call__(self, images: Float[Array, "B H W C"]) -> Float[jax.Array, "B d"]:
        c = self.config
        x = Embeddings(c, name="embeddings")(images)
        block, count = functools.partial(Block, c), c.num_hidden_layers
        encoder = Container(block, count, self.remat, "layers", name="encoder")
        x = encoder(x)
        x = nn.LayerNorm(c.layer_norm_eps, name="post_layernorm")(x)
        return Pooling(c, name="head")(x)


class SiglipClassifier(nn.Module):
    """The encoder with a linear classifier on its pooled output.

    Attributes:
      config: The encoder's shape.
      classes: The number of classes `c`.
      remat: As for `Siglip`.
    """

    config: Config
    classes: int
    remat: Remat = "none"

    @property
    def adapted(self) -> Adapted:
        """All linear layers of the blocks, stacked; the pooling head has none."""
        count = self.config.num_hidden_layers
        return Adapted(blocks=STACK, modules=ADAPTED, stack=count)

    @nn.compact
    def __call__(self, images: Float[Array, "B H W C"]) -> Float[jax.Array, "B c"]:
        x = Siglip(self.config, self.remat, name="vision_model")(images)
        return Dense(self.classes, name="classifier")(x)


def leaves(config: Config) -> dict[str, Leaf]:
    """Return the tensors of the params of `Siglip(config)`."""
    size, d = config.image_size, config.hidden_size
    images = np.zeros((1, size, size, config.num_channels), np.float32)
    stacks = {"encoder/layers": config.num_hidden_layers}
    result = mirrored.leaves(Siglip(config), images, stacks=stacks)
    # The head's attention is PyTorch's own, which has one projection for all three.
    for place, name in enumerate(("q_proj", "k_proj", "v_proj")):
        third = functools.partial(_third, place, d)
        path, tensor = f"head/attention/{name}", "head.attention.in_proj_"
        result[f"{path}/kernel"] = Leaf((f"{tensor}weight",), (d, d), third)
        result[f"{path}/bias"] = Leaf((f"{tensor}bias",), (d,), third)
    return result


def _third(place: int, d: int, x: np.ndarray) -> np.ndarray:
    # A ValueError: the reader reports it as a misshapen tensor.
    if x.shape[0] != 3 * d:
        raise ValueError(f"expected {3 * d} rows, got {x.shape[0]}")
    return x[place * d : (place + 1) * d].T


def load(
    folder: pathlib.Path,
    config: Config,
    dtype: jax.typing.DTypeLike | None = None,
) -> dict[str, Any]:
    """Load the params of `Siglip(config)`, of the encoder alone or a whole SigLIP.

    Raises:
      FileNotFoundError: as for `checkpoint.load`.
      ValueError: likewise.
    """
    return checkpoint.load(
        folder,
        leaves(config),
        dtype=dtype,
        ignored=_OTHERS,
        bases=("vision_model.", ""),
    )
