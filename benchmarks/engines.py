"""Pruned files in other engines: OpenVINO's answers beside ONNX Runtime's, and whether TensorRT is expected to take them.

    python benchmarks/engines.py --shared FOLDER [--json FILE] [--only NAME ...] [--target macs=60%] [--samples 32]

Ten networks of `zoo/` in --shared (classifiers, detectors, a text segmenter, super-resolution; Keras' NHWC; shuffles) are
pruned on images of `data/`, and `thinet-onnx verify` looks at each file, on images that didn't calibrate it. The columns:

    MACs         what remains
    error        of the pruned file's outputs, relative to the original's (few images and no training: not a figure to quote)
    OpenVINO     largest difference from ONNX Runtime's answers to the same file, relative to the largest value of an output,
                 over 8 images; the same of the original file. The bar is 1e-3
    not read     operators that TensorRT's parser doesn't read, or not in the way they are used
    off 8        layers whose channels are no multiples of 8, of all, and the multiply-accumulates that padding adds
    types        constants that TensorRT can't take as they are: float64, or int64 beyond the range of int32
    profile      inputs with open sizes, which need an optimization profile

Below the table stand the sentences of the readiness check in full. TensorRT itself isn't run. Each network has a process and a
time limit of its own. The JSON file is written after each; run again with the same file, networks that are there aren't
measured again. Exit code 1 if a file isn't loaded, is over the bar, or isn't ready.
"""

import argparse
import dataclasses
import json
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accuracy_cases import SUITES, Case
from accuracy_measure import open_data
from common import GIB, ChildError, in_child

import thinet_onnx
from thinet_onnx import engines, summary
from thinet_onnx.acceptance.result import VerifyReport
from thinet_onnx.machine import machine

Row = dict[str, Any]
BAR = 1e-3  # of OpenVINO's answers
_MORE: Mapping[str, Mapping[str, Any]] = {
    "keras_mobilenet_v2": {"scale": 1.0, "mean": (127.5,), "std": (127.5,)},
    "own_yolov8_like_l12": {},
    "shufflenetv2_l11": {},
}
"""Networks that no suite of `accuracy_cases.py` has, and how their images are made."""


def cases(shared: Path, samples: int, tests: int) -> list[Case]:
    """The ten networks, with so many images."""
    known = {case.model.stem: case for suite in ("cifar", "imagenet", "detectors") for case in SUITES[suite](shared)}
    known.pop("aka_cifar_resnet56")  # the same pattern as ResNet-20
    like = known["ultraface_rfb320"]
    more = [
        dataclasses.replace(like, model=shared / "zoo" / f"{name}.onnx", pixels=pixels)
        for name, pixels in _MORE.items()
    ]
    return [dataclasses.replace(case, samples=samples, tests=tests) for case in (*known.values(), *more)]


def measured(case: Case, target: str, scope: str, output: Path) -> Row:
    """Child: prune, verify for both engines; a row."""
    calibration, test = open_data(case, 0)
    shapes = dict(case.shapes)
    thinet_onnx.prune(case.model, calibration, target=target, scope=scope, shapes=shapes, output=output)  # type: ignore[arg-type]
    common: dict[str, Any] = {"shapes": shapes, "threads": 1}
    there = thinet_onnx.verify_pruned(output, case.model, test, engines=("openvino",), tolerance=BAR, **common)
    ready = thinet_onnx.verify_pruned(output, case.model, test, engines=("tensorrt",), precision="fp16", **common)
    return {"network": case.model.stem, "images": len(test), **_openvino(there), **_tensorrt(ready)}


def _openvino(report: VerifyReport) -> Row:
    (answer,) = report.engines
    assert report.before is not None
    assert report.after is not None
    return {
        "macs": report.after.macs / report.before.macs,
        "errors": {row.output: row.relative_error for row in report.outputs},
        "engine": answer.called, "difference": answer.difference, "original": answer.original, "inputs": answer.samples,
        "failures": [f"{check.name}: {check.detail}" for check in report.failures],
        "versions": report.versions,
    }  # fmt: skip


def _tensorrt(report: VerifyReport) -> Row:
    (found,) = report.readiness
    assert found.padding is not None
    return {
        "rules": found.rules, "ready": not found.failures, "findings": [dataclasses.asdict(entry) for entry in found.findings],
        "layers": found.padding.layers, "padded": len(found.padding.padded), "extra": found.padding.extra,
        "multiple": found.padding.multiple,
    }  # fmt: skip


HEADER = (
    f"{'network':24s} {'MACs':>6s} {'error':>7s} {'OpenVINO':>9s} {'original':>9s} {'':4s}  {'not read':>8s} {'off 8':>16s} "
    f"{'types':>5s} {'profile':>7s}  ready"
)


def line(row: Row) -> str:
    """A row of the table."""
    if "failed" in row:
        return f"{row['network'][:24]:24s} {row['failed']}: {row['note']}"
    errors = [error for error in row["errors"].values() if error is not None]
    away = "–" if row["difference"] is None else f"{row['difference']:.1e}"
    original = "–" if row["original"] is None else f"{row['original']:.1e}"
    padded = f"{row['padded']} of {row['layers']} +{row['extra']:.1%}"
    return (
        f"{row['network'][:24]:24s} {row['macs']:6.1%} {max(errors, default=0):7.1%} {away:>9s} {original:>9s} "
        f"{'ok' if agrees(row) else 'OVER':4s}  {_count(row, 'operators', 'fail'):8d} {padded:>16s} "
        f"{_count(row, 'types', 'fail', 'warn'):5d} {_count(row, 'sizes', 'note'):7d}  {'yes' if row['ready'] else 'NO'}"
    )


def agrees(row: Row) -> bool:
    """Whether OpenVINO loads the file and answers within the bar."""
    return row.get("difference") is not None and row["difference"] <= BAR


def good(row: Row) -> bool:
    """Whether nothing is to be said against a row."""
    return "failed" not in row and agrees(row) and row["ready"] and not row["failures"]


def _count(row: Row, topic: str, *levels: str) -> int:
    return sum(entry["topic"] == topic and entry["level"] in levels for entry in row["findings"])


def told(row: Row) -> list[str]:
    """All that was found of a file, below the table."""
    said = [f"{entry['level']}: {entry['text']}" for entry in row.get("findings", [])]
    return [row["network"], *(f"  {text}" for text in (*said, *row.get("failures", [])))]


def kept(path: Path | None, setup: Row) -> list[Row]:
    """The rows of an earlier run with the same setup."""
    if path is None or not path.exists():
        return []
    rows: list[Row] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return [row for row in rows if "failed" not in row and {key: row.get(key) for key in setup} == setup]


def write(path: Path | None, rows: Sequence[Row]) -> None:
    """Keep the rows so far."""
    if path is not None:
        meta = {"command": shlex.join(sys.argv), "machine": vars(machine()), "versions": summary.versions()}
        text = json.dumps({**meta, "rows": rows}, indent=1, ensure_ascii=False) + "\n"
        path.write_text(text, encoding="utf-8")


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--shared", type=Path, required=True, help="folder with zoo/ and data/")
    made.add_argument("--only", nargs="*", metavar="NAME", help="these networks")
    made.add_argument("--target", default="macs=60%", help="default macs=60%%")
    made.add_argument("--scope", choices=("inner", "all"), default="inner")
    made.add_argument("--samples", type=int, default=32, help="calibration images (default 32)")
    made.add_argument("--tests", type=int, default=8, help="other images, to compare answers on (default 8)")
    made.add_argument("--files", type=Path, help="keep the pruned networks in this folder")
    made.add_argument("--limit", type=float, default=1800, help="seconds for one network")
    made.add_argument("--json", type=Path)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print; 1 if something is to be said against a file, 2 where OpenVINO isn't installed."""
    args = parser().parse_args(arguments)
    if (missing := engines.missing("openvino")) is not None:
        print(missing, file=sys.stderr)
        return 2
    setup = {"target": args.target, "scope": args.scope, "samples": args.samples, "tests": args.tests}
    rows = kept(args.json, setup)
    print(HEADER)
    with tempfile.TemporaryDirectory() as folder:
        files = args.files or Path(folder)
        files.mkdir(parents=True, exist_ok=True)
        for case in cases(args.shared, args.samples, args.tests):
            name = case.model.stem
            if args.only and name not in args.only:
                continue
            there = [row for row in rows if row["network"] == name]
            if there:
                print(line(there[0]))
                continue
            output = files / f"{name}_pruned.onnx"
            try:
                row = in_child(
                    measured, case, args.target, args.scope, output, seconds=args.limit, memory=16 * GIB, threads=1
                )
            except ChildError as error:
                row = {"network": name, "failed": error.kind, "note": str(error)}
            rows.append(setup | row)
            print(line(row), flush=True)
            write(args.json, rows)
    print("", *(text for row in rows for text in told(row)), sep="\n")
    print(
        f"\n{sum(map(good, rows))} of {len(rows)} load and agree within {BAR:g} in OpenVINO, and are ready for TensorRT"
    )
    return 0 if all(map(good, rows)) else 1


if __name__ == "__main__":
    raise SystemExit(main())
