"""Read the modules of a model from its configuration, by the installed transformers.

The model is built on torch's meta device, without any values. transformers and torch
are optional: they are imported in the functions. Source: `conversion_mapping.py`
(transformers 5.0 to 5.24), where PEFT takes the renames from too.
"""

import functools
import importlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from para_jax.names.models import MODELS
from para_jax.names.patterns import slashed
from para_jax.names.skeleton import Shape, Skeleton

# With these tasks a model is its head's class, whatever class its checkpoint has.
_HEADS = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}
# In a model with merged experts PEFT 0.21 takes dense modules of these names for
# experts (`_convert_peft_config_moe`), and drops them or gives experts another rank.
# Under `target_parameters` it leaves them alone, and computes the same.
_TAKEN = ("gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")
_OTHERWISE = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
}


def is_configuration(model: str) -> bool:
    """Decide whether a word is the path of a model's configuration, not a name."""
    path = pathlib.Path(model)
    if model in MODELS or path.suffix == ".toml":
        return False
    # A path such as `./model` has one part.
    written = "/" in model or os.sep in model or path.suffix == ".json"
    return written or path.is_dir()


def configuration(model: str | pathlib.Path) -> pathlib.Path:
    """Return the file of a model's configuration.

    Raises:
      FileNotFoundError: if there is none.
    """
    file = pathlib.Path(model).expanduser()
    file = file / "config.json" if file.is_dir() else file
    if not file.is_file():
        raise FileNotFoundError(
            f"'{file}' is missing: expected the folder of a model with its "
            "config.json, or that file. Nothing is downloaded."
        )
    return file


def read(model: str | pathlib.Path, adapter: Mapping[str, Any]) -> Skeleton:
    """Read a model's skeleton from its configuration.

    Args:
      model: The folder of the model, or its `config.json`.
      adapter: The adapter's configuration. The class of model that it was trained on,
        or its task, decides on the model's class; else the model's configuration does.

    Raises:
      ModuleNotFoundError: if transformers or torch is not installed.
      FileNotFoundError: if there is no configuration.
      ValueError: if the installed transformers does not know the model.
    """
    file = configuration(model)
    mapping = adapter.get("auto_mapping") or {}
    trained, task = mapping.get("base_model_class"), adapter.get("task_type")
    return _read(file.absolute(), file.stat().st_mtime_ns, trained, task)


# A fleet of adapters has one model.
@functools.lru_cache(maxsize=4)
def _read(
    file: pathlib.Path, _changed: int, trained: str | None, task: str | None
) -> Skeleton:
    import torch
    import transformers

    mapping = _mapping(transformers.__version__)
    with torch.device("meta"):
        model = _model(file, trained, task)
    model.eval()
    steps = mapping.get_model_conversion_mapping(model)
    converters = [x for x in steps if hasattr(x, "operations")]
    modules = {slashed(name): _shape(x) for name, x in model.named_modules()}
    modules = {path: shape for path, shape in modules.items() if shape is not None}
    # A tied head has a name of its own.
    named = model.named_parameters(remove_duplicate=False)
    weights = {name: tuple(x.shape) for name, x in named}
    return Skeleton(
        title=f"{type(model).__name__} of transformers {transformers.__version__}",
        modules=modules,
        parameters=dict(_parameters(model, modules, converters)),
        weights=weights,
        renamings=[x for x in steps if not hasattr(x, "operations")],
        converters=converters,
        prefix=model.base_model_prefix,
    )


def _mapping(version: str) -> Any:
    try:
        return importlib.import_module("transformers.conversion_mapping")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"transformers {version} has no table of its renames: expected 5.0 or "
            "newer. Install that, or leave the names as they are for this version."
        ) from error


def _model(file: pathlib.Path, trained: str | None, task: str | None) -> Any:
    import transformers

    content = _content(file)
    architectures = content.get("architectures") or [None]
    names = [trained, None if task in _HEADS else architectures[0]]
    for name in filter(None, names):
        kind: Any = getattr(transformers, name, None)
        # Custom code may have classes of its own, which are not run.
        if getattr(kind, "config_class", None) is not None:
            config = kind.config_class.from_pretrained(file, local_files_only=True)
            return kind(config)
    auto = _HEADS.get(task or "") or _OTHERWISE.get(task or "", "AutoModel")
    try:
        config = transformers.AutoConfig.from_pretrained(
            file, local_files_only=True, trust_remote_code=False
        )
        return getattr(transformers, auto).from_config(config, trust_remote_code=False)
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"'{file}': transformers {transformers.__version__} has no {auto} of the "
            f"model_type {content['model_type']!r}. Expected one that it knows."
        ) from error


def _content(file: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"'{file}' is not valid JSON: {error}.") from error
    if not isinstance(content, dict) or not isinstance(content.get("model_type"), str):
        raise ValueError(
            f"'{file}' has no model_type: expected the config.json of a model of "
            "transformers."
        )
    return content


def _shape(module: Any) -> Shape | None:
    """Return `(m, n)` of a module that PEFT adapts, else None."""
    import torch
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, (torch.nn.Embedding, Conv1D)):
        return tuple(module.weight.shape)
    if isinstance(module, torch.nn.Linear):
        # PEFT adds to what `Linear` returns; a router returns more than that.
        plain = type(module).forward is torch.nn.Linear.forward
        return tuple(module.weight.shape)[::-1] if plain else None
    return () if isinstance(module, torch.nn.modules.conv._ConvNd) else None


def _parameters(
    model: Any, modules: Mapping[str, Shape], converters: Sequence[Any]
) -> Iterator[tuple[str, Shape]]:
    steps = {type(x).__name__ for each in converters for x in each.operations}
    merged = "MergeModulelist" in steps
    for name, x in model.named_parameters():
        owner, _, _ = name.rpartition(".")
        if slashed(owner) in modules:
            if merged and x.ndim == 2 and owner.rpartition(".")[2] in _TAKEN:
                yield slashed(name), (1, x.shape[1], x.shape[0])
        elif x.ndim == 2:
            yield slashed(name), (1, x.shape[1], x.shape[0])
        elif x.ndim == 3:
            experts, *both = x.shape
            # PEFT's reading: see `ParamWrapper.update_layer`.
            turned = getattr(model.get_submodule(owner), "is_transposed", False)
            yield slashed(name), (experts, *(both if turned else both[::-1]))
