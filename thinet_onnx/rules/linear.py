"""Linear operators: they consume the labels of their input channels and make new ones for their outputs.

Where the weights can't lose a channel alone (grouped convolutions: every group has the same number of channels), labels
are united first: the same position of every group.
"""

from collections.abc import Sequence

import numpy as np

from thinet_onnx.graph import Node
from thinet_onnx.labels import Ids
from thinet_onnx.rules.context import Context, Linear, rule
from thinet_onnx.unfold import Window


def consume(ctx: Context, node: Node, axes: dict[int, Ids], axis: int, weight: Ids | None, phrase: str) -> Ids | None:
    """Unite the labels of a contracted axis with the weight's; both freeze if one of them has none."""
    own = axes.get(axis)
    if own is None and weight is not None:
        ctx.freeze(weight, phrase)
    elif own is not None and weight is None:
        ctx.freeze(own, f"feeds {node.title}, whose weights can't be cut")
    if own is None or weight is None:
        return None
    ctx.labels.unite(own, weight)
    return own


def produce(ctx: Context, weight: Ids | None, bias: str) -> Ids | None:
    """New labels for the output channels, tied to the weight's and the bias's; None if the weight can't be cut."""
    shift = ctx.axes(bias) if bias else {}
    if weight is None:
        ctx.freeze_axes(shift, "is the bias of channels that stay")
        return None
    out = ctx.labels.new(len(weight))
    ctx.labels.unite(out, weight)
    shape = ctx.shape(bias) or ()
    if bias and shape and shape[-1] > 1:
        if len(shape) - 1 in shift:
            ctx.labels.unite(out, shift[len(shape) - 1])
        else:
            ctx.freeze(out, f"has {bias!r} as its bias, which can't be cut")
    return out


def unite_groups(ctx: Context, vector: Ids | None, groups: int) -> None:
    """The same position of every convolution group goes together."""
    if vector is not None and groups > 1:
        positions = vector.reshape(groups, -1)
        ctx.labels.unite(positions, positions[:1])


@rule("Conv", "com.microsoft::FusedConv", "ConvTranspose")
def convolution(ctx: Context, node: Node) -> None:
    """Convolutions of any rank: plain, grouped, depthwise, transposed."""
    x, weight = node.inputs[0], node.inputs[1]
    x_shape, w_shape, y_shape = ctx.shape(x), ctx.shape(weight), ctx.shape(node.key)
    if x_shape is None or w_shape is None or y_shape is None or weight not in ctx.graph.derived:
        ctx.freeze_node(node, f"feeds {node.title}, whose weights are computed at run time")
        return
    transposed = node.op == "ConvTranspose"
    groups = ctx.attribute(node, "group", 1)
    window = convolution_window(node, x_shape, w_shape, y_shape)
    channels, outputs = x_shape[1], y_shape[1]
    in_axis, out_axis = (0, 1) if transposed else (1, 0)
    weights = ctx.axes(weight)
    ctx.freeze_axes(weights, "is a kernel's extent", keep=(0, 1))
    axes = ctx.freeze_axes(ctx.axes(x), f"is spatial in {node.title}", keep=(0, 1))
    depthwise = groups > 1 and groups == channels
    if depthwise:
        own = _depthwise(ctx, node, axes.get(1), weights, transposed, outputs // groups)
        out = None
    else:
        for vector in (axes.get(1), weights.get(0)):
            unite_groups(ctx, vector, groups)
        phrase = f"comes from a graph input or another fixed axis of {x!r}"
        own = consume(ctx, node, axes, 1, _tile(weights.get(in_axis), 1 if transposed else groups), phrase)
        out = produce(ctx, _tile(weights.get(out_axis), groups if transposed else 1), node.operand(2))
        unite_groups(ctx, out, groups)
    passed = out if not depthwise else _repeat(own, outputs // groups)
    if depthwise and passed is not None:
        _tie_bias(ctx, node, passed)
    result = {axis: vector for axis, vector in axes.items() if axis == 0}
    if len(node.inputs) > 3 and node.inputs[3]:  # FusedConv adds a residual operand
        _tie_sum(ctx, node.inputs[3], passed)
    ctx.emit(node.key, result | ({1: passed} if passed is not None else {}))
    ctx.linears.append(
        Linear(
            node, x, weight, 1, 2, 1, 1, in_axis, out_axis, groups, depthwise, window,
            int(np.prod((x_shape if transposed else y_shape)[2:], dtype=np.int64)) * x_shape[0],
            channels, outputs, own, passed,
        )
    )  # fmt: skip


def convolution_window(node: Node, x: Sequence[int], weight: Sequence[int], y: Sequence[int]) -> Window:
    """Kernel, strides, dilations and resolved pads (auto_pad included) from attributes and shapes."""
    kernel = tuple(weight[2:])
    rank = len(kernel)
    strides = tuple(node.attrs.get("strides") or (1,) * rank)
    dilations = tuple(node.attrs.get("dilations") or (1,) * rank)
    flat = tuple(node.attrs.get("pads") or (0,) * 2 * rank)
    pads = tuple((flat[a], flat[a + rank]) for a in range(rank))
    auto = node.attrs.get("auto_pad", "NOTSET")
    transposed = node.op == "ConvTranspose"
    extra = tuple(node.attrs.get("output_padding") or (0,) * rank)
    if auto in ("SAME_UPPER", "SAME_LOWER") or (transposed and node.attrs.get("output_shape")):
        total = []
        for a in range(rank):
            span = dilations[a] * (kernel[a] - 1) + 1
            if transposed:
                total.append(strides[a] * (x[2 + a] - 1) + extra[a] + span - y[2 + a])
            else:
                total.append(max((y[2 + a] - 1) * strides[a] + span - x[2 + a], 0))
        halves = [(t // 2, t - t // 2) for t in total]
        pads = tuple((0, sum(h)) if sum(h) < 0 else h if auto == "SAME_UPPER" else h[::-1] for h in halves)
    elif auto == "VALID":
        pads = ((0, 0),) * rank
    return Window(kernel, strides, dilations, pads, transposed, extra)


def _tile(vector: Ids | None, times: int) -> Ids | None:
    return None if vector is None else np.tile(vector, times)


def _repeat(vector: Ids | None, times: int) -> Ids | None:
    return None if vector is None else np.repeat(vector, times)


def _depthwise(
    ctx: Context, node: Node, own: Ids | None, weights: dict[int, Ids], transposed: bool, multiplier: int
) -> Ids | None:
    """Each input channel has filters of its own, and carries its label through."""
    mine = weights.get(0)
    if transposed and 1 in weights:
        ctx.freeze(weights[1], "is a depthwise multiplier")
    found = consume(
        ctx, node, {} if own is None else {1: own if transposed else np.repeat(own, multiplier)}, 1, mine,
        f"passes through the depthwise {node.title} from channels that stay",
    )  # fmt: skip
    if found is None:
        ctx.freeze_axes(ctx.axes(node.operand(2)), "is the bias of channels that stay")
        return None
    assert own is not None
    ctx.size(node, None, "group", {0: own}, 1)
    return own


def _tie_bias(ctx: Context, node: Node, out: Ids) -> None:
    if bias := node.operand(2):
        shift = ctx.axes(bias).get(0)
        if shift is not None:
            ctx.labels.unite(out, shift)
        else:
            ctx.freeze(out, f"has {bias!r} as its bias, which can't be cut")


def _tie_sum(ctx: Context, name: str, out: Ids | None) -> None:
    other = ctx.axes(name).get(1)
    if other is None or out is None:
        for vector in (other, out):
            if vector is not None:
                ctx.freeze(vector, "is added to channels that stay")
        return
    if (ctx.labels.find(other) != ctx.labels.find(out)).any():
        ctx.residual.append(out)
    ctx.labels.unite(out, other)


@rule("Gemm", "com.microsoft::FusedGemm")
def gemm(ctx: Context, node: Node) -> None:
    """Fully connected layers, with every transA and transB."""
    trans_a, trans_b = (ctx.attribute(node, name, 0) for name in ("transA", "transB"))
    x_axis = 0 if trans_a else 1
    _matrix(ctx, node, x_axis, 1 - x_axis, 1 if trans_b else 0, 0 if trans_b else 1, 2)


@rule("MatMul", "com.microsoft::FusedMatMul")
def matmul(ctx: Context, node: Node) -> None:
    """By a constant on either side a linear layer; of two activations, the contracted channels stay."""
    a, b = node.inputs[:2]
    ranks = [len(ctx.shape(name) or ()) for name in (a, b)]
    if min(ranks) < 1 or (
        node.op.startswith("Fused") and any(node.attrs.get(k) for k in ("transA", "transB", "transBatchA"))
    ):
        ctx.freeze_node(node, f"is multiplied in {node.title}")
    elif b in ctx.graph.derived and ranks[1] == 2 and a not in ctx.graph.derived:
        _matrix(ctx, node, ranks[0] - 1, None, 0, 1, None)
    elif a in ctx.graph.derived and ranks[0] == 2 and b not in ctx.graph.derived and ranks[1] >= 2:
        _matrix(ctx, node, ranks[1] - 2, None, 1, 0, None, weight_operand=0)
    else:
        _product(ctx, node, ranks)


def _matrix(
    ctx: Context, node: Node, x_axis: int, row_axis: int | None, in_axis: int, out_axis: int, bias: int | None,
    weight_operand: int = 1,
) -> None:  # fmt: skip
    """A matrix product with a constant: `x_axis` is contracted, the other axes of x pass."""
    x, weight = node.inputs[1 - weight_operand], node.inputs[weight_operand]
    x_shape, w_shape, y_shape = ctx.shape(x), ctx.shape(weight), ctx.shape(node.key)
    if x_shape is None or w_shape is None or y_shape is None or weight not in ctx.graph.derived:
        ctx.freeze_node(node, f"feeds {node.title}, whose weights are computed at run time")
        return
    y_axis = x_axis if bias is None else 1
    axes, weights = ctx.axes(x), ctx.axes(weight)
    phrase = f"comes from a graph input or another fixed axis of {x!r}"
    own = consume(ctx, node, axes, x_axis, weights.get(in_axis), phrase)
    out = produce(ctx, weights.get(out_axis), node.operand(bias) if bias is not None else "")
    passed = {a: v for a, v in axes.items() if a != x_axis}
    if row_axis is not None and bias is not None:
        _tie_rows(ctx, node.operand(bias), axes.get(row_axis))
        passed = dict(zip((0,), passed.values(), strict=False))
    ctx.emit(node.key, passed | ({y_axis: out} if out is not None else {}))
    channels, outputs = w_shape[in_axis], w_shape[out_axis]
    ctx.linears.append(
        Linear(
            node, x, weight, weight_operand, bias, x_axis, y_axis, in_axis, out_axis, 1, False, Window(),
            int(np.prod(y_shape, dtype=np.int64)) // max(outputs, 1), channels, outputs, own, out,
            float(node.attrs.get("alpha", 1.0)), float(node.attrs.get("beta", 1.0)),
        )
    )  # fmt: skip


def _tie_rows(ctx: Context, bias: str, rows: Ids | None) -> None:
    """A bias with a row for each row of the product goes along with them."""
    shape = ctx.shape(bias) or ()
    if len(shape) != 2 or shape[0] == 1:
        return
    other = ctx.axes(bias).get(0)
    if rows is not None and other is not None:
        ctx.labels.unite(rows, other)
        return
    for vector in (rows, other):
        if vector is not None:
            ctx.freeze(vector, "is added to rows that stay")


def _product(ctx: Context, node: Node, ranks: list[int]) -> None:
    """Two activations (attention): what is summed over stays, rows and columns pass."""
    a, b = (ctx.axes(name) for name in node.inputs[:2])
    rank = len(ctx.shape(node.key) or ())
    rows, columns = ranks[0] - 2, ranks[1] - 1
    for axes, contracted in ((a, ranks[0] - 1), (b, max(ranks[1] - 2, 0))):
        if contracted in axes:
            ctx.freeze(axes.pop(contracted), f"is summed over in the product of two activations {node.title}")
    for axes in (a, b):
        for axis in [axis for axis in axes if axis not in ((rows,) if axes is a else (columns,))]:
            ctx.freeze(axes.pop(axis), f"is a batch axis of {node.title}")
    result = {}
    if rows in a:
        result[rank - (2 if ranks[1] > 1 else 1)] = a[rows]
    if columns in b:
        result[rank - 1] = b[columns]
    ctx.emit(node.key, result)
