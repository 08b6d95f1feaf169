"""Questions with given answers, by a tokenizer of a few words."""

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

WORDS = ["?", "Answer", "answer", "ending", "format:", "is", "true", "false", "a", "b"]
WORDS += [str(x) for x in range(10)] + ["/"]


@pytest.fixture(scope="module")
def tokenizer():
    """Return a tokenizer of words, in which each digit is a token."""
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    result = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    result.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Split("/", "isolated"),
        ]
    )
    return result


def example(names, right, words="a b"):
    from train.data.instructions import Example

    answer = names.split("/")[right]
    prompt = f"{words} Answer format: {names}\n\n"
    return Example(prompt, f"is {answer}", answer)


def words(ids):
    return [WORDS[x] for x in ids]


def test_a_question_ends_where_its_answers_begin_to_differ(tokenizer):
    from train.data import questions

    first, second = questions.encode(
        tokenizer, [example("answer1/answer2/answer3", 2), example("true/false", 1)]
    )

    assert words(first.ids)[-3:] == ["3", "is", "answer"]
    assert words(first.answers) == ["1", "2", "3"]
    assert first.right == 2
    assert words(second.ids)[-2:] == ["false", "is"]
    assert words(second.answers) == ["true", "false"]
    assert second.right == 1


def test_the_last_list_of_answers_counts(tokenizer):
    from train.data import questions

    odd = example("true/false", 0, words="Answer format: a/b a")
    assert questions.answers(odd) == ("true", "false")


def test_batches_hold_every_question_once_with_its_label(tokenizer):
    from train.data import questions

    # Of 8 to 150 tokens, so of three widths.
    some = [
        example("answer1/answer2", x % 2, words="a " * (x * 7 % 143)) for x in range(50)
    ]
    encoded = questions.encode(tokenizer, some)

    found = questions.batches(encoded, choices=5, tokens=256)

    assert sum(x.examples for x in found) == 50
    seen = []
    for inputs, labels in found:
        assert inputs.ids.size <= 256
        assert inputs.ids.shape[1] % 64 == 0
        for ids, last, answers, label in zip(*inputs, labels, strict=True):
            if label >= 0:
                assert answers[2:].tolist() == [-1, -1, -1]
                seen.append((*ids[: last + 1].tolist(), *answers[:2].tolist(), label))
                assert not ids[last + 1 :].any()
    assert sorted(seen) == sorted((*x.ids, *x.answers, x.right) for x in encoded)


def test_packed_questions_are_those_of_any_rows(tokenizer):
    from train.data import questions

    some = questions.encode(tokenizer, [example("a/b", x % 2) for x in range(6)])
    packed = questions.pack(some, width=16, choices=3)

    inputs, labels = packed.batch(np.array([5, 0, 3]))

    assert labels.tolist() == [1, 0, 1]
    assert inputs.ids.shape == (3, 16)
    assert (packed.labels[6:] == -1).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "a b"}, r"lists the answers \(\), expected 'true'"),
        ({"answer": "a"}, "expected 'a' among them"),
        ({"response": "is false"}, "does not end with the answer 'true'"),
    ],
)
def test_what_is_no_question_is_refused(tokenizer, change, message):
    from train.data import questions

    with pytest.raises(ValueError, match=message):
        questions.encode(tokenizer, [example("true/false", 0)._replace(**change)])


def test_answers_have_to_differ_in_one_token(tokenizer):
    from train.data import questions

    # The tokens of 11 and 12 are 1, 1 and 1, 2: so do 1 and 12 not differ in the first.
    with pytest.raises(ValueError, match="expected a different one for each"):
        questions.encode(tokenizer, [example("answer12/answer2/answer13", 0)])
    with pytest.raises(ValueError, match="expected a different one for each"):
        questions.encode(tokenizer, [example("answer1/answer12", 0)])
    # Words that the tokenizer does not know are the same token.
    with pytest.raises(ValueError, match="expected a different one for each"):
        questions.encode(tokenizer, [example("red/blue", 0)])
    with pytest.raises(ValueError, match="expected a different one for each"):
        questions.encode(tokenizer, [example("true", 0)])


def test_long_and_missing_questions_are_refused(tokenizer):
    from train.data import questions

    some = questions.encode(tokenizer, [example("a/b", 0)])
    with pytest.raises(ValueError, match=r"has \d+ tokens, expected <= 4"):
        questions.pack(some, width=4, choices=5)
    with pytest.raises(ValueError, match="No questions"):
        questions.pack([], width=4, choices=5)


def test_a_part_of_the_held_out_rows_is_from_all_of_them():
    from train.data import parts

    rows = np.arange(1000, 2000)

    some = parts.spread(rows, 64)

    assert some[0] == 1000
    assert some[-1] == 1999
    assert set(np.diff(some)) == {15, 16}
    assert parts.spread(rows, 5000).tolist() == rows.tolist()
