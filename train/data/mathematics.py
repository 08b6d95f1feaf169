"""MetaMathQA for training; GSM8K and MATH for testing.

L. Yu et al., "MetaMath: Bootstrap Your Own Mathematical Questions for Large Language
Models", ICLR 2024: 395,000 questions with solutions that end in "The answer is: X".
K. Cobbe et al., "Training Verifiers to Solve Math Word Problems", 2021. D. Hendrycks et
al., "Measuring Mathematical Problem Solving With the MATH Dataset", NeurIPS 2021.

The prompt is the one that MetaMath publishes for its models, in training as well.
Decoding is greedy, with at most `MAX_TOKENS` new tokens. Runs on the host.
"""

import pathlib
from collections.abc import Sequence

from train.data import answers, hub, instructions
from train.data.instructions import Example

TRAIN = "metamathqa"

TASKS = ("gsm8k", "math")
"""The test sets."""

_EMPTY = {("math", "train"): 2}
"""Solutions known to end in an empty box: where they were published, a 0 was lost."""

MAX_TOKENS = 1024

_STEPS = " Let's think step by step."


def prompt(question: str) -> str:
    """Format a question as a prompt."""
    return instructions.prompt(question).rstrip("\n") + _STEPS


def training(
    *, data: pathlib.Path | None = None, subset: bool = False
) -> list[Example]:
    """Return MetaMathQA.

    Args:
      data: A folder of data sets, see `hub`.
      subset: Whether fewer examples are meant to be there than the set has.

    Raises:
      OSError: if the set is not there.
      ValueError: if its contents are wrong.
    """
    return _examples(TRAIN, "train", data, subset=subset)


def problems(
    task: str,
    part: str = "test",
    *,
    data: pathlib.Path | None = None,
    subset: bool = False,
) -> list[Example]:
    r"""Return one part of a set.

    Of MATH's training part these are 7,498 of 7,500: two solutions end in an empty
    `\boxed{}`. They teach no answer, and can grade none, so they are left out.

    Args:
      task: One of `TASKS`.
      part: "test" or "train".
      data: A folder of data sets, see `hub`.
      subset: Whether fewer problems are meant to be there than the set has.

    Raises:
      OSError: if the set is not there.
      ValueError: if there is no such set or part, or its contents are wrong.
    """
    _known(task)
    found = _examples(task, part, data, subset=subset)
    without = [row for row, x in enumerate(found) if not x.answer]
    if len(without) > (known := _EMPTY.get((task, part), 0)):
        raise ValueError(
            f"Row {without[0]} of '{task}', {part}, has a solution without an answer, "
            f"one of {len(without)}, expected {known}: an answer is behind '####' or "
            "in \\boxed{}. Is the set damaged?"
        )
    return [x for x in found if x.answer]


def correct(
    task: str, responses: Sequence[str], wanted: Sequence[str], *, seconds: float = 5
) -> list[bool]:
    """Test whether each response has the wanted answer.

    Of GSM8K as an exact number, of MATH as mathematics; a response without an answer
    is wrong.

    Args:
      task: One of `TASKS`.
      responses: The generated responses.
      wanted: The right answers, as in `Example.answer`.
      seconds: The time limit of one comparison.
    """
    _known(task)
    pairs = [
        (x, answers.final(instructions.response(y)))
        for x, y in zip(wanted, responses, strict=True)
    ]
    if task == "gsm8k":
        return [answers.same_number(*pair) for pair in pairs]
    with answers.Grader(seconds) as grader:
        return [grader.same(*pair) for pair in pairs]


def _examples(
    name: str, part: str, data: pathlib.Path | None, *, subset: bool
) -> list[Example]:
    rows = hub.load(name, part, data=data, subset=subset)
    return [
        # The prompt ends in a full stop: the space is the response's, as in a text.
        Example(prompt(question), f" {solution}", answers.final(solution) or "")
        for question, solution in zip(
            rows["question"][:], rows["solution"][:], strict=True
        )
    ]


def _known(task: str) -> None:
    if task not in TASKS:
        raise ValueError(f"Unknown task '{task}', expected {', '.join(TASKS)}.")
