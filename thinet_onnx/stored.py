"""An array that stays in its file: rows are read when they are asked for, so that data may be larger than the memory."""

import math
import os
import threading
import weakref
from pathlib import Path
from types import EllipsisType
from typing import Any

import numpy as np
import numpy.typing as npt

from thinet_onnx.errors import DataError

Array = npt.NDArray[Any]


class Stored:
    """An array (N, …), its rows one after another in a file, with as much of an array's face as columns need.

    Args:
        path: the file; it stays open.
        offset: where the first row begins, in bytes.
        shape: of the whole, N and a row's.
        dtype: of plain numbers.
    """

    def __init__(self, path: str, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype, self.ndim, self.size = shape, dtype, len(shape), math.prod(shape)
        self._path, self._offset, self._row = path, offset, math.prod(shape[1:]) * dtype.itemsize
        self._file = Path(path).open("rb")  # noqa: SIM115  for as long as rows may be asked for
        self._lock = threading.Lock()  # batches are made ahead in threads
        weakref.finalize(self, self._file.close)
        found = os.fstat(self._file.fileno())
        self._as_opened = found.st_size, found.st_mtime_ns

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | list[int] | EllipsisType) -> Array:
        """Some rows, or all for `...`; raises DataError if the file has changed since it was opened."""
        if rows is ...:
            rows = slice(None)
        places = range(len(self))[rows] if isinstance(rows, slice) else rows
        read = np.empty((len(places), math.prod(self.shape[1:])), self.dtype)
        into, whole = read.view(np.uint8), True
        with self._lock:
            for number, place in enumerate(places):
                self._file.seek(self._offset + place * self._row)
                data = self._file.read(self._row)
                into[number, : len(data)] = np.frombuffer(data, np.uint8)
                whole = whole and len(data) == self._row
            found = os.fstat(self._file.fileno())
        if not whole or (found.st_size, found.st_mtime_ns) != self._as_opened:
            raise DataError(f"{self._path} was written to while it was read: leave it alone during the run.")
        return read.reshape(len(places), *self.shape[1:])

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Array:
        return np.asarray(self[...], dtype)
