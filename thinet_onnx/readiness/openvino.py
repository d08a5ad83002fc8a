"""OpenVINO: where it is installed, it says itself what it can't convert; this is what can be told without it."""

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
        findings.append(Finding("fail", f"OpenVINO has no operators of this domain: {'; '.join(by_kind(unknown))}."))
    if partly:
        findings.append(
            Finding("warn", f"Of these domains OpenVINO converts some operators only: {'; '.join(by_kind(partly))}.")
        )
    doubles = [tensor for tensor in file.graph.tensors.values() if tensor.data_type == onnx.TensorProto.DOUBLE]
    if doubles:
        findings.append(
            Finding("warn", f"{len(doubles)} weights are float64, which its CPU device computes in float32.")
        )
    if precision == "int8" and not any(node.op_type == "DequantizeLinear" for node in file.nodes()):
        findings.append(
            Finding("fail", "The file has no QuantizeLinear and DequantizeLinear, so nothing will run in int8.")
        )
    if opened := file.open_inputs():
        told = "; ".join(f"{name} ({', '.join(sizes)})" for name, sizes in opened.items())
        findings.append(Finding("note", f"Sizes are open: {told}. Fixing them (Model.reshape) makes it faster."))
    return findings
