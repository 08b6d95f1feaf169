"""Test trees of tunix's own models, adapted as tunix does it: qwix on NNX.

The models are from google-tunix 0.1.7. Its `__init__` imports all of its trainers and
their many dependencies. The models need none of them, so an empty package stands in for
it here. LoRA is applied as in `tunix/cli/utils/model.py`, with the rank and alpha of
one `lora_config`.
"""

import functools
import importlib
import importlib.util
import pathlib
import sys
import types
import warnings

import flax
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import qwix
from flax import nnx

import para_jax

# tunix 0.1.7 and qwix 0.1.8 ask flax 0.12.8 and jax 0.10.2 by many names that these
# will drop.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
RANK, ALPHA = 4, 10.0
EVERYTHING = ".*(_einsum|_proj)"
QUARTER = para_jax.Gamma(0.25)

# The shape of a kernel, where its update [m, n] is split into m axes and n axes, and
# how these are transposed to the kernel's. D = 6, N = 2, K = 1, H = 4, F = 7.
GEMMA3 = {
    "attn/attn_vec_einsum": ((2, 4, 6), (2, 4, 4), (4, 6), (2, 4, 6), (0, 1, 2)),
    "attn/kv_einsum": ((2, 1, 6, 4), (6, 4), (4, 2, 1, 4), (6, 2, 1, 4), (1, 2, 0, 3)),
    "attn/q_einsum": ((2, 6, 4), (6, 4), (4, 2, 4), (6, 2, 4), (1, 0, 2)),
}
GEMMA3_MHA = {
    "attn/attn_vec_einsum": ((2, 4, 6), (2, 4, 4), (4, 6), (2, 4, 6), (0, 1, 2)),
    "attn/qkv_einsum": ((3, 2, 6, 4), (6, 4), (4, 3, 2, 4), (6, 3, 2, 4), (1, 2, 0, 3)),
}
MLP = {
    "mlp/down_proj": ((7, 6), (7, 4), (4, 6), (7, 6), (0, 1)),
    "mlp/gate_proj": ((6, 7), (6, 4), (4, 7), (6, 7), (0, 1)),
    "mlp/up_proj": ((6, 7), (6, 4), (4, 7), (6, 7), (0, 1)),
}
LLAMA = {
    "attn/k_proj": ((6, 1, 4), (6, 4), (4, 1, 4), (6, 1, 4), (0, 1, 2)),
    "attn/o_proj": ((2, 4, 6), (2, 4, 4), (4, 6), (2, 4, 6), (0, 1, 2)),
    "attn/q_proj": ((6, 2, 4), (6, 4), (4, 2, 4), (6, 2, 4), (0, 1, 2)),
    "attn/v_proj": ((6, 1, 4), (6, 4), (4, 1, 4), (6, 1, 4), (0, 1, 2)),
}
MODULES = {
    "gemma3": GEMMA3 | MLP,
    "gemma3, as many key heads": GEMMA3_MHA | MLP,
    "llama3": LLAMA | MLP,
    "qwen3": LLAMA | MLP,
}
PARTS = {"attn/kv_einsum": "kv", "attn/qkv_einsum": "qkv"}


@pytest.fixture(scope="module", autouse=True)
def tunix():
    """Make tunix's models importable without the rest of tunix."""
    spec = importlib.util.find_spec("tunix")
    package = types.ModuleType("tunix")
    package.__path__ = [str(pathlib.Path(spec.origin).parent)]
    before = flax.config.flax_always_shard_variable  # Its models turn it off.
    with (
        pytest.MonkeyPatch.context() as patch,
        warnings.catch_warnings(),
        jax.numpy_rank_promotion("allow"),  # Its norms promote.
    ):
        warnings.simplefilter("ignore", DeprecationWarning)
        patch.setitem(sys.modules, "tunix", package)
        for name in ("gemma3", "llama3", "qwen3"):
            importlib.import_module(f"tunix.models.{name}.model")
        yield
    for name in [x for x in sys.modules if x.split(".")[0] == "tunix"]:
        del sys.modules[name]
    flax.config.update("flax_always_shard_variable", before)


def layers(name):
    return 2 if name == "gemma3" else 1


def build(name):
    family = name.split(",")[0]
    model = sys.modules[f"tunix.models.{family}.model"]
    sizes = {
        "num_layers": layers(name),
        "embed_dim": 6,
        "hidden_dim": 7,
        "num_heads": 2,
    }
    sizes |= {"head_dim": 4, "num_kv_heads": 2 if "," in name else 1}
    if family == "gemma3":
        sizes |= {"num_embed": 11, "sliding_window_size": 3}
        config = model.ModelConfig(**sizes, param_dtype=jnp.float32)
        return model.Gemma3(config, rngs=nnx.Rngs(0))
    extra = {"vocab_size": 11, "rope_theta": 10_000, "norm_eps": 1e-6}
    config = model.ModelConfig(**sizes, **extra)
    kind = model.Llama3 if family == "llama3" else model.Qwen3
    return kind(config, rngs=nnx.Rngs(0))


def adapted(name, provider):
    """Return the model as adapted by tunix, without arrays."""

    def make():
        model = build(name)
        return qwix.apply_lora_to_model(
            model, provider, **model.get_model_input(), rngs=nnx.Rngs(1)
        )

    return nnx.eval_shape(make)


def uniform():
    return qwix.LoraProvider(module_path=EVERYTHING, rank=RANK, alpha=ALPHA)


@functools.cache
def tree_of(name):
    """Return the tree of an adapted model, filled with random numbers."""
    shapes = nnx.to_pure_dict(nnx.state(adapted(name, uniform())))
    rng = np.random.default_rng(3)
    return jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape) / 2, jnp.float32), shapes
    )


def outputs(model, tree):
    nnx.update(model, tree)
    tokens = jnp.asarray([[3, 1, 4, 1, 5], [9, 2, 6, 5, 8]])
    positions = jnp.broadcast_to(jnp.arange(5), (2, 5))
    mask = jnp.broadcast_to(jnp.tril(jnp.ones((5, 5), bool)), (2, 5, 5))
    run = nnx.jit(lambda model: model(tokens, positions, None, mask)[0])
    return np.asarray(run(model))


def forward(name, tree, rules):
    return outputs(adapted(name, qwix.LoraProvider(rules)), tree)


def plain(name, tree, adapters):
    """Return the output of the model without LoRA, with the updates in its kernels."""
    leaves = flat(tree)
    for layer in range(layers(name)):
        for path, (_, _, _, split, order) in MODULES[name].items():
            module = f"layers/{layer}/{path}"
            names = [f"{module}/{x}" for x in PARTS.get(path, "")] or [module]
            parts = [update(adapters, x, split, len(names)) for x in names]
            delta = np.concatenate(parts, axis=-1).reshape(split).transpose(order)
            key = f"{module}/{weight(path)}"
            leaves[key] = jnp.asarray(np.asarray(leaves[key]) + delta, jnp.float32)
    base = nested({k: x for k, x in leaves.items() if "_lora_" not in k})
    return outputs(nnx.eval_shape(lambda: build(name)), base)


def update(adapters, name, split, parts):
    inputs = np.prod(
        split[:-1] if name.endswith(("vec_einsum", "o_proj")) else split[0]
    )
    if name not in adapters:
        return np.zeros((int(inputs), np.prod(split) // inputs // parts))
    x = adapters[name]
    return x.scale * np.asarray(x.a, np.float64) @ np.asarray(x.b, np.float64)


def weight(path):
    return "kernel" if path.startswith("mlp") else "w"


def flat(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves
    }


def nested(leaves):
    result = {}
    for path, value in leaves.items():
        *parents, name = path.split("/")
        node = result
        for part in parents:
            node = node.setdefault(int(part) if part.isdigit() else part, {})
        node[name] = value
    return result


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def found(name):
    """Return the expected adapters: each one's a, b and scale."""
    result = {}
    for layer in range(layers(name)):
        for path, (_, a, b, _, _) in MODULES[name].items():
            inputs, outputs = int(np.prod(a[:-1])), int(np.prod(b[1:]))
            parts = PARTS.get(path, "")
            form = (inputs, RANK), (RANK, outputs // (len(parts) or 1)), ALPHA / RANK
            names = [f"{path}/{x}" for x in parts] or [path]
            result |= {f"layers/{layer}/{x}": form for x in names}
    return result


models = pytest.mark.parametrize("name", list(MODULES))


@pytest.mark.layout("tunix", "found")
@models
def test_every_projection_is_found_and_the_fused_ones_in_parts(name):
    parent = para_jax.from_tree(tree_of(name), alpha=ALPHA)

    assert parent.tree.layout == "tunix"
    got = {k: (x.a.shape, x.b.shape, x.scale) for k, x in parent.adapters.items()}
    assert got == found(name)


@pytest.mark.layout("tunix", "compressed")
@models
def test_the_child_is_the_truncation_of_all_updates_by_one_threshold(name):
    parent = para_jax.from_tree(tree_of(name), alpha=ALPHA)

    child = para_jax.compress(parent, QUARTER).adapters

    spectra = {
        path: np.linalg.svd(
            x.scale * np.asarray(x.a, np.float64) @ np.asarray(x.b, np.float64),
            full_matrices=False,
        )
        for path, x in parent.adapters.items()
    }
    pool = -np.sort(-np.concatenate([s[:RANK] for _, s, _ in spectra.values()]))
    threshold = pool[len(pool) // 4 - 1]
    for path, (u, s, vt) in spectra.items():
        want = (u * np.where(s >= threshold, s, 0)) @ vt
        got = np.asarray(child[path].a @ child[path].b) if path in child else 0 * want
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * s[0])


@pytest.mark.layout("tunix", "put back")
@models
@pytest.mark.slow
def test_the_whole_child_put_back_computes_what_the_parent_does(name):
    tree = tree_of(name)

    child = para_jax.compress(
        para_jax.from_tree(tree, alpha=ALPHA), para_jax.Gamma(1.0)
    )

    rules = para_jax.layouts.qwix_rules(child)
    want = outputs(adapted(name, uniform()), tree)
    close(forward(name, para_jax.to_tree(child), rules), want)


@pytest.mark.layout("tunix", "forward")
@models
@pytest.mark.slow
def test_tunix_runs_the_child_as_its_base_model_with_our_update_in_the_kernels(name):
    tree = tree_of(name)
    child = para_jax.compress(para_jax.from_tree(tree, alpha=ALPHA), QUARTER)

    rules = para_jax.layouts.qwix_rules(child)
    got = forward(name, para_jax.to_tree(child), rules)

    close(got, plain(name, tree, child.adapters))


@pytest.mark.layout("tunix", "put back")
@models
def test_the_written_tree_has_the_names_and_axes_of_the_read_one(name):
    tree = tree_of(name)
    child = para_jax.compress(para_jax.from_tree(tree, alpha=ALPHA), QUARTER)

    got = {path: x.shape for path, x in flat(para_jax.to_tree(child)).items()}

    want = {path: x.shape for path, x in flat(tree).items()}
    for layer in range(layers(name)):
        for path, (kernel, a, b, _, _) in MODULES[name].items():
            module = f"layers/{layer}/{path}"
            parts = [f"{module}/{x}" for x in PARTS.get(path, "")] or [module]
            kept = [child.adapters[x].rank for x in parts if x in child.adapters]
            rank, key = min(max(sum(kept), 1), RANK), f"{module}/{weight(path)}"
            assert want[key] == kernel
            want[f"{key}_lora_a"] = (*a[:-1], rank)
            want[f"{key}_lora_b"] = (rank, *b[1:])
    assert got == want


def test_one_lora_config_runs_the_child_that_is_padded_to_one_rank():
    tree = tree_of("gemma3")
    child = para_jax.compress(para_jax.from_tree(tree, alpha=ALPHA), QUARTER)
    rank = max(para_jax.layouts.module_ranks(child).values())

    provider = qwix.LoraProvider(module_path=EVERYTHING, rank=rank, alpha=rank)
    model = adapted("gemma3", provider)
    got = outputs(model, para_jax.to_tree(child, rank=rank))

    close(got, plain("gemma3", tree, child.adapters))


@pytest.mark.layout("tunix", "found")
@pytest.mark.parametrize("kind", [nnx.Param, nnx.LoRAParam])
@pytest.mark.slow
def test_a_checkpoint_as_tunix_writes_it_gives_the_same_child(tmp_path, kind):
    tree = tree_of("gemma3")
    model = adapted("gemma3", uniform())
    nnx.update(model, tree)
    state = {"model_params": nnx.state(model, kind)}
    checkpointer = ocp.PyTreeCheckpointer()
    checkpointer.save(tmp_path / "7" / "model_params", state["model_params"])

    form = checkpointer.metadata(tmp_path / "7" / "model_params").item_metadata.tree
    restored = checkpointer.restore(
        tmp_path / "7" / "model_params",
        restore_args=jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), form
        ),
    )

    assert set(restored["layers"]["0"]["attn"]["q_einsum"]["w_lora_a"]) == {"value"}
    parent = para_jax.from_tree({"model_params": restored}, alpha=ALPHA)
    assert parent.tree.layout == "tunix"
    child = para_jax.compress(parent, QUARTER)
    want = para_jax.compress(para_jax.from_tree(tree, alpha=ALPHA), QUARTER)
    assert child.adapters.keys() == want.adapters.keys()
    got = flat(para_jax.to_tree(child)["model_params"])
    assert {x.split("/")[-1] for x in got} == {"value"}
    leaves = flat(para_jax.to_tree(want))
    for path, x in got.items():
        np.testing.assert_allclose(x, leaves[path.removesuffix("/value")], atol=1e-6)
    rules = para_jax.layouts.qwix_rules(child)
    wanted = forward("gemma3", para_jax.to_tree(want), rules)
    close(forward("gemma3", nested(without_value(got, leaves)), rules), wanted)


def without_value(restored, leaves):
    """Return restored leaves in the keys of NNX, over those of the base model."""
    return leaves | {
        k.removesuffix("/value"): jnp.asarray(x) for k, x in restored.items()
    }


@pytest.mark.layout("tunix", "found")
def test_a_head_that_is_adapted_too_leaves_the_fused_projections_in_parts():
    tree = dict(tree_of("gemma3"))
    tree["lm_head"] = {"w_lora_a": np.ones((6, 4)), "w_lora_b": np.ones((4, 11))}

    parent = para_jax.from_tree(tree, alpha=ALPHA)

    assert parent.tree.layout == "tunix"
    assert {"lm_head", "layers/1/attn/kv_einsum/v"} <= parent.adapters.keys()
