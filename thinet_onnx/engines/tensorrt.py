"""TensorRT on an NVIDIA GPU, through Polygraphy, NVIDIA's own wrapper around its builder and runtime."""

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

import onnx

from thinet_onnx.check_options import CALLED, EngineName, Precision
from thinet_onnx.engines import base
from thinet_onnx.engines.base import Array, Feeds, Shape
from thinet_onnx.errors import ModelError, OptionError

_PACKAGES = ("tensorrt", "polygraphy")
_STRONG_TYPES_ONLY = 11  # from this version on, networks have the types of the file and nothing else
_STRONG_TYPES = 10  # from this version on, they may


class TensorRT:
    """TensorRT, with an engine built for exactly the shapes that are run; float32 may be computed in TF32, its default.

    A run is timed from host to host: the copies to the GPU and back count. `trtexec` shows the GPU's own time. The number
    of threads means nothing to it.
    """

    name: ClassVar[EngineName] = "tensorrt"
    called: ClassVar[str] = CALLED["tensorrt"]

    def __init__(self, precision: Precision = "fp32", threads: int = 0) -> None:  # noqa: ARG002
        if (complaint := self.missing()) is not None:
            raise OptionError(f"{complaint}.")
        try:
            import tensorrt  # noqa: PLC0415
            from polygraphy.backend import trt as backend  # noqa: PLC0415
            from polygraphy.exception import PolygraphyException  # noqa: PLC0415
            from polygraphy.logger import G_LOGGER  # noqa: PLC0415
        except (ImportError, OSError) as error:
            raise OptionError(
                f"tensorrt is installed but can't be loaded ({base.words_of(error)}); it needs an NVIDIA driver and its CUDA."
            ) from error
        self._trt, self._log = backend, _Log(G_LOGGER)
        # TypeError is what pybind11 raises where no GPU lets a factory return a null pointer.
        self._errors: tuple[type[Exception], ...] = (PolygraphyException, RuntimeError, TypeError)
        self._major = int(tensorrt.__version__.partition(".")[0])
        self._precision = precision
        if self._major >= _STRONG_TYPES_ONLY and precision in ("fp16", "bf16"):
            raise OptionError(
                f"--precision {precision}: TensorRT {tensorrt.__version__} computes in the types that the file has; convert "
                "the file first (python -m modelopt.onnx.autocast), and leave --precision out."
            )
        self.title = f"{self.called} {tensorrt.__version__}" + ("" if precision == "fp32" else f" ({precision})")

    @staticmethod
    def missing() -> str | None:
        """Say how to get it; None if it is there."""
        return base.not_installed(_PACKAGES)

    def load(self, model: onnx.ModelProto, shapes: Mapping[str, Shape]) -> "_Runner":
        """Build an engine; this takes seconds to minutes."""
        if self._precision == "int8" and not base.is_quantised(model):
            raise ModelError(base.NOT_QUANTISED.format(self.called))
        profile = self._trt.Profile()
        for name, shape in shapes.items():
            profile.add(name, min=tuple(shape), opt=tuple(shape), max=tuple(shape))
        weak = self._precision in ("fp16", "bf16") or self._major < _STRONG_TYPES
        flags = {self._precision: True} if weak and self._precision != "fp32" else {}
        self._log.forget()
        try:
            with base.as_file(model) as file:
                network = self._trt.network_from_onnx_path(str(file), strongly_typed=not weak)
                config = self._trt.CreateConfig(profiles=[profile], tf32=True, **flags)
                engine = self._trt.engine_from_network(network, config=config)
            runner = self._trt.TrtRunner(engine)
            runner.activate()
        except self._errors as error:
            raise ModelError(
                f"TensorRT can't build the model ({self._log.cause() or base.words_of(error)})."
            ) from error
        names = [output.name for output in model.graph.output]
        return _Runner(runner, names, self._errors, self._log)


class _Runner:
    def __init__(self, runner: Any, names: list[str], errors: tuple[type[Exception], ...], log: "_Log") -> None:
        self._runner, self._names, self._errors, self._log = runner, names, errors, log

    def run(self, feeds: Feeds) -> list[Array]:
        self._log.forget()
        try:
            found = self._runner.infer(feeds, check_inputs=False)
        except self._errors as error:
            reason = self._log.cause() or base.words_of(error)
            raise ModelError(f"TensorRT can't run the model on these inputs ({reason}).") from error
        return [found[name].copy() for name in self._names]  # the runner writes into the same arrays next time

    def close(self) -> None:
        self._runner.deactivate()


class _Log(logging.Handler):
    """Keeps what Polygraphy and TensorRT log as errors, instead of having it printed: the reason is in there."""

    def __init__(self, logger: Any) -> None:
        super().__init__(logging.ERROR)
        self._told: list[str] = []
        logger.use_python_logging_system = True
        logger.module_severity = logger.ERROR
        logger.colors = False
        sink = logging.getLogger("Polygraphy")
        sink.propagate = False
        sink.handlers[:] = [self]

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message without its letter."""
        self._told.append(record.getMessage().lstrip().removeprefix("[E]").removeprefix("[!]").strip())

    def forget(self) -> None:
        """Start anew."""
        self._told.clear()

    def cause(self) -> str:
        """The first of the messages, which names the cause; "" if there is none."""
        return base.words_of(RuntimeError(self._told[0])) if self._told else ""
