"""Hold the measurements of serving as rows, and save them to a file."""

import dataclasses
import json
import pathlib
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """One tenant's adapter of the whole model, in one layout.

    Attributes:
      model: The backbone's name.
      dtype: The storage dtype of the factors.
      tenants: The number of tenants; a padded layout depends on them.
      layout: `parent`, or the child's: `one rank` for all modules, as servers allocate,
        `padded` to the largest rank of each module, `ragged`.
      bytes: The mean over tenants.
      allocated: The allocator's bytes, relative to the arithmetic.
    """

    model: str
    dtype: str
    tenants: int
    layout: str
    bytes: float
    allocated: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Swap:
    """One tenant's adapter on its way from host memory into a bank on the device.

    Attributes:
      model: The backbone's name.
      modules: The number of swapped modules.
      layout: As in `Memory`.
      form: The form in which it is transferred.
      bytes: The transferred bytes.
      transfer_ms: The transfer alone, a median.
      ms: Until it is in its place in the bank, a median.
    """

    model: str
    modules: int
    layout: str
    form: str
    bytes: int
    transfer_ms: float
    ms: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Miss:
    """The relative error of a way against plain products in NumPy, in norm."""

    model: str
    adapters: str
    way: str
    error: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One batch.

    Attributes:
      model: The backbone's name.
      dtype: The dtype of weights, factors and sums.
      modules: The number of adapted modules in the timed part.
      tenants: The number of tenants in the bank.
      rows: The rows of the batch; a row belongs to one tenant.
      tokens: The tokens of a row.
      present: The distinct tenants in the batch.
      adapters: `none`, `parent` or `child`.
      way: How they were applied.
      ms: A median; `low_ms` and `high_ms` are the quartiles.
      throughput: Relative to the model without adapters, the median of the ratios
        within each round; `low` and `high` are their quartiles.
    """

    model: str
    dtype: str
    modules: int
    tenants: int
    rows: int
    tokens: int
    present: int
    adapters: str
    way: str
    ms: float
    low_ms: float
    high_ms: float
    throughput: float
    low: float
    high: float

    @property
    def label(self) -> str:
        return self.way if self.adapters == "none" else f"{self.adapters}, {self.way}"


Row = Memory | Swap | Miss | Step


@dataclasses.dataclass
class Result:
    """All rows of one run, which may have been interrupted.

    `place` describes the machine.
    """

    place: dict[str, Any]
    memory: list[Memory] = dataclasses.field(default_factory=list)
    swaps: list[Swap] = dataclasses.field(default_factory=list)
    misses: list[Miss] = dataclasses.field(default_factory=list)
    steps: list[Step] = dataclasses.field(default_factory=list)

    def add(self, row: Row) -> None:
        match row:
            case Memory():
                self.memory.append(row)
            case Swap():
                self.swaps.append(row)
            case Miss():
                self.misses.append(row)
            case Step():
                self.steps.append(row)


def save(path: pathlib.Path, result: Result) -> None:
    """Save all rows atomically, since a run may end at any moment."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(dataclasses.asdict(result), indent=1) + "\n")
    part.replace(path)


def load(path: pathlib.Path) -> Result:
    found = json.loads(path.read_text())
    return Result(
        place=found["place"],
        memory=[Memory(**x) for x in found["memory"]],
        swaps=[Swap(**x) for x in found["swaps"]],
        misses=[Miss(**x) for x in found["misses"]],
        steps=[Step(**x) for x in found["steps"]],
    )


def line(row: Row) -> str:
    """Format one row for a terminal."""
    match row:
        case Memory():
            words, value = row.layout, f"{row.bytes / 1e6:.4g} MB"
        case Swap():
            words, value = f"swap: {row.layout}, {row.form}", f"{row.ms:.4g} ms"
        case Miss():
            words, value = f"error: {row.adapters}, {row.way}", f"{row.error:.0e}"
        case Step():
            batch = f"{row.rows} rows of {row.present}: {row.label}"
            words, value = batch, f"{row.ms:.4g} ms, {row.throughput:.0%}"
    return f"{row.model:8}{words:44}{value}"
