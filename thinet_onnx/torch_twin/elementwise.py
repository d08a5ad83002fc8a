"""Operators that work element by element."""

import math
from collections.abc import Callable

import onnx
import torch
from torch import Tensor
from torch.nn import functional

from thinet_onnx.torch_twin.dtypes import torch_dtype
from thinet_onnx.torch_twin.registry import Call, operator

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs, "Acos": torch.acos, "Acosh": torch.acosh, "Asin": torch.asin, "Asinh": torch.asinh,
    "Atan": torch.atan, "Atanh": torch.atanh, "Cos": torch.cos, "Cosh": torch.cosh, "Erf": torch.erf, "Exp": torch.exp,
    "HardSwish": functional.hardswish, "Log": torch.log, "Mish": functional.mish, "Neg": torch.neg,
    "Reciprocal": torch.reciprocal, "Relu": torch.relu, "Sigmoid": torch.sigmoid, "Sin": torch.sin, "Sinh": torch.sinh,
    "Softplus": functional.softplus, "Softsign": functional.softsign, "Sqrt": torch.sqrt, "Tan": torch.tan,
    "Tanh": torch.tanh,
}  # fmt: skip
_STEPS: dict[str, Callable[[Tensor], Tensor]] = {
    "BitwiseNot": torch.bitwise_not, "Ceil": torch.ceil, "Floor": torch.floor, "IsNaN": torch.isnan,
    "Not": torch.logical_not, "Round": torch.round, "Sign": torch.sign,
}  # fmt: skip
_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "And": torch.logical_and, "BitwiseAnd": torch.bitwise_and, "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor, "Equal": torch.eq, "Greater": torch.gt, "GreaterOrEqual": torch.ge, "Less": torch.lt,
    "LessOrEqual": torch.le, "Or": torch.logical_or, "Xor": torch.logical_xor,
}  # fmt: skip


def _one(function: Callable[[Tensor], Tensor]) -> Callable[[Call, Tensor], Tensor]:
    return lambda _, x: function(x)


def _two(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Call, Tensor, Tensor], Tensor]:
    return lambda _, a, b: function(a, b)


for _kind, _function in _UNARY.items():
    operator(_kind)(_one(_function))
for _kind, _function in _STEPS.items():
    operator(_kind, smooth=False)(_one(_function))
for _kind, _compare in _BINARY.items():
    operator(_kind, smooth=False)(_two(_compare))


@operator("Identity")
def identity(_: Call, x: Tensor) -> Tensor:
    """The operand itself."""
    return x


@operator("Dropout")
def dropout(_: Call, x: Tensor, *_unused: Tensor) -> tuple[Tensor, Tensor]:
    """The operand itself, as in inference, and a mask that drops nothing."""
    return x, torch.ones_like(x, dtype=torch.bool)


@operator("Cast")
def cast(call: Call, x: Tensor) -> Tensor:
    """Another data type; half precision is computed in float32."""
    return x.to(torch_dtype(call.integer("to", onnx.TensorProto.FLOAT)))


@operator("CastLike")
def cast_like(_: Call, x: Tensor, like: Tensor) -> Tensor:
    """The data type of another tensor."""
    return x.to(like.dtype)


@operator("Clip")
def clip(call: Call, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Bounds are attributes before operator set 11, then operands."""
    if call.opset < 11:
        return x.clamp(call.number("min", -math.inf), call.number("max", math.inf))
    return x.clamp(low, high) if low is not None or high is not None else x


@operator("LeakyRelu")
def leaky_relu(call: Call, x: Tensor) -> Tensor:
    """A slope below zero."""
    return functional.leaky_relu(x, call.number("alpha", 0.01))


@operator("PRelu", weights=(1,))
def prelu(_: Call, x: Tensor, slope: Tensor) -> Tensor:
    """A trained slope below zero."""
    return torch.where(x < 0, slope * x, x)


@operator("ThresholdedRelu")
def thresholded_relu(call: Call, x: Tensor) -> Tensor:
    """Nothing up to a threshold."""
    return torch.where(x > call.number("alpha", 1.0), x, torch.zeros_like(x))


@operator("Elu")
def elu(call: Call, x: Tensor) -> Tensor:
    """An exponential below zero."""
    return functional.elu(x, call.number("alpha", 1.0))


@operator("Celu")
def celu(call: Call, x: Tensor) -> Tensor:
    """An exponential with a continuous slope below zero."""
    return functional.celu(x, call.number("alpha", 1.0))


@operator("Selu")
def selu(call: Call, x: Tensor) -> Tensor:
    """A scaled exponential below zero."""
    alpha, gamma = call.number("alpha", 1.6732632), call.number("gamma", 1.050701)
    return gamma * functional.elu(x, alpha)


@operator("HardSigmoid")
def hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    """A line between 0 and 1."""
    return (x * call.number("alpha", 0.2) + call.number("beta", 0.5)).clamp(0.0, 1.0)


@operator("Shrink")
def shrink(call: Call, x: Tensor) -> Tensor:
    """Nothing within ±lambd, moved by the bias outside."""
    bound, bias = call.number("lambd", 0.5), call.number("bias", 0.0)
    return torch.where(x < -bound, x + bias, torch.where(x > bound, x - bias, torch.zeros_like(x)))


@operator("Gelu", "com.microsoft::Gelu")
def gelu(call: Call, x: Tensor) -> Tensor:
    """Gaussian error linear unit."""
    return functional.gelu(x, approximate=call.text("approximate", "none"))


@operator("com.microsoft::FastGelu", weights=(1,))
def fast_gelu(_: Call, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Gelu by its tanh approximation, behind a bias."""
    return functional.gelu(x if bias is None else x + bias, approximate="tanh")


@operator("Swish", "com.microsoft::QuickGelu")
def swish(call: Call, x: Tensor) -> Tensor:
    """The operand times its own sigmoid; QuickGelu's default slope is 1.702."""
    slope = call.number("alpha", 1.702 if call.node.op == "QuickGelu" else 1.0)
    return x * torch.sigmoid(slope * x)


@operator("IsInf", smooth=False)
def is_inf(call: Call, x: Tensor) -> Tensor:
    """Where a value is infinite, of either sign if both are detected."""
    positive, negative = call.integer("detect_positive", 1), call.integer("detect_negative", 1)
    return (x == math.inf) & bool(positive) | (x == -math.inf) & bool(negative)


@operator("Add", scales=True)
def add(_: Call, a: Tensor, b: Tensor) -> Tensor:
    """The sum of two tensors."""
    return a + b


@operator("Sub", scales=True)
def sub(_: Call, a: Tensor, b: Tensor) -> Tensor:
    """The difference of two tensors."""
    return a - b


@operator("Mul", scales=True)
def mul(_: Call, a: Tensor, b: Tensor) -> Tensor:
    """The product of two tensors, element by element."""
    return a * b


@operator("Div", scales=True)
def div(_: Call, a: Tensor, b: Tensor) -> Tensor:
    """The quotient; of integers without its remainder."""
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


@operator("Pow")
def power(_: Call, a: Tensor, b: Tensor) -> Tensor:
    """Powers keep the data type of the base."""
    return torch.pow(a, b).to(a.dtype)


@operator("Mod")
def mod(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """The remainder, with the sign of the divisor, or of the dividend with `fmod`."""
    return torch.fmod(a, b) if call.integer("fmod", 0) else torch.remainder(a, b)


@operator("BitShift", smooth=False)
def bit_shift(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Bits moved to the left or right."""
    return a << b if call.text("direction", "LEFT") == "LEFT" else a >> b


@operator("Max")
def maximum(_: Call, *operands: Tensor) -> Tensor:
    """The largest of the operands at every place."""
    result = operands[0]
    for operand in operands[1:]:
        result = torch.maximum(result, operand)
    return result


@operator("Min")
def minimum(_: Call, *operands: Tensor) -> Tensor:
    """The smallest of the operands at every place."""
    result = operands[0]
    for operand in operands[1:]:
        result = torch.minimum(result, operand)
    return result


@operator("Sum", "Mean")
def total(call: Call, *operands: Tensor) -> Tensor:
    """The sum or the mean of any number of tensors."""
    result = operands[0]
    for operand in operands[1:]:
        result = result + operand
    return result / len(operands) if call.node.op == "Mean" else result


@operator("Where")
def where(_: Call, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """One of two tensors, by a condition."""
    return torch.where(condition, a, b)
