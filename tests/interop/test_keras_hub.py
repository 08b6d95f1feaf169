"""Test keras-hub's backbones and files against transformers and PEFT.

keras-hub itself reads a tiny model of transformers (`from_preset`), so both have equal
weights. LoRA is trained, here random, in Keras; its outputs must be those of PEFT with
the converted adapter.
"""

import warnings

import jax
import keras
import keras_hub
import numpy as np
import peft
import pytest
import torch
import transformers

import para_jax as para
from para_jax import cli, layouts, names

# Keras 3.15.1 lacks NumPy 2's argument `copy`.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ impl:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*train their biases too:UserWarning"),
]
RANK, LAYERS, H = 2, 2, 4
SIZES = {"num_hidden_layers": LAYERS, "vocab_size": 13}
DECODER = {
    **SIZES,
    "hidden_size": 8,
    "intermediate_size": 10,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": H,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
}
ENCODER = {
    **SIZES,
    "hidden_size": 8,
    "intermediate_size": 10,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
}
TOKENS = np.array([[3, 11, 4, 12, 5, 9, 2]])  # 0 and 1 are padding.
TARGETS = [
    *("query", "key", "value", "attention_output"),
    *("ffw_gating", "ffw_gating_2", "ffw_linear"),
    *("feedforward_gate_dense", "feedforward_intermediate_dense"),
    "feedforward_output_dense",
]


def causal(kind, **extra):
    config = getattr(transformers, f"{kind}Config")(**{**DECODER, **extra})
    return transformers.AutoModelForCausalLM.from_config(config)


def sequences(kind, act, **extra):
    config = getattr(transformers, f"{kind}Config")(**ENCODER, hidden_act=act, **extra)
    return getattr(transformers, f"{kind}ForSequenceClassification")(config)


# The backbone of keras-hub, and the model of transformers.
MODELS = {
    "gemma": ("Gemma", lambda: causal("Gemma")),
    "gemma2": ("Gemma", lambda: causal("Gemma2", query_pre_attn_scalar=H)),
    "gemma3": ("Gemma3", lambda: causal("Gemma3Text", query_pre_attn_scalar=H)),
    "llama3": ("Llama3", lambda: causal("Llama")),
    "mistral": (
        "Mistral",
        lambda: causal("Mistral", sliding_window=64, tie_word_embeddings=False),
    ),
    "qwen2.5": ("Qwen", lambda: causal("Qwen2")),
    # keras-hub has an epsilon of its own for the norms of queries and keys.
    "qwen3": ("Qwen3", lambda: causal("Qwen3", rms_norm_eps=1e-5)),
    "bert": ("Bert", lambda: sequences("Bert", "gelu_pytorch_tanh")),
    "roberta": ("Roberta", lambda: sequences("Roberta", "gelu", layer_norm_eps=1e-5)),
}


@pytest.fixture(autouse=True)
def as_keras_adds():
    with jax.numpy_rank_promotion("allow"):
        yield


# The others differ from one of these in norms alone, or in names.
FAST = ("gemma2", "gemma3", "llama3", "qwen2.5", "bert")


@pytest.fixture(
    scope="module",
    params=[
        x if x in FAST else pytest.param(x, marks=pytest.mark.slow) for x in MODELS
    ],
)
def model(request):
    return request.param


@pytest.fixture(scope="module")
def base(model, tmp_path_factory):
    """Return a folder of a tiny model of transformers, and the model."""
    torch.manual_seed(0)
    made = MODELS[model][1]().eval()
    with torch.no_grad():
        for x in made.parameters():
            # keras-hub's converter of Mistral rounds to float16, whatever is stored.
            x.normal_(std=0.3).copy_(x.half())
        if model == "roberta":  # keras-hub has no types of tokens here.
            made.roberta.embeddings.token_type_embeddings.weight.zero_()
    folder = tmp_path_factory.mktemp("base")
    made.save_pretrained(folder)
    return folder, made


def backbone(model, folder, *, rank=None, targets=TARGETS):
    kind = getattr(keras_hub.models, f"{MODELS[model][0]}Backbone")
    made = kind.from_preset(str(folder))
    if rank:
        made.enable_lora(rank, target_layer_names=targets)
    return made


def randomly(made, seed=0):
    random = np.random.default_rng(seed)
    # The biases of the same layers are trainable too, and in no file of LoRA.
    for x in made.trainable_variables:
        if "lora" in x.path:
            x.assign(random.normal(size=x.shape, scale=0.3))
    return made


def hidden(model, made):
    """Return the last hidden states of a backbone."""
    x = {"token_ids": TOKENS, "padding_mask": np.ones_like(TOKENS)}
    if model == "bert":
        x["segment_ids"] = np.zeros_like(TOKENS)
    got = made(x)
    return np.asarray(got["sequence_output"] if isinstance(got, dict) else got)


def states(made):
    with torch.no_grad():
        got = made(torch.tensor(TOKENS), output_hidden_states=True)
    return got.hidden_states[-1].numpy()


def with_peft(made, folder):
    """Return the hidden states of transformers with the adapter in a folder."""
    adapted = peft.PeftModel.from_pretrained(made, str(folder))
    try:
        return states(adapted)
    finally:
        adapted.unload()


def close(got, want):
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


@pytest.fixture
def trained(model, base):
    return randomly(backbone(model, base[0], rank=RANK))


@pytest.mark.layout("Keras", "to PEFT")
def test_a_living_backbone_becomes_an_adapter_of_peft(model, base, trained, tmp_path):
    close(hidden(model, backbone(model, base[0])), states(base[1]))  # Equal weights.
    parent = para.from_tree(layouts.keras_tree(trained))

    para.save(names.to_hf(parent, model), tmp_path / "adapter")

    want = hidden(model, trained)
    assert np.abs(want - states(base[1])).max() > 0.1
    close(with_peft(base[1], tmp_path / "adapter"), want)


def test_a_file_becomes_an_adapter_of_peft(model, base, trained, tmp_path, capsys):
    trained.save_lora_weights(tmp_path / "x.lora.h5")
    words = [
        "convert",
        tmp_path / "x.lora.h5",
        tmp_path / "adapter",
        "--format",
        "peft",
    ]
    words += ["--model", model, "--scale", 1]

    status = cli.main([str(x) for x in words])

    assert status == 0, capsys.readouterr().err
    close(with_peft(base[1], tmp_path / "adapter"), hidden(model, trained))


def test_a_child_in_a_file_is_loaded_by_keras_hub(model, base, trained, tmp_path):
    trained.save_lora_weights(tmp_path / "x.lora.h5")
    parent = para.load(tmp_path / "x.lora.h5", scale=1.0)
    child = para.compress(parent, para.Gamma(0.3))
    para.save(child, tmp_path / "small.lora.h5", format="keras")

    rank = max(x.rank for x in child.adapters.values())
    again = backbone(model, base[0], rank=rank)
    again.load_lora_weights(tmp_path / "small.lora.h5")

    assert len(child.adapters) < len(parent.adapters)  # Others are zeros in the file.
    para.save(names.to_hf(child, model), tmp_path / "adapter")
    close(hidden(model, again), with_peft(base[1], tmp_path / "adapter"))


def test_an_adapter_of_peft_becomes_a_file_of_keras_hub(model, base, tmp_path):
    inside = r".*\.(layers|layer)\.\d+\..*(_proj|query|key|value|dense)"
    config = peft.LoraConfig(r=RANK, lora_alpha=3, target_modules=inside)
    adapted = peft.get_peft_model(base[1], config)
    torch.manual_seed(1)
    for name, x in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(x, std=0.3)
    want = states(adapted)
    adapted.save_pretrained(tmp_path / "peft")
    adapted.unload()
    words = ["convert", tmp_path / "peft", tmp_path / "x.lora.h5", "--format", "keras"]
    words += ["--model", model, "--ecosystem", "keras-file", "--head-dim", H]
    words += ["--adapters-only"]

    assert cli.main([str(x) for x in words]) == 0

    rank = max(x.rank for x in para.load(tmp_path / "x.lora.h5").adapters.values())
    again = backbone(model, base[0], rank=rank)
    again.load_lora_weights(tmp_path / "x.lora.h5")
    close(hidden(model, again), want)


def tiny():
    """Return a backbone without LoRA, of the same weights each time."""
    keras.utils.set_random_seed(0)
    return keras_hub.models.GemmaBackbone(
        vocabulary_size=13,
        num_layers=1,
        num_query_heads=2,
        num_key_value_heads=1,
        hidden_dim=8,
        intermediate_dim=10,
        head_dim=H,
    )


def enabled(made):
    made.enable_lora(RANK)
    return randomly(made)


def test_a_child_in_a_living_backbone_is_saved_by_keras_hub(tmp_path):
    made = enabled(tiny())
    value = made.get_layer("decoder_block_0").attention.value_dense
    value.lora_kernel_b.assign(1e-6 * np.asarray(value.lora_kernel_b))
    child = para.compress(para.from_tree(layouts.keras_tree(made)), para.Gamma(0.5))
    assert len(child.adapters) == 1  # The value kept nothing.

    layouts.keras_assign(made, child, rank=RANK)
    made.save_lora_weights(tmp_path / "padded.lora.h5")
    again = tiny()
    again.load_lora_weights(tmp_path / "padded.lora.h5")
    close(hidden("gemma", again), hidden("gemma", made))

    layouts.keras_assign(made, child)  # Without the value's LoRA.
    made.save_lora_weights(tmp_path / "ragged.lora.h5")
    close(hidden("gemma", made), hidden("gemma", again))
    ragged = para.load(tmp_path / "ragged.lora.h5", scale=1.0)
    assert [(path, x.rank) for path, x in ragged.adapters.items()] == [("lora/10", 2)]


def test_a_file_of_quantised_layers_holds_the_same_factors(tmp_path):
    made = tiny()
    with warnings.catch_warnings(action="ignore"):  # Norms cannot be quantised.
        made.quantize("int8")
    enabled(made).save_lora_weights(tmp_path / "x.lora.h5")

    parent = para.load(tmp_path / "x.lora.h5", scale=1.0)

    living = para.from_tree(layouts.keras_tree(made))
    assert list(names.to_hf(parent, "gemma").adapters) == [
        f"model/layers/0/self_attn/{x}_proj" for x in "vq"
    ]
    for path, number in (("query", 10), ("value", 8)):
        want = living.adapters[f"decoder_block_0/attention/{path}"]
        np.testing.assert_array_equal(parent.adapters[f"lora/{number}"].a, want.a)
        np.testing.assert_array_equal(parent.adapters[f"lora/{number}"].b, want.b)
    child = para.compress(parent, para.Rank(1))
    para.save(child, tmp_path / "small.lora.h5", format="keras")
    again = keras_hub.models.GemmaBackbone.from_config(made.get_config())
    again.load_lora_weights(tmp_path / "small.lora.h5")
    assert again._lora_rank == max(x.rank for x in child.adapters.values())


def test_a_model_that_was_saved_and_loaded_has_an_adapter_of_zeros(tmp_path):
    enabled(tiny()).save_weights(tmp_path / "x.weights.h5")
    loaded = enabled(tiny())
    loaded.load_weights(tmp_path / "x.weights.h5")
    loaded.save_lora_weights(tmp_path / "x.lora.h5")

    with pytest.raises(ValueError, match=r"all of its factors are zero.*Keras merges"):
        para.load(tmp_path / "x.lora.h5", scale=1.0)
