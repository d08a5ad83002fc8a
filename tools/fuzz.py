"""Damage files in many ways and see what `thinet-onnx` says to each: an answer, one sentence, or a defect.

Every case is a process of its own, forked from one that has loaded everything, with a limit on its time and its memory. It
runs `inspect` in an empty folder, and for a share of the files that pass, `prune --random-data`; a .json file, the report of
a run, goes to `report`. What is neither accepted nor refused (exit code 0, or 2 with one line, and no new file but the
output) is counted, saved with its seed, and can be replayed.

Small files are damaged more often than large ones, whose cases take longer and find no more: a file of 4 MiB an eighth as
often as one of 64 KiB or less, by the square root in between. A line after every hundred cases says what came of them so
far, and a run that is stopped (Ctrl-C, SIGTERM) ends with its summary, and with the option that goes on from there.

    python tools/fuzz.py                                        # 300 cases of models/*.onnx
    python tools/fuzz.py some/folder net.onnx result.json --cases 5000 --seed 3
    python tools/fuzz.py some/folder --cases 5000 --first 1200  # the rest of a run that was stopped there
    python tools/fuzz.py --replay fuzz-failures/*.onnx

Exit code 1 if any case ended in a traceback, took too long (and longer than the file undamaged, which is tried then), or
left files behind; a process killed from within onnx
or ONNX Runtime is reported, and fails the run with --strict. Linux only (fork, pidfd, resource limits).
"""

import argparse
import gc
import importlib
import json
import os
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import mutations
import numpy as np

from thinet_onnx import cli

ROOT = Path(__file__).parents[1]
PREFIX = "thinet-onnx: error: "
PRUNE = ("prune", "model.onnx", "out.onnx", "--random-data", "--samples", "4", "--keep", "0.5")
INSPECT = ("inspect", "model.onnx")
REPORT = ("report", "result.json", "out.html")
OUTPUTS = {PRUNE: "out.onnx", REPORT: "out.html", INSPECT: None}
FINE, REFUSED, TRACEBACK, HANG, KILLED, LITTER = "accepted", "refused", "traceback", "hang", "killed", "litter"
SLOW = "slow"  # took too long, but so does the file that was damaged
DEFECTS = (TRACEBACK, HANG, LITTER)
TOLD = {
    TRACEBACK: "with a traceback",
    HANG: "over {:g} s",
    KILLED: "killed by a signal",
    LITTER: "with files left behind",
    SLOW: "over {:g} s as the file takes undamaged",
}
"""How the summary calls what the cases came to."""
SMALL = 1 << 16  # bytes; files up to this size are damaged equally often
EVERY = 100  # cases between two lines that say how far the run is


STOPPED: list[int] = []  # the signals that asked the run to stop; a handler that raises can be lost in a hook of fork


class _StopError(Exception):
    """The run was asked to stop."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended: one of the words above, the command, and what there is to say about it."""

    kind: str
    command: str
    detail: str


@dataclass(frozen=True)
class Limits:
    """Of one command: seconds of processor time (and ten times as many by the clock), bytes it may ask for."""

    seconds: float
    memory: int


def main() -> int:
    """Run the cases, or replay some; the exit code."""
    options = _arguments()
    limits = Limits(options.timeout, options.memory << 20)
    _warm_up()
    if options.replay:
        outcomes = [_replayed(Path(file), limits) for file in options.paths]
        return int(any(outcome.kind in (*DEFECTS, KILLED) for outcome in outcomes))
    run = Run(options, limits)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        run.cases()
    finally:
        print(run.summary(), flush=True)
    return 128 + STOPPED[0] if STOPPED else int(run.failed)


def _stop(number: int, _frame: FrameType | None) -> None:
    STOPPED.append(number)


class Run:
    """The cases of one run, and what came of them so far."""

    def __init__(self, options: argparse.Namespace, limits: Limits) -> None:
        self.options, self.limits = options, limits
        files = _files(options.paths or [ROOT / "models"])
        self.files = sorted(files, key=lambda file: (file.stat().st_size, file.name))
        self.contents = [file.read_bytes() for file in self.files]
        shares = np.array([max(len(content), SMALL) for content in self.contents]) ** -0.5
        self.shares = shares / shares.sum()
        self.counts: Counter[str] = Counter()
        self.places: Counter[str] = Counter()
        self.next = options.first
        self.started = time.monotonic()

    def cases(self) -> None:
        """Run one after another, until there are enough or time is up."""
        for case in range(self.options.first, self.options.first + self.options.cases):
            if STOPPED or time.monotonic() - self.started > 60 * self.options.minutes:
                break
            try:
                self.case(case)
            except _StopError:
                break
            self.next = case + 1
            if self.counts.total() % EVERY == 0:
                print(f"… {self.told()}", flush=True)

    def case(self, case: int) -> None:
        """Damage a file, see what is said to it, count that, and keep the file if it failed."""
        seed = self.options.seed
        rng = np.random.default_rng([seed, case])
        one, other = (int(rng.choice(len(self.files), p=self.shares)) for _ in range(2))
        file = self.files[one]
        report = file.suffix == ".json"
        if report:
            names, damaged = mutations.mutate_json(self.contents[one], rng)
        else:
            names, damaged = mutations.mutate(self.contents[one], self.contents[other], rng)
        outcome = attempt(damaged, self.limits, prune=rng.random() < self.options.prune, report=report)
        if outcome.kind == HANG:
            whole = attempt(self.contents[one], self.limits, prune=outcome.command == PRUNE[0], report=report)
            if (whole.kind, whole.command) == (HANG, outcome.command):
                outcome = Outcome(SLOW, outcome.command, f"so does {file.name} undamaged")
        self.counts[outcome.kind] += 1
        if outcome.kind not in (FINE, REFUSED):
            self.places[f"{outcome.kind}: {outcome.detail.splitlines()[-1] if outcome.detail else ''}"] += 1
            origin = f"{file.name} {names} seed {seed} case {case}"
            print(f"{outcome.kind}: {outcome.command} ({origin})\n{_indented(outcome.detail)}", flush=True)
            _save(
                self.options.save / f"{outcome.kind}-{seed}-{case}{file.suffix}", damaged, f"{origin}\n{outcome.detail}"
            )

    def told(self) -> str:
        """How many cases there were, and what came of them."""
        seconds = time.monotonic() - self.started
        counted = ", ".join(
            f"{self.counts[kind]} {TOLD.get(kind, kind).format(self.limits.seconds)}"
            for kind in (FINE, REFUSED, TRACEBACK, HANG, KILLED, LITTER, *([SLOW] if self.counts[SLOW] else []))
        )
        return (
            f"{self.counts.total()} cases of {len(self.files)} files, small ones more often, in {seconds:.0f} s, "
            f"seed {self.options.seed}: {counted}"
        )

    def summary(self) -> str:
        """The end of a run: what came of it, where it failed, and how to go on if a signal stopped it."""
        lines = [self.told(), *(f"  {count} × {place}" for place, count in self.places.most_common())]
        left = self.options.first + self.options.cases - self.next
        if STOPPED and left:
            lines.append(
                f"stopped by {signal.Signals(STOPPED[0]).name}: --first {self.next} --cases {left} goes on from here"
            )
        return "\n".join(lines)

    @property
    def failed(self) -> bool:
        """Whether there was a defect."""
        return any(self.counts[kind] for kind in (*DEFECTS, *([KILLED] if self.options.strict else [])))


def _warm_up() -> None:
    """Import what the commands import, before the first fork and not in every child: a child tells what it had to load."""
    for name in ("pipeline", "page", "restore"):
        importlib.import_module(f"thinet_onnx.{name}")
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        told = Path(name, "modules.json")
        child = os.fork()
        if child == 0:
            try:
                os.chdir(name)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                os.dup2(1, 2)
                Path("model.onnx").write_bytes(min((ROOT / "models").glob("*.onnx")).read_bytes())
                before = set(sys.modules)
                for arguments in (INSPECT, (*PRUNE, "--json", REPORT[1]), REPORT):
                    sys.argv = ["thinet-onnx", *arguments]
                    with suppress(SystemExit):
                        cli.main()
                told.write_text(json.dumps(sorted(set(sys.modules) - before)), encoding="utf-8")
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        for module in json.loads(told.read_text(encoding="utf-8")) if told.exists() else ():
            with suppress(ImportError):
                importlib.import_module(module)
    gc.collect()
    gc.freeze()  # a child's collector doesn't touch, and so copy, what all of them share


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", help=".onnx files, folders of them, .json reports (default: models/)")
    parser.add_argument("--cases", type=int, default=300, help="how many damaged files are tried (default: 300)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no case begins later (default: no end)")
    parser.add_argument("--first", type=int, default=0, help="the number of the first case (default: 0)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all that is random (default: 0)")
    parser.add_argument("--timeout", type=float, default=30, help="processor seconds for one command (default: 30)")
    parser.add_argument("--memory", type=int, default=4096, help="MiB that one command may ask for (default: 4096)")
    parser.add_argument("--prune", type=float, default=0.1, help="share of cases that are pruned too (default: 0.1)")
    parser.add_argument("--save", type=Path, default=Path("fuzz-failures"), help="folder for what failed")
    parser.add_argument("--strict", action="store_true", help="a process that is killed fails the run, too")
    parser.add_argument("--replay", action="store_true", help="the paths are saved cases: run them as they are")
    return parser.parse_args()


def _files(paths: Iterable[str | Path]) -> Iterator[Path]:
    for path in map(Path, paths):
        yield from path.glob("*.onnx") if path.is_dir() else [path]


def attempt(content: bytes, limits: Limits, *, prune: bool, report: bool = False) -> Outcome:
    """Give a file to `inspect` and, if that goes well and it is wanted, to `prune`; or to `report`. The last outcome counts."""
    if report:
        return _command(content, REPORT, limits)
    outcome = _command(content, INSPECT, limits)
    if prune and outcome.kind == FINE:
        outcome = _command(content, PRUNE, limits)
    return outcome


def _command(content: bytes, arguments: tuple[str, ...], limits: Limits) -> Outcome:
    """One command in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        for part in ("work", "temporary"):
            (folder / part).mkdir()
        (folder / "work" / arguments[1]).write_bytes(content)
        code = _in_child(folder, arguments, limits)
        said = (folder / "stderr").read_text(encoding="utf-8", errors="replace")
        kind, detail = _judged(code, said)
        output = OUTPUTS[arguments] if code == 0 else None
        expected = {arguments[1]} | ({output} if output else set())
        if output and output.encode() + b".data" in (folder / "work" / output).read_bytes():
            expected.add(f"{output}.data")  # weights of a model that has them in other files
        left = {path.name for path in (folder / "work").iterdir()}
        left |= {f"temporary/{path.name}" for path in (folder / "temporary").iterdir()}
        if kind in (FINE, REFUSED) and left != expected:
            kind, detail = LITTER, f"files: {sorted(left)}"
        return Outcome(kind, arguments[0], detail)


def _judged(code: int | None, said: str) -> tuple[str, str]:
    """What an exit code (negative for a signal, None for no end) and standard error come to."""
    if code is None or code == -signal.SIGXCPU:
        return HANG, "no end within the time limit"
    if code < 0:
        return KILLED, f"{said.strip()}\n{signal.Signals(-code).name}".strip()
    if code == 0 and not said:
        return FINE, ""
    lines = said.splitlines()
    if code == 2 and len(lines) == 1 and lines[0].startswith(PREFIX):
        return REFUSED, lines[0]
    return TRACEBACK, f"{said.strip()[-3000:]}\n[exit code {code}] {lines[-1] if lines else ''}"


def _in_child(folder: Path, arguments: tuple[str, ...], limits: Limits) -> int | None:
    """Fork, run the command line there, wait; its exit code, minus the signal that ended it, or None for a hang."""
    child = os.fork()
    if child == 0:
        _become(folder, arguments, limits)
    watch = os.pidfd_open(child)
    end = time.monotonic() + 10 * limits.seconds
    ended = False
    while not ended and not STOPPED and time.monotonic() < end:
        ended = bool(select.select([watch], [], [], 0.5)[0])
    os.close(watch)
    if not ended:
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if STOPPED:
        raise _StopError
    return status if ended else None


def _become(folder: Path, arguments: tuple[str, ...], limits: Limits) -> None:
    """In the child: limits, streams to files, the command line; never returns."""
    code = 99
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(folder / "work")
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(folder / name, os.O_CREAT | os.O_WRONLY), number)
        tempfile.tempdir = str(folder / "temporary")
        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + limits.memory,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (int(limits.seconds), int(limits.seconds) + 5))
        sys.argv = ["thinet-onnx", *arguments]
        cli.main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _replayed(file: Path, limits: Limits) -> Outcome:
    outcome = attempt(file.read_bytes(), limits, prune=True, report=file.suffix == ".json")
    print(f"{file}: {outcome.kind} ({outcome.command})\n{_indented(outcome.detail)}", flush=True)
    return outcome


def _save(file: Path, content: bytes, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    file.with_suffix(".txt").write_text(text + "\n", encoding="utf-8")


def _indented(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.splitlines()[-12:]).rstrip()


if __name__ == "__main__":
    sys.exit(main())
