"""GGUF, the file format of llama.cpp: what a file states, and its tensors in float32.

A file holds metadata, a table of tensors, and their bytes, most of them in blocks of
few bits. The package `gguf` knows the kinds of blocks; its reader is not used here: it
makes two NumPy arrays of every token, which takes 9 seconds and 0.7 GB for Gemma 3's
vocabulary. Little-endian files of versions 2 and 3 are read. Runs on the host.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import importlib.util
import math
import os
import pathlib
import struct
import types
from typing import Any, BinaryIO, NamedTuple

import numpy as np

PATTERN = "*.gguf"

_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
# As `struct` names them; NumPy has the same letters.
_SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_U32, _U64 = "I", "Q"
# Elements to convert at a time: a tensor's bytes are never in memory as a whole.
_CHUNK = 2**20


class Tensor(NamedTuple):
    """The place of a tensor in its file.

    Attributes:
      name: Its name in the file.
      kind: The number of its kind of blocks, a `gguf.GGMLQuantizationType`.
      shape: As PyTorch has it: the file lists the sizes backwards.
      start: The first of its bytes in the file.
      row: The bytes of a row, along its last axis.
    """

    name: str
    kind: int
    shape: tuple[int, ...]
    start: int
    row: int


class Header(NamedTuple):
    """What a file states.

    Attributes:
      metadata: Values by key. A list of numbers is a NumPy array.
      tensors: By name.
    """

    metadata: dict[str, Any]
    tensors: dict[str, Tensor]


def find(folder: pathlib.Path) -> pathlib.Path | None:
    """Find the GGUF file of a model folder, if it has one.

    Raises:
      ValueError: if it has several.
    """
    files = sorted(folder.glob(PATTERN))
    if len(files) > 1:
        raise ValueError(
            f"'{folder}' holds several models: {[x.name for x in files]}, expected one "
            "GGUF file. Give each a folder of its own; parts of a split file have to "
            "be merged by llama.cpp's gguf-split."
        )
    return files[0] if files else None


def read_header(file: pathlib.Path) -> Header:
    """Read all that a file states, without its tensors.

    Raises:
      ModuleNotFoundError: if the package `gguf` is not installed.
      ValueError: if it is no whole GGUF file, or of another version.
    """
    with file.open("rb") as opened:
        return _Parser(file, opened).header()


def read(file: pathlib.Path, tensor: Tensor) -> np.ndarray:
    """Read one tensor, dequantised to float32.

    Args:
      file: The file.
      tensor: From its header.

    Raises:
      ValueError: if its kind of blocks cannot be read.
    """
    library = _library()
    kind = library.GGMLQuantizationType(tensor.kind)
    rows, columns = math.prod(tensor.shape[:-1]), tensor.shape[-1]
    result = np.empty((rows, columns), np.float32)
    step = max(1, _CHUNK // columns)
    with file.open("rb") as opened:
        opened.seek(tensor.start)
        for first in range(0, rows, step):
            part = result[first : first + step]
            raw = np.fromfile(opened, np.uint8, len(part) * tensor.row)
            try:
                part[:] = library.dequantize(raw.reshape(len(part), tensor.row), kind)
            except (NotImplementedError, ValueError) as error:
                raise ValueError(
                    f"'{file}': the tensor '{tensor.name}' of {kind.name} cannot be "
                    f"read ({error}). Take a file in another quantisation."
                ) from error
    return result.reshape(tensor.shape)


class _Parser:
    """A file, read from front to back."""

    def __init__(self, file: pathlib.Path, opened: BinaryIO) -> None:
        self.file, self.opened = file, opened
        self.size = os.fstat(opened.fileno()).st_size
        self.at = 0

    def header(self) -> Header:
        if self.take(4) != b"GGUF":
            raise self.damaged("it does not begin with 'GGUF'")
        if (version := self.number(_U32)) not in _VERSIONS:
            raise ValueError(
                f"'{self.file}' is of GGUF's version {version}, expected one of "
                f"{_VERSIONS}. Convert the model again with a newer llama.cpp."
            )
        tensors, values = self.number(_U64), self.number(_U64)
        metadata = {self.string(): self.value(self.number(_U32)) for _ in range(values)}
        table = [self.tensor() for _ in range(tensors)]
        alignment = int(metadata.get("general.alignment", 32))
        if alignment < 1:
            raise self.damaged(f"general.alignment is {alignment}")
        data = -(-self.at // alignment) * alignment
        placed = {x.name: x._replace(start=data + x.start) for x in table}
        for x in placed.values():
            if x.start + math.prod(x.shape[:-1]) * x.row > self.size:
                raise self.damaged(f"'{x.name}' is beyond its end")
        return Header(metadata, placed)

    def tensor(self) -> Tensor:
        name = self.string()
        sizes = [self.number(_U64) for _ in range(self.number(_U32))]
        kind, start = self.number(_U32), self.number(_U64)
        library = _library()
        try:
            block, width = library.GGML_QUANT_SIZES[library.GGMLQuantizationType(kind)]
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"'{self.file}': the tensor '{name}' is of the kind {kind}, which the "
                "installed package gguf does not know. Install a newer one."
            ) from error
        if not sizes or 0 in sizes or sizes[0] % block:
            raise self.damaged(f"'{name}' of {sizes} is not in blocks of {block}")
        return Tensor(name, kind, tuple(sizes[::-1]), start, sizes[0] // block * width)

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            kind, count = self.number(_U32), self.number(_U64)
            if kind == _STRING:
                return [self.string() for _ in range(count)]
            dtype = np.dtype(f"<{self.letter(kind)}")
            return np.frombuffer(self.take(count * dtype.itemsize), dtype)
        return self.number(self.letter(kind))

    def letter(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise self.damaged(f"a value is of the unknown type {kind}")
        return _SCALARS[kind]

    def string(self) -> str:
        data = self.take(self.number(_U64))
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise self.damaged(str(error)) from error

    def number(self, letter: str) -> Any:
        form = f"<{letter}"
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def take(self, count: int) -> bytes:
        # Before reading: a wrong length would ask for terabytes.
        if count > self.size - self.at:
            raise self.damaged(f"{count} bytes are missing after byte {self.at}")
        self.at += count
        return self.opened.read(count)

    def damaged(self, reason: str) -> ValueError:
        return ValueError(
            f"'{self.file}' is not a whole GGUF file: {reason}. Download it again."
        )


def _library() -> types.ModuleType:
    if importlib.util.find_spec("gguf") is None:
        raise ModuleNotFoundError(
            "A GGUF file needs the package gguf, which is not installed. Run: pip "
            "install gguf"
        )
    # Only here: other models do not need it.
    import gguf

    return gguf
