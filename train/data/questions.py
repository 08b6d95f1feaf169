"""Questions with given answers, as tokens for `train.models.multiple_choice`.

Axis letters: `N` questions, `A` answers, `T` tokens of a question with an answer, `K`
tokens of an answer, `B` questions of a batch. Runs on the host, except for `batch`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
import tokenizers
from jaxtyping import Int

from train.data import arrays
from train.data.batch import NO_LABEL, Batch
from train.data.commonsense import Question
from train.models.multiple_choice import NO_TOKEN, Questions

TEMPLATE = "Question: {}\nAnswer:"
"""The prompt; an answer follows after a space."""

# Few shapes, so few compiled programs: powers of 2 and of 4, from these on.
_WIDTH = 32
_LONGEST = 8


class Tokens(NamedTuple):
    """The tokens of one question.

    Attributes:
      prompt: The tokens before an answer.
      answers: The tokens of each answer.
      right: The number of the right answer, from 0.
    """

    prompt: Sequence[int]
    answers: Sequence[Sequence[int]]
    right: int

    @property
    def longest(self) -> int:
        """The number of tokens of the longest answer."""
        return max(map(len, self.answers))

    @property
    def width(self) -> int:
        """The number of tokens of the question with its longest answer."""
        return len(self.prompt) + self.longest


class Packed(NamedTuple):
    """Questions of one width with their labels. A pytree, see `Questions`."""

    ids: Int[jax.Array | np.ndarray, "N A T"]
    last: Int[jax.Array | np.ndarray, " N"]
    answers: Int[jax.Array | np.ndarray, "N A K"]
    labels: Int[jax.Array | np.ndarray, " N"]

    def batch(self, rows: Int[jax.Array | np.ndarray, " B"]) -> Batch:
        """Return some of the questions. Traceable under `jit`."""
        ids, last, answers, labels = (x[rows] for x in self)
        return Batch(Questions(ids, last, answers), labels)


class Shape(NamedTuple):
    """The shape of packed questions.

    Attributes:
      choices: The largest number of answers, `A`.
      width: Tokens of a question with an answer, `T`.
      longest: Tokens of an answer, `K`.
    """

    choices: int
    width: int
    longest: int


def encode(
    tokenizer: tokenizers.Tokenizer, questions: Sequence[Question]
) -> list[Tokens]:
    """Tokenize questions and each of their answers.

    Raises:
      ValueError: if a question has no answers, or one of them has no tokens.
    """
    prompts = tokenizer.encode_batch([TEMPLATE.format(x.text) for x in questions])
    texts = [f" {answer}" for x in questions for answer in x.answers]
    encoded = iter(tokenizer.encode_batch(texts, add_special_tokens=False))
    result = []
    for question, prompt in zip(questions, prompts, strict=True):
        answers = [next(encoded).ids for _ in question.answers]
        if not answers or not all(answers):
            raise ValueError(
                f"The answers of '{question.text}' have {list(map(len, answers))} "
                f"tokens, expected at least one each: {list(question.answers)}."
            )
        result.append(Tokens(prompt.ids, answers, question.right))
    return result


def pack(
    questions: Sequence[Tokens], shape: Shape, *, multiple: int | None = None
) -> Packed:
    """Pack questions into arrays, padded with zeros.

    Args:
      questions: The questions.
      shape: The shape of a row.
      multiple: The divisor of the number of rows, as for `arrays.filled_up`. Rows that
        fill up have no label.

    Raises:
      ValueError: if there are none, or one exceeds the shape.
    """
    if not questions:
        raise ValueError("No questions: the part is empty.")
    largest = Shape(
        max(len(x.answers) for x in questions),
        max(x.width for x in questions),
        max(x.longest for x in questions),
    )
    if any(found > room for found, room in zip(largest, shape, strict=True)):
        raise ValueError(f"Questions have the shape {largest}, expected <= {shape}.")
    rows = (len(questions), shape.choices)
    ids = np.zeros((*rows, shape.width), np.int32)
    answers = np.full((*rows, shape.longest), NO_TOKEN, np.int32)
    for number, x in enumerate(questions):
        for choice, answer in enumerate(x.answers):
            both = [*x.prompt, *answer]
            ids[number, choice, : len(both)] = both
            answers[number, choice, : len(answer)] = answer
    last = np.array([len(x.prompt) - 1 for x in questions], np.int32)
    labels = np.array([x.right for x in questions], np.int32)
    full = [arrays.filled_up(x, multiple) for x in (ids, last, answers, labels)]
    full[-1][len(questions) :] = NO_LABEL
    return Packed(*full)


def batches(questions: Sequence[Tokens], *, choices: int, tokens: int) -> list[Batch]:
    """Return all questions in batches, the short ones first.

    Args:
      questions: The questions.
      choices: The largest number of answers.
      tokens: The tokens of a batch, with padding.
    """
    by_shape: dict[Shape, list[Tokens]] = {}
    for x in sorted(questions, key=lambda x: x.width):
        width = _power(x.width, _WIDTH, 2)
        shape = Shape(choices, width, min(width, _power(x.longest, _LONGEST, 4)))
        by_shape.setdefault(shape, []).append(x)
    result = []
    for shape, some in by_shape.items():
        size = max(1, tokens // (shape.choices * shape.width))
        result += split(pack(some, shape, multiple=size), size)
    return result


def split(packed: Packed, size: int) -> list[Batch]:
    """Return all questions in batches, in their order.

    Args:
      packed: The questions, a multiple of `size`.
      size: The questions of a batch.
    """
    rows = np.arange(len(packed.ids)).reshape(-1, size)
    return [packed.batch(x) for x in rows]


def _power(size: int, first: int, base: int) -> int:
    """Return the least of `first * base**n` that is no less than `size`."""
    while first < size:
        first *= base
    return first
