"""Small operations on ONNX protobufs: adding constants, free names, dropping what nobody reads, what a tensor holds."""

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

_PACKED = {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2}  # bits of types that share a byte
_STRING, _MESSAGE = 9, 11  # FieldDescriptor.TYPE_STRING and TYPE_MESSAGE


def walk(message: Any) -> Iterator[Any]:
    """A message and all messages within it, outermost first."""
    yield message
    for name in _fields(message.DESCRIPTOR)[1]:
        value = getattr(message, name)
        if hasattr(value, "add"):
            for entry in value:
                yield from walk(entry)
        elif message.HasField(name):
            yield from walk(value)


def is_text(message: Any) -> bool:
    """Whether all text fields of a message itself are text (protobuf hands over bytes, or fails, where one isn't UTF-8)."""
    try:
        values = [getattr(message, name) for name in _fields(message.DESCRIPTOR)[0]]
        return all(
            isinstance(v, str) for value in values for v in ([value] if isinstance(value, str | bytes) else value)
        )
    except UnicodeDecodeError:
        return False


@cache
def _fields(descriptor: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the text fields, and of the fields that are messages."""
    kinds = {kind: tuple(f.name for f in descriptor.fields if f.type == kind) for kind in (_STRING, _MESSAGE)}
    return kinds[_STRING], kinds[_MESSAGE]


def tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Every tensor of a model, those in attributes, bodies and functions included."""
    return (message for message in walk(model) if isinstance(message, TensorProto))


def elements(tensor: TensorProto) -> int:
    """How many elements a tensor declares."""
    return math.prod(tensor.dims)


def data_bytes(tensor: TensorProto) -> int:
    """How many bytes its elements take, written as raw data."""
    bits = _PACKED.get(TensorProto.DataType.Name(tensor.data_type))
    bits = bits or 8 * np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
    return (elements(tensor) * bits + 7) // 8


def amount(tensor: TensorProto) -> tuple[int, int]:
    """Bytes of raw data, or values, that a tensor holds, and as many as it should."""
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data), data_bytes(tensor)
    held = len(getattr(tensor, helper.tensor_dtype_to_field(tensor.data_type)))
    if TensorProto.DataType.Name(tensor.data_type) in _PACKED:
        return held, data_bytes(tensor)
    pairs = tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128)
    return held, elements(tensor) * (2 if pairs else 1)


def add_initializer(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    """A new initializer; files before IR version 4 list it among the inputs as well."""
    model.graph.initializer.append(tensor)
    if model.ir_version < 4:
        declared = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        model.graph.input.append(declared)


def note(model: onnx.ModelProto, key: str, value: str) -> None:
    """Put an entry into the model's metadata, in place of one with the same key."""
    entry = next((entry for entry in model.metadata_props if entry.key == key), None) or model.metadata_props.add()
    entry.key, entry.value = key, value


def free_name(name: str, taken: set[str], *suffixes: str) -> str:
    """A name that no tensor has, with none of the suffixes either; all are added to `taken`."""
    while not taken.isdisjoint(name + suffix for suffix in ("", *suffixes)):
        name += "_"
    taken.update(name + suffix for suffix in ("", *suffixes))
    return name


def names(model: onnx.ModelProto) -> set[str]:
    """The names of all tensors of the main graph."""
    graph = model.graph
    found = {entry.name for entries in (graph.initializer, graph.input, graph.output) for entry in entries}
    return found | {name for node in graph.node for name in (*node.input, *node.output) if name}


def read_in_bodies(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """Names read inside the bodies of If, Loop and Scan."""
    bodies = [attribute.g for node in nodes for attribute in node.attribute if attribute.HasField("g")]
    found = {name for body in bodies for node in body.node for name in node.input}
    found |= {value.name for body in bodies for value in body.output}
    return found.union(*(read_in_bodies(body.node) for body in bodies))


def captured(node: onnx.NodeProto) -> set[str]:
    """Names that the bodies of a node take from outside."""
    bodies = [a.g for a in node.attribute if a.HasField("g")] + [g for a in node.attribute for g in a.graphs]
    found: set[str] = set()
    for body in bodies:
        own = {tensor.name for tensor in body.initializer} | {value.name for value in body.input}
        used = {value.name for value in body.output}
        for inner in body.node:
            used.update(inner.input, captured(inner))
            own.update(inner.output)
        found |= used - own
    return found - {""}


def set_nodes(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> None:
    """Make these the nodes of the main graph, in this order."""
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)


def drop_unread(model: onnx.ModelProto, candidates: Iterable[str]) -> None:
    """Drop the nodes and constants that make these tensors, and what only they read, where nobody reads them."""
    pending = list(candidates)
    nodes = {name: node for node in model.graph.node for name in node.output if name}
    kept = list(model.graph.node)
    outputs = {value.name for value in model.graph.output} | read_in_bodies(kept)
    readers: dict[str, int] = {}
    for node in kept:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    gone_nodes: set[int] = set()
    gone: set[str] = set()
    while pending:
        name = pending.pop()
        if readers.get(name) or name in outputs or name in gone:
            continue
        node = nodes.get(name)
        if node is None:
            gone.add(name)
        elif id(node) not in gone_nodes and not any(readers.get(o) or o in outputs for o in node.output if o):
            gone_nodes.add(id(node))
            gone.update(node.output)
            for operand in node.input:
                readers[operand] -= 1
                pending.append(operand)
    set_nodes(model, [node for node in kept if id(node) not in gone_nodes])
    constants = {tensor.name for tensor in model.graph.initializer}
    drop_entries(model.graph.initializer, gone)
    drop_entries(model.graph.input, gone & constants)


def drop_entries(entries: Any, gone: set[str]) -> None:
    """Drop the named entries of a repeated protobuf field."""
    for index in range(len(entries) - 1, -1, -1):
        if entries[index].name in gone:
            del entries[index]
