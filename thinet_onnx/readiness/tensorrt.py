"""TensorRT: does its ONNX parser read every operator, in the way it is used here, and every type?

The operators come from the parser's own list (`tensorrt_operators.json`, made by `tools/tensorrt_operators.py`, which has its
source and release). Where the list restricts an operator, a rule below says whether a node keeps to it; where there is no
rule, the list's words are passed on.
"""

import json
from collections.abc import Callable
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
import onnx

from thinet_onnx.check_options import Precision
from thinet_onnx.graph import Graph
from thinet_onnx.readiness.findings import File, Finding, Level, by_kind, is_standard

_LONG = np.iinfo(np.int32)
_OTHER_RANK = "the list has pooling over 2 or 3 axes only"
_DOUBTS = frozenset({_OTHER_RANK})  # complaints that the list makes and practice may not
_MOST_K = 3839  # of TopK
_RESIZE = {
    "coordinate_transformation_mode": {
        "half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners"
    },
    "mode": {"nearest", "linear"},
    "nearest_mode": {"floor", "ceil", "round_prefer_floor", "round_prefer_ceil"},
    "keep_aspect_ratio_policy": {"stretch"},
}  # fmt: skip


Check = Callable[[onnx.NodeProto, Graph], str | None]


@cache
def operators() -> dict[str, Any]:
    """The list: `read` (name → restrictions), `not_read`, `opsets`, and the TensorRT release and source it is from."""
    found: dict[str, Any] = json.loads(
        resources.files(__package__).joinpath("tensorrt_operators.json").read_text(encoding="utf-8")
    )
    return found


RULES = f"the ONNX parser's list of operators for TensorRT {operators()['tensorrt']} ({operators()['source']})"


def check(file: File, precision: Precision) -> list[Finding]:
    """All that can be told of a file without TensorRT."""
    return [*_operators(file), *_restrictions(file), *_opset(file), *_types(file, precision), *_sizes(file)]


def _operators(file: File) -> list[Finding]:
    functions = file.functions()
    nodes = [node for node in file.nodes() if (node.domain, node.op_type) not in functions]
    foreign = [node for node in nodes if not is_standard(node)]
    unread = [node for node in nodes if is_standard(node) and node.op_type not in operators()["read"]]
    found = []
    if unread:
        found.append(Finding("fail", f"Its parser doesn't read {'; '.join(by_kind(unread))}.", "operators"))
    if foreign:
        found.append(
            Finding(
                "fail",
                f"Operators that aren't ONNX's own need a plugin of that name: {'; '.join(by_kind(foreign))}.",
                "operators",
            )
        )
    return found


def _restrictions(file: File) -> list[Finding]:
    """Restricted operators of the graph: nodes that a rule rejects, and the list's words where there is no rule."""
    unruled: dict[str, str] = {}
    rejected: dict[str, list[onnx.NodeProto]] = {}
    for node in file.model.graph.node:
        words = operators()["read"].get(node.op_type) if is_standard(node) else None
        if not words:
            continue
        rule = _CHECKS.get(node.op_type)
        if rule is None:
            unruled[node.op_type] = words.rstrip(".")
        elif (complaint := rule(node, file.graph)) is not None:
            rejected.setdefault(complaint, []).append(node)
    found = [Finding("note", f"{op} is restricted; see to it: {words}.", "operators") for op, words in unruled.items()]
    for complaint, nodes in rejected.items():
        level: Level = "warn" if complaint in _DOUBTS else "fail"
        found.append(Finding(level, f"{'; '.join(by_kind(nodes))}: {complaint}.", "operators"))
    return found


def _opset(file: File) -> list[Finding]:
    lowest, highest = operators()["opsets"]
    version = file.opsets.get("", 1)
    if lowest <= version <= highest:
        return []
    return [Finding("warn", f"The file has operator set {version}; the list is for {lowest} to {highest}.", "opset")]


def _types(file: File, precision: Precision) -> list[Finding]:
    found = []
    tensors = list(file.graph.tensors.items())
    doubles = [name for name, tensor in tensors if tensor.data_type == onnx.TensorProto.DOUBLE]
    if doubles:
        found.append(
            Finding(
                "warn",
                f"{_count(doubles, 'constant')} in float64 will be cast to float32, clamped to its range.",
                "types",
            )
        )
    longs = [name for name, tensor in tensors if tensor.data_type == onnx.TensorProto.INT64]
    wide = [name for name in longs if _beyond_int32(file.graph, name)]
    if wide:
        found.append(
            Finding(
                "warn",
                f"{_count(wide, 'constant')} in int64 beyond int32's range: read so by TensorRT 10 and later, clamped before.",
                "types",
            )
        )
    elif longs:
        found.append(
            Finding(
                "note",
                f"{_count(longs, 'constant')} in int64, all within int32's range, so that TensorRT before 10 can cast them.",
                "types",
            )
        )
    if precision == "int8" and not any(node.op_type == "DequantizeLinear" for node in file.nodes()):
        found.append(
            Finding(
                "fail",
                "The file has no QuantizeLinear and DequantizeLinear, which say what to compute in int8.",
                "types",
            )
        )
    return found


def _sizes(file: File) -> list[Finding]:
    if not (opened := file.open_inputs()):
        return []
    told = "; ".join(f"{name} ({', '.join(sizes)})" for name, sizes in opened.items())
    return [
        Finding(
            "note", f"Sizes are open and need an optimization profile, which the commands below have: {told}.", "sizes"
        )
    ]


def _count(names: list[str], noun: str) -> str:
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"{len(names)} {noun}{'' if len(names) == 1 else 's'} ({shown})"


def _beyond_int32(graph: Graph, name: str) -> bool:
    """Whether a value isn't one of int32's; the largest int64, which means "to the end" in Slice, is let pass."""
    value = graph.constant(name)
    if value is None or not value.size:
        return False
    ends = np.isin(value, [np.iinfo(np.int64).max, np.iinfo(np.int64).min, np.iinfo(np.int64).min + 1])
    return bool(((value < _LONG.min) | (value > _LONG.max))[~ends].any())


# --- how restricted operators are used --------------------------------------------------------------------------------


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}


def _operand(node: onnx.NodeProto, index: int) -> str:
    return node.input[index] if index < len(node.input) else ""


def _has_output(node: onnx.NodeProto, index: int) -> bool:
    return index < len(node.output) and bool(node.output[index])


def _pool(node: onnx.NodeProto, _: Graph) -> str | None:
    attributes = _attributes(node)
    if any(step != 1 for step in attributes.get("dilations", [])):
        return "its dilations aren't 1"
    if len(attributes.get("kernel_shape", [1, 1])) not in (2, 3) and node.op_type != "LpPool":
        return _OTHER_RANK
    if node.op_type == "MaxPool" and _has_output(node, 1):
        return "its second output, the indices, isn't supported"
    return None


def _quantisation(node: onnx.NodeProto, graph: Graph) -> str | None:
    point = _operand(node, 2)
    if not point:
        return None
    value = graph.fold(point)
    if value is None:
        return "its zero point isn't constant"
    if value.dtype == np.uint8:
        return "uint8 isn't supported; quantise symmetrically to int8"
    return "its zero point isn't 0; quantise symmetrically" if np.any(value.astype(np.float32) != 0) else None


def _constant(index: int, what: str) -> Check:
    def rule(node: onnx.NodeProto, graph: Graph) -> str | None:
        name = _operand(node, index)
        return f"{what} isn't constant" if name and name not in graph.derived else None

    return rule


def _resize(node: onnx.NodeProto, _: Graph) -> str | None:
    attributes = _attributes(node)
    for key, allowed in _RESIZE.items():
        value = attributes.get(key, b"").decode()
        if (
            value
            and value not in allowed
            and not (key == "nearest_mode" and attributes.get("mode", b"nearest") != b"nearest")
        ):
            return f"{key}={value} isn't supported"
    return "antialias isn't supported" if attributes.get("antialias") else None


def _top_k(node: onnx.NodeProto, graph: Graph) -> str | None:
    count = graph.fold(_operand(node, 1))
    if not _attributes(node).get("sorted", 1):
        return "sorted=0 isn't supported"
    return (
        f"K of {int(count.max())} is over {_MOST_K}"
        if count is not None and count.size and count.max() > _MOST_K
        else None
    )


def _recurrent(node: onnx.NodeProto, _: Graph) -> str | None:
    attributes = _attributes(node)
    for key in ("layout", "input_forget"):
        if attributes.get(key):
            return f"{key}={attributes[key]} isn't supported"
    functions = [name.lower() for name in attributes.get("activations", [])]
    if (
        attributes.get("direction") == b"bidirectional"
        and functions[: len(functions) // 2] != functions[len(functions) // 2 :]
    ):
        return "its activations differ between the two directions"
    return None


def _layer_norm(node: onnx.NodeProto, _: Graph) -> str | None:
    return "only its first output is supported" if _has_output(node, 1) or _has_output(node, 2) else None


def _scatter_nd(node: onnx.NodeProto, _: Graph) -> str | None:
    value = _attributes(node).get("reduction", b"none").decode()
    return None if value == "none" else f"reduction={value} isn't supported"


def _constant_node(node: onnx.NodeProto, _: Graph) -> str | None:
    wrong = {"sparse_value", "value_string", "value_strings"} & set(_attributes(node))
    return f"{wrong.pop()} isn't supported" if wrong else None


_CHECKS: dict[str, Check] = {
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), _pool),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _quantisation),
    **dict.fromkeys(
        (name for name in operators()["read"] if name.startswith("Reduce")), _constant(1, "the list of axes")
    ),
    **dict.fromkeys(("Squeeze", "Unsqueeze"), _constant(1, "the list of axes")),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
    "CumSum": _constant(1, "the axis"),
    "OneHot": _constant(1, "the depth"),
    "Dropout": _constant(2, "training_mode"),
    "Resize": _resize,
    "TopK": _top_k,
    "LayerNormalization": _layer_norm,
    "ScatterND": _scatter_nd,
    "Constant": _constant_node,
}
