"""Small ONNX graphs for tests: seeded weights, names that can be foretold, a given opset."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from thinet_onnx import runtime

Array = np.ndarray[Any, Any]

IR_OF_OPSET = {7: 3, 8: 3, 9: 4, 10: 5, 11: 6, 12: 7, 13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10}


class Build:
    """A graph that grows node by node; every method returns the name of what it made."""

    def __init__(self, opset: int = 18, seed: int = 0, domains: Sequence[str] = ("com.microsoft",)) -> None:
        self.opset = opset
        self.rng = np.random.default_rng(seed)
        self.domains = tuple(domains)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.feeds: dict[str, tuple[tuple[int, ...], Any]] = {}
        self.fixed: dict[str, Array] = {}
        self._count = 0

    def fresh(self, stem: str) -> str:
        self._count += 1
        return f"{stem}_{self._count}"

    def input(
        self, name: str = "x", shape: Sequence[int] = (1, 3, 8, 8), kind: Any = np.float32, *, dynamic: str = "",
        value: Any = None,
    ) -> str:  # fmt: skip
        """A graph input; `dynamic` is the name of its first dimension where that is free, `value` what it is always fed."""
        if value is not None:
            self.fixed[name] = np.asarray(value)
            shape, kind = self.fixed[name].shape, self.fixed[name].dtype
        element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
        declared = [dynamic, *shape[1:]] if dynamic else list(shape)
        self.inputs.append(helper.make_tensor_value_info(name, element, declared))
        self.feeds[name] = (tuple(shape), kind)
        return name

    def const(self, value: Any, name: str = "", *, node: bool = False) -> str:
        """A constant: an initializer, or a Constant node."""
        name = name or self.fresh("const")
        tensor = numpy_helper.from_array(np.asarray(value), name)
        if node:
            self.nodes.append(helper.make_node("Constant", [], [name], f"make_{name}", value=tensor))
        else:
            self.initializers.append(tensor)
        return name

    def ints(self, *values: int, name: str = "") -> str:
        return self.const(np.array(values, np.int64), name)

    def scalar(self, value: float, kind: Any = np.float32) -> str:
        return self.const(np.array(value, kind))

    def values(self, *shape: int, positive: bool = False) -> Array:
        """Random weights of about unit gain."""
        drawn = self.rng.standard_normal(shape) / max(np.sqrt(np.prod(shape[1:])), 1)
        return (np.abs(drawn) + 0.5 if positive else drawn).astype(np.float32)

    def weight(self, *shape: int, name: str = "", positive: bool = False) -> str:
        return self.const(self.values(*shape, positive=positive), name)

    def node(self, op: str, *inputs: str, domain: str = "", name: str = "", out: str = "", **attributes: Any) -> str:
        """A node with one output."""
        out = out or self.fresh(op.lower())
        self.many(op, *inputs, outs=(out,), domain=domain, name=name, **attributes)
        return out

    def many(
        self, op: str, *inputs: str, outs: Sequence[str] | int, domain: str = "", name: str = "", **attributes: Any
    ) -> list[str]:
        """A node with several outputs: their names, or how many."""
        names = [self.fresh(op.lower()) for _ in range(outs)] if isinstance(outs, int) else list(outs)
        self.nodes.append(helper.make_node(op, inputs, names, name, domain=domain, **attributes))
        return names

    def conv(
        self, x: str, c_in: int, c_out: int, k: int = 3, name: str = "", *, group: int = 1, bias: bool = True, rank: int = 2,
        **attributes: Any,
    ) -> str:  # fmt: skip
        """A convolution that keeps the size, named weights `<name>.weight` and `<name>.bias`, output `<name>`."""
        name = name or self.fresh("conv")
        operands = [x, self.weight(c_out, c_in // group, *(k,) * rank, name=f"{name}.weight")]
        if bias:
            operands.append(self.weight(c_out, name=f"{name}.bias"))
        attributes = {"pads": [k // 2] * 2 * rank} | attributes if "auto_pad" not in attributes else attributes
        return self.node("Conv", *operands, name=f"/{name}", out=name, group=group, **attributes)

    def gemm(self, x: str, c_in: int, c_out: int, name: str = "") -> str:
        """A fully connected layer the way PyTorch exports it (transB)."""
        name = name or self.fresh("gemm")
        operands = (self.weight(c_out, c_in, name=f"{name}.weight"), self.weight(c_out, name=f"{name}.bias"))
        return self.node("Gemm", x, *operands, name=f"/{name}", out=name, transB=1)

    def batch_norm(self, x: str, channels: int, name: str = "") -> str:
        name = name or self.fresh("bn")
        operands = (
            self.weight(channels, name=f"{name}.scale", positive=True), self.weight(channels, name=f"{name}.shift"),
            self.weight(channels, name=f"{name}.mean"), self.weight(channels, name=f"{name}.var", positive=True),
        )  # fmt: skip
        return self.node("BatchNormalization", x, *operands, name=f"/{name}", out=name)

    def output(self, *names: str, kind: int = TensorProto.FLOAT, rank: int | None = None) -> None:
        """Graph outputs, with free dimensions; the rank is found by running the graph where it isn't given."""
        for name in names:
            dims = len(self.shape_of(name)) if rank is None else rank
            self.outputs.append(helper.make_tensor_value_info(name, kind, [f"{name}_{axis}" for axis in range(dims)]))

    def shape_of(self, name: str) -> tuple[int, ...]:
        """The shape that a tensor has in ONNX Runtime."""
        probe = helper.make_node("Shape", [name], ["probed"])
        result = helper.make_tensor_value_info("probed", TensorProto.INT64, [None])
        graph = self._graph([result])
        graph.graph.node.append(probe)
        return tuple(runtime.run(runtime.session(graph, optimise=False), self.feed())[0].tolist())

    def model(self) -> onnx.ModelProto:
        return self._graph(self.outputs)

    def _graph(self, outputs: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
        ir = IR_OF_OPSET.get(self.opset, 10)
        listed = [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in self.initializers if ir < 4]
        graph = helper.make_graph(self.nodes, "graph", [*self.inputs, *listed], outputs, self.initializers)
        used = {node.domain for node in self.nodes}
        imports = [("", self.opset), *((domain, 1) for domain in self.domains if domain in used)]
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid(*entry) for entry in imports],
            ir_version=ir, producer_name="tests",
        )  # fmt: skip

    def feed(self, seed: int = 1, batch: int | None = None) -> dict[str, Array]:
        """Random values for all inputs, of `batch` items where that is given."""
        rng = np.random.default_rng(seed)
        fed: dict[str, Array] = {}
        for name, (shape, kind) in self.feeds.items():
            sizes = shape if batch is None else (batch, *shape[1:])
            if name in self.fixed:
                fed[name] = self.fixed[name]
            elif np.dtype(kind).kind == "f":
                fed[name] = rng.standard_normal(sizes).astype(kind)
            else:
                fed[name] = rng.integers(0, 2, sizes).astype(kind)
        return fed


def two_convs(opset: int = 18, channels: int = 12) -> Build:
    """input → first (3 → channels) → Relu → second (→ 5) → output."""
    b = Build(opset)
    h = b.node("Relu", b.conv(b.input(), 3, channels, name="first"))
    b.output(b.conv(h, channels, 5, name="second"))
    return b


def tensor(model: onnx.ModelProto, name: str) -> Array:
    """The value of an initializer or Constant node."""
    for entry in model.graph.initializer:
        if entry.name == name:
            return numpy_helper.to_array(entry)
    for node in model.graph.node:
        if node.op_type == "Constant" and node.output[0] == name:
            return numpy_helper.to_array(node.attribute[0].t)
    raise KeyError(name)


def node_of(model: onnx.ModelProto, output: str) -> onnx.NodeProto:
    """The node that makes `output`."""
    return next(node for node in model.graph.node if output in node.output)
