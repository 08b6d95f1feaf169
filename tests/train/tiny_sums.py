"""The small language model's folder for tests, with a smaller model still."""

import dataclasses
import hashlib
import pathlib

TEXTS = (
    "Anna has 3 boxes with 4 apples each. How many apples are there?",
    "3 * 4 = 12. 12 + 5 = 17. The answer is: 17",
)


def config(**changes):
    """A model for the vocabulary of `tokenizer`, with unequal small sizes."""
    from train.pretrain import generation

    changes = {"vocab_size": tokenizer().get_vocab_size()} | changes
    return dataclasses.replace(generation.TINY.model, **changes)


def tokenizer():
    """A tokenizer trained on `TEXTS`."""
    from train.pretrain import corpus

    return corpus.learn_tokenizer(TEXTS, 271)


def write(folder: pathlib.Path) -> str:
    """Write the folder as pretraining does; returns the hash of its weights."""
    from tests.train.models import tiny_gemma3
    from train.pretrain import generation

    params = tiny_gemma3.params(config())
    generation.save(folder, params, config(), tokenizer().to_str())
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
