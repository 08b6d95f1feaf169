"""Test the projection of moments of many modules at once, against NumPy."""

import jax
import numpy as np
import optax
import pytest

import para_jax

# Shapes and ranks that alternate from layer to layer, as modules of a model do.
FORMS = [(9, 7, 4), (7, 9, 4), (9, 7, 3), (11, 2, 4), (9, 7, 4)]


def adapters(layers):
    rng = np.random.default_rng(0)
    scales = (2.0, -1.0, 0.5)
    return {
        f"layers/{i}/{j}": para_jax.Adapter(
            a=rng.normal(size=(m, r)).astype(np.float32),
            b=rng.normal(size=(r, n)).astype(np.float32),
            scale=scales[(i + j) % 3],
        )
        for i in range(layers)
        for j, (m, n, r) in enumerate(FORMS)
    }


@pytest.mark.parametrize("way", [lambda f: f, jax.jit])
def test_moments_of_many_modules_are_those_of_each(way):
    parents = adapters(12)
    rng = np.random.default_rng(1)
    state = jax.tree.map(
        lambda x: rng.uniform(size=x.shape).astype(np.float32) if x.ndim else x,
        optax.adam(0.1).init(parents),
    )

    def step(parents, state):
        small, transforms = para_jax.squeeze(parents, para_jax.Gamma(0.5))
        return small, transforms, para_jax.project_moments(state, transforms)

    small, transforms, new = way(step)(parents, state)

    for path, x in parents.items():
        of_a, of_b = (np.float64(y) for y in (transforms[path].a, transforms[path].b))
        # The transforms make the new factors: a' = a @ b^T and b' = a^T @ b.
        np.testing.assert_allclose(small[path].a, x.a @ of_b.T, atol=2e-6)
        np.testing.assert_allclose(small[path].b, of_a.T @ x.b, atol=2e-6)
        for old, got, power in (
            (state[0].mu, new[0].mu, 1),
            (state[0].nu, new[0].nu, 2),
        ):
            want_a = np.float64(old[path].a) @ of_a**power
            want_b = of_b**power @ np.float64(old[path].b)
            np.testing.assert_allclose(got[path].a, want_a, rtol=2e-5, atol=2e-6)
            np.testing.assert_allclose(got[path].b, want_b, rtol=2e-5, atol=2e-6)
