"""Tiny models with random weights, in the format of the published ones, by repository.

They are the models of the comparisons, and one of each other family that these can
take. Runs on the host.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from para_jax import nest
from train.models import gemma3, llama, mpnet, roberta, siglip
from train.models.checkpoint import Leaf
from train.presets.paper import tiny_text
from train.pretrain import export
from train.subjects import glue, images, instructions, multiple_choice

WORDS = [f"w{x}" for x in range(36)]
"""The words of the encoders' sentences."""

SIGLIP = siglip.Config(
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=3,
    image_size=16,
    patch_size=8,
)

_SENTENCES: Mapping[str, Any] = {
    "vocab_size": 4 + len(WORDS),
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 100,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
}

ROBERTA = roberta.Config(**_SENTENCES, type_vocab_size=1)

MPNET = mpnet.Config(**_SENTENCES)

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

LLAMA = llama.Config(
    vocab_size=GEMMA.vocab_size,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
    tie_word_embeddings=True,
)

_BEGIN, _END = "<bos>", "<eos>"
_SPECIAL = ("<pad>", _END, _BEGIN, "<unk>")


def write_tokenizers(folder: pathlib.Path, gemma_words: int) -> None:
    """Write the tokenizers of the language models, of the words in the sets.

    Args:
      folder: The folder of the models, by repository.
      gemma_words: The size of Gemma's vocabulary.
    """
    _sentence_tokenizer(folder / glue.REPO)
    _text_tokenizer(folder / instructions.REPO, gemma_words)


def _sentence_tokenizer(folder: pathlib.Path) -> None:
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", *WORDS]
    ends = ("</s>", vocabulary.index("</s>")), ("<s>", vocabulary.index("<s>"))
    _tokenizer(folder, vocabulary, processors.RobertaProcessing(*ends))


def _text_tokenizer(folder: pathlib.Path, words: int) -> None:
    vocabulary = [*_SPECIAL, *tiny_text.WORDS]
    vocabulary += map(str, range(words - len(vocabulary)))
    processor = processors.TemplateProcessing(
        single=f"{_BEGIN} $A", special_tokens=[(_BEGIN, _SPECIAL.index(_BEGIN))]
    )
    _tokenizer(folder, vocabulary, processor)


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
    _sentence_tokenizer(folder)


def _mpnet(folder: pathlib.Path) -> None:
    values = {"model_type": "mpnet", **dataclasses.asdict(MPNET)}
    leaves = mpnet.leaves(MPNET)
    # Without a prefix, as sentence-transformers saves its encoders.
    export.save(folder, _random(leaves), leaves, values)
    _sentence_tokenizer(folder)


def _gemma(folder: pathlib.Path) -> None:
    values: dict[str, Any] = {"model_type": "gemma3_text", **dataclasses.asdict(GEMMA)}
    kinds, layers = ("sliding", "full"), range(GEMMA.num_hidden_layers)
    of_layers = values.pop("global_layers")
    values["layer_types"] = [f"{kinds[x in of_layers]}_attention" for x in layers]
    values["eos_token_id"] = [_SPECIAL.index(_END)]
    leaves = gemma3.leaves(GEMMA)
    export.save(folder, _random(leaves), leaves, values)
    _text_tokenizer(folder, GEMMA.vocab_size)


def _llama(folder: pathlib.Path) -> None:
    values: dict[str, Any] = {"model_type": "llama", **dataclasses.asdict(LLAMA)}
    values["eos_token_id"] = _SPECIAL.index(_END)
    leaves = llama.leaves(LLAMA)
    export.save(folder, _random(leaves), leaves, values)
    _text_tokenizer(folder, LLAMA.vocab_size)


def _random(leaves: Mapping[str, Leaf]) -> dict[str, Any]:
    generator = np.random.default_rng(0)

    def draw(path: str, leaf: Leaf) -> np.ndarray:
        if path.endswith("scale"):
            return np.ones(leaf.shape, np.float32)
        # A kernel keeps the size of its inputs, so that they reach the classifier.
        spread = leaf.shape[-2] ** -0.5 if path.endswith("kernel") else 0.3
        return generator.normal(scale=spread, size=leaf.shape).astype(np.float32)

    return nest({path: draw(path, leaf) for path, leaf in leaves.items()})


MODELS: Mapping[str, Callable[[pathlib.Path], None]] = {
    images.REPO: _siglip,
    glue.REPO: _roberta,
    instructions.REPO: _gemma,
    multiple_choice.CHOICE.own: _gemma,
    "sentence-transformers/all-mpnet-base-v2": _mpnet,
    "HuggingFaceTB/SmolLM2-135M-Instruct": _llama,
}
"""What writes each model to its folder."""
