import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train.methods import toy
from train.methods import triplets


@pytest.fixture
def drawn(key):
    a, e, b = jax.random.split(key, 3)
    return triplets.Triplets(
        a={"x": jax.random.normal(a, (7, 3))},
        e={"x": jax.random.normal(e, (3,))},
        b={"x": jax.random.normal(b, (3, 5))},
    )


def test_the_values_are_folded_into_the_second_factor(drawn):
    a, e, b = (np.asarray(part["x"], np.float64) for part in drawn)

    got = triplets.fold(drawn, 1.5)["x"]

    want = 1.5 * a @ np.diag(e) @ b
    np.testing.assert_allclose(got.scale * got.a @ got.b, want, atol=1e-6)


def test_weight_decay_leaves_the_values_alone(drawn):
    optimizer = triplets.adamw(lambda count: 0.1, 0.5)
    zeros = jax.tree.map(jnp.zeros_like, drawn)

    updates = toy.first_update(optimizer, zeros, drawn)

    np.testing.assert_allclose(updates.a["x"], -0.05 * drawn.a["x"], rtol=1e-6)
    np.testing.assert_allclose(updates.b["x"], -0.05 * drawn.b["x"], rtol=1e-6)
    np.testing.assert_array_equal(updates.e["x"], 0)


SCORES = {"x": np.float32([0.3, 0.1, 0.7]), "y": np.float32([0.2, 0.1])}


@pytest.mark.parametrize(
    ("count", "x", "y"),
    [
        (0, [0, 0, 0], [0, 0]),
        (1, [0, 1, 0], [0, 1]),  # A tie, taken whole.
        (2, [0, 1, 0], [0, 1]),
        (3, [0, 1, 0], [1, 1]),
        (4, [1, 1, 0], [1, 1]),
        (5, [1, 1, 1], [1, 1]),
    ],
)
def test_one_threshold_goes_over_all_modules(count, x, y):
    scores = {path: jnp.asarray(score) for path, score in SCORES.items()}

    got = jax.jit(triplets.lowest)(scores, count)

    np.testing.assert_array_equal(got["x"], np.array(x, bool))
    np.testing.assert_array_equal(got["y"], np.array(y, bool))
