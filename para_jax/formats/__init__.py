"""Adapters on disk: PEFT and mlx-lm folders, Orbax checkpoints, single files.

Each format is a record in `FORMATS`. Its code is imported when it is used: Orbax alone
takes longer to import than a small adapter takes to compress. Runs on the host.
"""

import contextlib
import dataclasses
import pathlib
import warnings
from collections.abc import Mapping
from typing import Any, get_args

import jax
import numpy as np

from para_jax._adapters.adapter import Adapter, Adapters
from para_jax._adapters.checkpoint import Checkpoint, Layer, as_checkpoint
from para_jax._adapters.messages import Argument, Message
from para_jax._engines import prepare as engine_prepare, renaming
from para_jax._engines.prepare import (
    Cost as Cost,
    Prepared as Prepared,
    costs as costs,
    prepare as prepare,
)
from para_jax._engines.profiles import (
    PROFILES as PROFILES,
    Profile as Profile,
    shaped as shaped,
)
from para_jax._engines.registry import ENGINES as ENGINES, known as known
from para_jax._engines.renaming import named as named
from para_jax._engines.rules import Engine as Engine, Format as Format
from para_jax._pruning import rounding
from para_jax.formats import atomic, flush, tensor_files
from para_jax.formats.format import FileFormat as FileFormat, Hints as Hints
from para_jax.formats.recognition import place as place, recognise as recognise
from para_jax.formats.registry import FORMATS as FORMATS, is_one_file as is_one_file
from para_jax.layouts import StackAxis

Path = str | pathlib.Path


def load(
    path: Path,
    *,
    layout: str | None = None,
    alpha: float | Mapping[str, float] | None = None,
    scale: float | None = None,
    stack_axis: StackAxis | None = None,
    adapters_only: bool = False,
) -> Checkpoint:
    """Read the adapters in a folder or a file, as NumPy arrays.

    The format is recognised by the files. Nothing is ever unpickled.

    Example:
      >>> para_jax.save(adapters, "adapter", format="peft")
      >>> parent = para_jax.load("adapter")
      >>> sorted(parent.adapters), parent.config["rank_pattern"]
      (['down', 'up'], {'down': 2})

    Args:
      path: A folder of PEFT or mlx-lm, or the file of weights in it; an Orbax
        checkpoint; or a single file, `*.safetensors`, as of kohya's sd-scripts or of
        diffusers, or keras-hub's `*.lora.h5`.
      layout: The library that wrote an Orbax checkpoint, a name in
        `para_jax.layouts.LAYOUTS`; recognised if left out. Checkpoints written by
        `save` need neither this nor the next three.
      alpha: The numerator of its scale, which arrays do not record; one number, or one
        a module by path. For a single file, only if neither a tensor nor the header
        nor a file beside it states the scale, which is 1 by default.
      scale: `alpha / r`, instead of `alpha`.
      stack_axis: The axis of stacked layers, if shapes alone do not tell.
      adapters_only: Whether to leave out everything but adapters: a trained head, and
        the base weights in an Orbax checkpoint, which stay unread.

    Raises:
      FileNotFoundError: if there is nothing, or a file is missing.
      ValueError: if the adapter is broken or cannot be represented. The message
        names the file and the module.
    """
    folder = place(pathlib.Path(path).expanduser())
    # A crash while saving may have left the old adapter aside. Where only reading is
    # allowed it stays there.
    with contextlib.suppress(OSError):
        atomic.recover(folder)
    form = FORMATS[recognise(folder)]
    hints = Hints(layout, alpha, scale, stack_axis, adapters_only)
    _check_hints(folder, form, hints)
    checkpoint = form.load(folder, hints)
    if adapters_only:
        checkpoint = dataclasses.replace(checkpoint, extra={})
    _check_finite(folder, checkpoint)
    return dataclasses.replace(checkpoint, source=folder.resolve().name)


def _check_hints(path: pathlib.Path, form: FileFormat, hints: Hints) -> None:
    """Check that a format accepts the caller's hints."""
    for name in ("layout", "stack_axis", "alpha", "scale"):
        value = getattr(hints, name)
        if value is not None and name not in form.hints:
            what = "own scales" if name in ("alpha", "scale") else "own layout"
            said = f"'{path}' holds its {what}: leave out "
            raise ValueError(Message(said, Argument(name, value), "."))


def save(
    checkpoint: Checkpoint | Adapters,
    path: Path,
    *,
    format: Format = "peft",  # noqa: A002
    profile: Profile = "ragged",
    engine: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write adapters, and everything stored beside them, atomically.

    The target appears by one rename after everything was written, flushed to disk and
    read back. A crash at any moment leaves the old target as it was. If JAX runs in
    several processes, all of them must save an Orbax checkpoint together.

    Example:
      >>> child = para_jax.compress(adapters, para_jax.Gamma(0.5))
      >>> para_jax.save(child, "small")  # A PEFT folder.
      >>> para_jax.save(child, "small.safetensors", format="kohya")
      >>> para_jax.save(child, "small-padded", engine="sglang")

    Args:
      checkpoint: A result of `load` or `compress`, or just adapters by path.
      path: The folder to make; for kohya and keras, the file.
      format: `peft`, `mlx`, `orbax`, `kohya` for a single safetensors file, under
        the names that it was read with, or kohya's, or `keras` for keras-hub's
        `*.lora.h5`.
      profile: For `peft`, the form of ranks and alphas: `ragged` (PEFT, vLLM),
        `padded` with zeros to one rank (every engine), `uniform-by-type` (scanned
        models) or `per-tensor-alpha` (llama.cpp). See `para_jax.formats.shaped`.
      engine: The engine to serve the adapter, a name in `para_jax.formats.ENGINES`,
        instead of `format` and `profile`.
      overwrite: Whether an existing adapter may be replaced.

    Raises:
      OSError: if the target exists or cannot be written.
      ValueError: if the format cannot hold the adapters.
    """
    target = pathlib.Path(path).expanduser()
    checkpoint = as_checkpoint(checkpoint)
    if engine is not None:
        if (format, profile) != ("peft", "ragged"):
            raise ValueError(f"{engine=} decides on format and profile: omit them.")
        checkpoint, format, profile = engine_prepare.prepare(  # noqa: A001
            checkpoint, engine, one_file=is_one_file(target)
        )
        renaming.warn(checkpoint, engine)
    if format not in FORMATS:
        raise ValueError(f"Unknown format {format!r}: expected {get_args(Format)}.")
    if profile not in PROFILES:
        raise ValueError(f"Unknown profile {profile!r}: expected one of {PROFILES}.")
    form = FORMATS[format]
    # Everything that can be refused is refused before the disk is touched.
    _check_form(form, profile, target)
    if not form.is_divided:
        _check_at_hand(checkpoint.adapters)
    form.check(checkpoint)
    with form.replacing(target, overwrite=overwrite) as new:
        wanted = form.save(checkpoint, new, profile)
        with flush.meanwhile(new):
            form.check_place(target, wanted)
            got = form.read_back(new, wanted)
            _check_finite(target, got)
            check_same(wanted, got)
            # A format that keeps scales beside the factors has nothing to verify.
            if form.verify is not None:
                form.verify(new, wanted, checkpoint, profile)
                rounding.check_folded(checkpoint.adapters, wanted.adapters)
    _warn_of_extra(checkpoint, form)
    # Any other engine reads the format in a way of its own.
    if engine in (None, form.name):
        form.warn([*wanted.adapters, *wanted.absent])


def _check_form(form: FileFormat, profile: Profile, target: pathlib.Path) -> None:
    """Check that a format has the profile, and the target its ending."""
    if profile not in form.profiles:
        raise ValueError(f"The profile '{profile}' applies to PEFT only: leave it out.")
    if form.one_file and not target.name.endswith(form.suffix):
        raise ValueError(
            f"'{target}' must be a single file: end it in '{form.suffix}'."
        )


def _warn_of_extra(checkpoint: Checkpoint, form: FileFormat) -> None:
    """Warn of parts of an update known to readers of single files alone."""
    if not form.reader:
        return
    from para_jax.formats.kohya import spellings

    if lost := [x for x in sorted(checkpoint.extra) if spellings.is_update(x)]:
        warnings.warn(
            f"'{lost[0]}' is part of the update ({len(lost)} such tensors), and "
            f"{form.reader} would leave it out. Keep it in a single file.",
            stacklevel=3,
        )


def _check_at_hand(adapters: Adapters) -> None:
    for path, x in adapters.items():
        for factor in (x.a, x.b):
            if isinstance(factor, jax.Array) and not factor.is_fully_addressable:
                raise ValueError(
                    f"'{path}' is divided between processes, and this format is "
                    "written by one. Save it with format='orbax', in all of them."
                )


def _check_finite(folder: pathlib.Path, checkpoint: Checkpoint) -> None:
    for path, adapter in checkpoint.adapters.items():
        for name, factor in (("a", adapter.a), ("b", adapter.b)):
            if not np.isfinite(factor).all():
                raise ValueError(
                    f"'{path}' in '{folder}' contains NaN or infinity (factor {name})."
                )


def check_same(wanted: Checkpoint, got: Checkpoint) -> None:
    """Raise ValueError, naming the first difference, unless two checkpoints agree."""
    for field in ("adapters", "biases", "layers", "extra"):
        one, two = getattr(wanted, field), getattr(got, field)
        for name in sorted(one.keys() | two.keys()):
            if name not in one or name not in two or not _equal(one[name], two[name]):
                raise ValueError(
                    f"'{name}' does not read back as it was written: the format "
                    "cannot hold it. Are there dots in the paths of the modules?"
                )


def _equal(one: Any, two: Any) -> bool:
    if isinstance(one, Adapter):
        same = _equal(one.a, two.a) and _equal(one.b, two.b)
        return same and one.scale == two.scale
    if isinstance(one, Layer):
        return one == two
    if isinstance(one, jax.Array) and one.shape == np.shape(two):
        # Each process holds only its own parts, and compares these.
        parts = one.addressable_shards
        return all(tensor_files.same(np.asarray(x.data), two[x.index]) for x in parts)
    return tensor_files.same(np.asarray(one), np.asarray(two))
