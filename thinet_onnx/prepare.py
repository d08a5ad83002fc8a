"""The model as it is pruned: functions inlined, nodes in order, computed weights folded, very old files renewed."""

from graphlib import CycleError, TopologicalSorter

import numpy as np
import onnx
import onnx.inliner
from onnx import numpy_helper

from thinet_onnx import legacy, protos
from thinet_onnx.errors import ModelError
from thinet_onnx.graph import Array, Graph

_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "FusedConv", "FusedGemm", "FusedMatMul"})
_NOT_FOLDED = frozenset({"QuantizeLinear", "DequantizeLinear", "ConstantOfShape"})


def prepare(model: onnx.ModelProto, name: str = "the model") -> onnx.ModelProto:
    """The model in the form that is analysed and cut; the same object where nothing needs to be done.

    Args:
        model: left alone.
        name: what messages call it.

    Raises:
        ModelError: its nodes form a cycle, its functions can't be inlined, or it is older than operator sets and uses an
            operator that changed since.
    """
    if model.functions:
        model = _inlined(model, name)
    if not model.opset_import:
        model = legacy.renewed(model, name)
    model = _in_order(model, name)
    return _with_weights_computed(model)


def _inlined(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    try:
        return onnx.inliner.inline_local_functions(model)
    except (RuntimeError, onnx.checker.ValidationError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{name}: its functions can't be inlined ({reason}); export it again without them.") from None


def _in_order(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Put every node behind those that make what it reads, as the standard wants it; some tools don't."""
    nodes = list(model.graph.node)
    maker = {output: index for index, node in enumerate(nodes) for output in node.output if output}
    reads = [{*node.input, *protos.captured(node)} for node in nodes]
    before = {index: sorted({maker[read] for read in names if read in maker}) for index, names in enumerate(reads)}
    if all(other < index for index, others in before.items() for other in others):
        return model
    try:
        order = list(TopologicalSorter(before).static_order())
    except CycleError as error:
        about = nodes[error.args[1][0]]
        raise ModelError(
            f"{name} is damaged (its nodes form a cycle through {about.name or about.op_type!r}); export or copy it again."
        ) from None
    result = onnx.ModelProto()
    result.CopyFrom(model)
    protos.set_nodes(result, [nodes[index] for index in order])
    return result


def _with_weights_computed(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fold weights that are computed, and not only moved, from constants: weight norm and the like.

    What would make the file larger (constants that are expanded) and what is quantised stays as it is.
    """
    graph = Graph(model)
    folded: dict[str, Array] = {}
    for node in graph.nodes:
        for name in node.inputs if node.op in _WEIGHTED else ():
            value = _computed(graph, name) if name in graph.derived and name not in graph.tensors else None
            if value is not None:
                folded[name] = value
    if not folded:
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    sources = [name for node in graph.nodes if set(node.outputs) & set(folded) for name in node.inputs]
    protos.set_nodes(result, [node for node in result.graph.node if not set(node.output) & set(folded)])
    for name, value in folded.items():
        protos.add_initializer(result, numpy_helper.from_array(value, name))
    protos.drop_unread(result, sources)
    return result


def _computed(graph: Graph, name: str) -> Array | None:
    """The value of a derived tensor that is worth folding, else None."""
    indices = graph.ancestors([name])
    above = [node for node in graph.nodes if node.index in indices]
    if len(graph.producer[name].outputs) > 1 or graph.moved_from(name) or any(n.op in _NOT_FOLDED for n in above):
        return None
    sources = {operand for node in above for operand in node.inputs if operand in graph.tensors}
    largest = max(int(np.prod(graph.tensors[source].dims, dtype=np.int64)) for source in sources)
    value = graph.fold(name) if largest > 1 else None
    if value is None or value.dtype.kind != "f" or not 1 < value.size <= largest:
        return None
    return value
