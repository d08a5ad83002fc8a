"""The calibration batches of a run, numbered through all processes, of which each holds its own."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import onnx

from thinet_onnx.batches import Batches
from thinet_onnx.errors import DataError
from thinet_onnx.ranks import Ranks

Feeds = dict[str, np.ndarray[Any, Any]]

_BLOCKS = 16


def batched(rows: Sequence[int], size: int) -> list[Sequence[int]]:
    """Rows in batches of so many, the last one of what is left."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def own_rows(ranks: Ranks, rows: Sequence[int], size: int) -> list[int]:
    """Those that are in this process's share of the batches."""
    return [row for some in ranks.share(batched(rows, size)) for row in some]


@dataclass(frozen=True)
class Numbers:
    """Where a process's batches stand: the first has the number `first` among `count` of all processes.

    Batches are summed up in blocks of neighbours, in float32 within a block and in float64 from block to block. A block is
    never divided among processes, so that 1, 2, 4, 8 or 16 of them round alike.
    """

    first: int = 0
    count: int = 1
    blocks: int = 1

    def block(self, number: int) -> int:
        """The block that a batch is in."""
        return min(((number + 1) * self.blocks - 1) // self.count, self.blocks - 1)


ONE_BLOCK = Numbers()


@dataclass(frozen=True)
class Calibration:
    """What is observed.

    `items` are those of all processes, `own` this one's batches, `numbers` says where they stand. What is drawn at random,
    and which batches are kept apart to check, goes by these numbers: so it doesn't depend on how many processes there are.
    """

    ranks: Ranks
    items: int
    numbers: Numbers
    own: Sequence[Feeds]

    @classmethod
    def open(
        cls, ranks: Ranks, make: Callable[[Sequence[int]], Feeds], rows: Sequence[int], size: int
    ) -> "Calibration":
        """This process's share of some samples.

        Args:
            ranks: the processes.
            make: feeds of some rows of the data.
            rows: which rows, in which order.
            size: samples of a batch.

        Raises:
            DataError: there are fewer batches than processes.
        """
        count = -(-len(rows) // size)
        if count < ranks.count:
            raise DataError(
                f"The calibration data makes {count} batches for {ranks.count} processes: give more samples, or start no more "
                f"than {count} processes."
            )
        blocks = min(count, max(_BLOCKS, ranks.count))
        mine = ranks.share(range(blocks))
        first, end = count * mine[0] // blocks, count * (mine[-1] + 1) // blocks
        own = Batches(make, rows[first * size : end * size], size)
        return cls(ranks, len(rows), Numbers(first, count, blocks), own)

    def some(self, items: int) -> "Calibration":
        """As many batches as hold so many items, spread evenly; these themselves where that is most of them."""
        size = -(-self.items // self.numbers.count)
        wanted = -(-items // (size * _BLOCKS)) * _BLOCKS
        if 4 * wanted > 3 * self.numbers.count:
            return self
        chosen = [self.numbers.count * place // wanted - self.numbers.first for place in range(wanted)]
        mine = [place for place in chosen if 0 <= place < len(self.own)]
        first = sum(place < 0 for place in chosen)
        return Calibration(self.ranks, wanted * size, Numbers(first, wanted, _BLOCKS), _Some(self.own, mine))


class _Some(Sequence[Feeds]):
    """Some of the batches."""

    def __init__(self, whole: Sequence[Feeds], places: list[int]) -> None:
        self._whole, self._places = whole, places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Feeds: ...
    @overload
    def __getitem__(self, index: slice) -> list[Feeds]: ...
    def __getitem__(self, index: int | slice) -> Feeds | list[Feeds]:
        if isinstance(index, slice):
            return [self._whole[place] for place in self._places[index]]
        return self._whole[self._places[index]]


def check_same(ranks: Ranks, samples: int, model: onnx.ModelProto) -> None:
    """Whether all processes have the same model and as much data.

    Raises:
        DataError: they don't: data of another length, or another file of the same name on another machine.
    """
    if ranks.count == 1:
        return
    seen = ranks.gather((samples, zlib.crc32(model.SerializeToString())))
    if len(set(seen)) > 1:
        wrong = next(rank for rank, found in enumerate(seen) if found != seen[0])
        what = f"{seen[0][0]} and {seen[wrong][0]} samples" if seen[0][0] != seen[wrong][0] else "different models"
        raise DataError(
            f"Processes 0 and {wrong} of {ranks.count} see {what}: give all of them the same files, and a function that "
            "yields the same samples every time."
        )
