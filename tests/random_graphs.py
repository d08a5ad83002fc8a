"""Random graphs over all operators of the rule table, as programs that Hypothesis can shrink and people can read.

A `Program` is a graph that grows step by step. Each step (`random_steps.py`) is registered for the operator that it is there
for, draws what it needs under a name, and adds nodes behind a feature map. The steps work for every floating-point type:
where ONNX Runtime has no kernel for one, the operator stands between two Casts.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import onnx
from graphs import Array, Build
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state as kernels

from thinet_onnx.rules import RULES

OPSETS = (18, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 19, 20, 21, 22, 23, 24)
TYPES = {
    "float": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "double": TensorProto.DOUBLE,
    "bfloat16": TensorProto.BFLOAT16, "bool": TensorProto.BOOL, "int32": TensorProto.INT32,
    "int64": TensorProto.INT64, "uint32": TensorProto.UINT32, "int8": TensorProto.INT8, "uint8": TensorProto.UINT8,
}  # fmt: skip
TOLERANCES = {"double": 1e-9, "float": 1e-4, "float16": 1e-2, "bfloat16": 1e-2}
FLOATS = tuple(TOLERANCES)
LARGEST = 1500  # elements of a map behind which nothing is enlarged any more


@dataclass(frozen=True)
class Map:
    """An activation: its name, shape for a batch of 1, and the axis that a linear layer behind it reads."""

    name: str
    shape: tuple[int, ...]
    axis: int = 1

    @property
    def channels(self) -> int:
        return self.shape[self.axis]

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def space(self) -> tuple[int, ...]:
        """All axes but the batch and the channels."""
        return tuple(size for axis, size in enumerate(self.shape) if axis not in (0, self.axis))

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    def to(self, name: str, channels: int | None = None, space: tuple[int, ...] | None = None) -> "Map":
        """The map that an operator makes of this one, in the same layout."""
        sizes = list(self.space if space is None else space)
        sizes.insert(self.axis - 1, self.channels if channels is None else channels)
        return Map(name, (1, *sizes), self.axis)

    def resized(self, axis: int, size: int) -> "Map":
        """The same with another size of one axis."""
        return replace(self, shape=(*self.shape[:axis], size, *self.shape[axis + 1 :]))


Step = Callable[["Program", Map, str], Map | list[Map] | None]
"""Adds operators behind a map; returns the maps that came of it, None if it doesn't fit there."""


@dataclass(frozen=True)
class Entry:
    """A step for one operator: what map it needs, and whether it makes a larger one."""

    kind: str
    step: Step
    needs: str
    grows: bool
    opsets: range

    @property
    def op(self) -> str:
        return self.kind.rpartition("::")[2]

    def __repr__(self) -> str:
        return f"{self.kind}/{self.step.__name__}"


STEPS: list[Entry] = []


def step(
    *kinds: str, needs: str = "any", grows: bool = False, since: int = 7, until: int = 99
) -> Callable[[Step], Step]:
    """Register a step for operators. It gets maps as it `needs` them.

    `map`: channels first, at least one axis of space; `image`: two of them; `flat`: no space; `last`: channels last, at least
    one axis of space; `any`.
    """

    def register(function: Step) -> Step:
        STEPS.extend(Entry(kind, function, needs, grows, range(since, until + 1)) for kind in kinds)
        return function

    return register


@cache
def exists(kind: str, opset: int) -> bool:
    """Whether an operator set has this operator, and ONNX Runtime runs it."""
    domain, _, op = kind.rpartition("::")
    if domain:
        return True
    try:
        schema = onnx.defs.get_schema(op, opset)
    except onnx.defs.SchemaError:
        return False
    function = schema.has_function or schema.has_context_dependent_function
    return not schema.deprecated and (function or bool(_kernel_types(op, domain, opset)))


@cache
def runs(op: str, domain: str, opset: int, kind: str) -> bool:
    """Whether ONNX Runtime's CPU provider runs an operator in this floating-point type.

    It puts Casts around float16 where it has a kernel for float alone.
    """
    if kind == "double" and (domain or op in ("RNN", "GRU", "LSTM")):
        return False  # there are kernels, but they refuse to run
    wanted = {f"tensor({kind})"}
    if not domain:
        schema = onnx.defs.get_schema(op, opset)
        if not any(wanted & set(constraint.allowed_type_strs) for constraint in schema.type_constraints):
            return False
        if kind == "float16" and not (schema.has_function or schema.has_context_dependent_function):
            wanted.add("tensor(float)")
    return any(wanted.intersection(types) for types in _kernel_types(op, domain, opset))


@cache
def _all_kernels() -> dict[tuple[str, str], list[Any]]:
    found: dict[tuple[str, str], list[Any]] = {}
    for entry in kernels.get_all_opkernel_def():
        if entry.provider == "CPUExecutionProvider":
            found.setdefault((entry.op_name, entry.domain), []).append(entry)
    return found


def _kernel_types(op: str, domain: str, opset: int) -> list[list[str]]:
    """For each kernel of an operator the types of its data operands; an open range of versions means its first one."""
    version = 1 if domain else onnx.defs.get_schema(op, opset).since_version
    found = []
    for entry in _all_kernels().get((op, domain), []):
        first, last = entry.version_range
        if first == version or first < version <= last < 2**31 - 1:
            found.append(entry.type_constraints.get("T") or entry.type_constraints.get("T1") or [""])
    return found


@cache
def by_module(opset: int) -> dict[str, list[Entry]]:
    """The steps that an operator set has, by the module of the operator's rule."""
    found: dict[str, list[Entry]] = {}
    for entry in STEPS:
        if entry.kind in RULES and opset in entry.opsets and exists(entry.kind, opset):
            found.setdefault(RULES[entry.kind].__module__.rpartition(".")[2], []).append(entry)
    return found


class Program(Build):
    """A graph made of random steps, in one floating-point type; `lines` is the text of it."""

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any], kind: str, opset: int) -> None:
        super().__init__(opset)
        self.draw = draw
        self.kind = kind
        self.kinds: dict[str, str] = {}
        self.lines: list[str] = [f"opset {opset}, {kind}"]
        self.single = False  # a batch of 1 is written down somewhere
        self.tolerance: dict[str, float] = {}  # of every tensor, by the types it was computed in
        self.maps: list[Map] = []
        self.parameters: dict[tuple[int, ...], str] = {}

    def __repr__(self) -> str:
        constants = [
            f"{t.name}: {helper.tensor_dtype_to_string(t.data_type)} {list(t.dims)}" for t in self.initializers
        ]
        nodes = [onnx.printer.to_text(node) for node in self.nodes if node.op_type != "Constant"]
        return "\n".join(["", *self.lines, "", ", ".join(constants), "", *nodes])

    def pick(self, what: str, *options: Any) -> Any:
        """One of some options, the simplest first."""
        found = self.draw(st.sampled_from(options))
        self.lines[-1] += f" {what}={found}"
        return found

    # --- nodes in any type -------------------------------------------------------------------------------------------

    def many(
        self, op: str, *inputs: str, outs: Any, domain: str = "", name: str = "", gives: tuple[str, ...] = (),
        **attributes: Any,
    ) -> list[str]:  # fmt: skip
        """A node, between Casts where it has no kernel for its operands' type; `gives` are the types it returns."""
        kind = next((self.kinds[n] for n in inputs if self.kinds.get(n) in FLOATS), "")
        names = [self.fresh(op.lower()) for _ in range(outs)] if isinstance(outs, int) else list(outs)
        types = [*gives, *[gives[-1] if gives else kind] * len(names)][: len(names)]
        cast = op not in ("Cast", "Constant") and kind not in ("", "float") and not runs(op, domain, self.opset, kind)
        bodies = [body for body in attributes.values() if isinstance(body, onnx.GraphProto)]
        read = [*inputs, *(n for body in bodies for node in body.node for n in node.input)]
        worst = [self.tolerance.get(n, 0.0) for n in read] + [TOLERANCES.get(t, 0.0) for t in [kind, *types]]
        self.tolerance |= dict.fromkeys(names, max(worst + [TOLERANCES["float"]] * cast))
        if not cast:
            self.kinds |= dict(zip(names, types, strict=True))
            return super().many(op, *inputs, outs=names, domain=domain, name=name, **attributes)
        operands = [self.cast(n, "float") if self.kinds.get(n) in FLOATS else n for n in inputs]
        inner = [f"{n}_float" if n and t in FLOATS else n for n, t in zip(names, types, strict=True)]
        super().many(op, *operands, outs=inner, domain=domain, name=name, **attributes)
        for made, out, type_ in zip(inner, names, types, strict=True):
            self.kinds[made] = "float" if type_ in FLOATS else type_
            self.tolerance[made] = self.tolerance[out]
            if made != out:
                self.cast(made, type_, out)
        return names

    def cast(self, name: str, kind: str, out: str = "") -> str:
        """A Cast, or nothing where it isn't needed."""
        if self.kinds.get(name) == kind and not out:
            return name
        return self.node("Cast", name, to=TYPES[kind], out=out, gives=(kind,))

    def back(self, name: str) -> str:
        """Into the program's own type."""
        return self.cast(name, self.kind)

    def const(self, value: Any, name: str = "", *, node: bool = False) -> str:
        made = super().const(value, name, node=node)
        dtype = np.asarray(value).dtype
        element = helper.np_dtype_to_tensor_dtype(dtype)
        self.kinds[made] = next((kind for kind, type_ in TYPES.items() if type_ == element), str(dtype))
        return made

    def typed(self, value: Any, kind: str = "") -> Array:
        """An array in the program's type."""
        return np.asarray(value).astype(helper.tensor_dtype_to_np_dtype(TYPES[kind or self.kind]))

    def scalar(self, value: float, kind: Any = None) -> str:
        return self.const(self.typed(value) if kind is None else np.array(value, kind))

    def source(self, shape: tuple[int, ...], name: str = "") -> str:
        """A graph input in the program's type; bfloat16 comes from a Cast, since no array can feed it."""
        kind = "float" if self.kind == "bfloat16" else self.kind
        name = self.input(name or self.fresh("input"), shape, self.typed(0, kind).dtype, dynamic="batch")
        self.kinds[name] = kind
        return self.back(name)

    # --- parameters --------------------------------------------------------------------------------------------------

    def weight(self, *shape: int, name: str = "", positive: bool = False, plain: bool = False) -> str:
        """A random parameter, kept in one of the ways that files keep them."""
        values = self.values(*shape, positive=positive)
        ways = ["plain", "plain", "plain", "node", "cast", "transposed", "flat", "sum", "identity"]
        if not positive and shape in self.parameters:
            ways.append("shared")
        if self.opset >= 10:
            ways.append("quantised")
        if self.opset >= 13 and len(shape) > 1:
            ways.append("quantised by channel")
        way = "plain" if plain else self.pick("kept", *ways)
        if way == "shared":
            return self.parameters[shape]
        made = self._kept(values, way)
        if not positive:
            self.parameters[shape] = made
        return made

    def _kept(self, values: Array, way: str) -> str:
        typed, rank = self.typed(values), values.ndim
        if way == "cast":
            made = self.const(self.typed(values, "float" if self.kind == "float16" else "float16"))
        elif way == "transposed" and rank > 1:
            made = self.node("Transpose", self.const(typed.transpose()), perm=list(range(rank))[::-1])
        elif way == "flat" and rank > 1:
            made = self.node("Reshape", self.const(typed.reshape(len(typed), -1)), self.ints(*typed.shape))
        elif way == "sum":
            made = self.node("Add", self.const(typed), self.const(self.typed(np.ones(values.shape) / 8)))
        elif way == "identity":
            made = self.node("Identity", self.const(typed))
        elif way.startswith("quantised"):
            made = self._quantised(values, "channel" in way)
        else:
            made = self.const(typed, node=way == "node")
        return self.back(made)

    def _quantised(self, values: Array, by_channel: bool) -> str:
        """int8 behind DequantizeLinear."""
        limits = np.abs(values).reshape(len(values), -1).max(1) if by_channel else np.abs(values).max()
        scale = np.maximum(limits, 1e-3) / 127
        steps = np.rint(values / (scale.reshape(-1, *[1] * (values.ndim - 1)) if by_channel else scale))
        extra = {"axis": 0} if by_channel else {}
        zero = self.const(np.zeros(np.shape(scale), np.int8))
        stored = self.const(np.clip(steps, -127, 127).astype(np.int8))
        return self.node(
            "DequantizeLinear", stored, self.const(np.asarray(scale, np.float32)), zero, gives=("float",), **extra
        )

    def per_channel(self, x: Map, positive: bool = False) -> str:
        """A parameter with one number for each channel, ready to be broadcast."""
        return self.weight(x.channels, *[1] * (x.rank - 1 - x.axis), positive=positive)

    # --- operators whose form depends on the opset -------------------------------------------------------------------

    def along(self, op: str, x: str, *axes: int, **attributes: Any) -> str:
        """Squeeze, Unsqueeze and reductions: axes as an operand or an attribute."""
        since = 13 if op in ("Squeeze", "Unsqueeze", "ReduceSum") else 18
        if self.opset >= since:
            return self.node(op, x, self.ints(*axes), **attributes)
        return self.node(op, x, axes=list(axes), **attributes)

    def sliced(
        self, x: str, starts: list[int], ends: list[int], axes: list[int], steps: list[int] | None = None
    ) -> str:
        if self.opset < 10:
            return self.node("Slice", x, starts=starts, ends=ends, axes=axes)
        operands = [starts, ends, axes, *([steps] if steps else [])]
        return self.node("Slice", x, *(self.ints(*operand) for operand in operands))

    def padded(self, x: str, amounts: list[int], mode: str = "constant", value: float = 0.5) -> str:
        if self.opset < 11:
            extra = {"value": value} if mode == "constant" else {}
            return self.node("Pad", x, pads=amounts, mode=mode, **extra)
        operands = [self.ints(*amounts)] + ([self.scalar(value)] if mode == "constant" else [])
        return self.node("Pad", x, *operands, mode=mode)

    def split(self, x: str, sizes: list[int], axis: int) -> list[str]:
        if self.opset < 13:
            return self.many("Split", x, outs=len(sizes), axis=axis, split=sizes)
        return self.many("Split", x, self.ints(*sizes), outs=len(sizes), axis=axis)

    def size_of(self, x: str, axis: int) -> str:
        """One number of the shape, as a vector of length 1."""
        shape = self.node("Shape", x, gives=("int64",))
        if self.opset < 10 or self.pick("size", "gathered", "sliced") == "gathered":
            place = self.node("Gather", shape, self.const(np.int64(axis)), axis=0, gives=("int64",))
            return self.along("Unsqueeze", place, 0, gives=("int64",))
        return self.node("Slice", shape, self.ints(axis), self.ints(axis + 1), gives=("int64",))

    def reshaped(self, x: str, shape: tuple[int, ...]) -> str:
        """Reshape to a shape whose first axis is the batch, in one of the ways of writing it down."""
        sizes = list(shape[1:])
        way = self.pick("target", "copied", "inferred", "batch inferred", "written", "computed", "half computed")
        if way == "inferred":
            sizes[self.pick("inferred axis", *range(len(sizes)))] = -1
        if way == "written":
            self.single = True
        if way == "computed":
            target = self.node("Concat", self.size_of(x, 0), self.ints(*sizes), axis=0, gives=("int64",))
        elif way == "half computed":
            sizes[-1] = -1
            target = self.node("Concat", self.size_of(x, 0), self.ints(*sizes), axis=0, gives=("int64",))
        else:
            target = self.ints({"batch inferred": -1, "written": 1}.get(way, 0), *sizes)
        return self.node("Reshape", x, target)

    # --- layouts -----------------------------------------------------------------------------------------------------

    def fit(self, x: Map, needs: str) -> Map | None:
        """The map in the layout that a step needs; None if it can't be had."""
        if needs == "any":
            return x
        if needs == "flat":
            return self._flat(x)
        if x.rank == 2:
            x = Map(self.reshaped(x.name, (1, x.channels, 1, 1)), (1, x.channels, 1, 1))
        if needs == "last":
            return self.moved(x, x.rank - 1)
        x = self.moved(x, 1)
        return None if needs == "image" and x.rank != 4 else x

    def moved(self, x: Map, axis: int) -> Map:
        """The channels on another axis, by a Transpose where needed."""
        if x.axis == axis:
            return x
        order = [a for a in range(x.rank) if a != x.axis]
        order.insert(axis, x.axis)
        return Map(self.node("Transpose", x.name, perm=order), tuple(x.shape[a] for a in order), axis)

    def _flat(self, x: Map) -> Map:
        if x.rank == 2:
            return x
        x = self.moved(x, 1)
        if x.size > 256 or self.pick("pooled", True, False):
            x = Map(self.node("GlobalAveragePool", x.name), (1, x.channels, *[1] * (x.rank - 2)))
        return Map(self.node("Flatten", x.name), (1, x.size))

    def feed(self, seed: int = 1, batch: int | None = None) -> dict[str, Array]:
        """Random values for all inputs; numbers without a batch axis stay so."""
        fed = super().feed(seed, batch)
        return {name: value if self.feeds[name][0] else np.asarray(value.flat[0]) for name, value in fed.items()}

    # --- growing -----------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Inputs and a first layer or two."""
        starts = ["image", "image", "image", "channels last", "sequence", "volume", "vector"]
        self.maps += self._begun(
            self.pick("start", *(["channels last", "vector"] if self.kind == "double" else starts))
        )

    def _begun(self, start: str) -> list[Map]:
        if start == "vector":
            x = self.source((1, 5), "x")
            return [Map(self.gemm(x, 5, 8), (1, 8))]
        if start == "channels last":
            x = Map(self.source((1, 6, 6, 3), "x"), (1, 6, 6, 3), 3)
            if self.kind == "double" or self.pick("first", "MatMul", "Conv") == "MatMul":
                return [x.to(self.node("MatMul", x.name, self.weight(3, 8)), 8)]
            x = self.moved(x, 1)
        else:
            space = {"image": (6, 6), "sequence": (10,), "volume": (4, 3, 4)}[start]
            x = Map(self.source((1, 3, *space), "x"), (1, 3, *space))
        channels = self.pick("channels", 8, 6, 12)
        return [x.to(self.conv(x.name, 3, channels, rank=x.rank - 2), channels)]

    def conv(self, x: str, c_in: int, c_out: int, k: int = 3, name: str = "", **attributes: Any) -> str:
        return super().conv(x, c_in, c_out, k, name, bias=self.pick("bias", True, False), **attributes)

    def gemm(self, x: str, c_in: int, c_out: int, name: str = "") -> str:
        return self.node("Gemm", x, self.weight(c_out, c_in), self.weight(c_out), transB=1)

    def grow(self, entry: Entry) -> None:
        """One step behind one of the maps."""
        x = self.maps[-1 - self.draw(st.sampled_from([place for place in (0, 0, 0, 1, 2) if place < len(self.maps)]))]
        self.lines.append(f"{entry} behind {x.name} {x.shape}:")
        fitting = None if entry.grows and x.size > LARGEST else self.fit(x, entry.needs)
        made = None if fitting is None else entry.step(self, fitting, entry.op)
        if made is not None:
            self.maps += made if isinstance(made, list) else [made]

    def finish(self, x: Map) -> None:
        """Two layers of which one reads the map's channels, and the other is an output."""
        self.lines.append(f"end behind {x.name} {x.shape}:")
        last = x.rank > 2 and (x.axis == x.rank - 1 or self.kind == "double")
        how = "flat" if x.rank == 2 else "last" if last else self.pick("end", "map", "flat")
        x = self.fit(x, how) or x
        x = self.layer(x.to(self.node("Relu", self.layer(x, 6).name), 6), 3)
        self.output(self.cast(x.name, "float"), rank=x.rank)

    def layer(self, x: Map, channels: int) -> Map:
        """A pointwise linear layer in the map's own layout."""
        if x.rank == 2:
            return x.to(self.gemm(x.name, x.channels, channels), channels)
        if x.axis == 1 and self.kind != "double":  # convolutions have no double
            return x.to(self.conv(x.name, x.channels, channels, 1, rank=x.rank - 2), channels)
        last = self.moved(x, x.rank - 1)
        y = last.to(self.node("MatMul", last.name, self.weight(x.channels, channels)), channels)
        return self.moved(y, x.axis)


@st.composite
def programs(draw: Any, focus: Entry) -> Program:
    """A first layer, one to seven steps of which one is the `focus`, and an end or two."""
    opset = draw(st.sampled_from([o for o in OPSETS if o in focus.opsets and exists(focus.kind, o)]))
    p = Program(
        draw,
        draw(st.sampled_from(["float", "float", "float16", "double", "bfloat16"][: 5 if opset >= 13 else 4])),
        opset,
    )
    p.begin()
    before, after = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    for place in range(-before, after + 1):
        family = draw(st.sampled_from(["linear", "layout", "elementwise", "mixing", "layout", "linear"]))
        p.grow(focus if place == 0 else draw(st.sampled_from(by_module(opset)[family])))
    for place in sorted(draw(st.sets(st.integers(0, min(2, len(p.maps) - 1)), min_size=1, max_size=2))):
        p.finish(p.maps[-1 - place])
    return p
