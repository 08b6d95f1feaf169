import itertools
import operator
import re
import string

import pytest

from train.data import problems, sentiment, wordings
from train.pretrain import text


@pytest.fixture(scope="module")
def documents():
    return list(text.documents(3000))


def test_the_same_seed_gives_the_same_documents(documents):
    assert list(text.documents(40)) == documents[:40]
    assert list(text.documents(40, seed=1)) != documents[:40]


def test_every_sum_is_right(documents):
    operations = {
        "+": operator.add,
        "-": operator.sub,
        "*": operator.mul,
        "/": operator.truediv,
    }
    found = re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)\.", " ".join(documents))
    assert len(found) > 5000
    for left, sign, right, result in found:
        assert operations[sign](int(left), int(right)) == int(result)


def test_sums_in_words_are_right(documents):
    whole = " ".join(documents)
    for pattern, meaning in (
        (r"(\d+) and (\d+) make (\d+)\.", lambda a, b: a + b),
        (r"(\d+) more than (\d+) is (\d+)\.", lambda a, b: a + b),
        (r"(\d+) less than (\d+) is (\d+)\.", lambda a, b: b - a),
        (r"(\d+) without (\d+) is (\d+)\.", lambda a, b: a - b),
        (r"(\d+) groups of (\d+) are (\d+)\.", lambda a, b: a * b),
        (r"(\d+) times as many as (\d+) is (\d+)\.", lambda a, b: a * b),
        (r"(\d+) shared equally by (\d+) is (\d+) each\.", lambda a, b: a / b),
        (r"(\d+) in (\d+) equal parts is (\d+) each\.", lambda a, b: a / b),
    ):
        found = re.findall(pattern, whole)
        assert len(found) > 30
        assert all(meaning(int(a), int(b)) == int(c) for a, b, c in found)


def test_no_held_out_sum_is_in_a_document(documents):
    held_out = text.held_out_sums(500)
    whole = " ".join(documents)

    assert len(set(held_out)) == 500
    assert {x.sign for x in held_out} == set("+-*/")
    # After a space or at the beginning: `12 + 1 = 13.` is no `2 + 1 = 13.`
    known = set(re.findall(r"\d+ [-+*/] \d+ = \d+\.", whole))
    assert not known & set(map(str, held_out))


def templates():
    for place in itertools.chain(
        wordings.OPENINGS.values(),
        wordings.EVENTS.values(),
        wordings.QUESTIONS.values(),
    ):
        yield from itertools.chain(*place.values())


def pattern(sentence):
    kinds = {
        "n": r"[A-Z]\w+",
        "o": r"[A-Z]\w+",
        "t": r"[a-z]+",
        "a": r"\d+",
        "b": r"\d+",
    }
    pieces = string.Formatter().parse(sentence)
    return "".join(re.escape(x) + kinds.get(name, "") for x, name, _, _ in pieces)


def test_no_sentence_of_a_word_problem_is_in_a_document(documents):
    any_of_them = re.compile("|".join(map(pattern, templates())))
    assert any_of_them.search(problems.load("test")[0].question)

    assert not [x for x in documents if any_of_them.search(x)]


def test_no_template_of_a_document_asks_or_answers():
    assert not set(text.SENTENCES) & set(templates())
    assert not [x for x in text.SENTENCES if "?" in x or problems.MARKER in x]


def test_no_document_announces_an_answer(documents):
    assert not [x for x in documents if problems.MARKER.strip() in x]


def test_no_sentence_that_a_sentiment_task_evaluates_is_in_a_document(documents):
    whole = " ".join(documents)
    for task in sentiment.TASKS:
        used = 0
        for part in ("validation", "test"):
            texts = [x for x in sentiment.load(task, part).texts if len(x) > 60]
            # A few sentences are in two tasks, and there in two parts.
            used += sum(x in whole for x in texts[:400])
        assert used <= 1


def test_documents_are_of_three_kinds(documents):
    arithmetic = sum(bool(re.match(r"\d+ .*\d+", x)) for x in documents)
    assert 0.45 < arithmetic / len(documents) < 0.55
    people = sum(any(name in x for name in wordings.NAMES) for x in documents)
    assert people / len(documents) > 0.29


def test_the_words_of_the_problems_are_known(documents):
    known = set(re.findall(r"[A-Za-z]+", " ".join(documents).lower()))
    asked = " ".join(x.question for x in problems.load("test")).lower()
    assert len(set(re.findall(r"[a-z]+", asked)) - known) == 0
