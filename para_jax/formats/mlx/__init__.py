"""mlx-lm's folders: `adapter_config.json` and `adapters.safetensors`."""

import pathlib

from para_jax._adapters.checkpoint import Checkpoint
from para_jax._engines.profiles import Profile
from para_jax.formats import atomic, crossing
from para_jax.formats.format import FileFormat, Hints

CONFIG = "adapter_config.json"
WEIGHTS = "adapters.safetensors"


def _load(path: pathlib.Path, _hints: Hints) -> Checkpoint:
    from para_jax.formats.mlx import folder

    return folder.load(path)


def _save(checkpoint: Checkpoint, path: pathlib.Path, _profile: Profile) -> Checkpoint:
    from para_jax.formats.mlx import folder

    return folder.save(checkpoint, path)


def _read_back(path: pathlib.Path, _written: Checkpoint) -> Checkpoint:
    # What is read has its ranks trimmed, so it cannot share the padded arrays.
    from para_jax.formats.mlx import folder

    return folder.load(path)


def _verify(
    path: pathlib.Path, written: Checkpoint, wanted: Checkpoint, _profile: Profile
) -> None:
    from para_jax.formats import verify

    verify.check_mlx(path, written, wanted)


FORMAT = FileFormat(
    name="mlx",
    load=_load,
    save=_save,
    read_back=_read_back,
    replacing=atomic.replacing,
    marks=(WEIGHTS,),
    weights=WEIGHTS,
    reader="mlx-lm",
    check=crossing.check_to_mlx,
    verify=_verify,
)
