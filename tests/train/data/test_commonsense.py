import json

import datasets
import pytest

from train.data import commonsense

HEAD = (
    "Below is an instruction that describes a task. Write a response that "
    "appropriately completes the request.\n\n### Instruction:\n"
)
TAIL = "\n\n### Response:\n"

CHOICES = {"text": ["breeding.", "migration.", "rest."], "label": ["A", "B", "C"]}

# Rows as they are on the hub, and what LLM-Adapters makes of such rows.
SETS = {
    "boolq": (
        ("google/boolq", "", "validation"),
        {"question": "is ice water", "answer": False, "passage": "Ice ..."},
        (
            "Please answer the following question with true or false, question: is ice "
            "water?\n\nAnswer format: true/false"
        ),
        "false",
    ),
    "piqa": (
        ("ybisk/piqa", "", "validation"),
        {"goal": "Keep notes.", "sol1": "Write.", "sol2": "Sing.", "label": 1},
        (
            "Please choose the correct solution to the question: Keep notes.\n\n"
            "Solution1: Write.\n\nSolution2: Sing.\n\n"
            "Answer format: solution1/solution2"
        ),
        "solution2",
    ),
    "siqa": (
        ("allenai/social_i_qa", "", "validation"),
        {
            "context": "Robin cut the bread.",
            "question": "What comes before?",
            "answerA": "get a knife",
            "answerB": "eat",
            "answerC": "sleep",
            "label": "1",
        },
        (
            "Please choose the correct answer to the question: Robin cut the bread. "
            "What comes before?\n\nAnswer1: get a knife Answer2: eat Answer3: sleep\n\n"
            "Answer format: answer1/answer2/answer3"
        ),
        "answer1",
    ),
    "hellaswag": (
        ("Rowan/hellaswag", "", "validation"),
        {
            "ind": 4,
            "activity_label": "Roof",
            "ctx": "A man is on a roof. he",
            "endings": ["is ripping.", "is level.", "holds.", "starts."],
            "label": "3",
        },
        (
            "Please choose the correct ending to complete the given sentence: Roof: A "
            "man is on a roof. he\n\nEnding1: is ripping. Ending2: is level. Ending3: "
            "holds. Ending4: starts.\n\nAnswer format: ending1/ending2/ending3/ending4"
        ),
        "ending4",
    ),
    "winogrande": (
        ("allenai/winogrande", "winogrande_xl", "validation"),
        {
            "sentence": "Jeans fit worse than shirts, so I took the _ back.",
            "option1": "jeans",
            "option2": "shirts",
            "answer": "1",
        },
        (
            "Please choose the correct answer to fill in the blank to complete the "
            "given sentence: Jeans fit worse than shirts, so I took the _ back.\n\n"
            "Option1: jeans Option2: shirts Answer format: option1/option2"
        ),
        "option1",
    ),
    "arc-e": (
        ("allenai/ai2_arc", "ARC-Easy", "test"),
        {"id": "x", "question": "What?", "choices": CHOICES, "answerKey": "B"},
        (
            "Please choose the correct answer to the question: What?\n\n"
            "Answer1: breeding. Answer2: migration. Answer3: rest.\n\n"
            "Answer format: answer1/answer2/answer3"
        ),
        "answer2",
    ),
    "arc-c": (
        ("allenai/ai2_arc", "ARC-Challenge", "test"),
        {
            "id": "x",
            "question": "What?",
            "choices": {"text": list("vwxyz"), "label": list("12345")},
            "answerKey": "5",
        },
        (
            "Please choose the correct answer to the question: What?\n\n"
            "Answer1: v Answer2: w Answer3: x Answer4: y Answer5: z\n\n"
            "Answer format: answer1/answer2/answer3/answer4/answer5"
        ),
        "answer5",
    ),
    "obqa": (
        ("allenai/openbookqa", "main", "test"),
        {"id": "x", "question_stem": "When", "choices": CHOICES, "answerKey": "C"},
        (
            "Please choose the correct answer to the question: When\n\n"
            "Answer1: breeding. Answer2: migration. Answer3: rest.\n\n"
            "Answer format: answer1/answer2/answer3"
        ),
        "answer3",
    ),
}


def as_rows(row):
    return datasets.Dataset.from_list([row])


@pytest.mark.parametrize("task", SETS)
def test_a_question_has_the_words_of_llm_adapters(write, counts, data, task):
    (repo, config, split), row, instruction, answer = SETS[task]
    write(repo, {config: {split: as_rows(row)}})
    counts(task, test=1)

    (got,) = commonsense.questions(task, data=data)

    assert got.prompt == HEAD + instruction + TAIL
    assert got.response == f"the correct answer is {answer}"
    assert got.answer == answer


def test_there_are_eight_sets():
    assert set(commonsense.TASKS) == set(SETS)


def test_what_is_learned_has_the_same_template(write, counts, data):
    row = {
        "instruction": SETS["boolq"][2],
        "input": "",
        "output": "the correct answer is false",
        "answer": "false",
    }
    write("zwhe99/commonsense_170k", {"": {"train": as_rows(row)}})
    counts("commonsense170k", train=1)

    (got,) = commonsense.training(data=data)

    assert got == (HEAD + SETS["boolq"][2] + TAIL, row["output"], "false")


@pytest.mark.parametrize(
    ("task", "response", "want"),
    [
        ("boolq", "the correct answer is true", "true"),
        ("boolq", "false, though true in part", "false"),
        ("boolq", "True", None),
        ("piqa", "the correct answer is solution2", "solution2"),
        ("piqa", "solution3", None),
        ("siqa", "answer3 or answer1", "answer3"),
        ("siqa", "answer4", None),
        ("hellaswag", "ending4.", "ending4"),
        ("winogrande", "the correct answer is option1", "option1"),
        ("arc-e", "answer5", "answer5"),
        ("arc-c", "it is answer12", "answer1"),
        ("obqa", "the answer is 4", None),
        ("obqa", "", None),
    ],
)
def test_the_first_possible_answer_is_taken(task, response, want):
    assert commonsense.extract(task, response) == want


def test_right_responses_are_graded_as_right():
    for task, (_, _, _, answer) in SETS.items():
        response = f" the correct answer is {answer}\n\n### Instruction:"
        assert commonsense.extract(task, response) == answer


# Where a clone of LLM-Adapters has the questions of these sets.
FOLDERS = {
    "boolq": "boolq",
    "piqa": "piqa",
    "siqa": "social_i_qa",
    "winogrande": "winogrande",
    "arc-e": "ARC-Easy",
    "arc-c": "ARC-Challenge",
    "obqa": "openbookqa",
}


def written(task):
    _, _, instruction, answer = SETS[task]
    output = f"the correct answer is {answer}"
    row = {"instruction": instruction, "input": "", "output": output}
    return {**row, "answer": answer}


def save(data, folder, part, rows):
    place = data / "AGI-Edgerunners" / "LLM-Adapters" / "dataset" / folder
    place.mkdir(parents=True, exist_ok=True)
    (place / f"{part}.json").write_text(json.dumps(rows))


@pytest.mark.parametrize("task", FOLDERS)
def test_llm_adapters_own_file_gives_the_same_as_the_hub(write, counts, data, task):
    (repo, config, split), row, _, _ = SETS[task]
    write(repo, {config: {split: as_rows(row)}})
    counts(task, test=1)
    want = commonsense.questions(task, data=data)

    save(data / "clone", FOLDERS[task], "test", [written(task)])

    assert commonsense.questions(task, data=data / "clone") == want


def test_the_small_corpus_is_what_four_sets_have_to_train_on(counts, data):
    sets = ("boolq", "arc-e", "arc-c", "obqa")
    for task in sets:
        save(data, FOLDERS[task], "train", [written(task)])
    counts("commonsense17k", train=4)

    got = commonsense.training(commonsense.SMALL, data=data)

    assert [x.prompt for x in got] == [HEAD + SETS[x][2] + TAIL for x in sets]
    assert [x.response for x in got] == [written(x)["output"] for x in sets]
    assert [x.answer for x in got] == [SETS[x][3] for x in sets]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (written("piqa"), "Row 1 of 'arc-e' is 'Please choose the correct solution"),
        (
            {**written("arc-e"), "answer": "answer6"},
            "with the answer 'answer6', expected .* one of answer1, answer2, ",
        ),
    ],
)
def test_instructions_of_another_set_are_refused(counts, data, row, message):
    save(data, "ARC-Easy", "test", [written("arc-e"), row])
    counts("arc-e", test=2)
    with pytest.raises(ValueError, match=message):
        commonsense.questions("arc-e", data=data)


def test_another_corpus_is_refused():
    with pytest.raises(ValueError, match="Unknown corpus 'boolq', expected commonsens"):
        commonsense.training("boolq")


def test_too_many_answers_are_refused():
    question = commonsense.Question("Which?", list("abcdef"), 0)
    with pytest.raises(ValueError, match="'obqa' has 6 answers, expected 2 to 4: 'Whi"):
        commonsense.example("obqa", question)


def test_other_tasks_are_refused():
    with pytest.raises(ValueError, match="Unknown task 'copa', expected boolq, piqa, "):
        commonsense.questions("copa")
