"""Commonsense-170k for training, and its eight test sets of questions.

Z. Hu et al., "LLM-Adapters: An Adapter Family for Parameter-Efficient Fine-Tuning of
Large Language Models", EMNLP 2023, wrote the questions of eight sets as instructions,
with "the correct answer is X" to learn: 170,420 from their training parts. The parts
to test on are put into the same words here. On GitHub, LLM-Adapters has them in these
words, and the training parts of four sets: 17,754 rows. A response is graded by the
first of the possible answers in it (github.com/AGI-Edgerunners/LLM-Adapters,
commonsense_evaluate.py). Runs on the host.
"""

import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from train.data import clones, hub, instructions
from train.data.instructions import Example

if TYPE_CHECKING:
    import datasets

TRAIN = "commonsense170k"

SMALL = "commonsense17k"
"""The part of it that comes from BoolQ, both of ARC, and OpenBookQA."""


class Question(NamedTuple):
    """A question with its possible answers, the number of the right one from 0."""

    text: str
    answers: Sequence[str]
    right: int


class Task(NamedTuple):
    """The format of a set's questions.

    Attributes:
      question: Makes the question of a row of the set.
      opening: The text before the question.
      names: The names of the answers; a question may have fewer.
      listed: Whether the answers themselves are written down.
      between: The text between two answers.
      after: The text after the last one.
    """

    question: Callable[[Mapping[str, Any]], Question]
    opening: str
    names: tuple[str, ...]
    listed: bool = True
    between: str = " "
    after: str = "\n\n"


def _boolq(row: Mapping[str, Any]) -> Question:
    return Question(f"{row['question']}?", ("true", "false"), 0 if row["answer"] else 1)


def _piqa(row: Mapping[str, Any]) -> Question:
    return Question(row["goal"], (row["sol1"], row["sol2"]), int(row["label"]))


def _siqa(row: Mapping[str, Any]) -> Question:
    answers = [row[f"answer{x}"] for x in "ABC"]
    text = f"{row['context']} {row['question']}"
    return Question(text, answers, int(row["label"]) - 1)


def _hellaswag(row: Mapping[str, Any]) -> Question:
    text = f"{row['activity_label']}: {row['ctx']}"
    return Question(text, row["endings"], int(row["label"]))


def _winogrande(row: Mapping[str, Any]) -> Question:
    answers = (row["option1"], row["option2"])
    return Question(row["sentence"], answers, int(row["answer"]) - 1)


def _arc(row: Mapping[str, Any]) -> Question:
    choices = row["choices"]  # Its labels are letters or numbers.
    right = choices["label"].index(row["answerKey"])
    return Question(row["question"], choices["text"], right)


def _obqa(row: Mapping[str, Any]) -> Question:
    return _arc({**row, "question": row["question_stem"]})


def _numbered(word: str, count: int) -> tuple[str, ...]:
    return tuple(f"{word}{x}" for x in range(1, count + 1))


_CHOOSE = "Please choose the correct"
_ANSWER = f"{_CHOOSE} answer to the question: "

TASKS: dict[str, Task] = {
    "boolq": Task(
        _boolq,
        "Please answer the following question with true or false, question: ",
        ("true", "false"),
        listed=False,
    ),
    "piqa": Task(
        _piqa,
        f"{_CHOOSE} solution to the question: ",
        _numbered("solution", 2),
        between="\n\n",
    ),
    "siqa": Task(_siqa, _ANSWER, _numbered("answer", 3)),
    "hellaswag": Task(
        _hellaswag,
        f"{_CHOOSE} ending to complete the given sentence: ",
        _numbered("ending", 4),
    ),
    "winogrande": Task(
        _winogrande,
        f"{_CHOOSE} answer to fill in the blank to complete the given sentence: ",
        _numbered("option", 2),
        after=" ",
    ),
    "arc-e": Task(_arc, _ANSWER, _numbered("answer", 5)),
    "arc-c": Task(_arc, _ANSWER, _numbered("answer", 5)),
    "obqa": Task(_obqa, _ANSWER, _numbered("answer", 4)),
}
"""The eight sets, in the paper's order."""


def training(
    corpus: str = TRAIN, *, data: pathlib.Path | None = None, subset: bool = False
) -> list[Example]:
    """Return the examples to learn from.

    Args:
      corpus: `TRAIN` or `SMALL`.
      data: A folder of data sets, see `hub`.
      subset: Whether fewer examples are meant to be there than the set has.

    Raises:
      OSError: if the set is not there.
      ValueError: if there is no such corpus, or its contents are wrong.
    """
    if corpus not in (TRAIN, SMALL):
        raise ValueError(f"Unknown corpus '{corpus}', expected {TRAIN}, {SMALL}.")
    return _written(hub.load(corpus, "train", data=data, subset=subset))


def questions(
    task: str, *, data: pathlib.Path | None = None, subset: bool = False
) -> list[Example]:
    """Return the questions of a test set.

    Args:
      task: One of `TASKS`.
      data: A folder of data sets, see `hub`.
      subset: Whether fewer questions are meant to be there than the set has.

    Raises:
      OSError: if the set is not there.
      ValueError: if there is no such set, or its contents are wrong.
    """
    form = _form(task)
    rows = hub.load(task, "test", data=data, subset=subset)
    if set(clones.WRITTEN) - set(rows.column_names):
        return [example(task, form.question(row)) for row in rows.to_list()]
    _check(task, form, rows)
    return _written(rows)


def example(task: str, question: Question) -> Example:
    """Format a question as in Commonsense-170k.

    Raises:
      ValueError: if there is no such task, or the question has too many answers.
    """
    form = _form(task)
    names = form.names[: len(question.answers)]
    if not 2 <= len(question.answers) <= len(form.names):
        raise ValueError(
            f"A question of '{task}' has {len(question.answers)} answers, expected 2 "
            f"to {len(form.names)}: '{question.text}'."
        )
    answers = form.between.join(
        f"{name.capitalize()}: {answer}"
        for name, answer in zip(names, question.answers, strict=True)
    )
    listed = f"{answers}{form.after}" if form.listed else ""
    right = names[question.right]
    return Example(
        instructions.prompt(
            f"{form.opening}{question.text}\n\n{listed}Answer format: {'/'.join(names)}"
        ),
        f"the correct answer is {right}",
        right,
    )


def extract(task: str, response: str) -> str | None:
    """Return the first of a task's possible answers in a response, or None."""
    found = re.search("|".join(_form(task).names), response)
    return found.group() if found else None


def _check(task: str, form: Task, rows: "datasets.Dataset") -> None:
    """Check that instructions are of a task: they could be another's file."""
    pairs = zip(rows["instruction"][:], rows["answer"][:], strict=True)
    for number, (instruction, answer) in enumerate(pairs):
        if not instruction.startswith(form.opening) or answer not in form.names:
            raise ValueError(
                f"Row {number} of '{task}' is '{instruction[: len(form.opening)]}...' "
                f"with the answer '{answer}', expected '{form.opening}...' with one of "
                f"{', '.join(form.names)}. Is it the file of another set?"
            )


def _written(rows: "datasets.Dataset") -> list[Example]:
    columns = (rows[x][:] for x in clones.WRITTEN)
    return [
        Example(instructions.prompt(instruction), output, answer)
        for instruction, output, answer in zip(*columns, strict=True)
    ]


def _form(task: str) -> Task:
    if task not in TASKS:
        raise ValueError(f"Unknown task '{task}', expected {', '.join(TASKS)}.")
    return TASKS[task]
