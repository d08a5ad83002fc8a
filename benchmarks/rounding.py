"""What rounding widths costs and brings: one model pruned with several `--round-to`, latency and fidelity side by side.

    python benchmarks/rounding.py [MODEL --data DATA --mean M --std S] [--target macs=50%] [--json FILE]

Without a model: both bundled ones. Latency is ONNX Runtime's, batch 1 and 64, all pruned files and the original measured in
turn within one run, medians, as ratios to the original.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import thinet_onnx
from thinet_onnx import runtime
from thinet_onnx.data import InputSpec, Preprocess, open_source
from thinet_onnx.pipeline import open_model

MODELS = Path(__file__).parent.parent / "models"
STEPS: tuple[int | None, ...] = (1, 2, 4, 8, 16, None)


def numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def measure(model: Path, data: Path, pixels: dict[str, Any], target: str, samples: int) -> list[dict[str, Any]]:
    results, rows = [], []
    for step in STEPS:
        result = thinet_onnx.prune(model, data, target=target, round_to=step, samples=samples, **pixels)
        results.append(result.model)
        near = result.report.fidelity[0]
        rows.append({
            "model": model.stem, "round_to": step or "default",
            "macs": result.report.after.macs / result.report.before.macs,
            "relative_error": near.relative_error, "top1": near.top1,
        })  # fmt: skip
    setting = open_model(model, {})
    spec = setting.inputs[0]
    specs = [InputSpec(spec.name, (None, *spec.shape[1:]), spec.dtype)]
    source = open_source(data, specs, Preprocess(**pixels), samples=64)
    for batch in (1, 64):
        feeds = {name: np.ascontiguousarray(array) for name, array in source.batch(range(batch)).items()}
        times, _ = runtime.latency([setting.model, *results], feeds, runs=60, seconds=30)
        for row, time in zip(rows, times[1:], strict=True):
            row[f"latency_{batch}"] = time / times[0]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--data", type=Path, default=MODELS / "fashion_calibration.npz")
    parser.add_argument("--mean", type=numbers, default=(0.286,))
    parser.add_argument("--std", type=numbers, default=(0.353,))
    parser.add_argument("--target", default="macs=50%")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    models = [args.model] if args.model else [MODELS / "fashion_resnet.onnx", MODELS / "fashion_vgg.onnx"]
    rows = []
    print(f"{'model':16s} {'round-to':>8s} {'MACs':>6s} {'error':>6s} {'top-1':>6s} {'batch 1':>8s} {'batch 64':>8s}")
    for model in models:
        for row in measure(model, args.data, {"mean": args.mean, "std": args.std}, args.target, args.samples):
            rows.append(row)
            print(f"{row['model']:16s} {row['round_to']!s:>8s} {row['macs']:6.1%} {row['relative_error']:6.3f} "
                  f"{row['top1'] or 0:6.1%} {row['latency_1']:8.2f} {row['latency_64']:8.2f}", flush=True)  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
