"""Check renaming in both directions; NumPy computes the expected updates."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import para_jax as para
from para_jax import names

H = 6  # The size of a head: of three pairs, which is not two of three.
LAYERS = 14  # Even, as blocks of two need; two blocks of six, and two layers more.
DENSE = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
SELF = [f"self_attn.{x}_proj" for x in "qkvo"]
BERT = [
    *(f"attention.self.{x}" for x in ("query", "key", "value")),
    *("attention.output.dense", "intermediate.dense", "output.dense"),
]
VIT = [*(f"attention.{x}_proj" for x in "qkvo"), "mlp.fc1", "mlp.fc2"]
SIGLIP = [
    *(f"self_attn.{x}_proj" for x in ("q", "k", "v", "out")),
    "mlp.fc1",
    "mlp.fc2",
]
GEMMA_TOWER = "vision_encoder/siglip_encoder/Transformer"
DECODER = {"model.layers": [*SELF, *DENSE]}
EXPERTS = {"model.layers": [*SELF, "mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}
PROJECTIONS = {
    **dict.fromkeys(("llama3", "llama3.1", "mistral", "qwen2.5", "qwen3"), DECODER),
    **dict.fromkeys(("gemma", "gemma2", "gemma3"), DECODER),
    **dict.fromkeys(("mixtral", "qwen3-moe"), EXPERTS),
    "gemma3-multimodal": {
        "model.language_model.layers": [*SELF, *DENSE],
        "model.vision_tower.encoder.layers": SIGLIP,
    },
    "bert": {"bert.encoder.layer": BERT},
    "roberta": {"roberta.encoder.layer": BERT},
    "vit": {"vit.layers": VIT},
    "siglip": {
        "vision_model.encoder.layers": SIGLIP,
        "text_model.encoder.layers": SIGLIP,
    },
}
GATED = ["gate_proj", "up_proj", "down_proj"]
TWO = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
LATENT = [
    *(f"self_attn.{x}" for x in ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa")),
    *("self_attn.kv_b_proj", "self_attn.o_proj"),
]
SHARED = [f"mlp.shared_expert.{x}" for x in GATED]
LINEAR = [f"linear_attn.{x}" for x in ("in_proj_qkvz", "in_proj_ba", "out_proj")]
# By layer: the layers of these are of several kinds.
KINDS = {
    "deepseek-v3": lambda i: [
        *LATENT,
        *(DENSE if i < 3 else TWO),
        *([] if i < 3 else [f"mlp.shared_experts.{x}" for x in GATED]),
    ],
    "gpt-oss": lambda i: [*SELF, *TWO],
    **dict.fromkeys(
        ("llama4", "llama4-multimodal"),
        lambda i: [
            *SELF,
            *(x.replace("mlp", "feed_forward") for x in (TWO if i % 2 else DENSE)),
            *(f"feed_forward.shared_expert.{x}" for x in GATED if i % 2),
        ],
    ),
    "qwen3-next": lambda i: [
        *(SELF if i % 4 == 3 else LINEAR),
        *SHARED,
        "mlp.shared_expert_gate",
        *TWO,
    ],
}
SMALL = ["per_layer_input_gate", "per_layer_projection"]
GEMMA4 = {
    "tunix": lambda i: [*SELF, *DENSE, *SMALL],
    "tunix-shared-values": lambda i: [
        *(x for x in SELF if i % 6 != 5 or x != "self_attn.v_proj"),
        *DENSE,
    ],
    "maxtext": lambda i: [*SELF, *DENSE, *SMALL],
    "maxtext-moe": lambda i: [
        *SELF,
        *DENSE,
        "router.proj",
        *("experts.gate_up_proj", "experts.down_proj"),
    ],
}
TOWER = [
    *(f"self_attn.{x}_proj.linear" for x in "qkvo"),
    *(f"mlp.{x}.linear" for x in GATED),
]
PROJECTIONS |= {
    "siglip2": PROJECTIONS["siglip"],
    "dinov3": {"model.layer": [*(f"attention.{x}_proj" for x in "qkvo"), *DENSE]},
}
TABLES = [(model, x) for model, tables in names.MODELS.items() for x in tables]


def adapter(m=5, n=12, r=2, *, stack=(), scale=1.0, seed=0, xp=np):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(*stack, m, r)), rng.normal(size=(*stack, r, n))
    return para.Adapter(a=xp.asarray(a), b=xp.asarray(b), scale=scale)


def checkpoint(**adapters):
    return para.Checkpoint(adapters=adapters)


def at(*paths, **kwargs):
    return para.Checkpoint(
        adapters={x: adapter(seed=k, **kwargs) for k, x in enumerate(paths)}
    )


def delta(x):
    return x.scale * (np.asarray(x.a) @ np.asarray(x.b))


def modules_of(model, ecosystem):
    """Return Hugging Face's names of a model's modules."""
    if model in PROJECTIONS:
        return [
            f"{place}.{i}.{name}"
            for place, inside in PROJECTIONS[model].items()
            for i in range(LAYERS)
            for name in inside
        ]
    gemma4 = model.startswith("gemma4")
    multimodal = model.endswith("multimodal")
    inside = GEMMA4[ecosystem] if gemma4 else KINDS[model]
    base = "model.language_model" if multimodal else "model"
    base = "language_model.model" if model == "llama4-multimodal" else base
    result = [f"{base}.layers.{i}.{x}" for i in range(LAYERS) for x in inside(i)]
    if gemma4 and ecosystem in ("tunix", "maxtext"):
        result.append(f"{base}.per_layer_model_projection")
    if gemma4 and multimodal and ecosystem.startswith("maxtext"):
        start = "model.vision_tower.encoder.layers"
        result += [f"{start}.{i}.{x}" for i in range(LAYERS) for x in TOWER]
    return result


def sizes(path):
    """Return inputs and outputs of a module in a model of two heads, for Keras."""
    outputs = ("o_proj", "attention/output/dense")
    return (2 * H, H) if path.endswith(outputs) else (H, 2 * H)


def every_module(model, ecosystem):
    """Return a model's adapters by Hugging Face's names, experts in stacks of 3."""
    modules = [x.replace(".", "/") for x in modules_of(model, ecosystem)]
    return para.Checkpoint(
        adapters={
            path: adapter(
                *sizes(path), stack=(3,) if "/experts/" in path else (), seed=seed
            )
            for seed, path in enumerate(modules)
        }
    )


@pytest.mark.parametrize(("model", "ecosystem"), TABLES)
def test_every_projection_of_every_layer_goes_there_and_back(model, ecosystem):
    before = every_module(model, ecosystem)
    facts = {"ecosystem": ecosystem, "head_dim": H, "layers": LAYERS}

    there = names.from_hf(before, model, **facts)
    back = names.to_hf(there, model, **facts)

    kernels = sum(x.modules for x in before.adapters.values())
    halves = sum(
        x.modules for path, x in before.adapters.items() if "gate_up" in path
    )  # Gate and up are two kernels in JAX.
    assert sum(x.modules for x in there.adapters.values()) == kernels + halves
    after = back.adapters
    if "experts" in "".join(after):
        after = joined(after, before.adapters)
    assert after.keys() == before.adapters.keys()
    for path, x in before.adapters.items():
        np.testing.assert_allclose(delta(after[path]), delta(x), atol=1e-12)


def joined(adapters, like):
    """Join the members of each stack of experts again."""
    return para.stack(
        adapters,
        {p: x.stack for p, x in like.items() if x.stack and p not in adapters},
    )


@pytest.mark.parametrize("model", names.MODELS)
def test_no_model_is_without_its_list_of_projections(model):
    listed = {*PROJECTIONS, *KINDS, "gemma4", "gemma4-multimodal"}
    assert names.MODELS.keys() == listed
    assert names.tables(model) is names.MODELS[model]


@pytest.mark.parametrize(
    ("model", "path", "name"),
    [
        ("llama3", "layers/31/attn/o_proj", "model.layers.31.self_attn.o_proj"),
        ("qwen2.5", "layers/7/mlp/down_proj", "model.layers.7.mlp.down_proj"),
        ("qwen3", "decoder/layers/mlp/wi_1/5", "model.layers.5.mlp.up_proj"),
        ("qwen3", "decoder/layers_5/mlp/wi_0", "model.layers.5.mlp.gate_proj"),
        (
            "mistral",
            "model/layers/0/self_attn/k_proj",
            "model.layers.0.self_attn.k_proj",
        ),
        ("gemma2", "layers/3/attn/q_einsum", "model.layers.3.self_attn.q_proj"),
        ("gemma2", "decoder/layers/mlp_local/wo/4", "model.layers.8.mlp.down_proj"),
        ("gemma2", "decoder/layers_4/mlp_global/wo", "model.layers.9.mlp.down_proj"),
        ("gemma3", "layers/3/attn/kv_einsum/v", "model.layers.3.self_attn.v_proj"),
        ("gemma3", "layers/3/attn/qkv_einsum/k", "model.layers.3.self_attn.k_proj"),
        ("gemma3", "layer_3/attn/attn_vec_einsum", "model.layers.3.self_attn.o_proj"),
        ("gemma3", "layer_3/mlp/gating_einsum/gate", "model.layers.3.mlp.gate_proj"),
        ("gemma3", "layer_10/mlp/gating_einsum/up", "model.layers.10.mlp.up_proj"),
        ("gemma3", "layer_3/mlp/linear", "model.layers.3.mlp.down_proj"),
        (
            "gemma3",
            "decoder/layers/layers_5/self_attention/query/1",
            "model.layers.11.self_attn.q_proj",
        ),
        (
            "gemma3",
            "decoder/layers_remainder/layers_1/self_attention/out",
            "model.layers.13.self_attn.o_proj",
        ),
        (
            "gemma3-multimodal",
            "layers/3/attn/kv_einsum/k",
            "model.language_model.layers.3.self_attn.k_proj",
        ),
        (
            "gemma3-multimodal",
            "vision_encoder/siglip_encoder/transformer/blocks/26/attn/out_proj",
            "model.vision_tower.encoder.layers.26.self_attn.out_proj",
        ),
        (
            "gemma3-multimodal",
            f"{GEMMA_TOWER}/encoderblock_26/MultiHeadDotProductAttention_0/query",
            "model.vision_tower.encoder.layers.26.self_attn.q_proj",
        ),
        (
            "bert",
            "bert/encoder/layer/11/attention/output/dense",
            "bert.encoder.layer.11.attention.output.dense",
        ),
        (
            "roberta",
            "roberta/encoder/layer/0/output/dense",
            "roberta.encoder.layer.0.output.dense",
        ),
        (
            "vit",
            "vit/encoder/layer/2/attention/output/dense",
            "vit.layers.2.attention.o_proj",
        ),
        (
            "vit",
            "Transformer/encoderblock/MlpBlock_0/Dense_1/2",
            "vit.layers.2.mlp.fc2",
        ),
        (
            "siglip",
            "img/Transformer/encoderblock_2/MlpBlock_0/Dense_0",
            "vision_model.encoder.layers.2.mlp.fc1",
        ),
        (
            "siglip",
            "txt/Encoder_0/encoderblock_2/MultiHeadDotProductAttention_0/out",
            "text_model.encoder.layers.2.self_attn.out_proj",
        ),
        ("gemma4", "layers/5/attn/k_einsum", "model.layers.5.self_attn.k_proj"),
        ("gemma4", "layers/4/attn/kv_einsum/k", "model.layers.4.self_attn.k_proj"),
        (
            "gemma4-multimodal",
            "embedder/per_layer_model_projection",
            "model.language_model.per_layer_model_projection",
        ),
        (
            "deepseek-v3",
            "decoder/dense_layers_2/self_attention/wq_a",
            "model.layers.2.self_attn.q_a_proj",
        ),
        (
            "deepseek-v3",
            "decoder/moe_layers/self_attention/wkv_b/2",
            "model.layers.5.self_attn.kv_b_proj",
        ),
        (
            "gpt-oss",
            "decoder/layers/layers_1/GptOssAttention/key/4",
            "model.layers.9.self_attn.k_proj",
        ),
        (
            "llama4",
            "decoder/layers/layers_3/mlp/wi_0/2",
            "model.layers.11.feed_forward.gate_proj",
        ),
        (
            "qwen3-next",
            "decoder/layers_2/attention/in_proj_ba",
            "model.layers.2.linear_attn.in_proj_ba",
        ),
        ("dinov3", "layer/3/mlp/up_proj", "model.layer.3.mlp.up_proj"),
    ],
)
def test_a_path_is_recognised_among_all_ecosystems(model, path, name):
    got = names.to_hf(at(path), model, layers=LAYERS)

    assert list(got.adapters) == [name.replace(".", "/")]


def test_what_is_around_the_parameters_of_a_program_is_no_part_of_a_name():
    inside = "decoder/layers_1/mlp/wo"

    got = [names.to_hf(at(x + inside), "qwen3") for x in ("params/params/", "base/")]

    assert [list(x.adapters) for x in got] == [["model/layers/1/mlp/down_proj"]] * 2


# The meaning of MaxText's kernels.


def rotated(x, *, interleaved):
    """Return the rotary embedding of `[T, N, H]` at positions 0, 1, ..."""
    t, heads, h = x.shape
    angles = np.arange(t)[:, None, None] * 0.3 ** np.arange(h // 2)
    if interleaved:
        pairs = x.reshape(t, heads, h // 2, 2)
        z = pairs[..., 0] + 1j * pairs[..., 1]
    else:
        z = x[..., : h // 2] + 1j * x[..., h // 2 :]
    return z * np.exp(1j * angles)


def scores(query, key, *, interleaved):
    """Return the score of every query and key, `[T, T]`, for equal numbers of heads."""
    t = len(query)
    q, k = (rotated(x.reshape(t, -1, H), interleaved=interleaved) for x in (query, key))
    return np.einsum("tnh,snh->ts", q, k.conj()).real


@pytest.mark.parametrize(
    ("model", "ecosystem", "interleaved"),
    [
        ("llama3.1", "maxtext", True),
        ("llama3", "maxtext-llama3.1", True),
        ("llama3", "maxtext", False),
        ("mistral", "maxtext", False),
    ],
)
def test_the_attention_is_that_of_maxtext(model, ecosystem, interleaved):
    paths = [f"decoder/layers_0/self_attention/{x}" for x in ("query", "key")]
    parent = at(*paths, n=3 * H)
    x = np.random.default_rng(9).normal(size=(7, 5))

    child = names.to_hf(parent, model, ecosystem=ecosystem, head_dim=H)

    # MaxText does not multiply by 1 / sqrt(H) at run time: its query kernel does.
    want = scores(
        *(x @ delta(parent.adapters[path]) for path in paths), interleaved=interleaved
    )
    found = [f"model/layers/0/self_attn/{name}_proj" for name in "qk"]
    got = scores(
        *(x @ delta(child.adapters[path]) for path in found), interleaved=False
    )
    np.testing.assert_allclose(got / np.sqrt(H), want, rtol=1e-10)


def test_a_query_is_reordered_as_the_evens_and_then_the_odds_of_each_head():
    query = at("decoder/layers_0/self_attention/query", n=3 * H)
    heads = query.adapters["decoder/layers_0/self_attention/query"].b.reshape(2, 3, H)

    got = names.to_hf(query, "llama3.1", head_dim=H)

    x = got.adapters["model/layers/0/self_attn/q_proj"]
    want = np.concatenate([heads[..., ::2], heads[..., 1::2]], axis=-1).reshape(2, -1)
    np.testing.assert_array_equal(x.b, want)
    assert x.scale == np.sqrt(H)


@pytest.mark.parametrize("model", ["qwen2.5", "qwen3", "gemma3"])
def test_where_the_kernels_are_alike_the_arrays_stay_the_same(model):
    before = at(*(f"decoder/layers_0/self_attention/{x}" for x in ("query", "key")))

    got = names.to_hf(before, model)

    pairs = zip(got.adapters.values(), before.adapters.values(), strict=True)
    for x, y in pairs:
        np.testing.assert_array_equal(x.a, y.a)
        np.testing.assert_array_equal(x.b, y.b)
        assert x.scale == y.scale


@pytest.mark.parametrize("model", ["mixtral", "gemma2"])
def test_only_the_query_holds_the_factor_of_the_attention(model):
    form = {"mixtral": "self_attention", "gemma2": "self_attention_local"}[model]
    before = at(*(f"decoder/layers_0/{form}/{x}" for x in ("query", "key", "out")))

    got = names.to_hf(before, model, head_dim=H)

    assert [x.scale for x in got.adapters.values()] == [np.sqrt(H), 1, 1]


def test_an_update_beside_a_divided_kernel_counts_for_more():
    path = "embedder/per_layer_model_projection"
    before = at(path)

    there = names.to_hf(before, "gemma4", ecosystem="tunix")
    back = names.from_hf(there, "gemma4", ecosystem="tunix")

    (x,) = there.adapters.values()
    np.testing.assert_allclose(delta(x), np.sqrt(5) * delta(before.adapters[path]))
    np.testing.assert_allclose(back.adapters[path].scale, 1)
    (x,) = names.to_hf(
        at("decoder/per_layer_embedder/per_layer_model_projection"), "gemma4"
    ).adapters.values()
    assert x.scale == 1


def test_gate_and_up_take_turns_where_the_parameter_has_them_so():
    block = "decoder/layers_0/GptOssMlp"
    paths = [f"{block}/{x}" for x in ("wi_0", "wi_1")]
    before = at(*paths, stack=(3,))

    (x,) = names.to_hf(before, "gpt-oss").adapters.values()

    gate, up = (delta(before.adapters[path]) for path in paths)
    np.testing.assert_allclose(delta(x)[..., ::2], gate)
    np.testing.assert_allclose(delta(x)[..., 1::2], up)


def test_a_parameter_that_peft_turns_gets_the_transposed_update():
    block = "decoder/layers_0/Llama4MoEBlock_0/MoeBlock_0"
    before = at(f"{block}/wo", stack=(3,))

    (x,) = names.to_hf(before, "llama4").adapters.values()

    want = delta(before.adapters[f"{block}/wo"]).swapaxes(-1, -2)
    np.testing.assert_allclose(delta(x), want)


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("gemma4", "layers/4/attn/k_einsum"),
        ("deepseek-v3", "decoder/dense_layers_3/self_attention/wq_a"),
        ("deepseek-v3", "decoder/dense_layers_0/DeepSeekMoeBlock_0/MoeBlock_0/wo"),
    ],
)
def test_a_layer_of_another_kind_has_no_such_module(model, path):
    with pytest.raises(ValueError, match=f"'{path}': no module of '{model}'"):
        names.to_hf(at(path), model)


@pytest.mark.parametrize(
    ("model", "paths"),
    [
        ("gpt-oss", {"decoder/layers_0/GptOssMlp/wi_0": (5, 12)}),
        ("llama4", {"decoder/layers_0/Llama4MoEBlock_0/MoeBlock_0/wi_0": (5, 12)}),
        ("llama4", {"decoder/layers_0/Llama4MoEBlock_0/MoeBlock_0/wo": (12, 5)}),
    ],
)
def test_an_absent_kernel_is_absent_there_in_the_form_of_its_parameter(model, paths):
    (path, shape), *_ = paths.items()
    parent = para.Checkpoint(adapters={}, absent={f"{path}/0": shape})

    there = names.to_hf(parent, model, ecosystem="maxtext")

    ((_, got),) = there.absent.items()
    m, n = shape
    wide = (m, 2 * n) if "wi_0" in path else (m, n)
    assert got == (wide[::-1] if model == "llama4" else wide)


# Stacks.


@pytest.mark.parametrize("xp", [np, jnp])
def test_a_stack_becomes_one_adapter_a_layer(xp):
    stack = adapter(stack=(3,), scale=0.5, xp=xp)

    got = names.to_hf(checkpoint(**{"decoder/layers/mlp/wi_0": stack}), "qwen3")

    assert list(got.adapters) == [f"model/layers/{i}/mlp/gate_proj" for i in range(3)]
    for i, x in enumerate(got.adapters.values()):
        np.testing.assert_array_equal(x.a, stack.a[i])
        np.testing.assert_array_equal(x.b, stack.b[i])
        assert x.scale == 0.5


def test_the_members_of_a_stack_come_back_for_it_to_be_joined():
    stack = adapter(stack=(3,))
    path = "decoder/layers/self_attention/query"

    there = names.to_hf(checkpoint(**{path: stack}), "llama3.1", head_dim=H)
    back = names.from_hf(there, "llama3.1", ecosystem="maxtext-scanned", head_dim=H)

    whole = para.stack(back.adapters, {path: (3,)})[path]
    np.testing.assert_array_equal(whole.b, stack.b)
    np.testing.assert_allclose(whole.scale, 1)


def test_blocks_and_what_is_left_of_them_are_numbered_by_the_number_of_layers():
    before = checkpoint(
        **{
            "decoder/layers/layers_0/mlp/wo": adapter(stack=(2,)),
            "decoder/layers/layers_5/mlp/wo": adapter(stack=(2,)),
            "decoder/layers_remainder/layers_0/mlp/wo": adapter(),
        }
    )

    there = names.to_hf(before, "gemma3", layers=13)
    back = names.from_hf(there, "gemma3", ecosystem="maxtext-scanned", layers=13)

    assert list(there.adapters) == [
        f"model/layers/{i}/mlp/down_proj" for i in (0, 6, 5, 11, 12)
    ]
    assert list(back.adapters) == [
        *(f"decoder/layers/layers_0/mlp/wo/{i}" for i in range(2)),
        *(f"decoder/layers/layers_5/mlp/wo/{i}" for i in range(2)),
        "decoder/layers_remainder/layers_0/mlp/wo",
    ]


def test_a_stack_where_there_is_none_is_refused():
    with pytest.raises(ValueError, match=r"'layers/0/mlp/up_proj'.* no module"):
        names.to_hf(at("layers/0/mlp/up_proj", stack=(2,)), "llama3")


# Experts.


def experts(*, stack, r=(2, 3), xp=np):
    """Return MaxText's gate and up of all layers, of different ranks and scales."""
    paths = [f"decoder/layers/MoeBlock_0/wi_{half}" for half in (0, 1)]
    return {
        path: adapter(r=rank, n=7, stack=stack, scale=1 + half, seed=half, xp=xp)
        for half, (path, rank) in enumerate(zip(paths, r, strict=True))
    }


@pytest.mark.parametrize("xp", [np, jnp])
def test_gate_and_up_of_all_experts_are_one_parameter(xp):
    before = experts(stack=(3, 2), xp=xp)  # Experts come first in MaxText.

    got = names.to_hf(checkpoint(**before), "mixtral")

    paths = [f"model/layers/{i}/mlp/experts/gate_up_proj" for i in range(2)]
    assert list(got.adapters) == paths
    assert got.layers == dict.fromkeys(paths, para.Layer(kind="experts"))
    for i, x in enumerate(got.adapters.values()):
        assert (x.stack, x.rank) == ((3,), 5)
        assert isinstance(x.a, np.ndarray) == (xp is np)
        gate, up = (delta(y)[:, i] for y in before.values())
        np.testing.assert_allclose(
            delta(x), np.concatenate([gate, up], axis=-1), rtol=1e-12
        )


def test_gate_and_up_come_apart_as_they_were():
    before = {
        path: dataclasses.replace(x, scale=2.0)
        for path, x in experts(stack=(3, 2)).items()
    }

    there = names.to_hf(checkpoint(**before), "mixtral")
    back = names.from_hf(there, "mixtral", ecosystem="maxtext-scanned")

    got = para.stack(back.adapters, dict.fromkeys(before, (3, 2)))
    for path, x in before.items():
        np.testing.assert_array_equal(got[path].a, x.a)
        np.testing.assert_array_equal(got[path].b, x.b)
        assert got[path].scale == x.scale


def test_members_of_experts_may_have_ranks_of_their_own():
    stacks = experts(stack=(3, 2))
    before = para.unstack(stacks)
    path = "decoder/layers/MoeBlock_0/wi_0/2/1"  # Expert 2 of layer 1.
    before[path] = adapter(r=1, n=7, seed=8)

    got = names.to_hf(para.Checkpoint(adapters=before), "mixtral")

    one = "model/layers/1/mlp/experts/gate_up_proj/2"
    assert len(got.adapters) == 6
    assert got.adapters[one].rank == 1 + 3
    assert got.layers[one] == para.Layer(kind="experts")
    up = delta(stacks["decoder/layers/MoeBlock_0/wi_1"])[2, 1]
    np.testing.assert_allclose(delta(got.adapters[one])[:, 7:], up)
    np.testing.assert_allclose(delta(got.adapters[one])[:, :7], delta(before[path]))


@pytest.mark.parametrize("half", [0, 1])
def test_a_half_alone_leaves_the_other_as_it_is(half):
    path = f"layers/0/mlp/{('gate', 'up')[half]}_proj"
    x = adapter(n=7, stack=(3,))

    there = names.to_hf(checkpoint(**{path: x}), "qwen3-moe")
    back = names.from_hf(there, "qwen3-moe", ecosystem="tunix")

    got = delta(there.adapters["model/layers/0/mlp/experts/gate_up_proj"])
    np.testing.assert_allclose(got[..., 7 * half : 7 * (half + 1)], delta(x))
    assert not got[..., 7 * (1 - half) : 7 * (2 - half)].any()
    np.testing.assert_array_equal(back.adapters[path].a, x.a)
    other = f"layers/0/mlp/{('up', 'gate')[half]}_proj"
    assert back.absent == {other: (5, 7)}


def test_a_shared_rank_is_in_both_halves():
    x = adapter(n=14, r=3, stack=(2,))
    before = checkpoint(**{"model/layers/0/mlp/experts/gate_up_proj": x})

    got = names.from_hf(before, "qwen3-moe", ecosystem="tunix").adapters

    halves = [delta(got[f"layers/0/mlp/{name}_proj"]) for name in ("gate", "up")]
    np.testing.assert_allclose(np.concatenate(halves, axis=-1), delta(x))


def test_the_ranks_that_budgets_count_are_added():
    gate, up = (
        dataclasses.replace(adapter(n=7, stack=(3,)), nominal=n) for n in (1, None)
    )
    before = {"layers/0/mlp/gate_proj": gate, "layers/0/mlp/up_proj": up}

    got = names.to_hf(checkpoint(**before), "qwen3-moe")

    assert got.adapters["model/layers/0/mlp/experts/gate_up_proj"].nominal == 1 + 2


@pytest.mark.parametrize("change", [{"m": 6}, {"n": 8}, {"stack": (2,)}])
def test_halves_that_differ_in_shape_are_refused(change):
    before = {
        "layers/0/mlp/gate_proj": adapter(n=7, stack=(3,)),
        "layers/0/mlp/up_proj": adapter(**{"n": 7, "stack": (3,), **change}),
    }

    with pytest.raises(ValueError, match=r"experts/gate_up_proj'.* two projections"):
        names.to_hf(checkpoint(**before), "qwen3-moe")


def test_an_odd_number_of_outputs_has_no_halves():
    before = at("model/layers/0/mlp/experts/gate_up_proj", n=7, stack=(2,))

    with pytest.raises(ValueError, match="7 outputs: expected an even number"):
        names.from_hf(before, "qwen3-moe", ecosystem="tunix")


# Biases, absent modules and kinds of layer.


def test_everything_beside_the_adapters_is_renamed_with_them_or_left():
    path, gone = "layers/0/attn/q_proj", "layers/1/attn/q_proj"
    embedding = para.Layer(kind="embedding")
    before = para.Checkpoint(
        adapters={path: adapter()},
        layers={path: embedding},
        biases={path: np.arange(12.0)},
        absent={gone: (5, 12)},
        extra={"classifier.weight": np.ones(3)},
        config={"r": 2},
        provenance={"step": 7},
        residual="PiSSA",
    )

    there = names.to_hf(before, "qwen3")
    back = names.from_hf(there, "qwen3", ecosystem="tunix")

    name, other = (f"model/layers/{i}/self_attn/q_proj" for i in range(2))
    assert there.adapters.keys() == there.biases.keys() == {name}
    assert there.layers == {name: embedding}
    assert there.absent == {other: (5, 12)}
    for x in (there, back):
        assert x.extra is before.extra
        assert (x.config, x.provenance) == (before.config, before.provenance)
        assert x.residual == "PiSSA"
    assert (back.layers, back.absent) == (before.layers, before.absent)
    np.testing.assert_array_equal(back.biases[path], before.biases[path])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_bias_is_changed_as_the_outputs_are(dtype):
    path = "decoder/layers/self_attention/query"
    bias = np.arange(2 * 12).reshape(2, 12).astype(dtype)
    before = para.Checkpoint(adapters={path: adapter(stack=(2,))}, biases={path: bias})

    there = names.to_hf(before, "llama3.1", head_dim=H)
    back = names.from_hf(there, "llama3.1", ecosystem="maxtext-scanned", head_dim=H)

    heads = bias[1].reshape(2, H)
    evens_and_odds = np.concatenate([heads[:, ::2], heads[:, 1::2]], axis=-1)
    want = evens_and_odds.ravel() * np.sqrt(H)
    got = there.biases["model/layers/1/self_attn/q_proj"]
    assert got.dtype == dtype
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_allclose(back.biases[f"{path}/1"], bias[1], rtol=1e-6)


def test_a_bias_of_half_a_parameter_is_refused():
    path = "layers/0/mlp/gate_proj"
    before = para.Checkpoint(
        adapters={path: adapter(stack=(2,))}, biases={path: np.ones((2, 12))}
    )

    with pytest.raises(ValueError, match="gate_proj' has a bias"):
        names.to_hf(before, "qwen3-moe")


@pytest.mark.parametrize("rest", [True, False])
def test_a_half_that_kept_nothing_is_absent_only_if_the_other_is(rest):
    gate, up = "layers/0/mlp/gate_proj/1", "layers/0/mlp/up_proj/1"
    absent = {gate: (5, 7)} if rest else {gate: (5, 7), up: (5, 7)}
    adapters = {up: adapter(n=7)} if rest else {}

    got = names.to_hf(para.Checkpoint(adapters=adapters, absent=absent), "qwen3-moe")

    one = "model/layers/0/mlp/experts/gate_up_proj/1"
    assert got.absent == ({} if rest else {one: (5, 14)})
    assert list(got.adapters) == ([one] if rest else [])


def test_both_halves_of_what_kept_nothing_are_absent():
    before = para.Checkpoint(
        adapters={}, absent={"model/layers/0/mlp/experts/gate_up_proj/1": (5, 14)}
    )

    got = names.from_hf(before, "qwen3-moe", ecosystem="tunix")

    paths = [f"layers/0/mlp/{name}_proj/1" for name in ("gate", "up")]
    assert got.absent == dict.fromkeys(paths, (5, 7))


@pytest.mark.user_defaults
def test_a_compressed_child_is_renamed_too():
    path = "decoder/layers/self_attention/query"
    parent = para.Checkpoint(
        adapters=jax.tree.map(np.float32, {path: adapter(r=4, stack=(3,))})
    )
    child = para.compress(parent, para.Gamma(0.5))

    there = names.to_hf(child, "llama3.1", head_dim=H)
    back = names.from_hf(there, "llama3.1", ecosystem="maxtext-scanned", head_dim=H)

    assert isinstance(there, para.Child)
    assert back.adapters.keys() == child.adapters.keys()
    for name, x in child.adapters.items():
        np.testing.assert_allclose(delta(back.adapters[name]), delta(x), rtol=1e-5)


def test_nothing_gives_nothing():
    assert names.to_hf(para.Checkpoint(adapters={}), "gemma3").adapters == {}


# The user's own tables.


def test_a_table_of_ones_own_goes_both_ways():
    own = {"blocks/{i}/q": "encoder.{i}.query", "head": "classifier.dense"}
    before = at("blocks/11/q", "head")

    there = names.to_hf(before, own)
    back = names.from_hf(there, own)

    assert list(there.adapters) == ["encoder/11/query", "classifier/dense"]
    assert list(back.adapters) == list(before.adapters)


def test_a_table_of_ones_own_may_say_what_differs():
    own = {"q/{i}": names.Module("layer.{i}.q", step=2, offset=1, scaled=True)}

    got = names.to_hf(at("q/3"), own, head_dim=H).adapters

    assert {path: x.scale for path, x in got.items()} == {"layer/7/q": np.sqrt(H)}


def test_a_table_is_read_from_a_file(tmp_path):
    file = tmp_path / "names.toml"
    file.write_text('"q/{i}" = "layer.{i}.q"\n"k/{i}" = "layer.{i}.k"\n')

    got = names.read(file)

    assert got == {"q/{i}": "layer.{i}.q", "k/{i}": "layer.{i}.k"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q = ", "not valid TOML"),
        ("layers/{i}/q = 'x'", "not valid TOML"),
        ("", "it is empty"),
        ("q = 3", "'q' is a int, expected a Hugging Face name"),
        ("[names]\nq = 'x'", "'names' is a dict"),
        ("'q/{i}' = 'x'", "the same on both sides"),
        ("'q/{layer}' = 'x.{layer}'", "the same on both sides"),
        ("'q/{i' = 'x.{i'", "the same on both sides"),
        ("a = 'x.y'\nb = 'x.y'", "'a' and 'b' are both 'x.y'"),
    ],
)
def test_a_file_that_is_no_table_is_refused_by_name(tmp_path, text, message):
    file = tmp_path / "names.toml"
    file.write_text(text)

    with pytest.raises(ValueError, match=rf"names.toml.*{message}"):
        names.read(file)


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"names\.toml"):
        names.read(tmp_path / "names.toml")


# Refusals.


@pytest.mark.parametrize(("name", "hint"), [("lama3", "'llama3'"), ("x", "siglip")])
def test_a_model_that_is_not_known_is_refused(name, hint):
    with pytest.raises(ValueError, match=rf"'{name}' is not known.*{hint}"):
        names.to_hf(at("layers/0/mlp/up_proj"), name)


def test_paths_of_no_table_are_named_with_the_nearest_pattern():
    given = at("layers/0/attn/q_proj", *(f"layers/{i}/attn/qproj" for i in range(5)))

    with pytest.raises(
        ValueError,
        match=r"'layers/0/attn/qproj'.*'layers/2/attn/qproj' and 2 more.*'llama3'.*"
        r"nearest pattern is 'layers/\{i\}/attn/q_proj' \(tunix\)",
    ):
        names.to_hf(given, "llama3")


@pytest.mark.parametrize(
    "path",
    [
        "layers/01/attn/q_proj",
        "layers/-1/attn/q_proj",
        "layers/0/attn/q_proj/0",
        "x/layers/0/attn/q_proj",
        "layers.0.attn.q_proj",
        "layers/*/attn/q_proj",
    ],
)
def test_a_path_fits_as_a_whole_or_not(path):
    with pytest.raises(ValueError, match="no module of 'llama3'"):
        names.to_hf(at(path), "llama3")


def test_two_tables_that_differ_for_the_paths_are_both_named():
    given = at("decoder/layers_0/self_attention/query")

    with pytest.raises(
        ValueError, match=r"'maxtext' and 'maxtext-llama3.1' of 'llama3'"
    ):
        names.to_hf(given, "llama3", head_dim=H)


def test_two_tables_that_agree_for_the_paths_are_as_good_as_one():
    got = names.to_hf(at("decoder/layers_0/self_attention/value"), "llama3")

    assert list(got.adapters) == ["model/layers/0/self_attn/v_proj"]


@pytest.mark.parametrize("ecosystem", [None, "gemma"])
def test_an_ecosystem_is_asked_for_where_there_are_several(ecosystem):
    given = at("model/layers/0/self_attn/v_proj")

    with pytest.raises(
        ValueError,
        match="ecosystem=: flax, keras, keras-file, levanter, levanter-apart, max",
    ):
        names.from_hf(given, "qwen3", ecosystem=ecosystem)


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (names.to_hf, "decoder/layers_0/self_attention/query"),
        (names.from_hf, "model/layers/0/self_attn/q_proj"),
    ],
)
def test_the_size_of_a_head_is_asked_for_where_it_is_needed(change, path):
    with pytest.raises(ValueError, match="Give head_dim="):
        change(at(path), "mistral", ecosystem="maxtext")


@pytest.mark.parametrize("head_dim", [0, 3, 8, -4])
def test_a_size_of_heads_that_cannot_be_is_refused(head_dim):
    given = at("decoder/layers_0/self_attention/query")

    with pytest.raises(ValueError, match="12 outputs, which are not heads of"):
        names.to_hf(given, "mistral", head_dim=head_dim)


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (names.to_hf, "decoder/layers_remainder/layers_0/mlp/wo"),
        (names.from_hf, "model/layers/0/mlp/down_proj"),
    ],
)
def test_the_number_of_layers_is_asked_for_where_it_is_needed(change, path):
    with pytest.raises(ValueError, match="Give layers=, num_hidden_layers"):
        change(at(path), "gemma3", ecosystem="maxtext-scanned")


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (names.to_hf, "decoder/layers_remainder/layers_1/mlp/wo"),
        (names.to_hf, "decoder/layers/layers_1/mlp/wo/2"),
        (names.from_hf, "model/layers/13/mlp/down_proj"),
    ],
)
def test_a_layer_that_the_model_has_not_got_is_refused(change, path):
    with pytest.raises(ValueError, match="layer 13 of a model of 13"):
        change(at(path), "gemma3", ecosystem="maxtext-scanned", layers=13)


def test_a_path_that_fits_two_patterns_is_refused():
    own = {"layers/{i}/q": "layers.{i}.query", "layers/0/q": "first.query"}

    with pytest.raises(ValueError, match=r"first.query, layers.\{i\}.query"):
        names.to_hf(at("layers/0/q"), own)


def test_a_module_that_is_there_twice_is_refused():
    given = checkpoint(
        **{
            "decoder/layers/mlp/wo": adapter(stack=(2,)),
            "decoder/layers/mlp/wo/1": adapter(),
        }
    )

    with pytest.raises(ValueError, match="are both 'model/layers/1/mlp/down_proj'"):
        names.to_hf(given, "qwen3")


def test_experts_of_one_matrix_are_refused():
    """qwix's einsum flattens them: one update, no experts to name."""
    with pytest.raises(ValueError, match="no module of 'qwen3-moe'"):
        names.to_hf(at("layers/0/mlp/gate_proj", m=15), "qwen3-moe")


# A tree under Hugging Face's names, and filled again.


def test_a_scanned_tree_is_cut_as_the_model_of_hugging_face_and_filled_again():
    rng = np.random.default_rng(1)
    query = {
        "kernel": rng.normal(size=(5, 3, 2, H)),
        "kernel_lora_a": rng.normal(size=(5, 3, 2)),
        "kernel_lora_b": rng.normal(size=(2, 3, 2, H)),
    }
    tree = {"params": {"decoder": {"layers": {"self_attention": {"query": query}}}}}
    parent = para.from_tree(tree, alpha=3.0, stack_axis=1)
    facts = {"head_dim": H}

    there = names.to_hf(parent, "llama3.1", **facts)
    child = para.compress(there, para.Gamma(1.0))
    back = names.from_hf(child, "llama3.1", ecosystem="maxtext-scanned", **facts)

    got = para.to_tree(back)["params"]["decoder"]["layers"]["self_attention"]["query"]
    a, b = ([x[f"kernel_lora_{side}"] for x in (got, query)] for side in "ab")
    updates = [np.einsum("ilr,rlnh->ilnh", *x) for x in zip(a, b, strict=True)]
    np.testing.assert_allclose(updates[0], updates[1] * 1.5, rtol=1e-10)
    np.testing.assert_array_equal(got["kernel"], query["kernel"])
