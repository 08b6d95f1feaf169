"""Compare our Gemma 3's outputs and generated text with transformers and PEFT."""

import copy
import dataclasses
import json

import numpy as np
import peft
import pytest
import safetensors
import torch
import transformers

import para_jax as para
from train.models import checkpoint, gemma3, generate, layers

CONFIG = gemma3.Config(
    vocab_size=37,
    hidden_size=24,
    intermediate_size=20,
    num_hidden_layers=5,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=4,
    sliding_window=3,
    global_layers=(1, 4),
    rope_theta=500.0,
    rope_factor=8.0,
    rope_local_base_freq=30.0,
    query_pre_attn_scalar=7,
    rms_norm_eps=1e-5,
)
CAPPED = dataclasses.replace(
    CONFIG, attn_logit_softcapping=0.5, final_logit_softcapping=2.0, rope_factor=1.0
)
IDS = np.random.default_rng(3).integers(1, 37, (2, 11)).astype(np.int32)


def hugging_face(config):
    """Return the transformers configuration of the same shape."""
    values = dataclasses.asdict(config)
    whole = {"rope_type": "default", "rope_theta": values.pop("rope_theta")}
    local = {"rope_type": "default", "rope_theta": values.pop("rope_local_base_freq")}
    if (factor := values.pop("rope_factor")) != 1:
        whole |= {"rope_type": "linear", "factor": factor}
    kinds = ["sliding_attention"] * config.num_hidden_layers
    for i in values.pop("global_layers"):
        kinds[i] = "full_attention"
    return transformers.Gemma3TextConfig(
        **values,
        layer_types=kinds,
        rope_parameters={"full_attention": whole, "sliding_attention": local},
        # Random weights have no meaningful end or padding token.
        eos_token_id=None,
        pad_token_id=0,
        attn_implementation="eager",
    )


def randomised(model):
    """Return the model with weights that make every part of it count."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, x in model.named_parameters():
            scale = 0.4 if "norm" in name else 1.5 / np.sqrt(x.shape[-1])
            # Or else the next token would be the last one again, as often as not.
            scale = 0.2 if "embed" in name else scale
            x.copy_(scale * torch.randn(x.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="module")
def models():
    """Return each model by name, with transformers' config and torch model."""
    return {
        name: randomised(transformers.Gemma3ForCausalLM(hugging_face(config)))
        for name, config in (("plain", CONFIG), ("capped", CAPPED))
    }


@pytest.fixture(scope="module")
def folders(models, tmp_path_factory):
    """Save the models with transformers, in one file and in shards."""
    place = tmp_path_factory.mktemp("gemma3")
    for name, model in models.items():
        model.save_pretrained(place / name)
    models["plain"].save_pretrained(place / "sharded", max_shard_size="10KB")
    assert len(list((place / "sharded").glob("*.safetensors"))) > 2
    return place


@pytest.fixture(scope="module")
def adapted(models, tmp_path_factory):
    """Return a model with a PEFT adapter on all seven projections, and its folder."""
    settings = peft.LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=[x.rpartition("/")[2] for x in gemma3.ADAPTED],
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(6)  # Of the first eight, the one with the most varied answers.
    model = peft.get_peft_model(copy.deepcopy(models["plain"]), settings).eval()
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="module")
def base(folders):
    return gemma3.load(folders / "plain", CONFIG)


def torch_logits(model, ids, **kwargs):
    with torch.no_grad():
        return model(torch.tensor(ids, dtype=torch.long), **kwargs).logits.numpy()


@pytest.mark.parametrize("name", ["plain", "sharded", "capped"])
def test_the_logits_are_those_of_transformers(models, folders, name):
    config = gemma3.read_config(folders / name)
    params = gemma3.load(folders / name, config)

    got = gemma3.Gemma3(config).apply({"params": params}, IDS)

    # transformers 5.23 reads the cap of attention's products, but does not pass it on.
    cap = {"softcap": config.attn_logit_softcapping} if name == "capped" else {}
    want = torch_logits(models["capped" if cap else "plain"], IDS, **cap)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)
    assert want.std() > 0.3


def test_the_configuration_is_read_as_it_was_saved(folders):
    assert gemma3.read_config(folders / "plain") == CONFIG
    assert gemma3.read_config(folders / "capped") == CAPPED


def test_the_shapes_of_4b_are_those_that_transformers_reads(tmp_path):
    # As in Google's file: defaults are left out, and names are the old ones.
    text = {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "sliding_window": 1024,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    }
    written = {"model_type": "gemma3", "text_config": text}
    (tmp_path / "config.json").write_text(json.dumps(written))

    got = gemma3.read_config(tmp_path)

    assert got == gemma3.GEMMA3_4B
    config = transformers.AutoConfig.from_pretrained(tmp_path).get_text_config()
    with torch.device("meta"):
        model = transformers.Gemma3ForCausalLM(config)
    shapes = {name: tuple(x.shape) for name, x in model.named_parameters()}
    for leaf in gemma3.leaves(got).values():
        *_, m = shape = leaf.part
        assert {shapes.pop(name) for name in leaf.names} == {
            (*shape[1:], shape[0]) if leaf.stacked and len(shape) == 2 else (*shape,)
        }, m
    assert not shapes
    kinds = [x == "full_attention" for x in config.layer_types]
    assert np.flatnonzero(kinds).tolist() == list(got.global_layers)
    whole = config.rope_parameters["full_attention"]
    assert (whole["rope_theta"], whole["factor"]) == (got.rope_theta, got.rope_factor)
    local = config.rope_parameters["sliding_attention"]
    assert local["rope_theta"] == got.rope_local_base_freq
    for name in ("query_pre_attn_scalar", "rms_norm_eps", "head_dim"):
        assert getattr(config, name) == getattr(got, name)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_the_text_part_of_a_model_that_sees_is_read(models, tmp_path, prefix):
    vision = {
        "hidden_size": 6,
        "intermediate_size": 5,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 4,
        "patch_size": 2,
    }
    config = transformers.Gemma3Config(
        text_config=hugging_face(CONFIG), vision_config=vision, mm_tokens_per_image=1
    )
    both = transformers.Gemma3ForConditionalGeneration(config)
    both.model.language_model.load_state_dict(models["plain"].model.state_dict())
    # transformers 4 wrote the modules' present names, transformers 5 the old ones.
    both.save_pretrained(tmp_path, save_original_format=prefix.startswith("language"))

    got = gemma3.load(tmp_path, gemma3.read_config(tmp_path))

    with safetensors.safe_open(tmp_path / checkpoint.WEIGHTS, "np") as file:
        assert f"{prefix}norm.weight" in file.keys()  # noqa: SIM118
    logits = gemma3.Gemma3(CONFIG).apply({"params": got}, IDS)
    want = torch_logits(models["plain"], IDS)
    np.testing.assert_allclose(logits, want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("form", ["stacked", "a layer each"])
@pytest.mark.slow
def test_the_logits_with_an_adapter_are_those_of_peft(base, adapted, form):
    adapters = para.load(adapted[1]).adapters
    assert len(adapters) == 7 * 5
    if form == "stacked":
        adapters = layers.stacked(adapters, 5)
        assert set(adapters) == {f"model/layers/{x}" for x in gemma3.ADAPTED}
    lora = para.to_params(adapters)
    layers.check(lora, base)

    got = gemma3.Gemma3(CONFIG).apply({"params": base, "lora": lora}, IDS)

    np.testing.assert_allclose(got, torch_logits(adapted[0], IDS), rtol=0, atol=1e-4)


def test_a_ragged_child_is_the_padded_one_and_that_of_peft(
    models, base, adapted, tmp_path
):
    child = para.compress(para.load(adapted[1]), para.Gamma(0.3))
    assert len({x.rank for x in child.adapters.values()}) > 1
    para.save(child, tmp_path / "child", format="peft")
    model = gemma3.Gemma3(CONFIG)

    ragged, padded = (
        model.apply({"params": base, "lora": para.to_params(adapters)}, IDS)
        for adapters in (child.adapters, layers.stacked(child.adapters, 5))
    )

    np.testing.assert_allclose(ragged, padded, rtol=0, atol=1e-5)
    model = copy.deepcopy(models["plain"])
    child_of_peft = peft.PeftModel.from_pretrained(model, tmp_path / "child").eval()
    want = torch_logits(child_of_peft, IDS)
    np.testing.assert_allclose(ragged, want, rtol=0, atol=1e-4)


PROMPTS = [[5, 9, 2, 30, 7, 7, 1], [11, 3], [8, 21, 36, 4]]
TOKENS = 9  # More than the window, and than some prompts are long.


def torch_generated(model, stop):
    """Return the text transformers generates: it pads prompts on the left."""
    width = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (width - len(x)) + x for x in PROMPTS])
    mask = torch.tensor([[0] * (width - len(x)) + [1] * len(x) for x in PROMPTS])
    got = model.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=TOKENS,
        eos_token_id=stop or None,
        pad_token_id=generate.PAD,
    )[:, width:].numpy()
    return np.pad(got, [(0, 0), (0, TOKENS - got.shape[1])])


@pytest.mark.parametrize("form", ["base", "stacked", "a layer each"])
@pytest.mark.slow
def test_generation_equals_that_of_transformers_token_for_token(
    models, base, adapted, form
):
    model = models["plain"] if form == "base" else adapted[0]
    adapters = {} if form == "base" else para.load(adapted[1]).adapters
    if form == "stacked":
        adapters = layers.stacked(adapters, 5)
    variables = {"params": base, "lora": para.to_params(adapters)}
    prompts = generate.padded(PROMPTS, multiple_of=4)
    free = torch_generated(model, [])
    # One sequence ends early, the others later or never.
    stops = tuple({int(free[1, 4]), int(free[0, 5])})
    assert len(set(free.ravel().tolist())) > 5

    got = generate.greedy(
        gemma3.Gemma3(CONFIG), variables, prompts, tokens=TOKENS, stop=stops
    )

    want = torch_generated(model, list(stops))
    np.testing.assert_array_equal(got.ids, want)
    ends = [
        next((i for i, x in enumerate(row) if x in stops), TOKENS)
        for row in want.tolist()
    ]
    assert got.lengths.tolist() == ends
    assert min(ends) < max(ends)


def test_without_stop_tokens_it_generates_as_many_as_are_asked_for(models, base):
    prompts = generate.padded(PROMPTS)

    got = generate.greedy(
        gemma3.Gemma3(CONFIG), {"params": base}, prompts, tokens=TOKENS
    )

    np.testing.assert_array_equal(got.ids, torch_generated(models["plain"], []))
    assert got.lengths.tolist() == [TOKENS] * len(PROMPTS)
