"""A run of a method on a problem of a few numbers: each update has one to become."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

SHAPES = {"x": (7, 5), "y": (4, 6), "z": (5, 3)}
RANK = 4
# A program is compiled to run once, for a moment.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def kernels() -> dict[str, jax.Array]:
    return {path: jnp.zeros(shape) for path, shape in SHAPES.items()}


def goals() -> dict[str, np.ndarray]:
    """Updates of ranks 1, 3 and 2, of unequal sizes."""
    generator = np.random.default_rng(0)
    ranks, sizes = {"x": 1, "y": 3, "z": 2}, {"x": 2.0, "y": 1.0, "z": 0.5}

    def goal(path: str) -> np.ndarray:
        (m, n), r = SHAPES[path], ranks[path]
        a, b = generator.normal(size=(m, r)), generator.normal(size=(r, n))
        return np.float32(sizes[path] * a @ b)

    return {path: goal(path) for path in SHAPES}


def delta(adapter: Any) -> Any:
    return adapter.scale * adapter.a @ adapter.b


def loss(adapters: Any) -> Any:
    return sum(
        ((delta(adapters[path]) - goal) ** 2).sum() for path, goal in goals().items()
    ) / len(SHAPES)


def gradients(method: Any, state: Any) -> Any:
    """Return the gradients of the loss alone, in NumPy."""

    def objective(params):
        return loss(method.adapters(state._replace(params=params)))

    program = jax.jit(jax.grad(objective), compiler_options=QUICK)
    return jax.tree.map(np.asarray, program(state.params))


def first_update(optimizer: Any, grads: Any, params: Any) -> Any:
    def update(grads, params):
        return optimizer.update(grads, optimizer.init(params), params)[0]

    return jax.jit(update, compiler_options=QUICK)(grads, params)


def program(method: Any, steps: int, learning_rate: float) -> Callable[..., Any]:
    """Return a function of the key.

    It gives the state at the start, and those after each step, stacked.
    """
    optimizer = method.optimizer(lambda count: learning_rate, 0.01)

    def objective(params, state):
        state = state._replace(params=params)
        return loss(method.adapters(state)) + method.penalty(state)

    def advance(carry, step):
        before, moments = carry
        grads = jax.grad(objective)(before.params, before)
        updates, moments = optimizer.update(grads, moments, before.params)
        after = before._replace(params=jax.tree.map(jnp.add, before.params, updates))
        after = method.after_step(before, after, grads, step)
        return (after, moments), after

    def run(key):
        start = method.init(key, kernels(), None)
        carry = (start, optimizer.init(start.params))
        return start, jax.lax.scan(advance, carry, jnp.arange(steps))[1]

    return jax.jit(run, compiler_options=QUICK)


def at(states: Any, step: int) -> Any:
    return jax.tree.map(lambda x: x[step], states)


def alive(values: dict[str, Any]) -> np.ndarray:
    """How many of the values of all modules are not 0, after each step."""
    return sum(np.count_nonzero(x, axis=-1) for x in values.values())
