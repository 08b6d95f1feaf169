"""Check every optimizer and wrapper of optax: moments are projected, or refused.

Each projected moment must equal NumPy's in float64, by the formula of
`para_jax._training.moments`. The next update, by `optax` itself, must equal the update
from a new state with NumPy's moments.
"""

import functools
import inspect

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import optax.contrib
import pytest

import para_jax

pytestmark = [
    pytest.mark.user_defaults,
    # optax is about to drop these names.
    pytest.mark.filterwarnings("ignore:.*optimistic_adam. is deprecated"),
    pytest.mark.filterwarnings("ignore:inject_stateful_hyperparams is deprecated"),
]

# (m, n, r): prime and unequal; and shapes that do not tell the axes apart.
SHAPES = {"head": (7, 5, 3), "square": (5, 5, 5), "in": (3, 7, 3), "out": (7, 3, 3)}

C = optax.contrib
SLOW = pytest.mark.slow
LINEAR, SQUARED = 1, 2
ADAM = {"mu": LINEAR, "nu": SQUARED}
NOTHING = {}  # No moments of an adapter.


def first_half(params):
    """Return the group of each leaf: LoRA+ trains `b` faster."""
    name = lambda path: "fast" if path[-1].key == "b" else "slow"  # noqa: E731
    return jax.tree.map_with_path(lambda path, _: name(path), params)


def every(fn):
    return lambda: fn


# Name in optax: how to make it, and its moments by field.
PROJECTED = {
    "adabelief": (lambda: optax.adabelief(0.1), ADAM),
    "adagrad": (lambda: optax.adagrad(0.1), {"sum_of_squares": SQUARED}),
    "adam": (lambda: optax.adam(0.1), ADAM),
    "adamw": (lambda: optax.adamw(0.1), ADAM),
    "adan": (
        lambda: optax.adan(0.1),
        {"m": LINEAR, "v": LINEAR, "n": SQUARED, "g": LINEAR},
    ),
    "adaptive_grad_clip": (lambda: optax.adaptive_grad_clip(0.1), NOTHING),
    "add_decayed_weights": (lambda: optax.add_decayed_weights(0.1), NOTHING),
    "amsgrad": (lambda: optax.amsgrad(0.1), ADAM | {"nu_max": SQUARED}),
    "apply_if_finite": (lambda: optax.apply_if_finite(optax.adam(0.1), 3), ADAM),
    "centralize": (optax.centralize, NOTHING),
    "chain": (lambda: optax.chain(optax.clip(1.0), optax.adam(0.1)), ADAM),
    "clip": (lambda: optax.clip(1.0), NOTHING),
    "clip_by_block_rms": (lambda: optax.clip_by_block_rms(1.0), NOTHING),
    "clip_by_global_norm": (lambda: optax.clip_by_global_norm(1.0), NOTHING),
    "conditionally_mask": (
        lambda: optax.conditionally_mask(optax.adam(0.1), lambda step: step < 9),
        ADAM,
    ),
    "conditionally_transform": (
        lambda: optax.conditionally_transform(optax.adam(0.1), lambda step: step < 9),
        ADAM,
    ),
    "ema": (lambda: optax.ema(0.9), {"ema": LINEAR}),
    "fromage": (lambda: optax.fromage(0.1), NOTHING),
    "identity": (optax.identity, NOTHING),
    "inject_hyperparams": (
        lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
        ADAM,
    ),
    "inject_stateful_hyperparams": (
        lambda: optax.inject_stateful_hyperparams(optax.adam)(learning_rate=0.1),
        ADAM,
    ),
    "freeze": (lambda: optax.freeze(False), NOTHING),
    "keep_params_nonnegative": (optax.keep_params_nonnegative, NOTHING),
    "lamb": (lambda: optax.lamb(0.1), ADAM),
    "lion": (lambda: optax.lion(0.1), {"mu": LINEAR}),
    "masked": (lambda: optax.masked(optax.adam(0.1), True), ADAM),
    "multi_transform": (
        lambda: optax.multi_transform(
            {"slow": optax.adam(0.1), "fast": optax.lion(0.2)}, first_half
        ),
        ADAM,
    ),
    "MultiSteps": (
        lambda: optax.MultiSteps(optax.adam(0.1), every_k_schedule=3),
        ADAM | {"acc_grads": LINEAR},
    ),
    "nadam": (lambda: optax.nadam(0.1), ADAM),
    "nadamw": (lambda: optax.nadamw(0.1), ADAM),
    "named_chain": (
        lambda: optax.named_chain(("a", optax.clip(1.0)), ("b", optax.adam(0.1))),
        ADAM,
    ),
    "noisy_sgd": (lambda: optax.noisy_sgd(0.1, key=jax.random.key(0)), NOTHING),
    "normalize_by_update_norm": (optax.normalize_by_update_norm, NOTHING),
    "optimistic_gradient_descent": (
        lambda: optax.optimistic_gradient_descent(0.1),
        {"previous_gradient": LINEAR},
    ),
    "partition": (
        lambda: optax.partition(
            {"slow": optax.adam(0.1), "fast": optax.adamw(0.2)}, first_half
        ),
        ADAM,
    ),
    "polyak_sgd": (optax.polyak_sgd, NOTHING),
    "radam": (lambda: optax.radam(0.1), ADAM),
    "rmsprop": (lambda: optax.rmsprop(0.1), {"nu": SQUARED}),
    "scale": (lambda: optax.scale(0.1), NOTHING),
    "scale_by_adam": (optax.scale_by_adam, ADAM),
    "scale_by_adan": (
        optax.scale_by_adan,
        {"m": LINEAR, "v": LINEAR, "n": SQUARED, "g": LINEAR},
    ),
    "scale_by_amsgrad": (optax.scale_by_amsgrad, ADAM | {"nu_max": SQUARED}),
    "scale_by_backtracking_linesearch": (
        lambda: optax.scale_by_backtracking_linesearch(3),
        NOTHING,
    ),
    "scale_by_belief": (optax.scale_by_belief, ADAM),
    "scale_by_learning_rate": (lambda: optax.scale_by_learning_rate(0.1), NOTHING),
    "scale_by_lion": (optax.scale_by_lion, {"mu": LINEAR}),
    "scale_by_optimistic_gradient": (
        optax.scale_by_optimistic_gradient,
        {"previous_gradient": LINEAR},
    ),
    "scale_by_param_block_norm": (optax.scale_by_param_block_norm, NOTHING),
    "scale_by_param_block_rms": (optax.scale_by_param_block_rms, NOTHING),
    "scale_by_polyak": (optax.scale_by_polyak, NOTHING),
    "scale_by_radam": (optax.scale_by_radam, ADAM),
    "scale_by_rms": (optax.scale_by_rms, {"nu": SQUARED}),
    "scale_by_rss": (optax.scale_by_rss, {"sum_of_squares": SQUARED}),
    "scale_by_schedule": (
        lambda: optax.scale_by_schedule(optax.linear_schedule(1, 0, 9)),
        NOTHING,
    ),
    "scale_by_sign": (optax.scale_by_sign, NOTHING),
    "scale_by_stddev": (optax.scale_by_stddev, ADAM),
    "scale_by_trust_ratio": (optax.scale_by_trust_ratio, NOTHING),
    "selective_transform": (
        lambda: optax.selective_transform(optax.adam(0.1), freeze_mask=False),
        ADAM,
    ),
    "set_to_zero": (optax.set_to_zero, NOTHING),
    "sgd": (lambda: optax.sgd(0.1, momentum=0.9), {"trace": LINEAR}),
    "sign_sgd": (lambda: optax.sign_sgd(0.1), NOTHING),
    "signum": (lambda: optax.signum(0.1), {"ema": LINEAR}),
    "stateless": (lambda: optax.stateless(lambda g, _: g), NOTHING),
    "stateless_with_tree_map": (
        lambda: optax.stateless_with_tree_map(lambda g, _: g),
        NOTHING,
    ),
    "trace": (lambda: optax.trace(0.9), {"trace": LINEAR}),
    "with_extra_args_support": (
        lambda: optax.with_extra_args_support(optax.adam(0.1)),
        ADAM,
    ),
    "zero_nans": (lambda: optax.chain(optax.zero_nans(), optax.adam(0.1)), ADAM),
    "contrib.acprop": (lambda: C.acprop(0.1), ADAM),
    "contrib.ademamix": (
        lambda: C.ademamix(0.1),
        {"m1": LINEAR, "m2": LINEAR, "nu": SQUARED},
    ),
    "contrib.muon": (lambda: C.muon(0.1), {"mu": LINEAR}),
    "contrib.reduce_on_plateau": (
        lambda: optax.chain(optax.adam(0.1), C.reduce_on_plateau()),
        ADAM,
    ),
    "contrib.scale_by_acprop": (C.scale_by_acprop, ADAM),
    "contrib.scale_by_ademamix": (
        C.scale_by_ademamix,
        {"m1": LINEAR, "m2": LINEAR, "nu": SQUARED},
    ),
    "contrib.scale_by_simplified_ademamix": (
        C.scale_by_simplified_ademamix,
        {"m": LINEAR, "n": SQUARED},
    ),
    "contrib.simplified_ademamix": (
        lambda: C.simplified_ademamix(0.1),
        {"m": LINEAR, "n": SQUARED},
    ),
    "contrib.split_real_and_imaginary": (
        lambda: C.split_real_and_imaginary(optax.adam(0.1)),
        ADAM,
    ),
}

# Recognised by the state alone; the message names its class and field.
REFUSED = {
    "adadelta": (lambda: optax.adadelta(0.1), "ScaleByAdaDeltaState.e_g"),
    "adafactor": (lambda: optax.adafactor(0.1), "FactoredState.v_row"),
    "apply_every": (lambda: optax.apply_every(3), "ApplyEvery.grad_acc"),
    "lbfgs": (optax.lbfgs, "ScaleByLBFGSState.params"),
    "novograd": (lambda: optax.novograd(0.1), "ScaleByNovogradState.mu"),
    "optimistic_adam": (
        lambda: optax.optimistic_adam(0.1),
        "ScaleByOptimisticGradientState.previous_gradient",
    ),
    "optimistic_adam_v2": (
        lambda: optax.optimistic_adam_v2(0.1),
        "ScaleByOptimisticGradientState.previous_gradient",
    ),
    "rprop": (lambda: optax.rprop(0.1), "ScaleByRpropState.step_sizes"),
    "rmsprop, momentum": (
        lambda: optax.rmsprop(0.1, centered=True, momentum=0.9),
        "TraceState.trace",
    ),
    "scale_by_adadelta": (optax.scale_by_adadelta, "ScaleByAdaDeltaState.e_g"),
    "scale_by_distance_over_gradients": (
        optax.scale_by_distance_over_gradients,
        "ScaleByDistanceOverGradientsState",
    ),
    "scale_by_factored_rms": (optax.scale_by_factored_rms, "FactoredState.v_row"),
    "scale_by_lbfgs": (optax.scale_by_lbfgs, "ScaleByLBFGSState.params"),
    "scale_by_novograd": (optax.scale_by_novograd, "ScaleByNovogradState.mu"),
    "scale_by_rprop": (lambda: optax.scale_by_rprop(0.1), "ScaleByRpropState"),
    "scale_by_sm3": (optax.scale_by_sm3, "ScaleBySM3State.mu"),
    "scale_by_zoom_linesearch": (
        lambda: optax.scale_by_zoom_linesearch(3),
        "ScaleByZoomLinesearchState",
    ),
    "sm3": (lambda: optax.sm3(0.1), "ScaleBySM3State.mu"),
    "contrib.cocob": (C.cocob, "COCOBState.init_particles"),
    "contrib.dadapt_adamw": (C.dadapt_adamw, "DAdaptAdamWState.exp_avg"),
    "contrib.dog": (C.dog, "DoGState.init_params"),
    "contrib.dowg": (C.dowg, "DoWGState.init_params"),
    "contrib.galore": (lambda: C.galore(0.1), "GaLoreState.projector"),
    "contrib.madgrad": (lambda: C.madgrad(0.1), "MadgradState.grad_sum_sq"),
    "contrib.mechanize": (lambda: C.mechanize(optax.adam(0.1)), "MechanicState.x0"),
    "contrib.momo": (C.momo, "MomoState.exp_avg"),
    "contrib.momo_adam": (C.momo_adam, "MomoAdamState.exp_avg"),
    "contrib.prodigy": (C.prodigy, "ProdigyState"),
    "contrib.sam": (
        lambda: C.sam(optax.sgd(0.1), optax.sgd(0.05), opaque_mode=False),
        "SAMState.cache",
    ),
    "contrib.scale_by_cocob": (C.scale_by_cocob, "COCOBState.init_particles"),
    "contrib.scale_by_galore": (C.scale_by_galore, "GaLoreState.projector"),
    "contrib.scale_by_madgrad": (
        lambda: C.scale_by_madgrad(0.1),
        "MadgradState.grad_sum_sq",
    ),
    "contrib.schedule_free": (
        lambda: C.schedule_free(optax.sgd(0.1), 0.1),
        "ScheduleFreeState.z",
    ),
    "contrib.schedule_free_adamw": (C.schedule_free_adamw, "ScheduleFreeState.z"),
    "contrib.schedule_free_sgd": (C.schedule_free_sgd, "ScheduleFreeState.z"),
    "contrib.sophia": (lambda: C.sophia(0.1), "SophiaState.mu"),
}
# Nothing in these states has the place of a factor.
ELSEWHERE = {
    "flatten": lambda: optax.flatten(optax.adam(0.1)),
    "contrib.hutchinson_estimator_diag_hessian": (C.hutchinson_estimator_diag_hessian),
}
# Their states look like others': `check_optimizer` finds out.
CHECKED = {
    "adamax": (lambda: optax.adamax(0.1), "ScaleByAdamState.nu"),
    "adamaxw": (lambda: optax.adamaxw(0.1), "ScaleByAdamState.nu"),
    "lars": (lambda: optax.lars(0.1), "TraceState.trace"),
    "coupled weight decay": (
        lambda: optax.chain(optax.add_decayed_weights(0.1), optax.trace(0.9)),
        "TraceState.trace",
    ),
    "momentum of signs": (
        lambda: optax.chain(optax.scale_by_sign(), optax.trace(0.9)),
        "TraceState.trace",
    ),
    "scale_by_adamax": (optax.scale_by_adamax, "ScaleByAdamState.nu"),
    "scale_by_yogi": (optax.scale_by_yogi, "ScaleByAdamState.mu"),
    "yogi": (lambda: optax.yogi(0.1), "ScaleByAdamState.mu"),
    "contrib.adopt": (lambda: C.adopt(0.1), "ScaleByAdamState.mu"),
    "contrib.normalize": (
        lambda: optax.chain(C.normalize(), optax.trace(0.9)),
        "TraceState.trace",
    ),
    "contrib.scale_by_adopt": (C.scale_by_adopt, "ScaleByAdamState.mu"),
}
# Wrappers of params, of gradients by example, or of measurements: not of a plain tree.
OTHERS = {
    "add_noise": "keeps a key alone; it is in noisy_sgd",
    "lookahead": "its params are pairs: LookaheadParams",
    "measure_with_ema": "keeps measurements",
    "monitor": "keeps measurements",
    "snapshot": "keeps measurements",
    "contrib.scale_by_muon": "takes the axes of every weight; it is in muon",
    "contrib.differentially_private_aggregate": "takes gradients by example",
    "contrib.dpsgd": "takes gradients by example",
}
REST = """
    apply_updates bias_correction constant_schedule convex_kl_divergence
    cosine_decay_schedule cosine_distance cosine_onecycle_schedule cosine_similarity
    ctc_loss ctc_loss_with_forward_probs exponential_decay generalized_kl_divergence
    global_norm hinge_loss huber_loss incremental_update init_empty_state
    join_schedules kl_divergence l2_loss linear_onecycle_schedule linear_schedule
    log_cosh matrix_inverse_pth_root microbatch multi_normal nnls ntxent
    per_example_global_norm_clip per_example_layer_norm_clip periodic_update
    piecewise_constant_schedule piecewise_interpolate_schedule polynomial_schedule
    power_iteration safe_increment safe_int32_increment safe_norm
    safe_root_mean_squares safe_softmax_cross_entropy scale_gradient sgdr_schedule
    sigmoid_binary_cross_entropy sigmoid_focal_loss skip_large_updates skip_not_finite
    smooth_labels softmax_cross_entropy softmax_cross_entropy_with_integer_labels
    squared_error tree_map_params update_infinity_moment update_moment
    update_moment_per_elem_norm value_and_grad_from_state warmup_constant_schedule
    warmup_cosine_decay_schedule warmup_exponential_decay_schedule
    contrib.schedule_free_eval_params
    MaskOrFn OptState Params ScalarOrSchedule Schedule Updates
"""
NO_OPTIMIZERS = set(REST.split())


def public():
    """Return the names of all functions of optax and its contrib, and MultiSteps."""
    found = {"MultiSteps"}
    for prefix, module in (("", optax), ("contrib.", C)):
        for name, value in vars(module).items():
            if not name.startswith("_") and callable(value):
                found |= set() if inspect.isclass(value) else {prefix + name}
    return found


def there(table):
    """Return the optimizer rows present in this version of optax."""
    names = public()
    return {x: y for x, y in table.items() if x in names or "," in x or " " in x}


def test_every_public_name_of_optax_is_in_the_table():
    tables = (PROJECTED, REFUSED, ELSEWHERE, CHECKED, OTHERS, NO_OPTIMIZERS)
    known = set().union(*tables)

    assert public() - known == set()


# --- Adapters and states --------------------------------------------------------------


@functools.cache
def adapters():
    rng = np.random.default_rng(0)

    def one(m, n, r):
        a, b = rng.normal(size=(m, r)), 0.3 * rng.normal(size=(r, n))
        return para_jax.Adapter(jnp.asarray(a, "f4"), jnp.asarray(b, "f4"))

    return {path: one(*shape) for path, shape in SHAPES.items()}


@functools.cache
def smaller(form):
    """Return new adapters with at least one component each, and the transforms."""
    if form == "masked":
        return para_jax.squeeze(adapters(), para_jax.Gamma(0.7))
    return para_jax.shrink(adapters(), para_jax.Gamma(0.7), form=form)


@functools.cache
def params(form="parent"):
    bare = adapters() if form == "parent" else smaller(form).adapters
    return para_jax.to_params(bare)


def gradients(tree, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), "f4"), tree)


EXTRA = {"value": jnp.float32(1.0)}  # For optimizers that use the loss.


def updated(optimizer, state, seed, tree):
    update = optimizer.update
    extra = EXTRA if "extra_args" in str(inspect.signature(update)) else {}
    # One program compiles faster than its operations one by one.
    return jax.jit(update)(gradients(tree, seed), state, tree, **extra)


def named(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (
            jax.random.key_data(x)
            if jax.dtypes.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)
            else x
        )
        for path, x in jax.tree.leaves_with_path(tree)
    }


def wanted(state, fresh, fields, form):
    """Return a new state with the moments of an old one, by NumPy in float64."""
    transforms = smaller(form).transforms
    old = named(state)
    missing = dict.fromkeys(fields)

    def one(path, x):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        *before, module, factor = name.split("/") if "/" in name else ["", "", name]
        if module not in transforms:
            return old[name]
        field = next(z for z in reversed(before) if z in fields or z == "found_nan")
        if field == "found_nan":
            return x
        missing.pop(field, None)
        matrix = np.float64(getattr(transforms[module], factor)) ** fields[field]
        moment = np.float64(old[name])
        new = moment @ matrix if factor == "a" else matrix @ moment
        return jnp.asarray(new, x.dtype)

    result = jax.tree.map_with_path(one, fresh)
    assert not missing
    return result


def trained(optimizer):
    state, tree = optimizer.init(params()), params()
    for seed in (1, 2):
        _, state = updated(optimizer, state, seed, tree)
    return state


def rows(table, *, fast=lambda name: True):
    """Return the rows to test; mere variants of others are marked as slow."""
    slow = pytest.mark.slow
    return [pytest.param(x, marks=() if fast(x) else slow, id=x) for x in there(table)]


def is_main(name):
    return "scale_by" not in name


@pytest.mark.parametrize("form", [pytest.param("masked", marks=SLOW), "ragged"])
@pytest.mark.parametrize("name", rows(PROJECTED, fast=is_main))
def test_the_next_step_is_that_of_moments_projected_by_numpy(name, form):
    make, fields = PROJECTED[name]
    if name == "scale_by_backtracking_linesearch":
        pytest.skip("Its update takes the loss itself.")
    optimizer = make()
    state, fresh = trained(optimizer), optimizer.init(params(form))

    got = para_jax.project_moments(state, smaller(form).transforms, like=fresh)

    want = wanted(state, fresh, fields, form)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, x), y in zip(named(got).items(), named(want).values(), strict=True):
        assert (np.shape(x), x.dtype) == (np.shape(y), y.dtype), path
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6, err_msg=path)
    one, two = (updated(optimizer, z, 3, params(form))[0] for z in (got, want))
    for (path, x), y in zip(named(one).items(), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4, err_msg=path)


@pytest.mark.parametrize("form", ["masked", "ragged"])
@pytest.mark.parametrize("name", there(REFUSED))
def test_a_state_that_keeps_something_else_is_refused_by_its_class(name, form):
    make, kind = REFUSED[name]
    optimizer = make()
    state, fresh = optimizer.init(params()), optimizer.init(params(form))

    with pytest.raises(ValueError, match=rf"keeps '.*/[ab].*\({kind}.*reset_moments"):
        para_jax.project_moments(state, smaller(form).transforms, like=fresh)
    with pytest.raises(ValueError, match=rf"keeps '.*/[ab].*\({kind}.*reset_moments"):
        para_jax.check_optimizer(optimizer, params())


@pytest.mark.parametrize("name", there(ELSEWHERE))
def test_a_state_without_the_places_of_factors_is_refused(name):
    optimizer = ELSEWHERE[name]()
    state = optimizer.init(params())

    with pytest.raises(ValueError, match=r"keeps no moments of 'head'.*reset_moments"):
        para_jax.project_moments(state, smaller("masked").transforms)
    with pytest.raises(ValueError, match=r"keeps no moments of 'head'.*reset_moments"):
        para_jax.check_optimizer(optimizer, params())


# --- Quantities unknown to a state ---------------------------------------------------


@functools.cache
def two():
    return para_jax.to_params({x: adapters()[x] for x in ("head", "square")})


@pytest.mark.parametrize("name", there(CHECKED))
def test_a_check_finds_what_is_not_the_moment_that_its_class_says(name):
    make, kind = CHECKED[name]

    with pytest.raises(ValueError, match=rf"keeps '.*/[ab]' \({kind}\), which is not"):
        para_jax.check_optimizer(make(), two())


# The optimizers of the documentation, and wrappers of several kinds.
NAMED = {"adabelief", "adagrad", "adam", "adamw", "adan", "amsgrad", "lamb", "lion"}
NAMED |= {"MultiSteps", "nadam", "partition", "radam", "rmsprop", "sgd", "zero_nans"}
NAMED |= {"contrib.acprop", "contrib.ademamix", "contrib.muon", "inject_hyperparams"}


@pytest.mark.parametrize("name", rows(PROJECTED, fast=NAMED.__contains__))
def test_a_check_passes_what_can_be_projected(name):
    make, _ = PROJECTED[name]

    para_jax.check_optimizer(
        make(), two(), extra=EXTRA if name == "contrib.reduce_on_plateau" else None
    )


def test_a_check_passes_moments_in_bfloat16_and_clipped_gradients():
    adam = optax.scale_by_adam(mu_dtype=jnp.bfloat16)

    para_jax.check_optimizer(optax.chain(optax.clip_by_global_norm(1.0), adam), two())


# --- Reset --------------------------------------------------------------------------


RESET = {
    **{x: y[0] for x, y in (PROJECTED | REFUSED | CHECKED).items()},
    **ELSEWHERE,
}
# Their updates take the loss as a function, or a Hessian; or promote ranks, which
# raises here: no step.
NO_STEP = {"lbfgs", "scale_by_backtracking_linesearch", "scale_by_zoom_linesearch"}
NO_STEP |= {
    "scale_by_distance_over_gradients",
    "contrib.sophia",
    "contrib.hutchinson_estimator_diag_hessian",
}
IN_SHORT = {"adam", "MultiSteps", "sm3", "adafactor", "contrib.schedule_free", "lars"}
# Schedules and the like are kept.
GOES_ON = {"scale_by_schedule", "contrib.reduce_on_plateau", "noisy_sgd"}
GOES_ON |= {"conditionally_mask", "conditionally_transform", "apply_if_finite"}


@pytest.mark.parametrize("name", rows(RESET, fast=IN_SHORT.__contains__))
def test_after_a_reset_the_next_step_is_that_of_a_new_optimizer(name):
    optimizer = RESET[name]()
    state = optimizer.init(params())
    if name not in NO_STEP:
        _, state = updated(optimizer, state, 1, params())
    tree = params("ragged")
    fresh = optimizer.init(tree)

    got = para_jax.reset_moments(state, fresh)

    assert jax.tree.structure(got) == jax.tree.structure(fresh)
    assert jax.tree.map(np.shape, got) == jax.tree.map(np.shape, fresh)
    if name in NO_STEP or name in GOES_ON:
        return
    one, two = (updated(optimizer, x, 3, tree)[0] for x in (got, fresh))
    for (path, x), y in zip(named(one).items(), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, err_msg=path)


# --- States of other classes --------------------------------------------------------


class ScaleByAdamState(optax.ScaleByAdamState):
    """Stand for a user's own class, with the name and fields of optax's."""


def test_a_state_of_a_users_own_class_is_refused_though_its_fields_are_adams():
    (state, *_) = optax.adam(0.1).init(params())

    with pytest.raises(
        ValueError, match=r"'mu/.*\(ScaleByAdamState.mu\), which is none"
    ):
        para_jax.project_moments(ScaleByAdamState(*state), smaller("masked").transforms)


def keyed(state):
    """Return a state as flax.nnx has it: all fields and positions are keys."""
    if hasattr(state, "_fields"):
        return {x: keyed(getattr(state, x)) for x in state._fields}
    if isinstance(state, tuple | list):
        return {i: keyed(x) for i, x in enumerate(state)}
    if isinstance(state, dict):
        return {x: keyed(y) for x, y in state.items()}
    return state


@pytest.mark.parametrize("name", ["adam", "adan", "lion", "rmsprop", "sgd"])
def test_a_state_of_keys_is_known_by_the_fields_side_by_side(name):
    state, transforms = trained(PROJECTED[name][0]()), smaller("masked").transforms

    got = para_jax.project_moments(keyed(state), transforms)

    want = keyed(para_jax.project_moments(state, transforms))
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize("name", ["adadelta", "novograd", "rmsprop, momentum", "sm3"])
def test_a_state_of_keys_that_keeps_something_else_is_refused(name):
    state = keyed(REFUSED[name][0]().init(params()))

    with pytest.raises(ValueError, match=r"keeps '.*/[ab].*reset_moments"):
        para_jax.project_moments(state, smaller("masked").transforms)


def test_two_optimizers_in_one_tuple_are_no_chain():
    transforms = smaller("masked").transforms
    some, rest = (
        {x: params()[x] for x in y} for y in (["head"], ["square", "in", "out"])
    )
    state = optax.adam(0.1).init(some), optax.sgd(0.1, momentum=0.9).init(rest)

    para_jax.project_moments(state, transforms)


def test_a_moment_in_bfloat16_is_projected_in_float32_and_rounded_once():
    optimizer = optax.sgd(0.1, momentum=0.9, accumulator_dtype=jnp.bfloat16)
    state = trained(optimizer)
    transforms = smaller("masked").transforms

    (got, *_) = para_jax.project_moments(state, transforms)

    for path, transform in transforms.items():
        a, b = (np.float64(state[0].trace[path][x]) for x in "ab")
        want = {"a": a @ np.float64(transform.a), "b": np.float64(transform.b) @ b}
        for factor, x in want.items():
            found = np.asarray(got.trace[path][factor])
            assert found.dtype == ml_dtypes.bfloat16
            half = np.abs(x) * 2.0**-8  # Half a unit in the last place, at most.
            small = 1e-6 * np.abs(x).max()  # The rounding of float32.
            assert np.all(np.abs(np.float64(found) - x) <= half + small)
