"""ONNX Runtime on the CPU; `runtime` does the work."""

from collections.abc import Mapping
from typing import Any, ClassVar

import onnx

from thinet_onnx import runtime
from thinet_onnx.check_options import CALLED, EngineName, Precision
from thinet_onnx.engines.base import Array, Feeds, Shape
from thinet_onnx.errors import OptionError


class OnnxRuntime:
    """The CPU provider, at the types of the file."""

    name: ClassVar[EngineName] = "ort"
    called: ClassVar[str] = CALLED["ort"]

    def __init__(self, precision: Precision = "fp32", threads: int = 0) -> None:
        if precision != "fp32":
            raise OptionError(
                f"--precision {precision}: ONNX Runtime computes in the types that the file has; convert the file, or leave "
                "--precision or this engine out."
            )
        self.title = f"{self.called} {runtime.version()}"
        self._threads = threads

    @staticmethod
    def missing() -> str | None:
        """Nothing: the package depends on it."""
        return None

    def load(self, model: onnx.ModelProto, shapes: Mapping[str, Shape]) -> "_Session":  # noqa: ARG002
        """Open a session; it takes any shapes that the file does."""
        return _Session(runtime.session(model, threads=self._threads))


class _Session:
    def __init__(self, session: Any) -> None:
        self._session = session

    def run(self, feeds: Feeds) -> list[Array]:
        return runtime.run(self._session, feeds)

    def close(self) -> None:
        self._session = None
