"""The `config.json` of Hugging Face models as dataclasses. Runs on the host."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, TypeVar

from para_jax.formats import tensor_files

_T = TypeVar("_T")

FILE = "config.json"


def read(folder: pathlib.Path) -> dict[str, Any]:
    """Read all values of a model folder's `config.json`.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if it is not a JSON object.
    """
    if not (folder / FILE).is_file():
        raise FileNotFoundError(
            f"'{folder / FILE}' is missing. A model's folder has the files that its "
            "page on the hub lists."
        )
    return dict(tensor_files.read_json(folder / FILE))


def build(
    kind: type[_T],
    values: Mapping[str, Any],
    *,
    folder: pathlib.Path,
    form: Mapping[str, Any],
) -> _T:
    """Build the dataclass `kind` from the values of its fields.

    Args:
      kind: The dataclass. A field that `values` lacks has its default there.
      values: Values by name; names other than the fields are ignored.
      folder: The folder of the values, for the errors.
      form: What is written here of the architecture: values, where given, are these.

    Raises:
      ValueError: if the model is of another form, or lacks a value.
    """
    for key, value in form.items():
        if values.get(key, value) != value:
            raise ValueError(
                f"'{folder / FILE}': {key} is {values[key]!r}, expected {value!r}. "
                "Only this form of the architecture is implemented."
            )
    # An unbound type variable does not say that `kind` is a dataclass.
    fields = dataclasses.fields(kind)  # pyrefly: ignore[bad-argument-type]
    needed = [x.name for x in fields if x.default is dataclasses.MISSING]
    if missing := [name for name in needed if name not in values]:
        raise ValueError(
            f"'{folder / FILE}' has no values for {missing}. Save the whole "
            "configuration again with transformers."
        )
    return kind(**{x.name: values[x.name] for x in fields if x.name in values})
