"""Join gate and up into the update of transformers' `gate_up_proj`, and split them.

With `a = [a_gate a_up]` and `b` block diagonal of `b_gate` and `b_up`, `a b` has the
outputs of gate followed by those of up, at the sum of their ranks. It is exact: no
component is dropped, and none serves both.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from para_jax._adapters.adapter import Adapter, Array, folded


def join(
    parts: Mapping[int, Adapter], path: str, *, alternating: bool = False
) -> Adapter:
    """Return the update `[*stack, m, 2 n]` of gate and up; the inverse is `split`.

    Args:
      parts: The update `[*stack, m, n]` of gate (0), of up (1), or of both. A missing
        one contributes zeros.
      path: The fused parameter, for errors.
      alternating: Whether the outputs of gate and up take turns.

    Raises:
      ValueError: if gate and up differ in stack, shape or dtype.
    """
    forms = {(x.stack, x.inputs, x.outputs, str(x.a.dtype)) for x in parts.values()}
    if len(forms) > 1:
        raise ValueError(
            f"'{path}' holds two projections, whose updates differ in stack, inputs, "
            f"outputs or dtype: {sorted(forms)}. Expected them alike but in rank."
        )
    order = sorted(parts)
    updates = [parts[half] for half in order]
    scales = {x.scale for x in updates}
    # One common scale stays outside of the factors, which keeps their bits.
    same = len(scales) == 1
    bs = [x.b if same else folded(x).b for x in updates]
    rows = [_wide(b, half, alternating) for half, b in zip(order, bs, strict=True)]
    return Adapter(
        a=_concatenated([x.a for x in updates], axis=-1),
        b=_concatenated(rows, axis=-2),
        scale=scales.pop() if same else 1.0,
        nominal=_nominal(updates),
    )


def _nominal(updates: Sequence[Adapter]) -> int | None:
    """Return the sum of the nominal ranks; None if no update has one."""
    if all(x.nominal is None for x in updates):
        return None
    return sum(x.rank if x.nominal is None else x.nominal for x in updates)


def split(
    adapter: Adapter, half: int, path: str, *, alternating: bool = False
) -> Adapter:
    """Return the update `[*stack, m, n]` of gate (0) or up (1) alone.

    A component that is zero in this half is left out, which makes `split` the inverse
    of `join`; a component that serves both halves is kept in both.

    Raises:
      ValueError: if the outputs are an odd number.
    """
    n, odd = divmod(adapter.outputs, 2)
    if odd:
        raise ValueError(
            f"'{path}' has {adapter.outputs} outputs: expected an even number, of gate "
            "and up."
        )
    mine = slice(half, None, 2) if alternating else slice(half * n, (half + 1) * n)
    b = adapter.b[..., mine]
    # Over the whole stack: its experts share one rank, so a component is dropped only
    # if none of them uses it.
    used = np.flatnonzero(np.asarray(b != 0).any(axis=(*range(b.ndim - 2), -1)))
    return dataclasses.replace(
        adapter, a=adapter.a[..., used], b=b[..., used, :], nominal=None
    )


def _wide(b: Array, half: int, alternating: bool) -> Array:
    """Return `b` in the outputs of its half, with zeros in those of the other."""
    xp = np if isinstance(b, np.ndarray) else jnp
    outputs = [xp.zeros_like(b), xp.zeros_like(b)]
    outputs[half] = b
    if alternating:
        return xp.stack(outputs, axis=-1).reshape(*b.shape[:-1], -1)
    return _concatenated(outputs, axis=-1)


def _concatenated(arrays: list[Any], *, axis: int) -> Any:
    xp = np if all(isinstance(x, np.ndarray) for x in arrays) else jnp
    return xp.concatenate(arrays, axis=axis)
