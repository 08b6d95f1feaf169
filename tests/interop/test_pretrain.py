"""Load models pretrained here in transformers and compare their outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from para_jax._adapters.params import nest
from train.models import gemma3, siglip
from train.pretrain import corpus, generation, vision

ENCODER = vision.TINY.model
MODEL = generation.TINY.model


def drawn(leaves):
    """Return params exact in bfloat16 that make every part count."""
    generator = np.random.default_rng(0)
    return nest(
        {
            path: generator.normal(scale=0.3, size=leaf.shape)
            .astype(jnp.bfloat16)
            .astype(np.float32)
            for path, leaf in leaves.items()
        }
    )


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """Return the params of an encoder, and the folder they were saved to."""
    params = drawn(siglip.leaves(ENCODER))
    folder = tmp_path_factory.mktemp("encoder")
    vision.save(folder, {"vision_model": params, "classifier": {}}, ENCODER)
    return params, folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Return the params of a language model, and the folder they were saved to."""
    params = drawn(gemma3.leaves(MODEL))
    folder = tmp_path_factory.mktemp("model")
    tokenizer = corpus.make(documents=60, vocabulary=300, width=16).tokenizer
    generation.save(folder, params, MODEL, tokenizer)
    return params, folder


def read(kind, folder):
    """Load the model in float32, with all of its tensors from the file only."""
    found, info = kind.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info[x] for x in ("missing_keys", "unexpected_keys"))
    return found.eval()


@pytest.mark.slow
def test_the_encoder_is_one_of_transformers(encoder):
    params, folder = encoder
    images = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype(np.float32)
    theirs = read(transformers.SiglipVisionModel, folder)
    with torch.no_grad():
        channels_first = torch.tensor(np.moveaxis(images, -1, 1).copy())
        want = theirs(channels_first).pooler_output.numpy()

    got = siglip.Siglip(ENCODER).apply({"params": params}, images)

    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    assert np.abs(want).max() > 0.1
    assert siglip.read_config(folder) == ENCODER


def test_the_language_model_is_one_of_transformers(model):
    params, folder = model
    ids = np.random.default_rng(0).integers(3, 300, (2, 14)).astype(np.int32)
    theirs = read(transformers.Gemma3ForCausalLM, folder)
    with torch.no_grad():
        want = theirs(torch.tensor(ids, dtype=torch.long)).logits.numpy()

    got = gemma3.Gemma3(MODEL).apply({"params": params}, ids)

    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    assert np.abs(want).max() > 0.1
    assert gemma3.read_config(folder) == MODEL


@pytest.mark.parametrize("fixture", ["encoder", "model"])
def test_what_is_loaded_again_is_what_was_saved(fixture, request):
    params, folder = request.getfixturevalue(fixture)
    if fixture == "encoder":
        again = siglip.load(folder, ENCODER, np.float32)
    else:
        again = gemma3.load(folder, MODEL, np.float32)
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_the_tokenizer_is_one_of_transformers(model):
    _, folder = model
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json")
    )
    ids = tokenizer("12 + 5 = 17.")["input_ids"]
    assert ids[0] == corpus.BOS
    assert tokenizer.decode(ids[1:]) == "12 + 5 = 17."
