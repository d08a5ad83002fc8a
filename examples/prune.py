"""Prune a network from Python: half of its multiply-accumulates, a page to look at, the file written.

    python examples/prune.py [OUTPUT.onnx]

Runs on the bundled network; for one of yours, change the first lines. `reconstruct="full"` is the quicker of the two refits.
"""

import sys
from pathlib import Path

import thinet_onnx

MODELS = Path(__file__).parents[1] / "models"


def main(output: Path) -> None:
    """Prune, print what came of it, and write the page beside the file."""
    result = thinet_onnx.prune(
        MODELS / "fashion_vgg.onnx",
        MODELS / "fashion_calibration.npz",
        samples=64,
        mean=(0.286,),  # of the images: (pixel / 255 - mean) / std
        std=(0.353,),
        target="macs=50%",
        reconstruct="full",
        examples=6,
        output=output,
    )
    report = result.report
    print(f"MACs: {report.before.macs:,} -> {report.after.macs:,}")
    for row in report.fidelity:
        print(
            f"{row.output}: relative error {row.relative_error:.3f} on {row.samples} images that nothing was fitted on"
        )
    for warning in report.warnings:
        print("warning:", warning)
    thinet_onnx.write_page(report, output.with_suffix(".html"))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "small.onnx"))
