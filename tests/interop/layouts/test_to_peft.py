"""Test every layout's tree, through a file, on a torch model with PEFT itself.

The trees are plain dicts in the forms pinned against each library by the other tests of
this folder. PEFT's contribution to the output is compared with the update stated in the
library's documentation, in NumPy.
"""

import jax
import numpy as np
import peft
import pytest
import torch
from orbax.checkpoint import v1 as ocp

import para_jax as para

R, ALPHA = 3, 6.0


def array(*shape):
    seed = int(np.prod(shape)) + len(shape)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def nnx():
    tree = {"layers": {"0": {"q": {"lora_a": array(8, R), "lora_b": array(R, 5)}}}}
    factors = tree["layers"]["0"]["q"]
    return tree, {"layers/0/q": factors["lora_a"] @ factors["lora_b"]}, {}


def qwix():
    a, b = array(7, R), array(R, 4, 5)
    tree = {"attn": {"q": {"w_lora_a": a, "w_lora_b": b}}}
    return tree, {"attn/q": (a @ b.reshape(R, 20)) * ALPHA / R}, {"alpha": ALPHA}


def scanned():
    a, b = array(7, 2, R), array(R, 2, 5)  # Scanned on axis 1.
    tree = {"layers": {"up": {"kernel_lora_a": a, "kernel_lora_b": b}}}
    deltas = {f"layers/up/{i}": a[:, i] @ b[:, i] * ALPHA / R for i in range(2)}
    return tree, deltas, {"alpha": ALPHA, "stack_axis": 1}


def tunix():
    a, b = array(7, R), array(R, 2, 4, 5)
    tree = {"layers": {"0": {"attn": {"kv_einsum": {"w_lora_a": a, "w_lora_b": b}}}}}
    deltas = {
        f"layers/0/attn/kv_einsum/{name}": a @ b[:, i].reshape(R, 20) * ALPHA / R
        for i, name in enumerate("kv")
    }
    return tree, deltas, {"alpha": ALPHA}


def gemma():
    a, b = array(4, 5, R), array(R, 7)
    tree = {"attn": {"attn_vec_einsum": {"_LoRAEinsum_0": {"lora": {"a": a, "b": b}}}}}
    return tree, {"attn/attn_vec_einsum": a.reshape(20, R) @ b}, {}


def maxtext():
    a, b = array(7, 2, R), array(R, 2, 4, 5)
    tree = {"decoder": {"query": {"lora_a.kernel": a, "lora_b.kernel": b}}}
    deltas = {
        f"decoder/query/{i}": a[:, i] @ b[:, i].reshape(R, 20) * ALPHA / R
        for i in range(2)
    }
    return tree, deltas, {"alpha": ALPHA, "stack_axis": 1}


def maxtext_qwix():
    a, b = array(7, 2, R), array(R, 2, 20)
    query = {"kernel_lora_a": a, "kernel_lora_b": b}
    tree = {"decoder": {"layers": {"self_attention": {"query": query}}}}
    path = "decoder/layers/self_attention/query"
    deltas = {f"{path}/{i}": a[:, i] @ b[:, i] * ALPHA / R for i in range(2)}
    return tree, deltas, {"alpha": ALPHA, "stack_axis": 1}


def lorax():
    a, b = array(R, 5), array(8, R)
    tree = {"dense": {"kernel": {"w": array(8, 5), "a": a, "b": b}}}
    return tree, {"dense": b @ a * ALPHA / R}, {"alpha": ALPHA}


def levanter():
    a, b = array(2, R, 7), array(2, 4, 5, R)
    factors = {"lora_A": {"weight": a}, "lora_B": {"weight": b}}
    tree = {"layers": {"stacked": {"q_proj": {"lora": factors}}}}
    deltas = {
        f"layers/q_proj/{i}": (b[i].reshape(20, R) @ a[i]).T * ALPHA / R
        for i in range(2)
    }
    return tree, deltas, {"alpha": ALPHA, "stack_axis": 0}


def linen():
    a, b = array(2, 8, R), array(2, R, 5)
    tree = {"lora": {"mlp": {"a": a, "b": b}}}
    return tree, {f"mlp/{i}": a[i] @ b[i] * 0.5 for i in range(2)}, {"scale": 0.5}


def torch_model(deltas):
    """Return nested torch modules with an all-zero linear layer at each path."""
    model = torch.nn.Module()
    model.forward = lambda x: x
    for path, delta in deltas.items():
        *parents, name = path.split("/")
        node = model
        for part in parents:
            if not hasattr(node, part):
                node.add_module(part, torch.nn.Module())
            node = getattr(node, part)
        layer = torch.nn.Linear(*delta.shape, bias=False)
        torch.nn.init.zeros_(layer.weight)
        node.add_module(name, layer)
    return model


CASES = [
    pytest.param(case, marks=pytest.mark.layout(name, "to PEFT"), id=case.__name__)
    for name, case in (
        ("flax.nnx", nnx),
        ("qwix (Linen)", qwix),
        ("qwix (NNX)", qwix),
        ("qwix (Linen)", scanned),
        ("tunix", tunix),
        ("gemma", gemma),
        ("MaxText", maxtext),
        ("MaxText (qwix)", maxtext_qwix),
        ("jax-lorax", lorax),
        ("levanter", levanter),
        ("Linen", linen),
    )
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("gamma", [1.0, 0.67])
def test_peft_adds_the_update_that_the_tree_holds(case, gamma, tmp_path):
    tree, deltas, facts = case()
    ocp.save(tmp_path / "run", tree)

    parent = para.load(tmp_path / "run", **facts)
    child = para.compress(parent, para.Gamma(gamma, scope="local"))
    para.save(child, tmp_path / "adapter", format="peft")
    model = peft.PeftModel.from_pretrained(torch_model(deltas), tmp_path / "adapter")

    modules = dict(model.base_model.model.named_modules())
    for path, delta in deltas.items():
        u, s, vt = np.linalg.svd(delta.astype(np.float64), full_matrices=False)
        keep = int(R * gamma + 1e-9)
        want = (u[:, :keep] * s[:keep]) @ vt[:keep]
        x = torch.eye(delta.shape[0])
        with torch.no_grad():
            got = modules[path.replace("/", ".")](x).numpy()
        np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


@pytest.mark.layout("SkyRL tx", "to PEFT")
def test_peft_adds_the_update_of_one_slot(tmp_path):
    a, b = array(2, 3, 7, R + 1), array(2, 3, R + 1, 5)
    a[:, 1, :, R:] = 0  # The slot's own rank is R.
    factors = {
        "lora_A": a,
        "lora_B": b,
        "lora_ranks": np.full((2, 3), R),
        "lora_scaling": np.full((2, 3), ALPHA / R, np.float32),
    }
    parent = para.from_tree({"layers": {"_stacked": {"o_proj": factors}}}, slot=1)

    para.save(parent, tmp_path / "adapter", format="peft")

    deltas = {f"layers/o_proj/{i}": a[i, 1] @ b[i, 1] * ALPHA / R for i in range(2)}
    model = peft.PeftModel.from_pretrained(torch_model(deltas), tmp_path / "adapter")
    modules = dict(model.base_model.model.named_modules())
    for path, delta in deltas.items():
        with torch.no_grad():
            got = modules[path.replace("/", ".")](torch.eye(7)).numpy()
        np.testing.assert_allclose(got, delta, atol=1e-5 * np.abs(delta).max())


@pytest.mark.parametrize("case", CASES)
def test_the_child_in_its_own_tree_reads_back_with_no_hint(case, tmp_path):
    tree, _, facts = case()
    child = para.compress(para.from_tree(tree, **facts), para.Gamma(0.67))

    para.save(child, tmp_path / "child", format="orbax")
    got = para.load(tmp_path / "child")

    want = para.from_tree(
        para.to_tree(child),
        **({"scale": 1.0} if facts else {}) | {"stack_axis": facts.get("stack_axis")},
    )
    assert got.adapters.keys() == want.adapters.keys()
    assert jax.tree.map(np.shape, para.to_tree(got)) == jax.tree.map(
        np.shape, para.to_tree(child)
    )
    for path, x in got.adapters.items():
        np.testing.assert_array_equal(x.a, want.adapters[path].a, err_msg=path)
        np.testing.assert_array_equal(x.b, want.adapters[path].b, err_msg=path)
