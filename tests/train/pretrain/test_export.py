import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from para_jax._adapters.params import nest, unnest
from train.models import gemma3, siglip
from train.pretrain import export, generation, vision

ENCODER = dataclasses.replace(vision.TINY.model, num_hidden_layers=3)
MODEL = generation.TINY.model


def drawn(leaves):
    """Params of these leaves, exact in bfloat16."""
    generator = np.random.default_rng(0)
    shapes = {path: leaf.shape for path, leaf in leaves.items()}
    return {
        path: generator.integers(-128, 128, shape).astype(np.float32) / 64
        for path, shape in shapes.items()
    }


@pytest.mark.parametrize(
    ("leaves", "load"),
    [
        (siglip.leaves(ENCODER), lambda folder: siglip.load(folder, ENCODER)),
        (gemma3.leaves(MODEL), lambda folder: gemma3.load(folder, MODEL)),
    ],
    ids=["siglip", "gemma3"],
)
def test_load_returns_what_was_saved(tmp_path, leaves, load):
    params = drawn(leaves)

    export.save(tmp_path / "new", nest(params), leaves, {"model_type": "x"})
    again = unnest(load(tmp_path / "new"))

    assert again.keys() == params.keys()
    for path, x in again.items():
        assert x.dtype == jnp.bfloat16
        np.testing.assert_array_equal(x.astype(np.float32), params[path], path)


def test_the_configuration_is_written_with_the_dtype(tmp_path):
    leaves = siglip.leaves(ENCODER)
    export.save(tmp_path, nest(drawn(leaves)), leaves, {"hidden_size": 24})

    values = json.loads((tmp_path / "config.json").read_text())
    assert values == {"hidden_size": 24, "dtype": "bfloat16"}


def test_what_stands_before_the_names_is_written(tmp_path):
    leaves = siglip.leaves(ENCODER)
    params = nest(drawn(leaves))
    export.save(tmp_path, params, leaves, {}, base="vision_model.")

    again = siglip.load(tmp_path, ENCODER)  # It knows of both names.
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y), again, params)
    data = (tmp_path / "model.safetensors").read_bytes()
    assert b'"vision_model.head.attention.in_proj_weight"' in data


def test_params_of_another_model_are_refused(tmp_path):
    params = drawn(gemma3.leaves(MODEL))
    params["model/extra"] = params.pop("model/norm/scale")
    with pytest.raises(
        ValueError, match=r"\['model/extra'\] too many, and lack \['mod"
    ):
        export.save(tmp_path, nest(params), gemma3.leaves(MODEL), {})
