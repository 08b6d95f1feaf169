import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import para_jax as para
from para_jax._adapters.params import unnest
from train.models import bicubic, layers, siglip

LAYERS = 2
CONFIG = siglip.Config(
    hidden_size=6,
    intermediate_size=10,
    num_hidden_layers=LAYERS,
    num_attention_heads=2,
    num_channels=1,
    image_size=9,
    patch_size=3,
    layer_norm_eps=1e-5,
)
FILE = {**dataclasses.asdict(CONFIG), "model_type": "siglip_vision_model"}


@pytest.fixture
def images():
    return np.random.default_rng(0).normal(size=(4, 9, 9, 1)).astype(np.float32)


@pytest.fixture
def params(images):
    model = siglip.SiglipClassifier(CONFIG, 5)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    generator = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: generator.normal(size=x.shape).astype(np.float32) / 2, shapes
    )


@pytest.fixture
def ragged():
    """Adapters of ranks 1 to 3; the last layer's last module has none."""
    generator = np.random.default_rng(1)
    result = {}
    for place, name in enumerate(siglip.ADAPTED):
        m, n = 10 if name == "mlp/fc2" else 6, 10 if name == "mlp/fc1" else 6
        for layer in range(LAYERS):
            r = 1 + (place + layer) % 3
            a, b = generator.normal(size=(m, r)), generator.normal(size=(r, n))
            adapter = para.Adapter(a.astype(np.float32), b.astype(np.float32))
            result[f"{siglip.STACK}/{layer}/{name}"] = adapter
    del result[f"{siglip.STACK}/{LAYERS - 1}/mlp/fc2"]
    return result


def logits(params, images, adapters=None, **fields):
    lora = para.to_params(adapters or {})
    layers.check(lora, params)
    model = siglip.SiglipClassifier(CONFIG, 5, **fields)
    return model.apply({"params": params, "lora": lora}, images)


def test_the_paths_are_those_of_transformers_with_one_stack(params):
    d, m, L = 6, 10, LAYERS
    attention = {f"{x}_proj": (d, d) for x in ("q", "k", "v", "out")}
    mlp = {"mlp/fc1": (d, m), "mlp/fc2": (m, d)}
    linear = {f"self_attn/{name}": shape for name, shape in attention.items()} | mlp
    stack = {f"{name}/kernel": (L, *shape) for name, shape in linear.items()}
    stack |= {f"{name}/bias": (L, shape[1]) for name, shape in linear.items()}
    stack |= {f"layer_norm{i}/{x}": (L, d) for i in (1, 2) for x in ("scale", "bias")}
    head = {f"attention/{name}": shape for name, shape in attention.items()} | mlp
    want = {f"encoder/layers/{name}": shape for name, shape in stack.items()}
    want |= {f"head/{name}/kernel": shape for name, shape in head.items()}
    want |= {f"head/{name}/bias": shape[1:] for name, shape in head.items()}
    norms = ("head/layernorm", "post_layernorm")
    want |= {f"{name}/{x}": (d,) for name in norms for x in ("scale", "bias")}
    want |= {
        "head/probe": (1, 1, d),
        "embeddings/patch_embedding/kernel": (3, 3, 1, d),
        "embeddings/patch_embedding/bias": (d,),
        "embeddings/position_embedding/embedding": (9, d),
    }

    got = {path: x.shape for path, x in unnest(params["vision_model"]).items()}

    assert got == want
    assert {path: x.shape for path, x in siglip.leaves(CONFIG).items()} == want
    kernels = {f"vision_model/{path}" for path in want}
    assert {f"{siglip.STACK}/{x}/kernel" for x in siglip.ADAPTED} <= kernels


@pytest.mark.slow
def test_ragged_adapters_layer_by_layer_equal_padded_ones_in_a_scan(
    params, images, ragged
):
    padded = layers.stacked(ragged, LAYERS, path=siglip.STACK)

    got = logits(params, images, ragged)

    np.testing.assert_allclose(logits(params, images, padded), got, rtol=0, atol=1e-4)
    assert np.abs(got - logits(params, images)).max() > 0.1


@pytest.mark.slow
def test_rematerialisation_changes_no_gradient(params, images, ragged):
    padded = layers.stacked(ragged, LAYERS, path=siglip.STACK)

    def gradient(**fields):
        def loss(adapters):
            return jnp.sum(logits(params, images, adapters, **fields) ** 2)

        return unnest(para.to_params(jax.jit(jax.grad(loss))(padded)))

    want = gradient()
    for path, x in gradient(remat="full").items():
        np.testing.assert_allclose(x, want[path], rtol=1e-4, atol=1e-3)


def test_images_of_another_size_have_other_positions(params, images):
    wide = np.concatenate([images, images], axis=2)

    got = logits(params, wide)

    table = params["vision_model"]["embeddings"]["position_embedding"]
    flat = {"embedding": np.ones_like(table["embedding"])}
    embeddings = {**params["vision_model"]["embeddings"], "position_embedding": flat}
    vision = {**params["vision_model"], "embeddings": embeddings}
    assert got.shape == (4, 5)
    # Without positions, doubled images attend to the same patches twice.
    plain = {**params, "vision_model": vision}
    np.testing.assert_allclose(logits(plain, wide), logits(plain, images), atol=1e-4)
    assert np.abs(got - logits(params, images)).max() > 1e-2


@pytest.mark.parametrize("whole", [True, False])
def test_the_configuration_is_that_of_the_vision_tower(tmp_path, whole):
    values = {"model_type": "siglip", "vision_config": FILE} if whole else FILE
    (tmp_path / "config.json").write_text(json.dumps(values))

    assert siglip.read_config(tmp_path) == CONFIG


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "siglip2"}, "model_type is 'siglip2', expected 'siglip_vis"),
        ({**FILE, "hidden_act": "gelu"}, "hidden_act is 'gelu', expected 'gelu_pyt"),
        ({**FILE, "vision_use_head": False}, "vision_use_head is False, expected True"),
    ],
)
def test_the_configuration_of_another_form_is_refused(tmp_path, values, message):
    (tmp_path / "config.json").write_text(json.dumps(values))

    with pytest.raises(ValueError, match=message):
        siglip.read_config(tmp_path)


def test_a_fused_projection_of_another_size_is_misshapen(tmp_path):
    tensors = {"vision_model.head.attention.in_proj_weight": np.zeros((12, 6))}
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")

    with pytest.raises(ValueError, match=r"Missing: .* Misshapen") as caught:
        siglip.load(tmp_path, CONFIG)

    assert "in_proj_weight is (12, 6), which cannot be converted" in str(caught.value)


@pytest.mark.parametrize(("size", "new"), [(4, 7), (7, 4), (5, 5), (3, 1)])
def test_a_constant_grid_stays_constant_at_any_size(size, new):
    got = bicubic.resized(np.full((size, 3, 2), 7, np.float32), new, 3)

    np.testing.assert_allclose(got, np.full((new, 3, 2), 7), rtol=1e-6)
