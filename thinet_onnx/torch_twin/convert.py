"""From a file to a torch module, and the module's weights back into the same file."""

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor

from thinet_onnx import external
from thinet_onnx.errors import ModelError
from thinet_onnx.graph import Graph
from thinet_onnx.prepare import prepare
from thinet_onnx.torch_twin.dtypes import Array, limits, to_tensor
from thinet_onnx.torch_twin.module import Twin

_DATA_FIELDS = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data")
_LISTS = {"value_float": "f", "value_floats": "floats"}  # a Constant node's attributes that aren't tensors


def to_torch(model: onnx.ModelProto, *, starts: tuple[str, ...] = (), ends: tuple[str, ...] = ()) -> Twin:
    """The model as a torch module, in evaluation mode.

    It takes the graph's inputs in order and returns its outputs in order, a bare tensor where there is one. Any batch
    will do, also where the file was exported for one. Its parameters are the file's constants: see `Twin`.

    Args:
        model: left alone.
        starts: names of tensors to begin with in place of the inputs (`forward` takes these).
        ends: names of tensors to return in place of the outputs.

    Raises:
        ModelError: an operator has no twin, or a name isn't in the graph.
    """
    graph = Graph(readable(model))
    known = {value.name for value in graph.inputs} | graph.producer.keys()
    for name in (*starts, *ends):
        if name not in known:
            raise ModelError(f"The model has no tensor {name!r}: name an input or an output of one of its nodes.")
    return Twin(graph, starts or [value.name for value in graph.inputs], ends or graph.outputs)


def readable(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model itself; functions inlined and very old files renewed, where there is that to do."""
    return prepare(model) if model.functions or not model.opset_import else model


def from_torch(module: Twin, model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the model with the module's weights and running statistics.

    They go back to the constant that they came from, in its own data type, and rounded to its scale if it is quantised.
    What training left as it was stays byte for byte.

    Args:
        module: made by `to_torch` from this model, or from one with the same constants.
        model: left alone.

    Raises:
        ModelError: the model lacks a constant of the module's, or has it in another shape.
    """
    result = onnx.ModelProto()
    result.CopyFrom(readable(model))
    graph = Graph(result)
    for name, value in (module.weights() | module.statistics()).items():
        tensor = graph.tensors.get(name)
        if tensor is None or tuple(tensor.dims) != tuple(value.shape):
            shape = None if tensor is None else tuple(tensor.dims)
            raise ModelError(
                f"The constant {name!r} has the shape {tuple(value.shape)} in the module and {shape} in the model: "
                f"write weights back into the model that the module was made from."
            )
        current = value.detach().cpu()
        if not torch.equal(current, module.opened(name, to_tensor(external.array(tensor)))):
            _write(result, name, _stored(module.closed(name, current), tensor.data_type))
    return result


def _stored(value: Tensor, kind: int) -> Array:
    """A tensor in a constant's data type."""
    array: Array = value.contiguous().numpy()
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    return np.clip(array, *limits(kind)).astype(dtype) if dtype.kind in "iu" else array.astype(dtype)


def _write(model: onnx.ModelProto, name: str, value: Array) -> None:
    """Replace the data of an initializer or of a Constant node; its name, doc string and metadata stay."""
    for tensor in model.graph.initializer:
        if tensor.name == name:
            return _put(tensor, value)
    node = next(node for node in model.graph.node if node.op_type == "Constant" and node.output[0] == name)
    for attribute in node.attribute:
        if attribute.name == "value":
            return _put(attribute.t, value)
        if attribute.name in _LISTS:
            numbers = value.ravel().tolist()
            attribute.CopyFrom(onnx.helper.make_attribute(attribute.name, numbers if value.ndim else numbers[0]))
    return None


def _put(tensor: TensorProto, value: Array) -> None:
    if external.is_external(tensor):
        return external.store(tensor, value)
    fresh = numpy_helper.from_array(value, tensor.name)
    for field in _DATA_FIELDS:
        tensor.ClearField(field)
    tensor.raw_data = fresh.raw_data
    return None
