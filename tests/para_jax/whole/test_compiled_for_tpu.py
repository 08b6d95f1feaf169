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


def test_on_a_mesh_nothing_larger_than_a_gram_matrix_moves():
    found = compiled("v5e:2x2", "siglip2", "stacked", 2, "mesh")

    # Two stacks' worth: a Gram matrix of a layer each.
    assert 0 < found["largest"] <= 2 * 16 * 16 * 4


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:2x2", "v5p:2x2x1"])
def test_a_model_is_compiled_in_the_memory_of_its_adapter(topology):
    found = compiled(topology, "gemma3-4b", "stacked", 34, "chip")

    assert found["temporary"] <= 1
