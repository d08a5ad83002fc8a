"""One run divided among processes: what they have to agree on, and how that looks for a process on its own.

All processes go through the same steps in the same order. Each observes its share of the batches; sums are added up
(`add_up`), the rest is gathered, or settled by the first process and told to all (`once`). `joined` has the real thing.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")
S = TypeVar("S")


class Ranks:
    """This process among `count`, of which it is number `rank`: here the only one, with nobody to wait for.

    `bytes` are those that this process gave away or was given so far, each sum counted once.
    """

    rank = 0
    count = 1
    bytes = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files, prints and measures."""
        return self.rank == 0

    @property
    def speaks(self) -> bool:
        """Whether an error is this process's to tell."""
        return self.first

    def share(self, items: Sequence[S]) -> Sequence[S]:
        """This process's part: neighbours, so that the parts in order of the processes are the whole in order."""
        start, stop = (len(items) * rank // self.count for rank in (self.rank, self.rank + 1))
        return items[start:stop]

    def add_up(self, *arrays: "NDArray[np.float64]") -> None:
        """Sum arrays over all processes, in place; all end with the same bits. They are contiguous."""

    def gather(self, value: T) -> list[T]:
        """What each process has, in their order; the same list for all."""
        return [value]

    def gather_first(self, values: list[T]) -> list[T]:
        """The lists of all processes put together for the first one; empty for the others."""
        return values

    def once(self, make: Callable[[], T]) -> T:
        """What the first process makes, for all of them; the others don't call `make`."""
        return make()

    def map(self, function: Callable[[S], T], items: Sequence[S]) -> list[T]:
        """The function of every item: each process takes its turn, all get all results, in order."""
        parts = self.gather([function(item) for item in items[self.rank :: self.count]])
        return [parts[place % self.count][place // self.count] for place in range(len(items))]

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """End together: an error in one process is raised in all, the one of the lowest rank if there are several."""
        yield

    @contextmanager
    def apart(self) -> Iterator[None]:
        """For work whose processes talk to each other in a way of their own: an error there isn't agreed upon."""
        yield

    def close(self) -> None:
        """Leave, as soon as all have come here."""


ALONE = Ranks()
