"""Is a file ready for an engine? What can be told from the file alone, without the engine: operators, types, shapes, widths.

Each engine has a module; what they find are `Finding`s. Nothing in here runs a model.
"""

from collections.abc import Mapping, Sequence

from thinet_onnx.check_options import EngineName, Precision
from thinet_onnx.groups import Analysis
from thinet_onnx.readiness import commands, openvino, ort, tensorrt, widths
from thinet_onnx.readiness.findings import Command, File, Finding, Level, Padding, Readiness

__all__ = ["Command", "File", "Finding", "Level", "Padding", "Readiness", "assess", "padding"]

padding = widths.padding
_CHECKS = {"ort": ort.check, "openvino": openvino.check, "tensorrt": tensorrt.check}
_RULES = {"ort": ort.RULES, "openvino": openvino.RULES, "tensorrt": tensorrt.RULES}


def assess(
    engine: EngineName,
    file: File,
    analysis: Analysis,
    original: Analysis,
    *,
    precision: Precision,
    batches: Sequence[int],
    shapes: Mapping[str, tuple[int, ...]],
) -> Readiness:
    """What an engine will say to a file, and what to run next.

    Args:
        engine: which one.
        file: the model.
        analysis: of the same model, for its layers and their widths.
        original: of the model that it was made from, for comparison.
        precision: what it will be computed in there.
        batches: sizes that it is to run at.
        shapes: concrete shapes of all inputs at one item, for the command lines.
    """
    findings = _CHECKS[engine](file, precision)
    layers = None
    lines: tuple[Command, ...] = ()
    if engine == "tensorrt":
        layers = padding(analysis, widths.TENSOR_CORES[precision])
        findings += widths.findings(layers, padding(original, layers.multiple))
        lines = commands.for_tensorrt(file, precision, batches, shapes)
    return Readiness(engine, _RULES[engine], tuple(findings), layers, lines)
