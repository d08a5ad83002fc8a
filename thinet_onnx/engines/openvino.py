"""OpenVINO on the CPU."""

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import onnx

from thinet_onnx.check_options import CALLED, EngineName, Precision
from thinet_onnx.engines import base
from thinet_onnx.engines.base import Array, Feeds, Shape
from thinet_onnx.errors import ModelError, OptionError

_DEVICE = "CPU"
_TYPES: dict[Precision, tuple[str, str]] = {
    "fp32": ("f32", "FP32"), "fp16": ("f16", "FP16"), "bf16": ("bf16", "BF16"), "int8": ("f32", "INT8")
}  # fmt: skip
_UNKNOWN = re.compile("No conversion rule found for operations?:.*")
_PLACE = re.compile(r"(Exception from |Check '|While validating|\[ ?ERROR ?\]).*|.*\bat src/\S+:\d+:?")


class OpenVino:
    """OpenVINO's CPU device, set for latency, in one stream, with the shapes fixed to those that are run.

    Left to itself it computes float32 files in bfloat16 where the processor can. Here it does so only if it is told to: a
    file's time and answers are to be its own. Quantised layers run in int8 all the same.
    """

    name: ClassVar[EngineName] = "openvino"
    called: ClassVar[str] = CALLED["openvino"]

    def __init__(self, precision: Precision = "fp32", threads: int = 0) -> None:
        if (complaint := self.missing()) is not None:
            raise OptionError(f"{complaint}.")
        import openvino  # noqa: PLC0415

        self._core, self._precision = openvino.Core(), precision
        hint, capability = _TYPES[precision]
        able = self._core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")
        if capability not in able:
            raise OptionError(
                f"--precision {precision}: OpenVINO can't compute in it on this processor ({', '.join(able)})."
            )
        self._config: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": hint
        } | ({"INFERENCE_NUM_THREADS": threads} if threads else {})  # fmt: skip
        version = openvino.__version__.partition("-")[0]
        self.title = f"{self.called} {version}" + ("" if precision == "fp32" else f" ({precision})")

    @staticmethod
    def missing() -> str | None:
        """Say how to get it; None if it is there."""
        return base.not_installed(["openvino"])

    def load(self, model: onnx.ModelProto, shapes: Mapping[str, Shape]) -> "_Request":
        """Read, reshape and compile."""
        if self._precision == "int8" and not base.is_quantised(model):
            raise ModelError(base.NOT_QUANTISED.format(self.called))
        with base.as_file(model) as file:
            try:
                read = self._core.read_model(str(file))
                names = {name: port for port in read.inputs for name in port.names}
                read.reshape({names[name]: list(shape) for name, shape in shapes.items() if name in names})
                compiled = self._core.compile_model(read, _DEVICE, self._config)
                return _Request(compiled.create_infer_request(), set(names))
            except RuntimeError as error:
                raise ModelError(f"OpenVINO can't load the model ({_reason(error)}).") from error


class _Request:
    def __init__(self, request: Any, inputs: set[str]) -> None:
        self._request, self._inputs = request, inputs
        self._outputs = range(len(request.model_outputs))

    def run(self, feeds: Feeds) -> list[Array]:
        known = {name: array for name, array in feeds.items() if name in self._inputs}
        try:
            self._request.infer(known, share_inputs=True)
        except RuntimeError as error:
            raise ModelError(f"OpenVINO can't run the model on these inputs ({_reason(error)}).") from error
        return [self._request.get_output_tensor(index).data.copy() for index in self._outputs]

    def close(self) -> None:
        self._request = None


def _reason(error: RuntimeError) -> str:
    """Its words without the places in its sources; the operators it doesn't know, where these are what is wrong."""
    if (unknown := _UNKNOWN.search(str(error))) is not None:
        return base.words_of(RuntimeError(unknown[0]))
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not _PLACE.fullmatch(line)]
    return base.words_of(RuntimeError(" ".join(told) or str(error)))
