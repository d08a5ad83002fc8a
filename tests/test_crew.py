"""Work in small pieces on all cores: results in order, few of them waiting, errors raised where they are asked for."""

import threading
import time

import pytest
from threadpoolctl import threadpool_info

from thinet_onnx.crew import crew


def test_results_come_in_the_order_of_the_items() -> None:
    def slow(number: int) -> int:
        time.sleep(0.01 * (number % 3 == 0))
        return number**2

    with crew() as each:
        assert list(each(slow, range(20))) == [number**2 for number in range(20)]


def test_blas_uses_one_thread_meanwhile_and_as_many_as_before_afterwards() -> None:
    def threads() -> set[int]:
        return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}

    before = threads()
    with crew() as each:
        assert set().union(*each(lambda _: threads(), range(4))) <= {1}
    assert threads() == before


def test_only_a_few_results_wait_to_be_taken() -> None:
    begun, lock = [], threading.Lock()

    def note(number: int) -> int:
        with lock:
            begun.append(number)
        return number

    with crew() as each:
        results = each(note, range(1000))
        assert next(results) == 0
        time.sleep(0.05)
        assert len(begun) < 200
        assert list(results) == list(range(1, 1000))


def test_an_error_is_raised() -> None:
    with crew() as each, pytest.raises(ZeroDivisionError):
        list(each(lambda number: 1 / number, [2, 1, 0, 1]))
