"""Time a training step of Gemma3-4B with LoRA, beside PEFT's on the same machine.

    python -m tests.benchmarks.gemma --json rows.jsonl --limit-total 300
    python -m tests.benchmarks.gemma --tiny --json rows.jsonl
    python -m tests.benchmarks.gemma --from rows.jsonl

Gemma3-4B's true shapes with random weights, a LoRA of rank 16 on all seven projections
of all layers, sequences of 1,024 tokens; forward, backward and AdamW. The base is in
bfloat16. Ours: adapters in float32, used in bfloat16. PEFT's: the same under autocast
(`float32`), or adapters entirely in bfloat16, which is faster.

Every job is a process of its own, so that its memory is measured separately. Jobs run
in order of importance, and each row is saved as soon as it is measured. Peaks are
reported by the two libraries' allocators and include all their tensors. See
`gemma_rows` for the count of operations.
"""

import argparse
import dataclasses
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence

from tests.benchmarks import gemma_rows
from tests.benchmarks.gemma_rows import Job
from train.models.gemma3_config import GEMMA3_4B

_CUBLAS = "--xla_gpu_enable_triton_gemm=false"
# Without it, every layer's weights are copied out of their stack before use.
_SLICES = "--xla_gpu_enable_dynamic_slice_fusion=true"
JOBS = {
    "jax": Job("para_jax", (4, 8), "cudnn", "named", "scan"),
    "peft": Job("peft", (1, 2, 4, 8, 16), "sdpa", "none", "bfloat16"),
    "peft-checkpoint": Job("peft", (4, 8, 16), "sdpa", "full", "bfloat16"),
    "jax-unrolled": Job("para_jax", (8,), "cudnn", "named", "unrolled"),
    "jax-none": Job("para_jax", (4, 8), "cudnn", "none", "scan"),
    "peft-float32": Job("peft", (4, 8), "sdpa", "none", "float32"),
    "jax-xla": Job("para_jax", (8,), "xla", "named", "scan"),
    "jax-full": Job("para_jax", (8,), "cudnn", "full", "scan"),
    "jax-cublas": Job("para_jax", (8,), "cudnn", "named", "scan", _CUBLAS),
    "jax-slices": Job("para_jax", (8,), "cudnn", "named", "scan", _SLICES),
    "jax-large": Job("para_jax", (16,), "cudnn", "named", "scan"),
    "jax-small": Job("para_jax", (1, 2), "cudnn", "named", "scan"),
    "jax-dots": Job("para_jax", (8,), "cudnn", "dots", "scan"),
    "peft-compile": Job("peft", (8,), "sdpa", "none", "compile"),
}
"""All that can be run, the most telling first."""

TINY = dataclasses.replace(
    GEMMA3_4B,
    vocab_size=97,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    global_layers=(1,),
)


def _run(given: argparse.Namespace) -> None:
    """Run each job in a process, until the time is used up."""
    end = time.monotonic() + given.limit_total
    for name in given.jobs:
        left = end - time.monotonic()
        if left < given.least:
            print(f"out of time before {name}", file=sys.stderr, flush=True)
            return
        before = len(gemma_rows.load(given.json))
        print(f"{left:6.0f} s left: {name}", file=sys.stderr, flush=True)
        if reason := _one(name, given, left):
            row = gemma_rows.blank(name, JOBS[name], given.length)
            row = dataclasses.replace(row, reason=reason)
            gemma_rows.append(given.json, row)
        for row in gemma_rows.load(given.json)[before:]:
            print(row, flush=True)


def _one(name: str, given: argparse.Namespace, limit: float) -> str:
    """Run one job in a process, and return the reason if it did not finish."""
    words = ["--job", name, "--json", str(given.json), "--length", str(given.length)]
    words += ["--tiny"] if given.tiny else []
    words += ["--batches", *map(str, given.batches)] if given.batches else []
    words += ["--trace", str(given.trace)] if given.trace else []
    command = [sys.executable, "-m", "tests.benchmarks.gemma", *words]
    flags = f"{os.environ.get('XLA_FLAGS', '')} {JOBS[name].flags}".strip()
    env = {**os.environ, "XLA_FLAGS": flags}
    try:
        done = subprocess.run(command, timeout=limit, check=False, env=env)
    except subprocess.TimeoutExpired:
        return f"cut off after {limit:.0f} s"
    return f"ended with code {done.returncode}" if done.returncode else ""


def _job(given: argparse.Namespace) -> None:
    """Run one job in this process."""
    # One library per process: each would withhold memory from the other.
    job = JOBS[given.job]
    if given.batches:
        job = job._replace(batches=sorted(given.batches))
    elif given.tiny:
        job = job._replace(batches=job.batches[:1])
    config = TINY if given.tiny else GEMMA3_4B
    if job.library == "para_jax":
        from tests.benchmarks import gemma_jax

        rows = gemma_jax.rows(given.job, job, config, given.length, given.trace)
    else:
        from tests.benchmarks import gemma_torch

        rows = gemma_torch.rows(given.job, job, config, given.length)
    for row in rows:
        gemma_rows.append(given.json, row)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=pathlib.Path, default="gemma.jsonl")
    parser.add_argument("--tiny", action="store_true", help="a look, on CPU")
    parser.add_argument("--length", type=int, default=1024, help="tokens a sequence")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--batches", nargs="+", type=int, help="instead of the job's")
    parser.add_argument("--limit-total", type=float, default=300, help="seconds")
    parser.add_argument(
        "--least", type=float, default=25, help="seconds that a job is begun with"
    )
    parser.add_argument("--trace", type=pathlib.Path, help="folder; one job, one batch")
    parser.add_argument("--job", choices=JOBS, help="this one, in this process")
    parser.add_argument("--from", dest="source", type=pathlib.Path, help="saved rows")
    return parser


def main(words: Sequence[str] | None = None) -> None:
    given = _parser().parse_args(words)
    if given.job:
        return _job(given)
    if not given.source:
        _run(given)
    print(gemma_rows.markdown(gemma_rows.load(given.source or given.json)))
    return None


if __name__ == "__main__":
    main()
