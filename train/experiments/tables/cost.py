"""The training cost of each method, relative to LoRA."""

from train.experiments.missing import Missing
from train.experiments.names import label
from train.experiments.results import Files
from train.experiments.rows import Cost
from train.experiments.tables.table import Table, source

REFERENCES = {"r=16": ("lora", "rank 16"), "r=4": ("lora", "rank 4")}


def tables(files: Files) -> list[Table]:
    """Return step time and peak memory, absolute and relative.

    Raises:
      Missing: if LoRA itself was not measured.
    """
    found = {x.key: x for x in files.file("cost").rows}
    # Ratios need both references.
    for key in REFERENCES.values():
        if key not in found:
            name = " ".join(key)
            raise Missing(
                f"{files.folder / 'cost.json'} has no row of {name}, which all others "
                f"are compared with: {files.remedy('cost')}",
                what=f"no {name} in cost.json",
            )
    references = [found[key] for key in REFERENCES.values()]
    ratios = [f"of {x}" for x in REFERENCES]
    rows = [
        [f"{label(x.method)} {x.policy}".strip(), *_cells(x, references)]
        for x in found.values()
    ]
    return [
        Table(
            title="One training step: time and peak memory, relative to LoRA",
            columns=["method", "ms", *ratios, "peak MB", *ratios],
            rows=rows,
            notes=[source(files, "cost")],
        )
    ]


def _cells(cost: Cost, references: list[Cost]) -> list[str]:
    times = [cost.step_seconds / x.step_seconds for x in references]
    peak = cost.peak_bytes
    memory = [_ratio(peak, x.peak_bytes) for x in references]
    return [
        f"{1e3 * cost.step_seconds:.2f}",
        *(f"{x:.2f}" for x in times),
        "–" if peak is None else f"{peak / 1e6:,.0f}",
        *memory,
    ]


def _ratio(x: int | None, reference: int | None) -> str:
    return f"{x / reference:.2f}" if x is not None and reference else "–"
