"""Files other than adapters: their writers, and remedies for the user.

They are recognised by name, and by their first bytes: nothing here is loaded. Runs on
the host.
"""

import pathlib
import re
import warnings
from collections.abc import Iterable
from typing import NoReturn

# Git LFS's specification: the version is the first line of a pointer.
_POINTER = b"version https://git-lfs"
_SHOWN = 3

# Not even opened to look: unpickling runs code.
_PICKLE = (
    "is a pickle, which could run any code and is never opened. Save the adapter as "
    "adapter_model.safetensors, PEFT's default."
)
_ARCHIVE = "is an archive: unpack it first."
_HDF5 = (
    "is an HDF5 file, as Keras writes a whole model (save, save_weights), with LoRA "
    "merged into its kernels. An adapter of keras-hub is a file '*.lora.h5' of "
    "Backbone.save_lora_weights; of any other model, pass para_jax.layouts.keras_tree "
    "to para_jax.from_tree."
)
_KINDS = {
    **dict.fromkeys((".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"), _PICKLE),
    **dict.fromkeys((".zip", ".tar", ".gz", ".tgz", ".7z", ".nemo"), _ARCHIVE),
    **dict.fromkeys((".h5", ".hdf5", ".keras"), _HDF5),
    ".gguf": (
        "is a GGUF file, llama.cpp's own form. Compress the adapter that it was "
        "converted from, and convert the child."
    ),
    ".npz": (
        "is a NumPy archive, as mlx-examples and old releases of mlx-lm write. Save "
        "its arrays as adapters.safetensors, beside an adapter_config.json that has "
        "num_layers and lora_parameters (rank, scale, dropout)."
    ),
    ".npy": "is a single NumPy array. Pass arrays to para_jax.Adapter in Python.",
    ".msgpack": (
        "is a tree that Flax serialised. Restore it in Flax, and pass it to "
        "para_jax.from_tree."
    ),
    ".distcp": (
        "is a shard of torch.distributed.checkpoint. Load it in PyTorch, and save the "
        "adapter with PEFT's save_pretrained."
    ),
}
# Trained with an adapter and kept beside PEFT's two files. A child without them is
# another model.
_TRAINED = {
    "non_lora_trainables.bin": "LLaVA",
    "value_head.safetensors": "LLaMA-Factory",
    "value_head.bin": "LLaMA-Factory",
}
_ADAPTER = {"adapter_config.json", "adapter_model.safetensors", "adapters.safetensors"}
_ORBAX = {"_METADATA", "_CHECKPOINT_METADATA"}
# transformers' names of shards and their index, and of a whole model's weights.
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.|\.index\.json$")
_WHOLE = re.compile(r"^(model|pytorch_model|diffusion_pytorch_model)[.-]")


def check_pointer(path: pathlib.Path) -> None:
    """Raise ValueError if a file is a Git LFS pointer, not the file itself."""
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(len(_POINTER))
        if start == _POINTER:
            raise ValueError(
                f"'{path}' is a Git LFS pointer: the file itself was not downloaded. "
                "Run 'git lfs pull' in its repository."
            )


def check_shard(path: pathlib.Path) -> None:
    """Raise ValueError if a file is a part of an adapter, by its name."""
    match = _SHARD.search(path.name)
    # `-00001-of-00001` is a whole file in one shard.
    part = match and "-of-00001." not in match[0]
    if part and not _WHOLE.match(path.name):
        raise ValueError(_shards(path))


def check_pointers(folder: pathlib.Path) -> None:
    """Raise ValueError, naming the first one, if any file in a folder is a pointer."""
    for path in sorted(folder.rglob("*")):
        check_pointer(path)


def refuse_file(path: pathlib.Path) -> NoReturn:
    """Raise the error for a file other than an adapter.

    Raises:
      FileNotFoundError: if its kind is not known here.
      ValueError: if it is known. The message names the kind and the remedy.
    """
    check_pointer(path)
    if path.name == "adapter_config.json":
        raise ValueError(
            f"'{path}' is the configuration alone: name its folder, '{path.parent}'."
        )
    if path.name.endswith(".index.json"):
        raise ValueError(_shards(path))
    if path.suffix.lower() in _KINDS:
        raise ValueError(f"'{path}' {_KINDS[path.suffix.lower()]}")
    raise FileNotFoundError(f"'{path}' is a file, expected a folder.")


def refuse_missing(path: pathlib.Path) -> NoReturn:
    """Raise FileNotFoundError for a missing path, naming files near it."""
    near = sorted(x.name for x in path.parent.glob("*.safetensors"))
    hint = f" Beside it there is {listed(near)}." if near else ""
    raise FileNotFoundError(f"'{path}' does not exist.{hint}")


def refuse_folder(folder: pathlib.Path) -> NoReturn:
    """Raise ValueError for a folder without an adapter, naming its contents."""
    names = sorted(x.name for x in folder.iterdir())
    if not names:
        raise ValueError(
            f"'{folder}' is empty: it holds neither a PEFT adapter (adapter_config.json"
            ", adapter_model.safetensors) nor an Orbax checkpoint."
        )
    if found := _adapters_in(folder):
        raise ValueError(
            f"'{folder}' holds adapters in folders of their own: name one of them, "
            f"{listed(found)}."
        )
    _check_weights(folder, names)
    steps = [name for name in names if name.isdigit()]
    remedy = f" Name one of the steps in it, such as '{steps[-1]}'." if steps else ""
    raise ValueError(
        f"'{folder}' holds neither a PEFT adapter (adapter_config.json, "
        "adapter_model.safetensors), nor one of mlx-lm (adapters.safetensors), nor an "
        f"Orbax checkpoint.{remedy}"
    )


def check_weights(folder: pathlib.Path, weights: str) -> None:
    """Raise ValueError if a folder holds other files in place of its weights.

    Args:
      folder: A folder recognised as an adapter.
      weights: The name of its file of weights.
    """
    if not (folder / weights).exists():
        _check_weights(folder, sorted(x.name for x in folder.iterdir()))


def warn_of_trained(folder: pathlib.Path) -> None:
    """Warn of other trained files beside an adapter."""
    for name, writer in _TRAINED.items():
        if (folder / name).is_file():
            warnings.warn(
                f"'{folder / name}' was trained with this adapter ({writer}'s), and is "
                "not read. Copy it beside every child.",
                stacklevel=4,  # The caller of `load`.
            )


def _check_weights(folder: pathlib.Path, names: list[str]) -> None:
    if shards := [x for x in names if _SHARD.search(x) and not _WHOLE.match(x)]:
        raise ValueError(_shards(folder / shards[0]))
    if "zero_to_fp32.py" in names:
        raise ValueError(
            f"'{folder}' is a DeepSpeed checkpoint. Convert it with the "
            "zero_to_fp32.py in it, and save the adapter with PEFT's save_pretrained."
        )
    files = [x for x in names if x.endswith(".safetensors")]
    if whole := [x for x in files if _WHOLE.match(x)]:
        raise ValueError(
            f"'{folder / whole[0]}' holds a whole model's weights, not an adapter. "
            "para_jax.extract makes an adapter of a tuned model and its base."
        )
    if steps := [x for x in files if x.endswith("_adapters.safetensors")]:
        raise ValueError(
            f"'{folder}' holds {listed(steps)}, which mlx-lm saves while it trains: "
            "copy one to adapters.safetensors, beside its adapter_config.json."
        )
    if len(files) == 1:
        raise ValueError(f"'{folder}' holds one file: name it, '{folder / files[0]}'.")
    if files:
        raise ValueError(f"'{folder}' holds {listed(files)}: name one of them.")
    for name in names:
        if (suffix := pathlib.PurePath(name).suffix.lower()) in _KINDS:
            raise ValueError(f"'{folder / name}' {_KINDS[suffix]}")


def _adapters_in(folder: pathlib.Path) -> list[str]:
    """List the subfolders with an adapter, ordered by their numbers."""
    marks = _ADAPTER | _ORBAX
    # Folders named by a number are steps of one checkpoint.
    found = [x for x in folder.iterdir() if x.is_dir() and not x.name.isdigit()]
    names = [x.name for x in found if any((x / mark).exists() for mark in marks)]
    return sorted(names, key=lambda x: ([int(n) for n in re.findall(r"\d+", x)], x))


def _shards(path: pathlib.Path) -> str:
    return (
        f"'{path}' is part of an adapter that was saved in shards. Load it with the "
        "program that wrote it, and save it as one file: PEFT's save_pretrained does."
    )


def listed(names: Iterable[str]) -> str:
    """Format up to three names in quotes, and the number of others.

    Example:
      >>> from para_jax.formats import other_files
      >>> other_files.listed(["a", "b", "c", "d"])
      "'a', 'b', 'c' and 1 more"
    """
    names = list(names)
    shown = ", ".join(f"'{x}'" for x in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if names[_SHOWN:] else "")


def no_factors(names: Iterable[str]) -> str:
    """Describe tensors without a LoRA factor among them.

    Example:
      >>> from para_jax.formats import other_files
      >>> other_files.no_factors(["classifier.weight"])
      "holds no LoRA factors (1 tensors: 'classifier.weight')."
    """
    names = sorted(names)
    inside = f": {listed(names)}" if names else ""
    return f"holds no LoRA factors ({len(names)} tensors{inside}).{_advice(names)}"


def _advice(names: list[str]) -> str:
    ends = {name.rpartition(".")[2] for name in names}
    if ends & {"lora_a", "lora_b"}:
        return (
            " lora_a and lora_b are mlx-lm's: name it adapters.safetensors, beside its "
            "adapter_config.json, which has the scale."
        )
    if ends <= {"diff", "diff_b", "w_norm", "b_norm", "alpha"} and ends:
        return " They are whole differences, as of LyCORIS with algo=full."
    if {"A", "B"} <= ends:
        return (
            " A and B are those of mlx-vlm before 2026, whose releases disagree about "
            "the scale. Load the adapter there, and save it with a later release."
        )
    # Names of attention's projections in language and image models.
    if {"q_proj", "to_q", "c_attn", "query"} & {
        part for name in names for part in name.split(".")
    } and not any("lora" in name.lower() for name in names):
        return (
            " It looks like a whole model: para_jax.extract makes an adapter of a "
            "tuned model and its base."
        )
    return ""
