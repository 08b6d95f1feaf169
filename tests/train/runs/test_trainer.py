"""The interface between a method and the trainer."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from para_jax._adapters.adapter import Adapter
from train.data import arrays
from train.methods import gora, lora
from train.methods.method import Method, State
from train.models import bert
from train.runs import settings as runs, trainer

STEPS, BATCH, RATE = 4, 6, 0.05
PATH = "bert/encoder/layer/0/output/dense"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe:
    """One module's update at full rank, with optional parts of a method."""

    weight: float = 0.0
    batches: int = 0
    target: float = 6.0

    def method(self, steps: int) -> Method:
        def init(key: jax.Array, kernels: Any, gradients: Any) -> State:
            x = jnp.zeros((10, 6))
            memory = {"calls": jnp.zeros((steps, 3)), "gradients": gradients}
            return State({"x": x}, memory)

        def adapters(state: State) -> dict[str, Adapter]:
            return {PATH: Adapter(jnp.eye(10), state.params["x"])}

        def after_step(before: State, after: State, grads: Any, step: Any) -> State:
            moved = jnp.abs(after.params["x"] - before.params["x"]).max()
            seen = jnp.stack([step * 1.0, optax.tree.norm(grads), moved])
            calls = after.memory["calls"].at[step].set(seen)
            return after._replace(memory={**after.memory, "calls": calls})

        return Method(
            init=init,
            adapters=adapters,
            finish=adapters,
            penalty=lambda state: self.weight * state.params["x"].sum(),
            optimizer=lambda rate, decay: optax.sgd(rate),
            after_step=after_step,
            gradient_batches=self.batches,
        )


@pytest.fixture
def prepared(tiny, params):
    """Return a function for the inputs of a run with a method."""
    generator = np.random.default_rng(0)
    ids = [generator.integers(1, 11, size=2 + i % 4).tolist() for i in range(13)]
    train = arrays.pack(ids, generator.integers(0, 3, size=13).tolist(), width=5)

    def prepare(config, **changes):
        run = runs.Run(
            method=config, learning_rates=(RATE,), steps=STEPS, batch=BATCH, **changes
        )
        model = bert.BertClassifier(dataclasses.replace(tiny, num_hidden_layers=1), 3)
        encoder = {"layer": {"0": params["bert"]["encoder"]["layer"]["0"]}}
        base = {"bert": {**params["bert"], "encoder": encoder}}
        return runs.inputs(run, model, base, arrays.Data(train, 13))

    return prepare


def trained(given):
    (progress,) = runs.advance(given, runs.begin(given))
    one = jax.tree.map(lambda x: x[0], (progress.learners, progress.metrics))
    return jax.device_get(one)


@pytest.mark.parametrize(("steps", "warmup"), [(10, 0.3), (7, 0.0), (1, 0.5), (50, 1)])
def test_the_learning_rate_rises_and_falls(tiny, steps, warmup):
    model = bert.BertClassifier(tiny, 3)
    given = trainer.Trainer(model=model, config=lora.Lora(), steps=steps, warmup=warmup)

    got = [float(given.schedule(jnp.float32(2.0))(step)) for step in range(steps)]

    rise = max(1, round(warmup * steps))
    up = (np.arange(steps) + 1) / rise
    down = (steps - np.arange(steps)) / max(1, steps - rise)
    np.testing.assert_allclose(got, 2 * np.minimum(up, down), rtol=1e-6)
    assert 0 < min(got) <= max(got) <= 2


def test_the_adapted_kernels_are_the_linear_layers_of_the_blocks(tiny, params):
    got = bert.BertClassifier(tiny, 3).adapted.kernels({"bert": params["bert"]})

    names = [f"attention/self/{x}" for x in ("query", "key", "value")]
    names += ["attention/output/dense", "intermediate/dense", "output/dense"]
    assert set(got) == {f"bert/encoder/layer/{i}/{x}" for i in (0, 1) for x in names}
    assert got["bert/encoder/layer/1/intermediate/dense"].shape == (6, 10)


def test_after_a_step_a_method_sees_its_number_and_clipped_gradients(prepared):
    learner, metrics = trained(prepared(Probe(), clip=1e-3))

    calls = learner.state.memory["calls"]
    np.testing.assert_array_equal(calls[:, 0], np.arange(STEPS))
    assert (metrics.norm > 1e-3).all()
    # The norm is that of the classifier, too.
    assert (calls[:, 1] < 1e-3).all()
    # The largest entry of a step of SGD is at most the rate times the norm.
    assert (calls[:, 2] > 0).all()
    assert (calls[:, 2] <= RATE * calls[:, 1] * 1.01).all()


def test_the_penalty_moves_the_params_and_is_no_part_of_the_loss(prepared):
    plain, metrics = trained(prepared(Probe(), clip=1e9))
    moved, penalized = trained(prepared(Probe(weight=0.5), clip=1e9))

    np.testing.assert_allclose(penalized.loss[0], metrics.loss[0], rtol=1e-6)
    # Its gradient is 0.5 everywhere, and the rates of all steps add up to this.
    total = RATE * sum(min(x + 1, (STEPS - x) / (STEPS - 1)) for x in range(STEPS))
    change = (moved.state.params["x"] - plain.state.params["x"]).mean()
    np.testing.assert_allclose(change, -0.5 * total, rtol=0.1)


def test_a_method_can_start_from_the_gradients_of_the_first_batches(prepared):
    given = prepared(Probe(batches=3))
    begun = runs.begin(given)

    got = jax.tree.map(lambda x: x[0], begun.state.memory["gradients"])

    def loss(kernel, rows):
        layer = given.base["bert"]["encoder"]["layer"]
        base = layer["0"]["output"]["dense"]["kernel"]
        delta = Adapter(jnp.eye(10), kernel - base)
        head = jax.tree.map(lambda x: x[0], begun.head)
        variables = trainer.variables(
            given.trainer.model, given.base, head, {PATH: delta}
        )
        ids, lengths, labels = (x[rows] for x in given.data)
        mask = jnp.arange(ids.shape[1])[None] < lengths[:, None]
        logits = given.trainer.model.apply(variables, bert.Tokens(ids, mask))
        right = jax.nn.log_softmax(logits)[jnp.arange(len(rows)), labels]
        return -right.mean()

    kernel = given.trainer.model.adapted.kernels(given.base)[PATH]
    gradient = jax.jit(jax.grad(loss))
    want = sum(gradient(kernel, rows) for rows in given.rows[0][:3]) / 3
    assert got.keys() == given.trainer.model.adapted.kernels(given.base).keys()
    largest = float(jnp.abs(want).max())
    np.testing.assert_allclose(got[PATH], want, rtol=0, atol=1e-3 * largest)
    assert largest > 1e-4


def test_the_gradients_of_all_kernels_are_there_for_one_member_at_a_time(prepared):
    """By XLA's own account of the memory that the compiled program holds."""

    def kept(members):
        config = gora.Gora(rank=1, most=2, gradient_batches=2)
        given = prepared(config, seeds=tuple(range(members)))
        data, rows = next(runs.chunks(given, 0, 2, 2))
        words = given.seeds, given.rates, given.base, data, rows
        program = trainer.begin.lower(given.trainer, *words).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert kept(8) < 2 * kept(1)
