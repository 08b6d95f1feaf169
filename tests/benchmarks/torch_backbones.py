"""Build transformers' models with random weights, each beside ours from its files."""

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from flax import linen as nn

from train.models import (
    bert,
    checkpoint,
    gemma3,
    llama,
    mpnet,
    pretrained,
    roberta,
    siglip,
)
from train.models.bert import Tokens
from train.models.gemma3_weights import load as load_gemma3

Loaded = tuple[nn.Module, Mapping[str, Any]]
"""Our model and its params."""

CLASSES = 3
BATCH, TOKENS = 4, 48
_PROJECTIONS = "q_proj|k_proj|v_proj"


class Family(NamedTuple):
    """One architecture.

    Attributes:
      name: The published model with this shape.
      shape: In words.
      build: Makes the model of PyTorch, with random weights.
      save: Writes it to a folder.
      load: Makes our model from PyTorch's and that folder.
      inputs: A batch.
      call: PyTorch's logits of a batch.
      targets: PEFT's pattern of the modules to adapt.
      layers: The number of layers.
      stack: The path of the layers in our model, if they are stacked.
    """

    name: str
    shape: str
    build: Callable[[], Any]
    save: Callable[[Any, pathlib.Path], None]
    load: Callable[[Any, pathlib.Path], Loaded]
    inputs: Callable[[], Any]
    call: Callable[[Any, Any], torch.Tensor]
    targets: str
    layers: int
    stack: str = ""


def _sentences(vocabulary: int) -> Tokens:
    """Draw sentences of different lengths, padded with 1."""
    generator = np.random.default_rng(0)
    mask = np.arange(TOKENS) < np.linspace(3, TOKENS, BATCH).astype(int)[:, None]
    ids = np.where(mask, generator.integers(5, vocabulary, mask.shape), 1)
    return Tokens(ids.astype(np.int32), mask)


def _classify(model: Any, x: Tokens) -> torch.Tensor:
    ids, mask = (torch.tensor(np.asarray(y, np.int64)) for y in x)
    return model(input_ids=ids, attention_mask=mask).logits


def _save(model: Any, folder: pathlib.Path) -> None:
    model.save_pretrained(folder, max_shard_size="200MB")


def _linear(layer: torch.nn.Linear) -> dict[str, np.ndarray]:
    return {
        "kernel": layer.weight.detach().numpy().T,
        "bias": layer.bias.detach().numpy(),
    }


# BERT: all-MiniLM-L6-v2.


def _build_bert() -> Any:
    config = transformers.BertConfig(
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        num_labels=CLASSES,
    )
    return transformers.BertForSequenceClassification(config)


def _save_bert(model: Any, folder: pathlib.Path) -> None:
    _save(model.bert, folder)


def _load_bert(theirs: Any, folder: pathlib.Path) -> Loaded:
    config = bert.read_config(folder)
    params = {
        "bert": checkpoint.load(folder, pretrained.leaves(config)),
        "classifier": _linear(theirs.classifier),
    }
    return bert.BertClassifier(config, CLASSES), params


# RoBERTa.


def _build_roberta() -> Any:
    config = transformers.RobertaConfig(
        max_position_embeddings=514,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        num_labels=CLASSES,
    )
    return transformers.RobertaForSequenceClassification(config)


def _load_roberta(_: Any, folder: pathlib.Path) -> Loaded:
    config = roberta.read_config(folder)
    params = {
        "roberta": roberta.load(folder, config),
        "classifier": roberta.load_classifier(folder, config, CLASSES),
    }
    return roberta.RobertaClassifier(config, CLASSES), params


# MPNet.


def _build_mpnet() -> Any:
    config = transformers.MPNetConfig(
        max_position_embeddings=514, layer_norm_eps=1e-5, num_labels=CLASSES
    )
    return transformers.MPNetForSequenceClassification(config)


def _load_mpnet(_: Any, folder: pathlib.Path) -> Loaded:
    config = mpnet.read_config(folder)
    params = {
        "mpnet": mpnet.load(folder, config),
        "classifier": mpnet.load_classifier(folder, config, CLASSES),
    }
    return mpnet.MPNetClassifier(config, CLASSES), params


# SigLIP 2.


class SiglipClassifier(torch.nn.Module):
    """A linear classifier on the pooled output; transformers' own takes the mean."""

    def __init__(self, encoder: Any, classes: int = CLASSES) -> None:
        super().__init__()
        self.vision_model = encoder
        self.classifier = torch.nn.Linear(encoder.config.hidden_size, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.vision_model(images, interpolate_pos_encoding=True)
        return self.classifier(x.pooler_output)


def _build_siglip() -> Any:
    config = transformers.SiglipVisionConfig()
    return SiglipClassifier(transformers.SiglipVisionModel(config))


def _save_siglip(model: Any, folder: pathlib.Path) -> None:
    _save(model.vision_model, folder)


def _load_siglip(theirs: Any, folder: pathlib.Path) -> Loaded:
    config = siglip.read_config(folder)
    params = {
        "vision_model": siglip.load(folder, config),
        "classifier": _linear(theirs.classifier),
    }
    return siglip.SiglipClassifier(config, CLASSES), params


def _images(size: int) -> np.ndarray:
    shape = (BATCH, size, size, 3)
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


def _see(model: Any, x: np.ndarray) -> torch.Tensor:
    return model(torch.tensor(x).permute(0, 3, 1, 2))


# Gemma 3 with the widths of the 4B model, its first 6 layers, the last of which
# attends to all positions, and a smaller vocabulary.


def _build_gemma3() -> Any:
    config = transformers.Gemma3TextConfig(
        vocab_size=8192,
        hidden_size=2560,
        intermediate_size=10240,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        sliding_window=16,
        attn_implementation="eager",
    )
    return transformers.Gemma3ForCausalLM(config)


def _load_gemma3(_: Any, folder: pathlib.Path) -> Loaded:
    config = gemma3.read_config(folder)
    return gemma3.Gemma3(config), load_gemma3(folder, config)


def _build_llama() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=8192,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        rope_theta=100_000.0,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    return transformers.LlamaForCausalLM(config)


def _load_llama(_: Any, folder: pathlib.Path) -> Loaded:
    config = llama.read_config(folder)
    return llama.Llama(config), llama.load(folder, config)


def _continue(model: Any, x: np.ndarray) -> torch.Tensor:
    return model(torch.tensor(np.asarray(x, np.int64))).logits


def _ids() -> np.ndarray:
    shape = (BATCH, TOKENS)
    return np.random.default_rng(0).integers(5, 8192, shape).astype(np.int32)


def _decoder(name: str, shape: str, **given: Any) -> Family:
    return Family(
        name=name,
        shape=shape,
        save=_save,
        inputs=_ids,
        call=_continue,
        targets=rf".*layers\..*({_PROJECTIONS}|o_proj|gate_proj|up_proj|down_proj)",
        stack="model/layers",
        **given,
    )


_BLOCK = r".*encoder\.layer\..*(query|key|value|dense)"
_SIGLIP = Family(
    name="SigLIP2-Base/16",
    shape="12 layers of 768, images of 224",
    build=_build_siglip,
    save=_save_siglip,
    load=_load_siglip,
    inputs=functools.partial(_images, 224),
    call=_see,
    targets=rf".*encoder\.layers\..*({_PROJECTIONS}|out_proj|fc1|fc2)",
    layers=12,
    stack=siglip.STACK,
)

FAMILIES = (
    Family(
        name="all-MiniLM-L6",
        shape="6 layers of 384, 48 tokens",
        build=_build_bert,
        save=_save_bert,
        load=_load_bert,
        inputs=functools.partial(_sentences, 30522),
        call=_classify,
        targets=_BLOCK,
        layers=6,
    ),
    Family(
        name="RoBERTa-Base",
        shape="12 layers of 768, 48 tokens",
        build=_build_roberta,
        save=_save,
        load=_load_roberta,
        inputs=functools.partial(_sentences, 50265),
        call=_classify,
        targets=_BLOCK,
        layers=12,
        stack=roberta.STACK,
    ),
    Family(
        name="MPNet-Base",
        shape="12 layers of 768, 48 tokens",
        build=_build_mpnet,
        save=_save,
        load=_load_mpnet,
        inputs=functools.partial(_sentences, 30527),
        call=_classify,
        targets=r".*encoder\.layer\..*(attn\.[qkvo]|dense)",
        layers=12,
        stack=mpnet.STACK,
    ),
    _SIGLIP,
    _SIGLIP._replace(
        name="SigLIP2-Base/16 at 256",
        shape="12 layers of 768, images of 256",
        inputs=functools.partial(_images, 256),
    ),
    _decoder(
        "Gemma3-4B",
        "6 of its layers of 2560, 48 tokens",
        build=_build_gemma3,
        load=_load_gemma3,
        layers=6,
    ),
    _decoder(
        "SmolLM2-135M",
        "30 layers of 576, 48 tokens",
        build=_build_llama,
        load=_load_llama,
        layers=30,
    ),
)
