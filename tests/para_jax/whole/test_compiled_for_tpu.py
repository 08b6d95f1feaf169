"""Compile cuts for TPUs, where libtpu is installed: `pip install para-jax[tpu]`.

Each in a process of its own, since a compiler in C++ minds no other time limit. That
they give the right numbers is tested on the CPU, in `tests/para_jax/linalg`.
"""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests import compiled_for_tpu

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="not installed: libtpu"
)
ROOT = pathlib.Path(__file__).parents[3]


def compiled(*arguments, limit=600):
    path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, compiled_for_tpu.__file__, *map(str, arguments)],
        env={**os.environ, **compiled_for_tpu.ENVIRONMENT, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=limit,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_small_cut_is_compiled_for_one_chip():
    compiled("v5e:2x2", "tiny", "stacked", 3, "chip")


@pytest.mark.parametrize(
    ("model", "layers"),
    [("siglip2", 2), pytest.param("gemma3-4b", 34, marks=pytest.mark.slow)],
)
def test_on_a_mesh_nothing_larger_than_the_gram_matrices_of_a_stack_moves(
    model, layers
):
    found = compiled("v5e:2x2", model, "stacked", layers, "mesh")

    assert 0 < found["largest"] <= layers * 16 * 16 * 4


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:2x2", "v5p:2x2x1"])
def test_a_model_is_compiled_in_the_memory_of_its_adapter(topology):
    found = compiled(topology, "gemma3-4b", "stacked", 34, "chip")

    assert found["temporary"] <= 1


@pytest.mark.slow
def test_modules_with_names_of_their_own_are_compiled_too():
    """They are joined, so they need room for a copy of all factors, old and new."""
    found = compiled("v5e:2x2", "gemma3-4b", "named", 34, "chip")

    assert found["temporary"] <= 2.5
