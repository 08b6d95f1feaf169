"""Rows of the paper's instructions and questions, in the columns of their sets."""

from collections.abc import Callable, Mapping
from typing import Any

WORDS = (
    *("the", "correct", "answer", "is", "true", "false"),
    *(f"answer{x}" for x in range(1, 6)),
    *(f"ending{x}" for x in range(1, 5)),
    *("solution1", "solution2", "option1", "option2"),
)
"""The vocabulary of a tiny model; some numbers are words too."""


def _choices(row: int) -> dict[str, Any]:
    return {
        "choices": {"text": ["red", "blue"], "label": ["A", "B"]},
        "answerKey": "AB"[row % 2],
    }


def _instruction(row: int) -> dict[str, Any]:
    answer = ("true", "false")[row % 2]
    return {
        "instruction": f"is {row} even ?",
        "output": f"the correct answer is {answer}",
        "answer": answer,
    }


def _question(row: int) -> dict[str, Any]:
    """Return an instruction that lists its answers, as those of the real sets do."""
    found = _instruction(row)
    asked = "Please answer the following question with true or false, question: "
    text = f"{asked}{found['instruction']}\n\nAnswer format: true/false"
    return found | {"instruction": text}


def _siqa(row: int) -> dict[str, Any]:
    answers = {f"answer{x}": word for x, word in zip("ABC", "pqr", strict=True)}
    return {"context": "x", "question": "y ?", **answers, "label": str(row % 3 + 1)}


def _hellaswag(row: int) -> dict[str, Any]:
    ends = ["p", "q", "r", "s"]
    return {"activity_label": "x", "ctx": "y", "endings": ends, "label": str(row % 4)}


def _winogrande(row: int) -> dict[str, Any]:
    options = {"option1": "p", "option2": "q"}
    return {"sentence": "x _ y", **options, "answer": str(row % 2 + 1)}


def _sum(row: int, marker: str) -> str:
    more = "the answer is true . " * (row % 2)  # Not all are of one length.
    return f"{more}{row} + 1 = {row + 1} . {marker} {row + 1}"


ROWS: Mapping[str, Callable[[int], dict[str, Any]]] = {
    "commonsense170k": _instruction,
    "commonsense17k": _question,
    "boolq": lambda row: {"question": f"is {row} even", "answer": row % 2 == 0},
    "piqa": lambda row: {"goal": "x", "sol1": "p", "sol2": "q", "label": row % 2},
    "siqa": _siqa,
    "hellaswag": _hellaswag,
    "winogrande": _winogrande,
    "arc-e": lambda row: {"question": "x ?", **_choices(row)},
    "arc-c": lambda row: {"question": "y ?", **_choices(row)},
    "obqa": lambda row: {"question_stem": "z", **_choices(row)},
    "metamathqa": lambda row: {
        "query": f"{row} + 1 ?",
        "response": _sum(row, "The answer is:"),
    },
    "gsm8k": lambda row: {"question": f"{row} + 1 ?", "answer": _sum(row, "####")},
    "math": lambda row: {
        "problem": f"{row} + 1 ?",
        "solution": rf"It is $\boxed{{{row + 1}}}$.",
    },
}
"""The columns of a row of each set, by the row's number."""
