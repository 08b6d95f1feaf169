"""PEFT's folders: `adapter_config.json` and `adapter_model.safetensors`."""

import functools
import pathlib

from para_jax._adapters.checkpoint import Checkpoint
from para_jax._engines import experts as expert_modules
from para_jax._engines.profiles import PROFILES, Profile
from para_jax.formats import atomic, crossing, other_files
from para_jax.formats.format import FileFormat, Hints

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def _load(path: pathlib.Path, _hints: Hints) -> Checkpoint:
    from para_jax.formats.peft import folder

    other_files.check_weights(path, WEIGHTS)
    other_files.warn_of_trained(path)
    return folder.load(path)


def _save(checkpoint: Checkpoint, path: pathlib.Path, profile: Profile) -> Checkpoint:
    from para_jax.formats.peft import folder

    return folder.save(checkpoint, path, profile=profile)


def _read_back(path: pathlib.Path, written: Checkpoint) -> Checkpoint:
    from para_jax.formats.peft import folder

    return folder.load(path, dict(folder.named(written)))


def _verify(
    path: pathlib.Path, written: Checkpoint, wanted: Checkpoint, profile: Profile
) -> None:
    from para_jax.formats import verify

    verify.check_peft(path, written, wanted, profile)


FORMAT = FileFormat(
    name="peft",
    load=_load,
    save=_save,
    read_back=_read_back,
    replacing=atomic.replacing,
    marks=(WEIGHTS,),
    weights=WEIGHTS,
    # People share the weights alone; diffusers reads these as a single file.
    beside=CONFIG,
    remains="adapter_",
    profiles=PROFILES,
    reader="PEFT",
    check=functools.partial(crossing.check_from_mlx, form="peft"),
    verify=_verify,
    warn=expert_modules.warn,
)
