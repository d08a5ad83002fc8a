"""How long models take in an engine: what latency targets are measured with."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx

from thinet_onnx import engines
from thinet_onnx.check_options import EngineName
from thinet_onnx.engines import Program
from thinet_onnx.timing import Ratio, interleaved

Feeds = dict[str, np.ndarray[Any, Any]]

_WARM_UP = 0.25  # share of a measurement's seconds
_MOST_RUNS = 300


@dataclass(frozen=True)
class Compared:
    """Two models measured in turn: median milliseconds of each, and the median over rounds of second / first."""

    first_ms: float
    second_ms: float
    ratio: float


class Stopwatch(Protocol):
    """Whoever can tell how long models take. `title` says where, `threads` how many are used there (0: its own choice)."""

    title: str
    threads: int

    def one(self, model: onnx.ModelProto, feeds: Feeds, seconds: float) -> float:
        """Median milliseconds of a run, measured for about so many seconds.

        Raises:
            ModelError: the model can't be run.
        """

    def both(self, first: onnx.ModelProto, second: onnx.ModelProto, feeds: Feeds, seconds: float) -> Compared:
        """Two models measured in turn, on the same feeds.

        Raises:
            ModelError: one of them can't be run.
        """


class EngineStopwatch:
    """Times in an engine on this machine.

    Args:
        engine: which one.
        threads: how many it may use; 0 leaves that to the engine.

    Raises:
        OptionError: it is not installed.
    """

    def __init__(self, engine: EngineName, threads: int = 0) -> None:
        self._engine = engines.make(engine, threads=threads)
        self.title, self.threads = self._engine.title, threads

    def one(self, model: onnx.ModelProto, feeds: Feeds, seconds: float) -> float:
        """See `Stopwatch`."""
        (times,) = self._times([model], feeds, seconds)
        return float(np.median(times))

    def both(self, first: onnx.ModelProto, second: onnx.ModelProto, feeds: Feeds, seconds: float) -> Compared:
        """See `Stopwatch`."""
        one, other = self._times([first, second], feeds, seconds)
        return Compared(float(np.median(one)), float(np.median(other)), Ratio.of(other, one).median)

    def _times(self, models: list[onnx.ModelProto], feeds: Feeds, seconds: float) -> list[list[float]]:
        shapes = {name: value.shape for name, value in feeds.items()}
        programs: list[Program] = []
        try:
            for model in models:
                programs.append(self._engine.load(model, shapes))  # noqa: PERF401  those that are loaded must be closed
            calls = [_call(program, feeds) for program in programs]
            return interleaved(calls, runs=_MOST_RUNS, seconds=seconds, warm_up=_WARM_UP * seconds)
        finally:
            for program in programs:
                program.close()


def _call(program: Program, feeds: Feeds) -> Callable[[int], object]:
    return lambda _: program.run(feeds)
