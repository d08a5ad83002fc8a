"""How run times are taken and summed up, on a clock that the test turns itself."""

import gc
from collections.abc import Callable

import numpy as np
import pytest

from thinet_onnx.timing import LEAST_FOR_P99, Ratio, Timing, interleaved


class Clock:
    """A clock that stands still but for what the calls take."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[tuple[str, int]] = []

    def __call__(self) -> float:
        return self.now

    def program(self, name: str, seconds: Callable[[int], float]) -> Callable[[int], object]:
        def run(number: int) -> None:
            self.calls.append((name, number))
            self.now += seconds(number)

        return run


def test_programs_take_turns_and_see_the_same_round() -> None:
    clock = Clock()
    times = interleaved(
        [clock.program("a", lambda _: 0.002), clock.program("b", lambda _: 0.001)],
        runs=4, seconds=None, warm_up=0.0, clock=clock,
    )  # fmt: skip
    counted = clock.calls[-8:]
    assert counted == [(name, number) for number in range(4) for name in "ab"]
    assert np.allclose(times, [[2.0] * 4, [1.0] * 4])


def test_what_is_slow_at_first_is_not_counted() -> None:
    clock = Clock()
    first = iter([0.5, 0.3, 0.1])
    (times,) = interleaved(
        [clock.program("a", lambda _: next(first, 0.01))], runs=6, seconds=None, warm_up=0.2, clock=clock
    )
    assert np.allclose(times, 10.0)
    assert len(clock.calls) == 3 + 6


def test_a_warm_up_lasts_as_long_as_it_is_told_to() -> None:
    clock = Clock()
    interleaved([clock.program("a", lambda _: 0.1)], runs=1, seconds=None, warm_up=0.95, clock=clock)
    assert len(clock.calls) == 10 + 1


@pytest.mark.parametrize(
    ("runs", "seconds", "rounds"),
    [(7, None, 7), (None, 1.25, 10), (7, 0.625, 5), (7, 1.0, 7), (None, 0.25, 5), (2, 10.0, 2), (100, 1.25, 10)],
)
def test_what_ends_a_measurement(runs: int | None, seconds: float | None, rounds: int) -> None:
    clock = Clock()
    (times,) = interleaved([clock.program("a", lambda _: 0.125)], runs=runs, seconds=seconds, warm_up=0.0, clock=clock)
    assert len(times) == rounds


def test_a_measurement_without_an_end_is_a_defect() -> None:
    with pytest.raises(ValueError, match="runs or seconds"):
        interleaved([lambda _: None], runs=None, seconds=None)


def test_nothing_is_collected_meanwhile_and_then_it_is_again() -> None:
    seen = []
    interleaved([lambda _: seen.append(gc.isenabled())], runs=2, seconds=None, warm_up=0.0)
    assert seen == [True] * 3 + [False] * 2
    assert gc.isenabled()


def test_percentiles() -> None:
    timing = Timing.of([float(value) for value in range(1, 202)])
    assert (timing.p10_ms, timing.median_ms, timing.p90_ms, timing.p99_ms, timing.runs) == (21, 101, 181, 199, 201)


@pytest.mark.parametrize("runs", [5, LEAST_FOR_P99 - 1])
def test_few_runs_have_no_99th_percentile(runs: int) -> None:
    assert Timing.of([1.0] * runs).p99_ms is None


def test_a_ratio_is_taken_round_by_round() -> None:
    """A machine that slows down tenfold on the way changes the medians' quotient, but not the median of quotients."""
    first = [1.0, 1.0, 10.0, 10.0, 10.0]
    half = Ratio.of([time / 2 for time in first], first)
    assert (half.low, half.median, half.high) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(("low", "high", "clear"), [(0.7, 0.9, True), (0.9, 1.1, False), (1.01, 1.2, True)])
def test_a_difference_is_clear_if_the_quartiles_agree(low: float, high: float, clear: bool) -> None:
    assert Ratio((low + high) / 2, low, high).clear is clear
