import dataclasses

import jax
import numpy as np
import pytest

from train.data import arrays
from train.methods import lora
from train.models import bert
from train.runs import settings as runs, trainer

RUN = runs.Run(
    method=lora.Lora(rank=2),
    seeds=(0, 5),
    learning_rates=(0.01, 0.03),
    steps=8,
    batch=6,
)


@pytest.fixture(scope="module")
def data():
    """Sentences for the model `tiny`: 13 of two to five tokens."""
    generator = np.random.default_rng(0)
    ids = [generator.integers(1, 11, size=2 + i % 4).tolist() for i in range(13)]
    train = arrays.pack(ids, generator.integers(0, 3, size=13).tolist(), width=5)
    return arrays.Data(train, 13)


@pytest.fixture
def prepared(tiny, params, data):
    """Return a function for the inputs of a run of one layer."""
    model = bert.BertClassifier(dataclasses.replace(tiny, num_hidden_layers=1), 3)
    encoder = {"layer": {"0": params["bert"]["encoder"]["layer"]["0"]}}
    base = {"bert": {**params["bert"], "encoder": encoder}}

    def prepare(**changes):
        return runs.inputs(dataclasses.replace(RUN, **changes), model, base, data)

    return prepare


def trained(given, **options):
    """Return the members at the end and the metrics of all steps, on the host."""
    learners, metrics = runs.begin(given), []
    for progress in runs.advance(given, learners, **options):
        learners = progress.learners
        metrics.append(jax.device_get(progress.metrics))
    whole = jax.tree.map(lambda *x: np.concatenate(x, axis=1), *metrics)
    return jax.device_get(learners), whole


def assert_close(got, want, rtol=1e-5, atol=1e-6):
    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol)  # noqa: E731
    jax.tree.map(close, got, want)


def test_there_is_a_member_for_each_pair():
    assert RUN.members == [(0, 0.01), (0, 0.03), (5, 0.01), (5, 0.03)]


def test_members_of_one_seed_read_the_same_batches(prepared):
    rows = prepared().rows

    assert rows.shape == (4, 8, 6)
    np.testing.assert_array_equal(rows[0], rows[1])
    assert not np.array_equal(rows[0], rows[2])


def test_members_of_one_seed_start_alike(prepared):
    begun = jax.device_get(runs.begin(prepared()))

    for x in jax.tree.leaves((begun.state.params, begun.head)):
        np.testing.assert_array_equal(x[0], x[1])
    kernel = begun.head["kernel"]
    assert not np.array_equal(kernel[0], kernel[2])
    assert kernel.std() == pytest.approx(0.02, rel=0.3)
    assert not begun.head["bias"].any()


@pytest.mark.slow
def test_members_equal_runs_of_their_own(prepared):
    together, seen = trained(prepared())

    for i, (seed, rate) in enumerate(RUN.members):
        alone, seen_alone = trained(prepared(seeds=(seed,), learning_rates=(rate,)))
        one = jax.tree.map(lambda x: x[i : i + 1], (together, seen))  # noqa: B023
        assert_close((alone, seen_alone), one)
    assert len({*seen.loss[:, -1].round(4)}) == 4


@pytest.mark.slow
def test_the_length_of_a_call_changes_no_number(prepared):
    given = prepared()

    assert_close(trained(given, chunk=4), trained(given))


def test_a_run_goes_on_from_the_middle(prepared):
    given = prepared()
    whole, seen = trained(given, chunk=4)

    first = next(runs.advance(given, runs.begin(given), chunk=4))
    (second,) = runs.advance(given, first.learners, first.step, chunk=4)

    assert (first.step, second.step) == (4, 8)
    for x, y in zip(
        jax.tree.leaves(second.learners), jax.tree.leaves(whole), strict=True
    ):
        np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(second.metrics.loss, seen.loss[:, 4:])


def test_a_batch_in_parts_gives_what_it_gives_as_a_whole(prepared):
    assert_close(trained(prepared(accumulate=3)), trained(prepared()), 1e-4, 1e-5)


@pytest.mark.slow
def test_what_is_computed_in_bfloat16_is_trained_in_float32(prepared):
    learners, seen = trained(prepared(dtype="bfloat16"))
    _, exact = trained(prepared())

    kinds = {x.dtype for x in jax.tree.leaves((learners.state, learners.head))}
    assert kinds == {np.dtype(np.float32)}
    assert seen.loss.dtype == np.float32
    assert not np.array_equal(seen.loss, exact.loss)
    np.testing.assert_allclose(seen.loss, exact.loss, rtol=0.05)


def test_the_members_that_were_given_are_donated(prepared):
    given = prepared()
    learners = runs.begin(given)

    next(runs.advance(given, learners))

    assert all(x.is_deleted() for x in jax.tree.leaves(learners))
    assert not any(x.is_deleted() for x in jax.tree.leaves((given.base, given.data)))


def test_all_calls_run_in_one_compiled_program(prepared):
    trained(prepared(), chunk=4)
    before = trainer.advance._cache_size()

    trained(prepared(task="nyt", seeds=(8, 9), learning_rates=(0.1, 0.2)), chunk=4)

    assert trainer.advance._cache_size() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps is 0, expected at least 1"),
        ({"max_length": 1}, "max_length is 1, expected at least 2"),
        ({"warmup": 1.5}, "warmup is 1.5, expected at least 0 and at most 1"),
        ({"warmup": float("nan")}, "warmup is nan, expected at least 0 and at most"),
        ({"weight_decay": -1}, "weight_decay is -1, expected at least 0"),
        ({"clip": 0}, "clip is 0, expected at least 1e-06"),
        ({"seeds": (1, 1)}, r"seeds is \[1, 1\], expected different numbers"),
        ({"seeds": (2**31,)}, r"seeds is \[2147483648\], expected numbers from 0 to"),
        ({"learning_rates": ()}, r"learning_rates is \[\], expected different"),
        ({"learning_rates": (-0.1,)}, r"learning_rates is \[-0.1\], expected numbers"),
        ({"learning_rates": (float("inf"),)}, r"rates is \[inf\], expected numbers"),
        ({"batch": 6, "accumulate": 4}, "A batch of 6 cannot be computed in 4 equal"),
        ({"batch": 99, "devices": 99}, "devices is 99, and this machine has"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(RUN, **changes).check()


class Streamed:
    """The same sentences, step by step: only the order is known before."""

    def __init__(self, sentences, count):
        self.sentences, self.count = sentences, count

    def chunks(self, seed, *, steps, batch, start, stop, size):
        order = arrays.order(seed, self.count, steps, batch)
        for first in range(start, stop, size):
            rows = order[first : min(first + size, stop)].reshape(-1)
            yield jax.tree.map(lambda x: x[rows], self.sentences)  # noqa: B023


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "gora"])
def test_a_streamed_run_is_that_on_the_device_bit_for_bit(prepared, method):
    from train.methods import gora

    config = {"lora": RUN.method, "gora": gora.Gora(gradient_batches=3)}[method]
    given = prepared(method=config)
    streamed = given._replace(data=Streamed(given.data, 13))

    want, wanted = trained(given, chunk=3)
    got, metrics = trained(streamed, chunk=3)

    jax.tree.map(np.testing.assert_array_equal, got, want)
    jax.tree.map(np.testing.assert_array_equal, metrics, wanted)


def test_a_streamed_run_goes_on_at_any_step(prepared):
    given = prepared()
    streamed = given._replace(data=Streamed(given.data, 13))
    want, _ = trained(given, chunk=4)
    first = next(runs.advance(streamed, runs.begin(streamed), chunk=4))

    (last,) = runs.advance(streamed, first.learners, 4, chunk=4)

    assert last.step == 8
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(last.learners), want)
