"""`prune --processes N`: the result of one process, one voice, and no process that outlives the others. Needs no PyTorch."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import small_models
from PIL import Image

from thinet_onnx.interrupts import LINK

ROOT = Path(__file__).parent.parent
ONE = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in (LINK, "WORLD_SIZE")}
    return kept | ONE | {"PYTHONPATH": str(ROOT)} | more


def command(folder: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "thinet_onnx", "prune", *arguments], cwd=folder, env=environment(**more), text=True,
        capture_output=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    onnx.save(small_models.residual(), tmp_path / "model.onnx")
    images = np.random.default_rng(0).standard_normal((64, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=images)
    return tmp_path


WORK = ["model.onnx", "--data", "data.npz", "--target", "macs=60%", "--scope", "all", "--round-to", "1"]


@pytest.mark.parametrize("count", ["2", "3"])
def test_several_processes_prune_as_one(folder: Path, count: str) -> None:
    told = {}
    for processes in ("1", count):
        done = command(folder, *WORK, f"{processes}.onnx", "--processes", processes, "--json", f"{processes}.json")
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("Not pruned") == 1
        told[processes] = json.loads((folder / f"{processes}.json").read_text())
    assert told[count]["options"]["processes"] == int(count)
    assert told[count]["plan"]["groups"] == told["1"]["plan"]["groups"]
    assert any(group["after"] < group["before"] for group in told["1"]["plan"]["groups"])
    one, several = (small_models.initializers(onnx.load(folder / f"{name}.onnx")) for name in ("1", count))
    for key, value in one.items():
        assert np.abs(several[key] - value).max() <= 1e-5 * max(np.abs(value).max(), 1e-30), key


def test_an_error_of_the_second_process_is_told_once(folder: Path) -> None:
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    for number in range(40):
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(folder / "images" / f"{number:02}.png")
    (folder / "images" / "39.png").write_bytes((folder / "images" / "39.png").read_bytes()[:50])
    done = command(folder, "model.onnx", "small.onnx", "--data", "images", "--processes", "2")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("thinet-onnx: error: ")
    assert "39.png" in line
    assert done.stdout == ""
    assert not (folder / "small.onnx").exists()


@pytest.mark.parametrize(
    ("options", "more", "sentence"),
    [
        (["--processes", "0"], {}, "--processes 0: it must be 1 or more."),
        (["--processes", "2"], {"WORLD_SIZE": "2"}, "--processes and torchrun don't go together"),
        (["--processes", "2", "--finetune-epochs", "1"], {}, "start the command with torchrun"),
        (["--processes", "3", "--samples", "2"], {}, "batches for 3 processes: give more samples"),
    ],
)
def test_numbers_that_cannot_be(folder: Path, options: list[str], more: dict[str, str], sentence: str) -> None:
    done = command(folder, *WORK, *options, **more)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert sentence in line


LONG = """
import numpy as np, time
def endless():
    open(f"here-{time.monotonic_ns()}", "w").close()
    time.sleep(0.1)
    while True:
        yield {"x": np.zeros((3, 8, 8), np.float32)}
        time.sleep(0.01)
"""


def running(folder: Path) -> subprocess.Popen[str]:
    """A run that has begun to read data that never end, in two processes."""
    (folder / "endless.py").write_text(LONG)
    started = subprocess.Popen(
        [sys.executable, "-m", "thinet_onnx", "prune", "model.onnx", "--data", "endless.py:endless", "--processes", "2"],
        cwd=folder, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    until = time.monotonic() + 100
    while len(list(folder.glob("here-*"))) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    return started


def children(parent: int) -> list[int]:
    stats = [(int(file.parent.name), file.read_text()) for file in Path("/proc").glob("[0-9]*/stat")]
    return sorted(pid for pid, text in stats if int(text.rpartition(")")[2].split()[1]) == parent)


@pytest.mark.skipif(not Path("/proc/self/exe").exists(), reason="no /proc: NOT TESTED on this system")
def test_an_interrupt_is_told_once_and_ends_all(folder: Path) -> None:
    started = running(folder)
    there = children(started.pid)
    assert len(there) == 2
    os.killpg(started.pid, signal.SIGINT)  # as a terminal does
    said, errors = started.communicate(timeout=60)
    assert (started.returncode, said, errors) == (130, "", "thinet-onnx: interrupted\n")
    assert not any(Path(f"/proc/{pid}/exe").exists() for pid in there)


@pytest.mark.skipif(not Path("/proc/self/exe").exists(), reason="no /proc: NOT TESTED on this system")
def test_processes_end_with_the_one_that_started_them(folder: Path) -> None:
    started = running(folder)
    there = children(started.pid)
    started.kill()
    started.communicate(timeout=60)
    until = time.monotonic() + 30
    while any(Path(f"/proc/{pid}/exe").exists() for pid in there) and time.monotonic() < until:
        time.sleep(0.1)
    assert len(there) == 2
    assert not any(Path(f"/proc/{pid}/exe").exists() for pid in there)


TALK = """
import json, os, sys
import numpy as np
from thinet_onnx.errors import DataError
from thinet_onnx.linked import Linked

rank = int(sys.argv[1])

def told(work):
    ranks = Linked(rank, 3, work.__name__, b"key")
    try:
        with ranks.agreeing():
            work(ranks)
        return None
    except Exception as error:
        return type(error).__name__, str(error)
    finally:
        ranks.close()

def sums(ranks):
    big, small = np.full((600, 600), 1.0 + rank), np.array([1.0, rank])
    ranks.add_up(big, small)
    assert (big == 6).all() and small.tolist() == [3, 3] and ranks.bytes == big.nbytes + small.nbytes
    assert ranks.map(lambda n: (n, rank), [1, 2, 3, 4]) == [(1, 0), (2, 1), (3, 2), (4, 0)]
    assert ranks.gather_first([rank]) == ([0, 1, 2] if rank == 0 else [])
    assert ranks.gather(rank) == [0, 1, 2]
    assert ranks.once(lambda: rank) == 0

def user(ranks):
    if rank == 1:
        raise DataError("one sentence")
    ranks.add_up(np.zeros(3))

def defect(ranks):
    ranks.once(lambda: 1)
    if rank == 2:
        raise ZeroDivisionError("oh")

def step(ranks):
    ranks.add_up(np.zeros(3 + rank))

def gone(ranks):
    if rank == 1:
        os._exit(9)
    ranks.gather(1)

print(json.dumps([told(work) for work in (sums, user, defect, step, gone)]))
"""


def test_what_processes_tell_each_other(tmp_path: Path) -> None:
    (tmp_path / "talk.py").write_text(TALK)
    started = [
        subprocess.Popen(
            [sys.executable, "talk.py", str(rank)], cwd=tmp_path, env=environment(), text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(3)
    ]  # fmt: skip
    ends = [process.communicate(timeout=100) for process in started]
    assert [process.returncode for process in started] == [0, 9, 0], ends
    for rank in (0, 2):
        fine, user, defect, step, gone = json.loads(ends[rank][0])
        assert fine is None
        assert user == ["DataError", "one sentence"]
        if rank == 0:
            assert defect[0] == "ProcessError"
            assert "Process 2 of 3 failed (ZeroDivisionError: oh)" in defect[1]
        else:
            assert defect == ["ZeroDivisionError", "oh"]
        assert step[0] == "RuntimeError"
        assert "lost step (5, 3)" in step[1]
        assert gone[0] == "ProcessError"
        assert "lost the connection" in gone[1]
