"""Test the kernels step by step on the CPU, and their plain twins, against NumPy.

`L` products, a depth `d`, a rank `r`.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from para_jax.linalg import core
from para_jax.linalg.gpu import gram, jacobi

EPS = float(np.finfo(np.float32).eps)
RANKS = [3, 5, 16, 20, 24, 32]


# --- Gram matrices --------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames="tall")
def interpreted(x, *, tall):
    return gram.gram(x, tall=tall, interpret=True)


def check_gram(x, *, tall):
    got = interpreted(x if tall else x.mT, tall=tall)

    wide = np.float64(x)
    lengths = np.linalg.norm(wide, axis=-2)
    bound = 1e-14 * lengths[..., :, None] * lengths[..., None, :]
    assert got.dtype == np.float64
    assert (np.abs(got - wide.mT @ wide) <= bound).all()


@pytest.mark.parametrize(
    "dtype",
    [
        *("float64", "float32"),
        *(pytest.param(x, marks=pytest.mark.slow) for x in ("bfloat16", "float16")),
    ],
)
@pytest.mark.parametrize("tall", [True, False])
@pytest.mark.parametrize("rank", [*RANKS, 64])
def test_a_gram_matrix_of_any_rank_and_depth(rank, tall, dtype):
    rng = np.random.default_rng(rank)
    for depth in (1, 131):
        x = rng.normal(size=(2, depth, rank))
        check_gram(jnp.asarray(x, dtype), tall=tall)


@pytest.mark.parametrize("tall", [True, False])
def test_a_gram_matrix_that_many_blocks_add_up(tall):
    x = np.random.default_rng(0).normal(size=(1, 1031, 3))

    check_gram(jnp.asarray(x, np.float32), tall=tall)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_a_gram_matrix_of_any_scale(scale):
    x = np.random.default_rng(0).normal(size=(2, 131, 3)) * [scale, 1, scale]

    check_gram(jnp.asarray(x, np.float32), tall=True)


def test_a_gram_matrix_under_vmap():
    x = np.random.default_rng(0).normal(size=(3, 2, 37, 5))

    got = jax.vmap(lambda y: gram.gram(y, tall=True, interpret=True))(jnp.asarray(x))

    np.testing.assert_allclose(got, x.mT @ x, atol=1e-12)


# --- Spectra --------------------------------------------------------------------------


def normal(rng, r):
    return rng.normal(size=(r + 8, r)), rng.normal(size=(r, r + 5))


def graded(rng, r):
    a, b = normal(rng, r)
    return a * np.geomspace(1, 1e-12, r), b


def opposed(rng, r):
    a, b = normal(rng, r)
    return a * np.geomspace(1, 1e-12, r), b * np.geomspace(1e-12, 1, r)[:, None]


def dependent(rng, r):
    a, b = normal(rng, r)
    a[:, 1::2] = a[:, : 2 * (r // 2) : 2]
    b[-1] = 2 * b[0]
    return a, b


def some_zero(rng, r):
    a, b = normal(rng, r)
    a[:, ::3], b[1] = 0, 0
    return a, b


def equal(rng, r):
    q, _ = np.linalg.qr(rng.normal(size=(r + 8, r)))
    return q, np.eye(r, r + 5)


def times(of_a, of_b):
    def factors(rng, r):
        a, b = normal(rng, r)
        return of_a * a, of_b * b

    return factors


INPUTS = {
    "normal": normal,
    "graded": graded,
    "opposed": opposed,
    "dependent": dependent,
    "some zero": some_zero,
    "equal": equal,
    "zero": times(1, 0),
    "large": times(1e30, 1e30),
    "tiny": times(1e-30, 1e-30),
    "large and tiny": times(1e30, 1e-30),
}


@functools.cache
def products(rank):
    rng = np.random.default_rng(rank)
    return {name: make(rng, rank) for name, make in INPUTS.items()}


@jax.jit
def by_kernel(gram_a, gram_b):
    return jacobi.spectra(gram_a, gram_b, resolution=EPS, interpret=True)


@jax.jit
def by_twin(gram_a, gram_b):
    found, share = core.of_grams(gram_a, gram_b)
    return *found, share


def grams(pairs):
    a, b = (np.stack(x) for x in zip(*pairs, strict=True))
    return jnp.asarray(a.mT @ a), jnp.asarray(b @ b.mT)


@functools.cache
def found(way, rank):
    """Return `s, left, right` and the share of each input, from one program."""
    pairs = products(rank)
    computed = {"kernel": by_kernel, "twin": by_twin}[way](*grams(pairs.values()))
    return dict(zip(pairs, zip(*map(np.asarray, computed), strict=True), strict=True))


def spectrum_of(a, b):
    (q_a, r_a), (q_b, r_b) = np.linalg.qr(a), np.linalg.qr(b.T)
    u, s, vt = np.linalg.svd(r_a @ r_b.T)
    return q_a @ u, s, vt @ q_b.T


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("way", ["kernel", "twin"])
class TestSpectra:
    def test_the_singular_values_are_those_of_the_product(self, way, rank, name):
        s, *_ = found(way, rank)[name]

        _, want, _ = spectrum_of(*products(rank)[name])
        resolved = want > 2 * rank * EPS * want[0]
        # Squares of dependent columns lose half of all digits.
        bound = 1e-7 if name == "dependent" else 1e-11
        assert (np.diff(s) <= 0).all()
        np.testing.assert_allclose(s[resolved], want[resolved], rtol=bound)
        assert (s[~resolved] <= 3 * rank * EPS * want[0]).all()

    def test_the_resolved_components_are_the_product(self, way, rank, name):
        a, b = products(rank)[name]
        s, left, right, _ = found(way, rank)[name]

        u, want, vt = spectrum_of(a, b)
        kept = want > 2 * rank * EPS * want[0]
        product = (a @ left[:, kept]) @ (right[kept] @ b)
        best = (u[:, kept] * want[kept]) @ vt[kept]
        assert np.abs(product - best).max() <= 1e-6 * want[0]
        zero = s <= rank * EPS * s[0]
        assert not left[:, zero].any()
        assert not right[zero].any()

    def test_the_new_factors_are_balanced(self, way, rank, name):
        a, b = products(rank)[name]
        s, left, right, _ = found(way, rank)[name]

        kept = s > 1e-3 * s[0]
        weight = 1 / np.sqrt(s[kept])
        new_a, new_b = (a @ left[:, kept]) * weight, weight[:, None] * (right[kept] @ b)
        np.testing.assert_allclose(new_a.T @ new_a, np.eye(kept.sum()), atol=1e-6)
        np.testing.assert_allclose(new_b @ new_b.T, np.eye(kept.sum()), atol=1e-6)

    def test_the_least_share_is_what_the_columns_before_leave(self, way, rank, name):
        a, b = products(rank)[name]
        share = found(way, rank)[name][-1]

        want = min(least_share(a), least_share(b.T))
        if want > 1e-12:
            np.testing.assert_allclose(share, want, rtol=1e-3)
        else:
            assert not share > 1e-12


def least_share(x):
    """Return the share by QR: the squared diagonal, except for columns of zeros."""
    there = x[:, x.any(0)]
    diagonal = np.diagonal(np.linalg.qr(there, mode="r"))
    shares = (diagonal / np.linalg.norm(there, axis=0)) ** 2
    return shares.min(initial=1)


def test_spectra_under_vmap():
    pairs = list(products(5).values())[:4]
    gram_a, gram_b = (x.reshape(2, 2, 5, 5) for x in grams(pairs))

    s, *_ = jax.vmap(by_kernel)(gram_a, gram_b)

    for got, pair in zip(s.reshape(4, 5), pairs, strict=True):
        want = spectrum_of(*pair)[1]
        np.testing.assert_allclose(got, want, atol=1e-7 * want[0])


def test_what_is_not_finite_stays_in_its_own_product():
    gram_a, gram_b = grams([normal(np.random.default_rng(0), 5)] * 2)

    s, _, _, share = by_kernel(gram_a.at[0, 2, 2].set(np.nan), gram_b)

    assert np.isfinite(s[1]).all()
    assert not share[0] > 1e-12


@pytest.mark.parametrize("width", [16, 32])
def test_in_a_sweep_each_column_meets_each_other_one_once(width):
    left, right = jacobi._halves(jnp.arange(width)[None])
    met = []

    for _ in range(width - 1):
        met += zip(left[0].tolist(), right[0].tolist(), strict=True)
        left, right = jacobi._next_pairs(left, right)

    assert sorted(map(sorted, met)) == [
        [i, j] for i, j in itertools.combinations(range(width), 2)
    ]
