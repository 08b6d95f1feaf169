"""Check pruning during training against NumPy and optax itself."""

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import ml_dtypes
import numpy as np
import optax
import pytest

import para_jax

Gamma, Rank = para_jax.Gamma, para_jax.Rank

# Path, stack, (m, n, r), scale. 6 modules, 21 ranks; `wide` has no more than 4 of 5.
MODEL = [
    ("head", (), (8, 6, 3), 2.0),
    ("wide", (), (4, 9, 5), -0.5),
    ("mlp", (3,), (7, 5, 4), 1.0),
    ("up", (), (5, 7, 2), 1.0),
]
SCALES = {path: scale for path, _, _, scale in MODEL}

squeeze = jax.jit(para_jax.squeeze)


def random_like(tree, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), tree)


def adapters(dtype=np.float64):
    shapes = {
        path: para_jax.Adapter(
            a=np.zeros((*stack, m, r), dtype),
            b=np.zeros((*stack, r, n), dtype),
            scale=scale,
        )
        for path, stack, (m, n, r), scale in MODEL
    }
    return random_like(shapes, 0)


def update(x):
    return x.scale * np.asarray(x.a, np.float64) @ np.asarray(x.b, np.float64)


def transposed(x):
    return np.swapaxes(x, -1, -2)


def between(old, new):
    """Return `l, r` with `a' = a @ l` and `b' = r @ b`, by NumPy's pseudoinverse.

    They are unique if the factors have full rank, as random ones do. For `wide`, with
    more columns than rows in `a`, they are the smallest of many.
    """
    return np.linalg.pinv(old.a) @ new.a, new.b @ np.linalg.pinv(old.b)


# --- The adapters -------------------------------------------------------------------


def test_at_full_budget_the_update_stays_and_the_factors_are_balanced():
    old = adapters()

    new, _ = squeeze(old, Gamma(1.0))

    assert jax.tree.structure(new) == jax.tree.structure(old)
    for path, x in new.items():
        np.testing.assert_allclose(update(x), update(old[path]), atol=1e-10)
        k = min(x.inputs, x.outputs, x.rank)
        s = np.linalg.svd(update(old[path]), compute_uv=False)[..., :k]
        s = np.pad(s, [(0, 0)] * (s.ndim - 1) + [(0, x.rank - k)])
        diagonal = s[..., None] * np.eye(x.rank) / abs(x.scale)
        np.testing.assert_allclose(transposed(x.a) @ x.a, diagonal, atol=1e-10)
        np.testing.assert_allclose(x.b @ transposed(x.b), diagonal, atol=1e-10)


def kept_part(old, ranks):
    """Return the truncated SVD of each update, the largest `ranks` of all."""
    parts = {
        path: np.linalg.svd(update(x), full_matrices=False) for path, x in old.items()
    }
    pool = np.concatenate([s.ravel() for _, s, _ in parts.values()])
    tau = np.sort(pool)[-ranks] if ranks else np.inf
    return {
        path: (u * (s * (s >= tau))[..., None, :]) @ vt
        for path, (u, s, vt) in parts.items()
    }


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(np.float64, 1e-10), (ml_dtypes.bfloat16, 0.1)]
)
@pytest.mark.parametrize("ranks", [0, 1, 8])
def test_a_smaller_budget_leaves_the_largest_components_at_the_same_scale(
    ranks, dtype, tolerance
):
    old = adapters(dtype)

    new, _ = squeeze(old, Rank(ranks / 6))

    want = kept_part(old, ranks)
    assert jax.tree.structure(new) == jax.tree.structure(old)
    for path, x in new.items():
        assert x.a.dtype == x.b.dtype == dtype
        assert (x.a.shape, x.b.shape) == (old[path].a.shape, old[path].b.shape)
        np.testing.assert_allclose(update(x), want[path], atol=tolerance)


def test_an_update_of_nothing_becomes_factors_of_nothing():
    x = adapters()["head"]
    empty = {
        "untrained": para_jax.Adapter(x.a, jnp.zeros_like(x.b)),
        "off": para_jax.Adapter(x.a, x.b, 0.0),
        "head": x,
    }

    new, transforms = squeeze(empty, Gamma(1.0))

    for path in ("untrained", "off"):
        leaves = jax.tree.leaves((new[path], transforms[path]))
        assert not any(np.any(leaf) for leaf in leaves)
    np.testing.assert_allclose(update(new["head"]), update(x), atol=1e-10)


# --- The moments --------------------------------------------------------------------


def sgd_state(old, moments):
    state = optax.sgd(0.1, momentum=0.9).init(old)
    return (optax.TraceState(trace=moments), *state[1:])


@pytest.mark.parametrize("gamma", [1.0, 0.5])
def test_projected_momentum_is_what_the_same_gradients_would_have_left(gamma):
    """Compute `m = sum_t beta^t dL/da_t` with the old factors and with the new."""
    old = adapters()
    new, transforms = squeeze(old, Gamma(gamma))
    rng = np.random.default_rng(1)
    trace, want = {}, {}
    for path, x in old.items():
        left, right = between(x, new[path])
        sums = np.zeros(x.a.shape), np.zeros(x.b.shape)
        wanted = np.zeros(x.a.shape), np.zeros(x.b.shape)
        for power in (0.81, 0.9, 1.0):
            gradient = power * x.scale * rng.normal(size=update(x).shape)
            # Any past factors; in `wide`, within the span of the present ones.
            a = x.a @ (np.eye(x.rank) + 0.1 * rng.normal(size=(x.rank, x.rank)))
            b = x.b * (1 + power)
            a = x.a * (1 - power) if path == "wide" else a
            sums[0][:] += gradient @ transposed(b)
            sums[1][:] += transposed(a) @ gradient
            wanted[0][:] += gradient @ transposed(right @ b)
            wanted[1][:] += transposed(a @ left) @ gradient
        trace[path] = para_jax.Adapter(*map(jnp.asarray, sums), x.scale)
        want[path] = wanted

    (got, *_) = para_jax.project_moments(sgd_state(old, trace), transforms)

    for path, (a, b) in want.items():
        np.testing.assert_allclose(got.trace[path].a, a, atol=1e-9, err_msg=path)
        np.testing.assert_allclose(got.trace[path].b, b, atol=1e-9, err_msg=path)


def test_at_full_budget_momentum_predicts_the_same_change_of_the_loss():
    old = {path: x for path, x in adapters().items() if path != "wide"}
    new, transforms = squeeze(old, Gamma(1.0))
    trace, change = random_like(old, 1), random_like(old, 2)

    (got, *_) = para_jax.project_moments(sgd_state(old, trace), transforms)

    for path, x in old.items():
        left, right = between(x, new[path])
        for name, changed in (
            ("a", change[path].a @ left),
            ("b", right @ change[path].b),
        ):
            before = np.vdot(getattr(trace[path], name), getattr(change[path], name))
            after = np.vdot(getattr(got.trace[path], name), changed)
            np.testing.assert_allclose(after, before, rtol=1e-9)


@pytest.mark.parametrize("balanced", [True, False])
def test_from_balanced_factors_momentum_takes_the_same_way(balanced):
    """Compare an uninterrupted run in NumPy with one squeezed at full budget."""
    rng = np.random.default_rng(3)
    u, _ = np.linalg.qr(rng.normal(size=(8, 3)))
    v, _ = np.linalg.qr(rng.normal(size=(6, 3)))
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    root, scale, target = np.diag([1.5, 1.0, 0.5]), 2.0, rng.normal(size=(8, 6))
    a, b = u @ root @ turn, turn.T @ root @ v.T
    a, b = (a, b) if balanced else (a @ np.diag([2.0, 1, 1]), np.diag([0.5, 1, 1]) @ b)
    m_a, m_b = rng.normal(size=a.shape), rng.normal(size=b.shape)

    old = {"x": para_jax.Adapter(jnp.asarray(a), jnp.asarray(b), scale)}
    trace = {"x": para_jax.Adapter(jnp.asarray(m_a), jnp.asarray(m_b), scale)}
    optimizer = optax.sgd(0.01, momentum=0.9)
    new, transforms = squeeze(old, Gamma(1.0))
    state = para_jax.project_moments(sgd_state(old, trace), transforms)
    assert np.abs(np.abs(new["x"].a) - np.abs(a)).max() > 0.1

    def loss(x):
        return 0.5 * jnp.sum((scale * x["x"].a @ x["x"].b - target) ** 2)

    distance = []
    for _ in range(10):
        error = scale * a @ b - target
        m_a, m_b = (
            0.9 * m_a + scale * error @ b.T,
            0.9 * m_b + scale * a.T @ error,
        )
        a, b = a - 0.01 * m_a, b - 0.01 * m_b
        steps, state = optimizer.update(jax.grad(loss)(new), state)
        new = optax.apply_updates(new, steps)
        distance.append(np.abs(update(new["x"]) - scale * a @ b).max())

    assert max(distance) < 1e-10 if balanced else max(distance) > 1e-3


def test_second_moments_are_the_variances_of_uncorrelated_gradients():
    old = adapters()
    new, transforms = squeeze(old, Gamma(0.5))
    (adam, *rest) = optax.adam(0.1).init(old)
    nu = jax.tree.map(jnp.square, random_like(old, 1))

    state = adam._replace(nu=nu), *rest
    (got, *_) = para_jax.project_moments(state, transforms)

    for path in ("head", "up"):
        left, right = between(old[path], new[path])
        for row, before in zip(got.nu[path].a, nu[path].a, strict=True):
            covariance = right @ np.diag(before) @ right.T
            np.testing.assert_allclose(row, np.diag(covariance), atol=1e-9)
        for row, before in zip(got.nu[path].b.T, nu[path].b.T, strict=True):
            covariance = left.T @ np.diag(before) @ left
            np.testing.assert_allclose(row, np.diag(covariance), atol=1e-9)
    assert min(x.min() for x in jax.tree.leaves(got.nu)) >= 0


def test_squeezing_again_changes_nothing_but_signs():
    once, _ = squeeze(adapters(), Gamma(0.5))
    (adam, *rest) = optax.adam(0.1).init(once)
    moments = jax.tree.map(
        lambda x, m: jnp.where(x == 0, 0.0, m), once, random_like(once, 1)
    )
    state = adam._replace(mu=moments, nu=jax.tree.map(jnp.square, moments)), *rest

    twice, transforms = squeeze(once, Gamma(0.5))
    (got, *_) = para_jax.project_moments(state, transforms)

    for path, x in once.items():
        assert not x.a[..., x.rank - 1].any()  # Something was dropped, and stays so.
        for name in ("a", "b"):
            want = getattr(moments[path], name)
            np.testing.assert_allclose(
                np.abs(getattr(twice[path], name)),
                np.abs(getattr(x, name)),
                atol=1e-9,
            )
            np.testing.assert_allclose(
                np.abs(getattr(got.mu[path], name)), np.abs(want), atol=1e-9
            )
            np.testing.assert_allclose(
                getattr(got.nu[path], name), np.square(want), atol=1e-9
            )


# --- Optimizers of all kinds --------------------------------------------------------


def labels(params):
    """Return the group of each leaf of a nested tree: LoRA+ trains `b` faster."""
    return jax.tree.map_with_path(
        lambda path, _: "fast" if path[-1].key == "b" else "slow", params
    )


OPTIMIZERS = {
    "adam": optax.adam(0.01),
    "adamw": optax.adamw(optax.cosine_decay_schedule(0.01, 100)),
    "amsgrad": optax.amsgrad(0.01),
    "momentum": optax.sgd(0.01, momentum=0.9, nesterov=True),
    "plain": optax.sgd(0.01),
    "lion": optax.lion(0.01),
    "adagrad": optax.adagrad(0.01),
    "rmsprop": optax.rmsprop(0.01, centered=True),
    "clipped": optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam()),
    "bare": optax.scale_by_adam(mu_dtype=jnp.bfloat16),
    "injected": optax.inject_hyperparams(optax.adam)(learning_rate=0.01),
    "accumulated": optax.MultiSteps(optax.adam(0.01), every_k_schedule=3),
    "LoRA+": optax.partition(
        {"slow": optax.adam(0.01), "fast": optax.adamw(0.16)}, param_labels=labels
    ),
}


@functools.cache
def squeezed(form):
    old = adapters(np.float32)
    if form == "masked":
        return squeeze(old, Gamma(0.5))
    return para_jax.shrink(old, Gamma(0.5), form=form)


def trained(adapters, *, inside):
    """Return params as a loop may hold them."""
    bare = {
        path: para_jax.Adapter(x.a, x.b)  # The scale is the model's.
        for path, x in adapters.items()
    }
    params = para_jax.to_params(bare)
    return (
        {"encoder": {"lora": params}, "head": {"kernel": jnp.ones((2, 3))}}
        if inside
        else params
    )


def leaves(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): x
        for path, x in jax.tree.leaves_with_path(tree)
    }


@pytest.mark.user_defaults
@pytest.mark.parametrize(("form", "inside"), [("masked", True), ("ragged", False)])
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_every_moment_is_projected_and_nothing_else_is_touched(optimizer, form, inside):
    old, (new, transforms) = adapters(np.float32), squeezed(form)
    state = optimizer.init(trained(old, inside=inside))
    state = random_like_floats(state)
    fresh = optimizer.init(trained(new, inside=inside))

    got = para_jax.project_moments(state, transforms, like=fresh)

    assert jax.tree.structure(got) == jax.tree.structure(fresh)
    before, after, template = leaves(state), leaves(got), leaves(fresh)
    checked = 0
    for name, x in after.items():
        assert (np.shape(x), x.dtype) == (
            np.shape(template[name]),
            template[name].dtype,
        )
        path = next((y for y in new if name.endswith((f"/{y}/a", f"/{y}/b"))), None)
        if path is None:
            np.testing.assert_array_equal(x, before[name])
            continue
        transform, factor = transforms[path], name[-1]
        source = name.replace(f"{path}/{factor}", f"{transform.parent}/{factor}")
        moment = np.asarray(before[source], np.float64)[transform.index]
        matrix = np.asarray(getattr(transform, factor), np.float64)
        squares = ("nu", "nu_max", "sum_of_squares")
        if any(f"{y}/" in name for y in squares):
            matrix = matrix**2
        want = moment @ matrix if factor == "a" else matrix @ moment
        tolerance = 0.05 if x.dtype == jnp.bfloat16 else 1e-4
        np.testing.assert_allclose(
            np.asarray(x, np.float64), want, atol=tolerance, err_msg=name
        )
        checked += 1
    assert checked >= 2 * len(new) or optimizer is OPTIMIZERS["plain"]


def random_like_floats(tree):
    rng = np.random.default_rng(2)

    def one(x):
        if jnp.issubdtype(x.dtype, jnp.floating):
            return jnp.asarray(rng.uniform(0.1, 1, size=x.shape), x.dtype)
        return x + 7

    return jax.tree.map(one, tree)


@pytest.mark.user_defaults
@pytest.mark.parametrize("form", ["masked", "ragged"])
@pytest.mark.parametrize("optimizer", ["adam", "momentum", "plain", "LoRA+"])
def test_reset_moments_are_those_of_optax_for_the_new_adapters(optimizer, form):
    optimizer = OPTIMIZERS[optimizer]
    state = random_like_floats(
        optimizer.init(trained(adapters(np.float32), inside=False))
    )
    fresh = optimizer.init(trained(squeezed(form)[0], inside=False))

    got = para_jax.reset_moments(state, fresh)

    assert jax.tree.structure(got) == jax.tree.structure(fresh)
    jax.tree.map(np.testing.assert_array_equal, got, fresh)


@pytest.mark.user_defaults
@pytest.mark.parametrize("flat", [False, True])
def test_a_reset_keeps_schedules_and_injected_hyperparameters(flat):
    old, (new, _) = adapters(np.float32), squeezed("ragged")
    params = (
        (old, new) if flat else (trained(old, inside=True), trained(new, inside=True))
    )
    optimizer = optax.chain(
        OPTIMIZERS["clipped"],
        optax.scale_by_schedule(optax.linear_schedule(1, 0, 9)),
        OPTIMIZERS["injected"],
    )
    state = random_like_floats(optimizer.init(params[0]))
    fresh = optimizer.init(params[1])

    got = para_jax.reset_moments(state, fresh)

    clipped, schedule, injected = got
    assert int(clipped[1].count) == 0
    assert int(schedule.count) == 7
    assert int(injected.count) == 7
    assert injected.hyperparams == state[2].hyperparams
    adam = injected.inner_state[0]
    assert int(adam.count) == 0
    assert not any(np.any(x) for x in jax.tree.leaves((clipped, adam)))


@pytest.mark.user_defaults
@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (optax.adafactor(0.1), r"'0/v_row/head/a' \(FactoredState.v_row\), which is"),
        (optax.novograd(0.1), r"'0/mu/head/a' \(ScaleByNovogradState.mu\), which is"),
        (
            optax.contrib.schedule_free_sgd(0.1),
            r"'z/head/a' \(ScheduleFreeState.z\), which is none .* Use reset_moments",
        ),
    ],
)
def test_what_an_optimizer_keeps_otherwise_is_refused_by_name(optimizer, message):
    state = optimizer.init(trained(adapters(np.float32), inside=False))

    with pytest.raises(ValueError, match=message):
        para_jax.project_moments(state, squeezed("masked").transforms)


@pytest.mark.user_defaults
def test_states_of_two_optimizers_are_refused():
    old, (new, transforms) = adapters(np.float32), squeezed("ragged")
    state = optax.sgd(optax.linear_schedule(1, 0, 9), momentum=0.9).init(old)
    fresh = optax.adam(0.1).init(new)

    with pytest.raises(
        ValueError, match=r"state has no '0/count', which the new one has"
    ):
        para_jax.project_moments(state, transforms, like=fresh)
    with pytest.raises(ValueError, match=r"state has no '1/count'"):
        para_jax.reset_moments(
            optax.adam(0.1).init(old),
            optax.adam(optax.linear_schedule(1, 0, 9)).init(new),
        )


# --- Further training ---------------------------------------------------------------


@functools.cache
def task():
    """Return inputs, and the outputs of updates of rank 2 to learn."""
    rng = np.random.default_rng(5)
    x, y = {}, {}
    for path, stack, (m, n, _), _ in MODEL:
        x[path] = rng.normal(size=(*stack, 32, m)).astype(np.float32)
        u, v = rng.normal(size=(*stack, m, 2)), rng.normal(size=(*stack, 2, n))
        y[path] = (x[path] @ (0.5 * u @ v)).astype(np.float32)
    return x, y


def loss(lora, x, y):
    adapters = para_jax.from_params(lora)
    errors = [x[p] @ z.a @ z.b - y[p] for p, z in adapters.items()]
    return sum(jnp.mean(error**2) for error in errors)


def start():
    """Return params as LoRA starts: `b` is zero."""
    return trained(
        {
            path: para_jax.Adapter(x.a / 3, jnp.zeros_like(x.b))
            for path, x in adapters(np.float32).items()
        },
        inside=False,
    )


def training(optimizer, keep):
    """Return a step with a squeeze every 50 steps, and the list of its traces."""
    traces = []

    def smaller(lora, state, policy):
        new, transforms = para_jax.squeeze(para_jax.from_params(lora), policy)
        new = para_jax.to_params(new)
        if keep == "project":
            return new, para_jax.project_moments(state, transforms)
        return new, para_jax.reset_moments(state, optimizer.init(new))

    @functools.partial(jax.jit, donate_argnames=("lora", "state"))
    def step(lora, state, policy, i, x, y):
        traces.append(i)
        value, grads = jax.value_and_grad(loss)(lora, x, y)
        steps, state = optimizer.update(grads, state, lora)
        lora = optax.apply_updates(lora, steps)
        now = (i + 1) % 50 == 0
        lora, state = jax.lax.cond(now, smaller, lambda *x: x[:2], lora, state, policy)
        return lora, state, value

    return step, traces


@pytest.mark.user_defaults
@pytest.mark.parametrize(
    ("optimizer", "keep"),
    [
        pytest.param(optax.adam(0.02), "project", id="adam"),
        pytest.param(optax.adamw(0.02, weight_decay=1e-3), "reset", id="adamw"),
        pytest.param(optax.sgd(0.02, momentum=0.9), "project", id="momentum"),
    ],
)
@pytest.mark.slow
def test_a_loop_squeezes_every_fifty_steps_and_learns_on(optimizer, keep):
    x, y = jax.device_put(task())
    lora = start()
    state = optimizer.init(lora)
    step, traces = training(optimizer, keep)

    losses = []
    for i in range(200):
        # 21 ranks, then 19, 16, and the 12 of the truth.
        policy = Rank(np.float32([3.5, 3.25, 2.75, 2.0][i // 50]))
        lora, state, value = step(lora, state, policy, i, x, y)
        losses.append(float(value))

    assert len(traces) == 1
    assert losses[199] < 0.05 * losses[0]
    assert min(losses[50:100]) < min(losses[:50])
    assert min(losses[100:150]) < min(losses[50:100])
    adapters = para_jax.from_params(lora)
    kept = sum(int(np.sum(z.a.any(-2))) for z in adapters.values())
    assert kept <= 12
    assert all(np.isfinite(z).all() for z in jax.tree.leaves(state))


@pytest.mark.user_defaults
@pytest.mark.parametrize(
    ("form", "keep"),
    [("ragged", "project"), ("padded", "project"), ("padded", "reset")],
)
def test_training_goes_on_in_smaller_shapes(form, keep):
    x, y = task()
    optimizer = optax.adam(0.02)
    lora = start()
    state = optimizer.init(lora)

    @jax.jit
    def step(lora, state, x, y):
        value, grads = jax.value_and_grad(loss)(lora, x, y)
        steps, state = optimizer.update(grads, state, lora)
        return optax.apply_updates(lora, steps), state, value

    for _ in range(60):
        lora, state, value = step(lora, state, x, y)
    old = para_jax.from_params(lora)
    small, transforms = para_jax.shrink(old, Rank(3), form=form)
    if form == "ragged":
        x, y = ({**z, **{f"mlp/{i}": z["mlp"][i] for i in range(3)}} for z in (x, y))
    new = para_jax.to_params(small)
    fresh = optimizer.init(new)
    if keep == "project":
        state = para_jax.project_moments(state, transforms, like=fresh)
        assert int(state[0].count) == 60
    else:
        state = para_jax.reset_moments(state, fresh)
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, fresh)
    losses = []
    for _ in range(60):
        new, state, after = step(new, state, x, y)
        losses.append(float(after))

    want = updates(para_jax.compress(old, Rank(3)).adapters)
    got = updates(small)
    assert got.keys() >= want.keys()
    for path, delta in got.items():
        np.testing.assert_allclose(delta, want.get(path, 0 * delta), atol=1e-4)
    assert sum(z.parameters for z in small.values()) < sum(
        z.parameters for z in old.values()
    )
    assert losses[-1] < 0.5 * losses[0]
    assert losses[-1] < float(value)


def updates(adapters):
    return {path: update(x) for path, x in para_jax.unstack(adapters).items()}


def test_shrunk_adapters_are_those_of_squeeze_without_the_zeros():
    old = adapters()
    masked, _ = squeeze(old, Gamma(0.4))

    padded, _ = para_jax.shrink(old, Gamma(0.4), form="padded")
    ragged, transforms = para_jax.shrink(old, Gamma(0.4))

    ranks = {
        path: np.asarray((np.abs(x.a).max(-2) > 0).sum(-1))
        for path, x in masked.items()
    }
    assert {path: x.rank for path, x in padded.items()} == {
        path: int(rank.max()) for path, rank in ranks.items() if rank.any()
    }
    assert {path: x.rank for path, x in ragged.items()} == {
        "/".join([path, *map(str, index)]): int(rank[index])
        for path, rank in ranks.items()
        for index in np.ndindex(rank.shape)
        if rank[index]
    }
    assert {path: x.scale for path, x in ragged.items()} == {
        path: SCALES[x.parent] for path, x in transforms.items()
    }
    for path, x in updates(padded).items():
        np.testing.assert_allclose(x, updates(masked)[path], atol=1e-10)
    for path, x in ragged.items():
        np.testing.assert_allclose(update(x), updates(masked)[path], atol=1e-10)


def test_an_unknown_form_of_a_smaller_adapter_is_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)

    with pytest.raises(ValueError, match="Unknown form 'masked'"):
        para_jax.shrink(adapters(), Gamma(0.5), form="masked")


@pytest.mark.user_defaults
def test_a_module_whose_path_ends_alike_keeps_its_moments():
    params = {
        path: para_jax.Adapter(a=np.ones((5, 2), "f4"), b=np.ones((2, 4), "f4"))
        for path in ("q", "other/q")
    }
    state = jax.tree.map(lambda x: x + 1, optax.adam(1e-3).init(params))
    _, transforms = para_jax.squeeze({"q": params["q"]}, para_jax.Gamma(0.5))

    got = para_jax.project_moments(state, transforms)

    np.testing.assert_array_equal(got[0].mu["other/q"].a, state[0].mu["other/q"].a)
    assert np.any(got[0].mu["q"].a != state[0].mu["q"].a)


@pytest.mark.user_defaults
@pytest.mark.parametrize(
    "tree",
    [
        {"q": {"kernel_lora_a": np.ones((5, 2), "f4")}},
        {"other": {"a": np.ones((5, 2), "f4"), "b": np.ones((2, 4), "f4")}},
    ],
    ids=["the tree of another library", "other modules"],
)
def test_a_state_that_has_no_moments_of_an_adapter_is_refused(tree):
    x = para_jax.Adapter(a=np.ones((5, 2), "f4"), b=np.ones((2, 4), "f4"))
    _, transforms = para_jax.squeeze({"q": x}, para_jax.Gamma(0.5))

    with pytest.raises(ValueError, match="keeps no moments of 'q'"):
        para_jax.project_moments(optax.adam(1e-3).init(tree), transforms)


@pytest.mark.user_defaults
def test_an_optimizer_without_moments_has_none_to_project():
    x = para_jax.Adapter(a=np.ones((5, 2), "f4"), b=np.ones((2, 4), "f4"))
    _, transforms = para_jax.squeeze({"q": x}, para_jax.Gamma(0.5))
    state = optax.sgd(optax.constant_schedule(0.1)).init({"q": x})

    got = para_jax.project_moments(state, transforms)

    assert jax.tree.leaves(got) == jax.tree.leaves(state)
