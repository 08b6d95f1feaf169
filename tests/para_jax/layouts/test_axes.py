"""Check the roles of the axes of stored factors, read from shapes alone.

The product of the stored factors by `einsum`, axis by axis, is the oracle.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from para_jax.layouts import axes

# Name, a, b, the kernel, the user's stack axis, the expected roles, and the product of
# the stored factors, with the axes of the stack, the inputs and the outputs.
READINGS = [
    ("dense", (5, 2), (2, 7), (5, 7), None, "mr rn", "mr,rn->mn"),
    ("dense alone", (5, 2), (2, 7), None, None, "mr rn", "mr,rn->mn"),
    ("dense, any stack", (5, 2), (2, 7), None, 1, "mr rn", "mr,rn->mn"),
    ("rank above inputs", (2, 5), (5, 3), (2, 3), None, "mr rn", "mr,rn->mn"),
    ("all alike", (3, 3), (3, 3), (3, 3), None, "mr rn", "mr,rn->mn"),
    ("flat", (15, 2), (2, 7), (3, 5, 7), None, "mr rn", "mr,rn->mn"),
    ("heads out", (5, 2), (2, 3, 7), (3, 5, 7), None, "mr rnn", "mr,rhn->mhn"),
    ("heads in", (3, 5, 2), (2, 7), (3, 5, 7), None, "mmr rn", "hmr,rn->hmn"),
    ("conv", (3, 4, 5, 2), (2, 7), (3, 4, 5, 7), None, "mmmr rn", "vwmr,rn->vwmn"),
    (
        "conv, window of ones in b",
        (3, 4, 5, 2),
        (1, 1, 2, 7),
        (3, 4, 5, 7),
        None,
        "mmmr nnrn",
        "vwmr,xyrn->vwmxyn",
    ),
    ("scan", (4, 5, 2), (4, 2, 7), (4, 5, 7), None, "Lmr Lrn", "Lmr,Lrn->Lmn"),
    ("scan alone", (4, 5, 2), (4, 2, 7), None, None, "Lmr Lrn", "Lmr,Lrn->Lmn"),
    ("scan on 1", (5, 4, 2), (2, 4, 7), (5, 4, 7), None, "mLr rLn", "mLr,rLn->Lmn"),
    ("scan on 1, alone", (5, 4, 2), (2, 4, 7), None, 1, "mLr rLn", "mLr,rLn->Lmn"),
    (
        "heads, not a scan on 1",
        (5, 4, 2),
        (2, 4, 7),
        None,
        "none",
        "mmr rnn",
        "mhr,rgn->mhgn",
    ),
    (
        "rank of the depth",
        (2, 5, 2),
        (2, 2, 7),
        (2, 5, 7),
        None,
        "Lmr Lrn",
        "Lmr,Lrn->Lmn",
    ),
    (
        "rank of the depth, alone",
        (2, 5, 2),
        (2, 2, 7),
        None,
        0,
        "Lmr Lrn",
        "Lmr,Lrn->Lmn",
    ),
    (
        "scan of experts",
        (4, 3, 5, 2),
        (4, 2, 7),
        (4, 3, 5, 7),
        None,
        "Lmmr Lrn",
        "Lemr,Lrn->Lemn",
    ),
    (
        "scan of experts on 1",
        (3, 4, 5, 2),
        (2, 4, 7),
        (3, 4, 5, 7),
        None,
        "mLmr rLn",
        "eLmr,rLn->Lemn",
    ),
    (
        "scan of a batch",
        (4, 3, 5, 2),
        (4, 3, 2, 7),
        (4, 3, 5, 7),
        None,
        "LLmr LLrn",
        "Lemr,Lern->Lemn",
    ),
    (
        "scan on 1 of a batch",
        (3, 4, 5, 2),
        (3, 4, 2, 7),
        (3, 4, 5, 7),
        1,
        "LLmr LLrn",
        "eLmr,eLrn->eLmn",
    ),
    (
        "scan of heads",
        (4, 5, 2),
        (4, 2, 3, 7),
        (4, 3, 5, 7),
        None,
        "Lmr Lrnn",
        "Lmr,Lrhn->Lmhn",
    ),
    (
        "scan on 1 of heads",
        (5, 4, 2),
        (2, 4, 3, 7),
        (5, 4, 3, 7),
        None,
        "mLr rLnn",
        "mLr,rLhn->Lmhn",
    ),
]


@pytest.mark.parametrize(
    ("a", "b", "kernel", "stack_axis", "roles", "product"),
    [x[1:] for x in READINGS],
    ids=[x[0] for x in READINGS],
)
@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_the_matrices_have_the_product_of_the_stored_factors(
    kind, a, b, kernel, stack_axis, roles, product
):
    rng = np.random.default_rng(0)
    one, other = kind(rng.normal(size=a)), kind(rng.normal(size=b))

    found = axes.reading("mlp", a, b, kernel, stack_axis)
    left, right = axes.matrices(found, one, other)

    assert " ".join(found) == roles
    want = np.einsum(product, one, other)
    stack = found.a.count("L")
    np.testing.assert_allclose((left @ right).ravel(), want.ravel(), atol=1e-12)
    assert left.shape[:stack] == right.shape[:stack] == want.shape[:stack]
    assert left.ndim == right.ndim == stack + 2
    for got, was in zip(
        axes.stored(found, left, right, (a, b)), (one, other), strict=True
    ):
        assert isinstance(got, type(was))
        np.testing.assert_array_equal(got, was)


def test_a_child_of_another_rank_lies_as_its_parent():
    a, b = (5, 4, 3), (3, 4, 2, 7)
    found = axes.reading("mlp", a, b, (5, 4, 2, 7), None)
    left, right = np.ones((4, 5, 2)), np.ones((4, 2, 14))

    got = axes.stored(found, left, right, (a, b))

    assert [x.shape for x in got] == [(5, 4, 2), (2, 4, 2, 7)]


def test_shapes_without_arrays_are_enough():
    a, b = (jax.ShapeDtypeStruct(x, jnp.float32) for x in ((4, 5, 2), (4, 2, 7)))

    assert axes.reading("mlp", a.shape, b.shape, None, None) == ("Lmr", "Lrn")


@pytest.mark.parametrize(
    ("a", "b", "kernel", "stack_axis", "message"),
    [
        ((5,), (2, 7), None, None, "are not a pair of factors"),
        ((5, 2), (3, 7), None, None, "the ranks disagree"),
        ((4, 5, 2), (3, 2, 7), None, None, "or the stacks do"),
        ((2, 7), (5, 2), None, None, "with a and b swapped"),
        ((4, 2, 7), (4, 5, 2), None, None, "with a and b swapped"),
        ((5, 2), (2, 7), (7, 6), None, r"do not fit their kernel \[7, 6\]"),
        ((4, 5, 2), (4, 2, 7), (5, 4, 7), None, r"do not fit their kernel \[5, 4, 7\]"),
        ((5, 4, 2), (2, 4, 7), None, None, "stack_axis=: 1 or none"),
        ((2, 5, 2), (2, 2, 7), None, None, "stack_axis=: 0 or none"),
        ((4, 2, 5, 2), (4, 2, 2, 7), None, None, "Give the tree with its base kernels"),
        ((4, 5, 2), (4, 2, 7), None, 1, "not stacked on axis 1: expected stack_axis=0"),
        ((5, 4, 2), (2, 4, 7), (5, 4, 7), 0, "expected stack_axis=1"),
    ],
)
def test_shapes_that_do_not_say_enough_are_refused_by_path(
    a, b, kernel, stack_axis, message
):
    with pytest.raises(ValueError, match=f"^'mlp/up'.*{message}"):
        axes.reading("mlp/up", a, b, kernel, stack_axis)
