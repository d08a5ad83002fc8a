"""Operators that mix elements along some axes and work alike along the others.

Channels pass along the axes that are left alone; along the axes that are mixed they can't go, since what is left of a
softmax, a mean or a norm over channels would change.
"""

import numpy as np

from thinet_onnx.graph import Node
from thinet_onnx.labels import Axes
from thinet_onnx.rules.context import Context, rule


def pass_along(ctx: Context, node: Node, axes: Axes) -> None:
    """Give every output of the input's rank these labels."""
    for name in node.outputs:
        ctx.emit(name, dict(axes))


@rule(
    "AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool", "MaxRoiPool",
)  # fmt: skip
def pool(ctx: Context, node: Node) -> None:
    """Batch and channels pass, space is mixed."""
    axes = ctx.freeze_axes(ctx.axes(node.inputs[0]), f"is pooled over in {node.title}", keep=(0, 1))
    if len(node.outputs) > 1 and (node.outputs[1] in ctx.graph.consumers or node.outputs[1] in ctx.graph.outputs):
        axes = ctx.freeze_axes(axes, f"is counted in the places that {node.title} returns")
    ctx.emit(node.key, axes)


@rule("Resize", "Upsample")
def resize(ctx: Context, node: Node) -> None:
    """Axes that keep their size pass; those that are resampled are mixed."""
    before, after = ctx.shape(node.inputs[0]), ctx.shape(node.key)
    same = (
        []
        if before is None or after is None
        else [a for a, (m, n) in enumerate(zip(before, after, strict=True)) if m == n]
    )
    axes = ctx.freeze_axes(ctx.axes(node.inputs[0]), f"is resampled in {node.title}", keep=same)
    ctx.emit(node.key, axes)
    if node.operand(3):
        chosen = [int(a) % len(after or ()) for a in node.attrs.get("axes", range(len(after or ())))]
        elements = {place: axes[axis] for place, axis in enumerate(chosen) if axis in axes}
        ctx.size(node, 3, None, elements, len(chosen))


@rule(
    "ArgMax", "ArgMin", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
    "ReduceProd", "ReduceSum", "ReduceSumSquare",
)  # fmt: skip
def reduce(ctx: Context, node: Node) -> None:
    """The reduced axes are mixed; the others pass, renumbered where the reduced ones vanish."""
    rank = len(ctx.shape(node.inputs[0]) or ())
    if node.op in ("ArgMax", "ArgMin"):
        given = [ctx.attribute(node, "axis", 0)]
    else:
        operand = ctx.value(node.operand(1)) if node.operand(1) else node.attrs.get("axes")
        none = bool(ctx.attribute(node, "noop_with_empty_axes", 0))
        given = [] if operand is None and none else list(range(rank)) if operand is None else list(np.ravel(operand))
    reduced = {int(axis) % max(rank, 1) for axis in given}
    axes = ctx.freeze_axes(
        ctx.axes(node.inputs[0]), f"is summed up over channels in {node.title}", keep=set(range(rank)) - reduced
    )
    if not ctx.attribute(node, "keepdims", 1):
        axes = {axis - sum(r < axis for r in reduced): vector for axis, vector in axes.items()}
    ctx.emit(node.key, axes)


@rule("Softmax", "LogSoftmax", "Hardmax")
def softmax(ctx: Context, node: Node) -> None:
    """One axis is mixed; before opset 13 all axes from there on."""
    rank = len(ctx.shape(node.inputs[0]) or ())
    axis = ctx.attribute(node, "axis", -1 if ctx.graph.opset >= 13 else 1) % max(rank, 1)
    mixed = {axis} if ctx.graph.opset >= 13 else set(range(axis, rank))
    ctx.emit(
        node.key,
        ctx.freeze_axes(ctx.axes(node.inputs[0]), "is under a softmax over channels", keep=set(range(rank)) - mixed),
    )


@rule("LpNormalization", "CumSum", "TopK")
def along_one_axis(ctx: Context, node: Node) -> None:
    """One axis is mixed (the last by default)."""
    rank = len(ctx.shape(node.inputs[0]) or ())
    given = ctx.value(node.inputs[1]) if node.op == "CumSum" else ctx.attribute(node, "axis", -1)
    if given is None:
        ctx.freeze_node(node, f"is mixed in {node.title} along an axis that is not known before the run")
        return
    axis = int(np.ravel(given)[0]) % max(rank, 1)
    axes = ctx.axes(node.inputs[0])
    pass_along(ctx, node, ctx.freeze_axes(axes, f"is mixed in {node.title}", keep=set(range(rank)) - {axis}))


@rule("LRN", "MeanVarianceNormalization")
def across_channels(ctx: Context, node: Node) -> None:
    """Neighbouring channels, or all but the named axes, are mixed."""
    rank = len(ctx.shape(node.inputs[0]) or ())
    mixed = {axis % max(rank, 1) for axis in ((1,) if node.op == "LRN" else node.attrs.get("axes", (0, 2, 3)))}
    axes = ctx.freeze_axes(
        ctx.axes(node.inputs[0]), f"is normalised together with other channels in {node.title}",
        keep=set(range(rank)) - mixed,
    )  # fmt: skip
    ctx.emit(node.key, axes)


@rule("BatchNormalization", "InstanceNormalization")
def per_channel_norm(ctx: Context, node: Node) -> None:
    """Each channel by itself; its scale, shift, mean and variance go along with it."""
    axes = ctx.axes(node.inputs[0])
    keep = (0, 1) if node.op == "InstanceNormalization" else range(len(ctx.shape(node.inputs[0]) or ()))
    axes = ctx.freeze_axes(axes, f"is normalised over in {node.title}", keep=keep)
    for name in node.inputs[1:]:
        own = ctx.axes(name).get(0)
        if own is not None and 1 in axes:
            ctx.labels.unite(axes[1], own)
        elif own is not None:
            ctx.freeze(own, "normalises channels that stay")
        elif 1 in axes:
            ctx.freeze(axes[1], f"has {name!r} as its scale, shift or statistics, which can't be cut")
    pass_along(ctx, node, axes)


@rule("LayerNormalization", "RMSNormalization", "com.microsoft::SkipLayerNormalization", "GroupNormalization")
def layer_norm(ctx: Context, node: Node) -> None:
    """The normalised axes are mixed, scale and shift included; the others pass."""
    shape = ctx.shape(node.inputs[0]) or ()
    first = 1 if node.op == "GroupNormalization" else ctx.attribute(node, "axis", -1) % max(len(shape), 1)
    if node.op == "com.microsoft::SkipLayerNormalization":
        first = len(shape) - 1
    axes = ctx.freeze_axes(ctx.axes(node.inputs[0]), f"is normalised over channels in {node.title}", keep=range(first))
    for name in node.inputs[1:]:
        ctx.freeze_axes(ctx.axes(name), f"is normalised over channels in {node.title}")
        if max((ctx.shape(name) or ())[: first - len(shape)], default=1) > 1:  # an operand as wide as x itself
            axes = ctx.freeze_axes(axes, f"meets the scale, shift or sum {name!r} in {node.title}")
    pass_along(ctx, node, axes)


@rule("Shape", "Size")
def shape_query(ctx: Context, node: Node) -> None:
    """Reads a shape, and no element: the answer follows the cut by itself."""
    ctx.emit(node.key, {})


@rule("Range", "EyeLike", "RandomNormalLike", "RandomUniformLike", "RandomNormal", "RandomUniform", "NonZero")
def source(ctx: Context, node: Node) -> None:
    """Makes values of its own whose places can't be followed."""
    ctx.freeze_node(node, f"decides what {node.title} makes")
    pass_along(ctx, node, {})


@rule("Einsum", "GatherElements", "ScatterND", "ScatterElements", "OneHot", "NonMaxSuppression", "RoiAlign")
def opaque(ctx: Context, node: Node) -> None:
    """Known, but its channels can't be followed."""
    ctx.freeze_node(node, f"is taken apart by {node.title}")
    pass_along(ctx, node, {})


@rule("RNN", "GRU", "LSTM")
def recurrent(ctx: Context, node: Node) -> None:
    """Input, weights and states stay as they are."""
    ctx.freeze_node(node, f"feeds the recurrent layer {node.title}")
    pass_along(ctx, node, {})


@rule("If", "Loop", "Scan")
def control_flow(ctx: Context, node: Node) -> None:
    """What a body uses from outside stays."""
    ctx.freeze_node(node, f"is used inside the {node.op} node {node.title}")
    pass_along(ctx, node, {})
