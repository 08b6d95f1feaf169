"""The paper's models and data sets in their own formats, random and tiny.

With them a preset runs from end to end on a CPU in a minute: it shows that everything
is wired up, and its numbers say nothing: a dozen steps learn little. Only the sentences
can be learned, each has a word of its class. Runs on the host.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from para_jax import nest
from train.data import sources
from train.data.sources import Source
from train.grid.plan import Plan
from train.models import gemma3, roberta, siglip
from train.models.checkpoint import Leaf
from train.presets.paper import tiny_text
from train.pretrain import export
from train.subjects import glue, images, instructions
from train.subjects.folders import Folders

if TYPE_CHECKING:
    import datasets

ROWS = {"train": 40, "validation": 12, "test": 12}
"""Rows of each split, by the beginning of its name."""

SIGLIP = siglip.Config(
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=3,
    image_size=16,
    patch_size=8,
)

ROBERTA = roberta.Config(
    vocab_size=40,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=40,
    max_position_embeddings=100,
    type_vocab_size=1,
    layer_norm_eps=1e-5,
    pad_token_id=1,
)

GEMMA = gemma3.Config(
    vocab_size=4 + len(tiny_text.WORDS) + 64,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
    sliding_window=16,
    global_layers=(1,),
    query_pre_attn_scalar=6,
)

_WORDS = [f"w{x}" for x in range(36)]
_CLASSES = 3
"""The first words each name a class of sentences."""


def shrunk(plan: Plan, folder: pathlib.Path) -> Plan:
    """Return a plan of few steps, seeds and children, on models and data made here.

    Args:
      plan: A preset's.
      folder: The folder for models and data, in `tiny` below it.
    """
    settings = dataclasses.replace(
        plan.settings, steps=12, batch=4, max_length=80, dtype="float32"
    )
    return dataclasses.replace(
        plan,
        settings=settings,
        steps={},
        rates=(0.03,),  # In so few steps, less changes nothing.
        outer=(),
        search_seeds=(0,),
        other_seeds=(1,),
        cuts=(4, 1),
        shares=(),
        energies=plan.energies[-1:],
        dropped=plan.dropped[:1],
        retuned=(),
        folders=make(folder / "tiny"),
    )


def make(folder: pathlib.Path) -> Folders:
    """Write the models and the sets of all presets, unless they exist.

    Args:
      folder: The target; `weights` and `data` are made in it.
    """
    folders = Folders(weights=folder / "weights", data=folder / "data", subset=True)
    # The mark is written last: an interrupted make starts over.
    if not (done := folder / "complete").exists():
        _siglip(folder / "weights" / images.REPO)
        _roberta(folder / "weights" / glue.REPO)
        _gemma(folder / "weights" / instructions.REPO)
        write_tokenizers(folder / "weights", GEMMA.vocab_size)
        write_data(folder / "data")
        done.write_text("Random models and data, for a trial.\n")
    return folders


def write_data(folder: pathlib.Path, rows: Mapping[str, int] = ROWS) -> None:
    """Write all sets as `DatasetDict.save_to_disk` does.

    Args:
      folder: The folder of the sets, by repository.
      rows: The rows of each split, by the beginning of its name.
    """
    for source in sources.IMAGES:
        _set(folder / source.hub, source, _pictures, rows)
    for source in sources.GLUE:
        _set(folder / source.hub / source.configs[0], source, _sentences, rows)
    for source in (*sources.COMMONSENSE, *sources.MATHEMATICS):
        for config in source.configs or ("",):
            _set(folder / source.hub / config, source, _texts, rows)


def write_tokenizers(folder: pathlib.Path, gemma_words: int) -> None:
    """Write the tokenizers of the language models, of the words in the sets.

    Args:
      folder: The folder of the models, by repository.
      gemma_words: The size of Gemma's vocabulary.
    """
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", *_WORDS]
    ends = ("</s>", vocabulary.index("</s>")), ("<s>", vocabulary.index("<s>"))
    processor = processors.RobertaProcessing(*ends)
    _tokenizer(folder / glue.REPO, vocabulary, processor)
    vocabulary = ["<pad>", "<eos>", "<bos>", "<unk>", *tiny_text.WORDS]
    vocabulary += map(str, range(gemma_words - len(vocabulary)))
    processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", vocabulary.index("<bos>"))]
    )
    _tokenizer(folder / instructions.REPO, vocabulary, processor)


def _tokenizer(folder: pathlib.Path, vocabulary: list[str], processor: Any) -> None:
    ids = {word: number for number, word in enumerate(vocabulary)}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processor
    tokenizer.save(str(folder / "tokenizer.json"))


def _siglip(folder: pathlib.Path) -> None:
    values = {"model_type": "siglip_vision_model", **dataclasses.asdict(SIGLIP)}
    leaves = siglip.leaves(SIGLIP)
    # Through `export`, so that the tiny models have the real format.
    export.save(folder, _random(leaves), leaves, values, base="vision_model.")


def _roberta(folder: pathlib.Path) -> None:
    values = {"model_type": "roberta", **dataclasses.asdict(ROBERTA)}
    leaves = roberta.leaves(ROBERTA)
    export.save(folder, _random(leaves), leaves, values, base="roberta.")


def _gemma(folder: pathlib.Path) -> None:
    values: dict[str, Any] = {"model_type": "gemma3_text", **dataclasses.asdict(GEMMA)}
    kinds, layers = ("sliding", "full"), range(GEMMA.num_hidden_layers)
    of_layers = values.pop("global_layers")
    values["layer_types"] = [f"{kinds[x in of_layers]}_attention" for x in layers]
    leaves = gemma3.leaves(GEMMA)
    export.save(folder, _random(leaves), leaves, values)


def _random(leaves: Mapping[str, Leaf]) -> dict[str, Any]:
    generator = np.random.default_rng(0)

    def draw(path: str, leaf: Leaf) -> np.ndarray:
        if path.endswith("scale"):
            return np.ones(leaf.shape, np.float32)
        # A kernel keeps the size of its inputs, so that they reach the classifier.
        spread = leaf.shape[-2] ** -0.5 if path.endswith("kernel") else 0.3
        return generator.normal(scale=spread, size=leaf.shape).astype(np.float32)

    return nest({path: draw(path, leaf) for path, leaf in leaves.items()})


def _set(
    folder: pathlib.Path,
    source: Source,
    make: Callable[[Source, int, np.random.Generator], "datasets.Dataset"],
    rows: Mapping[str, int],
) -> None:
    import datasets

    # The same seed for every set: a test can count on its rows.
    generator = np.random.default_rng(0)
    splits = [x for part in source.parts.values() for x in part.split.split("+")]
    found = datasets.DatasetDict()
    for split in splits:
        found[split] = make(source, rows[split.split("_")[0]], generator)
    datasets.disable_progress_bars()
    found.save_to_disk(str(folder))
    datasets.enable_progress_bars()


def _labels(source: Source, count: int) -> tuple[list[int], Any]:
    import datasets

    classes = source.classes or 1
    names = [f"class {x}" for x in range(classes)]
    # Classes take turns, so that every part has all of them.
    return [x % classes for x in range(count)], datasets.ClassLabel(names=names)


def _pictures(
    source: Source, count: int, generator: np.random.Generator
) -> "datasets.Dataset":
    import datasets
    import PIL.Image

    labels, kind = _labels(source, count)
    # Unequal sides, as real images have.
    pixels = generator.integers(256, size=(count, 18, 21, 3), dtype=np.uint8)
    image, label = source.columns["image"], source.columns["label"]
    return datasets.Dataset.from_dict(
        {image: [*map(PIL.Image.fromarray, pixels)], label: labels},
        features=datasets.Features({image: datasets.Image(), label: kind}),
    )


def _sentences(
    source: Source, count: int, generator: np.random.Generator
) -> "datasets.Dataset":
    import datasets

    labels, kind = _labels(source, count)
    columns: dict[str, list[Any]] = {source.columns["label"]: labels}
    features: dict[str, Any] = {source.columns["label"]: kind}
    for name, column in source.columns.items():
        if name != "label":
            columns[column] = [_sentence(x, generator) for x in labels]
            features[column] = datasets.Value("string")
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def _sentence(label: int, generator: np.random.Generator) -> str:
    """Return random words, with the word of the class at a random place."""
    words = generator.choice(_WORDS[_CLASSES:], size=generator.integers(2, 7))
    # One word decides, at any place: learnable in a few steps.
    words[generator.integers(len(words))] = _WORDS[label]
    return " ".join(words)


def _texts(
    source: Source, count: int, generator: np.random.Generator
) -> "datasets.Dataset":
    import datasets

    make = tiny_text.ROWS[source.name]
    count = max(1, count // max(1, len(source.configs)))  # Of each configuration.
    numbers = generator.integers(50, size=count).tolist()
    return datasets.Dataset.from_list([make(x) for x in numbers])
