"""Word problems of two or three steps, made from templates, with their solutions.

In the style of GSM8K (K. Cobbe et al., "Training Verifiers to Solve Math Word
Problems", 2021), for a model small enough to train here:

    Anna has 3 boxes with 4 apples each. Then Ben gives Anna 5 apples. How many apples
    are left?
    3 * 4 = 12. 12 + 5 = 17. The answer is: 17

The sentences of a part are in no other part (`train.data.wordings`), so a model that
learned sentences by heart fails in the test. An answer is right if it is the number.
The same seed gives the same problems. Runs on the host.
"""

import random
import re
from typing import NamedTuple

from train.data import wordings

SIZES = {"train": 8000, "validation": 1000, "test": 1000}
"""The problems of each part, all different."""

MARKER = "The answer is: "
"""The text before the answer in a solution."""

LARGEST = 200
"""The largest number of a story, except for amounts of money and weight."""

_MOST_MONEY = 999
_STEPS = range(2, 4)
_SENTENCES: wordings.Wordings = {
    **wordings.OPENINGS,
    **wordings.EVENTS,
    **wordings.QUESTIONS,
}


class Problem(NamedTuple):
    """A story with a question, its solution, and the wanted number.

    The solution ends with the answer: `2 + 3 = 5. 5 * 4 = 20. The answer is: 20`.
    """

    question: str
    solution: str
    answer: int


def load(part: str) -> tuple[Problem, ...]:
    """Return the problems of one part.

    Raises:
      ValueError: if there is no such part.
    """
    if part not in SIZES:
        raise ValueError(f"Unknown part '{part}', expected {', '.join(SIZES)}.")
    # Seeded by a string, so that parts are independent streams.
    generator = random.Random(f"word problems: {part}")
    found: dict[str, Problem] = {}
    while len(found) < SIZES[part]:
        problem = _problem(generator, part)
        if problem is not None:
            # Numbers and names may repeat; each text is kept once.
            found.setdefault(problem.question, problem)
    return tuple(found.values())


def answer(text: str) -> int | None:
    """Return the number after the last marker in a response, or None.

    Its thousands may be separated by commas.
    """
    _, marker, end = text.rpartition(MARKER.strip())
    number = re.match(r"\s*(-?[\d,]+)", end) if marker else None
    digits = number[1].replace(",", "") if number else ""
    return int(digits) if digits.strip("-") else None


def _problem(generator: random.Random, part: str) -> Problem | None:
    """Make a problem, or return None if its numbers turn out badly."""
    kinds = _kinds(generator)
    name, other = generator.sample(wordings.NAMES, 2)
    words = {"n": name, "o": other, "t": generator.choice(wordings.THINGS)}
    count, story, solution = 0, [], []
    for kind in kinds:
        numbers, steps = _amounts(kind, generator, count)
        for left, sign, right in steps:
            count = _result(left, sign, right)
            # Rejected, not clipped: the solution must stay consistent.
            if count < 2 or count > (_MOST_MONEY if kind == "price" else LARGEST):
                return None
            solution.append(f"{left} {sign} {right} = {count}.")
        count = count if steps else numbers.get("a", count)
        sentence = generator.choice(_SENTENCES[kind][part])
        story.append(sentence.format(**words, **numbers))
    if len(solution) not in _STEPS:
        return None
    return Problem(" ".join(story), " ".join([*solution, f"{MARKER}{count}"]), count)


def _kinds(generator: random.Random) -> list[str]:
    """Return the sentences of a story: an opening, one or two events, a question."""
    opening = generator.choice(list(wordings.OPENINGS))
    events = generator.sample(list(wordings.EVENTS), generator.randint(1, 2))
    return [opening, *events, generator.choice(list(wordings.QUESTIONS))]


def _amounts(
    kind: str, generator: random.Random, count: int
) -> tuple[dict[str, int], list[tuple[int, str, int]]]:
    """Return the numbers in a sentence, and the operation on them.

    Args:
      kind: One of the sentences of `train.data.wordings`.
      generator: The source of randomness.
      count: The number of things before.
    """
    few, some, many = (generator.randint(*x) for x in ((2, 9), (2, 12), (3, 50)))
    match kind:
        case "have":
            return {"a": many}, []
        case "boxes":
            return {"a": few, "b": some}, [(few, "*", some)]
        case "both":
            return {"a": many, "b": some}, [(many, "+", some)]
        case "gain":
            return {"a": many}, [(count, "+", many)]
        case "lose":
            return {"a": many}, [(count, "-", many)]
        case "packs":
            all_ = few * some
            return {"a": few, "b": some}, [(few, "*", some), (count, "+", all_)]
        case "times" | "price":
            return {"a": few}, [(count, "*", few)]
        case "share":
            return {"a": few}, [(count, "/", few)]
        case "halve":
            return {}, [(count, "/", 2)]
        case _:
            return {}, []


def _result(left: int, sign: str, right: int) -> int:
    """Return the result of a step, or 0 if it is not a whole number."""
    if sign == "/":
        return 0 if left % right else left // right
    return {"+": left + right, "-": left - right, "*": left * right}[sign]
