"""Instructions with their responses, as a language model reads them.

One template for all, in training and in testing: that of Stanford Alpaca, which
LLM-Adapters and MetaMath use too. LLM-Adapters' own code indents its lines and ends the
first in a remark of the linter, in training only; neither is repeated here. Host code.
"""

from typing import NamedTuple

TEMPLATE = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)


class Example(NamedTuple):
    """What a model is given, and what it should say.

    Attributes:
      prompt: The instruction in its template.
      response: The rest of the text to learn; empty where only `answer` is known.
      answer: What a response is graded by.
    """

    prompt: str
    response: str
    answer: str


def prompt(instruction: str) -> str:
    """Returns an instruction in the template."""
    return TEMPLATE.format(instruction=instruction)


def response(text: str) -> str:
    """Returns what a model wrote up to where it begins an instruction of its own."""
    return text.split("\n### Instruction:")[0]
