"""Test MaxText's own model: qwix adapts it by its `lora_utils`, and it runs the child.

MaxText needs Python 3.12, so this runs in `make test-newest`. Pipelines of data,
tokenizers and kernels for accelerators are stood in for if they are not installed; none
of them computes anything in a model of `attention=dot_product` on a CPU.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import pathlib
import sys
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import para_jax

pytestmark = [
    # MaxText 0.2.5 and qwix 0.1.8 ask flax and JAX by names that they will drop.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
STANDS_IN = {
    "drjax",
    "grain",
    "pathwaysutils",
    "sentencepiece",
    "tiktoken",
    "tokamax",
    "transformers",
}
RANK, ALPHA = 3, 7.0
SHAPE = {
    "decoder_block": "llama2",
    "base_emb_dim": 16,
    "base_num_query_heads": 4,
    "base_num_kv_heads": 2,
    "base_mlp_dim": 24,
    "base_num_decoder_layers": 2,
    "head_dim": 4,
    "vocab_size": 32,
    "max_target_length": 8,
    "max_prefill_predict_length": 4,
    "per_device_batch_size": 1,
    "attention": "dot_product",
    "dtype": "float32",
    "weight_dtype": "float32",
    "matmul_precision": "highest",
}
PROGRAM = {
    "run_name": "test",
    "base_output_directory": "",
    "enable_checkpointing": False,
    "hardware": "cpu",
    "skip_jax_distributed_system": True,
    "override_model_config": True,
}
TOKENS = jnp.array([[3, 5, 7, 11, 2, 30, 0, 9]])
MODULES = [
    *(f"self_attention/{x}" for x in ("query", "key", "value", "out")),
    *(f"mlp/{x}" for x in ("wi_0", "wi_1", "wo")),
]


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Find modules of packages that are not installed; their names are mocks."""

    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in STANDS_IN:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__version__ = "5.0"
        module.__getattr__ = self.attribute
        return module

    def exec_module(self, module):
        pass

    @staticmethod
    def attribute(name):
        if name.startswith("__"):
            raise AttributeError(name)
        return mock.MagicMock(name=name)


@pytest.fixture(scope="module")
def maxtext(tmp_path_factory):
    """Return the modules of MaxText in use."""
    for name in ("maxtext", "aqt", "omegaconf", "pydantic", "qwix"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"not installed: {name}")
    before = set(sys.modules)
    finder = StandIns()
    sys.meta_path.append(finder)
    try:
        names = {
            "pyconfig": "configs.pyconfig",
            "creation": "utils.model_creation_utils",
            "lora": "utils.lora_utils",
            "utils": "utils.maxtext_utils",
            "places": "utils.globals",
        }
        found = {
            name: importlib.import_module(f"maxtext.{path}")
            for name, path in names.items()
        }
        yield types.SimpleNamespace(**found)
    finally:
        sys.meta_path.remove(finder)
        for name in set(sys.modules) - before:
            if name.split(".")[0] in STANDS_IN | {"maxtext"}:
                del sys.modules[name]


def built(maxtext, *, scan, rank, alpha):
    """Return a model with LoRA, as MaxText's `from_config` and `lora_utils` make it."""
    base = pathlib.Path(maxtext.places.MAXTEXT_CONFIGS_DIR) / "base.yml"
    # MaxText takes tensors of any rank promotion.
    with jax.numpy_rank_promotion("allow"):
        config = maxtext.pyconfig.initialize(
            ["", str(base)],
            scan_layers=scan,
            lora={"enable_lora": True, "lora_rank": rank, "lora_alpha": alpha},
            **SHAPE,
            **PROGRAM,
        )
        mesh = maxtext.utils.get_mesh_from_config(config)
        with mesh:
            model = maxtext.creation.from_config(config, mesh=mesh, rngs=nnx.Rngs(0))
            return maxtext.lora.apply_lora_to_model(model, mesh, config), mesh


class Case:
    """Hold a model of MaxText with random factors."""

    def __init__(self, maxtext, scan):
        self.maxtext, self.scan = maxtext, scan
        self.model, self.mesh = built(maxtext, scan=scan, rank=RANK, alpha=ALPHA)
        noise = jax.tree.map(random_like, nnx.state(self.model, nnx.LoRAParam))
        nnx.update(self.model, noise)
        self.parent = para_jax.from_tree(
            nnx.state(self.model), alpha=ALPHA, stack_axis=1 if scan else None
        )

    def child(self, gamma):
        return para_jax.compress(self.parent, para_jax.Gamma(gamma))

    def with_child(self, child):
        """Return a model of the child's rank, which `lora_alpha` equals, with it."""
        rank = max(para_jax.layouts.module_ranks(child).values())
        tree = para_jax.to_tree(child)
        model, _ = built(self.maxtext, scan=self.scan, rank=rank, alpha=float(rank))
        nnx.update(model, tree)
        return model

    def outputs(self, model):
        graph, state = nnx.split(model)

        @jax.jit
        def run(state):
            found = nnx.merge(graph, state)
            positions = jnp.arange(TOKENS.shape[1])[None]
            return found(TOKENS, positions, jnp.ones_like(TOKENS))

        with self.mesh, jax.numpy_rank_promotion("allow"):
            return np.asarray(run(state))

    def kernel(self, model, path):
        """Return the variable of a module's kernel."""
        node = model
        for part in path.split("/"):
            node = node[part] if isinstance(node, dict) else getattr(node, part)
        return node.kernel


def random_like(x):
    rng = np.random.default_rng(x.size)
    return jnp.asarray(0.5 * rng.normal(size=x.shape), x.dtype)


@pytest.fixture(scope="module", params=[True, False], ids=["scanned", "apart"])
def case(maxtext, request):
    return Case(maxtext, request.param)


def close(got, want, tolerance=2e-5):
    np.testing.assert_allclose(got, want, atol=tolerance * np.abs(want).max())


def test_all_modules_are_found_with_their_scan_axis(case):
    layers = ["layers"] if case.scan else ["layers_0", "layers_1"]

    assert case.parent.tree.layout == "maxtext-qwix"
    assert case.parent.adapters.keys() == {
        f"decoder/{layer}/{module}" for layer in layers for module in MODULES
    }
    for path, x in case.parent.adapters.items():
        assert x.stack == ((2,) if case.scan else ())
        assert x.scale == pytest.approx(ALPHA / RANK)
        kernel = case.kernel(case.model, path)[...]
        assert x.inputs * x.outputs * (2 if case.scan else 1) == kernel.size


def test_maxtext_runs_the_child_as_the_parent_at_full_budget(case):
    got = case.outputs(case.with_child(case.child(1.0)))

    close(got, case.outputs(case.model))


def test_maxtext_runs_a_quarter_as_the_base_with_our_updates(case):
    child = case.child(0.25)

    got = case.outputs(case.with_child(child))

    close(got, case.outputs(base_with(case, child)))
    assert np.abs(got - case.outputs(case.model)).max() > 1e-3 * np.abs(got).max()


def base_with(case, child):
    """Return the model without LoRA, the child's updates in its kernels by NumPy."""
    model, _ = built(case.maxtext, scan=case.scan, rank=RANK, alpha=0.0)
    for path, parent in case.parent.adapters.items():
        kernel = case.kernel(model, path)
        delta = np.zeros((*parent.stack, parent.inputs, parent.outputs))
        for index in np.ndindex(parent.stack):
            name = "/".join([path, *map(str, index)])
            if name in child.adapters:
                x = child.adapters[name]
                delta[index] = np.asarray(x.a, float) @ np.asarray(x.b, float) * x.scale
        shape = list(kernel.shape)
        if case.scan:  # The layers lie on axis 1 of the kernel.
            del shape[1]
            delta = np.moveaxis(delta.reshape(-1, *shape), 0, 1)
        new = kernel[...] + jnp.asarray(delta.reshape(kernel.shape), jnp.float32)
        kernel.set_value(new)
    return model


def test_maxtext_adds_the_childs_own_form_to_its_kernels(maxtext):
    """`apply_lora_on_base_params` merges queries, keys and values of single layers."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(6, 4, 3)).astype("f4")
    factors = {
        "lora_a.kernel": rng.normal(size=(6, RANK)).astype("f4"),
        "lora_b.kernel": rng.normal(size=(RANK, 4, 3)).astype("f4"),
    }
    tree = {"decoder": {"layers_0": {"self_attention": {"query": factors}}}}
    parent = para_jax.from_tree(tree, alpha=ALPHA)
    assert parent.tree.layout == "maxtext"

    def merged(lora, scale):
        base = {"decoder": {"layers_0": {"self_attention": {"query": {}}}}}
        base["decoder"]["layers_0"]["self_attention"]["query"]["kernel"] = kernel
        maxtext.lora.apply_lora_on_base_params(base, lora, scale)
        return base["decoder"]["layers_0"]["self_attention"]["query"]["kernel"]

    want = merged(tree, ALPHA / RANK)

    full = para_jax.compress(parent, para_jax.Gamma(1.0))
    close(merged(para_jax.to_tree(full), 1.0), want)
    one = para_jax.compress(parent, para_jax.Gamma(1 / RANK))
    update = ALPHA / RANK * factors["lora_a.kernel"].astype(float)
    update = update @ factors["lora_b.kernel"].reshape(RANK, -1)
    u, s, vt = np.linalg.svd(update, full_matrices=False)
    best = (u[:, :1] * s[:1]) @ vt[:1]
    close(merged(para_jax.to_tree(one), 1.0), kernel + best.reshape(kernel.shape))
