"""Branches of a sum that may go altogether: with no channel left inside, a branch adds a constant."""

from thinet_onnx.graph import Node
from thinet_onnx.labels import Ids
from thinet_onnx.rules.affine import follow
from thinet_onnx.rules.context import Context, Linear

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm"})


def can_vanish(ctx: Context, roots: Ids, readers: tuple[Linear, ...]) -> bool:
    """Whether the network still runs when none of these channels is left and their readers answer with their biases.

    So it is where every reader reads nothing else, its output only reaches a sum with a tensor of the same shape, and
    nothing else in the network needs any tensor that holds the channels.

    Args:
        ctx: the finished analysis.
        roots: representatives of the labels of one group.
        readers: the layers that read them.
    """
    mine = set(roots.tolist())
    uses = {layer.weight for layer in readers}
    if sum(layer.weight in uses for layer in ctx.linears) != len(readers):
        return False  # a weight that is used elsewhere as well
    for layer in readers:
        if layer.node.kind not in _LAYERS or layer.in_labels is None:
            return False
        if not mine.issuperset(ctx.labels.find(layer.in_labels).tolist()):
            return False
        if follow(ctx.graph, layer, ctx.shapes).other is None:
            return False
    live = _live(ctx, {layer.node.index for layer in readers})
    return not any(_holds(ctx, node, mine) for node in ctx.graph.nodes if node.index in live)


def _live(ctx: Context, erased: set[int]) -> set[int]:
    """Nodes that the outputs still need once some are replaced by constants."""
    return ctx.graph.ancestors(ctx.graph.outputs, [n.key for n in ctx.graph.nodes if n.index in erased])


def _holds(ctx: Context, node: Node, roots: set[int]) -> bool:
    """Whether a node reads or makes an activation with one of these labels."""
    names = [name for name in (*node.inputs, *node.outputs) if name not in ctx.graph.derived]
    vectors = (vector for name in names for vector in ctx.tensors.get(name, {}).values())
    return any(not roots.isdisjoint(ctx.labels.find(vector).tolist()) for vector in vectors)
