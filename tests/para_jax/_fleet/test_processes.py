"""Test a fleet in processes: the same files as one by one, whatever dies."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import para_jax as para
from para_jax import cli
from para_jax._fleet import processes, tenants as fleet
from para_jax.linalg import threads

GAMMA = ("--gamma", "0.25")
ROOT = pathlib.Path(para.__file__).parents[1]


@pytest.fixture(autouse=True)
def in_two_processes(no_trace_of_the_settings, monkeypatch, tmp_path):
    """Run fleets in two processes, however small."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(processes, "pay", lambda tenants, jobs: True)


def settle(folder, count, *, seed=0):
    """Write adapters of four shapes, three ranks and two dtypes, in turns."""
    for i in range(count):
        rng = np.random.default_rng((seed, i))
        m, n, rank = (8, 6, 4) if i % 2 else (5, 9, 2 + i % 3)
        dtype = np.float16 if i % 3 == 2 else np.float32
        adapters = {
            f"layer/{j}": para.Adapter(
                a=rng.normal(size=(m + j, rank)).astype(dtype),
                b=rng.normal(size=(rank, n)).astype(dtype),
            )
            for j in range(2)
        }
        para.save(adapters, folder / f"t{i:02}")


def run(*words):
    return cli.main(["fleet", "in/*", "out", *GAMMA, "--jobs", "2", "--json", *words])


def files(folder):
    return {
        str(x.relative_to(folder)): x.read_bytes()
        for x in folder.rglob("*")
        if x.is_file() and x.name != "manifest.jsonl"
    }


def lines(folder):
    text = (folder / "manifest.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.user_defaults
def test_children_and_rows_are_those_of_one_by_one(capsys, tmp_path, monkeypatch):
    settle(tmp_path / "in", 7)
    broken = tmp_path / "in/t03/adapter_model.safetensors"
    broken.write_bytes(broken.read_bytes()[:100])

    assert run() == 1
    summary = json.loads(capsys.readouterr().out)

    assert (summary["written"], list(summary["failed"])) == (6, ["t03"])
    for i in (0, 1, 2, 4, 5, 6):
        words = [f"in/t{i:02}", f"one/t{i:02}", *GAMMA]
        assert cli.main(["compress", *words]) == 0
    assert files(tmp_path / "out") == files(tmp_path / "one")
    # Rows are those of threads, but for their order and times.
    monkeypatch.setattr(processes, "pay", lambda tenants, jobs: False)
    (tmp_path / "out").rename(tmp_path / "apart")
    assert run() == 1
    first, *rows = lines(tmp_path / "apart")
    wanted_first, *wanted = lines(tmp_path / "out")
    assert first == wanted_first
    key = lambda x: x["name"]  # noqa: E731
    for row, other in zip(sorted(rows, key=key), sorted(wanted, key=key), strict=True):
        assert row | {"seconds": 0} == other | {"seconds": 0}


@pytest.mark.user_defaults
def test_warnings_of_workers_are_told_once(capsys, tmp_path):
    for i in range(3):
        a, b = np.eye(6, 4, dtype=np.float32), np.eye(4, 8, dtype=np.float32)
        adapter = para.Adapter(a=a, b=b)
        embedding = {"model/embed_tokens": adapter}
        layers = {"model/embed_tokens": para.Layer(kind="embedding")}
        parent = para.Checkpoint(adapters=embedding, layers=layers)
        para.save(parent, tmp_path / f"in/t{i}")

    assert run("--format", "mlx") == 0

    notes = capsys.readouterr().err.splitlines()
    assert len(notes) == 1
    assert "is an embedding" in notes[0]


@pytest.mark.slow
@pytest.mark.user_defaults
def test_an_interrupt_begins_no_other(capsys, tmp_path, interrupted):
    settle(tmp_path / "in", 41)
    with interrupted():
        assert run() == 130

    sentence = "para: 2 of 41 tenants are done; the same command goes on.\n"
    assert capsys.readouterr().err == sentence
    assert not list(tmp_path.rglob(".*"))
    assert len(list((tmp_path / "out").iterdir())) < 30
    assert run() == 0
    assert json.loads(capsys.readouterr().out)["there"] == 3


# A file, as workers import the program's main module, and with it these changes.
DIES = """
import os, pathlib, signal, sys, threading
import para_jax
from para_jax import cli
from para_jax._fleet import manifest, processes

log, victim, at, *words = sys.argv[1:]
compress, append, calls = para_jax.compress, manifest.Manifest.append, []
processes.pay = lambda tenants, jobs: True

def logged(parent, *args, **kwargs):
    with open(log, "a") as file:
        file.write(f"{parent.source} {os.getpid()}\\n")
    if victim == "worker" and parent.source == at:
        os.kill(os.getpid(), 9)
    return compress(parent, *args, **kwargs)

def deadly(self, row):
    calls.append(row)
    if victim == "first" and len(calls) == int(at):
        os.kill(os.getpid(), 9)
    append(self, row)

para_jax.compress, manifest.Manifest.append = logged, deadly
if __name__ == "__main__":
    sys.exit(cli.main(words))
"""


def dying(tmp_path, log, victim="none", at="0"):
    """Run a fleet as a program; return the finished process and what it began."""
    script, words = tmp_path / "dies.py", ["fleet", "in/*", "out", *GAMMA, "--jobs=2"]
    script.write_text(DIES)
    done = subprocess.run(
        [sys.executable, script, log, victim, at, *words],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,  # A worker that is left alone would keep the streams open.
    )
    begun = [x.split() for x in pathlib.Path(log).read_text().splitlines()]
    return done, [x for x, _ in begun], {int(x) for _, x in begun}


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.user_defaults
def test_a_killed_run_goes_on_and_its_workers_end_with_it(tmp_path):
    settle(tmp_path / "in", 19)

    done, _, workers = dying(tmp_path, tmp_path / "log", "first", "6")

    assert done.returncode == -signal.SIGKILL
    assert len(workers) == 2
    deadline = time.monotonic() + 60
    while any(map(is_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, workers))
    there = [x["name"] for x in lines(tmp_path / "out")[1:]]
    assert len(there) == 5

    done, begun, _ = dying(tmp_path, tmp_path / "log-2")

    assert (done.returncode, done.stderr) == (0, "")
    assert not set(begun) & set(there)
    names = [x["name"] for x in lines(tmp_path / "out")[1:]]
    assert sorted(names) == sorted(x.name for x in (tmp_path / "in").iterdir())
    assert names[:5] == there
    assert not list((tmp_path / "out").rglob(".*"))
    (tmp_path / "out").rename(tmp_path / "killed")
    assert run() == 0
    assert files(tmp_path / "killed") == files(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.user_defaults
def test_a_worker_that_dies_ends_the_run_with_a_sentence(tmp_path):
    settle(tmp_path / "in", 12)

    done, _, _ = dying(tmp_path, tmp_path / "log", "worker", "t06")

    assert done.returncode == 1
    assert done.stderr.startswith("para: One of 2 worker processes died")
    there = {x["name"] for x in lines(tmp_path / "out")[1:]}
    assert "t06" not in there
    done, begun, _ = dying(tmp_path, tmp_path / "log-2")
    assert done.returncode == 0
    assert not set(begun) & there
    assert len(lines(tmp_path / "out")) == 13


def test_large_adapters_are_fewer_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(threads, "cores", lambda: 64)
    tenants = []
    for name, megabytes in (("small", 1), ("large", 512), ("huge", 5000)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(megabytes * 2**20)  # No block of it is on disk.
        tenants.append(fleet.Tenant(name, tmp_path / name, tmp_path / "out"))
    small, large, huge = tenants

    assert processes.workers([small]) == 64
    assert processes.workers([small, large]) == 8
    assert processes.workers([small, large, huge]) == fleet.JOBS


def test_a_worker_leaves_accelerators_alone_and_cores_to_others(tmp_path):
    program = """
import jax, numpy as np, para_jax
from jax._src import xla_bridge
from para_jax.linalg import threads

jax.config.update("jax_platforms", "cpu")
threads.share(10**6)
a, b = np.eye(8, 4), np.eye(4, 8)
child = para_jax.compress({"x": para_jax.Adapter(a=a, b=b)}, para_jax.Gamma(0.5))
assert child.report.kept_rank == 2
assert not xla_bridge.backends_are_initialized()
import threading
seen = set(threads.in_threads(lambda _: threading.get_ident(), range(9)))
assert len(seen) == 1
"""
    environment = {x: y for x, y in os.environ.items() if x != "JAX_PLATFORMS"}
    environment["PYTHONPATH"] = str(ROOT)
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
