"""Adapters on disk: PEFT folders and Orbax checkpoints. Host.

A format's file is imported when it is used: Orbax alone takes longer to import than
a small adapter takes to compress.
"""

import contextlib
import pathlib
from typing import Any, Literal

import numpy as np

from para_jax.adapters import Adapter, Adapters, Checkpoint, Layer
from para_jax.compress import as_checkpoint
from para_jax.formats import directory

Format = Literal["peft", "orbax"]
Profile = Literal["ragged", "padded"]
Path = str | pathlib.Path

_ORBAX_PARTS = ("state", "default", "pytree")
_ORBAX_MARKS = ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt")


def load(path: Path, *, scale: float | None = None) -> Checkpoint:
    """Returns the adapters in a PEFT folder or an Orbax checkpoint, as NumPy arrays.

    The format is recognised by the files. Nothing is ever unpickled.

    Args:
      path: The folder, or PEFT's `adapter_model.safetensors` in it.
      scale: `alpha / r` of an Orbax checkpoint that another program wrote: its arrays
        cannot tell. What `save` wrote holds its scales.

    Raises:
      FileNotFoundError: if there is nothing, or a file is missing.
      ValueError: if the adapter is broken or cannot be represented. The message
        names the file and the module.
    """
    folder = pathlib.Path(path).expanduser()
    if folder.suffix == ".bin" and folder.exists() and not folder.is_dir():
        raise ValueError(
            f"'{folder}' is a pickle, which could run any code and is never opened. "
            "Save the adapter as adapter_model.safetensors, PEFT's default."
        )
    if folder.name == "adapter_model.safetensors":
        folder = folder.parent
    with contextlib.suppress(OSError):  # Where only reading is allowed.
        directory.recover(folder)
    if recognise(folder) == "peft":
        if scale is not None:
            raise ValueError(f"'{folder}' holds its own scales: leave out {scale=}.")
        from para_jax.formats import peft

        checkpoint = peft.load(folder)
    else:
        from para_jax.formats import orbax

        checkpoint = orbax.load(folder, scale=scale)
    _check_finite(folder, checkpoint)
    return checkpoint


def save(
    checkpoint: Checkpoint | Adapters,
    path: Path,
    *,
    format: Format = "peft",  # noqa: A002
    profile: Profile = "ragged",
    overwrite: bool = False,
) -> None:
    """Writes adapters, and all that was stored beside them, as a whole or not at all.

    The target appears by one rename after everything was written, flushed to disk and
    read back; a crash at any moment leaves what was there before.

    Args:
      checkpoint: What `load` or `compress` gave, or just adapters by path.
      path: The folder to make.
      format: `peft` or `orbax`.
      profile: For `peft`: `ragged` (PEFT, diffusers, vLLM) or `padded` with zeros to
        one rank (every engine).
      overwrite: Whether an adapter that is there may be replaced.

    Raises:
      OSError: if the target exists or cannot be written.
      ValueError: if the format cannot hold the adapters.
    """
    target = pathlib.Path(path).expanduser()
    if format not in ("peft", "orbax"):
        raise ValueError(f"Unknown format {format!r}: expected 'peft' or 'orbax'.")
    if profile not in ("ragged", "padded"):
        raise ValueError(f"Unknown profile {profile!r}: expected 'ragged' or 'padded'.")
    if format == "orbax" and profile != "ragged":
        raise ValueError("The profile 'padded' is of PEFT: leave it out for Orbax.")
    checkpoint = as_checkpoint(checkpoint)
    with directory.replacing(target, overwrite=overwrite) as new:
        if format == "peft":
            from para_jax.formats import peft

            wanted = peft.save(checkpoint, new, profile=profile)
        else:
            from para_jax.formats import orbax

            wanted = orbax.save(checkpoint, new)
        check_same(wanted, load(new))


def recognise(path: Path) -> Format:
    """Returns the format of a folder.

    Raises:
      FileNotFoundError: if there is no such folder.
      ValueError: if it holds neither.
    """
    folder = pathlib.Path(path)
    if folder.name == "adapter_model.safetensors":
        return "peft"
    if not folder.is_dir():
        what = "is a file, expected a folder" if folder.exists() else "does not exist"
        raise FileNotFoundError(f"'{folder}' {what}.")
    inside = [folder, *(folder / name for name in _ORBAX_PARTS)]
    if any((x / mark).exists() for x in inside for mark in _ORBAX_MARKS):
        return "orbax"
    names = sorted(x.name for x in folder.iterdir())
    if any(
        x.startswith("adapter_") or x.endswith((".safetensors", ".bin")) for x in names
    ):
        return "peft"
    steps = [name for name in names if name.isdigit()]
    remedy = f" Name one of the steps in it, such as '{steps[-1]}'." if steps else ""
    raise ValueError(
        f"'{folder}' holds neither a PEFT adapter (adapter_config.json, "
        f"adapter_model.safetensors) nor an Orbax checkpoint.{remedy}"
    )


def _check_finite(folder: pathlib.Path, checkpoint: Checkpoint) -> None:
    for path, adapter in checkpoint.adapters.items():
        for name, factor in (("a", adapter.a), ("b", adapter.b)):
            if not np.isfinite(factor).all():
                raise ValueError(
                    f"'{path}' in '{folder}' contains NaN or infinity (factor {name})."
                )


def check_same(wanted: Checkpoint, got: Checkpoint) -> None:
    """Raises ValueError, naming what differs, unless a format kept all it was given."""
    for field in ("adapters", "biases", "layers", "extra"):
        one, two = getattr(wanted, field), getattr(got, field)
        for name in sorted(one.keys() | two.keys()):
            if name not in one or name not in two or not _equal(one[name], two[name]):
                raise ValueError(
                    f"'{name}' does not read back as what it should be: the format "
                    "cannot hold it. Are there dots in the paths of the modules?"
                )


def _equal(one: Any, two: Any) -> bool:
    if isinstance(one, Adapter):
        same = _equal(one.a, two.a) and _equal(one.b, two.b)
        return same and one.scale == two.scale
    if isinstance(one, Layer):
        return one == two
    one, two = np.asarray(one), np.asarray(two)
    # By the bits: a tensor that is passed on may hold NaN.
    form = one.dtype == two.dtype and one.shape == two.shape
    return form and one.tobytes() == two.tobytes()
