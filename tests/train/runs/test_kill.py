"""A run killed again and again by SIGKILL ends with the same numbers."""

import itertools
import json
import pathlib
import subprocess
import sys
import time

import pytest

from train.models import pretrained
from train.runs import folder

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[3]
WORDS = ("run", "tiny", "--steps", "400", "--checkpoint-every", "30", "--seeds", "0")
WORDS += ("3", "--method.rank", "3")


@pytest.fixture
def start(backbone, monkeypatch):
    """Return a function to start a run in a folder."""
    place, sha256 = backbone
    monkeypatch.setenv(pretrained.FOLDER_VARIABLE, str(place))

    def run(out):
        words = [*WORDS, "--backbone", sha256, "--out", str(out)]
        command = [sys.executable, "-m", "train", *words]
        quiet = subprocess.DEVNULL
        return subprocess.Popen(command, cwd=ROOT, stdout=quiet, stderr=quiet)

    return run


def numbers(place):
    lines = [json.loads(x) for x in (place / folder.METRICS).read_text().splitlines()]
    for line in lines:
        del line["examples_per_second"]
    adapters = sorted(place.glob("parent/*/adapter_model.safetensors"))
    results = (place / folder.RESULTS).read_bytes()
    return lines, [x.read_bytes() for x in adapters], results


def steps(place):
    path = place / folder.METRICS
    return path.read_bytes().count(b"\n") if path.exists() else 0


def checkpoints(place):
    return {x.name for x in (place / folder.CHECKPOINTS).glob("[0-9]*[0-9]")}


def killed(process, ready):
    """Kill a process as soon as `ready()`, and return whether it was."""
    try:
        for _ in itertools.count():
            if process.poll() is not None:
                return False
            if ready():
                process.kill()
                return True
            time.sleep(0.001)
    finally:
        process.kill()
        process.wait()


def test_a_run_that_is_killed_goes_on_to_the_same_numbers(start, tmp_path):
    whole, place = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait() == 0

    moments = {
        "at its start": lambda: (place / folder.CONFIG).exists(),
        "after some steps": lambda: steps(place) >= 40,
        "in a checkpoint": lambda: any(place.glob("checkpoints/*tmp*")),
        "later": lambda: steps(place) >= 230,
        "while it saves": lambda: (place / folder.PARENT).exists(),
    }
    for moment, ready in moments.items():
        assert killed(start(place), ready), moment
        assert not (place / folder.RESULTS).exists(), moment
    assert start(place).wait() == 0

    assert numbers(place) == numbers(whole)
    assert [x["step"] for x in numbers(place)[0]] == list(range(1, 401))
    assert checkpoints(place) == checkpoints(whole) == {"390", "400"}
    assert {x.name for x in place.glob("[!.]*")} == {x.name for x in whole.iterdir()}
