"""Test trees of SkyRL's tx, whose own Qwen 3 runs the child in one of its slots.

The engine around the model (a server, a database, remote storage) is stood in for; the
layers, the models, the export and its reader are tx's own code.
"""

import dataclasses
import functools
import importlib
import importlib.util
import sys
import types
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import safetensors.numpy
from flax import nnx

import para_jax

pytestmark = [
    # tx 0.4.0 asks flax by names that it will drop.
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
]
NAME = "SkyRL tx"
SLOTS, ROOM, RANK, ALPHA = 3, 5, 4, 6.0
SLOT = 2
STANDS_IN = (
    "skyrl.tinker",
    "skyrl.tinker.types",
    "skyrl.utils.storage",
    "cloudpathlib",
)
CONFIG = {
    "vocab_size": 23,
    "hidden_size": 12,
    "intermediate_size": 14,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 4,
    "tie_word_embeddings": False,
    "max_position_embeddings": 16,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"},
}
EXPERTS = {
    "num_experts": 2,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 9,
    "norm_topk_prob": True,
}
TOKENS = jnp.array([[3, 5, 7, 11, 2], [1, 22, 0, 4, 9]])


@pytest.fixture(scope="module")
def tx():
    """Return tx's modules in use."""
    if importlib.util.find_spec("skyrl") is None:
        pytest.skip("not installed: skyrl")
    with pytest.MonkeyPatch.context() as patch:
        for name in STANDS_IN:
            module: Any = types.ModuleType(name)
            module.__path__ = []
            module.__getattr__ = lambda attribute: mock.MagicMock(name=attribute)
            patch.setitem(sys.modules, name, module)
        found = {
            name: importlib.import_module(f"skyrl.tx.{path}")
            for name, path in {
                "lora": "layers.lora",
                "qwen3": "models.qwen3",
                "configs": "models.configs",
                "utils": "utils.models",
            }.items()
        }
        yield types.SimpleNamespace(**found)
        for name in [x for x in sys.modules if x.split(".")[0] == "skyrl"]:
            patch.delitem(sys.modules, name)


@dataclasses.dataclass(frozen=True)
class Case:
    """Hold a model with an adapter of random factors in each slot but the first."""

    tx: Any
    model: Any

    @property
    def state(self):
        return nnx.state(self.model)

    @functools.cached_property
    def parent(self):
        return para_jax.from_tree(self.state, slot=SLOT)

    @functools.cached_property
    def run(self):
        graph, _ = nnx.split(self.model)

        @jax.jit
        def run(state, slots):
            model = nnx.merge(graph, state)
            hidden = model(
                TOKENS, attention_mask=jnp.ones_like(TOKENS), adapter_indices=slots
            ).last_hidden_state
            return model.compute_logits(hidden, slots)

        return run

    def outputs(self, state=None, slot=SLOT):
        """Return tx's outputs for a batch whose rows all use one slot."""
        slots = jnp.full(len(TOKENS), slot)
        # tx's norms multiply [D] with [B, T, D].
        with jax.set_mesh(mesh()), jax.numpy_rank_promotion("allow"):
            return np.asarray(self.run(self.state if state is None else state, slots))


def mesh():
    kinds = (jax.sharding.AxisType.Auto,) * 3
    return jax.make_mesh((1, 1, 1), ("fsdp", "ep", "tp"), axis_types=kinds)


def config(rank, **changes):
    found = {"train_attn": True, "train_mlp": True, "train_unembed": True, "seed": 0}
    return types.SimpleNamespace(rank=rank, alpha=ALPHA, **found | changes)


@pytest.fixture(scope="module", params=["dense", "experts"])
def case(tx, request):
    transformers = importlib.import_module("transformers")
    kind = transformers.Qwen3Config
    more = {}
    if request.param == "experts":
        kind, more = transformers.Qwen3MoeConfig, EXPERTS
    with jax.set_mesh(mesh()):
        model = tx.qwen3.Qwen3ForCausalLM(
            tx.configs.Qwen3Config(
                kind(**CONFIG, **more),
                max_lora_adapters=SLOTS,
                max_lora_rank=ROOM,
                shard_attention_heads=False,
            ),
            dtype=jnp.float32,
            rngs=nnx.Rngs(0),
        )
        tx.lora.init_lora_adapter(model, 1, config(ROOM))
        tx.lora.init_lora_adapter(model, SLOT, config(RANK))
    nnx.update(model, jax.tree.map_with_path(filled, nnx.state(model)))
    return Case(tx, model)


def filled(path, x):
    """Return random values in place of the zeros that `lora_B` has at first."""
    if path[-2].key != "lora_B":
        return x
    rng = np.random.default_rng(x.size)
    # Those behind a slot's rank have no effect: `lora_A` is zero there.
    return jnp.asarray(0.5 * rng.normal(size=x.shape), x.dtype)


def leaves(tree):
    found, _ = jax.tree_util.tree_flatten_with_path(tree)
    names = (
        [jax.tree_util.keystr((x,), simple=True) for x in path] for path, _ in found
    )
    return {
        "/".join(x for x in name if x != "value"): np.asarray(value)
        for name, (_, value) in zip(names, found, strict=True)
        if "rngs" not in name
    }


def close(got, want, tolerance=2e-5):
    np.testing.assert_allclose(got, want, atol=tolerance * np.abs(want).max())


@pytest.mark.layout(NAME, "found")
def test_one_slot_is_read_at_its_own_rank_and_scale(case):
    parent, state = case.parent, leaves(case.state)

    assert parent.tree.layout == "tx"
    assert len(parent.adapters) == sum(x.endswith("lora_A") for x in state)
    for pair in parent.tree.pairs:
        x, key = parent.adapters[pair.path], "/".join(pair.a[:-1])
        at = (slice(None), SLOT) if "_stacked" in pair.a else (SLOT,)
        # tx divides the rank of experts by their number.
        rank = RANK // EXPERTS["num_experts"] if "experts" in pair.a else RANK
        assert x.scale == pytest.approx(ALPHA / rank)
        a, b = state[f"{key}/lora_A"][at], state[f"{key}/lora_B"][at]
        np.testing.assert_array_equal(x.a, a[..., :rank])
        np.testing.assert_array_equal(x.b, b[..., :rank, :])
        assert not a[..., rank:].any()


@pytest.mark.layout(NAME, "put back", "compressed")
def test_only_the_slot_changes(case):
    child = para_jax.compress(case.parent, para_jax.Gamma(0.25))

    tree = para_jax.to_tree(child)

    assert jax.tree.structure(tree) == jax.tree.structure(case.state)
    ranks = para_jax.layouts.module_ranks(child)
    old, new = leaves(case.state), leaves(tree)
    for key, value in new.items():
        if "lora_" not in key:
            np.testing.assert_array_equal(value, old[key])
            continue
        axis = 1 if "_stacked" in key else 0
        own = np.take(value, SLOT, axis)
        others = [np.delete(x, SLOT, axis) for x in (value, old[key])]
        np.testing.assert_array_equal(*others, err_msg=key)
        assert value.shape == old[key].shape
        rank = ranks[key.rpartition("/")[0]]
        if key.endswith("lora_ranks"):
            assert (own == rank).all()
        elif key.endswith("lora_scaling"):
            assert (own == 1).all()
        else:
            behind = own[..., rank:] if key.endswith("A") else own[..., rank:, :]
            assert not behind.any()


@pytest.mark.layout(NAME, "forward", "compressed")
def test_tx_runs_the_child_as_the_parent_at_full_budget(case):
    child = para_jax.compress(case.parent, para_jax.Gamma(1.0))
    tree = para_jax.to_tree(child)

    close(case.outputs(tree), case.outputs())
    np.testing.assert_array_equal(case.outputs(tree, 1), case.outputs(slot=1))


@pytest.mark.layout(NAME, "forward", "compressed")
def test_tx_runs_a_quarter_as_the_base_with_our_updates(case):
    child = para_jax.compress(case.parent, para_jax.Gamma(0.25))

    got = case.outputs(para_jax.to_tree(child))

    # Slot 0 is not in use, so its `lora_A` is zero: the plain base.
    close(got, case.outputs(base_with(case, child), slot=0))
    assert np.abs(got - case.outputs()).max() > 1e-3 * np.abs(got).max()


def base_with(case, child):
    """Return the state with the child's updates added to the kernels by NumPy."""
    deltas = {}
    for pair in case.parent.tree.pairs:
        parent = case.parent.adapters[pair.path]
        delta = np.zeros((*parent.stack, parent.inputs, parent.outputs))
        for index in np.ndindex(parent.stack):
            name = "/".join([pair.path, *map(str, index)])
            if name in child.adapters:
                x = child.adapters[name]
                delta[index] = np.asarray(x.a, float) @ np.asarray(x.b, float) * x.scale
        deltas["/".join(pair.a[:-1])] = delta

    def add(path, x):
        names = [getattr(y, "key", None) or getattr(y, "name", "") for y in path]
        *module, name = [str(y) for y in names if y != "value"]
        delta = deltas.get("/".join(module))
        return x if delta is None or "lora" in name else x + delta.astype(np.float32)

    return jax.tree.map_with_path(add, case.state)


def test_a_tied_embedding_is_cut_where_tx_adapts_it(case):
    """tx adapts the lookup alone, so its update is one of the embedding's rows."""
    x = case.parent.adapters["model/embed_tokens"]

    assert (x.inputs, x.outputs) == (CONFIG["vocab_size"], CONFIG["hidden_size"])


def test_modules_that_the_adapter_does_not_train_are_left_out(case):
    with jax.set_mesh(mesh()):
        graph, state = nnx.split(case.model)
        model = nnx.merge(graph, state)
        only_attention = config(RANK, train_mlp=False, train_unembed=False)
        case.tx.lora.init_lora_adapter(model, 1, only_attention)

    parent = para_jax.from_tree(nnx.state(model), slot=1)

    assert all("self_attn" in path for path in parent.adapters)
    assert len(parent.adapters) == 2


def exported(case, folder):
    """Write the slot as `save_lora_checkpoint` does, but for its archive."""
    chosen = config(RANK)
    with jax.set_mesh(mesh()):
        case.tx.utils.save_safetensors(
            case.model.config,
            case.model,
            folder / "adapter_model.safetensors",
            prefix="base_model.model.",
            filter_fn=lambda path: "lora_A" in path or "lora_B" in path,
            adapter_index=SLOT,
            rank=chosen.rank,
        )
    peft.LoraConfig(r=chosen.rank, lora_alpha=chosen.alpha).save_pretrained(folder)


@pytest.mark.parametrize("case", ["dense"], indirect=True)
def test_an_export_reads_as_its_slot_with_its_embedding(case, tmp_path):
    exported(case, tmp_path)

    found = para_jax.load(tmp_path)

    def update(x):
        return x.scale * np.asarray(x.a, float) @ np.asarray(x.b, float)

    slot = case.parent.adapters
    assert found.layers["model/embed_tokens"].kind == "embedding"
    for path in ("model/embed_tokens", "lm_head"):
        close(update(found.adapters[path]), update(slot[path]))
    fused = update(slot["model/layers/self_attn/qkv_proj"])
    kv, size = CONFIG["num_key_value_heads"], CONFIG["head_dim"]
    q = CONFIG["num_attention_heads"] // kv * size
    groups = fused.reshape(*fused.shape[:2], kv, q + 2 * size)
    parts = np.split(groups, [q, q + size], axis=-1)
    for name, part in zip("qkv", parts, strict=True):
        for i in range(CONFIG["num_hidden_layers"]):
            got = update(found.adapters[f"model/layers/{i}/self_attn/{name}_proj"])
            close(got, part[i].reshape(len(got), -1))
    para_jax.save(found, tmp_path / "again", format="peft")
    tensors = safetensors.numpy.load_file(tmp_path / "again/adapter_model.safetensors")
    names = [x for x in tensors if "embed_tokens" in x]
    assert all("lora_embedding_" in x for x in names)


@pytest.mark.parametrize("case", ["experts"], indirect=True)
def test_an_export_of_experts_lacks_weights_and_is_refused_for_it(case, tmp_path):
    exported(case, tmp_path)

    tensors = safetensors.numpy.load_file(tmp_path / "adapter_model.safetensors")
    # [R, r] of [R, in]: the reason to refuse it.
    down = tensors["model.layers.0.mlp.experts.0.down_proj.lora_A"]
    assert down.shape == (ROOM, RANK)
    assert EXPERTS["moe_intermediate_size"] > RANK

    with pytest.raises(ValueError, match=r"experts.0.down_proj.lora_A.*slot=\.\.\."):
        para_jax.load(tmp_path)


def test_a_slot_has_no_room_for_more_than_its_ranks(case):
    child = para_jax.compress(case.parent, para_jax.Gamma(1.0))

    with pytest.raises(ValueError, match=f"have room for {ROOM}"):
        para_jax.to_tree(child, rank=ROOM + 1)
    tree = leaves(para_jax.to_tree(child, rank=ROOM))
    assert all(
        (np.take(x, SLOT, -1) == ROOM).all()
        for key, x in tree.items()
        if key.endswith("lora_ranks")
    )
