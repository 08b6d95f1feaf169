"""Map an adapter's two matrices to a kernel of many axes. Traceable under `jit`.

A linear layer computes `y = einsum("x,kernel->y")`. The kernel's axes shared with `x`
are contracted; its axes shared with `y` remain. Flattened in the kernel's own order,
they are the adapter's inputs `m` and outputs `n`:

    a: [*stack, m, r],  b: [*stack, r, n],  delta = a @ b, unflattened.

So `BTD,NDH->BTNH` has `m = D`, `n = N H`, and `BTNH,NHD->BTD` has `m = N H`, `n = D`.
"""

import math
import string
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Num

from para_jax._adapters.adapter import Array

_HIGHEST = jax.lax.Precision.HIGHEST
Shape = tuple[int, ...]


class Contraction(NamedTuple):
    """The axes of a linear layer, one letter each.

    Attributes:
      x: The axes of the input. `...` stands for any axes that stay unchanged.
      kernel: The axes of the kernel, each of them either in `x` or in `y`.
      y: The axes of the output.
    """

    x: str
    kernel: str
    y: str

    @property
    def contracted(self) -> str:
        return "".join(axis for axis in self.kernel if axis in self.x)

    @property
    def remaining(self) -> str:
        return "".join(axis for axis in self.kernel if axis in self.y)

    def matrix(self, kernel: Shape) -> tuple[int, int]:
        """Return `(m, n)` of a kernel of this shape."""
        m, n = (self._sizes(x, kernel) for x in (self.contracted, self.remaining))
        return math.prod(m), math.prod(n)

    def update(
        self,
        x: Num[jax.Array, "..."],
        a: Float[Array, "m r"],
        b: Float[Array, "r n"],
        kernel: Shape,
        *,
        precision: Any = None,
        out_sharding: Any = None,
    ) -> Float[jax.Array, "..."]:
        """Return `(x @ a) @ b` with the axes of `y`, without an array of size `m n`."""
        rank = next(i for i in string.ascii_letters if i not in "".join(self))
        # Between the two einsums, the batch axes of the output and the rank.
        kept = "".join(axis for axis in self.y if axis not in self.remaining) + rank
        a = jnp.reshape(a, (*self._sizes(self.contracted, kernel), -1))
        b = jnp.reshape(b, (-1, *self._sizes(self.remaining, kernel)))
        down = f"{self.x},{self.contracted}{rank}->{kept}"
        up = f"{kept},{rank}{self.remaining}->{self.y}"
        z = jnp.einsum(down, x, a, precision=precision)
        return jnp.einsum(up, z, b, precision=precision, out_sharding=out_sharding)

    def delta(
        self,
        a: Float[Array, "*stack m r"],
        b: Float[Array, "*stack r n"],
        kernel: Shape,
        dtype: DTypeLike,
    ) -> Float[jax.Array, "..."]:
        """Return `a @ b`, computed in `dtype`, in the shape of the kernels."""
        axes = self.contracted + self.remaining
        # Kernels are merged once: the lower default precision of a TPU saves nothing.
        product = jnp.matmul(a.astype(dtype), b.astype(dtype), precision=_HIGHEST)
        product = product.reshape(*a.shape[:-2], *self._sizes(axes, kernel))
        # The inputs do not always come first in a kernel, as in `BTD,NDH->BTNH`.
        return jnp.einsum(f"...{axes}->...{self.kernel}", product)

    def _sizes(self, axes: str, kernel: Shape) -> list[int]:
        return [kernel[self.kernel.index(axis)] for axis in axes]


DENSE = Contraction("...m", "mn", "...n")


def general(ndim: int, axis: Sequence[int], features: int) -> Contraction:
    """Return the axes of Flax's `DenseGeneral` and `LinearGeneral`.

    Args:
      ndim: The number of axes of the input.
      axis: The contracted axes, in any order: Flax sorts them.
      features: The number of axes of the features.
    """
    x = string.ascii_letters[:ndim]
    new = string.ascii_letters[ndim : ndim + features]
    contracted = "".join(x[i] for i in sorted(i % ndim for i in axis))
    kept = "".join(i for i in x if i not in contracted)
    return Contraction(x, contracted + new, kept + new)


def parse(equation: str, *, path: str) -> Contraction:
    """Parse the equation of an einsum of an input with a kernel.

    Raises:
      ValueError: if the kernel is not a matrix between input and output: an axis is in
        all three operands, in the kernel alone, or in the kernel twice.
    """
    operands, _, y = equation.replace(" ", "").partition("->")
    x, _, kernel = operands.partition(",")
    for axis in kernel:
        why = ""
        if axis == ".":
            why = "the kernel has an ellipsis"
        elif kernel.count(axis) > 1:
            why = f"'{axis}' is in the kernel twice"
        elif axis in x and axis in y:
            why = f"the batch axis '{axis}' is in the input, the kernel and the output"
        elif axis not in x and axis not in y:
            why = f"'{axis}' is in the kernel alone"
        if why:
            raise ValueError(
                f"An adapter cannot be applied to the einsum '{equation}' of "
                f"'{path}': {why}, expected every axis of the kernel in either the "
                "input or the output. Add `a @ b` to the kernel instead."
            )
    return Contraction(x, kernel, y)
