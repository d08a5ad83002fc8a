"""Small operations on ONNX protobufs: adding constants, free names, dropping what nobody reads."""

from collections.abc import Iterable, Sequence
from typing import Any

import onnx


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
