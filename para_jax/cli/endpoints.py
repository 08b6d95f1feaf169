"""The two ends of a command: SRC read and renamed, DST checked and written. Host."""

import argparse
import dataclasses
import pathlib

import numpy as np

import para_jax as para
from para_jax import names
from para_jax._adapters.messages import Message
from para_jax._engines import prepare, registry, renaming
from para_jax._engines import rules as engine_rules
from para_jax._pruning.report import human_bytes
from para_jax.cli import parser, show
from para_jax.formats import Format, atomic, recognise
from para_jax.names import models


def load(given: argparse.Namespace) -> para.Checkpoint:
    """Returns what is at SRC, under the names that DST is to have.

    Renamed before compressing: some kernels change with their names, and so do their
    singular values.
    """
    with show.busy(f"Reading {given.source}"):
        return _load(given)


def compressed(
    given: argparse.Namespace, source: pathlib.Path, target: pathlib.Path
) -> para.Report:
    """Writes the child of one of many adapters; returns what was kept. Shows nothing.

    It replaces what an earlier run wrote.
    """
    words = vars(given) | {"source": source, "target": target, "overwrite": True}
    one = argparse.Namespace(**words)
    (policy,) = parser.policies(one)
    parent = _load(one)
    check_engine(one, parent)
    child = para.compress(parent, policy, method=one.method, dtype=one.dtype)
    save(one, child, target)
    return child.report


def _load(given: argparse.Namespace) -> para.Checkpoint:
    table = _table(given)
    found = para.load(
        given.source,
        layout=given.layout,
        alpha=given.alpha,
        scale=given.scale,
        stack_axis=given.stack_axis,
        adapters_only=given.adapters_only,
    )
    if table is not None:
        found = _renamed(given, found, table)
    if engine := vars(given).get("engine"):
        return renaming.named(found, engine, form=form(given))
    return found


def _table(given: argparse.Namespace) -> models.Names | None:
    """Returns the table of names that --model asks for, if there is one to use."""
    if (model := vars(given).get("model")) is None:
        return None
    table = names.read(model) if model.endswith(".toml") else model
    found = names.tables(table)
    to_jax = form(given) == "orbax" != recognise(given.source)
    if given.ecosystem is not None or to_jax:
        models.one(found, given.ecosystem)
    return table


def _renamed(
    given: argparse.Namespace, found: para.Checkpoint, table: models.Names
) -> para.Checkpoint:
    to_jax = form(given) == "orbax"
    if to_jax and found.tree is not None:
        raise ValueError(
            f"'{given.source}' has JAX's names, as '{given.target}' is to have: leave "
            "out --model, or give --format peft."
        )
    rename = names.from_hf if to_jax else names.to_hf
    facts = {x: getattr(given, x) for x in ("ecosystem", "head_dim", "layers")}
    try:
        return rename(found, table, **facts)
    except ValueError as error:
        if to_jax or found.tree is not None:
            raise
        raise ValueError(
            Message(
                error,
                f" If '{given.source}' has Hugging Face's names already, leave out "
                "--model.",
            )
        ) from error


def form(given: argparse.Namespace) -> Format:
    """Returns the format of DST."""
    if given.engine:
        one_file = given.target.suffix == ".safetensors"
        return engine_rules.form(registry.known(given.engine), one_file=one_file)
    return given.format or recognise(given.source)


def check_target(given: argparse.Namespace, target: pathlib.Path) -> None:
    """Raises an error before any work if DST could not be written after it."""
    _check_form(given, target)
    one_file = target.suffix == ".safetensors"
    check = atomic.check_file if one_file else atomic.check_target
    check(target, overwrite=given.overwrite)


def check_words(
    given: argparse.Namespace, source: pathlib.Path, target: pathlib.Path
) -> None:
    """Raises ValueError if no child of such an adapter can be as the command asks."""
    one = argparse.Namespace(**vars(given) | {"source": source, "target": target})
    _table(one)
    _check_form(one, target)


def _check_form(given: argparse.Namespace, target: pathlib.Path) -> None:
    wanted, one_file = form(given), target.suffix == ".safetensors"
    if wanted != "peft" and given.profile not in (None, "ragged"):
        raise ValueError(
            f"--profile {given.profile} is of PEFT, and '{target}' is to be {wanted}: "
            "leave it out, or give --format peft."
        )
    if wanted == "kohya" and not one_file:
        raise ValueError(f"'{target}' is to be one file: end it in '.safetensors'.")
    if wanted != "kohya" and one_file:
        raise ValueError(
            f"'{target}' is to be a folder of {wanted}: leave out '.safetensors', or "
            "give --format kohya for one file."
        )


def check_engine(given: argparse.Namespace, parent: para.Checkpoint) -> None:
    """Raises an error before any work if an engine would refuse every child."""
    if given.engine:
        one_rank = {
            path: para.Adapter(
                a=np.ones((*x.stack, x.inputs, 1), x.a.dtype),
                b=np.ones((*x.stack, 1, x.outputs), x.a.dtype),
            )
            for path, x in parent.adapters.items()
        }
        smallest = dataclasses.replace(parent, adapters=one_rank)
        one_file = given.target.suffix == ".safetensors"
        prepare.prepare(smallest, given.engine, one_file=one_file)


def save(
    given: argparse.Namespace, checkpoint: para.Checkpoint, target: pathlib.Path
) -> None:
    """Writes adapters as the command asks for."""
    para.save(
        checkpoint,
        target,
        format="peft" if given.engine else form(given),
        profile=given.profile or "ragged",
        engine=given.engine,
        overwrite=given.overwrite,
    )


def check_file(path: pathlib.Path | None) -> None:
    """Raises an error before any work if a file could not be written after it."""
    if path is not None and not path.parent.is_dir():
        raise NotADirectoryError(
            f"'{path}': the folder '{path.parent}' does not exist."
        )
    if path is not None and path.is_dir():
        raise FileExistsError(f"'{path}' is a folder, expected a file.")


def check_picture(path: pathlib.Path | None) -> None:
    """Raises an error before any work if a picture could not be drawn after it."""
    check_file(path)
    if path is not None:
        from matplotlib.backend_bases import FigureCanvasBase

        kinds = FigureCanvasBase.get_supported_filetypes()
        if path.suffix.removeprefix(".") not in kinds:
            raise ValueError(f"'{path}' is no picture: use .png, .pdf or .svg.")


def on_disk(place: pathlib.Path) -> str:
    """Returns the size of a file, or of all files in a folder."""
    files = [place] if place.is_file() else place.rglob("*")
    return human_bytes(sum(x.stat().st_size for x in files if x.is_file()))
