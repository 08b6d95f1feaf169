"""Which format a folder or a file has, by the names of files alone. Host."""

import pathlib

from para_jax._engines.rules import Format
from para_jax.formats import other_files

_WEIGHTS: dict[str, Format] = {
    "adapter_model.safetensors": "peft",
    "adapters.safetensors": "mlx",
}
_ONE_FILE = (".safetensors", ".sft")  # The latter in ComfyUI and Forge.
_ORBAX_PARTS = ("state", "default", "pytree", "items", "params", "model_params")
_ORBAX_MARKS = ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt")


def place(path: pathlib.Path) -> pathlib.Path:
    """Return the folder of an adapter whose file of weights is named, or `path`."""
    stands = path.name in _WEIGHTS and not (path.is_dir() or _is_alone(path))
    return path.parent if stands else path


def recognise(path: str | pathlib.Path) -> Format:
    """Recognise the format of a folder or a file.

    Example:
      >>> para_jax.save(adapters, "run", format="orbax")
      >>> para_jax.formats.recognise("run")
      'orbax'

    Raises:
      FileNotFoundError: if there is nothing, or a file of no known kind.
      ValueError: if it is not an adapter. The message says what was found.
    """
    folder = pathlib.Path(path)
    if folder.name in _WEIGHTS and not folder.is_dir() and not _is_alone(folder):
        return _WEIGHTS[folder.name]
    if folder.suffix.lower() in _ONE_FILE and folder.is_file():
        other_files.check_shard(folder)
        return "kohya"
    if not folder.exists():
        other_files.refuse_missing(folder)
    if not folder.is_dir():
        other_files.refuse_file(folder)
    inside = [folder, *(folder / name for name in _ORBAX_PARTS)]
    if any((x / mark).exists() for x in inside for mark in _ORBAX_MARKS):
        return "orbax"
    if len(there := [name for name in _WEIGHTS if (folder / name).exists()]) == 2:
        raise ValueError(
            f"'{folder}' holds two adapters, {' and '.join(there)}: move one of them "
            "to a folder of its own, with its adapter_config.json."
        )
    if there:
        return _WEIGHTS[there[0]]
    if any(x.name.startswith("adapter_") for x in folder.iterdir()):
        return "peft"
    other_files.refuse_folder(folder)


def _is_alone(weights: pathlib.Path) -> bool:
    """Return whether PEFT's weights lack their configuration: a single file."""
    alone = not weights.with_name("adapter_config.json").exists()
    return weights.name == "adapter_model.safetensors" and weights.is_file() and alone
