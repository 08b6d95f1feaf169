"""Programs over adapters in the forms that trainers keep them in, for `named`.

A form gives the adapters of one model as arrays a trainer may hold: stacks over the
layers, an array a module, modules of mixed ranks, an `nnx.State` or a Linen collection.
A program prunes them, and takes and returns that form.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import para_jax as para
from tests.benchmarks import cases

MIXED = (8, 16, 24, 16, 32, 8, 12)
"""The ranks of a mixed model's projections, in their order."""

BUDGET = para.Gamma(0.25)
REPEATS = 20
Program = Callable[..., Any]


def model(name: str, layers: int, *, mixed: bool) -> dict[str, para.Adapter]:
    """Return stacks of random factors, one a projection, in float32.

    Args:
      name: A key of `cases.CASES`.
      layers: The length of the stacks; the case's own if 0.
      mixed: Whether projections have ranks of their own.
    """
    case = cases.CASES[name]
    case = dataclasses.replace(case, layers=layers or case.layers)
    if not mixed:
        return case.factors("float32")
    result = {}
    for (path, shape), rank in zip(case.projections.items(), MIXED, strict=False):
        one = dataclasses.replace(case, rank=rank, projections={path: shape})
        result |= one.factors("float32")
    return result


def named(stacked: Mapping[str, para.Adapter]) -> dict[str, para.Adapter]:
    """Return one adapter a module, named as by a model without scanned layers."""
    layers = next(iter(stacked.values())).stack[0]
    return {
        f"layers/{i}/{path}": para.Adapter(x.a[i], x.b[i], x.scale)
        for i in range(layers)
        for path, x in stacked.items()
    }


def cut(adapters: Mapping[str, para.Adapter]) -> Any:
    """Decompose, choose and repack."""
    spectra = para.decompose(adapters)
    kept = para.masks(spectra, BUDGET)
    return para.repack(spectra, kept, adapters, form="masked")


def loop(adapters: Mapping[str, para.Adapter]) -> Any:
    """Cut again and again within one program, so that a call's own cost is left out."""

    def once(_: Any, adapters: Any) -> Any:
        child = cut(adapters)
        return {
            p: dataclasses.replace(adapters[p], a=x.a, b=x.b) for p, x in child.items()
        }

    return jax.lax.fori_loop(0, REPEATS, once, dict(adapters))


def double(adapters: Any) -> Any:
    """Multiply all factors by 2."""
    return jax.tree.map(lambda x: x * 2, adapters)


def squeeze(adapters: Mapping[str, para.Adapter], state: Any) -> Any:
    """Squeeze the adapters and project Adam's moments."""
    small, transforms = para.squeeze(adapters, BUDGET)
    return small, para.project_moments(state, transforms)


def cut_params(params: Any) -> Any:
    """Cut the adapters of a Linen collection."""
    return para.to_params(cut(para.from_params(params)))


def cut_state(state: nnx.State) -> nnx.State:
    """Cut the adapters of an `nnx.State`."""
    child = cut_params(nnx.to_pure_dict(state))
    nnx.replace_by_pure_dict(state, child)
    return state


def step(compress: bool) -> Program:
    """Return a training step of `adapters`, that squeezes on a condition or never."""
    optimizer = optax.adam(1e-3)

    def loss(adapters: Any) -> jax.Array:
        return sum(jnp.sum(x * x) for x in jax.tree.leaves(adapters))

    def run(adapters: Any, state: Any) -> Any:
        grads = jax.grad(loss)(adapters)
        updates, state = optimizer.update(grads, state, adapters)
        adapters = optax.apply_updates(adapters, updates)
        if not compress:
            return adapters, state
        now = state[0].count % 500 == 0
        return jax.lax.cond(now, squeeze, lambda *x: x, adapters, state)

    return run


def program(name: str, adapters: dict[str, para.Adapter]) -> tuple[Program, Any]:
    """Return a compiled function, not yet traced, and its arguments.

    Args:
      name: One of `PROGRAMS`.
      adapters: The model, stacked or named.
    """
    if name in ("cut", "loop", "pass"):
        function = {"cut": cut, "loop": loop, "pass": double}[name]
        return jax.jit(function), (adapters,)
    if name in ("linen", "nnx"):
        params = para.to_params(adapters)
        if name == "linen":
            return jax.jit(cut_params), (params,)
        return nnx.jit(cut_state), (nnx.State(jax.tree.map(nnx.LoRAParam, params)),)
    state = optax.adam(1e-3).init(adapters)
    function = squeeze if name == "squeeze" else step(compress=name == "step")
    return jax.jit(function), (adapters, state)


PROGRAMS = ("cut", "loop", "pass", "squeeze", "linen", "nnx", "step", "plain")
"""All programs.

`loop` cuts `REPEATS` times, and `pass` multiplies all factors by 2: what a call with so
many arrays takes at least. `step` is a training step with a squeeze, `plain` without.
"""
