"""Test the command line, as used by a person and by a script."""

import contextlib
import io
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import warnings

import matplotlib.image
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

import para_jax as para
from para_jax import cli

pytestmark = pytest.mark.user_defaults

MINILM = pathlib.Path(__file__).parents[3] / "train/assets/minilm-movie-r16"
FLAGS = ["--gamma", "--rank", "--epsilon", "--threshold", "--params", "--bytes"]


@pytest.fixture(autouse=True)
def own_cache(no_trace_of_the_settings, monkeypatch, tmp_path_factory):
    """Let commands choose where their compiled programs are kept."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def made(paths, *, m=8, n=6, rank=3, seed=0, dtype=np.float32):
    """Return a checkpoint of random adapters."""
    rng = np.random.default_rng(seed)
    return para.Checkpoint(
        adapters={
            path: para.Adapter(
                a=rng.normal(size=(m, rank)).astype(dtype),
                b=rng.normal(size=(rank, n)).astype(dtype),
            )
            for path in paths
        }
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Write a PEFT folder of two modules: 6 ranks, 84 parameters, 336 bytes."""
    folder = tmp_path_factory.mktemp("small") / "adapter"
    para.save(made(["layer/0/q", "layer/1/q"]), folder)
    return folder


@pytest.fixture
def call(capsys, monkeypatch, tmp_path):
    """Run a command in this process; return its code, output and error text."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        try:
            code = cli.main([str(x) for x in arguments])
        except SystemExit as end:  # As argparse ends for --help and mistakes.
            code = end.code
        out, err = capsys.readouterr()
        return code, out, err

    return run


def command(*arguments, code=None, environment=None, **options):
    """Run a command in a process of its own."""
    code = code or "import sys; from para_jax import cli; sys.exit(cli.main())"
    inherited = {
        key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"
    }
    root = pathlib.Path(para.__file__).parents[2]
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=inherited | {"PYTHONPATH": str(root)} | (environment or {}),
        stderr=subprocess.PIPE,
        text=True,
        **({"stdout": subprocess.PIPE} | options),
    )


def one_sentence(err, prog="para"):
    """Return the only line of an error text, without the program's name."""
    assert err.count("\n") == 1, err
    assert err.startswith(f"{prog}: "), err
    sentence = err.removeprefix(f"{prog}: ").rstrip("\n")
    assert sentence.endswith((".", ")")), err
    for ugly in ("Error(", "PosixPath", "None", "Traceback", "invalid _"):
        assert ugly not in sentence
    return sentence


def fits(out, width=80):
    long = [line for line in out.splitlines() if len(line) > width]
    assert not long, long


def ranks(folder):
    return {path: x.rank for path, x in para.load(folder).adapters.items()}


def strict(text):
    """Return JSON readable by every parser: no NaN, no Infinity."""

    def refuse(constant):
        raise ValueError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


# As a process


def test_the_module_runs_as_a_program():
    run = subprocess.run(
        [sys.executable, "-m", "para_jax.cli", "--version"],
        capture_output=True,
        text=True,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert para.__version__ in run.stdout


def test_success_exits_0_and_complains_of_nothing(tmp_path):
    run = command("compress", MINILM, "small", "--gamma", 0.25, cwd=tmp_path)

    assert (run.returncode, run.stderr) == (0, "")
    assert "144 of 576 ranks kept" in run.stdout
    assert re.search(r"Written to small, \d+\.\d kB on disk\.", run.stdout)
    fits(run.stdout)
    assert sum(ranks(tmp_path / "small").values()) == 144


def test_a_users_mistake_exits_2_with_one_sentence(tmp_path):
    run = command("compress", tmp_path / "nowhere", tmp_path / "child", "--gamma", 0.5)

    assert (run.returncode, run.stdout) == (2, "")
    assert "nowhere' does not exist" in one_sentence(run.stderr)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no /proc")
def test_a_failure_exits_1_with_one_sentence(small):
    run = command("compress", small, "/sys/child", "--gamma", 0.5)

    assert (run.returncode, run.stdout) == (1, "")
    assert "/sys/child" in one_sentence(run.stderr)


@pytest.mark.parametrize("kind", ["peft", "orbax"])
def test_a_full_disk_exits_1_with_one_sentence(tmp_path, kind):
    code = """
import resource, signal, sys
from para_jax import cli
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
sys.exit(cli.main())
"""
    run = command(
        *("compress", MINILM, "small", "--gamma", 0.5, "--format", kind),
        code=code,
        cwd=tmp_path,
    )

    assert (run.returncode, run.stdout) == (1, "")
    sentence = one_sentence(run.stderr)
    assert "small" in sentence
    assert "too large" in sentence.lower()
    assert not list(tmp_path.iterdir())


def test_a_damaged_orbax_checkpoint_exits_2_with_one_sentence(small, tmp_path):
    para.save(para.load(small), tmp_path / "damaged", format="orbax")
    shutil.rmtree(tmp_path / "damaged/state/d")  # The arrays themselves.
    run = command("inspect", "damaged", cwd=tmp_path)

    assert (run.returncode, run.stdout) == (2, "")
    sentence = one_sentence(run.stderr)
    assert "'damaged'" in sentence
    assert len(sentence) < 500


def test_debug_shows_the_traceback(tmp_path):
    run = command("inspect", tmp_path / "nowhere", "--debug")

    assert run.returncode
    assert "Traceback (most recent call last)" in run.stderr
    assert run.stderr.splitlines()[-1].startswith("FileNotFoundError: ")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["inspect"], ["inspect", "--json"], ["compress"]]
)
def test_an_output_that_nobody_reads_is_no_failure(small, tmp_path, arguments):
    if arguments[0] != "--help":
        arguments = [arguments[0], small, *arguments[1:]]
    if arguments[0] == "compress":
        arguments += [tmp_path / "child", "--gamma", 0.5]
    reader, writer = os.pipe()
    os.close(reader)  # As `para ... | head` does when it has seen enough.
    try:
        run = command(*arguments, stdout=writer)
    finally:
        os.close(writer)

    assert run.stderr == ""
    assert run.returncode == 0


@pytest.mark.parametrize(
    ("missing", "arguments"),
    [
        ("rich", ["inspect", "SRC"]),
        ("rich", ["sweep", "SRC", "children", "--gamma", "0.5"]),
        ("matplotlib", ["inspect", "SRC", "--plot", "picture.png"]),
        (
            "matplotlib",
            ["compress", "SRC", "child", "--gamma", "0.5", "--plot", "picture.png"],
        ),
    ],
)
def test_a_package_that_is_missing_is_named_with_its_remedy(
    small, tmp_path, missing, arguments
):
    code = f"""
import sys
sys.modules[{missing!r}] = None
from para_jax import cli
sys.exit(cli.main())
"""
    arguments = [str(small) if x == "SRC" else x for x in arguments]
    run = command(*arguments, code=code, cwd=tmp_path)

    assert (run.returncode, run.stdout) == (1, "")
    sentence = one_sentence(run.stderr)
    assert missing in sentence
    assert "pip install 'para-jax[cli,plot]'" in sentence
    # The whole work is not done first, to fail then and be refused the second time.
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", ["matplotlib", "rich"])
def test_what_needs_no_package_does_without_it(missing):
    code = f"import sys; sys.modules[{missing!r}] = None; import para_jax, para_jax.cli"

    assert command(code=code).returncode == 0


def test_compressing_without_a_terminal_does_without_rich(small, tmp_path):
    code = """
import sys
sys.modules["rich"] = None
from para_jax import cli
sys.exit(cli.main())
"""
    run = command("compress", small, tmp_path / "child", "--gamma", "0.5", code=code)

    assert (run.returncode, run.stderr) == (0, "")


def cached(cache):
    entries = (cache / "para_jax").glob("*")
    # JAX also notes when an entry was last used.
    return {x.name: x.stat().st_mtime_ns for x in entries if "-atime" not in x.name}


def test_compiled_programs_are_kept_for_the_next_run(small, tmp_path):
    environment = {
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "JAX_ENABLE_COMPILATION_CACHE": "true",
    }
    # On CPU a command compiles nothing by itself.
    code = """
import sys
from para_jax import cli
status = cli.main()
import jax
jax.jit(lambda x: x + 1)(1.0)
sys.exit(status)
"""
    first = command("inspect", small, environment=environment, code=code)
    kept = cached(tmp_path / "cache")
    second = command("inspect", small, environment=environment, code=code)

    assert kept
    assert cached(tmp_path / "cache") == kept
    assert first.stdout == second.stdout
    assert (first.stderr, second.stderr) == ("", "")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no /proc")
def test_a_cache_that_cannot_be_written_does_no_harm(small):
    environment = {
        "XDG_CACHE_HOME": "/proc/nowhere",
        "JAX_ENABLE_COMPILATION_CACHE": "true",
    }
    run = command("inspect", small, environment=environment)

    assert (run.returncode, run.stderr) == (0, "")
    assert "2 modules, 6 ranks" in run.stdout


def test_a_warning_is_one_line_for_a_person(small, tmp_path):
    run = command("compress", small, tmp_path / "child", "--gamma", "0.01")

    assert run.returncode == 0
    assert "less than one" in run.stdout + run.stderr
    assert "UserWarning" not in run.stderr
    assert ".py:" not in run.stderr


@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "latin-1"])
def test_a_table_is_readable_in_any_encoding(small, encoding):
    run = command("inspect", small, environment={"PYTHONIOENCODING": encoding})

    assert (run.returncode, run.stderr) == (0, "")
    assert "0/q" in run.stdout
    fits(run.stdout)


# Help


@pytest.mark.parametrize(
    "name", ["", "compress", "inspect", "sweep", "fleet", "convert"]
)
def test_help_has_examples_and_fits(call, name):
    code, out, err = call(*filter(None, [name]), "--help")

    assert (code, err) == (0, "")
    assert "examples:" in out
    assert f"para {name}" in out
    fits(out)


def test_the_examples_in_the_help_are_commands_that_run(call, tmp_path):
    _, out, _ = call("--help")
    examples = [
        shlex.split(re.split(r"\s{2,}", line.strip())[0])
        for line in out.partition("examples:\n")[2].splitlines()
        if line.strip().startswith("para ")
    ]
    commands = {"compress", "inspect", "sweep", "fleet", "convert"}
    assert {x[1] for x in examples} == commands
    for name in ("adapter", "tenants/acme/adapter", "tenants/bolt/adapter"):
        para.save(made(["layer/0/q", "layer/1/q"], rank=8), tmp_path / name)
    rng = np.random.default_rng(0)
    factors = {"w_lora_a": rng.normal(size=(8, 3)), "w_lora_b": rng.normal(size=(3, 6))}
    tree = {"layers": {"0": {"attn": {"q_einsum": factors}}}}
    ocp.save(tmp_path / "run/100", tree)
    for _, *arguments in examples:
        extra = [] if arguments[0] == "inspect" else ["--overwrite"]
        code, _, err = call(*arguments, *extra)
        assert (code, err) == (0, ""), arguments


def test_the_version_is_that_of_the_library(call):
    code, out, err = call("--version")

    assert (code, err) == (0, "")
    assert out.split()[-1] == para.__version__


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ([], "COMMAND"),
        (["squeeze"], "squeeze"),
        (["compress"], "SRC, DST"),
        (["compress", "SRC"], "DST"),
        (["compress", "SRC", "child"], r"--gamma.*required"),
        (["compress", "SRC", "child", "--gamma"], "--gamma.*expected one argument"),
        (["compress", "SRC", "child", "--gamma", "0.5", "0.25"], "0.25"),
        (
            ["compress", "SRC", "child", "--gamma", "0.5", "--rank", "2"],
            "--rank.*not allowed with.*--gamma",
        ),
        (
            ["compress", "SRC", "child", "--epsilon", "0.5", "--bytes", "200"],
            "--bytes.*not allowed with.*--epsilon",
        ),
        (["compress", "SRC", "child", "--gama", "0.5"], "--gama|required"),
        (["compress", "SRC", "child", "--gamma", "0.5", "--turbo"], "--turbo"),
        (
            ["compress", "SRC", "child", "--gamma", "0.5", "--dtype", "int8"],
            "int8.*float32.*bfloat16.*float16",
        ),
        (
            ["compress", "SRC", "child", "--gamma", "0.5", "--format", "gguf"],
            "gguf.*peft.*orbax",
        ),
        (["inspect", "SRC", "--method", "svd"], "svd.*auto.*qr.*gram"),
        (
            ["compress", "SRC", "child", "--gamma", "0.5", "--min-rank", "x"],
            "min-rank.*x",
        ),
    ],
)
def test_a_wrong_command_line_exits_2_with_one_sentence(call, small, arguments, match):
    code, out, err = call(*(small if x == "SRC" else x for x in arguments))

    assert (code, out) == (2, "")
    prog = err.partition(":")[0]
    assert prog in ("para", "para compress", "para inspect")
    assert re.search(match, one_sentence(err, prog))


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize(
    "value",
    ["", "abc", "1e", "e", "-", ".", "1.5XB", "1e999", "nan", "inf", "1 2", "k"],
)
def test_what_is_no_number_is_named(call, small, flag, value):
    code, out, err = call("compress", small, "child", f"{flag}={value}")

    assert (code, out) == (2, "")
    sentence = one_sentence(err, "para compress")
    assert flag in sentence
    assert f"'{value}' is not a number" in sentence


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--gamma", "0"], r"gamma must be in \(0, 1\], got 0"),
        (["--gamma", "25"], r"gamma must be in \(0, 1\], got 25"),
        (["--gamma", "-0.5"], r"gamma must be in \(0, 1\], got -0.5"),
        (["--epsilon", "1.01"], r"epsilon must be in \(0, 1\], got 1.01"),
        (["--rank", "4"], "rank 4: .*8 ranks is above the parent's 6"),
        (["--rank", "0.1"], "below one rank"),
        (["--params", "85"], "85 params is above the parent's 84"),
        (["--params", "13"], "below one rank, which takes at least 14"),
        (["--bytes", "1k"], "1000 bytes is above the parent's 336"),
        (["--bytes", "55"], "below one rank, which takes at least 56"),
        (["--threshold", "-1"], "must not be negative, got -1"),
        (["--threshold", "1e9"], "No module has an adapter left"),
        (["--gamma", "0.5", "--min-rank", "-1"], "min.rank must be an integer from 0"),
        (["--gamma", "0.5", "--multiple-of", "0"], "multiple.of must be an integer"),
        (["--gamma", "0.5", "--max-rank", "1", "--min-rank", "2"], "max.rank must be"),
        (["--gamma", "0.5", "--min-rank", "2"], "min.rank 2.*budget is 3"),
    ],
)
def test_an_impossible_budget_exits_2_with_one_sentence(
    call, small, tmp_path, arguments, match
):
    code, out, err = call("compress", small, "child", *arguments)

    assert (code, out) == (2, "")
    sentence = one_sentence(err)
    assert re.search(match, sentence)
    # A Python value such as Gamma(value=0.5, scope='global', ...) must not leak out.
    assert "value=" not in sentence
    assert not list(tmp_path.iterdir())


def test_an_existing_target_is_refused_before_the_work(call, small, tmp_path):
    shutil.copytree(small, tmp_path / "child")
    shutil.copytree(small, tmp_path / "broken")
    (tmp_path / "broken/adapter_model.safetensors").write_bytes(b"")

    code, out, err = call("compress", "broken", "child", "--gamma", 0.5)
    assert (code, out) == (2, "")
    # The remedy is said in the command's own words.
    assert "child' exists" in one_sentence(err)
    assert "--overwrite" in err


@pytest.mark.parametrize(
    ("place", "match"),
    [
        ("nowhere", "nowhere' does not exist"),
        ("empty", "neither a PEFT adapter.*nor an Orbax checkpoint"),
        ("notes.txt", r"notes\.txt' is a file"),
        ("pickle", r"adapter_model\.bin' is a pickle.*never opened"),
    ],
)
@pytest.mark.parametrize("name", ["compress", "inspect", "sweep", "convert"])
def test_a_wrong_source_exits_2_with_one_sentence(call, tmp_path, name, place, match):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "pickle").mkdir()
    (tmp_path / "pickle/adapter_config.json").write_text("{}")
    (tmp_path / "pickle/adapter_model.bin").write_bytes(b"no")
    rest = {"inspect": [], "convert": ["child"]}
    gamma = ["child", "--gamma", "0.5"]

    code, out, err = call(name, place, *rest.get(name, gamma))
    assert (code, out) == (2, "")
    assert re.search(match, one_sentence(err))
    assert not (tmp_path / "child").exists()


def test_a_path_with_an_accent_is_told_as_it_is(call, tmp_path):
    _, _, err = call("inspect", "Gewichte für Ö")

    assert "'Gewichte für Ö' does not exist" in one_sentence(err)


# compress


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        (["--gamma", "0.5"], 3),
        (["--rank", "1.5"], 3),
        (["--epsilon", "1"], 6),
        (["--threshold", "0"], 6),
        (["--params", "28"], 2),
        (["--params", "0.05k"], 3),
        (["--bytes", "112"], 2),
        (["--bytes", "0.3kB"], 5),
        (["--bytes", "112 B"], 2),
        (["--gamma", "1", "--max-rank", "2"], 4),
        (["--gamma", "1", "--multiple-of", "2", "--max-rank", "2"], 4),
        (["--gamma", "0.67", "--scope", "local"], 4),
        (["--rank", "1", "--min-rank", "1"], 2),
    ],
)
def test_each_budget_keeps_its_ranks(call, small, arguments, kept):
    code, out, err = call("compress", small, "child", *arguments)

    assert (code, err) == (0, "")
    assert f"{kept} of 6 ranks kept" in out
    assert sum(ranks("child").values()) == kept


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("100k", 100_000),
        ("1.5MB", 1_500_000),
        ("1.5 MB", 1_500_000),
        ("2GB", 2_000_000_000),
        ("100K", 100_000),
        ("250000B", 250_000),
        ("3e5", 300_000),
        ("0.25", 0.25),
        (".5", 0.5),
    ],
)
def test_sizes_are_read_as_people_write_them(call, small, text, value):
    # Above the parent, or below one rank: so the message tells the value.
    code, _, err = call("compress", small, "child", f"--bytes={text}")

    assert code == 2
    assert one_sentence(err).startswith(f"bytes {value}: a budget of")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("method", ["auto", "qr", "gram"])
def test_the_child_has_the_dtype_that_was_asked_for(call, small, dtype, method):
    arguments = ("--gamma", 0.5, "--dtype", dtype, "--method", method)
    code, _, err = call("compress", small, "child", *arguments)

    assert (code, err) == (0, "")
    assert {x.a.dtype.name for x in para.load("child").adapters.values()} == {dtype}


@pytest.mark.parametrize("kind", ["peft", "orbax"])
def test_the_child_has_the_format_that_was_asked_for(call, small, tmp_path, kind):
    code, _, _ = call("compress", small, "child", "--gamma", 0.5, "--format", kind)

    assert code == 0
    is_peft = (tmp_path / "child/adapter_config.json").exists()
    assert is_peft == (kind == "peft")
    # Without being asked, a child has its parent's format.
    assert call("compress", "child", "grandchild", "--gamma", 0.7)[0] == 0
    assert (tmp_path / "grandchild/adapter_config.json").exists() == is_peft


def test_a_padded_child_has_one_rank(call, small):
    arguments = ("--gamma", 0.5, "--profile", "padded")
    assert call("compress", small, "child", *arguments)[0] == 0

    assert len(set(ranks("child").values())) == 1
    config = json.loads(pathlib.Path("child/adapter_config.json").read_text())
    assert config["rank_pattern"] == {}
    assert config["lora_alpha"] == config["r"] == next(iter(ranks("child").values()))


def test_overwrite_replaces_the_child(call, small):
    assert call("compress", small, "child", "--gamma", 1)[0] == 0
    assert call("compress", small, "child", "--gamma", 0.5)[0] == 2
    assert sum(ranks("child").values()) == 6
    assert call("compress", small, "child", "--gamma", 0.5, "--overwrite")[0] == 0
    assert sum(ranks("child").values()) == 3


def test_an_adapter_can_be_compressed_in_its_own_place(call, small):
    shutil.copytree(small, "adapter")
    arguments = ("compress", "adapter", "adapter", "--gamma", 0.5)

    assert call(*arguments)[0] == 2
    assert sum(ranks("adapter").values()) == 6
    assert call(*arguments, "--overwrite")[0] == 0
    assert sum(ranks("adapter").values()) == 3


@pytest.mark.parametrize("name", ["compress", "convert", "sweep", "inspect"])
def test_the_source_may_be_the_weights_themselves(call, small, name):
    weights = small / "adapter_model.safetensors"
    rest = {"inspect": [], "convert": ["child"]}

    code, _, err = call(name, weights, *rest.get(name, ["child", "--gamma", "0.5"]))
    assert (code, err) == (0, "")


def test_the_source_may_be_the_current_folder(call, small, monkeypatch, tmp_path):
    monkeypatch.chdir(small)

    code, _, err = call("compress", ".", tmp_path / "child", "--gamma", 0.5)
    assert (code, err) == (0, "")


def test_a_report_says_what_was_kept(call, tmp_path):
    arguments = ("--gamma", 0.25, "--report", "report.json")
    code, out, err = call("compress", MINILM, "child", *arguments)

    assert (code, err) == (0, "")
    fits(out)
    report = strict((tmp_path / "report.json").read_text())
    kept = {x["path"]: x["kept"] for x in report["modules"] if x["kept"]}
    assert kept == ranks("child")
    assert sum(kept.values()) == report["kept_rank"] == 144
    assert report["total_rank"] == 576
    assert f"{report['parameters']:,} of 663,552" in out


def test_json_replaces_the_table(call, small, tmp_path):
    code, out, err = call("compress", small, "child", "--threshold", 0, "--json")

    assert (code, err) == (0, "")
    assert strict(out)["kept_rank"] == 6
    assert out.count("\n") == 1
    assert (tmp_path / "child").exists()


def test_a_picture_is_a_png(call, small, tmp_path):
    code, _, err = call("compress", small, "child", "--gamma", 0.5, "--plot", "map.png")

    assert (code, err) == (0, "")
    assert matplotlib.image.imread(tmp_path / "map.png").shape[0] > 100


@pytest.mark.parametrize(
    ("flag", "place"),
    [
        ("--plot", "nowhere/map.png"),
        ("--report", "nowhere/report.json"),
        ("--plot", "map.docx"),
    ],
)
def test_a_place_for_a_file_that_is_wrong_is_told_before_the_work(
    call, small, tmp_path, flag, place
):
    code, out, err = call("compress", small, "child", "--gamma", 0.5, flag, place)

    assert (code, out) == (2, "")
    assert "nowhere" in one_sentence(err) or "docx" in err
    assert not list(tmp_path.iterdir())


# inspect


def test_inspection_shows_every_module(call):
    code, out, err = call("inspect", MINILM)

    assert (code, err) == (0, "")
    fits(out)
    assert len(re.findall(r"^\d/\S+ +\d+x\d+ +16 +2 ", out, re.MULTILINE)) == 36
    assert "36 modules, 576 ranks, 663,552 parameters, 2.7 MB of float32" in out
    for share in ("90%", "95%", "99%", "99.9%"):
        assert re.search(rf"^ *{share} of all energy: \d+ ranks", out, re.MULTILINE)
    assert "classifier" in out


@pytest.mark.parametrize("columns", ["1", "20", "40", "79", "80", "200", "", "x"])
def test_a_table_is_never_wider_than_80_columns(call, small, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)

    for arguments in (("inspect", MINILM), ("sweep", small, "children", "--gamma", 1)):
        code, out, err = call(*arguments)
        assert (code, err) == (0, "")
        fits(out)


@pytest.mark.parametrize("columns", ["40", "60"])
def test_a_narrow_terminal_loses_no_column(call, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)

    _, out, _ = call("inspect", MINILM)
    # A terminal wraps long lines by itself; truncated text would be lost.
    assert "…" not in out
    for path in para.load(MINILM).adapters:
        assert path.removeprefix("bert/encoder/layer/") in out


def test_a_line_does_not_end_in_spaces(call):
    _, out, _ = call("inspect", MINILM)

    assert not [line for line in out.splitlines() if line != line.rstrip()]


def test_a_long_path_does_not_widen_the_table(call, tmp_path):
    start = "model/" + "a_very_long_name_of_a_submodule/" * 4
    paths = [f"{start}layers/{i}/self_attn/q_proj" for i in range(3)]
    assert len(paths[0]) > 120
    para.save(made(paths), tmp_path / "adapter")

    code, out, err = call("inspect", "adapter")
    assert (code, err) == (0, "")
    fits(out)
    for i in range(3):  # Modules can be told apart.
        assert len(re.findall(rf"{i}/self_attn/q_proj +8x6", out)) == 1
    code, out, _ = call("compress", "adapter", "child", "--gamma", 0.5)
    assert code == 0
    fits(out)


def test_long_paths_that_differ_in_front_are_told_apart(call, tmp_path):
    end = "/".join(["blocks", "with", "quite", "a", "long", "end", "of", "the", "path"])
    paths = [f"{x}/{end}/q_proj" for x in ("encoder", "decoder")]
    para.save(made(paths), tmp_path / "adapter")

    _, out, _ = call("inspect", "adapter")
    rows = [line.partition("8x6")[0] for line in out.splitlines() if "8x6" in line]
    assert len(set(rows)) == 2
    fits(out)


@pytest.mark.parametrize("paths", [["q"], ["q", "v"], ["a/q"], ["a/q", "b/c/v"]])
def test_any_number_of_modules_of_any_depth_is_shown(call, tmp_path, paths):
    para.save(made(paths), tmp_path / "adapter")

    code, out, err = call("inspect", "adapter")
    assert (code, err) == (0, "")
    fits(out)
    assert out.count("8x6") == len(paths)


def test_an_inspection_as_json_has_the_spectra(call, small):
    code, out, err = call("inspect", small, "--json")

    assert (code, err) == (0, "")
    found = strict(out)
    assert [x["path"] for x in found["modules"]] == ["layer/0/q", "layer/1/q"]
    for path, adapter in para.load(small).adapters.items():
        (module,) = (x for x in found["modules"] if x["path"] == path)
        delta = adapter.scale * adapter.a.astype(float) @ adapter.b.astype(float)
        want = np.linalg.svd(delta, compute_uv=False)[:3]
        np.testing.assert_allclose(module["sigma"], want, rtol=1e-5)
        assert (module["inputs"], module["outputs"], module["rank"]) == (8, 6, 3)


def test_a_table_may_be_printed_to_a_string(small):
    with contextlib.redirect_stdout(io.StringIO()) as out:  # Its encoding is None.
        assert cli.main(["inspect", str(small)]) == 0

    assert "2 modules" in out.getvalue()


def test_what_one_library_tells_another_is_no_note(call, small, monkeypatch):
    def warned(*arguments, **keywords):
        warnings.warn("Call it by its new name.", DeprecationWarning, stacklevel=1)
        return spectra_of(*arguments, **keywords)

    spectra_of = cli.commands.spectra_of
    monkeypatch.setattr(cli.commands, "spectra_of", warned)

    code, out, err = call("sweep", small, "children", "--gamma", 0.5, 0.25)

    assert (code, err) == (0, "")
    assert "children" in out


def test_an_inspection_has_a_picture(call, small, tmp_path):
    code, _, err = call("inspect", small, "--plot", "spectrum.png")

    assert (code, err) == (0, "")
    assert matplotlib.image.imread(tmp_path / "spectrum.png").shape[0] > 100


# sweep


def test_a_sweep_writes_one_folder_a_policy_from_one_decomposition(
    call, monkeypatch, tmp_path
):
    calls, spectra_of = [], cli.commands.spectra_of

    def counted(*arguments, **keywords):
        calls.append(arguments)
        return spectra_of(*arguments, **keywords)

    monkeypatch.setattr(cli.commands, "spectra_of", counted)
    code, out, err = call(
        *("sweep", MINILM, "children", "--gamma", 0.5, 0.25, "--epsilon", 0.9),
        *("--params", "100k", "--max-rank", 8),
    )

    assert (code, err) == (0, "")
    assert len(calls) == 1
    fits(out)
    names = ["gamma-0.5-max-8", "gamma-0.25-max-8", "epsilon-0.9-max-8"]
    names.append("params-100000-max-8")
    assert sorted(x.name for x in (tmp_path / "children").iterdir()) == sorted(names)
    for name in names:
        kept = sum(ranks(f"children/{name}").values())
        assert re.search(rf"^{re.escape(name)} +{kept} ", out, re.MULTILINE)


def test_a_child_of_a_sweep_is_that_of_compress(call, small):
    assert call("sweep", small, "children", "--gamma", 0.5)[0] == 0
    assert call("compress", small, "child", "--gamma", 0.5)[0] == 0

    one, two = para.load("children/gamma-0.5"), para.load("child")
    assert one.adapters.keys() == two.adapters.keys()
    for path, adapter in one.adapters.items():
        np.testing.assert_array_equal(adapter.a, two.adapters[path].a)
        np.testing.assert_array_equal(adapter.b, two.adapters[path].b)


def test_a_sweep_as_json(call, small):
    code, out, err = call("sweep", small, "children", "--gamma", 1, 0.5, "--json")

    assert (code, err) == (0, "")
    found = strict(out)
    assert list(found) == ["children/gamma-1", "children/gamma-0.5"]
    assert [x["kept_rank"] for x in found.values()] == [6, 3]


def test_a_child_that_exists_stops_a_sweep_before_anything_is_written(
    call, small, tmp_path
):
    shutil.copytree(small, tmp_path / "children/gamma-0.25")
    arguments = ("sweep", small, "children", "--gamma", 0.5, 0.25)

    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert "gamma-0.25' exists" in one_sentence(err)
    assert [x.name for x in (tmp_path / "children").iterdir()] == ["gamma-0.25"]
    assert call(*arguments, "--overwrite")[0] == 0
    assert sum(ranks("children/gamma-0.25").values()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--gamma", "0.5", "0.5"],
        ["--gamma", "0.5", "0.50"],
        ["--gamma", "0.5", "--params", "1M"],
        ["--gamma", "0.5", "--rank", "0"],
        ["--gamma", "0.5", "--threshold", "1e9"],
    ],
)
def test_a_sweep_with_one_mistake_writes_nothing(call, small, tmp_path, arguments):
    code, out, err = call("sweep", small, "children", *arguments)

    assert (code, out) == (2, "")
    one_sentence(err)
    assert not (tmp_path / "children").exists()


def test_a_sweep_without_a_budget_names_them_all(call, small):
    code, _, err = call("sweep", small, "children")

    assert code == 2
    sentence = one_sentence(err)
    assert all(flag in sentence for flag in FLAGS)


@pytest.mark.parametrize("kind", ["peft", "orbax"])
def test_a_sweep_writes_either_format(call, small, tmp_path, kind):
    arguments = ("--gamma", 1, 0.5, "--format", kind)
    assert call("sweep", small, "children", *arguments)[0] == 0

    for name in ("gamma-1", "gamma-0.5"):
        is_peft = (tmp_path / "children" / name / "adapter_config.json").exists()
        assert is_peft == (kind == "peft")


# convert


def test_a_conversion_there_and_back_loses_nothing(call):
    there = call("convert", MINILM, "orbax", "--format", "orbax")
    back = call("convert", "orbax", "peft", "--format", "peft")

    for code, out, err in (there, back):
        assert (code, err) == (0, "")
        assert re.search(r"^36 adapters written to \w+, \d\.\d MB on disk\.$", out)
    one, two, three = (para.load(x) for x in (MINILM, "orbax", "peft"))
    assert list(one.adapters) == list(two.adapters) == list(three.adapters)
    for path, adapter in one.adapters.items():
        np.testing.assert_array_equal(adapter.a, two.adapters[path].a)
        assert adapter.scale == two.adapters[path].scale
        # A scale of 2 is folded in exactly.
        np.testing.assert_array_equal(adapter.b * 2, three.adapters[path].b)
    for name, value in one.extra.items():
        np.testing.assert_array_equal(value, three.extra[name])


def test_a_conversion_refuses_what_compress_refuses(call, small, tmp_path):
    shutil.copytree(small, tmp_path / "child")
    code, out, err = call("convert", small, "child", "--format", "orbax")

    assert (code, out) == (2, "")
    assert "child' exists" in one_sentence(err)
    assert (tmp_path / "child/adapter_config.json").exists()


def test_a_checkpoint_of_another_program_is_converted_with_its_scale(call, tmp_path):
    tree = {"q": {"a": np.ones((8, 3), np.float32), "b": np.ones((3, 6), np.float32)}}
    ocp.save(tmp_path / "other", tree)

    code, _, err = call("convert", "other", "child", "--format", "peft")
    assert code == 2
    # The remedy is said in the command's own words.
    assert "--scale" in one_sentence(err)
    code, _, err = call("convert", "other", "child", "--format", "peft", "--scale", 2)
    assert (code, err) == (0, "")
    np.testing.assert_array_equal(
        para.load("child").adapters["q"].b, 2 * tree["q"]["b"]
    )
