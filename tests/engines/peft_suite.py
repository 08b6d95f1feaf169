"""Run PEFT's own tests on adapters rewritten by us.

    python -m tests.engines.peft_suite --peft CHECKOUT

CHECKOUT is PEFT's repository, or its unpacked source distribution, at the installed
version. The tests need diffusers, scipy and pytest-timeout in addition to PEFT and
para_jax: `--python` names the interpreter of such an environment.

The first pass runs the tests of LoRA unchanged. The second pass runs the tests that
passed and saved a LoRA adapter; the others are unaffected. Every adapter then goes
through `para compress --gamma 1` before it is loaded (`plugins/peft_detour.py`). Only
zeros are discarded at gamma 1, so each test must pass again, unless the adapter is
refused by name. The third pass reruns the failures with `para convert` instead of
`para compress`: a test that passes there compares factors or ranks, not the adapter's
effect.

Most of these adapters are at PEFT's initial state, with `lora_B` zero. Gamma 1 leaves
nothing of them, so they are refused. With `--random` they start at random in all
passes, and more of them are rewritten.

Nothing is downloaded. Small random models replace those of the Hugging Face Hub
(`plugins/peft_models.py`); a test that needs more of the Hub fails in the first pass.
"""

import argparse
import collections
import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable

_PLUGINS = pathlib.Path(__file__).parent / "plugins"
_FILES = (
    *("test_lora_conversion", "test_lora_ga", "test_lora_variants", "test_lorafa"),
    *("test_target_parameters", "test_initialization", "test_custom_models"),
)
# Methods other than LoRA with LoRA in their names.
_OTHERS = (
    *("adalora", "vblora", "gralora", "randlora", "tinylora", "unilora", "delora"),
    "montec",
)
_KEYWORDS = f"(lora or dora) and not ({' or '.join(_OTHERS)})"
_Lines = dict[str, dict]  # The plugin's record of each test, by the test's id.


@dataclasses.dataclass(frozen=True)
class Passes:
    """The three passes over one file of tests."""

    before: _Lines
    compressed: _Lines
    converted: _Lines


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.engines.peft_suite")
    parser.add_argument("files", nargs="*", metavar="FILE", help="such as test_lora_ga")
    parser.add_argument("--peft", required=True, type=pathlib.Path, metavar="CHECKOUT")
    parser.add_argument("--python", default=sys.executable, metavar="PATH")
    parser.add_argument("--keywords", default=_KEYWORDS, help="pytest's -k")
    parser.add_argument("--random", action="store_true", help="no update of zeros")
    parser.add_argument("--timeout", default=120, type=int, help="seconds for a test")
    parser.add_argument("--keep", type=pathlib.Path, metavar="FILE", help="as JSON")
    return parser.parse_args()


def _run(
    given: argparse.Namespace,
    folder: pathlib.Path,
    name: str,
    how: str,
    only: Iterable[str] | None = None,
) -> _Lines:
    """Run one file of tests, with one detour."""
    log, ids = folder / f"{name}-{how}.jsonl", folder / f"{name}-{how}.ids"
    settings = {"PEFT_DETOUR": how, "PEFT_DETOUR_LOG": str(log), "HF_HUB_OFFLINE": "1"}
    settings["PEFT_DETOUR_RANDOM"] = str(int(given.random))
    if only is not None:
        ids.write_text("\n".join(only))
        settings["PEFT_DETOUR_ONLY"] = str(ids)
        if not ids.read_text():
            return {}
    # The folder of our tests is left out: PEFT's tests are a package of that name.
    path = [str(_PLUGINS), os.environ.get("PYTHONPATH", "")]
    settings["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    done = subprocess.run(
        [
            *(given.python, "-m", "pytest", f"tests/{name}.py", "-k", given.keywords),
            *("-p", "peft_detour", "-p", "peft_models", "-p", "no:cacheprovider"),
            # PEFT's pytest settings would turn its own deprecated calls into errors.
            *("-q", "-o", "addopts=", "-W", "ignore::FutureWarning"),
            *("--timeout", str(given.timeout), "--timeout-method", "signal"),
        ],
        cwd=folder,
        env=os.environ | settings,
        capture_output=True,
        text=True,
    )
    if done.returncode not in (0, 1, 5):  # All passed; some failed; nothing to run.
        raise RuntimeError(f"{name}: {done.stdout[-3000:]}{done.stderr[-3000:]}")
    lines = log.read_text().splitlines() if log.exists() else []
    found = {line["id"]: line for line in map(json.loads, lines)}
    if missing := set(only or ()) - set(found):
        raise RuntimeError(f"{name}, {how}: {len(missing)} tests did not run again.")
    return found


def _passes(given: argparse.Namespace, folder: pathlib.Path, name: str) -> Passes:
    before = _run(given, folder, name, "count")
    passed = [test for test, line in before.items() if line["outcome"] == "passed"]
    saving = [test for test in passed if before[test]["saved"]]
    compressed = _run(given, folder, name, "compress", saving)
    failed = [test for test, x in compressed.items() if x["outcome"] != "passed"]
    return Passes(before, compressed, _run(given, folder, name, "convert", failed))


def _row(*cells: object) -> str:
    return f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |"


def _table(*titles: str, rows: Iterable[Iterable[object]]) -> str:
    lines = [_row(*titles), _row(*["---"] * len(titles))]
    return "\n".join([*lines, *(_row(*row) for row in rows), ""])


def _counts(passes: dict[str, Passes]) -> str:
    titles = ("tests", "passed", "failed", "skipped", "of these, save LoRA", "pass")
    titles += ("pass converted", "adapters", "rewritten", "refused", "roundings")
    rows = []
    for name, x in passes.items():
        found = collections.Counter(line["outcome"] for line in x.before.values())
        lines = x.compressed.values()
        rows.append(
            (
                *(name, found["passed"], found["failed"], found["skipped"], len(lines)),
                sum(line["outcome"] == "passed" for line in lines),
                sum(line["outcome"] == "passed" for line in x.converted.values()),
                sum(line["saved"] for line in lines),
                sum(line["rewritten"] for line in lines),
                sum(len(line["refused"]) for line in lines),
                f"{max((line['error'] for line in lines), default=0):.1f}",
            )
        )
    return _table(*titles, rows=rows)


def _refusals(passes: dict[str, Passes]) -> str:
    tests = collections.defaultdict(list)
    for x in passes.values():
        for test, line in x.compressed.items():
            for words in line["refused"]:
                tests[words].append(test.removeprefix("tests/"))
    rows = ((words, len(ids), len({*ids}), ids[0]) for words, ids in tests.items())
    return _table("refused", "adapters", "tests", "such as", rows=rows)


def _changes(passes: dict[str, Passes]) -> str:
    rows = (
        (
            test.removeprefix("tests/"),
            x.converted[test]["outcome"],
            f"{line['error']:.1f}",
            line["why"],
        )
        for x in passes.values()
        for test, line in x.compressed.items()
        if line["outcome"] != "passed"
    )
    return _table("fails compressed", "converted", "roundings", "why", rows=rows)


def main() -> int:
    """Run all passes, and print the changes from the first to the second."""
    given = _arguments()
    passes = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        shutil.copytree(given.peft / "tests", folder / "tests")
        shutil.copy(given.peft / "pyproject.toml", folder)
        (folder / "tests" / "__init__.py").touch()  # The source distribution lacks it.
        for name in given.files or _FILES:
            passes[name] = _passes(given, folder, name)
            print(f"{name} is done.", file=sys.stderr, flush=True)
            if given.keep:
                kept = {name: dataclasses.asdict(x) for name, x in passes.items()}
                given.keep.write_text(json.dumps(kept, indent=1))
    print(_counts(passes), _refusals(passes), _changes(passes), sep="\n")
    rewritten = (
        line["rewritten"] for x in passes.values() for line in x.compressed.values()
    )
    return 0 if any(rewritten) else 1  # Without rewriting nothing is proved.


if __name__ == "__main__":
    sys.exit(main())
