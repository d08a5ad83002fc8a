"""Processes that `--processes` starts on this machine, joined by sockets: the first one adds up and hands round.

A network of small layers keeps one core busy: what NumPy does between products of a few hundred rows isn't divided among
threads. Processes divide all of it.
"""

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinet_onnx.errors import ProcessError
from thinet_onnx.interrupts import LINK
from thinet_onnx.together import Together

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
_PATIENCE = 120.0  # seconds until a process that starts has to be there


class Linked(Together):
    """This process among those that `run` started.

    Args:
        rank, count: which one of how many.
        address: where the first one listens.
        key: that the others show.
    """

    broken = (EOFError, OSError)

    def __init__(self, rank: int, count: int, address: str, key: bytes) -> None:
        super().__init__(rank, count)
        self._ends: list[Connection] = []
        if rank:
            self._ends = [_connect(address, key)]
            self._ends[0].send(rank)
            return
        with Listener(address, authkey=key) as listener:
            found = {}
            for _ in range(count - 1):
                end = listener.accept()
                found[end.recv()] = end
        self._ends = [found[number] for number in sorted(found)]

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Linked":
        """From what `run` put into the environment: rank, count, parent, key and address."""
        rank, count, parent, key, address = environment[LINK].split(" ", 4)
        _follow(int(parent))
        return cls(int(rank), int(count), address, bytes.fromhex(key))

    def add(self, array: "NDArray[np.float64]") -> None:
        """See `Together`: in the order of the processes."""
        import numpy as np  # noqa: PLC0415

        flat = array.reshape(-1)
        if self.rank:
            self._ends[0].send_bytes(flat.data.cast("B"))
            self._ends[0].recv_bytes_into(flat.data.cast("B"))
            return
        theirs = np.empty_like(flat)
        for end in self._ends:
            end.recv_bytes_into(theirs.data.cast("B"))
            flat += theirs
        for end in self._ends:
            end.send_bytes(flat.data.cast("B"))

    def everyone(self, value: Any) -> list[Any]:
        """See `Together`."""
        found: list[Any] = self.from_first(self.to_first(value))
        return found

    def largest(self, numbers: list[int]) -> list[int]:
        """See `Together`."""
        return [max(entry) for entry in zip(*self.everyone(numbers), strict=True)]

    def to_first(self, value: Any) -> list[Any]:
        """See `Together`."""
        if self.rank:
            self._ends[0].send(value)
            return []
        return [value, *(end.recv() for end in self._ends)]

    def from_first(self, value: Any) -> Any:
        """See `Together`."""
        if self.rank:
            return self._ends[0].recv()
        for end in self._ends:
            end.send(value)
        return value

    def close(self) -> None:
        """See `Ranks`."""
        if not self.lost:
            with suppress(*self.broken):
                self.everyone(None)
        for end in self._ends:
            end.close()


def _connect(address: str, key: bytes) -> Connection:
    """A connection to the first process, as soon as it listens."""
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            return Client(address, authkey=key)
        except (FileNotFoundError, ConnectionRefusedError):
            if time.monotonic() > until:
                raise ProcessError(f"The first process was not there within {_PATIENCE:.0f} s.") from None
            time.sleep(0.02)


def _follow(parent: int) -> None:
    """End with the process that started this one: a run that goes on unseen would write into the next one's state."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    if os.name == "posix":
        threading.Thread(target=watch, daemon=True, name="thinet-parent").start()


def run(count: int, arguments: Sequence[str]) -> int:
    """Run the command in several processes that share the cores; its exit code.

    Args:
        count: how many.
        arguments: of the command line.
    """
    threads = str(max(1, (os.cpu_count() or 1) // count))
    shared = os.environ | dict.fromkeys(_THREADS, threads) | {"LOCAL_WORLD_SIZE": str(count)}
    with tempfile.TemporaryDirectory(prefix="thinet-") as folder:
        address = rf"\\.\pipe\{Path(folder).name}" if os.name == "nt" else str(Path(folder) / "link")
        key, started = secrets.token_hex(16), list[subprocess.Popen[bytes]]()
        before = signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C reaches them, too; they clear away and end
        try:
            for rank in range(count):
                link = f"{rank} {count} {os.getpid()} {key} {address}"
                command = [sys.executable, "-m", "thinet_onnx", *arguments]
                started.append(subprocess.Popen(command, env={**shared, LINK: link}))
            codes = [process.wait() for process in started]
        finally:
            for process in started:
                process.kill()
            signal.signal(signal.SIGINT, before)
    return next((code if code > 0 else 1 for code in codes if code), 0)
