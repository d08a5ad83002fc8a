"""How processes of one run agree, whatever connects them.

Before every exchange each process says whether it failed and how much it is about to send. So an error in one of them
reaches all others wherever they are, and processes that lost step stop instead of waiting for each other.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from thinet_onnx import errors
from thinet_onnx.errors import ProcessError, ThinetError
from thinet_onnx.ranks import Ranks

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")

_SMALL = 1 << 17  # numbers up to which arrays travel in one message
_GATHER, _FIRST, _ONCE, _END = -1, -2, -3, -4  # kinds of exchange, where a sum says its size


class Together(Ranks):
    """This process among several; what connects them is a subclass's.

    `lost` tells that the others can't be reached any more, `broken` which errors say so.
    """

    broken: ClassVar[tuple[type[Exception], ...]]

    def __init__(self, rank: int, count: int) -> None:
        self.rank, self.count, self.bytes = rank, count, 0
        self._over = self.lost = False

    @abstractmethod
    def add(self, array: "NDArray[np.float64]") -> None:
        """Sum an array over all processes, in place."""

    @abstractmethod
    def everyone(self, value: Any) -> list[Any]:
        """What each process has, for all of them."""

    @abstractmethod
    def largest(self, numbers: list[int]) -> list[int]:
        """The largest of each number, over all processes."""

    @abstractmethod
    def to_first(self, value: Any) -> list[Any]:
        """What each process has, for the first one; nothing for the others."""

    @abstractmethod
    def from_first(self, value: Any) -> Any:
        """What the first process has, for all of them."""

    @property
    def speaks(self) -> bool:
        """The first process tells, or one that can't reach the others."""
        return self.first or self.lost

    def add_up(self, *arrays: "NDArray[np.float64]") -> None:
        """See `Ranks`; small arrays go in one message."""
        import numpy as np  # noqa: PLC0415

        small = [array for array in arrays if array.size <= _SMALL]
        joined = np.concatenate([array.ravel() for array in small]) if small else np.empty(0)
        self._meet(sum(array.size for array in arrays))
        for array in (joined, *(array for array in arrays if array.size > _SMALL)):
            if array.size:
                with self._talking():
                    self.add(array)
        place = 0
        for array in small:
            array[...] = joined[place : place + array.size].reshape(array.shape)
            place += array.size
        self.bytes += sum(array.nbytes for array in arrays)

    def gather(self, value: T) -> list[T]:
        """See `Ranks`."""
        self._meet(_GATHER)
        with self._talking():
            return self.everyone(value)

    def gather_first(self, values: list[T]) -> list[T]:
        """See `Ranks`."""
        self._meet(_FIRST)
        with self._talking():
            found = self.to_first(values)
        return [value for part in found for value in part]

    def once(self, make: Callable[[], T]) -> T:
        """See `Ranks`."""
        told = make() if self.first else None
        self._meet(_ONCE)
        with self._talking():
            result: T = self.from_first(told)
        return result

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """See `Ranks`."""
        try:
            yield
            self._meet(_END)
        except Exception as error:
            if not self._over:
                self._meet(_END, error)
            raise
        except BaseException:  # interrupted: nothing more is said
            self._over = self.lost = True
            raise

    @contextmanager
    def apart(self) -> Iterator[None]:
        """See `Ranks`: the process that failed tells, and leaves; that ends the others."""
        try:
            with self._talking(("gloo", "NCCL")):
                yield
        except BaseException:
            self._over = self.lost = True
            raise

    def _meet(self, kind: int, failed: Exception | None = None) -> None:
        """Ask all processes whether one has failed, and whether they are about to do the same.

        Raises:
            Exception: what the lowest of those that failed met with, `failed` itself if that is this one.
        """
        with self._talking():
            one_failed, most, least = self.largest([failed is not None, kind, -kind])
        if one_failed:
            with self._talking():
                told = self.everyone(None if failed is None else (type(failed).__name__, str(failed)))
            self._over = True
            where, error = next((rank, error) for rank, error in enumerate(told) if error is not None)
            raise failed if failed is not None and where == self.rank else _error(where, self.count, *error)
        if most != -least:
            self._over = True
            raise RuntimeError(f"The processes lost step ({most}, {-least}). This is a defect; please report it.")

    @contextmanager
    def _talking(self, words: Sequence[str] = ("",)) -> Iterator[None]:
        """Turn the breaking of a connection into an error for people; `words` tell it from other errors."""
        try:
            yield
        except self.broken as error:
            if not any(word in str(error) for word in words):
                raise
            self._over = self.lost = True
            raise ProcessError(
                f"Process {self.rank} of {self.count} lost the connection to another one, which ended or was killed; "
                "what that one or torchrun printed says why."
            ) from error


def _error(rank: int, count: int, kind: str, text: str) -> ThinetError:
    """The error of another process: as it was if it is the user's to mend."""
    known = getattr(errors, kind, None)
    if isinstance(known, type) and issubclass(known, ThinetError):
        return known(text)
    return ProcessError(f"Process {rank} of {count} failed ({kind}: {text}); what it printed says where.")
