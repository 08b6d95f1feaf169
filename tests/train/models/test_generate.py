"""Generation; tests/interop compares its tokens with those of transformers."""

import jax
import numpy as np
import pytest


@pytest.fixture
def generate():
    from train.models import generate

    return generate


@pytest.fixture
def model():
    from tests.train.models import tiny_gemma3
    from train.models import gemma3

    return gemma3.Gemma3(tiny_gemma3.CONFIG)


@pytest.fixture
def variables():
    from tests.train.models import tiny_gemma3

    return {"params": tiny_gemma3.params(), "lora": tiny_gemma3.lora()}


def test_prompts_are_padded_after_their_end(generate):
    got = generate.padded([[5, 6, 7], [8]], multiple_of=4)

    assert got.ids.tolist() == [[5, 6, 7, 0], [8, 0, 0, 0]]
    assert got.lengths.tolist() == [3, 1]


def test_an_empty_prompt_is_refused(generate):
    with pytest.raises(ValueError, match="Prompt 1 is empty"):
        generate.padded([[5], []])


def test_the_cache_gives_what_the_whole_sequence_gives(generate, model, variables):
    prompts = generate.padded([[5, 9, 2, 30], [11, 3]])

    got = generate.greedy(model, variables, prompts, tokens=5)

    apply = jax.jit(model.apply)
    for row, prompt in zip(got.ids, [[5, 9, 2, 30], [11, 3]], strict=True):
        # Filled up to one length, so that it is compiled once.
        for i, token in enumerate(row.tolist()):
            before = prompt + row.tolist()[:i]
            ids = np.array([before + [1] * (9 - len(before))], np.int32)
            assert apply(variables, ids)[0, len(before) - 1].argmax() == token


def test_every_shape_is_compiled_once(generate, model, variables):
    before = generate.greedy._cache_size()

    for prompts in ([[5, 9], [3]], [[1], [7, 8]], [[4, 4], [2, 2]]):
        generate.greedy(model, variables, generate.padded(prompts), tokens=2)

    assert generate.greedy._cache_size() == before + 1
