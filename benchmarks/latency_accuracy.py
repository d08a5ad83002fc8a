"""What widths chosen by measured time are worth: accuracy of two files that take as long, pruned to a latency and to MACs.

    python benchmarks/latency_accuracy.py --model zoo/aka_cifar_resnet56.onnx --calibration data/cifar10_calibration.npz \
        --test data/cifar10_test.npz --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --share 65 --batch 64 [--json FILE]

One file is pruned with `--target latency=65%`, measured at this batch in this engine. For the other, the share of the MACs is
searched for whose file takes as long as the first: each step is a whole run of `prune` and a measurement beside the original
and the first file, the next share lying on the line through the nearest measurements, until the two differ by no more than
--close, for at most --steps steps; the nearest is taken. Both files then run in turn with the original once more, and on the
test images: top-1 accuracy where there are labels, agreement with the original's top-1, error of the outputs.

A file that takes one image at a time is measured, and pruned, as a copy that takes any number.

Every run of `prune` and every measurement is a process of its own. The JSON file is written after each step.
"""

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
from accuracy_cases import Case
from accuracy_measure import Reference, open_data
from common import GIB, ChildError, in_child

import thinet_onnx
from thinet_onnx import engines, runtime, summary
from thinet_onnx.cli.shared import floats
from thinet_onnx.data import random_source
from thinet_onnx.errors import ThinetError
from thinet_onnx.machine import machine
from thinet_onnx.setting import closed_inputs, open_model

Row = dict[str, Any]
_LEAST, _MOST = 0.02, 0.99  # of the MACs, that are tried


def pruned(case: Case, target: str, options: dict[str, Any], output: Path) -> Row:
    """Child: prune; the share of the MACs that remains, and what the report warns of."""
    report = thinet_onnx.prune(case.model, open_data(case, 0)[0], target=target, output=output, **options).report
    return {"macs": report.after.macs / report.before.macs, "note": "; ".join(report.warnings)}


def measured(case: Case, files: list[Path], batch: int, engine: str, threads: int, seconds: float) -> list[float]:
    """Child: how long pruned files take, as shares of the original's time, all run in turn.

    Raises:
        ThinetError: one of them can't be run.
    """
    report = thinet_onnx.bench(
        case.model, *files, data=open_data(case, 0)[0], batches=(batch,), engines=(engine,), threads=threads,  # type: ignore[arg-type]
        seconds=seconds, shapes=dict(case.shapes),
    )  # fmt: skip
    if report.not_measured:
        raise ThinetError(f"{report.not_measured[0].file}: {report.not_measured[0].reason}")
    return [row.ratio.median for row in report.rows[1:] if row.ratio is not None]


def tested(case: Case, files: list[Path]) -> list[Row]:
    """Child: the original and pruned files on the test images."""
    reference = Reference(case, open_data(case, 0)[1])
    return [reference.measure(file) for file in (case.model, *files)]


def following(points: Sequence[tuple[float, float]], wanted: float) -> float:
    """The next share of the MACs to try.

    On the line between the nearest points on both sides of what is wanted; where none lies below, on the line from the whole
    network through the nearest one.

    Args:
        points: shares of the MACs, and of the time, so far.
        wanted: share of the time.
    """
    below = max((point for point in points if point[1] <= wanted), key=lambda point: point[1], default=None)
    above = min((point for point in [*points, (1.0, 1.0)] if point[1] > wanted), key=lambda point: point[1])
    if below is None and not points:
        return wanted
    start, end = (above, (1.0, 1.0)) if below is None else (below, above)
    if end[1] <= start[1]:  # nothing gained so far
        return max(0.8 * start[0], _LEAST)
    share = start[0] + (wanted - start[1]) / (end[1] - start[1]) * (end[0] - start[0])
    return min(max(share, _LEAST), _MOST)


class Comparison:
    """The two files, step by step."""

    def __init__(self, args: argparse.Namespace, case: Case, folder: Path) -> None:
        self.args, self.case, self.folder = args, case, folder
        self.options: dict[str, Any] = {"scope": args.scope, "round_to": args.round_to, "shapes": dict(case.shapes)}
        self.found: dict[str, Any] = {"steps": []}

    def child(self, function: Any, *arguments: Any) -> Any:
        """A fresh process."""
        args = self.args
        return in_child(
            function, self.case, *arguments, seconds=args.limit, memory=args.memory * GIB, threads=args.threads
        )

    def keep(self) -> None:
        """Write what is there so far."""
        if self.args.json is not None:
            meta = {"command": shlex.join(sys.argv), "machine": vars(machine()), "versions": summary.versions()}
            self.args.json.write_text(json.dumps({**meta, **self.found}, indent=1) + "\n", encoding="utf-8")

    def ratios(self, *files: Path) -> list[float]:
        """Of these files, measured in turn with the original."""
        args = self.args
        found: list[float] = self.child(measured, list(files), args.batch, args.engine, args.threads, args.seconds)
        return found

    def timed(self) -> Path:
        """The file pruned to a latency."""
        args, path = self.args, self.folder / "latency.onnx"
        how = {"engine": args.engine, "latency_batch": args.batch, "threads": args.threads}
        row = self.child(pruned, f"latency={args.share:g}%", self.options | how, path)
        (row["ratio"],) = self.ratios(path)
        self.found["latency"] = row
        self.keep()
        print(
            f"latency={args.share:g}%: {row['ratio']:.1%} of the time, {row['macs']:.1%} of the MACs  {row['note']}",
            flush=True,
        )
        return path

    def counted(self, timed: Path) -> Path:
        """The file pruned to MACs that takes as long, as nearly as the steps come."""
        best, nearest, points = timed, float("inf"), list[tuple[float, float]]()
        for step in range(self.args.steps):
            wanted = self.found["latency"]["ratio"]
            share = following(points, wanted)
            path = self.folder / f"macs_{step}.onnx"
            row = self.child(pruned, f"macs={100 * share:.3f}%", self.options, path)
            first, ratio = self.ratios(timed, path)
            off = ratio / first - 1
            self.found["steps"].append({"share": share, **row, "ratio": ratio, "beside": first})
            self.keep()
            print(f"macs={share:.1%}: {ratio:.1%} of the time, {off:+.1%} of the other's  {row['note']}", flush=True)
            points.append((share, wanted * ratio / first))  # as if both had been measured in one go
            if abs(off) < nearest:
                best, nearest = path, abs(off)
            if nearest <= self.args.close:
                break
        return best

    def run(self) -> None:
        """All of it."""
        timed = self.timed()
        files = [timed, self.counted(timed)]
        ratios = self.ratios(*files)
        rows = self.child(tested, files)
        names = ("original", "latency target", "MACs target")
        self.found["rows"] = [
            {"file": name, "ratio": ratio, **row} for name, ratio, row in zip(names, [1.0, *ratios], rows, strict=True)
        ]
        self.keep()
        print(f"\n{'file':16s} {'time':>7s} {'MACs':>7s} {'top-1':>7s} {'agrees':>7s} {'error':>7s}")
        for row in self.found["rows"]:
            cells = (row["ratio"], row["macs"], row.get("accuracy"), row.get("agreement"), row["error"])
            print(f"{row['file']:16s} " + " ".join(f"{'–':>7s}" if cell is None else f"{cell:7.2%}" for cell in cells))


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "calibration", "test"):
        made.add_argument(f"--{name}", type=Path, required=True)
    made.add_argument("--mean", default=None)
    made.add_argument("--std", default=None)
    made.add_argument("--samples", type=int, default=1024, help="calibration images (default 1024)")
    made.add_argument("--tests", type=int, help="test images (default all)")
    made.add_argument("--share", type=float, default=65, help="percent of the original's time (default 65)")
    made.add_argument("--engine", choices=("ort", "openvino", "tensorrt"), default="ort")
    made.add_argument("--batch", type=int, default=64)
    made.add_argument("--threads", type=int, default=0, help="default all")
    made.add_argument("--scope", choices=("inner", "all"), default="inner")
    made.add_argument("--round-to", type=int, help="default by the width of each group")
    made.add_argument("--steps", type=int, default=5, help="of the search for the MACs, at most (default 5)")
    made.add_argument("--close", type=float, default=0.01, help="times that differ no more are equal (default 0.01)")
    made.add_argument("--seconds", type=float, default=10, help="of each measurement (default 10)")
    made.add_argument("--limit", type=float, default=3600, help="seconds for one child")
    made.add_argument("--memory", type=float, default=16, help="GiB of data that a child may hold")
    made.add_argument("--files", type=Path, help="keep the pruned networks in this folder")
    made.add_argument("--json", type=Path)
    return made


def opened(path: Path, folder: Path, batch: int) -> Path:
    """The file, or a copy with an open batch where its own is another number.

    Raises:
        ThinetError: the file can't be read.
    """
    setting = open_model(path, {})
    if all(spec.shape[0] in (None, batch) for spec in setting.inputs):
        return path
    feeds = random_source(closed_inputs(setting, {}), samples=1, seed=0).batch([0])
    copy = runtime.runnable(runtime.with_open_batch(setting.graph, runtime.observed_shapes(setting.graph, feeds)))
    onnx.save(copy, folder / f"{path.stem}_open.onnx")
    return folder / f"{path.stem}_open.onnx"


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare; 1 if a child failed, 2 for a mistake in the options."""
    args = parser().parse_args(arguments)
    try:
        engines.make(args.engine)
        pixels = {"mean": floats("--mean", args.mean), "std": floats("--std", args.std)}
        with tempfile.TemporaryDirectory() as folder:
            files = args.files or Path(folder)
            files.mkdir(parents=True, exist_ok=True)
            model = opened(args.model, files, args.batch)
            case = Case(model, args.calibration, args.test, (), samples=args.samples, tests=args.tests, pixels=pixels)
            Comparison(args, case, files).run()
    except (ThinetError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    except ChildError as error:
        print(f"{error.kind}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
