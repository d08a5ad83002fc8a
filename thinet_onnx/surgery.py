"""Apply a plan to a model with onnx-graphsurgeon. Dumb on purpose: it slices, sets integers, replaces weights, no more.

graphsurgeon's export forgets doc strings, metadata and whatever it has no field for; so only the nodes and constants that
changed are taken over from it into a copy of the original file.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import numpy_helper
from onnx_graphsurgeon.logger import G_LOGGER

from thinet_onnx import external, protos
from thinet_onnx.graph import Graph, run_node
from thinet_onnx.plan import ErasedLayer, IntEdit, PrunePlan, TensorCut

Array = np.ndarray[Any, Any]


G_LOGGER.severity = G_LOGGER.ERROR  # it writes of bfloat16 constants on the standard output

_DATA_FIELDS = (
    "dims", "raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "external_data",
    "data_location",
)  # fmt: skip
_ELEMENTWISE = frozenset({"Cast", "CastLike", "QuantizeLinear", "DequantizeLinear"})
_SHAPE_READERS = frozenset({"Shape", "Size"})  # they don't mind other values


@dataclass(frozen=True)
class Refit:
    """New values for a linear layer: `weight` replaces operand `weight_operand` of the node whose first output is `node`.

    `bias`, where there is one, replaces or becomes operand `bias_operand`. Shapes are those of the model it is applied to.
    """

    node: str
    weight_operand: int
    weight: Array
    bias_operand: int | None = None
    bias: Array | None = None


def apply(model: onnx.ModelProto, plan: PrunePlan) -> onnx.ModelProto:
    """The model with the plan's channels taken out; the argument is left alone.

    Everything that the plan doesn't name stays: names, opsets, IR version, metadata, doc strings, dynamic axes.
    """
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:], bare.functions[:]
    graph = gs.import_onnx(bare)
    tensors = graph.tensors()
    nodes = {node.outputs[0].name: node for node in graph.nodes if node.outputs}
    constants: set[str] = set()
    outside = {tensor.name for tensor in model.graph.initializer if external.is_external(tensor)}
    for cut in plan.cuts:
        if cut.tensor not in outside:
            _slice(tensors, nodes, cut)
            constants.add(cut.tensor)
    patched: dict[str, list[str]] = {}
    taken = set(tensors) | {tensor.name for node in graph.nodes for tensor in node.outputs}
    for edit in plan.edits:
        made, helper = _edit(nodes[edit.node], edit, taken)
        constants.update(made)
        graph.nodes.extend(helper)
        patched.setdefault(edit.node, []).extend(node.outputs[0].name for node in helper)
    result = _graft(model, graph, constants, patched)
    for tensor in result.graph.initializer:
        cuts = [cut for cut in plan.cuts if cut.tensor == tensor.name] if tensor.name in outside else []
        if cuts:
            value = external.array(tensor)
            for cut in cuts:
                value = np.delete(value, cut.removed, cut.axis)
            external.store(tensor, value)
    return _erase(result, plan.erased) if plan.erased else result


def _erase(model: onnx.ModelProto, layers: Sequence[ErasedLayer]) -> onnx.ModelProto:
    """Put constants, the biases, in the place of layers that read nothing any more; what fed only them goes."""
    graph = Graph(model)
    unread: list[str] = []
    for layer in layers:
        node = graph.producer[layer.node]
        weight, bias = graph.fold(node.inputs[1]), graph.fold(node.operand(2)) if node.operand(2) else None
        assert weight is not None
        grouped = node.attrs.get("group", 1) if node.op == "ConvTranspose" else 1
        out_axis = (0 if node.attrs.get("transB") else 1) if node.op == "Gemm" else int(node.op == "ConvTranspose")
        value = np.zeros(weight.shape[out_axis] * grouped, weight.dtype)
        if bias is not None:
            value += np.asarray(bias.ravel() * node.attrs.get("beta", 1.0), weight.dtype)
        shape = [-1 if axis == layer.axis else 1 for axis in range(layer.rank)]
        protos.add_initializer(model, numpy_helper.from_array(value.reshape(shape), layer.node))
        unread += node.inputs
    keys = {layer.node for layer in layers}
    protos.set_nodes(model, [node for node in model.graph.node if not keys.intersection(node.output)])
    protos.drop_unread(model, unread)
    return model


def _slice(tensors: dict[str, gs.Tensor], nodes: dict[str, gs.Node], cut: TensorCut) -> None:
    """Take `removed` out of a constant, wherever it is kept."""
    holder = tensors.get(cut.tensor)
    if isinstance(holder, gs.Constant):
        holder.values = np.delete(holder.values, cut.removed, cut.axis)
        return
    node = nodes[cut.tensor]
    for name, value in node.attrs.items():
        if isinstance(value, gs.Constant):
            value.values = np.delete(value.values, cut.removed, cut.axis)
        elif name in ("value_floats", "value_ints"):
            node.attrs[name] = np.delete(np.array(value), cut.removed, cut.axis).tolist()


def _edit(node: gs.Node, edit: IntEdit, taken: set[str]) -> tuple[list[str], list[gs.Node]]:
    """Set integers of an attribute or operand; returns the constants and nodes made for it."""
    if edit.attribute is not None:
        old = node.attrs.get(edit.attribute)
        if not edit.values:
            node.attrs.pop(edit.attribute, None)
        elif isinstance(old, int):
            node.attrs[edit.attribute] = edit.values[0]
        else:
            node.attrs[edit.attribute] = [
                old[index] if value is None else value for index, value in enumerate(edit.values)
            ]
        return [], []
    assert edit.operand is not None
    while len(node.inputs) <= edit.operand:
        node.inputs.append(gs.Variable.empty())
    operand = node.inputs[edit.operand]
    name = protos.free_name(f"{node.outputs[0].name}_thinet_{edit.operand}", taken, "_open", "_known", "_rest")
    known = _constant_of(operand)
    if known is None and None in edit.values:
        return _patch(node, edit, name)
    values = [0 if value is None else value for value in edit.values]
    if known is not None:
        flat = np.ravel(known)
        values = [int(flat[index]) if value is None else value for index, value in enumerate(edit.values)]
    shape = known.shape and (len(values), *known.shape[1:]) if known is not None else (len(values),)
    dtype = np.dtype(np.int64) if known is None else known.dtype
    node.inputs[edit.operand] = gs.Constant(name, np.array(values, dtype).reshape(shape))
    return [name], []


def _patch(node: gs.Node, edit: IntEdit, name: str) -> tuple[list[str], list[gs.Node]]:
    """Replace the known elements of an operand that is computed at run time: operand × open + known."""
    is_open = gs.Constant(f"{name}_open", np.array([value is None for value in edit.values], np.int64))
    known = gs.Constant(f"{name}_known", np.array([value or 0 for value in edit.values], np.int64))
    product, total = gs.Variable(f"{name}_rest", np.int64), gs.Variable(name, np.int64)
    helpers = [
        gs.Node("Mul", product.name, inputs=[node.inputs[edit.operand], is_open], outputs=[product]),
        gs.Node("Add", total.name, inputs=[product, known], outputs=[total]),
    ]
    node.inputs[edit.operand] = total
    return [is_open.name, known.name], helpers


def _constant_of(tensor: gs.Tensor) -> Array | None:
    """The integers of an operand that is an initializer or a Constant node's output."""
    if isinstance(tensor, gs.Constant):
        return np.asarray(tensor.values)
    if tensor.inputs and tensor.inputs[0].op == "Constant":
        for name, value in tensor.inputs[0].attrs.items():
            if isinstance(value, gs.Constant):
                return np.asarray(value.values)
            if name.startswith("value_int"):
                return np.asarray(value, np.int64)
    return None


def _graft(
    model: onnx.ModelProto, graph: gs.Graph, constants: set[str], patched: dict[str, list[str]]
) -> onnx.ModelProto:
    """A copy of `model` with the changed constants and nodes of `graph`."""
    exported = gs.export_onnx(graph, do_type_check=False).graph
    values = {tensor.name: tensor for tensor in exported.initializer}
    nodes = {node.output[0]: node for node in exported.node if node.output}
    result = onnx.ModelProto()
    result.CopyFrom(model)
    present = set()
    for tensor in result.graph.initializer:
        present.add(tensor.name)
        if tensor.name in constants:
            _copy_values(values[tensor.name], tensor)
    for value in result.graph.input:  # old files list their initializers among the inputs
        if value.name in constants and value.name in present:
            _set_shape(value, list(values[value.name].dims))
    body: list[onnx.NodeProto] = []
    for node in result.graph.node:
        key = node.output[0] if node.output else ""
        if key in patched:
            body.extend(nodes[helper] for helper in patched[key])
            del node.input[:], node.attribute[:]
            node.input.extend(nodes[key].input)
            node.attribute.extend(nodes[key].attribute)
        elif key in constants and node.op_type == "Constant":
            del node.attribute[:]
            node.attribute.extend(nodes[key].attribute)
        body.append(node)
    made = {name for node in model.graph.node for name in node.output}
    for name in sorted(constants - present - made):
        if name in values:
            protos.add_initializer(result, values[name])
    body = _without_orphans(model, result, body)
    protos.set_nodes(result, body)
    del result.graph.value_info[:]
    return result


def _without_orphans(
    model: onnx.ModelProto, result: onnx.ModelProto, body: list[onnx.NodeProto]
) -> list[onnx.NodeProto]:
    """Drop constants that somebody read before the edits and nobody reads now; returns the nodes that stay."""
    before, now = ({name for node in nodes for name in node.input} for nodes in (model.graph.node, body))
    orphans = before - now - {value.name for value in model.graph.output} - protos.read_in_bodies(body)
    for entries in (result.graph.initializer, result.graph.input):
        protos.drop_entries(entries, orphans.intersection(tensor.name for tensor in model.graph.initializer))
    return [node for node in body if not (node.op_type == "Constant" and node.output[0] in orphans)]


def _copy_values(source: onnx.TensorProto, target: onnx.TensorProto) -> None:
    """New dims and data; name, doc string and metadata stay."""
    for name in _DATA_FIELDS:
        target.ClearField(name)
    target.dims.extend(source.dims)
    target.raw_data = source.raw_data or numpy_helper.to_array(source).tobytes()


def _set_shape(value: onnx.ValueInfoProto, dims: list[int]) -> None:
    for dim, size in zip(value.type.tensor_type.shape.dim, dims, strict=True):
        dim.dim_value = size


def refit(model: onnx.ModelProto, refits: Sequence[Refit]) -> onnx.ModelProto:
    """The model with new weights and biases; shapes and the argument stay.

    Values go back to the constant that they came from, also through Transpose, Reshape or Cast. A constant that other
    operands share makes way for a new initializer.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = Graph(result)
    nodes = {node.output[0]: node for node in result.graph.node if node.output}
    uses = _readers(graph)
    changes: list[tuple[str, int, Array, str]] = []
    for entry in refits:
        if entry.node not in graph.producer:
            _refit_erased(result, entry)
            continue
        changes.append((entry.node, entry.weight_operand, entry.weight, "weight"))
        if entry.bias_operand is not None and entry.bias is not None:
            changes.append((entry.node, entry.bias_operand, entry.bias, "bias"))
    sources = [_source(graph, graph.producer[key].operand(operand)) for key, operand, _, _ in changes]
    readers: dict[str, int] = {}
    for source in sources:
        readers[source] = readers.get(source, 0) + 1
    for (key, operand, value, suffix), source in zip(changes, sources, strict=True):
        name = graph.producer[key].operand(operand)
        alone = bool(source) and all(uses[step] == readers[source] for step in graph.moved_from(name))
        if alone:
            _write(result, graph, name, source, value)
        else:
            _attach(result, nodes[key], operand, value, f"{key}_thinet_{suffix}")
    return result


def _refit_erased(model: onnx.ModelProto, entry: Refit) -> None:
    """A layer that was erased is a constant by the name of its output: it takes the bias."""
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == entry.node]
    if entry.bias is not None:
        value = entry.bias.reshape(tuple(tensor.dims))
        kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        _copy_values(numpy_helper.from_array(value.astype(kind), tensor.name), tensor)


def _readers(graph: Graph) -> dict[str, int]:
    """How often the values of each tensor are read: by nodes, by bodies of If and Loop, as an output of the graph."""
    reads = [name for node in graph.nodes if node.op not in _SHAPE_READERS for name in (*node.inputs, *node.captured)]
    return dict(Counter([*reads, *graph.outputs]))


def _source(graph: Graph, name: str) -> str:
    chain = graph.moved_from(name) if name else []
    return chain[-1] if chain else ""


def _write(model: onnx.ModelProto, graph: Graph, name: str, source: str, value: Array) -> None:
    """Put the operand's new value where its constant is kept, moved back."""
    old = graph.tensors[source]
    shape = tuple(old.dims)
    places = np.arange(int(np.prod(shape, dtype=np.int64))).reshape(shape)
    for step in reversed(graph.moved_from(name)[:-1]):
        node = graph.producer[step]
        if node.op in _ELEMENTWISE:
            continue
        places = run_node(node, graph.opset, [places, *(graph.fold(extra) for extra in node.inputs[1:])])[0]
    flat = np.empty(places.size, value.dtype)
    flat[places.ravel()] = value.ravel()
    moved = _quantised(graph, name, flat.reshape(shape))
    moved = moved.astype(onnx.helper.tensor_dtype_to_np_dtype(old.data_type))
    for initializer in model.graph.initializer:
        if initializer.name == source and external.is_external(initializer):
            external.store(initializer, moved)
            return
        if initializer.name == source:
            _copy_values(numpy_helper.from_array(moved, source), initializer)
            return
    tensor = numpy_helper.from_array(moved, source)
    for node_proto in model.graph.node:
        if node_proto.output[0] == source:
            del node_proto.attribute[:]
            node_proto.attribute.append(onnx.helper.make_attribute("value", tensor))


def _quantised(graph: Graph, name: str, value: Array) -> Array:
    """Values as a constant keeps them: rounded to its scale where the graph dequantises it first, else as they are."""
    first = graph.producer.get(name if len(graph.moved_from(name)) < 2 else graph.moved_from(name)[-2])
    if first is None or first.op != "DequantizeLinear" or first.inputs[0] not in graph.tensors:
        return value
    scale, zero = (
        graph.fold(first.inputs[1]),
        graph.fold(first.operand(2)) if first.operand(2) else np.zeros(1, np.int8),
    )
    assert scale is not None and zero is not None
    axis = first.attrs.get("axis", 1) % max(value.ndim, 1)
    spread = [-1 if a == axis and scale.size > 1 else 1 for a in range(value.ndim)]
    steps = np.rint(value / scale.reshape(spread)) + zero.reshape(spread if zero.size > 1 else [1] * value.ndim)
    constant = graph.constant(first.inputs[0])
    assert constant is not None
    limits = np.iinfo(constant.dtype)
    return np.asarray(np.clip(steps, limits.min, limits.max))


def _attach(model: onnx.ModelProto, node: onnx.NodeProto, operand: int, value: Array, name: str) -> None:
    name = protos.free_name(name, protos.names(model))
    protos.add_initializer(model, numpy_helper.from_array(value, name))
    while len(node.input) <= operand:
        node.input.append("")
    node.input[operand] = name
