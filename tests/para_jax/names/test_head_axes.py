"""Test renaming of Keras's kernels with heads; NumPy computes the expected updates."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import para_jax as para
from para_jax import names

N, D, H, R = 3, 5, 4, 2  # Heads, features, size of a head, rank.
GEMMA = ("gemma2", "decoder_block_1/attention/", "self_attn.")
LLAMA = ("llama3", "transformer_layer_1/self_attention/", "self_attn.")
QUERY = "model/layers/1/self_attn/q_proj"
OUTPUT = "model/layers/1/self_attn/o_proj"


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def delta(x):
    return x.scale * np.asarray(x.a) @ np.asarray(x.b)


def query(model, *, xp=np, rank=R):
    """Return a checkpoint of one query, and its update as a Linear `[d, n h]`."""
    axes = (N, D) if model is GEMMA else (D, N)
    a, b = random(*axes, rank), random(rank, H, seed=1)
    order = "ndr,rh->dnh" if model is GEMMA else "dnr,rh->dnh"
    want = 0.5 * np.einsum(order, a, b).reshape(D, N * H)
    x = para.Adapter(xp.asarray(a.reshape(-1, rank)), xp.asarray(b), 0.5)
    path = f"{model[1]}query"
    layers = {path: para.Layer(kind="einsum", window=axes)}
    return para.Checkpoint(adapters={path: x}, layers=layers), want


@pytest.mark.parametrize("model", [GEMMA, LLAMA], ids=lambda x: x[0])
@pytest.mark.parametrize("xp", [np, jnp])
def test_heads_become_outputs_at_a_rank_for_each(model, xp):
    parent, want = query(model, xp=xp)

    there = names.to_hf(parent, model[0])

    (x,) = there.adapters.values()
    assert list(there.adapters) == [QUERY]
    assert there.layers == {}
    assert x.rank == N * R
    assert isinstance(x.a, np.ndarray if xp is np else jax.Array)
    np.testing.assert_allclose(delta(x), want, atol=1e-6)
    assert np.linalg.matrix_rank(want) > R  # One rank of Keras's is no rank of PEFT's.


@pytest.mark.parametrize("model", [GEMMA, LLAMA], ids=lambda x: x[0])
@pytest.mark.parametrize("ecosystem", ["keras", "keras-file"])
def test_what_came_from_keras_goes_back_bit_for_bit(model, ecosystem):
    parent, _ = query(model)
    facts = {"ecosystem": ecosystem, "head_dim": H}

    back = names.from_hf(names.to_hf(parent, model[0]), model[0], **facts)

    (x,), (want,) = back.adapters.values(), parent.adapters.values()
    np.testing.assert_array_equal(x.a, want.a)
    np.testing.assert_array_equal(x.b, want.b)
    assert x.scale == want.scale
    assert list(back.layers.values()) == list(parent.layers.values())
    assert back.layers.keys() == back.adapters.keys()


@pytest.mark.parametrize("model", [GEMMA, LLAMA], ids=lambda x: x[0])
@pytest.mark.parametrize(("rank", "found"), [(1, N), (R, H)])
def test_any_update_of_a_linear_has_a_form_in_keras(model, rank, found):
    """Below the size of a head at a rank for each, else at that size."""
    given = para.Adapter(random(D, rank), random(rank, N * H, seed=1))

    there = names.from_hf({QUERY: given}, model[0], ecosystem="keras", head_dim=H)

    (path, x), *_ = there.adapters.items()
    assert path == f"{model[1]}query"
    assert (x.inputs, x.outputs, x.rank) == (N * D, H, found)
    axes = (N, D) if model is GEMMA else (D, N)
    assert there.layers == {path: para.Layer(kind="einsum", window=axes)}
    kernel = delta(x).reshape(*axes, H)
    want = delta(given).reshape(D, N, H)
    np.testing.assert_allclose(
        kernel, want.transpose(1, 0, 2) if model is GEMMA else want, atol=1e-12
    )


def test_an_output_keeps_its_matrix():
    x = para.Adapter(random(N * H, R), random(R, D, seed=1))

    there = names.from_hf({OUTPUT: x}, "gemma2", ecosystem="keras", head_dim=H)
    back = names.to_hf(there, "gemma2")

    assert list(there.layers.values()) == [para.Layer(kind="einsum", window=(N, H))]
    assert back.layers == {}
    np.testing.assert_array_equal(back.adapters[OUTPUT].a, x.a)
    np.testing.assert_array_equal(back.adapters[OUTPUT].b, x.b)


def test_a_module_that_kept_nothing_keeps_its_shape():
    parent, _ = query(GEMMA)
    path = f"{GEMMA[1]}value"
    layer = para.Layer(kind="einsum", window=(1, D))
    parent = para.Checkpoint(
        adapters=parent.adapters,
        layers={**parent.layers, path: layer},
        absent={path: (D, H)},
    )

    there = names.to_hf(parent, "gemma2")
    back = names.from_hf(there, "gemma2", ecosystem="keras", head_dim=H)

    assert there.absent == {"model/layers/1/self_attn/v_proj": (D, H)}
    assert back.absent == parent.absent
    assert back.layers == parent.layers


def test_an_absent_query_has_the_shapes_of_both_sides():
    _, want = query(LLAMA)
    path = f"{LLAMA[1]}query"
    layers = {path: para.Layer(kind="einsum", window=(D, N))}
    parent = para.Checkpoint(adapters={}, layers=layers, absent={path: (D * N, H)})

    there = names.to_hf(parent, "llama3")
    back = names.from_hf(there, "llama3", ecosystem="keras", head_dim=H)

    assert there.absent == {QUERY: want.shape}
    assert (back.absent, back.layers) == (parent.absent, layers)


def test_sizes_that_are_not_known_are_asked_for():
    parent, _ = query(GEMMA)
    given = {QUERY: para.Adapter(random(D, R), random(R, N * H))}

    with pytest.raises(ValueError, match="the sizes of whose heads are not known"):
        names.to_hf(parent.adapters, "gemma2")
    with pytest.raises(ValueError, match=r"an axis of heads in Keras.*head_dim="):
        names.from_hf(given, "gemma2", ecosystem="keras")
    with pytest.raises(ValueError, match="an axis of 12, which is not heads of 5"):
        names.from_hf(given, "gemma2", ecosystem="keras", head_dim=5)


@pytest.mark.parametrize("number", [4, 9, 17, 24])
def test_a_number_of_another_layer_is_refused(number):
    """Norms and embeddings are counted too, and have no LoRA."""
    x = para.Adapter(random(D, R), random(R, H))
    parent = {f"lora/{number}": x, "lora/10": x}

    with pytest.raises(ValueError, match=f"'lora/{number}'.*no module of 'bert'"):
        names.to_hf(parent, "bert", ecosystem="keras-file")


def test_a_table_of_ones_own_may_have_heads():
    table = {
        "block_{i}/q": names.Module("model.layers.{i}.self_attn.q_proj", heads="nd")
    }
    parent, want = query(GEMMA)
    mine = para.Checkpoint(
        adapters={"block_1/q": next(iter(parent.adapters.values()))},
        layers={"block_1/q": next(iter(parent.layers.values()))},
    )

    (x,) = names.to_hf(mine, table).adapters.values()

    np.testing.assert_allclose(delta(x), want, atol=1e-12)


def test_a_file_of_another_model_is_refused():
    """Numbers 8 and 10 are value and query of Gemma, output and key of Llama."""
    sizes = {"lora/8": (1, D), "lora/10": (N, D)}
    gemma = para.Checkpoint(
        adapters={
            path: para.Adapter(random(n * d, R), random(R, H))
            for path, (n, d) in sizes.items()
        },
        layers={path: para.Layer(kind="einsum", window=x) for path, x in sizes.items()},
    )

    assert len(names.to_hf(gemma, "gemma").adapters) == 2
    with pytest.raises(
        ValueError, match=r"'lora/10' as .*k_proj has 3 .*another model"
    ):
        names.to_hf(gemma, "llama3")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn"])
@pytest.mark.parametrize("rank", [1, R])
def test_small_dtypes_keep_theirs_both_ways(dtype, rank):
    """Of few bits: a sum of products is rounded once, to the dtype's precision."""
    kind = jnp.dtype(dtype)
    parent, _ = query(LLAMA)
    ((path, x),) = parent.adapters.items()
    x = dataclasses.replace(x, a=x.a.astype(kind), b=x.b.astype(kind))
    parent = dataclasses.replace(parent, adapters={path: x})
    order = "dnr,rh->dnh"
    a, b = (np.asarray(y, np.float64) for y in (x.a, x.b))
    want = x.scale * np.einsum(order, a.reshape(D, N, R), b).reshape(D, N * H)

    there = names.to_hf(parent, "llama3")

    (y,) = there.adapters.values()
    assert (y.a.dtype, y.b.dtype) == (kind, kind)
    wide = y.scale * np.asarray(y.a, np.float64) @ np.asarray(y.b, np.float64)
    np.testing.assert_array_equal(wide, want)

    given = para.Adapter(
        random(D, rank).astype(kind), random(rank, N * H, seed=1).astype(kind)
    )
    back = names.from_hf({QUERY: given}, "llama3", ecosystem="keras", head_dim=H)
    (z,) = back.adapters.values()
    assert (z.a.dtype, z.b.dtype) == (kind, kind)
    a, b, c, d = (np.asarray(v, np.float64) for v in (z.a, z.b, given.a, given.b))
    np.testing.assert_allclose(
        (a @ b).reshape(D, N * H), c @ d, rtol=2 * float(jnp.finfo(kind).eps), atol=1e-2
    )


def test_an_update_beyond_its_dtype_is_refused():
    big = np.full((D, 2 * H), 300, np.float16)
    given = para.Adapter(big, random(2 * H, N * H).astype(np.float16) * np.float16(900))

    with pytest.raises(ValueError, match="beyond the range of float16"):
        names.from_hf({QUERY: given}, "llama3", ecosystem="keras", head_dim=H)
