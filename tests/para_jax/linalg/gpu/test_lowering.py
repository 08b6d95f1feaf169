"""Test which kernels a GPU program contains, by lowering it without a GPU.

The slow tests lower programs of every rank, at about a second per rank.
"""

import contextlib
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import (
    AbstractDevice,
    AbstractMesh,
    AxisType,
    NamedSharding,
    PartitionSpec as P,
    use_abstract_mesh,
)

import para_jax
from para_jax.linalg import gpu
from para_jax.linalg.gpu import gram, jacobi

KERNEL = "__gpu$xla.gpu.triton"
QR = "cusolver_geqrf"


@contextlib.contextmanager
def as_on(backend, kind="NVIDIA H200"):
    """Trace and lower as if `backend` were JAX's default.

    From 0.11 on, JAX needs the target GPU to lower a kernel.
    """
    with pytest.MonkeyPatch.context() as patch, use_abstract_mesh(mesh((), (), kind)):
        patch.setattr(jax, "default_backend", lambda: backend)
        yield


@pytest.fixture(autouse=True)
def as_on_a_gpu():
    with as_on("gpu"):
        yield


def mesh(sizes, names, kind="NVIDIA H200", **options):
    known = not jax.__version__.startswith("0.10.")
    device = AbstractDevice(kind, 132, "gpu") if known else None
    return AbstractMesh(sizes, names, abstract_device=device, **options)


def adapters(rank=5, dtype=jnp.float32, sharding=None):
    def factor(*shape):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    return {"x": para_jax.Adapter(factor(4, 24, rank), factor(4, rank, 16), 2.0)}


def program(adapters, function=para_jax.decompose, platform="cuda", **options):
    traced = jax.jit(functools.partial(function, **options)).trace(adapters)
    return traced.lower(lowering_platforms=(platform,)).as_text()


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
        (8, jnp.float32, 3),
        (24, jnp.float32, 3),
        (32, jnp.float32, 3),
        (33, jnp.float32, 2),
        (129, jnp.float32, 0),
        (5, jnp.float64, 3),
        (5, jnp.bfloat16, 3),
        (5, jnp.float16, 3),
    ],
)
def test_a_kernel_is_there_where_it_serves(rank, dtype, kernels):
    assert program(adapters(rank, dtype), method="gram").count(KERNEL) == kernels


def test_qr_has_no_kernel():
    text = program(adapters(), method="qr")

    assert QR in text
    assert KERNEL not in text


@pytest.mark.user_defaults
def test_a_program_in_float32_has_the_kernels_of_float64():
    assert program(adapters()).count(KERNEL) == 3


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_on_a_mesh_there_are_neither_kernels_nor_qr(kind):
    mesh = AbstractMesh((4,), ("x",), axis_types=(kind,))

    text = program(adapters(sharding=NamedSharding(mesh, P("x"))))

    assert KERNEL not in text
    assert QR not in text


@pytest.mark.parametrize("check", [True, False])
def test_in_a_shard_map_there_are_kernels_unless_it_checks_what_varies(check):
    """Pallas needs the varying axes of its results; plain operations infer them."""
    devices = mesh((4,), ("x",))
    decompose = jax.shard_map(
        para_jax.decompose, mesh=devices, in_specs=P(), out_specs=P(), check_vma=check
    )

    with use_abstract_mesh(devices):
        text = program(adapters(), decompose)

    assert text.count(KERNEL) == (0 if check else 3)
    assert QR in text


# --- Every rank -----------------------------------------------------------------------


@pytest.mark.parametrize("first", range(1, 129, 32))
def test_gram_matrices_of_every_rank_are_lowered(first):
    for rank in range(first, first + 32):
        check_gram(rank, tall=rank % 2 == 0, dtype=jnp.float32)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("tall", [True, False])
def test_gram_matrices_of_every_rank_and_dtype_are_lowered(tall, dtype):
    for rank in range(1, 129):
        check_gram(rank, tall=tall, dtype=dtype)


def check_gram(rank, *, tall, dtype):
    x = jax.ShapeDtypeStruct((2, 24, rank) if tall else (2, rank, 24), dtype)
    assert KERNEL in program(x, gram.gram, tall=tall), rank


@pytest.mark.parametrize("first", range(1, 33, 8))
def test_spectra_of_every_rank_are_lowered(first):
    def spectra(x):
        return jacobi.spectra(x, x, resolution=1e-7)

    for rank in range(first, first + 8):
        x = jax.ShapeDtypeStruct((2, rank, rank), jnp.float64)
        assert KERNEL in program(x, spectra), rank


PRECISIONS = [True, pytest.param(False, marks=pytest.mark.user_defaults)]


@pytest.mark.parametrize("wide", PRECISIONS)
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("rank", [1, 24, 129])
def test_a_program_of_a_rank_is_lowered(platform, wide, rank):
    check_program(platform, wide, rank)


# Only GPUs have kernels, which differ by rank.
@pytest.mark.slow
@pytest.mark.parametrize("wide", PRECISIONS)
@pytest.mark.parametrize("first", range(1, 131, 26))
def test_a_program_of_every_rank_is_lowered(wide, first):
    for rank in range(first, first + 26):
        check_program("cuda", wide, rank)


def check_program(platform, wide, rank):
    with as_on({"cuda": "gpu", "tpu": "tpu"}[platform]):
        text = program(adapters(rank), platform=platform)

    # In a program without float64 too, which computes in it.
    expected = 2 * (rank <= 128) + (rank <= 32) if platform == "cuda" else 0
    assert text.count(KERNEL) == expected, rank


# --- A JAX that a kernel does not work with -------------------------------------------


@pytest.fixture(params=["tracing", "lowering"])
def broken(request, monkeypatch):
    """Break the kernel of a module, when it is traced or when it is lowered."""

    def breaks(module):
        whole = module._kernel

        def kernel(*refs, **options):
            if request.param == "tracing":
                raise NotImplementedError("Not in this JAX.")
            whole(*refs, **options)
            refs[-1][...] = lax.sort(refs[-1][...])  # Triton has no such operation.

        monkeypatch.setattr(module, "_kernel", kernel)

    jax.clear_caches()  # Drop working traces, and later broken ones.
    yield breaks
    jax.clear_caches()


@pytest.mark.parametrize("method", ["gram", "auto"])
def test_where_a_kernel_is_broken_the_plain_operations_run(broken, method):
    broken(gram)
    with pytest.raises(NotImplementedError):
        check_gram(5, tall=True, dtype=jnp.float32)

    assert program(adapters(), method=method).count(KERNEL) == 1

    broken(jacobi)
    assert program(adapters(6), method=method).count(KERNEL) == 0


def test_only_the_kernel_that_is_broken_is_missing(broken):
    broken(jacobi)

    assert program(adapters()).count(KERNEL) == 2


@pytest.mark.parametrize("method", ["gram", "auto"])
def test_without_kernels_the_singular_values_are_right(broken, method):
    broken(gram)
    broken(jacobi)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 11, 5)), rng.normal(size=(2, 5, 7))
    decompose = functools.partial(para_jax.decompose, method=method)

    found = jax.jit(decompose)({"x": para_jax.Adapter(a, b, 2.0)})

    want = np.linalg.svd(2 * a @ b, compute_uv=False)[:, :5]
    np.testing.assert_allclose(found["x"].s, want, rtol=1e-10)


def test_without_kernels_it_maps_and_has_a_derivative(broken):
    broken(gram)
    broken(jacobi)
    mapped = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype), adapters()
    )

    def energy(adapters):
        found = para_jax.decompose(adapters, method="gram")["x"]
        return (found.s * found.s).sum()

    assert KERNEL not in program(mapped, jax.vmap(jax.value_and_grad(energy)))


def test_a_gpu_that_jax_does_not_know_runs_the_plain_operations():
    """JAX 0.11 and 0.12 lower kernels only for GPUs they know by name."""
    with as_on("gpu", "Tesla K80"):
        known = KERNEL in program(adapters())

    assert known == jax.__version__.startswith("0.10.")


def test_warnings_that_are_errors_stop_no_program():
    """JAX 0.11 and 0.12 warn of the removal of this Pallas backend."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.clear_caches()

        program(adapters())


def test_without_pallas_the_plain_operations_run(monkeypatch):
    def missing(name):
        raise AttributeError(name)

    monkeypatch.setattr(gpu.importlib, "import_module", missing)
    gpu.exist.cache_clear()
    try:
        assert KERNEL not in program(adapters())
    finally:
        gpu.exist.cache_clear()
