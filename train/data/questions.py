"""Questions with given answers, as tokens for `train.models.multiple_choice`.

Axis letters: `N` questions, `T` tokens, `A` answers, `B` questions of a batch. Runs on
the host, except for `batch`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
import tokenizers
from jaxtyping import Int

from train.data import arrays
from train.data.batch import NO_LABEL, Batch
from train.data.instructions import Example
from train.models.multiple_choice import NO_ANSWER, Questions

_FORMAT = "Answer format: "
_WIDTH_STEP = 64  # Few widths, so few compiled programs.


class Tokens(NamedTuple):
    """The tokens of one question.

    Attributes:
      ids: The prompt, and the response up to where the answers differ.
      answers: The next token of each answer.
      right: The number of the right answer, from 0.
    """

    ids: Sequence[int]
    answers: Sequence[int]
    right: int


class Packed(NamedTuple):
    """Questions of one width with their labels. A pytree, see `Questions`."""

    ids: Int[jax.Array | np.ndarray, "N T"]
    last: Int[jax.Array | np.ndarray, " N"]
    answers: Int[jax.Array | np.ndarray, "N A"]
    labels: Int[jax.Array | np.ndarray, " N"]

    def batch(self, rows: Int[jax.Array | np.ndarray, " B"]) -> Batch:
        """Return some of the questions. Traceable under `jit`."""
        ids, last, answers, labels = (x[rows] for x in self)
        return Batch(Questions(ids, last, answers), labels)


def answers(example: Example) -> tuple[str, ...]:
    """Return the names of the answers, as the end of a prompt lists them.

    Raises:
      ValueError: if it lists none, or not the right one.
    """
    # The last one: a question may have the words in it.
    _, found, rest = example.prompt.rpartition(_FORMAT)
    names = tuple(rest.split(maxsplit=1)[0].split("/")) if found else ()
    if example.answer not in names:
        raise ValueError(
            f"A prompt lists the answers {names}, expected '{example.answer}' among "
            f"them, as '{_FORMAT}a/b': {example.prompt!r}."
        )
    return names


def encode(
    tokenizer: tokenizers.Tokenizer, examples: Sequence[Example]
) -> list[Tokens]:
    """Tokenize questions whose prompts list their answers.

    Raises:
      ValueError: if a prompt lists none, its response does not end with the right one,
        or two answers begin with the same token where they differ.
    """
    prompts = tokenizer.encode_batch([x.prompt for x in examples])
    # Few different ones: their tokens do not depend on the prompt.
    known: dict[tuple[str, ...], tuple[list[int], list[int]]] = {}
    result = []
    for example, prompt in zip(examples, prompts, strict=True):
        names = answers(example)
        if not example.response.endswith(example.answer):
            raise ValueError(
                f"The response '{example.response}' does not end with the answer "
                f"'{example.answer}'."
            )
        opening = example.response.removesuffix(example.answer)
        texts = tuple(opening + name for name in names)
        if texts not in known:
            known[texts] = _divided(tokenizer, texts)
        common, following = known[texts]
        right = names.index(example.answer)
        result.append(Tokens([*prompt.ids, *common], following, right))
    return result


def pack(
    questions: Sequence[Tokens],
    *,
    width: int,
    choices: int,
    multiple: int | None = None,
) -> Packed:
    """Pack questions into arrays, padded with zeros to `width` tokens.

    Args:
      questions: The questions.
      width: Tokens of a row.
      choices: The largest number of answers, `A`.
      multiple: The divisor of the number of rows, as for `arrays.filled_up`. Rows that
        fill up have no label.

    Raises:
      ValueError: if there are none, or one is too long.
    """
    if not questions:
        raise ValueError("No questions: the part is empty.")
    if (longest := max(len(x.ids) for x in questions)) > width:
        raise ValueError(f"A question has {longest} tokens, expected <= {width}.")
    ids = np.zeros((len(questions), width), np.int32)
    names = np.full((len(questions), choices), NO_ANSWER, np.int32)
    for row, named, x in zip(ids, names, questions, strict=True):
        row[: len(x.ids)] = x.ids
        named[: len(x.answers)] = x.answers
    last = np.array([len(x.ids) - 1 for x in questions], np.int32)
    labels = np.array([x.right for x in questions], np.int32)
    full = [arrays.filled_up(x, multiple) for x in (ids, last, names, labels)]
    full[-1][len(questions) :] = NO_LABEL
    return Packed(*full)


def batches(questions: Sequence[Tokens], *, choices: int, tokens: int) -> list[Batch]:
    """Return all questions in batches, the short ones first.

    Args:
      questions: The questions.
      choices: As for `pack`.
      tokens: The tokens of a batch, with padding.
    """
    by_width: dict[int, list[Tokens]] = {}
    for x in sorted(questions, key=lambda x: len(x.ids)):
        width = -(-len(x.ids) // _WIDTH_STEP) * _WIDTH_STEP
        by_width.setdefault(width, []).append(x)
    result = []
    for width, some in by_width.items():
        size = max(1, tokens // width)
        full = pack(some, width=width, choices=choices, multiple=size)
        rows = np.arange(len(full.ids)).reshape(-1, size)
        result += [full.batch(x) for x in rows]
    return result


def _divided(
    tokenizer: tokenizers.Tokenizer, texts: Sequence[str]
) -> tuple[list[int], list[int]]:
    """Return the tokens that all texts begin with, and the next one of each."""
    encoded = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    ids = [x.ids for x in encoded]
    common, shortest = 0, min(map(len, ids))
    while common < shortest and len({x[common] for x in ids}) == 1:
        common += 1
    following = [x[common] for x in ids if len(x) > common]
    if len(set(following)) < len(texts):
        raise ValueError(
            f"The tokens after '{tokenizer.decode(ids[0][:common])}' are {following}, "
            f"expected a different one for each of {', '.join(map(repr, texts))}."
        )
    return ids[0][:common], following
