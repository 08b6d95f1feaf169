"""Single safetensors files: kohya's, diffusers', and others with such factors."""

import functools
import pathlib

from para_jax._adapters.checkpoint import Checkpoint
from para_jax._engines.profiles import Profile
from para_jax.formats import atomic, crossing
from para_jax.formats.format import FileFormat, Hints


def _load(path: pathlib.Path, hints: Hints) -> Checkpoint:
    from para_jax.formats.kohya import single_file

    return single_file.load(path, given=hints)


def _save(checkpoint: Checkpoint, path: pathlib.Path, _profile: Profile) -> Checkpoint:
    from para_jax.formats.kohya import single_file

    return single_file.save(checkpoint, path)


def _read_back(path: pathlib.Path, written: Checkpoint) -> Checkpoint:
    from para_jax.formats.kohya import single_file

    return single_file.load(path, dict(single_file.named(written)))


def _check_place(target: pathlib.Path, written: Checkpoint) -> None:
    from para_jax.formats.kohya import stated

    stated.check_alone(target, written)


def _verify(
    path: pathlib.Path, written: Checkpoint, wanted: Checkpoint, _profile: Profile
) -> None:
    from para_jax.formats import verify

    verify.check_kohya(path, written, wanted)


FORMAT = FileFormat(
    name="kohya",
    load=_load,
    save=_save,
    read_back=_read_back,
    replacing=atomic.replacing_file,
    suffixes=(".safetensors", ".sft"),  # The latter in ComfyUI and Forge.
    # Without an alpha in the file, its scale is known from outside alone.
    hints=("alpha", "scale"),
    check=functools.partial(crossing.check_from_mlx, form="kohya"),
    check_place=_check_place,
    verify=_verify,
)
