"""The same seed, data and number of threads make the same bytes."""

import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import small_models

MODELS = Path(__file__).parents[1] / "models"
METHODS = ["obs", "thinet-sampled", "random"]


def prune(output: Path, *arguments: str) -> bytes:
    """The file that a process of its own writes: hashes of strings, and so orders of sets, differ from one to the next."""
    command = [sys.executable, "-m", "thinet_onnx", "prune", *arguments[:1], str(output), *arguments[1:], "--quiet"]
    subprocess.run(command, check=True)
    return output.read_bytes()


@pytest.mark.parametrize("method", METHODS)
def test_the_same_bytes_come_out_twice(tmp_path: Path, method: str) -> None:
    onnx.save(small_models.residual(), tmp_path / "net.onnx")
    arguments = (str(tmp_path / "net.onnx"), "--random-data", "--target", "macs=60%", "--scope", "all")
    first, second, other = (
        prune(tmp_path / f"{name}.onnx", *arguments, "--method", method, "--seed", seed)
        for name, seed in (("first", "3"), ("second", "3"), ("other", "4"))
    )
    assert first == second
    assert first != other


def test_the_same_bytes_come_out_twice_of_a_real_network(tmp_path: Path) -> None:
    arguments = (
        str(MODELS / "fashion_vgg.onnx"), "--data", str(MODELS / "fashion_calibration.npz"), "--samples", "16",
        "--mean", "0.286", "--std", "0.353", "--keep", "0.5",
    )  # fmt: skip
    assert prune(tmp_path / "first.onnx", *arguments) == prune(tmp_path / "second.onnx", *arguments)
