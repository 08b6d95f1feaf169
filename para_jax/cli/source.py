"""Read SRC, and rename its modules for DST."""

import dataclasses
import pathlib

import para_jax as para
from para_jax import names
from para_jax._adapters.messages import Message
from para_jax._engines import renaming
from para_jax.cli import show, target
from para_jax.cli.request import Conversion, Hints
from para_jax.formats import recognise
from para_jax.names import from_config, models

# Formats of trees, and of the layers of Keras: they want the paths of JAX.
_JAX = ("orbax", "keras")


def load(request: Conversion) -> para.Checkpoint:
    """Read SRC under the names of DST, with a spinner."""
    with show.busy(f"Reading {request.source}"):
        return renamed(request)


def inspected(source: pathlib.Path, hints: Hints) -> para.Checkpoint:
    """Read an adapter under its own names, with a spinner."""
    with show.busy(f"Reading {source}"):
        return _read(source, hints)


def renamed(request: Conversion) -> para.Checkpoint:
    """Read SRC under the names of DST, and print nothing.

    Adapters are renamed before they are compressed: some kernels change with their
    names, and so do their singular values.
    """
    table = names_table(request)  # A wrong model is refused before anything is read.
    checkpoint = _read(request.source, request.hints)
    if table is not None:
        checkpoint = _converted(request, checkpoint, table)
    if engine := request.output.engine:
        return renaming.named(checkpoint, engine, form=target.form(request))
    return checkpoint


def _read(source: pathlib.Path, hints: Hints) -> para.Checkpoint:
    return para.load(source, **dataclasses.asdict(hints))


def names_table(request: Conversion) -> models.Names | pathlib.Path | None:
    """Find the table of names of --model, or the base model's configuration.

    Returns:
      The table, the path of the configuration, or None without --model.

    Raises:
      FileNotFoundError: if there is no such configuration.
      ValueError: if there is no such table, or several and no word to choose by.
    """
    rename = request.output.rename
    if (model := rename.model) is None:
        return None
    if from_config.is_configuration(model):
        _check_configuration(request, model)
        return pathlib.Path(model)
    table = names.read(model) if model.endswith(".toml") else model
    found = names.tables(table)
    # Hugging Face's names alone do not tell which JAX library's paths they become.
    to_jax = target.form(request) in _JAX and recognise(request.source) not in _JAX
    if rename.ecosystem is not None or to_jax:
        models.one(found, rename.ecosystem)
    return table


def _check_configuration(request: Conversion, model: str) -> None:
    facts = dataclasses.asdict(request.output.rename)
    for name in ("ecosystem", "head_dim", "layers"):
        if facts[name] is not None:
            flag = name.replace("_", "-")
            raise ValueError(
                f"--{flag} describes JAX paths, and '{model}' is a model of "
                f"transformers: leave out --{flag}, or give --model NAME."
            )
    form = target.form(request)
    if form in _JAX and form != recognise(request.source):
        raise ValueError(
            f"'{model}' has Hugging Face's names, and '{request.target}' is to have "
            "JAX paths: give --model NAME, or --format peft."
        )
    from_config.configuration(model)


def _converted(
    request: Conversion,
    checkpoint: para.Checkpoint,
    table: models.Names | pathlib.Path,
) -> para.Checkpoint:
    if isinstance(table, pathlib.Path):
        return names.to_installed(checkpoint, table)
    to_jax = target.form(request) in _JAX
    if to_jax and checkpoint.tree is not None:
        raise ValueError(
            f"'{request.source}' has JAX's names, as '{request.target}' is to have: "
            "leave out --model, or give --format peft."
        )
    convert = names.from_hf if to_jax else names.to_hf
    rename = request.output.rename
    try:
        return convert(
            checkpoint,
            table,
            ecosystem=rename.ecosystem,
            head_dim=rename.head_dim,
            layers=rename.layers,
        )
    except ValueError as error:
        if to_jax or checkpoint.tree is not None:
            raise
        # Only a checkpoint of our own may have either kind of names.
        problem = Message(
            error,
            f" If '{request.source}' has Hugging Face's names already, leave out "
            "--model.",
        )
        raise ValueError(problem) from error
