"""Hold the measured training steps of Gemma 3: rows, their file, their table."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from train.models import gemma3
from train.models.gemma3 import Config

RANK = 16
PEAKS = {"H100": 989.4e12, "H200": 989.4e12}
"""Dense bfloat16 products a second of the SXM forms, by part of the device's name."""

TRACED = 2
"""How many steps a trace holds."""


class Job(NamedTuple):
    """One process: batches of increasing size, until one does not fit.

    Attributes:
      library: `para_jax` or `peft`.
      batches: Sequences a step, ascending, since a process only knows its overall peak
        memory.
      attention: `cudnn`, `xla` or `sdpa`.
      recompute: The activations that the backward pass recomputes: `none`, `full` (all
        of a layer but its input), `dots` and `named` (see `train.models.layers`).
      form: Further variants: `scan` or `unrolled` layers; the adapters' `float32`
        under autocast, or `bfloat16`; `compile`.
      flags: XLA's flags.
    """

    library: str
    batches: Sequence[int]
    attention: str
    recompute: str
    form: str
    flags: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One batch of one job.

    Attributes:
      job: Its name.
      library: As in `Job`, as are `attention`, `recompute`, `form` and `flags`.
      batch: Sequences a step.
      length: Tokens a sequence.
      device: The device's name.
      versions: The versions of the libraries.
      ms: The median time of a step.
      speed: Tokens a second.
      share: Of the chip's peak rate, recomputation not counted; None if it is unknown.
      peak: The most bytes in use at a time.
      planned: The same as the compiler planned it.
      loss: The loss of the last step.
      reason: Why there are no numbers.
    """

    job: str
    library: str
    attention: str
    recompute: str
    form: str
    flags: str
    batch: int
    length: int
    device: str
    versions: str
    ms: float | None = None
    speed: float | None = None
    share: float | None = None
    peak: int | None = None
    planned: int | None = None
    loss: float | None = None
    reason: str = ""


_SAME = ("library", "attention", "recompute", "form", "flags")


def flops(config: Config, batch: int, length: int) -> float:
    """Return the operations of a training step with a frozen base.

    With `P` params, `A` of adapters, `N` tokens of sequences of `T`: `4 P N` for the
    products with weights and those of gradients by activations; `6 A N`, as adapters
    have gradients of their own; `6 T^2 h e` a layer and sequence for attention, since
    half of the scores are masked. Recomputation is not counted.
    """
    kernels = gemma3.leaves(config)
    params = sum(math.prod(x.shape) for x in kernels.values())
    ends = [kernels[f"model/layers/{x}/kernel"].shape for x in gemma3.ADAPTED]
    adapters = sum(count * RANK * (m + n) for count, m, n in ends)
    heads = config.num_attention_heads * config.head_dim
    attention = 6 * length**2 * heads * config.num_hidden_layers
    return batch * (length * (4 * params + 6 * adapters) + attention)


def blank(name: str, job: Job, length: int, **known: str) -> Row:
    """Return the row of a job's first batch, without numbers."""
    first, same = job.batches[0], {x: getattr(job, x) for x in _SAME}
    known = {"device": "", "versions": "", **known}
    return Row(job=name, **same, batch=first, length=length, **known)


def measured(
    row: Row, seconds: float, config: Config, peak: int | None, **more: float | None
) -> Row:
    """Add the numbers that follow from a step's time to a row."""
    rate = next((x for name, x in PEAKS.items() if name in row.device), None)
    done = flops(config, row.batch, row.length) / seconds
    values = {
        "ms": 1e3 * seconds,
        "speed": row.batch * row.length / seconds,
        "share": None if rate is None else done / rate,
        "peak": peak,
        **more,
    }
    return dataclasses.replace(row, **values)


def append(path: pathlib.Path, row: Row) -> None:
    """Append one line, which survives whatever happens next."""
    with path.open("a") as file:
        file.write(json.dumps(dataclasses.asdict(row)) + "\n")


def load(path: pathlib.Path) -> list[Row]:
    if not path.exists():
        return []
    return [Row(**json.loads(line)) for line in path.read_text().splitlines()]


def markdown(rows: Iterable[Row]) -> str:
    """Format the table, and a comparison of both libraries' fastest rows."""
    rows = list(rows)
    names = ("library", "attention", "recompute", "form", "sequences", "tokens/s")
    names += ("peak GB", "of the chip")
    lines = [f"| {' | '.join(names)} |", f"|{' --- |' * len(names)}"]
    lines += [f"| {' | '.join(_cells(row))} |" for row in rows]
    return "\n".join([*lines, "", *_summary(rows)])


def _cells(row: Row) -> list[str]:
    form = " ".join([row.form, row.flags]).strip()
    first = [row.library, row.attention, row.recompute, form, str(row.batch)]
    if row.speed is None:
        return [*first, row.reason, "", ""]
    return [
        *first,
        f"{row.speed:,.0f}",
        "" if row.peak is None else f"{row.peak / 1e9:.1f}",
        "" if row.share is None else f"{row.share:.0%}",
    ]


def _summary(rows: Sequence[Row]) -> list[str]:
    """Compare PEFT's fastest row with our fastest in no more memory."""
    done = [x for x in rows if x.speed is not None and x.peak is not None]
    ours = [x for x in done if x.library == "para_jax"]
    eager = [x for x in done if x.library == "peft" and x.form != "compile"]
    compiled = [x for x in done if x.library == "peft" and x.form == "compile"]
    return [
        *_compared(ours, eager, "PEFT"),
        *_compared(ours, compiled, "PEFT by `torch.compile`"),
    ]


def _compared(ours: Sequence[Row], theirs: Sequence[Row], name: str) -> list[str]:
    if not theirs:
        return []
    fastest = max(theirs, key=_speed)
    fitting = [x for x in ours if _peak(x) <= _peak(fastest)]
    if not fitting:
        return [f"None of ours fits into the memory of the fastest of {name}.", ""]
    best = max(fitting, key=_speed)
    times, memory = _speed(best) / _speed(fastest), _peak(best) / _peak(fastest)
    words = f"{times:.2f} times the tokens a second of the fastest of {name}"
    return [f"Ours: {words}, in {memory:.0%} of its memory.", ""]


def _speed(row: Row) -> float:
    return row.speed or 0.0


def _peak(row: Row) -> int:
    return row.peak or 0
