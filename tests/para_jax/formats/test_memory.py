"""Test the memory of a file's tensors, and that a file is flushed while it is read."""

import os
import threading

import numpy as np
import pytest

import para_jax as para
from para_jax.formats import flush, memory, tensor_files


def root(x):
    """Return the array that owns the memory of a view."""
    while x.base is not None:
        x = x.base
    return x


def test_factors_share_pieces_without_overlap_and_others_are_alone(monkeypatch):
    monkeypatch.setattr(memory, "_PIECE", 1000)
    sizes = [3, 100, 0, 700, 64, 5000, 65]
    own = [size in (0, 64) for size in sizes]

    found = list(memory.rooms(sizes, own))

    assert [x.nbytes for x in found] == sizes
    for i, x in enumerate(found):
        x[:] = i
    assert all((x == i).all() for i, x in enumerate(found))
    alone = [root(x).nbytes for x, y in zip(found, own, strict=True) if y]
    parts = [root(x) for x, y in zip(found, own, strict=True) if not y]
    assert alone == [0, 64]
    # 64, 128 and 704 bytes are 896 of 1,000; then one that is larger than a piece.
    assert [x.nbytes for x in parts] == [1000, 1000, 1000, 5056, 128]
    assert parts[0] is parts[1] is parts[2]
    shared = [x.ctypes.data - root(x).ctypes.data for x in found[:2]]
    assert shared == [0, 64]


def test_a_tensor_beside_the_factors_keeps_no_other_memory(tmp_path):
    tensors = {
        "layer.lora_A.weight": np.ones((4, 50), np.float32),
        "layer.lora_B.weight": np.ones((60, 4), np.float32),
        "head.weight": np.ones((7, 9), np.float32),
    }
    tensor_files.write(tmp_path / "x.safetensors", tensors, {})

    found, _ = tensor_files.read(tmp_path / "x.safetensors")

    assert root(found["head.weight"]).nbytes == 7 * 9 * 4
    assert root(found["layer.lora_A.weight"]) is root(found["layer.lora_B.weight"])
    for name, x in tensors.items():
        np.testing.assert_array_equal(found[name], x)


def test_arrays_of_one_memory_are_the_same_only_where_they_begin_alike():
    x = np.arange(6, dtype=np.float32).reshape(2, 3)

    square = x[:, :2]

    assert tensor_files.same(x.T, x.T)
    assert not tensor_files.same(square, square.T)
    assert not tensor_files.same(x[:1], x[1:])
    assert not tensor_files.same(x, x.reshape(3, 2))
    assert not tensor_files.same(x[:, :2], x[:, 1:])


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_all_is_flushed_in_a_thread_of_its_own(tmp_path, monkeypatch, kind):
    path = tmp_path / "new"
    if kind == "folder":
        (path / "inner").mkdir(parents=True)
        (path / "inner" / "a").write_text("a")
    else:
        path.write_text("a")
    wanted = {x.stat().st_ino for x in [path, *path.rglob("*")]}
    fsync, done = os.fsync, set()

    def recorded(descriptor):
        fsync(descriptor)
        done.add((os.fstat(descriptor).st_ino, threading.get_ident()))

    monkeypatch.setattr(os, "fsync", recorded)
    with flush.meanwhile(path):
        pass

    assert {number for number, _ in done} == wanted
    assert threading.get_ident() not in {thread for _, thread in done}


def test_a_failure_of_the_disk_leaves_the_old_adapter(tmp_path, monkeypatch):
    target = tmp_path / "adapter"
    one, two = (
        {"q": para.Adapter(np.full((5, 2), x), np.ones((2, 3)))} for x in (1.0, 2.0)
    )
    para.save(one, target)
    fsync, failed = os.fsync, []

    # A disk tells of a failure once: the next call may find nothing left to write.
    def failing(descriptor):
        if not failed:
            failed.append(descriptor)
            raise OSError(5, "Input/output error")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="Input/output error"):
        para.save(two, target, overwrite=True)

    assert (para.load(target).adapters["q"].a == 1).all()
    assert [x.name for x in tmp_path.iterdir()] == ["adapter"]
