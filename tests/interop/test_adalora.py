"""Compare AdaLoRA's budgets, scores, masks and outputs with PEFT's, step by step."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from peft import AdaLoraConfig, PeftModel, get_peft_model

from train.methods import adalora
from train.methods.method import State
from train.methods.triplets import Triplets

STEPS, RATE, WEIGHT = 12, 0.02, 0.3
NAMES = ("first", "second")
CONFIG = adalora.AdaLora(
    rank=4, target=2, t_init=2, t_final=3, delta_t=1, orth_weight=WEIGHT
)


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


class Mlp(torch.nn.Module):
    """A 6 - 8 - 3 network with a squared loss."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(6, 8, bias=False, dtype=torch.float64)
        self.second = torch.nn.Linear(8, 3, bias=False, dtype=torch.float64)

    def forward(self, x, y):
        out = self.second(torch.tanh(self.first(x)))
        return types.SimpleNamespace(out=out, loss=((out - y) ** 2).mean())


@pytest.fixture
def batches():
    generator = np.random.default_rng(0)
    shapes = (STEPS, 5, 6), (STEPS, 5, 3)
    return list(zip(*(generator.normal(size=shape) for shape in shapes), strict=True))


@pytest.fixture
def base():
    torch.manual_seed(0)
    return Mlp()


@pytest.fixture
def kernels(base):
    return {name: jnp.array(getattr(base, name).weight.detach().T) for name in NAMES}


@pytest.fixture
def theirs(base, kernels):
    config = AdaLoraConfig(
        init_r=4,
        target_r=2,
        tinit=2,
        tfinal=3,
        deltaT=1,
        total_step=STEPS,
        lora_alpha=8,
        orth_reg_weight=WEIGHT,
        target_modules=list(NAMES),
    )
    return get_peft_model(base, config).double()


def part(model, letter, name):
    module = getattr(model.base_model.model, name)
    values = getattr(module, f"lora_{letter}")["default"].detach().numpy()
    return jnp.array(values)  # A copy: torch changes its own in place.


def triplets(model):
    """Return PEFT's parameters in the orientation of para_jax."""
    return Triplets(
        a={name: part(model, "A", name).T for name in NAMES},
        e={name: part(model, "E", name)[:, 0] for name in NAMES},
        b={name: part(model, "B", name).T for name in NAMES},
    )


def outputs(adapters, kernels, x):
    for name in NAMES:
        update = 0
        if name in adapters:
            adapter = adapters[name]
            update = adapter.scale * jnp.asarray(adapter.a) @ jnp.asarray(adapter.b)
        x = x @ (kernels[name] + update)
        x = jnp.tanh(x) if name == "first" else x
    return x


@pytest.fixture
def ours(theirs, kernels, batches):
    """Return our state after each step, from PEFT's start on its batches."""
    method = CONFIG.method(STEPS)
    optimizer = method.optimizer(lambda count: RATE, 0)
    state = State(
        triplets(theirs), method.init(jax.random.key(0), kernels, None).memory
    )

    @jax.jit
    def advance(before, moments, x, y, step):
        def loss(params):
            state = before._replace(params=params)
            found = outputs(method.adapters(state), kernels, x)
            return jnp.mean((found - y) ** 2) + method.penalty(state)

        grads = jax.grad(loss)(before.params)
        updates, moments = optimizer.update(grads, moments, before.params)
        after = before._replace(params=optax.apply_updates(before.params, updates))
        return method.after_step(before, after, grads, step), moments

    states, moments = [], optimizer.init(state.params)
    for step, (x, y) in enumerate(batches):
        state, moments = advance(state, moments, x, y, jnp.int32(step))
        states.append(state)
    return states


@pytest.fixture
def steps(ours, theirs, batches):
    """Train PEFT's model in steps beside ours; use `ours` so that it starts last."""
    # By name: PEFT 0.21 marks `ranknum`, a constant of the scale, as trainable too.
    trained = [p for name, p in theirs.named_parameters() if "lora_" in name]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0)

    def run():
        for step, (x, y) in enumerate(batches):
            optimizer.zero_grad()
            # Not `theirs(...)`, which leaves out the penalty of AdaLoRA's own forward.
            theirs.base_model(torch.tensor(x), torch.tensor(y)).loss.backward()
            optimizer.step()
            theirs.base_model.update_and_allocate(step)
            yield step, ours[step]

    return run()


def test_the_budgets_are_those_of_peft(theirs):
    allocator = theirs.base_model.rankallocator

    budgets = [
        adalora.budget(t, STEPS, CONFIG.schedule(STEPS), start=8, end=4)
        for t in range(STEPS)
    ]

    assert [left for left, _ in budgets] == [8, 8, 8, 6, 5, 4, 4, 4, 4, 4, 4, 4]
    assert budgets == [allocator.budget_schedule(t) for t in range(STEPS)]


@pytest.mark.parametrize("steps", [100, 1150, 3000])
@pytest.mark.parametrize("rank", [5, 12, 16])
def test_the_budgets_of_long_runs_are_those_of_peft(theirs, steps, rank):
    allocator = theirs.base_model.rankallocator
    allocator.init_bgt, allocator.target_bgt = rank * 36, 3 * 36
    periods = adalora.Schedule(*(min(500, steps // 3) for _ in range(3)))
    config = allocator.peft_config
    config.tinit, config.tfinal, config.deltaT = periods[:3]
    config.total_step = steps

    for t in range(steps):
        left, _ = adalora.budget(t, steps, periods, start=rank * 36, end=3 * 36)
        assert left == allocator.budget_schedule(t)[0], t


@pytest.mark.slow
def test_every_step_of_a_training_is_that_of_peft(steps, theirs):
    alive = []
    for step, state in steps:
        want = triplets(theirs)
        alive.append(sum(np.count_nonzero(e) for e in want.e.values()))
        for got, expected in zip(state.params, want, strict=True):
            for name in NAMES:
                np.testing.assert_allclose(
                    got[name], expected[name], rtol=1e-6, atol=1e-9, err_msg=str(step)
                )
                np.testing.assert_array_equal(got[name] != 0, expected[name] != 0)

    assert alive == [8, 8, 8, 6, 5, 4, 4, 4, 4, 4, 4, 4]


def test_the_scores_are_those_of_peft(steps, theirs):
    allocator = theirs.base_model.rankallocator
    # PEFT forgets them in the step after.
    state = next(x for step, x in steps if step == STEPS - CONFIG.t_final - 1)

    scores = adalora.scores(state.memory)
    for name in NAMES:
        found = {
            letter: allocator._element_score(key)
            for key in allocator.exp_avg_ipt
            for letter in "AEB"
            if f"{name}.lora_{letter}" in key
        }
        want = found["E"][:, 0] + found["A"].mean(1) + found["B"].mean(0)
        np.testing.assert_allclose(scores[name], want, rtol=1e-6)


# PEFT 0.21 reads AdaLoRA's rank pattern as LoRA's, so no name in it matches.
@pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning")
def test_the_export_is_what_peft_computes_saves_and_loads(
    steps, theirs, kernels, batches, tmp_path
):
    *_, (_, state) = steps
    got = CONFIG.method(STEPS).finish(state)
    x, y = batches[0]

    pattern = theirs.peft_config["default"].rank_pattern
    kept = {name: sum(pattern[f"{name}.lora_E.default"]) for name in NAMES}
    assert {name: x.rank for name, x in got.items()} == kept
    assert kept == {"first": 1, "second": 3}
    found = outputs(got, kernels, x)
    want = theirs(torch.tensor(x), torch.tensor(y)).out.detach().numpy()
    np.testing.assert_allclose(found, want, atol=1e-7)

    theirs.save_pretrained(tmp_path)
    torch.manual_seed(0)
    loaded = PeftModel.from_pretrained(Mlp(), tmp_path).double()
    again = loaded(torch.tensor(x), torch.tensor(y)).out.detach().numpy()
    np.testing.assert_allclose(found, again, atol=2e-7)
