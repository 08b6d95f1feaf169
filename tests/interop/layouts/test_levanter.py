"""Test trees of levanter, whose `LoraLinear` runs the children inside haliax's scan.

levanter's module of LoRA imports a trainer, tokenizers and uploads for names that its
forward pass does not use. Stand-ins supply these; `LoraLinear`, `loraize`, the export
and all of haliax are the libraries' own code.
"""

import importlib
import importlib.util
import pathlib
import sys
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import para_jax

pytestmark = [
    # haliax asks JAX by names that it will drop.
    pytest.mark.filterwarnings("ignore:jax.*is deprecated:DeprecationWarning"),
]
NAME = "levanter"
RANK, ALPHA, LAYERS = 3, 7.0, 3
PATHS = ["q_proj", "o_proj", "up_proj", "down_proj"]
STANDS_IN = (
    "levanter.callbacks",
    "levanter.compat",
    "levanter.compat.hf_checkpoints",
    "levanter.tokenizers",
    "levanter.utils.cloud_utils",
    "levanter.utils.logging",
    "levanter.utils.mesh",
    "transformers",
    "transformers.utils",
)


def stand_in(name):
    module = types.ModuleType(name)
    module.__path__ = []
    module.__getattr__ = lambda attribute: mock.MagicMock(name=attribute)
    return module


@pytest.fixture(scope="module")
def levanter():
    """Return `levanter.adaptor.lora`, and haliax."""
    for name in ("levanter", "haliax", "equinox", "aqt"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"not installed: {name}")
    root = pathlib.Path(importlib.util.find_spec("levanter").origin).parent
    with pytest.MonkeyPatch.context() as patch:
        # The packages' own `__init__` would import the whole trainer.
        for name in ("levanter", "levanter.adaptor", "levanter.utils"):
            module = types.ModuleType(name)
            module.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
            patch.setitem(sys.modules, name, module)
        for name in STANDS_IN:
            patch.setitem(sys.modules, name, stand_in(name))
        yield importlib.import_module("levanter.adaptor.lora")
        for name in [x for x in sys.modules if x.startswith("levanter.")]:
            patch.delitem(sys.modules, name)


def haliax():
    return importlib.import_module("haliax")


def equinox():
    return importlib.import_module("equinox")


def block_class():
    hax, hnn = haliax(), haliax().nn

    class Block(equinox().Module):
        q_proj: hnn.Linear
        o_proj: hnn.Linear
        up_proj: hnn.Linear
        down_proj: hnn.Linear

        @staticmethod
        def init(embed, heads, mlp, *, key):
            keys = jax.random.split(key, 4)
            make = hnn.Linear.init
            return Block(
                make(embed, heads, key=keys[0]),
                make(heads, embed, key=keys[1], out_first=False),
                make(embed, mlp, key=keys[2]),
                make(mlp, embed, key=keys[3]),
            )

        def __call__(self, x):
            x = x + self.o_proj(hax.tanh(self.q_proj(x)))
            return x + self.down_proj(hax.tanh(self.up_proj(x)))

    return Block


@pytest.fixture(scope="module", params=["Stacked", "BlockSeq"])
def model(levanter, request):
    """Return the model with random LoRA factors; its scan is the parameter."""
    hax = haliax()
    embed, mlp = hax.Axis("embed", 10), hax.Axis("mlp", 14)
    heads = (hax.Axis("kv_head", 2), hax.Axis("group", 3), hax.Axis("head_size", 2))
    kind = getattr(importlib.import_module("haliax.nn.scan"), request.param)
    Block = block_class()
    layers = kind.init(hax.Axis("layer", LAYERS), Block)(
        embed, heads, mlp, key=jax.random.split(jax.random.key(0), LAYERS)
    )
    config = levanter.LoraConfig(r=RANK, alpha=ALPHA)
    found = levanter.loraize({"layers": layers}, config, key=jax.random.key(1))
    return jax.tree.map(lambda x: noise(x) if hasattr(x, "shape") else x, found)


def noise(x):
    """Return random values; levanter makes one factor zero."""
    rng = np.random.default_rng(x.size)
    return jnp.asarray(0.5 * rng.normal(size=x.shape) / np.sqrt(x.shape[-1]), "f4")


def outputs(model):
    hax = haliax()
    x = hax.named(
        jnp.asarray(np.random.default_rng(5).normal(size=(6, 10)), jnp.float32),
        ("position", "embed"),
    )
    run = equinox().filter_jit(lambda m: m["layers"].fold(x).array)
    return np.asarray(run(model))


def modules(model):
    """Return each `LoraLinear` by our name of it; a list for one that is stacked."""
    layers = model["layers"]
    if hasattr(layers, "stacked"):
        return {f"layers/{x}": getattr(layers.stacked, x) for x in PATHS}
    return {
        f"layers/blocks/{i}/{x}": getattr(block, x)
        for i, block in enumerate(layers.blocks)
        for x in PATHS
    }


def factors(module):
    """Return `[*stack, m, r]` and `[*stack, r, n]` by haliax's own names of axes."""
    hax = haliax()
    lora_a, lora_b = module.lora.lora_A, module.lora.lora_B
    a = lora_a.weight.flatten_axes(lora_a.In, "m").rearrange((..., "m", "LORA_R"))
    b = lora_b.weight.flatten_axes(lora_b.Out, "n").rearrange((..., "LORA_R", "n"))
    assert isinstance(a, hax.NamedArray)
    return np.asarray(a.array, np.float64), np.asarray(b.array, np.float64)


def close(got, want, tolerance=1e-5):
    np.testing.assert_allclose(got, want, atol=tolerance * np.abs(want).max())


@pytest.mark.layout(NAME, "found")
def test_factors_are_read_by_the_names_of_their_axes(model):
    parent = para_jax.from_tree(model)

    assert parent.tree.layout == "levanter"
    want = modules(model)
    assert parent.adapters.keys() == want.keys()
    assert not parent.layers  # All are dense.
    for path, adapter in parent.adapters.items():
        a, b = factors(want[path])
        np.testing.assert_array_equal(adapter.a, a, err_msg=path)
        np.testing.assert_array_equal(adapter.b, b, err_msg=path)
        assert adapter.scale == pytest.approx(ALPHA / RANK)


@pytest.mark.layout(NAME, "put back", "compressed")
def test_the_childs_tree_has_levanters_classes_and_its_own_ranks(model):
    child = para_jax.compress(para_jax.from_tree(model), para_jax.Gamma(0.25))

    tree = para_jax.to_tree(child)

    ranks = para_jax.layouts.module_ranks(child)
    assert 1 in ranks.values()
    assert jax.tree.structure(tree) != jax.tree.structure(model)
    for path, module in modules(tree).items():
        assert type(module) is type(modules(model)[path])
        name = path if "blocks" in path else path.replace("layers/", "layers/stacked/")
        rank, lora = ranks[name], module.lora
        assert (lora.lora_A.Out.name, lora.lora_A.Out.size) == ("LORA_R", rank)
        assert lora.lora_B.In == lora.lora_A.Out
        assert dict(lora.lora_A.weight.shape)["LORA_R"] == rank
        assert lora.scale == 1.0
        assert module.wrapped is not None


@pytest.mark.layout(NAME, "forward", "compressed")
def test_levanter_runs_the_child_as_the_parent_at_full_budget(model):
    child = para_jax.compress(para_jax.from_tree(model), para_jax.Gamma(1.0))

    close(outputs(para_jax.to_tree(child)), outputs(model))


@pytest.mark.layout(NAME, "forward", "compressed")
def test_levanter_runs_a_quarter_as_the_base_with_our_updates(levanter, model):
    parent = para_jax.from_tree(model)
    child = para_jax.compress(parent, para_jax.Gamma(0.25))

    got = outputs(para_jax.to_tree(child))

    close(got, outputs(base_with(levanter, model, child)))
    assert np.abs(got - outputs(model)).max() > 1e-3 * np.abs(got).max()


def base_with(levanter, model, child):
    """Return the base model with the child's updates added by NumPy."""
    hax = haliax()
    base = levanter.unwrap_lora_modules(model)
    for path, module in modules(model).items():
        wrapped = module.wrapped
        stack = [x for x in wrapped.weight.axes if x.name == "layer"]
        sides = [hax.axis.axis_spec_to_tuple(x) for x in (wrapped.In, wrapped.Out)]
        one = update(child, path, tuple(x.size for x in stack), *sides)
        delta = hax.named(jnp.asarray(one), (*stack, *sides[0], *sides[1]))
        weight = wrapped.weight + delta.rearrange(wrapped.weight.axes)
        base = equinox().tree_at(
            lambda m, path=path: modules(m)[path].weight, base, weight
        )
    return base


def update(child, path, stack, inputs, outputs):
    m, n = (int(np.prod([x.size for x in side])) for side in (inputs, outputs))
    delta = np.zeros((*stack, m, n))
    for index in np.ndindex(stack):
        name = "/".join([path, *map(str, index)])
        if name in child.adapters:
            x = child.adapters[name]
            delta[index] = np.asarray(x.a, float) @ np.asarray(x.b, float) * x.scale
    shape = [x.size for side in (inputs, outputs) for x in side]
    return delta.reshape(*stack, *shape).astype(np.float32)


@pytest.mark.layout(NAME, "to PEFT")
def test_names_are_those_of_levanters_own_export(levanter, model):
    """Compare with `lora_state_dict`, which levanter writes for PEFT."""
    parent = para_jax.from_tree(model)
    exported = levanter.lora_state_dict(model, prefix="base")
    apart = "blocks" in next(iter(parent.adapters))
    pattern = "layers/blocks/{i}/" if apart else "layers/{}/{i}"

    table = {
        (pattern + x if apart else pattern.replace("{}", x)): f"base.layers.{{i}}.{x}"
        for x in PATHS
    }
    named = para_jax.names.to_hf(parent, table)

    assert len(named.adapters) == len(exported) / 2 == LAYERS * len(PATHS)
    for path, x in named.adapters.items():
        name = path.replace("/", ".")
        # torch's order.
        a, b = (exported[f"{name}.lora_{y}.weight"] for y in "AB")
        np.testing.assert_array_equal(np.asarray(x.a).T, a)
        np.testing.assert_array_equal(np.asarray(x.b).T, b)


def test_the_trainable_part_alone_is_read_by_its_names(levanter, model):
    """Its shapes alone would be read in two ways: as many layers as ranks."""
    _, alone = levanter.partition_lora_params(model)

    parent = para_jax.from_tree(alone)
    child = para_jax.to_tree(para_jax.compress(parent, para_jax.Gamma(1.0)))

    want = para_jax.from_tree(model)
    assert parent.adapters.keys() == want.adapters.keys()
    for path, x in parent.adapters.items():
        np.testing.assert_array_equal(x.a, want.adapters[path].a)
    base, _ = levanter.partition_lora_params(model)
    close(outputs(levanter.combine_lora_params(base, child)), outputs(model))


def test_the_child_merges_and_compresses_again(levanter, model):
    parent = para_jax.from_tree(model)
    child = para_jax.compress(parent, para_jax.Gamma(0.5))
    tree = para_jax.to_tree(child)

    again = para_jax.from_tree(tree)

    assert {x.scale for x in again.adapters.values()} == {1.0}
    assert again.tree.pairs[0].rank < RANK
    ranks = para_jax.layouts.module_ranks(child)
    assert para_jax.layouts.module_ranks(again) == ranks
    close(outputs(levanter.merge_lora_modules(tree)), outputs(tree))


def test_a_cut_inside_jit_keeps_the_classes(model):
    @equinox().filter_jit
    def cut(tree):
        parent = para_jax.from_tree(tree)
        spectra = para_jax.decompose(parent.adapters)
        kept = para_jax.masks(spectra, para_jax.Gamma(1.0))
        adapters = para_jax.repack(spectra, kept, parent.adapters, form="masked")
        return para_jax.to_tree(
            para_jax.Checkpoint(adapters=adapters, tree=parent.tree)
        )

    close(outputs(cut(model)), outputs(model))


def test_alpha_is_not_asked_for_and_not_taken(model):
    with pytest.raises(ValueError, match=r"'layers.*q_proj' holds its own scale"):
        para_jax.from_tree(model, alpha=ALPHA)


def test_a_plain_dict_needs_alpha(levanter):
    tree = {
        "up": {
            "wrapped": {"weight": np.ones((7, 5), np.float32)},
            "lora": {
                "lora_A": {"weight": np.ones((2, 5), np.float32)},
                "lora_B": {"weight": np.ones((7, 2), np.float32)},
            },
        }
    }

    with pytest.raises(
        ValueError, match=r"'up'.* levanter .*alpha=: alpha of the Lora"
    ):
        para_jax.from_tree(tree)
    parent = para_jax.from_tree(tree, alpha=8)
    assert parent.adapters["up"].a.shape == (5, 2)
    assert parent.adapters["up"].scale == 4
