"""A piece of a graph as a model of its own: some nodes, the constants that they need, some weights replaced."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from thinet_onnx.graph import Graph, Node

Array = np.ndarray[Any, Any]


def build(
    graph: Graph,
    nodes: Sequence[Node],
    inputs: Mapping[str, Array],
    wanted: Sequence[str],
    replaced: Mapping[tuple[int, int], Array] | None = None,
) -> onnx.ModelProto:
    """A model of some nodes; constants, and what follows from constants, come along.

    Args:
        graph: where the nodes are.
        nodes: the piece, in topological order.
        inputs: a value of each tensor that it reads from outside, for data types and ranks; all sizes are left open.
        wanted: its outputs.
        replaced: new values of (node index, operand).
    """
    needed = {name for node in nodes for name in (*node.inputs, *node.captured)} & graph.derived
    helpers = graph.ancestors(needed)
    protos, initializers, read = [], [], set[str]()
    for node in [*(node for node in graph.nodes if node.index in helpers), *nodes]:
        proto = onnx.NodeProto()
        proto.CopyFrom(node.proto)
        for operand in range(8 if replaced else 0):
            value = replaced.get((node.index, operand)) if replaced else None
            if value is not None:
                name = f"thinet_{node.index}_{operand}"
                while len(proto.input) <= operand:
                    proto.input.append("")
                proto.input[operand] = name
                initializers.append(numpy_helper.from_array(value, name))
        read.update(proto.input, node.captured)
        protos.append(proto)
    for name in sorted(read & graph.tensors.keys()):
        tensor = onnx.TensorProto()
        tensor.CopyFrom(graph.tensors[name])
        tensor.name = name
        initializers.append(tensor)
    declared = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), [None] * value.ndim)
        for name, value in inputs.items()
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in wanted]
    body = helper.make_graph(protos, "segment", declared, outputs, initializers)
    version = max(graph.model.ir_version, 4)
    return helper.make_model(body, opset_imports=graph.model.opset_import, ir_version=version)
