"""Make one child in JAX, by our methods and by the paper's literal algorithm.

Every way starts from the adapters of one case in place, computes all singular values,
keeps the largest quarter of all of them, and leaves the child's factors in place.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import para_jax as para
from tests.benchmarks.accuracy import Kept
from tests.benchmarks.cases import Case

GAMMA = 0.25
Adapters = Mapping[str, para.Adapter]
Index = tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """One case on the device.

    Attributes:
      copies: Equal adapters, used in turn.
      width: The number of columns of the child's arrays: its largest rank, rounded up
        to a multiple of 8.
    """

    case: Case
    copies: Sequence[Adapters]
    width: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A way prepared for one case; nothing is compiled yet.

    Attributes:
      call: Starts the work. Its argument counts the calls.
      wait: Waits for the result of `call`.
      kept: Returns the kept part of one module; `None` if it is not available.
      peak: Returns the most bytes in use on the device, after `call` ran.
      context: The context in which everything runs.
      factor: The scale of the time, if only a part is run.
    """

    call: Callable[[int], Any]
    wait: Callable[[Any], Any] = jax.block_until_ready
    kept: Callable[[Any, str, Index], Kept] | None = None
    peak: Callable[[], int | None] = lambda: None
    context: Callable[[], Any] = contextlib.nullcontext
    factor: float = 1.0


class Skip(Exception):
    """The reason why a way cannot run here."""


class _Compiled:
    """A function that is compiled on its first call."""

    def __init__(self, function: Callable[..., Any], copies: Sequence[Adapters]):
        self._jitted = jax.jit(function)
        self._copies = copies
        self._program: Any = None

    def __call__(self, count: int) -> Any:
        adapters = self._copies[count % len(self._copies)]
        if self._program is None:
            self._program = self._jitted.lower(adapters).compile()
        return self._program(adapters)

    def peak(self) -> int | None:
        """Return the compiler's planned memory: arguments, results and workspace."""
        if (plan := self._program.memory_analysis()) is None:
            return None
        used = plan.argument_size_in_bytes + plan.output_size_in_bytes
        return used + plan.temp_size_in_bytes - plan.alias_size_in_bytes


def ours(inputs: Inputs, *, method: str) -> Run:
    """Run `decompose`, `masks` and `pack` in one compiled program, in float64."""

    def child(adapters: Adapters) -> Any:
        spectra = para.decompose(adapters, method=method)
        masks = para.masks(spectra, para.Gamma(GAMMA))
        packed = para.pack(spectra, masks, adapters, width=inputs.width)
        return packed, {path: x.s for path, x in spectra.items()}, masks

    program = _Compiled(child, inputs.copies)
    wide = functools.partial(jax.enable_x64, True)
    return Run(call=program, kept=_in_front, peak=program.peak, context=wide)


def host(inputs: Inputs) -> Run:
    """Run `compress` from NumPy arrays to NumPy arrays, as the command line does."""
    if jax.default_backend() != "cpu":
        raise Skip("from host memory, so on CPU only")
    parents = [jax.tree.map(np.asarray, x) for x in inputs.copies]

    def call(count: int) -> para.Child:
        parent = parents[count % len(parents)]
        return para.compress(parent, para.Gamma(GAMMA), form="ragged")

    def kept(child: para.Child, path: str, index: Index) -> Kept:
        name = "/".join([path, *map(str, index)])
        (account,) = (x for x in child.report.modules if x.path == name)
        adapter = child.adapters[name]
        return Kept(account.sigma[account.mask], adapter.a, adapter.b)

    return Run(call=call, wait=lambda child: child, kept=kept)


def paper(inputs: Inputs) -> Run:
    """Map QR of both factors and SVD of the core over the modules, in float32."""

    def child(adapters: Adapters) -> Any:
        found = {path: _mapped(adapter) for path, adapter in adapters.items()}
        s = {path: x[1] for path, x in found.items()}
        pooled = jnp.concatenate([x.ravel() for x in s.values()])
        tau = jnp.sort(pooled)[-math.floor(GAMMA * pooled.size)]
        masks = {path: x >= tau for path, x in s.items()}
        packed = {
            path: _cut(*found[path], masks[path], adapters[path], inputs.width)
            for path in adapters
        }
        return packed, s, masks

    program = _Compiled(child, inputs.copies)
    return Run(call=program, kept=_in_front, peak=program.peak)


def _mapped(x: para.Adapter) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return `u`, `s` and `vt` of every module of a stack."""
    # On two CPU cores, two simultaneous batched LAPACK calls deadlock.
    over = lax.map if jax.default_backend() == "cpu" else lambda f, xs: jax.vmap(f)(xs)
    a, b = (y.reshape(-1, *y.shape[-2:]) for y in (x.a, x.b))
    found = over(functools.partial(_svd, scale=x.scale), (a, b))
    return tuple(y.reshape(*x.stack, *y.shape[1:]) for y in found)


def _svd(
    factors: tuple[jax.Array, jax.Array], *, scale: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    a, b = (x.astype(jnp.float32) for x in factors)
    q_a, r_a = jnp.linalg.qr(a)
    q_b, r_b = jnp.linalg.qr(b.T)
    u, s, vt = jnp.linalg.svd(scale * _product(r_a, r_b.T))
    return _product(q_a, u), s, _product(vt, q_b.T)


_product = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)


def _cut(
    u: jax.Array,
    s: jax.Array,
    vt: jax.Array,
    mask: jax.Array,
    like: para.Adapter,
    width: int,
) -> para.Adapter:
    root = jnp.sqrt(jnp.where(mask, s, 0))[..., :width]
    a = u[..., :width] * root[..., None, :]
    b = root[..., :, None] * vt[..., :width, :]
    return para.Adapter(a.astype(like.a.dtype), b.astype(like.b.dtype))


def _in_front(result: Any, path: str, index: Index) -> Kept:
    """Return the kept part of one module of a padded child."""
    packed, s, masks = (x[path] for x in result)
    k = int(masks[index].sum())
    parts = s[index][:k], packed.a[index][:, :k], packed.b[index][:k]
    return Kept(*map(np.asarray, parts))


WAYS: dict[str, Callable[[Inputs], Run]] = {
    "auto": functools.partial(ours, method="auto"),
    "gram": functools.partial(ours, method="gram"),
    "qr": functools.partial(ours, method="qr"),
    "host": host,
    "paper": paper,
}
