"""Test the whole way: trained by Keras on JAX, cut here, run by PEFT."""

import jax
import keras
import keras_hub
import numpy as np
import peft
import pytest
import torch
import transformers

import para_jax as para
from para_jax import layouts, names

# Keras 3.15.1 lacks NumPy 2's argument `copy`.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ impl:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*train their biases too:UserWarning"),
]
RANK = 3
CONFIG = {
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "vocab_size": 13,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
MODELS = {
    "gemma": (keras_hub.models.GemmaBackbone, transformers.GemmaConfig),
    "llama3": (keras_hub.models.Llama3Backbone, transformers.LlamaConfig),
}
TEXT = np.random.default_rng(0).integers(1, 13, (4, 9))
GIVEN = {"token_ids": TEXT[:, :-1], "padding_mask": np.ones((4, 8), "int32")}


def backbone(model, folder):
    return MODELS[model][0].from_preset(str(folder))


def causal(made):
    """Return a backbone with its tied head; keras-hub's own tasks need tf.data."""
    return keras.Model(made.input, made.token_embedding(made.output, reverse=True))


def trained(model, folder):
    """Return a backbone whose LoRA has learned a few sequences."""
    keras.utils.set_random_seed(0)
    made = backbone(model, folder)
    targets = ["query", "key", "value", "attention_output"]
    made.enable_lora(RANK, target_layer_names=targets)
    whole = causal(made)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    whole.compile(keras.optimizers.Adam(0.1), loss)
    before = whole.evaluate(GIVEN, TEXT[:, 1:], verbose=0)
    whole.fit(GIVEN, TEXT[:, 1:], epochs=20, verbose=0)
    assert whole.evaluate(GIVEN, TEXT[:, 1:], verbose=0) < 0.9 * before
    return made


def merged(made, model, folder, path):
    """Return the logits of a model without LoRA, which Keras merged on saving."""
    made.save_weights(path)
    plain = backbone(model, folder)
    plain.load_weights(path)
    return np.asarray(causal(plain)(GIVEN))


@pytest.mark.parametrize("model", MODELS)
def test_a_child_of_keras_has_the_merged_models_logits_in_peft(model, tmp_path):
    torch.manual_seed(0)
    config = MODELS[model][1](**CONFIG, tie_word_embeddings=True)
    base = transformers.AutoModelForCausalLM.from_config(config).eval()
    base.save_pretrained(tmp_path / "base")
    with jax.numpy_rank_promotion("allow"):  # Keras adds biases.
        made = trained(model, tmp_path / "base")
        parent = para.from_tree(layouts.keras_tree(made))
        child = para.compress(parent, para.Gamma(0.4))
        layouts.keras_assign(made, child)
        path = tmp_path / "x.weights.h5"
        want = merged(made, model, tmp_path / "base", path)

    para.save(names.to_hf(child, model), tmp_path / "adapter")
    served = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter"))

    with torch.no_grad():
        got = served(torch.tensor(GIVEN["token_ids"])).logits.numpy()
    assert len({x.rank for x in child.adapters.values()}) > 1
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())
