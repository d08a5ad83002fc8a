"""Processes that torchrun started, joined by torch.distributed (gloo: the sums are NumPy's and lie in the machine's memory).

Before every exchange each process says whether it failed and how much it is about to send. So an error in one of them
reaches all others wherever they are, and processes that lost step stop instead of waiting for each other.
"""

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from thinet_onnx import errors
from thinet_onnx.errors import OptionError, ProcessError, ThinetError
from thinet_onnx.ranks import ALONE, Ranks

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")

_PATIENCE = timedelta(days=1)  # the first process may measure for long; one that died is noticed at once
_SMALL = 1 << 17  # numbers up to which arrays travel in one message
_GATHER, _FIRST, _ONCE, _END = -1, -2, -3, -4  # kinds of exchange, where a sum says its size


def join(environment: Mapping[str, str] = os.environ) -> Ranks:
    """The processes that torchrun started, or this one alone where it didn't.

    Raises:
        OptionError: the environment names other processes, but PyTorch or their address is missing.
    """
    count = int(environment.get("WORLD_SIZE", "1"))
    if count == 1:
        return ALONE
    if importlib.util.find_spec("torch") is None:
        raise OptionError(
            f"WORLD_SIZE is {count}, but several processes need PyTorch, which is not installed: "
            "pip install torch, or unset WORLD_SIZE."
        )
    if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in environment]:
        raise OptionError(
            f"WORLD_SIZE is {count}, but {' and '.join(missing)} is not set: start the processes with torchrun, "
            "or unset WORLD_SIZE."
        )
    return Joined(int(environment["RANK"]), count)


@contextmanager
def joined(ranks: Ranks) -> Iterator[Ranks]:
    """A run of several processes: they end together, and leave each other."""
    try:
        with ranks.agreeing():
            yield ranks
    finally:
        ranks.close()


class Joined(Ranks):
    """This process among those that torchrun started."""

    def __init__(self, rank: int, count: int) -> None:
        import torch  # noqa: PLC0415
        from torch import distributed  # noqa: PLC0415

        self.rank, self.count, self.bytes = rank, count, 0
        self._torch, self._distributed = torch, distributed
        self._over = self._lost = False
        self._opened = not distributed.is_initialized()
        if self._opened:
            both = torch.cuda.is_available() and distributed.is_nccl_available()
            distributed.init_process_group("cpu:gloo,cuda:nccl" if both else "gloo", timeout=_PATIENCE)
        self._group = distributed.new_group(backend="gloo", timeout=_PATIENCE)

    @property
    def speaks(self) -> bool:
        """The first process tells, or one that can't reach the others."""
        return self.first or self._lost

    def add_up(self, *arrays: "NDArray[np.float64]") -> None:
        """See `Ranks`; small arrays go in one message."""
        import numpy as np  # noqa: PLC0415

        small = [array for array in arrays if array.size <= _SMALL]
        joined = np.concatenate([array.ravel() for array in small]) if small else np.empty(0)
        self._meet(sum(array.size for array in arrays))
        for array in (joined, *(array for array in arrays if array.size > _SMALL)):
            if array.size:
                with self._talking():
                    self._distributed.all_reduce(self._torch.from_numpy(array), group=self._group)
        place = 0
        for array in small:
            array[...] = joined[place : place + array.size].reshape(array.shape)
            place += array.size
        self.bytes += sum(array.nbytes for array in arrays)

    def gather(self, value: T) -> list[T]:
        """See `Ranks`."""
        self._meet(_GATHER)
        return self._everyone(value)

    def gather_first(self, values: list[T]) -> list[T]:
        """See `Ranks`."""
        self._meet(_FIRST)
        found: list[Any] | None = [None] * self.count if self.first else None
        with self._talking():
            self._distributed.gather_object(values, found, dst=0, group=self._group)
        return [value for part in found or [] for value in part]

    def once(self, make: Callable[[], T]) -> T:
        """See `Ranks`."""
        told: list[Any] = [make() if self.first else None]
        self._meet(_ONCE)
        with self._talking():
            self._distributed.broadcast_object_list(told, src=0, group=self._group)
        result: T = told[0]
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
            self._over = self._lost = True
            raise

    @contextmanager
    def apart(self) -> Iterator[None]:
        """See `Ranks`: the process that failed tells, and leaves; that ends the others."""
        try:
            with self._talking(("gloo", "NCCL")):
                yield
        except BaseException:
            self._over = self._lost = True
            raise

    def close(self) -> None:
        """See `Ranks`."""
        if not self._lost:
            with suppress(RuntimeError):
                self._distributed.barrier(group=self._group)
        if self._opened:
            self._distributed.destroy_process_group()

    def _meet(self, kind: int, failed: Exception | None = None) -> None:
        """Ask all processes whether one has failed, and whether they are about to do the same.

        Raises:
            Exception: what the lowest of those that failed met with, `failed` itself if that is this one.
        """
        said = self._torch.tensor([failed is not None, kind, -kind], dtype=self._torch.int64)
        with self._talking():
            self._distributed.all_reduce(said, self._distributed.ReduceOp.MAX, group=self._group)
        one_failed, most, least = said.tolist()
        if one_failed:
            told = self._everyone(None if failed is None else (type(failed).__name__, str(failed)))
            self._over = True
            where, error = next((rank, error) for rank, error in enumerate(told) if error is not None)
            raise failed if failed is not None and where == self.rank else _error(where, self.count, *error)
        if most != -least:
            self._over = True
            raise RuntimeError(f"The processes lost step ({most}, {-least}). This is a defect; please report it.")

    def _everyone(self, value: T) -> list[T]:
        found: list[Any] = [None] * self.count
        with self._talking():
            self._distributed.all_gather_object(found, value, group=self._group)
        return found

    @contextmanager
    def _talking(self, words: Sequence[str] = ("",)) -> Iterator[None]:
        """Turn the breaking of a connection into an error for people; `words` tell it from other errors."""
        try:
            yield
        except RuntimeError as error:
            if not any(word in str(error) for word in words):
                raise
            self._over = self._lost = True
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
