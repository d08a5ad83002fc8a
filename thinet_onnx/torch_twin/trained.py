"""Which constants of a graph are trained: weights of linear layers and norms, and what has one value for each channel.

A weight may reach its layer through other operators (Transpose, Cast, DequantizeLinear, the arithmetic of a weight norm):
trained is the constant itself. An element-wise operand is trained where it lies along the channels that a layer made, as
biases and folded norms do; input normalisation, anchors and strides are no weights and stay.
"""

from dataclasses import dataclass

from onnx import TensorProto

from thinet_onnx.graph import Graph, Node
from thinet_onnx.rules import RULES, elementwise, layout, mixing
from thinet_onnx.torch_twin.dtypes import FLOATS
from thinet_onnx.torch_twin.registry import OPERATORS

_KEEP_CHANNELS = frozenset({
    elementwise.unary, elementwise.broadcast, elementwise.quantize, layout.concat, layout.split, layout.slice_, layout.pad,
    mixing.pool, mixing.resize, mixing.per_channel_norm, mixing.softmax, mixing.across_channels,
})  # fmt: skip
_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "com.microsoft::FusedConv"})
_MATRIX = frozenset({"MatMul", "com.microsoft::FusedMatMul"})


@dataclass(frozen=True)
class Trained:
    """Names of constants: `weights` are trained, `statistics` are what norms learn from the data.

    `masters` are the weights of an integer type, with the DequantizeLinear node that reads each: these are trained
    in the units of its output.
    """

    weights: frozenset[str]
    masters: dict[str, Node]
    statistics: frozenset[str]


def find_trained(graph: Graph) -> Trained:
    """The trained constants of a graph, and the statistics of its norms."""
    weights: set[str] = set()
    statistics: set[str] = set()
    channels = channel_axes(graph)
    for node in graph.nodes:
        entry = OPERATORS.get(node.kind)
        if entry is None or node.key in graph.derived:
            continue
        for name in map(node.operand, entry.weights):
            weights.update(_leaves(graph, name))
        for name in node.inputs if entry.scales else ():
            if name in graph.derived and _lies_along(graph, name, channels.get(node.key)):
                weights.update(_leaves(graph, name))
        statistics.update(name for name in map(node.operand, entry.statistics) if name in graph.tensors)
    masters = {name: graph.consumers[name][0] for name in weights if graph.tensors[name].data_type not in FLOATS}
    return Trained(frozenset(weights), masters, frozenset(statistics - weights))


def _leaves(graph: Graph, name: str) -> list[str]:
    """The constants that an operand is made of and that can be trained; none if it isn't made of constants alone."""
    if name not in graph.derived:
        return []
    tensor = graph.tensors.get(name)
    if tensor is not None:
        return [name] if tensor.data_type in FLOATS else []
    node = graph.producer[name]
    if node.op == "DequantizeLinear" and node.inputs[0] in graph.tensors:
        return [node.inputs[0]] if len(graph.consumers[node.inputs[0]]) == 1 else []
    if node.op in ("DequantizeLinear", "QuantizeLinear"):
        return _leaves(graph, node.inputs[0])
    found = [leaf for operand in node.inputs for leaf in _leaves(graph, operand)]
    return found if len(found) == 1 else [leaf for leaf in found if _size(graph.tensors[leaf]) > 1]


def _size(tensor: TensorProto) -> int:
    size = 1
    for dim in tensor.dims:
        size *= dim
    return size


def _lies_along(graph: Graph, name: str, axis: int | None) -> bool:
    """Whether a constant has several values along one axis (counted from the end), and that is `axis`."""
    shape = tuple(graph.tensors[name].dims) if name in graph.tensors else ()
    if name not in graph.tensors:
        value = graph.fold(name)
        shape = () if value is None else value.shape
    return axis is not None and [place - len(shape) for place, size in enumerate(shape) if size > 1] == [axis]


def channel_axes(graph: Graph) -> dict[str, int]:
    """For each tensor that carries the channels of a linear layer their axis, counted from the end."""
    axes: dict[str, int] = {}
    for node in graph.nodes:
        axis = None if node.key in graph.derived else _channel_axis(graph, node, axes)
        if axis is not None:
            axes.update((name, axis) for name in node.outputs if name)
    return axes


def _channel_axis(graph: Graph, node: Node, axes: dict[str, int]) -> int | None:
    if node.kind in _CONVOLUTIONS:
        weight = graph.fold(node.inputs[1])
        return None if weight is None else 1 - weight.ndim
    if node.op in ("Gemm", "FusedGemm"):
        return -1
    if node.kind in _MATRIX:
        constant = [name in graph.derived for name in node.inputs]
        return -1 if constant[1] else -2 if constant[0] else None
    known = [axes[name] for name in node.inputs if name in axes]
    if not known:
        return None
    if node.op == "Transpose" and node.attrs.get("perm"):
        perm = list(node.attrs["perm"])
        return perm.index(len(perm) + known[0]) - len(perm)
    return known[0] if RULES.get(node.kind) in _KEEP_CHANNELS else None
