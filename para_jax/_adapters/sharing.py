"""Shared updates of several modules: cut once, counted once.

A model that ties its output layer to its embedding may tie their adapters too (PEFT's
`ensure_weight_tying`), and a block that a model holds under two names is adapted once.
A file then has the same factors twice: transposed, where one module is an embedding
`[vocabulary, d]` and the other a dense layer `[d, vocabulary]`, or as they are.

Runs on the host.
"""

import dataclasses
import typing
from collections.abc import Collection, Iterable, Mapping

import numpy as np

from para_jax._adapters.adapter import Adapter, Adapters, ordered
from para_jax._adapters.checkpoint import Checkpoint, Layer

_Layers = Mapping[str, Layer]
_Any = typing.TypeVar("_Any", bound=Checkpoint)


def found(adapters: Adapters, layers: _Layers) -> dict[str, str]:
    """Find the modules with another module's update, and its owner: `{path: owner}`.

    Their factors are equal bit for bit, and their scales. A dense layer can share with
    an embedding; any other module with one whose path ends in the same name, as both
    lie in one block. Updates of zero are shared by none.

    Args:
      adapters: NumPy arrays; others are ignored.
      layers: The kinds of the layers that are not dense.
    """
    result: dict[str, str] = {}
    # By a few bytes of each first: to compare all pairs would read every factor often.
    seen: dict[tuple[object, ...], list[str]] = {}
    # Embeddings first: a tied dense layer is stored as the transpose of its embedding.
    for path in sorted(ordered(adapters), key=lambda x: not _embeds(x, layers)):
        x = adapters[path]
        if not (isinstance(x.a, np.ndarray) and isinstance(x.b, np.ndarray)):
            continue
        forms = [x, _flipped(x)] if _dense(path, layers) else [x]
        keys = [(*_print(form), x.scale) for form in forms]
        others = (y for key in dict.fromkeys(keys) for y in seen.get(key, ()))
        owner = next((y for y in others if _share(path, y, adapters, layers)), None)
        if owner is not None:
            result[path] = owner
        elif np.any(x.a) and np.any(x.b):
            seen.setdefault(keys[0], []).append(path)
    return result


def held(checkpoint: Checkpoint, besides: Collection[str] = ()) -> dict[str, str]:
    """Return `checkpoint.shared` without updates no longer equal to their owner's.

    Args:
      checkpoint: The adapters.
      besides: Modules to leave out.
    """
    adapters, layers = checkpoint.adapters, checkpoint.layers
    return {
        path: owner
        for path, owner in checkpoint.shared.items()
        if path in adapters
        and owner in adapters
        and path not in besides
        and _share(path, owner, adapters, layers)
    }


def owners(checkpoint: Checkpoint) -> dict[str, Adapter]:
    """Return the adapters without those of sharing modules, which count once."""
    others = held(checkpoint)
    return {path: x for path, x in checkpoint.adapters.items() if path not in others}


def spread(checkpoint: _Any, paths: Iterable[str]) -> _Any:
    """Give sharing modules their owners' updates again, in a new checkpoint.

    Adapters are views of the owners' arrays. A module is absent if its owner is.

    Args:
      checkpoint: The owners' adapters, and perhaps others.
      paths: Some of `checkpoint.shared`.
    """
    adapters, absent = dict(checkpoint.adapters), dict(checkpoint.absent)
    for path in paths:
        owner = checkpoint.shared[path]
        flip = transposed(path, owner, checkpoint.layers)
        adapters.pop(path, None)
        absent.pop(path, None)
        if owner in adapters:
            x = adapters[owner]
            adapters[path] = _flipped(x) if flip else x
        elif owner in absent:
            m, n = absent[owner]
            absent[path] = (n, m) if flip else (m, n)
    return dataclasses.replace(checkpoint, adapters=adapters, absent=absent)


def transposed(path: str, owner: str, layers: _Layers) -> bool:
    """Return whether a module's update is its owner's transpose."""
    return _embeds(owner, layers) and not _embeds(path, layers)


def notes(shared: Mapping[str, str]) -> list[str]:
    """Return a report's note on sharing modules, if there are any."""
    if not shared:
        return []
    path = min(shared)
    more = f", and {len(shared) - 1} more" if len(shared) > 1 else ""
    return [f"'{path}' shares the update of '{shared[path]}', counted once{more}"]


def _share(path: str, owner: str, adapters: Adapters, layers: _Layers) -> bool:
    one, two = adapters[path], adapters[owner]
    if transposed(path, owner, layers):
        one = _flipped(one)
        alike = _dense(path, layers)
    else:
        # Equal factors alone prove nothing: fresh adapters of two layers may be equal.
        same_name = path.rpartition("/")[2] == owner.rpartition("/")[2]
        alike = same_name and layers.get(path) == layers.get(owner)
    return (
        alike and one.scale == two.scale and _same(one.a, two.a) and _same(one.b, two.b)
    )


def _same(one: object, two: object) -> bool:
    x, y = np.asarray(one), np.asarray(two)
    return x.dtype == y.dtype and np.array_equal(x, y)


def _embeds(path: str, layers: _Layers) -> bool:
    return layers.get(path, Layer()).kind == "embedding"


def _dense(path: str, layers: _Layers) -> bool:
    return layers.get(path, Layer()).kind == "linear"


def _flipped(x: Adapter) -> Adapter:
    return dataclasses.replace(x, a=x.b.mT, b=x.a.mT)


def _print(x: Adapter) -> tuple[object, ...]:
    """Return a hashable fingerprint of the factors, from their first row alone."""
    row = np.asarray(x.a[..., :1, :])
    return x.a.shape, x.b.shape, str(x.a.dtype), row.tobytes()
