"""PiSSA: LoRA started from the base's own principal components.

F. Meng, Z. Wang, M. Zhang, "PiSSA: Principal Singular Values and Singular Vectors
Adaptation of Large Language Models", NeurIPS 2024.

With `kernel = U S V^T` the factors start at the largest components,

    a0 = U_r sqrt(S_r / scale),    b0 = sqrt(S_r / scale) V_r^T,

and their product is subtracted from the kernel. Here the kernel does not change and the
model sees the difference, which is the same function:

    kernel - scale * a0 @ b0 + scale * a @ b = kernel + scale * [a, a0] @ [b; -b0].

So the update is a plain LoRA of rank `2 r` on the original weights, zero at the start.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from para_jax import Adapter, linalg
from train.methods import method
from train.methods.method import Adapters, Kernels, Method, State


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pissa:
    """PiSSA with the exact SVD.

    Attributes:
      rank: The rank of every module; the adapters' nominal rank.
      scale: `alpha / rank`. The authors set `alpha = rank`.
    """

    rank: int = 4
    scale: float = 1.0

    @property
    def target(self) -> float:
        return self.rank

    def method(self, steps: int) -> Method:
        """Return PiSSA; it has no schedule."""
        return of_components(slice(self.rank), self.rank, self.scale)


def of_components(part: slice, rank: int, scale: float) -> Method:
    """Return LoRA started from components of the kernels.

    Args:
      part: The slice of components, in descending order of singular values.
      rank: The number of components.
      scale: `alpha / rank`.

    Raises:
      ValueError: if the rank is not positive; at the start, if a kernel has fewer
        components.
    """
    if rank < 1:
        raise ValueError(f"rank is {rank}, expected at least 1.")

    def init(key: jax.Array, kernels: Kernels, gradients: Kernels | None) -> State:
        _check(kernels, rank)
        pairs = _components(kernels, part, scale)
        # The start is remembered: the adapter is the difference to it.
        return State(params=pairs, memory=pairs)

    def adapters(state: State) -> Adapters:
        return {
            path: Adapter(
                a=jnp.concatenate([pair["a"], state.memory[path]["a"]], axis=1),
                b=jnp.concatenate([pair["b"], -state.memory[path]["b"]], axis=0),
                scale=scale,
                nominal=rank,
            )
            for path, pair in state.params.items()
        }

    def finish(state: State) -> Adapters:
        return method.whole(adapters(state))

    return Method(init=init, adapters=adapters, finish=finish, optimizer=_undecayed)


def _undecayed(
    learning_rate: optax.Schedule, weight_decay: float
) -> optax.GradientTransformation:
    """Return AdamW without weight decay, as in the code of both papers.

    The factors are a part of the pretrained weights, which decay would take away.
    """
    return method.adamw(learning_rate, 0.0)


def _check(kernels: Kernels, rank: int) -> None:
    for path, kernel in kernels.items():
        if rank > min(kernel.shape):
            raise ValueError(
                f"'{path}': rank is {rank}, but the kernel {list(kernel.shape)} has "
                f"{min(kernel.shape)} components. Lower the rank."
            )


def _components(
    kernels: Kernels, part: slice, scale: float
) -> dict[str, dict[str, jax.Array]]:
    """Return the balanced factors of components `part` of each kernel over `scale`.

    Kernels of one shape are decomposed together, in float32.
    """
    result = {}
    # Equal shapes are decomposed in one batched call.
    for shape in sorted({kernel.shape for kernel in kernels.values()}):
        paths = sorted(path for path, x in kernels.items() if x.shape == shape)
        stack = jnp.stack([kernels[path] for path in paths]).astype(jnp.float32)
        u, s, vt = linalg.svd(stack)
        # Balanced: both factors have the same norms.
        root = jnp.sqrt(s[:, part] / scale)
        a, b = u[:, :, part] * root[:, None, :], root[:, :, None] * vt[:, part]
        result |= {path: {"a": a[i], "b": b[i]} for i, path in enumerate(paths)}
    return result
