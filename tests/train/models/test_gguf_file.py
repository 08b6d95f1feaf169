"""GGUF files, compared with llama.cpp's own package."""

import importlib.util
import tracemalloc

import gguf
import numpy as np
import pytest

from tests.train.models import tiny_gguf
from train.models import gguf_file

KINDS = gguf.GGMLQuantizationType
# The package writes these, and their greatest error in steps between two values.
WRITTEN = {
    KINDS.F32: 0,
    KINDS.F16: 2**-10,
    KINDS.BF16: 2**-7,
    KINDS.Q8_0: 2 / 127,
    KINDS.Q5_0: 2 / 15,
    KINDS.Q4_0: 2 / 7,
    KINDS.Q4_1: 2 / 15,
    KINDS.Q5_1: 2 / 31,
}
# It only reads these.
READ = (KINDS.Q2_K, KINDS.Q3_K, KINDS.Q4_K, KINDS.Q5_K, KINDS.Q6_K, KINDS.IQ4_XS)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "model.gguf"


def written(file, kind, shape=(7, 64)):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    tiny_gguf.write(file, tensors={"x": x}, kinds={"x": kind})
    return x


def raw(file, kind, rows=5):
    """Write blocks of random bytes, whose scales are finite."""
    block, width = gguf.GGML_QUANT_SIZES[kind]
    data = np.random.default_rng(0).integers(0, 60, (rows, 2 * width), np.uint8)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_tensor("x", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return data, (rows, 2 * block)


def read(file, name="x"):
    return gguf_file.read(file, gguf_file.read_header(file).tensors[name])


@pytest.mark.parametrize("kind", WRITTEN, ids=lambda x: x.name)
def test_a_tensor_is_near_what_was_written(file, kind):
    x = written(file, kind)

    got = read(file)

    assert got.dtype == np.float32
    np.testing.assert_allclose(got, x, rtol=0, atol=np.abs(x).max() * WRITTEN[kind])
    want = gguf.dequantize(gguf.quantize(x, kind), kind)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("kind", READ, ids=lambda x: x.name)
def test_blocks_are_read_as_by_the_package(file, kind):
    data, shape = raw(file, kind)

    got = read(file)

    np.testing.assert_array_equal(got, gguf.dequantize(data, kind))
    assert got.shape == shape
    assert np.unique(got).size > 10


def test_a_tensor_is_read_in_parts(file, monkeypatch):
    x = written(file, KINDS.F32)
    monkeypatch.setattr(gguf_file, "_CHUNK", 2 * 64)

    np.testing.assert_array_equal(read(file), x)


def test_vectors_and_tensors_of_three_axes_keep_their_shape(file):
    generator = np.random.default_rng(0)
    tensors = {k: generator.normal(size=k) for k in [(5,), (3, 2, 4)]}
    named = {str(k): x.astype(np.float32) for k, x in tensors.items()}
    tiny_gguf.write(file, tensors=named)

    for name, x in named.items():
        np.testing.assert_array_equal(read(file, name), x)


@pytest.mark.parametrize("alignment", [32, 64])
def test_what_a_file_states_is_what_the_package_reads(file, alignment):
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_custom_alignment(alignment)
    writer.add_uint8("u8", 200)
    writer.add_int8("i8", -3)
    writer.add_uint16("u16", 60_000)
    writer.add_int16("i16", -300)
    writer.add_uint32("u32", 2**31)
    writer.add_int32("i32", -5)
    writer.add_float32("f32", 0.1)
    writer.add_uint64("u64", 2**63)
    writer.add_int64("i64", -(2**40))
    writer.add_float64("f64", 0.1)
    writer.add_bool("yes", True)
    writer.add_string("text", "բարև ▁")
    writer.add_array("words", ["a", "", "▁b"])
    writer.add_array("numbers", [1, -2, 3])
    writer.add_array("fractions", [0.5, -1.25])
    for name, size in (("x", 3), ("y", 5)):
        writer.add_tensor(name, np.full((2, size), size, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    got = gguf_file.read_header(file)

    want = gguf.GGUFReader(file)
    values = {k: x.contents() for k, x in want.fields.items() if "GGUF." not in k}
    assert {
        k: getattr(x, "tolist", lambda x=x: x)() for k, x in got.metadata.items()
    } == values
    assert len(values) == 17
    assert [(x.name, x.shape, x.start) for x in got.tensors.values()] == [
        (x.name, tuple(x.shape[::-1].tolist()), x.data_offset) for x in want.tensors
    ]


def test_any_file_cut_short_is_named(file):
    written(file, KINDS.Q8_0, (3, 32))
    whole = file.read_bytes()

    # Three rows of 34 bytes; then it is filled up to a multiple of 32.
    end = len(whole) - -3 * 34 % 32

    for size in [0, 3, 5, *range(8, end, 11), end - 1]:
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"model.gguf' is not a whole GGUF file"):
            gguf_file.read_header(file)


@pytest.mark.parametrize(
    ("start", "data", "message"),
    [
        (0, b"GGML", "does not begin with 'GGUF'"),
        (4, b"\x01\0\0\0", "GGUF's version 1, expected one of"),
        (4, b"\0\0\0\x03", "GGUF's version 50331648, expected"),  # Big-endian.
        (8, b"\xff" * 8, "is not a whole GGUF file: "),
        (24, b"\xff" * 8, "bytes are missing after byte 32"),
    ],
)
def test_a_file_of_another_form_is_refused(file, start, data, message):
    written(file, KINDS.F32)
    whole = file.read_bytes()
    file.write_bytes(whole[:start] + data + whole[start + len(data) :])

    with pytest.raises(ValueError, match=message):
        gguf_file.read_header(file)


def test_unknown_blocks_are_refused_before_anything_is_read(file):
    written(file, KINDS.F32)
    whole = file.read_bytes()
    # The table's only entry: its name, two sizes, and the kind.
    table = whole.index(b"\x01" + bytes(7) + b"x" + b"\x02\0\0\0")
    kind = table + 8 + 1 + 4 + 16
    file.write_bytes(whole[:kind] + b"\xee\0\0\0" + whole[kind + 4 :])

    with pytest.raises(
        ValueError, match=r"'x' is of the kind 238, which the installed"
    ):
        gguf_file.read_header(file)


def test_blocks_that_the_package_cannot_dequantise_are_named(file):
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_tensor("x", np.zeros((2, 3), np.int32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    with pytest.raises(ValueError, match=r"'x' of I32 cannot be read"):
        read(file)


def test_two_files_in_a_folder_are_refused(tmp_path):
    assert gguf_file.find(tmp_path) is None
    (tmp_path / "b.gguf").touch()
    assert gguf_file.find(tmp_path) == tmp_path / "b.gguf"
    (tmp_path / "a.gguf").touch()

    with pytest.raises(ValueError, match=r"several models: \['a.gguf', 'b.gguf'\]"):
        gguf_file.find(tmp_path)


def test_without_the_package_the_error_names_it(file, monkeypatch):
    written(file, KINDS.F32)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(ModuleNotFoundError, match="pip install gguf"):
        gguf_file.read_header(file)


def test_memory_is_that_of_the_tensor(file):
    written(file, KINDS.Q8_0, (2**11, 2**10))
    tensor = gguf_file.read_header(file).tensors["x"]
    gguf_file._library()  # Imports, on first use.

    tracemalloc.start()
    try:
        size = gguf_file.read(file, tensor).nbytes
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    # Two copies of a part, and its bytes: the package joins pieces of it.
    assert size <= peak < size + 3.5 * 4 * gguf_file._CHUNK
