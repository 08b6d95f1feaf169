"""Make the same child in PyTorch, and by PEFT's own conversion.

The adapters share JAX's arrays without a copy.
"""

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import para_jax as para
from tests.benchmarks import cases, clock
from tests.benchmarks.accuracy import Kept
from tests.benchmarks.contenders import GAMMA, Index, Inputs, Run, Skip

try:
    import torch
except ImportError:
    torch = None


def looped(inputs: Inputs, *, limit: float) -> Run:
    """Run QR, SVD and products, module by module, in float32; ragged."""
    return _whole_or_part(inputs, _looped, _of_one, limit)


def batched(inputs: Inputs, *, limit: float) -> Run:
    """Run QR, SVD and products, stack by stack, in float32; padded."""
    child = functools.partial(_batched, width=inputs.width)
    return _whole_or_part(inputs, child, _of_stack, limit)


def full(inputs: Inputs, *, limit: float) -> Run:
    """Run the SVD of one full update, scaled up to all."""
    del limit
    _check()
    name = inputs.case.smallest
    stacks = [_shared(x[name]) for x in inputs.copies]

    def call(count: int) -> Any:
        a, b = (x.flatten(0, -3)[0].float() for x in stacks[count % len(stacks)])
        u, s, vt = torch.linalg.svd(cases.SCALE * a @ b, full_matrices=False)
        root = s[: inputs.width].sqrt()
        return u[:, : inputs.width] * root, root[:, None] * vt[: inputs.width]

    return Run(call=call, wait=_wait, factor=inputs.case.full_svds)


def peft(inputs: Inputs, *, limit: float) -> Run:
    """Run PEFT's `convert_to_lora` on one module at a fixed rank, scaled up to all."""
    del limit
    _check()
    try:
        import peft as library
    except ImportError:
        raise Skip("peft is not installed") from None
    case = inputs.case
    layer = torch.nn.Linear(*case.projections[case.smallest], bias=False)
    config = library.LoraConfig(
        r=case.rank, target_modules=["0"], init_lora_weights=False
    )
    model = library.get_peft_model(torch.nn.Sequential(layer), config).to(_device())
    rank = max(1, math.floor(GAMMA * case.rank))

    def call(count: int) -> Any:
        del count
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT warns: a LoRA needs no conversion.
            return library.convert_to_lora(model, rank=rank)

    return Run(call=call, wait=_wait, factor=case.full_svds)


def _whole_or_part(
    inputs: Inputs,
    child: Callable[[Any], Any],
    kept: Callable[[Any, str, Index], Kept],
    limit: float,
) -> Run:
    """Run all layers, or as many as the time limit seems to allow."""
    _check()
    layers = inputs.case.layers
    one = {p: _shared(x) for p, x in cases.part(inputs.copies[0], 1).items()}
    # The first call also starts the library.
    seconds = min(clock.first(lambda _: child(one), _wait) for _ in range(3))
    run = layers if seconds * layers <= limit else max(1, int(limit / seconds))
    copies = [
        {path: _shared(x) for path, x in cases.part(copy, run).items()}
        for copy in inputs.copies
    ]
    held = cases.nbytes(cases.part(inputs.copies[0], run))
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return Run(
        call=lambda count: child(copies[count % len(copies)]),
        wait=_wait,
        kept=kept,
        peak=lambda: _peak(held),
        factor=layers / run,
    )


def _svd(a: Any, b: Any) -> tuple[Any, Any, Any]:
    q_a, r_a = torch.linalg.qr(a.float())
    q_b, r_b = torch.linalg.qr(b.float().mT)
    u, s, vt = torch.linalg.svd(cases.SCALE * (r_a @ r_b.mT))
    return (q_a, u), s, (vt, q_b.mT)


def _threshold(s: list[Any]) -> Any:
    pooled = torch.cat([x.flatten() for x in s])
    return pooled.topk(math.floor(GAMMA * pooled.numel())).values[-1]


def _looped(stacks: dict[str, tuple[Any, Any]]) -> dict[str, dict[Index, tuple]]:
    found, dtype = {}, None
    for path, (a, b) in stacks.items():
        dtype = a.dtype
        for index in np.ndindex(a.shape[:-2]):
            found[path, index] = _svd(a[index], b[index])
    tau = _threshold([s for _, s, _ in found.values()])
    # All ranks at once: reading each one would synchronize with the device.
    ranks = torch.stack([(s >= tau).sum() for _, s, _ in found.values()]).tolist()
    child: dict[str, dict[Index, tuple]] = {path: {} for path in stacks}
    for ((path, index), (left, s, right)), k in zip(found.items(), ranks, strict=True):
        root = s[:k].sqrt()
        a = left[0] @ (left[1][:, :k] * root)
        b = (root[:, None] * right[0][:k]) @ right[1]
        child[path][index] = s[:k], a.to(dtype), b.to(dtype)
    return child


def _batched(stacks: dict[str, tuple[Any, Any]], *, width: int) -> dict[str, tuple]:
    found = {path: _svd(a, b) for path, (a, b) in stacks.items()}
    tau = _threshold([s for _, s, _ in found.values()])
    child = {}
    for path, (left, s, right) in found.items():
        dtype = stacks[path][0].dtype
        root = torch.where(s >= tau, s, 0).sqrt()[..., :width]
        a = left[0] @ (left[1][..., :width] * root[..., None, :])
        b = (root[..., :, None] * right[0][..., :width, :]) @ right[1]
        child[path] = s, s >= tau, a.to(dtype), b.to(dtype)
    return child


def _of_one(child: Any, path: str, index: Index) -> Kept:
    return Kept(*(x.double().cpu().numpy() for x in child[path][index]))


def _of_stack(child: Any, path: str, index: Index) -> Kept:
    s, mask, a, b = (x[index] for x in child[path])
    k = int(mask.sum())
    return Kept(*(x.double().cpu().numpy() for x in (s[:k], a[:, :k], b[:k])))


def _shared(adapter: para.Adapter) -> tuple[Any, Any]:
    jax.block_until_ready((adapter.a, adapter.b))
    return torch.from_dlpack(adapter.a), torch.from_dlpack(adapter.b)


def _check() -> None:
    if torch is None:
        raise Skip("torch is not installed")
    if jax.default_backend() != "cpu" and not torch.cuda.is_available():
        raise Skip("this torch does not see the accelerator")


def _device() -> str:
    return "cpu" if jax.default_backend() == "cpu" else "cuda"


def _wait(result: Any) -> None:
    if _device() == "cuda":
        torch.cuda.synchronize()


def _peak(held: int) -> int | None:
    """Return PyTorch's peak bytes plus the inputs, which JAX allocated."""
    return torch.cuda.max_memory_allocated() + held if _device() == "cuda" else None


WAYS: dict[str, Callable[..., Run]] = {
    "torch-loop": looped,
    "torch-batch": batched,
    "torch-full": full,
    "peft": peft,
}
