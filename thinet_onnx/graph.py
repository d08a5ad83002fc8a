"""Reading, indexing and writing models: the one place that knows ONNX protobufs from the reading side."""

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from thinet_onnx import external, protos, sound
from thinet_onnx.errors import ModelError, OutputError

Shape = tuple[int, ...]
Array = np.ndarray[Any, Any]

_MOVES = frozenset(
    {"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Cast", "CastLike", "QuantizeLinear"}
)
_EXPORTS = {
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".safetensors", ".torchscript"), "torch.onnx.export"),
    **dict.fromkeys((".h5", ".keras", ".pb", ".tflite"), "tf2onnx"),
    **dict.fromkeys((".pdmodel", ".pdiparams"), "paddle2onnx"),
}
_SMALL_VALUE = 1 << 16  # elements; shape arithmetic never has more


@dataclass(frozen=True, eq=False)
class Node:
    """One operator: plain Python attributes, names of operands ("" where an optional one is absent)."""

    index: int
    op: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: dict[str, Any]
    captured: frozenset[str] = frozenset()
    proto: onnx.NodeProto | None = field(default=None, repr=False)

    @property
    def key(self) -> str:
        """The name of the first output: unique, also where nodes are nameless."""
        return self.outputs[0]

    @property
    def title(self) -> str:
        """What people call it: its name, or its operator and first output."""
        return self.name or f"{self.op}({self.key})"

    @property
    def kind(self) -> str:
        """The operator with its domain, as rules are keyed."""
        return self.op if self.domain in ("", "ai.onnx") else f"{self.domain}::{self.op}"

    def operand(self, index: int) -> str:
        """The name of an input, "" where it is absent."""
        return self.inputs[index] if index < len(self.inputs) else ""


class Graph:
    """An index over a ModelProto, which it never changes."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        graph = model.graph
        self.opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
        self.tensors = {t.name: t for t in graph.initializer}
        for proto in graph.node:
            if proto.op_type == "Constant" and proto.domain in ("", "ai.onnx"):
                tensor = _constant_tensor(proto)
                if tensor is not None:
                    self.tensors[proto.output[0]] = tensor
        self.nodes = [
            _read_node(index, proto)
            for index, proto in enumerate(graph.node)
            if not (proto.op_type == "Constant" and proto.output[0] in self.tensors)
        ]
        self.inputs = [value for value in graph.input if value.name not in self.tensors]
        self.outputs = [value.name for value in graph.output]
        self.producer = {name: node for node in self.nodes for name in node.outputs if name}
        self.consumers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in {*node.inputs, *node.captured}:
                self.consumers.setdefault(name, []).append(node)
        self._values: dict[str, Array] = {}

    def constant(self, name: str) -> Array | None:
        """The value of an initializer or Constant node; None if `name` isn't one."""
        if name in self._values:
            return self._values[name]
        tensor = self.tensors.get(name)
        if tensor is None:
            return None
        value = external.array(tensor)
        value.flags.writeable = False
        self._values[name] = value
        return value

    @cached_property
    def derived(self) -> frozenset[str]:
        """Names of all tensors that follow from constants alone."""
        known = set(self.tensors)
        for node in self.nodes:
            operands = [name for name in node.inputs if name]
            if operands and not node.captured and all(name in known for name in operands):
                known.update(node.outputs)
        return frozenset(known)

    def fold(self, name: str) -> Array | None:
        """The value of a tensor that follows from constants alone (weights behind Transpose, Cast, …), else None.

        None, too, where ONNX's reference implementation can't compute it.
        """
        if name not in self.derived:
            return None
        if (value := self.constant(name)) is not None:
            return value
        above = self.ancestors([name], self._values)
        for node in (node for node in self.nodes if node.index in above):
            operands = [self.constant(operand) if operand else None for operand in node.inputs]
            try:
                results = run_node(node, self.opset, operands)
            except Exception:  # of many kinds, from an implementation that checks nothing
                return None
            self._values.update(zip(filter(None, node.outputs), results, strict=False))
        return self._values.get(name)

    def moved_from(self, name: str) -> list[str]:
        """A constant operand and the tensors it is moved from, the constant last; empty if it isn't only moved.

        Moves are Transpose, Reshape, Cast and the like, and a pair of QuantizeLinear and DequantizeLinear; the first may be
        a DequantizeLinear of the constant itself.
        """
        chain = [name]
        while name not in self.tensors:
            node = self.producer.get(name)
            if node is None or name not in self.derived:
                return []
            if node.op not in _MOVES and not (node.op == "DequantizeLinear" and self._is_quantised(node.inputs[0])):
                return []
            name = node.inputs[0]
            chain.append(name)
        return chain

    def _is_quantised(self, name: str) -> bool:
        return name in self.tensors or self.producer[name].op == "QuantizeLinear"

    def ancestors(self, names: Iterable[str], stop: Iterable[str] = ()) -> set[int]:
        """Indices (`Node.index`) of the nodes that compute `names` from `stop`, inputs and constants."""
        known, found = set(stop), set[int]()
        pending = list(names)
        while pending:
            name = pending.pop()
            node = self.producer.get(name)
            if node is None or name in known or node.index in found:
                continue
            found.add(node.index)
            pending += [*node.inputs, *node.captured]
        return found


def run_node(node: Node, opset: int, operands: list[Array | None]) -> list[Array]:
    """One node's outputs by ONNX's reference implementation."""
    assert node.proto is not None
    feeds = {name: operand for name, operand in zip(node.inputs, operands, strict=True) if name}
    assert all(operand is not None for operand in feeds.values())
    alone = onnx.helper.make_graph(
        [node.proto], "node", [onnx.ValueInfoProto(name=name) for name in feeds],
        [onnx.ValueInfoProto(name=name) for name in node.outputs if name],
    )  # fmt: skip
    imports = [onnx.helper.make_opsetid("", opset)]
    imports += [onnx.helper.make_opsetid(node.domain, 1)] if node.domain not in ("", "ai.onnx") else []
    try:
        evaluator = ReferenceEvaluator(onnx.helper.make_model(alone, opset_imports=imports))
    except RuntimeError:  # no implementation as old as that (DequantizeLinear): the newest computes the same
        evaluator = ReferenceEvaluator(node.proto)
    with np.errstate(all="ignore"):  # ONNX Runtime says nothing either
        return [np.asarray(result) for result in evaluator.run(None, feeds)]


def shape_values(graph: Graph, shapes: dict[str, Shape], constants: dict[str, Array] | None = None) -> dict[str, Array]:
    """The values of all integer tensors that follow from shapes and constants (Shape–Gather–Concat chains).

    Args:
        graph: the model.
        shapes: the shape of every tensor, constants included, for which values are wanted.
        constants: values that stand in for the graph's own integer constants.
    """
    constants = constants or {}
    values: dict[str, Array | None] = {}

    def value(name: str) -> Array | None:
        if name not in values and name in graph.tensors:
            tensor = graph.tensors[name]
            small = int(np.prod(tensor.dims, dtype=np.int64)) <= _SMALL_VALUE
            values[name] = constants.get(name, graph.constant(name)) if small else None
        return values.get(name)

    for node in graph.nodes:
        if node.op == "Shape" and not node.domain:
            if node.inputs[0] in shapes:
                full = np.array(shapes[node.inputs[0]], np.int64)
                values[node.key] = full[node.attrs.get("start", 0) : node.attrs.get("end", len(full))]
            continue
        if node.op == "Size" and node.inputs[0] in shapes:
            values[node.key] = np.array(np.prod(shapes[node.inputs[0]], dtype=np.int64))
            continue
        operands = [value(name) if name else None for name in node.inputs]
        if not operands or node.captured or any(o is None and n for o, n in zip(operands, node.inputs, strict=True)):
            continue
        if all(name in graph.tensors for name in node.inputs if name) and not _is_integer(operands):
            continue  # weights behind Transpose or Cast: `Graph.fold` does those on demand
        if any(int(np.prod(shapes.get(name, ()), dtype=np.int64)) > _SMALL_VALUE for name in node.outputs):
            continue
        with contextlib.suppress(Exception):  # whatever can't be evaluated has no value, which is always safe
            values.update(zip(filter(None, node.outputs), run_node(node, graph.opset, operands), strict=False))
    return {name: v for name, v in values.items() if v is not None}


def _is_integer(operands: list[Array | None]) -> bool:
    return any(o is not None and o.dtype.kind in "iub" for o in operands)


def read(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """Read an .onnx file without its external data.

    Raises:
        ModelError: the file is missing, unreadable, truncated or not ONNX.
    """
    file = Path(path)
    try:
        if file.is_dir():
            raise ModelError(f"{file} is a folder; pass the path of an .onnx model.")
        if not stat.S_ISREG(file.stat().st_mode):
            raise ModelError(f"{file} is a device or a pipe; pass the path of an .onnx file.")
        model = onnx.load(str(file), format="protobuf", load_external_data=False)
    except FileNotFoundError:
        raise ModelError(f"{file}: no such file; pass the path of an .onnx model.") from None
    except DecodeError:
        raise ModelError(f"{file} is not an ONNX file or is truncated; {_remedy(file)}.") from None
    except OSError as error:
        raise ModelError(f"{file} can't be read ({error.strerror or error}).") from None
    if model.graph.node and not model.opset_import and model.ir_version >= 3:
        raise ModelError(f"{file} names no operator set, or is truncated; export or copy it again.")
    if not model.graph.node:
        raise ModelError(f"{file} is not an ONNX model (it holds no graph); export or copy it again.")
    sound.check(model, str(file))
    return model


def _remedy(file: Path) -> str:
    """What to do about a file that is no ONNX: how those of other frameworks become one."""
    how = _EXPORTS.get(file.suffix.lower())
    return f"export the network with {how} first" if how else "export or copy it again"


def load(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """Read an .onnx file; external data is read too, or left where it is and checked where the model is over 2 GB.

    Raises:
        ModelError: the file or its data is missing, unreadable, truncated, damaged or not ONNX.
    """
    file, model = Path(path), read(path)
    try:
        external.attach(model, file.parent)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"{file}: its external data can't be read ({reason}); keep the data files beside it."
        ) from None
    return model


def check(model: onnx.ModelProto) -> str | None:
    """What onnx.checker says against the model, in one line; None if it is content."""
    if any(external.is_external(tensor) for tensor in model.graph.initializer):
        return None  # the checker takes such a model by its path alone; ONNX Runtime has the last word anyway
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        return " ".join(str(error).split())[:300]
    return None


def writable(path: str | os.PathLike[str]) -> Path:
    """The path, once it is sure that a file can be made there.

    Raises:
        OutputError: its folder doesn't exist or is not writable, or the path is a folder, a device or a pipe.
    """
    file = Path(path)
    try:
        if file.is_dir():
            raise OutputError(f"{file} is a folder; pass the path of the .onnx file to write.")
        if file.exists() and not file.is_file():
            raise OutputError(f"{file} is a device or a pipe; pass the path of the .onnx file to write.")
        if not file.parent.is_dir():
            raise OutputError(f"{file} can't be written: the folder {file.parent} does not exist.")
        with tempfile.TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise OutputError(f"{file} can't be written ({error.strerror or error}).") from None
    return file


def save(model: onnx.ModelProto, path: str | os.PathLike[str], *, beside: str | None = None) -> int:
    """Write a model in full or not at all; returns the bytes written.

    Args:
        model: what to write.
        path: the .onnx file.
        beside: suffix of a data file beside it that takes the weights; None to keep them in the file
            (a model over 2 GB always gets one).

    Raises:
        OutputError: it can't be written there.
    """
    file = writable(path)
    outside = any(external.is_external(tensor) for tensor in model.graph.initializer)
    if beside is None and (outside or model.ByteSize() > external.LARGEST):
        beside = ".data"
    written = [file.with_name(file.name + beside)] if beside else []
    try:
        with tempfile.TemporaryDirectory(dir=file.parent, prefix=".thinet-") as folder:
            staged = Path(folder) / file.name
            if beside:
                external.write(model, staged, written[0].name)
            else:
                onnx.save(model, str(staged))
            files = [Path(folder) / target.name for target in (*written, file)]
            size = sum(f.stat().st_size for f in files if f.exists())
            for source in files:
                if source.exists():
                    source.replace(file.parent / source.name)
    except OSError as error:
        raise OutputError(f"{file} can't be written ({error.strerror or error}).") from None
    return size


def data_files(path: str | os.PathLike[str]) -> list[Path]:
    """The files that a model, which `load` has read, keeps its data in."""
    file = Path(path)
    model = onnx.load(str(file), format="protobuf", load_external_data=False)
    outside = [tensor for tensor in protos.tensors(model) if external.is_external(tensor)]
    return sorted({file.parent / external.entries(tensor)["location"] for tensor in outside})


def _constant_tensor(proto: onnx.NodeProto) -> Any:
    """The value of a Constant node as a tensor; None for sparse values and strings."""
    for attribute in proto.attribute:
        kind, value = attribute.type, onnx.helper.get_attribute_value(attribute)
        if kind == AttributeProto.TENSOR:
            return attribute.t
        if kind in (AttributeProto.INT, AttributeProto.INTS):
            return numpy_helper.from_array(np.array(value, np.int64), proto.output[0])
        if kind in (AttributeProto.FLOAT, AttributeProto.FLOATS):
            return numpy_helper.from_array(np.array(value, np.float32), proto.output[0])
    return None


def _read_node(index: int, proto: onnx.NodeProto) -> Node:
    attrs: dict[str, Any] = {}
    for attribute in proto.attribute:
        if attribute.type not in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
            value = onnx.helper.get_attribute_value(attribute)
            attrs[attribute.name] = value.decode(errors="replace") if isinstance(value, bytes) else value
    return Node(
        index, proto.op_type, proto.domain, proto.name, tuple(proto.input), tuple(proto.output), attrs,
        frozenset(protos.captured(proto)), proto,
    )  # fmt: skip
