"""The norm of decoders, by the root of the mean square.

B. Zhang, R. Sennrich, "Root Mean Square Layer Normalization", NeurIPS 2019.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Float


class RMSNorm(nn.Module):
    """`x / rms(x) * (offset + scale)`, in float32, cast back.

    Attributes:
      eps: The term added to the mean square.
      offset: Of the weights, 0 or 1: what they are stored without.
    """

    eps: float
    offset: float

    @nn.compact
    def __call__(self, x: Float[jax.Array, "*B n"]) -> Float[jax.Array, "*B n"]:
        start = nn.initializers.constant(1 - self.offset)
        scale = self.param("scale", start, x.shape[-1:])
        wide = x.astype(jnp.float32)
        mean = jnp.square(wide).mean(axis=-1, keepdims=True)
        factor = self.offset + scale.astype(jnp.float32)
        factor = jnp.expand_dims(factor, range(x.ndim - 1))
        return (wide * jax.lax.rsqrt(mean + self.eps) * factor).astype(x.dtype)
