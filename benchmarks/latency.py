"""Latency of pruned files beside the originals': networks × targets × widths × engines × batches.

    python benchmarks/latency.py --shared FOLDER [--json FILE] [--files FOLDER] [--samples 128] [--threads 2]
    python benchmarks/latency.py resnet50 efficientnet_lite0_l13 --shared FOLDER --engines ort --batches 1 [...]

A network is a name of `accuracy_cases.py` (calibrated there on the images that are used here, in `zoo/` and `data/` of
--shared), a name of `networks.py` (random weights) or an .onnx file; the latter two are calibrated on noise.

Each is pruned to 70% and 50% of the MACs, and for each engine and batch to 60% of the latency measured there, with widths in
multiples of 8 and with any widths. Where a target can't be reached, the least that can be takes its place (`reached`): all
groups at their narrowest for MACs, for latency the first of 70%, 80%, 90% that is met. Original and pruned file then run in
turn on the same inputs (`thinet_onnx.bench`); a row has the median of each and, over rounds, the median and the quartiles of
pruned / original. At the end come the geometric means over the networks, and the rows that are slower than the original.

Every prune and every measurement is a process of its own. The JSON file is written after each row; run again with the same
file, rows that are there aren't measured again. `--files` keeps the pruned networks, and takes those that are there.
"""

import argparse
import dataclasses
import json
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networks
import numpy as np
import onnx
from accuracy_cases import SUITES, Case
from accuracy_measure import open_data
from common import GIB, ChildError, in_child

import thinet_onnx
from thinet_onnx import engines, errors, summary
from thinet_onnx.errors import TargetError, ThinetError
from thinet_onnx.machine import machine

Row = dict[str, Any]
NETWORKS = ("mobilenet_v2_tv_l11_bn", "efficientnet_lite0_l13", "picodet_s_320_coco", "ppocrv4_det", "resnet50")
TARGETS = ("macs=70%", "macs=50%", "latency=60%")
KEYS = ("network", "target", "round_to", "engine", "batch", "samples", "threads", "scope")  # what a row is known by
_LESS = (70, 80, 90)  # percent of the latency that are tried where a target can't be reached
_HOUR = 3600.0


@dataclass(frozen=True)
class Subject:
    """A network: a file, and how it is calibrated (on noise where `case` is None)."""

    name: str
    path: Path
    case: Case | None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Sizes of inputs that the file leaves open."""
        return {} if self.case is None else dict(self.case.shapes)

    def data(self) -> Any:
        """Calibration images, None for noise."""
        return None if self.case is None else open_data(self.case, 0)[0]


@dataclass(frozen=True)
class Wanted:
    """One pruned file; `engine` and `batch` are those that a latency target is measured at, and say nothing for others."""

    target: str
    round_to: int
    engine: str = "ort"
    batch: int = 1

    @property
    def timed(self) -> bool:
        """Whether the target is a time."""
        return self.target.startswith("latency")

    @property
    def stem(self) -> str:
        """Part of the file's name."""
        where = f"_{self.engine}_b{self.batch}" if self.timed else ""
        return f"{self.target.replace('=', '').replace('%', '')}_r{self.round_to}{where}"


@dataclass(frozen=True)
class Setup:
    """What holds for all rows."""

    samples: int
    threads: int
    scope: str
    seconds: float


def pruned(subject: Subject, wanted: Wanted, setup: Setup, output: Path) -> Row:
    """Child: prune to the target, or to the least that can be reached; what became of it."""
    data = subject.data()
    common: dict[str, Any] = {"scope": setup.scope, "round_to": wanted.round_to, "shapes": subject.shapes}
    timed = {"engine": wanted.engine, "latency_batch": wanted.batch, "threads": setup.threads} if wanted.timed else {}
    noise: dict[str, Any] = {"random_data": True, "samples": setup.samples} if data is None else {}
    for target in _attempts(subject, wanted, common):
        try:
            report = thinet_onnx.prune(
                subject.path, data, target=target, output=output, **common, **timed, **noise
            ).report
        except TargetError as error:
            unreachable = error
            continue
        found = {"reached": target, "macs": report.after.macs / report.before.macs, "prune_seconds": report.seconds}
        if report.latency_target is not None:
            found["measured_then"] = report.latency_target.measured
        missed = [text for text in report.warnings if text.startswith("Target missed")]
        notes = [f"{wanted.target} can't be reached", *missed] if target != wanted.target else missed
        return {**found, "note": "; ".join(notes)}
    raise unreachable


def _attempts(subject: Subject, wanted: Wanted, common: dict[str, Any]) -> Iterator[str]:
    """The target, then what takes its place."""
    yield wanted.target
    if wanted.timed:
        share = float(wanted.target.partition("=")[2].rstrip("%"))
        yield from (f"latency={percent}%" for percent in _LESS if percent > share)
        return
    narrowest = thinet_onnx.prune(
        subject.path, None, keep=1e-6, method="random", reconstruct="none", random_data=True, samples=2, **common
    ).report
    yield f"macs={100.1 * narrowest.after.macs / narrowest.before.macs:.3f}%"


def measured(subject: Subject, small: Path, engine: str, batch: int, setup: Setup) -> Row:
    """Child: both files in turn.

    Raises:
        ThinetError: the engine can't run one of them at this batch.
    """
    report = thinet_onnx.bench(
        subject.path, small, data=subject.data(), batches=(batch,), engines=(engine,), threads=setup.threads,  # type: ignore[arg-type]
        seconds=setup.seconds, shapes=subject.shapes,
    )  # fmt: skip
    if report.not_measured:
        raise ThinetError(f"{report.not_measured[0].file}: {report.not_measured[0].reason}")
    dense, less = report.rows
    assert less.ratio is not None
    return {
        "dense_ms": dense.timing.median_ms, "pruned_ms": less.timing.median_ms, "ratio": less.ratio.median,
        "low": less.ratio.low, "high": less.ratio.high, "runs": less.timing.runs, "engine_title": dense.engine,
        "warnings": list(report.warnings),
    }  # fmt: skip


class Table:
    """The rows so far, on screen and in a file that may have some already."""

    def __init__(self, file: Path | None) -> None:
        self.file = file
        there = file is not None and file.exists()
        self.rows: list[Row] = json.loads(file.read_text(encoding="utf-8"))["rows"] if there else []  # type: ignore[union-attr]

    def has(self, row: Row) -> bool:
        """Whether it has been measured."""
        return any(all(old.get(key) == row[key] for key in KEYS) for old in self.rows)

    def add(self, row: Row) -> None:
        """Keep a row, print it, write the file."""
        self.rows.append(row)
        print(line(row), flush=True)
        if self.file is not None:
            meta = {"command": shlex.join(sys.argv), "machine": vars(machine()), "versions": summary.versions()}
            text = json.dumps({**meta, "rows": self.rows}, indent=1) + "\n"
            self.file.write_text(text, encoding="utf-8")


HEADER = (
    f"{'network':24s} {'target':12s} {'round':>5s} {'engine':9s} {'batch':>5s} {'MACs':>6s} {'dense ms':>9s} {'pruned ms':>9s} "
    f"{'ratio':>6s} {'quartiles':>13s}  note"
)


def line(row: Row) -> str:
    """A row of the table."""
    head = f"{row['network'][:24]:24s} {row['target']:12s} {row['round_to']:5d} {row['engine']:9s} {row['batch']:5d}"
    macs = f"{row['macs']:6.1%}" if "macs" in row else f"{'–':>6s}"
    note = row.get("note", "")
    if "ratio" not in row:
        return f"{head} {macs} {'–':>9s} {'–':>9s} {'–':>6s} {'–':>13s}  {note}"
    if row["reached"] != row["target"]:
        note = f"{row['reached']}: {note}"
    flag = "SLOWER " if row["ratio"] > 1 else ""
    return (
        f"{head} {macs} {row['dense_ms']:9.3f} {row['pruned_ms']:9.3f} {row['ratio']:6.3f} "
        f"{row['low']:6.3f}–{row['high']:6.3f}  {flag}{note}"
    )


def means(rows: Sequence[Row]) -> list[str]:
    """Geometric means of the ratios over networks, a line for each target, rounding, engine and batch."""
    told = []
    for key in dict.fromkeys(tuple(row[name] for name in KEYS[1:5]) for row in rows):
        ratios = [row["ratio"] for row in rows if "ratio" in row and tuple(row[name] for name in KEYS[1:5]) == key]
        if ratios:
            target, step, engine, batch = key
            mean = float(np.exp(np.mean(np.log(ratios))))
            told.append(
                f"{target:12s} round-to {step}  {engine:9s} batch {batch:2d}  {mean:.3f}  over {len(ratios)} networks"
            )
    return told


def subject_of(name: str, shared: Path, samples: int, folder: Path) -> Subject:
    """A network by its name.

    Raises:
        SystemExit: there is none.
    """
    cases = {case.model.stem: case for suite in SUITES.values() for case in suite(shared)}
    if name in cases:
        case = dataclasses.replace(cases[name], samples=min(samples, cases[name].samples))
        return Subject(name, case.model, case)
    if name.endswith(".onnx"):
        return Subject(Path(name).stem, Path(name), None)
    path = folder / f"{name.replace(':', '_')}.onnx"
    onnx.save(networks.make(name), path)
    return Subject(name, path, None)


class Runner:
    """One run of this benchmark."""

    def __init__(self, args: argparse.Namespace, table: Table, files: Path) -> None:
        self.args, self.table, self.files = args, table, files
        self.setup = Setup(args.samples, args.threads, args.scope, args.seconds)
        self.failures: dict[Path, Row] = {}

    def child(self, function: Any, *arguments: Any) -> Row:
        """What a child found; where it failed, `failed` and a note."""
        args = self.args
        try:
            return in_child(  # type: ignore[no-any-return]
                function, *arguments, seconds=args.limit, memory=args.memory * GIB, threads=args.threads
            )
        except ChildError as error:
            return {"failed": error.kind, "note": f"{error.kind}: {error}"}

    def file(self, subject: Subject, wanted: Wanted) -> tuple[Path, Row]:
        """The pruned file and what is known of it; made unless it is there."""
        path = self.files / f"{subject.name.replace(':', '_')}_{wanted.stem}.onnx"
        beside, known = path.with_suffix(".json"), {"subject": subject.name, **vars(self.setup), **vars(wanted)}
        if beside.exists() and path.exists():
            kept = json.loads(beside.read_text(encoding="utf-8"))
            if kept["of"] == known:
                return path, kept["found"]
        if path in self.failures:
            return path, self.failures[path]
        found = self.child(pruned, subject, wanted, self.setup, path)
        if "failed" in found:
            self.failures[path] = found
        else:
            beside.write_text(json.dumps({"of": known, "found": found}, indent=1) + "\n", encoding="utf-8")
        return path, found

    def network(self, subject: Subject) -> None:
        """All rows of one network."""
        args = self.args
        for target in args.targets:
            for step in args.round_to:
                for engine in args.engines:
                    for batch in args.batches:
                        self.cell(subject, Wanted(target, step, engine, batch))

    def cell(self, subject: Subject, wanted: Wanted) -> None:
        """One row."""
        setup = self.setup
        row = {
            "network": subject.name, **vars(wanted), "samples": setup.samples, "threads": setup.threads, "scope": setup.scope
        }  # fmt: skip
        if self.table.has(row):
            return
        plain = wanted if wanted.timed else Wanted(wanted.target, wanted.round_to)
        path, found = self.file(subject, plain)
        row |= found
        if "failed" not in found:
            row |= self.child(measured, subject, path, wanted.engine, wanted.batch, setup)
        self.table.add(row)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("networks", nargs="*", default=NETWORKS, metavar="NETWORK", help=f"default {', '.join(NETWORKS)}")
    made.add_argument("--shared", type=Path, default=Path(), help="folder with zoo/ and data/")
    made.add_argument("--targets", nargs="+", default=TARGETS, metavar="TARGET", help=f"default {' '.join(TARGETS)}")
    made.add_argument("--round-to", nargs="+", type=int, default=(8, 1), metavar="N", help="default 8 1")
    made.add_argument("--engines", nargs="+", choices=("ort", "openvino", "tensorrt"), default=("ort", "openvino"))
    made.add_argument("--batches", nargs="+", type=int, default=(1, 16), metavar="N", help="default 1 16")
    made.add_argument("--scope", choices=("inner", "all"), default="inner")
    made.add_argument("--samples", type=int, default=128, help="calibration images (default 128)")
    made.add_argument("--threads", type=int, default=0, help="default all")
    made.add_argument("--seconds", type=float, default=10, help="of each measurement (default 10)")
    made.add_argument("--limit", type=float, default=_HOUR, help="seconds for one child")
    made.add_argument("--memory", type=float, default=16, help="GiB of data that a child may hold")
    made.add_argument("--files", type=Path, help="keep the pruned networks in this folder")
    made.add_argument("--json", type=Path)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print; 1 if something is slower than the original or a child crashed, 2 for a mistake in the options."""
    args = parser().parse_args(arguments)
    table = Table(args.json)
    with tempfile.TemporaryDirectory() as folder:
        files = args.files or Path(folder)
        files.mkdir(parents=True, exist_ok=True)
        try:
            for engine in args.engines:
                engines.make(engine)
            subjects = [subject_of(name, args.shared, args.samples, Path(folder)) for name in args.networks]
        except ThinetError as error:
            print(error, file=sys.stderr)
            return 2
        print(HEADER)
        for row in table.rows:
            print(line(row))
        runner = Runner(args, table, files)
        for subject in subjects:
            runner.network(subject)
    print("\ngeometric means of pruned / original:", *means(table.rows), sep="\n  ")
    slower = [row for row in table.rows if row.get("ratio", 0) > 1]
    if slower:
        print("\nslower than the original:", *map(line, slower), sep="\n  ")
    crashed = [row for row in table.rows if "failed" in row and not hasattr(errors, row["failed"])]
    return 1 if slower or crashed else 0


if __name__ == "__main__":
    raise SystemExit(main())
