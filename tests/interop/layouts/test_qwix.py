"""Test trees made by qwix on Linen and NNX; its own forward pass runs the children.

Each case below is a model of one operation to which qwix gives LoRA factors. qwix runs
the model with random factors, and the plain model runs with our update added to its
kernels: by NumPy in float64, placed by each case's own reshape and transpose.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix
from flax import linen, nnx

import para_jax

pytestmark = [
    # qwix 0.1.8 asks flax 0.12.8 by names that it will drop.
    pytest.mark.filterwarnings("ignore:'VariableState' was removed:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The 'm.iter_modules:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:'.value' access:DeprecationWarning"),
]
RANK, ALPHA = 4, 10.0
SCALE = ALPHA / RANK
FULL, QUARTER = para_jax.Gamma(1.0), para_jax.Gamma(0.25)
LINEN, NNX = "qwix (Linen)", "qwix (NNX)"

# --- Models ----------------------------------------------------------------------


class Einsum(linen.Einsum):
    """An einsum to which qwix can attach its note; Linen's own modules forbid it."""

    def __setattr__(self, name, value):
        if name.endswith("_lora_einsum_str"):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)


class Root(linen.Module):
    """Chain modules by name."""

    parts: Mapping[str, Callable[..., linen.Module]]

    @linen.compact
    def __call__(self, x):
        for name, part in self.parts.items():
            x = linen.tanh(part(name=name)(x))
        return x


class Layer(linen.Module):
    @linen.compact
    def __call__(self, x, _):
        h = linen.Dense(5, name="up")(x)
        return x + linen.DenseGeneral(6, axis=-1, name="down")(linen.tanh(h)), None


class ExpertLayer(linen.Module):
    @linen.compact
    def __call__(self, x, _):
        module = Einsum((2, 6, 6), "ebd,edf->ebf", use_bias=False, name="experts")
        return x + linen.tanh(module(x)), None


class Scanned(linen.Module):
    axis: int
    layer: type[linen.Module] = Layer

    @linen.compact
    def __call__(self, x):
        layers = linen.scan(
            self.layer,
            variable_axes={"params": self.axis},
            split_rngs={"params": True},
            length=3,
        )
        return layers(name="layers")(x, None)[0]


class Blocks(nnx.Module):
    def __init__(self, rngs):
        self.up = nnx.Linear(6, 5, rngs=rngs)
        self.q = nnx.LinearGeneral(5, (2, 4), rngs=rngs)
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(2)])
        self.out = nnx.Einsum("bnh,nhd->bd", (2, 4, 7), rngs=rngs)

    def __call__(self, x):
        x = nnx.tanh(self.q(nnx.tanh(self.up(x))))
        for layer in self.layers:
            x = x + nnx.tanh(layer(x))
        return self.out(x)


class Experts(nnx.Module):
    def __init__(self, rngs):
        self.experts = nnx.Einsum("ebd,edf->ebf", (3, 6, 5), rngs=rngs)

    def __call__(self, x):
        return self.experts(x)


class Image(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(4, 7, (3, 2), strides=2, rngs=rngs)

    def __call__(self, x):
        return self.conv(x)


def linear(features):
    return lambda name: linen.Dense(features, name=name)


def general(features, axis=-1, batch=()):
    return lambda name: linen.DenseGeneral(features, axis, batch, name=name)


def einsum(shape, text):
    return lambda name: Einsum(shape, text, use_bias=False, name=name)


# --- Cases -----------------------------------------------------------------------

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Module:
    """Describe the expected adapter of one module and the place of its update.

    Attributes:
      a: The stored shape of its factor `a`.
      b: The stored shape of its factor `b`.
      form: `(*stack, m, n)` of its update.
      stack: The number of stack axes.
      split: The shape of the update after splitting `m` and `n`.
      order: The transposition from there to the kernel.
    """

    a: Shape
    b: Shape
    form: Shape
    stack: int = 0
    split: Shape = ()
    order: Shape = ()
    kernel: str = "kernel"

    def place(self, delta):
        delta = delta.reshape(self.split or delta.shape)
        return delta.transpose(self.order) if self.order else delta


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    model: Callable[[], Any]
    input: Shape
    modules: Mapping[str, Module]

    @property
    def library(self):
        return LINEN if isinstance(self.model(), linen.Module) else NNX


def on_linen(**parts):
    return lambda: Root(parts)


def on_nnx(kind):
    return lambda: kind(nnx.Rngs(0))


CASES = {
    "Dense": Case(
        on_linen(up=linear(5), down=linear(6)),
        (4, 6),
        {
            "down": Module((5, 4), (4, 6), (5, 6)),
            "up": Module((6, 4), (4, 5), (6, 5)),
        },
    ),
    "a path with regex metacharacters": Case(
        on_linen(**{"up.+(1)": linear(5), "up.x(1)": linear(6)}),
        (4, 6),
        {
            "up.+(1)": Module((6, 4), (4, 5), (6, 5)),
            "up.x(1)": Module((5, 4), (4, 6), (5, 6)),
        },
    ),
    "the root itself": Case(
        lambda: linen.Dense(5), (4, 6), {"": Module((6, 4), (4, 5), (6, 5))}
    ),
    "DenseGeneral": Case(
        on_linen(q=general((3, 4)), out=general(7, (-2, -1)), up=general((5, 2))),
        (4, 6),
        {
            "out": Module((12, 4), (4, 7), (12, 7), split=(3, 4, 7)),
            "q": Module((6, 4), (4, 12), (6, 12), split=(6, 3, 4)),
            "up": Module((7, 4), (4, 10), (7, 10), split=(7, 5, 2)),
        },
    ),
    "batched dot_general": Case(
        on_linen(experts=general(5, -1, (0,))),
        (3, 2, 6),
        {"experts": Module((3, 6, 4), (3, 4, 5), (3, 6, 5), stack=1)},
    ),
    "einsum": Case(
        on_linen(
            q=einsum((2, 6, 5), "btd,ndh->btnh"), o=einsum((2, 5, 7), "btnh,nhd->btd")
        ),
        (2, 4, 6),
        {
            "q": Module((6, 4), (4, 2, 5), (6, 10), split=(6, 2, 5), order=(1, 0, 2)),
            "o": Module((2, 5, 4), (4, 7), (10, 7), split=(2, 5, 7)),
        },
    ),
    "einsum with a shared batch axis": Case(
        on_linen(experts=einsum((3, 6, 5), "ebd,edf->ebf")),
        (3, 4, 6),
        {"experts": Module((3, 6, 4), (4, 5), (18, 5), split=(3, 6, 5))},
    ),
    "Conv": Case(
        on_linen(conv=lambda name: linen.Conv(7, (3, 2), strides=2, name=name)),
        (2, 5, 6, 4),
        {"conv": Module((3, 2, 4, 4), (4, 7), (24, 7), split=(3, 2, 4, 7))},
    ),
    "scan on axis 0": Case(
        lambda: Scanned(0),
        (4, 6),
        {
            "layers/down": Module((3, 5, 4), (3, 4, 6), (3, 5, 6), stack=1),
            "layers/up": Module((3, 6, 4), (3, 4, 5), (3, 6, 5), stack=1),
        },
    ),
    "scan on axis 1": Case(
        lambda: Scanned(1),
        (4, 6),
        {
            "layers/down": Module((5, 3, 4), (4, 3, 6), (3, 5, 6), 1, order=(1, 0, 2)),
            "layers/up": Module((6, 3, 4), (4, 3, 5), (3, 6, 5), 1, order=(1, 0, 2)),
        },
    ),
    "scan over experts": Case(
        lambda: Scanned(0, ExpertLayer),
        (2, 4, 6),
        {
            "layers/experts": Module(
                (3, 2, 6, 4), (3, 4, 6), (3, 12, 6), 1, split=(3, 2, 6, 6)
            )
        },
    ),
    "scan over experts on axis 1": Case(
        lambda: Scanned(1, ExpertLayer),
        (2, 4, 6),
        {
            "layers/experts": Module(
                (2, 3, 6, 4),
                (4, 3, 6),
                (3, 12, 6),
                1,
                split=(3, 2, 6, 6),
                order=(1, 0, 2, 3),
            )
        },
    ),
    "nnx.Linear, LinearGeneral and Einsum": Case(
        on_nnx(Blocks),
        (3, 6),
        {
            "layers/0": Module((4, 4), (4, 4), (4, 4)),
            "layers/1": Module((4, 4), (4, 4), (4, 4)),
            "out": Module((2, 4, 4), (4, 7), (8, 7), split=(2, 4, 7)),
            "q": Module((5, 4), (4, 8), (5, 8), split=(5, 2, 4)),
            "up": Module((6, 4), (4, 5), (6, 5)),
        },
    ),
    "nnx.Einsum with a shared batch axis": Case(
        on_nnx(Experts),
        (3, 4, 6),
        {"experts": Module((3, 6, 4), (4, 5), (18, 5), split=(3, 6, 5))},
    ),
    "nnx.Conv": Case(
        on_nnx(Image),
        (2, 5, 6, 4),
        {"conv": Module((3, 2, 4, 4), (4, 7), (24, 7), split=(3, 2, 4, 7))},
    ),
}


def cases(column):
    """Parametrise over all cases, each marked as a proof of its library's cell."""
    return pytest.mark.parametrize(
        "case",
        [
            pytest.param(x, id=name, marks=pytest.mark.layout(x.library, column))
            for name, x in CASES.items()
        ],
    )


# --- What qwix computes ----------------------------------------------------------


def inputs(case):
    rng = np.random.default_rng(1)
    return jnp.asarray(rng.normal(size=case.input), jnp.float32)


def uniform():
    return [qwix.LoraRule(module_path=".*", rank=RANK, alpha=ALPHA)]


def with_lora(case, rules):
    """Return qwix's model under these rules; on NNX, without arrays."""
    model, provider, x = case.model(), qwix.LoraProvider(rules), inputs(case)
    if case.library == LINEN:
        return qwix.apply_lora_to_model(model, provider)
    return nnx.eval_shape(
        lambda: qwix.apply_lora_to_model(case.model(), provider, x, rngs=nnx.Rngs(1))
    )


@functools.cache
def tree_of(case):
    """Return the tree of a model, filled with random numbers, as nested dicts."""
    model = with_lora(case, uniform())
    if case.library == LINEN:
        tree = jax.eval_shape(model.init, jax.random.key(2), inputs(case))["params"]
    else:
        tree = nnx.to_pure_dict(nnx.state(model))
    rng = np.random.default_rng(3)
    return jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape) / 2, jnp.float32), tree
    )


def outputs(case, model, tree):
    if case.library == LINEN:
        return np.asarray(jax.jit(model.apply)({"params": tree}, inputs(case)))
    nnx.update(model, tree)
    return np.asarray(nnx.jit(lambda model, x: model(x))(model, inputs(case)))


def forward(case, tree, rules):
    """Return the output of qwix's own model under these rules."""
    return outputs(case, with_lora(case, rules), tree)


def plain(case, tree, deltas):
    """Return the output of the model without LoRA, with the updates in its kernels."""
    leaves = flat(tree)
    for path, module in case.modules.items():
        key = f"{path}/{module.kernel}".lstrip("/")
        kernel = np.asarray(leaves[key]) + module.place(deltas[path])
        leaves[key] = jnp.asarray(kernel, jnp.float32)
    base = nested({k: x for k, x in leaves.items() if "_lora_" not in k})
    model = case.model() if case.library == LINEN else nnx.eval_shape(case.model)
    return outputs(case, model, base)


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


def updates(case, adapters):
    """Return each module's update `[*stack, m, n]` in float64, zero if absent."""
    result = {path: np.zeros(x.form) for path, x in case.modules.items()}
    for path, module in case.modules.items():
        for index in np.ndindex(module.form[: module.stack]):
            name = "/".join([path, *map(str, index)])
            if x := adapters.get(name):
                product = np.asarray(x.a, np.float64) @ np.asarray(x.b, np.float64)
                result[path][index] = x.scale * product
    return result


def ranks(case, child):
    """Return the rank of each module in the child's tree: the largest in its stack."""
    found = dict.fromkeys(case.modules, 1)
    for path, module in case.modules.items():
        for index in np.ndindex(module.form[: module.stack]):
            if x := child.adapters.get("/".join([path, *map(str, index)])):
                found[path] = max(found[path], x.rank)
    return found


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


# --- Tests -----------------------------------------------------------------------


@cases("found")
def test_every_adapter_is_found_with_its_axes_and_its_scale(case):
    tree = tree_of(case)

    parent = para_jax.from_tree(tree, alpha=ALPHA)

    assert parent.tree is not None
    assert parent.tree.layout == "qwix"
    got = {x.path: x.shapes for x in parent.tree.pairs}
    assert got == {path: (x.a, x.b) for path, x in case.modules.items()}
    for path, x in parent.adapters.items():
        form = case.modules[path].form
        assert (*x.stack, x.inputs, x.outputs) == form
        assert (x.rank, x.scale) == (RANK, SCALE)


@cases("found")
def test_the_factors_alone_are_enough_where_the_shapes_tell(case):
    tree = tree_of(case)
    factors = nested({k: x for k, x in flat(tree).items() if "_lora_" in k})
    stacked = [x for x in case.modules.values() if x.stack]
    stack_axis = None if not stacked else 1 if stacked[0].order else 0

    parent = para_jax.from_tree(factors, alpha=ALPHA, stack_axis=stack_axis)

    want = para_jax.from_tree(tree, alpha=ALPHA)
    got, want = updates(case, parent.adapters), updates(case, want.adapters)
    for path in case.modules:
        np.testing.assert_array_equal(got[path], want[path])


@cases("compressed")
def test_the_child_is_the_truncation_of_all_updates_by_one_threshold(case):
    parent = para_jax.from_tree(tree_of(case), alpha=ALPHA)

    child = para_jax.compress(parent, QUARTER)

    whole = {
        path: x.scale * np.asarray(x.a, np.float64) @ np.asarray(x.b, np.float64)
        for path, x in parent.adapters.items()
    }
    u, s, vt = {}, {}, {}
    for path, delta in whole.items():
        u[path], s[path], vt[path] = np.linalg.svd(delta, full_matrices=False)
    pool = -np.sort(-np.concatenate([x[..., :RANK].ravel() for x in s.values()]))
    threshold = pool[int(0.25 * pool.size) - 1]
    got = updates(case, child.adapters)
    for path in whole:
        kept = np.where(s[path] >= threshold, s[path], 0)
        close(got[path], (u[path] * kept[..., None, :]) @ vt[path])


@cases("put back")
def test_the_whole_child_put_back_computes_what_the_parent_does(case):
    tree = tree_of(case)
    parent = para_jax.from_tree(tree, alpha=ALPHA)

    child = para_jax.compress(parent, FULL)

    want = forward(case, tree, uniform())
    rules = para_jax.layouts.qwix_rules(child)
    close(forward(case, para_jax.to_tree(child), rules), want)


@cases("forward")
def test_qwix_runs_the_child_as_the_base_model_with_our_update_in_its_kernels(case):
    tree = tree_of(case)
    child = para_jax.compress(para_jax.from_tree(tree, alpha=ALPHA), QUARTER)

    rules = para_jax.layouts.qwix_rules(child)
    got = forward(case, para_jax.to_tree(child), rules)

    close(got, plain(case, tree, updates(case, child.adapters)))


@cases("put back")
def test_the_written_tree_has_the_names_and_axes_of_the_read_one(case):
    tree = tree_of(case)
    child = para_jax.compress(para_jax.from_tree(tree, alpha=ALPHA), QUARTER)

    got = {path: x.shape for path, x in flat(para_jax.to_tree(child)).items()}

    want = {path: x.shape for path, x in flat(tree).items()}
    rank = ranks(case, child)
    for path, module in case.modules.items():
        prefix = f"{path}/{module.kernel}_lora_".lstrip("/")
        want[prefix + "a"] = (*module.a[:-1], rank[path])
        at = module.b.index(RANK)
        want[prefix + "b"] = (*module.b[:at], rank[path], *module.b[at + 1 :])
    assert got == want


@pytest.mark.layout(LINEN, "compressed")
@pytest.mark.parametrize("name", ["Dense", "DenseGeneral", "scan on axis 1"])
def test_a_tree_is_masked_inside_jit(name):
    case = CASES[name]
    tree = tree_of(case)

    @jax.jit
    def masked(tree):
        parent = para_jax.from_tree(tree, alpha=ALPHA)
        spectra = para_jax.decompose(parent.adapters)
        masks = para_jax.masks(spectra, QUARTER)
        adapters = para_jax.repack(spectra, masks, parent.adapters, form="masked")
        return para_jax.to_tree(dataclasses.replace(parent, adapters=adapters))

    got = masked(tree)

    child = para_jax.compress(para_jax.from_tree(tree, alpha=ALPHA), QUARTER)
    rules = [qwix.LoraRule(module_path=".*", rank=RANK, alpha=RANK)]
    assert jax.tree.map(np.shape, got) == jax.tree.map(np.shape, tree)
    want = plain(case, tree, updates(case, child.adapters))
    close(forward(case, got, rules), want)


# --- What qwix allows beside these -----------------------------------------------


class Gated(linen.Module):
    """Hold two weights in one module, to which qwix's rules give one rank."""

    @linen.compact
    def __call__(self, x):
        init = linen.initializers.normal()
        gate, up = self.param("gate", init, (6, 5)), self.param("up", init, (6, 5))
        return jnp.dot(x, gate) * jnp.dot(x, up)


@pytest.mark.layout(LINEN, "forward")
def test_two_weights_of_one_module_are_two_adapters_of_one_rank():
    case = Case(on_linen(mlp=lambda name: Gated(name=name)), (4, 6), {})
    tree = tree_of(case)
    parent = para_jax.from_tree(tree, alpha=ALPHA)
    child = para_jax.compress(parent, para_jax.Rank(1.5))

    written = para_jax.to_tree(child)

    kept = {path: x.rank for path, x in child.adapters.items()}
    assert kept == {"mlp/gate": 2, "mlp/up": 1}
    assert {path: x.shape for path, x in flat(written).items()} == {
        "mlp/gate": (6, 5),
        "mlp/gate_lora_a": (6, 2),
        "mlp/gate_lora_b": (2, 5),
        "mlp/up": (6, 5),
        "mlp/up_lora_a": (6, 2),
        "mlp/up_lora_b": (2, 5),
    }
    rules = para_jax.layouts.qwix_rules(child)
    assert [(x.module_path, x.rank, x.alpha) for x in rules] == [("mlp", 2, 2)]
    base = {
        name: np.asarray(tree["mlp"][name], np.float64)
        + np.asarray(child.adapters[f"mlp/{name}"].a, np.float64)
        @ np.asarray(child.adapters[f"mlp/{name}"].b, np.float64)
        for name in ("gate", "up")
    }
    x = np.asarray(inputs(case), np.float64)
    want = np.tanh((x @ base["gate"]) * (x @ base["up"]))
    close(forward(case, written, rules), want)


@pytest.mark.layout(LINEN, "put back")
def test_a_quantised_base_model_runs_the_child():
    case = CASES["Dense"]
    qtype = {"weight_qtype": "int8"}
    rules = [qwix.LoraRule(module_path=".*", rank=RANK, alpha=ALPHA, **qtype)]
    model = with_lora(case, rules)
    tree = jax.jit(model.init)(jax.random.key(2), inputs(case))["params"]
    factors = {k: x for k, x in flat(tree_of(case)).items() if "_lora_" in k}
    for path, x in factors.items():
        module, name = path.split("/")
        tree[module][name] = x

    child = para_jax.compress(para_jax.from_tree(tree, alpha=ALPHA), FULL)

    ours = para_jax.layouts.qwix_rules(child, **qtype)
    want = forward(case, tree, rules)
    close(forward(case, para_jax.to_tree(child), ours), want)


@pytest.mark.layout(NNX, "put back")
@pytest.mark.parametrize("kind", [nnx.Param, nnx.LoRAParam])
def test_a_state_stays_a_state(kind):
    case = CASES["nnx.Linear, LinearGeneral and Einsum"]
    model = with_lora(case, uniform())
    nnx.update(model, tree_of(case))

    child = para_jax.compress(
        para_jax.from_tree(nnx.state(model, kind), alpha=ALPHA), QUARTER
    )

    written = para_jax.to_tree(child)
    assert isinstance(written, nnx.State)
    assert isinstance(written["up"]["kernel_lora_a"], nnx.LoRAParam)
    want = para_jax.compress(para_jax.from_tree(tree_of(case), alpha=ALPHA), QUARTER)
    rules = para_jax.layouts.qwix_rules(child)
    smaller = with_lora(case, rules)
    nnx.update(smaller, tree_of(case))
    close(outputs(case, smaller, written), forward(case, para_jax.to_tree(want), rules))
