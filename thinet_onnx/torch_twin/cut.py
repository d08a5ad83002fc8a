"""Which part of a network is trained: all of it, or what can be where some operators have no twin.

    inputs ─ ONNX Runtime ─▶ starts ─ twin ─▶ ends ─ (not run) ─▶ outputs

An output that no gradient passes (an ArgMax, what a NonMaxSuppression picked) is replaced by the nearest tensors before it
that gradients do reach. Where an operator without a twin stands in front, what comes before it is run by ONNX Runtime and
not trained.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from thinet_onnx.errors import ModelError
from thinet_onnx.graph import Graph, Node
from thinet_onnx.torch_twin.dtypes import FLOATS
from thinet_onnx.torch_twin.registry import OPERATORS
from thinet_onnx.torch_twin.trained import find_trained


@dataclass(frozen=True)
class Cut:
    """The twin runs from `starts` to `ends` (names of tensors); `left_out` are titles of operators that have no twin."""

    starts: tuple[str, ...]
    ends: tuple[str, ...]
    left_out: tuple[str, ...]


def find_cut(graph: Graph, trainable_from: str | None = None) -> Cut:
    """The cut that trains most weights; with `trainable_from` none of a node that this one follows from.

    Raises:
        ModelError: no weight can be trained, with the operators that stand in the way, or there is no such node.
    """
    needed = graph.ancestors(graph.outputs)
    missing = [
        node for node in graph.nodes
        if node.index in needed and node.key not in graph.derived and node.kind not in OPERATORS
    ]  # fmt: skip
    inputs = tuple(value.name for value in graph.inputs)
    titles = tuple(f"{node.title} ({node.kind})" for node in missing)
    before = graph.ancestors(name for node in missing for name in (node.key, *node.inputs))
    fronts = [(inputs, set[int]()), *([(_starts(graph, before), before)] if missing else [])]
    if trainable_from is not None:
        first = next((node for node in graph.nodes if trainable_from in (node.name, *node.outputs)), None)
        if first is None:
            raise ModelError(f"--trainable-from {trainable_from}: the model has no node or tensor of this name.")
        before |= graph.ancestors(first.inputs)
        fronts = [(_starts(graph, before), before)]
    cuts = [Cut(starts, _ends(graph, starts, behind), titles) for starts, behind in fronts]
    best = max(cuts, key=lambda cut: _weight(graph, cut))
    if not _weight(graph, best):
        what = (
            f"the operators {', '.join(titles)} have no PyTorch twin"
            if titles
            else "no constant weight leads to an output"
        )
        raise ModelError(f"No weight of the model can be trained: {what}.")
    return best


def _starts(graph: Graph, before: set[int]) -> tuple[str, ...]:
    """Tensors that the nodes outside of `before` take from it or from the inputs."""
    rest = [node for node in graph.nodes if node.index not in before and node.key not in graph.derived]
    made = {name for node in rest for name in node.outputs} | graph.derived
    used = dict.fromkeys(name for node in rest for name in node.inputs if name and name not in made)
    return tuple(used)


def _ends(graph: Graph, starts: tuple[str, ...], before: set[int]) -> tuple[str, ...]:
    """For each output itself, or the nearest tensors before it that the twin makes and gradients reach."""
    reached = _reached(graph, starts, before)
    ends: dict[str, None] = {}
    pending, seen = list(reversed(graph.outputs)), set[str]()
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        node = graph.producer.get(name)
        if name in reached:
            ends[name] = None
        elif node is not None:
            pending.extend(reversed(node.inputs))
    return tuple(ends)


def _reached(graph: Graph, starts: tuple[str, ...], before: set[int]) -> set[str]:
    """Tensors that the twin can compute from `starts` and through which gradients reach a weight."""
    trained = find_trained(graph)
    known = set(starts) | graph.derived
    alive = set(trained.weights)
    for node in graph.nodes:
        entry = OPERATORS.get(node.kind)
        if entry is None or node.index in before or not all(name in known for name in node.inputs if name):
            continue
        known.update(node.outputs)
        if entry.smooth and alive.intersection(node.inputs) and _is_float(node):
            alive.update(node.outputs)
    return (alive & known) - graph.derived


def with_gradients(graph: Graph, ends: Iterable[str]) -> set[str]:
    """Tensors from which smooth operators lead to one of `ends`."""
    found = set(ends)
    for node in reversed(graph.nodes):
        entry = OPERATORS.get(node.kind)
        if entry is not None and entry.smooth and _is_float(node) and found.intersection(node.outputs):
            found.update(node.inputs)
    return found


def _is_float(node: Node) -> bool:
    return node.op != "Cast" or node.attrs.get("to") in FLOATS


def _weight(graph: Graph, cut: Cut) -> int:
    """Elements of the constants that a cut trains."""
    nodes = graph.ancestors(cut.ends, cut.starts)
    read = {name for node in graph.nodes if node.index in nodes for name in node.inputs}
    return sum(prod(graph.tensors[name].dims) for name in find_trained(graph).weights & read)
