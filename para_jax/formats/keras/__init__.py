"""keras-hub's `*.lora.h5`: what `Backbone.save_lora_weights` writes."""

import functools
import pathlib

from para_jax._adapters.checkpoint import Checkpoint
from para_jax._engines.profiles import Profile
from para_jax.formats import atomic, crossing
from para_jax.formats.format import FileFormat, Hints


def _load(path: pathlib.Path, hints: Hints) -> Checkpoint:
    from para_jax.formats.keras import weights

    return weights.load(path, hints)


def _save(checkpoint: Checkpoint, path: pathlib.Path, _profile: Profile) -> Checkpoint:
    from para_jax.formats.keras import weights

    return weights.save(checkpoint, path)


def _read_back(path: pathlib.Path, _written: Checkpoint) -> Checkpoint:
    # What is read has its ranks trimmed, so it cannot share the padded arrays.
    from para_jax.formats.keras import weights

    return weights.load(path, Hints())


def _verify(
    path: pathlib.Path, written: Checkpoint, wanted: Checkpoint, _profile: Profile
) -> None:
    from para_jax.formats import verify

    verify.check_keras(path, written, wanted)


FORMAT = FileFormat(
    name="keras",
    load=_load,
    save=_save,
    read_back=_read_back,
    replacing=atomic.replacing_file,
    suffixes=(".lora.h5",),
    # The file has no alpha: that is an attribute of the layers in Python.
    hints=("alpha", "scale"),
    reader="keras-hub",
    check=functools.partial(crossing.check_from_mlx, form="keras"),
    verify=_verify,
)
