import jax
import numpy as np
import pytest

import para_jax as para
from train.data import tokens as data
from train.evaluation import evaluate
from train.models import bert


@pytest.fixture
def model(tiny):
    return bert.BertClassifier(tiny, 3)


def test_accuracy_counts_sentences_and_not_the_rows_that_fill_up(
    model, params, tokens, lora
):
    best = np.argmax(model.apply({"params": params, "lora": lora}, tokens), axis=-1)
    wrong = (best + 1) % 3
    batches = [
        data.Batch(tokens, np.array([best[0], wrong[1]], np.int32)),
        data.Batch(tokens, np.array([best[0], -1], np.int32)),
    ]
    seen = []

    got = evaluate.accuracy(model, params, lora, batches, on_batch=seen.append)

    assert got == pytest.approx(2 / 3)
    assert seen == [2, 1]


def test_no_examples_are_refused(model):
    with pytest.raises(ValueError, match="Nothing to evaluate"):
        evaluate.accuracy(model, {}, {}, [])


def padded(lora, like):
    child, parent = (para.from_params(x) for x in (lora, like))
    return para.to_params(para.pad(child, like=parent))


def test_padding_a_child_changes_shapes_and_no_logits(model, params, tokens, lora):
    other = {"a": np.zeros((6, 4), np.float32), "b": np.zeros((4, 6), np.float32)}
    wide = {"a": np.zeros((10, 4), np.float32), "b": np.zeros((4, 6), np.float32)}
    layer = {"query": other, "value": other}
    blocks = {"0": {"attention": {"self": layer}}, "1": {"output": {"dense": wide}}}
    like = {"bert": {"encoder": {"layer": blocks}}}

    got = padded(lora, like)

    assert jax.tree.map(np.shape, got) == jax.tree.map(np.shape, like)
    want = model.apply({"params": params, "lora": lora}, tokens)
    logits = model.apply({"params": params, "lora": got}, tokens)
    np.testing.assert_allclose(logits, want, atol=1e-5)


def test_padded_children_run_in_one_compiled_program(model, params, tokens, lora):
    batches = [data.Batch(tokens, np.array([0, 1], np.int32))]
    zero = jax.tree.map(np.zeros_like, lora)
    evaluate._count_right.clear_cache()

    for child in (lora, {}, zero):
        evaluate.accuracy(model, params, padded(child, lora), batches)

    assert evaluate._count_right._cache_size() == 1
