"""The steps of random graphs: for each operator of the rule table at least one way to put it behind a feature map."""

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper
from random_graphs import TYPES, Map, Program, step

from thinet_onnx.rules import RULES

ENDLESS, BEGINNING = 2**63 - 1, -(2**63)

# --- element by element ------------------------------------------------------------------------------------------------


def tame(p: Program, x: str) -> str:
    """Into (−0.9, 0.9)."""
    return p.node("Mul", p.node("Tanh", x), p.scalar(0.9))


def positive(p: Program, x: str) -> str:
    """Above 1.1."""
    return p.node("Add", p.node("Abs", x), p.scalar(1.1))


def truth(p: Program, x: str) -> str:
    return p.node("Greater", x, p.scalar(0.05), gives=("bool",))


def whole(p: Program, x: str) -> str:
    return p.cast(p.node("Mul", x, p.scalar(10.0)), "int32")


def unsigned(p: Program, x: str) -> str:
    return p.cast(positive(p, x), "uint32")


def events(p: Program, x: str) -> str:
    """0 or 1."""
    return p.back(truth(p, x))


PRELUDES = {
    "Acos": tame, "Asin": tame, "Atanh": tame, "Tan": tame, "Exp": tame, "Sinh": tame, "Cosh": tame, "Acosh": positive,
    "Log": positive, "Reciprocal": positive, "Sqrt": positive, "Not": truth, "BitwiseNot": whole, "Bernoulli": events,
}  # fmt: skip
RESULTS = {"Not": "bool", "IsNaN": "bool", "IsInf": "bool", "BitwiseNot": "int32"}
APART = {
    "Bernoulli", "Cast", "CastLike", "Clip", "Dropout", "com.microsoft::FastGelu", "Equal", "Div", "Pow", "Mod", "BitShift",
    "PRelu", "Where",
}  # fmt: skip


def family(name: str) -> list[str]:
    """The operators of one rule function, but for those with steps of their own."""
    return [kind for kind, rule in RULES.items() if rule.__name__ == name and kind not in APART]


@step("Bernoulli", until=21)
@step(*family("unary"))
def unary(p: Program, x: Map, op: str) -> Map:
    domain = "com.microsoft" if p.lines[-1].startswith("com.microsoft") else ""
    before = PRELUDES[op](p, x.name) if op in PRELUDES else x.name
    y = p.node(op, before, domain=domain, gives=(RESULTS[op],) if op in RESULTS else ())
    return x.to(p.back(y))


@step("Cast")
def there_and_back(p: Program, x: Map, op: str) -> Map:
    return x.to(p.back(p.cast(x.name, p.pick("to", "float16", "float", "double", "int32"))))


@step("CastLike")
def cast_like(p: Program, x: Map, op: str) -> Map:
    kind = p.pick("to", "float", "float16", "double")
    return x.to(p.back(p.node("CastLike", x.name, p.const(p.typed(1, kind)), gives=(kind,))))


@step("Clip")
def clip(p: Program, x: Map, op: str) -> Map:
    if p.opset < 11:
        return x.to(p.node("Clip", x.name, min=-0.5, max=0.5))
    bounds = [p.scalar(-0.5), p.scalar(0.5)]
    if p.pick("bounds", "both", "upper") == "upper":
        bounds[0] = ""
    return x.to(p.node("Clip", x.name, *bounds))


@step("Dropout")
def dropout(p: Program, x: Map, op: str) -> Map:
    if p.opset < 10 or not p.pick("mask", False, True):
        return x.to(p.node("Dropout", x.name))
    y, mask = p.many("Dropout", x.name, outs=2, gives=(p.kind, "bool"))
    return x.to(p.node("Mul", y, p.back(mask)))


@step("com.microsoft::FastGelu", needs="last")
def fast_gelu(p: Program, x: Map, op: str) -> Map:
    operands = [x.name] + ([p.weight(x.channels)] if p.pick("bias", False, True) else [])
    return x.to(p.node("FastGelu", *operands, domain="com.microsoft"))


LOGIC = {"And", "Or", "Xor"}
BITS = {"BitwiseAnd", "BitwiseOr", "BitwiseXor"}
COMPARISONS = {"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"}
SAME_SHAPE = {"Max", "Min", "Mean", "Sum"}  # before opset 8


def branch(p: Program, x: Map) -> str:
    """Another tensor of the same shape: from the same map, or an earlier one."""
    earlier = [y.name for y in p.maps if (y.shape, y.axis) == (x.shape, x.axis) and y.name != x.name]
    way = p.pick("branch", "layer", "itself", "pointwise", *(["earlier"] * 3 if earlier else []))
    if way == "earlier":
        return p.pick("map", *earlier[::-1])
    if way == "layer":
        return p.layer(x, x.channels).name
    return x.name if way == "itself" else p.node("Sigmoid", x.name)


@step(*family("broadcast"))
def binary(p: Program, x: Map, op: str) -> Map:
    kind = "bool" if op in LOGIC else "int32" if op in BITS else ""
    prepare = truth if op in LOGIC else whole if op in BITS else lambda _, name: name
    forms = ["branch", "branch"]
    if not kind and not (op in SAME_SHAPE and p.opset < 8):
        forms += ["per channel", "scalar", "constant first", "one channel"]
    if op in SAME_SHAPE and p.opset >= 8:
        forms += ["three"]
    form = p.pick("with", *forms)
    operands = [prepare(p, x.name)]
    if form == "branch":
        operands.append(prepare(p, branch(p, x)))
    elif form == "three":
        operands += [branch(p, x), branch(p, x)]
    elif form == "one channel":
        operands.append(p.layer(x, 1).name)
    elif form == "scalar":
        operands.append(p.scalar(0.5))
    else:
        operands.append(p.per_channel(x))
    if op == "Mul" and form in ("branch", "three"):
        operands[1] = tame(p, operands[1])
    gives = "bool" if op in LOGIC | COMPARISONS else kind
    y = p.node(op, *(operands[::-1] if form == "constant first" else operands), gives=(gives,) if gives else ())
    return x.to(p.back(y))


@step("Equal")
def equal(p: Program, x: Map, op: str) -> Map:
    other = p.const(np.int32(3)) if p.pick("with", "branch", "scalar") == "scalar" else whole(p, branch(p, x))
    return x.to(p.back(p.node("Equal", whole(p, x.name), other, gives=("bool",))))


@step("Div")
def divided(p: Program, x: Map, op: str) -> Map:
    form = p.pick("by", "branch", "per channel", "scalar")
    if form == "branch":
        return x.to(p.node("Div", x.name, positive(p, branch(p, x))))
    return x.to(p.node("Div", x.name, p.scalar(2.0) if form == "scalar" else p.per_channel(x, positive=True)))


@step("Pow")
def power(p: Program, x: Map, op: str) -> Map:
    form = p.pick("exponent", "scalar", "per channel", "branch")
    if form == "scalar":
        return x.to(p.node("Pow", p.node("Tanh", x.name), p.scalar(2.0)))
    exponent = p.per_channel(x) if form == "per channel" else tame(p, branch(p, x))
    return x.to(p.node("Pow", positive(p, tame(p, x.name)), exponent))


@step("Mod")
def modulo(p: Program, x: Map, op: str) -> Map:
    if p.pick("of", "int32", "float") == "int32":
        return x.to(p.back(p.node("Mod", whole(p, x.name), p.const(np.int32(4)), gives=("int32",))))
    divisor = p.per_channel(x, positive=True) if p.pick("by", "scalar", "per channel") != "scalar" else p.scalar(0.7)
    return x.to(p.node("Mod", x.name, divisor, fmod=1))


@step("BitShift")
def shifted(p: Program, x: Map, op: str) -> Map:
    by = p.const(np.uint32(2)) if p.pick("by", "branch", "scalar") == "scalar" else unsigned(p, tame(p, branch(p, x)))
    y = p.node("BitShift", unsigned(p, x.name), by, direction="LEFT", gives=("uint32",))
    return x.to(tame(p, p.back(y)))


@step("PRelu")
def prelu(p: Program, x: Map, op: str) -> Map:
    slope = p.scalar(0.2) if p.pick("slope", "per channel", "one") == "one" else p.per_channel(x)
    return x.to(p.node("PRelu", x.name, slope))


@step("Where")
def chosen(p: Program, x: Map, op: str) -> Map:
    condition = truth(p, branch(p, x))
    other = p.scalar(0.0) if p.pick("else", "branch", "scalar") == "scalar" else branch(p, x)
    return x.to(p.node("Where", condition, x.name, other))


@step("QuantizeLinear", "DequantizeLinear", since=10)
def quantised(p: Program, x: Map, op: str) -> Map:
    """Through 8 bits and back: per tensor, per channel, or along another axis."""
    form = p.pick("scale", "per tensor", "no zero point", *(["per channel", "other axis"] if p.opset >= 13 else []))
    axis = {"per channel": x.axis, "other axis": x.rank - 1 if x.axis != x.rank - 1 else x.axis}.get(form)
    shape = () if axis is None else (x.shape[axis],)
    if shape == (1,):
        return x
    operands = [p.const(np.broadcast_to(np.float32(0.05), shape))]
    if form != "no zero point":
        types = [np.uint8] + ([np.int8] if p.opset < 21 else [])  # ONNX Runtime 1.32 mixes them up from opset 21 on
        operands.append(p.const(np.full(shape, 3, p.pick("type", *types))))
    extra = {} if axis is None else {"axis": axis - (x.rank if p.pick("negative axis", False, True) else 0)}
    stored = "uint8" if form == "no zero point" else p.kinds[operands[1]]
    q = p.node("QuantizeLinear", p.cast(x.name, "float"), *operands, gives=(stored,), **extra)
    return x.to(p.back(p.node("DequantizeLinear", q, *operands, gives=("float",), **extra)))


# --- layout ------------------------------------------------------------------------------------------------------------


@step("Reshape", needs="map")
def merged(p: Program, x: Map, op: str) -> Map:
    """All of space on one axis."""
    shape = (1, x.channels, int(np.prod(x.space)))
    return Map(p.reshaped(x.name, shape), shape)


@step("Reshape", needs="flat")
def unflattened(p: Program, x: Map, op: str) -> Map | None:
    """Features as channels and space."""
    space = p.pick("space", *[s for s in (4, 9, 1, 2) if x.channels % s == 0])
    side = int(space**0.5)
    shape = (1, x.channels // space, side, space // side)
    return None if shape[1] == 1 else Map(p.reshaped(x.name, shape), shape)


@step("Reshape", "Transpose", needs="map")
def shuffled(p: Program, x: Map, op: str) -> Map:
    """Channel shuffle: Reshape, Transpose, Reshape."""
    groups = p.pick("groups", *[g for g in (2, 3, 4, 1) if x.channels % g == 0])
    y = p.reshaped(x.name, (1, groups, x.channels // groups, *x.space))
    y = p.node("Transpose", y, perm=[0, 2, 1, *range(3, x.rank + 1)])
    return x.to(p.reshaped(y, x.shape))


@step("Reshape", needs="map")
def through_the_batch(p: Program, x: Map, op: str) -> Map:
    """Channels as items of a batch, and back."""
    p.single = True
    y = p.node("Relu", p.node("Reshape", x.name, p.ints(-1, 1, *x.space)))
    y = p.conv(y, 1, 1, 1, rank=x.rank - 2) if p.pick("layer", False, True) else y
    return x.to(p.node("Reshape", y, p.ints(*p.pick("back", (1, -1), (1, x.channels)), *x.space)))


@step("Reshape", needs="map")
def heads(p: Program, x: Map, op: str) -> Map:
    """Grouped attention over channels: (heads, C / heads, space) with a softmax over space."""
    count = p.pick("heads", *[g for g in (2, 3, 1) if x.channels % g == 0])
    y = p.reshaped(x.name, (1, count, x.channels // count, int(np.prod(x.space))))
    y = p.node("Mul", p.node("Softmax", y, axis=3), y)
    return x.to(p.reshaped(y, x.shape))


@step("Flatten", needs="map")
def flattened(p: Program, x: Map, op: str) -> Map | None:
    axis = p.pick("axis", 1, *([1 - x.rank] if p.opset >= 11 else []))
    return Map(p.node("Flatten", x.name, axis=axis), (1, x.size)) if x.size <= 300 else None


@step("Squeeze", "Unsqueeze", needs="map")
def squeezed(p: Program, x: Map, op: str) -> Map:
    if p.pick("how", "pooled", "there and back") == "pooled":
        y = p.node("GlobalAveragePool", x.name)
        if x.channels == 1 or p.pick("axes", "all of space", "whatever has size 1") == "all of space":
            return Map(p.along("Squeeze", y, *range(2, x.rank)), (1, x.channels))
        p.single = True
        return Map(p.along("Unsqueeze", p.node("Squeeze", y), 0), (1, x.channels))
    place = p.pick("place", 0, 1, 2, x.rank)
    return x.to(p.along("Squeeze", p.along("Unsqueeze", x.name, place), place))


@step("Transpose")
def turned(p: Program, x: Map, op: str) -> Map:
    """Any order of the axes behind the batch."""
    order = [0, *p.draw(st.permutations(range(1, x.rank)))]
    return Map(p.node("Transpose", x.name, perm=order), tuple(x.shape[a] for a in order), order.index(x.axis))


@step("Transpose", needs="last")
def channels_last(p: Program, x: Map, op: str) -> Map:
    """A layer and its bias in NHWC."""
    y = p.node("MatMul", x.name, p.weight(x.channels, 6))
    return x.to(p.node("Relu", p.node("Add", y, p.weight(6))), 6)


@step("DepthToSpace", needs="image")
def to_space(p: Program, x: Map, op: str) -> Map | None:
    if x.channels % 4 or x.channels < 8:
        x = x.to(p.conv(x.name, x.channels, 8, 1), 8)
    extra = {"mode": p.pick("mode", "DCR", "CRD")} if p.opset >= 11 else {}
    y = p.node("DepthToSpace", x.name, blocksize=2, **extra)
    return x.to(y, x.channels // 4, tuple(2 * s for s in x.space))


@step("SpaceToDepth", needs="image")
def to_depth(p: Program, x: Map, op: str) -> Map | None:
    if any(s % 2 for s in x.space) or x.channels > 12:
        return None
    return x.to(p.node("SpaceToDepth", x.name, blocksize=2), 4 * x.channels, tuple(s // 2 for s in x.space))


@step("Concat", grows=True)
def joined(p: Program, x: Map, op: str) -> Map:
    """Along the channels: with branches, itself, a constant, an input."""
    names, channels = [x.name], x.channels
    earlier = [y for y in p.maps if y.rank == x.rank and (y.space, y.axis) == (x.space, x.axis) and y.name != x.name]
    for _ in range(p.pick("others", 1, 2)):
        other = p.pick("other", "layer", "itself", "constant", "input", *(["earlier"] * 3 if earlier else []))
        if other == "earlier":
            y = earlier[-1 - p.pick("map", *range(len(earlier)))]
            names.append(y.name)
            channels += y.channels
            continue
        if other == "itself":
            names.append(x.name)
            channels += x.channels
            continue
        shape = x.to("", 4).shape
        if other == "layer":
            names.append(p.layer(x, 4).name)
        elif other == "input":
            names.append(p.source(shape))
        else:
            p.single = True
            names.append(p.weight(*shape))
        channels += 4
    order = p.pick("order", 1, -1)
    return x.to(p.node("Concat", *names[::order], axis=x.axis), channels)


@step("Concat", needs="map", grows=True)
def joined_across(p: Program, x: Map, op: str) -> Map:
    """Along space: channels meet."""
    axis = p.pick("axis", 2, x.rank - 1)
    other = branch(p, x)
    return x.to(p.node("Concat", x.name, other, axis=axis)).resized(axis, 2 * x.shape[axis])


@step("Split")
def parted(p: Program, x: Map, op: str) -> list[Map] | None:
    if x.channels < 2:
        return None
    form = p.pick("sizes", "given", "halves", "from the shape")
    half, axis = x.channels // 2, x.axis
    if form == "given" or x.channels % 2 or (form != "halves" and p.opset < 13):
        first = p.pick("first", half, 1, x.channels - 1)
        sizes = [first, x.channels - first]
        if x.channels > 5 and p.pick("pieces", 2, 3) == 3:
            sizes = [2, first, x.channels - first - 2] if first < x.channels - 2 else sizes
        return [x.to(name, size) for name, size in zip(p.split(x.name, sizes, axis), sizes, strict=True)]
    if form == "halves":
        extra = {"num_outputs": 2} if p.opset >= 18 else {}
        names = p.many("Split", x.name, outs=2, axis=axis, **extra)
    else:
        size = p.node("Div", p.size_of(x.name, axis), p.ints(2), gives=("int64",))
        names = p.many("Split", x.name, p.node("Concat", size, size, axis=0, gives=("int64",)), outs=2, axis=axis)
    return [x.to(name, half) for name in names]


@step("Split")
def gated(p: Program, x: Map, op: str) -> Map | None:
    """Half of the channels gate the other half."""
    if x.channels % 2:
        return None
    left, right = p.split(x.name, [x.channels // 2] * 2, x.axis)
    return x.to(p.node("Mul", left, p.node("Sigmoid", right)), x.channels // 2)


@step("Slice")
def cut_out(p: Program, x: Map, op: str) -> Map | None:
    """A range of the channels, or of another axis."""
    axis = x.axis if x.rank == 2 or p.pick("of", "channels", "space") == "channels" else x.rank - 1
    size = x.shape[axis]
    if size < 3:
        return None
    start, end = p.pick(
        "range",
        (0, size // 2),
        (1, ENDLESS),
        (-2, ENDLESS),
        (1, -1),
        (0, ENDLESS),
        (BEGINNING, size),
        (size // 2, size),
    )
    y = p.sliced(x.name, [start], [end], [axis - (x.rank if p.pick("negative axis", False, True) else 0)])
    return Map(y, x.shape, x.axis).resized(axis, len(range(size)[start:end]))


@step("Slice", since=10)
def sliced_by_step(p: Program, x: Map, op: str) -> Map:
    """Backwards, or every other index."""
    axis = p.pick("axis", *range(1, x.rank))
    size = x.shape[axis]
    start, end, stride = p.pick("range", (-1, BEGINNING, -1), (0, ENDLESS, 2), (size - 1, -size - 1, -1))
    y = p.sliced(x.name, [start], [end], [axis], [stride])
    return Map(y, x.shape, x.axis).resized(axis, len(range(size)[slice(start, max(end, -size - 1), stride)]))


@step("Slice", since=10)
def halved_by_shape(p: Program, x: Map, op: str) -> list[Map] | None:
    """x[:, : C // 2] and x[:, C // 2 :], C taken from x."""
    if x.channels < 2:
        return None
    half = p.node("Div", p.size_of(x.name, x.axis), p.ints(2), gives=("int64",))
    axis, n = p.ints(x.axis), x.channels // 2
    left = p.node("Slice", x.name, p.ints(0), half, axis)
    return [x.to(left, n), x.to(p.node("Slice", x.name, half, p.ints(ENDLESS), axis), x.channels - n)]


@step("Gather")
def gathered(p: Program, x: Map, op: str) -> Map:
    """A permutation, a selection with repeats, every other one, from the end."""
    n = x.channels
    form = p.pick("indices", "permuted", "some", "repeated", "negative", "odd and even")
    indices = {
        "permuted": p.rng.permutation(n), "some": np.sort(p.rng.permutation(n)[: max(n // 2, 2)]),
        "repeated": p.rng.integers(0, n, n), "negative": -1 - np.arange(n), "odd and even": np.arange(0, n, 2),
    }[form]  # fmt: skip
    kind = p.pick("type", np.int64, np.int32)
    axis = x.axis - (x.rank if p.pick("negative axis", False, True) else 0)
    return x.to(p.node("Gather", x.name, p.const(indices.astype(kind)), axis=axis), len(indices))


@step("Gather", needs="map")
def one_place(p: Program, x: Map, op: str) -> Map | None:
    """A table of places, or one place, of space: axes appear and vanish."""
    axis = x.rank - 1
    if p.pick("indices", "scalar", "table") == "scalar":
        y = p.node("Gather", x.name, p.const(np.int64(x.shape[axis] // 2)), axis=axis)
        return Map(y, x.shape[:-1])
    y = p.node("Gather", x.name, p.const(np.array([[0, -1], [0, 0]])), axis=axis)
    return Map(y, (*x.shape[:-1], 2, 2)) if x.rank < 5 else None


@step("Gather", "Range", since=11)
def every_index(p: Program, x: Map, op: str) -> Map:
    """x[:, arange(x.shape[1])]."""
    shape = p.node("Shape", x.name, gives=("int64",))
    count = p.node("Gather", shape, p.const(np.int64(x.axis)), gives=("int64",))
    places = p.node("Range", p.const(np.int64(0)), count, p.const(np.int64(1)), gives=("int64",))
    return x.to(p.node("Gather", x.name, places, axis=x.axis))


@step("Expand")
def expanded(p: Program, x: Map, op: str) -> Map:
    form = p.pick("what", "constant", "one channel", "space", "new axis")
    if form == "new axis":
        sizes = p.pick("sizes", [1] * x.rank, [x.channels if a == x.axis else 1 for a in range(x.rank)])
        return x.to(p.along("Squeeze", p.node("Expand", x.name, p.ints(1, *sizes)), 0))
    if form == "space" and x.rank > 2 and x.axis == 1:
        y = p.node("GlobalAveragePool", x.name)
        target = p.ints(*p.pick("target", (1,), (1, x.channels), ()), *[2] * (x.rank - 2))
        return x.to(p.node("Expand", y, target), space=(2,) * (x.rank - 2))
    like = p.node("Shape", x.name, gives=("int64",))
    if p.pick("target", "from the shape", "written") == "written":
        p.single = True
        like = p.ints(*x.shape)
    small = p.weight(*[1] * x.rank) if form == "constant" else p.layer(x, 1).name
    return x.to(p.node("Mul", x.name, p.node("Sigmoid", p.node("Expand", small, like))))


@step("ConstantOfShape")
def filled(p: Program, x: Map, op: str) -> Map:
    if p.pick("shape", "written", "from the shape") == "written":
        shape = p.ints(1, *(s if axis == x.axis else 1 for axis, s in enumerate(x.shape) if axis))
    else:
        shape = p.node("Shape", x.name, gives=("int64",))
    value = helper.make_tensor("value", TYPES["float"], [1], [0.5])
    filling = p.node("ConstantOfShape", shape, value=value, gives=("float",))
    return x.to(p.node(p.pick("then", "Add", "Mul"), x.name, p.back(filling)))


@step("ConstantOfShape", "Conv", needs="image", since=9)
def filled_weights(p: Program, x: Map, op: str) -> Map:
    """A sum over channels and windows with weights that the graph makes."""
    value = helper.make_tensor("value", TYPES["float"], [1], [0.1])
    weight = p.back(p.node("ConstantOfShape", p.ints(4, x.channels, 1, 1), value=value, gives=("float",)))
    return x.to(p.node("Conv", x.name, weight), 4)


@step("Tile", grows=True)
def tiled(p: Program, x: Map, op: str) -> Map:
    axis = p.pick("axis", x.axis, x.rank - 1)
    repeats = [2 if a == axis else 1 for a in range(x.rank)]
    return Map(p.node("Tile", x.name, p.ints(*repeats)), x.shape, x.axis).resized(axis, 2 * x.shape[axis])


@step("Pad", grows=True)
def padded(p: Program, x: Map, op: str) -> Map:
    """Channels or space, with a constant or mirrored."""
    axis = p.pick("axis", x.axis, x.rank - 1)
    before, after = p.pick("amounts", (1, 2), (0, 3), (2, 0))
    mode = p.pick("mode", "constant", "edge", "reflect") if x.shape[axis] > 3 else "constant"
    amounts = [0] * 2 * x.rank
    amounts[axis], amounts[x.rank + axis] = before, after
    if p.opset >= 18 and mode == "constant" and p.pick("by axes", False, True):
        y = p.node("Pad", x.name, p.ints(before, 0, after, 0), p.scalar(0.5), p.ints(axis, 0))
    else:
        y = p.padded(x.name, amounts, mode)
    return Map(y, x.shape, x.axis).resized(axis, x.shape[axis] + before + after)


@step("Pad", "Slice", needs="image", grows=True)
def padded_shortcut(p: Program, x: Map, op: str) -> Map | None:
    """A residual block whose shortcut is strided and padded to twice the channels."""
    n = x.channels
    if p.opset < 10 or n > 12 or min(x.space) < 2:
        return None
    short = p.sliced(x.name, [0, 0], [ENDLESS, ENDLESS], [2, 3], [2, 2])
    before = p.pick("channels before", n // 2, 0)
    short = p.padded(short, [0, before, 0, 0, 0, n - before, 0, 0], value=0.0)
    space = tuple(-(-s // 2) for s in x.space)
    y = p.node("Relu", p.conv(x.name, n, 6, strides=[2, 2]))
    return x.to(p.node("Relu", p.node("Add", p.conv(y, 6, 2 * n), short)), 2 * n, space)


# --- mixing ------------------------------------------------------------------------------------------------------------


@step("AveragePool", "MaxPool", "LpPool", needs="map")
def pooled(p: Program, x: Map, op: str) -> Map:
    rank = x.rank - 2
    if min(x.space) > 1 and p.pick("window", "3, padded", "2, strided") == "2, strided":
        space = tuple((s - 2) // 2 + 1 for s in x.space)
        return x.to(p.node(op, x.name, kernel_shape=[2] * rank, strides=[2] * rank), space=space)
    return x.to(p.node(op, x.name, kernel_shape=[3] * rank, pads=[1] * 2 * rank))


@step("MaxPool", needs="image", since=8)
def pooled_with_places(p: Program, x: Map, op: str) -> Map | None:
    if min(x.space) < 2:
        return None
    y, places = p.many("MaxPool", x.name, outs=2, kernel_shape=[2, 2], strides=[2, 2], gives=(p.kind, "int64"))
    use = p.pick("places", "unread", "read", "an output")
    if use == "read":
        y = p.node("Add", y, p.node("Mul", p.back(places), p.scalar(0.01)))
    elif use == "an output":
        p.output(places, kind=TensorProto.INT64, rank=4)
    return x.to(y, space=tuple(s // 2 for s in x.space))


@step("GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", needs="map")
def excited(p: Program, x: Map, op: str) -> Map:
    """A gate from the pooled map (squeeze and excitation), or the pooled map itself."""
    y = p.node(op, x.name)
    if p.pick("then", "gate", "nothing") == "nothing":
        return x.to(y, space=(1,) * (x.rank - 2))
    small = p.node("Relu", p.conv(y, x.channels, 4, 1, rank=x.rank - 2))
    gate = p.node("Sigmoid", p.conv(small, 4, x.channels, 1, rank=x.rank - 2))
    return x.to(p.node("Mul", *((x.name, gate) if p.pick("gate first", False, True) else (gate, x.name))))


@step("MaxRoiPool", needs="image")
def regions(p: Program, x: Map, op: str) -> Map:
    p.single = True
    region = p.const(p.typed([[0, 0, 0, *(s - 1 for s in x.space[::-1])]]))
    return x.to(p.node("MaxRoiPool", x.name, region, pooled_shape=[2, 2]), space=(2, 2))


@step("Resize", needs="image", grows=True)
def resized(p: Program, x: Map, op: str) -> Map:
    """By scales, sizes or computed sizes; opset 10 has scales alone."""
    scales = p.const(np.array([1, 1, 2, 2], np.float32))
    space = tuple(2 * s for s in x.space)
    mode = p.pick("mode", "nearest", "linear")
    if p.opset == 10:
        return x.to(p.node("Resize", x.name, scales, mode=mode), space=space)
    absent = "" if p.opset >= 13 else p.const(np.zeros(0, np.float32))
    form = p.pick("by", "scales", "sizes", "computed sizes", *(["sizes of axes"] if p.opset >= 18 else []))
    if form == "scales":
        return x.to(p.node("Resize", x.name, absent, scales, mode=mode), space=space)
    if form == "sizes of axes":
        sizes = p.ints(space[0], x.channels, space[1])
        return x.to(p.node("Resize", x.name, "", "", sizes, axes=[2, 1, 3], mode=mode), space=space)
    if form == "sizes":
        p.single = True
        sizes = p.ints(*x.shape[:2], *space)
    else:
        shape = p.node("Shape", x.name, gives=("int64",))
        first = p.sliced(shape, [0], [2], [0])
        doubled = p.node("Mul", p.sliced(shape, [2], [4], [0]), p.ints(2), gives=("int64",))
        sizes = p.node("Concat", first, doubled, axis=0, gives=("int64",))
    return x.to(p.node("Resize", x.name, absent, absent if p.opset < 13 else "", sizes, mode=mode), space=space)


@step("Upsample", needs="image", grows=True)
def upsampled(p: Program, x: Map, op: str) -> Map:
    space = tuple(2 * s for s in x.space)
    if p.opset >= 9:
        return x.to(p.node("Upsample", x.name, p.const(np.array([1, 1, 2, 2], np.float32))), space=space)
    return x.to(p.node("Upsample", x.name, scales=[1.0, 1.0, 2.0, 2.0], mode="nearest"), space=space)


@step(*family("reduce"))
def reduced(p: Program, x: Map, op: str) -> Map:
    """Space or channels, kept or not."""
    over = p.pick("over", "space", "channels") if x.rank > 2 else "channels"
    axis = x.axis if over == "channels" else p.pick("axis", *[a for a in range(x.rank)[:0:-1] if a != x.axis])
    keep = 1 if x.rank == 2 else p.pick("keep", 1, 0)
    name = positive(p, tame(p, x.name)) if op == "ReduceLogSum" else x.name
    name = p.node("Add", p.node("Mul", tame(p, name), p.scalar(0.1)), p.scalar(1.0)) if op == "ReduceProd" else name
    number = axis - (x.rank if p.opset >= 11 and p.pick("negative", False, True) else 0)
    if op.startswith("Arg"):
        y = p.node(op, name, axis=number, keepdims=keep, gives=("int64",))
        y = p.node("Mul", p.back(y), p.scalar(0.1))
    else:
        y = p.along(op, name, number, keepdims=keep)
    if over == "channels":
        if not keep:
            y = p.along("Unsqueeze", y, x.axis)
        return x.to(p.node("Mul", x.name, p.node("Sigmoid", y)))  # an attention map over space
    if keep:
        return Map(y, x.shape, x.axis).resized(axis, 1)
    return Map(y, (*x.shape[:axis], *x.shape[axis + 1 :]), x.axis - (x.axis > axis))


@step("ReduceMean", "ReduceSum", "ReduceMax", needs="map")
def all_of_space(p: Program, x: Map, op: str) -> Map:
    return Map(p.along(op, x.name, *range(2, x.rank), keepdims=0), (1, x.channels))


@step(*family("softmax"))
def softened(p: Program, x: Map, op: str) -> Map:
    axis = p.pick("axis", x.rank - 1, x.axis, *([-1] if p.opset >= 11 else []), None)
    return x.to(p.node(op, x.name, **({} if axis is None else {"axis": axis})))


@step("LpNormalization")
def normalised(p: Program, x: Map, op: str) -> Map:
    y = positive(p, x.name)  # an index of zeros has no norm
    return x.to(p.node(op, y, axis=p.pick("axis", x.rank - 1, x.axis), p=p.pick("p", 2, 1)))


@step("CumSum")
def summed_up(p: Program, x: Map, op: str) -> Map:
    axis = p.pick("axis", x.rank - 1, x.axis, x.axis - x.rank)
    return x.to(tame(p, p.node(op, x.name, p.const(np.int64(axis)), reverse=p.pick("reverse", 0, 1))))


@step("TopK")
def best(p: Program, x: Map, op: str) -> Map:
    axis = p.pick("axis", x.rank - 1, x.axis)
    k = min(2, x.shape[axis])
    operands, extra = ([x.name, p.ints(k)], {}) if p.opset >= 10 else ([x.name], {"k": k})
    values, places = p.many(op, *operands, outs=2, axis=axis, gives=(p.kind, "int64"), **extra)
    y = values if p.pick("take", "values", "places") == "values" else p.node("Tanh", p.back(places))
    return Map(y, x.shape, x.axis).resized(axis, k)


@step("LRN", needs="image")
def locally_normalised(p: Program, x: Map, op: str) -> Map:
    return x.to(p.node("LRN", x.name, size=3, alpha=0.1))


def uneven(p: Program, x: Map, axis: int) -> str:
    """Never constant along an axis, where a norm would leave nothing but rounding errors."""
    ramp = np.linspace(-1, 1, x.shape[axis]).reshape([-1 if a == axis else 1 for a in range(x.rank)])
    return p.node("Add", x.name, p.const(p.typed(ramp)))


@step("MeanVarianceNormalization", needs="image")
def whitened(p: Program, x: Map, op: str) -> Map | None:
    if x.shape[3] == 1:
        return None
    y = p.node(op, uneven(p, x, 3), axes=p.pick("axes", [2, 3], [1, 2, 3], [-1, -2], [3]))
    return x.to(p.node("Add", y, p.per_channel(x)))


@step("BatchNormalization", "InstanceNormalization", needs="map")
def channel_norm(p: Program, x: Map, op: str) -> Map:
    operands = [p.weight(x.channels, positive=True), p.weight(x.channels)]
    if op == "BatchNormalization":
        operands += [p.weight(x.channels), p.weight(x.channels, positive=True)]
    return x.to(p.node(op, x.name, *operands))


@step("BatchNormalization", needs="flat")
def feature_norm(p: Program, x: Map, op: str) -> Map:
    return x.to(p.batch_norm(x.name, x.channels))


@step("LayerNormalization", "RMSNormalization")
def layer_norm(p: Program, x: Map, op: str) -> Map:
    axis = p.pick("axis", x.rank - 1, x.axis)
    shape = x.shape[axis:]
    operands = [p.weight(*shape, positive=True)]
    if op == "LayerNormalization" and p.pick("shift", True, False):
        operands.append(p.weight(*shape))
    return x.to(p.node(op, uneven(p, x, axis), *operands, axis=axis))


@step("ReduceMean", "Sqrt", "Sub")
def layer_norm_in_pieces(p: Program, x: Map, op: str) -> Map:
    axis = p.pick("axis", x.rank - 1, x.axis)
    name = uneven(p, x, axis)
    centred = p.node("Sub", name, p.along("ReduceMean", name, axis, keepdims=1))
    variance = p.along("ReduceMean", p.node("Mul", centred, centred), axis, keepdims=1)
    y = p.node("Div", centred, p.node("Sqrt", p.node("Add", variance, p.scalar(0.01))))
    scale = p.weight(*[s if a == axis else 1 for a, s in enumerate(x.shape)], positive=True)
    return x.to(p.node("Mul", y, scale))


@step("com.microsoft::SkipLayerNormalization", needs="last")
def skip_norm(p: Program, x: Map, op: str) -> Map | None:
    if x.rank != 3:
        shape = (1, int(np.prod(x.space)), x.channels)
        x = Map(p.reshaped(x.name, shape), shape, 2)
    other = p.layer(x, x.channels).name
    n = x.channels
    return x.to(p.node(op, x.name, other, p.weight(n, positive=True), p.weight(n), domain="com.microsoft"))


@step("GroupNormalization", needs="map")
def group_norm(p: Program, x: Map, op: str) -> Map:
    groups = p.pick("groups", *[g for g in (2, 3, 1) if x.channels % g == 0])
    n = groups if p.opset < 21 else x.channels
    return x.to(p.node(op, x.name, p.weight(n, positive=True), p.weight(n), num_groups=groups))


@step("Shape", "Size")
def counted(p: Program, x: Map, op: str) -> Map:
    """The number of channels or elements as a number."""
    axis = p.pick("axis", x.rank - 1, x.axis)
    number = p.node("Size", x.name, gives=("int64",)) if op == "Size" else p.size_of(x.name, axis)
    return x.to(p.node("Div", x.name, p.node("Sqrt", p.back(number))))


@step("Shape")
def shaped_like(p: Program, x: Map, op: str) -> Map:
    """Reshape to another tensor's shape, behind a layer of its own."""
    other = p.layer(x, x.channels)
    return x.to(p.node("Reshape", other.name, p.node("Shape", x.name, gives=("int64",))))


@step("Shape", "Slice", since=10)
def sized_by_another(p: Program, x: Map, op: str) -> Map:
    """An input reshaped, expanded, sliced or split by the channels that another tensor has."""
    shape = p.node("Shape", x.name, gives=("int64",))
    form = p.pick("form", "Reshape", "Expand", "Slice")
    if form == "Slice":
        twice = x.resized(x.axis, 2 * x.channels).shape
        y = p.node("Slice", p.source(twice), p.ints(0), p.size_of(x.name, x.axis), p.ints(x.axis))
    elif form == "Reshape":
        y = p.node("Reshape", p.source(x.shape), shape)
    else:
        y = p.node("Expand", p.layer(x, 1).name, shape)
    return x.to(y)


@step("Size", needs="flat")
def sized(p: Program, x: Map, op: str) -> Map:
    p.single = True
    size = p.along("Unsqueeze", p.node("Size", x.name, gives=("int64",)), 0, gives=("int64",))
    target = p.node("Concat", p.ints(1), size, axis=0, gives=("int64",))
    return x.to(p.node("Reshape", x.name, target))


@step("Range")
def ramp(p: Program, x: Map, op: str) -> Map:
    """A position for each index of the last axis."""
    places = p.node(
        "Range", p.scalar(0.0, np.float32), p.scalar(float(x.shape[-1]), np.float32), p.scalar(1.0, np.float32)
    )
    return x.to(p.node("Add", x.name, p.back(p.node("Mul", places, p.scalar(0.1, np.float32)))))


@step("EyeLike", needs="flat")
def diagonal(p: Program, x: Map, op: str) -> Map:
    p.single = True
    return x.to(p.node("Add", x.name, p.node("EyeLike", x.name)))


@step("RandomNormalLike", "RandomUniformLike")
def random_like(p: Program, x: Map, op: str) -> Map:
    noise = p.node(op, p.cast(x.name, "float"), seed=1.0)
    return x.to(p.node("Add", x.name, p.back(p.node("Mul", noise, p.scalar(0.0, np.float32)))))


@step("RandomNormal", "RandomUniform")
def random_constant(p: Program, x: Map, op: str) -> Map:
    noise = p.node(op, shape=[s if a == x.axis else 1 for a, s in enumerate(x.shape)], seed=1.0, gives=("float",))
    return x.to(p.node("Add", x.name, p.back(p.node("Mul", noise, p.scalar(0.0, np.float32)))))


@step("NonZero")
def nonzero(p: Program, x: Map, op: str) -> None:
    p.output(p.node("NonZero", x.name, gives=("int64",)), kind=TensorProto.INT64, rank=2)


@step("Einsum", needs="map")
def einsum(p: Program, x: Map, op: str) -> Map:
    axes = "bcdhw"[: x.rank]
    return Map(p.node(op, x.name, equation=f"{axes}->{axes[0]}{axes[2:]}c"), (1, *x.space, x.channels), x.rank - 1)


@step("GatherND", needs="map", since=11)
def picked(p: Program, x: Map, op: str) -> Map | None:
    """One item of the batch, or channels: as the first axis, or as the one behind the batch (opset 12)."""
    p.single = True
    form = p.pick("of", "first axis", "items", *(["behind the batch"] if p.opset >= 12 else []))
    if form == "items":
        return x.to(p.node(op, x.name, p.const(np.zeros((1, 1), np.int64))))
    n = x.channels
    places = p.pick("places", np.arange(n)[::-1], np.arange(0, n, 2), np.array([-1, 0, 0]))[:, None]
    if form == "behind the batch":
        return x.to(p.node(op, x.name, p.const(places[None]), batch_dims=1), len(places))
    y = p.node(op, p.along("Squeeze", x.name, 0), p.const(places))
    return x.to(p.along("Unsqueeze", y, 0), len(places))


@step("GatherElements")
def picked_elements(p: Program, x: Map, op: str) -> Map:
    p.single = True
    axis = p.pick("axis", x.axis, x.rank - 1)
    return x.to(p.node(op, x.name, p.const(p.rng.integers(0, x.shape[axis], x.shape)), axis=axis))


@step("ScatterND")
def written(p: Program, x: Map, op: str) -> Map:
    p.single = True
    return x.to(p.node(op, x.name, p.const(np.array([[0, 0]])), p.weight(1, *x.shape[2:])))


@step("ScatterElements")
def written_elements(p: Program, x: Map, op: str) -> Map:
    p.single = True
    one = [1] * x.rank
    return x.to(p.node(op, x.name, p.const(np.zeros(one, np.int64)), p.weight(*one), axis=x.axis))


@step("OneHot")
def one_hot(p: Program, x: Map, op: str) -> Map:
    """Each element as one of three classes, then summed: how many."""
    picks = p.cast(p.node("Clip", p.node("Abs", x.name), **{"max": 2.0}) if p.opset < 11 else p.node(
        "Clip", p.node("Abs", x.name), "", p.scalar(2.0)), "int64")  # fmt: skip
    y = p.node(op, picks, p.const(np.int64(3)), p.const(np.array([0.0, 0.5], np.float32)), gives=("float",))
    return x.to(p.back(p.along("ReduceMax", y, x.rank, keepdims=0)))


@step("NonMaxSuppression", needs="map")
def suppressed(p: Program, x: Map, op: str) -> None:
    """Boxes from a layer with four channels."""
    p.single = True
    boxes = p.conv(x.name, x.channels, 4, 1, rank=x.rank - 2)
    boxes = p.cast(p.node("Reshape", boxes, p.ints(1, 4, -1)), "float")
    scores = p.node("ReduceMax", boxes, axes=[1]) if p.opset < 18 else p.node("ReduceMax", boxes, p.ints(1))
    found = p.node(op, p.node("Transpose", boxes, perm=[0, 2, 1]), scores, p.ints(2), gives=("int64",))
    p.output(found, kind=TensorProto.INT64, rank=2)


@step("RoiAlign", needs="image")
def aligned(p: Program, x: Map, op: str) -> Map:
    p.single = True
    region = p.const(p.typed([[0, 0, *(s - 1 for s in x.space[::-1])]]))
    return x.to(p.node(op, x.name, region, p.ints(0), output_height=2, output_width=2), space=(2, 2))


@step("RNN", "GRU", "LSTM", needs="last")
def recurrent(p: Program, x: Map, op: str) -> Map:
    """Over the last axis of space; batch first in the graph, second in the operator."""
    gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[op]
    while x.rank > 3:
        x = Map(p.along("ReduceMean", x.name, 1, keepdims=0), (1, *x.shape[2:]), x.rank - 2)
    sequence = p.node("Transpose", x.name, perm=[1, 0, 2])
    weights = p.weight(1, gates * 5, x.channels), p.weight(1, gates * 5, 5)
    y = p.along("Squeeze", p.node(op, sequence, *weights, hidden_size=5), 1)
    return x.to(p.node("Transpose", y, perm=[1, 0, 2]), 5)


def value(name: str, *shape: int, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape if shape or kind != TensorProto.FLOAT else None)


@step("If")
def either(p: Program, x: Map, op: str) -> Map:
    """Both branches capture the map, one a constant of the graph as well."""
    flag = p.input(p.fresh("flag"), (), np.bool_)
    outer, shift = p.cast(x.name, "float"), p.scalar(0.5, np.float32)
    yes, no = p.fresh("yes"), p.fresh("no")
    then = helper.make_graph([helper.make_node("Add", [outer, shift], [yes])], "then", [], [value(yes)])
    other = helper.make_graph([helper.make_node("Neg", [outer], [no])], "else", [], [value(no)])
    return x.to(p.back(p.node("If", flag, then_branch=then, else_branch=other, gives=("float",))))


@step("Loop")
def repeated(p: Program, x: Map, op: str) -> Map:
    """Two turns; the body captures the map and carries it."""
    on, state, turn = p.fresh("on"), p.fresh("state"), p.fresh("turn")
    outer = p.cast(x.name, "float")
    nodes = [
        helper.make_node("Identity", [on], [f"{on}_out"]), helper.make_node("Tanh", [outer], [f"{state}_gate"]),
        helper.make_node("Mul", [state, f"{state}_gate"], [f"{state}_out"]),
    ]  # fmt: skip
    flag = value(on, kind=TensorProto.BOOL)
    inner = helper.make_graph(
        nodes, "body", [value(turn, kind=TensorProto.INT64), flag, value(state)],
        [value(f"{on}_out", kind=TensorProto.BOOL), value(f"{state}_out")],
    )  # fmt: skip
    carried = p.cast(branch(p, x), "float")
    turns = (p.const(np.int64(2)), p.const(np.bool_(True)))
    return x.to(p.back(p.node("Loop", *turns, carried, body=inner, gives=("float",))))


@step("If", "Conv", needs="image")
def layers_in_branches(p: Program, x: Map, op: str) -> Map:
    """Two layers in the branches of an If; the weights are those of the graph, and a layer outside reads them too."""
    flag = p.input(p.fresh("flag"), (), np.bool_)
    kept = p.weight(6, x.channels, 1, 1)
    outer, weight = p.cast(x.name, "float"), p.cast(kept, "float")
    yes, no = p.fresh("yes"), p.fresh("no")
    then = helper.make_graph([helper.make_node("Conv", [outer, weight], [yes])], "then", [], [value(yes)])
    gate = helper.make_node("Sigmoid", [outer], [f"{no}_gate"])
    other = [gate, helper.make_node("Conv", [f"{no}_gate", weight], [no])]
    other = helper.make_graph(other, "else", [], [value(no)])
    y = p.node("If", flag, then_branch=then, else_branch=other, gives=("float",))
    if p.pick("outside", "other weights", "same weights") == "same weights":
        outside = p.node("Conv", x.name, kept)
    else:
        outside = p.conv(x.name, x.channels, 6, 1)
    return x.to(p.node("Add", p.back(y), outside), 6)


@step("Scan", since=9)
def scanned(p: Program, x: Map, op: str) -> Map:
    """A running sum over the batch."""
    p.single = True
    total, item = p.fresh("total"), p.fresh("item")
    nodes = [
        helper.make_node("Add", [total, item], [f"{total}_out"]),
        helper.make_node("Identity", [f"{total}_out"], [f"{item}_out"]),
    ]
    shape = x.shape[1:]
    inner = helper.make_graph(
        nodes, "body", [value(total, *shape), value(item, *shape)],
        [value(f"{total}_out", *shape), value(f"{item}_out", *shape)],
    )  # fmt: skip
    start = p.const(np.zeros(shape, np.float32))
    made = p.many(
        "Scan", start, p.cast(x.name, "float"), outs=2, body=inner, num_scan_inputs=1, gives=("float", "float")
    )
    return x.to(p.back(made[1]))


# --- linear ------------------------------------------------------------------------------------------------------------


def extent(size: int, k: int, stride: int, dilation: int, mode: str) -> int:
    """Output size of a convolution along one axis."""
    if mode.startswith("SAME"):
        return -(-size // stride)
    span = dilation * (k - 1) + 1
    total = 0 if mode == "VALID" else 2 * (span // 2)
    return (size + total - span) // stride + 1


@step("Conv", needs="map")
def convolved(p: Program, x: Map, op: str) -> Map:
    channels = p.pick("channels", 6, 8, 12, 4)
    k, stride, dilation = p.pick("kernel, stride, dilation", (3, 1, 1), (1, 1, 1), (3, 2, 1), (3, 1, 2), (2, 2, 1))
    modes = ["NOTSET"] + (["SAME_UPPER", "SAME_LOWER"] if dilation == 1 else [])
    mode = p.pick("auto_pad", *modes, *(["VALID"] if dilation == 1 and min(x.space) >= k else []))
    rank = x.rank - 2
    pads = {"auto_pad": mode} if mode != "NOTSET" else {"pads": [(dilation * (k - 1) + 1) // 2] * 2 * rank}
    y = p.conv(x.name, x.channels, channels, k, rank=rank, strides=[stride] * rank, dilations=[dilation] * rank, **pads)
    return x.to(y, channels, tuple(extent(s, k, stride, dilation, mode) for s in x.space))


@step("Conv", needs="map")
def depthwise(p: Program, x: Map, op: str) -> Map:
    times = p.pick("multiplier", 1, 2) if x.channels <= 12 else 1
    y = p.conv(x.name, x.channels, times * x.channels, rank=x.rank - 2, group=x.channels)
    return x.to(y, times * x.channels)


@step("Conv", needs="map")
def grouped(p: Program, x: Map, op: str) -> Map:
    groups = p.pick("groups", *[g for g in (2, 3, 4, 1) if x.channels % g == 0])
    channels = groups * p.pick("of each", 2, 1, 3)
    return x.to(p.conv(x.name, x.channels, channels, 1, rank=x.rank - 2, group=groups), channels)


@step("Conv", "Add", needs="map")
def residual(p: Program, x: Map, op: str) -> Map:
    rank = x.rank - 2
    y = p.node("Relu", p.conv(x.name, x.channels, 6, rank=rank))
    y = p.conv(y, 6, x.channels, rank=rank)
    y = p.batch_norm(y, x.channels) if p.pick("norm", False, True) else y
    return x.to(p.node("Relu", p.node("Add", *((x.name, y) if p.pick("first", "x", "y") == "x" else (y, x.name)))))


@step("Conv", needs="map")
def shared_layer(p: Program, x: Map, op: str) -> list[Map]:
    """One layer on two maps, as heads of detectors have it."""
    rank = x.rank - 2
    weight, shift = p.weight(6, x.channels, *[1] * rank), p.weight(6)
    pooled = p.node("MaxPool", x.name, kernel_shape=[3] * rank, pads=[1] * 2 * rank)
    return [x.to(p.node("Conv", name, weight, shift), 6) for name in (x.name, pooled)]


@step("Conv", "Gemm", needs="image")
def made_weights(p: Program, x: Map, op: str) -> Map:
    """Weights, or a bias, that another layer computes from an input."""
    z = p.source((1, 4))
    p.single = True
    if p.pick("made", "weights", "bias") == "weights":
        weight = p.node("Reshape", p.gemm(z, 4, 3 * x.channels), p.ints(3, x.channels, 1, 1))
        return x.to(p.node("Conv", x.name, weight), 3)
    shift = p.node("Reshape", p.gemm(z, 4, 6), p.ints(6))
    return x.to(p.node("Conv", x.name, p.weight(6, x.channels, 1, 1), shift), 6)


@step("Gemm", "MatMul", needs="flat")
def product(p: Program, x: Map, op: str) -> Map:
    """Of two activations: a Gram matrix that scales the features again."""
    p.single = True
    if op == "Gemm":
        bias = [] if p.opset >= 11 else [p.scalar(0.0)]
        gram = p.node("Gemm", x.name, x.name, *bias, transA=1, alpha=0.1)
    else:
        gram = p.node("MatMul", p.node("Transpose", x.name, perm=[1, 0]), x.name)
    return x.to(p.node("MatMul", x.name, p.node("Tanh", gram)))


@step("ConvTranspose", needs="map", grows=True)
def transposed(p: Program, x: Map, op: str) -> Map:
    rank = x.rank - 2
    form = p.pick("form", "plain", "strided", "output_padding", "auto_pad", "output_shape", "dilated")
    groups = p.pick("groups", 1, *[g for g in (2, 3, x.channels) if x.channels % g == 0])
    channels = groups * (1 if groups > 4 else p.pick("of each", 2, 1))
    weight = p.weight(x.channels, channels // groups, *[3] * rank)
    operands = [weight] + ([p.weight(channels)] if p.pick("bias", True, False) else [])
    twice = tuple(2 * s for s in x.space)
    extra, space = {
        "plain": ({"pads": [1] * 2 * rank}, x.space),
        "strided": ({"strides": [2] * rank}, tuple(2 * s + 1 for s in x.space)),
        "output_padding": ({"strides": [2] * rank, "pads": [1] * 2 * rank, "output_padding": [1] * rank}, twice),
        "auto_pad": ({"strides": [2] * rank, "auto_pad": "SAME_UPPER"}, twice),
        "output_shape": ({"strides": [2] * rank, "output_shape": list(twice)}, twice),
        "dilated": ({"dilations": [2] * rank, "pads": [2] * 2 * rank}, x.space),
    }[form]
    return x.to(p.node(op, x.name, *operands, group=groups, **extra), channels, space)


@step("com.microsoft::FusedConv", needs="image")
def fused_convolution(p: Program, x: Map, op: str) -> Map:
    groups = p.pick("groups", 1, x.channels, *[g for g in (2, 3) if x.channels % g == 0])
    summed = p.pick("sum", False, True) and groups == 1
    channels = x.channels if summed or groups == x.channels else 6
    operands = [p.weight(channels, x.channels // groups, 3, 3), p.weight(channels)]
    operands += [x.name] if summed else []
    activation = p.pick("activation", "Relu", "Tanh", "Sigmoid")
    extra = {"pads": [1] * 4, "group": groups, "activation": activation}
    return x.to(p.node(op, x.name, *operands, domain="com.microsoft", **extra), channels)


@step("Gemm", "com.microsoft::FusedGemm", needs="flat")
def fully_connected(p: Program, x: Map, op: str) -> Map:
    width = p.pick("width", 6, 8, 12)
    trans_a, trans_b = p.pick("transA", 0, 1), p.pick("transB", 1, 0)
    name = p.node("Transpose", x.name, perm=[1, 0]) if trans_a else x.name
    operands = [p.weight(width, x.channels) if trans_b else p.weight(x.channels, width)]
    bias = p.pick("bias", (width,), (1, width), (), *([None] if p.opset >= 11 else []))
    if bias is not None:
        operands.append(p.weight(*bias) if bias else p.scalar(0.5))
    extra = {"transA": trans_a, "transB": trans_b, "alpha": p.pick("alpha", 1.0, 0.5), "beta": p.pick("beta", 1.0, 2.0)}
    if op == "FusedGemm":
        return x.to(p.node(op, name, *operands, domain="com.microsoft", activation="Relu", **extra), width)
    return x.to(p.node(op, name, *operands, **extra), width)


@step("MatMul", needs="last")
def by_the_right(p: Program, x: Map, op: str) -> Map:
    return x.to(p.node(op, x.name, p.weight(x.channels, 6)), 6)


@step("MatMul", needs="map")
def by_the_left(p: Program, x: Map, op: str) -> Map:
    """A constant times (C × positions)."""
    shape = (1, x.channels, int(np.prod(x.space)))
    return Map(p.node(op, p.weight(6, x.channels), p.reshaped(x.name, shape)), (1, 6, shape[2]))


@step("MatMul", needs="map")
def attended(p: Program, x: Map, op: str) -> Map:
    """Self-attention over positions."""
    shape = (1, x.channels, int(np.prod(x.space)))
    flat = Map(p.reshaped(x.name, shape), shape)
    q, k, v = (p.layer(flat, 4).name for _ in range(3))
    scores = p.node("Softmax", p.node(op, p.node("Transpose", q, perm=[0, 2, 1]), k), axis=2)
    return flat.to(p.node(op, v, p.node("Transpose", scores, perm=[0, 2, 1])), 4)


@step("com.microsoft::FusedMatMul", needs="last")
def fused_product(p: Program, x: Map, op: str) -> Map:
    turned_weight = p.pick("transB", 0, 1)
    weight = p.weight(6, x.channels) if turned_weight else p.weight(x.channels, 6)
    extra = {"transB": turned_weight, "alpha": p.pick("alpha", 1.0, 0.25)}
    return x.to(p.node(op, x.name, weight, domain="com.microsoft", **extra), 6)
