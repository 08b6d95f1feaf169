import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from train.pretrain import loop

RATE = loop.Rate(peak=0.1, decay=0.3)
DATA = np.arange(12, dtype=np.float32).reshape(4, 3) / 7


def loss(params, key, data):
    """A loss that depends on the key, for new batches at each step."""
    row = data[jax.random.randint(key, (), 0, len(data))]
    y = row @ params["kernel"] + params["bias"]
    return jnp.square(y - 1).sum()


def start():
    return {"kernel": jnp.full((3, 2), 0.5), "bias": jnp.zeros(2)}


def run(**changes):
    arguments = {
        "data": DATA,
        "budget": loop.Budget(steps=12, chunk=4),
        "rate": RATE,
        "key": jax.random.key(3),
    }
    return loop.train(loss, start(), **arguments | changes)


@pytest.mark.parametrize(
    ("progress", "want"),
    [
        (0, 0),
        (0.025, 0.05 * (1 + np.cos(np.pi * 0.025)) / 2),
        (0.5, 0.05),
        (1, 0),
        (2, 0),
    ],
)
def test_the_rate_rises_and_falls_along_a_cosine(progress, want):
    assert RATE.at(progress) == pytest.approx(want)


def test_the_steps_are_those_of_adamw():
    # Optax's own AdamW, with the same schedule, as a plain loop.
    params, key = start(), jax.random.key(3)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
            lambda step: jnp.asarray([RATE.at((i + 0.5) / 12) for i in range(12)])[
                step
            ],
            b2=0.98,
            weight_decay=0.3,
            mask={"kernel": True, "bias": False},
        ),
    )
    state = optimizer.init(params)
    for _ in range(12):
        key, now = jax.random.split(key)
        moves, state = optimizer.update(
            jax.grad(loss)(params, now, DATA), state, params
        )
        params = optax.apply_updates(params, moves)

    got = run()

    np.testing.assert_allclose(got["kernel"], params["kernel"], rtol=1e-5)
    np.testing.assert_allclose(got["bias"], params["bias"], rtol=1e-5)


def test_it_stops_after_the_steps_rounded_up_to_chunks():
    lines = []
    run(budget=loop.Budget(steps=7, chunk=3), report=lines.append)
    assert [line.steps for line in lines] == [3, 6, 9]


def test_it_stops_in_time_even_if_nothing_is_left_after_compiling():
    lines = []
    run(budget=loop.Budget(minutes=1e-6, chunk=2), report=lines.append)
    assert [line.steps for line in lines] == [2]


def test_it_goes_on_until_the_minutes_are_over():
    lines = []
    run(budget=loop.Budget(minutes=0.05, chunk=2), report=lines.append)
    # The last chunk begins within the budget; compilation may have taken all of it.
    assert all(line.seconds < 3 for line in lines[:-1])
    assert lines[-1].seconds >= 3 - 1e-6  # Rounded.


def test_the_reported_loss_is_the_mean_of_the_chunk():
    lines = []
    still = loop.Rate(peak=0.0)
    run(rate=still, budget=loop.Budget(steps=4, chunk=4), report=lines.append)

    key, losses = jax.random.key(3), []
    for _ in range(4):
        key, now = jax.random.split(key)
        losses.append(loss(start(), now, DATA))
    assert lines[0].loss == pytest.approx(np.mean(losses), rel=1e-6)


def test_a_loss_that_is_no_number_stops_the_training():
    with pytest.raises(ValueError, match="After 4 steps the loss is nan: lower the"):
        run(data=np.full((2, 3), np.nan, np.float32))


def test_a_budget_without_an_end_is_refused():
    with pytest.raises(ValueError, match="neither minutes nor steps"):
        run(budget=loop.Budget())


def test_the_printer_counts_and_prints_now_and_then(capsys):
    printer = loop.Printer(unit="pictures", each=8)

    for steps, seconds in ((25, 1.0), (50, 6.0), (75, 12.0)):
        printer(loop.Line(steps, 0.5, seconds))

    assert printer.steps == 75
    first, second = capsys.readouterr().out.splitlines()
    assert first.split()[3] == "25"
    # 50 steps of 8 in 11 seconds.
    assert second.endswith("step     75  loss  0.5000  36 pictures/s")
