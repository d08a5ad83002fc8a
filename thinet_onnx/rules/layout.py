"""Operators that move elements about: they are executed on the labels themselves.

Those that treat each axis by itself (Slice, Concat, Tile, …) run on the label vector of that axis; those that mix axes run
on a view of the labels that has the tensor's shape and stride 0 along every other axis.
"""

from collections.abc import Callable

import numpy as np

from thinet_onnx.graph import Array, Node, run_node
from thinet_onnx.labels import Axes, Ids, spread
from thinet_onnx.rules.context import Context, SizeUse, rule


def kept_sizes(ctx: Context, node: Node, operand: int | None, attribute: str | None) -> None:
    """Note that an operand names the output's whole shape."""
    shape = ctx.shape(node.key) or ()
    ctx.size(node, operand, attribute, dict(ctx.axes(node.key)), len(shape))


def execute(ctx: Context, node: Node, run: Callable[[Ids], Ids]) -> None:
    """Run a layout operator with one data operand on its labels."""
    shape = ctx.shape(node.inputs[0])
    if shape is None or ctx.shape(node.key) is None:
        ctx.freeze_node(node, "has a shape that is not known before the run")
        return
    ctx.emit_spread(node.key, [run(spread(vector, axis, shape)) for axis, vector in ctx.axes(node.inputs[0]).items()])


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(ctx: Context, node: Node) -> None:
    """Same elements, other axes; the target shape follows the cut."""
    if node.op == "Squeeze" and not node.operand(1) and "axes" not in node.attrs:
        for vector in ctx.axes(node.inputs[0]).values():
            ctx.freeze(vector[:2], f"keeps {node.title} from taking the axis for one of size 1")
    execute(ctx, node, lambda layer: layer.reshape(ctx.shapes[node.key]))
    if node.op == "Reshape":
        kept_sizes(ctx, node, *((1, None) if len(node.inputs) > 1 else (None, "shape")))


@rule("Transpose")
def transpose(ctx: Context, node: Node) -> None:
    """The axes change places."""
    axes = ctx.axes(node.inputs[0])
    perm = node.attrs.get("perm") or list(range(len(ctx.shape(node.inputs[0]) or ())))[::-1]
    ctx.emit(node.key, {perm.index(axis): vector for axis, vector in axes.items()})


@rule("DepthToSpace", "SpaceToDepth")
def rearrange(ctx: Context, node: Node) -> None:
    """Channels to pixels and back: whole blocks of b² channels go together."""
    execute(ctx, node, lambda layer: run_node(node, ctx.graph.opset, [np.ascontiguousarray(layer)])[0])


@rule("Concat")
def concat(ctx: Context, node: Node) -> None:
    """Along the axis labels line up one after another; across it they meet."""
    shapes = [ctx.shape(name) for name in node.inputs]
    rank = len(ctx.shape(node.key) or ())
    axis = ctx.attribute(node, "axis", 1) % max(rank, 1)
    if any(shape is None for shape in shapes):
        ctx.freeze_node(node, "has a shape that is not known before the run")
        return
    present = [name for name, shape in zip(node.inputs, shapes, strict=True) if shape and shape[axis] > 0]
    merged: Axes = {}
    parts = [ctx.axes(name) for name in present]
    for other in {a for part in parts for a in part} - {axis}:
        vectors = [part.get(other) for part in parts]
        held = [vector for vector in vectors if vector is not None]
        for vector in held:
            if len(held) < len(vectors):
                ctx.freeze(vector, f"is joined in {node.title} with a tensor whose channels stay")
            else:
                ctx.labels.unite(held[0], vector)
        if len(held) == len(vectors):
            merged[other] = held[0]
    if any(axis in part for part in parts):
        merged[axis] = np.concatenate(
            [part.get(axis, _stand_in(ctx, name, axis)) for part, name in zip(parts, present, strict=True)]
        )
    ctx.emit(node.key, merged)


def _stand_in(ctx: Context, name: str, axis: int) -> Ids:
    """Labels for an operand that has none on this axis: they never go."""
    return np.zeros(ctx.shapes[name][axis], np.int64)


@rule("Split")
def split(ctx: Context, node: Node) -> None:
    """Pieces of one axis; their sizes follow the cut, and are written down where they become unequal."""
    axes = ctx.axes(node.inputs[0])
    rank = len(ctx.shape(node.inputs[0]) or ())
    axis = ctx.attribute(node, "axis", 0) % max(rank, 1)
    counts = [(ctx.shape(name) or (0,) * rank)[axis] for name in node.outputs]
    vector = axes.pop(axis, None)
    pieces = [] if vector is None else np.split(vector, np.cumsum(counts)[:-1])
    for index, name in enumerate(node.outputs):
        ctx.emit(name, axes | ({axis: pieces[index]} if pieces else {}))
    if pieces:
        given = bool(node.operand(1)) or "split" in node.attrs
        operand, attribute = (1, None) if ctx.graph.opset >= 13 else (None, "split")
        drops = "num_outputs" if "num_outputs" in node.attrs else None
        ctx.sizes.append(
            SizeUse(node, operand, attribute, tuple(enumerate(pieces)), len(pieces), implicit=not given, drops=drops)
        )


@rule("Slice")
def slice_(ctx: Context, node: Node) -> None:
    """A range of an axis: begin and end move to where the kept channels before them end."""
    axes, shape = ctx.axes(node.inputs[0]), ctx.shape(node.inputs[0]) or ()
    attribute = "starts" in node.attrs
    given = [
        ctx.value(node.operand(i)) if not attribute else node.attrs.get(name)
        for i, name in enumerate(("starts", "ends", "axes", "steps"), start=1)
    ]
    starts, ends = (None if value is None else np.ravel(value).tolist() for value in given[:2])
    if starts is None or ends is None:
        ctx.freeze_node(node, "is sliced at places that are not known before the run")
        return
    places = list(range(len(starts))) if given[2] is None else [int(a) % len(shape) for a in np.ravel(given[2])]
    steps = [1] * len(starts) if given[3] is None else np.ravel(given[3]).tolist()
    begins: dict[int, Ids] = {}
    stops: dict[int, Ids] = {}
    for place, axis in enumerate(places):
        vector = axes.pop(axis, None)
        if vector is None:
            continue
        start, end, step = slice(starts[place], ends[place], steps[place]).indices(shape[axis])
        taken = vector[starts[place] : ends[place] : steps[place]]
        whole = len(taken) == shape[axis]
        if step != 1 and not whole:
            ctx.freeze(vector, f"is sliced with step {step} in {node.title}")
        elif not whole:
            begins[place], stops[place] = vector[:start], vector[:end]
            axes[axis] = taken
        else:
            axes[axis] = taken
    ctx.emit(node.key, axes)
    for operand, (name, elements) in enumerate((("starts", begins), ("ends", stops)), start=1):
        ctx.size(node, None if attribute else operand, name if attribute else None, elements, len(places))


@rule("Gather")
def gather(ctx: Context, node: Node) -> None:
    """Chosen indices of an axis: known ones move with the kept channels, unknown ones freeze the axis."""
    axes, rank = ctx.axes(node.inputs[0]), len(ctx.shape(node.inputs[0]) or ())
    axis = ctx.attribute(node, "axis", 0) % max(rank, 1)
    indices = ctx.value(node.inputs[1])
    ctx.freeze_axes(ctx.axes(node.inputs[1]), f"is an index in {node.title}")
    extra = len(ctx.shape(node.inputs[1]) or ()) - 1
    vector = axes.pop(axis, None)
    moved = {a + (extra if a > axis else 0): v for a, v in axes.items()}
    if vector is not None and (indices is None or indices.ndim != 1):
        what = "at one place" if indices is not None else "at places that are not known before the run"
        ctx.freeze(vector, f"is picked by {node.title} {what}")
    elif vector is not None and indices is not None:
        moved[axis] = vector
        _pick(ctx, node, moved, axis, indices)
    ctx.emit(node.key, moved)


@rule("GatherND")
def gather_nd(ctx: Context, node: Node) -> None:
    """Indices of the first axis, one by one, are a Gather (indexing in newer exporters); any other use freezes."""
    indices = ctx.value(node.inputs[1])
    if indices is None or indices.ndim != 2 or indices.shape[1] != 1 or ctx.attribute(node, "batch_dims", 0):
        ctx.freeze_node(node, f"is taken apart by {node.title}")
        ctx.emit(node.key, {})
        return
    axes = ctx.axes(node.inputs[0])
    ctx.freeze_axes(ctx.axes(node.inputs[1]), f"is an index in {node.title}")
    if 0 in axes:
        _pick(ctx, node, axes, 0, indices.ravel())
    ctx.emit(node.key, axes)


def _pick(ctx: Context, node: Node, axes: Axes, axis: int, indices: Array) -> None:
    """Take indices of a labelled axis, and note that the operand which names them follows the cut."""
    vector = axes[axis]
    axes[axis] = vector[indices]
    ctx.sizes.append(SizeUse(node, 1, None, positions=indices % len(vector), labels=vector, length=len(indices)))


@rule("Expand")
def expand(ctx: Context, node: Node) -> None:
    """Axes of size 1 are repeated; what a constant is expanded to may be cut like a constant."""
    source, shape = ctx.shape(node.inputs[0]), ctx.shape(node.key)
    if source is None or shape is None:
        ctx.freeze_node(node, "has a shape that is not known before the run")
        return
    shift = len(shape) - len(source)
    axes = {axis + shift: vector for axis, vector in ctx.axes(node.inputs[0]).items()}
    for axis, size in enumerate(shape):
        before = source[axis - shift] if axis >= shift else 1
        if size > 1 and before == 1:
            axes[axis] = ctx.labels.new(size)
    ctx.emit(node.key, axes)
    length = (ctx.shape(node.inputs[1]) or (len(shape),))[0]  # the target may lack leading axes
    places = {axis - len(shape) + length: vector for axis, vector in ctx.axes(node.key).items()}
    ctx.size(node, 1, None, {place: vector for place, vector in places.items() if place >= 0}, length)


@rule("ConstantOfShape")
def constant_of_shape(ctx: Context, node: Node) -> None:
    """One value everywhere: any of it can go."""
    shape, known = ctx.shape(node.key), ctx.values.get(node.key)
    if shape is None or (known is not None and known.dtype.kind in "iu"):
        return  # shape arithmetic
    ctx.emit(node.key, {axis: ctx.labels.new(size) for axis, size in enumerate(shape) if size > 1})
    kept_sizes(ctx, node, 0, None)


@rule("Tile")
def tile(ctx: Context, node: Node) -> None:
    """Repeats of an axis: a channel goes from all of them."""
    repeats = ctx.value(node.inputs[1])
    if repeats is None or ctx.shape(node.inputs[0]) is None:
        ctx.freeze_node(node, "is repeated a number of times that is not known before the run")
        return
    ctx.emit(node.key, {axis: np.tile(vector, int(repeats[axis])) for axis, vector in ctx.axes(node.inputs[0]).items()})


@rule("Pad")
def pad(ctx: Context, node: Node) -> None:
    """What is added along a labelled axis gets labels of its own, so that padded shortcuts shrink too."""
    axes, shape = ctx.axes(node.inputs[0]), ctx.shape(node.inputs[0]) or ()
    rank = len(shape)
    known = node.attrs.get("pads", node.attrs.get("paddings")) if len(node.inputs) < 2 else ctx.value(node.inputs[1])
    chosen = ctx.value(node.operand(3)) if node.operand(3) else np.arange(rank)
    if known is None or chosen is None:
        ctx.freeze_node(node, "is padded by amounts that are not known before the run")
        return
    amounts: Array = np.asarray(known).reshape(2, -1)
    elements: dict[int, Ids] = {}
    for place, axis in enumerate(int(a) % rank for a in chosen):
        begin, end = (int(amount) for amount in amounts[:, place])
        if axis not in axes or (begin == 0 and end == 0):
            continue
        vector = axes.pop(axis)
        if node.attrs.get("mode", "constant") != "constant" or begin < 0 or end < 0:
            ctx.freeze(vector, f"is cropped or mirrored along its axis in {node.title}")
            continue
        before, after = ctx.labels.new(begin), ctx.labels.new(end)
        axes[axis] = np.concatenate([before, vector, after])
        elements |= {place: before, place + len(chosen): after}
    ctx.emit(node.key, axes)
    operand, attribute = (1, None) if len(node.inputs) > 1 else (None, "pads" if "pads" in node.attrs else "paddings")
    ctx.size(node, operand, attribute, elements, 2 * len(chosen))
