"""The commonsense questions with the texts of their answers, out of the instructions.

LLM-Adapters wrote questions as instructions that list the answers under names. A small
language model cannot learn to name the right one, but it finds some texts more likely
than others: here the texts are read back. Runs on the host.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

from train.data import clones, commonsense, hub
from train.data.commonsense import Question, Task

_FORMAT = "Answer format: "


def training(
    corpus: str, *, data: pathlib.Path | None = None, subset: bool = False
) -> list[Question]:
    """Return the questions to learn from.

    Args:
      corpus: As for `commonsense.training`.
      data: A folder of data sets, see `hub`.
      subset: Whether fewer examples are meant to be there than the set has.

    Raises:
      OSError: if the set is not there.
      ValueError: if its contents are wrong.
    """
    rows = hub.load(corpus, "train", data=data, subset=subset)
    return [parsed(row["instruction"], row["answer"]) for row in rows.to_list()]


def questions(
    task: str, *, data: pathlib.Path | None = None, subset: bool = False
) -> list[Question]:
    """Return the questions of a test set, one of `commonsense.TASKS`.

    Args:
      task: The set.
      data: A folder of data sets, see `hub`.
      subset: Whether fewer questions are meant to be there than the set has.

    Raises:
      OSError: if the set is not there.
      ValueError: if its contents are wrong.
    """
    form = commonsense.TASKS[task]
    rows = hub.load(task, "test", data=data, subset=subset)
    if set(clones.WRITTEN) - set(rows.column_names):
        return [form.question(row) for row in rows.to_list()]
    return [_read(form, row) for row in rows.to_list()]


def parsed(instruction: str, answer: str) -> Question:
    """Return the question of an instruction of any of the sets.

    Args:
      instruction: The text, with the names of the answers at its end.
      answer: The name of the right one.

    Raises:
      ValueError: if it has not the form of any set.
    """
    row = {"instruction": instruction, "answer": answer}
    for form in commonsense.TASKS.values():
        if instruction.startswith(form.opening):
            return _read(form, row)
    raise ValueError(
        f"An instruction begins with '{instruction[:60]}', expected the opening of one "
        f"of {', '.join(commonsense.TASKS)}."
    )


def _read(form: Task, row: Mapping[str, Any]) -> Question:
    # The last one: a question may have the words in it.
    body, _, end = row["instruction"].rpartition(_FORMAT)
    names = end.strip().split("/")
    listed = names if form.listed else []
    parts = [rf"\s*{re.escape(x.capitalize())}: ?(.*?)" for x in listed]
    pattern = rf"{re.escape(form.opening)}(.*?){''.join(parts)}\s*"
    found = re.fullmatch(pattern, body, re.DOTALL)
    if found is None or row["answer"] not in names:
        raise ValueError(
            f"An instruction lists the answers {names}, expected their texts before "
            f"and '{row['answer']}' among them: {row['instruction']!r}."
        )
    text, *answers = found.groups()
    given = [x.strip() for x in answers] if listed else names
    return Question(text.strip(), given, names.index(row["answer"]))
