"""A consumer and the one layer that makes all of its channels, with nothing but element-wise operators in between.

Such a pair can be refitted at once (`joint`): convolution → BatchNorm → activation → convolution, and the like.
"""

from dataclasses import dataclass

import numpy as np

from thinet_onnx.consumers import Consumer, describe
from thinet_onnx.graph import Graph, Node
from thinet_onnx.groups import Analysis
from thinet_onnx.rules import Linear

POINTWISE = frozenset(
    {
        "Abs", "Add", "BatchNormalization", "Celu", "Clip", "Div", "Dropout", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid",
        "HardSwish", "Identity", "LeakyRelu", "Log", "Max", "Min", "Mish", "Mul", "Neg", "PRelu", "Pow", "Relu", "Selu",
        "Sigmoid", "Softplus", "Softsign", "Sqrt", "Sub", "Swish", "Tanh", "ThresholdedRelu",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """`producer` answers `z` (of `rank` axes), the nodes of `chain` make the consumer's input of it.

    Nobody else reads anything between the two."""

    producer: Consumer
    consumer: Consumer
    chain: tuple[Node, ...]
    rank: int

    @property
    def z(self) -> str:
        """What the producer puts out."""
        return self.producer.layer.node.key

    @property
    def observed(self) -> list[str]:
        """Tensors of the pruned network to look at: the producer's input, and the stream that the consumer adds to."""
        return [self.producer.layer.x, *(name for name in self.consumer.other if name)]


def find(analysis: Analysis, consumers: list[Consumer]) -> dict[Consumer, Pair]:
    """The pair of each consumer that is one of a pair."""
    graph = analysis.graph
    layers = {layer.node.key: layer for layer in analysis.context.linears}
    known = {use.node.key: consumer for consumer in consumers for use in consumer.uses}
    weights = [layer.weight for layer in analysis.context.linears]
    pairs = {}
    for consumer in consumers:
        if not consumer.plain or not _plain(analysis, consumer.layer, weights) or len(consumer.uses) > 1:
            continue
        chain = _chain(graph, consumer.layer, layers)
        if chain is None:
            continue
        z, nodes = chain
        layer = layers[z]
        if not _plain(analysis, layer, weights) or not _fit(analysis, layer, consumer.layer):
            continue
        if graph.producer[z].index in graph.ancestors([name for name in consumer.other if name]):
            continue  # what it adds to would have to be known before the producer is
        producer = known.get(z) or describe(analysis, [layer])
        if producer is not None:
            pairs[consumer] = Pair(producer, consumer, nodes, len(analysis.shapes[z]))
    return pairs


def _plain(analysis: Analysis, layer: Linear, weights: list[str]) -> bool:
    """A float32 weight used once, in one convolution group or depthwise."""
    if layer.node.kind not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):  # others may activate what they answer
        return False
    value = analysis.graph.fold(layer.weight)
    single = value is not None and value.dtype == np.float32 and weights.count(layer.weight) == 1
    return single and (layer.groups == 1 or (layer.depthwise and layer.in_channels == layer.out_channels))


def _fit(analysis: Analysis, first: Linear, second: Linear) -> bool:
    """Whether channel i of the producer's output is channel i of the consumer's input, position by position."""
    before, after = (analysis.shapes.get(name) for name in (first.node.key, second.x))
    if before is None or before != after or second.depthwise:
        return False
    rank = len(before)
    same = first.y_axis % rank == second.x_axis % rank
    return same and first.y_axis % rank > 0 and first.out_channels == second.in_channels


def _chain(graph: Graph, layer: Linear, layers: dict[str, Linear]) -> tuple[str, tuple[Node, ...]] | None:
    """The producer's output and the nodes between it and a layer; None if there is more than element-wise operators."""
    inner: dict[int, Node] = {}
    sources, pending, between = set[str](), [layer.x], set[str]()
    while pending:
        name = pending.pop()
        between.add(name)
        node = graph.producer.get(name)
        if node is None or name in graph.outputs:
            return None
        if name in layers:
            sources.add(name)
            continue
        if node.kind not in POINTWISE or node.captured or name != node.key:
            return None
        inner[node.index] = node
        pending += [operand for operand in node.inputs if operand and operand not in graph.derived | between]
    readers = {index for name in between for index in _readers(graph, name)}
    if len(sources) != 1 or readers != {*inner, layer.node.index} or _readers(graph, layer.x) != {layer.node.index}:
        return None
    return sources.pop(), tuple(inner[index] for index in sorted(inner))


def _readers(graph: Graph, name: str) -> set[int]:
    """Nodes that read the values of a tensor, rather than its shape or data type alone."""
    return {
        node.index
        for node in graph.consumers.get(name, [])
        if node.op not in ("Shape", "Size") and not (node.op == "CastLike" and name != node.inputs[0])
    }
