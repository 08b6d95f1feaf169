"""Test that single files keep their parent's names, or are refused by a key."""

import ml_dtypes
import numpy as np
import pytest

import para_jax as para
from para_jax.formats import tensor_files as stored
from para_jax.names import from_hf
from tests.para_jax.formats.kohya import single
from tests.para_jax.formats.kohya.single import NAMES, pair, random, read, write

pytestmark = pytest.mark.user_defaults

DTYPES = {"f4": np.float32, "f2": np.float16, "bf": ml_dtypes.bfloat16}
# Modules of one file, as programs name them, and the path of each here.
MODULES = {
    "kohya": {
        "lora_unet_down_blocks_0_attn1_to_q": "lora_unet_down_blocks_0_attn1_to_q",
        "lora_te1_text_model_encoder_layers_0_mlp_fc1": (
            "lora_te1_text_model_encoder_layers_0_mlp_fc1"
        ),
        "lycoris_blocks_3_ff": "lycoris_blocks_3_ff",
        "lora_transformer_single_blocks_1_linear1": (
            "lora_transformer_single_blocks_1_linear1"
        ),
        "diffusion_model.blocks.2.attn.q": "diffusion_model/blocks/2/attn/q",
    },
    "underscore": {
        "lora_unet_mid_block_to_q": "lora_unet_mid_block_to_q",
        "lora_unet_mid_block_to_k": "lora_unet_mid_block_to_k",
    },
    "peft": {
        "transformer.blocks.0.attn1.to_q": "transformer/blocks/0/attn1/to_q",
        "transformer.blocks.0.attn1.to_out.0": "transformer/blocks/0/attn1/to_out/0",
        "text_encoder.text_model.encoder.layers.0.mlp.fc1": (
            "text_encoder/text_model/encoder/layers/0/mlp/fc1"
        ),
    },
    "adapter": {
        "blocks.0.self_attn.q": "blocks/0/self_attn/q",
        "blocks.1.self_attn.q": "blocks/1/self_attn/q",
    },
    "mochi": {"blocks.0.q": "blocks/0/q", "blocks.1.q": "blocks/1/q"},
    "diffusers": {
        "unet.mid.attn1.to_q": "unet/mid/attn1/to_q",
        "unet.mid.attn1.to_out.0": "unet/mid/attn1/to_out/0",
        "text_encoder_2.text_projection": "text_encoder_2/text_projection",
    },
    "text": {
        "text_encoder.layers.0.self_attn.q_proj": (
            "text_encoder/layers/0/self_attn/q_proj"
        ),
        "text_encoder.layers.0.mlp.fc1": "text_encoder/layers/0/mlp/fc1",
    },
    "processor": {
        "unet.mid.attn1.processor.to_q": "unet/mid/attn1/to_q",
        "unet.mid.attn1.processor.to_out": "unet/mid/attn1/to_out/0",
        "text_encoder.layers.0.self_attn.to_q": (
            "text_encoder/layers/0/self_attn/q_proj"
        ),
        "text_encoder.layers.0.self_attn.to_out": (
            "text_encoder/layers/0/self_attn/out_proj"
        ),
    },
}
ALPHAS = {"none": None, "one": 6, "many": (6, 0.5, 3, 2, 5)}


def parent(tmp_path, names, alphas=None, dtype=np.float32, rank=4):
    tensors = {}
    for i, module in enumerate(MODULES[names]):
        alpha = alphas[i] if isinstance(alphas, tuple) else alphas
        shape = 8 + i, 5 + 2 * i, rank
        options = {"names": names, "alpha": alpha, "seed": i, "dtype": dtype}
        tensors |= pair(module, *shape, **options)
    return write(tmp_path / "x.safetensors", tensors)


def to(word, source, folder):
    """Write the named form; return it and the ranks it keeps."""
    target, loaded = folder / "y.safetensors", para.load(source)
    every = sum(x.rank for x in loaded.adapters.values())
    half = para.Gamma(0.5)
    if word == "convert":
        para.save(loaded, target, format="kohya")
        return target, every
    if word == "compress":
        para.save(para.compress(loaded, half), target, format="kohya")
    elif word == "sweep":
        *_, child = para.family(loaded, [para.Gamma(0.25), half])
        para.save(child, target, format="kohya")
    else:
        para.save(para.compress(loaded, half), folder / "z", format=word)
        para.save(para.load(folder / "z"), target, format="kohya")
    return target, every // 2


@pytest.mark.parametrize("word", ["convert", "compress", "sweep", "peft", "orbax"])
@pytest.mark.parametrize("alphas", ALPHAS)
@pytest.mark.parametrize("names", NAMES)
def test_names_are_kept_and_every_reader_finds_one_scale(names, alphas, word, tmp_path):
    source = parent(tmp_path, names, ALPHAS[alphas])

    target, keep = to(word, source, tmp_path)

    (old, _), (new, _) = read(source), read(target)
    assert new.keys() <= old.keys()  # In particular, no new `.alpha`.
    left = {name for name in new if not name.endswith(".alpha")}
    if word == "convert":
        assert new.keys() == old.keys()
    assert len(left) % 2 == 0
    want = single.comfy(source)
    want = single.cut(want, keep)
    single.same(single.comfy(target), want)
    single.same(single.diffusers(target), want)
    given = {float(x) for name, x in new.items() if name.endswith(".alpha")}
    assert len(given) == (alphas != "none")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("names", NAMES)
def test_dtypes_are_kept(names, dtype, tmp_path):
    source = parent(tmp_path, names, (6, 0.5, 3, 2, 5), DTYPES[dtype])
    child = para.compress(para.load(source), para.Gamma(0.5))

    para.save(child, tmp_path / "y.safetensors", format="kohya")

    new, _ = read(tmp_path / "y.safetensors")
    kept = {x.dtype for name, x in new.items() if not name.endswith(".alpha")}
    assert kept == {np.dtype(DTYPES[dtype])}
    eps = 8 * float(ml_dtypes.finfo(DTYPES[dtype]).eps)
    every = sum(x.rank for x in para.load(source).adapters.values())
    want = single.cut(single.comfy(source), every // 2)
    single.same(single.comfy(tmp_path / "y.safetensors"), want, eps)


@pytest.mark.parametrize("names", NAMES)
def test_paths_are_the_modules_of_the_model(names, tmp_path):
    got = para.load(parent(tmp_path, names))

    assert got.adapters.keys() == {*MODULES[names].values()}
    assert got.spelling.keys() == got.adapters.keys()


def test_equal_ranks_are_written_bit_for_bit(tmp_path):
    """Their alpha is the rank, so `b` is not multiplied by it."""
    source = parent(tmp_path, "kohya", 4, ml_dtypes.bfloat16)

    para.save(para.load(source), tmp_path / "y.safetensors", format="kohya")

    (old, _), (new, _) = read(source), read(tmp_path / "y.safetensors")
    for name, x in old.items():
        assert new[name].tobytes() == x.tobytes(), name


def test_eight_bits_are_not_multiplied_by_unequal_ranks(tmp_path):
    tensors = {}
    for name, r in (("p", 3), ("q", 5)):
        tensors |= pair(name, 8, 6, r, alpha=r, dtype=ml_dtypes.float8_e4m3fn)
    stored.write(tmp_path / "x.safetensors", tensors, {})

    found = para.load(tmp_path / "x.safetensors")
    para.save(found, tmp_path / "y.safetensors", format="kohya")

    new, _ = stored.read(tmp_path / "y.safetensors")
    assert new.keys() == {name for name in tensors if not name.endswith("alpha")}
    for name, x in new.items():
        assert x.tobytes() == tensors[name].tobytes(), name


def test_other_formats_become_kohyas_names_with_one_alpha(tmp_path):
    adapters = {
        "blocks/0/q": para.Adapter(random(8, 3), random(3, 5), 0.5),
        "blocks/1/q": para.Adapter(random(7, 2), random(2, 6), 3.0),
    }
    para.save(adapters, tmp_path / "x")
    para.save(para.load(tmp_path / "x"), tmp_path / "y.safetensors", format="kohya")

    new, metadata = read(tmp_path / "y.safetensors")
    assert new["blocks.0.q.alpha"] == new["blocks.1.q.alpha"] == 1
    assert metadata["ss_network_alpha"] == "1"
    want = {
        path.replace("/", "."): x.scale * (x.a.astype(float) @ x.b).T
        for path, x in adapters.items()
    }
    single.same(single.comfy(tmp_path / "y.safetensors"), want)
    single.same(single.diffusers(tmp_path / "y.safetensors"), want)


def test_a_larger_alpha_keeps_float16_in_range(tmp_path):
    """The rank times `b` would be 120,000, above 65,504."""
    b = random(3, 5, dtype=np.float16)
    b[0, 0] = 40_000
    adapters = {
        "p": para.Adapter(random(8, 3, dtype=np.float16), b),
        "q": para.Adapter(*(random(*x, dtype=np.float16) for x in ((8, 2), (2, 5)))),
    }

    para.save(adapters, tmp_path / "y.safetensors", format="kohya")

    new, _ = read(tmp_path / "y.safetensors")
    assert new["p.alpha"] == new["q.alpha"] == 2
    assert np.isfinite(new["p.lora_up.weight"]).all()
    want = {p: (x.a.astype(float) @ x.b).T for p, x in adapters.items()}
    single.same(single.comfy(tmp_path / "y.safetensors"), want, 2e-3)


def test_names_are_left_behind_when_modules_are_renamed(tmp_path):
    module = "model.layers.3.self_attn.q_proj"
    tensors = pair(module, 8, 6, 3, names="diffusers")
    found = para.load(write(tmp_path / "x.safetensors", tensors))

    renamed = from_hf(found, "gemma3", ecosystem="tunix")

    assert found.spelling
    assert not renamed.spelling


def test_what_lies_beside_factors_keeps_its_name_and_its_bits(tmp_path):
    beside = {
        "transformer.q.diff_b": random(6),
        "transformer.norm.diff": random(8),
        "transformer.norm_q.scale": random(3),
        "transformer.q.reshape_weight": np.asarray([6, 8]),
        "lora_unet_k.reshape_weight": np.asarray([6, 8]),
        "lora_unet_q.bias_indices": np.zeros((2, 3), np.int64),
        "lora_unet_q.bias_values": random(3),
        "transformer.norm.w_norm": random(8),
        "transformer.norm.set_weight": random(8),
        "bundle_emb.lora_me.clip_l": random(2, 8),
    }
    tensors = pair("transformer.q", 8, 6, 3, names="peft") | beside
    child = para.compress(
        para.load(write(tmp_path / "x.safetensors", tensors)), para.Rank(1)
    )

    para.save(child, tmp_path / "y.safetensors", format="kohya")

    new, _ = read(tmp_path / "y.safetensors")
    assert new.keys() == tensors.keys()
    for name, x in beside.items():
        np.testing.assert_array_equal(new[name], x, strict=True)


@pytest.mark.parametrize(
    ("form", "reader"), [("peft", "PEFT"), ("mlx", "mlx-lm"), ("orbax", "")]
)
@pytest.mark.parametrize(
    "name", ["transformer.q.diff_b", "norm.diff", "bundle_emb.a.x"]
)
def test_a_part_of_an_update_that_a_reader_does_not_know_is_told(
    name, form, reader, tmp_path, recwarn
):
    """PEFT loads the modules in `modules_to_save` and `bias`, mlx-lm factors alone."""
    tensors = pair("transformer.q", 8, 6, 3, names="peft") | {name: random(6)}
    found = para.load(write(tmp_path / "x.safetensors", tensors))

    para.save(found, tmp_path / "y", format=form)

    told = [str(x.message) for x in recwarn if x.category is UserWarning]
    assert len(told) == bool(reader)
    if reader:
        assert told[0].startswith(f"'{name}' is part of the update (1 such tensors)")
        assert f"{reader} would leave it out" in told[0]


@pytest.mark.parametrize("names", ["peft", "adapter"])
@pytest.mark.parametrize("scale", [1, 0.5])
def test_a_bias_belongs_to_the_update(names, scale, tmp_path):
    """PEFT adds `scale * (lora_B(lora_A(x)) + bias)`."""
    bias = NAMES[names][1].format("q").replace("weight", "bias")
    tensors = pair("q", 8, 6, 3, names=names) | pair("k", 8, 6, 3, names=names, seed=3)
    tensors |= {bias: random(6, seed=8)}
    mark = {} if scale == 1 else {"lora_alpha": "1.5", "rank": "3"}
    found = para.load(write(tmp_path / "x.safetensors", tensors, **mark))
    np.testing.assert_allclose(found.biases["q"], scale * tensors[bias])

    para.save(
        para.compress(found, para.Rank(1)), tmp_path / "y.safetensors", format="kohya"
    )

    new, metadata = read(tmp_path / "y.safetensors")
    np.testing.assert_allclose(new[bias], scale * tensors[bias])
    assert not [name for name in new if "alpha" in name]
    assert not {"lora_alpha", "rank"} & metadata.keys()


def test_a_mixed_file_is_cut_as_a_whole(tmp_path):
    tensors = pair("a.q", 8, 6, 4, names="adapter") | pair("a.k", 8, 6, 4, names="peft")
    source = write(tmp_path / "x.safetensors", tensors)

    child = para.compress(para.load(source), para.Gamma(0.5))
    para.save(child, tmp_path / "y.safetensors", format="kohya")

    assert child.adapters.keys() == {"a/q", "a/k"}
    want = single.cut(single.comfy(source), 4)
    single.same(single.comfy(tmp_path / "y.safetensors"), want)


def test_both_pairs_of_an_attention_processor_are_modules(tmp_path):
    """XLabs numbers a pair for the image and one for the text of FLUX.1."""
    block = "double_blocks.0.processor"
    tensors, want = {}, {}
    for i, module in enumerate(["qkv_lora1", "qkv_lora2", "proj_lora1", "proj_lora2"]):
        down, up = random(4, 8, seed=i), random(7 + i, 4, seed=i + 9)
        tensors[f"{block}.{module}.down.weight"] = down
        tensors[f"{block}.{module}.up.weight"] = up
        want[module] = up.astype(np.float64) @ down
    source = write(tmp_path / "x.safetensors", tensors)

    child = para.compress(para.load(source), para.Gamma(0.5))
    para.save(child, tmp_path / "y.safetensors", format="kohya")

    got = read(tmp_path / "y.safetensors")[0]
    assert got.keys() <= tensors.keys()
    pairs = {
        module: got[f"{block}.{module}.up.weight"].astype(np.float64)
        @ got[f"{block}.{module}.down.weight"]
        for module in want
        if f"{block}.{module}.up.weight" in got
    }
    single.same(pairs, single.cut(want, 8))


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_fsdp_wrapped_module"])
@pytest.mark.parametrize("place", [0, 1, 3, 5])
def test_names_of_wrappers_are_left_out(wrapper, place, tmp_path):
    """PyTorch's wrappers are not parts of a model: readers do not find such modules."""
    module = "unet.mid.attn1.to_q"
    parts = module.split(".")
    wrapped = ".".join([*parts[:place], wrapper, *parts[place:]])
    plain = pair(module, 8, 6, 3, names="peft", alpha=6)
    source = write(
        tmp_path / "x.safetensors",
        {name.replace(module, wrapped): x for name, x in plain.items()},
    )

    found = para.load(source)
    para.save(found, tmp_path / "y.safetensors", format="kohya")

    assert found.adapters.keys() == {"unet/mid/attn1/to_q"}
    assert read(tmp_path / "y.safetensors")[0].keys() == plain.keys()
    want = single.comfy(write(tmp_path / "z.safetensors", plain))
    single.same(single.comfy(tmp_path / "y.safetensors"), want)


@pytest.mark.parametrize("part", ["transformer", "unet", "text_encoder_2"])
def test_the_prefix_of_peft_is_no_module_of_a_component(part, tmp_path):
    """Readers do not find SimpleTuner's prefix of a component wrapped by PEFT."""
    plain = pair(f"{part}.blocks.0.to_q", 8, 6, 3, names="diffusers")
    source = write(
        tmp_path / "x.safetensors",
        {
            name.replace(".blocks", ".base_model.model.blocks"): plain[name]
            for name in plain
        },
    )

    found = para.load(source)
    para.save(found, tmp_path / "y.safetensors", format="kohya")

    assert found.adapters.keys() == {f"{part}/blocks/0/to_q"}
    assert read(tmp_path / "y.safetensors")[0].keys() == plain.keys()


ODD = {
    "two adapters": (
        pair("q", 8, 6, 3, names="adapter") | {"k.lora_A.other.weight": random(3, 8)},
        r"several adapters: 'default', 'other'",
    ),
    "two names of a module": (
        pair("base_model.model.q", 8, 6, 3, names="peft")
        | pair("q", 8, 6, 3, names="peft"),
        "'q.*' is there under another name too, 'base_model.model.q",
    ),
    "two names of a pair": (
        {"q.lora_A.weight": random(3, 8), "q.lora_up.weight": random(6, 3)},
        r"'q.lora_A.weight' and 'q.lora_up.weight' are named in two ways",
    ),
    "an embedding": (
        pair("q", 8, 6, 3) | {"e.lora_embedding_A": random(3, 9)},
        r"'e.lora_embedding_A' is a LoRA tensor of a kind not known here",
    ),
    "mlx's case": (
        pair("q", 8, 6, 3) | {"k.lora_a": random(8, 3)},
        r"'k.lora_a' is a LoRA tensor of a kind not known here",
    ),
    "a bias of the down factor": (
        pair("q", 8, 6, 3) | {"q.lora_down.bias": random(3)},
        r"'q.lora_down.bias' is a LoRA tensor",
    ),
    "an alpha of another place": (
        pair("q", 8, 6, 3, names="diffusers") | {"q.lora.alpha": random()},
        r"'q.lora.alpha' is a LoRA tensor",
    ),
    "an alpha of all": (
        pair("q", 8, 6, 3) | {"alpha": random()},
        r"'alpha' belongs to no module.*Say it with alpha=",
    ),
    "a scale of all": (
        pair("q", 8, 6, 3) | {"lora_scale": random()},
        r"'lora_scale' belongs to no module.*Say it with alpha=",
    ),
    "a scale beside": (
        pair("q", 8, 6, 3) | {"q.scale": random()},
        r"'q.scale' may be a scale of the factors",
    ),
    "a DoRA of PEFT": (
        pair("q", 8, 6, 3, names="adapter")
        | {"q.lora_magnitude_vector.default.weight": random(6)},
        "makes this a DoRA adapter",
    ),
    # LyCORIS has no prefix for these two.
    "GLoRA": (
        {f"lora_unet_q.{x}.weight": random(4, 4) for x in ("a1", "a2", "b1", "b2")}
        | {"lora_unet_q.alpha": random()},
        r"'lora_unet_q.a1.weight' makes this a GLoRA adapter",
    ),
    "(IA)^3": (
        {"lora_unet_q.weight": random(6), "lora_unet_q.on_input": np.array(False)},
        r"'lora_unet_q.on_input' makes this a \(IA\)\^3 adapter",
    ),
    "Control-LoRA": (
        {
            "input_blocks.0.0.down": random(3, 8),
            "input_blocks.0.0.up": random(6, 3),
            "lora_controlnet": random(1),
        },
        "'lora_controlnet' makes this a Control-LoRA",
    ),
    # diffusers, where an adapter was loaded once more under another name.
    "a number": (
        pair("q", 8, 6, 3, names="peft") | {"k.lora_A_1.default_0.weight": random(3)},
        r"'k.lora_A_1.default_0.weight' is a LoRA tensor of a kind not known here",
    ),
    "whole differences": (
        {"lora_unet_q.diff": random(6, 8), "lora_unet_q.diff_b": random(6)},
        "no LoRA factors.* whole differences",
    ),
    "a DoRA of ai-toolkit": (
        pair("q", 8, 6, 3, names="peft") | {"q.magnitude": random(6)},
        r"'q.magnitude' makes this a DoRA adapter",
    ),
    "an unknown tensor of a module": (
        pair("q", 8, 6, 3) | {"q.gate": random(3)},
        (
            "'q.gate' is not known here, and may change the meaning of the factors "
            "beside it"
        ),
    ),
    "AdaLoRA": (pair("q", 8, 6, 3) | {"q.lora_E": random(3, 1)}, "AdaLoRA"),
    "whole numbers": (
        {
            "q.lora_down.weight": np.ones((3, 8), np.int8),
            "q.lora_up.weight": random(6, 3),
        },
        r"'q.lora_down.weight' in x.safetensors is int8, .*dequantise",
    ),
    "four bits": (
        pair("q", 8, 6, 3)
        | {"q.lora_down.weight.quant_state.bitsandbytes__nf4": np.ones(5, np.uint8)},
        r"quant_state.* is what quantised factors are scaled by",
    ),
    "nothing there": (
        {"q.lora_down.weight": random(0), "q.lora_up.weight": random(0)},
        r"'q.lora_down.weight' is empty, .*\[0\].*ZeRO-3",
    ),
    "an alpha of 0": (pair("q", 8, 6, 3, alpha=0), r"'q.alpha' is 0, which sd-scripts"),
    "no factors": (
        {"a.weight": random(3), "b.weight": random(3), "c": random(3), "d": random(3)},
        r"no LoRA factors \(4 tensors: 'a.weight', 'b.weight', 'c' and 1 more\)",
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_not_understood_is_refused_by_its_key(name, tmp_path):
    tensors, match = ODD[name]

    with pytest.raises(ValueError, match=match) as caught:
        para.load(write(tmp_path / "x.safetensors", tensors))
    assert "x.safetensors" in str(caught.value)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize(
    "dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.float64]
)
def test_an_alpha_is_one_number_of_any_dtype(shape, dtype, tmp_path):
    tensors = pair("q", 8, 6, 3) | {"q.alpha": np.full(shape, 6, dtype)}

    found = para.load(write(tmp_path / "x.safetensors", tensors))

    assert found.adapters["q"].scale == 2


def test_an_alpha_may_have_an_underscore_where_the_factors_have(tmp_path):
    tensors = pair("lora_unet_q", 8, 6, 3, names="underscore")
    tensors["lora_unet_q_alpha"] = np.float32(6)
    source = write(tmp_path / "x.safetensors", tensors)

    para.save(para.load(source), tmp_path / "y.safetensors", format="kohya")

    assert para.load(source).adapters["lora_unet_q"].scale == 2
    assert read(tmp_path / "y.safetensors")[0].keys() == tensors.keys()
