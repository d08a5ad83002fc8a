"""Engines that run a model: ONNX Runtime, OpenVINO, TensorRT; one adapter each, and the only modules that import them.

An engine that isn't installed is imported by nobody and said by name: `missing`.
"""

from thinet_onnx.check_options import EngineName, Precision
from thinet_onnx.engines.base import Engine, Program
from thinet_onnx.engines.openvino import OpenVino
from thinet_onnx.engines.ort import OnnxRuntime
from thinet_onnx.engines.tensorrt import TensorRT

__all__ = ["Engine", "Program", "make", "missing"]

_ADAPTERS = {adapter.name: adapter for adapter in (OnnxRuntime, OpenVino, TensorRT)}


def missing(engine: EngineName) -> str | None:
    """What has to be installed before an engine can be used, in one sentence; None if it is there."""
    return _ADAPTERS[engine].missing()


def make(engine: EngineName, precision: Precision = "fp32", threads: int = 0) -> Engine:
    """Start an engine.

    Args:
        engine: which one.
        precision: what it computes in; fp32 leaves the types as the file has them.
        threads: how many it may use; 0 leaves that to the engine.

    Raises:
        OptionError: it is not installed, or can't do what is asked for.
    """
    return _ADAPTERS[engine](precision, threads)
