"""Bicubic interpolation of grids of vectors, as in PyTorch.

The kernel is that of `torch.nn.functional.interpolate` with `align_corners=False`, with
which vision models of transformers resize learned position embeddings.
`jax.image.resize` has another kernel: its parameter is -1/2 where PyTorch's is -3/4.

R. Keys, "Cubic Convolution Interpolation for Digital Image Processing", 1981. Traceable
under `jit`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from para_jax import Array

_KERNEL = -0.75


def resized(
    table: Float[Array, "h w d"], height: int, width: int
) -> Float[jax.Array, "height width d"]:
    """Interpolate `table` at the points of another grid."""
    # Bit for bit the table at the trained resolution.
    if table.shape[:2] == (height, width):
        return jnp.asarray(table)
    rows, columns = map(_bicubic, table.shape[:2], (height, width))
    wide = table.astype(jnp.promote_types(table.dtype, jnp.float32))
    # TF32 would err by more than PyTorch's own rounding.
    highest = jax.lax.Precision.HIGHEST
    result = jnp.einsum("ih,jw,hwd->ijd", rows, columns, wide, precision=highest)
    return result.astype(table.dtype)


def _bicubic(size: int, new: int) -> Float[np.ndarray, "new size"]:
    """Return the interpolation matrix from `size` points to `new`."""
    # Centres of pixels, as with `align_corners=False`.
    centers = (np.arange(new) + 0.5) * size / new - 0.5
    # Each point is a mean of its four nearest neighbours.
    taps = np.floor(centers)[:, None] + np.arange(-1, 3)
    x = np.abs(centers[:, None] - taps)
    a = _KERNEL
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    result = np.zeros((new, size), np.float32)
    # Beyond the border, its last point is repeated.
    columns = np.clip(taps, 0, size - 1).astype(int)
    np.add.at(result, (np.arange(new)[:, None], columns), np.where(x <= 1, near, far))
    return result
