"""The table of formats. A new format is a package with a `FORMAT`, and a line here."""

import pathlib

from para_jax._engines.rules import Format
from para_jax.formats import keras, kohya, mlx, orbax, peft
from para_jax.formats.format import FileFormat

FORMATS: dict[Format, FileFormat] = {
    one.name: one
    for one in (
        peft.FORMAT,
        orbax.FORMAT,
        kohya.FORMAT,
        mlx.FORMAT,
        keras.FORMAT,
    )
}
"""All formats by name."""


def is_one_file(target: pathlib.Path) -> bool:
    """Decide by its ending whether a target is a single file, not a folder.

    Example:
      >>> import pathlib
      >>> from para_jax.formats import is_one_file
      >>> is_one_file(pathlib.Path("adapter.safetensors"))
      True
    """
    # Some endings have two parts, which `suffix` of a path would cut.
    return target.name.endswith(
        tuple(one.suffix for one in FORMATS.values() if one.one_file)
    )
