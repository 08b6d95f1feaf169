"""Commonsense-170k and MetaMathQA, by Gemma3-4B-IT or another language model.

A model learns from one corpus and is tested on each of the paper's sets for it. The
learning rate is chosen on examples held out of the corpus, one rate for all sets.
Examples longer than `max_length` are left out of the training part.
"""

import atexit
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import tokenizers

from train.data import (
    answers,
    arrays,
    commonsense,
    instructions,
    mathematics,
    parts as splits,
    sequences,
)
from train.data.batch import Batch
from train.data.instructions import Example
from train.evaluation import evaluate
from train.evaluation.exact_match import ExactMatch
from train.models import causal
from train.runs.settings import Run
from train.subjects.choice import Choice
from train.subjects.folders import Folders
from train.subjects.subject import Subject

REPO = "google/gemma-3-4b-it"

CHOICE = Choice(own=REPO, families=causal.FAMILIES)
"""The models."""

HELD_OUT = 256
"""Validation examples for the choice of the learning rate: generation is slow."""

_BATCH = 64
_SHORT = 32  # New tokens of "the correct answer is X", as in LLM-Adapters.

IsRight = Callable[[str, str], bool]


class Corpus(NamedTuple):
    """The training examples of a task, and its test.

    Attributes:
      learned: The examples to learn from.
      tested: The pairs of each test set.
      graders: The comparison of answers of each set.
      is_right: The comparison for the held-out examples.
      tokens: The greatest number of new tokens.
    """

    learned: list[Example]
    tested: dict[str, list[Example]]
    graders: dict[str, IsRight]
    is_right: IsRight
    tokens: int


def load(run: Run, folders: Folders) -> Subject:
    """Load the subject of a run.

    Args:
      run: The run's settings.
      folders: The folders of the model and the corpora.

    Raises:
      OSError: if the model or a corpus is not there.
      ValueError: if their contents are wrong.
    """
    model = CHOICE.find(run, folders)
    config = model.family.read_config(model.folder)
    tokenizer = causal.load_tokenizer(model.folder)
    end = causal.end_token(model.folder, tokenizer)
    corpus = CORPORA[run.task](run, folders)
    train, held_out = _learned(tokenizer, corpus, end, run.max_length)
    graded = functools.partial(
        ExactMatch, tokenizer=tokenizer, tokens=corpus.tokens, stop=(end,)
    )

    def part(pairs: Sequence[sequences.Pair], is_right: IsRight) -> evaluate.Part:
        return evaluate.Part(_batches(pairs), graded(is_right=is_right).accuracies)

    return Subject(
        # Rematerialised fully: a layer's input is what fits for 4 billion params.
        model=model.family.model(config, dtype=jnp.dtype(run.dtype), remat="full"),
        base=causal.base(model.folder, run.dtype),
        data=arrays.Data(
            train=sequences.pack(train, width=run.max_length),
            examples=len(train),
        ),
        validation=part(held_out, corpus.is_right),
        tests={
            name: part(_encoded(tokenizer, examples, end), corpus.graders[name])
            for name, examples in corpus.tested.items()
        },
        peft={"base_model_name_or_path": model.repo, "task_type": "CAUSAL_LM"},
    )


def _commonsense(run: Run, folders: Folders) -> Corpus:
    where: Any = {"data": folders.data, "subset": folders.subset}

    def same(task: str, wanted: str, written: str) -> bool:
        found = commonsense.extract(task, instructions.response(written))
        return found == commonsense.extract(task, wanted)

    return Corpus(
        learned=commonsense.training(**where),
        tested={x: commonsense.questions(x, **where) for x in commonsense.TASKS},
        graders={x: functools.partial(same, x) for x in commonsense.TASKS},
        is_right=lambda wanted, written: wanted.strip() == written.strip(),
        tokens=min(_SHORT, run.max_length),
    )


def _mathematics(run: Run, folders: Folders) -> Corpus:
    where: Any = {"data": folders.data, "subset": folders.subset}

    def tested(task: str) -> list[Example]:
        # Only the answer is graded: the wanted response can be this short.
        marker = answers.MARKERS[0]
        return [
            x._replace(response=f" {marker} {x.answer}")
            for x in mathematics.problems(task, **where)
        ]

    return Corpus(
        learned=mathematics.training(**where),
        tested={task: tested(task) for task in mathematics.TASKS},
        graders={"gsm8k": _same_number, "math": _same},
        is_right=_same,
        # Twice the length: wrong answers may be longer than the solutions.
        tokens=min(mathematics.MAX_TOKENS, 2 * run.max_length),
    )


CORPORA: dict[str, Callable[[Run, Folders], Corpus]] = {
    "commonsense": _commonsense,
    "mathematics": _mathematics,
}

TASKS = tuple(CORPORA)


def _finals(wanted: str, written: str) -> tuple[str, str | None]:
    response = instructions.response(written)
    return answers.final(wanted) or "", answers.final(response)


def _same_number(wanted: str, written: str) -> bool:
    return answers.same_number(*_finals(wanted, written))


def _same(wanted: str, written: str) -> bool:
    return _grader().same(*_finals(wanted, written))


@functools.cache  # Its process takes seconds to start.
def _grader() -> answers.Grader:
    grader = answers.Grader()
    # A cached process outlives its callers; it ends with the interpreter.
    atexit.register(grader.__exit__, None, None, None)
    return grader


def _learned(
    tokenizer: tokenizers.Tokenizer, corpus: Corpus, end: int, longest: int
) -> tuple[list[sequences.Pair], list[sequences.Pair]]:
    pairs = _encoded(tokenizer, corpus.learned, end)
    # Long examples are left out before the split, so that both parts have none.
    pairs = [x for x in pairs if len(x.prompt) + len(x.response) <= longest]
    train, held_out = splits.held_out(len(pairs))
    return [pairs[x] for x in train], [
        pairs[x] for x in splits.spread(held_out, HELD_OUT)
    ]


def _encoded(
    tokenizer: tokenizers.Tokenizer, examples: Sequence[Example], end: int
) -> list[sequences.Pair]:
    texts = [(x.prompt, x.response) for x in examples]
    return sequences.encode(tokenizer, texts, end=end)


def _batches(pairs: Sequence[sequences.Pair]) -> list[Batch]:
    width = max(len(x.prompt) + len(x.response) for x in pairs)
    size = min(_BATCH, len(pairs))
    # Multiples of 32: fewer widths to compile.
    return sequences.batches(pairs, width=-(-width // 32) * 32, size=size)
