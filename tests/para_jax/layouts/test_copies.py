"""Check trees with moments, averages or other matrices beside the adapters."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx

import para_jax
from para_jax import layouts, names

R = 3


def z(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype("f4")


def params():
    return {
        "up": {"kernel_lora_a": z(8, R), "kernel_lora_b": z(R, 5)},
        "down": {"kernel_lora_a": z(5, R), "kernel_lora_b": z(R, 8)},
    }


@pytest.mark.parametrize("name", ["opt", "opt_state", "optimizer", "tx_state", "rest"])
def test_moments_are_no_adapters_under_any_name(name):
    state = optax.adam(1e-3).init(params())

    got = para_jax.from_tree({"params": params(), name: state}, alpha=6)

    assert list(got.adapters) == ["down", "up"]


def test_moments_are_no_adapters_in_a_tuple_with_their_params():
    state = optax.chain(optax.trace(0.9), optax.adam(1e-3)).init(params())

    got = para_jax.from_tree((params(), state), alpha=6)

    assert {path.rpartition("/")[2] for path in got.adapters} == {"up", "down"}
    assert len(got.adapters) == 2


def test_a_module_that_is_called_as_a_moment_is_an_adapter():
    tree = {"encoder": {"mu": params()["up"], "nu": params()["down"], **params()}}

    got = para_jax.from_tree(tree, alpha=6)

    assert list(got.adapters) == [
        "encoder/down",
        "encoder/mu",
        "encoder/nu",
        "encoder/up",
    ]


def test_one_module_beside_one_that_is_called_as_a_moment_is_an_adapter():
    tree = {"mu": params()["up"], "q": params()["down"]}

    assert list(para_jax.from_tree(tree, alpha=6).adapters) == ["mu", "q"]


def test_an_average_of_the_params_is_asked_to_be_left_out():
    with pytest.raises(ValueError, match=r"'ema_params/\w+' and 'params/\w+'.*copies"):
        para_jax.from_tree({"params": params(), "ema_params": params()}, alpha=6)


def test_what_has_no_shape_is_no_factor():
    tree = {"up": {"a": 3, "b": 4}, "q": {"a": z(8, R), "b": z(R, 5), "kernel": 1.0}}

    assert list(para_jax.from_tree(tree, scale=1).adapters) == ["q"]


def test_a_scanned_convolution_is_read_with_its_window():
    a, b = z(5, 3, 4, 2), z(5, 1, 2, 7)
    tree = {"conv": {"kernel_lora_a": a, "kernel_lora_b": b}}

    got = para_jax.from_tree(tree, alpha=2)

    assert got.adapters["conv"].a.shape == (5, 12, 2)
    assert got.layers["conv"] == para_jax.Layer(kind="conv", window=(3, 4))
    want = np.einsum("lwcr,lrn->lwcn", a, b[:, 0])
    delta = got.adapters["conv"].a @ got.adapters["conv"].b
    np.testing.assert_allclose(delta.reshape(want.shape), want, rtol=1e-5, atol=1e-6)


def test_parts_that_share_no_columns_are_joined_at_the_rank_they_need():
    shared = {"a": z(8, R), "b": z(R, 2, 2, 3)}
    tree = {"attn": {"kv_einsum": {"lora": shared}}}
    parent = para_jax.from_tree(tree)
    own = {
        name: para_jax.Adapter(a=z(8, R, seed=i), b=z(R, 6, seed=i))
        for i, name in enumerate(parent.adapters)
    }

    put = para_jax.to_tree(para_jax.Checkpoint(adapters=own, tree=parent.tree))

    got = put["attn"]["kv_einsum"]["lora"]
    assert got["a"].shape == (8, 2 * R)
    delta = np.einsum("mr,rckh->cmkh", got["a"], got["b"]).reshape(2, 8, 6)
    for x, y in zip(own.values(), delta, strict=True):
        np.testing.assert_allclose(y, x.a @ x.b, atol=1e-5)


def test_the_same_parts_go_back_at_the_rank_of_the_tree():
    shared = {"a": z(8, R), "b": z(R, 2, 2, 3)}
    parent = para_jax.from_tree({"attn": {"kv_einsum": {"lora": shared}}})

    put = para_jax.to_tree(para_jax.compress(parent, para_jax.Gamma(1.0)))

    assert put["attn"]["kv_einsum"]["lora"]["a"].shape == (8, R)


def test_a_module_that_kept_nothing_keeps_its_dtype():
    tree = {"up": params()["up"], "down": params()["down"]}
    weak = {k: (x * 1e-3).astype(jax.numpy.bfloat16) for k, x in tree["down"].items()}
    tree["down"] = weak

    child = para_jax.compress(para_jax.from_tree(tree, alpha=6), para_jax.Gamma(0.4))

    assert list(child.adapters) == ["up"]
    put = para_jax.to_tree(child)["down"]
    assert {x.dtype for x in put.values()} == {np.dtype(jax.numpy.bfloat16)}
    assert put["kernel_lora_a"].shape == (5, 1)


def test_rules_and_ranks_are_those_of_the_padded_tree():
    pytest.importorskip("qwix")
    child = para_jax.compress(
        para_jax.from_tree(params(), alpha=6), para_jax.Gamma(0.5)
    )

    assert layouts.module_ranks(child, rank=5) == {"up": 5, "down": 5}
    assert {x.rank for x in layouts.qwix_rules(child, rank=5)} == {5}
    assert para_jax.to_tree(child, rank=5)["up"]["kernel_lora_a"].shape == (8, 5)


def test_an_alpha_for_a_module_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="alpha= names 'left', expected one of"):
        para_jax.from_tree(params(), alpha={"up": 3, "down": 3, "left": 3})


def test_names_take_plain_adapters_too():
    adapters = {"layers/0/q": para_jax.Adapter(a=z(8, R), b=z(R, 5))}

    got = names.to_hf(adapters, {"layers/{i}/q": "h.{i}.attn.q"})

    assert list(got.adapters) == ["h/0/attn/q"]


@pytest.mark.parametrize("keys", [False, True])
def test_a_state_with_keys_of_random_numbers_is_saved(keys, tmp_path):
    model = nnx.LoRA(8, 2, 5, rngs=nnx.Rngs(0))
    if keys:
        model.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(1))
    model.lora_b[...] = z(2, 5)
    parent = para_jax.from_tree(nnx.state(model))

    para_jax.save(parent, tmp_path / "x", format="orbax")

    assert [x.rank for x in para_jax.load(tmp_path / "x").adapters.values()] == [2]
