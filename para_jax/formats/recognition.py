"""Recognise the format of a folder or a file, by the names of files alone."""

import pathlib

from para_jax._engines.rules import Format
from para_jax.formats import other_files
from para_jax.formats.format import FileFormat
from para_jax.formats.registry import FORMATS


def place(path: pathlib.Path) -> pathlib.Path:
    """Return the folder of an adapter if the path names its weights, else the path."""
    return path if _of_weights(path) is None else path.parent


def recognise(path: str | pathlib.Path) -> Format:
    """Recognise the format of a folder or a file.

    Example:
      >>> para_jax.save(adapters, "run", format="orbax")
      >>> para_jax.formats.recognise("run")
      'orbax'

    Raises:
      FileNotFoundError: if there is nothing, or a file of no known kind.
      ValueError: if it is not an adapter. The message names the contents.
    """
    folder = pathlib.Path(path)
    if (form := _of_weights(folder)) is not None:
        return form.name
    if (form := _of_suffix(folder)) is not None:
        other_files.check_shard(folder)
        return form.name
    if not folder.exists():
        other_files.refuse_missing(folder)
    if not folder.is_dir():
        other_files.refuse_file(folder)
    if (form := _of_folder(folder)) is not None:
        return form.name
    other_files.refuse_folder(folder)


def _of_weights(path: pathlib.Path) -> FileFormat | None:
    """Find the format of a folder by the name of its weights, present or not."""
    form = next((x for x in FORMATS.values() if path.name == x.weights), None)
    if form is None or path.is_dir():
        return None
    # Such a file does not belong to the folder: it is read by itself.
    lone = form.beside and path.is_file() and not path.with_name(form.beside).exists()
    return None if lone else form


def _of_suffix(path: pathlib.Path) -> FileFormat | None:
    name = path.name.lower()
    form = next((x for x in FORMATS.values() if name.endswith(x.suffixes or "/")), None)
    return form if path.is_file() else None


def _of_folder(folder: pathlib.Path) -> FileFormat | None:
    """Find the format by the marks in a folder, or by remains of an adapter."""
    marked = [
        form
        for form in FORMATS.values()
        if any((folder / mark).exists() for mark in form.marks)
    ]
    # Only Orbax writes the marks of a tree, whatever files lie beside them.
    if tree := next((form for form in marked if not form.weights), None):
        return tree
    if len(marked) > 1:
        there = [form.weights for form in marked]
        raise ValueError(
            f"'{folder}' holds two adapters, {' and '.join(there)}: move one of them "
            "to a folder of its own, with its adapter_config.json."
        )
    return marked[0] if marked else _of_remains(folder)


def _of_remains(folder: pathlib.Path) -> FileFormat | None:
    names = [x.name for x in folder.iterdir()]
    for form in FORMATS.values():
        # Loading then says which file is missing.
        if form.remains and any(name.startswith(form.remains) for name in names):
            return form
    return None
