"""Command lines to run next, with everything filled in."""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from thinet_onnx.check_options import Precision
from thinet_onnx.readiness.findings import Command, File

_PLAIN = re.compile(r"[\w./-]+")
_TOLERANCE = {
    "fp32": "1e-2",
    "fp16": "5e-2",
    "bf16": "1e-1",
    "int8": "1e-1",
}  # of `polygraphy run`, absolute and relative


def for_tensorrt(
    file: File, precision: Precision, batches: Sequence[int], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[Command, ...]:
    """Build and time with `trtexec`, compare with ONNX Runtime with `polygraphy`.

    Args:
        file: the model.
        precision: what it will be computed in.
        batches: smallest and largest are the ends of the optimization profile, the largest is what it is optimised for.
        shapes: of every input, for one item.
    """
    opened = file.open_inputs()
    ranges = (
        [_shapes(file, opened, shapes, size) for size in (min(batches), max(batches), max(batches))] if opened else []
    )
    if precision in ("fp32", "int8"):
        typed = precision == "int8" or file.has_short_types()
        flag, compared = (" --stronglyTyped", " --strongly-typed") if typed else ("", " --tf32")
        build = _trtexec(file.path, ranges, flag)
        compare = _polygraphy(file.path, ranges, compared, precision)
        return (Command("build and time", build), Command("compare with ONNX Runtime", compare))
    converted = str(Path(file.path).with_name(f"{Path(file.path).stem}_{precision}.onnx"))
    convert = (
        f"python -m modelopt.onnx.autocast --onnx_path {shlex.quote(file.path)} --output_path {shlex.quote(converted)} "
        f"--low_precision_type {precision} --keep_io_types"
    )
    return (
        Command("TensorRT 10: build and time", _trtexec(file.path, ranges, f" --{precision}")),
        Command("TensorRT 10: compare with ONNX Runtime", _polygraphy(file.path, ranges, f" --{precision}", precision)),
        Command("TensorRT 11: convert (pip install nvidia-modelopt[onnx])", convert),
        Command("TensorRT 11: build and time", _trtexec(converted, ranges, "")),
        Command("TensorRT 11: compare with ONNX Runtime", _polygraphy(converted, ranges, "", precision)),
    )


def _shapes(
    file: File, opened: Mapping[str, list[str]], shapes: Mapping[str, tuple[int, ...]], batch: int
) -> dict[str, tuple[int, ...]]:
    """Shapes of the inputs that have open sizes, at a batch size."""
    dims = {value.name: value.type.tensor_type.shape.dim for value in file.graph.inputs}
    return {name: (batch, *shapes[name][1:]) if dims[name][0].dim_value < 1 else shapes[name] for name in opened}


def _trtexec(path: str, ranges: list[dict[str, tuple[int, ...]]], flags: str) -> str:
    spans = "".join(
        f" --{end}Shapes={_trtexec_shapes(found)}" for end, found in zip(("min", "opt", "max"), ranges, strict=False)
    )
    engine = str(Path(path).with_suffix(".plan"))
    return f"trtexec --onnx={shlex.quote(path)} --saveEngine={shlex.quote(engine)}{spans}{flags}"


def _trtexec_shapes(shapes: dict[str, tuple[int, ...]]) -> str:
    """`a:1x3x8x8,b:1x4`; a name that has a colon itself goes in single quotes, which trtexec takes as part of the syntax."""
    quoted = {name: name if _PLAIN.fullmatch(name) else f"'{name}'" for name in shapes}
    told = ",".join(f"{quoted[name]}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())
    return told if _PLAIN.fullmatch(re.sub("[:,]", "", told)) else _double_quoted(told)


def _double_quoted(text: str) -> str:
    return '"' + re.sub(r'(["$`\\])', r"\\\1", text) + '"'


def _polygraphy(path: str, ranges: list[dict[str, tuple[int, ...]]], flags: str, precision: Precision) -> str:
    spans = ""
    if ranges:
        for option, found in zip(("--trt-min-shapes", "--trt-opt-shapes", "--trt-max-shapes"), ranges, strict=True):
            spans += f" {option} {_polygraphy_shapes(found)}"
        spans += f" --input-shapes {_polygraphy_shapes(ranges[1])}"
    bound = _TOLERANCE[precision]
    return f"polygraphy run {shlex.quote(path)} --trt --onnxrt{flags}{spans} --rtol {bound} --atol {bound}"


def _polygraphy_shapes(shapes: dict[str, tuple[int, ...]]) -> str:
    return " ".join(shlex.quote(f"{name}:[{','.join(map(str, shape))}]") for name, shape in shapes.items())
