"""Factorisations and products of many small matrices; nothing here knows a path.

The traced ones run on any number of CPU cores, also where XLA's batched LAPACK calls
would wait for one another for ever; on a GPU some are kernels.
"""

from para_jax.linalg.factorize import eigh as eigh, matmul as matmul, svd as svd
from para_jax.linalg.threads import in_threads as in_threads
from para_jax.linalg.tolerances import RESOLUTION as RESOLUTION
