"""The layers to be observed and refitted: weights that read prunable channels, in the order they are reached.

A consumer is a *weight*, not a node: one that is used at several places (a detection head on five levels) is observed at
all of them and refitted once.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from thinet_onnx.graph import Array, Graph
from thinet_onnx.groups import Analysis
from thinet_onnx.labels import Ids
from thinet_onnx.rules import Linear
from thinet_onnx.rules.affine import follow
from thinet_onnx.unfold import weight_matrix, weight_operand


@dataclass(eq=False)
class Consumer:
    """One weight with all its uses.

    `matrix` (G, D/G, n) holds the weights of each convolution group, `alpha` included; `bias` (D) is what is added.
    `keys` (n): for each column the unit that it reads, numbered through all groups of channels (`Analysis` order), −1 for
    a channel that stays. `scale` (D): known per-channel factors behind the layer. `other`: the stream that each use's
    output is added to ("" where there is none, or where it isn't final when the layer is reached). A `plain` layer puts out
    nothing but these weights times what it reads, plus a bias, in float32; where the bias isn't `bias_known` (it is computed
    at run time) `bias` is zero.
    """

    uses: tuple[Linear, ...]
    operand: Array
    matrix: NDArray[np.float32]
    bias: NDArray[np.float64]
    can_bias: bool
    keys: Ids
    scale: NDArray[np.float64]
    other: list[str] = field(default_factory=list)
    plain: bool = False
    bias_known: bool = True

    @property
    def layer(self) -> Linear:
        """The first use."""
        return self.uses[0]

    @property
    def name(self) -> str:
        """What people call it."""
        return self.layer.node.title

    @property
    def columns(self) -> int:
        """n, the width of an input row of one convolution group."""
        return int(self.matrix.shape[2])

    @property
    def observed(self) -> list[str]:
        """Tensors to look at: inputs of all uses, and the streams they are added to."""
        return [use.x for use in self.uses] + [name for name in self.other if name]

    @property
    def answered(self) -> list[str]:
        """Tensors to look at in the original while another network's inputs are seen: outputs, streams they are added to."""
        own = [use.node.key if self.plain else use.x for use in self.uses]
        return own + [name for name in self.other if name]

    def narrowed(self, columns: NDArray[np.bool_]) -> "Consumer":
        """The same layer reading some columns (n) only: of some channels, for all of a channel's taps alike."""
        return replace(self, matrix=self.matrix[:, :, columns], keys=self.keys[columns])

    def inverse_scale(self) -> NDArray[np.float32]:
        """1 / scale behind the layer; 0 for channels that are all but switched off there."""
        usable = np.abs(self.scale) > 1e-3 * max(float(np.abs(self.scale).max()), 1e-30)
        return np.where(usable, 1.0 / np.where(usable, self.scale, 1.0), 0.0).astype(np.float32)

    def rebuilt(self, matrix: NDArray[np.float64]) -> Array:
        """The weight operand for a new matrix."""
        layer = self.layer
        return weight_operand(matrix / layer.alpha, self.operand, layer.in_axis, layer.groups, layer.window)


def unit_offsets(analysis: Analysis) -> Ids:
    """Where each group's units begin in the numbering through all groups; one more entry than groups."""
    return np.concatenate([[0], np.cumsum(analysis.sizes)]).astype(np.int64)


def collect(analysis: Analysis, layers: Iterable[Linear] | None = None) -> list[Consumer]:
    """All weights that read a channel of some group, in topological order of their last use.

    Args:
        analysis: the graph's.
        layers: the linear layers to take; all by default.
    """
    by_weight: dict[str, list[Linear]] = {}
    for layer in analysis.context.linears if layers is None else layers:
        if not layer.depthwise and layer.in_labels is not None:
            by_weight.setdefault(layer.weight, []).append(layer)
    consumers = []
    for uses in by_weight.values():
        consumer = describe(analysis, uses)
        if consumer is not None and (consumer.keys >= 0).any() and _alike(uses, _keys(analysis, uses[0]), analysis):
            consumers.append(consumer)
    consumers.sort(key=lambda consumer: max(use.node.index for use in consumer.uses))
    _settle_sums(analysis, consumers)
    return consumers


def late_biases(analysis: Analysis, consumers: Iterable[Consumer]) -> dict[Consumer, str]:
    """Biases that are computed when the network runs, but are the same for all data: constants that take on the type of one."""
    names = {c: c.layer.node.operand(c.layer.bias) for c in consumers if not c.bias_known and c.layer.bias is not None}
    return {consumer: name for consumer, name in names.items() if _same_for_all(analysis.graph, name)}


def _same_for_all(graph: Graph, name: str) -> bool:
    if name in graph.derived:
        return True
    node = graph.producer.get(name)
    if node is None or node.captured or node.op.startswith("Random"):
        return False
    values = node.inputs[:1] if node.op == "CastLike" else node.inputs
    return all(_same_for_all(graph, operand) for operand in values if operand)


def describe(analysis: Analysis, uses: list[Linear]) -> Consumer | None:
    """A weight as the numbers that a refit needs; None where it isn't known, or not of floats."""
    graph, layer = analysis.graph, uses[0]
    operand = graph.fold(layer.weight)
    if operand is None or operand.dtype.kind != "f":
        return None
    per_group = _keys(analysis, layer)[: layer.in_channels // layer.groups]
    matrix = weight_matrix(operand, layer.in_axis, layer.groups, layer.window)
    alone = len({use.node.operand(2) for use in uses}) == 1
    return Consumer(
        tuple(uses),
        operand,
        matrix if layer.alpha == 1.0 else matrix * layer.alpha,
        _bias(analysis, layer),
        layer.bias is not None and layer.beta == 1.0 and alone,
        np.repeat(per_group, layer.taps),
        follow(graph, layer, analysis.shapes).scale,
        plain=all(_is_plain(use, operand) for use in uses),
        bias_known=_folds(analysis, layer),
    )


def _folds(analysis: Analysis, layer: Linear) -> bool:
    """Whether the bias is known before the network runs; so is one that isn't there."""
    name = layer.node.operand(layer.bias) if layer.bias is not None else ""
    return not name or analysis.graph.fold(name) is not None


def _is_plain(layer: Linear, operand: Array) -> bool:
    return operand.dtype == np.float32 and layer.node.kind in ("Conv", "ConvTranspose", "Gemm", "MatMul")


def _keys(analysis: Analysis, layer: Linear) -> Ids:
    """For each input channel the unit that it is, numbered through all groups; −1 for those that stay."""
    if layer.depthwise or layer.in_labels is None:
        return np.full(layer.in_channels, -1, np.int64)
    groups, units = analysis.units(layer)
    return np.where(groups >= 0, unit_offsets(analysis)[groups] + units, -1)


def _alike(uses: list[Linear], keys: Ids, analysis: Analysis) -> bool:
    """Whether all uses read the same units (they do, since they share the weight's labels) and none feeds another."""
    if not all(np.array_equal(_keys(analysis, use), keys) for use in uses[1:]):
        return False
    if len(uses) == 1:
        return True
    above = analysis.graph.ancestors([use.x for use in uses])
    return not any(use.node.index in above for use in uses)


def _bias(analysis: Analysis, layer: Linear) -> NDArray[np.float64]:
    name = layer.node.operand(layer.bias) if layer.bias is not None else ""
    value = analysis.graph.fold(name) if name else None
    if value is None:
        return np.zeros(layer.out_channels)
    return np.broadcast_to(np.asarray(value, np.float64).ravel() * layer.beta, (layer.out_channels,)).copy()


def _settle_sums(analysis: Analysis, consumers: list[Consumer]) -> None:
    """Let a consumer take in its stream's loss if everything that writes the stream is final by then."""
    graph = analysis.graph
    number = {use.node.index: place for place, consumer in enumerate(consumers) for use in consumer.uses}
    last: dict[str, int] = {}  # for each tensor the last consumer that it depends on
    for node in graph.nodes:
        above = max((last.get(name, -1) for name in (*node.inputs, *node.captured)), default=-1)
        last.update(dict.fromkeys(node.outputs, max(above, number.get(node.index, -1))))
    for place, consumer in enumerate(consumers):
        for use in consumer.uses:
            other = follow(graph, use, analysis.shapes).other
            final = other is not None and last.get(other, -1) <= place
            if final and other and last.get(other, -1) == place:  # another use of the same weight may write it
                final = use.node.index not in graph.ancestors([other])
            consumer.other.append(other if final and other else "")
