"""PARA in one call: decompose, choose, repack. Host.

These entry points compute in float64 whatever the caller's setting, choose in
float64, and store in the parent's dtype.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxtyping import Float

from para_jax import host
from para_jax.adapters import Adapter, Adapters, Checkpoint, Child, by_member
from para_jax.groups import Group, Progress, batches, groups
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
    progress: Progress = iter,
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
      progress: What to wrap the two loops over the modules in, such as `tqdm.tqdm`.

    Returns:
      The child, with a `report`. All that was stored beside the adapters is passed on.

    Raises:
      ValueError: if the parent is broken (the path is named), belongs to weights other
        than the base model's (PiSSA), or cannot be cut as the policy asks.
    """
    checkpoint = as_checkpoint(parent)
    spectra = spectra_of(checkpoint, method=method, dtype=dtype, progress=progress)
    return cut(checkpoint, spectra, policy, form=form, progress=progress)


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
    spectra = spectra_of(checkpoint, method=method, dtype=dtype)
    return [cut(checkpoint, spectra, policy, form=form) for policy in policies]


def spectra_of(
    parent: Checkpoint | Adapters,
    *,
    method: Method = "auto",
    dtype: Any = None,
    progress: Progress = iter,
) -> dict[str, Spectrum]:
    """Returns the spectrum of each update in float64: `decompose`, compiled once.

    Args:
      parent: As for `compress`.
      method: As for `compress`.
      dtype: The dtype that children will be stored in; the parent's by default.
      progress: As for `compress`.

    Raises:
      ValueError: as `compress`.
    """
    checkpoint = as_checkpoint(parent)
    _check_parent(checkpoint)
    if dtype is not None and not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype is {np.dtype(dtype).name}, expected floating point.")
    adapters = checkpoint.adapters
    result: dict[str, Spectrum] = {}
    for group, whole in _decompose_groups(adapters, method, progress):
        s, left, right = map(group.split, (whole.s, whole.left, whole.right))
        finite = np.isfinite(whole.s).all(-1)
        if not finite.all():
            path, _ = group.members()[int(finite.argmin())]
            raise ValueError(f"'{path}': the factors contain NaN or infinity.")
        stored = whole.dtype if dtype is None else np.dtype(dtype).name
        for path in group.stacks:
            nominal = min(adapters[path].nominal or adapters[path].rank, whole.nominal)
            result[path] = Spectrum(
                s=s[path],
                left=left[path],
                right=right[path],
                shape=whole.shape,
                dtype=stored,
                nominal=nominal,
            )
    return {path: result[path] for path in adapters}


def cut(
    parent: Checkpoint,
    spectra: Spectra,
    policy: Policy,
    *,
    form: Form = "ragged",
    progress: Progress = iter,
) -> Child:
    """Returns one child from a parent that is decomposed already.

    Args:
      parent: The checkpoint.
      spectra: From `spectra_of(parent)`.
      policy: What to keep.
      form: See `repack`.
      progress: As for `compress`.

    Raises:
      TypeError: if `policy` is none, such as a number.
      ValueError: as `compress`.
    """
    if not isinstance(policy, Policy):
        raise TypeError(f"Expected a policy such as Gamma(0.25), got {policy!r}.")
    kept = exact_masks(spectra, policy)
    account = report(spectra, kept, policy)
    fields = {x.name: getattr(parent, x.name) for x in dataclasses.fields(Checkpoint)}
    with wide():
        fields["adapters"] = repack(
            spectra, kept, parent.adapters, form=form, progress=progress
        )
    _check_range(fields["adapters"])
    if form == "ragged":
        for name in ("layers", "biases"):
            fields[name] = by_member(fields[name], parent.adapters)
    fields["absent"] = dict(parent.absent) | {
        x.path: (x.inputs, x.outputs) for x in account.modules if not x.kept
    }
    ranks = {x.path: x.kept for x in account.modules}
    one = {"parent": parent.source, **account.summary(), "ranks": ranks}
    cuts = [*parent.provenance.get("cuts", []), one]
    fields |= {"source": "", "provenance": {**parent.provenance, "cuts": cuts}}
    return Child(**fields, report=account)


def _check_parent(parent: Checkpoint) -> None:
    if parent.residual:
        raise ValueError(
            f"This adapter was initialised by {parent.residual}, so it belongs to "
            "changed base weights: pruning it would delete pretrained components. "
            "Make it plain first: para_jax.plain(trained, initial)."
        )
    for path, adapter in parent.adapters.items():
        check(path, adapter)
        if isinstance(adapter.a, jax.core.Tracer) or isinstance(
            adapter.b, jax.core.Tracer
        ):
            raise ValueError(
                f"'{path}' is traced, and a rank that becomes a shape must be known. "
                "Inside jit, use decompose, masks and repack(form='masked')."
            )


def _check_range(adapters: Adapters) -> None:
    for path, x in adapters.items():
        if not (np.isfinite(x.a).all() and np.isfinite(x.b).all()):
            raise ValueError(
                f"'{path}': the child does not fit the range of {x.a.dtype}. Store it "
                "in bfloat16 or float32."
            )


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
    adapters: Adapters, method: Method, progress: Progress
) -> Iterator[tuple[Group, Spectrum]]:
    """Yields the groups of equal shapes, and the spectra of each as NumPy arrays.

    A program for joined adapters compiles faster than one that names each; and their
    scales stay outside, so that adapters that differ in alpha alone share a program.
    """
    found = groups(adapters)
    todo = batches(found, adapters)

    def one(batch: Sequence[tuple[int, slice]]) -> list[Spectrum]:
        pieces = [(found[i], rows) for i, rows in batch]
        return decompose_pieces(pieces, adapters, method)

    on_host = host.serves(adapters)
    decompose_pieces = host.spectra if on_host else _decompose_pieces
    results = host.in_threads(one, todo) if on_host else map(one, todo)
    parts: list[list[Spectrum]] = [[] for _ in found]
    for batch, spectra in zip(progress(todo), results, strict=True):
        for (i, _), spectrum in zip(batch, spectra, strict=True):
            parts[i].append(spectrum)
    for group, spectra in zip(found, parts, strict=True):
        whole = jax.tree.map(lambda *x: np.concatenate(x), *spectra)
        scales = [float(adapters[path].scale) for path, _ in group.members()]
        yield group, _scaled(whole, np.asarray(scales))


def _decompose_pieces(
    pieces: Sequence[tuple[Group, slice]], adapters: Adapters, method: Method
) -> list[Spectrum]:
    joined = {
        str(i): Adapter(
            a=group.join({path: adapters[path].a for path in group.stacks}, rows),
            b=group.join({path: adapters[path].b for path in group.stacks}, rows),
        )
        for i, (group, rows) in enumerate(pieces)
    }
    with wide():
        spectra = jax.device_get(_decompose(joined, method=method))
    return [spectra[str(i)] for i in range(len(pieces))]


_decompose = jax.jit(decompose, static_argnames="method")


def _scaled(spectrum: Spectrum, scale: Float[np.ndarray, " L"]) -> Spectrum:
    """Returns the spectra of `scale` times the updates."""
    size = np.abs(scale)[:, None]
    root = np.sqrt(size)[:, :, None]
    return dataclasses.replace(
        spectrum,
        s=spectrum.s * size,
        left=spectrum.left * np.copysign(root, scale[:, None, None]),
        right=spectrum.right * root,
    )
