"""Errors and warnings in the words of the command line."""

from para_jax._adapters.messages import Argument, Part, Remedy, on_one_line, parts_of

_REMEDIES = {
    Remedy.OVERWRITE: "use --overwrite",
    Remedy.RENAME_FIRST: "first, with --model NAME",
    Remedy.NEW_NAMES: "para convert SRC DST --model FOLDER, the base model's folder",
    Remedy.OWN_TABLE: "a .toml file of your own",
}


def sentence(error: Exception) -> str:
    """Write one line about an error, with its remedy."""
    if isinstance(error, ModuleNotFoundError):
        return f"this needs {error.name}: pip install {_package(error.name)}."
    # Of the system, such as a full disk: its own text begins with a number.
    if isinstance(error, OSError) and error.strerror:
        return f"'{error.filename}': {error.strerror}."
    text = spoken(on_one_line(error)) or type(error).__name__
    # The library raises these with whole sentences; any other kind is a surprise.
    if isinstance(error, (ValueError, OSError)):
        return text
    return f"{type(error).__name__}: {text} (--debug shows where)"


def _package(module: str | None) -> str:
    if module in ("torch", "transformers"):  # Of no extra: the model is the user's.
        return "torch transformers"
    extra = {"ray": "fleet", "h5py": "keras"}.get(module or "", "cli,plot")
    return f"'para-jax[{extra}]'"


def spoken(said: str | BaseException) -> str:
    """Write a message of the library with flags for its arguments."""
    return "".join(map(_word, parts_of(said)))


def _word(part: Part) -> str:
    if isinstance(part, Remedy):
        return _REMEDIES[part]
    return _flag(part) if isinstance(part, Argument) else part


def _flag(argument: Argument) -> str:
    flag = f"--{argument.name.replace('_', '-')}"
    # A switch takes no value: its presence is the True.
    alone = argument.value is None or argument.value is True
    return flag if alone else f"{flag} {argument.value}"
