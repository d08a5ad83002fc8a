"""What happens to a linear layer's output on its way to a sum: per-channel scales that are known in advance.

A residual Add tells how much of the stream the pruned network has lost already; that loss is added to the target of the
layer that writes into the sum, divided by the scales (BatchNorm, Mul by a constant) in between.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thinet_onnx.graph import Graph, Node
from thinet_onnx.rules.context import Linear

Scale = Callable[[Graph, Node, str], NDArray[Any] | None]


@dataclass(frozen=True)
class Path:
    """`scale` (D): what the outputs are multiplied by; `other`: the stream they are then added to, if they are."""

    scale: NDArray[np.float64]
    other: str | None


def _one(_graph: Graph, _node: Node, _name: str) -> NDArray[Any]:
    return np.ones(1)


def _batch_norm(graph: Graph, node: Node, name: str) -> NDArray[Any] | None:
    gamma, variance = graph.fold(node.inputs[1]), graph.fold(node.inputs[4])
    if name != node.inputs[0] or gamma is None or variance is None:
        return None
    squared = np.asarray(variance, np.float64) + float(node.attrs.get("epsilon", 1e-5))
    return np.asarray(gamma, np.float64) / np.sqrt(squared) if (squared > 0).all() else None


def _factor(graph: Graph, node: Node, name: str) -> NDArray[Any] | None:
    other = node.inputs[1] if node.inputs[0] == name else node.inputs[0]
    value = graph.fold(other)
    if value is None or (node.op == "Div" and node.inputs[0] != name):
        return None
    factor = np.asarray(value, np.float64)
    if node.op == "Mul":
        return factor
    return 1.0 / factor if factor.all() else None


def _shift(graph: Graph, node: Node, name: str) -> NDArray[Any] | None:
    other = [operand for operand in node.inputs if operand != name]
    return np.ones(1) if len(other) == 1 and other[0] in graph.derived and node.inputs[0] == name else None


AFFINE: dict[str, Scale] = {
    "Identity": _one, "Dropout": _one, "BatchNormalization": _batch_norm, "Mul": _factor, "Div": _factor, "Add": _shift,
    "Sub": _shift,
}  # fmt: skip
SUMS = frozenset({"Add", "Sum"})


def follow(graph: Graph, layer: Linear, shapes: dict[str, tuple[int, ...]]) -> Path:
    """Walk from a layer's output through per-channel scales as long as nobody else reads it."""
    scale = np.ones(layer.out_channels)
    name = layer.node.key
    shape = shapes.get(name, ())
    while name not in graph.outputs and len(readers := graph.consumers.get(name, [])) == 1:
        node = readers[0]
        others = [operand for operand in node.inputs if operand and operand != name]
        if node.op in SUMS and len(others) == 1 and others[0] not in graph.derived:
            return Path(scale, others[0] if shapes.get(others[0]) == shape else None)
        rule = AFFINE.get(node.kind)
        factor = rule(graph, node, name) if rule else None
        if factor is None or factor.size not in (1, layer.out_channels):
            break
        scale = scale * factor.ravel()
        name = node.key
    return Path(scale, None)
