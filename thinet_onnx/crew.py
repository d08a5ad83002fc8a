"""Small pieces of work on all cores: each piece in a thread of its own, with a BLAS that uses one.

A multi-threaded BLAS gains nothing on products of a few hundred rows, and the copies between them would run on one core.
Results come in the order of the pieces and each is computed by one thread, so sums over them round alike however many cores
there are.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, Protocol, TypeVar

from threadpoolctl import ThreadpoolController

T = TypeVar("T")
S = TypeVar("S")


class Map(Protocol):
    """Like `map`: the function of every item, in order."""

    def __call__(self, function: Callable[[S], T], items: Iterable[S], /) -> Iterator[T]:
        """Results, one after another."""


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()


@contextmanager
def crew() -> Iterator[Map]:
    """A `Map` by as many threads as BLAS may use, each with a BLAS of one thread until this ends."""
    known: list[dict[str, Any]] = _controller().select(user_api="blas").info()
    count = max((library["num_threads"] for library in known), default=1)
    with _controller().limit(limits=1, user_api="blas"), ThreadPoolExecutor(count, "thinet-crew") as pool:
        yield partial(_in_order, pool, count)


def _in_order(pool: ThreadPoolExecutor, count: int, function: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """No more than a few results wait to be taken."""
    waiting = deque[Future[T]]()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
