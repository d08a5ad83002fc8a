"""Operators with weights: convolutions of any rank, matrix products, and ONNX Runtime's fused forms of them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from thinet_onnx.torch_twin.registry import Call, operator
from thinet_onnx.torch_twin.windows import Ends, padded, split_ends, symmetric, window_of

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {
    1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d,
}  # fmt: skip
_ACTIVATIONS: dict[str, Callable[..., Tensor]] = {
    "Relu": torch.relu, "Tanh": torch.tanh, "Sigmoid": torch.sigmoid, "LeakyRelu": functional.leaky_relu,
    "Clip": torch.clamp, "HardSigmoid": lambda x, alpha=0.2, beta=0.5: (x * alpha + beta).clamp(0.0, 1.0),
}  # fmt: skip
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {
    1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d,
}  # fmt: skip


@operator("Conv", weights=(1, 2))
def conv(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolutions of rank 1 to 3, grouped, dilated, padded on each side by itself."""
    rank = weight.ndim - 2
    if rank not in _CONVOLUTIONS:
        raise call.refuse(f"{rank} spatial axes")
    window = window_of(call, x.shape[2:], weight.shape[2:])
    both = symmetric(window.pads)
    if both is None:
        x, both = padded(x, window.pads, 0.0), [0] * rank
    return _CONVOLUTIONS[rank](x, weight, bias, window.strides, both, window.dilations, call.integer("group", 1))


@operator("ConvTranspose", weights=(1, 2))
def conv_transpose(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Transposed convolutions; what pads cut off, and what an output shape asks for, is cropped or added afterwards."""
    rank = weight.ndim - 2
    if rank not in _TRANSPOSED:
        raise call.refuse(f"{rank} spatial axes")
    strides = call.integers("strides") or [1] * rank
    dilations = call.integers("dilations") or [1] * rank
    extra = call.integers("output_padding") or [0] * rank
    full = _TRANSPOSED[rank](x, weight, None, strides, 0, 0, call.integer("group", 1), dilations)
    grown = [size + more for size, more in zip(full.shape[2:], extra, strict=True)]
    ends = _crops(call, x.shape[2:], strides, grown)
    moved = [(-begin, more - end) for (begin, end), more in zip(ends, extra, strict=True)]
    result = padded(full, moved, 0.0)
    return result if bias is None else result + bias.reshape(-1, *[1] * rank)


def _crops(call: Call, sizes: Sequence[int], strides: Sequence[int], grown: Sequence[int]) -> Ends:
    """What is cut off each end of the full result, by pads, `auto_pad` or the output shape asked for."""
    rank, auto = len(strides), call.text("auto_pad", "NOTSET")
    wanted = call.integers("output_shape")[-rank:]
    if not wanted and auto in ("NOTSET", "VALID"):
        return split_ends(call.integers("pads") or [0] * 2 * rank)
    if not wanted:
        wanted = [size * stride for size, stride in zip(sizes, strides, strict=True)]
    totals = [size - target for size, target in zip(grown, wanted, strict=True)]
    if auto == "SAME_UPPER":
        return [(total // 2, total - total // 2) for total in totals]
    return [(total - total // 2, total // 2) for total in totals]


@operator("com.microsoft::FusedConv", weights=(1, 2))
def fused_conv(
    call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None, other: Tensor | None = None
) -> Tensor:
    """A convolution, a tensor added to it, an activation."""
    result = conv(call, x, weight, bias)
    assert isinstance(result, Tensor)
    return _activated(call, result if other is None else result + other)


def _activated(call: Call, x: Tensor) -> Tensor:
    """The activation that a fused operator names, with its parameters."""
    given = [float(value) for value in call.node.attrs.get("activation_params", ())]
    given += [call.number(name, 0.0) for name in ("activation_alpha", "activation_beta") if name in call.node.attrs]
    name = call.text("activation", "")
    if name and name not in _ACTIVATIONS:
        raise call.refuse(f"the activation {name}")
    return _ACTIVATIONS[name](x, *given) if name else x


@operator("Gemm", weights=(0, 1, 2))
def gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """alpha · A · B + beta · C, either matrix transposed."""
    a = a.transpose(0, 1) if call.integer("transA", 0) else a
    b = b.transpose(0, 1) if call.integer("transB", 0) else b
    alpha, beta = call.number("alpha", 1.0), call.number("beta", 1.0)
    product = a @ b
    product = product if alpha == 1.0 else alpha * product
    if c is None:
        return product
    return product + (c if beta == 1.0 else beta * c)


@operator("com.microsoft::FusedGemm", weights=(0, 1, 2))
def fused_gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """A Gemm and an activation."""
    result = gemm(call, a, b, c)
    assert isinstance(result, Tensor)
    return _activated(call, result)


@operator("MatMul", weights=(0, 1))
def matmul(_: Call, a: Tensor, b: Tensor) -> Tensor:
    """NumPy's matrix product."""
    return torch.matmul(a, b)


@operator("com.microsoft::FusedMatMul", weights=(0, 1))
def fused_matmul(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """alpha · A · B, the last two axes of either transposed."""
    if call.integer("transBatchA", 0) or call.integer("transBatchB", 0):
        raise call.refuse("transBatchA or transBatchB")
    a = a.transpose(-1, -2) if call.integer("transA", 0) and a.ndim > 1 else a
    b = b.transpose(-1, -2) if call.integer("transB", 0) and b.ndim > 1 else b
    return call.number("alpha", 1.0) * torch.matmul(a, b)


@operator("Einsum")
def einsum(call: Call, *operands: Tensor) -> Tensor:
    """A sum of products by its equation."""
    return torch.einsum(call.text("equation", ""), *operands)
