"""Test experts with JAX names in transformers' three-dimensional parameters.

transformers keeps gate and up of all experts in one `gate_up_proj [E, 2 F, D]`, each
expert's gate before its up, and applies them as `linear` does; MaxText and tunix keep
`[E, D, F]` apart. NumPy adds the updates there, and PEFT must give the same logits.
"""

import copy

import numpy as np
import peft
import pytest
import torch
import transformers

import para_jax as para
from para_jax import names

D, F, E, LAYERS = 12, 10, 3, 2
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 8, 9, 7]])
SIZES = {
    "hidden_size": D,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 6,
    "vocab_size": 17,
    "num_experts_per_tok": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "experts_implementation": "eager",  # The others want rows of 16 bytes.
}
# Paths of gate, up and down, and their stack: MaxText scans the layers
# inside of the experts.
CASES = {
    "tunix": ("qwen3-moe", "layers/{i}/mlp/{x}_proj", ("gate", "up", "down")),
    "maxtext": (
        "mixtral",
        "decoder/layers_{i}/MoeBlock_0/{x}",
        ("wi_0", "wi_1", "wo"),
    ),
    "maxtext-scanned": (
        "mixtral",
        "decoder/layers/MoeBlock_0/{x}",
        ("wi_0", "wi_1", "wo"),
    ),
    "maxtext, qwen": (
        "qwen3-moe",
        "decoder/layers_{i}/moe_block/{x}",
        ("wi_0", "wi_1", "wo"),
    ),
}
every_case = pytest.mark.parametrize("name", CASES)


def model_of(kind):
    torch.manual_seed(3)
    if kind == "mixtral":
        config = transformers.MixtralConfig(
            **SIZES, intermediate_size=F, num_local_experts=E
        )
    else:
        config = transformers.Qwen3MoeConfig(
            **SIZES, intermediate_size=8, moe_intermediate_size=F, num_experts=E
        )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for x in model.parameters():
            x.normal_(0, 0.4)
    return model


def logits(model):
    with torch.no_grad():
        return model(input_ids=TOKENS).logits.numpy()


def adapters_of(name):
    """Return an adapter of every kernel `[L, E, in, out]`, in the ecosystem's form."""
    rng = np.random.default_rng(7)
    _, path, kernels = CASES[name]
    result, updates = {}, []
    for rank, (x, m, n) in enumerate(zip(kernels, (D, D, F), (F, F, D), strict=True)):
        a, b = (
            rng.normal(size=(LAYERS, E, *shape)).astype(np.float32)
            for shape in ((m, rank + 1), (rank + 1, n))
        )
        updates.append(a.astype(np.float64) @ b.astype(np.float64) / 4)
        if "{i}" not in path:
            a, b = a.swapaxes(0, 1), b.swapaxes(0, 1)
            result[path.format(x=x)] = para.Adapter(a=a, b=b, scale=0.25)
            continue
        for i in range(LAYERS):
            one = para.Adapter(a=a[i], b=b[i], scale=0.25)
            result[path.format(i=i, x=x)] = one
    return para.Checkpoint(adapters=result), updates


def merged(base, updates):
    model = copy.deepcopy(base)
    gate, up, down = updates
    with torch.no_grad():
        for i, layer in enumerate(model.model.layers):
            both = np.concatenate([gate[i], up[i]], axis=-1)
            for weight, x in (
                (layer.mlp.experts.gate_up_proj, both),
                (layer.mlp.experts.down_proj, down[i]),
            ):
                weight += torch.tensor(x.swapaxes(-1, -2), dtype=torch.float32)
    return model


def through_peft(base, checkpoint, folder):
    para.save(checkpoint, folder, format="peft")
    return peft.PeftModel.from_pretrained(copy.deepcopy(base), str(folder)).eval()


@every_case
def test_peft_computes_what_the_updates_of_the_experts_do(name, tmp_path):
    kind = CASES[name][0]
    base = model_of(kind)
    checkpoint, updates = adapters_of(name)

    found = names.to_hf(checkpoint, kind)

    parameters = dict(base.named_parameters())
    assert {x.replace("/", ".") for x in found.adapters} == {
        x for x in parameters if ".experts." in x
    }
    got = logits(through_peft(base, found, tmp_path / "adapter"))
    want = logits(merged(base, updates))
    moved = np.abs(want - logits(base)).max()
    assert moved > 0.1
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * moved)


@every_case
def test_the_paths_tell_the_ecosystem(name):
    checkpoint, _ = adapters_of(name)

    found = names.to_hf(checkpoint, CASES[name][0])

    assert len(found.adapters) == 2 * LAYERS


def test_a_child_is_named_after_it_was_cut(tmp_path):
    """After a cut each expert has its own rank; PEFT wants one per parameter."""
    base = model_of("qwen3-moe")
    checkpoint, updates = adapters_of("tunix")
    child = para.compress(checkpoint, para.Gamma(0.5))
    for x, kernels in zip(("gate", "up", "down"), updates, strict=True):
        for i, e in np.ndindex(LAYERS, E):
            kept = child.adapters.get(f"layers/{i}/mlp/{x}_proj/{e}")
            kernels[i, e] = 0 if kept is None else kept.scale * (kept.a @ kept.b)
    assert len({x.rank for x in child.adapters.values()}) > 1

    found = names.to_hf(child, "qwen3-moe")

    got = logits(through_peft(base, found, tmp_path / "child"))
    want = logits(merged(base, updates))
    moved = np.abs(want - logits(base)).max()
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * moved)
