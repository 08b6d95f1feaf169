import numpy as np
import pytest

from train.data import tokens


@pytest.fixture
def sentences():
    """Token ids of all lengths, and labels."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(3, tokens.MAX_LENGTH + 1, size=301)
    ids = [generator.integers(1, 99, size=x).tolist() for x in lengths]
    return ids, generator.integers(0, 3, size=301).tolist()


def test_every_sentence_is_in_one_batch_with_its_label(sentences):
    ids, labels = sentences

    batches = tokens.batches(ids, labels)

    got = [
        (row[mask].tolist(), int(label))
        for batch in batches
        for row, mask, label in zip(*batch.inputs, batch.labels, strict=True)
        if label >= 0
    ]
    assert sorted(got) == sorted(zip(ids, labels, strict=True))
    assert sum(batch.examples for batch in batches) == 301


def test_there_are_few_shapes_and_little_padding(sentences):
    batches = tokens.batches(*sentences)

    shapes = {batch.inputs.ids.shape for batch in batches}
    assert len(shapes) <= 7
    assert all(rows * width <= 1024 for rows, width in shapes)
    assert all(batch.inputs.mask.any(axis=1).all() for batch in batches)


def test_a_sentence_that_is_too_long_is_refused():
    with pytest.raises(ValueError, match="A sentence has 65 tokens, expected <= 64"):
        tokens.batches([[1] * 65], [0])


def test_the_tokenizer_truncates_and_does_not_pad(folder):
    tokenizer = tokens.load_tokenizer(folder)

    short, long = tokens.encode(tokenizer, ["A fine film", "film " * 100])

    assert short == [101, 1037, 2986, 2143, 102]
    assert long == [101, *[2143] * 62, 102]
