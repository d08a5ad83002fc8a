"""Channel counts that are used as numbers: Shape feeds arithmetic that reaches the data, not only other shapes.

A network that divides by its own number of channels would compute something else once channels are gone. Whether a value
depends on a channel count is found out by evaluating the graph's shape arithmetic with other counts.
"""

from thinet_onnx.graph import Node, shape_values
from thinet_onnx.rules.context import Context

SIZE_OPERANDS = {
    "Reshape": (1,), "Expand": (1,), "Resize": (1, 2, 3), "Upsample": (1,), "Slice": (1, 2, 3, 4), "Tile": (1,),
    "Pad": (1, 3), "Split": (1,), "ConstantOfShape": (0,), "Squeeze": (1,), "Unsqueeze": (1,), "Gather": (1,),
    "Shape": (0,), "Size": (0,),
}  # fmt: skip


def freeze_counted(ctx: Context) -> None:
    """Freeze the channels of every tensor whose channel count reaches an operand that is no size."""
    graph = ctx.graph
    counted = [node for node in graph.nodes if node.op in ("Shape", "Size") and ctx.axes(node.inputs[0])]
    if not counted:
        return
    fewer = dict(ctx.shapes)
    for name, axes in ctx.tensors.items():
        fewer[name] = tuple(max(s - 1, 1) if a in axes else s for a, s in enumerate(fewer[name]))
    other = shape_values(graph, fewer)
    moved = {
        name for name, value in ctx.values.items() if not ctx.axes(name)  # a tensor with labels shrinks along
        and (name not in other or other[name].shape != value.shape or (other[name] != value).any())
    }  # fmt: skip
    for name in moved.intersection(graph.outputs):
        _freeze(ctx, counted, name, f"is counted in the graph output {name!r}")
    for node in graph.nodes:
        for place, name in enumerate(node.inputs):
            if name not in moved or node.key in ctx.values or place in SIZE_OPERANDS.get(node.op, ()):
                continue
            ctx.node = node
            _freeze(ctx, counted, name, f"is counted: {node.title} computes with the number of channels")


def _freeze(ctx: Context, counted: list[Node], name: str, phrase: str) -> None:
    """Freeze the labelled axes of the tensors whose shape `name` follows from."""
    above = ctx.graph.ancestors([name])
    for source in counted:
        if source.index in above:
            ctx.freeze_axes(ctx.axes(source.inputs[0]), phrase)
