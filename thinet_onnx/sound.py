"""Whether a model is sound enough to be worked with: the first thing that is asked of a file, before anything in it is used.

Names are text, tensors hold as many values as they declare, every attribute has the type it says, every name is made once and
somewhere. What is asked here is what the package itself relies on, and what would take ONNX or ONNX Runtime down instead of
being refused; the rest of the standard is for onnx.checker and ONNX Runtime to judge.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from typing import Any

import onnx
from onnx import AttributeProto, TensorProto

from thinet_onnx import external, protos
from thinet_onnx.errors import ModelError

_ATTRIBUTES = frozenset(AttributeProto.AttributeType.values()) - {AttributeProto.UNDEFINED}
_HOLDERS = {AttributeProto.TENSOR: "t", AttributeProto.GRAPH: "g", AttributeProto.SPARSE_TENSOR: "sparse_tensor"}
_MOST = 1 << 40  # elements that a tensor may declare; a size beyond is a damaged one
MOST_AXES = 32  # of a tensor: NumPy's bound before 2.0
_MOST_NODES = 1_000_000  # of a graph with its functions inlined


def check(model: onnx.ModelProto, name: str = "the model") -> None:
    """Refuse a model that can't be worked with.

    Args:
        model: as it was read, its external data still outside.
        name: what messages call it.

    Raises:
        ModelError: with the first thing that is wrong.
    """
    complaint = _damage(model) or _disorder(model.graph) or _expansion(model)
    if complaint is not None:
        raise ModelError(f"{name} is damaged ({complaint}); export or copy it again.")


def _damage(model: onnx.ModelProto) -> str | None:
    """What is wrong with a single tensor, attribute or node, wherever it is."""
    typed = bool(model.opset_import)  # before operator sets, attributes had no types
    for message in protos.walk(model):
        if not protos.is_text(message):
            return "a name in it is no text in UTF-8"
        complaint = None
        if isinstance(message, onnx.TensorProto):
            complaint = _tensor(message)
        elif isinstance(message, onnx.TensorShapeProto):
            axes = len(message.dim)
            complaint = f"a tensor has {axes} axes, where {MOST_AXES} are the most" if axes > MOST_AXES else None
        elif isinstance(message, onnx.AttributeProto):
            complaint = _attribute(message) if typed else None
        elif isinstance(message, onnx.NodeProto):
            complaint = _node(message)
        if complaint is not None:
            return complaint
    return _operator_sets(model)


def _tensor(tensor: onnx.TensorProto) -> str | None:
    if tensor.data_type not in TensorProto.DataType.values() or not tensor.data_type:
        return f"the tensor {tensor.name!r} has the data type {tensor.data_type}, which ONNX doesn't know"
    if len(tensor.dims) > MOST_AXES:
        return f"the tensor {tensor.name!r} has {len(tensor.dims)} axes, where {MOST_AXES} are the most"
    sizes = "×".join(map(str, tensor.dims)) or "1"
    if min(tensor.dims, default=0) < 0 or max(protos.elements(tensor), *tensor.dims, 0) > _MOST:
        return f"the tensor {tensor.name!r} has the shape {sizes}"
    if external.is_external(tensor):
        return None  # `external` compares it with its file
    have, want = protos.amount(tensor)
    if have != want:
        unit = "bytes" if tensor.HasField("raw_data") else "values"
        return f"the tensor {tensor.name!r} of shape {sizes} should hold {want:,} {unit}, but holds {have:,}"
    return None


def _attribute(attribute: onnx.AttributeProto) -> str | None:
    holder = _HOLDERS.get(attribute.type)
    if attribute.type not in _ATTRIBUTES or (holder and not attribute.HasField(holder) and not attribute.ref_attr_name):
        return f"the attribute {attribute.name!r} has no value of a type that ONNX knows"
    return None


def _node(node: onnx.NodeProto) -> str | None:
    if not node.op_type:
        return f"the node {node.name!r} has no operator"
    if not any(node.output):
        return f"the node {node.name or node.op_type!r} has no output"
    return None


def _operator_sets(model: onnx.ModelProto) -> str | None:
    versions: dict[str, int] = {}
    for entry in model.opset_import:
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        if versions.setdefault(domain, entry.version) != entry.version:
            return f"it names two versions of the operator set {domain or 'ai.onnx'!r}"
    return None


def _disorder(graph: onnx.GraphProto) -> str | None:
    """What is wrong with the names of the main graph: made twice, or never."""
    constants = [tensor.name for tensor in graph.initializer]
    constants += [tensor.values.name for tensor in graph.sparse_initializer]
    inputs = [value.name for value in graph.input]
    made = [name for node in graph.node for name in node.output if name]
    known = {*constants, *inputs}
    for names in (constants, inputs, [*made, *known], [value.name for value in graph.output]):
        if (twice := _first_twice(names)) is not None:
            return f"there are two tensors of the name {twice!r}"
    known.update(made)
    for node in graph.node:
        for name in node.input:
            if name and name not in known:
                return f"{node.name or node.op_type!r} reads {name!r}, which nothing makes"
    for value in graph.output:
        if value.name not in known:
            return f"its output {value.name!r} is made by nothing"
    return None if graph.output else "it has no output"


def _expansion(model: onnx.ModelProto) -> str | None:
    """What is wrong with the functions of a model: one calls itself, or they call each other without end or nearly so."""
    functions = {(function.domain, function.name): function for function in model.functions}
    calls = {key: [(node.domain, node.op_type) for node in _nodes(function)] for key, function in functions.items()}
    sizes: dict[tuple[str, str], int] = {}
    try:
        for key in TopologicalSorter(
            {k: [c for c in called if c in calls] for k, called in calls.items()}
        ).static_order():
            sizes[key] = sum(sizes.get(call, 1) for call in calls[key])
    except CycleError as error:
        return f"its function {error.args[1][0][1]!r} calls itself"
    total = sum(sizes.get((node.domain, node.op_type), 1) for node in _nodes(model.graph))
    return f"its functions are {total:,} nodes when written out" if total > _MOST_NODES else None


def _nodes(body: Any) -> Iterator[onnx.NodeProto]:
    """All nodes of a graph or a function, those in bodies included."""
    return (message for message in protos.walk(body) if isinstance(message, onnx.NodeProto))


def _first_twice(names: Iterable[str]) -> str | None:
    return next((name for name, count in Counter(names).items() if count > 1), None)
