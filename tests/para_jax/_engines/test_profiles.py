"""Test files of each profile under the engines' scaling rules, simulated in float64.

The rules are those of the engines' sources (see `para_jax/formats/verify.py`),
written here once more from the raw files; `tests/interop` asks PEFT itself.
"""

import dataclasses
import json
import math

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import para_jax as para
from para_jax._engines import profiles
from para_jax.formats import verify
from para_jax.formats.peft import folder as peft

pytestmark = pytest.mark.user_defaults

PREFIX = "base_model.model."
DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16]
RULES = {
    "one alpha, one rank": lambda config, name, rank: (
        config["lora_alpha"] / config["r"]
    ),
    "one alpha, own rank": lambda config, name, rank: config["lora_alpha"] / rank,
    "own alpha, own rank": lambda config, name, rank: (
        config["alpha_pattern"].get(name, config["lora_alpha"])
        / config["rank_pattern"].get(name, config["r"])
    ),
}
RIGHT = {
    "ragged": {"one alpha, one rank", "own alpha, own rank"},
    "padded": set(RULES),
    "uniform-by-type": {"one alpha, one rank", "own alpha, own rank"},
    "per-tensor-alpha": {"one alpha, own rank", "own alpha, own rank"},
}
every_profile = pytest.mark.parametrize("profile", RIGHT)


def adapter(m, n, r, *, scale=1.0, stack=(), seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(*stack, m, r)), rng.normal(size=(*stack, r, n))
    return para.Adapter(a.astype(dtype), b.astype(dtype), scale)


def model(dtype=np.float32):
    """Return ranks 1 to 5 over two types; one module keeps nothing."""
    shapes = {"layers/0/q": (7, 5, 3), "layers/1/q": (7, 5, 5), "layers/2/q": (7, 5, 2)}
    shapes |= {"layers/0/up": (5, 11, 1), "layers/1/up": (5, 11, 2)}
    adapters = {
        path: adapter(*shape, scale=0.75 * (i + 1), seed=i, dtype=dtype)
        for i, (path, shape) in enumerate(shapes.items())
    }
    return para.Checkpoint(adapters=adapters, absent={"layers/2/up": (5, 11)})


def delta(x):
    return x.scale * np.asarray(x.a, np.float64) @ np.asarray(x.b, np.float64)


def factors(folder):
    """Yield name, A and B of each module of a PEFT folder, in float64."""
    found = safetensors.numpy.load_file(folder / "adapter_model.safetensors")
    for key in sorted(x for x in found if x.endswith(".lora_A.weight")):
        name = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
        a, b = found[key], found[f"{PREFIX}{name}.lora_B.weight"]
        yield name, a.astype(np.float64), b.astype(np.float64)


def config_of(folder):
    return json.loads((folder / "adapter_config.json").read_text())


def ranks_of(folder):
    return {name: a.shape[0] for name, a, _ in factors(folder)}


@pytest.mark.parametrize("dtype", DTYPES)
@every_profile
def test_its_engines_compute_the_update(profile, dtype, tmp_path):
    checkpoint = model(dtype)
    para.save(checkpoint, tmp_path / "x", profile=profile)

    config = config_of(tmp_path / "x")
    assert not config["use_rslora"]
    eps = float(ml_dtypes.finfo(dtype).eps)
    for rule in RIGHT[profile]:
        for name, a, b in factors(tmp_path / "x"):
            got = RULES[rule](config, name, a.shape[0]) * (b @ a).T
            want = checkpoint.adapters.get(name.replace(".", "/"))
            want = 0 * got if want is None else delta(want)
            # Each entry of b is rounded at most twice.
            np.testing.assert_allclose(got, want, atol=2 * eps * np.abs(want).max())


@pytest.mark.parametrize("profile", ["ragged", "per-tensor-alpha"])
def test_no_unequal_ranks_are_right_for_every_engine(profile, tmp_path):
    para.save(model(), tmp_path / "x", profile=profile)

    config = config_of(tmp_path / "x")
    (wrong,) = RULES.keys() - RIGHT[profile]
    scales = {
        RULES[wrong](config, name, a.shape[0])
        / RULES["own alpha, own rank"](config, name, a.shape[0])
        for name, a, _ in factors(tmp_path / "x")
    }
    assert scales != {1.0}


WHOLE = {"layers.0.q": 3, "layers.1.q": 5, "layers.2.q": 2}
WHOLE |= {"layers.0.up": 1, "layers.1.up": 2}
RANKS = {
    "ragged": WHOLE,
    "padded": dict.fromkeys([*WHOLE, "layers.2.up"], 5),
    "uniform-by-type": {
        **dict.fromkeys(["layers.0.q", "layers.1.q", "layers.2.q"], 5),
        **dict.fromkeys(["layers.0.up", "layers.1.up", "layers.2.up"], 2),
    },
    "per-tensor-alpha": WHOLE,
}


@every_profile
def test_the_ranks_are_those_of_the_profile(profile, tmp_path):
    para.save(model(), tmp_path / "x", profile=profile)

    assert ranks_of(tmp_path / "x") == RANKS[profile]
    config = config_of(tmp_path / "x")
    assert sorted(config["target_modules"]) == sorted(RANKS[profile])


@every_profile
def test_what_is_saved_is_loaded_and_can_be_saved_in_any_other(profile, tmp_path):
    checkpoint = model()
    para.save(checkpoint, tmp_path / "first", profile=profile)
    for other in RIGHT:
        para.save(para.load(tmp_path / "first"), tmp_path / other, profile=other)

        got = para.load(tmp_path / other)
        for path, x in checkpoint.adapters.items():
            np.testing.assert_allclose(delta(got.adapters[path]), delta(x), atol=1e-5)


def test_a_padded_stack_is_trimmed_before_its_type_is_measured(tmp_path):
    """A scanned child has its stack's rank in every layer, mostly zero columns."""
    parent = {"layers": adapter(7, 5, 3, stack=(3,))}
    parent["layers"].a[1, :, 1:] = 0
    parent["layers"].a[2, :, 2:] = 0

    para.save(parent, tmp_path / "x", profile="per-tensor-alpha")

    assert ranks_of(tmp_path / "x") == {"layers.0": 3, "layers.1": 1, "layers.2": 2}


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("model/layers/11/mlp/up", "model/layers/mlp/up"),
        ("0/q", "q"),
        ("layers/3", "layers"),
        ("layer_7/attn/q", "layer/attn/q"),
        ("blocks_0/Dense_1", "blocks/Dense_1"),
        ("encoder/fc1", "encoder/fc1"),
        ("layers/0/experts/12/w1", "layers/experts/w1"),
        ("conv_2d/q", "conv_2d/q"),
    ],
)
def test_the_type_of_a_module_is_its_path_without_the_layer(path, name):
    assert profiles.module_type(path) == name


def test_alphas_of_one_keep_small_numbers_of_half_precision(tmp_path):
    """Dividing b by the largest rank instead would leave only a few bits of it."""
    x = adapter(7, 5, 2, dtype=np.float16)
    small = para.Adapter(x.a, (x.b * np.float16(2e-4)).astype(np.float16))
    large = adapter(5, 71, 64, dtype=np.float16)

    para.save({"s": small, "l": large}, tmp_path / "x", profile="per-tensor-alpha")

    _, _, b = next(x for x in factors(tmp_path / "x") if x[0] == "s")
    np.testing.assert_array_equal(b.T, 2 * small.b.astype(np.float64))


# --- The check before a file is put in place --------------------------------------


def written(tmp_path, profile="ragged"):
    checkpoint = model()
    tmp_path.mkdir(exist_ok=True)
    return checkpoint, peft.save(checkpoint, tmp_path, profile=profile)


@every_profile
def test_right_files_pass(profile, tmp_path):
    checkpoint, wrote = written(tmp_path, profile)
    twice = {
        path: dataclasses.replace(x, scale=2 * x.scale)
        for path, x in checkpoint.adapters.items()
    }

    verify.check_peft(tmp_path, wrote, checkpoint, profile)

    other = dataclasses.replace(checkpoint, adapters=twice)
    with pytest.raises(ValueError, match="do not hold the update"):
        verify.check_peft(tmp_path, wrote, other, profile)


def change_config(folder, **fields):
    text = json.dumps(config_of(folder) | fields)
    (folder / "adapter_config.json").write_text(text)


def change_tensor(folder, ending, change):
    path = folder / "adapter_model.safetensors"
    found = safetensors.numpy.load_file(path)
    (key,) = (x for x in found if x.endswith(ending))
    found[key] = change(found[key])
    safetensors.numpy.save_file(found, path)


BROKEN = {
    "alpha of all": (
        lambda x: change_config(x, lora_alpha=10),
        "rule 'global' would multiply with 2, not 1|rule 'pattern'",
    ),
    "alpha of one": (
        lambda x: change_config(x, alpha_pattern={}),
        "layers/0/q': an engine that scales by the rule 'pattern' would multiply",
    ),
    "one entry of b": (
        lambda x: change_tensor(x, "1.up.lora_B.weight", lambda b: b + np.eye(11, 2)),
        "'layers/1/up': the files do not hold the update",
    ),
    "one sign of a": (
        lambda x: change_tensor(x, "2.q.lora_A.weight", lambda a: -a),
        "'layers/2/q': the files do not hold the update",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_an_engine_would_read_wrongly_is_refused(name, tmp_path):
    checkpoint, wrote = written(tmp_path)
    change, match = BROKEN[name]
    change(tmp_path)

    with pytest.raises(ValueError, match=match):
        verify.check_peft(tmp_path, wrote, checkpoint, "ragged")


def test_a_module_that_is_not_written_is_missed(tmp_path):
    checkpoint, wrote = written(tmp_path)
    more = {**checkpoint.adapters, "z": adapter(7, 5, 1)}

    with pytest.raises(ValueError, match="'z' is not in the files"):
        verify.check_peft(tmp_path, wrote, para.Checkpoint(adapters=more), "ragged")


def test_nothing_is_left_where_the_check_fails(tmp_path, monkeypatch):
    rule = {"global": lambda config, name, rank: 2.0}
    monkeypatch.setattr(verify, "RULES", verify.RULES | rule)

    with pytest.raises(ValueError, match="rule 'global' would multiply with 2, not 1"):
        para.save(model(), tmp_path / "x")
    assert not list(tmp_path.iterdir())


# --- Fused experts -----------------------------------------------------------------

EXPERTS = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 3,
    "target_modules": ["q"],
    "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
}


def expert_files(folder, **fields):
    """Write the files PEFT writes for two parameters [3, 9, 7] and [3, 7, 4]."""
    rng = np.random.default_rng(0)
    module = f"{PREFIX}layers.0.experts"
    shapes = {
        f"{module}.base_layer.lora_A.weight": (6, 7),
        f"{module}.base_layer.lora_B.weight": (9, 6),
        f"{module}.lora_A.weight": (6, 4),
        f"{module}.lora_B.weight": (7, 6),
        f"{PREFIX}layers.0.q.lora_A.weight": (2, 7),
        f"{PREFIX}layers.0.q.lora_B.weight": (5, 2),
    }
    found = {k: rng.normal(size=x).astype(np.float32) for k, x in shapes.items()}
    folder.mkdir(parents=True)
    safetensors.numpy.save_file(found, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(EXPERTS | fields))
    return found


def test_fused_experts_are_stacks_by_the_name_of_their_parameter(tmp_path):
    found = expert_files(tmp_path / "x")

    got = para.load(tmp_path / "x")

    shapes = {path: (x.a.shape, x.b.shape) for path, x in got.adapters.items()}
    assert shapes == {
        "layers/0/experts/gate_up_proj": ((3, 7, 2), (3, 2, 9)),
        "layers/0/experts/down_proj": ((3, 4, 2), (3, 2, 7)),
        "layers/0/q": ((7, 2), (2, 5)),
    }
    a = found[f"{PREFIX}layers.0.experts.base_layer.lora_A.weight"].reshape(3, 2, 7)
    b = found[f"{PREFIX}layers.0.experts.base_layer.lora_B.weight"].reshape(9, 2, 3)
    want = 1.5 * np.einsum("ore,eri->eio", b, a)  # As in PEFT's `get_delta_weight`.
    gate = delta(got.adapters["layers/0/experts/gate_up_proj"])
    np.testing.assert_allclose(gate, want, atol=1e-5)
    assert got.layers == dict.fromkeys(
        ["layers/0/experts/gate_up_proj", "layers/0/experts/down_proj"],
        para.Layer(kind="experts"),
    )


@every_profile
def test_unequal_experts_are_one_stack_in_a_file(profile, tmp_path):
    expert_files(tmp_path / "x")
    parent = para.load(tmp_path / "x")
    child = para.compress(parent, para.Gamma(0.6))
    experts = {p: x.rank for p, x in child.adapters.items() if "experts" in p}
    assert len(set(experts.values())) > 1

    para.save(child, tmp_path / "child", profile=profile)

    got = para.load(tmp_path / "child").adapters
    assert {x for x in got if "experts" in x} == {x[:-2] for x in experts}
    for path, x in child.adapters.items():
        stack, _, index = path.rpartition("/")
        whole = got[stack] if "experts" in path else got[path]
        found = delta(whole)[int(index)] if "experts" in path else delta(whole)
        np.testing.assert_allclose(found, delta(x), atol=1e-5)


BAD_EXPERTS = {
    "a name too many": (
        {"target_parameters": ["gate_up_proj", "down_proj", "weight"]},
        r"'layers.0.experts' has 2 pairs .*'weight'",
    ),
    "an order that no one knows": (
        {"target_parameters": ["experts.w_in", "experts.w_out"]},
        r"several targeted parameters \['w_in', 'w_out'\]",
    ),
    "a rank of another number of experts": ({"r": 4}, "not factors of rank 4"),
}


@pytest.mark.parametrize("name", BAD_EXPERTS)
def test_experts_that_cannot_be_told_apart_are_refused(name, tmp_path):
    fields, match = BAD_EXPERTS[name]
    expert_files(tmp_path / "x", **fields)

    with pytest.raises(ValueError, match=match):
        para.load(tmp_path / "x")


def test_the_rank_of_an_expert_is_that_of_the_configuration(tmp_path):
    expert_files(tmp_path / "x", rank_pattern={"experts.down_proj": 1})

    got = para.load(tmp_path / "x").adapters["layers/0/experts/down_proj"]

    assert (got.stack, got.rank) == ((6,), 1)
    assert math.isclose(got.scale, 3)


@pytest.mark.parametrize("profile", para.formats.PROFILES)
@pytest.mark.parametrize("zero", [[1], [0, 1]])
def test_an_expert_without_an_update_is_a_zero_of_its_stack(profile, zero, tmp_path):
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(3, 4, 2)), rng.normal(size=(3, 2, 5))
    b[zero] = 0
    path = "layers/0/mlp/experts/down_proj"
    parent = para.Checkpoint(
        adapters={path: para.Adapter(a=a, b=b)},
        layers={path: para.Layer(kind="experts")},
    )

    para.save(parent, tmp_path / "x", profile=profile)

    got = para.load(tmp_path / "x").adapters[path]
    np.testing.assert_allclose(got.scale * (got.a @ got.b), a @ b, atol=1e-12)
