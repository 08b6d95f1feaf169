"""The needs of a preset, and a survey of those present.

Folders of models and data sets are found as in `train.models.repository` and
`train.data.hub`, by the same environment variables.

Nothing is downloaded, trained or allocated. Runs on the host.
"""

import dataclasses
import functools
import importlib.util
import json
import os
import pathlib

import jax

from train.data import hub, sources
from train.models import configuration, folder_config, gguf_file, repository

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"

# Names to import, and nothing that a preset without data sets needs.
_PACKAGES = ("datasets", "math_verify", "PIL")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """A pretrained model.

    Attributes:
      repo: Its repository on the hub, or a folder with its files.
      files: The files needed beside the tensors.
      families: The `model_type`s of which it is one; if empty, any will do.
      size: Bytes to download, if they are known.
      remark: A step to take before, such as to accept a licence.
    """

    repo: str
    files: tuple[str, ...] = ("config.json",)
    families: tuple[str, ...] = ()
    size: int | None = None
    remark: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needs:
    """The models, data and memory of one run.

    Attributes:
      weights: The frozen model, if it does not ship with this package.
      data: Names of `sources.SOURCES`.
      memory_bytes: Of one device: the peak of LoRA's training, and half as much again
        for what was not measured: other methods, and children side by side.
    """

    weights: Weights | None = None
    data: tuple[str, ...] = ()
    memory_bytes: int = 0


def with_model(needs: Needs, repo: str) -> Needs:
    """Return the needs with another model.

    Its size and its licence are not known, nor the memory of its training.

    Args:
      needs: The needs of a preset.
      repo: The model's repository on the hub; if empty, it is the preset's own.
    """
    if needs.weights is None or repo in ("", needs.weights.repo):
        return needs
    weights = dataclasses.replace(needs.weights, repo=repo, size=None, remark="")
    return dataclasses.replace(needs, weights=weights, memory_bytes=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """One need, and whether it is met.

    Attributes:
      kind: Weights, data, packages or memory.
      name: The needed thing.
      there: Whether it is.
      note: Its place, or the missing files.
      remark: A remark on the missing thing: a licence, an oddity.
      download: Bytes that a run would download; None where it is not known.
      command: The command to download it, if there is one.
    """

    kind: str
    name: str
    there: bool
    note: str
    remark: str = ""
    download: int | None = 0
    command: str = ""


def survey(
    needs: Needs,
    *,
    data: pathlib.Path | None = None,
    weights: pathlib.Path | None = None,
) -> list[Finding]:
    """Look up each of the needs.

    A data set counts as there when the files of its parts are in its folder, or when
    the library has prepared it before. Its rows are counted when it is loaded.

    Args:
      needs: The needs of a preset.
      data: A folder of data sets, see `hub`.
      weights: A folder of models, see `repository`.
    """
    result = [] if needs.weights is None else [_weights(needs.weights, weights)]
    if needs.data:
        # Packages only matter for data sets of the hub.
        result.append(_packages())
    result += [_data(sources.find(name), data) for name in needs.data]
    if needs.memory_bytes:
        result.append(_memory(needs.memory_bytes, device_bytes()))
    return result


def device_bytes() -> int | None:
    """Return the memory limit of JAX's first device, if known."""
    device = jax.devices()[0]
    # JAX states no limit for CPUs; the machine's memory stands in.
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit is None and device.platform == "cpu":
        limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return limit


def _weights(wanted: Weights, weights: pathlib.Path | None) -> Finding:
    folder, command = _folder(wanted.repo, repository.root(weights))
    missing = _missing(wanted, folder)
    where = "in the hub's cache" if folder is None else f"in {folder}"
    name = pathlib.Path(wanted.repo).name
    if not missing:
        wrong = _misfit(wanted, folder)
        note = f"{where}; {wrong}" if wrong else where
        return Finding(kind="weights", name=name, there=not wrong, note=note)
    note = f"{', '.join(missing)} not {where}"
    return Finding(
        kind="weights",
        name=name,
        there=False,
        note=note,
        remark=wanted.remark,
        download=wanted.size if folder is None else 0,
        command=command,
    )


def _folder(repo: str, place: pathlib.Path | None) -> tuple[pathlib.Path | None, str]:
    """Return a model's folder, and the command to download it, if there is one."""
    own = pathlib.Path(repo)
    if own.is_absolute() or own.is_dir():  # No repository's name is that of a folder.
        return own, ""
    if place is None:
        return None, f"hf download {repo}"
    return place / repo, repository.command(repo, place / repo)


def _missing(weights: Weights, folder: pathlib.Path | None) -> list[str]:
    """Return the missing files, including the shards of an index."""
    if folder is not None and gguf_file.find(folder):
        return []  # The one file has the configuration and the tokenizer, too.
    find = functools.partial(_file, weights.repo, folder)
    wanted = [*weights.files]
    # A sharded model has an index in place of the single file.
    if find(_SINGLE) is None and (index := find(_INDEX)):
        wanted += sorted(set(json.loads(index.read_text())["weight_map"].values()))
    else:
        wanted.append(_SINGLE)
    return [name for name in wanted if find(name) is None]


def _file(repo: str, folder: pathlib.Path | None, name: str) -> pathlib.Path | None:
    """Return a file of a model, in its folder or in the hub's cache, if it is there."""
    import huggingface_hub

    if folder is None:
        # The cache is looked up by its own library: its layout is not a public one.
        place = huggingface_hub.try_to_load_from_cache(repo, name)
        return pathlib.Path(place) if isinstance(place, str) else None
    return folder / name if (folder / name).is_file() else None


def _misfit(weights: Weights, folder: pathlib.Path | None) -> str:
    """Say that a model which is there is of another family; empty if it is not."""
    if folder is None and (config := _file(weights.repo, None, configuration.FILE)):
        folder = config.parent
    if folder is None or not weights.families:
        return ""
    if (kind := folder_config.model_type(folder)) in weights.families:
        return ""
    return f"it is of the type '{kind}', expected {' or '.join(weights.families)}"


def _packages() -> Finding:
    missing = [x for x in _PACKAGES if importlib.util.find_spec(x) is None]
    return Finding(
        kind="packages",
        name="train",
        there=not missing,
        note=f"missing: {', '.join(missing)}" if missing else "",
        command="pip install 'para-jax[train]'" if missing else "",
    )


def _data(source: sources.Source, data: pathlib.Path | None) -> Finding:
    place = hub.root(data)
    folder = hub.folder_of(source, place or pathlib.Path("DATA"))
    where = "prepared" if place is None else f"in {folder}"
    # Without the library there is no way to look.
    if importlib.util.find_spec("datasets") is None:
        missing = f"not {where}"
    else:
        missing = hub.missing(source, data)
    if not missing:
        return Finding(kind="data", name=source.name, there=True, note=where)
    return Finding(
        kind="data",
        name=source.name,
        there=False,
        note=missing,
        remark=source.remark,
        # A run looks into the folder that it is given, and nowhere else.
        download=source.size if place is None else 0,
        command=hub.command(source, folder),
    )


def _memory(wanted: int, got: int | None) -> Finding:
    if got is None:
        # JAX preallocates a share of the memory, so the limit is what it has.
        note, there = f"{size(wanted)} needed; the device does not say", True
    else:
        note, there = f"{size(wanted)} needed, {size(got)} for JAX", got >= wanted
    if not there and jax.default_backend() == "gpu":
        note += "; XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 gives it more than 75 %"
    name = jax.devices()[0].device_kind
    return Finding(kind="memory", name=name, there=there, note=note)


def size(count: int | None) -> str:
    """Format a number of bytes."""
    if count is None:
        return "unknown"
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
