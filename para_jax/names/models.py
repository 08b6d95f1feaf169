"""Look up the tables of a known model, and read a user's own table."""

import difflib
import pathlib
import tomllib
from collections.abc import Mapping

from para_jax._adapters.messages import Argument, Message, Remedy
from para_jax.names.decoders import DECODERS, Tables
from para_jax.names.encoders import ENCODERS
from para_jax.names.gemma4 import GEMMA4
from para_jax.names.keras import KERAS
from para_jax.names.mixtures import MIXTURES
from para_jax.names.patterns import Module, Table, problems

_OTHERS = {"gemma": {}, **DECODERS, **MIXTURES, **GEMMA4, **ENCODERS}

MODELS: Mapping[str, Tables] = {
    name: {**x, **KERAS.get(name, {})} for name, x in _OTHERS.items()
}
"""The tables of each model by ecosystem."""

Names = str | Mapping[str, str | Module]
"""A name in `MODELS`, or the user's own table."""

_OWN = "your own"


def tables(names: Names) -> Tables:
    """Return the tables of a model by ecosystem.

    Example:
      >>> from para_jax import names
      >>> table = names.tables("gemma3")["tunix"]
      >>> table["layers/{i}/attn/q_einsum"].name
      'model.layers.{i}.self_attn.q_proj'

    Args:
      names: A name in `MODELS`, or Hugging Face's name of each JAX path, such as
        `{"layers/{i}/q": "model.layers.{i}.self_attn.q_proj"}`: `{i}` is the layer's
        number, `{e}` an expert's. A `Module` adds the differences in form.

    Raises:
      ValueError: if the model is not known, or the table cannot be read both ways.
    """
    if isinstance(names, str):
        if names in MODELS:
            return MODELS[names]
        near = difflib.get_close_matches(names.lower(), MODELS, n=1)
        raise ValueError(
            Message(
                f"The model '{names}' is not known",
                f"; did you mean '{near[0]}'? " if near else ". ",
                f"Expected one of {', '.join(sorted(MODELS))}, or ",
                Remedy.OWN_TABLE,
                ".",
            )
        )
    own = {key: Module(x) if isinstance(x, str) else x for key, x in names.items()}
    if problem := next(problems(own), None if own else "it is empty"):
        raise ValueError(f"The table of names cannot be read both ways: {problem}.")
    return {_OWN: own}


def read(path: str | pathlib.Path) -> dict[str, str]:
    """Read a table from a TOML file, one line per pattern.

    Example:
      >>> import pathlib
      >>> from para_jax import names
      >>> line = '"layers/{i}/q" = "model.layers.{i}.self_attn.q_proj"'
      >>> _ = pathlib.Path("names.toml").write_text(line)
      >>> names.read("names.toml")
      {'layers/{i}/q': 'model.layers.{i}.self_attn.q_proj'}

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is not TOML, has values other than strings, or cannot be read
        both ways.
    """
    file = pathlib.Path(path).expanduser()
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"'{file}' is not valid TOML: {error}.") from error
    for key, value in table.items():
        if not isinstance(value, str):
            raise ValueError(
                f"'{file}': '{key}' is a {type(value).__name__}, expected a Hugging "
                'Face name: "path/of/{i}/module" = "name.of.{i}.module", both quoted.'
            )
    try:
        tables(table)
    except ValueError as error:
        raise ValueError(Message(f"'{file}': ", error)) from error
    return table


def title(names: Names) -> str:
    """Return the name of a table for an error."""
    return f"'{names}'" if isinstance(names, str) else "the table"


def one(found: Tables, ecosystem: str | None) -> tuple[str, Table]:
    """Return the table of an ecosystem, or the only table.

    Raises:
      ValueError: if there is no such table, or no ecosystem chooses among several.
    """
    if ecosystem is None and len(found) == 1:
        return next(iter(found.items()))
    if ecosystem is not None and ecosystem in found:
        return ecosystem, found[ecosystem]
    got = "not given" if ecosystem is None else f"'{ecosystem}'"
    raise ValueError(
        Message(
            f"The ecosystem is {got}. Say which, ",
            Argument("ecosystem"),
            f": {', '.join(sorted(found))}.",
        )
    )
