"""Kernels in Pallas (Triton), for operations too slow by XLA on a GPU.

Each kernel has a plain twin beside its caller in `para_jax.linalg`, which is its
definition, runs everywhere else, and gives the derivative. Gram matrices and spectra
are computed in float64, so they need JAX's 64-bit mode. Importing kernels takes a
while, so it is done where there is a GPU alone.

JAX 0.11 announces the end of this backend of Pallas. Where it is gone, or fails to
trace or lower a kernel, the plain twin runs on the GPU too: see
`para_jax.linalg.factorize.made_by`. Only a failure of the compiler that the lowered
program goes to, later and out of our sight, reaches the caller;
`decompose(method="qr")` has no kernels.

Traceable under `jit`.
"""

import functools
import importlib


@functools.cache
def exist() -> bool:
    """Return whether this JAX has Pallas for Triton. Slow the first time."""
    try:
        importlib.import_module("jax.experimental.pallas.triton")
    except Exception:  # Such as a warning that the caller has made an error.
        return False
    return True
