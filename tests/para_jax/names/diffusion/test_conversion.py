"""Check the names of image models by hand, and their kernels by NumPy.

`tests/engines/test_diffusers_names.py` compares with diffusers' models and converters.
"""

import numpy as np
import pytest

import para_jax as para
from para_jax._adapters.checkpoint import Spelling
from para_jax.names import diffusion

pytestmark = pytest.mark.user_defaults


def adapter(m, n, r=2, *, seed=0, scale=0.5, a=None):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(m, r)).astype(np.float32) if a is None else a
    return para.Adapter(a, rng.normal(size=(r, n)).astype(np.float32), scale)


def delta(x):
    return x.scale * np.asarray(x.a, np.float64) @ np.asarray(x.b, np.float64)


def of(*paths, m=8, n=8):
    return para.Checkpoint(
        adapters={x: adapter(m, n, seed=i) for i, x in enumerate(paths)}
    )


# Names in files of sd-scripts, musubi-tuner and ai-toolkit, and those of diffusers.
BLOCK = "transformer_blocks/1/attn2/to_out/0"
WORDS = {
    # A UNet in diffusers' blocks.
    "lora_unet_down_blocks_1_attentions_0_transformer_blocks_1_attn2_to_out_0": (
        f"unet/down_blocks/1/attentions/0/{BLOCK}"
    ),
    "lora_unet_up_blocks_2_attentions_2_proj_in": (
        "unet/up_blocks/2/attentions/2/proj_in"
    ),
    "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj": (
        "unet/mid_block/attentions/0/transformer_blocks/0/ff/net/0/proj"
    ),
    "lora_unet_down_blocks_0_resnets_1_conv_shortcut": (
        "unet/down_blocks/0/resnets/1/conv_shortcut"
    ),
    "lora_unet_down_blocks_0_resnets_1_time_emb_proj": (
        "unet/down_blocks/0/resnets/1/time_emb_proj"
    ),
    "lora_unet_up_blocks_1_upsamplers_0_conv": "unet/up_blocks/1/upsamplers/0/conv",
    "lora_unet_conv_in": "unet/conv_in",
    # SDXL in the blocks of the LDM code.
    "lora_unet_input_blocks_4_1_transformer_blocks_1_attn2_to_out_0": (
        f"unet/down_blocks/1/attentions/0/{BLOCK}"
    ),
    "lora_unet_input_blocks_8_1_proj_out": "unet/down_blocks/2/attentions/1/proj_out",
    "lora_unet_middle_block_1_transformer_blocks_9_attn1_to_q": (
        "unet/mid_block/attentions/0/transformer_blocks/9/attn1/to_q"
    ),
    "lora_unet_output_blocks_5_1_transformer_blocks_1_ff_net_2": (
        "unet/up_blocks/1/attentions/2/transformer_blocks/1/ff/net/2"
    ),
    "lora_unet_input_blocks_3_0_op": "unet/down_blocks/0/downsamplers/0/conv",
    "lora_unet_output_blocks_2_2_conv": "unet/up_blocks/0/upsamplers/0/conv",
    "lora_unet_output_blocks_8_0_skip_connection": (
        "unet/up_blocks/2/resnets/2/conv_shortcut"
    ),
    "lora_unet_middle_block_2_in_layers_2": "unet/mid_block/resnets/1/conv1",
    "lora_unet_input_blocks_7_0_emb_layers_1": (
        "unet/down_blocks/2/resnets/0/time_emb_proj"
    ),
    "lora_unet_label_emb_0_2": "unet/add_embedding/linear_2",
    # FLUX.1.
    "lora_unet_double_blocks_18_txt_attn_proj": (
        "transformer/transformer_blocks/18/attn/to_add_out"
    ),
    "lora_unet_single_blocks_37_modulation_lin": (
        "transformer/single_transformer_blocks/37/norm/linear"
    ),
    "lora_unet_guidance_in_out_layer": (
        "transformer/time_text_embed/guidance_embedder/linear_2"
    ),
    "diffusion_model/double_blocks/3/img_mlp/2": (
        "transformer/transformer_blocks/3/ff/net/2"
    ),
    "double_blocks/3/txt_mod/lin": (
        "transformer/transformer_blocks/3/norm1_context/linear"
    ),
    # Stable Diffusion 3.
    "lora_unet_joint_blocks_23_x_block_attn2_proj": (
        "transformer/transformer_blocks/23/attn2/to_out/0"
    ),
    "lora_unet_joint_blocks_0_context_block_mlp_fc1": (
        "transformer/transformer_blocks/0/ff_context/net/0/proj"
    ),
    "lora_unet_y_embedder_mlp_0": "transformer/time_text_embed/text_embedder/linear_1",
    # Wan.
    "lora_unet_blocks_39_self_attn_q": "transformer/blocks/39/attn1/to_q",
    "lora_unet__blocks_0_cross_attn_k": "transformer/blocks/0/attn2/to_k",
    "diffusion_model/blocks/0/cross_attn/v_img": (
        "transformer/blocks/0/attn2/add_v_proj"
    ),
    "lora_unet_blocks_3_ffn_0": "transformer/blocks/3/ffn/net/0/proj",
    "lora_unet_head_head": "transformer/proj_out",
    # Text encoders.
    "lora_te_text_model_encoder_layers_11_self_attn_out_proj": (
        "text_encoder/text_model/encoder/layers/11/self_attn/out_proj"
    ),
    "lora_te1_text_model_encoder_layers_0_mlp_fc1": (
        "text_encoder/text_model/encoder/layers/0/mlp/fc1"
    ),
    "lora_te2_text_model_encoder_layers_31_self_attn_q_proj": (
        "text_encoder_2/text_model/encoder/layers/31/self_attn/q_proj"
    ),
}


@pytest.mark.parametrize("name", WORDS)
def test_a_name_has_one_meaning_in_diffusers(name):
    m, n = 8, 8
    parent = of(name, m=m, n=n)

    child = diffusion.convert(parent, "diffusers")

    assert list(child.adapters) == [WORDS[name]]
    np.testing.assert_array_equal(
        delta(child.adapters[WORDS[name]]), delta(parent.adapters[name])
    )
    dotted = WORDS[name].replace("/", ".")
    assert child.spelling[WORDS[name]] == Spelling(
        a=f"{dotted}.lora_A.weight", b=f"{dotted}.lora_B.weight"
    )


# A module unique to the family, so that the way back is unambiguous.
ONLY = {"flux": "lora_unet_guidance_in_in_layer", "sd3": "lora_unet_x_embedder_proj"}


def beside(name):
    """Return a name to identify the family of an ambiguous one."""
    other = ONLY["sd3" if "joint" in name else "flux"]
    return {other: adapter(3, 7)}


FUSED = {
    "lora_unet_double_blocks_0_img_attn_qkv": (
        (8, 24),
        {f"transformer/transformer_blocks/0/attn/to_{x}": 8 for x in "qkv"},
    ),
    "lora_unet_double_blocks_0_txt_attn_qkv": (
        (8, 24),
        {f"transformer/transformer_blocks/0/attn/add_{x}_proj": 8 for x in "qkv"},
    ),
    "lora_unet_single_blocks_3_linear1": (
        (8, 56),
        {f"transformer/single_transformer_blocks/3/attn/to_{x}": 8 for x in "qkv"}
        | {"transformer/single_transformer_blocks/3/proj_mlp": 32},
    ),
    "lora_unet_joint_blocks_0_x_block_attn2_qkv": (
        (7, 15),
        {f"transformer/transformer_blocks/0/attn2/to_{x}": 5 for x in "qkv"},
    ),
}


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("kept", [True, False])
def test_a_fused_kernel_is_split_by_its_outputs(name, kept):
    (m, n), parts = FUSED[name]
    whole = adapter(m, n)
    adapters = beside(name) | ({name: whole} if kept else {})
    absent = {} if kept else {name: (m, n)}
    biases = {name: np.arange(n, dtype=np.float32)} if kept else {}
    parent = para.Checkpoint(adapters=adapters, absent=absent, biases=biases)

    child = diffusion.convert(parent, "diffusers")

    start = 0
    for path, width in parts.items():
        if kept:
            x = child.adapters[path]
            assert x.a is whole.a  # So the file joins again at the same rank.
            np.testing.assert_array_equal(
                delta(x), delta(whole)[:, start : start + width]
            )
            np.testing.assert_array_equal(
                child.biases[path], np.arange(start, start + width)
            )
        else:
            assert child.absent[path] == (m, width)
        start += width
    assert len({*child.adapters, *child.absent}) == len(parts) + 1
    back = diffusion.convert(child, "kohya")
    assert {x: y.rank for x, y in back.adapters.items()} == dict.fromkeys(adapters, 2)
    assert back.absent == absent
    if kept:
        np.testing.assert_array_equal(delta(back.adapters[name]), delta(whole))
        np.testing.assert_array_equal(back.biases[name], biases[name])


TURNED = {
    "lora_unet_final_layer_adaLN_modulation_1": (
        (5, 10),
        "transformer/norm_out/linear",
    ),
    # The last block of Stable Diffusion 3 has one shift and one scale, others three.
    "lora_unet_joint_blocks_2_context_block_adaLN_modulation_1": (
        (5, 10),
        "transformer/transformer_blocks/2/norm1_context/linear",
    ),
}


@pytest.mark.parametrize("name", TURNED)
def test_shift_and_scale_of_the_last_layer_change_places(name):
    (m, n), path = TURNED[name]
    parent = para.Checkpoint(adapters={name: adapter(m, n)} | beside(name))

    child = diffusion.convert(parent, "diffusers")

    want = np.roll(delta(parent.adapters[name]), n // 2, axis=1)
    np.testing.assert_array_equal(delta(child.adapters[path]), want)
    back = diffusion.convert(child, "kohya")
    np.testing.assert_array_equal(
        delta(back.adapters[name]), delta(parent.adapters[name])
    )


def test_three_shifts_and_scales_stay_where_they_are():
    name = "lora_unet_joint_blocks_0_context_block_adaLN_modulation_1"
    parent = para.Checkpoint(adapters={name: adapter(5, 30)})

    child = diffusion.convert(parent, "diffusers")

    (x,) = child.adapters.values()
    np.testing.assert_array_equal(delta(x), delta(parent.adapters[name]))


def test_parts_of_their_own_are_joined_at_the_sum_of_their_ranks():
    block = "transformer/single_transformer_blocks/0"
    parts = {
        f"{block}/attn/to_q": adapter(4, 4, 1, seed=1),
        f"{block}/attn/to_v": adapter(4, 4, 2, seed=2, scale=2.0),
    }

    child = diffusion.convert(para.Checkpoint(adapters=parts), "kohya")

    (path,) = child.adapters
    assert path == "lora_unet_single_blocks_0_linear1"
    want = np.zeros((4, 28))
    want[:, :4], want[:, 8:12] = map(delta, parts.values())
    np.testing.assert_allclose(delta(child.adapters[path]), want, rtol=1e-6)
    assert child.adapters[path].rank == 3
    back = diffusion.convert(child, "diffusers")
    ranks = {x: y.rank for x, y in back.adapters.items() if delta(y).any()}
    assert ranks == {x: y.rank for x, y in parts.items()}


def test_a_convolution_stays_one():
    layer = para.Layer(kind="conv", window=(3, 3, 2))
    name = "lora_unet_input_blocks_1_0_in_layers_2"
    parent = para.Checkpoint(adapters={name: adapter(18, 4)}, layers={name: layer})

    child = diffusion.convert(parent, "module")

    assert child.layers == {"down_blocks/0/resnets/0/conv1": layer}


# --- Where ComfyUI looks --------------------------------------------------------------

COMFYUI = {
    "unet/mid_block/attentions/0/proj_in": "lora_unet_mid_block_attentions_0_proj_in",
    "mid_block/attentions/0/proj_in": "lora_unet_mid_block_attentions_0_proj_in",
    "transformer_blocks/0/attn/to_q": "transformer/transformer_blocks/0/attn/to_q",
    "transformer/blocks/0/attn1/to_q": "diffusion_model/blocks/0/self_attn/q",
    "blocks/0/self_attn/q": "diffusion_model/blocks/0/self_attn/q",
    "text_encoder/text_model/encoder/layers/0/mlp/fc1": (
        "lora_te1_text_model_encoder_layers_0_mlp_fc1"
    ),
    "text_encoder/encoder/layers/0/mlp/fc1": (
        "lora_te1_text_model_encoder_layers_0_mlp_fc1"
    ),
    "text_encoder_3/encoder/block/0/layer/0/SelfAttention/q": (
        "lora_te3_encoder_block_0_layer_0_SelfAttention_q"
    ),
}


@pytest.mark.parametrize("name", COMFYUI)
def test_comfyui_gets_a_name_that_it_has(name):
    assert list(diffusion.convert(of(name), "comfyui").adapters) == [COMFYUI[name]]


# --- Ambiguous names ------------------------------------------------------------------

REFUSED = {
    (
        "diffusers",
        "lora_unet_some_block_0_attn",
    ): "'lora_unet_some_block_0_attn' is not a module",
    # HunyuanVideo's other names are those of FLUX.1.
    (
        "diffusers",
        "lora_unet_double_blocks_0_img_mlp_fc1",
    ): "though others are FLUX.1's",
    # ... and FLUX.2's, of other widths.
    ("diffusers", "lora_unet_single_blocks_0_linear1"): r"8 inputs and 8 outputs",
    ("diffusers", "text_model/encoder/layers/0/mlp/fc1"): "is not a module of a model",
    (
        "diffusers",
        "lora_te3_encoder_block_0_layer_0_SelfAttention_q",
    ): "FLUX.1.*text_enc",
    ("kohya", "transformer/transformer_blocks/0/attn/to_q"): "FLUX.1 and Stable Diff",
    ("kohya", "unet/mid_block/attentions/0/proj_in"): "Diffusion 1.x and 2.x and SDXL",
    ("kohya", "text_encoder/text_model/encoder/layers/0/mlp/fc1"): "lora_te1_ in SDXL",
    ("module", "text_encoder_2/text_model/encoder/layers/0/mlp/fc1"): "text encoder",
}


@pytest.mark.parametrize(("target", "name"), REFUSED)
def test_what_names_do_not_decide_is_refused_by_the_name(target, name):
    other = "lora_unet_double_blocks_0_img_attn_proj"
    names = [name, other] if "img_mlp" in name else [name]

    with pytest.raises(ValueError, match=REFUSED[target, name]):
        diffusion.convert(of(*names), target)


def test_names_that_are_one_module_are_refused():
    two = "lora_unet_blocks_0_self_attn_q", "diffusion_model/blocks/0/self_attn/q"

    with pytest.raises(ValueError, match="are both 'transformer/blocks/0/attn1/to_q'"):
        diffusion.convert(of(*two), "diffusers")


def test_tensors_that_are_no_factors_have_no_other_name():
    extra = {"double_blocks.0.img_attn.norm.query_norm.scale": np.ones(3)}
    parent = para.Checkpoint(
        adapters=of("double_blocks/0/img_attn/proj").adapters, extra=extra
    )

    with pytest.raises(ValueError, match=r"query_norm.scale' is not.*adapters_only"):
        diffusion.convert(parent, "diffusers")


# --- Schemes --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "scheme"),
    [
        ("model/layers/0/self_attn/q_proj", "hf"),
        ("transformer/h/0/attn/c_attn", "hf"),
        ("transformer/blocks/0/attn/Wqkv", "hf"),
        ("encoder/block/0/layer/0/SelfAttention/q", "hf"),
        ("text_model/encoder/layers/0/mlp/fc1", "hf"),
        ("proj_out", "hf"),  # Whisper's last layer, without a block beside it.
        ("unet/any/model", "diffusers"),
        ("transformer/transformer_blocks/0/img_mod/1", "diffusers"),
        ("text_encoder/text_model/encoder/layers/0/mlp/fc1", "diffusers"),
        ("transformer_blocks/0/attn/to_q", "module"),
        ("some/blocks/3/to_out/0", "module"),
        ("blocks/0/self_attn/q", "original"),
        ("model/diffusion_model/any", "comfyui"),
        ("lora_te2_any", "kohya"),
        ("lycoris_any", "kohya"),
    ],
)
def test_a_path_follows_a_scheme(path, scheme):
    assert diffusion.read([path])[path].scheme == scheme


def test_bare_names_follow_those_of_blocks():
    names = ["proj_out", "blocks/0/attn1/to_q"]

    assert {x.scheme for x in diffusion.read(names).values()} == {"module"}
