"""Read the modules of a model from its configuration, by the installed transformers.

The model is built on torch's meta device, without any values. transformers and torch
are optional: they are imported in the functions. Source: `conversion_mapping.py` and
`core_model_loading.py` (transformers 5.0 to 5.24), where PEFT takes the renames from
too.
"""

import dataclasses
import functools
import importlib
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from para_jax.names.models import MODELS
from para_jax.names.patterns import slashed

Shape = tuple[int, ...]

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


class Place(NamedTuple):
    """The place of a former module's outputs in a module of today.

    Attributes:
      path: The module, or the bare parameter.
      outputs: Which of the former module's outputs, if it was divided.
      half: Which half of the outputs of `path`, if gate (0) and up (1) were joined.
      expert: The number of the expert, if `path` holds all experts.
    """

    path: str
    outputs: slice = slice(None)
    half: int | None = None
    expert: int | None = None


@dataclasses.dataclass(frozen=True)
class Skeleton:
    """The names and shapes of a model's weights, with the renames that lead to them.

    Attributes:
      title: The model's class and the version of transformers, for errors.
      modules: `(m, n)` of every module that PEFT adapts, by path; `()` for
        convolutions.
      parameters: `(E, m, n)` of every other matrix or stack of them, as PEFT reads it,
        by path.
      weights: The shape of every weight by transformers' name.
      renamings: transformers' renames of keys.
      converters: transformers' conversions of weights.
      prefix: The name of the model within one with a head.
    """

    title: str
    modules: Mapping[str, Shape]
    parameters: Mapping[str, Shape]
    weights: Mapping[str, Shape]
    renamings: Sequence[Any]
    converters: Sequence[Any]
    prefix: str

    def places(self, path: str) -> list[Place]:
        """Return the places of a former module, none if the model has no such module.

        Raises:
          ValueError: if transformers computes the new weight in a way that an update
            of low rank does not survive, or that is not known here.
        """
        if self._has(path):
            return [self._apart(Place(path))]
        name = path.replace("/", ".")
        for key in (f"{name}.weight", name):
            found = [x for x in self._found(key) if self._has(x.path)]
            if found:
                return [self._apart(x) for x in found]
        return []

    def renamed(self, key: str) -> str:
        """Return the name of a tensor that is renamed and no more, or `key` itself."""
        places = [] if key in self.weights else self._found(key)
        if len(places) == 1 and places[0][1:] == Place("")[1:]:
            name = places[0].path.replace("/", ".")
            # A weight's own module has lost its last word.
            name = f"{name}.weight" if name not in self.weights else name
            return name if name in self.weights else key
        return key

    def _has(self, path: str) -> bool:
        return path in self.modules or path in self.parameters

    def _apart(self, place: Place) -> Place:
        """Return a module that PEFT would take for an expert as its bare parameter."""
        weight = f"{place.path}/weight"
        return place._replace(path=weight) if weight in self.parameters else place

    def _found(self, key: str) -> list[Place]:
        for renaming in self.renamings:
            key, _ = renaming.rename_source_key(key)
        for converter in self.converters:
            new, source = converter.rename_source_key(key)
            if source is not None:
                return self._converted(converter, source, key, new)
        return [Place(self._path(key))]

    def _path(self, key: str) -> str:
        """Return the path of a weight, with or without the prefix of a head's model."""
        if key not in self.weights:
            start = f"{self.prefix}."
            others = [f"{start}{key}", key.removeprefix(start)]
            key = next((x for x in others if x in self.weights), key)
        path = slashed(key)
        module = path.removesuffix("/weight")
        return module if module in self.modules else path

    def _converted(
        self, converter: Any, source: str, key: str, new: str
    ) -> list[Place]:
        steps = [
            (type(x).__name__, getattr(x, "dim", None)) for x in converter.operations
        ]
        merged = [("MergeModulelist", 0)]
        sources, targets = converter.source_patterns, converter.target_patterns
        if steps in (merged, [*merged, ("Concatenate", 1)]) and len(sources) < 3:
            expert = int(re.findall(r"(?<=\.)\d+(?=\.)", key)[-1])
            half = sources.index(source) if len(sources) == 2 else None
            return [Place(self._path(new), half=half, expert=expert)]
        if steps == [("Concatenate", 0)] and len(sources) == 2:
            return [Place(self._path(new), half=sources.index(source))]
        if steps in ([("Chunk", 0)], [("Split", 0)]):
            names = [new.replace(targets[0], x, 1) for x in targets]
            return self._divided(names)
        how = ", ".join(name for name, _ in steps)
        raise ValueError(
            f"'{key}' became '{new}' in {self.title} by {how}, which is not known here "
            "for an update of low rank. Train the adapter anew with this transformers."
        )

    def _divided(self, names: Sequence[str]) -> list[Place]:
        paths = [self._path(name) for name in names]
        places, start = [], 0
        for path in paths:
            if len(shape := self.modules.get(path, ())) != 2:
                return []
            places.append(Place(path, outputs=slice(start, start + shape[1])))
            start += shape[1]
        return places


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
    return _read(file, mapping.get("base_model_class"), adapter.get("task_type"))


# A fleet of adapters has one model.
@functools.lru_cache(maxsize=4)
def _read(file: pathlib.Path, trained: str | None, task: str | None) -> Skeleton:
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
        # Custom code may have classes of its own, which are not run.
        if (kind := getattr(transformers, name, None)) is not None:
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
