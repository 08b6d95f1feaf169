"""Test what a process of the command line imports before it has read its words."""

import gc
import json
import os
import pathlib
import subprocess
import sys

import pytest

from para_jax._adapters.choices import Format
from para_jax._pruning.policies import POLICIES
from para_jax.cli import process, words
from para_jax.formats import ENGINES, FORMATS
from para_jax.layouts import LAYOUTS
from para_jax.names import MODELS

# Runs the installed command's own entry, and tells which of these it has imported.
PROGRAM = """
import sys
from para_jax.cli import main
sys.argv[0] = "para"
status = main()
heavy = {"jax", "jaxlib", "numpy", "safetensors", "orbax", "flax", "rich"}
print(status, sorted(heavy & sys.modules.keys()), file=sys.stderr)
"""
PROGRAMS = [
    (["--help"], 0),
    (["--version"], 0),
    (["compress", "--help"], 0),
    (["fleet", "--help"], 0),
    ([], 2),
    (["comprss"], 2),
    (["compress", "a", "b"], 2),
    (["compress", "a", "b", "--gama", "0.25"], 2),
    (["compress", "a", "b", "--gamma", "much"], 2),
    (["compress", "a", "b", "--gamma", "0.25", "--for", "nothing"], 2),
    (["compress", "a", "b", "--gamma", "1", "--for", "vllm", "--format", "peft"], 2),
    (["convert", "a", "b", "--head-dim", "64"], 2),
    (["sweep", "a", "b"], 2),
]


def run(program, *arguments):
    environment = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[3])}
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )


@pytest.mark.parametrize(
    ("arguments", "status"), PROGRAMS, ids=[" ".join(x) for x, _ in PROGRAMS]
)
def test_help_and_mistakes_end_without_jax(arguments, status):
    done = run(PROGRAM, *arguments)

    *said, last = done.stderr.splitlines()
    assert last == f"{status} []"
    assert len(said) == (1 if status else 0)


def test_the_names_of_the_help_are_the_keys_of_the_tables():
    assert tuple(ENGINES) == words.ENGINES
    assert tuple(LAYOUTS) == words.LAYOUTS
    assert tuple(MODELS) == words.MODELS
    assert words.BUDGETS.keys() == POLICIES.keys()
    assert set(Format.__args__) == FORMATS.keys()


def test_a_command_leaves_what_it_imported_to_no_collection():
    program = """
import gc, json, sys
from para_jax.cli import process
with process.uncollected():
    during = gc.isenabled()
    import jax
print(json.dumps([during, gc.isenabled(), gc.get_freeze_count() > 10_000]))
"""
    assert json.loads(run(program).stdout) == [False, True, True]


def test_the_collector_of_a_process_that_has_jax_is_left_alone():
    before = gc.get_freeze_count()

    with process.uncollected():
        assert gc.isenabled()

    assert gc.get_freeze_count() == before
