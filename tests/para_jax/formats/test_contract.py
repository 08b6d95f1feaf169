"""Test the contract of every format: the same adapters, written and read in each."""

import subprocess
import sys
import typing

import jax.numpy as jnp
import numpy as np
import pytest

import para_jax
from para_jax.formats import FORMATS, PROFILES, Format, recognise

FILES = [name for name, x in FORMATS.items() if x.one_file]


def place(folder, form, name="child"):
    return folder / f"{name}{FORMATS[form].suffix}"


# keras-hub's files have the numbers of layers, not their names.
NUMBERS = {
    "layers/2/up": "lora/2",
    "layers/10/up": "lora/10",
    "layers/10/down": "lora/11",
}


def parent(*forms, dtype="float32"):
    """Return modules of unequal ranks, shapes and scales, and an unrelated tensor.

    `layers/10` follows `layers/2`, unlike in alphabetical order.
    """
    random = np.random.default_rng(0)

    def factor(*shape):
        return random.normal(size=shape).astype(jnp.dtype(dtype))

    sizes = {
        "layers/2/up": (5, 3, 7, 0.5),
        "layers/10/up": (5, 1, 7, 2.0),
        "layers/10/down": (7, 4, 5, 1.0),
    }
    adapters = {
        NUMBERS[path] if "keras" in forms else path: para_jax.Adapter(
            factor(m, r), factor(r, n), scale
        )
        for path, (m, r, n, scale) in sizes.items()
    }
    extra = {"classifier.weight": factor(2, 5)}
    return para_jax.Checkpoint(adapters=adapters, extra=extra)


def delta(adapter):
    a, b = (np.asarray(x, np.float64) for x in (adapter.a, adapter.b))
    return adapter.scale * a @ b


def same_updates(got, want, *, exact=True):
    """Compare bit for bit, or up to one rounding of `b`.

    A single file of unequal ranks has one alpha, and `b` times the rank.
    """
    assert got.keys() == want.keys()
    for path, adapter in want.items():
        assert got[path].rank == adapter.rank
        if exact:
            np.testing.assert_array_equal(
                delta(got[path]), delta(adapter), err_msg=path
            )
            continue
        a, b = (np.asarray(x, np.float64) for x in (adapter.a, adapter.b))
        ulp = float(jnp.finfo(adapter.b.dtype).eps)
        bound = 2 * ulp * abs(adapter.scale) * abs(a) @ abs(b)
        assert (abs(delta(got[path]) - delta(adapter)) <= bound).all(), path


@pytest.fixture(params=FORMATS)
def form(request):
    return request.param


def test_the_table_has_a_record_for_every_name():
    assert tuple(FORMATS) == typing.get_args(Format)
    assert [x.name for x in FORMATS.values()] == list(FORMATS)


def test_the_table_is_there_before_orbax_is_imported():
    code = "import sys, para_jax.formats; print('orbax' in sys.modules)"

    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert run.stdout.strip() == "False", run.stderr


def test_updates_ranks_and_dtypes_come_back(form, tmp_path):
    for dtype in ("float32", "bfloat16", "float16"):
        want = parent(form, dtype=dtype)
        target = place(tmp_path, form, dtype)

        para_jax.save(want, target, format=form)

        got = para_jax.load(target)
        # The scales are powers of two: folded or not, no bit is lost.
        same_updates(got.adapters, want.adapters, exact=form not in FILES)
        assert {np.dtype(x.a.dtype).name for x in got.adapters.values()} == {dtype}
        assert all(isinstance(x.a, np.ndarray) for x in got.adapters.values())


def test_what_is_no_factor_passes_through_bit_for_bit(form, tmp_path):
    want = parent(form, dtype="bfloat16")
    target = place(tmp_path, form)

    para_jax.save(want, target, format=form)

    got = para_jax.load(target).extra
    assert got.keys() == want.extra.keys()
    for name, x in want.extra.items():
        assert got[name].dtype == x.dtype
        assert got[name].tobytes() == x.tobytes()


def test_the_format_is_recognised(form, tmp_path):
    target = place(tmp_path, form)
    para_jax.save(parent(form), target, format=form)

    assert recognise(target) == form


def test_a_profile_is_refused_where_the_format_has_no_such(form, tmp_path):
    for profile in PROFILES:
        target = place(tmp_path, form, profile)
        if profile in FORMATS[form].profiles:
            para_jax.save(parent(form), target, format=form, profile=profile)
            assert recognise(target) == form
            continue
        with pytest.raises(
            ValueError, match=f"profile '{profile}' applies to PEFT only"
        ):
            para_jax.save(parent(form), target, format=form, profile=profile)


def test_a_hint_is_refused_where_the_format_leaves_nothing_open(form, tmp_path):
    target = place(tmp_path, form)
    para_jax.save(parent(form), target, format=form)
    hints = {"layout": "linen", "alpha": 2.0, "scale": 2.0, "stack_axis": 0}

    for name, value in hints.items():
        with pytest.raises(ValueError, match=f"holds its own .*leave out {name}="):
            para_jax.load(target, **{name: value})


def test_a_child_tells_what_was_kept_after_a_way_through_the_disk(form, tmp_path):
    child = para_jax.compress(parent(form), para_jax.Gamma(0.5))
    target = place(tmp_path, form)

    para_jax.save(child, target, format=form)

    (cut,) = para_jax.load(target).provenance["cuts"]
    assert cut["policy"] == "gamma 0.5"
    assert cut["kept_rank"] == child.report.kept_rank == 4


@pytest.mark.parametrize("other", FORMATS)
def test_any_format_becomes_any_other(form, other, tmp_path):
    want = parent(form, other)
    first, second = place(tmp_path, form, "first"), place(tmp_path, other, "second")

    para_jax.save(want, first, format=form)
    # mlx-lm loads factors alone, so PEFT's other trained tensors are left out.
    found = para_jax.load(first, adapters_only=other == "mlx")
    para_jax.save(found, second, format=other)

    exact = form not in FILES and other not in FILES
    same_updates(para_jax.load(second).adapters, want.adapters, exact=exact)


def test_what_is_there_is_replaced_if_asked_alone(form, tmp_path):
    old, new = parent(form), para_jax.compress(parent(form), para_jax.Gamma(0.5))
    target = place(tmp_path, form)
    para_jax.save(old, target, format=form)

    with pytest.raises(FileExistsError, match="exists"):
        para_jax.save(new, target, format=form)
    exact = form not in FILES
    same_updates(para_jax.load(target).adapters, old.adapters, exact=exact)

    para_jax.save(new, target, format=form, overwrite=True)
    same_updates(para_jax.load(target).adapters, new.adapters, exact=exact)
    assert [x.name for x in tmp_path.iterdir()] == [target.name]


def test_a_refused_save_leaves_nothing(form, tmp_path):
    broken = parent(form).adapters | {
        "x": para_jax.Adapter(np.full((5, 2), np.nan), np.ones((2, 3)))
    }

    with pytest.raises(ValueError, match="'x'"):
        para_jax.save(broken, place(tmp_path, form), format=form)
    assert list(tmp_path.iterdir()) == []
