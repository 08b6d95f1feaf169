"""Test that a save never moves a directory aside if the system can exchange two."""

import ctypes
import os
import pathlib
import sys

import numpy as np
import pytest

import para_jax

AT_FDCWD, RENAME_EXCHANGE, RENAME_SWAP = -100, 2, 2


def can_exchange(folder):
    """Ask the C library whether this system and file system can exchange."""
    folders = [folder / name for name in ("probe-1", "probe-2")]
    for x in folders:
        x.mkdir()
    one, two = map(os.fsencode, folders)
    libc = ctypes.CDLL(None)
    if sys.platform == "linux" and hasattr(libc, "renameat2"):
        done = libc.renameat2(AT_FDCWD, one, AT_FDCWD, two, RENAME_EXCHANGE) == 0
    elif sys.platform == "darwin":
        done = libc.renamex_np(one, two, RENAME_SWAP) == 0
    else:
        done = False
    for x in folders:
        x.rmdir()
    return done


@pytest.fixture
def renames(monkeypatch):
    """Return a list that grows by the new name of each path Python renames."""
    done = []
    for name in ("rename", "replace"):
        real = getattr(os, name)

        def recorded(one, two, *rest, real=real, **more):
            done.append(pathlib.Path(two).name)
            return real(one, two, *rest, **more)

        monkeypatch.setattr(os, name, recorded)
    return done


def adapters(rank):
    rng = np.random.default_rng(rank)
    a, b = rng.normal(size=(7, rank)), rng.normal(size=(rank, 5))
    return {"q": para_jax.Adapter(a.astype(np.float32), b.astype(np.float32))}


@pytest.mark.user_defaults
def test_a_save_over_an_older_one_moves_it_aside_at_no_moment(tmp_path, renames):
    """Between two renames, a reader would not find the adapter."""
    if not can_exchange(tmp_path):
        pytest.skip("this system or file system has no exchange")
    target = tmp_path / "adapter"
    para_jax.save(adapters(2), target)
    renames.clear()

    para_jax.save(adapters(3), target, overwrite=True)

    assert [x for x in renames if x.endswith(".para-old")] == []
    assert para_jax.load(target).adapters["q"].rank == 3
    assert [x.name for x in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.user_defaults
def test_a_recorder_of_renames_sees_those_of_a_first_save(tmp_path, renames):
    para_jax.save(adapters(2), tmp_path / "adapter")

    assert "adapter" in renames
