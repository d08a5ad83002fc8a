"""Some of the batches stand for all: spread evenly, and the same ones however many processes share them."""

from collections.abc import Sequence

import numpy as np
import pytest

from thinet_onnx.calibration import Calibration
from thinet_onnx.ranks import Ranks


class Rank(Ranks):
    """One of several processes, with nobody to talk to."""

    def __init__(self, rank: int, count: int) -> None:
        self.rank, self.count = rank, count


def feeds(rows: Sequence[int]) -> dict[str, np.ndarray]:
    return {"x": np.array(rows)}


def shown(data: Calibration) -> list[int]:
    return [int(row) for batch in data.own for row in batch["x"]]


def test_some_batches_are_spread_evenly_over_all() -> None:
    data = Calibration.open(Rank(0, 1), feeds, range(1000), 4)
    some = data.some(200)
    assert some.items == 256  # whole blocks of batches
    rows = shown(some)
    assert len(rows) == 256
    assert rows == sorted(set(rows))
    assert np.diff(rows[::4]).max() <= 16
    assert [some.own[place]["x"].tolist() for place in (0, -1)] == [rows[:4], rows[-4:]]
    assert [batch["x"].tolist() for batch in some.own[1:3]] == [rows[4:8], rows[8:12]]


@pytest.mark.parametrize("items", [780, 1000, 5000])
def test_most_of_them_are_all_of_them(items: int) -> None:
    data = Calibration.open(Rank(0, 1), feeds, range(1000), 4)
    assert data.some(items) is data


@pytest.mark.parametrize("processes", [2, 4, 8])
@pytest.mark.parametrize("samples", [1000, 1337])
def test_processes_share_the_batches_that_one_would_take(processes: int, samples: int) -> None:
    alone = Calibration.open(Rank(0, 1), feeds, range(samples), 4).some(130)
    parts = [Calibration.open(Rank(rank, processes), feeds, range(samples), 4).some(130) for rank in range(processes)]
    assert [row for part in parts for row in shown(part)] == shown(alone)
    blocks = [{part.numbers.block(part.numbers.first + place) for place in range(len(part.own))} for part in parts]
    assert set().union(*blocks) == set(range(alone.numbers.blocks))
    assert sum(map(len, blocks)) == alone.numbers.blocks  # none is divided
    assert [part.numbers.first for part in parts] == [
        sum(len(part.own) for part in parts[:rank]) for rank in range(processes)
    ]
