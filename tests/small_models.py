"""Small models with random weights, built node by node, and ways to run them that use no code of the package."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]
Sizes = Sequence[int | str]


class Net:
    """A graph in the making. Methods return the name of the tensor they add."""

    def __init__(self, seed: int = 0, opset: int = 17) -> None:
        self.rng = np.random.default_rng(seed)
        self.opset = opset
        self.inputs: list[onnx.ValueInfoProto] = []
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def input(self, name: str, sizes: Sizes, kind: int = TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, kind, list(sizes)))
        return name

    def tensor(self, value: Any, name: str = "") -> str:
        name = name or f"t{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def weight(self, *shape: int, name: str = "") -> str:
        fan_in = max(int(np.prod(shape[1:])), 1)
        return self.tensor((self.rng.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32), name)

    def node(self, op: str, *inputs: str, name: str = "", outputs: int = 1, **attributes: Any) -> str:
        made = [f"v{len(self.nodes)}" if i == 0 else f"v{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), made, name=name or f"{op}{len(self.nodes)}", **attributes))
        return made[0]

    def conv(self, x: str, channels: int, filters: int, kernel: int = 3, name: str = "", **attributes: Any) -> str:
        weight = self.weight(filters, channels // attributes.get("group", 1), kernel, kernel)
        bias = self.tensor((0.1 * self.rng.standard_normal(filters)).astype(np.float32))
        attributes.setdefault("pads", [kernel // 2] * 4)
        return self.node("Conv", x, weight, bias, name=name, **attributes)

    def gemm(self, x: str, columns: int, outputs: int, name: str = "") -> str:
        bias = self.tensor((0.1 * self.rng.standard_normal(outputs)).astype(np.float32))
        return self.node("Gemm", x, self.weight(outputs, columns), bias, name=name, transB=1)

    def relu(self, x: str) -> str:
        return self.node("Relu", x)

    def head(self, x: str, channels: int, classes: int = 5) -> str:
        """Global average pool, flatten, fully connected."""
        return self.gemm(self.node("Flatten", self.node("GlobalAveragePool", x)), channels, classes, name="head")

    def model(self, *outputs: str) -> onnx.ModelProto:
        """The checked model; what its outputs are is found by shape inference."""
        made = [onnx.ValueInfoProto(name=name) for name in outputs]
        graph = helper.make_graph(self.nodes, "net", self.inputs, made, self.tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        for here, there in zip(model.graph.output, inferred.graph.output, strict=True):
            here.CopyFrom(there)
        onnx.checker.check_model(model)
        return model


def plain(seed: int = 0, batch: int | str = "N") -> onnx.ModelProto:
    """Two convolutions and a fully connected layer on (N, 3, 8, 8): the smallest net that can be pruned."""
    net = Net(seed)
    x = net.relu(net.conv(net.input("x", (batch, 3, 8, 8)), 3, 8, name="conv1"))
    x = net.relu(net.conv(x, 8, 8, name="conv2"))
    return net.model(net.head(x, 8))


def residual(seed: int = 0) -> onnx.ModelProto:
    """A stem and two residual blocks of 8 channels with 12 inner ones, on (N, 3, 8, 8)."""
    net = Net(seed)
    x = net.relu(net.conv(net.input("x", ("N", 3, 8, 8)), 3, 8, name="stem"))
    for block in ("block1", "block2"):
        inner = net.relu(net.conv(x, 8, 12, name=f"{block}.a"))
        x = net.relu(net.node("Add", x, net.conv(inner, 12, 8, name=f"{block}.b"), name=f"{block}.sum"))
    return net.model(net.head(x, 8))


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    """A session of the file as it is, on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    """All outputs of one run."""
    return list(session(model).run(None, dict(feeds)))


def run_for(model: onnx.ModelProto, names: Sequence[str], feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Any tensors of one run, inputs included."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    del exposed.graph.output[:]
    inner = [name for name in dict.fromkeys(names) if name not in feeds]
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
    found = dict(zip(inner, run(exposed, feeds), strict=True)) if inner else {}
    return {name: feeds[name] if name in feeds else found[name] for name in names}


def replaced(model: onnx.ModelProto, values: Mapping[str, Array]) -> onnx.ModelProto:
    """The model with other values in some initializers."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for tensor in result.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))
    return result


def initializers(model: onnx.ModelProto) -> dict[str, Array]:
    """All initializers by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
