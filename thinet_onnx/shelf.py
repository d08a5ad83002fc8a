"""Arrays put aside until they are needed again: in memory up to a limit, in files of a temporary folder past it.

Files are read and written, not mapped: a mapped file counts as this process's memory for as long as it is looked at.
"""

import contextlib
import ctypes
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from thinet_onnx import external

Array = np.ndarray[Any, Any]


def trim() -> None:
    """Give memory that was freed back to the system, where the C library can: what it keeps in pieces adds up."""
    if _TRIM is not None:
        _TRIM(0)


def _find_trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # another C library than glibc
        return None


_TRIM = _find_trim()


class Kept:
    """One array on a shelf."""

    def __init__(self, shelf: "Shelf", value: Array) -> None:
        self._shelf, self._value, self._file = shelf, value, Path()
        self.shape, self.dtype, self._bytes = value.shape, value.dtype, value.nbytes
        self._put(value)

    @property
    def ndim(self) -> int:
        """Axes of the array."""
        return len(self.shape)

    def get(self) -> Array:
        """The array; the one that was put there while it is in memory, else a copy."""
        if self._file.name:
            return np.fromfile(self._file, self.dtype).reshape(self.shape)
        return self._value

    def drop(self) -> None:
        """Let go of it."""
        if self._file.name:
            with contextlib.suppress(OSError):
                self._file.unlink()
        else:
            self._shelf.used -= self._bytes
        self._value, self._file = np.empty(0), Path()

    def _put(self, value: Array) -> None:
        if self._shelf.has_room(value):
            self._shelf.used += self._bytes
            self._value = value if value.flags.owndata else value.copy()
        else:
            self._file = self._shelf.new_file()
            external.put_aside(value, self._file)
            self._value = np.empty(0)


class Shelf:
    """A place for arrays.

    Args:
        memory: bytes that may stay in memory.
    """

    def __init__(self, memory: float) -> None:
        self._memory, self._number, self.used = memory, 0, 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def put(self, value: Array) -> Kept:
        """Put an array aside; it must not be changed from here on.

        One that looks into somebody else's memory is copied: an answer of ONNX Runtime would hold on to all that its session
        has ever allocated.

        Raises OutputError where it should go to a file and the disk is full.
        """
        return Kept(self, value)

    def has_room(self, value: Array) -> bool:
        """Whether this array may stay in memory. Only plain numbers go to files."""
        return self.used + value.nbytes <= self._memory or not value.nbytes or value.dtype.hasobject

    def new_file(self) -> Path:
        """A name for one more file."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="thinet-")
        self._number += 1
        return Path(self._folder.name) / str(self._number)

    def close(self) -> None:
        """Remove the files; what is still on the shelf is lost."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None
