"""Pruning, then 8 bits: what ONNX Runtime's static quantisation takes from a pruned EfficientNet-Lite0.

    python benchmarks/int8.py --shared FOLDER [--settings minmax ...] [--files FOLDER] [--json FILE]

The 500 images of `data/imagenet224` in --shared are divided into `--parts` (2). For each of the first `--folds` parts the
network is pruned on the images outside it and quantised with ranges from some of the same images; the part itself tests. So
every image that is counted was seen by neither step, and with all folds there are 500 of them. The rows, over all folds:

    float           the pruned file beside the original: share of images with the same top-1, and top-1 accuracy
    SETTING         the quantised file beside the original, its accuracy, and beside the pruned file; a setting holds the bar if
                    agreement with the original is at most 2 points below that of the pruned file

All settings write the QDQ form, with every operator quantised that ONNX Runtime quantises by default, and no layer left out:

    minmax          int8, symmetric, weights per channel, ranges by MinMax: what TensorRT reads
    fused           the same, but no rounding between a convolution and its activation, which engines compute as one
    percentile      the same, ranges hold 99.999% of the values
    entropy         the same, ranges by Entropy
    asymmetric      uint8 activations with a zero point, weights int8 per channel, MinMax: ONNX Runtime and OpenVINO only
    per-tensor      as minmax, but one scale for all channels of a weight
    not-folded      as minmax, but without quant_pre_process

`--files` keeps the networks, and takes pruned ones and MinMax's ranges that are there. Exit code 1 if no setting holds the bar.
"""

import argparse
import io
import json
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from accuracy_cases import Case, imagenet
from accuracy_measure import Rows, answers, labels_of
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

import thinet_onnx
from thinet_onnx import summary
from thinet_onnx.data import Preprocess, Source, open_source
from thinet_onnx.machine import machine
from thinet_onnx.setting import open_model

Array = np.ndarray[Any, Any]
BAR = 0.02  # of agreement with the original, lost by quantisation
_ACTIVATIONS = {"Clip", "Relu", "LeakyRelu"}
_STRIDE = 20  # items, at most, whose activations are held at once where histograms are made of them


@dataclass(frozen=True)
class Setting:
    """How a file is quantised; what isn't named is as in `minmax`."""

    ranges: CalibrationMethod = CalibrationMethod.MinMax
    activations: QuantType = QuantType.QInt8
    per_channel: bool = True
    folded: bool = True
    fused: bool = False
    extra: Mapping[str, Any] | None = None


SETTINGS = {
    "minmax": Setting(),
    "fused": Setting(fused=True),
    "percentile": Setting(CalibrationMethod.Percentile, extra={"CalibPercentile": 99.999}),
    "entropy": Setting(CalibrationMethod.Entropy),
    "asymmetric": Setting(activations=QuantType.QUInt8),
    "per-tensor": Setting(per_channel=False),
    "not-folded": Setting(folded=False),
}


class Items(CalibrationDataReader):
    """The items of a source, one by one."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.set_range(0, len(source))

    def __len__(self) -> int:
        return len(self._source)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Give these next."""
        self._rows = iter(range(start_index, end_index))

    def get_next(self) -> dict[str, Array] | None:
        """Give the next item, None at the end."""
        row = next(self._rows, None)
        return None if row is None else self._source.batch([row])


def divided(case: Case, parts: int, fold: int, samples: int) -> tuple[Source, Source]:
    """Images to calibrate on, and the part that is kept for the test."""
    images = open_source(case.calibration, open_model(case.model, case.shapes).inputs, Preprocess(**case.pixels))
    labels = labels_of(images, case.calibration, case.labels)
    order = np.roll(np.random.default_rng(0).permutation(len(images)), fold * (len(images) // parts))
    border = len(images) - len(images) // parts
    rows = np.sort(order[:border][:samples]), np.sort(order[border:])
    return Rows(images, rows[0].tolist(), None), Rows(images, rows[1].tolist(), labels)


def quantise(pruned: Path, output: Path, setting: Setting, source: Source, folder: Path) -> None:
    """Write a quantised file; ranges by MinMax are kept beside the pruned file, since most settings share them."""
    ready = folder / f"{pruned.stem}_ready.onnx"
    if setting.folded:
        quant_pre_process(pruned, ready)  # shapes inferred, BatchNorms folded
    shared = setting.ranges == CalibrationMethod.MinMax and setting.folded
    held = next(size for size in range(_STRIDE, 0, -1) if len(source) % size == 0)  # what else it refuses
    stride = {} if setting.ranges == CalibrationMethod.MinMax else {"CalibStridedMinMax": held}
    symmetric = setting.activations == QuantType.QInt8
    apart = {"OpTypesToExcludeOutputQuantization": ["Conv"]} if setting.fused else {}
    kinds = {node.op_type for node in onnx.load(ready if setting.folded else pruned).graph.node}
    with redirect_stdout(io.StringIO()):  # it tells how it makes histograms
        quantize_static(
            ready if setting.folded else pruned, output, Items(source), quant_format=QuantFormat.QDQ,
            op_types_to_quantize=sorted(kinds - _ACTIVATIONS) if setting.fused else None,
            per_channel=setting.per_channel, activation_type=setting.activations, weight_type=QuantType.QInt8,
            calibrate_method=setting.ranges, calibration_cache_path=folder / f"{pruned.stem}_ranges.json" if shared else None,
            extra_options={"ActivationSymmetric": symmetric, **stride, **apart, **(setting.extra or {})},
        )  # fmt: skip


def picks(model: Path, source: Source, case: Case) -> list[int]:
    """The best class of each item."""
    return answers(model, source, case.shapes)[0].argmax(1).tolist()  # type: ignore[no-any-return]


def one_fold(case: Case, fold: int, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Prune, quantise by every setting, and ask all files for the classes of the images that were kept."""
    calibration, test = divided(case, args.parts, fold, args.samples)
    stem = f"{case.model.stem}_{args.target.replace('=', '').replace('%', '')}_{fold}"
    pruned = folder / f"{stem}.onnx"
    if not pruned.exists():
        thinet_onnx.prune(case.model, calibration, target=args.target, output=pruned)
    found = {"original": picks(case.model, test, case), "float": picks(pruned, test, case)}
    assert test.labels is not None
    print(f"fold {fold}: {len(calibration)} images to calibrate, {len(test)} to test", flush=True)
    for name in args.settings:
        output = folder / f"{stem}_{name}.onnx"
        quantise(
            pruned, output, SETTINGS[name], Rows(calibration, range(min(args.ranges, len(calibration))), None), folder
        )
        found[name] = picks(output, test, case)
        print(f"  {line(name, counted(name, [{'labels': test.labels.tolist(), 'picks': found}]))}", flush=True)
    bytes_of = {name: (folder / f"{stem}_{name}.onnx").stat().st_size for name in args.settings}
    sizes = {"original": case.model.stat().st_size, "float": pruned.stat().st_size, **bytes_of}
    return {
        "fold": fold,
        "calibrated on": len(calibration),
        "labels": test.labels.tolist(),
        "picks": found,
        "bytes": sizes,
    }


def counted(name: str, folds: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Shares over the images of all folds: the same top-1 as the original and as the pruned file, and accuracy."""
    own, original, before, labels = (
        np.concatenate([part["labels"] if key == "labels" else part["picks"][key] for part in folds])
        for key in (name, "original", "float", "labels")
    )
    return {
        "images": len(own), "with original": float((own == original).mean()), "with float": float((own == before).mean()),
        "accuracy": float((own == labels).mean()), "lost": float((before == original).mean() - (own == original).mean()),
    }  # fmt: skip


def holds(row: Mapping[str, float]) -> bool:
    """Whether a setting keeps to the bar; shares of images have no digits beyond 1e-9."""
    return row["lost"] <= BAR + 1e-9


def line(name: str, row: Mapping[str, float]) -> str:
    """A row of the table."""
    head = f"{name:12s} {row['with original']:8.1%} of {row['images']}  top-1 {row['accuracy']:6.1%}"
    if name in ("original", "float"):
        return head
    verdict = "holds" if holds(row) else "MISSES"
    return f"{head}  as the pruned file {row['with float']:6.1%}  lost {100 * row['lost']:+.1f} points  {verdict}"


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--shared", type=Path, required=True, help="folder with zoo/ and data/")
    made.add_argument("--target", default="macs=75%", help="default macs=75%%")
    made.add_argument("--parts", type=int, default=2, help="default 2: 250 images calibrate, 250 test")
    made.add_argument("--folds", type=int, default=2, help="how many of the parts are tested on (default 2)")
    made.add_argument("--ranges", type=int, default=100, help="calibration images that ranges are from (default 100)")
    made.add_argument("--samples", type=int, default=400, help="calibration images at most (default 400)")
    made.add_argument("--settings", nargs="+", choices=SETTINGS, default=["minmax"], help="default minmax")
    made.add_argument("--files", type=Path, help="keep the networks in this folder")
    made.add_argument("--json", type=Path)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print; 1 if no setting holds the bar."""
    args = parser().parse_args(arguments)
    case = imagenet(args.shared)[0]
    folds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.files or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for fold in range(min(args.folds, args.parts)):
            folds.append(one_fold(case, fold, args, folder))
            if args.json is not None:
                meta = {"command": shlex.join(sys.argv), "machine": vars(machine()), "versions": summary.versions()}
                rows = {name: counted(name, folds) for name in folds[0]["picks"]}
                args.json.write_text(
                    json.dumps({**meta, "rows": rows, "folds": folds}, indent=1) + "\n", encoding="utf-8"
                )
    rows = {name: counted(name, folds) for name in folds[0]["picks"]}
    sizes = folds[0]["bytes"]
    print(f"\n{case.model.stem}, {args.target}: same top-1 as the original")
    for name, row in rows.items():
        print(f"{line(name, row)}  {sizes[name] / 1e6:.1f} MB")
    return 0 if any(holds(rows[name]) for name in args.settings) else 1


if __name__ == "__main__":
    raise SystemExit(main())
