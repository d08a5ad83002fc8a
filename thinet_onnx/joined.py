"""Processes of one run: those that torchrun started, joined by torch.distributed (gloo: the sums are NumPy's and lie in the
machine's memory), or those that `--processes` started on this machine, joined by sockets (`linked`).

Before every exchange each process says whether it failed and how much it is about to send. So an error in one of them
reaches all others wherever they are, and processes that lost step stop instead of waiting for each other.
"""

import importlib.util
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from thinet_onnx.errors import OptionError
from thinet_onnx.interrupts import LINK
from thinet_onnx.linked import Linked
from thinet_onnx.ranks import ALONE, Ranks
from thinet_onnx.together import Together

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PATIENCE = timedelta(days=1)  # the first process may measure for long; one that died is noticed at once


def join(environment: Mapping[str, str] = os.environ) -> Ranks:
    """The processes that torchrun or `--processes` started, or this one alone where they didn't.

    Raises:
        OptionError: the environment names other processes, but PyTorch or their address is missing.
    """
    if LINK in environment:
        return Linked.of(environment)
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


class Joined(Together):
    """This process among those that torchrun started."""

    broken = (RuntimeError,)

    def __init__(self, rank: int, count: int) -> None:
        super().__init__(rank, count)
        import torch  # noqa: PLC0415
        from torch import distributed  # noqa: PLC0415

        self._torch, self._distributed = torch, distributed
        self._opened = not distributed.is_initialized()
        if self._opened:
            both = torch.cuda.is_available() and distributed.is_nccl_available()
            distributed.init_process_group("cpu:gloo,cuda:nccl" if both else "gloo", timeout=_PATIENCE)
        self._group = distributed.new_group(backend="gloo", timeout=_PATIENCE)

    def add(self, array: "NDArray[np.float64]") -> None:
        """See `Together`."""
        self._distributed.all_reduce(self._torch.from_numpy(array), group=self._group)

    def everyone(self, value: Any) -> list[Any]:
        """See `Together`."""
        found: list[Any] = [None] * self.count
        self._distributed.all_gather_object(found, value, group=self._group)
        return found

    def largest(self, numbers: list[int]) -> list[int]:
        """See `Together`."""
        said = self._torch.tensor(numbers, dtype=self._torch.int64)
        self._distributed.all_reduce(said, self._distributed.ReduceOp.MAX, group=self._group)
        found: list[int] = said.tolist()
        return found

    def to_first(self, value: Any) -> list[Any]:
        """See `Together`."""
        found: list[Any] | None = [None] * self.count if self.first else None
        self._distributed.gather_object(value, found, dst=0, group=self._group)
        return found or []

    def from_first(self, value: Any) -> Any:
        """See `Together`."""
        told = [value]
        self._distributed.broadcast_object_list(told, src=0, group=self._group)
        return told[0]

    def close(self) -> None:
        """See `Ranks`."""
        if not self.lost:
            with suppress(RuntimeError):
                self._distributed.barrier(group=self._group)
        if self._opened:
            self._distributed.destroy_process_group()
