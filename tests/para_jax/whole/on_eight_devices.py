"""Test adapters on meshes of eight devices; `test_meshes.py` runs this file.

Sizes identify the arrays moved between devices: only `m` is a multiple of 11 and only
`n` of 13, however they are divided or flattened.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import para_jax
from para_jax import Adapter, Gamma

M, N = 88, 104
KINDS = ["Auto", "Explicit"]
BITS = [("Auto", False), ("Explicit", True)]  # Two passes in float32, one in float64.
# The stack, the rank, and the mesh axes of a and b.
PLACES = {
    "layers": ((4,), 3, P("x"), P("x")),
    "inputs": ((), 3, P(("x", "y")), P(None, "y")),
    "outputs": ((), 3, P(), P(None, ("x", "y"))),
    "both": ((4,), 3, P("x", "y"), P("x", None, "y")),
    "experts": ((2, 4), 3, P("x", "y"), P("x", "y")),
    "other": ((4,), 5, P("y", "x"), P(None, None, "x")),
    "whole": ((), 5, P(), P()),
}


@functools.cache
def parent():
    rng = np.random.default_rng(0)

    def adapter(stack, r):
        a, b = rng.normal(size=(*stack, M, r)), rng.normal(size=(*stack, r, N))
        return Adapter(a.astype(np.float32), b.astype(np.float32), scale=2.0)

    return {path: adapter(stack, r) for path, (stack, r, _, _) in PLACES.items()}


def mesh(kind):
    types = (getattr(AxisType, kind),) * 2
    return jax.make_mesh((2, 4), ("x", "y"), axis_types=types)


def sharded(kind, names=tuple(PLACES)):
    """Return some of the adapters on the mesh."""
    here = mesh(kind)
    return {
        path: Adapter(
            a=jax.device_put(x.a, NamedSharding(here, PLACES[path][2])),
            b=jax.device_put(x.b, NamedSharding(here, PLACES[path][3])),
            scale=x.scale,
        )
        for path, x in parent().items()
        if path in names
    }


def pipeline(adapters, policy, *, form, method):
    spectra = para_jax.decompose(adapters, method=method)
    kept = para_jax.masks(spectra, policy)
    if form == "packed":
        return spectra, kept, para_jax.pack(spectra, kept, adapters, width=2)
    return spectra, kept, para_jax.repack(spectra, kept, adapters)


@functools.cache
def compiled(kind, *, x64, form="masked", method="auto", names=tuple(PLACES)):
    some = sharded(kind, names)
    with jax.enable_x64(x64):
        jitted = jax.jit(pipeline, static_argnames=("form", "method"))
        lowered = jitted.lower(some, Gamma(0.5), form=form, method=method)
        return lowered.compile()


@functools.cache
def results(kind, *, x64):
    with jax.enable_x64(x64):
        return compiled(kind, x64=x64)(sharded(kind), Gamma(0.5))


@functools.cache
def truth():
    """Return NumPy's singular values and pooled choice, kernel by kernel."""
    dense = {p: x.scale * x.a.astype(float) @ x.b for p, x in parent().items()}
    svd = {path: np.linalg.svd(x, full_matrices=False) for path, x in dense.items()}
    s = {path: svd[path][1][..., : x.rank] for path, x in parent().items()}
    pooled = np.sort(np.concatenate([x.ravel() for x in s.values()]))[::-1]
    tau = pooled[int(0.5 * pooled.size) - 1]
    child = {
        path: (
            u[..., : s[path].shape[-1]]
            * np.where(s[path] >= tau, s[path], 0)[..., None, :]
        )
        @ vt[..., : s[path].shape[-1], :]
        for path, (u, _, vt) in svd.items()
    }
    return s, {path: (x >= tau).sum(-1) for path, x in s.items()}, child


def moved(program):
    """Return the shapes of all arrays moved between devices."""
    kinds = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    # Within a line: results may be many, with comments between them.
    pattern = rf" = (.*?) (?:{kinds}|collective-broadcast)(?:-start)?\("
    text = " ".join(re.findall(pattern, program.as_text()))
    return [
        [int(size) for size in shape.split(",") if size]
        for shape in re.findall(r"\w\d*\[([\d,]*)\]", text)
    ]


def is_of_a_factor(shape):
    return any(size % 11 == 0 or size % 13 == 0 for size in shape)


def product(adapter):
    a, b = (np.asarray(x, np.float64) for x in (adapter.a, adapter.b))
    return adapter.scale * a @ b


def assert_close(got, want):
    """Compare products, in float32."""
    assert np.linalg.norm(got - want) <= 1e-5 * np.linalg.norm(want)


def spec(x):
    found = tuple(x.sharding.spec)
    return found + (None,) * (x.ndim - len(found))


def full(spec, ndim):
    return (*spec, *[None] * (ndim - len(spec)))


def check_places(child):
    for path, x in child.items():
        _, _, a, b = PLACES[path]
        assert spec(x.a) == full(a, x.a.ndim)
        assert spec(x.b) == full(b, x.b.ndim)


# --- Inside a program -----------------------------------------------------------------


@pytest.mark.parametrize(("kind", "x64"), BITS)
def test_only_what_is_smaller_than_a_factor_moves(kind, x64):
    shapes = moved(compiled(kind, x64=x64))

    assert [3, 3] in [shape[-2:] for shape in shapes]
    assert not [shape for shape in shapes if is_of_a_factor(shape)]


def test_a_program_that_gathers_a_factor_is_told_apart():
    program = compiled("Auto", x64=False, names=("inputs",), method="qr")

    shapes = moved(program)

    assert [shape for shape in shapes if is_of_a_factor(shape)]


def test_packed_components_stay_where_they_are():
    program = compiled("Explicit", x64=True, form="packed", names=("both", "other"))

    _, _, child = program(sharded("Explicit", ("both", "other")), Gamma(0.5))

    assert not [shape for shape in moved(program) if is_of_a_factor(shape)]
    assert {x.a.shape[-1] for x in child.values()} == {2}
    check_places(child)


@pytest.mark.parametrize(("kind", "x64"), BITS)
def test_the_pooled_choice_is_that_of_numpy(kind, x64):
    s, ranks, child = truth()

    spectra, kept, masked = results(kind, x64=x64)

    for path in parent():
        np.testing.assert_allclose(
            spectra[path].s, s[path], rtol=1e-12 if x64 else 2e-6
        )
        np.testing.assert_array_equal(np.sum(kept[path], -1), ranks[path])
        assert_close(product(masked[path]), child[path])


@pytest.mark.parametrize(("kind", "x64"), BITS)
def test_children_are_where_their_parents_are(kind, x64):
    spectra, kept, child = results(kind, x64=x64)

    check_places(child)
    for path in PLACES:
        assert spectra[path].left.sharding.is_fully_replicated
        assert kept[path].sharding.is_fully_replicated


@pytest.mark.parametrize("kind", KINDS)
def test_a_pipeline_of_single_calls_works_too(kind):
    some = sharded(kind, ("both",))

    _, _, masked = pipeline(some, Gamma(1.0), form="masked", method="gram")

    assert_close(product(masked["both"]), product(parent()["both"]))
    check_places(masked)


def test_arrays_of_numpy_go_onto_the_mesh_in_use():
    some = {"both": parent()["both"]}

    with jax.set_mesh(mesh("Explicit")):
        spectra = jax.jit(para_jax.decompose)(some)

    np.testing.assert_allclose(spectra["both"].s, truth()[0]["both"], rtol=1e-12)


def test_a_rank_axis_that_is_divided_is_put_together():
    here = mesh("Explicit")
    a = np.arange(2 * M * 4.0).reshape(2, M, 4) % 7
    b = np.arange(2 * 4 * N * 1.0).reshape(2, 4, N) % 5
    divided = Adapter(
        a=jax.device_put(a, NamedSharding(here, P("x", None, "y"))),
        b=jax.device_put(b, NamedSharding(here, P(None, "x", "y"))),
    )

    spectra, _, child = pipeline(
        {"": divided}, Gamma(1.0), form="masked", method="auto"
    )

    want = np.linalg.svd(a @ b, compute_uv=False)[..., :4]
    np.testing.assert_allclose(spectra[""].s, want, rtol=1e-7, atol=1e-5)
    assert_close(product(child[""]), a @ b)
    assert spec(child[""].a) == ("x", None, None)
    assert spec(child[""].b) == (None, None, "y")


def test_each_device_may_decompose_adapters_of_its_own():
    here = mesh("Auto")
    x = parent()["layers"]

    def one(a, b):
        return para_jax.decompose({"": Adapter(a, b)}, method="gram")[""].s

    places = P("y")
    mapped = jax.shard_map(
        one, mesh=here, in_specs=(places, places), out_specs=places, check_vma=False
    )
    got = jax.jit(mapped)(x.a, x.b)

    np.testing.assert_allclose(2 * got, truth()[0]["layers"], rtol=1e-6)


def own(function, **options):
    """Return the values of `function` on each device's own adapters, and NumPy's."""
    rng = np.random.default_rng(4)
    a = rng.normal(size=(8, 3, 7, 4)).astype(np.float32)
    b = rng.normal(size=(8, 3, 4, 5)).astype(np.float32)
    devices = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    each = jax.shard_map(
        lambda a, b: function(a[0], b[0])[None],
        mesh=devices,
        in_specs=P("x"),
        out_specs=P("x"),
        **options,
    )
    want = np.linalg.svd(np.float64(a) @ np.float64(b), compute_uv=False)[..., :4]
    return jax.jit(each)(a, b), want


def values(a, b):
    return para_jax.decompose({"x": Adapter(a, b)})["x"].s


PRECISIONS = [True, pytest.param(False, marks=pytest.mark.user_defaults)]


@pytest.mark.parametrize("wide", PRECISIONS)
@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("way", [lambda f: f, jax.vmap])
def test_what_differs_by_device_is_decomposed_there(way, checked, wide):
    got, want = own(way(values), check_vma=checked)

    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * want.max())


@pytest.mark.user_defaults
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", [lambda f: f, jax.vmap])
def test_in_a_mesh_that_is_set_adapters_off_it_are_decomposed(way, kind):
    rng = np.random.default_rng(5)
    a = rng.normal(size=(3, 7, 4)).astype(np.float32)
    b = rng.normal(size=(3, 4, 5)).astype(np.float32)
    want = np.linalg.svd(np.float64(a) @ np.float64(b), compute_uv=False)[:, :4]

    def total(a, b):
        return way(values)(a, b).sum()

    with jax.set_mesh(jax.make_mesh((8,), ("x",), axis_types=(AxisType[kind],))):
        got = jax.jit(way(values))(a, b)
        slope = jax.jit(jax.grad(total))(a, b)

    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * want.max())
    # The derivative of a sum of singular values: U V^T B^T.
    u, _, vt = np.linalg.svd(np.float64(a) @ np.float64(b), full_matrices=False)
    whole = (u[..., :4] @ vt[:, :4]) @ np.float64(b).mT
    np.testing.assert_allclose(slope, whole, rtol=0, atol=1e-4 * np.abs(whole).max())


# --- Host -----------------------------------------------------------------------------


def test_a_masked_child_stays_on_the_mesh():
    got = para_jax.compress(sharded("Explicit", ("both",)), Gamma(1.0), form="masked")

    assert_close(product(got.adapters["both"]), product(parent()["both"]))
    check_places(got.adapters)


@pytest.mark.parametrize("form", ["padded", "ragged"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_child_of_any_form_stays_on_the_mesh(kind, form):
    _, ranks, child = truth()
    whole = para_jax.compress(parent(), Gamma(0.5), form=form)

    got = para_jax.compress(sharded(kind), Gamma(0.5), form=form)

    assert got.report.as_dict()["modules"][0]["kept"] == int(ranks["both"][0])
    assert got.adapters.keys() == whole.adapters.keys()
    for path, x in got.adapters.items():
        root = path.split("/")[0]
        index = tuple(map(int, path.split("/")[1:]))
        _, _, a, b = PLACES[root]
        stacked = len(parent()[root].stack)
        a, b = (
            full(y, stacked + 2)[stacked if form == "ragged" else 0 :] for y in (a, b)
        )
        assert (spec(x.a), spec(x.b)) == (a, b)
        assert x.a.shape == whole.adapters[path].a.shape
        assert_close(product(x), child[root][index])


@pytest.mark.parametrize(("kind", "form"), [("Auto", "padded"), ("Explicit", "ragged")])
def test_a_family_stays_on_the_mesh_beside_what_is_not_on_it(kind, form):
    mixed = {**sharded(kind), "layers": parent()["layers"]}
    policies = [Gamma(0.5), Gamma(0.02)]

    got = para_jax.family(mixed, policies, form=form)
    want = para_jax.family(parent(), policies, form=form)

    for child, other in zip(got, want, strict=True):
        assert child.adapters.keys() == other.adapters.keys()
        for path, x in child.adapters.items():
            in_numpy = path.startswith("layers")
            assert isinstance(x.a, np.ndarray) == in_numpy
            assert in_numpy or len(x.b.sharding.device_set) == 8
            assert_close(product(x), product(other.adapters[path]))


# --- Training -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_squeezed_adapters_and_their_moments_stay_in_place(kind):
    adapters = sharded(kind)
    state = optax.TraceState(trace=jax.tree.map(jnp.copy, adapters))

    def step(adapters, state):
        small, transforms = para_jax.squeeze(adapters, Gamma(0.5))
        return small, para_jax.project_moments(state, transforms)

    program = jax.jit(step).lower(adapters, state).compile()
    small, new = program(adapters, state)

    assert not [shape for shape in moved(program) if is_of_a_factor(shape)]
    check_places(small)
    check_places(new.trace)
    for path, x in small.items():
        assert_close(product(x), truth()[2][path])
