"""Make the paper's three models with random weights, saved by transformers."""

import pathlib

import torch
import transformers

from tests.benchmarks import gemma_torch
from train.models.gemma3 import GEMMA3_4B
from train.presets.paper import tiny_models
from train.subjects import glue, images, instructions

DEVICE = gemma_torch.DEVICE


def make(folder: pathlib.Path) -> None:
    """Write SigLIP2-Base, RoBERTa-base and Gemma3-4B, and the tokenizers.

    Args:
      folder: The parent folder; each model is saved at its repository's name.
    """
    with torch.device(DEVICE):
        vision = transformers.SiglipVisionModel(transformers.SiglipVisionConfig())
        vision.save_pretrained(folder / images.REPO)
        shape = {"vocab_size": 50265, "max_position_embeddings": 514}
        config = transformers.RobertaConfig(
            **shape, type_vocab_size=1, layer_norm_eps=1e-5
        )
        transformers.RobertaModel(config).save_pretrained(folder / glue.REPO)
    gemma_torch.random(GEMMA3_4B).save_pretrained(folder / instructions.REPO)
    tiny_models.write_tokenizers(folder, GEMMA3_4B.vocab_size)
