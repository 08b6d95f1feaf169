"""Grading of generated answers; tests/interop generates them with transformers too."""

import dataclasses

import jax
import numpy as np
import pytest

import para_jax as para
from train.data import sequences
from train.data.batch import Batch
from train.evaluation import exact_match
from train.models import gemma3, generate

PROMPTS = [[2, 9, 30], [2, 11], [2, 35, 4, 8, 5], [2, 20, 21], [2]]
TOKENS = 5
AUTHORS = [1, 1, 0, 1, 2]
"""The member writing the right response to each prompt."""


@pytest.fixture(scope="module")
def model():
    from tests.train import tiny_sums

    return gemma3.Gemma3(tiny_sums.config())


@pytest.fixture(scope="module")
def params():
    from tests.train import tiny_sums
    from tests.train.models import tiny_gemma3

    return tiny_gemma3.params(tiny_sums.config())


@pytest.fixture(scope="module")
def lora():
    """The adapters of three members: none at all, one, and a larger one."""
    from tests.train import tiny_sums
    from tests.train.models import tiny_gemma3

    one = tiny_gemma3.lora(tiny_sums.config())
    return jax.tree.map(lambda x: np.stack([0 * x, x, 2 * x]), one)


@pytest.fixture(scope="module")
def written(model, params, lora):
    """The tokens of each member after each prompt, `[C, B, N]`."""
    prompts = generate.padded(PROMPTS)
    result = []
    for i in range(3):
        one = jax.tree.map(lambda x, i=i: x[i], lora)
        variables = {"params": params, "lora": one}
        got = generate.greedy(model, variables, prompts, tokens=TOKENS)
        result.append(np.asarray(got.ids))
    return np.stack(result)


@pytest.fixture
def graded():
    from tests.train import tiny_sums

    return exact_match.ExactMatch(
        tokenizer=tiny_sums.tokenizer(),
        is_right=lambda want, got: want == got,
        tokens=TOKENS,
        stop=(1,),
    )


@pytest.fixture
def batches(written):
    """Two batches of three rows, mostly with answers of the second member."""
    responses = written[AUTHORS, np.arange(5)].tolist()
    pairs = [sequences.Pair(*x) for x in zip(PROMPTS, responses, strict=True)]
    return sequences.batches(pairs, width=11, size=3)


def test_prompts_are_all_that_comes_before_the_first_label():
    ids = np.array([[2, 5, 6, 7, 1], [2, 8, 1, 0, 0], [0, 0, 0, 0, 0]], np.int32)
    labels = np.array([[-1, -1, 7, 1, -1], [8, 1, -1, -1, -1], [-1] * 5], np.int32)

    got = exact_match.prompts(Batch(ids, labels))

    assert got.ids.tolist() == [[2, 5, 6, 0, 0], [2, 0, 0, 0, 0], [0] * 5]
    assert got.lengths.tolist() == [3, 1, 1]


@pytest.mark.slow
def test_each_member_is_right_where_it_writes_the_response(
    model, params, lora, graded, batches, written
):
    same = (written == written[AUTHORS, np.arange(5)][None]).all(axis=-1)
    want = same.mean(axis=1)
    assert len(set(want)) == 3

    for at_once in (32, 2, 1):
        got = graded.accuracies(model, params, {}, lora, batches, at_once=at_once)
        np.testing.assert_allclose(got, want)


def test_what_is_right_is_said_of_texts_without_what_ends_them(
    model, params, lora, graded, batches, written
):
    seen = []
    ids = written[0, 0].tolist()
    stop = ids[2]
    assert stop not in ids[:1]
    graded = dataclasses.replace(
        graded, is_right=lambda *x: bool(seen.append(x)), stop=(stop,)
    )

    got = graded.accuracies(model, params, {}, lora, batches[:1])

    assert (got == 0).all()
    assert len(seen) == 3 * 3
    decode = graded.tokenizer.decode
    wanted = [decode(written[m, row].tolist()) for row, m in enumerate(AUTHORS[:3])]
    assert [x for x, _ in seen] == 3 * wanted
    # Of member 0 in row 0, as far as the stop token.
    assert seen[0][1] == decode(ids[: ids.index(stop)])


def test_children_run_in_the_compiled_program_of_their_parent(
    model, params, graded, batches
):
    from tests.train import tiny_sums
    from tests.train.models import tiny_gemma3
    from train.models import layers

    stacks = para.from_params(tiny_gemma3.lora(tiny_sums.config()))
    parent = layers.unstacked(stacks)
    child = para.compress(parent, para.Gamma(0.3)).adapters
    assert len({x.rank for x in child.values()}) > 1
    exact_match._written.clear_cache()

    for adapters in (parent, child):
        padded = model.adapted.collection(para.pad(adapters, like=parent))
        one = jax.tree.map(lambda x: np.asarray(x)[None], padded)
        graded.accuracies(model, params, {}, one, batches, at_once=1)

    assert exact_match._written._cache_size() == 1


@pytest.mark.slow
def test_as_many_models_at_once_as_their_caches_have_room(
    model, params, lora, graded, batches, monkeypatch
):
    want = graded.accuracies(model, params, {}, lora, batches)
    # Keys and values of 3 layers, 3 rows, 16 positions, one head of width 12, float32.
    one = 2 * 3 * 3 * 16 * 12 * 4
    sizes = []
    inner = exact_match._written

    def spy(model, base, some, *args, **kwargs):
        sizes.append(len(jax.tree.leaves(some)[0]))
        return inner(model, base, some, *args, **kwargs)

    monkeypatch.setattr(exact_match, "_written", spy)
    for limit, size in ((3 * one - 1, 2), (one // 2, 1)):
        monkeypatch.setattr(exact_match, "_CACHE_BYTES", limit)
        sizes.clear()
        got = graded.accuracies(model, params, {}, lora, batches)
        np.testing.assert_array_equal(got, want)
        assert set(sizes) == {size}


def test_no_batches_are_refused(model, params, lora, graded):
    with pytest.raises(ValueError, match="Nothing to evaluate"):
        graded.accuracies(model, params, {}, lora, [])
