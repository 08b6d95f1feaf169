"""Instructions with their responses, in the template of Alpaca.

Training and testing share one template, Stanford Alpaca's, as in LLM-Adapters and
MetaMath. LLM-Adapters' own code indents its lines and ends the first with a linter's
remark, in training only; neither is repeated here. Runs on the host.
"""

from typing import NamedTuple

TEMPLATE = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)


class Example(NamedTuple):
    """A prompt with the wanted response.

    Attributes:
      prompt: The instruction in its template.
      response: The rest of the text to learn; empty where only `answer` is known.
      answer: The answer to grade a response by.
    """

    prompt: str
    response: str
    answer: str


def prompt(instruction: str) -> str:
    """Format an instruction in the template."""
    return TEMPLATE.format(instruction=instruction)


def response(text: str) -> str:
    """Cut a response before the next instruction that the model invents."""
    return text.split("\n### Instruction:")[0]
