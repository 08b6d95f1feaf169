"""Kernels by module, and adapters in a model's own form, by merged kernels."""

import dataclasses

import jax
import numpy as np
import pytest

from para_jax._adapters.adapter import Adapter
from para_jax._adapters.params import nest, unnest
from train.models import siglip
from train.models.adapted import Adapted

CONFIG = siglip.Config(
    hidden_size=6,
    intermediate_size=10,
    num_hidden_layers=3,
    num_attention_heads=2,
    image_size=8,
    patch_size=4,
)
MODEL = siglip.SiglipClassifier(CONFIG, 5)
IMAGES = np.random.default_rng(9).normal(size=(4, 8, 8, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def params():
    """Params of the classifier, drawn by NumPy."""
    generator = np.random.default_rng(0)
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), IMAGES)["params"]
    return jax.tree.map(
        lambda x: generator.normal(scale=0.4, size=x.shape).astype(np.float32), shapes
    )


def adapters(paths, ranks):
    generator = np.random.default_rng(1)
    sizes = {"fc1": (6, 10), "fc2": (10, 6)}
    result = {}
    for path, rank in zip(paths, ranks, strict=True):
        m, n = sizes.get(path.rpartition("/")[2], (6, 6))
        a, b = generator.normal(size=(m, rank)), generator.normal(size=(rank, n))
        result[path] = Adapter(a.astype("f4"), b.astype("f4"), scale=0.25)
    return result


def merged(params, given):
    """Return the params with the updates added to slices of the stacked kernels."""
    leaves = {path: np.array(x) for path, x in unnest(params).items()}
    for path, x in given.items():
        stack, _, rest = path.partition("/layers/")
        index, _, name = rest.partition("/")
        update = np.float64(x.scale) * x.a.astype(float) @ x.b.astype(float)
        leaves[f"{stack}/layers/{name}/kernel"][int(index)] += update.astype("f4")
    return nest(leaves)


def test_the_kernels_of_a_stack_have_a_path_a_layer(params):
    found = MODEL.adapted.kernels(params)

    assert len(found) == 3 * 6
    stack = params["vision_model"]["encoder"]["layers"]["mlp"]["fc1"]["kernel"]
    got = found["vision_model/encoder/layers/2/mlp/fc1"]
    np.testing.assert_array_equal(got, stack[2])


@pytest.mark.parametrize(
    "ranks", [(2,) * 18, (1, 2, 3) * 6, (1,) * 17], ids=["equal", "ragged", "one less"]
)
def test_a_stacked_model_with_adapters_is_that_with_merged_kernels(params, ranks):
    paths = list(MODEL.adapted.kernels(params))[: len(ranks)]
    given = adapters(paths, ranks)

    lora = MODEL.adapted.collection(given)

    got = MODEL.apply({"params": params, "lora": lora}, IMAGES)
    want = MODEL.apply({"params": merged(params, given)}, IMAGES)
    np.testing.assert_allclose(got, want, atol=2e-5)
    assert np.abs(want - MODEL.apply({"params": params}, IMAGES)).max() > 0.02


def test_modules_that_no_layer_adapts_are_left_out(params):
    paths = [path for path in MODEL.adapted.kernels(params) if "fc2" in path]

    lora = MODEL.adapted.collection(adapters(paths, (2, 2, 2)))

    assert set(unnest(lora)) == {
        f"vision_model/encoder/layers/mlp/fc2/{x}" for x in ("a", "b")
    }


def test_leading_axes_of_members_stay_in_front(params):
    paths = list(MODEL.adapted.kernels(params))
    given = adapters(paths, (2,) * 18)
    members = {
        path: dataclasses.replace(x, a=np.stack([x.a] * 7), b=np.stack([x.b] * 7))
        for path, x in given.items()
    }

    lora = unnest(MODEL.adapted.collection(members))

    assert lora["vision_model/encoder/layers/mlp/fc1/b"].shape == (7, 3, 2, 10)


@pytest.mark.parametrize("stack", [None, 3])
def test_replaced_kernels_are_found_again(params, stack):
    adapted, base = MODEL.adapted, params
    if not stack:
        adapted = Adapted(blocks="bert/encoder/layer", modules=("output/dense",))
        layer = {"output": {"dense": {"kernel": np.ones((3, 2)), "bias": np.ones(2)}}}
        base = {"bert": {"encoder": {"layer": {"0": layer, "1": layer}}}}
    new = {path: 3 * x + 1 for path, x in adapted.kernels(base).items()}

    changed = adapted.replaced(base, new)

    found = adapted.kernels(changed)
    assert found.keys() == new.keys()
    for path, x in new.items():
        np.testing.assert_array_equal(found[path], x)
    same = {p for p, x in unnest(changed).items() if x is unnest(base)[p]}
    assert not any("kernel" in path for path in same if "layers" in path)
    assert len(same) == len(unnest(base)) - len(adapted.modules) * (1 if stack else 2)
