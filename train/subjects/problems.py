"""Word problems, by a small language model pretrained on English and arithmetic.

The model has Gemma 3's form: 6 layers of width 256. It ships; `python -m
train.pretrain.generation` made it, in four minutes on a GPU. Its corpus contains none
of the problems. It learns to write solutions; a solution is right if it ends with the
right number.
"""

import pathlib
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
import tokenizers

from train.data import arrays, problems, sentiment, sequences
from train.evaluation import evaluate
from train.evaluation.exact_match import ExactMatch
from train.models import checkpoint, gemma3, weights
from train.pretrain import corpus
from train.runs.settings import Run
from train.subjects.subject import Subject

TASKS = ("problems",)

MODEL = pathlib.Path(__file__).parent.parent / "assets" / "sums" / "model"
"""The folder of its `config.json`, `model.safetensors` and `tokenizer.json`."""

_REMEDY = "`python -m train.pretrain.generation` makes a model."
_BATCH = 128
_WIDTHS = 8
"""Widths of batches are multiples of this, for few compilations."""

PEFT = {"base_model_name_or_path": "sums-model", "task_type": "CAUSAL_LM"}
"""The model's entries in an adapter's configuration."""


def load(run: Run, folder: pathlib.Path = MODEL) -> Subject:
    """Load the subject of a run.

    Args:
      run: The run's settings; `max_length` has no effect, sequences are as long as the
        longest problem with its solution.
      folder: The model's folder.

    Raises:
      FileNotFoundError: if the model is not there.
      ValueError: if it is another model than the run's.
    """
    weights.check(
        folder / checkpoint.WEIGHTS,
        run.backbone,
        remedy=_REMEDY,
    )
    config = gemma3.read_config(folder)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    parts = {part: _pairs(tokenizer, part) for part in sentiment.PARTS}
    every = [x for pairs in parts.values() for x in pairs]
    width = _rounded(max(len(x.prompt) + len(x.response) for x in every))
    graded = ExactMatch(
        tokenizer=tokenizer,
        is_right=_is_right,
        tokens=_rounded(max(len(x.response) for x in every)),
        stop=(corpus.EOS,),
    )

    def part(name: str) -> evaluate.Part:
        batches = sequences.batches(parts[name], width=width, size=_BATCH)
        return evaluate.Part(batches, graded.accuracies)

    return Subject(
        model=gemma3.Gemma3(config, dtype=jnp.dtype(run.dtype)),
        base=gemma3.load(folder, config, dtype=np.float32),
        data=arrays.Data(
            train=sequences.pack(parts["train"], width=width),
            examples=len(parts["train"]),
        ),
        validation=part("validation"),
        tests={run.task: part("test")},
        peft=PEFT,
    )


def backbone() -> str:
    """Return the hash of the model on disk.

    Raises:
      FileNotFoundError: if there is none.
    """
    return weights.found(MODEL / checkpoint.WEIGHTS, remedy=_REMEDY)


def _pairs(tokenizer: tokenizers.Tokenizer, part: str) -> Sequence[sequences.Pair]:
    """Return questions with solutions after a space, as in pretraining."""
    texts = [(x.question, f" {x.solution}") for x in problems.load(part)]
    return sequences.encode(tokenizer, texts, end=corpus.EOS)


def _is_right(wanted: str, written: str) -> bool:
    """Test whether two solutions have the same answer."""
    return problems.answer(wanted) == problems.answer(written)


def _rounded(tokens: int) -> int:
    return -(-tokens // _WIDTHS) * _WIDTHS
