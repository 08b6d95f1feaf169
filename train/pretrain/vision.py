"""Pretrain a small encoder of SigLIP's form to tell thousands of characters apart.

    python -m train.data.glyphs --out out/glyphs.npz
    python -m train.pretrain.vision --data out/glyphs.npz --minutes 6 --out out/glyphs

The first command needs fonts and no GPU, the second one GPU and the file of the first.
The encoder has 6 layers of width 192 on 8 x 8 patches of 32 x 32 pixels, 3.1 million
parameters, 6.3 MB in bfloat16. Its folder is one of transformers' SiglipVisionModel,
and `train.models.siglip` loads it. The classifier is thrown away.

Axis letters: `N` pictures, `S` pixels, `B` pictures a batch, `d` width.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, UInt8

from train.data import digits, glyphs, pixels
from train.models import siglip
from train.pretrain import augment, command, export, loop, probe

SMALL = loop.Settings(
    model=siglip.Config(
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=3,
        image_size=augment.SIZE,
        patch_size=4,
    ),
    batch=1024,
    rate=loop.Rate(peak=1e-3),
    budget=loop.Budget(minutes=6),
)

TINY = loop.Settings(
    model=siglip.Config(
        hidden_size=24,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=augment.SIZE,
        patch_size=8,
    ),
    batch=8,
    rate=loop.Rate(peak=1e-3),
    budget=loop.Budget(steps=6, chunk=3),
)
"""For a test: seconds on a CPU."""

_HELD_OUT = 50  # One picture in this many is held out.
_SMOOTHING = 0.1


class Pictures(NamedTuple):
    """Pictures and labels, to train or evaluate on."""

    images: Any  # UInt8[Array, "N S S"], of NumPy or on the device.
    labels: Any  # Int[Array, "N"], likewise.


def split(data: glyphs.Glyphs) -> tuple[Pictures, Pictures]:
    """Split into a training and a test part with the same classes."""
    # Of each class some: pictures of a class stand together.
    held_out = np.arange(len(data.images)) % _HELD_OUT == 0
    return (
        Pictures(data.images[~held_out], data.labels[~held_out]),
        Pictures(data.images[held_out], data.labels[held_out]),
    )


def pretrain(
    settings: loop.Settings[siglip.Config],
    data: Pictures,
    classes: int,
    *,
    report: Callable[[loop.Line], object],
) -> dict[str, Any]:
    """Train a `siglip.SiglipClassifier`; return its params in float32.

    Computed in bfloat16, but for the loss, sums and the weights that are updated.
    """
    model = siglip.SiglipClassifier(settings.model, classes)

    def loss(params: Any, key: jax.Array, data: Pictures) -> Float[jax.Array, ""]:
        choose, change = jax.random.split(key)
        rows = jax.random.randint(choose, (settings.batch,), 0, len(data.labels))
        images = augment.augment(change, data.images[rows])
        logits = _apply(model, params, images)
        wanted = jax.nn.one_hot(data.labels[rows], classes)
        wanted = optax.smooth_labels(wanted, _SMOOTHING)
        return optax.softmax_cross_entropy(logits, wanted).mean()

    start, key = jax.random.split(jax.random.key(0))
    blank = jnp.zeros((1, augment.SIZE, augment.SIZE, 3))
    return loop.train(
        loss,
        jax.jit(model.init)(start, blank)["params"],
        jax.device_put(data),
        budget=settings.budget,
        rate=settings.rate,
        key=key,
        report=report,
    )


def save(folder: pathlib.Path, params: Any, config: siglip.Config) -> None:
    """Write the encoder, without its classifier, in the format of transformers."""
    values = dataclasses.asdict(config) | {
        "architectures": ["SiglipVisionModel"],
        "model_type": "siglip_vision_model",
        "hidden_act": "gelu_pytorch_tanh",
        "attention_dropout": 0.0,
        "vision_use_head": True,
    }
    encoder, leaves = params["vision_model"], siglip.leaves(config)
    export.save(folder, encoder, leaves, values, base="vision_model.")


def evaluate(
    settings: loop.Settings[siglip.Config], params: Any, data: Pictures, classes: int
) -> dict[str, float]:
    """Return accuracies: on glyphs, and of linear classifiers on the held-out tasks."""
    model = siglip.SiglipClassifier(settings.model, classes)
    logits = _in_batches(model, params)(data.images)
    result = {"glyphs": float(np.mean(logits.argmax(axis=1) == data.labels))}
    encode = _in_batches(siglip.Siglip(settings.model), params["vision_model"])
    for task in digits.TASKS:
        # Packages of digits are optional.
        try:
            result[task] = probe.accuracy(encode, task)
        except ModuleNotFoundError as error:
            print(f"{task} is left out: {error}")
    return result


def _apply(model: Any, params: Any, images: Float[jax.Array, "B S S"]) -> jax.Array:
    # Weights stay in float32 for the update; only the products are bfloat16.
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    inputs = pixels.as_input(images).astype(jnp.bfloat16)
    return model.apply({"params": half}, inputs).astype(jnp.float32)


def _in_batches(model: Any, params: Any, size: int = 512) -> probe.Encode:
    run = jax.jit(lambda params, x: _apply(model, params, augment.plain(x)))

    def encode(images: UInt8[np.ndarray, "N S S"]) -> Float[np.ndarray, "N d"]:
        # One shape for all calls: the last batch would compile another program.
        filled = np.pad(images, ((0, -len(images) % size), (0, 0), (0, 0)))
        parts = np.array_split(filled, range(size, len(filled), size))
        return np.concatenate([run(params, x) for x in parts])[: len(images)]

    return encode


def main(arguments: Sequence[str] | None = None) -> None:
    """Pretrain the encoder, evaluate it, and write it to a folder."""
    chosen = command.parse(
        arguments,
        description=main.__doc__,
        data="out/glyphs.npz",
        small=SMALL,
        tiny=TINY,
    )
    settings = chosen.settings
    data = glyphs.load(chosen.data)
    train, held_out = split(data)
    begin, classes = time.monotonic(), len(data.classes)
    print(f"{len(train.labels)} pictures of {classes} classes on {jax.devices()[0]}")
    report = loop.Printer(unit="pictures", each=settings.batch)
    params = pretrain(settings, train, classes, report=report)
    metrics = evaluate(settings, params, held_out, classes)
    save(chosen.out, params, settings.model)
    command.report(chosen.out, metrics, begin=begin, steps=report.steps)


if __name__ == "__main__":
    main()
