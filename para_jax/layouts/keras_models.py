"""Take the LoRA variables out of a living Keras model, and put a child back into it.

Keras is not imported here: the layers bring all of it along. Runs on the host, except
for `keras_tree` with `values`, which is traceable under `jit`.
"""

import collections
import typing
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from para_jax._adapters.checkpoint import Checkpoint
from para_jax.layouts.libraries.keras import ALPHA
from para_jax.layouts.pairs import Pair
from para_jax.layouts.tree import placed

if typing.TYPE_CHECKING:
    import keras

_PROGRAMS = tuple(f"{x}_function" for x in ("train", "test", "predict", "generate"))
_INDICES, _RANK = "_lora_enabled_layers", "_lora_rank"


def keras_tree(
    model: "keras.layers.Layer", values: Sequence[Any] | None = None
) -> dict[str, dict[str, Any]]:
    """Collect the factors of a Keras model, with each layer's alpha.

    Keras trains the biases of these layers too, which are no part of an adapter: set
    `layer.bias.trainable = False` before training an adapter to be served elsewhere. A
    warning names such layers.

    Example:
      >>> import keras
      >>> layer = keras.layers.Dense(7, use_bias=False, name="up")
      >>> model = keras.Sequential([keras.Input((5,)), layer], name="net")
      >>> layer.enable_lora(4, lora_alpha=8)
      >>> parent = para_jax.from_tree(para_jax.layouts.keras_tree(model))
      >>> [(path, x.rank, x.scale) for path, x in parent.adapters.items()]
      [('net/up', 4, 2.0)]

    Args:
      model: A model, or a single layer, with LoRA enabled in some of its layers.
      values: The values of `model.trainable_variables`, in their order, where a
        stateless training loop holds them; the model's own if left out.

    Returns:
      By the path of each layer: `lora_kernel_a` and `lora_kernel_b`, or of an Embedding
      `lora_embeddings_a` and `lora_embeddings_b`, and `lora_alpha`, a number.

    Raises:
      ValueError: if LoRA is enabled nowhere, two layers have one path, or `values` do
        not fit the model's trainable variables.
    """
    given = _given(model, values)
    layers = {path: x for path, x in _by_path(model).items() if x.lora_enabled}
    if not layers:
        raise ValueError(
            f"The model '{model.name}' has LoRA enabled in none of its layers: call "
            "enable_lora(rank) on its layers, or on its backbone."
        )
    _warn_of_biases(layers)
    tree = {}
    for path, layer in layers.items():
        weight = _weight(layer)
        names = [f"lora_{weight}_{side}" for side in "ab"]
        variables = {name: getattr(layer, name) for name in names}
        tree[path] = {
            # Copies: `fit` and `predict` give the variables' own buffers to XLA.
            **{
                name: given[id(x)] if id(x) in given else np.array(x.value)
                for name, x in variables.items()
            },
            ALPHA: layer.lora_alpha,
        }
    return tree


def keras_assign(
    model: "keras.layers.Layer", child: Checkpoint, *, rank: int | None = None
) -> None:
    """Give every layer of a Keras model its adapter of a child, at its own rank.

    The layer's LoRA variables are made anew, with `lora_alpha` equal to the rank, so
    that the scale is 1. A layer that kept nothing has LoRA disabled; its kernel stays
    frozen. What the model compiled for `fit`, `evaluate`, `predict` and `generate` is
    dropped, since it holds the old scales; so do programs of your own, which must be
    compiled again. An optimizer belongs to the old variables: call `model.compile`
    again before further training.

    Example:
      >>> import keras
      >>> layer = keras.layers.Dense(7, use_bias=False, name="up")
      >>> model = keras.Sequential([keras.Input((5,)), layer])
      >>> layer.enable_lora(4)
      >>> _ = layer.lora_kernel_b.assign(np.eye(4, 7))
      >>> parent = para_jax.from_tree(para_jax.layouts.keras_tree(model))
      >>> child = para_jax.compress(parent, para_jax.Rank(2))
      >>> para_jax.layouts.keras_assign(model, child)
      >>> layer.lora_rank, layer.lora_kernel_a.shape
      (2, (5, 2))

    Args:
      model: The model from which `keras_tree` took the parent, or one of the same
        layers.
      child: A checkpoint that `para_jax.compress` made from it.
      rank: The rank to pad all layers to, those that kept nothing too. `Backbone.
        save_lora_weights` needs it: its file has one rank.

    Raises:
      ValueError: as `para_jax.to_tree`, or if the model lacks a layer of the child, or
        has one of other axes. The model is unchanged then.
    """
    layers = _by_path(model)
    pairs = placed(child, rank)
    _check(layers, [pair for pair, _ in pairs])
    for pair, adapter in pairs:
        layer = layers[pair.path]
        if layer.lora_enabled:
            _disable(layer)
        if rank is not None or pair.path in child.adapters:
            _enable(layer, adapter.rank, adapter.a, adapter.b)
    _tell_backbones(model)
    _drop_programs(model)


def _check(layers: Mapping[str, Any], pairs: Sequence[Pair]) -> None:
    for pair in pairs:
        if pair.path not in layers:
            raise ValueError(
                f"'{pair.path}' is no layer of the model that takes LoRA, which has "
                f"{sorted(layers)[:3]}, ... Give the model of the parent."
            )
        wanted = (*pair.shapes[0][:-1], pair.shapes[1][-1])
        if (found := _axes(layers[pair.path])) != wanted:
            raise ValueError(
                f"'{pair.path}' has a kernel {list(found)} in the model, and the "
                f"child's is {list(wanted)}. Give the model of the parent."
            )


def _axes(layer: Any) -> tuple[int, ...]:
    """Return the shape of the kernel that a layer's factors update."""
    weight = _weight(layer)
    if not layer.lora_enabled:
        return tuple(getattr(layer, weight).shape)
    # Of a quantised kernel, two values may share a byte.
    a, b = (getattr(layer, f"lora_{weight}_{side}") for side in "ab")
    return (*a.shape[:-1], b.shape[-1])


def _warn_of_biases(layers: Mapping[str, Any]) -> None:
    trained = [
        path
        for path, x in layers.items()
        if getattr(x, "bias", None) is not None and x.bias.trainable
    ]
    if trained:
        warnings.warn(
            f"{len(trained)} layers with LoRA, such as '{trained[0]}', train their "
            "biases too, which are no part of the adapter. Set layer.bias.trainable = "
            "False before training, or keep the biases beside it.",
            stacklevel=3,
        )


def _given(model: Any, values: Sequence[Any] | None) -> Mapping[int, Any]:
    """Return the values of the trainable variables by the variables' identity."""
    if values is None:
        return {}
    variables = model.trainable_variables
    wanted = [tuple(x.shape) for x in variables]
    got = [tuple(x.shape) for x in values]
    if wanted != got:
        raise ValueError(
            f"values has the shapes {got[:3]}, ... ({len(got)} arrays), expected those "
            f"of model.trainable_variables in their order, {wanted[:3]}, ... "
            f"({len(wanted)})."
        )
    return {id(x): value for x, value in zip(variables, values, strict=True)}


def _by_path(model: Any) -> dict[str, Any]:
    """Return the layers that take LoRA by their path."""
    found = [x for x in _below(model, (), set()) if hasattr(x[1], "lora_enabled")]
    # The path of a layer in a functional model leaves that model's name out, so the
    # layers of two models in one may share it. A layer built by itself has no path.
    paths = [layer.path or layer.name for _, layer in found]
    count = collections.Counter(paths)
    layers: dict[str, Any] = {}
    for path, (names, layer) in zip(paths, found, strict=True):
        name = path if count[path] == 1 else "/".join(names)
        if name in layers and (layer.lora_enabled or layers[name].lora_enabled):
            raise ValueError(
                f"Two layers have the path '{name}': rename one of them, or give the "
                "parts of the model that hold them one by one."
            )
        layers[name] = layer
    return layers


def _below(
    layer: Any, names: tuple[str, ...], seen: set[int]
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield a layer and all layers that it keeps, with the names down to each."""
    seen.add(id(layer))
    yield names, layer
    # Only this method reaches the layers that a layer keeps as attributes.
    for part in layer._flatten_layers(include_self=False, recursive=False):
        if id(part) not in seen:  # Models may share layers.
            yield from _below(part, (*names, part.name), seen)


def _weight(layer: Any) -> str:
    # Asked of the class: of a layer, it would be computed.
    return "embeddings" if hasattr(type(layer), "embeddings") else "kernel"


def _disable(layer: Any) -> None:
    """Turn LoRA off, which no method of Keras does."""
    weight = _weight(layer)
    for side in "ab":
        # Keras stops tracking a variable when its attribute is deleted.
        delattr(layer, f"lora_{weight}_{side}")
    layer.lora_enabled, layer.lora_rank, layer.lora_alpha = False, None, None


def _enable(layer: Any, rank: int, a: Any, b: Any) -> None:
    layer.enable_lora(rank, a_initializer="zeros")
    weight = _weight(layer)
    for side, value in zip("ab", (a, b), strict=True):
        variable = getattr(layer, f"lora_{weight}_{side}")
        variable.assign(value.reshape(variable.shape))


def _tell_backbones(model: Any) -> None:
    """Correct the list of layers that a backbone of keras-hub saves."""
    for part in model._flatten_layers():
        if getattr(part, _INDICES, None):
            below = [x for x in part._flatten_layers(include_self=False) if x.weights]
            enabled = [i for i in getattr(part, _INDICES) if below[i].lora_enabled]
            setattr(part, _INDICES, enabled)
            setattr(part, _RANK, max((below[i].lora_rank for i in enabled), default=0))


def _drop_programs(model: Any) -> None:
    """Drop what the model compiled: `alpha / r` is a constant in it."""
    for part in model._flatten_layers():
        for name in _PROGRAMS:
            if getattr(part, name, None) is not None:
                setattr(part, name, None)
