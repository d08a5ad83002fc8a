"""Channel counts that are used as numbers: Shape feeds arithmetic that reaches the data, not only other shapes.

A network that divides by its own number of channels would compute something else once channels are gone. Whether a value
depends on a channel count is found out by evaluating the graph's shape arithmetic with other counts.
"""

import numpy as np

from thinet_onnx.graph import Array, Node, shape_values
from thinet_onnx.rules.context import Context

SIZE_OPERANDS = {
    "Reshape": (1,), "Expand": (1,), "Resize": (1, 2, 3), "Upsample": (1,), "Slice": (1, 2, 3, 4), "Tile": (1,),
    "Pad": (1, 3), "Split": (1,), "ConstantOfShape": (0,), "Squeeze": (1,), "Unsqueeze": (1,), "Gather": (1,),
    "Shape": (0,), "Size": (0,),
}  # fmt: skip


def freeze_counted(ctx: Context) -> None:
    """Freeze the channels of every tensor whose channel count reaches an operand that doesn't follow the cut."""
    graph = ctx.graph
    counted = [node for node in graph.nodes if node.op in ("Shape", "Size") and ctx.axes(node.inputs[0])]
    if not counted:
        return
    fewer = dict(ctx.shapes)
    for name, axes in ctx.tensors.items():
        going = {axis for axis, vector in axes.items() if not ctx.labels.frozen(vector).all()}
        fewer[name] = tuple(max(s - 1, 1) if a in going else s for a, s in enumerate(fewer[name]))
    other = shape_values(graph, fewer)
    moved = {
        name: _differing(value, other.get(name)) for name, value in ctx.values.items()
        if not ctx.axes(name)  # a tensor with labels shrinks along
    }  # fmt: skip
    moved = {name: places for name, places in moved.items() if places}
    followed = _followed(ctx)
    for name in sorted(moved.keys() & set(graph.outputs)):
        _freeze(ctx, counted, name, f"is counted in the graph output {name!r}")
    for node in graph.nodes:
        for place, name in enumerate(node.inputs):
            if name not in moved or node.key in ctx.values:
                continue
            ctx.node = node
            if place not in SIZE_OPERANDS.get(node.op, ()):
                _freeze(ctx, counted, name, f"is counted: {node.title} computes with the number of channels")
            elif not moved[name] <= followed.get((node.key, place), set()):
                _freeze(ctx, counted, name, f"is counted: {node.title} makes another tensor as large")


def _differing(value: Array, other: Array | None) -> set[int]:
    """The elements that change with the number of channels; all where the value itself can't be told any more."""
    if other is None or other.shape != value.shape:
        return set(range(max(value.size, 1)))
    return set(np.flatnonzero(np.ravel(value != other)).tolist())


def _followed(ctx: Context) -> dict[tuple[str, int], set[int]]:
    """For each operand that names sizes, the elements that are set right after a cut."""
    followed: dict[tuple[str, int], set[int]] = {}
    for use in ctx.sizes:
        if use.operand is not None:
            known = set(range(use.length)) if use.positions is not None else {index for index, _ in use.elements}
            followed.setdefault((use.node.key, use.operand), set()).update(known)
    return followed


def _freeze(ctx: Context, counted: list[Node], name: str, phrase: str) -> None:
    """Freeze the labelled axes of the tensors whose shape `name` follows from."""
    above = ctx.graph.ancestors([name])
    for source in counted:
        if source.index in above:
            ctx.freeze_axes(ctx.axes(source.inputs[0]), phrase)
