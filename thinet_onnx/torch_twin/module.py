"""A graph as a torch module: the same operators, tensor by tensor, with the constants of the file as its parameters."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

import torch
from torch import Tensor, nn

from thinet_onnx import external
from thinet_onnx.errors import ModelError
from thinet_onnx.graph import Graph, Node
from thinet_onnx.torch_twin.dtypes import to_tensor
from thinet_onnx.torch_twin.quantise import dequantize, quantised, requantised
from thinet_onnx.torch_twin.registry import OPERATORS, Call, Function, Operands, State
from thinet_onnx.torch_twin.trained import Trained, find_trained

_NAMED = 5  # operators that an error lists


@dataclass(frozen=True)
class Step:
    """One node in the order of execution; `spent` are the tensors that nobody reads afterwards."""

    function: Function
    call: Call
    inputs: tuple[str, ...]
    sizes: frozenset[int]
    outputs: tuple[str, ...]
    spent: tuple[str, ...]


@dataclass(frozen=True)
class Master:
    """A weight that the file keeps in integers, trained in float: the node that dequantises it, its scale and zero point."""

    call: Call
    scale: Tensor
    zero: Tensor | None
    kind: int

    def opened(self, steps: Tensor) -> Tensor:
        """Float weights from the file's integers."""
        result = dequantize(self.call, steps, self.scale, self.zero)
        assert isinstance(result, Tensor)
        return result

    def closed(self, weights: Tensor) -> Tensor:
        """The file's integers, in float64, from float weights."""
        return quantised(self.call, weights, self.scale, self.zero, self.kind)


class Twin(nn.Module):
    """The part of a graph between some tensors and others.

    Parameters and buffers bear the names of the file's constants, in the spelling of `encoded`; `weights` gives them by
    their own names. Half precision is computed in float32. Integers that follow from shapes and constants stay on the
    CPU wherever the module is.

    Args:
        graph: the model's.
        inputs: names of the tensors that `forward` takes, in order.
        outputs: names of the tensors that it returns, in order.

    Raises:
        ModelError: an operator between them has no twin.
    """

    def __init__(self, graph: Graph, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        self.input_names, self.output_names = tuple(inputs), tuple(outputs)
        self.learn_statistics = False
        self._state = State(declared=_declared_batch(graph))
        trained = find_trained(graph)
        needed = graph.ancestors(outputs, inputs)
        live = _live(graph, trained)
        nodes = [
            node for node in graph.nodes
            if node.index in needed and (node.key in live or node.key not in graph.derived)
        ]  # fmt: skip
        _check_operators(nodes)
        read = {name for node in nodes for name in node.inputs if name} | set(outputs)
        made = {name for node in nodes for name in node.outputs} | set(inputs)
        self._host: dict[str, Tensor] = {}
        self._masters: dict[str, Master] = {}
        self._attributes: dict[str, str] = {}
        for name in sorted(read - made):
            self._keep(graph, name, trained, nodes)
        self._statistics = tuple(sorted(trained.statistics & self._attributes.keys()))
        self._learners = frozenset(
            node.key for node in nodes
            if (names := [node.operand(place) for place in OPERATORS[node.kind].statistics])
            and all(name in self._statistics and len(graph.consumers[name]) == 1 for name in names)
        )  # fmt: skip
        self._steps = self._plan(graph, nodes)
        self.eval()

    def _keep(self, graph: Graph, name: str, trained: Trained, nodes: Sequence[Node]) -> None:
        """Take in a constant: a parameter, a buffer, or a tensor on the host."""
        tensor = graph.tensors.get(name)
        value = external.array(tensor) if tensor is not None else graph.fold(name)
        if value is None:
            raise ModelError(f"{name!r} is read but never made: check the model with onnx.checker.")
        start = to_tensor(value)
        if name in trained.masters:
            node = trained.masters[name]
            self._masters[name] = _master(graph, node, self._call(graph, node))
            start = self._masters[name].opened(start)
        attribute = self._attribute(name)
        if name in trained.weights:
            self.register_parameter(attribute, nn.Parameter(start))
        elif start.is_floating_point() and any(_as_data(node, name) for node in nodes):
            self.register_buffer(attribute, start)
        else:
            self._host[name] = start
            return
        self._attributes[name] = attribute

    def _attribute(self, name: str) -> str:
        """A name for a parameter that no attribute of the module has; `decoded` gives the constant's name back."""
        attribute = encoded(name)
        return f"%{ord(attribute[0]):02X}{attribute[1:]}" if hasattr(self, attribute) else attribute

    def _call(self, graph: Graph, node: Node) -> Call:
        kinds = tuple(graph.tensors[name].data_type if name in graph.tensors else 0 for name in node.inputs)
        return Call(node, graph.opset, kinds, self._state)

    def _plan(self, graph: Graph, nodes: Sequence[Node]) -> list[Step]:
        """The steps in order, each with the tensors that it is the last to read."""
        wanted = set(self.output_names) | set(self._attributes) | set(self._host)
        steps = []
        for node in reversed(nodes):
            spent = tuple(sorted({name for name in (*node.inputs, *node.outputs) if name and name not in wanted}))
            wanted.update(spent)
            entry = OPERATORS[node.kind]
            master = self._masters.get(node.inputs[0]) if node.op == "DequantizeLinear" else None
            function = entry.function if master is None else requantised(master.kind)
            steps.append(Step(function, self._call(graph, node), node.inputs, entry.sizes, node.outputs, spent))
        return steps[::-1]

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The outputs for inputs in the order of `input_names`: a bare tensor if there is one, else a tuple.

        Raises:
            ValueError: the number of inputs is wrong.
        """
        found = self.run(dict(zip(self.input_names, inputs, strict=True)))
        return found[0] if len(found) == 1 else found

    def run(self, feeds: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """The outputs for inputs by name."""
        values = {name: _computed(feeds[name]) for name in self.input_names}
        first = next((value for value in values.values() if value.ndim), None)
        self._state.batch = None if first is None else first.shape[0]
        self._state.learning = self._learners if self.training and self.learn_statistics else frozenset()
        values |= self._host | {name: getattr(self, attribute) for name, attribute in self._attributes.items()}
        for step in self._steps:
            operands = _together([
                None if not name else values[name].tolist() if place in step.sizes else values[name]
                for place, name in enumerate(step.inputs)
            ])  # fmt: skip
            result = step.function(step.call, *operands)
            for name, value in zip(step.outputs, (result,) if isinstance(result, Tensor) else result, strict=False):
                if name:
                    values[name] = value
            for name in step.spent:
                values.pop(name, None)
        return tuple(values[name] for name in self.output_names)

    def share_statistics(self, total: Callable[[Tensor], Tensor] | None) -> None:
        """Let norms that learn sum over several processes: `total` adds a tensor up over all of them, gradients too."""
        self._state.total = total

    def weights(self) -> dict[str, nn.Parameter]:
        """The trained constants by their names in the file."""
        return {name: getattr(self, a) for name, a in self._attributes.items() if a in self._parameters}

    def statistics(self) -> dict[str, Tensor]:
        """The running means and variances of norms by their names in the file."""
        return {name: getattr(self, self._attributes[name]) for name in self._statistics}

    def opened(self, name: str, steps: Tensor) -> Tensor:
        """A constant of the file as this module keeps it: integers that are trained as float weights."""
        return self._masters[name].opened(steps) if name in self._masters else steps

    def closed(self, name: str, value: Tensor) -> Tensor:
        """A constant of this module as the file keeps it, in a type that loses nothing."""
        return self._masters[name].closed(value) if name in self._masters else value


def encoded(name: str) -> str:
    """A constant's name as a parameter may be called: dots and percent signs as %2E and %25."""
    return name.replace("%", "%25").replace(".", "%2E") or "%"


def decoded(attribute: str) -> str:
    """The constant's name of a parameter."""
    return unquote(attribute)


def _declared_batch(graph: Graph) -> int | None:
    """The size of the first axis of the inputs, None if it is open."""
    for value in graph.inputs:
        dims = value.type.tensor_type.shape.dim
        if len(dims):
            return dims[0].dim_value if dims[0].HasField("dim_value") and dims[0].dim_value > 0 else None
    return None


def _live(graph: Graph, trained: Trained) -> set[str]:
    """Tensors that follow from constants alone, a trained one among them: made anew in every pass."""
    live = set(trained.weights)
    for node in graph.nodes:
        if node.key in graph.derived and live.intersection(node.inputs):
            live.update(node.outputs)
    return live - trained.weights


def _check_operators(nodes: Sequence[Node]) -> None:
    missing = {node.kind: node.title for node in nodes if node.kind not in OPERATORS}
    if not missing:
        return
    listed = ", ".join(f"{kind} (node {title})" for kind, title in list(missing.items())[:_NAMED])
    rest = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
    raise ModelError(
        f"There is no PyTorch twin for the operator {listed}{rest}: train a part of the network that doesn't hold it."
    )


def _as_data(node: Node, name: str) -> bool:
    """Whether a node reads a constant as a tensor, and not as numbers that name sizes."""
    return any(operand == name and place not in OPERATORS[node.kind].sizes for place, operand in enumerate(node.inputs))


def _master(graph: Graph, node: Node, call: Call) -> Master:
    scale, zero = graph.fold(node.inputs[1]), graph.fold(node.operand(2)) if node.operand(2) else None
    if scale is None:
        raise ModelError(f"The scale of {node.title} is computed from the input, for which there is no PyTorch twin.")
    kind = graph.tensors[node.inputs[0]].data_type
    return Master(call, to_tensor(scale), None if zero is None else to_tensor(zero), kind)


def _computed(x: Tensor) -> Tensor:
    """An input in the precision that the twin computes in."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _together(operands: list[Operands]) -> list[Operands]:
    """Operands on one device: what lies on the host follows the others."""
    devices = {x.device for x in operands if isinstance(x, Tensor)}
    if len(devices) < 2:
        return operands
    device = next(place for place in devices if place.type != "cpu")
    return [x.to(device) if isinstance(x, Tensor) else x for x in operands]
