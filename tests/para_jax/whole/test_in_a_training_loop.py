"""Test compression inside a user's compiled step: one program serves all budgets."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import para_jax

Bytes, Epsilon, Gamma = para_jax.Bytes, para_jax.Epsilon, para_jax.Gamma
Params, Rank, Threshold = para_jax.Params, para_jax.Rank, para_jax.Threshold

# Path, stack, (m, n, r), scale. 5 modules, 23 ranks.
MODEL = [("layer/q", (), (8, 6, 3), 2.0), ("mlp", (2, 2), (7, 11, 5), 1.0)]
SHARES = [round(0.05 * i, 2) for i in range(1, 21)]
PRECISIONS = [
    pytest.param("float64"),
    pytest.param("float32", marks=pytest.mark.user_defaults),
]


def adapters(seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return {
        path: para_jax.Adapter(
            a=rng.normal(size=(*stack, m, r)).astype(dtype),
            b=rng.normal(size=(*stack, r, n)).astype(dtype),
            scale=scale,
        )
        for path, stack, (m, n, r), scale in MODEL
    }


@functools.cache
def spectra(x64):
    """Return the spectra of `adapters()`, in the precision of the test."""
    with jax.enable_x64(x64):
        return jax.device_get(jax.jit(para_jax.decompose)(adapters()))


def masked(adapters, policy):
    spectra = para_jax.decompose(adapters)
    kept = para_jax.masks(spectra, policy)
    return para_jax.repack(spectra, kept, adapters, form="masked")


def counted(function):
    """Return `function`, and a list that grows by one entry per trace."""
    traces = []

    def wrapped(*args):
        traces.append(args)
        return function(*args)

    return wrapped, traces


def updates(adapters):
    """Return the update of each kernel in float64."""
    return {
        path: x.scale * np.asarray(x.a, np.float64) @ np.asarray(x.b, np.float64)
        for path, x in para_jax.unstack(adapters).items()
    }


def check_equal(got, want, tolerance=1e-4):
    """Check that masked adapters are the updates of a ragged child."""
    want = updates(want)
    for path, update in updates(jax.device_get(got)).items():
        expected = want.get(path, np.zeros(update.shape))
        np.testing.assert_allclose(update, expected, atol=tolerance, err_msg=path)


BUDGETS = {
    "gamma": [Gamma(x) for x in SHARES],
    "gamma local": [
        Gamma(x, scope="local", remainder="greedy", max_rank=4) for x in SHARES
    ],
    "rank": [Rank(4.0 * x, multiple_of=2) for x in SHARES],
    "whole ranks": [Rank(x) for x in range(5)],
    "params": [Params(400.0 * x, ties="threshold") for x in SHARES],
    "whole params": [Params(20 * x) for x in range(1, 20)],
    "bytes": [Bytes(1600.0 * x) for x in SHARES],
    "epsilon": [Epsilon(x) for x in SHARES],
    "epsilon local": [Epsilon(x, scope="local", min_rank=1) for x in SHARES],
    "threshold": [Threshold(40.0 * x) for x in SHARES],
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("policies", BUDGETS.values(), ids=BUDGETS)
def test_one_trace_serves_every_budget_and_keeps_what_the_host_keeps(
    precision, policies
):
    parent = spectra(precision == "float64")
    choose, traces = counted(para_jax.masks)
    choose = jax.jit(choose)

    for policy in policies:
        try:
            want = para_jax.ranks(parent, policy)
        except ValueError:  # A budget below one rank: see the test of clamping.
            assert policy.kind != "gamma"
            continue
        got = choose(parent, policy)
        for path, mask in got.items():
            np.testing.assert_array_equal(mask.sum(-1), want[path], str(policy))

    assert len(traces) == 1


@pytest.mark.user_defaults
@pytest.mark.slow
def test_twenty_budgets_take_one_trace_no_transfer_and_equal_the_ragged_children():
    parent = adapters()
    step, traces = counted(masked)
    step = jax.jit(step)
    on_device = jax.device_put(parent)
    policies = [Gamma(jax.device_put(jnp.float32(x))) for x in SHARES]
    step(on_device, policies[0])  # Compiling moves constants to the device.

    with jax.transfer_guard("disallow"):
        children = [step(on_device, policy) for policy in policies]
        assert len(traces) == 1
        with pytest.raises(RuntimeError, match="Disallowed host-to-device"):
            step(on_device, Gamma(0.5))  # The guard sees even a plain number.

    for share, child in zip(SHARES, children, strict=True):
        ragged = para_jax.compress(parent, Gamma(share))
        assert ragged.report.kept_rank == max(1, int(share * 23 + 1e-9))
        check_equal(child, ragged.adapters)


@pytest.mark.user_defaults
@pytest.mark.parametrize("modules", [1, 7, 100, 2239])
def test_a_traced_share_of_ranks_is_rounded_as_the_exact_one_is(modules):
    s = np.tile(np.linspace(2.0, 1.0, 16), (modules, 1))
    shape = (modules, 16, 16)
    spectra = {
        "mlp": para_jax.Spectrum(
            s=s,
            left=np.zeros(shape),
            right=np.zeros(shape),
            shape=(8, 6),
            dtype="float32",
            nominal=16,
        )
    }
    count = jax.jit(lambda x, policy: para_jax.masks(x, policy)["mlp"].sum())

    # In float32, 0.53 * 1600 is less than 848, and so with others of these.
    for share in [1 / 16, 0.1, 0.29, 0.3, 0.53, 0.59, 31 / 112, 0.99, 1.0]:
        want = para_jax.ranks(spectra, Gamma(share))["mlp"].sum()
        assert int(count(spectra, Gamma(share))) == want, share


@pytest.mark.parametrize(
    ("policy", "value", "want"),
    [
        (Gamma(1.0), 7.0, 23),
        (Gamma(1.0), -1.0, 1),
        (Gamma(1.0, min_rank=2), 0.01, 10),
        (Gamma(1.0, min_rank=2, scope="local"), 0.01, 10),
        (Rank(1.0), 99.0, 23),
        (Rank(1.0), 0.1, 0),
        (Rank(1), 99, 23),
        (Params(100.0), 1e30, 23),
        (Params(100.0), 3.0, 0),
        (Epsilon(0.5), 2.0, 23),
        (Epsilon(0.5), 0.0, 1),
        (Threshold(0.5), -2.0, 23),
    ],
    ids=str,
)
def test_a_traced_budget_that_is_impossible_is_brought_to_the_nearest(
    policy, value, want
):
    traced = jax.tree.map(lambda _: jnp.asarray(value), policy)

    kept = jax.jit(para_jax.masks)(spectra(x64=True), traced)

    assert sum(int(x.sum()) for x in kept.values()) == want


@pytest.mark.parametrize("precision", PRECISIONS)
def test_vmap_over_budgets_equals_a_loop(precision):
    parent = spectra(precision == "float64")
    shares = np.asarray([0.1, 0.25, 0.5, 1.0])

    sweep = jax.jit(jax.vmap(para_jax.masks, in_axes=(None, 0)))
    got = sweep(parent, Gamma(shares))

    for i, share in enumerate(shares):
        for path, rank in para_jax.ranks(parent, Gamma(share)).items():
            np.testing.assert_array_equal(got[path][i].sum(-1), rank)


def test_the_whole_pipeline_maps_over_budgets():
    parent = adapters()

    sweep = jax.jit(jax.vmap(masked, in_axes=(None, 0)))
    got = sweep(parent, Gamma(jnp.asarray([0.25, 0.6])))

    for i, share in enumerate((0.25, 0.6)):
        child = para_jax.compress(parent, Gamma(share))
        check_equal(jax.tree.map(lambda x, i=i: x[i], got), child.adapters)


def test_a_schedule_of_budgets_runs_in_a_scan():
    parent = {
        path: para_jax.Adapter(jnp.asarray(x.a), jnp.asarray(x.b))
        for path, x in adapters().items()
    }
    schedule = Gamma(jnp.linspace(1.0, 0.2, 5))

    @jax.jit
    def run(adapters, schedule):
        return jax.lax.scan(lambda x, y: (masked(x, y), y), adapters, schedule)

    child, seen = run(parent, schedule)

    check_equal(child, para_jax.compress(parent, Gamma(0.2)).adapters)
    assert isinstance(seen, Gamma)
    np.testing.assert_array_equal(seen.value, schedule.value)


def test_a_donated_state_is_given_back_compressed():
    parent = {
        path: para_jax.Adapter(jnp.asarray(x.a), jnp.asarray(x.b))
        for path, x in adapters().items()
    }
    want = para_jax.compress(parent, Rank(2)).adapters
    step = jax.jit(masked, donate_argnames="adapters")

    child = step(parent, Rank(2.0))

    assert parent["mlp"].a.is_deleted()
    check_equal(child, want)


def test_gradients_flow_through_the_kept_part():
    """Compare with central differences, away from changes of the choice."""
    parent = adapters(dtype=np.float64)

    @jax.jit
    def loss(factor):
        changed = parent | {"layer/q": para_jax.Adapter(factor, parent["layer/q"].b)}
        child = masked(changed, Gamma(0.5))
        return sum(jnp.sum(jnp.sin(x.a @ x.b)) for x in child.values())

    at = jnp.asarray(parent["layer/q"].a)
    along = jnp.asarray(np.random.default_rng(1).normal(size=at.shape))
    with jax.numpy_rank_promotion("allow"):
        slope = jnp.vdot(jax.jit(jax.grad(loss))(at), along)
    wanted = (loss(at + 1e-6 * along) - loss(at - 1e-6 * along)) / 2e-6

    np.testing.assert_allclose(slope, wanted, rtol=1e-5)


# --- Policies as values and as pytrees ---------------------------------------------

ALL = [
    Gamma(0.25, scope="local", remainder="greedy"),
    Rank(4, min_rank=1, max_rank=8, multiple_of=2),
    Params(1000, ties="threshold"),
    Bytes(1000),
    Epsilon(0.9),
    Threshold(0.5),
]


@pytest.mark.parametrize("policy", ALL, ids=lambda x: x.kind)
def test_a_policy_has_one_leaf_and_is_the_same_when_rebuilt(policy):
    leaves, structure = jax.tree.flatten(policy)

    rebuilt = jax.tree.unflatten(structure, leaves)

    assert leaves == [policy.value]
    assert type(rebuilt) is type(policy)
    assert rebuilt == policy
    assert hash(rebuilt) == hash(policy)
    assert repr(rebuilt) == repr(policy)
    assert rebuilt.name == policy.name
    ((path, _),) = jax.tree.leaves_with_path(policy)
    assert jax.tree_util.keystr(path) == ".value"


@pytest.mark.parametrize("policy", ALL, ids=lambda x: x.kind)
def test_what_is_not_the_value_is_part_of_the_program(policy):
    structure = jax.tree.structure(policy)

    assert structure != jax.tree.structure(type(policy)(policy.value, min_rank=2))
    assert len({jax.tree.structure(x) for x in ALL}) == len(ALL)


@pytest.mark.parametrize("policy", ALL, ids=lambda x: x.kind)
def test_shapes_none_and_anything_else_can_stand_for_the_value(policy):
    shapes = jax.eval_shape(lambda x: x, policy)

    assert shapes.value.shape == ()
    assert jax.tree.map(lambda _: None, policy).value is None
    assert jax.tree.map(lambda _: "?", policy).value == "?"


def test_a_policy_made_inside_a_program_is_not_checked():
    choose = jax.jit(lambda x, share: para_jax.masks(x, Gamma(share)))

    kept = choose(spectra(x64=True), 0.5)

    assert sum(int(x.sum()) for x in kept.values()) == 11


def test_a_number_on_a_device_is_a_number_where_ranks_are_exact():
    parent = adapters()

    one = para_jax.compress(parent, Gamma(jnp.asarray(0.5))).report
    other = para_jax.compress(parent, Gamma(0.5)).report

    assert str(one) == str(other)
    with pytest.raises(ValueError, match=r"gamma must be in \(0, 1\], got 2"):
        para_jax.compress(parent, Gamma(jnp.asarray(2.0)))
    with pytest.raises(ValueError, match="above the parent's 23"):
        para_jax.masks(spectra(x64=True), Rank(np.asarray(40.0)))


def test_several_budgets_at_once_are_refused_with_the_remedy():
    for choose in (para_jax.masks, para_jax.ranks):
        with pytest.raises(ValueError, match=r"shape \[3\], expected one.*jax.vmap"):
            choose(spectra(x64=True), Gamma(jnp.linspace(0.1, 1, 3)))


def test_exact_ranks_of_a_traced_budget_are_refused():
    choose = functools.partial(para_jax.ranks, spectra(x64=True))

    with pytest.raises(ValueError, match=r"this gamma is traced.*use masks"):
        jax.jit(choose)(Gamma(0.5))


# --- On a mesh ----------------------------------------------------------------------

SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
import para_jax

rng = np.random.default_rng(0)
parent = {
    "mlp": para_jax.Adapter(
        rng.normal(size=(4, 8, 3)).astype("f"), rng.normal(size=(4, 3, 12)).astype("f"),
        2.0,
    ),
    "head": para_jax.Adapter(
        rng.normal(size=(8, 5)).astype("f"), rng.normal(size=(5, 4)).astype("f")
    ),
}
mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=2 * (jax.sharding.AxisType.Auto,))
specs = {
    "mlp": para_jax.Adapter(P("x", "y", None), P("x", None, "y"), 2.0),
    "head": para_jax.Adapter(P(("x", "y"), None), P(None, "x")),
}
shardings = jax.tree.map(lambda x: NamedSharding(mesh, x), specs)
sharded = jax.device_put(parent, shardings)

for method in ("qr", "gram"):
    traces = []

    def step(adapters, policy):
        traces.append(policy)
        smaller, _ = para_jax.squeeze(adapters, policy, method=method)
        return smaller

    step = jax.jit(step, donate_argnums=0, out_shardings=shardings)
    for share in (0.25, 0.5, 1.0):
        got = step(jax.tree.map(jnp.copy, sharded), para_jax.Gamma(share))
        assert got["mlp"].a.sharding.is_equivalent_to(shardings["mlp"].a, 3)
        want = para_jax.compress(parent, para_jax.Gamma(share), form="masked").adapters
        for path, x in jax.device_get(got).items():
            wanted = want[path].a @ want[path].b
            np.testing.assert_allclose(x.scale * (x.a @ x.b), wanted, atol=1e-4)
    assert len(traces) == 1
assert jax.device_count() == 4
print("returned")
"""


@pytest.mark.slow
def test_sharded_adapters_are_squeezed_in_place_on_a_mesh_of_four(tmp_path):
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }

    done = subprocess.run(
        [sys.executable, "-c", SHARDED],
        cwd=tmp_path,  # Not the checkout: `-c` would import from there.
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )

    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("returned\n")
