"""Channel shuffles written as Reshape, Transpose, Reshape become one Gather, which loses any channel by itself.

As reshapes, a shuffle forces the channels of its g rows to go together, and a chain of them (ShuffleNet) ties a whole stage
into one. The same permutation with its indices written down ties nothing. A run of layout operators is recognised by what
it does to the positions of the elements, whatever the operators are.
"""

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from thinet_onnx import protos
from thinet_onnx.graph import Array, Graph, Node, Shape, run_node, shape_values
from thinet_onnx.labels import spread

_LAYOUT = frozenset({"Reshape", "Transpose", "Slice", "Split", "Gather", "Squeeze", "Unsqueeze", "Flatten", "Identity"})
_LONGEST = 8  # operators in a run
_LARGEST = 1 << 22  # elements of a tensor that is looked at

Pick = tuple[str, int, tuple[int, ...]]
"""A tensor, an axis of it counted from the last (-1), and the indices taken along that axis."""


def unroll(model: onnx.ModelProto, shapes: Sequence[dict[str, Shape]]) -> onnx.ModelProto:
    """The model with its shuffles as Gather nodes; the same object where it has none.

    Args:
        model: left alone.
        shapes: the shape of every tensor in one run or in several (other batches); a run of operators counts as a
            shuffle if it is the same one in all.
    """
    graph = Graph(model)
    values = [shape_values(graph, known) for known in shapes]
    found: dict[str, Pick] = {}
    for node in graph.nodes:
        if node.kind != "Reshape" or node.inputs[0] in graph.derived:
            continue
        first, *others = (_picks(graph, node, *known) for known in zip(shapes, values, strict=True))
        for name, pick in first.items():
            if all(other.get(name) == pick for other in others):
                found.setdefault(name, pick)
    whole = {name for name in found if all(output in found for output in graph.producer[name].outputs)}
    return _rewritten(model, {name: found[name] for name in whole}) if whole else model


def _picks(graph: Graph, start: Node, shapes: dict[str, Shape], values: dict[str, Array]) -> dict[str, Pick]:
    """The tensors behind a Reshape that are what it reads, with indices picked along one axis."""
    source = start.inputs[0]
    shape = shapes.get(source)
    if not shape or np.prod(shape, dtype=np.int64) > _LARGEST:
        return {}
    found: dict[str, Pick] = {}
    pending = [(start, [spread(np.arange(size), axis, shape) for axis, size in enumerate(shape)], 1)]
    while pending:
        node, places, length = pending.pop()
        for name, moved in _moved(graph, node, places, shapes, values).items():
            picked = _picked(moved, shape)
            if picked is not None:
                if length > 1:
                    found[name] = (source, *picked)
            elif length < _LONGEST:
                readers = graph.consumers.get(name, [])
                pending += [(r, moved, length + 1) for r in readers if r.kind in _LAYOUT and r.inputs[0] == name]
    return found


def _moved(
    graph: Graph, node: Node, places: list[NDArray[np.int64]], shapes: dict[str, Shape], values: dict[str, Array]
) -> dict[str, list[NDArray[np.int64]]]:
    """What a layout operator makes of arrays of positions, for each output; nothing if its operands aren't known."""
    if node.op == "Reshape":
        target = shapes.get(node.key)
        return {} if target is None else {node.key: [layer.reshape(target) for layer in places]}
    if node.op == "Transpose":
        return {node.key: [layer.transpose(node.attrs.get("perm")) for layer in places]}
    operands = [values.get(name) if name else None for name in node.inputs[1:]]
    if any(value is None and name for value, name in zip(operands, node.inputs[1:], strict=True)):
        return {}
    results = [run_node(node, graph.opset, [layer, *operands]) for layer in places]
    return {name: [result[index] for result in results] for index, name in enumerate(node.outputs)}


def _picked(places: list[NDArray[np.int64]], shape: Shape) -> tuple[int, tuple[int, ...]] | None:
    """The axis and indices, if the positions along every other axis are in their place.

    The axis is counted from the last: OpenVINO (to 2026.4 at least) takes a Gather that permutes an axis counted from the
    first for a swap of colours, and folds it into the next convolution's weights the wrong way round, which is right for
    permutations that are their own inverse only.
    """
    if places[0].ndim != len(shape):
        return None
    chosen = None
    for axis, layer in enumerate(places):
        line = layer[tuple(slice(None) if a == axis else slice(0, 1) for a in range(layer.ndim))]
        if not (layer == line).all():
            return None
        if not np.array_equal(line.ravel(), np.arange(shape[axis])):
            if chosen is not None:
                return None
            chosen = axis - len(shape), tuple(line.ravel().tolist())
    return chosen


def _rewritten(model: onnx.ModelProto, picks: dict[str, Pick]) -> onnx.ModelProto:
    """A copy with Gather nodes in the place of the operators that made these tensors, and without what is then unread."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    taken = protos.names(model)
    nodes: list[onnx.NodeProto] = []
    unread: list[str] = []
    for node in result.graph.node:
        made = [name for name in node.output if name in picks]
        if not made:
            nodes.append(node)
            continue
        unread += node.input
        for name in made:
            source, axis, indices = picks[name]
            constant = protos.free_name(f"{name}_indices", taken)
            protos.add_initializer(result, numpy_helper.from_array(np.array(indices, np.int64), constant))
            title = node.name if len(made) == 1 else f"{node.name}_{name}" if node.name else ""
            nodes.append(helper.make_node("Gather", [source, constant], [name], title, axis=axis))
    protos.set_nodes(result, nodes)
    protos.drop_unread(result, unread)
    return result
