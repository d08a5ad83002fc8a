"""Branches of a sum that may go altogether: with no channel left inside, a branch adds a constant."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from thinet_onnx.labels import Ids
from thinet_onnx.rules.affine import follow
from thinet_onnx.rules.context import Context, Linear

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm"})


def vanishing(ctx: Context, groups: Sequence[tuple[Ids, tuple[Linear, ...]]]) -> list[bool]:
    """For each group whether the network still runs with none of its channels left, their readers giving their biases.

    So it is where every reader reads nothing else, its output only reaches a sum with a tensor of the same shape, and
    nothing else in the network needs a tensor that holds the channels.

    Args:
        ctx: the finished analysis.
        groups: for each the representatives of its labels, and the layers that read them.
    """
    owner = np.full(len(ctx.labels), -1, np.int64)
    for index, (roots, _) in enumerate(groups):
        owner[roots] = index
    uses = Counter(layer.weight for layer in ctx.linears)
    held = _held(ctx, owner)
    return [
        all(uses[layer.weight] == 1 and _ends(ctx, layer, owner, index) for layer in readers)
        and _closed(ctx, held.get(index, set()), {layer.node.key for layer in readers})
        for index, (_, readers) in enumerate(groups)
    ]


def _ends(ctx: Context, layer: Linear, owner: Ids, group: int) -> bool:
    """Whether a layer reads this group alone, and its output only reaches a sum."""
    if layer.node.kind not in _LAYERS or layer.in_labels is None:
        return False
    if (owner[ctx.labels.find(layer.in_labels)] != group).any():
        return False
    return follow(ctx.graph, layer, ctx.shapes).other is not None


def _held(ctx: Context, owner: Ids) -> dict[int, set[str]]:
    """The activations that hold channels of each group."""
    held: dict[int, set[str]] = {}
    for name, axes in ctx.tensors.items():
        if name not in ctx.graph.derived:
            for vector in axes.values():
                for group in np.unique(owner[ctx.labels.find(vector)]).tolist():
                    held.setdefault(group, set()).add(name)
    return held


def _closed(ctx: Context, names: set[str], ends: set[str]) -> bool:
    """Whether all that is made of these tensors leads to the layers that end the branch, and to nothing else."""
    graph = ctx.graph
    inside = {node.key: node for name in names for node in graph.consumers.get(name, []) if node.key not in ends}
    inside |= {graph.producer[name].key: graph.producer[name] for name in names if name in graph.producer}
    made = {name for node in inside.values() for name in node.outputs if name}
    readers = {node.key for name in made for node in graph.consumers.get(name, [])}
    if any(not any(graph.consumers.get(name) for name in node.outputs) for node in inside.values()):
        return False  # a node that no one needs would stay behind, and run
    return made.isdisjoint(graph.outputs) and readers <= inside.keys() | ends
