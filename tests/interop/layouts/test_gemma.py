"""Test trees of `gm.nn.LoRA`, compressed and run again by gemma's own models.

gemma's Transformer imports a trainer (kauldron, and TensorFlow with it) and a tokenizer
(sentencepiece) for a handful of names, but none of them computes anything. Stand-ins
supply these names, so only gemma's own code runs here.
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
import jaxtyping
import numpy as np
import pytest
from flax import linen as nn

import para_jax

D, F, H, V = 10, 14, 6, 23  # Model, hidden, head, vocabulary.
RANK = 3
TOKENS = jnp.array([[3, 5, 7, 11, 2], [1, 22, 0, 4, 9]])
NAME = "gemma"


@pytest.fixture(scope="module")
def gemma():
    """Return the parts of `gm.nn` in use, and `gemma.peft`."""
    if importlib.util.find_spec("gemma") is None:
        pytest.skip("not installed: gemma")
    with pytest.MonkeyPatch.context() as patch:
        for name, module in _stand_ins().items():
            patch.setitem(sys.modules, name, module)
        nn_ = importlib.import_module("gemma.gm.nn")
        return types.SimpleNamespace(
            LoRA=nn_.LoRA,
            Einsum=nn_.Einsum,
            Transformer=nn_.Transformer,
            config=nn_.config.TransformerConfig,
            attention=nn_.config.AttentionType,
            peft=importlib.import_module("gemma.peft"),
            replace=importlib.import_module("gemma.gm.nn._lora")._replace_by_lora,
        )


def _stand_ins() -> dict[str, types.ModuleType]:
    class Identity(nn.Module):
        def __call__(self, x):
            return x

    class Shaped:
        """Stand in for kauldron's types: arrays take the shape, trees such a type."""

        def __class_getitem__(cls, shape):
            named = isinstance(shape, str)
            return jaxtyping.Shaped[jax.Array, shape] if named else shape

    types_of_arrays = {
        "typechecked": lambda function: function,
        "__getattr__": lambda name: Shaped,
    }
    contents: dict[str, dict[str, Any]] = {
        "dialog": {"__getattr__": lambda name: mock.MagicMock()},  # gemma 4
        "kauldron": {},
        "kauldron.kd": {"nn": types.SimpleNamespace(Identity=Identity)},
        "kauldron.kontext": {"Key": str, "REQUIRED": ""},
        "kauldron.ktyping": types_of_arrays,  # gemma 4
        # gemma 4 also accepts jaxtyping's annotations, so none is kauldron's.
        "kauldron.ktyping.array_type_meta": {"is_array_type": lambda annotation: False},
        "kauldron.typing": types_of_arrays,  # gemma 3
        "kauldron.utils": {"immutabledict": types.SimpleNamespace(ImmutableDict=dict)},
        "sentencepiece": {"sentencepiece_model_pb2": None},
    }
    modules = {name: types.ModuleType(name) for name in contents}
    for name, module in modules.items():
        vars(module).update(contents[name], __path__=[])
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(modules[parent], child, module)
    return modules


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """Hold a model, its random parameters with LoRA, and its children.

    Attributes:
      base: The model.
      lora: The same inside `gm.nn.LoRA`.
      params: The parameters of `lora`.
      inputs: The arguments of its call.
      places: For each adapter: the key of its kernel, the part of it (for a fused one),
        the sizes of the update's axes, and the einsum to the kernel's order.
    """

    base: nn.Module
    lora: nn.Module
    params: dict[str, Any]
    inputs: jax.Array
    places: dict[str, tuple[str, Any, tuple[int, ...], str]]

    @functools.cached_property
    def children(self):
        budgets = (1.0, 0.25)
        parent = para_jax.from_tree(self.params)
        found = para_jax.family(parent, [para_jax.Gamma(x) for x in budgets])
        return dict(zip(budgets, found, strict=True))

    @functools.cached_property
    def run(self):
        """Return the outputs of `gm.nn.LoRA` at the parent's rank."""
        return forward(self.lora, self.inputs)

    @functools.cached_property
    def run_base(self):
        return forward(self.base, self.inputs)

    @functools.cached_property
    def outputs(self):
        return self.run(self.params)


def forward(model, inputs):
    run = jax.jit(model.apply)
    return lambda params: output(run(params, inputs))


def output(y):
    return np.asarray(getattr(y, "logits", y))


def transformer(gemma, *, grouped):
    """Return a one-layer Gemma 3, with grouped queries or as many keys as queries."""
    heads = (4, 2) if grouped else (3, 3)
    config = gemma.config(
        num_embed=V,
        embed_dim=D,
        hidden_dim=F,
        num_heads=heads[0],
        head_dim=H,
        num_kv_heads=heads[1],
        final_logit_softcap=None,
        use_post_attn_norm=grouped,
        use_post_ffw_norm=grouped,
        attention_types=[gemma.attention.LOCAL_SLIDING],
        sliding_window_size=3,
        transpose_gating_einsum=grouped,
        use_qk_norm=grouped,
    )
    model = gemma.Transformer(config=config, dtype=jnp.float32, tokens="tokens")
    attn, mlp = "layer_0/attn", "layer_0/mlp"
    n, k = heads
    places = {
        f"{attn}/attn_vec_einsum": (f"{attn}/attn_vec_einsum/w", ..., (n, H, D), "nhd"),
        f"{mlp}/linear": (f"{mlp}/linear", ..., (F, D), "fd"),
    }
    if grouped:
        places |= {
            f"{attn}/q_einsum": (f"{attn}/q_einsum/w", ..., (D, n, H), "dnh->ndh"),
            f"{attn}/kv_einsum/k": (f"{attn}/kv_einsum/w", 0, (D, k, H), "dkh->kdh"),
            f"{attn}/kv_einsum/v": (f"{attn}/kv_einsum/w", 1, (D, k, H), "dkh->kdh"),
            f"{mlp}/gating_einsum/gate": (f"{mlp}/gating_einsum", 0, (D, F), "df->fd"),
            f"{mlp}/gating_einsum/up": (f"{mlp}/gating_einsum", 1, (D, F), "df->fd"),
        }
    else:
        places |= {
            f"{attn}/qkv_einsum/{name}": (
                f"{attn}/qkv_einsum/w",
                i,
                (D, n, H),
                "dnh->ndh",
            )
            for i, name in enumerate("qkv")
        } | {
            f"{mlp}/gating_einsum/gate": (f"{mlp}/gating_einsum", 0, (D, F), "df"),
            f"{mlp}/gating_einsum/up": (f"{mlp}/gating_einsum", 1, (D, F), "df"),
        }
    return case(gemma, model, TOKENS, places)


class Layers(nn.Module):
    """Collect the other layers around which gemma puts LoRA."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(7)(x)  # [2, 5, 7]
        x = jnp.tanh(nn.DenseGeneral((3, 4))(x))
        x = jnp.tanh(nn.DenseGeneral((2, 3), axis=(-2, -1))(x))  # [2, 5, 2, 3]
        x = jnp.tanh(nn.DenseGeneral(5, batch_dims=(0,))(x))  # [2, 5, 2, 5]
        return nn.Einsum((2, 5, 11), "BTKH,KHD->BTKD", use_bias=False)(x)


def layers(gemma):
    places = {
        "Dense_0": ("Dense_0/kernel", ..., (D, 7), "mn"),
        "DenseGeneral_0": ("DenseGeneral_0/kernel", ..., (7, 3, 4), "mnh"),
        "DenseGeneral_1": ("DenseGeneral_1/kernel", ..., (3, 4, 2, 3), "mnhk"),
        "DenseGeneral_2/0": ("DenseGeneral_2/kernel", 0, (3, 5), "mn"),
        "DenseGeneral_2/1": ("DenseGeneral_2/kernel", 1, (3, 5), "mn"),
        # `K` is in inputs, kernel and outputs: all of it is one matrix `[K H, D]`.
        "Einsum_0": ("Einsum_0/kernel", ..., (2, 5, 11), "khd"),
    }
    x = np.random.default_rng(1).normal(size=(2, 5, D)).astype(np.float32)
    return case(gemma, Layers(), jnp.asarray(x), places)


def case(gemma, model, inputs, places):
    wrapped = gemma.LoRA(rank=RANK, model=model, dtype=jnp.float32)
    shapes = jax.eval_shape(wrapped.init, jax.random.key(0), inputs)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jnp.asarray(0.4 * rng.normal(size=x.shape), x.dtype), shapes
    )
    return Case(base=model, lora=wrapped, params=params, inputs=inputs, places=places)


@pytest.fixture(scope="module", params=["grouped", "multi-head", "layers"])
def any_case(request, gemma):
    return make(gemma, request.param)


@pytest.fixture(scope="module")
def grouped(gemma):
    return make(gemma, "grouped")


def make(gemma, name):
    if name == "layers":
        return layers(gemma)
    return transformer(gemma, grouped=name == "grouped")


def close(got, want):
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


def shapes(tree):
    found, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): x.shape
        for path, x in found
    }


def with_deltas(gemma, case, child):
    """Return the base model's parameters with the child's updates in the kernels."""
    base = jax.tree.map(
        lambda x: np.array(x, np.float64),
        gemma.peft.split_params(case.params)[0],
    )
    for path, x in child.adapters.items():
        key, part, sizes, order = case.places[path]
        delta = np.asarray(x.a, np.float64) @ np.asarray(x.b, np.float64)
        node = base["params"]
        *parents, name = key.split("/")
        for parent in parents:
            node = node[parent]
        order = order if "->" in order else f"{order}->{order}"
        node[name][part] += np.einsum(order, delta.reshape(sizes))
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), base)


@pytest.mark.layout(NAME, "found")
def test_the_projections_are_found_and_the_fused_ones_are_split(grouped):
    parent = para_jax.from_tree(grouped.params)

    attn, mlp = "layer_0/attn", "layer_0/mlp"
    assert parent.tree.layout == "gemma"
    assert {p: (x.a.shape, x.b.shape, x.scale) for p, x in parent.adapters.items()} == {
        f"{attn}/attn_vec_einsum": ((4 * H, 3), (3, D), 1.0),
        f"{attn}/kv_einsum/k": ((D, 3), (3, 2 * H), 1.0),
        f"{attn}/kv_einsum/v": ((D, 3), (3, 2 * H), 1.0),
        f"{attn}/q_einsum": ((D, 3), (3, 4 * H), 1.0),
        f"{mlp}/gating_einsum/gate": ((D, 3), (3, F), 1.0),
        f"{mlp}/gating_einsum/up": ((D, 3), (3, F), 1.0),
        f"{mlp}/linear": ((F, 3), (3, D), 1.0),
    }


@pytest.mark.layout(NAME, "found")
def test_lora_around_flaxs_own_layers_is_found(gemma):
    parent = para_jax.from_tree(layers(gemma).params)

    assert {p: (x.a.shape, x.b.shape, x.scale) for p, x in parent.adapters.items()} == {
        "Dense_0": ((D, 3), (3, 7), 1.0),
        "DenseGeneral_0": ((7, 3), (3, 12), 1.0),
        "DenseGeneral_1": ((12, 3), (3, 6), 1.0),
        "DenseGeneral_2": ((2, 3, 3), (2, 3, 5), 1.0),
        "Einsum_0": ((10, 3), (3, 11), 1.0),
    }


@pytest.mark.layout(NAME, "found")
def test_a_tree_of_factors_alone_is_found_just_the_same(gemma, grouped):
    alone = para_jax.from_tree(gemma.peft.split_params(grouped.params).lora)

    assert alone.tree.layout == "gemma"
    assert alone.adapters.keys() == grouped.places.keys()


@pytest.mark.layout(NAME, "compressed")
def test_a_child_of_the_full_budget_is_the_same_model(any_case):
    tree = para_jax.to_tree(any_case.children[1.0], rank=RANK)

    assert shapes(tree) == shapes(any_case.params)
    close(any_case.run(tree), any_case.outputs)


@pytest.mark.layout(NAME, "forward")
def test_gm_nn_lora_runs_a_child_at_one_rank(gemma, any_case):
    child = any_case.children[0.25]
    rank = max(para_jax.layouts.module_ranks(child).values())
    model = any_case.lora.clone(rank=rank)

    got = forward(model, any_case.inputs)(para_jax.to_tree(child, rank=rank))

    close(got, any_case.run_base(with_deltas(gemma, any_case, child)))
    assert np.abs(got - any_case.outputs).max() > 1e-3 * np.abs(got).max()


@pytest.mark.layout(NAME, "forward")
def test_a_module_interceptor_runs_each_module_at_its_own_rank(gemma, any_case):
    child = any_case.children[0.25]
    ranks = para_jax.layouts.module_ranks(child)
    assert len(set(ranks.values())) > 1

    def replace(module):
        path = "/".join(module.path)
        if isinstance(module, gemma.Einsum):  # Its wrapper is a module of its own.
            named = module.weight_name != "w"
            path = f"{path}/_LoRAEinsum_{module.weight_name if named else 0}"
        if path not in ranks:
            return module
        return gemma.replace(module, rank=ranks[path], dtype=jnp.float32, verbose=False)

    @jax.jit
    def run(params):
        with gemma.peft.ModuleInterceptor(replace):
            return any_case.base.apply(params, any_case.inputs)

    got = output(run(para_jax.to_tree(child)))

    close(got, any_case.run_base(with_deltas(gemma, any_case, child)))


@pytest.mark.layout(NAME, "put back")
def test_the_childs_tree_has_the_parents_names_and_its_own_ranks(grouped):
    """A joined projection has the summed ranks of its parts, at most the parent's."""
    child = grouped.children[0.25]
    attn, mlp = "layer_0/attn", "layer_0/mlp"

    def kept(*names):
        found = sum(child.adapters[x].rank for x in names if x in child.adapters)
        return max(found, 1)  # Zeros, where nothing is kept.

    q, out = kept(f"{attn}/q_einsum"), kept(f"{attn}/attn_vec_einsum")
    kv = min(RANK, kept(f"{attn}/kv_einsum/k", f"{attn}/kv_einsum/v"))
    gating = min(RANK, kept(f"{mlp}/gating_einsum/gate", f"{mlp}/gating_einsum/up"))
    linear = kept(f"{mlp}/linear")
    assert len({q, out, kv, gating, linear}) > 1

    tree = para_jax.to_tree(child)

    assert shapes(tree) == shapes(grouped.params) | {
        f"params/{attn}/q_einsum/_LoRAEinsum_0/lora/a": (D, q),
        f"params/{attn}/q_einsum/_LoRAEinsum_0/lora/b": (q, 4, H),
        f"params/{attn}/kv_einsum/_LoRAEinsum_0/lora/a": (D, kv),
        f"params/{attn}/kv_einsum/_LoRAEinsum_0/lora/b": (kv, 2, 2, H),
        f"params/{attn}/attn_vec_einsum/_LoRAEinsum_0/lora/a": (4, H, out),
        f"params/{attn}/attn_vec_einsum/_LoRAEinsum_0/lora/b": (out, D),
        f"params/{mlp}/_LoRAEinsum_gating_einsum/lora/a": (D, gating),
        f"params/{mlp}/_LoRAEinsum_gating_einsum/lora/b": (gating, 2, F),
        f"params/{mlp}/_LoRAEinsum_linear/lora/a": (F, linear),
        f"params/{mlp}/_LoRAEinsum_linear/lora/b": (linear, D),
    }


def test_a_tree_can_be_padded_to_any_rank_but_one_that_cuts(grouped):
    child = grouped.children[1.0]

    assert shapes(para_jax.to_tree(child, rank=RANK)) == shapes(grouped.params)
    wider = shapes(para_jax.to_tree(child, rank=RANK + 2))
    assert wider["params/layer_0/attn/q_einsum/_LoRAEinsum_0/lora/a"] == (D, RANK + 2)
    with pytest.raises(ValueError, match="rank 3, above 2"):
        para_jax.to_tree(child, rank=RANK - 1)


@pytest.mark.slow
def test_a_masked_child_made_inside_jit_runs_in_the_parents_program(gemma, grouped):
    @jax.jit
    def cut(params):
        parent = para_jax.from_tree(params)
        spectra = para_jax.decompose(parent.adapters)
        kept = para_jax.masks(spectra, para_jax.Gamma(0.25))
        adapters = para_jax.repack(spectra, kept, parent.adapters, form="masked")
        child = para_jax.Checkpoint(adapters=adapters, tree=parent.tree)
        return para_jax.to_tree(child, rank=RANK), adapters

    tree, adapters = cut(grouped.params)

    assert shapes(tree) == shapes(grouped.params)
    child = para_jax.Checkpoint(adapters=adapters)
    close(grouped.run(tree), grouped.run_base(with_deltas(gemma, grouped, child)))


def test_a_fused_projection_that_cannot_be_split_is_named():
    lora = {"a": jnp.zeros((D, RANK)), "b": jnp.zeros((RANK, 5, H))}
    tree = {"attn": {"kv_einsum": {"_LoRAEinsum_0": {"lora": lora}}}}

    with pytest.raises(ValueError, match="'attn/kv_einsum' is a fused projection of k"):
        para_jax.from_tree(tree)


@pytest.mark.parametrize(
    ("name", "adapter", "kernel"),
    [
        ("layers", "Dense_0", "Dense_0/kernel"),
        ("grouped", "layer_0/attn/q_einsum", "layer_0/attn/q_einsum/w"),
        ("grouped", "layer_0/mlp/linear", "layer_0/mlp/linear"),
    ],
)
def test_factors_of_another_kernel_are_refused(gemma, name, adapter, kernel):
    params = jax.tree.map(lambda x: x, make(gemma, name).params)
    *parents, leaf = kernel.split("/")
    node = params["params"]
    for parent in parents:
        node = node[parent]
    node[leaf] = jnp.zeros((3, 7))

    with pytest.raises(ValueError, match=rf"'{adapter}'.* do not fit their kernel"):
        para_jax.from_tree(params)


def test_gemma_4s_einsums_are_of_another_class_which_gm_nn_lora_does_not_wrap(gemma):
    if importlib.util.find_spec("gemma.gm.nn.gemma4") is None:
        pytest.skip("gemma 3")
    four = importlib.import_module("gemma.gm.nn.gemma4._layers")

    for einsum in (gemma.Einsum, four.Einsum):
        module = einsum(shape=(D, F))
        found = gemma.replace(module, rank=RANK, dtype=jnp.float32, verbose=False)
        assert (found is module) == (einsum is four.Einsum)
