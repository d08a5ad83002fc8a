"""One row for each operator that has a rule, and more for its modes.

A row puts the operator behind a convolution `first` (3 → 12 channels, output 1×12×8×8) and says how many of the twelve can
go, one by one or together, or a piece of the reason why not. Where channels can go, random plans and the smallest one are
cut and held against the oracle, tensor by tensor.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx
import pytest
from graphs import Build
from onnx import TensorProto, helper
from oracle import analysed, holds, random_kept, values_of

from thinet_onnx import graph as graphs
from thinet_onnx.groups import Analysis, analyse
from thinet_onnx.rules import RULES
from thinet_onnx.unfold import count_positions, rows_at, values_at, weight_matrix

CHANNELS = 12
Make = Callable[[Build, str], str | None]
"""Adds the operator behind a tensor; returns what a last linear layer is to read, or None if the graph is done."""


@dataclass(frozen=True)
class Case:
    """`removable` of `first`'s channels can go, in `units` that go one by one; `reason` is why the others stay ("… | …").

    With `shapes` the graph is analysed by these and not run.
    """

    kind: str
    title: str
    make: Make
    removable: int = CHANNELS
    reason: str = ""
    units: int | None = None
    opset: int = 18
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.title}" if self.title else self.kind


CASES: list[Case] = []


def row(
    kind: str, title: str, make: Make, removable: int = CHANNELS, reason: str = "", *, units: int | None = None,
    opset: int = 18, shapes: dict[str, tuple[int, ...]] | None = None,
) -> None:  # fmt: skip
    CASES.append(Case(kind, title, make, removable, reason, units, opset, shapes or {}))


def finish(b: Build, name: str) -> None:
    """A linear layer that reads axis 1, by rank."""
    shape = b.shape_of(name)
    if len(shape) == 2:
        b.output(b.gemm(name, shape[1], 5, name="last"))
    else:
        b.output(b.conv(name, shape[1], 5, name="last", rank=len(shape) - 2))


def built(case: Case) -> Build:
    b = Build(case.opset)
    result = case.make(b, b.conv(b.input(), 3, CHANNELS, name="first"))
    if result is not None:
        finish(b, result)
    return b


def known(case: Case, b: Build, model: onnx.ModelProto) -> Analysis:
    if not case.shapes:
        return analysed(model, b.feed())
    shapes = {"x": (1, 3, 8, 8), "first": (1, CHANNELS, 8, 8)} | case.shapes
    return analyse(graphs.Graph(model), shapes)


def last_axis(b: Build, name: str, channels: int = CHANNELS) -> None:
    """A linear layer that reads the last axis."""
    b.output(b.node("MatMul", name, b.weight(channels, 5)))


def reasons_of(analysis: Analysis, weight: str = "first.weight") -> list[str]:
    return [entry.reason.phrase for entry in analysis.frozen if entry.producer.weight == weight]


# --- element by element ------------------------------------------------------------------------------------------------


def cast(b: Build, x: str, kind: int) -> str:
    return b.node("Cast", x, to=kind)


def floats(b: Build, x: str) -> str:
    return cast(b, x, TensorProto.FLOAT)


def unit(b: Build, x: str) -> str:
    """Into (−0.9, 0.9)."""
    return b.node("Mul", b.node("Tanh", x), b.scalar(0.9))


def positive(b: Build, x: str) -> str:
    return b.node("Add", b.node("Abs", x), b.scalar(1.1))


def whole(b: Build, x: str) -> str:
    """int32."""
    return cast(b, b.node("Mul", x, b.scalar(10.0)), TensorProto.INT32)


def truth(b: Build, x: str) -> str:
    return b.node("Greater", x, b.scalar(0.0))


def unary(
    op: str,
    before: Callable[[Build, str], str] | None = None,
    *,
    domain: str = "",
    to_float: bool = False,
    **attributes: object,
) -> Make:
    def make(b: Build, h: str) -> str:
        y = b.node(op, before(b, h) if before else h, domain=domain, **attributes)
        return floats(b, y) if to_float else y

    return make


for operator in (
    "Abs", "Asinh", "Atan", "Ceil", "Celu", "Cos", "Cosh", "Elu", "Erf", "Exp", "Floor", "HardSigmoid", "HardSwish", "Identity",
    "LeakyRelu", "Mish", "Neg", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign",
    "Tanh", "ThresholdedRelu",
):  # fmt: skip
    row(operator, "", unary(operator))
for operator in ("Acos", "Asin", "Atanh", "Tan"):
    row(operator, "", unary(operator, unit))
for operator in ("Acosh", "Log", "Reciprocal", "Sqrt"):
    row(operator, "", unary(operator, positive))
row("Gelu", "", unary("Gelu", approximate="tanh"), opset=20)
row("Swish", "", unary("Swish", alpha=0.5), opset=24)
row("com.microsoft::Gelu", "", unary("Gelu", domain="com.microsoft"))
row("com.microsoft::QuickGelu", "", unary("QuickGelu", domain="com.microsoft"))
row("com.microsoft::FastGelu", "plain", unary("FastGelu", domain="com.microsoft"))
row("Not", "", unary("Not", truth, to_float=True))
row("IsNaN", "", unary("IsNaN", to_float=True))
row("IsInf", "", unary("IsInf", to_float=True))
row("BitwiseNot", "", unary("BitwiseNot", whole, to_float=True))
row("Bernoulli", "of certain events", unary("Bernoulli", lambda b, h: floats(b, truth(b, h))))
row("Cast", "to float16 and back", lambda b, h: floats(b, cast(b, h, TensorProto.FLOAT16)))
row("CastLike", "", lambda b, h: b.node("CastLike", h, b.scalar(1.0)))
row("Clip", "attributes", unary("Clip", min=-0.5, max=0.5), opset=9)
row("Clip", "inputs", lambda b, h: b.node("Clip", h, b.scalar(-0.5), b.scalar(0.5)))
row("Clip", "upper bound alone", lambda b, h: b.node("Clip", h, "", b.scalar(0.5)))
row("Dropout", "", lambda b, h: b.node("Dropout", h))


def fast_gelu_bias(b: Build, h: str) -> str:
    wide = b.gemm(b.node("Flatten", h), CHANNELS * 64, 8, name="wide")
    return b.node("FastGelu", wide, b.weight(8, name="shift"), domain="com.microsoft")


def masked_dropout(b: Build, h: str) -> str:
    kept, mask = b.many("Dropout", h, outs=2)
    return b.node("Mul", kept, b.node("Add", floats(b, mask), b.scalar(1.0)))


row("com.microsoft::FastGelu", "bias", fast_gelu_bias)
row("Dropout", "mask", masked_dropout)
row("Dropout", "absent mask", lambda b, h: b.many("Dropout", h, outs=(b.fresh("kept"), ""))[0])


def constant(b: Build, kind: str, *shape: int) -> str:
    value = np.arange(1, np.prod(shape) + 1).reshape(shape)
    if kind == "bool":
        return b.const(value % 3 > 0)
    return b.const(value.astype(np.int32)) if kind == "int32" else b.const((value / 5).astype(np.float32))


def prepared(b: Build, h: str, kind: str) -> str:
    return {"bool": truth, "int32": whole, "float": lambda _, x: x, "positive": positive}[kind](b, h)


def with_constant(op: str, kind: str, *shape: int, first: bool = False, **attributes: object) -> Make:
    def make(b: Build, h: str) -> str:
        operands = [prepared(b, h, kind), constant(b, kind, *shape)]
        y = b.node(op, *(operands[::-1] if first else operands), **attributes)
        return floats(b, y)

    return make


def with_other(op: str, kind: str, channels: int = CHANNELS, **attributes: object) -> Make:
    """Two branches meet."""

    def make(b: Build, h: str) -> str:
        other = b.conv("x", 3, channels, name="other")
        return floats(b, b.node(op, prepared(b, h, kind), prepared(b, other, kind), **attributes))

    return make


BINARY = {
    "Add": "float", "Sub": "float", "Mul": "float", "Div": "positive", "Max": "float", "Min": "float", "Mean": "float",
    "Sum": "float", "PRelu": "float", "Pow": "positive", "Equal": "int32", "Greater": "float", "GreaterOrEqual": "float",
    "Less": "float", "LessOrEqual": "float", "And": "bool", "Or": "bool", "Xor": "bool", "BitwiseAnd": "int32",
    "BitwiseOr": "int32", "BitwiseXor": "int32", "Mod": "int32",
}  # fmt: skip
NO_CHANNELS = "which has no channels that could go with it"

for operator, kind in BINARY.items():
    if operator != "Mod":  # by zero
        row(operator, "two branches", with_other(operator, kind))
    row(operator, "scalar", with_constant(operator, kind))
    if kind == "bool":
        row(operator, "constant per channel", with_constant(operator, kind, CHANNELS, 1, 1), 0, NO_CHANNELS)
    else:
        row(operator, "constant per channel", with_constant(operator, kind, CHANNELS, 1, 1))


def transposed_sum(b: Build, h: str) -> str:
    """1×12×12, channels on axis 1 of one operand and on axis 2 of the other."""
    square = b.node("Slice", b.node("Reshape", h, b.ints(1, CHANNELS, 64)), b.ints(0), b.ints(CHANNELS), b.ints(2))
    return b.node("Add", square, b.node("Transpose", square, perm=[0, 2, 1]))


row("Mod", "float", with_constant("Mod", "float", CHANNELS, 1, 1, fmod=1))
row("Mul", "constant first, whole shape", with_constant("Mul", "float", 1, CHANNELS, 8, 8, first=True))
row("Sub", "constant along space", with_constant("Sub", "float", 8))
row("Add", "one channel spread over all", with_other("Add", "float", 1))
row(
    "Add", "graph input", lambda b, h: b.node("Add", h, b.input("side", (1, CHANNELS, 8, 8))), 0,
    "meets the graph input 'side'",
)  # fmt: skip
row("Add", "graph input of one channel", lambda b, h: b.node("Add", h, b.input("side", (1, 1, 8, 8))))
row("Add", "to itself", lambda b, h: b.node("Add", h, h))
row("Add", "to itself transposed", transposed_sum, 0, NO_CHANNELS)
row("Sum", "of three", lambda b, h: b.node("Sum", h, b.conv("x", 3, CHANNELS), b.conv("x", 3, CHANNELS)))
row(
    "Where", "two branches",
    lambda b, h: b.node("Where", truth(b, b.conv("x", 3, CHANNELS)), h, b.conv("x", 3, CHANNELS)),
)  # fmt: skip
row("Where", "condition of one channel", lambda b, h: b.node("Where", truth(b, b.conv("x", 3, 1)), h, b.scalar(0.0)))
row(
    "Where", "constant condition per channel",
    lambda b, h: b.node("Where", constant(b, "bool", CHANNELS, 1, 1), h, b.scalar(0.0)), 0, NO_CHANNELS,
)  # fmt: skip


def shifted(b: Build, h: str) -> str:
    bits = b.const(np.arange(CHANNELS, dtype=np.uint32).reshape(CHANNELS, 1, 1) % 3)
    return floats(b, b.node("BitShift", cast(b, positive(b, h), TensorProto.UINT32), bits, direction="LEFT"))


def shift_other(b: Build, h: str) -> str:
    both = [cast(b, positive(b, name), TensorProto.UINT32) for name in (h, b.conv("x", 3, CHANNELS))]
    return floats(b, b.node("BitShift", *both, direction="LEFT"))


row("BitShift", "two branches", shift_other)
row("BitShift", "constant of a type that is never cut", shifted, 0, NO_CHANNELS)


def quantised(scale: tuple[int, ...], zero: np.dtype | None, axis: int | None = None, **attributes: object) -> Make:
    def make(b: Build, h: str) -> str:
        operands = [b.const(np.full(scale, 0.05, np.float32))]
        if zero is not None:
            operands.append(b.const(np.zeros(scale, zero)))
        extra = {} if axis is None else {"axis": axis}
        q = b.node("QuantizeLinear", h, *operands, **extra, **attributes)
        return b.node("DequantizeLinear", q, *operands, **extra, **attributes)

    return make


for operator in ("QuantizeLinear", "DequantizeLinear"):
    row(operator, "per tensor", quantised((), np.dtype(np.uint8)))
    row(operator, "per tensor, no zero point", quantised((), None))
    row(operator, "per channel", quantised((CHANNELS,), np.dtype(np.int8), 1))
    row(operator, "per channel, negative axis", quantised((CHANNELS,), np.dtype(np.int8), -3))
    row(operator, "per column", quantised((8,), np.dtype(np.int8), 3))
    row(
        operator, "zero points of a type that is never cut", quantised((CHANNELS,), np.dtype(np.uint16), 1), 0,
        "zero point", opset=21,
    )  # fmt: skip
    row(
        operator, "blocks", quantised((1, 3, 8, 8), np.dtype(np.int8), 1, block_size=4), 0, "blocks of channels",
        opset=21,
    )  # fmt: skip


def quantised_weights(op: str) -> Make:
    """int8 weights with a scale per output channel, an int32 bias, both behind DequantizeLinear."""

    def make(b: Build, h: str) -> None:
        def layer(x: str, c_in: int, c_out: int) -> str:
            shape = (c_out, c_in, 3, 3) if op == "Conv" else (c_in, c_out, 3, 3)
            out_axis = shape.index(c_out) if c_in != c_out else 0
            q = b.const(b.rng.integers(-127, 128, shape).astype(np.int8))
            scale = b.const(b.values(c_out, positive=True) / 400)
            zero = b.const(np.zeros(c_out, np.int8))
            weight = b.node("DequantizeLinear", q, scale, zero, axis=out_axis)
            shift = b.node("DequantizeLinear", b.const(np.arange(c_out, dtype=np.int32)), scale, axis=0)
            return b.node(op, x, weight, shift, pads=[1, 1, 1, 1])

        b.output(layer(b.node("Relu", layer(h, CHANNELS, 8)), 8, 5))

    return make


row("DequantizeLinear", "weights of Conv", quantised_weights("Conv"))
row("DequantizeLinear", "weights of ConvTranspose", quantised_weights("ConvTranspose"))

# --- layout ------------------------------------------------------------------------------------------------------------


def reshaped(*target: int, then: Make | None = None, **attributes: object) -> Make:
    def make(b: Build, h: str) -> str | None:
        y = b.node("Reshape", h, b.ints(*target), **attributes)
        return then(b, y) if then else y

    return make


def shuffle(b: Build, h: str) -> str:
    y = b.node("Reshape", h, b.ints(1, 3, 4, 8, 8))
    return b.node("Reshape", b.node("Transpose", y, perm=[0, 2, 1, 3, 4]), b.ints(1, -1, 8, 8))


def computed_target(b: Build, h: str) -> str:
    """What exporters write for x.view(x.shape[0], x.shape[1], -1)."""
    shape = b.node("Shape", h)
    sizes = [b.node("Unsqueeze", b.node("Gather", shape, b.const(np.int64(i)), axis=0), b.ints(0)) for i in (0, 1)]
    return b.node("Reshape", h, b.node("Concat", *sizes, b.ints(-1), axis=0))


def baked_target(b: Build, h: str) -> str:
    """The batch is computed, the channels are written down: x.view(x.shape[0], 12 * 64)."""
    batch = b.node("Unsqueeze", b.node("Gather", b.node("Shape", h), b.const(np.int64(0)), axis=0), b.ints(0))
    return b.node("Reshape", h, b.node("Concat", batch, b.ints(CHANNELS * 64), axis=0))


row("Reshape", "all written down", reshaped(1, CHANNELS, 64))
row("Reshape", "copy and infer", reshaped(0, 0, -1))
row("Reshape", "channels inferred", reshaped(1, -1, 4, 16))
row("Reshape", "batch inferred", reshaped(-1, CHANNELS, 64))
row("Reshape", "flatten", reshaped(1, CHANNELS * 64))
row("Reshape", "flatten, inferred", reshaped(0, -1))
row("Reshape", "groups", reshaped(1, 3, 4, 64, then=lambda b, y: b.node("Transpose", y, perm=[0, 2, 1, 3])), units=4)
row("Reshape", "allowzero", reshaped(1, CHANNELS, 64, allowzero=1))
row("Reshape", "constant node", lambda b, h: b.node("Reshape", h, b.const(np.array([1, CHANNELS, 64]), node=True)))
row("Reshape", "channels into space", reshaped(1, 1, CHANNELS * 8, 8), 0, "is spatial in")
row(
    "Reshape", "channels into the batch",
    reshaped(-1, 1, 8, 8, then=lambda b, y: b.node("Reshape", b.conv(y, 1, 1), b.ints(1, -1, 8, 8))),
)  # fmt: skip
row("Reshape", "computed target", computed_target)
row("Reshape", "computed target with baked channels", baked_target)
row("Reshape", "channel shuffle", shuffle, units=4)
row(
    "Reshape", "attribute", lambda b, h: b.node("Reshape", h, shape=[1, CHANNELS, 64], out="flat"), opset=4, reason="",
    shapes={"flat": (1, CHANNELS, 64), "last": (1, 5, 64)},
)  # fmt: skip


def two_labelled_axes(b: Build, h: str) -> str:
    """first's channels on axis 1 and those of a product on axis 2 come to share an axis."""
    y = b.node("Relu", b.node("MatMul", b.node("Reshape", h, b.ints(1, CHANNELS, 64)), b.weight(64, 6)))
    b.output(b.conv(b.node("MatMul", y, b.weight(6, 5)), CHANNELS, 5, rank=1))
    return b.node("Reshape", y, b.ints(1, -1))


row("Reshape", "flatten two axes with channels", two_labelled_axes)
row("Flatten", "", unary("Flatten"))
row("Flatten", "from the start", unary("Flatten", axis=0))
row("Flatten", "negative axis", unary("Flatten", axis=-3))
row(
    "Flatten", "channels into rows",
    lambda b, h: b.output(b.node("ReduceMax", b.gemm(b.node("Flatten", h, axis=2), 64, 5), b.ints(0))), 0,
    "is summed up over channels",
)  # fmt: skip


def pooled(b: Build, h: str) -> str:
    return b.node("GlobalAveragePool", h)


row("Squeeze", "axes as input", lambda b, h: b.node("Squeeze", pooled(b, h), b.ints(2, 3)))
row("Squeeze", "axes as attribute", lambda b, h: b.node("Squeeze", pooled(b, h), axes=[-1, -2]), opset=11)
row(
    "Squeeze", "whatever has size 1",
    lambda b, h: b.output(b.node("MatMul", b.node("Squeeze", pooled(b, h)), b.weight(CHANNELS, 5))), CHANNELS - 2,
    "of size 1",
)  # fmt: skip
row("Unsqueeze", "axes as input", lambda b, h: b.node("Squeeze", b.node("Unsqueeze", h, b.ints(0, -1)), b.ints(0, -1)))
row(
    "Unsqueeze", "axes as attribute", lambda b, h: b.node("Squeeze", b.node("Unsqueeze", h, axes=[2]), axes=[2]),
    opset=11,
)  # fmt: skip


def of_weights(b: Build, h: str) -> None:
    weight = b.node("Transpose", b.weight(5, CHANNELS), perm=[1, 0])
    b.output(b.node("MatMul", b.node("Flatten", pooled(b, h)), weight))


def reversed_axes(b: Build, h: str) -> None:
    """1×12×8×8 → 8×8×12×1."""
    b.output(b.node("MatMul", b.weight(5, CHANNELS), b.node("Transpose", h)))


row("Transpose", "channels last", lambda b, h: last_axis(b, b.node("Transpose", h, perm=[0, 2, 3, 1])))
row("Transpose", "reversed by default", reversed_axes)
row("Transpose", "of weights", of_weights)
row("DepthToSpace", "DCR", unary("DepthToSpace", blocksize=2), units=3)
row("DepthToSpace", "CRD", unary("DepthToSpace", blocksize=2, mode="CRD"), units=3)
row("SpaceToDepth", "", unary("SpaceToDepth", blocksize=2))


def concat(*channels: int, axis: int = 1, twice: bool = False) -> Make:
    def make(b: Build, h: str) -> str:
        others = [h] if twice else [b.conv("x", 3, count, name=f"other{i}") for i, count in enumerate(channels)]
        return b.node("Concat", h, *others, axis=axis)

    return make


row("Concat", "along the channels", concat(4, 6))
row("Concat", "along the channels, negative axis", concat(4, axis=-3))
row("Concat", "with itself", concat(twice=True))
row("Concat", "across the channels", concat(CHANNELS, CHANNELS, axis=2))
row("Concat", "along the channels with the input", lambda b, h: b.node("Concat", "x", h, axis=1))
row("Concat", "along the channels with a constant", lambda b, h: b.node("Concat", h, b.weight(1, 4, 8, 8), axis=1))
row(
    "Concat", "across the channels with the input",
    lambda b, h: b.node("Concat", h, b.input("side", (1, CHANNELS, 8, 8)), axis=3), 0, "is joined in",
)  # fmt: skip
row(
    "Concat", "across the channels with a constant",
    lambda b, h: b.node("Concat", h, b.weight(1, CHANNELS, 8, 2), axis=3),
)  # fmt: skip


def split(
    pieces: int,
    *,
    sizes: tuple[int, ...] = (),
    axis: int = 1,
    use: tuple[int, ...] = (0,),
    reader: bool = True,
    **attributes: object,
) -> Make:
    """A linear layer reads each piece named in `use`, an element-wise meeting the others."""

    def make(b: Build, h: str) -> None:
        extra = dict(attributes)
        operands = [h]
        if sizes and b.opset >= 13:
            operands.append(b.ints(*sizes))
        elif sizes:
            extra["split"] = list(sizes)
        if axis:
            extra["axis"] = axis
        outs = b.many("Split", *operands, outs=pieces, **extra)
        for place in use:
            finish_apart(b, outs[place], place)

    return make


def finish_apart(b: Build, name: str, place: int) -> None:
    b.output(b.conv(name, b.shape_of(name)[1], 5, name=f"last{place}"))


for opset in (11, 13, 18):
    halves = {"num_outputs": 2} if opset >= 18 else {}
    row("Split", f"halves, opset {opset}", split(2, use=(0, 1), **halves), opset=opset)
    row("Split", f"with sizes, opset {opset}", split(3, sizes=(4, 6, 2), use=(0, 1, 2)), opset=opset)
    row("Split", f"negative axis, opset {opset}", split(2, sizes=(5, 7), axis=-3, use=(0, 1)), opset=opset)
    row("Split", f"of space, opset {opset}", split(2, axis=2, use=(0, 1), **halves), opset=opset)
row("Split", "pieces that nobody reads", split(3, sizes=(4, 6, 2), use=(1,)), 6, "has no linear layer after it")
row("Split", "uneven by count", split(5, use=(0, 1, 2, 3, 4), num_outputs=5))


def gate(b: Build, h: str) -> str:
    left, right = b.many("Split", h, outs=2, axis=1, num_outputs=2)
    return b.node("Mul", left, b.node("Sigmoid", right))


def split_by_shape(b: Build, h: str) -> None:
    """x.chunk(2, 1) with the sizes taken from x."""
    half = b.node("Div", b.node("Slice", b.node("Shape", h), b.ints(1), b.ints(2)), b.ints(2))
    outs = b.many("Split", h, b.node("Concat", half, half, axis=0), outs=2, axis=1)
    for place, name in enumerate(outs):
        finish_apart(b, name, place)


row("Split", "gate", gate, units=6)
row("Split", "computed sizes", split_by_shape)


def sliced(starts: int, ends: int, axes: int | None = 1, steps: int | None = None) -> Make:
    def make(b: Build, h: str) -> str:
        if b.opset < 10:
            return b.node("Slice", h, starts=[starts], ends=[ends], axes=[axes])
        operands = [b.ints(starts), b.ints(ends)]
        if axes is not None or steps is not None:
            operands.append("" if axes is None else b.ints(axes))
        if steps is not None:
            operands.append(b.ints(steps))
        return b.node("Slice", h, *operands)

    return make


LAST, FIRST = 2**63 - 1, -(2**63)
UNREAD = "has no linear layer after it"

row("Slice", "the first ones", sliced(0, 5), 5, UNREAD)
row("Slice", "the first ones, attributes", sliced(0, 5), 5, UNREAD, opset=9)
row("Slice", "the last ones, attributes", sliced(-5, LAST), 5, UNREAD, opset=9)
row("Slice", "in the middle", sliced(3, 9), 6, UNREAD)
row("Slice", "counted from the end", sliced(-7, -2), 5, UNREAD)
row("Slice", "to the end", sliced(4, LAST, -3), 8, UNREAD)
row("Slice", "all", sliced(0, LAST))
row("Slice", "all, by number", sliced(0, CHANNELS))
row("Slice", "backwards", sliced(-1, FIRST, 1, -1))
row("Slice", "backwards by number", sliced(CHANNELS - 1, -CHANNELS - 1, 1, -1))
row("Slice", "every other", sliced(0, LAST, 1, 2), 0, "is sliced with step 2")
row("Slice", "every other of space", sliced(0, LAST, 2, 2))
row("Slice", "no axes", lambda b, h: b.node("Slice", h, b.ints(0, 2), b.ints(1, 10)), 8, UNREAD)
row(
    "Slice", "int32", lambda b, h: b.node("Slice", h, *(b.const(np.array([v], np.int32)) for v in (2, 8, 1))), 6,
    UNREAD,
)  # fmt: skip
row("Slice", "two axes", lambda b, h: b.node("Slice", h, b.ints(1, 2), b.ints(-1, 10), b.ints(3, 1)), 8, UNREAD)
row(
    "Slice", "places from an input", lambda b, h: b.node("Slice", h, b.input("start", value=[1]), b.ints(5), b.ints(2)),
    0, "not known before the run",
)  # fmt: skip


def half_by_shape(b: Build, h: str) -> None:
    """x[:, : C // 2] and x[:, C // 2 :], C taken from x."""
    half = b.node("Div", b.node("Slice", b.node("Shape", h), b.ints(1), b.ints(2)), b.ints(2))
    finish_apart(b, b.node("Slice", h, b.ints(0), half, b.ints(1)), 0)
    finish_apart(b, b.node("Slice", h, half, b.ints(LAST), b.ints(1)), 1)


row("Slice", "halves computed from the shape", half_by_shape)


def gathered(indices: object, axis: int = 1, kind: type = np.int64) -> Make:
    return lambda b, h: b.node("Gather", h, b.const(np.array(indices, kind)), axis=axis)


SHUFFLED = [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
row("Gather", "channel shuffle", gathered(SHUFFLED))
row("Gather", "channel shuffle, int32, negative axis", gathered(SHUFFLED, -3, np.int32))
row("Gather", "some channels, from the end, one twice", gathered([-1, 3, 3, 0]), 3, UNREAD)
row("Gather", "one channel as a list", gathered([3]), 0, f"is the only channel of a tensor | {UNREAD}")
row(
    "Gather", "one channel",
    lambda b, h: b.node("Unsqueeze", b.node("Gather", h, b.const(np.int64(3)), axis=1), b.ints(1)), 0, "at one place",
)  # fmt: skip
row(
    "Gather", "a table of channels",
    lambda b, h: b.node("Reshape", gathered([[0, 1], [2, 3]])(b, h) or "", b.ints(1, 4, 8, 8)), 0, "at one place",
)  # fmt: skip
row("Gather", "places in space", gathered([[0, 1], [2, 3]], 3))
row(
    "Gather", "places from an input", lambda b, h: b.node("Gather", h, b.input("picks", value=[0, 2, 3]), axis=1), 0,
    "not known before the run",
)  # fmt: skip


def looked_up(b: Build, h: str) -> str:
    """Channels as indices into a table: 1×12×8×8 → 1×12×8×8×2 → 1×12×8×8. Another layer reads them too."""
    b.output(b.conv(h, CHANNELS, 5))
    picks = cast(b, b.node("Clip", positive(b, h), b.scalar(0.0), b.scalar(3.0)), TensorProto.INT64)
    found = b.node("Gather", b.weight(4, 2), picks, axis=0)
    return b.node("ReduceSum", found, b.ints(4), keepdims=0)


row("Gather", "channels as indices", looked_up, 0, "index")


def expanded(target: tuple[int, ...], channels: int, then: Make | None = None) -> Make:
    """One channel spread over `channels`, multiplied by first's output."""

    def make(b: Build, h: str) -> str:
        return b.node("Mul", h, b.node("Expand", b.conv("x", 3, channels), b.ints(*target)))

    return make


row("Expand", "one channel to all", expanded((1, CHANNELS, 8, 8), 1))
row("Expand", "keeping the channels", lambda b, h: b.node("Expand", pooled(b, h), b.ints(1, CHANNELS, 4, 4)))
row("Expand", "ones keep", lambda b, h: b.node("Expand", pooled(b, h), b.ints(1, 1, 4, 4)))
row("Expand", "shorter target", lambda b, h: b.node("Expand", pooled(b, h), b.ints(4, 4)))
row(
    "Expand", "longer target",
    lambda b, h: b.node("Squeeze", b.node("Expand", h, b.ints(1, 1, CHANNELS, 8, 8)), b.ints(0)),
)  # fmt: skip
row(
    "Expand", "like another tensor",
    lambda b, h: b.node("Mul", h, b.node("Expand", b.conv("x", 3, 1), b.node("Shape", h))),
)  # fmt: skip
row("Expand", "constant", lambda b, h: b.node("Add", h, b.node("Expand", b.weight(1, 1, 1), b.ints(1, CHANNELS, 1, 1))))


def one_value(b: Build, shape: str, kind: int = TensorProto.FLOAT) -> str:
    return b.node("ConstantOfShape", shape, value=helper.make_tensor("value", kind, [1], [1]))


def computed_expansion(b: Build, h: str) -> str:
    ones = one_value(b, b.ints(4), TensorProto.INT64)
    return b.node("Expand", pooled(b, h), b.node("Add", ones, b.ints(0, 0, 3, 3)))


row("ConstantOfShape", "written down", lambda b, h: b.node("Add", h, one_value(b, b.ints(1, CHANNELS, 1, 1))))
row("ConstantOfShape", "like another tensor", lambda b, h: b.node("Add", h, one_value(b, b.node("Shape", h))))
row("ConstantOfShape", "weights", lambda b, h: b.output(b.node("Conv", h, one_value(b, b.ints(5, CHANNELS, 1, 1)))))
row("ConstantOfShape", "of integers", computed_expansion)


def tiled(*repeats: int) -> Make:
    return lambda b, h: b.node("Tile", h, b.ints(*repeats))


row("Tile", "of space", tiled(1, 1, 2, 1))
row("Tile", "of channels", tiled(1, 2, 1, 1))
row(
    "Tile", "repeats from an input", lambda b, h: b.node("Tile", h, b.input("repeats", value=[1, 1, 2, 1])), 0,
    "not known before the run",
)  # fmt: skip


def padded(*amounts: int, mode: str = "constant", axes: tuple[int, ...] = ()) -> Make:
    def make(b: Build, h: str) -> str:
        if b.opset < 11:
            return b.node("Pad", h, pads=list(amounts), mode=mode, value=0.5)
        operands = [b.ints(*amounts), b.scalar(0.5) if mode == "constant" else "", b.ints(*axes) if axes else ""]
        while not operands[-1]:
            operands.pop()
        return b.node("Pad", h, *operands, mode=mode)

    return make


for opset in (9, 11, 18):
    row("Pad", f"space, opset {opset}", padded(0, 0, 1, 1, 0, 0, 1, 1), opset=opset)
    row("Pad", f"channels, opset {opset}", padded(0, 2, 0, 0, 0, 3, 0, 0), opset=opset)
    row("Pad", f"space mirrored, opset {opset}", padded(0, 0, 2, 1, 0, 0, 1, 2, mode="reflect"), opset=opset)
    row("Pad", f"space cropped, opset {opset}", padded(0, 0, -1, -1, 0, 0, 0, -2), opset=opset)
    row(
        "Pad", f"channels cropped, opset {opset}", padded(0, -2, 0, 0, 0, 0, 0, 0), 0, "is cropped or mirrored",
        opset=opset,
    )  # fmt: skip
row("Pad", "channels by axes", padded(1, 0, 2, 1, axes=(-1, 1)))
row("Pad", "channels repeated at the edge", padded(0, 2, 0, 0, 0, 2, 0, 0, mode="edge"), 0, "is cropped or mirrored")
row(
    "Pad", "amounts from an input", lambda b, h: b.node("Pad", h, b.input("amounts", value=[0, 0, 1, 1, 0, 0, 0, 0])),
    0, "not known before the run",
)  # fmt: skip
row(
    "Pad", "option A shortcut",
    lambda b, h: b.node("Add", b.conv("x", 3, 20), padded(0, 4, 0, 0, 0, 4, 0, 0)(b, h) or ""),
)  # fmt: skip

# --- mixing ------------------------------------------------------------------------------------------------------------

row("AveragePool", "", unary("AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]))
row(
    "AveragePool", "counting the padding",
    unary("AveragePool", kernel_shape=[2, 2], pads=[1, 1, 0, 0], count_include_pad=1),
)  # fmt: skip
row("MaxPool", "", unary("MaxPool", kernel_shape=[2, 2], strides=[2, 2]))
row(
    "MaxPool", "of channels moved into space",
    lambda b, h: b.node("MaxPool", b.node("Transpose", h, perm=[0, 2, 1, 3]), kernel_shape=[2, 2]), 0, "is pooled over",
)  # fmt: skip
row("MaxPool", "with places that nobody reads", lambda b, h: b.many("MaxPool", h, outs=2, kernel_shape=[2, 2])[0])
row("LpPool", "", unary("LpPool", kernel_shape=[2, 2], p=2))
row("GlobalAveragePool", "", unary("GlobalAveragePool"))
row("GlobalMaxPool", "", unary("GlobalMaxPool"))
row("GlobalLpPool", "", unary("GlobalLpPool", p=2))
row(
    "MaxRoiPool", "",
    lambda b, h: b.node("MaxRoiPool", h, b.const(np.array([[0, 0, 0, 7, 7]], np.float32)), pooled_shape=[2, 2]),
)  # fmt: skip


def placed(b: Build, h: str) -> str:
    """The places that MaxPool returns are counted through all channels."""
    y, places = b.many("MaxPool", h, outs=2, kernel_shape=[2, 2], strides=[2, 2])
    return b.node("Mul", y, floats(b, places))


row("MaxPool", "with places in use", placed, 0, "counted")


def resized(*, scales: tuple[float, ...] = (), sizes: tuple[int, ...] = (), **attributes: object) -> Make:
    def make(b: Build, h: str) -> str:
        if b.opset == 10:
            return b.node("Resize", h, b.const(np.array(scales, np.float32)), **attributes)
        if scales:
            return b.node(
                "Resize",
                h,
                "" if b.opset >= 13 else b.const(np.zeros(0, np.float32)),
                b.const(np.array(scales, np.float32)),
                **attributes,
            )
        empty = "" if b.opset >= 13 else b.const(np.zeros(0, np.float32))
        return b.node("Resize", h, empty, empty, b.ints(*sizes), **attributes)

    return make


row("Resize", "scales, opset 10", resized(scales=(1, 1, 2, 2)), opset=10)
row("Resize", "scales, opset 11", resized(scales=(1, 1, 2, 2), mode="linear"), opset=11)
row("Resize", "scales", resized(scales=(1, 1, 2, 2)))
row("Resize", "sizes, opset 11", resized(sizes=(1, CHANNELS, 16, 12)), opset=11)
row("Resize", "sizes", resized(sizes=(1, CHANNELS, 16, 12), mode="linear"))
row("Resize", "sizes of some axes", resized(sizes=(16, 12), axes=[2, 3]))
row("Resize", "sizes in another order", resized(sizes=(16, CHANNELS, 12), axes=[2, 1, 3]))
row("Resize", "channels resampled", resized(scales=(1, 2, 1, 1)), 0, "is resampled")
row("Upsample", "", lambda b, h: b.node("Upsample", h, b.const(np.array([1, 1, 2, 2], np.float32))), opset=9)
row("Upsample", "attribute", unary("Upsample", scales=[1.0, 1.0, 2.0, 2.0], mode="nearest"), opset=7)


def size_by_shape(b: Build, h: str) -> str:
    """The way PyTorch exports interpolate(size=...): the first two sizes from x, the others computed."""
    shape = b.node("Shape", h)
    space = b.node("Mul", b.node("Slice", shape, b.ints(2), b.ints(4)), b.ints(2))
    return b.node("Resize", h, "", "", b.node("Concat", b.node("Slice", shape, b.ints(0), b.ints(2)), space, axis=0))


row("Resize", "computed sizes", size_by_shape)

REDUCTIONS = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare",
)  # fmt: skip
SUMMED = "is summed up over channels"


def reduced(op: str, *axes: int, keep: int = 1, then: Make | None = None) -> Make:
    def make(b: Build, h: str) -> str | None:
        x = positive(b, h)
        if b.opset >= 18 or (op == "ReduceSum" and b.opset >= 13):
            y = b.node(op, x, b.ints(*axes), keepdims=keep)
        else:
            y = b.node(op, x, axes=list(axes), keepdims=keep)
        return then(b, y) if then else y

    return make


for operator in REDUCTIONS:
    row(operator, "space", reduced(operator, 2, 3))
    row(operator, "space vanishes", reduced(operator, -1, -2, keep=0))
    row(operator, "batch vanishes", reduced(operator, 0, keep=0, then=lambda b, y: b.node("Unsqueeze", y, b.ints(0))))
    row(operator, "channels", reduced(operator, 1), 0, SUMMED)
    row(
        operator, "channels vanish", reduced(operator, -3, keep=0, then=lambda b, y: b.node("Unsqueeze", y, b.ints(1))),
        0, SUMMED,
    )  # fmt: skip
    row(operator, "attribute", reduced(operator, -1), opset=11)
row("ReduceMean", "everything", lambda b, h: b.output(b.node("ReduceMean", h)), 0, SUMMED)
row("ReduceMean", "nothing", unary("ReduceMean", noop_with_empty_axes=1))
row("ReduceMean", "everything, axes an empty list", lambda b, h: b.output(b.node("ReduceMean", h, b.ints())), 0, "")
row(
    "ReduceMean", "axes from an input", lambda b, h: b.output(b.node("ReduceMean", h, b.input("axes", value=[1]))), 0,
    SUMMED,
)  # fmt: skip
for operator in ("ArgMax", "ArgMin"):
    row(operator, "space", unary(operator, axis=3, to_float=True))
    row(operator, "space vanishes", unary(operator, axis=-1, keepdims=0, to_float=True))
    row(operator, "channels", unary(operator, axis=1, to_float=True), 0, SUMMED)
for operator in ("Softmax", "LogSoftmax", "Hardmax"):
    row(operator, "channels", unary(operator, axis=1), 0, "is under a softmax over channels")
    row(operator, "last axis", unary(operator))
    row(operator, "channels, opset 11 default", unary(operator), 0, "is under a softmax over channels", opset=11)
    row(operator, "all axes from the third, opset 11", unary(operator, axis=2), opset=11)
row("LpNormalization", "last axis", unary("LpNormalization", p=2))
row("LpNormalization", "channels", unary("LpNormalization", p=1, axis=1), 0, "is mixed in")
row("CumSum", "space", lambda b, h: b.node("CumSum", h, b.const(np.int64(2))))
row("CumSum", "channels", lambda b, h: b.node("CumSum", h, b.const(np.int64(-3))), 0, "is mixed in")
row(
    "CumSum", "axis from an input", lambda b, h: b.node("CumSum", h, b.input("axis", value=1)), 0,
    "not known before the run",
)  # fmt: skip


def top(k: int, axis: int | None, place: int = 0) -> Make:
    def make(b: Build, h: str) -> str:
        extra = {} if axis is None else {"axis": axis}
        if b.opset < 10:
            return floats(b, b.many("TopK", h, outs=2, k=k, **extra)[place])
        return floats(b, b.many("TopK", h, b.ints(k), outs=2, **extra)[place])

    return make


row("TopK", "last axis", top(3, None))
row("TopK", "places on the last axis", top(3, -1, place=1))
row("TopK", "attribute", top(3, 3), opset=9)
row("TopK", "channels", top(3, 1), 0, "is mixed in")
row("LRN", "", unary("LRN", size=5), 0, "is normalised together with other channels")


def normed_last(b: Build, h: str) -> None:
    last_axis(b, b.node("LRN", b.node("Transpose", h, perm=[0, 2, 3, 1]), size=3))


row(
    "LRN", "channels last",
    normed_last,
)  # fmt: skip
row("MeanVarianceNormalization", "", unary("MeanVarianceNormalization"))
row("MeanVarianceNormalization", "space", unary("MeanVarianceNormalization", axes=[2, 3]))
row(
    "MeanVarianceNormalization", "channels too", unary("MeanVarianceNormalization", axes=[0, 1, 2, 3]), 0,
    "is normalised together",
)  # fmt: skip
row(
    "MeanVarianceNormalization", "channels too, negative axes", unary("MeanVarianceNormalization", axes=[-3, -2, -1]),
    0, "is normalised together",
)  # fmt: skip
for opset in (7, 11, 18):
    row("BatchNormalization", f"opset {opset}", lambda b, h: b.batch_norm(h, CHANNELS), opset=opset)


def instance_norm(b: Build, h: str) -> str:
    return b.node("InstanceNormalization", h, b.weight(CHANNELS, positive=True), b.weight(CHANNELS))


def fed_norm(op: str, count: int) -> Make:
    """Scale and shift are graph inputs."""

    def make(b: Build, h: str) -> str:
        rest = [b.weight(CHANNELS, positive=True) for _ in range(count - 2)]
        return b.node(op, h, b.input("scale", (CHANNELS,)), b.input("shift", (CHANNELS,)), *rest)

    return make


def vector(b: Build, h: str) -> str:
    """One number for each channel."""
    return b.node("Squeeze", pooled(b, h), b.ints(0, 2, 3))


def norm_of_input(b: Build, h: str) -> None:
    """The input's channels are scaled by first's."""
    side = b.input("side", (1, CHANNELS, 8, 8))
    b.output(b.node("InstanceNormalization", side, vector(b, h), b.weight(CHANNELS)))


def norm_over_channels(b: Build, h: str) -> str:
    turned = b.node("Transpose", h, perm=[0, 2, 1, 3])
    return b.node("InstanceNormalization", turned, b.weight(8, positive=True), b.weight(8))


def styled_norm(b: Build, h: str) -> str:
    """Scale and shift come from a layer of their own."""
    both = b.node("Squeeze", b.gemm(b.input("style", (1, 4)), 4, 2 * CHANNELS, name="style_layer"), b.ints(0))
    scale, shift = b.many("Split", both, outs=2, axis=0, num_outputs=2)
    return b.node("InstanceNormalization", h, scale, shift)


row("BatchNormalization", "parameters from inputs", fed_norm("BatchNormalization", 4), 0, "scale")
row("BatchNormalization", "of a flat tensor", lambda b, h: b.batch_norm(b.node("Flatten", pooled(b, h)), CHANNELS))
row("InstanceNormalization", "", instance_norm)
row("InstanceNormalization", "parameters from inputs", fed_norm("InstanceNormalization", 2), 0, "scale")
row("InstanceNormalization", "parameters from a layer", styled_norm)
row("InstanceNormalization", "of an input by a tensor", norm_of_input, 0, "normalises channels that stay")
row("InstanceNormalization", "channels in space", norm_over_channels, 0, "is normalised over in")
NORMED = "is normalised over channels"


def layer_norm(*shape: int, axis: int, op: str = "LayerNormalization", outs: int = 1) -> Make:
    def make(b: Build, h: str) -> str:
        operands = [b.weight(*shape, positive=True)] + ([b.weight(*shape)] if op[0] == "L" else [])
        made = b.many(op, h, *operands, outs=outs, axis=axis)
        return made[0] if outs == 1 else b.node("Mul", made[0], made[2])

    return make


row("LayerNormalization", "last axis", layer_norm(8, axis=-1))
row("LayerNormalization", "space", layer_norm(8, 8, axis=2))
row("LayerNormalization", "channels", layer_norm(CHANNELS, 8, 8, axis=1), 0, NORMED)
row("LayerNormalization", "last axis, scale per channel", layer_norm(CHANNELS, 1, 8, axis=-1), 0, "scale")
row("LayerNormalization", "statistics in use", layer_norm(8, axis=-1, outs=3))
row(
    "LayerNormalization", "scale from a tensor",
    lambda b, h: b.output(b.node("LayerNormalization", b.input("side", (1, 5, CHANNELS)), vector(b, h))), 0, NORMED,
)  # fmt: skip
row("RMSNormalization", "last axis", layer_norm(8, axis=-1, op="RMSNormalization"), opset=23)
row("RMSNormalization", "channels", layer_norm(CHANNELS, 8, 8, axis=1, op="RMSNormalization"), 0, NORMED, opset=23)
row(
    "GroupNormalization", "",
    lambda b, h: b.node("GroupNormalization", h, b.weight(CHANNELS, positive=True), b.weight(CHANNELS), num_groups=3),
    0, NORMED, opset=21,
)  # fmt: skip


def skip_norm(b: Build, h: str) -> str:
    """Channels are the sequence axis of x (first) and skip (other)."""
    x, skip = (b.node("Reshape", name, b.ints(1, CHANNELS, 64)) for name in (h, b.conv("x", 3, CHANNELS, name="other")))
    return b.node("SkipLayerNormalization", x, skip, b.weight(64, positive=True), b.weight(64), domain="com.microsoft")


def skip_norm_channels(b: Build, h: str) -> None:
    x, skip = (
        b.node("Transpose", b.node("Reshape", name, b.ints(1, CHANNELS, 64)), perm=[0, 2, 1])
        for name in (h, b.conv("x", 3, CHANNELS, name="other"))
    )
    y = b.node("SkipLayerNormalization", x, skip, b.weight(CHANNELS, positive=True), domain="com.microsoft")
    b.output(b.node("MatMul", y, b.weight(CHANNELS, 5)))


row("com.microsoft::SkipLayerNormalization", "channels beside the normalised axis", skip_norm, 0, "meets the scale")
row("com.microsoft::SkipLayerNormalization", "channels", skip_norm_channels, 0, NORMED)

# --- shapes, sources, opaque ones --------------------------------------------------------------------------------------


def channel_count(b: Build, h: str) -> str:
    """The number of channels is computed with, not reshaped by: x / sqrt(C)."""
    count = b.node("Gather", b.node("Shape", h), b.const(np.int64(1)), axis=0)
    return b.node("Div", h, b.node("Sqrt", floats(b, count)))


def pixel_count(b: Build, h: str) -> str:
    """Sum over space divided by H·W: no channel in it."""
    sizes = b.node("Slice", b.node("Shape", h), b.ints(2), b.ints(4))
    return b.node("Div", b.node("ReduceSum", h, b.ints(2, 3)), floats(b, b.node("ReduceProd", sizes)))


row("Shape", "as a target", lambda b, h: b.node("Reshape", b.conv(h, CHANNELS, CHANNELS), b.node("Shape", h)))
row(
    "Shape", "a part",
    lambda b, h: b.node("Reshape", h, b.node("Concat", b.node("Shape", h, end=2), b.ints(-1), axis=0)),
)  # fmt: skip
row("Shape", "counting pixels", pixel_count)
row("Shape", "counting channels", channel_count, 0, "count")
row("Shape", "as an output", lambda b, h: (b.output(b.node("Shape", h), kind=TensorProto.INT64), h)[1], 0, "output")


def all_of_it(b: Build, h: str) -> str:
    return b.node("Reshape", h, b.node("Concat", b.ints(1), b.node("Unsqueeze", b.node("Size", h), b.ints(0)), axis=0))


row(
    "Size", "as a target",
    all_of_it,
)  # fmt: skip
row("Size", "as a number", lambda b, h: b.node("Div", h, floats(b, b.node("Size", h))), 0, "count")


def made_from(op: str, **attributes: object) -> Make:
    return lambda b, h: b.node("Add", h, b.node("Mul", b.node(op, h, **attributes), b.scalar(0.0)))


row("RandomNormalLike", "", made_from("RandomNormalLike", seed=1.0), 0, "decides what")
row("RandomUniformLike", "", made_from("RandomUniformLike", seed=1.0), 0, "decides what")
row(
    "RandomNormal", "", lambda b, h: b.node("Add", h, b.node("RandomNormal", shape=[1, CHANNELS, 1, 1], seed=1.0)), 0,
    NO_CHANNELS,
)  # fmt: skip
row(
    "RandomUniform", "", lambda b, h: b.node("Add", h, b.node("RandomUniform", shape=[1, CHANNELS, 1, 1], seed=1.0)), 0,
    NO_CHANNELS,
)  # fmt: skip
row(
    "EyeLike", "", lambda b, h: b.node("Add", b.node("Flatten", h), b.node("EyeLike", b.node("Flatten", h))), 0,
    "decides what",
)  # fmt: skip
row("NonZero", "", lambda b, h: b.output(b.node("NonZero", h), kind=TensorProto.INT64), 0, "decides what")


def every_index(b: Build, h: str) -> str:
    """x[:, arange(x.shape[1])]."""
    count = b.node("Gather", b.node("Shape", h), b.const(np.int64(1)))
    return b.node("Gather", h, b.node("Range", b.const(np.int64(0)), count, b.const(np.int64(1))), axis=1)


row(
    "Range", "of a shape",
    every_index,
)  # fmt: skip


def counted(b: Build, h: str) -> None:
    limit = cast(b, b.node("ReduceMax", b.node("Abs", h), keepdims=0), TensorProto.INT64)
    b.output(b.node("Range", b.const(np.int64(0)), limit, b.const(np.int64(1))), kind=TensorProto.INT64)


row("Range", "of a value", counted, 0, SUMMED)


def vector_range(b: Build, h: str) -> None:
    b.output(b.node("Range", b.scalar(0.0), h, b.scalar(1.0), out="range"), rank=1)


row("Range", "of channels", vector_range, 0, "decides what", shapes={"range": (4,)})
TAKEN = "is taken apart by"
row("Einsum", "", unary("Einsum", equation="bchw->bhwc"), 0, TAKEN)
row("GatherND", "of two axes", lambda b, h: b.output(b.node("GatherND", h, b.const(np.array([[0, 3]])))), 0, TAKEN)


def indexed(b: Build, h: str) -> str:
    """Channels picked as newer exporters index: moved to the front, GatherND, moved back."""
    front = b.node("Transpose", h, perm=[1, 0, 2, 3])
    picked = b.node("GatherND", front, b.const(np.array([[3], *([i] for i in range(-CHANNELS, 0))])), batch_dims=0)
    return b.node("Transpose", picked, perm=[1, 0, 2, 3])


row("GatherND", "of the first axis", indexed)
row(
    "GatherElements", "", lambda b, h: b.node("GatherElements", h, b.const(np.zeros((1, 4, 8, 8), np.int64)), axis=1),
    0, TAKEN,
)  # fmt: skip
row("ScatterND", "", lambda b, h: b.node("ScatterND", h, b.const(np.array([[0, 3]])), b.weight(1, 8, 8)), 0, TAKEN)
row(
    "ScatterElements", "",
    lambda b, h: b.node("ScatterElements", h, b.const(np.zeros((1, 1, 1, 1), np.int64)), b.weight(1, 1, 1, 1), axis=1),
    0, TAKEN,
)  # fmt: skip


def one_hot(b: Build, h: str) -> None:
    values = b.const(np.array([0, 1], np.float32))
    b.output(b.node("OneHot", cast(b, h, TensorProto.INT64), b.const(np.int64(4)), values))


row(
    "OneHot", "",
    one_hot,
    0, TAKEN,
)  # fmt: skip


def suppressed(b: Build, h: str) -> None:
    boxes = b.node("Reshape", h, b.ints(1, CHANNELS * 16, 4))
    scores = b.node("Transpose", b.node("Slice", boxes, b.ints(0), b.ints(1), b.ints(2)), perm=[0, 2, 1])
    b.output(b.node("NonMaxSuppression", boxes, scores, b.ints(3)), kind=TensorProto.INT64)


row("NonMaxSuppression", "", suppressed, 0, TAKEN)


def aligned(b: Build, h: str) -> str:
    region = b.const(np.array([[0, 0, 7, 7]], np.float32))
    return b.node("RoiAlign", h, region, b.ints(0), output_height=2, output_width=2)


row(
    "RoiAlign", "",
    aligned,
    0, TAKEN,
)  # fmt: skip


def recurrent(op: str, gates: int) -> Make:
    def make(b: Build, h: str) -> None:
        sequence = b.node("Transpose", b.node("ReduceMean", h, b.ints(2), keepdims=0), perm=[2, 0, 1])
        y = b.node(op, sequence, b.weight(1, gates * 6, CHANNELS), b.weight(1, gates * 6, 6), hidden_size=6)
        b.output(b.node("MatMul", y, b.weight(6, 5)))

    return make


for operator, count in (("RNN", 1), ("GRU", 3), ("LSTM", 4)):
    row(operator, "", recurrent(operator, count), 0, f"feeds the recurrent layer {operator}")


def body(
    nodes: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]
) -> onnx.GraphProto:
    return helper.make_graph(nodes, "body", inputs, outputs)


def value(name: str, *shape: int | str, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def branch(b: Build, h: str) -> str:
    yes = body([helper.make_node("Relu", [h], ["yes"])], [], [value("yes", 1, CHANNELS, 8, 8)])
    no = body([helper.make_node("Neg", [h], ["no"])], [], [value("no", 1, CHANNELS, 8, 8)])
    return b.node("If", b.input("flag", (), np.bool_), then_branch=yes, else_branch=no)


def loop(b: Build, h: str) -> str:
    state = value("state", 1, CHANNELS, 8, 8)
    on = value("on", kind=TensorProto.BOOL)
    inner = body(
        [helper.make_node("Identity", ["on"], ["on_out"]), helper.make_node("Mul", ["state", h], ["state_out"])],
        [value("turn", kind=TensorProto.INT64), on, state],
        [value("on_out", kind=TensorProto.BOOL), value("state_out", 1, CHANNELS, 8, 8)],
    )
    return b.node("Loop", b.const(np.int64(2)), b.const(np.bool_(True)), h, body=inner)


def scan(b: Build, h: str) -> str:
    inner = body(
        [
            helper.make_node("Add", ["total", "item"], ["total_out"]),
            helper.make_node("Identity", ["total_out"], ["each"]),
        ],
        [value("total", 8, 8), value("item", 8, 8)],
        [value("total_out", 8, 8), value("each", 8, 8)],
    )
    start = b.const(np.zeros((8, 8), np.float32))
    _, each = b.many("Scan", start, b.node("Squeeze", h, b.ints(0)), outs=2, body=inner, num_scan_inputs=1)
    return b.node("Unsqueeze", each, b.ints(0))


row("If", "captures", branch, 0, "is used inside the If node")
row("Loop", "carries and captures", loop, 0, "is used inside the Loop node")
row("Scan", "", scan, 0, "is used inside the Scan node")

# --- linear ------------------------------------------------------------------------------------------------------------


def conv(
    c_out: int = 8,
    k: int = 3,
    *,
    domain: str = "",
    group: int = 1,
    op: str = "Conv",
    bias: bool = True,
    c_in: int = CHANNELS,
    **attributes: object,
) -> Make:
    def make(b: Build, h: str) -> str:
        shape = (c_in, c_out // group, k, k) if op == "ConvTranspose" else (c_out, c_in // group, k, k)
        operands = [b.weight(*shape)] + ([b.weight(c_out)] if bias else [])
        extra = (
            attributes
            if "auto_pad" in attributes or "output_shape" in attributes
            else {"pads": [k // 2] * 4} | attributes
        )
        y = b.node(op, h, *operands, domain=domain, group=group, **extra)
        return b.node("Relu", y)

    return make


FIXED = "comes from a graph input or another fixed axis"


def convolution_of_rank(rank: int) -> Make:
    def make(b: Build, h: str) -> None:
        y = b.node("Reshape", h, b.ints(1, CHANNELS, *{1: (64,), 3: (4, 4, 4)}[rank]))
        y = b.node("Relu", b.conv(y, CHANNELS, 8, rank=rank))
        b.output(b.conv(y, 8, 5, rank=rank, bias=False))

    return make


for rank in (1, 3):
    row("Conv", f"{rank}-D", convolution_of_rank(rank))
row("Conv", "plain", conv())
row("Conv", "no bias", conv(bias=False))
row("Conv", "empty bias", lambda b, h: b.node("Conv", h, b.weight(6, CHANNELS, 1, 1), ""))
row("Conv", "strides and dilations", conv(strides=[2, 2], dilations=[2, 1]))
for mode in ("SAME_UPPER", "SAME_LOWER", "VALID"):
    row("Conv", f"auto_pad {mode}", conv(auto_pad=mode, strides=[2, 1]))
row("Conv", "grouped", conv(9, group=3), units=4)
row("Conv", "grouped, one output each", conv(3, group=3), units=4)
row("Conv", "depthwise", conv(CHANNELS, group=CHANNELS))
row("Conv", "depthwise without bias", conv(CHANNELS, group=CHANNELS, bias=False))
row("Conv", "depthwise with a multiplier", conv(2 * CHANNELS, group=CHANNELS))
row(
    "Conv", "of one channel", lambda b, h: b.node("Conv", b.node("ReduceMax", h, b.ints(1)), b.weight(4, 1, 1, 1)), 0,
    SUMMED,
)  # fmt: skip


def made_weights(b: Build, h: str) -> str:
    weight = b.node("Reshape", b.gemm(b.input("z", (1, 4)), 4, 5 * CHANNELS), b.ints(5, CHANNELS, 1, 1))
    return b.node("Conv", h, weight)


row(
    "Conv", "weights from a tensor",
    made_weights,
    0, "whose weights are computed at run time",
)  # fmt: skip
row("Conv", "bias from an input", lambda b, h: b.node("Conv", h, b.weight(6, CHANNELS, 1, 1), b.input("shift", (6,))))
row(
    "Conv", "channels in space", lambda b, h: b.conv(b.node("Transpose", h, perm=[0, 2, 1, 3]), 8, 5), 0,
    "is spatial in",
)  # fmt: skip
row(
    "Conv", "weights of an If", lambda b, h: b.node("Conv", h, chosen_weights(b)), 0,
    "whose weights are computed at run time",
)  # fmt: skip
row("Conv", "output of the graph", lambda b, h: (b.output(h), h)[1], 0, "feeds the graph output 'first'")


def uncut(b: Build, *shape: int) -> str:
    """Weights of a type that is never cut."""
    values = b.const(b.rng.integers(0, 2**16, shape).astype(np.uint16))
    return b.node("DequantizeLinear", values, b.scalar(1e-5), b.const(np.uint16(2**15)))


def weights_of_input(b: Build, h: str) -> None:
    """The same weights read first's channels and those of an input."""
    weight = b.weight(5, CHANNELS, 1, 1)
    b.output(*(b.node("Conv", name, weight) for name in (h, b.input("side", (1, CHANNELS, 8, 8)))))


row(
    "Conv",
    "weights that are never cut",
    lambda b, h: b.node("Conv", h, uncut(b, 5, CHANNELS, 1, 1)),
    0,
    "whose weights can't be cut",
    opset=21,
)
row("Conv", "weights shared with an input", weights_of_input, 0, FIXED)


def bias_of_uncut(b: Build, h: str) -> None:
    b.output(b.node("Gemm", b.input("z", (1, 4)), uncut(b, 4, CHANNELS), b.node("Flatten", pooled(b, h))))


def chosen_weights(b: Build) -> str:
    shape = (5, CHANNELS, 1, 1)
    one = b.weight(*shape, name="one")
    yes = body([helper.make_node("Identity", [one], ["yes"])], [], [value("yes", *shape)])
    no = body([helper.make_node("Neg", [one], ["no"])], [], [value("no", *shape)])
    return b.node("If", b.input("flag", (), np.bool_), then_branch=yes, else_branch=no)


for rank_title, extra in (
    ("plain", {}), ("strided", {"strides": [2, 2], "output_padding": [1, 1]}), ("dilated", {"dilations": [2, 2]}),
    ("auto_pad", {"auto_pad": "SAME_UPPER", "strides": [2, 2]}), ("given shape", {"output_shape": [16, 16], "strides": [2, 2]}),
):  # fmt: skip
    row("ConvTranspose", rank_title, conv(op="ConvTranspose", **extra))
row("ConvTranspose", "no bias", conv(op="ConvTranspose", bias=False))
row("ConvTranspose", "grouped", conv(9, op="ConvTranspose", group=3), units=4)
row("ConvTranspose", "grouped, one output each", conv(3, op="ConvTranspose", group=3), units=4)
row("ConvTranspose", "depthwise", conv(CHANNELS, op="ConvTranspose", group=CHANNELS))
row("ConvTranspose", "depthwise with a multiplier", conv(2 * CHANNELS, op="ConvTranspose", group=CHANNELS))
row("com.microsoft::FusedConv", "activation", conv(domain="com.microsoft", op="FusedConv", activation="Relu"))
row(
    "com.microsoft::FusedConv", "depthwise",
    conv(CHANNELS, group=CHANNELS, domain="com.microsoft", op="FusedConv", activation="Relu"),
)  # fmt: skip


def fused_sum(other: str) -> Make:
    """A convolution that adds its fourth operand before the activation."""

    def make(b: Build, h: str) -> str:
        z = {"first": h, "other": b.conv("x", 3, CHANNELS), "input": "x"}[other]
        width = 3 if other == "input" else CHANNELS
        operands = (b.weight(width, CHANNELS, 1, 1), b.weight(width), z)
        return b.node("FusedConv", h, *operands, domain="com.microsoft", activation="Relu")

    return make


row("com.microsoft::FusedConv", "sum with its input", fused_sum("first"))
row("com.microsoft::FusedConv", "sum with another", fused_sum("other"))
row("com.microsoft::FusedConv", "sum with a graph input", fused_sum("input"))


def gemm(
    trans_a: int,
    trans_b: int,
    bias: tuple[int, ...] | None = (7,),
    *,
    op: str = "Gemm",
    domain: str = "",
    **attributes: object,
) -> Make:
    def make(b: Build, h: str) -> str:
        x = b.node("Flatten", pooled(b, h))
        x = b.node("Transpose", x, perm=[1, 0]) if trans_a else x
        operands = [b.weight(7, CHANNELS) if trans_b else b.weight(CHANNELS, 7)]
        if bias is not None:
            operands.append(b.weight(*bias))
        return b.node(op, x, *operands, transA=trans_a, transB=trans_b, domain=domain, **attributes)

    return make


for a_turned in (0, 1):
    for b_turned in (0, 1):
        row("Gemm", f"transA={a_turned}, transB={b_turned}", gemm(a_turned, b_turned, alpha=0.5, beta=2.0))
        row(
            "com.microsoft::FusedGemm", f"transA={a_turned}, transB={b_turned}",
            gemm(a_turned, b_turned, op="FusedGemm", domain="com.microsoft", activation="Relu"),
        )  # fmt: skip
row("Gemm", "no bias", gemm(0, 1, None))
row(
    "Conv", "depthwise, bias from an input",
    lambda b, h: b.node("Conv", h, b.weight(CHANNELS, 1, 1, 1), b.input("shift", (CHANNELS,)), group=CHANNELS), 0,
    "as its bias, which can't be cut",
)  # fmt: skip


def depthwise_of_input(b: Build, h: str) -> None:
    """The input's channels are shifted by first's."""
    side = b.input("side", (1, CHANNELS, 8, 8))
    b.output(b.node("Conv", side, b.weight(CHANNELS, 1, 1, 1), vector(b, h), group=CHANNELS))


row("Conv", "depthwise, bias is a tensor", depthwise_of_input, 0, "is the bias of channels that stay")
row("Gemm", "bias is a tensor", bias_of_uncut, 0, "is the bias of channels that stay", opset=21)
row("Gemm", "scalar bias", gemm(0, 1, ()))
row("Gemm", "bias of one row", gemm(0, 0, (1, 7)))
row("Gemm", "after flatten", lambda b, h: b.node("Relu", b.gemm(b.node("Flatten", h), CHANNELS * 64, 6)))


def product(b: Build, h: str) -> None:
    x, y = (b.node("Flatten", b.node(op, h)) for op in ("GlobalAveragePool", "GlobalMaxPool"))
    b.output(b.node("Gemm", x, y, transB=1))


row(
    "Gemm", "by another tensor",
    product,
    0, "whose weights are computed at run time",
)  # fmt: skip


def rows_of_channels(bias: tuple[int, ...]) -> Make:
    """Channels are the rows of the matrix, and pass."""

    def make(b: Build, h: str) -> None:
        rows = b.node("Reshape", h, b.ints(-1, 64))
        y = b.node("Gemm", rows, b.weight(64, 6), b.weight(*bias))
        b.output(b.node("MatMul", b.weight(5, CHANNELS), y))

    return make


row("Gemm", "channels as rows", rows_of_channels((6,)))
row("Gemm", "channels as rows, a bias for each", rows_of_channels((CHANNELS, 6)))
row("Gemm", "channels as rows, one number each", rows_of_channels((CHANNELS, 1)))


def matrix(b: Build, h: str) -> str:
    return b.node("Reshape", h, b.ints(1, CHANNELS, 64))


def attention(b: Build, h: str) -> None:
    """Channels are what the scores are summed over (first, other) and what the values keep (third)."""
    q, k, v = (matrix(b, name) for name in (h, b.conv("x", 3, CHANNELS), b.conv("x", 3, CHANNELS, name="third")))
    scores = b.node("Softmax", b.node("MatMul", b.node("Transpose", q, perm=[0, 2, 1]), k))
    b.output(b.conv(b.node("MatMul", v, b.node("Transpose", scores, perm=[0, 2, 1])), CHANNELS, 5, name="last", rank=1))


def times(**attributes: object) -> Make:
    """A constant on the right of channels last."""

    def make(b: Build, h: str) -> None:
        op, domain = ("FusedMatMul", "com.microsoft") if attributes else ("MatMul", "")
        x = b.node("Transpose", h, perm=[0, 2, 3, 1])
        weight = b.weight(5, CHANNELS) if attributes.get("transB") else b.weight(CHANNELS, 5)
        b.output(b.node(op, x, weight, domain=domain, **attributes))

    return make


def batched(b: Build, h: str) -> None:
    """FusedMatMul that takes the second operand's batch from its second axis: rows × contracted are axes 0 and 2 of it."""
    x = b.node("Reshape", h, b.ints(CHANNELS, 8, 8))
    w = b.node(
        "Transpose", b.node("Reshape", b.conv("x", 3, CHANNELS, name="other"), b.ints(CHANNELS, 8, 8)), perm=[1, 0, 2]
    )
    y = b.node("FusedMatMul", x, w, domain="com.microsoft", transBatchB=1)
    b.output(b.conv(b.node("Unsqueeze", y, b.ints(0)), CHANNELS, 5, name="last"))


row("MatMul", "constant on the right", times())
row("MatMul", "constant on the left", lambda b, h: b.output(b.node("MatMul", b.weight(5, CHANNELS), matrix(b, h))))
row(
    "MatMul", "constant on the left, rank 4",
    lambda b, h: b.output(b.node("MatMul", b.weight(5, CHANNELS), b.node("Transpose", h, perm=[0, 2, 1, 3]))),
)  # fmt: skip
row("MatMul", "constant on the right, channels as rows", lambda b, h: b.node("MatMul", matrix(b, h), b.weight(64, 6)))
row(
    "MatMul", "vector",
    lambda b, h: b.output(b.node("MatMul", b.node("Reshape", pooled(b, h), b.ints(-1)), b.weight(CHANNELS, 5))),
)  # fmt: skip
row("MatMul", "two tensors", attention, 0, "is summed over in the product of two activations")
row(
    "MatMul", "by itself",
    lambda b, h: b.node("MatMul", b.node("Transpose", matrix(b, h), perm=[0, 2, 1]), matrix(b, h)), 0,
    "is summed over in the product of two activations",
)  # fmt: skip
row("MatMul", "channels as a batch", lambda b, h: b.node("MatMul", h, b.conv("x", 3, CHANNELS)), 0, "is a batch axis")


def batched_weights(b: Build, h: str) -> None:
    b.output(b.node("MatMul", b.node("Transpose", matrix(b, h), perm=[0, 2, 1]), b.weight(1, CHANNELS, 5)))


row(
    "MatMul", "constants of rank 3",
    batched_weights,
    0, "is summed over",
)  # fmt: skip


def vector_of_rows(b: Build, h: str) -> None:
    """(C × 64) · (64) gives a vector with the channels on its only axis; another layer reads them too."""
    b.output(b.conv(h, CHANNELS, 5))
    y = b.node("MatMul", b.node("Reshape", h, b.ints(-1, 64)), b.node("Reshape", b.conv("x", 3, 1), b.ints(64)))
    b.output(b.node("MatMul", y, b.weight(CHANNELS, 5)))


row("MatMul", "matrix times a vector", vector_of_rows)


def rows_times_vector(b: Build, h: str) -> None:
    y = b.node("MatMul", matrix(b, h), b.node("Reshape", b.conv("x", 3, 1), b.ints(64)))
    b.output(b.node("MatMul", b.weight(1, CHANNELS), b.node("Unsqueeze", y, b.ints(2))))


row(
    "MatMul", "rows times a vector",
    rows_times_vector,
)  # fmt: skip
row("com.microsoft::FusedMatMul", "scaled", times(alpha=0.25))
row("com.microsoft::FusedMatMul", "transposed weights", times(alpha=1.0, transB=1), 0, "is multiplied in")
row("com.microsoft::FusedMatMul", "transposed batch", batched, 0, "")

# --- the tests ---------------------------------------------------------------------------------------------------------


def test_every_operator_has_a_row() -> None:
    assert {case.kind for case in CASES} == set(RULES)


def test_rows_have_names_of_their_own() -> None:
    names = [case.name for case in CASES]
    assert len(names) == len(set(names))


def plans(analysis: Analysis) -> Iterator[list[np.ndarray]]:
    """Two random ones, and the one that keeps the least of everything."""
    yield from (random_kept(analysis, seed) for seed in (0, 1))
    yield [np.arange(group.size - group.floor, group.size) for group in analysis.groups]


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
def test_rule(case: Case) -> None:
    b = built(case)
    model = b.model()
    assert graphs.check(model) is None
    analysis = known(case, b, model)
    assert case.kind in {node.kind for node in analysis.graph.nodes}

    (first,) = [layer for layer in analysis.context.linears if layer.node.key == "first"]
    assert first.out_labels is not None
    roots = [root for root in analysis.roots(first.out_labels).tolist() if root in analysis.group_of]
    assert len(roots) == case.removable, reasons_of(analysis)
    assert len(set(roots)) == (case.removable if case.units is None else case.units)
    if case.removable < CHANNELS:
        reasons = reasons_of(analysis)
        pieces = case.reason.split(" | ")
        assert all(any(piece in reason for piece in pieces) for reason in reasons), reasons
        assert all(any(piece in reason for reason in reasons) for piece in pieces), reasons

    if analysis.groups and not case.shapes:
        for kept in plans(analysis):
            holds(model, analysis, kept, b.feed())


LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul", "com.microsoft::FusedMatMul")


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES if case.kind in LINEAR])
def test_linear_layers_are_what_they_are_noted_as(case: Case) -> None:
    """alpha · windows of x · weights + beta · bias is the layer's output."""
    b = built(case)
    model = b.model()
    analysis = known(case, b, model)
    for layer in analysis.context.linears:
        weight = analysis.graph.fold(layer.weight)
        name = layer.node.operand(layer.bias) if layer.bias is not None else ""
        wanted = [each for each in (layer.x, layer.node.key, name) if each and each not in analysis.graph.derived]
        found = values_of(model, wanted, b.feed())
        x, y = found[layer.x], found[layer.node.key]
        bias = (found.get(name) if name in found else analysis.graph.fold(name)) if name else None
        assert weight is not None
        matrices = weight_matrix(weight, layer.in_axis, layer.groups, layer.window)
        picks = np.arange(count_positions(x.shape, layer.x_axis, layer.window))
        rows = rows_at(x, layer.x_axis, layer.window, picks).reshape(len(picks), layer.groups, -1)
        sums = layer.alpha * np.einsum("pgn,gdn->pgd", rows, matrices).reshape(len(picks), -1)
        if bias is not None:
            shift = layer.beta * (bias.reshape(-1, *[1] * (y.ndim - 2)) if "Conv" in layer.node.op else bias)
            sums += values_at(np.broadcast_to(shift, y.shape), layer.y_axis, picks)
        assert np.allclose(sums, values_at(y, layer.y_axis, picks), atol=1e-4)


UNKNOWN = {
    "custom.domain::Odd": "feeds the operator custom.domain::Odd, which is unknown",
    "Det": "feeds the operator Det, which is unknown",
    "com.microsoft.nchwc::MaxPool": "feeds the operator com.microsoft.nchwc::MaxPool, which is unknown",
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_unknown_operator_freezes_what_it_touches(kind: str) -> None:
    domain, _, op = kind.rpartition("::")
    b = Build(domains=[domain])
    h = b.conv(b.input(), 3, CHANNELS, name="first")
    other = b.conv("x", 3, CHANNELS, name="other")
    b.node(op, h, domain=domain, out="odd")
    b.output("odd", rank=2 if op == "Det" else 4)
    b.output(b.node("Conv", h, b.weight(4, CHANNELS, 1, 1), out="last"), rank=4)
    b.output(b.node("Conv", other, b.weight(4, CHANNELS, 1, 1), out="end"), rank=4)
    sizes = {"x": (1, 3, 8, 8), "first": (1, CHANNELS, 8, 8), "other": (1, CHANNELS, 8, 8)}
    ends = {"odd": (1, CHANNELS), "last": (1, 4, 8, 8), "end": (1, 4, 8, 8)}
    analysis = analyse(graphs.Graph(b.model()), sizes | ends)
    (reason,) = reasons_of(analysis)
    assert UNKNOWN[kind] in reason
    assert [group.name for group in analysis.groups] == ["/other"]
    assert analysis.removable == CHANNELS


def test_shape_that_is_not_known_freezes() -> None:
    b = Build()
    h = b.conv(b.input(), 3, CHANNELS, name="first")
    b.output(b.node("Conv", b.node("Relu", h, out="relu"), b.weight(4, CHANNELS, 1, 1), out="last"), rank=4)
    analysis = analyse(graphs.Graph(b.model()), {"x": (1, 3, 8, 8), "first": (1, CHANNELS, 8, 8), "last": (1, 4, 8, 8)})
    assert not analysis.groups
    assert "where a shape is not known before the run" in reasons_of(analysis)[0]
