"""Test kohya's files against hand-made ones, under ComfyUI's rule: `alpha / r`, or 1.

ComfyUI and sd-scripts are not run: their rule and names are taken from their sources
(comfy/weight_adapter/lora.py, networks/resize_lora.py).
"""

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

import para_jax as para
from para_jax.formats import verify
from para_jax.formats.kohya import single_file as kohya

pytestmark = pytest.mark.user_defaults

DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16]


def random(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def write(path, tensors, **metadata):
    safetensors.numpy.save_file(tensors, path, metadata=metadata or None)
    return path


def pair(name, m, n, r, *, alpha=None, names=("lora_down", "lora_up"), **options):
    down, up = names
    result = {
        f"{name}.{down}.weight": random(r, m, **options),
        f"{name}.{up}.weight": random(n, r, seed=1, **options),
    }
    if alpha is not None:
        result[f"{name}.alpha"] = np.asarray(alpha, np.float32)
    return result


def comfy(path):
    """Return ComfyUI's delta of each weight `[out, in, *window]`, in float64."""
    found = safetensors.numpy.load_file(path)
    result = {}
    for key in found:
        name, _, end = key.partition(".lora_up")
        if end:
            up = found[key].astype(np.float64)
            down = found[f"{name}.lora_down.weight"].astype(np.float64)
            scale = float(found.get(f"{name}.alpha", up.shape[1])) / down.shape[0]
            flat = scale * up.reshape(len(up), -1) @ down.reshape(len(down), -1)
            result[name] = flat.reshape(len(up), *down.shape[1:])
    return result


def delta(x):
    return x.scale * np.asarray(x.a, np.float64) @ np.asarray(x.b, np.float64)


@pytest.mark.parametrize("names", [("lora_down", "lora_up"), ("lora_A", "lora_B")])
@pytest.mark.parametrize(("alpha", "scale"), [(None, 1.0), (6, 2.0), (1, 1 / 3)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_scale_is_alpha_over_the_rank_or_one(names, alpha, scale, dtype, tmp_path):
    tensors = pair("unet.q", 8, 6, 3, alpha=alpha, names=names, dtype=dtype)

    got = para.load(write(tmp_path / "x.safetensors", tensors)).adapters["unet/q"]

    assert got.scale == scale
    assert got.a.dtype == got.b.dtype == dtype
    np.testing.assert_array_equal(got.a, tensors[f"unet.q.{names[0]}.weight"].T)
    np.testing.assert_array_equal(got.b, tensors[f"unet.q.{names[1]}.weight"].T)


def test_an_alpha_may_have_an_axis(tmp_path):
    tensors = pair("q", 8, 6, 3) | {"q.alpha": np.asarray([6], np.float16)}

    assert (
        para.load(write(tmp_path / "x.safetensors", tensors)).adapters["q"].scale == 2
    )


def test_names_with_underscores_stay_as_they_are(tmp_path):
    name = "lora_unet_down_blocks_0_attn1_to_q"

    got = para.load(write(tmp_path / "x.safetensors", pair(name, 8, 6, 3)))
    para.save(got, tmp_path / "y.safetensors", format="kohya")

    assert got.adapters.keys() == {name}
    assert comfy(tmp_path / "y.safetensors").keys() == {name}


def parent(tmp_path, dtype=np.float32):
    tensors = pair("unet.q", 8, 6, 4, alpha=6, dtype=dtype)
    tensors |= pair("unet.v", 5, 7, 3, alpha=0.5, dtype=dtype)
    conv = random(3, 5, 3, 2, seed=4, dtype=dtype), random(7, 3, 1, 1, dtype=dtype)
    tensors |= dict(zip(["c.lora_down.weight", "c.lora_up.weight"], conv, strict=True))
    tensors |= {"c.alpha": np.asarray(2, np.float32), "unet.norm.diff": random(8)}
    return write(tmp_path / "x.safetensors", tensors, ss_network_dim="4", ss_tag="t")


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_written_comfyui_computes(dtype, tmp_path):
    source = parent(tmp_path, dtype)
    para.save(para.load(source), tmp_path / "y.safetensors", format="kohya")

    got, want = comfy(tmp_path / "y.safetensors"), comfy(source)

    assert got.keys() == want.keys() == {"unet.q", "unet.v", "c"}
    eps = float(ml_dtypes.finfo(dtype).eps)
    for name, x in want.items():
        np.testing.assert_allclose(got[name], x, atol=2 * eps * np.abs(x).max())


def test_a_child_is_the_truncation_in_the_order_of_the_kernel(tmp_path):
    source = parent(tmp_path)
    child = para.compress(para.load(source), para.Rank(1))
    para.save(child, tmp_path / "y.safetensors", format="kohya")

    got, want = comfy(tmp_path / "y.safetensors"), comfy(source)
    svds = {
        name: np.linalg.svd(x.reshape(len(x), -1), full_matrices=False)
        for name, x in want.items()
    }
    least = np.sort(np.concatenate([s for _, s, _ in svds.values()]))[-3]
    for name, (u, s, vt) in svds.items():
        shape = want[name].shape
        cut = ((u * np.where(s >= least, s, 0)) @ vt).reshape(shape)
        np.testing.assert_allclose(got.get(name, 0 * cut), cut, atol=1e-5)


def test_everything_else_in_the_file_is_kept(tmp_path):
    source = parent(tmp_path)
    checkpoint = para.load(source)
    para.save(checkpoint, tmp_path / "y.safetensors", format="kohya")

    with safetensors.safe_open(tmp_path / "y.safetensors", framework="numpy") as file:
        metadata = file.metadata()
        kept = file.get_tensor("unet.norm.diff")
    assert metadata["ss_tag"] == "t"
    # As sd-scripts writes where the ranks differ; all tensors have this alpha.
    assert metadata["ss_network_dim"] == "Dynamic"
    assert metadata["ss_network_alpha"] == "1"
    np.testing.assert_array_equal(kept, checkpoint.extra["unet.norm.diff"], strict=True)
    again = para.load(tmp_path / "y.safetensors")
    assert again.layers == checkpoint.layers
    assert again.layers["c"] == para.Layer(kind="conv", window=(3, 2, 5))


def test_what_a_child_knows_comes_back(tmp_path):
    child = para.compress(para.load(parent(tmp_path)), para.Rank(1))
    para.save(child, tmp_path / "y.safetensors", format="kohya")

    got = para.load(tmp_path / "y.safetensors")

    assert got.absent == child.absent
    assert got.provenance == child.provenance


def test_it_goes_to_peft_and_back(tmp_path):
    checkpoint = para.load(parent(tmp_path))
    with pytest.warns(UserWarning, match="part of the update"):
        para.save(checkpoint, tmp_path / "peft")
    para.save(para.load(tmp_path / "peft"), tmp_path / "y.safetensors", format="kohya")

    got = comfy(tmp_path / "y.safetensors")
    for name, x in comfy(tmp_path / "x.safetensors").items():
        np.testing.assert_allclose(got[name], x, atol=1e-5)


# --- Bad input ----------------------------------------------------------------------

VARIANTS = {
    "hada_w1_a": "LoHa",
    "lokr_w1": "LoKr",
    "dora_scale": "DoRA",
    "lora_mid.weight": "LoCon",
    "oft_blocks": "OFT",
}


@pytest.mark.parametrize("key", VARIANTS)
def test_what_is_no_plain_lora_is_refused_by_name(key, tmp_path):
    tensors = pair("q", 8, 6, 3) | {f"q.{key}": random(3, 3)}

    with pytest.raises(
        ValueError, match=rf"x.safetensors'.*'q\.{key}'.*{VARIANTS[key]}"
    ):
        para.load(write(tmp_path / "x.safetensors", tensors))


def test_a_name_that_only_looks_like_a_variant_is_read(tmp_path):
    tensors = pair("soft_cap.oft_q", 8, 6, 3)

    got = para.load(write(tmp_path / "x.safetensors", tensors))

    assert got.adapters.keys() == {"soft_cap/oft_q"}


BROKEN = {
    "no up": ({"q.lora_down.weight": random(3, 8)}, "'q' has no lora_up"),
    "no down": ({"q.lora_up.weight": random(6, 3)}, "'q' has no lora_down"),
    "alpha alone": ({"q.alpha": random()}, "'q' has no lora_down"),
    "unequal ranks": (
        {"q.lora_down.weight": random(3, 8), "q.lora_up.weight": random(6, 2)},
        "'q': the ranks disagree",
    ),
    "both names": (
        pair("q", 8, 6, 3) | pair("q", 8, 6, 3, names=("lora_A", "lora_B")),
        "'q.lora_.*' is there under another name",
    ),
    "many alphas": (
        pair("q", 8, 6, 3) | {"q.alpha": random(2)},
        "'q.alpha' is .* one finite number",
    ),
    "an infinite alpha": (
        pair("q", 8, 6, 3, alpha=np.inf),
        "'q.alpha' is inf: expected one finite number",
    ),
    "nothing": ({"norm": random(3)}, "no LoRA factors"),
    "a slash": (pair("a/b", 8, 6, 3), "a/b.* has a slash"),
    "not finite": (
        pair("q", 8, 6, 3) | {"q.lora_up.weight": np.full((6, 3), np.nan, "f")},
        "'q' .*NaN",
    ),
    "a file of PEFT": (
        pair("base_model.model.q", 8, 6, 3, names=("lora_A", "lora_B")),
        "adapter_config.json its scales are not known",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused(name, tmp_path):
    tensors, match = BROKEN[name]

    with pytest.raises(ValueError, match=match) as caught:
        para.load(write(tmp_path / "x.safetensors", tensors))
    assert "x.safetensors" in str(caught.value)


def test_its_scales_are_its_own(tmp_path):
    with pytest.raises(ValueError, match=r"holds its own scales: leave out scale=2"):
        para.load(parent(tmp_path), scale=2.0)


UNHELD = {
    "bias": {"biases": {"q": random(6)}},
    "embedding": {"layers": {"q": para.Layer(kind="embedding")}},
}


@pytest.mark.parametrize("name", UNHELD)
def test_what_the_format_cannot_hold_is_refused(name, tmp_path):
    adapters = {"q": para.Adapter(random(8, 3), random(3, 6))}
    checkpoint = para.Checkpoint(adapters=adapters, **UNHELD[name])

    with pytest.raises(ValueError, match=f"'q' has a .*{name}.*no such"):
        para.save(checkpoint, tmp_path / "x.safetensors", format="kohya")
    assert not list(tmp_path.iterdir())


def test_nothing_left_to_write_is_refused(tmp_path):
    with pytest.raises(ValueError, match="No module has an adapter left"):
        para.save({}, tmp_path / "x.safetensors", format="kohya")


# --- The file -----------------------------------------------------------------------


def test_the_name_has_to_be_that_of_a_file(tmp_path):
    with pytest.raises(ValueError, match=r"end it in '\.safetensors'"):
        para.save(para.load(parent(tmp_path)), tmp_path / "y", format="kohya")


def test_a_file_is_replaced_only_if_asked(tmp_path):
    checkpoint = para.load(parent(tmp_path))
    target = tmp_path / "y.safetensors"
    target.write_text("mine")

    with pytest.raises(FileExistsError, match=r"y.safetensors' exists"):
        para.save(checkpoint, target, format="kohya")
    assert target.read_text() == "mine"
    para.save(checkpoint, target, format="kohya", overwrite=True)

    assert para.load(target).adapters.keys() == checkpoint.adapters.keys()
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_is_never_replaced_by_a_file(tmp_path):
    (tmp_path / "y.safetensors").mkdir()

    with pytest.raises(IsADirectoryError, match="is a directory, expected a file"):
        para.save(
            para.load(parent(tmp_path)),
            tmp_path / "y.safetensors",
            format="kohya",
            overwrite=True,
        )


@pytest.mark.parametrize("step", ["write", "check"])
def test_a_failure_leaves_what_was_there(step, tmp_path, monkeypatch):
    checkpoint = para.load(parent(tmp_path))
    target = tmp_path / "y.safetensors"
    para.save(checkpoint, target, format="kohya")
    before = target.read_bytes()

    def fail(*args, **options):
        raise OSError(28, "No space left on device")

    module, name = {"write": (kohya, "save"), "check": (verify, "check_kohya")}[step]
    monkeypatch.setattr(module, name, fail)
    with pytest.raises(OSError, match="No space left"):
        para.save(checkpoint, target, format="kohya", overwrite=True)

    assert target.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


def test_a_file_with_another_alpha_does_not_pass(tmp_path):
    checkpoint = para.load(parent(tmp_path))
    wrote = kohya.save(checkpoint, tmp_path / "y.safetensors")
    found = safetensors.numpy.load_file(tmp_path / "y.safetensors")
    write(tmp_path / "y.safetensors", found | {"c.alpha": np.asarray(6, np.float32)})

    with pytest.raises(ValueError, match=r"'c': .*'kohya' would multiply with 2, not"):
        verify.check_kohya(tmp_path / "y.safetensors", wrote, checkpoint)
