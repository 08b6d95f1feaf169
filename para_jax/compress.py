"""PARA in one call: decompose, choose, repack. Host.

These entry points compute in float64 whatever the caller's setting, choose in
float64, and store in the parent's dtype.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from para_jax.adapters import Adapter, Adapters, Checkpoint, Child, by_member
from para_jax.groups import groups
from para_jax.policy import Policy
from para_jax.repack import Form, repack
from para_jax.report import report
from para_jax.select import exact_masks
from para_jax.spectrum import Method, Spectra, Spectrum, check, decompose


def compress(
    parent: Checkpoint | Adapters,
    policy: Policy,
    *,
    form: Form = "ragged",
    method: Method = "auto",
    dtype: Any = None,
) -> Child:
    """Returns the child of `parent` that `policy` asks for (PARA, Algorithm 1).

    Example:
      >>> parent = para_jax.load("adapter/")
      >>> child = para_jax.compress(parent, para_jax.Gamma(0.25))
      >>> print(child.report)

    Args:
      parent: A loaded checkpoint, or just its adapters by path.
      policy: What to keep.
      form: The form of the child's adapters, see `repack`.
      method: How to decompose, see `decompose`.
      dtype: The dtype to store the child in; the parent's by default.

    Returns:
      The child, with a `report`. All that was stored beside the adapters is passed on.

    Raises:
      ValueError: if the parent is broken (the path is named), belongs to weights other
        than the base model's (PiSSA), or cannot be cut as the policy asks.
    """
    (child,) = family(parent, [policy], form=form, method=method, dtype=dtype)
    return child


def family(
    parent: Checkpoint | Adapters,
    policies: Sequence[Policy],
    *,
    form: Form = "ragged",
    method: Method = "auto",
    dtype: Any = None,
) -> list[Child]:
    """Returns one child a policy, from a single decomposition of `parent`.

    The paper's "one-to-many" deployment. Arguments and errors are those of `compress`.
    """
    checkpoint = as_checkpoint(parent)
    spectra = spectra_of(checkpoint, method=method)
    return [cut(checkpoint, spectra, x, form=form, dtype=dtype) for x in policies]


def spectra_of(
    parent: Checkpoint | Adapters, *, method: Method = "auto"
) -> dict[str, Spectrum]:
    """Returns the spectrum of each update in float64: `decompose`, compiled once.

    Raises:
      ValueError: as `compress`.
    """
    checkpoint = as_checkpoint(parent)
    if checkpoint.residual:
        raise ValueError(
            f"This adapter was initialised by {checkpoint.residual}, so it belongs to "
            "changed base weights: pruning it would delete pretrained components. "
            "Make it plain first: para_jax.plain(trained, initial)."
        )
    for path, adapter in checkpoint.adapters.items():
        check(path, adapter)
    spectra: dict[str, Spectrum] = {}
    for path, spectrum in _decompose_groups(checkpoint.adapters, method):
        if not np.isfinite(spectrum.s).all():
            raise ValueError(f"'{path}': the factors contain NaN or infinity.")
        spectra[path] = spectrum
    return {path: spectra[path] for path in checkpoint.adapters}


def cut(
    parent: Checkpoint,
    spectra: Spectra,
    policy: Policy,
    *,
    form: Form = "ragged",
    dtype: Any = None,
) -> Child:
    """Returns one child from a parent that is decomposed already.

    Args:
      parent: The checkpoint.
      spectra: From `spectra_of(parent)`.
      policy: What to keep.
      form: See `repack`.
      dtype: See `compress`.
    """
    if dtype is not None:  # Bytes() counts what will be stored.
        name = np.dtype(dtype).name
        spectra = {p: dataclasses.replace(x, dtype=name) for p, x in spectra.items()}
    kept = exact_masks(spectra, policy)
    account = report(spectra, kept, policy)
    fields = {x.name: getattr(parent, x.name) for x in dataclasses.fields(Checkpoint)}
    with wide():
        fields["adapters"] = repack(spectra, kept, parent.adapters, form=form)
    if form == "ragged":
        for name in ("layers", "biases"):
            fields[name] = by_member(fields[name], parent.adapters)
    fields["absent"] = dict(parent.absent) | {
        x.path: (x.inputs, x.outputs) for x in account.modules if not x.kept
    }
    fields["provenance"] = dict(parent.provenance) | {"para": account.summary()}
    return Child(**fields, report=account)


def as_checkpoint(parent: Checkpoint | Adapters) -> Checkpoint:
    """Returns `parent`, or the checkpoint that holds just these adapters."""
    return parent if isinstance(parent, Checkpoint) else Checkpoint(adapters=parent)


@contextlib.contextmanager
def wide() -> Iterator[None]:
    """Turns on float64, but on TPU, which has no float64 factorisations."""
    if jax.default_backend() == "tpu":
        yield
    else:
        with jax.enable_x64(True):
            yield


def _decompose_groups(
    adapters: Adapters, method: Method
) -> Iterator[tuple[str, Spectrum]]:
    """Yields the path and the spectrum of each update, as NumPy arrays.

    Adapters of equal shapes are joined before the program and split after it, which
    compiles faster; and their scales stay outside, so that adapters that differ in
    alpha alone share a program.
    """
    found = groups(adapters)
    joined = {
        str(i): Adapter(
            a=group.join({path: adapters[path].a for path in group.stacks}),
            b=group.join({path: adapters[path].b for path in group.stacks}),
        )
        for i, group in enumerate(found)
    }
    with wide():
        spectra = jax.device_get(_decompose(joined, method=method))
    for i, group in enumerate(found):
        whole = spectra[str(i)]
        parts = (group.split(x) for x in (whole.s, whole.left, whole.right))
        s, left, right = parts
        for path in group.stacks:
            nominal = min(adapters[path].nominal or adapters[path].rank, whole.nominal)
            one = dataclasses.replace(
                whole, s=s[path], left=left[path], right=right[path], nominal=nominal
            )
            yield path, _scaled(one, float(adapters[path].scale))


_decompose = jax.jit(decompose, static_argnames="method")


def _scaled(spectrum: Spectrum, scale: float) -> Spectrum:
    """Returns the spectrum of `scale` times the update."""
    root = math.sqrt(abs(scale))
    return dataclasses.replace(
        spectrum,
        s=spectrum.s * abs(scale),
        left=spectrum.left * math.copysign(root, scale),
        right=spectrum.right * root,
    )
