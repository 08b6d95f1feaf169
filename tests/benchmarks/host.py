"""Time `compress` in host memory against PyTorch, in turn, on CPU.

    python -m tests.benchmarks.host
    python -m tests.benchmarks.host --cases siglip2 --rounds 40 --threads 1,2

`para_jax.compress` and PyTorch's loop of QR and SVD make the same child, a quarter of
all ranks, from the same factors. The rows of `decompose` are measured one after the
other; here the two take turns, since other work on the machine would meet one alone.
Shown are the medians and minima of the seconds a call on the clock and, in brackets,
the processor's; then ours as a share of PyTorch's: the median over the rounds, and that
of the minima.

PyTorch runs once a round with each number of threads. Where others use the cores too,
its threads wait for one another, and it is fastest with one.
"""

import argparse
import functools
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import torch

from tests.benchmarks import cases, clock, contenders, torch_contenders
from tests.benchmarks.contenders import Inputs

Times = list[tuple[float, float]]
"""Seconds on the clock and of the processor, round by round."""


def measured(name: str, rounds: int, threads: Sequence[int]) -> dict[str, Times]:
    """Return the times of each contender on one case."""
    case = cases.CASES[name]
    copies = clock.copies(case.factors("float32"), most=4)
    inputs = Inputs(case=case, copies=copies, width=case.rank)
    host = contenders.host(inputs).call
    peer = torch_contenders.looped(inputs, limit=float("inf")).call

    def with_threads(number: int, count: int) -> object:
        torch.set_num_threads(number)
        return peer(count)

    calls: dict[str, Callable[[int], object]] = {"compress": host}
    for x in threads:
        calls[f"torch {x}"] = functools.partial(with_threads, x)
    return in_turn(calls, rounds)


def in_turn(
    calls: Mapping[str, Callable[[int], object]], rounds: int
) -> dict[str, Times]:
    """Return the times of all calls, a round of all of them after another."""
    times: dict[str, Times] = {name: [] for name in calls}
    for i in range(2 + rounds):
        for name, call in calls.items():
            start = time.perf_counter(), time.process_time()
            call(i)
            end = time.perf_counter(), time.process_time()
            times[name].append((end[0] - start[0], end[1] - start[1]))
    # The first rounds are dropped: they find no warm caches.
    return {name: x[2:] for name, x in times.items()}


def lines(case: str, times: Mapping[str, Times]) -> list[str]:
    """Format the times of one case."""
    ours, result = times["compress"], []
    for name, found in times.items():
        middle, least = (
            [1e3 * f(x) for x in zip(*found, strict=True)]
            for f in (statistics.median, min)
        )
        line = (
            f"{case:15} {name:9} median {middle[0]:8.1f} ({middle[1]:.1f}) ms, "
            f"least {least[0]:8.1f} ({least[1]:.1f}) ms"
        )
        if found is not ours:
            pairs = zip(ours, found, strict=True)
            share = statistics.median(x[0] / y[0] for x, y in pairs)
            of_least = min(ours)[0] / min(found)[0]
            line += f", ours {share:.2f} of it, {of_least:.2f} of its least"
        result.append(line)
    return result


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default="siglip2,gemma3-4b")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", default="1,2", help="of PyTorch")
    given = parser.parse_args(words)
    threads = [int(x) for x in given.threads.split(",")]
    for case in given.cases.split(","):
        print(*lines(case, measured(case, given.rounds, threads)), sep="\n", flush=True)


if __name__ == "__main__":
    main()
