import json

import flax
import jax
import numpy as np
import pytest

from train.models import bert


def test_the_paths_are_the_module_names_of_transformers(tiny, tokens, key):
    model = bert.BertClassifier(tiny, 3)

    variables = jax.eval_shape(model.init, key, tokens)

    flat = flax.traverse_util.flatten_dict(variables, sep="/")
    linear = {"kernel", "bias"}
    block = {
        "attention/self/query": linear,
        "attention/self/key": linear,
        "attention/self/value": linear,
        "attention/output/dense": linear,
        "attention/output/LayerNorm": {"scale", "bias"},
        "intermediate/dense": linear,
        "output/dense": linear,
        "output/LayerNorm": {"scale", "bias"},
    }
    modules = {
        f"encoder/layer/{i}/{name}": x for i in (0, 1) for name, x in block.items()
    }
    modules |= {
        f"embeddings/{x}_embeddings": {"embedding"} for x in ("word", "position")
    }
    modules["embeddings/token_type_embeddings"] = {"embedding"}
    modules["embeddings/LayerNorm"] = {"scale", "bias"}
    modules["pooler/dense"] = linear
    want = {f"params/bert/{name}/{x}" for name, xs in modules.items() for x in xs}
    assert flat.keys() == want | {"params/classifier/kernel", "params/classifier/bias"}


def test_padding_changes_no_logits(tiny, params, tokens):
    model = bert.BertClassifier(tiny, 3)
    variables = {"params": params}
    short = bert.Tokens(tokens.ids[:1, :3], tokens.mask[:1, :3])

    got = model.apply(variables, tokens)[:1]

    np.testing.assert_allclose(got, model.apply(variables, short), atol=1e-5)


def test_adapters_of_any_ranks_run_in_the_same_model(tiny, params, tokens, lora):
    model = bert.BertClassifier(tiny, 3)
    merged = flax.traverse_util.flatten_dict(params)
    factors = flax.traverse_util.flatten_dict(lora)
    for path in {path[:-1] for path in factors}:
        merged[*path, "kernel"] += factors[*path, "a"] @ factors[*path, "b"]

    got = model.apply({"params": params, "lora": lora}, tokens)

    want = model.apply({"params": flax.traverse_util.unflatten_dict(merged)}, tokens)
    np.testing.assert_allclose(got, want, atol=1e-4)
    assert not np.allclose(got, model.apply({"params": params}, tokens), atol=1e-2)


def test_the_configuration_of_another_architecture_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "roberta"}))

    with pytest.raises(ValueError, match="model_type is 'roberta', expected 'bert'"):
        bert.read_config(tmp_path)


def test_the_configuration_of_minilm(folder):
    got = bert.read_config(folder)

    assert got == bert.Config(
        vocab_size=30522,
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        max_position_embeddings=512,
        type_vocab_size=2,
        layer_norm_eps=1e-12,
    )
