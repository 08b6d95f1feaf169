"""A parent's components, and children made of some of them. Runs on the host.

A component is a pair of a column and a row, `delta = sum_j outer(a[:, j], b[j])`. Which
ones a child keeps is for `choose` to say; they are computed once a parent, in float64,
and a child of theirs costs no more than its copy.

Axis letters: `m` inputs, `n` outputs, `r` rank, `k` components, `C` children.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from para_jax import Adapter, Spectrum, folded, spectra_of
from para_jax.linalg import RESOLUTION

Masks = Mapping[str, Bool[np.ndarray, " k"]]


class Components(NamedTuple):
    """The components of one update, strongest first.

    Attributes:
      spectrum: Their strengths `s: [k]`, and what the update looked like.
      a: Columns `[m, k]`; zero where `s` counts as zero.
      b: Rows `[k, n]`; likewise.
    """

    spectrum: Spectrum
    a: Float[np.ndarray, "m k"]
    b: Float[np.ndarray, "k n"]

    @property
    def s(self) -> Float[np.ndarray, " k"]:
        return np.asarray(self.spectrum.s)

    @property
    def resolved(self) -> Bool[np.ndarray, " k"]:
        """Masks of the components above float32's rounding error."""
        return self.s > self.spectrum.rank * RESOLUTION * self.s[0]

    @property
    def u(self) -> Float[np.ndarray, "m k"]:
        """The columns without their share of `s`: left singular vectors in PARA."""
        return self.a * self._weight

    @property
    def vt(self) -> Float[np.ndarray, "k n"]:
        """The rows without their share of `s`: right singular vectors."""
        return self.b * self._weight[:, None]

    @property
    def _weight(self) -> Float[np.ndarray, " k"]:
        # Nothing is divided by a value that is rounding error.
        return np.where(
            self.resolved, 1 / np.sqrt(np.where(self.resolved, self.s, 1)), 0
        )


def decompose(adapters: Mapping[str, Adapter]) -> dict[str, Components]:
    """Return the singular components of each update, scale folded in.

    `a = U sqrt(S)` and `b = sqrt(S) V^T`, the balanced split of PARA's Eq. 3.

    Args:
      adapters: A parent: adapters of one kernel each.

    Raises:
      ValueError: if an adapter is broken, or is one of a stack of kernels.
    """
    if stacked := [path for path, x in adapters.items() if x.stack]:
        raise ValueError(
            f"'{stacked[0]}' is a stack of kernels, expected one. Call "
            "para_jax.unstack first."
        )
    return applied(spectra_of(adapters), adapters)


def applied(
    spectra: Mapping[str, Spectrum], adapters: Mapping[str, Adapter]
) -> dict[str, Components]:
    """Return `a @ left` and `right @ b` of each module, in float64.

    Args:
      spectra: The spectra, in the coordinates of the adapters' factors.
      adapters: The factors that `spectra` are applied to. Their scales are in `left`
        and `right` already.
    """

    def one(spectrum: Spectrum, adapter: Adapter) -> Components:
        # In float64, once: rounding to the stored dtype happens in `child`.
        a, b = (np.asarray(x, np.float64) for x in (adapter.a, adapter.b))
        left, right = np.asarray(spectrum.left), np.asarray(spectrum.right)
        return Components(spectrum, a @ left, right @ b)

    return {path: one(spectra[path], x) for path, x in adapters.items()}


def child(components: Mapping[str, Components], masks: Masks) -> dict[str, Adapter]:
    """Return the child with the kept components: ragged, of scale 1.

    In the parent's dtype. A module that keeps nothing is absent.
    """
    result = {}
    for path, x in components.items():
        kept = masks[path]
        # A module without components is absent, as in PARA's children.
        if kept.any():
            a, b = (y.astype(x.spectrum.dtype) for y in (x.a[:, kept], x.b[kept]))
            result[path] = Adapter(a=a, b=b)
    return result


def stack(
    children: Sequence[Mapping[str, Adapter]], *, like: Mapping[str, Adapter]
) -> dict[str, Adapter]:
    """Stack many children: `a: [C, m, r]`, `b: [C, r, n]`, of scale 1.

    Each is filled up to the shapes of `like` with zeros, which changes no update. One
    program evaluates all of them:

        lora = para_jax.to_params(stack(children, like=parent))
        run = lambda lora: model.apply({"params": params, "lora": lora}, batch)
        logits = jax.vmap(run)(lora)  # [C, B, classes]

    Args:
      children: Children of any ranks and scales, from any method.
      like: The parent, or anything with room for all.

    Raises:
      ValueError: if there are no children, or one does not fit.
    """
    if not children:
        raise ValueError("There are no children to stack: got an empty sequence.")
    for adapters in children:
        for path, x in adapters.items():
            _check_fits(path, x, like)

    def one(path: str) -> Adapter:
        room, count = like[path], len(children)
        a = np.zeros((count, *room.a.shape), room.a.dtype)
        b = np.zeros((count, *room.b.shape), room.b.dtype)
        for i, adapters in enumerate(children):
            if path in adapters:
                # Scales are folded in: a stack has one scale for all.
                x = folded(adapters[path])
                a[i, :, : x.rank], b[i, : x.rank] = x.a, x.b
        return Adapter(a=a, b=b)

    return {path: one(path) for path in like}


def _check_fits(path: str, x: Adapter, like: Mapping[str, Adapter]) -> None:
    """Raise ValueError unless there is room for `x` at `path`."""
    if path not in like:
        raise ValueError(f"'{path}' is not a module of the model to fill up to.")
    room = like[path]
    if (x.inputs, x.outputs) != (room.inputs, room.outputs) or x.rank > room.rank:
        raise ValueError(
            f"'{path}': a {list(x.a.shape)} and b {list(x.b.shape)} do not fit into a "
            f"{list(room.a.shape)} and b {list(room.b.shape)}."
        )
