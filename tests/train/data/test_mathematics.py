import datasets
import pytest

from train.data import mathematics, sources

HEAD = (
    "Below is an instruction that describes a task. Write a response that "
    "appropriately completes the request.\n\n### Instruction:\n"
)
TAIL = "\n\n### Response: Let's think step by step."


def test_metamathqa_is_learned_in_its_own_words(write, counts, data):
    rows = [
        {
            "type": "GSM_Rephrased",
            "query": "How many?",
            "original_question": "How many are there?",
            "response": "2 + 3 = 5.\n#### 5\nThe answer is: 5",
        },
        {
            "type": "MATH_AnsAug",
            "query": "Half?",
            "original_question": "Half?",
            "response": "So $\\boxed{\\frac{1}{2}}$. The answer is: $\\frac{1}{2}$",
        },
    ]
    write("meta-math/MetaMathQA", {"": {"train": datasets.Dataset.from_list(rows)}})
    counts("metamathqa", train=2)

    first, second = mathematics.training(data=data)

    assert first.prompt == f"{HEAD}How many?{TAIL}"
    assert first.response == " 2 + 3 = 5.\n#### 5\nThe answer is: 5"
    assert first.answer == "5"
    assert second.answer == "$\\frac{1}{2}$"


def test_gsm8k_has_its_answers_behind_four_hashes(write, counts, data):
    rows = [{"question": "Cost?", "answer": "<<3*406=1218>>It is\n#### 1,218"}]
    write("openai/gsm8k", {"main": {"test": datasets.Dataset.from_list(rows)}})
    counts("gsm8k", test=1)

    (got,) = mathematics.problems("gsm8k", data=data)

    assert got == (f"{HEAD}Cost?{TAIL}", f" {rows[0]['answer']}", "1,218")


def competition(write, counts, solutions, part="test"):
    configs = sources.find("math").configs
    rows = [
        {"problem": f"{x}?", "level": "Level 5", "type": x, "solution": solution}
        for x, solution in zip(configs, solutions, strict=True)
    ]
    write(
        "EleutherAI/hendrycks_math",
        {row["type"]: {part: datasets.Dataset.from_list([row])} for row in rows},
    )
    counts("math", **{part: 7})


def test_math_has_its_answers_in_boxes(write, counts, data):
    solutions = [
        f"$1 \\ne \\boxed{{0}}$, but $\\boxed{{\\frac{{{x}}}{{2}}}}$." for x in range(7)
    ]
    competition(write, counts, solutions)

    got = mathematics.problems("math", data=data)

    assert [x.answer for x in got] == [f"\\frac{{{x}}}{{2}}" for x in range(7)]
    assert got[1].prompt == f"{HEAD}counting_and_probability?{TAIL}"


def test_a_problem_without_an_answer_is_refused(write, counts, data):
    competition(write, counts, ["\\boxed{1}"] * 4 + ["It is 2."] + ["\\boxed{3}"] * 2)
    message = "Row 4 of 'math', test, has a solution without an answer, one of 1, expec"
    with pytest.raises(ValueError, match=message):
        mathematics.problems("math", data=data)


def test_two_empty_boxes_of_math_do_not_take_the_other_problems_down(
    write, counts, data
):
    lost = ["There are $\\boxed{}$ of them.", "$N = \\boxed{ }$."]
    competition(write, counts, [*lost, *["\\boxed{3}"] * 5], "train")

    got = mathematics.problems("math", "train", data=data)

    assert [x.answer for x in got] == ["3"] * 5
    assert not any("boxed{}" in x.response for x in got)


def test_more_empty_boxes_than_math_has_are_refused(write, counts, data):
    competition(write, counts, ["\\boxed{3}"] * 4 + ["\\boxed{}"] * 3, "train")
    message = "Row 4 of 'math', train, .* one of 3, expected 2: an answer is behind"
    with pytest.raises(ValueError, match=message):
        mathematics.problems("math", "train", data=data)


def test_responses_are_graded_by_their_last_answer():
    wanted = ["1,218", "1218", "18", "18", "7"]
    responses = [
        "3 * 406 = 1218.\n#### 1218\nThe answer is: 1218",
        "The answer is: $1,218.00",
        "The answer is: 17. No. The answer is: 18 dollars",
        "It is 18.",
        "The answer is: 7.5",
    ]
    got = mathematics.correct("gsm8k", responses, wanted)
    assert got == [True, True, True, False, False]


def test_what_a_model_asks_itself_is_not_graded():
    own = "\n\n### Instruction:\nHow many?\n\n### Response: The answer is: 6"
    got = mathematics.correct("gsm8k", [f"\n#### 5{own}", own], ["5", "6"])
    assert got == [True, False]


def test_responses_are_graded_as_mathematics():
    got = mathematics.correct(
        "math",
        [
            "The answer is: $0.5$.",
            "thus $\\boxed{\\frac12}$",
            "The answer is: 2",
            "1/2",
        ],
        ["\\frac{1}{2}"] * 4,
    )
    assert got == [True, True, False, False]


def test_other_tasks_are_refused():
    with pytest.raises(ValueError, match="Unknown task 'aqua', expected gsm8k, math"):
        mathematics.problems("aqua")
    with pytest.raises(ValueError, match="Unknown task 'metamathqa', expected gsm8k"):
        mathematics.correct("metamathqa", [], [])
