"""Test mlx-lm's folders, by hand-made ones: names, orientation, configuration.

The oracle is mlx-lm's rule in NumPy, `scale * a @ b` with one common scale (its
`tuner/lora.py`, 0.32.2); `tests/engines/test_mlx.py` runs mlx-lm itself.
"""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import para_jax as para
from para_jax import cli
from para_jax.formats import recognise

pytestmark = pytest.mark.user_defaults

Q, UP = "model.layers.2.self_attn.q_proj", "model.layers.10.mlp.up_proj"
R = 3


def random(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def pair(name, m, n, *, seed=0, r=R, dtype=np.float32):
    return {
        f"{name}.lora_a": random(m, r, seed=seed, dtype=dtype),
        f"{name}.lora_b": random(r, n, seed=seed + 1, dtype=dtype),
    }


def both(**options):
    return pair(Q, 8, 7, **options) | pair(UP, 8, 11, seed=5, **options)


def config(**lora):
    return {
        "fine_tune_type": "lora",
        "num_layers": 16,
        "iters": 600,
        "model": "some/model",
        "adapter_path": "adapters",
        "lora_parameters": {"rank": R, "scale": 20.0, "dropout": 0.1} | lora,
    }


def write(folder, tensors, words):
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(tensors, folder / "adapters.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(words))
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "parent", both(), config())


def mlx(folder):
    """Return mlx-lm's delta of each weight, as `[in, out]` in float64."""
    words = json.loads((folder / "adapter_config.json").read_text())["lora_parameters"]
    found = safetensors.numpy.load_file(folder / "adapters.safetensors")
    result = {}
    for name in {x.rpartition(".")[0] for x in found if ".lora_" in x}:
        a = found[f"{name}.lora_a"].astype(np.float64)
        b = found[f"{name}.lora_b"].astype(np.float64)
        assert words["rank"] == a.shape[1 if a.ndim == 3 else -1]
        a, b = (a.mT, b.mT) if a.ndim == 3 else (a, b)
        result[name] = words["scale"] * (a @ b)
    return result


def delta(x):
    return x.scale * (np.asarray(x.a, np.float64) @ np.asarray(x.b, np.float64))


def updates(checkpoint):
    return {p.replace("/", "."): delta(x) for p, x in checkpoint.adapters.items()}


def same(got, want, **limits):
    assert got.keys() == want.keys()
    for name, x in want.items():
        np.testing.assert_allclose(got[name], x, err_msg=name, **limits)


def test_factors_are_in_flaxs_orientation_and_the_scale_is_raw(folder):
    got = para.load(folder)

    assert got.adapters[Q.replace(".", "/")].a.shape == (8, 3)
    assert {x.scale for x in got.adapters.values()} == {20.0}
    same(updates(got), mlx(folder), rtol=1e-12)
    assert recognise(folder) == "mlx"


def test_the_file_of_weights_stands_for_its_folder(folder):
    same(updates(para.load(folder / "adapters.safetensors")), mlx(folder), rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("rank", [1, 2, 4, 6])
def test_a_child_has_one_rank_and_the_update_that_was_cut(dtype, rank, tmp_path):
    parent = para.load(write(tmp_path / "x", both(dtype=dtype), config()))
    child = para.compress(parent, para.Rank(rank / 2))

    para.save(child, tmp_path / "y", format="mlx")

    limits = {"rtol": 1e-6, "atol": 1e-6}
    same(mlx(tmp_path / "y"), updates(child), **limits)
    got = para.load(tmp_path / "y")
    assert {p: x.rank for p, x in got.adapters.items()} == {
        p: x.rank for p, x in child.adapters.items()
    }
    same(updates(got), updates(child), **limits)
    assert {x.a.dtype for x in got.adapters.values()} == {np.dtype(dtype)}
    found = safetensors.numpy.load_file(tmp_path / "y/adapters.safetensors")
    most = max(x.rank for x in child.adapters.values())
    assert {x.shape[1] for name, x in found.items() if "lora_a" in name} == {most}


def test_a_childs_configuration_says_what_its_file_holds(folder, tmp_path):
    child = para.compress(para.load(folder), para.Rank(2))
    para.save(child, tmp_path / "child", format="mlx")

    words = json.loads((tmp_path / "child/adapter_config.json").read_text())
    most = max(x.rank for x in child.adapters.values())
    assert words == {
        "fine_tune_type": "lora",
        "num_layers": 16,
        "iters": 600,
        "model": "some/model",
        "lora_parameters": {
            "rank": most,
            "scale": 1.0,
            "dropout": 0.1,
            "keys": ["self_attn.q_proj", "mlp.up_proj"],
        },
    }


def test_modules_outside_of_layers_have_full_names_in_keys(tmp_path):
    adapters = {
        "lm_head": para.Adapter(random(8, 2), random(2, 5)),
        "model/layers/0/q": para.Adapter(random(8, 2), random(2, 7)),
        "model/layers/1/q": para.Adapter(random(8, 1), random(1, 7), 3.0),
    }
    para.save(adapters, tmp_path / "x", format="mlx")

    words = json.loads((tmp_path / "x/adapter_config.json").read_text())
    assert words["num_layers"] == -1  # All: how many there are is not known.
    assert words["lora_parameters"]["keys"] == ["lm_head", "q"]
    same(mlx(tmp_path / "x"), updates(para.Checkpoint(adapters=adapters)), rtol=1e-6)


def test_a_module_that_keeps_nothing_is_left_out(tmp_path):
    tensors = both() | pair("model.layers.3.mlp.gate_proj", 8, 9, seed=3)
    tensors["model.layers.3.mlp.gate_proj.lora_b"] *= 1e-3
    parent = para.load(write(tmp_path / "x", tensors, config()))
    child = para.compress(parent, para.Rank(1))

    para.save(child, tmp_path / "y", format="mlx")

    assert mlx(tmp_path / "y").keys() == {Q, UP}
    assert para.load(tmp_path / "y").absent == child.absent


def test_an_embedding_is_known_by_its_name(tmp_path):
    tensors = pair("model.embed_tokens", 19, 8) | pair("lm_head", 8, 19, seed=4)
    got = para.load(write(tmp_path / "x", tensors, config()))

    assert {p: x.kind for p, x in got.layers.items()} == {
        "model/embed_tokens": "embedding"
    }
    same(updates(got), mlx(tmp_path / "x"), rtol=1e-12)


EXPERTS = "model.layers.1.mlp.switch_mlp.up_proj"


@pytest.fixture
def mixture(tmp_path):
    tensors = {
        f"{EXPERTS}.lora_a": random(5, R, 8),
        f"{EXPERTS}.lora_b": random(5, 11, R, seed=1),
    }
    return write(tmp_path / "mixture", tensors | both(), config(scale=2.0))


@pytest.mark.parametrize("gamma", [1.0, 0.4, 0.1])
def test_experts_are_stacks_in_torchs_orientation(gamma, mixture, tmp_path):
    parent = para.load(mixture)
    assert parent.adapters[EXPERTS.replace(".", "/")].a.shape == (5, 8, R)
    same(updates(parent), mlx(mixture), rtol=1e-12)

    child = para.compress(parent, para.Gamma(gamma))
    para.save(child, tmp_path / "child", format="mlx")

    got = mlx(tmp_path / "child")
    for i in range(5):
        kept = child.adapters.get(f"{EXPERTS.replace('.', '/')}/{i}")
        want = 0.0 if kept is None else delta(kept)
        found = got.get(EXPERTS)
        np.testing.assert_allclose(0.0 if found is None else found[i], want, atol=1e-5)


@pytest.mark.parametrize("form", ["peft", "kohya"])
def test_experts_have_no_place_in_other_formats(form, mixture, tmp_path):
    target = tmp_path / ("x.safetensors" if form == "kohya" else "x")
    for found in (
        para.load(mixture),
        para.compress(para.load(mixture), para.Gamma(0.9)),
    ):
        with pytest.raises(ValueError, match=r"switch_mlp.*experts"):
            para.save(found, target, format=form)
        assert not target.exists()


@pytest.mark.parametrize(
    ("path", "kind", "shape"),
    [
        ("model/layers/0/mlp/experts/3/gate_proj", "linear", ()),
        ("model/layers/0/mlp/experts/gate_up_proj", "experts", (4,)),
    ],
)
def test_experts_of_peft_have_no_place_here(path, kind, shape, tmp_path):
    one = para.Adapter(random(*shape, 8, 2), random(*shape, 2, 5))
    layers = {path: para.Layer(kind=kind)} if kind == "experts" else {}
    found = para.Checkpoint(
        adapters={path: one}, layers=layers, config={"peft_type": "LORA"}
    )

    with pytest.raises(ValueError, match=rf"'{path}.*experts.*switch_mlp"):
        para.save(found, tmp_path / "x", format="mlx")


def test_a_table_that_may_be_tied_is_warned_of(tmp_path):
    tensors = pair("model.embed_tokens", 19, 8)
    parent = para.load(write(tmp_path / "x", tensors, config()))

    with pytest.warns(UserWarning, match="embed_tokens.*tied"):
        para.save(parent, tmp_path / "peft")
    with pytest.warns(UserWarning, match="embed_tokens.*tied"):
        para.save(para.load(tmp_path / "peft"), tmp_path / "back", format="mlx")

    same(mlx(tmp_path / "back"), mlx(tmp_path / "x"), rtol=1e-5)


@pytest.mark.parametrize("form", ["peft", "kohya", "orbax"])
def test_other_formats_hold_the_same_updates_and_give_them_back(form, folder, tmp_path):
    other = tmp_path / ("x.safetensors" if form == "kohya" else "x")
    para.save(para.load(folder), other, format=form)
    para.save(para.load(other), tmp_path / "back", format="mlx")

    same(updates(para.load(other)), mlx(folder), rtol=1e-5)
    same(mlx(tmp_path / "back"), mlx(folder), rtol=1e-5)
    words = json.loads((tmp_path / "back/adapter_config.json").read_text())
    assert words["num_layers"] == (16 if form == "orbax" else -1)


def test_a_configuration_of_mlx_is_no_header_of_another_file(folder, tmp_path):
    para.save(para.load(folder), tmp_path / "x.safetensors", format="kohya")

    with safetensors.safe_open(tmp_path / "x.safetensors", framework="numpy") as file:
        assert "adapter_path" not in file.metadata()


def old(**lora):
    """Return a configuration from before October 2024."""
    words = {"lora_layers": 4, "use_dora": False, "lora_parameters": {"rank": R}}
    words["lora_parameters"] |= {"dropout": 0.0, "keys": ["self_attn.q_proj"]} | lora
    return words


@pytest.mark.parametrize(
    ("words", "scale"),
    [
        (old(scale=10.0), 10.0),
        (old(scale=10.0, alpha=R), 10.0),
        # By then alpha was an unread default.
        (config(scale=10.0, alpha=16.0), 10.0),
        ({"num_layers": 4, "lora_parameters": {"rank": R, "scale": -2}}, -2.0),
    ],
)
def test_older_configurations_are_read(words, scale, tmp_path):
    parent = para.load(write(tmp_path / "x", both(), words))

    assert {x.scale for x in parent.adapters.values()} == {scale}
    para.save(parent, tmp_path / "y", format="mlx")
    child = json.loads((tmp_path / "y/adapter_config.json").read_text())
    assert child["num_layers"] == words.get("num_layers", 4)
    assert not child.keys() & {"lora_layers", "use_dora"}
    assert "alpha" not in child["lora_parameters"]


REFUSED = {
    "dora": (config() | {"fine_tune_type": "dora"}, {}, "DoRA"),
    "old dora": (old(scale=1.0) | {"use_dora": True}, {}, "DoRA"),
    "full": (config() | {"fine_tune_type": "full"}, {}, "full.*extract"),
    "another": (config() | {"fine_tune_type": "soft"}, {}, "fine_tune_type is 'soft'"),
    "no parameters": ({"num_layers": 4}, {}, "no lora_parameters"),
    "mlx-vlm": ({"rank": 3, "alpha": 6}, {}, "mlx-vlm"),
    "alpha alone": (
        {"num_layers": 1, "lora_parameters": {"rank": R, "alpha": 9}},
        {},
        "no scale.*no alpha.*Add the scale",
    ),
    "alpha and scale": (
        old(scale=10.0, alpha=16.0),
        {},
        "scale 10.0 and alpha 16.0.*June 2024",
    ),
    "nan": (config(scale=float("nan")), {}, "scale is nan"),
    "a word": (config(scale="20"), {}, "scale is '20'"),
    "no rank": (
        {"num_layers": 1, "lora_parameters": {"scale": 2.0}},
        {},
        "rank is missing",
    ),
    "half a rank": (config(rank=2.5), {}, "rank is 2.5"),
    "another rank": (config(rank=5), {}, r"q_proj.*lora_a \[8, 3\].*rank 5"),
    "transposed": (
        config(),
        {f"{Q}.lora_a": random(R, 8), f"{Q}.lora_b": random(7, R)},
        r"lora_a \[3, 8\]",
    ),
    "square and transposed": (
        config(),
        {f"{Q}.lora_a": random(R, 8), f"{Q}.lora_b": random(8, R)},
        r"lora_a \[3, 8\]",
    ),
    "two counts": (
        config(),
        {"x.lora_a": random(5, R, 8), "x.lora_b": random(4, 6, R)},
        r"lora_a \[5, 3, 8\], lora_b \[4, 6, 3\]",
    ),
    "magnitude": (config(), {f"{Q}.m": random(7)}, r"q_proj\.m' makes this a DoRA"),
    "no b": (config(), {"x.lora_a": random(8, R)}, "'x' has no lora_b"),
    "no a": (config(), {"x.lora_b": random(R, 8)}, "'x' has no lora_a"),
    "two dtypes": (
        config(),
        {f"{Q}.lora_a": random(8, R, dtype=np.float16)},
        "float16.*float32.*one dtype",
    ),
    "unknown": (config(), {f"{Q}.lora_c": random(8)}, "kind not known"),
    "slash": (config(), {"a/b.lora_a": random(8, R)}, "slash"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_plain_lora_of_mlx_is_refused(name, tmp_path):
    words, tensors, match = REFUSED[name]
    write(tmp_path / "x", both() | tensors, words)

    with pytest.raises(ValueError, match=match) as caught:
        para.load(tmp_path / "x")
    assert str(tmp_path / "x") in str(caught.value)


def test_no_factors_at_all_are_said_with_what_is_there(tmp_path):
    write(tmp_path / "x", {"score.A": random(3, 2), "score.B": random(2, 3)}, config())

    with pytest.raises(ValueError, match=r"no LoRA factors.*'score\.A'.*mlx-vlm"):
        para.load(tmp_path / "x")


def test_a_missing_configuration_is_named(folder):
    (folder / "adapter_config.json").unlink()

    with pytest.raises(FileNotFoundError, match=r"adapter_config\.json' is missing"):
        para.load(folder)


def test_two_adapters_in_one_folder_are_named(folder):
    (folder / "adapter_model.safetensors").write_bytes(b"")

    with pytest.raises(ValueError, match=r"two adapters.*adapter_model.*adapters"):
        para.load(folder)


@pytest.mark.parametrize("flag", ["alpha", "scale"])
def test_its_scale_is_its_own(flag, folder):
    with pytest.raises(ValueError, match=f"holds its own scales: leave out {flag}"):
        para.load(folder, **{flag: 16})


@pytest.mark.parametrize("dtype", ["float64", ml_dtypes.float8_e4m3fn])
def test_a_dtype_that_mlx_misreads_is_refused(dtype, tmp_path):
    """mlx 0.32.4 reads float8 as whole numbers, and refuses float64."""
    one = para.Adapter(random(8, 2).astype(dtype), random(2, 5).astype(dtype))

    with pytest.raises(ValueError, match=r"'q' is float.*mlx-lm reads.*bfloat16"):
        para.save({"q": one}, tmp_path / "x", format="mlx")
    assert list(tmp_path.iterdir()) == []


def test_what_mlx_has_no_lora_for_is_refused(tmp_path):
    one = {"q": para.Adapter(random(8, 2), random(2, 5))}
    conv = para.Layer(kind="conv", window=(2, 4))
    cases = {
        "bias": para.Checkpoint(adapters=one, biases={"q": random(5)}),
        "kind 'conv'": para.Checkpoint(adapters=one, layers={"q": conv}),
        "not a LoRA factor": para.Checkpoint(
            adapters=one, extra={"score": random(2)}, config={"peft_type": "LORA"}
        ),
        "No module": para.Checkpoint(adapters={}),
    }
    for match, found in cases.items():
        with pytest.raises(ValueError, match=match):
            para.save(found, tmp_path / "x", format="mlx")
        assert list(tmp_path.iterdir()) == []


COMMANDS = {
    "inspect": ([], ""),
    "convert": (["DST"], "y"),
    "compress": (["DST", "--gamma", "0.5"], "y"),
    "sweep": (["DST", "--gamma", "0.5", "0.25"], "y/gamma-0.25"),
    "fleet": (["DST", "--gamma", "0.5"], "y/parent"),
}


@pytest.mark.parametrize("to", [[], ["--format", "mlx"], ["--for", "mlx"]])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_it(command, to, folder, tmp_path, capsys):
    words, place = COMMANDS[command]
    words = [str(tmp_path / "y") if x == "DST" else x for x in words]
    words += to if command != "inspect" else []

    assert cli.main([command, str(folder), *words]) == 0, capsys.readouterr().err
    if place:
        assert mlx(tmp_path / place).keys() <= {Q, UP}


def test_it_is_overwritten_if_asked_alone(folder, tmp_path, capsys):
    words = ["compress", str(folder), str(tmp_path / "y"), "--gamma", "0.5"]

    assert cli.main(words) == 0
    first = mlx(tmp_path / "y")
    assert cli.main([*words[:-1], "0.2"]) == 2
    same(mlx(tmp_path / "y"), first)
    assert cli.main([*words[:-1], "0.2", "--overwrite"]) == 0
    assert mlx(tmp_path / "y").keys() < {Q, UP}


def test_a_parent_of_peft_is_served_by_mlx(tmp_path, capsys):
    adapters = {
        "model/layers/0/q": para.Adapter(random(8, 3), random(3, 7), 0.5),
        "model/layers/1/q": para.Adapter(random(8, 2), random(2, 7), 4.0),
    }
    para.save(adapters, tmp_path / "x")
    words = ["compress", str(tmp_path / "x"), str(tmp_path / "y"), "--gamma", "1"]

    assert cli.main([*words, "--for", "mlx"]) == 0

    assert "mlx_lm" in capsys.readouterr().out
    want = updates(para.Checkpoint(adapters=adapters))
    same(mlx(tmp_path / "y"), want, rtol=1e-4, atol=1e-5)
