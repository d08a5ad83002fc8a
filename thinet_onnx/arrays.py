"""The arrays of .npy and .npz files: what a file claims is held against what is there, before any of it is unpacked."""

import math
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from thinet_onnx import images
from thinet_onnx.errors import DataError
from thinet_onnx.images import InputSpec, Rows, first_line
from thinet_onnx.stored import Stored

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_HARMLESS = 256 << 20  # bytes; so much may come out of a file however small it is
_LARGE = 16 << 20  # bytes; what is larger stays in its file
_DENSEST = 200  # bytes out of one: no picture is that regular, and zip gets to about 1,000


def read(path: str, inputs: Sequence[InputSpec]) -> dict[str, Rows]:
    """Load the arrays of a .npy or .npz file for `inputs`; never a pickle. Large ones that are not packed stay in the file.

    Raises DataError if the file can't be read, holds other arrays, or claims to hold more than it does.
    """
    if not Path(path).is_file():
        raise DataError(f"{path} is a device or a pipe: save the arrays to a file.")
    where = path
    try:
        # Opened here, because NumPy leaves a broken .npz open.
        with Path(path).open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            if file.read(2) != b"PK":
                file.seek(0)
                spec = images.only_input(inputs, path)
                whole = _in_place(path, file, 0, size)
                file.seek(0)
                return {spec.name: npy.read_array(file, allow_pickle=False) if whole is None else whole}
            file.seek(0)
            with np.load(file, allow_pickle=False) as loaded:
                images.match_keys(loaded.files, inputs, path)
                _check_unpacked(loaded.zip, size)
                arrays: dict[str, Rows] = {}
                for key in loaded.files:
                    where = f"{path}: array {key!r}"
                    member = loaded.zip.getinfo(key if key in loaded.zip.namelist() else f"{key}.npy")
                    with loaded.zip.open(member) as packed:
                        _check_claim(packed, member.file_size)
                    stored = _in_archive(path, file, member)
                    arrays[key] = loaded[key] if stored is None else stored
                return arrays
    except (DataError, MemoryError):
        raise
    except Exception as error:  # of any kind: two formats, four ways of packing, all of it as damaged as can be
        raise DataError(
            f"{where} can't be read ({first_line(error)}): save numbers with numpy.save or numpy.savez."
        ) from error


def _check_unpacked(archive: zipfile.ZipFile, size: int) -> None:
    """Refuse an archive that is much smaller than what would come out of it."""
    unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > max(_HARMLESS, _DENSEST * size):
        raise ValueError(f"{size:,} bytes that would unpack to {unpacked:,}")


def _in_place(path: str, file: IO[bytes], start: int, size: int) -> Stored | None:
    """An array of a file, its header at `start`, its end `size` bytes on, that is better left there; None for another."""
    file.seek(start)
    shape, by_columns, dtype = _check_claim(file, start + size)
    small = math.prod(shape) * dtype.itemsize < _LARGE
    if small or by_columns or len(shape) < 2 or (dtype.kind != "f" and dtype != np.uint8):
        return None
    return Stored(path, file.tell(), shape, dtype)


def _in_archive(path: str, file: IO[bytes], member: zipfile.ZipInfo) -> Stored | None:
    """The same of an archive's array that isn't packed; ValueError if its bytes aren't those that were written."""
    if member.compress_type != zipfile.ZIP_STORED or member.file_size < _LARGE:
        return None
    file.seek(member.header_offset + 26)  # two lengths, of what lies between the local header and the data
    between = int.from_bytes(file.read(2), "little") + int.from_bytes(file.read(2), "little")
    start = file.tell() + between
    found = _in_place(path, file, start, member.file_size)
    if found is not None and _sum(file, start, member.file_size) != member.CRC:
        raise ValueError("its check sum is another one")
    return found


def _sum(file: IO[bytes], start: int, size: int) -> int:
    """The check sum of a part of a file."""
    file.seek(start)
    found = 0
    while size:
        piece = file.read(min(size, 1 << 20))
        if not piece:
            raise ValueError("its end is missing")
        found, size = zlib.crc32(piece, found), size - len(piece)
    return found


def _check_claim(file: IO[bytes], size: int) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read a header: shape, whether columns come first, type; refuse objects, and more than there is up to `size`."""
    version = npy.read_magic(file)
    if version not in _HEADERS:
        raise ValueError("no array of plain numbers")
    shape, by_columns, dtype = _HEADERS[version](file)
    if dtype.hasobject:
        raise ValueError("Python objects, which are never loaded")
    wanted, there = math.prod(shape) * dtype.itemsize, size - file.tell()
    if min(shape, default=0) < 0 or wanted > there:
        raise ValueError(f"an array of shape {shape} takes {wanted:,} bytes, but there are {there:,}")
    return shape, by_columns, dtype
