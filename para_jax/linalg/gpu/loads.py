"""What kernels do with numbers that they have read.

Traceable in a kernel.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array


def widened(x: Array, dtype: Any) -> Array:
    """Return a tile in a wider dtype.

    Triton moves a conversion behind the change of layout that a product needs, and then
    takes the wrong numbers if it is from 16 bits. A sum, here of one, stays in place.
    """
    if x.dtype.itemsize == 2:
        x = jnp.sum(x.astype(jnp.float32)[:, :, None], axis=2)
    return x.astype(dtype)
