"""The contract of every method, on one training of each on a tiny BERT."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import para_jax as para
from para_jax._adapters.params import nest, unnest
from tests.train import tiny
from train.methods import METHODS, State
from train.models import bert

STEPS, RATE, DECAY = 12, 0.05, 0.01
# Each method is compiled twice, and runs for a moment.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}

# The first update is a step along the gradient.
STARTS_ELSEWHERE = {"gora"}
# Gates close by themselves; ranks are rounded, then raised to the least.
MAY_MISS_THE_TARGET = {"sora", "gora"}


class Task(NamedTuple):
    model: bert.BertClassifier
    params: Any
    tokens: bert.Tokens
    labels: np.ndarray

    @property
    def kernels(self):
        return {
            path.removesuffix("/kernel"): x
            for path, x in unnest(self.params).items()
            if "/layer/" in path and path.endswith("/kernel")
        }

    def logits(self, adapters):
        variables = {"params": self.params, "lora": para.to_params(adapters)}
        return self.model.apply(variables, self.tokens)

    def merged(self, adapters):
        """Return the task on kernels with the updates added: no adapters are left."""
        updates = {f"{path}/kernel": dense(x) for path, x in adapters.items()}
        leaves = {x: y + updates.get(x, 0) for x, y in unnest(self.params).items()}
        return self._replace(params=nest(leaves))

    def loss(self, logits):
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, self.labels)
        return losses.mean()

    def gradients(self):
        zeros = {
            path: para.Adapter(a=jnp.eye(len(x)), b=jnp.zeros_like(x))
            for path, x in self.kernels.items()
        }
        found = jax.grad(lambda x: self.loss(self.logits(x)))(zeros)
        return {path: x.b for path, x in found.items()}


class Run(NamedTuple):
    """One training.

    The state before the first step and after the last, the loss of each step, and the
    logits at the end.
    """

    first: State
    last: State
    losses: jax.Array
    logits: jax.Array


@pytest.fixture(scope="module")
def task():
    config = tiny.config(num_hidden_layers=1, num_attention_heads=2)
    random = np.random.default_rng(0)
    ids = random.integers(1, 11, size=(9, 5), dtype=np.int32)
    tokens = bert.Tokens(ids, np.arange(5)[None] < random.integers(2, 6, size=(9, 1)))
    model = bert.BertClassifier(config, 3)
    params = tiny.params(model, random, scale=0.5)
    return Task(model, params, tokens, ids[:, 0] % 3)


@pytest.fixture(scope="module")
def gradients(task):
    return jax.jit(task.gradients)()


@pytest.fixture(scope="module")
def base_logits(task):
    return jax.jit(task.logits)({})


@pytest.fixture(scope="module")
def merged_logits(task):
    """Return a function: the logits of the base with adapters merged into it."""
    program = jax.jit(lambda params: task._replace(params=params).logits({}))
    return lambda adapters: program(task.merged(adapters).params)


@pytest.fixture(scope="module", params=METHODS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def method(name):
    return METHODS[name].method(STEPS)


@pytest.fixture(scope="module")
def train(method, task, gradients):
    """The whole training of one key, as a function to map."""
    optimizer = method.optimizer(lambda step: RATE, DECAY)

    def loss(params, memory):
        state = State(params, memory)
        return task.loss(task.logits(method.adapters(state))) + method.penalty(state)

    def one_step(carry, step):
        before, moments = carry
        value, grads = jax.value_and_grad(loss)(*before)
        updates, moments = optimizer.update(grads, moments, before.params)
        after = State(optax.apply_updates(before.params, updates), before.memory)
        return (method.after_step(before, after, grads, step), moments), value

    def train(key):
        given = gradients if method.gradient_batches else None
        first = method.init(key, task.kernels, given)
        start = (first, optimizer.init(first.params))
        (last, _), losses = lax.scan(one_step, start, jnp.arange(STEPS))
        return Run(first, last, losses, task.logits(method.adapters(last)))

    return train


@pytest.fixture(scope="module")
def keys():
    return jax.random.split(jax.random.key(3), 2)


@pytest.fixture(scope="module")
def runs(train, keys):
    """Two trainings, one after another."""
    program = jax.jit(train, compiler_options=QUICK)
    return [program(key) for key in keys]


@pytest.fixture
def run(runs):
    return runs[0]


@pytest.fixture
def finished(method, run):
    return method.finish(run.last)


def dense(adapter):
    a, b = (np.asarray(x, np.float64) for x in (adapter.a, adapter.b))
    return (adapter.scale * a @ b).astype(np.float32)


def ranks(adapters):
    return {path: x.nominal or x.rank for path, x in adapters.items()}


def test_the_first_update_is_zero(name, method, run):
    updates = {path: dense(x) for path, x in method.adapters(run.first).items()}

    size = max(np.abs(x).max() for x in updates.values())
    assert (size > 1e-4) if name in STARTS_ELSEWHERE else (size < 1e-6)


def test_training_lowers_the_loss(task, base_logits, run):
    assert np.isfinite(run.losses).all()
    assert task.loss(run.logits) < 0.9 * task.loss(base_logits)


def test_the_model_sees_an_update_of_every_kernel_and_what_is_left_was_trained(
    task, method, run, finished
):
    before, after = map(method.adapters, (run.first, run.last))

    assert before.keys() == after.keys() == task.kernels.keys()
    for path, kernel in task.kernels.items():
        assert dense(before[path]).shape == dense(after[path]).shape == kernel.shape
    for path in finished:
        assert not np.allclose(dense(before[path]), dense(after[path]), atol=1e-3)


def test_what_is_exported_is_what_was_trained(task, method, run, finished):
    for path, adapter in method.adapters(run.last).items():
        want = dense(finished[path]) if path in finished else 0
        np.testing.assert_allclose(dense(adapter), want, atol=1e-6)
    assert finished.keys() <= task.kernels.keys()


def test_the_merged_export_gives_the_logits_of_the_training(
    merged_logits, run, finished
):
    np.testing.assert_allclose(merged_logits(finished), run.logits, atol=1e-4)


def test_the_export_is_ragged_arrays_of_numpy(finished):
    for adapter in finished.values():
        assert type(adapter.a) is type(adapter.b) is np.ndarray
        assert adapter.a.dtype == adapter.b.dtype == np.float32
        assert adapter.rank > 0


def test_the_export_has_the_target_rank(name, task, finished):
    got, modules = sum(ranks(finished).values()), len(task.kernels)

    if name not in MAY_MISS_THE_TARGET:
        assert got <= METHODS[name].target * modules
    assert 0 < got <= 16 * modules


def test_the_export_is_saved_and_loaded_unchanged(finished, tmp_path):
    para.save(finished, tmp_path / "adapter")
    got = para.load(tmp_path / "adapter").adapters

    assert got.keys() == finished.keys()
    for path, adapter in finished.items():
        assert got[path].rank == adapter.rank
        # The file may hold the scale in a factor, rounded once more.
        np.testing.assert_allclose(
            dense(got[path]), dense(adapter), rtol=1e-5, atol=1e-6
        )


def test_the_export_can_be_compressed(finished):
    sizes = {path: min(dense(x).shape) for path, x in finished.items()}
    budget = sum(min(r, sizes[path]) for path, r in ranks(finished).items()) // 4

    child = para.compress(finished, para.Gamma(0.25))

    available = sum(np.linalg.matrix_rank(dense(x)) for x in finished.values())
    assert child.report.kept_rank == min(budget, available)


def test_a_run_mapped_over_keys_is_the_run_of_each_key(method, train, keys, runs):
    mapped = jax.jit(jax.vmap(train), compiler_options=QUICK)(keys)

    for index, run in enumerate(runs):
        got = jax.tree.map(lambda x, i=index: x[i], mapped)
        np.testing.assert_allclose(got.losses, run.losses, atol=1e-4)
        np.testing.assert_allclose(got.logits, run.logits, atol=1e-3)
        found, want = (ranks(method.finish(x.last)) for x in (got, run))
        assert found == want


def test_a_setting_is_a_frozen_value(name):
    config = METHODS[name]

    assert dataclasses.is_dataclass(config)
    assert hash(config) == hash(dataclasses.replace(config))
