"""Compare models and tokenizers from GGUF files with transformers, which reads them.

The files of published models are compared where PARA_WEIGHTS has them; `docs/models.md`
says how to get them.
"""

import dataclasses
import os
import pathlib
import random

import gguf
import numpy as np
import pytest
import torch
import transformers
from tokenizers import pre_tokenizers

from tests.train.models import tiny_gemma3, tiny_gguf, tiny_llama
from train.models import gemma3, gguf_tokenizer, llama

MODULES = {"llama": (llama, llama.Llama), "gemma3": (gemma3, gemma3.Gemma3)}
# A width of 32: blocks have as many values.
SHAPE = {"hidden_size": 32, "intermediate_size": 64}
CONFIGS = {
    "llama": dataclasses.replace(
        tiny_llama.TIED, **SHAPE, num_attention_heads=4, head_dim=8
    ),
    "gemma3": dataclasses.replace(
        tiny_gemma3.CONFIG,
        **SHAPE,
        num_attention_heads=4,
        # transformers divides by the root of 256 in any case, and llama.cpp by that of
        # this width.
        head_dim=256,
        query_pre_attn_scalar=256,
        # The sixth of each six sees everything.
        num_hidden_layers=7,
        global_layers=(5,),
    ),
}
PUBLISHED = ("HuggingFaceTB/SmolLM2-135M-Instruct", "google/gemma-3-270m")
WEIGHTS = pathlib.Path(os.environ.get("PARA_WEIGHTS", "."))

SENTENCES = [
    "Hello world",
    "  two spaces, and two after  ",
    "a\n\nb\n",
    "\tTab\t\ttabs",
    "In 2023, 1,092,800 people; 3.14159 or 1e-5",
    "naïve café ÀÉÎ",
    "日本語のテスト。",
    "Привет, мир!",
    "مرحبا بالعالم",
    "Հայերեն լեզու",
    "😀🎉👩‍👩‍👧",
    "def f(x):\n    return x**2  # comment",
    "I'm you're he'll they'd we've it's",
    "<|im_start|>user\nHi<|im_end|>\n",
    "<bos>hi<eos> <start_of_turn>user",
    "<table><tr>",
    "▁already▁",
    "\x00\x01\x7f",
    "½ ² ③ Ⅷ ٣٤ 12",
    "MiXeD CaSe WORDS",
    " ",
    "",
]


def published(test):
    """Run a test with each published model that is there."""
    marks = [
        pytest.param(
            x,
            marks=pytest.mark.skipif(
                not list((WEIGHTS / x).glob("*.gguf")),
                reason=f"PARA_WEIGHTS has no GGUF file of {x}",
            ),
        )
        for x in PUBLISHED
    ]
    return pytest.mark.slow(pytest.mark.parametrize("repo", marks)(test))


def texts():
    """Return some hundred of texts, each of some of the sentences."""
    rng = random.Random(0)
    several = [
        " ".join(rng.choices(SENTENCES, k=rng.randint(2, 4))) for _ in range(300)
    ]
    letters = "abc XYZ 019 .,!?\n\t'éüñ中文字漢あ한글ё😀"
    mixed = ["".join(rng.choices(letters, k=rng.randint(1, 40))) for _ in range(200)]
    return [*SENTENCES, *several, *mixed]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Return the folder of a GGUF file of random weights in Q8_0, by architecture."""

    def folder(architecture):
        module, _ = MODULES[architecture]
        config = CONFIGS[architecture]
        generator = np.random.default_rng(0)
        tensors = {}
        for leaf in module.leaves(config).values():
            *_, last = shape = leaf.part[::-1] if leaf.stacked else leaf.part
            for name in leaf.names:
                # Vectors are norms' weights: about 1 with what is added to them.
                mean = float(len(shape) == 1 and architecture == "llama")
                scale = 0.3 if len(shape) == 1 else 1.5 / np.sqrt(last)
                x = generator.normal(mean, scale, shape)
                tensors[name] = x.astype(np.float32)
        place = tmp_path_factory.mktemp(architecture)
        more = (
            {"gemma3.attention.sliding_window": 3} if architecture == "gemma3" else {}
        )
        tiny_gguf.model(
            place / "x.gguf",
            architecture,
            config,
            tensors,
            kind=gguf.GGMLQuantizationType.Q8_0,
            **{"tokenizer.ggml.tokens": [f"<{x}>" for x in range(37)]},
            **more,
        )
        return place

    return folder


def compare(folder, ids):
    """Compare logits of a folder's model with transformers; return the largest."""
    (file,) = folder.glob("*.gguf")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    module, form = MODULES["llama" if model.config.model_type == "llama" else "gemma3"]
    with torch.no_grad():
        want = model(torch.tensor(ids, dtype=torch.long)).logits.numpy()

    config = module.read_config(folder)
    params = module.load(folder, config)
    got = form(config).apply({"params": params}, ids)

    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())
    return want


@pytest.mark.parametrize("architecture", MODULES)
def test_the_logits_of_a_tiny_model_are_those_of_transformers(tiny, architecture):
    folder = tiny(architecture)

    want = compare(folder, tiny_llama.IDS)

    assert want.std() > 0.3


def test_the_tokens_of_a_sentencepiece_model_are_those_of_transformers(tmp_path):
    rng = random.Random(0)
    text = "".join(texts()).replace(" ", "▁")
    starts = [rng.randrange(len(text) - 6) for _ in range(2000)]
    pieces = {text[x : x + rng.randint(1, 5)] for x in starts} | set(text)
    # Bytes are written as tokens of their own, and no piece has the first.
    pieces = sorted(x for x in pieces if "\x00" not in x)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{x:02X}>" for x in range(256)), *pieces]
    scores = [-float(x) for x in rng.sample(range(len(tokens)), len(tokens))]
    metadata = {
        "model": "llama",
        "tokens": tokens,
        "scores": scores,
        "token_type": [2, 3, 3, *[6] * 256, *[1] * len(pieces)],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }
    tiny_gguf.model(
        tmp_path / "x.gguf",
        "llama",
        CONFIGS["llama"],
        {"model.embed_tokens.weight": np.zeros((len(tokens), 32))},
        **{f"tokenizer.ggml.{key}": x for key, x in metadata.items()},
    )
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="x.gguf")

    ours = gguf_tokenizer.load(tmp_path)

    longest = 0
    for text in texts():
        ids = ours.encode(text).ids
        assert ids == theirs(text)["input_ids"]
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        longest = max(longest, *(len(tokens[x]) for x in ids if x > 258), 0)
    assert longest == 5


@published
def test_the_logits_of_a_published_model_are_those_of_transformers(repo):
    ids = np.random.default_rng(0).integers(300, 40_000, (2, 24)).astype(np.int32)

    compare(WEIGHTS / repo, ids)


@published
def test_the_tokens_of_a_published_model_are_those_of_transformers(repo):
    folder = WEIGHTS / repo
    (file,) = folder.glob("*.gguf")
    theirs = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file.name)
    if "SmolLM2" in repo:
        # transformers 5.24 knows no `smollm`, by which llama.cpp, and the model's own
        # tokenizer.json, split digits before GPT-2's rule.
        digits = pre_tokenizers.Digits(individual_digits=True)
        theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [digits, theirs.backend_tokenizer.pre_tokenizer]
        )

    ours = gguf_tokenizer.load(folder)

    assert len(texts()) > 500
    for text in texts():
        ids = ours.encode(text).ids
        assert ids == theirs(text)["input_ids"]
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.encode("a b", "c").ids == theirs("a b", "c")["input_ids"]
