"""What the network's linear layers cost in time, by width, as they were measured one by one where the network is to run.

Each layer is a model of its own, with its real input, timed with its input and output channels on a small grid of widths;
in between times are interpolated. What the whole network takes beyond its layers is a constant.
"""

import bisect
import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from thinet_onnx import budget
from thinet_onnx.cost import Cost, Factor, Term, factor
from thinet_onnx.errors import ModelError
from thinet_onnx.graph import Graph, Shape
from thinet_onnx.groups import Analysis
from thinet_onnx.known_times import KnownTimes
from thinet_onnx.options import Progress
from thinet_onnx.rules import Linear
from thinet_onnx.stopwatch import Stopwatch

Feeds = dict[str, np.ndarray[Any, Any]]
Clock = Callable[[], float]

_SECONDS = 30.0  # for all layers together, more or less
_LONGEST, _SHORTEST = 0.25, 0.02  # seconds for one width of one layer
_GRIDS = ((0.25, 0.5, 0.75, 1.0), (0.25, 0.5, 1.0), (0.25, 1.0))  # shares of full width; the first that time allows
_WEIGHTS = 4096  # random values, repeated where more are needed


@dataclass(frozen=True)
class TimeTerm:
    """Milliseconds of a layer: `times[i, j]` with `inputs[i]` input and `outputs[j]` output channels, bilinear in between.

    Below the grid the line is continued. `factors` begins with the two sizes; the layer takes no time if one of them is 0
    or one of the groups in `gone` keeps nothing.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    times: tuple[tuple[float, ...], ...]
    factors: tuple[Factor, ...]
    gone: tuple[int, ...] = ()

    def value(self, kept: Sequence[int], changed: int = -1, width: int = 0) -> float:
        """Milliseconds when group g keeps `kept[g]` channels, and group `changed` keeps `width`."""
        if any(not (width if group == changed else kept[group]) for group in self.gone):
            return 0.0
        sizes = [
            base + sum(count * (width if group == changed else kept[group]) for group, count in parts)
            for base, parts in self.factors[:2]
        ]
        if not all(sizes):
            return 0.0
        (i, a), (j, b) = _place(self.inputs, sizes[0]), _place(self.outputs, sizes[1])
        rows = [
            row[j] if len(row) == 1 else (1 - b) * row[j] + b * row[j + 1]
            for row in self.times[i : i + 2]
        ]  # fmt: skip
        return max(0.0, rows[0] if len(rows) == 1 else (1 - a) * rows[0] + a * rows[1])


def _place(grid: Sequence[int], size: int) -> tuple[int, float]:
    """The cell of a grid that a size lies in, and how far along it lies there (negative below the grid)."""
    if len(grid) == 1:
        return 0, 0.0
    cell = min(max(bisect.bisect_right(grid, size) - 1, 0), len(grid) - 2)
    return cell, (size - grid[cell]) / (grid[cell + 1] - grid[cell])


@dataclass(frozen=True)
class Layer:
    """A linear layer as it is measured: its node, real shapes, and the sizes of its channel axes by the groups' widths."""

    linear: Linear
    x: Shape
    weight: Shape
    kind: np.dtype[Any]
    factors: tuple[Factor, Factor]
    free: tuple[bool, bool]

    @property
    def full(self) -> tuple[int, int]:
        """Input and output channels."""
        return self.linear.in_channels, self.linear.out_channels

    def signature(self) -> str:
        """Everything that its time depends on but the widths, as text; equal layers have equal ones."""
        node = self.linear.node
        attributes = sorted((key, str(value)) for key, value in node.attrs.items())
        has_bias = bool(self.linear.bias is not None and node.operand(self.linear.bias))
        parts = [node.kind, attributes, self.x, self.weight, str(self.kind), self.linear.weight_operand, has_bias]
        return json.dumps(parts)

    def points(self, shares: Sequence[float]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Widths to measure on both sides."""
        step = max(self.full[1] // self.full[0], 1) if self.linear.depthwise else self.linear.groups
        ins, outs = (
            _grid(size, max(base, 1), step, shares if free else (1.0,))
            for size, (base, _), free in zip(self.full, self.factors, self.free, strict=True)
        )
        return ins, outs


def _grid(size: int, least: int, groups: int, shares: Sequence[float]) -> tuple[int, ...]:
    """Widths near some shares of a size, rounded as widths are, the same in each convolution group; ascending."""
    each = size // groups
    step = budget.default_step(each)
    rounded = {min(max(step * round(share * each / step), -(-least // groups), 1), each) for share in shares}
    return tuple(groups * width for width in sorted(rounded | {each}))


class Profile:
    """Measures the layers of a network.

    Args:
        analysis: of the network.
        model: the network as it will be cut.
        shapes: of its tensors at the batch that counts.
        stopwatch: measures.
        seconds: how long all layers may take together, more or less.
        clock: seconds that have passed since some moment.
    """

    def __init__(
        self, analysis: Analysis, model: onnx.ModelProto, shapes: Mapping[str, Shape], stopwatch: Stopwatch, *,
        seconds: float = _SECONDS, clock: Clock = time.monotonic,
    ) -> None:  # fmt: skip
        self._analysis, self._graph, self._shapes, self._stopwatch = analysis, Graph(model), shapes, stopwatch
        self._seconds, self._clock = seconds, clock
        self._known = KnownTimes(stopwatch.title, stopwatch.threads)
        self._empty = 0.0

    def cost(self, whole: float, candidates: Collection[int], progress: Progress) -> Cost:
        """The network's time in milliseconds as a function of the groups' widths; `whole` at full widths.

        Args:
            whole: milliseconds of the whole network.
            candidates: groups whose width may change; of the others only the full width is measured.
            progress: told of each layer.

        Raises:
            ModelError: the engine can't run a layer alone.
        """
        layers = [self._layer(linear, candidates) for linear in self._analysis.context.linears]
        tables = self._measured(layers, progress)
        gone = self._gone(candidates)
        full = sum(table[2][-1][-1] for table in tables)
        scale = min(1.0, whole / full) if full else 1.0  # layers alone may take longer, together they have the caches
        terms: list[TimeTerm | Term] = [Term(max(whole - full, 0.0), ())]
        for layer, (ins, outs, times) in zip(layers, tables, strict=True):
            extra = gone.get(layer.linear.node.index, ())
            factors = (*layer.factors, *((1, ((group, 0),)) for group in extra))
            scaled = tuple(tuple(scale * value for value in row) for row in times)
            terms.append(TimeTerm(ins, outs, scaled, factors, extra))
        return Cost(terms, len(self._analysis.groups))

    def _layer(self, linear: Linear, candidates: Collection[int]) -> Layer:
        find, group_of = self._analysis.roots, self._analysis.group_of
        outputs = factor(linear.out_channels, linear.out_labels, group_of, find)
        inputs = factor(linear.in_channels, linear.in_labels, group_of, find)
        free = [any(group in candidates for group, _ in parts) for _, parts in (inputs, outputs)]
        if linear.depthwise:  # one width, the input's follows from it
            inputs, free = (linear.in_channels, ()), [False, free[1]]
        weight = self._graph.fold(linear.weight)
        assert weight is not None
        shape, kind = self._shapes[linear.x], weight.dtype
        return Layer(linear, shape, weight.shape, kind, (inputs, outputs), (free[0], free[1]))

    def _gone(self, candidates: Collection[int]) -> dict[int, tuple[int, ...]]:
        """For each node the groups that take it along when they vanish."""
        graph, found = self._graph, dict[int, tuple[int, ...]]()
        alive = graph.ancestors(graph.outputs)
        for group in candidates:
            entry = self._analysis.groups[group]
            if entry.vanishes:
                left = graph.ancestors(graph.outputs, stop=[layer.node.key for layer in entry.consumers])
                found |= {index: (*found.get(index, ()), group) for index in alive - left}
        return found

    def _measured(
        self, layers: Sequence[Layer], progress: Progress
    ) -> list[tuple[tuple[int, ...], tuple[int, ...], list[list[float]]]]:
        """Grid and times of each layer: full widths first, then as many others as time allows."""
        different = {layer.signature(): layer for layer in layers}
        progress.start("Timing layers", 2 * len(different))
        self._empty = self._stopwatch.one(*_nothing(), seconds=_LONGEST)
        started, before = self._clock(), len(self._known.times)
        each = self._each(different.values(), _GRIDS[0])
        for layer in different.values():
            self._time(layer, *layer.full, each)
            progress.advance()
        spent, measured = self._clock() - started, len(self._known.times) - before
        shares = self._affordable(different.values(), spent, measured)
        for layer in different.values():
            ins, outs = layer.points(shares)
            for i in ins:
                for j in outs:
                    self._time(layer, i, j, each)
            progress.advance()
        self._known.save()
        tables = []
        for layer in layers:
            ins, outs = layer.points(shares)
            tables.append((ins, outs, [[self._time(layer, i, j, each) for j in outs] for i in ins]))
        return tables

    def _each(self, layers: Iterable[Layer], shares: Sequence[float]) -> float:
        """Seconds for one width of one layer."""
        return float(np.clip(self._seconds / max(self._missing(layers, shares), 1), _SHORTEST, _LONGEST))

    def _missing(self, layers: Iterable[Layer], shares: Sequence[float]) -> int:
        """How many widths of these layers aren't known yet."""
        known = self._known.times
        return sum(
            _key(layer, i, j) not in known for layer in layers for ins, outs in [layer.points(shares)]
            for i in ins for j in outs
        )  # fmt: skip

    def _affordable(self, layers: Collection[Layer], spent: float, measured: int) -> Sequence[float]:
        """The finest grid that there is time for, going by what full widths took."""
        point = spent / measured if measured else 0.0
        left = self._seconds - spent
        return next((shares for shares in _GRIDS if self._missing(layers, shares) * point <= left), _GRIDS[-1])

    def _time(self, layer: Layer, inputs: int, outputs: int, seconds: float) -> float:
        """Milliseconds of a layer at some widths, without what an empty run takes."""
        key = _key(layer, inputs, outputs)
        if key not in self._known.times:
            model, feeds = alone(self._graph, layer, inputs, outputs)
            try:
                taken = self._stopwatch.one(model, feeds, seconds)
            except ModelError as error:
                title = layer.linear.node.title
                raise ModelError(
                    f"{title} can't be timed alone, as --target latency needs: {error} (--target macs=… needs no times)."
                ) from error
            self._known.times[key] = max(taken - self._empty, 0.0)
        return self._known.times[key]


def _key(layer: Layer, inputs: int, outputs: int) -> str:
    size = outputs * layer.linear.in_channels // layer.linear.out_channels if layer.linear.depthwise else inputs
    return f"{layer.signature()} {size}→{outputs}"


def alone(graph: Graph, layer: Layer, inputs: int, outputs: int) -> tuple[onnx.ModelProto, Feeds]:
    """A model of one layer with other numbers of channels, and feeds for it: noise."""
    linear, rng = layer.linear, np.random.default_rng(0)
    weight, groups = list(layer.weight), linear.groups
    node = onnx.NodeProto()
    assert linear.node.proto is not None
    node.CopyFrom(linear.node.proto)
    if linear.depthwise:
        inputs = outputs * linear.in_channels // linear.out_channels
        weight[0] = inputs if linear.node.op == "ConvTranspose" else outputs
        kept = [attribute for attribute in node.attribute if attribute.name != "group"]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute("group", inputs)])
    else:
        transposed = linear.node.op == "ConvTranspose"
        weight[linear.in_axis] = inputs if transposed else inputs // groups
        weight[linear.out_axis] = outputs // groups if transposed else outputs
    x = list(layer.x)
    x[linear.x_axis] = inputs
    values = {"weight": _noise(rng, weight, layer.kind)}
    operands = ["x", "weight"] if linear.weight_operand else ["weight", "x"]
    if linear.bias is not None and linear.node.operand(linear.bias):
        values["bias"] = _noise(rng, [outputs], layer.kind)
        operands.append("bias")
    del node.input[:], node.output[1:]
    node.input.extend(operands)
    node.output[0] = "y"
    kind = helper.np_dtype_to_tensor_dtype(layer.kind)
    body = helper.make_graph(
        [node], "layer", [helper.make_tensor_value_info("x", kind, x)],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )  # fmt: skip
    version = max(graph.model.ir_version, 4)
    model = helper.make_model(body, opset_imports=graph.model.opset_import, ir_version=version)
    return model, {"x": _noise(rng, x, layer.kind)}


def _noise(rng: np.random.Generator, shape: Sequence[int], kind: np.dtype[Any]) -> np.ndarray[Any, Any]:
    return np.resize(0.1 * rng.standard_normal(_WEIGHTS), tuple(shape)).astype(kind)


def _nothing() -> tuple[onnx.ModelProto, Feeds]:
    """A model that does nothing, to see what a run costs by itself."""
    tensors = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("x", "y")]
    body = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "nothing", tensors[:1], tensors[1:])
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return model, {"x": np.zeros(1, np.float32)}
