"""Test the sources of the numbers in the documents.

A block between `<!-- NAME -->` and `<!-- /NAME -->` is a command's output for a
committed file. Any other section with numbers names the command that produces them.
"""

import contextlib
import importlib
import importlib.util
import io
import json
import pathlib
import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]
README = ROOT / "README.md"
PROBLEMS = "problems/spectra.json"
RESULTS_PAGE = ROOT / "docs/results.md"
RESULTS = sorted(ROOT.glob("train/results/**/README.md"))
PAGES = sorted(ROOT.glob("docs/**/*.md"))
DOCUMENTS = [README, *RESULTS, ROOT / "CONTRIBUTING.md", *PAGES]
# Their numbers are versions, or belong to the text around a notebook.
NOT_MEASURED = {"peers", "engines", "formats", "index"}
MEASURED = [x for x in PAGES if x.stem not in NOT_MEASURED]

BLOCK = re.compile(
    r"<!-- (?P<name>[^/].*?) -->\n(?P<body>.*?)<!-- /(?P=name) -->", re.S
)
MARK = re.compile(r"<!-- /?(.*?) -->")
# A measured number: with its unit, as an error, or in a table's cell.
NUMBER = re.compile(
    r"\d[\d.,]*\s?(?:%|[kMGT]B\b|ms\b|s\b|GB/s|seconds|minutes|points?\b|digits)"
    r"|\d+e-\d+|\|\s*~?\d[\d.,]*\s*\|"
)
# Also over the end of a line, but for those of `para`.
COMMAND = re.compile(
    r"python\s+-m\s+(?P<module>(?:tests|train)(?:\.\w+)*)(?: (?P<word>[a-z]+))?"
    r"|make\s+(?P<target>demo|test-all|test|lint)\b"
    r"|(?:^    |`)para (?P<para>\w+)",
    re.M,
)

SPEED = {
    "decompose:h200": (
        "decompose",
        ["h200.json", "--cases", "gemma3-4b,llama3-8b-r16,llama3-8b-r64"],
    ),
    "decompose:cpu": ("decompose", ["cpu.json", "--cases", "gemma3-4b,llama3-8b-r64"]),
    "cold": ("cold", ["cold-cpu.json"]),
    "named:h200": ("named", ["named-h200.jsonl"]),
    "named:cpu": ("named", ["named-cpu.jsonl"]),
}
# `table ...`: tests/train/experiments/test_documents.py; the others: test_serve.py,
# test_gemma.py and test_parity.py in tests/benchmarks.
ELSEWHERE = re.compile(r"table [\w/]+|serve:\w+|engines: \w+|gemma|parity")


def blocks(path):
    return {x["name"]: x["body"].strip() for x in BLOCK.finditer(path.read_text())}


def sections(path):
    """Return the sections of a document by title, their generated blocks taken out."""
    text = BLOCK.sub("", path.read_text())
    found = ["", *re.split(r"^#+ (.*)$", text, flags=re.M)]
    return dict(zip(found[::2], found[1::2], strict=True))


def place(name):
    """Return the one page with a generated block."""
    (page,) = (x for x in PAGES if name in blocks(x))
    return page


each_document = pytest.mark.parametrize(
    "path", DOCUMENTS, ids=lambda x: str(x.relative_to(ROOT))
)


@each_document
def test_every_generated_block_is_closed_and_checked(path):
    found = list(blocks(path))

    assert MARK.findall(path.read_text()) == [x for x in found for _ in range(2)]
    unknown = [x for x in found if not ELSEWHERE.fullmatch(x)]
    assert set(unknown) <= SPEED.keys()


@pytest.mark.parametrize("name", SPEED)
def test_a_table_of_speed_is_that_of_the_saved_rows(name, monkeypatch, capsys):
    module, words = SPEED[name]
    benchmark = importlib.import_module(f"tests.benchmarks.{module}")
    monkeypatch.chdir(ROOT / "tests/benchmarks/results")

    benchmark.main(["--markdown", "--from", *words])

    assert blocks(place(name))[name] == capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    "path", [README, *MEASURED], ids=lambda x: str(x.relative_to(ROOT))
)
def test_every_section_with_numbers_names_a_command(path):
    silent = [
        title
        for title, text in sections(path).items()
        if NUMBER.search(text) and not COMMAND.search(text)
    ]
    assert silent == []


@pytest.mark.parametrize("path", [README, ROOT / "docs/index.md", RESULTS_PAGE])
def test_the_table_of_the_limit_is_of_the_results(path):
    table = re.search(r"^\| task \|.*\n(?:\|.*\n)+", path.read_text(), re.M)[0]
    lines = [re.findall(r"[\d.]+", x)[-4:] for x in table.splitlines()[2:]]
    rows = ("PARA, rank 16", "PARA, rank 8", "PARA, rank 4", "LoRA, rank 4")

    for said, folder in zip(lines, ("", "vision/", "problems/"), strict=True):
        text = blocks(ROOT / f"train/results/{folder}README.md")[f"table {folder}ranks"]
        first = text.partition("**PARA minus")[0].splitlines()
        cells = {x[0].strip(): x for x in (y.strip("|").split("|") for y in first)}
        # The last three are the mean, the rank and the parameters.
        assert [cells[x][-3].partition("±")[0].strip() for x in rows] == said


@pytest.mark.parametrize("path", RESULTS, ids=lambda x: x.parent.name)
def test_the_numbers_of_the_results_stand_beside_what_is_generated(path):
    text = path.read_text()
    head, *rest = re.split(r"^## ", text, flags=re.M)

    for command in ("train grid", "train collect", "train table"):
        assert f"python -m {command}" in head
    for section in rest:
        generated = "<!-- table" in section or "](figures/" in section
        assert generated or COMMAND.search(section) or not NUMBER.search(section)


@each_document
def test_every_command_that_is_named_is_there(path):
    from para_jax import cli

    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        cli.main(["--help"])
    known = {
        "word": (ROOT / "train/__main__.py").read_text(),
        "target": (ROOT / "Makefile").read_text(),
        "para": shown.getvalue(),
    }
    patterns = {"word": '"{}"', "target": "\n{}:", "para": "\n    {} "}

    for found in COMMAND.finditer(path.read_text()):
        if found["module"]:
            assert importlib.util.find_spec(found["module"]), found[0]
        for kind, pattern in patterns.items():
            if found[kind] and (kind != "word" or found["module"] == "train"):
                assert pattern.format(found[kind]) in known[kind], found[0]


@each_document
def test_every_file_of_ours_that_is_named_is_there(path):
    text = path.read_text()
    named = re.findall(r"`((?:para_jax|train|tests|docs)/[\w/.]+\.\w+)`", text)
    named += [x for x in re.findall(r"\]\(([\w/.-]+)\)", text) if "://" not in x]

    places = path.parent, ROOT
    missing = [x for x in named if not any((p / x).exists() for p in places)]
    assert [x for x in missing if "NAME" not in x] == []


@pytest.mark.parametrize("name", ["movie", "armenian"])
def test_the_demo_cuts_as_the_table_says(name):
    import para_jax as para
    from train.commands import demo
    from train.subjects import tasks

    folder = {"movie": tasks.MOVIE, "armenian": tasks.ARMENIAN}[name]
    lines = [x.split() for x in table_of_demo(name)]
    children = para.family(para.load(folder), demo.POLICIES)
    assert len(lines) == 1 + len(children)
    for child, line in zip(children, lines[1:], strict=True):
        report = child.report
        want = [
            *report.policy.split(),
            f"{report.average_rank:.2f}",
            str(report.max_rank),
            f"{report.parameters:,}",
        ]
        assert line[: len(want)] == want
        assert f"{report.energy:.1%}" in line


@pytest.mark.parametrize("name", ["movie", "armenian"])
def test_the_docstring_of_the_demo_expects_the_accuracies_of_the_table(name):
    from train.commands import demo

    table = {x[:20].strip(): x.split() for x in table_of_demo(name)}
    expected = re.search(rf"^ +{name} +(\d.*)", demo.__doc__ or "", re.M)[1]

    percents = []
    for policy in ("parent", "gamma 0.25", "gamma 0.0625"):
        *_, accuracy = (x for x in table[policy] if x.endswith("%"))
        percents.append(float(accuracy[:-1]))
    said = [float(x) for x in re.findall(r"[\d.]+", expected)]
    assert said == pytest.approx(percents, abs=0.051)


def table_of_demo(name):
    """Return the lines of one table printed by the demo: the parent, the children."""
    page = (ROOT / "docs/get-started.md").read_text()
    _, _, rest = page.partition(f" {name}: ")
    body, _, _ = rest.partition("    Adapters ")
    return [x.strip() for x in body.splitlines()[4:]]


def test_the_table_of_engines_is_what_the_command_prints(tmp_path, monkeypatch, capsys):
    from para_jax import cli
    from train.subjects import tasks

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    cli.main(["compress", str(tasks.MOVIE), "small", "--gamma", "0.25"])
    capsys.readouterr()

    cli.main(["inspect", "small", "--engines", "--adapters-only"])

    printed = capsys.readouterr().out.strip("\n").splitlines()
    assert len(printed) > 10
    table = "\n".join(x.rstrip() for x in printed)
    page = (ROOT / "docs/engines.md").read_text()
    assert textwrap.indent(table, "    ") in page


@pytest.mark.slow
@pytest.mark.interop
def test_the_table_of_layouts_has_a_yes_where_there_are_tests():
    pytest.importorskip("peft")
    program = """
import pytest
from tests.layouts import Cells, table
cells = Cells()
pytest.main(["--collect-only", "-qq", "-m", "layout", "tests"], plugins=[cells])
cells.outcomes = {x: ["passed"] for tests in cells.cells.values() for x in tests}
print("-----", table(cells), sep="\\n")
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )

    table = done.stdout.partition("-----\n")[2].strip()
    assert table.count("yes") > 20
    assert table in (ROOT / "docs/layouts.md").read_text()


@pytest.mark.parametrize(
    ("results", "said"),
    [
        ("problems", "in 89 % of the modules"),
        ("problems", "1.6 times it in the median"),
        ("vision", "On pictures the median is 0.3."),
    ],
)
def test_updates_are_as_large_beside_their_kernels_as_is_said(results, said):
    import safetensors.numpy

    folder = {"problems": "sums/model", "vision": "glyphs/encoder"}[results]
    tensors = safetensors.numpy.load_file(
        ROOT / "train/assets" / folder / "model.safetensors"
    )
    path = ROOT / f"train/results/{results}/spectra.json"
    ratios = []
    for x in json.loads(path.read_text())["rows"]:
        kernel = tensors[f"{x['module'].replace('/', '.')}.weight"]
        largest = np.linalg.norm(kernel.astype(np.float64), 2)
        ratios.append(max(x["values"]) / largest)

    number = float(re.search(r"\d[\d.]*\d|\d", said)[0])
    got = 100 * np.mean(np.array(ratios) > 1) if "%" in said else np.median(ratios)
    assert got == pytest.approx(number, abs=0.5 if "%" in said else 0.05)
    assert said in (ROOT / "train/results/problems/README.md").read_text()


def test_a_quarter_of_the_ranks_holds_as_much_energy_as_the_readme_says():
    def shares(path):
        pooled = {}
        for x in json.loads((ROOT / "train/results" / path).read_text())["rows"]:
            pooled.setdefault(x["task"], []).extend(x["values"])
        for values in pooled.values():
            squares = np.sort(np.square(values))
            yield round(100 * squares[-(len(squares) // 4) :].sum() / squares.sum())

    sentences, (problems,) = list(shares("spectra.json")), shares(PROBLEMS)
    said = f"{min(sentences)} to {max(sentences)} % for the sentences, {problems} % for"
    assert said in " ".join(README.read_text().split())


def test_the_page_on_other_tools_states_their_versions():
    page = (ROOT / "docs/peers.md").read_text()

    stated = page.partition("Versions:")[2].partition("\n\n")[0]
    for version in ("0.21.2", "063ef10", "4.1.3", "0.1.5", "0.1.3"):
        assert version in stated


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 200
