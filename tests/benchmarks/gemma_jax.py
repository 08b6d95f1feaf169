"""Run training steps of our Gemma 3, with random weights created on the device."""

import dataclasses
import functools
import importlib.metadata
import os
import pathlib
import statistics
import time
from collections.abc import Iterator
from typing import Any

# Set before JAX is imported: lets JAX use as much memory as PyTorch.
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")

import jax
import jax.numpy as jnp
import optax

import para_jax as para
from para_jax import nest
from tests.benchmarks import gemma_rows
from tests.benchmarks.gemma_rows import RANK, Job, Row
from train.models import attention, gemma3, layers, loss
from train.models.gemma3 import Config


def rows(
    name: str, job: Job, config: Config, length: int, trace: pathlib.Path | None = None
) -> Iterator[Row]:
    """Yield one row per batch; a row with a reason ends the job.

    With `trace`, write a profile of some steps and the program's text to that folder.
    """
    versions = [f"{x} {importlib.metadata.version(x)}" for x in ("jax", "flax")]
    row = gemma_rows.blank(
        name,
        job,
        length,
        device=jax.devices()[0].device_kind,
        versions=", ".join(versions),
    )
    if job.attention == "cudnn" and (reason := _cudnn_fails(config, length)):
        yield dataclasses.replace(row, reason=reason)
        job = job._replace(attention="xla")
        row = dataclasses.replace(row, attention="xla, for want of cudnn")
    params = _weights(config)
    for batch in job.batches:
        row = dataclasses.replace(row, batch=batch)
        try:
            yield _timed(row, job, config, params, trace)
        except Exception as error:  # Any error belongs in the table.
            yield dataclasses.replace(row, reason=_words(error))
            return


def _timed(
    row: Row, job: Job, config: Config, params: Any, trace: pathlib.Path | None
) -> Row:
    compiled, state, ids = _compiled(row, job, config, params)
    mask = jnp.ones(ids.shape, bool)
    plan = compiled.memory_analysis()

    def step(state: Any) -> tuple[Any, float, float]:
        begin = time.perf_counter()
        *state, value = jax.block_until_ready(compiled(*state, params, ids, mask))
        return state, float(value), time.perf_counter() - begin

    state, *_ = step(state)
    state, _, once = step(state)
    times = []
    for _ in range(int(min(max(3.0 / once, 3), 20))):
        state, last, seconds = step(state)
        times.append(seconds)
    if trace:
        with jax.profiler.trace(str(trace)):
            for _ in range(gemma_rows.TRACED):
                state, *_ = step(state)
        (trace / "program.txt").write_text(compiled.as_text())
    return gemma_rows.measured(
        row,
        statistics.median(times),
        config,
        (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use"),
        planned=_planned(plan),
        loss=last,
    )


def _compiled(row: Row, job: Job, config: Config, params: Any) -> tuple[Any, ...]:
    model = gemma3.Gemma3(
        config,
        dtype=jnp.bfloat16,
        implementation=job.attention,
        remat=job.recompute,
    )
    optimizer = optax.adamw(1e-4)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(lora, state, params, ids, mask):
        def value(lora):
            variables = {"params": params, "lora": lora}
            return loss.causal_loss(model, variables, ids, mask)

        found, gradient = jax.value_and_grad(value)(lora)
        updates, state = optimizer.update(gradient, state, lora)
        return optax.apply_updates(lora, updates), state, found

    adapters = _adapters(config)
    if job.form == "unrolled":
        adapters = layers.unstacked(adapters)
    lora = para.to_params(adapters)
    state = jax.jit(optimizer.init)(lora)
    shape = (row.batch, row.length)
    ids = jax.random.randint(jax.random.key(2), shape, 1, config.vocab_size)
    mask = jnp.ones(shape, bool)
    return step.lower(lora, state, params, ids, mask).compile(), (lora, state), ids


def _planned(plan: Any) -> int | None:
    if plan is None:
        return None
    kept = plan.argument_size_in_bytes + plan.output_size_in_bytes
    return kept - plan.alias_size_in_bytes + plan.temp_size_in_bytes


def _weights(config: Config) -> Any:
    """Return the params in bfloat16.

    They are drawn part by part, since the random bits are wider than the weights.
    """
    params = {}
    for i, (path, leaf) in enumerate(gemma3.leaves(config).items()):
        scale = 0.02 * (not path.endswith("scale"))  # Norms multiply by `1 + scale`.
        params[path] = _normal(jax.random.key(i), leaf.shape, scale)
    return nest(params)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _normal(key: jax.Array, shape: tuple[int, ...], scale: float) -> jax.Array:
    parts = next(x for x in (34, 64, 16, shape[0], 1) if shape[0] % x == 0)
    part = (shape[0] // parts, *shape[1:])

    def draw(key: jax.Array) -> jax.Array:
        return scale * jax.random.normal(key, part, jnp.bfloat16)

    return jax.lax.map(draw, jax.random.split(key, parts)).reshape(shape)


def _adapters(config: Config) -> dict[str, para.Adapter]:
    kernels, result = gemma3.leaves(config), {}
    for i, module in enumerate(gemma3.ADAPTED):
        path = f"model/layers/{module}"
        count, m, n = kernels[f"{path}/kernel"].shape
        a = jax.random.normal(jax.random.key(i), (count, m, RANK)) * m**-0.5
        result[path] = para.Adapter(a=a, b=jnp.zeros((count, RANK, n)))
    return result


def _cudnn_fails(config: Config, length: int) -> str:
    """Return why cuDNN cannot run this attention and its gradient, or ""."""
    heads = (config.num_attention_heads, config.num_key_value_heads)
    q, k = (jnp.ones((1, length, x, config.head_dim), jnp.bfloat16) for x in heads)

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1, 2))
    def gradient(q, k, v):
        window = config.sliding_window
        kind = {"sliding": jnp.array(True), "window": window, "scale": 0.1}
        return attention.flash(q, k, v, **kind).astype(jnp.float32).sum()

    try:
        jax.block_until_ready(gradient(q, k, k))
    except Exception as error:  # The error may be raised by JAX, XLA or cuDNN.
        return _words(error)
    return ""


def _words(error: Exception) -> str:
    """Return the start of an error's message, on one line."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return "out of memory" if "RESOURCE_EXHAUSTED" in text else text[:300]
