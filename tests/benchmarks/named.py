"""Time programs over adapters of one array a module, beside stacked ones.

    python -m tests.benchmarks.named --json rows.jsonl
    python -m tests.benchmarks.named --layers 7 34 143 --programs cut
    python -m tests.benchmarks.named --builds OLD now --json rows.jsonl
    python -m tests.benchmarks.named --builds plain warm --programs cut
    python -m tests.benchmarks.named --from rows.jsonl --markdown

Each row is a process of its own, so that nothing is compiled before: a program of
`named_programs`, a form of the model, a precision, and a build of the library. OLD is a
folder with another `para_jax` in it, such as `git archive REVISION para_jax | tar -x -C
OLD` makes. The table shows seconds to trace and compile, milliseconds a run, those that
a GPU computes, and bytes by the compiler's account, each also as a ratio to the stacked
form of the same row.
"""

import argparse
import dataclasses
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

NOW, PLAIN, WARM = "now", "plain", "warm"
"""This build, the same without kernels, and with a cache that is already filled."""

FORMS = ("stacked", "named", "mixed stacked", "mixed named")
_START = "import sys; sys.path[:0] = sys.argv[1:2]; from tests.benchmarks import named"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement.

    Attributes:
      build: One of `NOW`, `PLAIN` and `WARM`, or the name of another build's folder.
      modules: The number of modules.
      trace, compile: Seconds.
      run: Seconds, the median of calls queued back to back; 0 if not timed.
      peak: Bytes of arguments, results and temporary arrays, by the compiler.
      busy: Seconds a run that a GPU computes, by the profiler; 0 if not known.
    """

    build: str
    program: str
    form: str
    precision: str
    modules: int
    trace: float
    compile: float
    run: float
    peak: int
    device: str
    jax: str
    busy: float = 0.0

    @property
    def first(self) -> float:
        return self.trace + self.compile


def measure(
    build: str, program: str, form: str, precision: str, case: str, layers: int
) -> Row:
    """Measure one row in this process."""
    import jax

    jax.config.update("jax_enable_x64", precision == "x64")
    from tests.benchmarks import clock, named_programs, profiles

    adapters = named_programs.model(case, layers, mixed=form.startswith("mixed"))
    modules = sum(x.modules for x in adapters.values())
    if form.endswith("named"):
        adapters = named_programs.named(adapters)
    function, args = named_programs.program(program, adapters)
    jax.block_until_ready(jax.tree.leaves(args))
    start = time.perf_counter()
    lowered = function.lower(*args)
    traced = time.perf_counter()
    compiled = lowered.compile()
    done = time.perf_counter()
    memory = getattr(compiled, "compiled", compiled).memory_analysis()
    peak = sum(
        getattr(memory, f"{x}_size_in_bytes") for x in ("argument", "output", "temp")
    )
    run = clock.median(lambda _: compiled(*args), jax.block_until_ready, limit=5)
    return Row(
        build=build,
        program=program,
        form=form,
        precision=precision,
        modules=modules,
        trace=traced - start,
        compile=done - traced,
        run=run,
        peak=peak,
        device=jax.devices()[0].device_kind,
        jax=jax.__version__,
        busy=profiles.busy(lambda: compiled(*args)),
    )


def worker(words: Sequence[str]) -> None:
    """Print a row as JSON: the process behind one measurement."""
    if words[0] == PLAIN:
        # As in a JAX that has no such kernels. For type checkers modules alone go here.
        modules: dict[str, Any] = sys.modules
        modules["jax.experimental.pallas.triton"] = None
    row = measure(*words[:-1], layers=int(words[-1]))
    print(json.dumps(dataclasses.asdict(row)))


def measured(build: str, *words: Any) -> Row | str:
    """Return the row of a process, or what it said last."""
    with tempfile.TemporaryDirectory() as cache:
        settings = {
            "JAX_ENABLE_COMPILATION_CACHE": str(build == WARM).lower(),
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        if build == WARM:
            _process(build, *words, settings=settings)
        return _process(build, *words, settings=settings)


def _process(build: str, *words: Any, settings: dict[str, str]) -> Row | str:
    is_here = build in (NOW, PLAIN, WARM)
    command = [sys.executable, "-c", f"{_START}; named.worker(sys.argv[2:])"]
    folder = str(pathlib.Path.cwd()) if is_here else build
    name = pathlib.Path(build).name
    done = subprocess.run(
        [*command, folder, name, *map(str, words)],
        env=os.environ | settings,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        return (done.stderr.strip() or "died").splitlines()[-1]
    return Row(**json.loads(done.stdout.splitlines()[-1]))


def table(rows: Sequence[Row], *, markdown: bool) -> str:
    """Return the rows as a table, each with its ratios to the stacked form."""
    names = (
        "program form modules precision build trace compile first run run GPU GPU "
        "peak peak"
    )
    units = "- - - - - s s stacked ms stacked ms stacked MB stacked"
    pairs = zip(names.split(), units.split(), strict=True)
    cells = [[" / ".join(x for x in pair if x != "-") for pair in pairs]]
    for x in rows:
        base = _stacked(x, rows)
        first, run, busy, peak = (
            _ratio(x, base, of) for of in ("first", "run", "busy", "peak")
        )
        what = [x.program, x.form, str(x.modules), x.precision, x.build]
        times = [f"{x.trace:.2f}", f"{x.compile:.2f}", first, f"{1e3 * x.run:.2f}", run]
        device = [f"{1e3 * x.busy:.2f}" if x.busy else "", busy]
        cells.append([*what, *times, *device, f"{x.peak / 1e6:.0f}", peak])
    if markdown:
        cells.insert(1, ["---"] * len(cells[0]))
        return "\n".join(f"| {' | '.join(x)} |" for x in cells)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(x.ljust(w) for x, w in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )


def _ratio(row: Row, base: Row | None, name: str) -> str:
    """Return what a measurement is of that of another row, if both are known."""
    if base is None or base is row or not getattr(base, name):
        return ""
    return f"{getattr(row, name) / getattr(base, name):.2f}"


def _stacked(row: Row, rows: Sequence[Row]) -> Row | None:
    """Return the row of the stacked form beside `row`, of the same build."""
    form = row.form.replace("named", "stacked")
    same = ("build", "program", "precision", "modules")
    for x in rows:
        if x.form == form and all(getattr(x, y) == getattr(row, y) for y in same):
            return x
    return None


def load(path: pathlib.Path) -> list[Row]:
    """Read saved rows."""
    return [Row(**json.loads(x)) for x in path.read_text().splitlines()]


def _run(given: argparse.Namespace) -> list[Row]:
    rows = []
    todo = itertools.product(
        given.layers, given.programs, given.precisions, given.forms, given.builds
    )
    end = time.monotonic() + given.limit_total
    for layers, program, precision, form, build in todo:
        if time.monotonic() > end:
            print("out of time", file=sys.stderr)
            break
        found = measured(build, program, form, precision, given.case, layers)
        print(found, file=sys.stderr, flush=True)
        if isinstance(found, Row):
            rows.append(found)
            if given.json:
                with given.json.open("a") as file:
                    file.write(json.dumps(dataclasses.asdict(found)) + "\n")
    return rows


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--case", default="gemma3-4b", help="a model of tests.benchmarks.cases")
    add("--layers", type=int, nargs="+", default=[0], help="0: the model's own")
    add("--programs", nargs="+", default=["cut", "squeeze"])
    add("--forms", nargs="+", choices=FORMS, default=list(FORMS[:2]))
    add("--precisions", nargs="+", choices=("x64", "float32"), default=["x64"])
    add(
        "--builds",
        nargs="+",
        default=[NOW],
        metavar="BUILD",
        help=f"{NOW}, {PLAIN} (no kernels), {WARM} (with JAX's persistent cache), or a "
        "folder with another build",
    )
    add("--limit-total", type=float, default=3600, help="seconds")
    add("--json", type=pathlib.Path, help="where to add the rows")
    add("--from", dest="source", type=pathlib.Path, help="saved rows")
    add("--markdown", action="store_true", help="for a page")
    given = parser.parse_args(words)
    rows = load(given.source) if given.source else _run(given)
    print(table(rows, markdown=given.markdown))


if __name__ == "__main__":
    main()
