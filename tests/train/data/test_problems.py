import fractions
import itertools
import re
import string

import pytest

from train.data import problems, wordings

PARTS = ("train", "validation", "test")
PLACES = tuple(
    place
    for table in (wordings.OPENINGS, wordings.EVENTS, wordings.QUESTIONS)
    for place in table.values()
)


@pytest.fixture(scope="module")
def parts():
    return {part: problems.load(part) for part in PARTS}


def sentences(part):
    return {sentence for place in PLACES for sentence in place[part]}


def pattern(sentence):
    """A regular expression for whatever a template becomes."""
    kinds = {"n": r"[A-Z]\w+", "o": r"[A-Z]\w+", "t": r"[a-z]+"}
    kinds |= {"a": r"(?P<a>\d+)", "b": r"(?P<b>\d+)"}
    pieces = string.Formatter().parse(sentence)
    return "".join(re.escape(x) + kinds.get(name, "") for x, name, _, _ in pieces)


def test_the_parts_have_the_stated_counts(parts):
    assert {part: len(x) for part, x in parts.items()} == {
        "train": 8000,
        "validation": 1000,
        "test": 1000,
    }


def test_no_question_is_asked_twice(parts):
    questions = [x.question for part in PARTS for x in parts[part]]
    assert len(set(questions)) == 10_000


def test_no_template_is_in_two_parts():
    for one, two in itertools.combinations(PARTS, 2):
        assert not sentences(one) & sentences(two)
    assert len(sentences("train")) > 60
    assert len(sentences("test")) > 25


@pytest.mark.parametrize("part", PARTS)
def test_no_question_can_be_read_as_one_of_another_part(parts, part):
    for other in set(PARTS) - {part}:
        for problem in parts[part][:300]:
            assert not understood(problem.question, other)


def steps(problem):
    """The steps of a solution, from its text."""
    found = re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)\.", problem.solution)
    return [(int(a), sign, int(b), int(c)) for a, sign, b, c in found]


def test_every_step_is_right(parts):
    operations = {
        "+": fractions.Fraction.__add__,
        "-": fractions.Fraction.__sub__,
        "*": fractions.Fraction.__mul__,
        "/": fractions.Fraction.__truediv__,
    }
    for problem in itertools.chain(*parts.values()):
        for left, sign, right, result in steps(problem):
            exact = operations[sign](*map(fractions.Fraction, (left, right)))
            assert exact == result, problem


def test_the_last_step_gives_the_answer(parts):
    for problem in itertools.chain(*parts.values()):
        found = steps(problem)
        assert len(found) in (2, 3)
        assert found[-1][3] == problem.answer
        written = " ".join(f"{a} {sign} {b} = {c}." for a, sign, b, c in found)
        assert problem.solution == f"{written} The answer is: {problem.answer}"


def test_a_step_uses_what_is_told_or_was_computed_and_uses_it_all(parts):
    for problem in itertools.chain(*parts.values()):
        told = [int(x) for x in re.findall(r"\d+", problem.question)]
        halves = [2] * problem.question.count("half")
        known = told + halves
        for left, _, right, result in steps(problem):
            assert left in known, problem
            known.remove(left)
            assert right in known, problem
            known.remove(right)
            known.append(result)
        assert known == [problem.answer], problem


MEANINGS = {
    "have": lambda x, a, b: a,
    "boxes": lambda x, a, b: a * b,
    "both": lambda x, a, b: a + b,
    "gain": lambda x, a, b: x + a,
    "lose": lambda x, a, b: x - a,
    "packs": lambda x, a, b: x + a * b,
    "times": lambda x, a, b: x * a,
    "halve": lambda x, a, b: x / 2,
    "count": lambda x, a, b: x,
    "share": lambda x, a, b: x / a,
    "price": lambda x, a, b: x * a,
}
"""The effect of each kind of sentence on the number of things."""


def understood(text, part, count=None):
    """Return every possible answer of a story, from its words alone."""
    if not text:
        return {count}
    answers = set()
    tables = (
        (wordings.OPENINGS,)
        if count is None
        else (
            wordings.EVENTS,
            wordings.QUESTIONS,
        )
    )
    for kind, place in itertools.chain(*(table.items() for table in tables)):
        for sentence in place[part]:
            if told := re.match(pattern(sentence), text):
                numbers = {
                    name: fractions.Fraction(told[name])
                    for name in "ab"
                    if f"{{{name}}}" in sentence
                }
                now = MEANINGS[kind](count, numbers.get("a"), numbers.get("b"))
                answers |= understood(text[told.end() :].lstrip(), part, now)
    return answers


@pytest.mark.parametrize("part", PARTS)
def test_the_answer_is_what_the_words_mean(parts, part):
    for problem in parts[part][:1000]:
        assert understood(problem.question, part) == {problem.answer}, problem


def test_problems_are_varied(parts):
    answers = [x.answer for x in parts["test"]]
    assert len(set(answers)) > 150
    assert max(answers) < 1000
    # Guessing the most frequent answer is right in few cases.
    assert max(map(answers.count, set(answers))) < 40


def test_the_same_seed_gives_the_same_problems(parts):
    assert problems.load("test") == parts["test"]


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("1 + 1 = 2. The answer is: 2", 2),
        ("The answer is: 1,234 dollars", 1234),
        ("The answer is:-7.", -7),
        ("The answer is: 3. The answer is: 4", 4),
        ("The answer is: ", None),
        ("The answer is: -", None),
        ("It is 5", None),
        ("", None),
    ],
)
def test_the_answer_is_the_number_after_the_last_marker(text, want):
    assert problems.answer(text) == want


def test_the_answer_of_a_solution_is_that_of_the_problem(parts):
    for problem in itertools.chain(*parts.values()):
        assert problems.answer(problem.solution) == problem.answer


def test_an_unknown_part_is_refused():
    with pytest.raises(ValueError, match="Unknown part 'dev', expected train, "):
        problems.load("dev")
