"""Channels and the tiles of the hardware: which layers are padded, and what that costs.

The multiples are those that NVIDIA suggests for Tensor Cores: "I/O channel dimension" of convolutions, K and N of matrix
products; TF32 4, FP16 8 (16 with structured sparsity), INT8 32. TensorRT pads what is off, "rounding up the dimensions".
https://docs.nvidia.com/deeplearning/tensorrt, Performance Best Practices, "Optimizing for Tensor Cores".
"""

from thinet_onnx.check_options import Precision
from thinet_onnx.groups import Analysis
from thinet_onnx.readiness.findings import Finding, Padded, Padding

TENSOR_CORES: dict[Precision, int] = {"fp32": 4, "fp16": 8, "bf16": 8, "int8": 32}
_LITTLE = 0.01  # of the multiply-accumulates; so much more than the original isn't worth a warning
_SHOWN = 4


def padding(analysis: Analysis, multiple: int) -> Padding:
    """What rounding all channels up to a multiple adds; grouped convolutions run elsewhere and are left out."""
    actual = computed = 0.0
    waste: list[tuple[float, Padded]] = []
    layers = [layer for layer in analysis.context.linears if layer.groups == 1 and not layer.depthwise]
    for layer in layers:
        channels = layer.in_channels, layer.out_channels
        rounded = tuple(-(-count // multiple) * multiple for count in channels)
        each = layer.taps * layer.positions
        actual += each * channels[0] * channels[1]
        computed += each * rounded[0] * rounded[1]
        if rounded != channels:
            more = each * (rounded[0] * rounded[1] - channels[0] * channels[1])
            waste.append((more, Padded(layer.node.title, channels, (rounded[0], rounded[1]))))
    worst_first = sorted(waste, key=lambda entry: -entry[0])
    extra = computed / actual - 1 if actual else 0.0
    return Padding(multiple, len(layers), tuple(padded for _, padded in worst_first), extra)


def findings(found: Padding, original: Padding) -> list[Finding]:
    """One sentence on the layers that are padded."""
    if not found.padded:
        text = f"All channels are multiples of {found.multiple}, so that Tensor Cores run without padding."
        return [Finding("note", text, "widths")]
    worst = ", ".join(
        f"{entry.layer} {entry.channels[0]}→{entry.channels[1]} as {entry.padded[0]}→{entry.padded[1]}"
        for entry in found.padded[:_SHOWN]
    )
    more = f" and {len(found.padded) - _SHOWN} more" if len(found.padded) > _SHOWN else ""
    text = (
        f"{len(found.padded)} of {found.layers} layers have channels off multiples of {found.multiple}; Tensor Cores compute "
        f"them padded, {found.extra:.0%} more multiply-accumulates in all (the original: {original.extra:.0%}): {worst}{more}."
    )
    worse = found.extra > original.extra + _LITTLE
    advice = f" Pruning with --round-to {found.multiple} avoids that." if worse else ""
    return [Finding("warn" if worse else "note", text + advice, "widths")]
