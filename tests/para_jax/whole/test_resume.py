"""Test that a stopped training run continues elsewhere from its saved child.

optax trains a Linen model, and Orbax's CheckpointManager saves it. The second run is a
process of its own that knows only the child's folder: this file is its program.
"""

import functools
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import linen as nn

import para_jax as para

pytestmark = pytest.mark.user_defaults

WIDTHS, RANK = (7, 11, 6), 4
STOP, STEPS = 40, 80
OPTIMIZER = optax.adamw(0.01)
SMALLER = para.Gamma(0.6)  # 7 of 12 ranks, for 3 modules.


class Dense(nn.Module):
    """Add the adapter found in the collection `lora` to a dense layer."""

    features: int

    @nn.compact
    def __call__(self, x):
        y = nn.Dense(self.features, name="base")(x)
        if self.has_variable("lora", "a"):
            y += x @ self.get_variable("lora", "a") @ self.get_variable("lora", "b")
        return y


class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        for i, width in enumerate(WIDTHS):
            x = Dense(width, name=f"layer_{i}")(x)
            x = nn.tanh(x) if i + 1 < len(WIDTHS) else x
        return x


@functools.cache
def task():
    """Return the frozen base, and data of a base changed by rank 2."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 5)).astype(np.float32)
    base = Model().init(jax.random.key(0), x)["params"]
    truth = {
        path: para.Adapter(z.a[:, :2], rng.normal(size=(2, z.outputs)).astype("f"))
        for path, z in start().items()
    }
    variables = {"params": base, "lora": para.to_params(truth)}
    return base, x, Model().apply(variables, x)


def start():
    """Return adapters as LoRA starts: `b` is zero."""
    rng = np.random.default_rng(1)
    ends = zip((5, *WIDTHS), WIDTHS, strict=False)
    return {
        f"layer_{i}": para.Adapter(
            a=(rng.normal(size=(m, RANK)) / np.sqrt(m)).astype(np.float32),
            b=np.zeros((RANK, n), np.float32),
        )
        for i, (m, n) in enumerate(ends)
    }


def loss(lora, base, x, y):
    return jnp.mean((Model().apply({"params": base, "lora": lora}, x) - y) ** 2)


def train(lora, state, steps):
    """Return adapters and optimizer state after `steps` steps, and all losses."""

    @jax.jit
    def step(lora, state, *data):
        value, grads = jax.value_and_grad(loss)(lora, *data)
        updates, state = OPTIMIZER.update(grads, state, lora)
        return optax.apply_updates(lora, updates), state, value

    losses = []
    for _ in range(steps):
        lora, state, value = step(lora, state, *task())
        losses.append(float(value))
    return lora, state, losses


def go_on(child):
    """Train a saved child and print the results: the second run."""
    checkpoint = para.load(child)
    lora = para.to_params(checkpoint.adapters)
    trained, _, losses = train(lora, OPTIMIZER.init(lora), STEPS)
    shapes = jax.tree.map(lambda x: list(x.shape), trained)
    provenance = checkpoint.provenance
    print(json.dumps({"losses": losses, "shapes": shapes, "provenance": provenance}))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the folder of a stopped run, and its losses."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    lora = para.to_params(start())
    lora, state, losses = train(lora, OPTIMIZER.init(lora), STOP)
    with ocp.CheckpointManager(folder, item_names=("default", "optimizer")) as manager:
        items = ocp.args.Composite(
            default=ocp.args.StandardSave(lora), optimizer=ocp.args.StandardSave(state)
        )
        manager.save(STOP, args=items)
        manager.wait_until_finished()
    return folder, losses


@pytest.mark.slow
def test_a_child_of_a_stopped_run_is_trained_on_by_another_process(run, tmp_path):
    folder, losses = run
    parent = para.load(folder / str(STOP), scale=1)
    child = para.compress(parent, SMALLER)
    beside = folder.parent / "child"
    para.save(child, beside, format="orbax")
    masked = para.compress(parent, SMALLER, form="masked").adapters

    done = subprocess.run(
        [sys.executable, __file__, beside],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )

    assert done.returncode == 0, done.stderr[-3000:]
    second = json.loads(done.stdout.splitlines()[-1])
    first_loss, *_, last_loss = second["losses"]
    np.testing.assert_allclose(
        first_loss, loss(para.to_params(masked), *task()), rtol=1e-5
    )
    assert last_loss < 0.5 * first_loss
    assert last_loss < losses[-1]
    ranks = {x.path: x.kept for x in child.report.modules}
    assert len(set(ranks.values())) > 1
    assert sum(ranks.values()) == 7
    assert second["shapes"] == {
        path: {"a": [m, ranks[path]], "b": [ranks[path], n]}
        for path, m, n in zip(ranks, (5, *WIDTHS), WIDTHS, strict=False)
    }
    (cut,) = second["provenance"]["cuts"]
    assert cut["policy"] == SMALLER.name
    assert cut["kept_rank"] == 7
    assert cut["parent"] == str(STOP)
    assert cut["ranks"] == ranks


def test_a_stopped_run_goes_on_smaller_with_its_optimizer(run):
    folder, losses = run
    like = para.to_params(start())
    with ocp.CheckpointManager(folder, item_names=("default", "optimizer")) as manager:
        items = ocp.args.Composite(
            optimizer=ocp.args.StandardRestore(OPTIMIZER.init(like))
        )
        state = manager.restore(STOP, args=items)["optimizer"]
    parent = para.load(folder / str(STOP), scale=1).adapters

    small, transforms = para.shrink(parent, SMALLER)
    lora = para.to_params(small)
    fresh = OPTIMIZER.init(lora)
    state = para.project_moments(state, transforms, like=fresh)
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, fresh)
    lora, state, after = train(lora, state, STEPS)

    child = para.compress(parent, SMALLER).adapters
    np.testing.assert_allclose(
        after[0], loss(para.to_params(child), *task()), rtol=1e-5
    )
    assert int(state[0].count) == STOP + STEPS
    assert after[-1] < min(0.5 * after[0], losses[-1])


if __name__ == "__main__":
    go_on(pathlib.Path(sys.argv[1]))
