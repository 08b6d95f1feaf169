"""Run the tests of `on_eight_devices.py` on meshes of eight devices.

A process keeps the device count it was started with, so they run in one of their own.
"""

import os
import pathlib
import subprocess
import sys

import pytest

FILE = pathlib.Path(__file__).with_name("on_eight_devices.py")


# The test of the file with the least compilation: `compress` on the mesh.
SOME = "test_a_masked_child_stays_on_the_mesh"


def run(*arguments):
    """Run tests of the file on eight devices; fail with their output."""
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
    }

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )

    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout


def test_a_child_on_a_mesh_of_eight_devices_stays_there():
    assert "1 passed" in run(f"{FILE}::{SOME}")


@pytest.mark.slow
def test_adapters_on_a_mesh_of_eight_devices_are_compressed_where_they_are():
    run(str(FILE))
