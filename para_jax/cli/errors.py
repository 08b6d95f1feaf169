"""What went wrong, in the words of the command line. Host."""

import re

# The library's keyword arguments that are flags here: `head_dim=` is --head-dim.
_KEYWORDS = (
    *("layout", "alpha", "scale", "stack_axis", "adapters_only"),
    *("ecosystem", "head_dim", "layers", "min_rank", "max_rank", "dtype"),
)


def sentence(error: Exception) -> str:
    """Returns one line that says what went wrong."""
    if isinstance(error, ModuleNotFoundError):
        extra = "fleet" if error.name == "ray" else "cli,plot"
        return f"this needs {error.name}: pip install 'para-jax[{extra}]'."
    if isinstance(error, OSError) and error.strerror:
        return f"'{error.filename}': {error.strerror}."
    text = spoken(" ".join(str(error).split())) or type(error).__name__
    if isinstance(error, (ValueError, OSError)):
        return text
    return f"{type(error).__name__}: {text} (--debug shows where)"


def spoken(text: str) -> str:
    """Returns a message of the library in the words of the command line."""
    keyword = re.compile(rf"\b({'|'.join(_KEYWORDS)})=(True\b)?(?=([\w-]|$)?)")

    def flag(match: re.Match[str]) -> str:
        space = "" if match[2] or match[3] is None else " "
        return f"--{match[1].replace('_', '-')}{space}"

    # What is in quotes is the user's, such as the path 'runs/alpha=16'.
    parts = re.split(r"((?<!\w)'[^']*'(?!\w))", text)
    parts[::2] = [keyword.sub(flag, part) for part in parts[::2]]
    text = "".join(parts).replace("overwrite it", "use --overwrite")
    text = text.replace("first: para_jax.names.to_hf", "first, with --model NAME")
    return text.replace("a table of your own", "a .toml file of your own")
