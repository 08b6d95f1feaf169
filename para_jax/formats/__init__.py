"""Adapters on disk: PEFT and mlx-lm folders, Orbax checkpoints, single files. Host.

A format's file is imported when it is used: Orbax alone takes longer to import than
a small adapter takes to compress.
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
from para_jax._engines import experts as expert_modules
from para_jax._engines.profiles import PROFILES
from para_jax._engines.profiles import Profile as Profile
from para_jax._engines.rules import Format as Format
from para_jax._pruning import rounding
from para_jax.formats import atomic, other_files, tensor_files
from para_jax.formats.kohya import spellings
from para_jax.formats.mlx import folder as mlx
from para_jax.formats.recognition import place
from para_jax.formats.recognition import recognise as recognise
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
    """Returns the adapters in a folder or a file, as NumPy arrays.

    The format is recognised by the files. Nothing is ever unpickled.

    Example:
      >>> para_jax.save(adapters, "adapter", format="peft")
      >>> parent = para_jax.load("adapter")
      >>> sorted(parent.adapters), parent.config["rank_pattern"]
      (['down', 'up'], {'down': 2})

    Args:
      path: A folder of PEFT or mlx-lm, or the file of weights in it; an Orbax
        checkpoint; or a single file, `*.safetensors`, as of kohya's sd-scripts or of
        diffusers.
      layout: What wrote an Orbax checkpoint, a name in `para_jax.layouts.LAYOUTS`;
        recognised if left out. What `save` wrote needs none of the next three.
      alpha: The numerator of its scale, which arrays cannot tell; one number, or one a
        module by path. For a single file, where neither a tensor nor the header nor a
        file beside it says it: without a word its scale is 1.
      scale: `alpha / r`, instead of `alpha`.
      stack_axis: Where its layers are stacked, if shapes alone do not tell.
      adapters_only: Whether to leave out all that is no adapter: the base weights in
        an Orbax checkpoint, which stay unread; a trained head.

    Raises:
      FileNotFoundError: if there is nothing, or a file is missing.
      ValueError: if the adapter is broken or cannot be represented. The message
        names the file and the module.
    """
    folder = place(pathlib.Path(path).expanduser())
    with contextlib.suppress(OSError):  # Where only reading is allowed.
        atomic.recover(folder)
    found = recognise(folder)
    given = {"alpha": alpha, "scale": scale}
    _check_words(folder, found, {"layout": layout, "stack_axis": stack_axis} | given)
    if found == "peft":
        from para_jax.formats.peft import folder as peft

        other_files.check_weights(folder, peft.WEIGHTS)
        other_files.warn_of_trained(folder)
        checkpoint = peft.load(folder)
    elif found == "kohya":
        from para_jax.formats.kohya import single_file as kohya

        checkpoint = kohya.load(folder, given=kohya.Given(alpha, scale))
    elif found == "mlx":
        checkpoint = mlx.load(folder)
    else:
        from para_jax.formats.orbax import checkpoint as orbax

        hints = orbax.Hints(layout, alpha, scale, stack_axis, adapters_only)
        checkpoint = orbax.load(folder, hints)
    if adapters_only:
        checkpoint = dataclasses.replace(checkpoint, extra={})
    _check_finite(folder, checkpoint)
    return dataclasses.replace(checkpoint, source=folder.resolve().name)


def _check_words(
    path: pathlib.Path, found: Format, words: Mapping[str, object]
) -> None:
    """Check that a format leaves open what the caller says."""
    for name, value in words.items():
        if value is None or found == "orbax":
            continue
        if found == "kohya" and name in ("alpha", "scale"):
            continue  # Where the file says nothing.
        what = "own scales" if name in ("alpha", "scale") else "own layout"
        raise ValueError(
            Message(
                f"'{path}' holds its {what}: leave out ", Argument(name, value), "."
            )
        )


def save(
    checkpoint: Checkpoint | Adapters,
    path: Path,
    *,
    format: Format = "peft",  # noqa: A002
    profile: Profile = "ragged",
    engine: str | None = None,
    overwrite: bool = False,
) -> None:
    """Writes adapters, and all that was stored beside them, as a whole or not at all.

    The target appears by one rename after everything was written, flushed to disk and
    read back; a crash at any moment leaves what was there before. Where JAX runs in
    several processes, all of them have to save an Orbax checkpoint together.

    Example:
      >>> child = para_jax.compress(adapters, para_jax.Gamma(0.5))
      >>> para_jax.save(child, "small")  # A PEFT folder.
      >>> para_jax.save(child, "small.safetensors", format="kohya")
      >>> para_jax.save(child, "small-padded", engine="sglang")

    Args:
      checkpoint: What `load` or `compress` gave, or just adapters by path.
      path: The folder to make; for kohya, the file.
      format: `peft`, `mlx`, `orbax`, or `kohya` for a single safetensors file, under
        the names that it was read with, or kohya's.
      profile: For `peft`, what its ranks and alphas are for: `ragged` (PEFT, vLLM),
        `padded` with zeros to one rank (every engine), `uniform-by-type` (scanned
        models) or `per-tensor-alpha` (llama.cpp). See `formats.profiles.shaped`.
      engine: What is to serve the adapter, a name in `formats.engines.ENGINES`, instead
        of `format` and `profile`.
      overwrite: Whether an adapter that is there may be replaced.

    Raises:
      OSError: if the target exists or cannot be written.
      ValueError: if the format cannot hold the adapters.
    """
    target = pathlib.Path(path).expanduser()
    checkpoint = as_checkpoint(checkpoint)
    if engine is not None:
        if (format, profile) != ("peft", "ragged"):
            raise ValueError(f"{engine=} decides on format and profile: omit them.")
        from para_jax._engines import prepare, renaming

        checkpoint, format, profile = prepare.prepare(  # noqa: A001
            checkpoint, engine, one_file=target.suffix == ".safetensors"
        )
        renaming.warn(checkpoint, engine)
    if format not in get_args(Format):
        raise ValueError(f"Unknown format {format!r}: expected {get_args(Format)}.")
    if profile not in PROFILES:
        raise ValueError(f"Unknown profile {profile!r}: expected one of {PROFILES}.")
    if format != "peft" and profile != "ragged":
        raise ValueError(f"The profile '{profile}' is of PEFT: leave it out.")
    if format == "kohya" and target.suffix != ".safetensors":
        raise ValueError(f"'{target}' is to be one file: end it in '.safetensors'.")
    if format != "orbax":
        _check_at_hand(checkpoint.adapters)
    mlx.check_crossing(checkpoint, format)
    with _replacing(format)(target, overwrite=overwrite) as new:
        wanted, got = _written(checkpoint, target, new, format, profile)
        _check_finite(target, got)
        check_same(wanted, got)
        if format != "orbax":
            from para_jax.formats import verify

            verify.check(new, wanted, checkpoint, profile)
            rounding.check_folded(checkpoint.adapters, wanted.adapters)
    _warn_of_extra(checkpoint, format)
    if format == "peft" and engine in (None, "peft"):
        expert_modules.warn([*wanted.adapters, *wanted.absent])


def _warn_of_extra(checkpoint: Checkpoint, form: Format) -> None:
    """Warn of parts of an update that only readers of single files know."""
    lost = [x for x in sorted(checkpoint.extra) if spellings.is_update(x)]
    if lost and form in ("peft", "mlx"):
        reader = "PEFT" if form == "peft" else "mlx-lm"
        warnings.warn(
            f"'{lost[0]}' is part of the update ({len(lost)} such tensors), and "
            f"{reader} would leave it out. Keep it in a single file.",
            stacklevel=3,
        )


def _written(
    checkpoint: Checkpoint,
    target: pathlib.Path,
    new: pathlib.Path,
    format: Format,  # noqa: A002
    profile: Profile,
) -> tuple[Checkpoint, Checkpoint]:
    """Write a checkpoint; return what it should read back as, and what it does."""
    if format == "peft":
        from para_jax.formats.peft import folder as peft

        wanted = peft.save(checkpoint, new, profile=profile)
        return wanted, peft.load(new, dict(peft.named(wanted)))
    if format == "kohya":
        from para_jax.formats.kohya import single_file as kohya
        from para_jax.formats.kohya import stated

        wanted = kohya.save(checkpoint, new)
        stated.check_alone(target, wanted)
        return wanted, kohya.load(new, dict(kohya.named(wanted)))
    if format == "mlx":
        wanted = mlx.save(checkpoint, new)
        return wanted, mlx.load(new)
    from para_jax.formats.orbax import checkpoint as orbax

    wanted = orbax.save(checkpoint, new)
    return wanted, orbax.reload(new, wanted)


def _check_at_hand(adapters: Adapters) -> None:
    for path, x in adapters.items():
        for factor in (x.a, x.b):
            if isinstance(factor, jax.Array) and not factor.is_fully_addressable:
                raise ValueError(
                    f"'{path}' is divided between processes, and this format is "
                    "written by one. Save it with format='orbax', in all of them."
                )


def _replacing(format: Format) -> Any:  # noqa: A002
    """Returns what makes room for a format. Processes share Orbax's alone."""
    if format == "kohya":
        return atomic.replacing_file
    if format in ("peft", "mlx"):
        return atomic.replacing
    from para_jax.formats import multihost

    return multihost.replacing


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
    if isinstance(one, jax.Array) and one.shape == np.shape(two):
        # Each process has its own parts at hand, and compares these.
        parts = one.addressable_shards
        return all(tensor_files.same(np.asarray(x.data), two[x.index]) for x in parts)
    return tensor_files.same(np.asarray(one), np.asarray(two))
