"""Compare the small shipped models' outputs with transformers."""

import hashlib
import json
import pathlib

import numpy as np
import pytest
import tokenizers
import torch
import transformers

from train.data import digits, pixels
from train.models import gemma3, generate, siglip
from train.pretrain import corpus
from train.subjects import pictures, problems

RESULTS = pathlib.Path(__file__).parents[2] / "train" / "results"


@pytest.mark.parametrize(
    ("results", "folder"),
    [("vision", pictures.ENCODER), ("problems", problems.MODEL)],
)
def test_the_results_are_of_the_models_that_ship(results, folder):
    weights = folder / "model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()

    for kind in ("trained", "children"):
        head = json.loads((RESULTS / results / f"{kind}.json").read_text())
        assert {x["backbone"] for x in head["configs"].values()} == {digest}


@pytest.mark.slow
def test_the_encoder_is_that_of_transformers():
    config = siglip.read_config(pictures.ENCODER)
    images = digits.load("armenian", "test")
    rows = np.arange(4)
    inputs = np.array(pixels.Pictures(*images).batch(rows).inputs)
    theirs = transformers.SiglipVisionModel.from_pretrained(
        pictures.ENCODER, dtype=torch.float32
    ).eval()
    with torch.no_grad():
        first = torch.from_numpy(inputs.transpose(0, 3, 1, 2))
        want = theirs(pixel_values=first).pooler_output.numpy()

    params = siglip.load(pictures.ENCODER, config, dtype=np.float32)
    got = siglip.Siglip(config).apply({"params": params}, inputs)

    assert want.std() > 0.1
    np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.slow
def test_the_language_model_writes_what_transformers_writes():
    folder = problems.MODEL
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    prompt = tokenizer.encode("12 + 7 =").ids
    theirs = transformers.Gemma3ForCausalLM.from_pretrained(
        folder, dtype=torch.float32
    ).eval()
    with torch.no_grad():
        ids = torch.tensor([prompt])
        made = theirs.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=-1)
    want = made[0, len(prompt) :].tolist()

    config = gemma3.read_config(folder)
    params = gemma3.load(folder, config, dtype=np.float32)
    lengths = np.array([len(prompt)], np.int32)
    prompts = generate.Prompts(np.array([prompt], np.int32), lengths)
    model, stop = gemma3.Gemma3(config), (corpus.EOS,)
    variables = {"params": params}
    got = generate.greedy(model, variables, prompts, tokens=6, stop=stop)
    written = np.asarray(got.ids)[0, : int(got.lengths[0])].tolist()

    assert written == want[: len(written)]
    assert tokenizer.decode(want).split(".")[0].strip() == "19"
