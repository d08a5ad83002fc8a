"""The arrays of .npy and .npz files: what a file claims is held against what is there, before any of it is unpacked."""

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from thinet_onnx import images
from thinet_onnx.errors import DataError
from thinet_onnx.images import Array, InputSpec, first_line

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_HARMLESS = 256 << 20  # bytes; so much may come out of a file however small it is
_DENSEST = 200  # bytes out of one: no picture is that regular, and zip gets to about 1,000


def read(path: str, inputs: Sequence[InputSpec]) -> dict[str, Array]:
    """Load the arrays of a .npy or .npz file for `inputs`; never a pickle.

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
                _check_claim(file, size)
                file.seek(0)
                return {spec.name: npy.read_array(file, allow_pickle=False)}
            file.seek(0)
            with np.load(file, allow_pickle=False) as loaded:
                images.match_keys(loaded.files, inputs, path)
                _check_unpacked(loaded.zip, size)
                arrays = {}
                for key in loaded.files:
                    where = f"{path}: array {key!r}"
                    member = loaded.zip.getinfo(key if key in loaded.zip.namelist() else f"{key}.npy")
                    with loaded.zip.open(member) as packed:
                        _check_claim(packed, member.file_size)
                    arrays[key] = loaded[key]
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


def _check_claim(file: IO[bytes], size: int) -> None:
    """Refuse an array of objects, and one whose header claims more than there is (`size`, bytes with the header)."""
    version = npy.read_magic(file)
    if version not in _HEADERS:
        raise ValueError("no array of plain numbers")
    shape, _, dtype = _HEADERS[version](file)
    if dtype.hasobject:
        raise ValueError("Python objects, which are never loaded")
    wanted, there = math.prod(shape) * dtype.itemsize, size - file.tell()
    if min(shape, default=0) < 0 or wanted > there:
        raise ValueError(f"an array of shape {shape} takes {wanted:,} bytes, but there are {there:,}")
