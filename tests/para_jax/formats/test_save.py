"""Test the promises of `save` for every format."""

import json

import numpy as np
import pytest

import para_jax
from para_jax.formats import check_same

Rank = para_jax.Rank


def stacked(rows=4):
    """Return a stack of layers of different importance."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(rows, 8, 3)) * 4.0 ** -np.arange(rows)[:, None, None]
    return {
        "q": para_jax.Adapter(a.astype("f"), rng.normal(size=(rows, 3, 6)).astype("f"))
    }


def delta(adapter):
    return np.asarray(adapter.a, np.float64) @ np.asarray(adapter.b, np.float64)


def test_a_dict_of_adapters_is_saved_as_it_is(tmp_path):
    for kind in ("peft", "orbax"):
        para_jax.save(para_jax.unstack(stacked()), tmp_path / kind, format=kind)

        got = para_jax.load(tmp_path / kind).adapters
        assert sorted(got) == ["q/0", "q/1", "q/2", "q/3"]


def test_a_padded_stack_is_ragged_in_a_ragged_file(tmp_path):
    child = para_jax.compress(stacked(), Rank(0.75), form="padded")

    para_jax.save(child, tmp_path / "x")

    got = para_jax.load(tmp_path / "x").adapters
    ranks = {m.path: m.kept for m in child.report.modules if m.kept}
    assert {path: x.rank for path, x in got.items()} == ranks
    for path, x in got.items():
        row = int(path.rpartition("/")[2])
        whole = child.adapters["q"]
        np.testing.assert_array_equal(delta(x), whole.a[row].astype("d") @ whole.b[row])


def test_a_scale_beyond_the_range_of_the_dtype_is_refused(tmp_path):
    adapters = {"x": para_jax.Adapter(np.ones((8, 3), "e"), np.ones((3, 6), "e"), 1e6)}

    with np.errstate(over="ignore"), pytest.raises(ValueError, match=r"'x'.*infinity"):
        para_jax.save(adapters, tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_a_profile_is_of_peft(tmp_path):
    with pytest.raises(ValueError, match="'padded' applies to PEFT only"):
        para_jax.save(stacked(), tmp_path / "x", format="orbax", profile="padded")


def test_a_home_directory_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))

    para_jax.save(para_jax.unstack(stacked()), "~/child")

    assert (tmp_path / "child" / "adapter_config.json").exists()
    assert len(para_jax.load("~/child").adapters) == 4


@pytest.mark.parametrize("field", ["version", "scales", "facts", "config", "residual"])
def test_orbax_metadata_that_lost_a_field_is_named(tmp_path, field):
    para_jax.save(stacked(), tmp_path / "x", format="orbax")
    path = tmp_path / "x" / "_CHECKPOINT_METADATA"
    content = json.loads(path.read_text())
    del content["custom_metadata"]["para_jax"][field]
    path.write_text(json.dumps(content))

    if field == "version":
        assert para_jax.load(tmp_path / "x").adapters
    else:
        with pytest.raises(ValueError, match=rf"x' is damaged.*{field}"):
            para_jax.load(tmp_path / "x")


@pytest.mark.parametrize(
    "change", [{"extra": {"n": np.array([1.0, 2.0])}}, {"extra": {}}]
)
def test_what_does_not_read_back_bit_for_bit_is_named(change):
    wanted = para_jax.Checkpoint(adapters={}, extra={"n": np.array([1.0, np.nan])})

    check_same(wanted, wanted)
    with pytest.raises(ValueError, match="'n' does not read back"):
        check_same(wanted, para_jax.Checkpoint(adapters={}, **change))
