import json

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from para_jax._adapters.params import nest
from train.data import tokens
from train.models import gemma3, generate
from train.pretrain import corpus, generation


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "corpus.npz"
    corpus.save(corpus.make(documents=120, vocabulary=300, width=16), path)
    return path


@pytest.fixture(scope="module")
def folder(file, tmp_path_factory):
    """The program's output folder."""
    out = tmp_path_factory.mktemp("generation") / "model"
    generation.main(["--tiny", "--data", str(file), "--out", str(out)])
    return out


@pytest.mark.slow
def test_the_program_writes_a_model_that_loads_and_generates(folder):
    config = gemma3.read_config(folder)
    params = gemma3.load(folder, config, np.float32)
    tokenizer = tokens.load_tokenizer(folder)

    prompts = generate.padded([tokenizer.encode(x).ids for x in ("1 + 1 =", "Anna")])
    model = gemma3.Gemma3(config)
    got = generate.greedy(model, {"params": params}, prompts, tokens=4)

    assert config == generation.TINY.model
    assert got.ids.shape == (2, 4)
    assert tokenizer.decode(list(np.asarray(got.ids[0])))


@pytest.mark.slow
def test_the_program_says_what_the_model_can_do(folder):
    metrics = json.loads((folder / "metrics.json").read_text())

    assert list(metrics) == ["loss", "sums", "minutes", "steps"]
    assert metrics["steps"] == 6
    # Of 1024 tokens, one guessed at random costs log(1024).
    assert metrics["loss"] < np.log(1024) + 1
    assert 0 <= metrics["sums"] < 0.1


def test_a_sum_is_right_if_all_of_its_result_is(file):
    data = corpus.load(file)
    following = np.roll(data.sums, -1, axis=1).astype(np.int32)
    asked = np.roll(data.results, -1, axis=1)
    last = asked & ~np.roll(asked, -1, axis=1)
    fourth = np.arange(len(last)) % 4 == 0

    def right(wrong):
        return generation.right(np.where(wrong, following + 1, following), data)

    assert right(np.zeros_like(asked)) == 1
    assert right(~asked) == 1  # What precedes the result is not asked.
    assert right(last) == 0
    assert right(last & fourth[:, None]) == pytest.approx(1 - fourth.mean())


@pytest.mark.slow
def test_the_loss_is_the_mean_over_all_tokens_but_the_first(file):
    data = corpus.load(file)
    model = gemma3.Gemma3(generation.TINY.model)
    rows = data.train[:3].astype(np.int32)
    leaves = gemma3.leaves(generation.TINY.model)
    draw = np.random.default_rng(0).normal
    params = nest({x: jnp.asarray(draw(size=y.shape), "f4") for x, y in leaves.items()})

    got = generation._loss(model, params, data.train[:3])

    logits = model.apply({"params": params}, rows)[:, :-1]
    want = optax.softmax_cross_entropy_with_integer_labels(logits, rows[:, 1:]).mean()
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_the_small_model_has_the_stated_size():
    leaves = gemma3.leaves(generation.SMALL.model)
    # By hand: embeddings, 6 layers, the last norm.
    d, m, q, k = 256, 1024, 256, 128
    layer = 2 * d * q + 2 * d * k + 2 * 64 + 3 * d * m + 4 * d
    want = 1024 * d + 6 * layer + d
    assert sum(np.prod(x.shape) for x in leaves.values()) == want == 6_167_552
