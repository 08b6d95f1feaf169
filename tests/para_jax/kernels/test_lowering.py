"""Which kernels a program for a GPU has, seen without one: it is lowered, not run."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import para_jax

KERNEL = "__gpu$xla.gpu.triton"
QR = "cusolver_geqrf"


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


def adapters(rank=5, dtype=jnp.float32, sharding=None):
    def factor(*shape):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    return {"x": para_jax.Adapter(factor(4, 24, rank), factor(4, rank, 16), 2.0)}


def program(adapters, function=para_jax.decompose, **options):
    traced = jax.jit(functools.partial(function, **options)).trace(adapters)
    return traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("method", ["gram", "auto"])
def test_both_kernels_are_in_the_program(method):
    text = program(adapters(), method=method)

    assert text.count(KERNEL) == 3  # Two Gram matrices, and the spectra.
    assert (QR in text) == (method == "auto")


def test_both_kernels_are_in_the_program_under_vmap():
    mapped = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype), adapters()["x"]
    )
    text = program({"x": mapped}, lambda x: jax.vmap(para_jax.decompose)(x))

    assert text.count(KERNEL) == 3


@pytest.mark.parametrize(
    ("rank", "dtype", "kernels"),
    [
        (32, jnp.float32, 3),
        (33, jnp.float32, 2),
        (129, jnp.float32, 0),
        (5, jnp.float64, 3),
        (5, jnp.bfloat16, 3),
    ],
)
def test_a_kernel_is_there_where_it_serves(rank, dtype, kernels):
    assert program(adapters(rank, dtype), method="gram").count(KERNEL) == kernels


def test_qr_has_no_kernel():
    text = program(adapters(), method="qr")

    assert QR in text
    assert KERNEL not in text


@pytest.mark.user_defaults
def test_a_program_in_float32_has_no_kernels():
    assert KERNEL not in program(adapters())


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_on_a_mesh_there_are_neither_kernels_nor_qr(kind):
    mesh = AbstractMesh((4,), ("x",), axis_types=(kind,))

    text = program(adapters(sharding=NamedSharding(mesh, P("x"))))

    assert KERNEL not in text
    assert QR not in text
