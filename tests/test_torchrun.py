"""`prune` in two processes: the same plan and weights as in one, and errors that end both."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import small_models
from PIL import Image

from thinet_onnx import pipeline
from thinet_onnx.calibration import Calibration, Numbers
from thinet_onnx.errors import DataError, OptionError
from thinet_onnx.joined import join
from thinet_onnx.options import PruneOptions, Storage, Target
from thinet_onnx.ranks import Ranks
from thinet_onnx.stopwatch import Compared

several = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="PyTorch is not installed: pruning in several processes is NOT TESTED",
)
ROOT = Path(__file__).parent.parent


def pair(folder: Path, *arguments: str) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of Python in two processes, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {
        "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
    }  # fmt: skip
    started = [
        subprocess.Popen(
            [sys.executable, *arguments], cwd=folder, env=os.environ | shared | {"RANK": str(rank)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        ends = [process.communicate(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, out, err) for process, (out, err) in zip(started, ends, strict=True)]


# --- the result --------------------------------------------------------------------------------------------------------

HALF = Target("macs", 0.5, True)
OPTIONS = {
    "joint": {"target": Target("macs", 0.6, True), "scope": "all", "round_to": 1},
    "sampled": {"keep": 0.5, "method": "thinet-sampled", "round_to": 1},
    "latency": {"target": Target("latency", 0.7, True), "round_to": 1},
}

WORK = """
import sys
import numpy as np, onnx
from test_torchrun import OPTIONS, Clock
from thinet_onnx import pipeline
from thinet_onnx.joined import join, joined
from thinet_onnx.options import PruneOptions

with joined(join()) as ranks:
    for name, options in OPTIONS.items():
        result = pipeline.prune(
            "model.onnx", "data.npz", PruneOptions(**options), output=f"{name}-{ranks.rank}.onnx", ranks=ranks,
            stopwatch=Clock(ranks.rank) if name == "latency" else None,
        )
        onnx.save(result.model, f"{name}-of-{ranks.rank}.onnx")
        assert result.report.options["processes"] == 2
        assert result.report.fidelity[0].samples == 8
    print(ranks.bytes)
"""


class Clock:
    """Times that follow the size of a file; those of the second process are nonsense, and must not be used."""

    title, threads = "a clock", 1

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def one(self, model: onnx.ModelProto, feeds: Any, seconds: float) -> float:
        assert self.rank == 0
        return 1e-3 * model.ByteSize()

    def both(self, first: onnx.ModelProto, second: onnx.ModelProto, feeds: Any, seconds: float) -> Any:
        one, other = (self.one(model, feeds, seconds) for model in (first, second))
        return Compared(one, other, other / one)


@several
def test_two_processes_prune_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    onnx.save(small_models.residual(), tmp_path / "model.onnx")
    rng = np.random.default_rng(0)
    images = rng.standard_normal((64, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=images, labels=rng.integers(0, 5, 64))
    (tmp_path / "work.py").write_text(WORK)
    ends = pair(tmp_path, "work.py")
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert int(ends[0][1]) > 10_000
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another cache"))
    for name, options in OPTIONS.items():
        watch = Clock(0) if name == "latency" else None
        one = pipeline.prune(tmp_path / "model.onnx", tmp_path / "data.npz", PruneOptions(**options), stopwatch=watch)
        assert (tmp_path / f"{name}-0.onnx").exists()
        assert not (tmp_path / f"{name}-1.onnx").exists(), "only the first process writes"
        expected = small_models.initializers(one.model)
        assert any(group.after < group.before for group in one.plan.groups)
        for rank in (0, 1):
            found = small_models.initializers(onnx.load(tmp_path / f"{name}-of-{rank}.onnx"))
            assert found.keys() == expected.keys()
            for key, value in expected.items():
                assert found[key].shape == value.shape
                assert np.abs(found[key] - value).max() <= 1e-5 * max(np.abs(value).max(), 1e-30), (name, key)


class Counting(Ranks):
    """A process on its own that notes how many bytes it would have added up."""

    def __init__(self) -> None:
        self.added: list[int] = []

    def add_up(self, *arrays: Any) -> None:
        self.added.append(sum(array.nbytes for array in arrays))


def test_the_bytes_of_a_layer_are_those_of_the_docs() -> None:
    observing, pruning = Counting(), Counting()
    data = np.random.default_rng(0).standard_normal((16, 3, 8, 8)).astype(np.float32)
    options: dict[str, Any] = {"reconstruct": "full", "round_to": 1}
    pipeline.prune(small_models.plain(), data, PruneOptions(target=HALF, **options), ranks=observing)
    pipeline.prune(small_models.plain(), data, PruneOptions(keep=0.5, **options), ranks=pruning)
    for n, outputs in ((8 * 9, 8), (8, 5)):
        observed, answers = 8 * (2 * (n * n + n + 1) + n + 1), 8 * 2 * (outputs * n + 2 * outputs)
        assert observing.added.count(observed) == 1
        assert pruning.added.count(observed + answers) == 1


AGAIN = """
from pathlib import Path
import onnx
from test_torchrun import OPTIONS
from thinet_onnx import pipeline, sweep
from thinet_onnx.joined import join, joined
from thinet_onnx.options import PruneOptions, Storage

with joined(join()) as ranks:
    for name in ("first", "again"):
        storage = Storage(Path(f"state-{ranks.rank}"), Path(f"{name}-{ranks.rank}.npz"))
        result = pipeline.prune("model.onnx", "data.npz", PruneOptions(**OPTIONS["joint"]), storage=storage, ranks=ranks)
        onnx.save(result.model, f"{name}-{ranks.rank}.onnx")
        sweep.Watcher.add = None
"""


@several
def test_two_processes_keep_what_they_learnt(tmp_path: Path) -> None:
    onnx.save(small_models.residual(), tmp_path / "model.onnx")
    images = np.random.default_rng(0).standard_normal((64, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=images)
    (tmp_path / "again.py").write_text(AGAIN)
    ends = pair(tmp_path, "again.py")
    assert [code for code, _, _ in ends] == [0, 0], ends
    expected = (tmp_path / "first-0.onnx").read_bytes()
    assert {(tmp_path / f"{name}.onnx").read_bytes() for name in ("first-1", "again-0", "again-1")} == {expected}
    assert json.loads((tmp_path / "state-0" / "run.json").read_text())["done"]
    assert not (tmp_path / "state-1").exists(), "only the first process keeps"
    assert not (tmp_path / "first-1.npz").exists()
    options = PruneOptions(**OPTIONS["joint"])
    for storage in (Storage(from_moments=tmp_path / "first-0.npz"), Storage(tmp_path / "state-0")):
        one = pipeline.prune(tmp_path / "model.onnx", tmp_path / "data.npz", options, storage=storage)
        there = small_models.initializers(onnx.load(tmp_path / "first-0.onnx"))
        for key, value in small_models.initializers(one.model).items():
            assert there[key].shape == value.shape
            assert np.abs(there[key] - value).max() <= 1e-5 * max(np.abs(value).max(), 1e-30), key


# --- errors ------------------------------------------------------------------------------------------------------------


@several
def test_an_error_of_the_second_process_ends_both_with_one_sentence(tmp_path: Path) -> None:
    onnx.save(small_models.plain(), tmp_path / "model.onnx")
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for number in range(40):
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(tmp_path / "images" / f"{number:02}.png")
    (tmp_path / "images" / "39.png").write_bytes((tmp_path / "images" / "39.png").read_bytes()[:50])
    source = ["-m", "thinet_onnx", "prune", "model.onnx", "small.onnx", "--data", "images"]
    (one, said, sentence), (other, nothing, silence) = pair(tmp_path, *source)
    assert (one, other) == (2, 2), (sentence, silence)
    (line,) = sentence.splitlines()
    assert line.startswith("thinet-onnx: error: ")
    assert "39.png" in line
    assert (said, nothing, silence) == ("", "", "")
    assert not (tmp_path / "small.onnx").exists()


TALK = """
import json, os, sys
import numpy as np
from thinet_onnx.errors import DataError
from thinet_onnx.joined import Joined

rank = int(os.environ["RANK"])
first = Joined(rank, 2)

def told(work):
    ranks = Joined(rank, 2)
    try:
        with ranks.agreeing():
            work(ranks)
        return None
    except Exception as error:
        return type(error).__name__, str(error)
    finally:
        ranks.close()

def fail(error):
    if rank == 1:
        raise error

def sums(ranks):
    big, small = np.full((600, 600), 1.0 + rank), np.array([1.0, rank])
    ranks.add_up(big, small)
    assert (big == 3).all() and small.tolist() == [2, 1] and ranks.bytes == big.nbytes + small.nbytes
    assert ranks.map(lambda n: (n, rank), [1, 2, 3]) == [(1, 0), (2, 1), (3, 0)]
    assert ranks.gather_first([rank]) == ([0, 1] if rank == 0 else [])
    assert ranks.once(lambda: rank) == 0

def user(ranks):
    fail(DataError("one sentence"))
    ranks.add_up(np.zeros(3))

def defect(ranks):
    ranks.once(lambda: 1)
    fail(ZeroDivisionError("oh"))

def step(ranks):
    ranks.add_up(np.zeros(3 + rank))

def gone(ranks):
    if rank == 1:
        os._exit(9)
    ranks.gather(1)

print(json.dumps([told(work) for work in (sums, user, defect, step)]), flush=True)
print(json.dumps(told(gone)), flush=True)
os._exit(0)  # `first` has lost its other end, and PyTorch might abort on the way out
"""


@several
def test_what_processes_tell_each_other(tmp_path: Path) -> None:
    (tmp_path / "talk.py").write_text(TALK)
    (code, first, errors), (other, second, _) = pair(tmp_path, "talk.py")
    assert (code, other) == (0, 9), errors
    here, (kind, text) = map(json.loads, first.splitlines())
    there = json.loads(second)
    assert here[0] is None
    assert there[0] is None
    assert here[1] == there[1] == ["DataError", "one sentence"]
    assert here[2][0] == "ProcessError"
    assert "Process 1 of 2 failed (ZeroDivisionError: oh)" in here[2][1]
    assert there[2] == ["ZeroDivisionError", "oh"]
    assert here[3][0] == there[3][0] == "RuntimeError"
    assert "lost step (4, 3)" in here[3][1]
    assert kind == "ProcessError"
    assert "lost the connection" in text


def test_an_environment_that_is_incomplete(monkeypatch: pytest.MonkeyPatch) -> None:
    assert join({}).count == 1
    if importlib.util.find_spec("torch") is not None:
        with pytest.raises(OptionError, match="RANK and MASTER_PORT is not set: start the processes with torchrun"):
            join({"WORLD_SIZE": "4", "MASTER_ADDR": "here"})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(OptionError, match=r"WORLD_SIZE is 4, but .* pip install torch"):
        join({"WORLD_SIZE": "4", "RANK": "0"})


# --- who takes what ----------------------------------------------------------------------------------------------------


class Third(Ranks):
    """One of three processes."""

    count = 3

    def __init__(self, rank: int) -> None:
        self.rank = rank


@pytest.mark.parametrize("batches", [3, 8, 16, 50])
def test_batches_are_divided_at_the_borders_of_blocks(batches: int) -> None:
    rows = list(range(2 * batches - 1))
    parts = [Calibration.open(Third(rank), lambda some: {"x": np.array(some)}, rows, 2) for rank in range(3)]
    taken = [number for part in parts for number in range(part.numbers.first, part.numbers.first + len(part.own))]
    assert taken == list(range(batches))
    assert [row for part in parts for feeds in part.own for row in feeds["x"]] == rows
    blocks = [{part.numbers.block(part.numbers.first + place) for place in range(len(part.own))} for part in parts]
    assert set.union(*blocks) == set(range(min(batches, 16)))
    assert sum(map(len, blocks)) == min(batches, 16)
    assert {part.items for part in parts} == {len(rows)}
    assert {part.numbers.blocks for part in parts} == {min(batches, 16)}


def test_blocks_are_as_even_as_can_be() -> None:
    numbers = Numbers(0, 37, 16)
    sizes = np.bincount([numbers.block(number) for number in range(37)])
    assert set(sizes.tolist()) == {2, 3}
    assert len(sizes) == 16


def test_more_processes_than_batches() -> None:
    with pytest.raises(DataError, match="makes 2 batches for 3 processes: give more samples, or start no more than 2"):
        Calibration.open(Third(0), lambda some: {}, [0, 1], 1)
