"""Convert an update between the axes of Keras's EinsumDense and Hugging Face's Linear.

Keras's LoRA of a kernel with several axes splits off the last one alone, `b [r, h]`. So
the heads of a projection `[n, d, h]` are on the side of `a`, and all of them share `b`:
the update `[d, n h]` of the Linear has up to `n` times the rank. Both directions keep
every component; compress afterwards to drop those that add nothing.

Axis letters: `n` heads, `d` features, `h` the size of a head, `r` the rank.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from para_jax._adapters.adapter import Adapter
from para_jax._adapters.checkpoint import Layer
from para_jax._adapters.messages import Argument, Message
from para_jax.names.patterns import Module
from para_jax.names.plan import Moves

KIND = "einsum"


def check(
    layers: Mapping[str, Layer], outputs: Mapping[str, int], moves: Moves
) -> None:
    """Check that all projections have the same features and the same size of a head.

    The numbers in a file of keras-hub fit several models. In the wrong one, a value
    projection is read as an output, whose axes have other meanings.

    Args:
      layers: The kinds of Keras's layers by path.
      outputs: The outputs `h` or `d` of each update by path.
      moves: Their places in Hugging Face.

    Raises:
      ValueError: if two of them disagree. Both are named.
    """
    first: dict[tuple[str, str], tuple[str, int]] = {}
    for path, module, layer in _with_heads(layers, moves):
        if path not in outputs:
            continue
        sizes = dict(zip(module.heads or "", layer.window, strict=True))
        sizes["d" if "h" in sizes else "h"] = outputs[path]
        tower = module.name.partition("{i}")[0]
        for letter, what in (("d", "features"), ("h", "as the size of a head")):
            other, size = first.setdefault((tower, letter), (path, sizes[letter]))
            if size != sizes[letter]:
                raise ValueError(
                    f"'{path}' as {module.name} has {sizes[letter]} {what}, and "
                    f"'{other}' has {size}: they are of another model."
                )


def _with_heads(
    layers: Mapping[str, Layer], moves: Moves
) -> Iterator[tuple[str, Module, Layer]]:
    for path, several in moves.items():
        layer = layers.get(path, Layer())
        if layer.kind == KIND and len(layer.window) == 2:
            yield from ((path, x.module, layer) for x in several if x.module.heads)


def to_hf(adapter: Adapter, module: Module, layer: Layer, path: str) -> Adapter:
    """Return the update of the Linear; the inverse is `from_hf`.

    Args:
      adapter: The update `[n d, h]` of a projection with heads, or `[n h, d]`.
      module: Says the order of the input axes.
      layer: Says their sizes.
      path: The module, for errors.

    Raises:
      ValueError: if the sizes are not known.
    """
    if module.heads in (None, "nh"):
        return adapter
    if layer.kind != KIND or len(layer.window) != 2:
        raise ValueError(
            f"'{path}' is an einsum of Keras, the sizes of whose heads are not known: "
            "expected a checkpoint of para_jax.from_tree or para_jax.load, with "
            "Layer(kind='einsum', window=(heads, features)) for it."
        )
    n = layer.window[module.heads.index("n")]
    a = _by_head(adapter.a, module, n)  # [n, d, r]
    b = adapter.b
    xp = _module(a)
    inner = n * adapter.rank
    # Every head has `b` at its own place. NumPy's einsum takes no bfloat16.
    own = xp.eye(n, dtype=bool)[:, None, :, None]
    blocks = xp.where(own, b[None, :, None], xp.zeros((), b.dtype))
    return dataclasses.replace(
        adapter,
        a=a.swapaxes(0, 1).reshape(-1, inner),
        b=blocks.reshape(inner, n * adapter.outputs),
        nominal=None,
    )


def from_hf(
    adapter: Adapter, module: Module, head_dim: int | None, path: str
) -> Adapter:
    """Return the update of Keras's kernel; the inverse is `to_hf`.

    Its rank is the smallest without arithmetic on the factors: the parent's own if this
    is a result of `to_hf`. Above `h`, the update itself is `a`, at rank `h`.

    Raises:
      ValueError: if `head_dim` is not given, or does not fit, or the update exceeds the
        range of its dtype.
    """
    if module.heads in (None, "nh"):
        return adapter
    n = heads(adapter.outputs, head_dim, path)
    xp = _module(adapter.a)
    b = adapter.b.reshape(adapter.rank, n, -1).swapaxes(0, 1)  # [n, R, h]
    used = [np.flatnonzero(np.asarray(x != 0).any(axis=-1)) for x in b]
    parts = [(adapter.a[:, k], x[k]) for k, x in zip(used, b, strict=True)]
    if all(_equal(x, parts[0][1]) for _, x in parts):
        a, b = xp.stack([x for x, _ in parts]), parts[0][1]
    elif sum(map(len, used)) < b.shape[-1]:
        a = _block_rows([x for x, _ in parts], xp)
        b = xp.concatenate([x for _, x in parts])
    else:
        a = xp.stack([_product(x, y, path) for x, y in parts])
        b = xp.eye(b.shape[-1], dtype=b.dtype)
    # [n, d, r] in the order of Keras's axes.
    a = a if module.heads == "nd" else a.swapaxes(0, 1)
    return dataclasses.replace(adapter, a=a.reshape(-1, a.shape[-1]), b=b, nominal=None)


def layer(module: Module, m: int, n: int, head_dim: int | None, path: str) -> Layer:
    """Return the kind of Keras's layer with heads of a Linear `[m, n]`."""
    axes = module.heads or ""
    count = heads(m if "h" in axes else n, head_dim, path)
    sizes = {"n": count, "d": m, "h": m // count}
    return Layer(kind=KIND, window=tuple(sizes[x] for x in axes))


def shape_to_hf(module: Module, layer: Layer, m: int, n: int) -> tuple[int, int]:
    """Return `(m, n)` of the Linear for those of Keras's kernel."""
    if module.heads in (None, "nh") or layer.kind != KIND:
        return m, n
    count = layer.window[module.heads.index("n")]
    return m // count, n * count


def shape_from_hf(
    module: Module, m: int, n: int, head_dim: int | None, path: str
) -> tuple[int, int]:
    """Return `(m, n)` of Keras's kernel for those of the Linear."""
    if module.heads in (None, "nh"):
        return m, n
    count = heads(n, head_dim, path)
    return m * count, n // count


def heads(size: int, head_dim: int | None, path: str) -> int:
    """Return the number of heads in an axis.

    Raises:
      ValueError: if `head_dim` is not given, or does not divide the axis.
    """
    if head_dim is None:
        raise ValueError(
            Message(
                f"'{path}' has an axis of heads in Keras. Give ",
                Argument("head_dim"),
                ", from the model's config.json, or hidden_size / num_attention_heads "
                "there.",
            )
        )
    if head_dim < 1 or size % head_dim:
        raise ValueError(
            f"'{path}' has an axis of {size}, which is not heads of {head_dim}: "
            "expected a head_dim that divides it."
        )
    return size // head_dim


def _by_head(a: Any, module: Module, n: int) -> Any:
    """Return `a` as `[n, d, r]`."""
    if module.heads == "nd":
        return a.reshape(n, -1, a.shape[-1])
    return a.reshape(-1, n, a.shape[-1]).swapaxes(0, 1)


def _product(x: Any, y: Any, path: str) -> Any:
    """Return `x @ y`, summed in float32 at least, in the dtype of `x`."""
    wide = x.dtype if x.dtype.itemsize >= 4 else np.dtype(np.float32)
    with np.errstate(over="ignore"):  # It is an error below.
        found = (x.astype(wide) @ y.astype(wide)).astype(x.dtype)
    if not np.isfinite(np.asarray(found, wide)).all():
        raise ValueError(
            f"'{path}' has an update beyond the range of {x.dtype}: convert it in "
            "float32."
        )
    return found


def _block_rows(parts: list[Any], xp: Any) -> Any:
    """Return `[n, d, sum r_i]`: each head has its part in its own columns alone."""
    widths = [x.shape[-1] for x in parts]
    rows = []
    for i, x in enumerate(parts):
        around = (sum(widths[:i]), sum(widths[i + 1 :]))
        rows.append(xp.pad(x, [(0, 0), around]))
    return xp.stack(rows)


def _equal(one: Any, two: Any) -> bool:
    return bool(np.array_equal(np.asarray(one), np.asarray(two)))


def _module(a: Any) -> Any:
    return np if isinstance(a, np.ndarray) else jnp
