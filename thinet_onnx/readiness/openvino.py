"""OpenVINO: where it is installed, it says itself what it can't convert; this is what can be told without it."""

import numpy as np
import onnx

from thinet_onnx.check_options import Precision
from thinet_onnx.readiness.findings import File, Finding, by_kind, is_standard

RULES = "types and operator domains; which operators it converts, an installed OpenVINO says itself"
_KNOWN_DOMAINS = frozenset({"com.microsoft", "org.openvinotoolkit"})  # parts of which its ONNX frontend has


def check(file: File, precision: Precision) -> list[Finding]:
    """Operators from elsewhere, types that its CPU device converts."""
    findings = []
    functions = file.functions()
    foreign = [n for n in file.nodes() if not is_standard(n) and (n.domain, n.op_type) not in functions]
    partly = [node for node in foreign if node.domain in _KNOWN_DOMAINS]
    unknown = [node for node in foreign if node.domain not in _KNOWN_DOMAINS]
    if unknown:
        findings.append(
            Finding("fail", f"OpenVINO has no operators of this domain: {'; '.join(by_kind(unknown))}.", "operators")
        )
    if partly:
        findings.append(
            Finding(
                "warn",
                f"Of these domains OpenVINO converts some operators only: {'; '.join(by_kind(partly))}.",
                "operators",
            )
        )
    if permuting := [node for node in file.model.graph.node if _permutes(node, file)]:
        findings.append(
            Finding(
                "warn",
                f"{'; '.join(by_kind(permuting))}: OpenVINO (2026.4 and others) folds such a permutation into the next "
                "convolution the wrong way round. Counting its axis from the last (axis=-3 for channels) avoids that.",
                "operators",
            )
        )
    doubles = [tensor for tensor in file.graph.tensors.values() if tensor.data_type == onnx.TensorProto.DOUBLE]
    if doubles:
        findings.append(
            Finding("warn", f"{len(doubles)} weights are float64, which its CPU device computes in float32.", "types")
        )
    if precision == "int8" and not any(node.op_type == "DequantizeLinear" for node in file.nodes()):
        findings.append(
            Finding(
                "fail", "The file has no QuantizeLinear and DequantizeLinear, so nothing will run in int8.", "types"
            )
        )
    if opened := file.open_inputs():
        told = "; ".join(f"{name} ({', '.join(sizes)})" for name, sizes in opened.items())
        findings.append(
            Finding("note", f"Sizes are open: {told}. Fixing them (Model.reshape) makes it faster.", "sizes")
        )
    return findings


def _permutes(node: onnx.NodeProto, file: File) -> bool:
    """Whether a Gather permutes an axis that is counted from the first, by indices that aren't their own inverse."""
    if node.op_type != "Gather" or not is_standard(node):
        return False
    indices = file.graph.fold(node.input[1])
    axis = next((entry.i for entry in node.attribute if entry.name == "axis"), 0)
    if (
        indices is None
        or indices.ndim != 1
        or axis < 1
        or not np.array_equal(np.sort(indices), np.arange(indices.size))
    ):
        return False
    return not np.array_equal(indices[indices], np.arange(indices.size))
