"""Files from before operator sets (2017): their operators as operator set 7 has them, the first that ONNX Runtime runs."""

import numpy as np
import onnx
from onnx import AttributeProto, helper, numpy_helper

from thinet_onnx import protos
from thinet_onnx.errors import ModelError

_OPSET, _IR = 7, 3
_FIELDS = {
    "t": AttributeProto.TENSOR, "g": AttributeProto.GRAPH, "ints": AttributeProto.INTS, "floats": AttributeProto.FLOATS,
    "strings": AttributeProto.STRINGS, "tensors": AttributeProto.TENSORS, "graphs": AttributeProto.GRAPHS,
    "i": AttributeProto.INT, "f": AttributeProto.FLOAT, "s": AttributeProto.STRING,
}  # fmt: skip
_BROADCASTING = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "And", "Or", "Xor", "Greater", "Less", "Equal", "Gemm"})
_OBSOLETE = {"consumed_inputs", "is_test", "broadcast", "axis"}
_READ = {
    "broadcast": AttributeProto.INT,
    "axis": AttributeProto.INT,
    "shape": AttributeProto.INTS,
}  # of those, and Reshape


def renewed(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """A copy at operator set 7.

    Attribute types are filled in, `broadcast` along an `axis` becomes a constant with trailing axes of size 1, the `shape`
    of a Reshape an operand.

    Args:
        model: left alone.
        name: what messages call it.

    Raises:
        ModelError: an operator changed in a way that isn't one of these, or one of them isn't what it has to be.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    result.ir_version = _IR
    result.opset_import.append(helper.make_opsetid("", _OPSET))
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in result.graph.input}
    taken = protos.names(result)
    operands = [name for node in result.graph.node for name in node.input]
    for node in result.graph.node:
        for attribute in node.attribute:
            if not attribute.type:
                attribute.type = _kind(attribute)
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        _check(node, name)
        if node.op_type in _BROADCASTING:
            _align(result, node, attributes, ranks, taken)
            _drop(node, _OBSOLETE)
        elif node.op_type == "Reshape" and "shape" in attributes:
            target = protos.free_name(f"{node.output[0]}_shape", taken)
            protos.add_initializer(result, numpy_helper.from_array(np.array(attributes["shape"], np.int64), target))
            node.input.append(target)
            _drop(node, {"shape"})
            ranks[node.output[0]] = len(attributes["shape"])
        else:
            _drop(node, _OBSOLETE - {"axis"})
        ranks.setdefault(node.output[0], ranks.get(node.input[0], 0) if node.input else 0)
    protos.drop_unread(result, operands)
    try:
        onnx.checker.check_model(result)
    except onnx.checker.ValidationError as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{name} is older than operator sets and can't be read as operator set {_OPSET} ({reason}); "
            "export it again with a newer exporter."
        ) from None
    return result


def _check(node: onnx.NodeProto, name: str) -> None:
    """Refuse a node that can't be rewritten: attributes of another type, operands or an output that are missing."""
    odd, operands = list[str](), 2 if node.op_type in _BROADCASTING else int(node.op_type == "Reshape")
    if operands:
        odd += [f"its attribute {a.name!r}" for a in node.attribute if a.type != _READ.get(a.name, a.type)]
    if len(node.input) < operands:
        odd.append("the number of its operands")
    if not node.output:
        odd.append("the number of its outputs")
    if odd:
        title = node.name or next(iter(node.output), node.op_type)
        raise ModelError(
            f"{name} is damaged ({odd[0]} is not what {node.op_type} {title!r} has to have); export or copy it again."
        )


def _kind(attribute: onnx.AttributeProto) -> int:
    """The type of an attribute that doesn't state it, from the field that is filled."""
    for name, kind in _FIELDS.items():
        value = getattr(attribute, name)
        if attribute.HasField(name) if name in ("t", "g", "i", "f", "s") else len(value):
            return int(kind)
    return int(AttributeProto.INTS)


def _align(
    model: onnx.ModelProto, node: onnx.NodeProto, attributes: dict[str, int], ranks: dict[str, int], taken: set[str]
) -> None:
    """Give the second operand the trailing axes that `broadcast` along `axis` implied."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    tensor = constants.get(node.input[1])
    if not attributes.get("broadcast") or "axis" not in attributes or tensor is None:
        return
    missing = ranks.get(node.input[0], 0) - attributes["axis"] % max(ranks.get(node.input[0], 1), 1) - len(tensor.dims)
    if missing > 0:
        name = protos.free_name(f"{node.input[1]}_aligned", taken)
        value = numpy_helper.to_array(tensor)
        protos.add_initializer(model, numpy_helper.from_array(value.reshape(*value.shape, *[1] * missing), name))
        node.input[1] = name


def _drop(node: onnx.NodeProto, gone: set[str]) -> None:
    protos.drop_entries(node.attribute, gone)
