"""Orbax checkpoints: plain trees of arrays, with JSON metadata. Host.

The tree is `{"lora": ..., "bias": ..., "extra": ...}`; below `lora` it is what
`para_jax.to_params` gives, so a model takes it as it is. What arrays
cannot say (paths of other kinds of layers, the configuration, where the adapters came
from) is in the checkpoint's custom metadata, under `para_jax`.

Reading asks for NumPy arrays of whatever shapes the checkpoint has, so it works for
any ranks, and for a checkpoint that other devices saved.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from para_jax.adapters import Checkpoint, Layer
from para_jax.params import from_params, nest, to_params, unnest

_KEY = "para_jax"
_VERSION = 1


def save(checkpoint: Checkpoint, folder: pathlib.Path) -> None:
    """Writes a checkpoint into an existing, empty folder.

    Scales are kept beside the factors, not folded in: what is read is what was saved.
    """
    bare = {
        path: dataclasses.replace(x, scale=1.0)
        for path, x in checkpoint.adapters.items()
    }
    tree: Any = {
        "lora": to_params(bare),
        "bias": nest(checkpoint.biases),
        "extra": dict(checkpoint.extra),
    }
    folder.rmdir()  # Orbax makes it, by a rename of its own.
    ocp.save(str(folder.absolute()), tree, custom_metadata={_KEY: _facts(checkpoint)})


def load(folder: pathlib.Path, *, scale: float | None = None) -> Checkpoint:
    """Returns what `save` wrote, or the adapters in a tree of `to_params`' form.

    Args:
      folder: The checkpoint, written by Orbax's v0 or v1 interface.
      scale: For a checkpoint that `save` did not write: what to multiply `a @ b` with.

    Raises:
      ValueError: if there are no adapters in it, or a scale is needed or not wanted.
    """
    tree, metadata = _read(folder)
    facts = metadata.get(_KEY)
    if facts is None:
        return _foreign(folder, tree, scale)
    if scale is not None:
        raise ValueError(f"'{folder}' holds its own scales: leave out scale={scale:g}.")
    if facts["version"] > _VERSION:
        raise ValueError(f"'{folder}' was written by a newer para_jax: update yours.")
    adapters = from_params(tree["lora"])
    return Checkpoint(
        adapters={
            path: dataclasses.replace(
                adapters[path], scale=scale, nominal=facts["nominal"].get(path)
            )
            for path, scale in facts["scales"].items()
        },
        layers={
            path: Layer(kind=x["kind"], window=tuple(x["window"]))
            for path, x in facts["layers"].items()
        },
        biases=unnest(tree.get("bias", {})),
        absent={path: tuple(x) for path, x in facts["absent"].items()},
        extra=tree.get("extra", {}),
        config=facts["config"],
        provenance=facts["provenance"],
        residual=facts["residual"],
    )


def _facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns what the arrays do not say, as plain JSON values."""
    adapters = checkpoint.adapters
    return {
        "version": _VERSION,
        "scales": {path: float(x.scale) for path, x in adapters.items()},
        "ranks": {path: x.rank for path, x in adapters.items()},
        "nominal": {p: x.nominal for p, x in adapters.items() if x.nominal},
        "layers": {p: dataclasses.asdict(x) for p, x in checkpoint.layers.items()},
        "absent": {path: list(x) for path, x in checkpoint.absent.items()},
        "config": dict(checkpoint.config),
        "provenance": dict(checkpoint.provenance),
        "residual": checkpoint.residual,
    }


def _read(folder: pathlib.Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Returns the tree, its leaves NumPy arrays, and the custom metadata."""
    path = str(folder.absolute())
    try:
        metadata = ocp.metadata(path)
        wanted = jax.tree.map(lambda _: np.ndarray, metadata.metadata)
        facts: Any = metadata.custom_metadata
        tree: Any = ocp.load(path, wanted)
        return tree, facts or {}
    except Exception as error:  # Orbax raises many kinds, few of them documented.
        raise ValueError(
            f"Orbax cannot read '{folder}' ({type(error).__name__}: {error}). If it "
            "holds numbered steps, name one of them."
        ) from error


def _foreign(
    folder: pathlib.Path, tree: Mapping[str, Any], scale: float | None
) -> Checkpoint:
    adapters = from_params(tree, scale=1.0 if scale is None else scale)
    if not adapters:
        raise ValueError(
            f"'{folder}' holds no adapters: expected modules with 'a' and 'b'."
        )
    if scale is None:
        raise ValueError(
            f"'{folder}' was not written by para_jax, and does not say what a @ b is "
            "multiplied with. Give scale=: alpha / r of the training run, or 1 for "
            "params that to_params made."
        )
    return Checkpoint(adapters=adapters)
