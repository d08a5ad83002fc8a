"""Quantised networks, trained straight through: rounding counts forwards, and backwards is not there."""

from collections.abc import Callable

import torch
from onnx import TensorProto
from torch import Tensor

from thinet_onnx.torch_twin.dtypes import limits
from thinet_onnx.torch_twin.registry import Call, operator


def _rounded(x: Tensor) -> Tensor:
    """Whole numbers, with the gradient of x."""
    return x + (x.round() - x).detach()


def _along(call: Call, vector: Tensor, x: Tensor) -> Tensor:
    """Scales or zero points as they meet x: one, one for each index of `axis`, or one for each block of it."""
    if vector.numel() == 1:
        return vector.reshape(())
    axis = call.integer("axis", 1) % x.ndim
    if vector.ndim > 1:
        return vector.repeat_interleave(call.integer("block_size", 1), axis).narrow(axis, 0, x.shape[axis])
    return vector.reshape([-1 if place == axis else 1 for place in range(x.ndim)])


def _steps(call: Call, x: Tensor, scale: Tensor, zero: Tensor | None, kind: int) -> Tensor:
    """Whole steps of the scale, cut off at the limits of the type; no gradient reaches what is cut off."""
    low, high = limits(kind)
    steps = _rounded(x / _along(call, scale, x))
    steps = steps if zero is None else steps + _along(call, zero, x).to(x.dtype)
    return steps.clamp(low, high)


@operator("QuantizeLinear")
def quantize(call: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """Whole numbers, kept in the float type of x."""
    named = call.kinds[2] if len(call.kinds) > 2 and zero is not None else 0
    return _steps(call, x, scale, zero, named or call.integer("output_dtype", 0) or TensorProto.UINT8)


@operator("DequantizeLinear")
def dequantize(call: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """Numbers from steps."""
    steps = x.to(scale.dtype)
    steps = steps if zero is None else steps - _along(call, zero, x).to(scale.dtype)
    return steps * _along(call, scale, x)


def requantised(kind: int) -> Callable[..., Tensor]:
    """What stands in for the DequantizeLinear of a trained constant of an integer type.

    It takes the constant in the units of the *output* (the master weights, float) and gives them back rounded to
    steps of the scale.
    """

    def forward(call: Call, master: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
        steps = _steps(call, master, scale, zero, kind)
        result = dequantize(call, steps, scale, zero)
        assert isinstance(result, Tensor)
        return result

    return forward


def quantised(call: Call, master: Tensor, scale: Tensor, zero: Tensor | None, kind: int) -> Tensor:
    """Master weights as the constant keeps them: whole steps, in float64 (every 32-bit integer is exact)."""
    with torch.no_grad():
        wide = None if zero is None else zero.double()
        return _steps(call, master.double(), scale.double(), wide, kind)
