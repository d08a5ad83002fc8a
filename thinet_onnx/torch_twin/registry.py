"""The table of operators, and what an operator's function sees of its node.

A function takes `(call, *operands)`, tensors in the order of the node's inputs (None where an optional one is absent), and
returns the output, or a tuple of outputs. It is pure: it neither keeps nor changes anything. Operands that name sizes
or places (a Reshape's target, a Slice's ends) come as Python numbers, so that shape arithmetic never touches the device
that the network runs on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from thinet_onnx.errors import ModelError
from thinet_onnx.graph import Node

Operands = Any  # Tensor, a (nested) list of numbers, or None, by the operator's registration
Result = Tensor | Sequence[Tensor]
Function = Callable[..., Result]


@dataclass
class State:
    """What holds for one pass through the network.

    `declared` is the batch that the file was exported for (None if it is open), `batch` the one of this pass. `learning`
    names the BatchNormalization nodes (by first output) that work on the batch's own mean and variance; `total` then sums
    a tensor over the processes that share the batch.
    """

    declared: int | None = None
    batch: int | None = None
    learning: frozenset[str] = frozenset()
    total: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Call:
    """One node of the graph, as its function sees it.

    `kinds` are the ONNX element types of the operands that are constants of the file, 0 for the others.
    """

    node: Node
    opset: int
    kinds: tuple[int, ...] = ()
    state: State = field(default_factory=State)

    def integer(self, name: str, default: int) -> int:
        """An integer attribute."""
        return int(self.node.attrs.get(name, default))

    def number(self, name: str, default: float) -> float:
        """A float attribute."""
        return float(self.node.attrs.get(name, default))

    def integers(self, name: str, default: Sequence[int] = ()) -> list[int]:
        """A list of integers."""
        return [int(value) for value in self.node.attrs.get(name, default)]

    def text(self, name: str, default: str) -> str:
        """A string attribute."""
        return str(self.node.attrs.get(name, default))

    def refuse(self, what: str) -> ModelError:
        """The error that says that the twin doesn't do what this node asks for."""
        return ModelError(f"{self.node.title} ({self.node.kind}) has {what}, for which there is no PyTorch twin.")


@dataclass(frozen=True)
class Operator:
    """A function with what is known of its operands.

    `sizes`: operands handed over as Python numbers. `weights`: operands that are trained where they are constants. `scales`:
    a constant operand is trained where it has one value for each channel (the bias of a MatMul, a folded norm).
    `statistics`: constants that a pass may update. `smooth`: gradients reach the operands.
    """

    function: Function
    sizes: frozenset[int]
    weights: tuple[int, ...]
    scales: bool
    statistics: tuple[int, ...]
    smooth: bool


OPERATORS: dict[str, Operator] = {}


def operator(
    *kinds: str, sizes: Sequence[int] = (), weights: Sequence[int] = (), scales: bool = False,
    statistics: Sequence[int] = (), smooth: bool = True,
) -> Callable[[Function], Function]:  # fmt: skip
    """Register a function for operators (`Relu`, or `domain::Op` outside the standard one)."""

    def register(function: Function) -> Function:
        entry = Operator(function, frozenset(sizes), tuple(weights), scales, tuple(statistics), smooth)
        for kind in kinds:
            assert kind not in OPERATORS, kind
            OPERATORS[kind] = entry
        return function

    return register
