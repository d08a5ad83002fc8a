"""Calibration batches, made once and put aside: in memory up to a limit, in files past it."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any, overload

import numpy as np

from thinet_onnx.shelf import Kept, Shelf

Feeds = dict[str, np.ndarray[Any, Any]]

MEMORY = 8_000_000  # bytes of inputs that are kept in memory


class Batches(Sequence[Feeds]):
    """Feeds of some samples, `size` at a time (the last may be smaller).

    Args:
        make: feeds of some rows of the data.
        rows: which rows, in which order.
        size: samples of a batch.
        memory: bytes that may stay in memory.
    """

    def __init__(
        self, make: Callable[[Sequence[int]], Feeds], rows: Sequence[int], size: int, memory: float = MEMORY
    ) -> None:
        self._make = make
        self._rows = [rows[start : start + size] for start in range(0, len(rows), size)]
        self._kept: dict[int, dict[str, Kept]] = {}
        self._shelf = Shelf(memory)
        weakref.finalize(self, self._shelf.close)

    def __len__(self) -> int:
        """How many batches there are."""
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Feeds: ...
    @overload
    def __getitem__(self, index: slice) -> list[Feeds]: ...
    def __getitem__(self, index: int | slice) -> Feeds | list[Feeds]:
        """One batch, or some."""
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        place = range(len(self))[index]
        if place not in self._kept:
            made = self._make(self._rows[place])
            self._kept[place] = {name: self._shelf.put(value) for name, value in made.items()}
            return made
        return {name: value.get() for name, value in self._kept[place].items()}
