"""Pretrain a small language model of Gemma 3's form on English and arithmetic.

    python -m train.pretrain.corpus --out out/corpus.npz
    python -m train.pretrain.generation --data out/corpus.npz --minutes 6 --out out/sums

The second command wants one GPU, and the file of the first. The model has 6 layers of
width 256, of which every third sees all positions and the others the last 64; 6.2
million parameters, 12.3 MB in bfloat16. Its folder is one of transformers'
Gemma3ForCausalLM with its tokenizer, and `train.models.gemma3` loads it.

Axis letters: `N` rows, `T` tokens, `K` sums, `S` their tokens.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt16

from train.models import gemma3
from train.models.loss import causal_loss
from train.pretrain import command, corpus, export, loop

SMALL = loop.Settings(
    model=gemma3.Config(
        vocab_size=corpus.VOCABULARY,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        query_pre_attn_scalar=64,
        sliding_window=64,
        global_layers=(2, 5),
    ),
    batch=256,
    rate=loop.Rate(peak=2e-3),
    budget=loop.Budget(minutes=6),
)

TINY = loop.Settings(
    model=gemma3.Config(
        vocab_size=corpus.VOCABULARY,
        hidden_size=24,
        intermediate_size=20,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=12,
        query_pre_attn_scalar=12,
        sliding_window=5,
        global_layers=(1,),
    ),
    batch=3,
    rate=loop.Rate(peak=1e-3),
    budget=loop.Budget(steps=6, chunk=3),
)
"""For a test: seconds on a CPU."""

# transformers has kinds of layers, and rotations of each kind.
_IN_OTHER_FORM = ("global_layers", "rope_theta", "rope_factor", "rope_local_base_freq")


def pretrain(
    settings: loop.Settings[gemma3.Config],
    rows: UInt16[np.ndarray, "N T"],
    *,
    report: Callable[[loop.Line], object],
) -> Any:
    """Train a `gemma3.Gemma3`; return its params in float32.

    Products are in bfloat16; sums, the updated weights and the model's own float32
    parts are in float32.
    """
    model = gemma3.Gemma3(settings.model, dtype=jnp.bfloat16)

    def loss(params: Any, key: jax.Array, data: jax.Array) -> Float[jax.Array, ""]:
        chosen = jax.random.randint(key, (settings.batch,), 0, len(data))
        return _loss(model, params, data[chosen])

    start, key = jax.random.split(jax.random.key(0))
    blank = jnp.zeros((1, rows.shape[1]), jnp.int32)
    return loop.train(
        loss,
        jax.jit(model.init)(start, blank)["params"],
        jax.device_put(rows),
        budget=settings.budget,
        rate=settings.rate,
        key=key,
        report=report,
    )


def save(
    folder: pathlib.Path, params: Any, config: gemma3.Config, tokenizer: str
) -> None:
    """Write the model in the format of transformers, and its tokenizer."""
    kinds = {
        "full_attention": {"rope_type": "default", "rope_theta": config.rope_theta},
        "sliding_attention": {
            "rope_type": "default",
            "rope_theta": config.rope_local_base_freq,
        },
    }
    ours = dataclasses.asdict(config).items()
    ours = {name: x for name, x in ours if name not in _IN_OTHER_FORM}
    full, sliding = kinds
    layers = range(config.num_hidden_layers)
    values = ours | {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "max_position_embeddings": 1024,
        "layer_types": [full if i in config.global_layers else sliding for i in layers],
        "rope_parameters": kinds,
        "pad_token_id": corpus.PAD,
        "eos_token_id": corpus.EOS,
        "bos_token_id": corpus.BOS,
    }
    export.save(folder, params, gemma3.leaves(config), values)
    (folder / "tokenizer.json").write_text(tokenizer)


def evaluate(
    settings: loop.Settings[gemma3.Config], params: Any, data: corpus.Corpus
) -> dict[str, float]:
    """Return the loss of the held-out rows, and the accuracy of held-out sums.

    A sum is right if the model predicts every digit of its result, and the full
    stop.
    """
    model = gemma3.Gemma3(settings.model, dtype=jnp.bfloat16)
    loss = jax.jit(lambda params, rows: _loss(model, params, rows))
    parts = range(settings.batch, len(data.validation), settings.batch)
    # The last part may be smaller: it weighs as many rows as it has.
    rows = np.array_split(data.validation, parts)
    total = sum(float(loss(params, x)) * len(x) for x in rows)
    guess = jax.jit(lambda params, ids: _guesses(model, params, ids))
    return {
        "loss": total / len(data.validation),
        "sums": right(np.asarray(guess(params, data.sums)), data),
    }


def right(guesses: Int[np.ndarray, "K S"], data: corpus.Corpus) -> float:
    """Return the share of the sums with the right tokens at all places of the result.

    Args:
      guesses: The predicted token after each token of `data.sums`.
      data: The sums.
    """
    follows = guesses[:, :-1] == data.sums[:, 1:]
    return float((follows | ~data.results[:, 1:]).all(axis=1).mean())


def _guesses(
    model: gemma3.Gemma3, params: Any, ids: UInt16[jax.Array, "K S"]
) -> Int[jax.Array, "K S"]:
    logits: Any = model.apply({"params": params}, ids.astype(jnp.int32))
    return logits.argmax(axis=-1)


def _loss(model: gemma3.Gemma3, params: Any, rows: Any) -> Float[jax.Array, ""]:
    ids = jnp.asarray(rows).astype(jnp.int32)
    every = jnp.ones(ids.shape, bool)
    return causal_loss(model, {"params": params}, ids, every, chunk=16_384)


def main(arguments: Sequence[str] | None = None) -> None:
    """Pretrain the model, evaluate it, and write it to a folder."""
    chosen = command.parse(
        arguments,
        description=main.__doc__,
        data="out/corpus.npz",
        small=SMALL,
        tiny=TINY,
    )
    settings = chosen.settings
    data = corpus.load(chosen.data)
    begin = time.monotonic()
    print(f"{data.train.size / 1e6:.1f} million tokens on {jax.devices()[0]}")
    each = settings.batch * data.train.shape[1]
    report = loop.Printer(unit="tokens", each=each)
    params = pretrain(settings, data.train, report=report)
    metrics = evaluate(settings, params, data)
    save(chosen.out, params, settings.model, data.tokenizer)
    command.report(chosen.out, metrics, begin=begin, steps=report.steps)


if __name__ == "__main__":
    main()
