"""Test adapters that Keras trains, we cut, and vLLM serves, against Keras merged.

keras-hub reads the same folder of a tiny model of transformers as vLLM. Keras puts the
updates into the kernels itself, so nothing of ours is in the oracle.
"""

import functools
import pathlib

import jax
import numpy as np
import pytest

from para_jax import cli
from tests.engines import environments, harness, models

h5py = pytest.importorskip("h5py")
keras = pytest.importorskip("keras")
keras_hub = pytest.importorskip("keras_hub")

# Keras 3.15.1 lacks NumPy 2's argument `copy`.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ impl:DeprecationWarning"),
    pytest.mark.skipif(
        bool(environments.missing("vllm")), reason=environments.missing("vllm")
    ),
]

BOUND = 2e-4
"""Of log-probabilities that the adapters change by 3: both compute in float32."""

RANK, LENGTH = 8, 32
# Keras's class, the name of its names here, and what keras-hub can read of a config: it
# derives the width of a head of Llama 3.
MODELS = {
    "llama": ("Llama3", "llama3", {"num_attention_heads": 2, "num_key_value_heads": 1}),
    "qwen3": ("Qwen3", "qwen3", {}),
}
TARGETS = [
    *("query", "key", "value", "attention_output", "feedforward_gate_dense"),
    *("feedforward_intermediate_dense", "feedforward_output_dense"),
]


@pytest.fixture(autouse=True)
def as_keras_adds():
    with jax.numpy_rank_promotion("allow"), jax.enable_x64(False):
        yield


def causal(family: str, base: pathlib.Path, rank: int = 0):
    """Return a model with the weights of a folder, and LoRA if it has a rank."""
    name, _, _ = MODELS[family]
    kind = getattr(keras_hub.models, f"{name}Backbone")
    backbone = kind.from_preset(str(base))
    if rank:
        backbone.enable_lora(rank, target_layer_names=TARGETS)
    kind = getattr(keras_hub.models, f"{name}CausalLM")
    return kind(backbone=backbone, preprocessor=None)


def train(model) -> tuple[float, float]:
    """Fit a next token that depends on the last one; return the loss at both ends."""
    learner = keras.Model(model.input, model.output)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner.compile(optimizer=keras.optimizers.Adam(2e-2), loss=loss)
    ids = np.random.default_rng(0).integers(3, 320, size=(16, 12))
    x = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
    losses = learner.fit(x, (ids * 7 + 5) % 320, epochs=20, batch_size=16, verbose=0)
    return losses.history["loss"][0], losses.history["loss"][-1]


def merged(model):
    """Put the updates into the kernels, by Keras's own sum, and turn LoRA off."""
    for layer in model._flatten_layers(include_self=False):
        if getattr(layer, "lora_enabled", False):
            whole = np.asarray(layer.kernel)
            layer.lora_enabled = False
            layer._kernel.assign(whole)
    return model


def computed(model) -> dict[str, np.ndarray]:
    """Compute what `models.with_peft` computes, by Keras."""
    variables = (model.trainable_variables, model.non_trainable_variables)
    held = [[x.value for x in group] for group in variables]
    call = jax.jit(lambda *x: model.stateless_call(*x)[0])

    def after_each(ids):
        full = np.zeros((1, LENGTH), np.int32)  # What follows changes nothing before.
        full[0, : len(ids)] = ids
        x = {"token_ids": full, "padding_mask": np.ones_like(full)}
        return np.asarray(jax.nn.log_softmax(call(*held, x)))[0, : len(ids)]

    prompt, steps, tokens = [], [], []
    for given in models.PROMPTS:
        ids = list(given)
        for _ in range(models.NEW):
            ids.append(int(after_each(ids)[-1].argmax()))
        x = after_each(ids)
        prompt.append(x[: len(given)])
        steps.append(x[len(given) - 1 : -1])
        tokens.append(ids[len(given) :])
    return {
        "prompt": np.concatenate(prompt),
        "steps": np.stack(steps),
        "tokens": np.array(tokens),
    }


def para(*words: object) -> None:
    assert cli.main([str(x) for x in words]) == 0


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Train, cut and convert an adapter of one family, and serve it."""

    @functools.cache
    def get(family: str):
        folder = tmp_path_factory.mktemp(family)
        _, name, sizes = MODELS[family]
        base = models.make(family, folder / "base", **sizes)
        keras.utils.set_random_seed(0)
        model = causal(family, base, RANK)
        first, last = train(model)
        assert last < 0.5 * first
        parent, child = folder / "parent.lora.h5", folder / "child.lora.h5"
        model.backbone.save_lora_weights(str(parent))
        para("compress", parent, child, "--gamma", 0.4, "--scale", 1)
        to_vllm = ("--model", name, "--for", "vllm")
        para("convert", parent, folder / "trained", *to_vllm, "--scale", 1)
        para("convert", child, folder / "cut", *to_vllm)
        with h5py.File(child) as file:  # keras-hub makes a model of one rank.
            small = causal(family, base, int(file["lora/vars/rank"][()]))
        small.backbone.load_lora_weights(str(child))
        wanted = {"trained": computed(merged(model)), "cut": computed(merged(small))}
        job = {
            "model": base,
            "adapters": {label: folder / label for label in wanted},
            "tokens": models.PROMPTS,
            "new": models.NEW,
            # A kernel of heads, `[d, n, h]`, has `RANK` for each of up to four heads.
            "max_lora_rank": 32,
        }
        return wanted, computed(causal(family, base)), harness.run("vllm", job, folder)

    return get


@pytest.mark.parametrize("label", ["trained", "cut"])
@pytest.mark.parametrize("family", MODELS)
def test_what_keras_trained_is_served_as_keras_computes_it(served, row, family, label):
    wanted, before, answer = served(family)

    assert answer.refused.get(label) is None
    got = harness.difference(answer, label, wanted[label])
    same = harness.tokens(answer, label, wanted[label])

    row(
        engine="vllm",
        version=answer.version,
        loaded=f"{family} of keras-hub: {label}",
        difference=got,
        of="log-probabilities",
        tokens=same,
    )
    assert np.abs(wanted[label]["prompt"] - before["prompt"]).max() > 0.5
    assert got < BOUND
    assert same == f"{wanted[label]['tokens'].size}/{wanted[label]['tokens'].size}"
