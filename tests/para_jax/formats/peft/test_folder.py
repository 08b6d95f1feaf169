"""Test PEFT's files against hand-made ones: tensors and fields read, written, kept.

safetensors and json write and read the files, and NumPy computes the products.
`tests/interop` runs PEFT itself.
"""

import dataclasses
import json
import math
import re

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

import para_jax as para
from para_jax.formats.peft import config as peft_config

# Public functions must work in JAX's default precision.
pytestmark = pytest.mark.user_defaults

PREFIX = "base_model.model."
PROFILES = ["ragged", "padded"]
DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16]
every_profile = pytest.mark.parametrize("profile", PROFILES)


def config(**fields):
    return {
        "peft_type": "LORA",
        "r": 3,
        "lora_alpha": 6,
        "target_modules": ["q"],
    } | fields


def write(folder, config, weights):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(weights, folder / "adapter_model.safetensors")
    return folder


def weights_of(folder):
    return safetensors.numpy.load_file(folder / "adapter_model.safetensors")


def config_of(folder):
    return json.loads((folder / "adapter_config.json").read_text())


def random(*shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def linear(name, m, n, r, **options):
    """Return the tensors of a linear layer in torch's form."""
    return {
        f"{PREFIX}{name}.lora_A.weight": random(r, m, **options),
        f"{PREFIX}{name}.lora_B.weight": random(n, r, **options),
    }


def adapter(m, n, r, *, scale=1.0, seed=0, dtype=np.float32, stack=()):
    a, b = random(*stack, m, r, seed=seed), random(*stack, r, n, seed=seed + 50)
    return para.Adapter(a=a.astype(dtype), b=b.astype(dtype), scale=scale)


def delta(x):
    return x.scale * x.a.astype(np.float64) @ x.b.astype(np.float64)


def assert_bits(got, want):
    assert got.keys() == want.keys()
    for name, x in want.items():
        assert got[name].dtype == x.dtype, name
        np.testing.assert_array_equal(got[name], x, err_msg=name, strict=True)


# --- Reading ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_factors_are_transposed_and_keep_their_bits(dtype, tmp_path):
    weights = linear("layer.0.q", 8, 6, 3, dtype=dtype)

    got = para.load(write(tmp_path / "x", config(), weights)).adapters["layer/0/q"]

    assert got.a.dtype == got.b.dtype == dtype
    np.testing.assert_array_equal(got.a, weights[f"{PREFIX}layer.0.q.lora_A.weight"].T)
    np.testing.assert_array_equal(got.b, weights[f"{PREFIX}layer.0.q.lora_B.weight"].T)
    assert got.scale == 2.0


def test_the_file_may_be_named_instead_of_the_folder(tmp_path):
    folder = write(tmp_path / "x", config(), linear("q", 8, 6, 3))

    got = para.load(folder / "adapter_model.safetensors")

    assert got.adapters.keys() == {"q"}


@pytest.mark.parametrize("prefix", ["", PREFIX])
def test_keys_need_no_prefix(prefix, tmp_path):
    weights = {
        k.replace(PREFIX, prefix): x for k, x in linear("model.q", 8, 6, 3).items()
    }

    assert para.load(write(tmp_path / "x", config(), weights)).adapters.keys() == {
        "model/q"
    }


WRAPPED = {
    "torch.compile": lambda name: f"_orig_mod.{name}",
    "one layer compiled": lambda name: name.replace(".1.", ".1._orig_mod."),
    "FSDP": lambda name: name.replace(".1.", "._fsdp_wrapped_module.1."),
    "checkpointing": lambda name: name.replace(".1", ".1._checkpoint_wrapped_module"),
    "DDP": lambda name: f"module.{name}",
    "both": lambda name: f"_orig_mod.module.{name}",
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_wrappers_of_pytorch_are_no_modules(wrapper, tmp_path):
    """PEFT finds none of them, so their names in a child would have no effect."""
    plain = linear("layers.1.q", 8, 6, 3) | {f"{PREFIX}layers.1.head": random(3)}
    wrapped = {WRAPPED[wrapper](name): x for name, x in plain.items()}
    assert wrapped.keys().isdisjoint(plain)

    parent = para.load(write(tmp_path / "x", config(), wrapped))
    para.save(parent, tmp_path / "child")

    assert parent.adapters.keys() == {"layers/1/q"}
    assert weights_of(tmp_path / "child").keys() == plain.keys()


@pytest.mark.parametrize("name", [f"{PREFIX}q.lora_A.weight", f"{PREFIX}head.weight"])
@pytest.mark.parametrize("other", ["", "_orig_mod.", f"module.{PREFIX}"])
def test_two_names_of_one_tensor_are_refused(name, other, tmp_path):
    twice = other + name.removeprefix(PREFIX)
    weights = linear("q", 8, 6, 3) | {name: random(3, 8), twice: random(3, 8)}

    match = f"'({name}|{twice})' is there under another name too, '({name}|{twice})'"
    with pytest.raises(ValueError, match=match):
        para.load(write(tmp_path / "x", config(), weights))


MODULES = {"layers.1.q": 3, "vision.layers.1.q": 3, "layers.11.q": 3, "layers.1.xq": 3}
SCALES = {  # The fields, and the scales of the four modules in order.
    "alpha over r": ({}, [2, 2, 2, 2]),
    "rslora": ({"use_rslora": True}, [6 / math.sqrt(3)] * 4),
    "a bare name is an end, between dots": ({"alpha_pattern": {"q": 3}}, [1, 1, 1, 2]),
    "a full name is an end too": ({"alpha_pattern": {"layers.1.q": 3}}, [1, 1, 2, 2]),
    "an anchor holds": ({"alpha_pattern": {"^layers.1.q": 3}}, [1, 2, 2, 2]),
    "an expression": ({"alpha_pattern": {r"layers\.\d.*q": 3}}, [1, 1, 1, 1]),
    "an expression has to reach the end": (
        {"alpha_pattern": {r"layers\.\d": 3}},
        [2, 2, 2, 2],
    ),
    "the first that matches wins": (
        {"alpha_pattern": {"q": 3, "^layers.1.q": 12}},
        [1, 1, 1, 2],
    ),
    "no pattern": ({"alpha_pattern": None, "rank_pattern": {}}, [2, 2, 2, 2]),
    "a fraction": ({"alpha_pattern": {"xq": 0.75}}, [2, 2, 2, 0.25]),
    "rslora with a pattern": (
        {"alpha_pattern": {"xq": 3}, "use_rslora": True},
        [6 / math.sqrt(3)] * 3 + [3 / math.sqrt(3)],
    ),
}


@pytest.mark.parametrize("name", SCALES)
def test_scales_follow_the_rules_of_peft(name, tmp_path):
    fields, want = SCALES[name]
    weights = {}
    for module, r in MODULES.items():
        weights |= linear(module, 8, 6, r)

    got = para.load(write(tmp_path / "x", config(**fields), weights)).adapters

    scales = [got[module.replace(".", "/")].scale for module in MODULES]
    assert scales == pytest.approx(want, rel=1e-15)


def test_ranks_and_alphas_have_patterns_of_their_own(tmp_path):
    weights = linear("a.q", 8, 6, 2) | linear("b.q", 8, 6, 5) | linear("v", 8, 6, 3)
    fields = {
        "rank_pattern": {"^a.q": 2, "q": 5},
        "alpha_pattern": {"b.q": 15, "[ab].q": 4},
        "lora_alpha": 9,
    }

    got = para.load(write(tmp_path / "x", config(**fields), weights)).adapters

    assert {path: (x.rank, x.scale) for path, x in got.items()} == {
        "a/q": (2, 2.0),
        "b/q": (5, 3.0),
        "v": (3, 3.0),
    }


def test_a_convolution_is_flattened_in_the_order_of_flax(tmp_path):
    a, b = random(3, 5, 2, 4), random(7, 3, 1, 1, seed=1)  # [r, in, *window], [out, r].
    weights = {f"{PREFIX}q.lora_A.weight": a, f"{PREFIX}q.lora_B.weight": b}

    got = para.load(write(tmp_path / "x", config(), weights))

    assert got.layers == {"q": para.Layer(kind="conv", window=(2, 4, 5))}
    want = 2 * np.einsum("rihw,or->hwio", a.astype(np.float64), b[:, :, 0, 0])
    np.testing.assert_allclose(
        delta(got.adapters["q"]).reshape(2, 4, 5, 7), want, rtol=1e-12
    )


def test_an_embedding_has_its_vocabulary_as_inputs(tmp_path):
    a, b = random(3, 11), random(6, 3, seed=1)
    weights = {f"{PREFIX}q.lora_embedding_A": a, f"{PREFIX}q.lora_embedding_B": b}

    got = para.load(write(tmp_path / "x", config(), weights))

    assert got.layers == {"q": para.Layer(kind="embedding")}
    want = 2 * (b.astype(np.float64) @ a).T  # Row i is the update of token i.
    np.testing.assert_allclose(delta(got.adapters["q"]), want, rtol=1e-12)


# --- Writing ----------------------------------------------------------------------


def everything(dtype=np.float32):
    return para.Checkpoint(
        adapters={
            "layers/10/q": adapter(8, 6, 3, seed=1, dtype=dtype, scale=2.0),
            "layers/2/q": adapter(8, 6, 1, seed=2, dtype=dtype, scale=0.25),
            "conv": adapter(2 * 4 * 5, 7, 2, seed=3, dtype=dtype),
            "vocabulary": adapter(11, 6, 2, seed=4, dtype=dtype),
        },
        layers={
            "conv": para.Layer(kind="conv", window=(2, 4, 5)),
            "vocabulary": para.Layer(kind="embedding"),
        },
        absent={"layers/3/q": (9, 4), "gone": (3, 5)},
        extra={
            f"{PREFIX}head.weight": random(3, 6),
            f"{PREFIX}head.bias": np.array([np.nan, -0.0, np.inf], np.float16),
            f"{PREFIX}steps": np.array(7, np.int64),
            f"{PREFIX}mask": np.array([[True], [False]]),
            f"{PREFIX}norm.weight": np.array([1.5, 2.5], ml_dtypes.bfloat16),
        },
        config=config(task_type="SEQ_CLS", bias="none", new_field={"a": [1, None]}),
        provenance={"para": {"policy": "gamma 0.25", "threshold": 0.1}, "ü": None},
    )


@every_profile
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_saved_is_loaded(profile, dtype, tmp_path):
    want = everything(dtype)

    para.save(want, tmp_path / "x", profile=profile)
    got = para.load(tmp_path / "x")

    for path, x in want.adapters.items():
        one = got.adapters[path]
        assert one.scale == 1
        # Scales that are powers of two cost no rounding; zeros follow in `padded`.
        np.testing.assert_array_equal(one.a[:, : x.rank], x.a, strict=True)
        b = (x.b.astype(np.float32) * x.scale).astype(dtype)
        np.testing.assert_array_equal(one.b[: x.rank], b, strict=True)
        assert not one.a[:, x.rank :].any()
        assert not one.b[x.rank :].any()
    assert_bits(got.extra, want.extra)
    assert got.layers == want.layers
    assert got.provenance == want.provenance
    assert got.absent == (want.absent if profile == "ragged" else {})


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_scale_costs_one_rounding_at_most(dtype, tmp_path):
    x = adapter(8, 6, 3, scale=1 / 3, dtype=dtype)

    para.save(para.Checkpoint(adapters={"q": x}), tmp_path / "x")

    got = weights_of(tmp_path / "x")[f"{PREFIX}q.lora_B.weight"].T
    want = (x.b.astype(np.float64) / 3).astype(dtype)
    np.testing.assert_array_equal(got, want, strict=True)


def test_a_ragged_folder_holds_what_can_be_written_by_hand(tmp_path):
    para.save(everything(), tmp_path / "x", profile="ragged")

    shapes = {
        k.removeprefix(PREFIX): x.shape
        for k, x in weights_of(tmp_path / "x").items()
        if ".lora_" in k
    }
    assert shapes == {
        "layers.10.q.lora_A.weight": (3, 8),
        "layers.10.q.lora_B.weight": (6, 3),
        "layers.2.q.lora_A.weight": (1, 8),
        "layers.2.q.lora_B.weight": (6, 1),
        "conv.lora_A.weight": (2, 5, 2, 4),
        "conv.lora_B.weight": (7, 2, 1, 1),
        "vocabulary.lora_embedding_A": (2, 11),
        "vocabulary.lora_embedding_B": (6, 2),
    }
    ranks = {"conv": 2, "layers.2.q": 1, "vocabulary": 2}
    assert config_of(tmp_path / "x") == {
        "peft_type": "LORA",
        "r": 3,
        "lora_alpha": 3,
        "use_rslora": False,
        "target_modules": ["conv", "layers.2.q", "layers.10.q", "vocabulary"],
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "lora_bias": False,
        "task_type": "SEQ_CLS",
        "bias": "none",
        "new_field": {"a": [1, None]},
    }


def test_a_padded_folder_holds_zeros_for_what_is_absent(tmp_path):
    para.save(everything(), tmp_path / "x", profile="padded")

    weights = weights_of(tmp_path / "x")
    for name, (m, n) in {"layers.3.q": (9, 4), "gone": (3, 5)}.items():
        a, b = (weights[f"{PREFIX}{name}.lora_{x}.weight"] for x in "AB")
        assert (a.shape, b.shape) == ((3, m), (n, 3))
        assert not a.any()
        assert not b.any()
    got = config_of(tmp_path / "x")
    assert got["r"] == got["lora_alpha"] == 3
    assert got["rank_pattern"] == got["alpha_pattern"] == {}
    assert got["target_modules"] == [
        "conv", "gone", "layers.2.q", "layers.3.q", "layers.10.q", "vocabulary",
    ]  # fmt: skip


def test_adapters_alone_get_a_configuration(tmp_path):
    para.save(para.Checkpoint(adapters={"mlp/up": adapter(8, 6, 3)}), tmp_path / "x")

    assert config_of(tmp_path / "x") == {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "r": 3,
        "lora_alpha": 3,
        "use_rslora": False,
        "target_modules": ["mlp.up"],
        "rank_pattern": {},
        "alpha_pattern": {},
        "lora_bias": False,
    }
    with safetensors.safe_open(
        tmp_path / "x" / "adapter_model.safetensors", framework="numpy"
    ) as file:
        assert file.metadata()["format"] == "pt"  # transformers asks for it.


def test_a_stack_is_written_one_module_a_kernel(tmp_path):
    x = adapter(8, 6, 3, stack=(2, 2), scale=2.0)

    para.save(para.Checkpoint(adapters={"mlp": x}), tmp_path / "x")

    got = para.load(tmp_path / "x").adapters
    assert got.keys() == {"mlp/0/0", "mlp/0/1", "mlp/1/0", "mlp/1/1"}
    np.testing.assert_allclose(delta(got["mlp/1/0"]), delta(x)[1, 0], rtol=1e-12)


def test_names_that_end_alike_are_anchored(tmp_path):
    adapters = {
        "layers/1/q": adapter(8, 6, 3),
        "vision/layers/1/q": adapter(8, 6, 2),
        "audio/layers/1/q": adapter(8, 6, 4),
    }
    absent = {"text/layers/1/q": (8, 6)}

    para.save(para.Checkpoint(adapters=adapters, absent=absent), tmp_path / "x")

    got = config_of(tmp_path / "x")
    ranks = {
        r"^audio\.layers\.1\.q": 4,
        r"^layers\.1\.q": 3,
        r"^vision\.layers\.1\.q": 2,
    }
    assert got["rank_pattern"] == got["alpha_pattern"] == ranks
    assert re.fullmatch(got["exclude_modules"], "text.layers.1.q")


def test_a_name_that_ends_alike_needs_no_anchor_at_equal_ranks(tmp_path):
    paths = ["layers/1/q", "vision/layers/1/q"]

    para.save(
        para.Checkpoint(adapters={path: adapter(8, 6, 3) for path in paths}),
        tmp_path / "x",
    )

    assert config_of(tmp_path / "x")["rank_pattern"] == {}


def test_patterns_hold_after_their_keys_were_sorted(tmp_path):
    # PEFT sorts them, when it saves a model that it has loaded.
    adapters = {
        "2/10/q": adapter(8, 6, 2),
        "10/q": adapter(8, 6, 1),
        "z": adapter(8, 6, 3),
    }
    para.save(para.Checkpoint(adapters=adapters), tmp_path / "x")
    path = tmp_path / "x" / "adapter_config.json"
    path.write_text(json.dumps(config_of(tmp_path / "x"), sort_keys=True))

    got = para.load(tmp_path / "x").adapters

    assert {path: x.rank for path, x in got.items()} == {"2/10/q": 2, "10/q": 1, "z": 3}


@every_profile
def test_a_path_with_a_dot_is_refused_and_nothing_is_left(profile, tmp_path):
    adapters = {"layer.0/q": adapter(8, 6, 3)}

    with pytest.raises(ValueError, match="dots in the paths"):
        para.save(para.Checkpoint(adapters=adapters), tmp_path / "x", profile=profile)

    assert list(tmp_path.iterdir()) == []


@every_profile
def test_a_child_with_nothing_left_is_refused_and_the_old_one_stays(profile, tmp_path):
    para.save(para.Checkpoint(adapters={"q": adapter(8, 6, 3)}), tmp_path / "x")
    before = (tmp_path / "x" / "adapter_model.safetensors").read_bytes()
    child = para.compress({"q": adapter(8, 6, 3)}, para.Threshold(1e9))

    with pytest.raises(ValueError, match="Keep at least one rank"):
        para.save(child, tmp_path / "x", profile=profile, overwrite=True)

    assert (tmp_path / "x" / "adapter_model.safetensors").read_bytes() == before
    assert [x.name for x in tmp_path.iterdir()] == ["x"]


# --- Contents preserved by every form ---------------------------------------------


def through(checkpoint, forms, folder):
    """Return the checkpoint after saving it in one form after the other."""
    for i, form in enumerate(forms):
        if form == "orbax":
            para.save(checkpoint, folder / f"{i}", format="orbax")
        else:
            para.save(checkpoint, folder / f"{i}", profile=form)
        checkpoint = para.load(folder / f"{i}")
    return checkpoint


WAYS = [["orbax"], ["ragged"], ["ragged", "orbax"], ["orbax", "ragged"]]
every_way = pytest.mark.parametrize("forms", WAYS, ids=" ".join)


@every_way
@pytest.mark.parametrize("gone", ["layers/10/q", "conv", "vocabulary"])
def test_an_absent_module_is_zeros_of_its_own_kind(gone, forms, tmp_path):
    whole = everything()
    shapes = {"conv": (40, 7), "vocabulary": (11, 6), "layers/10/q": (8, 6)}
    cut = dataclasses.replace(
        whole,
        adapters={path: x for path, x in whole.adapters.items() if path != gone},
        absent=dict(whole.absent) | {gone: shapes[gone]},
    )

    para.save(through(cut, forms, tmp_path), tmp_path / "padded", profile="padded")

    names = {
        "layers/10/q": ("layers.10.q.lora_A.weight", "layers.10.q.lora_B.weight"),
        "conv": ("conv.lora_A.weight", "conv.lora_B.weight"),
        "vocabulary": ("vocabulary.lora_embedding_A", "vocabulary.lora_embedding_B"),
    }[gone]
    weights = weights_of(tmp_path / "padded")
    a, b = (weights[PREFIX + name] for name in names)
    r = 2 if gone == "layers/10/q" else 3
    assert (a.shape, b.shape) == {
        "layers/10/q": ((r, 8), (6, r)),
        "conv": ((r, 5, 2, 4), (7, r, 1, 1)),
        "vocabulary": ((r, 11), (6, r)),
    }[gone]
    assert not a.any()
    assert not b.any()


@every_way
def test_tensors_below_a_base_layer_follow_their_module(forms, tmp_path):
    # PEFT calls a bias `q.base_layer.bias` if `q` is adapted, else `q.bias`.
    weights = linear("q", 8, 6, 3) | linear("v", 8, 6, 3, seed=1)
    weights[f"{PREFIX}q.lora_B.weight"] *= 1e-6
    for name in ("q.base_layer", "v.base_layer", "norm"):
        weights[f"{PREFIX}{name}.bias"] = random(6)
    parent = para.load(write(tmp_path / "x", config(bias="all"), weights))
    child = para.compress(parent, para.Gamma(0.5))
    assert child.absent.keys() == {"q"}

    again = through(child, forms, tmp_path)
    para.save(again, tmp_path / "ragged", profile="ragged")
    para.save(again, tmp_path / "padded", profile="padded")

    for profile, q in (("ragged", "q.bias"), ("padded", "q.base_layer.bias")):
        names = {q, "v.base_layer.bias", "norm.bias"}
        got = weights_of(tmp_path / profile)
        assert {k.removeprefix(PREFIX) for k in got if "lora_" not in k} == names
        want = weights[f"{PREFIX}q.base_layer.bias"]
        np.testing.assert_array_equal(got[PREFIX + q], want)


@every_way
def test_the_account_of_the_compression_survives(forms, tmp_path):
    parent = {"q": adapter(8, 6, 3), "v": adapter(5, 9, 3, seed=1)}
    child = para.compress(parent, para.Gamma(0.5))

    got = through(child, forms, tmp_path)

    assert got.provenance["cuts"][-1].items() >= child.report.summary().items()
    again = para.compress(got, para.Gamma(0.5))
    assert again.provenance["cuts"][-1]["total_rank"] == 3


@every_way
def test_the_rank_that_budgets_count_survives(forms, tmp_path):
    # A PiSSA adapter of rank 3 made plain: rank 6 in the file, 3 in every budget.
    trained, initial = adapter(8, 7, 3), adapter(8, 7, 3, seed=9)
    plain = para.plain({"q": trained}, {"q": initial})

    got = through(plain, forms, tmp_path)

    assert para.compress(got, para.Gamma(1.0)).adapters["q"].rank == 3


@every_way
def test_the_bias_of_an_update_survives(forms, tmp_path):
    weights = linear("q", 8, 6, 3) | linear("v", 8, 6, 3, seed=1)
    biases = {name: random(6, seed=i) for i, name in enumerate("qv")}
    for name, bias in biases.items():
        weights[f"{PREFIX}{name}.lora_B.bias"] = bias
    weights[f"{PREFIX}v.lora_B.weight"] *= 1e-6
    parent = para.load(write(tmp_path / "x", config(lora_bias=True), weights))
    child = para.compress(parent, para.Gamma(0.5))
    assert child.absent.keys() == {"v"}

    para.save(through(child, forms, tmp_path), tmp_path / "child")

    # PEFT multiplies it by the scale: 2 in the parent, 1 in the child.
    got = weights_of(tmp_path / "child")
    for name, bias in biases.items():
        np.testing.assert_array_equal(got[f"{PREFIX}{name}.lora_B.bias"], 2 * bias)
    assert config_of(tmp_path / "child")["lora_bias"] is True
    b = got[f"{PREFIX}v.lora_B.weight"]
    assert not b.any()  # `v` has no update of its own left, but a place for its bias.


def test_names_match_as_the_regular_expression_that_peft_makes_of_them():
    parts = [
        "",
        "a",
        "b",
        "ab",
        "a.b",
        "b.a",
        "a.a.b",
        "ab.b",
        "aab",
        "a1b",
        ".a",
        "a.",
    ]
    keys = [*parts, "a|b", "^a.b", "a.*", "(a|ab)"]

    for key in keys:
        for module in parts:
            want = re.match(rf"(.*\.)?({key})$", module) is not None
            config = {"rank_pattern": {key: 5}, "r": 3}
            assert (peft_config.rank(config, module) == 5) == want, (key, module)


def test_alpha_over_each_rank_has_no_place_for_a_bias(tmp_path):
    """PEFT would divide the bias too, and llama.cpp's script rejects such a tensor."""
    weights = linear("q", 8, 6, 3) | {f"{PREFIX}q.lora_B.bias": random(6)}
    parent = para.load(write(tmp_path / "x", config(lora_bias=True), weights))

    with pytest.raises(ValueError, match=r"'q' has a bias beside its factors.*padded"):
        para.save(parent, tmp_path / "child", profile="per-tensor-alpha")
