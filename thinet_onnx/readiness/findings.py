"""What is found in a file, as plain data, and ways to look at one."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import onnx

from thinet_onnx.check_options import EngineName
from thinet_onnx.graph import Graph

_SHORT = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.INT8, onnx.TensorProto.UINT8)

Level = Literal["fail", "warn", "note"]
Topic = Literal["operators", "opset", "types", "sizes", "widths"]


@dataclass(frozen=True)
class Finding:
    """One sentence: `fail` is what the engine can't take, `warn` what may cost speed or digits, `note` is worth knowing.

    `topic` is what of the file it is about.
    """

    level: Level
    text: str
    topic: Topic


@dataclass(frozen=True)
class Padded:
    """A layer whose channels are off the alignment: what it has, and what it is computed as."""

    layer: str
    channels: tuple[int, int]
    padded: tuple[int, int]


@dataclass(frozen=True)
class Padding:
    """Layers of a network whose channels an engine pads to multiples of `multiple`.

    `extra` is what that adds to the multiply-accumulates, as a share of them.
    """

    multiple: int
    layers: int
    padded: tuple[Padded, ...]
    extra: float


@dataclass(frozen=True)
class Command:
    """A command line to run next, and what it is for."""

    label: str
    line: str


@dataclass(frozen=True)
class Readiness:
    """What can be told of a file for an engine; `rules` says by what it was judged."""

    engine: EngineName
    rules: str
    findings: tuple[Finding, ...]
    padding: Padding | None
    commands: tuple[Command, ...]

    @property
    def failures(self) -> list[str]:
        """What the engine can't take."""
        return [finding.text for finding in self.findings if finding.level == "fail"]


class File:
    """A model as its file has it, with a path for command lines."""

    def __init__(self, model: onnx.ModelProto, path: str) -> None:
        self.model, self.path = model, path
        self.graph = Graph(model)

    @property
    def opsets(self) -> dict[str, int]:
        """Version of each operator set that is used; "" is ONNX's own."""
        return {entry.domain if entry.domain != "ai.onnx" else "": entry.version for entry in self.model.opset_import}

    def nodes(self) -> Iterator[onnx.NodeProto]:
        """All nodes: of the graph, of bodies inside it, and of the functions that the file brings."""
        yield from _with_bodies(self.model.graph.node)
        for function in self.model.functions:
            yield from _with_bodies(function.node)

    def functions(self) -> set[tuple[str, str]]:
        """Domain and name of the functions that the file brings."""
        return {(function.domain, function.name) for function in self.model.functions}

    def has_short_types(self) -> bool:
        """Whether some of it is to be computed in 16 or 8 bits."""
        return any(tensor.data_type in _SHORT for tensor in self.graph.tensors.values())

    def open_inputs(self) -> dict[str, list[str]]:
        """Inputs with sizes that the file leaves open: all their sizes, as text."""
        found = {}
        for value in self.graph.inputs:
            dims = value.type.tensor_type.shape.dim
            if any(dim.dim_value < 1 for dim in dims):
                found[value.name] = [str(dim.dim_value) if dim.dim_value > 0 else dim.dim_param or "?" for dim in dims]
        return found


def is_standard(node: onnx.NodeProto) -> bool:
    """Whether an operator is one of ONNX's own."""
    return node.domain in ("", "ai.onnx")


def title(node: onnx.NodeProto) -> str:
    """What people call a node."""
    return node.name or f"{node.op_type}({next(iter(node.output), '')})"


def _with_bodies(nodes: "onnx.NodeProto | list[onnx.NodeProto]") -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _with_bodies(attribute.g.node)
            for body in attribute.graphs:
                yield from _with_bodies(body.node)


def by_kind(nodes: list[onnx.NodeProto], shown: int = 3) -> list[str]:
    """`Kind (2 nodes: a, b)` for each kind of operator."""
    kinds: dict[str, list[str]] = {}
    for node in nodes:
        kind = node.op_type if is_standard(node) else f"{node.domain}::{node.op_type}"
        kinds.setdefault(kind, []).append(title(node))
    told = []
    for kind, names in kinds.items():
        more = f" and {len(names) - shown} more" if len(names) > shown else ""
        count = "1 node" if len(names) == 1 else f"{len(names)} nodes"
        told.append(f"{kind} ({count}: {', '.join(names[:shown])}{more})")
    return told
