"""Commonsense questions by a language model that chooses among the given answers.

Learned from the four of LLM-Adapters' sets that have a training part, `commonsense17k`,
and tested on all eight sets of the paper. Nothing is written: an answer is right if its
text is the most likely one per token, and training raises its likelihood among them. So
a test takes one forward pass an answer, and a model of some hundred million parameters
can be measured with hundreds of children. Questions longer than `max_length` are left
out of the training part, and the few of five answers out of all.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import tokenizers

from train.data import arrays, choices, commonsense, parts, questions
from train.data.commonsense import Question
from train.evaluation import evaluate
from train.models import causal
from train.models.multiple_choice import Chooser
from train.runs.settings import Run
from train.subjects.choice import Choice
from train.subjects.folders import Folders
from train.subjects.subject import Subject

TASKS = ("choose",)

SETS = {f"choose/{name}": name for name in commonsense.TASKS}
"""The sets to test on, by their names in results."""

CHOICE = Choice(own="google/gemma-3-270m", families=causal.FAMILIES)
"""The models."""

TESTED = 300
"""Questions of each set, from the first: a test of hundreds of children is long."""

HELD_OUT = 512
"""Validation examples for the choice of the learning rate."""

LONGEST = 16
"""Tokens of the longest answer to learn."""

_CHOICES = 4  # The most answers of a question, but for one in a thousand.
_TOKENS = 8192  # Of a batch.


def load(run: Run, folders: Folders) -> Subject:
    """Load the subject of a run.

    Args:
      run: The run's settings.
      folders: The folders of the model and the sets.

    Raises:
      OSError: if the model or a set is not there.
      ValueError: if their contents are wrong.
    """
    model = CHOICE.find(run, folders)
    config = model.family.read_config(model.folder)
    tokenizer = causal.load_tokenizer(model.folder)
    where: Any = {"data": folders.data, "subset": folders.subset}
    learned = _encoded(tokenizer, choices.training(commonsense.SMALL, **where))
    # Long ones are left out before the split, so that both parts have none.
    learned = [x for x in learned if x.width <= run.max_length and x.longest <= LONGEST]
    train, held_out = parts.held_out(len(learned))
    shape = questions.Shape(_CHOICES, run.max_length, LONGEST)
    packed = questions.pack([learned[x] for x in train], shape)
    # Of one shape, as scores of components need them.
    size = _TOKENS // (_CHOICES * run.max_length)
    some = [learned[x] for x in parts.spread(held_out, HELD_OUT)]
    validation = questions.split(questions.pack(some, shape, multiple=size), size)
    return Subject(
        model=Chooser(model.family.model(config, dtype=jnp.dtype(run.dtype))),
        base=causal.base(model.folder, run.dtype),
        data=arrays.Data(train=packed, examples=len(train)),
        validation=evaluate.Part(validation),
        tests={
            name: _part(_encoded(tokenizer, choices.questions(task, **where)[:TESTED]))
            for name, task in SETS.items()
        },
        peft={"base_model_name_or_path": model.repo, "task_type": "CAUSAL_LM"},
    )


def _encoded(
    tokenizer: tokenizers.Tokenizer, given: Sequence[Question]
) -> list[questions.Tokens]:
    some = [x for x in given if len(x.answers) <= _CHOICES]
    return questions.encode(tokenizer, some)


def _part(encoded: Sequence[questions.Tokens]) -> evaluate.Part:
    batches = questions.batches(encoded, choices=_CHOICES, tokens=_TOKENS)
    return evaluate.Part(batches)
