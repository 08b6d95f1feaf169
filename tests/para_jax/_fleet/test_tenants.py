"""Test a fleet: adapters found, work done, and the state after an interruption."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import para_jax as para
from para_jax import cli
from para_jax._fleet import manifest, tenants as fleet

MINILM = pathlib.Path(__file__).parents[3] / "train/assets/minilm-movie-r16"
GAMMA = ("--gamma", 0.25)

pytestmark = pytest.mark.usefixtures("no_trace_of_the_settings")


def adapters(seed, *, m=8, n=6, rank=4, modules=2):
    rng = np.random.default_rng(seed)
    return {
        f"layer/{i}": para.Adapter(
            a=rng.normal(size=(m, rank)).astype(np.float32),
            b=rng.normal(size=(rank, n)).astype(np.float32),
        )
        for i in range(modules)
    }


def settle(root, names, **kwargs):
    """Write a small adapter for each name."""
    for seed, name in enumerate(names):
        para.save(adapters(seed), root / name, **kwargs)


@pytest.fixture
def call(capsys, monkeypatch, tmp_path):
    """Run a command in this process; return its code, output and error text."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = cli.main([str(x) for x in arguments])
        out, err = capsys.readouterr()
        assert not [
            line for line in out.splitlines() if len(line) > 80 and "{" not in line
        ]
        return code, out, err

    return run


@pytest.fixture
def tended(call, tmp_path):
    """Run `para fleet` on `in/*` without a failure; return its summary."""

    def run(*arguments):
        code, out, err = call("fleet", "in/*", "out", *GAMMA, "--json", *arguments)
        assert (code, err) == (0, "")
        return json.loads(out)

    return run


def lines(folder):
    """Return the rows of a manifest, in the order written."""
    text = (folder / "manifest.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()][1:]


def files(folder):
    """Return the bytes of every file of all children."""
    return {
        str(x.relative_to(folder)): x.read_bytes()
        for x in folder.rglob("*")
        if x.is_file() and x.name != "manifest.jsonl"
    }


# In memory


@pytest.mark.parametrize("scope", ["global", "local"])
def test_a_vmapped_program_cuts_each_tenant_by_its_own_pool(scope):
    tenants = [adapters(seed, modules=3) for seed in range(5)]
    tenants[2] = jax.tree.map(lambda x: 100 * x, tenants[2])  # No other may lose by it.

    @jax.jit
    @jax.vmap
    def children(parents):
        spectra = para.decompose(parents)
        kept = para.masks(spectra, para.Gamma(0.25, scope=scope))
        return para.repack(spectra, kept, parents, form="masked")

    got = children(jax.tree.map(lambda *x: jnp.stack(x), *tenants))

    for i, tenant in enumerate(tenants):
        found = {p: np.linalg.svd(np.float64(x.a) @ x.b) for p, x in tenant.items()}
        pool = np.sort(np.concatenate([s[:4] for _, s, _ in found.values()]))[::-1]
        for path, (u, s, vt) in found.items():
            kept = s >= pool[2] if scope == "global" else np.arange(6) < 1
            want = (u[:, :6] * (s * kept)) @ vt
            product = got[path].a[i] @ got[path].b[i]
            np.testing.assert_allclose(product, want, atol=1e-5 * s[0])


def test_a_vmapped_pack_equals_a_loop():
    tenants = [adapters(seed) for seed in range(3)]

    @jax.jit
    def child(parents):
        spectra = para.decompose(parents)
        kept = para.masks(spectra, para.Rank(2))
        return para.pack(spectra, kept, parents, width=3)

    stacked = jax.tree.map(lambda *x: jnp.stack(x), *tenants)
    together = jax.jit(jax.vmap(child))(stacked)

    alone = jax.tree.map(lambda *x: jnp.stack(x), *map(child, tenants))
    assert together["layer/0"].a.shape == (3, 8, 3)
    for one, two in zip(*map(jax.tree.leaves, (together, alone)), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


# Matches of patterns


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("in/*/adapter", ["acme/adapter", "bolt/adapter"]),
        ("in/acme/adapter", ["adapter"]),
        ("in/*/adapter/adapter_model.safetensors", ["acme/adapter", "bolt/adapter"]),
        ("in/acme/adapter/adapter_model.safetensors", ["adapter"]),
        ("in/**", ["acme/adapter", "bolt/adapter", "loose"]),
        ("in/[a]*/ad*", ["acme/adapter"]),
    ],
)
def test_a_name_is_the_path_below_the_patterns_fixed_part(
    monkeypatch, tmp_path, pattern, names
):
    monkeypatch.chdir(tmp_path)
    settle(tmp_path / "in", ["acme/adapter", "bolt/adapter"])
    settle(tmp_path / "in", ["loose.safetensors"], format="kohya")

    for start in ("", f"{tmp_path}/"):
        found = fleet.find([start + pattern], pathlib.Path("out"))

        assert [x.name for x in found.tenants] == names
        assert not found.others
        for name, _, target in found.tenants:
            ending = ".safetensors" if name == "loose" else ""
            assert target == pathlib.Path(f"out/{name}{ending}")


def test_what_a_shell_makes_of_a_pattern_finds_the_same(tmp_path):
    settle(tmp_path, ["in/acme", "in/bolt"])

    whole = fleet.find([f"{tmp_path}/in/*"], tmp_path / "out")
    parts = fleet.find([f"{tmp_path}/in/acme", f"{tmp_path}/in/bolt"], tmp_path / "out")

    assert whole == parts


def test_the_form_of_the_children_decides_on_their_ending(tmp_path):
    settle(tmp_path, ["in/acme"])

    (found,) = fleet.find([f"{tmp_path}/in/*"], tmp_path / "out", "kohya").tenants

    assert found.target == tmp_path / "out/acme.safetensors"


@pytest.mark.parametrize("ending", ["safetensors", "SAFETENSORS", "sft"])
def test_a_child_has_its_parents_name_without_the_ending(ending, tmp_path):
    settle(tmp_path, ["in/acme.safetensors"], format="kohya")
    (tmp_path / "in/acme.safetensors").rename(tmp_path / f"in/acme.{ending}")

    (found,) = fleet.find([f"{tmp_path}/in/*"], tmp_path / "out").tenants

    assert (found.name, found.target) == ("acme", tmp_path / "out/acme.safetensors")


def test_what_is_no_adapter_is_passed_over_and_said(tmp_path):
    settle(tmp_path, ["in/acme"])
    (tmp_path / "in/empty").mkdir()
    (tmp_path / "in/notes.txt").write_text("x")
    (tmp_path / "in/base").mkdir()
    (tmp_path / "in/base/model.safetensors").write_bytes(b"x")

    found = fleet.find([f"{tmp_path}/in/*"], tmp_path / "out")

    assert [x.name for x in found.tenants] == ["acme"]
    assert [x.name for x in found.others] == ["base", "empty", "notes.txt"]


def test_children_are_no_parents(tmp_path):
    settle(tmp_path, ["acme", "out/acme"])

    found = fleet.find([f"{tmp_path}/**"], tmp_path / "out")

    assert [x.source for x in found.tenants] == [tmp_path / "acme"]


def test_no_adapter_at_all_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"in/\*' matches no adapter outside"):
        fleet.find([f"{tmp_path}/in/*"], tmp_path / "out")


def test_two_of_one_name_are_refused(tmp_path):
    settle(tmp_path, ["in/acme/adapter", "in/bolt/adapter"])
    both = [f"{tmp_path}/in/{name}/adapter" for name in ("acme", "bolt")]

    with pytest.raises(ValueError, match=r"acme/adapter' and .*bolt/adapter' would bo"):
        fleet.find(both, tmp_path / "out")


def test_a_folder_and_a_file_of_one_name_are_refused(tmp_path):
    settle(tmp_path / "in", ["acme"])
    settle(tmp_path / "in", ["acme.safetensors"], format="kohya")

    with pytest.raises(ValueError, match="would both become"):
        fleet.find([f"{tmp_path}/in/*"], tmp_path / "out")


def test_an_adapter_in_another_is_refused(tmp_path):
    settle(tmp_path, ["in/acme", "in/acme/checkpoint-7"])

    with pytest.raises(ValueError, match=r"in/acme' and .*in/acme/checkpoint-7' are"):
        fleet.find([f"{tmp_path}/in/**"], tmp_path / "out")


def test_a_fleet_in_an_adapter_is_refused(tmp_path):
    settle(tmp_path, ["in/acme"])

    with pytest.raises(ValueError, match="lies in the adapter"):
        fleet.find([f"{tmp_path}/in/*"], tmp_path / "in/acme/out")


# On disk


@pytest.mark.user_defaults
@pytest.mark.parametrize(
    "words",
    [
        ("--gamma", 0.25),
        ("--epsilon", 0.9, "--max-rank", 2, "--profile", "padded"),
        ("--rank", 2, "--for", "vllm", "--dtype", "bfloat16"),
        ("--gamma", 0.5, "--format", "kohya"),
        ("--params", 28, "--scope", "local", "--format", "orbax"),
    ],
)
def test_each_child_is_what_compress_writes(call, tmp_path, words):
    settle(tmp_path / "in", ["acme", "bolt", "cord"])

    code, _, err = call("fleet", "in/*", "out", *words)

    assert (code, err) == (0, "")
    ending = ".safetensors" if "kohya" in words else ""
    for name in ("acme", "bolt", "cord"):
        assert call("compress", f"in/{name}", f"one/{name}{ending}", *words)[0] == 0
        one, two = (para.load(f"{x}/{name}{ending}") for x in ("out", "one"))
        assert one.provenance == two.provenance
        assert one.config == two.config
        for x, y in zip(
            *map(jax.tree.leaves, (one.adapters, two.adapters)), strict=True
        ):
            np.testing.assert_array_equal(x, y)
    if "orbax" not in words:
        assert files(tmp_path / "out") == files(tmp_path / "one")


@pytest.mark.user_defaults
def test_the_manifest_tells_what_was_kept(tended, tmp_path):
    settle(tmp_path / "in", ["acme", "bolt"])

    summary = tended()

    assert summary["written"] == summary["tenants"] == 2
    rows = {x["name"]: x for x in lines(tmp_path / "out")}
    assert rows.keys() == {"acme", "bolt"}
    for name, row in rows.items():
        child = para.load(tmp_path / row["target"])
        assert row["target"] == f"out/{name}"
        assert row["source"] == f"in/{name}"
        assert row["status"] == "done"
        assert row["kept"]["policy"] == "gamma 0.25"
        assert row["kept"]["kept_rank"] == sum(x.rank for x in child.adapters.values())
        written = (tmp_path / f"out/{name}").iterdir()
        assert row["bytes"] == sum(x.stat().st_size for x in written)


@pytest.mark.user_defaults
def test_a_real_fleet_prints_a_table(call, tmp_path):
    for name in ("acme", "bolt"):
        shutil.copytree(MINILM, tmp_path / "in" / name)

    code, out, err = call("fleet", "in/*", "out", *GAMMA)

    assert (code, err) == (0, "")
    assert "median  4.00   15     185,472  28.0%  767.0 kB  94.23%" in out
    assert "2 tenants: 2 compressed, 0 there already, 0 failed." in out
    assert "tenants/s. 1.5 MB on disk." in out
    fourth = para.load(tmp_path / "out/bolt").adapters
    assert sum(x.rank for x in fourth.values()) == 144


@pytest.mark.user_defaults
def test_a_second_run_does_only_what_is_new_or_changed(tended, tmp_path):
    settle(tmp_path / "in", ["acme", "bolt", "cord", "dune", "edge"])
    shutil.move(tmp_path / "in/edge", tmp_path / "edge")
    tended()
    before = files(tmp_path / "out")
    assert tended()["there"] == 4
    para.save(adapters(17), tmp_path / "in/bolt", overwrite=True)  # Its parent changed,
    shutil.rmtree(tmp_path / "out/cord")  # its child is gone,
    with (tmp_path / "out/dune/adapter_model.safetensors").open("ab") as file:
        file.write(b"x")  # its child is damaged,
    shutil.move(tmp_path / "edge", tmp_path / "in/edge")  # and this one is new.

    summary = tended()

    assert (summary["there"], summary["written"]) == (1, 4)
    names = [x["name"] for x in lines(tmp_path / "out")[4:]]
    assert sorted(names) == ["bolt", "cord", "dune", "edge"]
    after = files(tmp_path / "out")
    assert {x.split("/")[0] for x in before if after[x] != before[x]} == {"bolt"}
    one = para.compress(para.load(tmp_path / "in/bolt"), para.Gamma(0.25))
    two = para.load(tmp_path / "out/bolt").adapters
    assert two.keys() == one.adapters.keys()
    assert tended()["there"] == 5


@pytest.mark.user_defaults
def test_one_that_fails_stops_no_other_and_is_tried_again(call, tmp_path):
    settle(tmp_path / "in", ["acme", "bolt", "cord"])
    weights = tmp_path / "in/bolt/adapter_model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:100])

    code, out, err = call("fleet", "in/*", "out", *GAMMA, "--json")

    assert (code, err) == (1, "")
    summary = json.loads(out)
    assert (summary["written"], summary["there"]) == (2, 0)
    assert "in/bolt/adapter_model.safetensors" in summary["failed"]["bolt"]
    assert sorted(x.name for x in (tmp_path / "out").iterdir()) == [
        *("acme", "cord", "manifest.jsonl")
    ]
    assert [x["status"] for x in lines(tmp_path / "out")].count("failed") == 1

    code, out, _ = call("fleet", "in/*", "out", *GAMMA)

    assert code == 1
    assert "0 compressed, 2 there already, 1 failed." in out
    assert "bolt: Cannot read the adapter in 'in/bolt'" in out
    weights.write_bytes(good)
    code, out, _ = call("fleet", "in/*", "out", *GAMMA)
    assert code == 0
    assert "1 compressed" in out


@pytest.mark.user_defaults
def test_another_recipe_is_refused_but_for_overwrite(call, tended, tmp_path):
    settle(tmp_path / "in", ["acme", "bolt"])
    tended()
    before = files(tmp_path)

    code, out, err = call("fleet", "in/*", "out", "--gamma", 0.5)

    assert (code, out) == (2, "")
    assert err == (
        "para: 'out' holds a fleet that was made otherwise: gamma was 0.25, and is 0.5 "
        "now. Choose another place, or use --overwrite.\n"
    )
    assert files(tmp_path) == before
    code, _, _ = call("fleet", "in/*", "out", "--epsilon", 0.9, "--overwrite")
    assert code == 0
    assert [x["kept"]["policy"] for x in lines(tmp_path / "out")] == ["epsilon 0.9"] * 2
    cuts = para.load(tmp_path / "out/acme").provenance["cuts"]
    assert [x["policy"] for x in cuts] == ["epsilon 0.9"]


@pytest.mark.user_defaults
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--gamma", 2), "gamma must be in"),
        (
            ("--gamma", 0.5, "--profile", "padded", "--format", "orbax"),
            "applies to PEFT only",
        ),
        (("--gamma", 0.5, "--model", "nonesuch"), "nonesuch"),
        (("--gamma", 0.5, "--max-rank", 3, "--multiple-of", 4), "max_rank must be"),
        (("--gamma", 0.5, "--head-dim", 4), "give --model"),
        (("--gamma", 0.5, "--for", "vllm", "--format", "peft"), "leave out --format"),
    ],
)
def test_a_users_mistake_exits_2_and_writes_nothing(call, tmp_path, words, sentence):
    settle(tmp_path / "in", ["acme"])

    code, out, err = call("fleet", "in/*", "out", *words)

    assert (code, out) == (2, "")
    assert sentence in err
    assert not (tmp_path / "out").exists()


@pytest.mark.user_defaults
def test_a_folder_of_something_else_is_refused(call, tmp_path):
    settle(tmp_path / "in", ["acme"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("x")

    code, _, err = call("fleet", "in/*", "out", *GAMMA)

    assert code == 2
    assert "'out' holds 'thesis.tex' and no manifest.jsonl" in err
    assert [x.name for x in (tmp_path / "out").iterdir()] == ["thesis.tex"]


@pytest.mark.user_defaults
def test_a_fleet_takes_no_adapters_place(call, tmp_path):
    settle(tmp_path, ["in/acme", "out"])
    before = files(tmp_path)

    code, _, err = call("fleet", "in/*", "out", *GAMMA, "--overwrite")

    assert code == 2
    assert "'out' is an adapter" in err
    assert files(tmp_path) == before


@pytest.mark.user_defaults
def test_no_two_runs_write_to_one_folder(call, tmp_path):
    settle(tmp_path / "in", ["acme"])

    with manifest.opened(tmp_path / "out", {"gamma": 0.25}):
        code, _, err = call("fleet", "in/*", "out", *GAMMA, "--overwrite")

    assert code == 2
    assert "Another run writes to 'out'" in err


# Cut off


def test_what_a_crash_left_of_a_line_is_cut_off(tmp_path):
    row = manifest.Row(name="acme", source="in/acme", target="out/acme", status="done")
    with manifest.opened(tmp_path / "out", {"gamma": 0.25}) as kept:
        kept.append(row)
    with (tmp_path / "out/manifest.jsonl").open("ab") as file:
        file.write(b'{"name": "bolt", "sta')

    with manifest.opened(tmp_path / "out", {"gamma": 0.25}) as kept:
        assert kept.rows == {"acme": row}
        kept.append(manifest.Row(name="cord", source="", target="", status="failed"))

    assert [x["name"] for x in lines(tmp_path / "out")] == ["acme", "cord"]


@pytest.mark.parametrize("line", ["{}", "[1]", "nonsense", '{"name": "x", "y": 1}'])
def test_a_manifest_that_is_none_is_refused_by_its_line(tmp_path, line):
    path = tmp_path / "manifest.jsonl"
    path.write_text(f'{{"recipe": {{"gamma": 0.25}}}}\n{line}\n')

    with (
        pytest.raises(
            ValueError, match=r"manifest.jsonl' is not the manifest .* line 2"
        ),
        manifest.opened(tmp_path, {"gamma": 0.25}),
    ):
        pass


@pytest.mark.user_defaults
@pytest.mark.parametrize("jobs", [1, 3])
def test_an_interrupt_begins_no_other_and_the_same_command_goes_on(
    call, tended, tmp_path, interrupted, jobs
):
    names = [f"t{i:02}" for i in range(41)]
    settle(tmp_path / "in", names)
    with interrupted():
        code, out, err = call("fleet", "in/*", "out", *GAMMA, "--jobs", jobs)

    assert (code, out) == (130, "")
    assert err == "para: 2 of 41 tenants are done; the same command goes on.\n"
    assert not list(tmp_path.rglob(".*"))
    assert len(list((tmp_path / "out").iterdir())) < 30
    assert tended()["there"] == 3
    assert sorted(x["name"] for x in lines(tmp_path / "out")) == names


DIES = """
import os, signal, sys, threading
import para_jax
from para_jax import cli

log, at, *words = sys.argv[1:]
compress, fsync, calls, lock = para_jax.compress, os.fsync, [], threading.Lock()

def logged(parent, *args, **kwargs):
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, f"{parent.source}\\n".encode())
    os.close(descriptor)
    return compress(parent, *args, **kwargs)

def deadly(descriptor):
    with lock:
        calls.append(descriptor)
        if len(calls) == int(at):
            os.kill(os.getpid(), signal.SIGKILL)
    fsync(descriptor)

para_jax.compress, os.fsync = logged, deadly
sys.exit(cli.main(words))
"""


@pytest.mark.slow
@pytest.mark.user_defaults
def test_a_run_that_is_killed_again_and_again_ends_as_one_that_is_not(tmp_path):
    jobs, moments = 2, (1, 3, 6, 10, 15, 19, 23)
    settle(tmp_path / "in", [f"t{i:02}" for i in range(19)])

    def run(target, log, at=0):
        words = ["fleet", "in/*", target, "--gamma", "0.25", "--jobs", str(jobs)]
        root = str(pathlib.Path(para.__file__).parents[2])
        return subprocess.run(
            [sys.executable, "-c", DIES, log, str(at), *words],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": root},
            capture_output=True,
            text=True,
        )

    assert run("whole", "log").returncode == 0
    done = []
    for at in moments:
        log = tmp_path / f"log-{at}"
        assert run("out", log, at).returncode == -signal.SIGKILL
        begun = log.read_text().split() if log.exists() else []
        assert not set(begun) & set(done)  # Finished work is never repeated.
        if (tmp_path / "out/manifest.jsonl").exists():
            now = [x["name"] for x in lines(tmp_path / "out")]
            assert now[: len(done)] == done
            assert len(begun) <= len(now) - len(done) + jobs + 1
            done = now
    assert run("out", tmp_path / "log-end").returncode == 0

    assert files(tmp_path / "out") == files(tmp_path / "whole")
    names = [x["name"] for x in lines(tmp_path / "out")]
    assert sorted(names) == [f"t{i:02}" for i in range(19)]  # Each exactly once.
    assert not list((tmp_path / "out").rglob(".*"))
