"""Two updates side by side as one: gate and up in transformers' `gate_up_proj`.

With `a = [a0 a1]` and `b` of the blocks `b0`, `b1` on its diagonal, `a b` is the two
updates one after the other, of the sum of their ranks: nothing is lost or mixed.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from para_jax._adapters.adapter import Adapter, Array, folded


def join(parts: Mapping[int, Adapter], path: str) -> Adapter:
    """Returns the update `[*stack, m, 2 n]` of both halves; the inverse is `split`.

    Args:
      parts: The update `[*stack, m, n]` of half 0, of half 1, or of both. A half that
        is missing has none.
      path: The fused parameter, for errors.

    Raises:
      ValueError: if the halves differ in stack, shape or dtype.
    """
    forms = {(x.stack, x.inputs, x.outputs, str(x.a.dtype)) for x in parts.values()}
    if len(forms) > 1:
        raise ValueError(
            f"'{path}' holds two projections, whose updates differ in stack, inputs, "
            f"outputs or dtype: {sorted(forms)}. Expected them alike but in rank."
        )
    blocks = [parts[half] for half in sorted(parts)]
    scales = {x.scale for x in blocks}
    bs = [x.b if len(scales) == 1 else folded(x).b for x in blocks]
    padded = [_placed(b, half) for b, half in zip(bs, sorted(parts), strict=True)]
    nominal = [x.nominal for x in blocks]
    counted = [x.rank if n is None else n for x, n in zip(blocks, nominal, strict=True)]
    return Adapter(
        a=_joined([x.a for x in blocks], axis=-1),
        b=_joined(padded, axis=-2),
        scale=scales.pop() if len(scales) == 1 else 1.0,
        nominal=None if nominal == [None] * len(nominal) else sum(counted),
    )


def split(adapter: Adapter, half: int, path: str) -> Adapter:
    """Returns the update `[*stack, m, n]` of one half, in the components it uses.

    A rank that serves the other half alone is left out, so what `join` put together
    comes apart again; a rank that serves both is in both.

    Raises:
      ValueError: if the outputs are an odd number.
    """
    n, odd = divmod(adapter.outputs, 2)
    if odd:
        raise ValueError(
            f"'{path}' has {adapter.outputs} outputs: expected an even number, of gate "
            "and up."
        )
    b = adapter.b[..., half * n : (half + 1) * n]
    used = np.flatnonzero(np.asarray(b != 0).any(axis=(*range(b.ndim - 2), -1)))
    return dataclasses.replace(
        adapter, a=adapter.a[..., used], b=b[..., used, :], nominal=None
    )


def _placed(b: Array, half: int) -> Array:
    xp = np if isinstance(b, np.ndarray) else jnp
    blocks = [xp.zeros_like(b), xp.zeros_like(b)]
    blocks[half] = b
    return _joined(blocks, axis=-1)


def _joined(arrays: list[Any], *, axis: int) -> Any:
    xp = np if all(isinstance(x, np.ndarray) for x in arrays) else jnp
    return xp.concatenate(arrays, axis=axis)
