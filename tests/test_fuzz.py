"""The fuzzer finds what it is made to find, makes every case again from its seed, and finds nothing in a short run."""

import importlib.util
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
import small_models

from thinet_onnx import pipeline
from thinet_onnx.options import PruneOptions
from thinet_onnx.report import write_json

TOOL = Path(__file__).parents[1] / "tools" / "fuzz.py"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="fork, pidfd and limits of resources are Linux's")


def run(*arguments: str, code: int = 0) -> str:
    done = subprocess.run([sys.executable, TOOL, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.fixture
def mutations() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mutations", TOOL.with_name("mutations.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_short_run_finds_nothing(tmp_path: Path) -> None:
    onnx.save(small_models.plain(), tmp_path / "plain.onnx")
    onnx.save(small_models.residual(), tmp_path / "residual.onnx")
    failed = tmp_path / "failed"
    told = run(str(tmp_path), "--cases", "40", "--seed", "2", "--prune", "0.1", "--save", str(failed), "--strict")
    found = re.fullmatch(
        r"40 cases of 2 files, small ones more often, in \d+ s, seed 2: (\d+) accepted, (\d+) refused, "
        r"0 with a traceback, 0 over 30 s, "
        r"0 killed by a signal, 0 with files left behind\n",
        told,
    )
    assert found, told
    assert int(found[1]) + int(found[2]) == 40
    assert int(found[1]) >= 5
    assert int(found[2]) >= 15
    assert not failed.exists()


def test_it_ends_when_its_time_is_up(tmp_path: Path) -> None:
    onnx.save(small_models.plain(), tmp_path / "plain.onnx")
    assert run(str(tmp_path), "--cases", "5000", "--minutes", "0").startswith(
        "0 cases of 1 files, small ones more often, in 0 s, seed 0: 0 accepted"
    )


def test_damaged_reports_are_for_the_command_report(tmp_path: Path, mutations: ModuleType) -> None:
    report = tmp_path / "result.json"
    made = pipeline.prune(small_models.plain(), None, PruneOptions(keep=0.5, samples=4), random_data=True)
    write_json(made.report, report)
    told = run(str(report), "--cases", "30", "--seed", "1", "--save", str(tmp_path / "failed"), "--strict")
    assert re.match(
        r"30 cases of 1 files, .* 0 with a traceback, 0 over 30 s, 0 killed by a signal, 0 with files", told
    ), told
    whole = report.read_bytes()
    cases = [mutations.mutate_json(whole, np.random.default_rng(case)) for case in range(60)]
    assert cases == [mutations.mutate_json(whole, np.random.default_rng(case)) for case in range(60)]
    assert sum(damaged != whole for _, damaged in cases) > 50


IMPORTED = """
import os, pathlib, signal, sys, time
sys.path.insert(0, {tools!r})
import fuzz
"""

BROKEN = (
    IMPORTED
    + """

def broken():
    match pathlib.Path("model.onnx").read_bytes():
        case b"bug": raise ValueError("a defect")
        case b"loop":
            while True: pass
        case b"crash": os.kill(os.getpid(), signal.SIGSEGV)
        case b"beside" if "prune" in sys.argv:
            pathlib.Path("out.onnx").write_text("out.onnx.data")
            pathlib.Path("out.onnx.data").touch()
        case b"stray" if "prune" in sys.argv:
            pathlib.Path("out.onnx").touch()
            pathlib.Path("out.onnx.data").touch()
        case b"litter": pathlib.Path("out.onnx.tmp").touch()
        case b"hoard": bytearray(3 << 30)
        case b"" if "prune" in sys.argv: pathlib.Path("out.onnx").touch()
        case b"noise": print("careful", file=sys.stderr)
        case b"refused": sys.exit(print("thinet-onnx: error: no.", file=sys.stderr) or 2)

fuzz.cli.main = broken
sys.argv = ["fuzz", "--replay", "--timeout", "1", "--memory", "500", *sys.argv[1:]]
sys.exit(fuzz.main())
"""
)


def test_every_kind_of_failure_is_seen_and_named(tmp_path: Path) -> None:
    kinds = {
        "bug": "traceback", "loop": "hang", "crash": "killed", "litter": "litter", "hoard": "traceback",
        "noise": "traceback", "refused": "refused", "": "accepted",
        "beside": "accepted", "stray": "litter",
    }  # fmt: skip
    files = [tmp_path / f"{content}.onnx" for content in kinds]
    for file, content in zip(files, kinds, strict=True):
        file.write_bytes(content.encode())
    code = BROKEN.format(tools=str(TOOL.parent))
    done = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    for file, kind in zip(files, kinds.values(), strict=True):
        assert f"{file}: {kind} (" in done.stdout
    assert "ValueError: a defect" in done.stdout
    assert "SIGSEGV" in done.stdout
    assert "MemoryError" in done.stdout
    assert "out.onnx.tmp" in done.stdout


def test_a_case_is_made_again_from_its_seed(mutations: ModuleType) -> None:
    one, other = small_models.plain().SerializeToString(), small_models.residual().SerializeToString()
    cases = [mutations.mutate(one, other, np.random.default_rng([3, case])) for case in range(120)]
    assert cases == [mutations.mutate(one, other, np.random.default_rng([3, case])) for case in range(120)]
    used = {name for names, _ in cases for name in names.split("+")}
    assert used == {*mutations.BYTES, *mutations.PROTOS, "splice"}
    assert sum(damaged != one for _, damaged in cases) > 100


def test_most_damage_is_done_outside_of_weights(mutations: ModuleType) -> None:
    whole = small_models.plain().SerializeToString()
    rng = np.random.default_rng(0)
    weights = sum(
        len(tensor.raw_data) for tensor in small_models.plain().graph.initializer if len(tensor.raw_data) > 64
    )
    assert weights > 0.5 * len(whole)
    spans = mutations._weights(whole)
    assert sum(end - start for start, end in spans) == weights
    hits = [
        any(start <= place < end for start, end in spans)
        for place in (mutations._place(whole, rng) for _ in range(500))
    ]
    assert np.mean(hits) < 0.2


def test_small_files_are_damaged_more_often(tmp_path: Path) -> None:
    whole = small_models.plain().SerializeToString()
    (tmp_path / "small.onnx").write_bytes(whole)
    (tmp_path / "large.onnx").write_bytes(whole + bytes(4 << 20))
    code = (
        IMPORTED.format(tools=str(TOOL.parent))
        + "fuzz.sys.argv[1:] = sys.argv[1:]\n"
        + (
            "run = fuzz.Run(fuzz._arguments(), fuzz.Limits(1, 1))\n"
            "print([file.name for file in run.files], [round(float(share), 2) for share in run.shares])\n"
        )
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout == "['small.onnx', 'large.onnx'] [0.89, 0.11]\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_says_what_it_did_and_how_to_go_on(tmp_path: Path, number: signal.Signals) -> None:
    onnx.save(small_models.plain(), tmp_path / "plain.onnx")
    command = [sys.executable, TOOL, tmp_path / "plain.onnx", "--cases", "100000", "--first", "7", "--prune", "0"]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert run.stdout is not None
    progress = run.stdout.readline()
    assert re.fullmatch(
        r"… 100 cases of 1 files, small ones more often, in \d+ s, seed 0: \d+ accepted, .* 0 with files left behind\n",
        progress,
    )
    run.send_signal(number)
    told, errors = run.communicate(timeout=60)
    assert (run.returncode, errors) == (128 + number, "")
    *_, summary, stopped = told.splitlines()
    count = int(summary.split()[0])
    assert count >= 100
    assert re.match(rf"{count} cases of 1 files, small ones more often, in \d+ s, seed 0: ", summary)
    assert stopped == f"stopped by {number.name}: --first {7 + count} --cases {100000 - count} goes on from here"
    assert [path.name for path in tmp_path.iterdir()] == ["plain.onnx"]


@pytest.mark.parametrize(("slow_before", "told"), [(True, "0 over 1 s"), (False, "1 over 1 s")])
def test_what_is_slow_undamaged_is_no_hang(tmp_path: Path, slow_before: bool, told: str) -> None:
    (tmp_path / "net.onnx").write_bytes(b"whole")
    code = IMPORTED.format(tools=str(TOOL.parent)) + (
        "def slow():\n"
        f"    while {slow_before} or pathlib.Path('model.onnx').read_bytes() == b'damaged': pass\n"
        "fuzz.cli.main, fuzz._warm_up = slow, lambda: None\n"
        "fuzz.mutations.mutate = lambda *_: ('damage', b'damaged')\n"
        "sys.argv = ['fuzz', sys.argv[1], '--timeout', '1', '--cases', '1', '--save', sys.argv[1]]\n"
        "sys.exit(fuzz.main())\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0 if slow_before else 1, "")
    assert told in done.stdout
    assert ("1 over 1 s as the file takes undamaged" in done.stdout) == slow_before
    assert ("so does net.onnx undamaged" in done.stdout) == slow_before


def test_a_fault_of_the_fuzzer_itself_ends_with_a_summary_too(tmp_path: Path) -> None:
    onnx.save(small_models.plain(), tmp_path / "plain.onnx")
    code = IMPORTED.format(tools=str(TOOL.parent)) + (
        "fuzz.mutations.mutate = lambda *_: 1 / 0\nsys.exit(fuzz.main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "plain.onnx"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stdout.startswith("0 cases of 1 files, small ones more often, in ")
    assert "ZeroDivisionError" in done.stderr
