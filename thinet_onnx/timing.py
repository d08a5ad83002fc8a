"""Run times of several programs, measured in turn, and what can be said of them."""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

LEAST_FOR_P99 = 100
"""Below so many runs the 99th percentile is the slowest run under another name, so none is given."""

_LEAST_ROUNDS = 5
_WARM_UP_ROUNDS = 3


@dataclass(frozen=True)
class Timing:
    """Run times in milliseconds: median, 10th, 90th and 99th percentile (None below `LEAST_FOR_P99` runs)."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    p99_ms: float | None
    runs: int

    @classmethod
    def of(cls, times: Sequence[float]) -> "Timing":
        """Sum up run times in milliseconds."""
        p10, median, p90, p99 = (float(value) for value in np.percentile(times, [10, 50, 90, 99]))
        return cls(median, p10, p90, p99 if len(times) >= LEAST_FOR_P99 else None, len(times))


@dataclass(frozen=True)
class Ratio:
    """How many times as long one program takes as another: median and quartiles over rounds, each run beside its partner."""

    median: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the quartiles lie on one side of 1, so that one of the two is faster in most rounds."""
        return not self.low <= 1 <= self.high

    @classmethod
    def of(cls, times: Sequence[float], first: Sequence[float]) -> "Ratio":
        """Compare run times with those of the same rounds of another program."""
        low, median, high = np.percentile(np.divide(times, first), [25, 50, 75])
        return cls(float(median), float(low), float(high))


def interleaved(
    calls: Sequence[Callable[[int], object]],
    *,
    runs: int | None,
    seconds: float | None,
    warm_up: float = 0.5,
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[float]]:
    """Call each in turn (A, B, A, B, …), so that whatever slows the machine down meets all of them alike.

    Args:
        calls: what to time; each is given the number of the round, so that all can take the same input in it.
        runs: rounds at most; None is no bound.
        seconds: rounds start until so much time has passed, five rounds at least unless `runs` is less; None is no bound.
        warm_up: seconds of rounds that don't count, three rounds at least.
        clock: seconds that have passed since some moment.

    Returns:
        for each call its run times in milliseconds, in order of the rounds.

    Raises:
        ValueError: neither `runs` nor `seconds` is given.
    """
    if runs is None and seconds is None:
        raise ValueError("runs or seconds: one of them must end the measurement")
    for number in _rounds(clock, None, warm_up, _WARM_UP_ROUNDS):
        for call in calls:
            call(number)
    times: list[list[float]] = [[] for _ in calls]
    with _no_collection():
        for number in _rounds(clock, runs, seconds, _LEAST_ROUNDS):
            for record, call in zip(times, calls, strict=True):
                begin = clock()
                call(number)
                record.append(1e3 * (clock() - begin))
    return times


def _rounds(clock: Callable[[], float], most: int | None, seconds: float | None, least: int) -> Iterator[int]:
    started, number = clock(), 0
    while (most is None or number < most) and (number < least or seconds is None or clock() - started < seconds):
        yield number
        number += 1


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection meanwhile: its pauses would be counted as run time."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
