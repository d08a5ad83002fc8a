"""Ctrl-C ends the command with one line and code 130 whenever it comes, and leaves nothing behind."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
import small_models

from thinet_onnx import interrupts

COMMAND = ["prune", "net.onnx", "out.onnx", "--data", "calib.py:feeds", "--keep", "0.5", "--json", "report.json"]

# The script tells how far the run is, and waits there for the signal.
SCRIPT = """
import pathlib, time
import numpy

def feeds():
    for number in range(4):
        yield {{"x": numpy.random.default_rng(number).standard_normal((4, 3, 8, 8)).astype("f")}}
    wait("reading")

def wait(stage):
    if stage == {stage!r}:
        pathlib.Path({mark!r}).touch()
        time.sleep(600)

from thinet_onnx import graph, runtime, surgery

def waiting(module, name, stage):
    function = getattr(module, name)
    def first(*arguments, **options):
        wait(stage)
        return function(*arguments, **options)
    setattr(module, name, first)

waiting(runtime, "observed_shapes", "examining")
waiting(surgery, "refit", "refitting")
waiting(runtime, "latency", "measuring")
waiting(graph.onnx, "save", "writing")
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to work in, and one for temporary files; both hold the same afterwards as before."""
    work, temporary = tmp_path / "work", tmp_path / "temporary"
    work.mkdir()
    temporary.mkdir()
    onnx.save(small_models.plain(), work / "net.onnx")
    monkeypatch.chdir(work)
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    yield tmp_path
    assert list(temporary.iterdir()) == []
    assert {file.name for file in work.iterdir()} <= {"net.onnx", "calib.py", "typer.py", "numpy.py"}


def interrupt(mark: Path, arguments: list[str] = COMMAND) -> None:
    """Run the command, wait for the mark, interrupt it."""
    command = [sys.executable, "-m", "thinet_onnx", *arguments]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  ignored in background jobs
    )
    while not mark.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "thinet-onnx: interrupted\n")


@pytest.mark.parametrize("stage", ["reading", "examining", "refitting", "measuring", "writing"])
def test_at_every_stage_of_a_run(here: Path, stage: str) -> None:
    Path("calib.py").write_text(SCRIPT.format(stage=stage, mark=str(here / "mark")), encoding="utf-8")
    interrupt(here / "mark")


@pytest.mark.parametrize(
    "command",
    [
        "finetune net.onnx out.onnx --teacher net.onnx --state state",
        "verify net.onnx --reference net.onnx --json report.json",
        "bench net.onnx --json report.json",
        "curve net.onnx --json report.json --plot curve.svg --save-moments moments.npz",
    ],
)
def test_in_other_commands(here: Path, command: str) -> None:
    if command.startswith("finetune"):
        pytest.importorskip("torch", reason="PyTorch is not installed: Ctrl-C in finetune is NOT TESTED")
    Path("calib.py").write_text(SCRIPT.format(stage="reading", mark=str(here / "mark")), encoding="utf-8")
    interrupt(here / "mark", [*command.split(), "--data", "calib.py:feeds"])


@pytest.mark.parametrize("module", ["typer", "numpy"])
def test_while_libraries_are_imported(here: Path, module: str) -> None:
    """A module of that name in the folder, which comes first, takes its time."""
    wait = f"import pathlib, time\npathlib.Path({str(here / 'mark')!r}).touch()\ntime.sleep(600)\n"
    Path(f"{module}.py").write_text(wait, encoding="utf-8")
    interrupt(here / "mark")


def test_nothing_changes_where_the_signal_is_ignored() -> None:
    """As in a job that a shell runs in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        interrupts.start()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        interrupts.raise_from_now()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


RAISED = """
import signal
from thinet_onnx import interrupts
signal.signal(signal.SIGINT, signal.default_int_handler)
interrupts.start()
assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
interrupts.raise_from_now()
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("raised")
"""


def test_it_is_raised_once_there_is_something_to_clear_away() -> None:
    """In a process of its own, which nothing else sends signals to."""
    ended = subprocess.run([sys.executable, "-c", RAISED], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "raised\n", "")
