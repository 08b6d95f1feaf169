"""PARA in one call: decompose, choose, repack.

These entry points compute in float64 whatever the caller's setting, choose in
float64, and store in the parent's dtype.

Runs on the host.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from para_jax._adapters import sharing
from para_jax._adapters.adapter import Adapter, Adapters, check_dtype, check_pair
from para_jax._adapters.checkpoint import Checkpoint, Child, as_checkpoint
from para_jax._adapters.precision import wide
from para_jax._adapters.stacks import kernels
from para_jax._pruning import children, rounding
from para_jax._pruning.batches import Progress
from para_jax._pruning.decompose import Spectra, Spectrum, spectrum_of
from para_jax._pruning.decompose_host import joined_cores
from para_jax._pruning.policies import Policy, check
from para_jax._pruning.pool import Pool, pool as pool_of
from para_jax._pruning.repack import Form, repack
from para_jax._pruning.report import Accounts
from para_jax._pruning.select import exact_choice
from para_jax.linalg.cores import Method


def compress(
    parent: Checkpoint | Adapters,
    policy: Policy,
    *,
    form: Form = "ragged",
    method: Method = "auto",
    dtype: Any = None,
    progress: Progress = iter,
) -> Child:
    """Compress `parent` to the child of a policy (PARA, Algorithm 1).

    Example:
      >>> child = para_jax.compress(adapters, para_jax.Gamma(0.5))
      >>> {path: x.rank for path, x in child.adapters.items()}
      {'down': 1, 'up': 2}
      >>> print(child.report)
      gamma 0.5: 3 of 6 ranks kept, threshold 4
        rank        average 1.50, largest 2, 0 of 2 modules removed
        parameters  36 of 72 (50.0%), 144 B
        energy      95.670%, relative error 0.2081

    Args:
      parent: A loaded checkpoint, or just its adapters by path.
      policy: What to keep.
      form: The form of the child's adapters, see `repack`.
      method: How to decompose, see `decompose`.
      dtype: The dtype to store the child in; the parent's by default.
      progress: A wrapper for the two loops over the modules, such as `tqdm.tqdm`.

    Returns:
      The child, with a `report`. Everything stored beside the adapters is passed on.

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
    """Compress `parent` once a policy, from a single decomposition.

    The paper's "one-to-many" deployment. Arguments and errors are those of `compress`.
    Ragged children share memory: their factors are read-only views with strides of
    their own. `save` minds them; some writers of raw memory, such as
    `safetensors.numpy.save_file`, need `np.ascontiguousarray` first.

    Example:
      >>> budgets = [para_jax.Gamma(0.5), para_jax.Epsilon(0.8), para_jax.Rank(1)]
      >>> [x.report.kept_rank for x in para_jax.family(adapters, budgets)]
      [3, 2, 2]
    """
    checkpoint = as_checkpoint(parent)
    spectra = spectra_of(checkpoint, method=method, dtype=dtype)
    return list(cuts(checkpoint, spectra, policies, form=form))


def spectra_of(
    parent: Checkpoint | Adapters,
    *,
    method: Method = "auto",
    dtype: Any = None,
    progress: Progress = iter,
) -> dict[str, Spectrum]:
    """Decompose each update in float64, on the host, in few compiled programs.

    Of modules that share an update (`Checkpoint.shared`), the owner alone has one.

    Example:
      >>> spectra = para_jax.spectra_of(adapters)
      >>> spectra["up"].s.round(3).tolist(), spectra["up"].s.dtype.name
      ([8.0, 4.0, 2.0, 1.0], 'float64')

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
    if dtype is not None:
        check_dtype("dtype", np.dtype(dtype))
    # A shared update enters the pool once, or it would be paid for twice.
    adapters = sharing.owners(checkpoint)
    result: dict[str, Spectrum] = {}
    for group, whole in joined_cores(adapters, method, progress):
        finite = np.isfinite(whole.s).all(-1)
        if not finite.all():
            path, _ = group.members()[int(finite.argmin())]
            raise ValueError(f"'{path}': {_beyond(adapters[path])}")
        first = adapters[next(iter(group.stacks))]
        stored = first.a.dtype if dtype is None else dtype
        joined = spectrum_of(first, whole, stored)
        parts = [group.split(x) for x in (joined.s, joined.left, joined.right)]
        k = joined.s.shape[-1]
        for path in group.stacks:
            s, left, right = (x[path] for x in parts)
            result[path] = Spectrum(
                s=s,
                left=left,
                right=right,
                shape=joined.shape,
                dtype=joined.dtype,
                nominal=min(adapters[path].nominal or first.rank, k),
            )
    # Groups came in the order of shapes; reports and files keep the parent's.
    return {path: result[path] for path in adapters}


def _beyond(adapter: Adapter) -> str:
    """Say why a singular value is not finite."""
    if rounding.is_finite(adapter.a) and rounding.is_finite(adapter.b):
        return "its singular values are beyond the range of float64: scale it down."
    return "the factors contain NaN or infinity."


def cut(
    parent: Checkpoint,
    spectra: Spectra,
    policy: Policy,
    *,
    form: Form = "ragged",
    progress: Progress = iter,
    pool: Pool | None = None,
) -> Child:
    """Return one child of a decomposed parent.

    Args:
      parent: The checkpoint.
      spectra: From `spectra_of(parent)`.
      policy: What to keep.
      form: See `repack`.
      progress: As for `compress`.
      pool: The pool of `spectra`, if it is at hand.

    Raises:
      TypeError: if `policy` is not a policy, such as a number.
      ValueError: as `compress`.
    """
    check(policy)
    accounts = Accounts(spectra, pool or pool_of(spectra))
    kept = exact_choice(accounts.s, policy, accounts.pool)
    return _cut(parent, spectra, policy, kept, accounts, form, progress)


def _cut(
    parent: Checkpoint,
    spectra: Spectra,
    policy: Policy,
    kept: np.ndarray,
    accounts: Accounts,
    form: Form,
    progress: Progress = iter,
) -> Child:
    masks = accounts.pool.scatter(kept)
    adapters = _repacked(parent, spectra, masks, form, progress)
    return children.child(
        children.common(parent, form), adapters, accounts.report(kept, policy)
    )


def cuts(
    parent: Checkpoint, spectra: Spectra, policies: Sequence[Policy], *, form: Form
) -> Iterator[Child]:
    """Yield a child a policy, those of `cut` up to a rounding of float64.

    Components are sorted, so every child is the beginning of the largest: ragged ones
    are read-only views of its arrays; on a mesh, copies.
    """
    for policy in policies:
        check(policy)
    if not policies:
        return
    accounts = Accounts(spectra, pool_of(spectra))
    pool = accounts.pool
    # All of them before the first child: an impossible policy is refused at once.
    choices = [exact_choice(accounts.s, policy, pool) for policy in policies]
    if form != "ragged" or len(policies) < 2:
        for policy, kept in zip(policies, choices, strict=True):
            yield _cut(parent, spectra, policy, kept, accounts, form)
        return
    # Policies of different kinds need not nest in total, but every module's do.
    most = pool.scatter(np.logical_or.reduce(choices))
    largest = _repacked(parent, spectra, most, form, iter)
    for x in jax.tree.leaves(largest):
        if isinstance(x, np.ndarray):
            x.flags.writeable = False  # And so are all views of it.
    shared = children.common(parent, form)
    for policy, kept in zip(policies, choices, strict=True):
        account = accounts.report(kept, policy)
        ranks = account.ranks
        adapters = {
            path: Adapter(a=x.a[:, :rank], b=x.b[:rank])
            for path, x in largest.items()
            if (rank := ranks[path])
        }
        yield children.child(shared, adapters, account)


def _repacked(
    parent: Checkpoint,
    spectra: Spectra,
    kept: Mapping[str, np.ndarray],
    form: Form,
    progress: Progress,
) -> dict[str, Adapter]:
    adapters = {
        path: x
        for path, x in parent.adapters.items()
        if path in spectra or path not in parent.shared
    }
    # Exact first, so that `store` can measure what rounding to 8 bits moves.
    narrow = {path for path, x in spectra.items() if rounding.is_narrow(x.dtype)}
    exact = {
        path: dataclasses.replace(x, dtype="float32") if path in narrow else x
        for path, x in spectra.items()
    }
    with wide():
        result = repack(exact, kept, adapters, form=form, progress=progress)
    rounding.check_range(result, spectra, kept)
    stacks = {path: parent.adapters[path].stack for path in narrow}
    # A child has the path of a stack if it is padded, else those of its kernels.
    dtypes = {
        name: spectra[kernel.path].dtype
        for kernel in kernels(stacks)
        for name in (kernel.path, kernel.name)
    }
    return rounding.store(result, dtypes) if narrow else result


def _check_parent(parent: Checkpoint) -> None:
    if parent.residual:
        raise ValueError(
            f"This adapter was initialised by {parent.residual}, so it belongs to "
            "changed base weights: pruning it would delete pretrained components. "
            "Make it plain first: para_jax.plain(trained, initial)."
        )
    for path, adapter in parent.adapters.items():
        check_pair(path, adapter)
        if isinstance(adapter.a, jax.core.Tracer) or isinstance(
            adapter.b, jax.core.Tracer
        ):
            raise ValueError(
                f"'{path}' is traced, and a rank that becomes a shape must be "
                "concrete. Inside jit, use decompose, masks and repack(form='masked')."
            )
