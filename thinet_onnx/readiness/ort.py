"""ONNX Runtime: it says most itself when it loads and runs a file; here is what it keeps silent about."""

import onnx

from thinet_onnx.check_options import Precision
from thinet_onnx.readiness.findings import File, Finding, by_kind, is_standard

RULES = "ONNX Runtime on the CPU; it has loaded and run the file above"


def check(file: File, precision: Precision) -> list[Finding]:
    """Operators that tie a file to ONNX Runtime, types that are slow on the CPU."""
    findings = []
    if precision != "fp32":
        findings.append(
            Finding(
                "warn",
                f"ONNX Runtime computes in the types that the file has; --precision {precision} changes nothing.",
                "types",
            )
        )
    functions = file.functions()
    foreign = [n for n in file.nodes() if not is_standard(n) and (n.domain, n.op_type) not in functions]
    if foreign:
        findings.append(
            Finding("note", f"Only ONNX Runtime has these operators: {'; '.join(by_kind(foreign))}.", "operators")
        )
    halves = [tensor for tensor in file.graph.tensors.values() if tensor.data_type == onnx.TensorProto.FLOAT16]
    if halves:
        findings.append(
            Finding(
                "warn",
                f"{len(halves)} weights are float16, which its CPU provider mostly casts to float32 and back.",
                "types",
            )
        )
    return findings
