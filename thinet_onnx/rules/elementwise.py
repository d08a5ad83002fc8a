"""Operators that work element by element: labels that meet in one position go together."""

from thinet_onnx.graph import Node
from thinet_onnx.labels import Axes, Ids
from thinet_onnx.rules.context import Context, rule


@rule(
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Bernoulli", "BitwiseNot", "Cast", "CastLike", "Ceil",
    "Celu", "Clip", "Cos", "Cosh", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity",
    "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid",
    "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu",
    "com.microsoft::Gelu", "com.microsoft::QuickGelu",
)  # fmt: skip
def unary(ctx: Context, node: Node) -> None:
    """One operand (further ones are scalars): the labels go through, to a mask output as well."""
    for output in node.outputs:
        ctx.emit(output, ctx.axes(node.inputs[0]))


@rule(
    "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater", "GreaterOrEqual", "Less",
    "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor",
    "com.microsoft::FastGelu",
)  # fmt: skip
def broadcast(ctx: Context, node: Node) -> None:
    """Any number of operands under multidirectional broadcasting."""
    ctx.emit(node.key, unite_operands(ctx, node, node.inputs, node.op in ("Add", "Sub", "Sum", "Mean", "Max", "Min")))


def unite_operands(ctx: Context, node: Node, operands: tuple[str, ...], additive: bool = False) -> Axes:
    """Unite the labels of operands that meet on an axis of the output; returns the output's labels.

    An index that meets one without a label can't go. `additive` notes streams that several layers write to.
    """
    rank = max((len(ctx.shape(name) or ()) for name in operands), default=0)
    merged: Axes = {}
    for axis in range(rank):
        found: list[tuple[Ids, bool]] = []
        bare = ""
        for name in operands:
            shape = ctx.shape(name)
            own = axis - (rank - len(shape or ()))
            if shape is None or own < 0 or shape[own] == 1:
                continue
            vector = ctx.axes(name).get(own)
            if vector is None:
                bare = name
            else:
                found.append((vector, name not in ctx.graph.derived))
        if not found:
            continue
        if bare:
            for vector, _ in found:
                ctx.freeze(vector, f"meets {describe(ctx, bare)} in {node.title}", bare)
            continue
        merged[axis] = _join(ctx, found, additive)
    return merged


def _join(ctx: Context, found: list[tuple[Ids, bool]], additive: bool) -> Ids:
    live = [vector for vector, active in found if active]
    if additive and any((ctx.labels.find(v) != ctx.labels.find(live[0])).any() for v in live[1:]):
        ctx.residual.append(live[0])
    for vector, _ in found[1:]:
        ctx.labels.unite(found[0][0], vector)
    return live[0] if live else found[0][0]


def describe(ctx: Context, name: str) -> str:
    """A tensor without labels, in words."""
    if name in {value.name for value in ctx.graph.inputs}:
        return f"the graph input {name!r}"
    return f"{name!r}, which has no channels that could go with it,"


@rule("QuantizeLinear", "DequantizeLinear")
def quantize(ctx: Context, node: Node) -> None:
    """Scale and zero point go along with the axis they belong to; one per tensor stays as it is."""
    x = ctx.axes(node.inputs[0])
    rank = len(ctx.shape(node.inputs[0]) or ())
    axis = ctx.attribute(node, "axis", 1) % max(rank, 1)
    blocked = ctx.attribute(node, "block_size", 0) > 0
    for name in node.inputs[1:]:
        own = ctx.axes(name).get(0)
        if blocked:
            ctx.freeze_node(node, "is quantised in blocks of channels")
        elif own is not None and axis in x:
            ctx.labels.unite(x[axis], own)
        elif own is not None:
            ctx.freeze(own, "is the scale of an axis that stays")
        elif axis in x and max(ctx.shape(name) or (1,)) > 1:
            ctx.freeze(x[axis], f"has {name!r} as its scale or zero point, which can't be cut")
    ctx.emit(node.key, x)
