"""Questions with given answers, by a tokenizer of a few words."""

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

WORDS = ["?", "Question:", "Answer:", "a", "b", "c", "d"]


@pytest.fixture(scope="module")
def tokenizer():
    """Return a tokenizer of words."""
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    result = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    result.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return result


def question(text, *answers, right=0):
    from train.data.commonsense import Question

    return Question(text, answers, right)


def words(ids):
    return " ".join(WORDS[x] for x in ids)


def test_answers_are_apart_from_their_question(tokenizer):
    from train.data import questions

    (found,) = questions.encode(tokenizer, [question("a b", "c", "d d a", right=1)])

    assert words(found.prompt) == "Question: a b Answer:"
    assert [words(x) for x in found.answers] == ["c", "d d a"]
    assert found.right == 1
    assert (found.longest, found.width) == (3, 7)


def test_batches_hold_every_question_once_with_its_label(tokenizer):
    from train.data import questions

    # Of widths up to 128, and of answers up to 32.
    some = [
        question(
            "a " * (x * 7 % 90), "b", "c " * (1 + x * 5 % 30), "d"[: x % 2] or "a"
        )._replace(right=x % 3)
        for x in range(50)
    ]
    encoded = questions.encode(tokenizer, some)

    found = questions.batches(encoded, choices=4, tokens=1024)

    assert sum(x.examples for x in found) == 50
    shapes, seen = set(), []
    for inputs, labels in found:
        assert inputs.ids.size <= 1024
        shapes.add((inputs.ids.shape[2], inputs.answers.shape[2]))
        for ids, last, answers, label in zip(*inputs, labels, strict=True):
            if label < 0:
                continue
            texts = []
            for row, answer in zip(ids, answers, strict=True):
                length = int((answer >= 0).sum())
                assert (answer[length:] == -1).all()
                # The answer is behind the question in the same row.
                assert row[last + 1 :][:length].tolist() == answer[:length].tolist()
                assert not row[last + 1 + length :].any()
                if length:
                    texts.append(tuple(row[: last + 1 + length].tolist()))
            seen.append((*texts, label))
    assert shapes == {(32, 8), (32, 32), (64, 8), (64, 32), (128, 8), (128, 32)}
    wanted = [(*((*x.prompt, *y) for y in x.answers), x.right) for x in encoded]
    assert sorted(seen) == sorted(wanted)


def test_packed_questions_are_those_of_any_rows(tokenizer):
    from train.data import questions

    some = questions.encode(
        tokenizer, [question("a", "b", "c", right=x % 2) for x in range(6)]
    )
    packed = questions.pack(some, questions.Shape(3, 16, 4), multiple=4)

    inputs, labels = packed.batch(np.array([5, 0, 3]))

    assert labels.tolist() == [1, 0, 1]
    assert inputs.ids.shape == (3, 3, 16)
    assert inputs.answers.shape == (3, 3, 4)
    assert (packed.labels[6:] == -1).all()


@pytest.mark.parametrize("answers", [(), ("a", " "), ("",)])
def test_answers_without_tokens_are_refused(tokenizer, answers):
    from train.data import questions

    with pytest.raises(ValueError, match="expected at least one each"):
        questions.encode(tokenizer, [question("a b", *answers)])


@pytest.mark.parametrize("shape", [(1, 16, 4), (2, 5, 4), (2, 16, 1)])
def test_questions_beyond_the_shape_are_refused(tokenizer, shape):
    from train.data import questions

    some = questions.encode(tokenizer, [question("a b", "c", "d a")])
    with pytest.raises(ValueError, match=r"have the shape Shape\(choices=2, width=6"):
        questions.pack(some, questions.Shape(*shape))
    with pytest.raises(ValueError, match="No questions"):
        questions.pack([], questions.Shape(*shape))


def test_a_part_of_the_held_out_rows_is_from_all_of_them():
    from train.data import parts

    rows = np.arange(1000, 2000)

    some = parts.spread(rows, 64)

    assert some[0] == 1000
    assert some[-1] == 1999
    assert set(np.diff(some)) == {15, 16}
    assert parts.spread(rows, 5000).tolist() == rows.tolist()
