"""Provide small random models in place of the Hub's, as a plugin for PEFT's own tests.

The tests ask for them by name, and check shapes, outputs and reloaded files; nothing
depends on trained weights. The architectures are those of the named models.
"""

import functools

import torch
import transformers

_SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
_MORE = _SMALL | {"num_key_value_heads": 2, "head_dim": 4, "vocab_size": 1000}
_EXPERTS = {"intermediate_size": 32, "num_local_experts": 4, "num_experts_per_tok": 1}
_OPT = _SMALL | {"ffn_dim": 32, "word_embed_proj_dim": 16}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4}

_MODELS = {
    "peft-internal-testing/tiny-random-OPTForCausalLM": ("OPTConfig", _OPT),
    "peft-internal-testing/opt-125m": ("OPTConfig", _OPT),
    "peft-internal-testing/tiny-random-gpt2": ("GPT2Config", _GPT2),
    "gpt2": ("GPT2Config", _GPT2),
    "bert-base-uncased": ("BertConfig", _SMALL | {"intermediate_size": 32}),
    "hf-internal-testing/tiny-random-LlamaForCausalLM": (
        *("LlamaConfig", _MORE | {"intermediate_size": 32}),
    ),
    "trl-internal-testing/tiny-random-LlamaForCausalLM": (
        *("LlamaConfig", _MORE | {"intermediate_size": 32}),
    ),
    "trl-internal-testing/tiny-Llama4ForCausalLM": (
        "Llama4TextConfig",
        _MORE | _EXPERTS | {"intermediate_size_mlp": 32},
    ),
    "trl-internal-testing/tiny-GptOssForCausalLM": ("GptOssConfig", _MORE | _EXPERTS),
}


def _from_pretrained(cls, load, name, *words, **options):
    if name not in _MODELS:
        return load(name, *words, **options)
    kind, sizes = _MODELS[name]
    config = getattr(transformers, kind)(**sizes)
    config._name_or_path = name
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = cls.from_config(config)
    model.config._name_or_path = model.name_or_path = name
    return model.to(options.get("dtype") or torch.float32).eval()


for _kind in (
    transformers.AutoModelForCausalLM,
    transformers.AutoModelForSequenceClassification,
):
    _kind.from_pretrained = functools.partial(
        _from_pretrained, _kind, _kind.from_pretrained
    )
