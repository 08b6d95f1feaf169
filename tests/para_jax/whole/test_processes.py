"""Test one model over two processes: compressed, saved and restored by both.

The processes run `in_two_processes.py`, with two devices each. No process can fetch a
factor, as it has only half of it.
"""

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

import para_jax

PROGRAM = pathlib.Path(__file__).with_name("in_two_processes.py")
LIMIT = 600  # Seconds. It takes about 20, and more on a busy machine.


def free_port():
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def run(folder, *short):
    """Return the output of each of the two processes."""
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    port, pipe = free_port(), subprocess.PIPE
    running = [
        subprocess.Popen(
            [sys.executable, PROGRAM, str(i), str(port), folder, *short],
            env=environment,
            stdout=pipe,
            stderr=pipe,
            text=True,
        )
        for i in range(2)
    ]
    try:
        printed = [one.communicate(timeout=LIMIT) for one in running]
    except subprocess.TimeoutExpired:
        pytest.fail(f"It hangs: no answer in {LIMIT} s.")
    finally:
        for one in running:
            one.kill()
    for one, (_, errors) in zip(running, printed, strict=True):
        assert one.returncode == 0, errors[-3000:]
    return [out for out, _ in printed]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """Return the folder, and the output of each process."""
    folder = tmp_path_factory.mktemp("two")
    return folder, run(folder)


@pytest.mark.user_defaults
def test_what_two_processes_have_saved_is_the_update_they_shared(tmp_path):
    """All ranks of one module are kept, so the product is the parent's."""
    first, second = run(tmp_path, "short")

    got = para_jax.load(tmp_path / "short").adapters["layers"]
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4, 8, 3)), rng.normal(size=(4, 3, 12))
    np.testing.assert_allclose(got.scale * got.a @ got.b, 2 * a @ b, atol=1e-4)
    assert "FileExistsError: " in first
    assert "process 0 failed: FileExistsError" in second
    assert first.endswith("returned\n")
    assert second.endswith("returned\n")
    assert [path.name for path in tmp_path.iterdir()] == ["short"]


@pytest.mark.slow
def test_two_processes_compress_save_and_restore_one_model(outcome):
    _, printed = outcome

    assert all(out.endswith("returned\n") for out in printed)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["padded", "ragged"])
def test_a_process_of_its_own_loads_what_two_have_saved(outcome, form):
    folder, _ = outcome

    got = para_jax.load(folder / form).adapters
    alone = para_jax.load(folder / f"{form}-of-numpy").adapters

    assert got.keys() == alone.keys()
    for path, x in got.items():
        want = alone[path].a @ alone[path].b
        np.testing.assert_allclose(x.a @ x.b, want, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_failure_of_one_process_is_one_of_both(outcome):
    folder, (first, second) = outcome

    assert "FileExistsError: " in first
    assert "process 0 failed: FileExistsError" in second
    assert "is divided between processes" in first
    assert "process 1 failed: ValueError" in first
    assert "\nValueError: " in second
    left = sorted(path.name for path in folder.iterdir())
    saved = ["padded", "padded-of-numpy", "ragged", "ragged-of-numpy"]
    assert left == ["leaves", *saved]
