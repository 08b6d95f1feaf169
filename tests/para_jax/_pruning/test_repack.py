"""Test children in each of their forms against NumPy's truncated SVD of the update."""

import functools
import inspect

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import para_jax

# Path, (m, n, r), stack, dtype, scale, and the kept components of each kernel.
MODEL = [
    ("head", (8, 6, 3), (), np.float32, 2.0, [[1, 1, 0]]),
    ("gone", (8, 6, 3), (), np.float32, 2.0, [[0, 0, 0]]),
    ("holes", (5, 9, 4), (), np.float64, -0.5, [[1, 0, 1, 0]]),
    ("wide", (4, 9, 6), (), np.float32, 1.0, [[1, 1, 1, 0]]),
    ("half", (8, 6, 3), (), np.float16, 1.5, [[1, 0, 0]]),
    ("brain", (8, 6, 3), (), ml_dtypes.bfloat16, 1.5, [[1, 1, 1]]),
    ("mlp", (7, 5, 3), (3,), np.float32, 3.0, [[1, 0, 0], [0, 0, 0], [1, 1, 0]]),
    ("experts", (7, 5, 3), (2, 2), np.float32, 1.0, 4 * [[0, 0, 0]]),
]
STACKS = {path: stack for path, _, stack, *_ in MODEL}
TOLERANCE = {"float64": 1e-10, "float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2}


@functools.cache
def model():
    rng = np.random.default_rng(0)
    adapters, masks = {}, {}
    for path, (m, n, r), stack, dtype, scale, kept in MODEL:
        adapters[path] = para_jax.Adapter(
            a=rng.normal(size=(*stack, m, r)).astype(dtype),
            b=rng.normal(size=(*stack, r, n)).astype(dtype),
            scale=scale,
        )
        masks[path] = np.reshape(kept, (*stack, -1)).astype(bool)
    return adapters, masks


@functools.cache
def decomposed():
    with jax.enable_x64(True):
        return jax.device_get(jax.jit(para_jax.decompose)(model()[0]))


@functools.cache
def child(form):
    adapters, masks = model()
    if form == "masked under jit":
        masked = functools.partial(para_jax.repack, form="masked")
        with jax.enable_x64(True):
            return jax.device_get(jax.jit(masked)(decomposed(), masks, adapters))
    return para_jax.repack(decomposed(), masks, adapters, form=form)


def delta(adapter):
    a, b = (np.asarray(x, np.float64) for x in (adapter.a, adapter.b))
    return adapter.scale * a @ b


def kept_updates():
    """Yield the path, index and dtype, and NumPy's kept part, of each kernel."""
    adapters, masks = model()
    for path, adapter in adapters.items():
        for index in np.ndindex(adapter.stack):
            u, s, vt = np.linalg.svd(delta(adapter)[index], full_matrices=False)
            kept = np.flatnonzero(masks[path][index])
            yield path, index, adapter.a.dtype.name, (u[:, kept] * s[kept]) @ vt[kept]


@pytest.mark.parametrize("form", ["masked", "masked under jit"])
@pytest.mark.slow
def test_a_masked_child_is_the_kept_part_in_the_parents_shapes(form):
    got = child(form)

    for path, index, dtype, want in kept_updates():
        error = np.abs(delta(got[path])[index] - want).max()
        assert error <= TOLERANCE[dtype] * max(1, np.abs(want).max()), path
    for path, adapter in model()[0].items():
        assert got[path].a.shape == adapter.a.shape
        assert got[path].b.shape == adapter.b.shape
        assert got[path].a.dtype == got[path].b.dtype == adapter.a.dtype
        assert got[path].scale == 1.0


def test_a_masked_child_leaves_components_in_their_columns():
    got = jax.device_get(child("masked"))

    assert got["holes"].a[:, [0, 2]].all()
    assert not got["holes"].a[:, [1, 3]].any()
    assert not got["holes"].b[[1, 3]].any()
    assert not got["wide"].a[:, 3:].any()
    assert not got["gone"].a.any()
    assert not got["experts"].b.any()


def test_a_ragged_child_has_each_kernel_at_its_own_rank():
    got = child("ragged")

    shapes = {path: (x.a.shape, x.b.shape) for path, x in got.items()}
    assert shapes == {
        "head": ((8, 2), (2, 6)),
        "holes": ((5, 2), (2, 9)),
        "wide": ((4, 3), (3, 9)),
        "half": ((8, 1), (1, 6)),
        "brain": ((8, 3), (3, 6)),
        "mlp/0": ((7, 1), (1, 5)),
        "mlp/2": ((7, 2), (2, 5)),
    }
    for path, index, dtype, want in kept_updates():
        name = "/".join([path, *map(str, index)])
        if name in got:
            np.testing.assert_allclose(
                delta(got[name]), want, atol=10 * TOLERANCE[dtype]
            )
            assert got[name].a.dtype == got[name].b.dtype == model()[0][path].a.dtype
            assert got[name].scale == 1.0
            assert isinstance(got[name].a, np.ndarray)
            assert got[name].a.flags.c_contiguous
        else:
            assert not want.any()


def test_a_padded_child_has_each_stack_at_its_largest_rank():
    got = child("padded")

    shapes = {path: (x.a.shape, x.b.shape) for path, x in got.items()}
    assert shapes == {
        "head": ((8, 2), (2, 6)),
        "holes": ((5, 2), (2, 9)),
        "wide": ((4, 3), (3, 9)),
        "half": ((8, 1), (1, 6)),
        "brain": ((8, 3), (3, 6)),
        "mlp": ((3, 7, 2), (3, 2, 5)),
    }
    assert not got["mlp"].a[0, :, 1].any()
    assert not got["mlp"].b[1].any()
    for path, index, dtype, want in kept_updates():
        if path in got:
            error = delta(got[path])[index] - want
            assert np.abs(error).max() <= 10 * TOLERANCE[dtype]
            assert got[path].a.dtype == model()[0][path].a.dtype


def test_the_forms_hold_the_same_numbers():
    masked, ragged = child("masked under jit"), child("ragged")
    padded = para_jax.unstack(child("padded"))

    for path, index, dtype, _ in kept_updates():
        kept = np.flatnonzero(model()[1][path][index])
        name = "/".join([path, *map(str, index)])
        if kept.size:
            a, b = masked[path].a[index][:, kept], masked[path].b[index][kept]
            for got in (ragged[name], padded[name]):
                atol = TOLERANCE[dtype]
                np.testing.assert_allclose(
                    got.a[:, : kept.size].astype(float), a.astype(float), atol=atol
                )
                np.testing.assert_allclose(
                    got.b[: kept.size].astype(float), b.astype(float), atol=atol
                )


@pytest.mark.parametrize("path", ["head", "holes", "wide", "brain"])
def test_kept_factors_are_balanced(path):
    got = child("ragged")[path]
    a, b = (np.asarray(x, np.float64) for x in (got.a, got.b))
    kept = model()[1][path]
    s = np.linalg.svd(delta(model()[0][path]), compute_uv=False)[: kept.size][kept]

    atol = 3 * TOLERANCE[got.a.dtype.name] * s[0]
    np.testing.assert_allclose(a.T @ a, np.diag(s), atol=atol)
    np.testing.assert_allclose(b @ b.T, np.diag(s), atol=atol)


def test_the_largest_entry_of_every_output_vector_is_positive():
    for adapter in child("ragged").values():
        b = adapter.b.astype(np.float64)
        largest = np.take_along_axis(b, np.abs(b).argmax(-1)[:, None], axis=-1)
        assert (largest > 0).all()


@pytest.mark.parametrize("method", ["qr", "gram"])
def test_of_entries_that_differ_in_sign_alone_the_first_is_positive(method):
    rng = np.random.default_rng(0)
    adapters = {
        f"m{i}": para_jax.Adapter(
            a=rng.normal(size=(7, 1)),
            b=rng.normal() * rng.permutation([[1.0, -1.0, 0.5, -0.5, 0.0]], axis=1),
        )
        for i in range(12)
    }

    @jax.jit
    def traced(adapters):
        spectra = para_jax.decompose(adapters, method=method)
        masks = {path: jnp.ones(x.s.shape, bool) for path, x in spectra.items()}
        return para_jax.repack(spectra, masks, adapters)

    host = para_jax.compress(adapters, para_jax.Gamma(1.0), method=method).adapters
    for children in (traced(adapters), host):
        for path, x in children.items():
            (row,) = np.asarray(x.b)
            assert row[np.abs(row).argmax()] > 0
            np.testing.assert_allclose(x.a @ x.b, delta(adapters[path]), atol=1e-12)


def test_equal_updates_give_equal_children_whatever_their_factors():
    rng = np.random.default_rng(1)
    a, b, gauge = (
        rng.normal(size=(8, 3)),
        rng.normal(size=(3, 6)),
        rng.normal(size=(3, 3)),
    )
    one = {"x": para_jax.Adapter(a=a, b=b, scale=-2.0)}
    other = {"x": para_jax.Adapter(a=a @ gauge, b=-2 * np.linalg.solve(gauge, b))}

    got = [para_jax.compress(x, para_jax.Rank(2)).adapters["x"] for x in (one, other)]

    np.testing.assert_allclose(got[0].a, got[1].a, atol=1e-10)
    np.testing.assert_allclose(got[0].b, got[1].b, atol=1e-10)


def test_a_child_of_a_child_of_full_rank_is_the_same():
    adapters = {"x": model()[0]["holes"]}

    once = para_jax.compress(adapters, para_jax.Gamma(1.0)).adapters
    twice = para_jax.compress(once, para_jax.Gamma(1.0)).adapters

    np.testing.assert_allclose(twice["x"].a, once["x"].a, atol=1e-12)
    np.testing.assert_allclose(delta(once["x"]), delta(adapters["x"]), atol=1e-12)


def test_components_that_count_as_zero_are_zero_even_if_kept():
    a = np.ones((8, 3)) * [1.0, 0.0, 0.0]
    adapters = {"x": para_jax.Adapter(a=a, b=np.ones((3, 6)))}
    everything = {"x": np.ones(3, bool)}

    got = para_jax.repack(para_jax.decompose(adapters), everything, adapters)["x"]

    np.testing.assert_allclose(got.a @ got.b, np.ones((8, 6)), atol=1e-14)
    assert not got.a[:, 1:].any()
    assert not got.b[1:].any()


@pytest.mark.user_defaults
@pytest.mark.parametrize("form", ["masked", "padded", "ragged"])
@pytest.mark.slow
def test_works_in_single_precision(form):
    adapters = {path: x for path, x in model()[0].items() if x.a.dtype == np.float32}
    masks = {path: model()[1][path] for path in adapters}

    got = para_jax.repack(para_jax.decompose(adapters), masks, adapters, form=form)

    for path, index, _, want in kept_updates():
        name = path if form != "ragged" else "/".join([path, *map(str, index)])
        if name in got and path in adapters:
            product = np.asarray(got[name].a) @ np.asarray(got[name].b)
            product = product if form == "ragged" else product[index]
            np.testing.assert_allclose(product, want, atol=1e-5 * max(1, want.max()))
            assert got[name].a.dtype == np.float32


def test_pack_moves_kept_components_to_the_front_under_jit():
    adapters, masks = model()
    two = jax.jit(functools.partial(para_jax.pack, width=2))

    got = two(decomposed(), masks, adapters)

    ragged = child("ragged")
    assert set(got) == set(adapters)
    assert got["head"].a.shape == (8, 2)
    assert got["mlp"].a.shape == (3, 7, 2)
    assert got["wide"].b.shape == (2, 9)
    np.testing.assert_allclose(got["holes"].a, ragged["holes"].a, atol=1e-12)
    np.testing.assert_allclose(got["mlp"].b[2], ragged["mlp/2"].b, atol=1e-6)
    np.testing.assert_allclose(got["wide"].a, ragged["wide"].a[:, :2], atol=1e-6)
    assert not got["mlp"].a[1].any()
    assert got["half"].a.dtype == np.float16


def test_pack_is_no_wider_than_there_are_components():
    adapters = {"wide": model()[0]["wide"]}
    spectra, masks = {"wide": decomposed()["wide"]}, {"wide": model()[1]["wide"]}

    got = para_jax.pack(spectra, masks, adapters, width=5)["wide"]

    assert (got.a.shape, got.b.shape) == ((4, 4), (4, 9))


def test_pad_fills_up_to_the_parents_shapes_and_changes_no_update():
    parent, padded = model()[0], child("padded")

    got = para_jax.pad(padded, like=parent)

    assert list(got) == list(parent)
    for path, x in got.items():
        assert (x.a.shape, x.b.shape) == (parent[path].a.shape, parent[path].b.shape)
        assert x.a.dtype == x.b.dtype == parent[path].a.dtype
        assert x.scale == 1.0
        if path in padded:
            np.testing.assert_array_equal(delta(x), delta(padded[path]))
            assert not x.a[..., padded[path].rank :].any()
        else:
            assert not delta(x).any()


def test_pad_does_not_cut():
    small = {"x": para_jax.Adapter(a=np.ones((5, 3)), b=np.ones((3, 9)))}
    large = {"x": model()[0]["holes"]}

    with pytest.raises(ValueError, match=r"'x': a \[5, 4\] and b \[4, 9\] do not fit"):
        para_jax.pad(large, like=small)
    with pytest.raises(
        ValueError, match=r"'x': a \[8, 3\] .* do not fit into a \[5, 4\]"
    ):
        para_jax.pad({"x": model()[0]["head"]}, like=large)
    with pytest.raises(ValueError, match="'y' is not a module of the model"):
        para_jax.pad({"y": small["x"]}, like=large)


def test_stack_and_unstack_are_inverses():
    adapters = {path: model()[0][path] for path in ("mlp", "experts", "head")}

    single = para_jax.unstack(adapters)
    again = para_jax.stack(single, {"mlp": (3,), "experts": (2, 2)})

    assert sorted(single) == [
        *["experts/0/0", "experts/0/1", "experts/1/0", "experts/1/1"],
        *["head", "mlp/0", "mlp/1", "mlp/2"],
    ]
    np.testing.assert_array_equal(single["experts/1/0"].a, adapters["experts"].a[1, 0])
    assert again.keys() == adapters.keys()
    for path, x in adapters.items():
        np.testing.assert_array_equal(again[path].a, x.a)
        np.testing.assert_array_equal(again[path].b, x.b)
        assert again[path].scale == x.scale


def test_stacks_that_do_not_fit_are_refused():
    single = para_jax.unstack({"mlp": model()[0]["mlp"]})
    taken = {"mlp": model()[0]["mlp"], "mlp/1": model()[0]["head"]}

    with pytest.raises(ValueError, match="Cannot stack 'mlp': 'mlp/3' is missing"):
        para_jax.stack(single, {"mlp": (4,)})
    other = {"mlp/1": model()[0]["head"]}
    with pytest.raises(ValueError, match=r"differ in shape or scale .* Pad them"):
        para_jax.stack(single | other, {"mlp": (3,)})
    with pytest.raises(
        ValueError, match="Cannot unstack 'mlp': 'mlp/1' is the path of"
    ):
        para_jax.unstack(taken)


@pytest.mark.parametrize("form", ["padded", "ragged"])
def test_a_child_that_keeps_nothing_is_empty(form):
    adapters = {"mlp": model()[0]["mlp"]}
    nothing = {"mlp": np.zeros((3, 3), bool)}

    got = para_jax.repack({"mlp": decomposed()["mlp"]}, nothing, adapters, form=form)

    assert got == {}


def test_arguments_of_different_models_are_refused():
    adapters, masks = model()
    spectra = decomposed()
    short = {"head": masks["head"]}
    wrong = masks | {"mlp": np.ones((3, 2), bool)}

    with pytest.raises(ValueError, match=r"spectra and masks are .* 'brain' \(7 such"):
        para_jax.repack(spectra, short, adapters)
    with pytest.raises(
        ValueError, match=r"spectra and adapters are of different models"
    ):
        para_jax.repack(spectra, masks, {"other": adapters["head"]} | adapters)
    with pytest.raises(
        ValueError, match=r"'mlp': expected a mask \[3, 3\], got \[3, 2\]"
    ):
        para_jax.repack(spectra, wrong, adapters)


def test_an_adapter_that_was_not_decomposed_is_refused():
    # The paths agree, the shapes do not: another model's adapter.
    adapters = {"head": model()[0]["holes"]}
    spectra, masks = {"head": decomposed()["head"]}, {"head": model()[1]["head"]}

    with pytest.raises(ValueError, match="'head'"):
        para_jax.repack(spectra, masks, adapters)


def test_an_unknown_form_is_refused():
    adapters, masks = model()
    repack = inspect.unwrap(para_jax.repack)  # As it is without the tests' type checks.

    with pytest.raises(
        ValueError, match="'dense': expected 'masked', 'padded' or 'ragged"
    ):
        repack(decomposed(), masks, adapters, form="dense")


@pytest.mark.parametrize("form", ["padded", "ragged"])
def test_forms_whose_shapes_are_ranks_are_refused_under_jit(form):
    adapters, masks = model()

    with pytest.raises(
        ValueError, match=r"not known while tracing\. Call it outside jit"
    ):
        jax.jit(lambda x: para_jax.repack(decomposed(), x, adapters, form=form))(
            jax.tree.map(jnp.asarray, masks)
        )


@pytest.mark.parametrize("form", ["padded", "ragged"])
def test_forms_whose_shapes_are_ranks_are_refused_while_adapters_are_traced(form):
    adapters, masks = model()

    with pytest.raises(ValueError, match="Call it outside jit"):
        jax.jit(lambda x: para_jax.repack(decomposed(), masks, x, form=form))(adapters)
