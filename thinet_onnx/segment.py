"""A piece of a graph as a model of its own: some nodes, the constants that they need, some weights replaced."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from thinet_onnx.graph import Graph, Node

Array = np.ndarray[Any, Any]

_LARGE = 16_384  # bytes of a weight that is left beside the model


def build(
    graph: Graph,
    nodes: Sequence[Node],
    inputs: Mapping[str, Array],
    wanted: Sequence[str],
    replaced: Mapping[tuple[int, int], Array] | None = None,
) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A model of some nodes; constants, and what follows from constants, come along.

    Large weights aren't copied into the model: their names are there, their values come beside it.

    Args:
        graph: where the nodes are.
        nodes: the piece, in topological order.
        inputs: a value of each tensor that it reads from outside, for data types and ranks; all sizes are left open.
        wanted: its outputs.
        replaced: new values of (node index, operand).
    """
    needed = {name for node in nodes for name in (*node.inputs, *node.captured)} & graph.derived
    helpers = graph.ancestors(needed)
    protos, initializers, read = [], list[TensorProto](), set[str]()
    beside: dict[str, Array] = {}
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
                initializers.append(_stub(name, value, beside))
        read.update(proto.input, node.captured)
        protos.append(proto)
    for name in sorted(read & graph.tensors.keys()):
        own = graph.tensors[name]
        if own.ByteSize() >= _LARGE and own.data_location != TensorProto.EXTERNAL:
            initializers.append(_stub(name, numpy_helper.to_array(own), beside))
        else:
            tensor = TensorProto()
            tensor.CopyFrom(own)
            tensor.name = name
            initializers.append(tensor)
    declared = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), [None] * value.ndim)
        for name, value in inputs.items()
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in wanted]
    body = helper.make_graph(protos, "segment", declared, outputs, initializers)
    version = max(graph.model.ir_version, 4)
    return helper.make_model(body, opset_imports=graph.model.opset_import, ir_version=version), beside


def _stub(name: str, value: Array, beside: dict[str, Array]) -> TensorProto:
    """A tensor whose values are beside the model, if they are many."""
    if value.nbytes < _LARGE or value.dtype.kind != "f" or not value.flags.c_contiguous:
        return numpy_helper.from_array(value, name)
    beside[name] = value
    tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(value.dtype), dims=value.shape)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="in memory")
    return tensor
