"""Test a fleet on a real local Ray cluster while its workers are killed."""

import collections
import json
import os
import pathlib
import signal
import tempfile

import numpy as np
import pytest

import para_jax as para
from para_jax import cli
from para_jax._fleet import tenants as fleet

ray = pytest.importorskip("ray")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    # Ray forks to start its programs, and JAX's warning about it must not raise there.
    pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

NAMES = [f"t{i:02}" for i in range(13)]


@pytest.fixture(scope="module")
def cluster():
    """Start two workers on this machine."""
    # The path of a socket has at most 107 bytes: pytest's own folders are too deep.
    with (
        tempfile.TemporaryDirectory(prefix="ray") as room,
        pytest.MonkeyPatch.context() as patch,
    ):
        # Workers inherit the driver's environment.
        root = pathlib.Path(para.__file__).parents[1]
        patch.setenv("PYTHONPATH", str(root))
        patch.setenv("RAY_TMPDIR", room)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=80 * 2**20,
            log_to_driver=False,
            logging_level="ERROR",
        )
        try:
            yield
        finally:
            ray.shutdown()


@pytest.fixture
def parents(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(NAMES):
        rng = np.random.default_rng(seed)
        adapters = {
            f"layer/{i}": para.Adapter(
                a=rng.normal(size=(8, 4)).astype(np.float32),
                b=rng.normal(size=(4, 6)).astype(np.float32),
            )
            for i in range(3)
        }
        para.save(adapters, tmp_path / "in" / name)


def files(folder):
    return {
        str(x.relative_to(folder)): x.read_bytes()
        for x in folder.rglob("*")
        if x.is_file() and x.name != "manifest.jsonl"
    }


def deadly(log, moments):
    """Return a unit of work that notes its attempts and kills its worker.

    `moments` says when for some names: (before or after the child is there, how often).
    """

    def die(name, moment):
        when, times = moments.get(name, ("never", 0))
        if when == moment and log.read_text().split().count(name) <= times:
            os.kill(os.getpid(), signal.SIGKILL)

    def work(source, target):
        with log.open("a") as file:
            file.write(f"{source.name}\n")
        child = para.compress(para.load(source), para.Gamma(0.25))
        die(source.name, "before")
        para.save(child, target, overwrite=True)
        die(source.name, "after")
        return child.report

    return work


def test_a_killed_worker_loses_nothing_and_does_nothing_twice(
    cluster, parents, tmp_path
):
    from para_jax._fleet import ray as on_ray

    tenants = fleet.find(["in/*"], pathlib.Path("out")).tenants
    log, endless = tmp_path / "log", 99
    moments = {"t03": ("before", 1), "t07": ("after", 1), "t10": ("before", endless)}

    rows = list(on_ray.tasks(deadly(log, moments), tenants, jobs=2))

    assert sorted(x.name for x in rows) == NAMES
    failed = [x for x in rows if x.status != "done"]
    assert [x.name for x in failed] == ["t10"]
    assert "All 4 processes that tried it died" in failed[0].failure
    attempts = collections.Counter(log.read_text().split())
    assert attempts.pop("t10") == 4
    assert attempts == {name: 1 + (name in ("t03", "t07")) for name in attempts}
    whole = fleet.find(["in/*"], pathlib.Path("whole")).tenants
    done = [x for x in whole if x.name != "t10"]
    assert all(x.status == "done" for x in fleet.threads(deadly(log, {}), done, jobs=2))
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_the_command_writes_the_same_as_without_a_cluster(
    cluster, parents, no_trace_of_the_settings, tmp_path, capsys
):
    (tmp_path / "in/t05/adapter_model.safetensors").write_bytes(b"x")

    codes = [
        cli.main(["fleet", "in/*", *words, "--gamma", "0.25", "--json"])
        for words in (["there", "--ray"], ["here"], ["there", "--ray"])
    ]

    summaries = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert codes == [1, 1, 1]
    assert [list(x["failed"]) for x in summaries] == [["t05"]] * 3
    assert [x["written"] for x in summaries] == [12, 12, 0]
    assert files(tmp_path / "there") == files(tmp_path / "here")
