"""Define the golden run's calls of the Python interface.

Each takes the folder of inputs, runs in a folder of its own, and returns the value to
record.
"""

import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import para_jax as para
from para_jax import formats, layouts, names
from para_jax.flax import linen, nnx as lora
from tests.para_jax.whole import inputs
from tests.para_jax.whole.describe import Unsigned

POLICIES = (
    para.Gamma(0.5),
    para.Gamma(0.4, scope="local", min_rank=1),
    para.Rank(1.5, multiple_of=2),
    para.Epsilon(0.9, max_rank=3),
    para.Params(80),
    para.Bytes(200),
    para.Threshold(2.0),
)
FUNCTIONS: dict[str, Callable[[pathlib.Path], Any]] = {}


def _call(function: Callable[[pathlib.Path], Any]) -> Callable[[pathlib.Path], Any]:
    FUNCTIONS["api " + function.__name__.replace("_", " ")] = function
    return function


def _host() -> dict[str, para.Adapter]:
    return jax.tree.map(np.asarray, inputs.jnp_adapters())


def _params(tree: Any) -> Any:
    return jax.tree.map(jnp.asarray, tree)


@_call
def load_and_save(folder: pathlib.Path) -> Any:
    parent = formats.load(folder / "mixed")
    formats.save(parent, "peft", format="peft")
    formats.save(parent, "orbax", format="orbax")
    again = para.load("orbax")
    para.save(again.adapters, "one.safetensors", format="kohya")
    return parent, formats.recognise(pathlib.Path("orbax")), again.adapters


@_call
def every_policy(_: pathlib.Path) -> Any:
    children = para.family(_host(), POLICIES)
    return {x.report.policy: (x.report, x.adapters, str(x.report)) for x in children}


@_call
def forms(_: pathlib.Path) -> Any:
    return {
        form: para.compress(_host(), para.Gamma(0.5), form=form).adapters
        for form in ("masked", "padded", "ragged")
    }


@_call
def traced(_: pathlib.Path) -> Any:
    spectra, masks, found = _spectra(), jax.jit(para.masks), {}
    repack = jax.jit(functools.partial(para.repack, form="masked"))
    for policy in POLICIES:
        kept = masks(spectra, policy)
        found[policy.name] = kept, repack(spectra, kept, inputs.jnp_adapters())
    return Unsigned(spectra), found


@_call
def traced_in_float64(_: pathlib.Path) -> Any:
    with jax.enable_x64(True):
        adapters = inputs.jnp_adapters(dtype=np.float64)
        spectra = jax.jit(para.decompose, static_argnames="method")(
            adapters, method="gram"
        )
        masks = jax.jit(para.masks)(spectra, para.Epsilon(0.99))
        narrow = jax.jit(para.pack, static_argnames="width")
        return (
            {path: x.s for path, x in spectra.items()},
            para.ranks(spectra, para.Epsilon(0.99)),
            narrow(spectra, masks, adapters, width=2),
        )


@_call
def vmapped(_: pathlib.Path) -> Any:
    spectra = _spectra()
    many = para.Gamma(jnp.linspace(0.2, 1.0, 5))
    return jax.jit(jax.vmap(para.masks, in_axes=(None, 0)))(spectra, many)


@functools.cache
def _spectra() -> dict[str, para.Spectrum]:
    return jax.jit(para.decompose)(inputs.jnp_adapters())


@_call
def squeeze_with_moments(_: pathlib.Path) -> Any:
    optimizer = optax.adamw(1e-2)
    params = para.to_params(inputs.jnp_adapters())
    state = optimizer.init(params)
    grads = jax.tree.map(lambda x: x * x - 0.1, params)
    updates, state = optimizer.update(grads, state, params)
    params = optax.apply_updates(params, updates)

    @jax.jit
    def smaller(params: Any, state: Any, policy: para.Policy) -> Any:
        adapters, transforms = para.squeeze(para.from_params(params), policy)
        return para.to_params(adapters), para.project_moments(state, transforms)

    return Unsigned(smaller(params, state, para.Gamma(0.5)))


@_call
def shrink_with_moments(_: pathlib.Path) -> Any:
    adapters = inputs.jnp_adapters()
    optimizer = optax.sgd(optax.linear_schedule(0.1, 0, 100), momentum=0.9)
    para.check_optimizer(optimizer, adapters)
    state = optimizer.init(adapters)
    _, state = optimizer.update(adapters, state)
    small, transforms = para.shrink(adapters, para.Rank(2), form="padded")
    return (
        Unsigned((small, para.project_moments(state, transforms))),
        para.reset_moments(state, optimizer.init(small)),
    )


@_call
def an_optimizer_that_is_refused(_: pathlib.Path) -> Any:
    para.check_optimizer(optax.adamax(1e-3), inputs.jnp_adapters())


@_call
def search(folder: pathlib.Path) -> Any:
    def metric(adapters: Any) -> float:
        norms = [np.linalg.norm(x.scale * x.a @ x.b) for x in adapters.values()]
        return float(np.linalg.norm(norms))

    parent = para.load(folder / "llama")
    found = para.search(parent, metric, tolerance=1.0, limits=para.Rank(1, min_rank=1))
    assert found.child is not None
    return found.points, found.parent_metric, found.child.adapters, found.child.report


@_call
def inspect(folder: pathlib.Path) -> Any:
    found = para.inspect(para.load(folder / "glyphs"), shares=(0.5, 0.9))
    return found.needed, found


@_call
def extract(_: pathlib.Path) -> Any:
    base = {"up/kernel": inputs.array(8, 6), "up/bias": inputs.array(6)}
    base["many/kernel"] = inputs.array(2, 5, 7)
    tuned = {x: y + inputs.array(*y.shape, seed=1) / 8 for x, y in base.items()}
    return para.extract(base, tuned, rank=3)


@_call
def plain(folder: pathlib.Path) -> Any:
    trained, initial = (para.load(folder / x) for x in ("pissa", "pissa-initial"))
    found = para.plain(trained, initial)
    return found.adapters, para.compress(found, para.Gamma(0.5)).adapters


@_call
def pad_stack_and_unstack(_: pathlib.Path) -> Any:
    parent = _host()
    child = para.compress(parent, para.Gamma(0.5), form="padded").adapters
    apart = para.unstack(parent)
    return para.pad(child, like=parent), apart, para.stack(apart, {"layers/up": (2,)})


@_call
def trees(_: pathlib.Path) -> Any:
    scales = {"qwix": {"scale": 2.0}, "tunix": {"alpha": 6.0}, "linen": {"scale": 1.0}}
    scales |= {"maxtext": {"alpha": 6.0, "stack_axis": 1}, "lorax": {"alpha": 4.0}}
    found = {}
    for name, tree in (inputs.TREES | {"lorax": inputs.lorax}).items():
        parent = para.from_tree(_params(tree()), **scales.get(name, {}))
        child = para.compress(parent, para.Gamma(0.5), form="padded")
        assert parent.tree is not None
        found[name] = (
            parent.tree.layout,
            parent.adapters,
            para.to_tree(child),
            layouts.module_ranks(child),
        )
    return found


@_call
def a_tree_under_jit(_: pathlib.Path) -> Any:
    @jax.jit
    def cut(tree: Any) -> Any:
        parent = para.from_tree(tree, alpha=6.0)
        spectra = para.decompose(parent.adapters)
        masks = para.masks(spectra, para.Gamma(0.5))
        child = para.repack(spectra, masks, parent.adapters, form="masked")
        return para.to_tree(functools.partial(_with, parent)(child))

    return cut(_params(inputs.tunix()))


def _with(parent: para.Checkpoint, adapters: Any) -> para.Checkpoint:
    return para.Checkpoint(adapters=adapters, tree=parent.tree)


@_call
def names_there_and_back(folder: pathlib.Path) -> Any:
    parent = para.load(folder / "llama")
    found = {}
    for ecosystem in ("tunix", "maxtext-scanned"):
        words = {"ecosystem": ecosystem, "head_dim": 4, "layers": 2}
        there = names.from_hf(parent, "llama3", **words)
        back = names.to_hf(there, "llama3", **words)
        found[ecosystem] = there.adapters, back.adapters
    return found, sorted(names.MODELS), json.dumps(names.tables("gemma3"))


@_call
def flax_linen(_: pathlib.Path) -> Any:
    adapters = {"head": inputs.jnp_adapters()["head"]}
    layer, x = linen.Dense(5, name="head"), jnp.asarray(inputs.array(2, 6))
    kernel = jnp.asarray(inputs.array(6, 5, seed=2))
    base = {"kernel": kernel, "bias": jnp.zeros(5)}
    params = para.to_params(adapters)
    linen.check(params, {"head": base})
    one = layer.apply({"params": base, "lora": params["head"]}, x)

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return nn.Dense(5, name="head")(x)

    with linen.applied(adapters):
        return one, Model().apply({"params": {"head": base}}, x)


@_call
def flax_nnx(_: pathlib.Path) -> Any:
    model = nnx.List([nnx.Linear(6, 5, rngs=nnx.Rngs(0))])
    model[0].kernel[...] = jnp.asarray(inputs.array(6, 5, seed=2))
    adapters = {"0": inputs.jnp_adapters()["head"]}
    x = jnp.asarray(inputs.array(2, 6))
    lora.attach(model, adapters)
    one, again = model[0](x), lora.detach(model)
    lora.attach(model, again)
    lora.merge(model)
    return one, again, model[0](x)


@_call
def mistakes(_: pathlib.Path) -> Any:
    adapters, found = _host(), {}
    tries = {
        "budget": lambda: para.Gamma(0),
        "rank": lambda: para.compress(adapters, para.Params(1, min_rank=1)),
        "shapes": lambda: para.decompose({"x": _crooked()}),
        "tree": lambda: para.from_tree({"x": np.ones(3)}),
        "no tree": lambda: para.to_tree(para.Checkpoint(adapters=adapters)),
        "format": lambda: para.save(adapters, "x", format="kohya"),
        "paths": lambda: para.to_params(
            {"a": adapters["head"], "a/b": adapters["head"]}
        ),
        "no stack": lambda: para.stack(adapters, {"up": (2,)}),
    }
    for name, run in tries.items():
        try:
            found[name] = run()
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def _crooked() -> para.Adapter:
    return para.Adapter(np.ones((4, 3), np.float32), np.ones((2, 5), np.float32))
