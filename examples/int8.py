"""Pruning first, 8 bits after it: ONNX Runtime's static quantisation of a pruned network.

    python examples/int8.py [OUTPUT.onnx]

The file is in the QDQ form (QuantizeLinear, DequantizeLinear, symmetric), which TensorRT reads as well.
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

import thinet_onnx

MODELS = Path(__file__).parents[1] / "models"


def images(name: str, count: int) -> np.ndarray:
    """The first images of a bundled file as the network takes them, (N, 1, 28, 28) float32."""
    pixels = np.load(MODELS / name)["images"][:count].transpose(0, 3, 1, 2)
    return ((pixels / 255.0 - 0.286) / 0.353).astype(np.float32)


class Batches(CalibrationDataReader):
    """Images in batches of 32, for the ranges of the tensors."""

    def __init__(self, data: np.ndarray) -> None:
        self._feeds: Iterator[dict[str, np.ndarray]] = ({"image": part} for part in np.split(data, len(data) // 32))

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Give the next batch, None at the end."""
        return next(self._feeds, None)


def classes(path: Path, data: np.ndarray) -> np.ndarray:
    """The best class of each image."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": data})[0].argmax(1)


def main(output: Path) -> None:
    """Prune, quantise, and compare both with the original."""
    original, calibration, test = (
        MODELS / "fashion_vgg.onnx",
        images("fashion_calibration.npz", 64),
        images("fashion_test.npz", 500),
    )
    with tempfile.TemporaryDirectory() as folder:
        pruned, ready = Path(folder) / "pruned.onnx", Path(folder) / "ready.onnx"
        thinet_onnx.prune(original, {"image": calibration}, target="macs=70%", reconstruct="full", output=pruned)
        quant_pre_process(pruned, ready)  # shapes inferred, BatchNorm folded
        quantize_static(
            ready, output, Batches(calibration), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QInt8, weight_type=QuantType.QInt8, extra_options={"ActivationSymmetric": True},
        )  # fmt: skip
        wanted = classes(original, test)
        for name, path in (("original", original), ("pruned", pruned), ("pruned, 8 bits", output)):
            same = (classes(path, test) == wanted).mean()
            print(
                f"{name}: {path.stat().st_size:,} bytes, the original's class on {same:.1%} of {len(test)} test images"
            )


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "int8.onnx"))
