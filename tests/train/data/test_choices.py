"""The texts of answers, out of instructions in the words of LLM-Adapters."""

import pytest


def test_every_set_written_as_an_instruction_is_read_back():
    from train.data import choices, commonsense

    answers = ("red: one", "a blue", "c", "d e", "f")
    for name, form in commonsense.TASKS.items():
        # Those of BoolQ are the names themselves.
        given = answers[: len(form.names)] if form.listed else form.names
        question = commonsense.Question("Is it? Answer format: no", list(given), 1)

        written = commonsense.example(name, question).prompt
        # Without the template around it.
        instruction = written.split("### Instruction:\n")[1].split("\n\n### Resp")[0]
        found = choices.parsed(instruction, form.names[1])

        assert found == question, name


@pytest.mark.parametrize(
    ("instruction", "message"),
    [
        ("Say hello.", "expected the opening of one of boolq, piqa"),
        (
            (
                "Please choose the correct answer to the question: x\n\n"
                "Answer1: a\n\nAnswer format: answer1/answer2"
            ),
            "lists the answers",
        ),
        (
            (
                "Please choose the correct answer to the question: x\n\n"
                "Answer1: a Answer3: b\n\nAnswer format: answer1/answer3"
            ),
            "'answer2' among them",
        ),
    ],
)
def test_other_instructions_are_refused(instruction, message):
    from train.data import choices

    with pytest.raises(ValueError, match=message):
        choices.parsed(instruction, "answer2")
