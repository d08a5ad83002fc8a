"""What a rule sees and what it may say: labels in, labels out, sizes that follow a cut, linear layers.

A rule is a function `(context, node) -> None`, registered for one or more operators with `@rule("Relu", "Abs")`. It reads
its operands' labels with `axes`, gives its outputs theirs with `emit`, unites or freezes labels, and notes integers of the
node that name a size (`size`). An operator with no rule freezes what it touches, with its name as the reason.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from thinet_onnx.graph import Array, Graph, Node, Shape
from thinet_onnx.labels import Axes, Ids, Labels, Reason
from thinet_onnx.unfold import Window

Rule = Callable[["Context", Node], None]
RULES: dict[str, Rule] = {}


def rule(*operators: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of these operators (`Relu`, or `domain::Op` outside the standard one)."""

    def register(function: Rule) -> Rule:
        for operator in operators:
            assert operator not in RULES, operator
            RULES[operator] = function
        return function

    return register


@dataclass(frozen=True)
class Linear:
    """One linear layer: `out = weight · window(x) + bias` before any fused activation, channel labels on both sides.

    `in_labels` has one label for each of the input's channels (all convolution groups), `out_labels` one for each of the
    output's; both are None where that side carries none. `in_axis` and `out_axis` are axes of the weight operand; with
    more than one convolution group the group index is the outer part of the grouped axis. The operator computes
    `alpha` · weight product + `beta` · bias. `bias` is the index of the
    bias operand, None for an operator that has none. `depthwise` layers pass their channels on and consume nothing.
    """

    node: Node
    x: str
    weight: str
    weight_operand: int
    bias: int | None
    x_axis: int
    y_axis: int
    in_axis: int
    out_axis: int
    groups: int
    depthwise: bool
    window: Window
    positions: int
    in_channels: int
    out_channels: int
    in_labels: Ids | None
    out_labels: Ids | None
    alpha: float = 1.0
    beta: float = 1.0

    @property
    def taps(self) -> int:
        """Elements of the kernel, K² in the paper."""
        return int(np.prod(self.window.kernel, dtype=np.int64))


@dataclass(frozen=True)
class SizeUse:
    """Integers of a node that follow the cut.

    Element `index` of the operand or attribute becomes `sign` × the number of kept labels in `labels`; with `positions`
    (Gather), the whole operand becomes the new places of the old places `positions` among the kept ones of `labels`.
    `implicit` sizes are absent in the file and stay so while they are all equal (Split); `drops` names an attribute that
    must go when they are written down.
    """

    node: Node
    operand: int | None
    attribute: str | None
    elements: tuple[tuple[int, Ids], ...] = ()
    length: int = 0
    sign: int = 1
    positions: Array | None = None
    labels: Ids | None = None
    implicit: bool = False
    drops: str | None = None


@dataclass
class Context:
    """The state of one analysis, and the vocabulary of the rules."""

    graph: Graph
    shapes: dict[str, Shape]
    values: dict[str, Array]
    labels: Labels = field(default_factory=Labels)
    tensors: dict[str, Axes] = field(default_factory=dict)
    constants: dict[str, Axes] = field(default_factory=dict)
    linears: list[Linear] = field(default_factory=list)
    sizes: list[SizeUse] = field(default_factory=list)
    residual: list[Ids] = field(default_factory=list)
    node: Node | None = None

    def shape(self, name: str) -> Shape | None:
        """The shape of a tensor, None if it isn't known."""
        return self.shapes.get(name)

    def value(self, name: str) -> Array | None:
        """The value of an integer tensor that is known before the run, else None."""
        found = self.values.get(name)
        return self.graph.constant(name) if found is None else found

    def axes(self, name: str) -> Axes:
        """The labels of a tensor (a copy); empty where it has none."""
        return dict(self.tensors.get(name, {}))

    def emit(self, name: str, axes: Axes) -> None:
        """Give an output its labels. A label that would take the whole tensor with it is frozen."""
        if not name:  # an optional output that is absent
            return
        shape = self.shape(name)
        for axis, vector in list(axes.items()):
            if shape is None or axis >= len(shape) or shape[axis] != len(vector):
                self.freeze(vector, f"has a size in {name} that can't be followed")
                del axes[axis]
            elif len(vector) == 1 or (self.labels.find(vector) == self.labels.find(vector[:1])).all():
                self.freeze(vector, "is the only channel of a tensor")
                del axes[axis]
        self.tensors[name] = axes

    def emit_spread(self, name: str, layers: Iterable[Ids]) -> None:
        """Give an output its labels, element by element; what a rectangle can't hold is united or frozen."""
        axes: Axes = {}
        for layer in layers:
            found, whole = self.labels.to_axes(layer)
            self.freeze(whole, "is all that a tensor holds")
            for axis, vector in found.items():
                if axis in axes:
                    self.freeze(vector, "shares its axis with other channels after reshaping")
                else:
                    axes[axis] = vector
        self.emit(name, axes)

    def freeze(self, ids: Ids, phrase: str, tensor: str | None = None) -> None:
        """These channels stay because they … `phrase` (a verb phrase for people)."""
        assert self.node is not None
        if len(ids):
            self.labels.freeze(ids, Reason(phrase, self.node.title, tensor or self.node.key))

    def freeze_axes(self, axes: Axes, phrase: str, keep: Iterable[int] = ()) -> Axes:
        """Freeze the labels of all axes but `keep`; returns the kept ones."""
        kept = set(keep)
        for axis, vector in axes.items():
            if axis not in kept:
                self.freeze(vector, phrase)
        return {axis: vector for axis, vector in axes.items() if axis in kept}

    def freeze_node(self, node: Node, phrase: str) -> None:
        """Freeze everything that goes into a node, and say nothing of what comes out."""
        for name in (*node.inputs, *node.captured):
            self.freeze_axes(self.axes(name), phrase)

    def size(
        self,
        node: Node,
        operand: int | None,
        attribute: str | None,
        elements: dict[int, Ids],
        length: int,
        sign: int = 1,
    ) -> None:
        """Note that elements of an integer operand (or attribute) name the number of kept labels."""
        if elements:
            self.sizes.append(SizeUse(node, operand, attribute, tuple(sorted(elements.items())), length, sign))

    def attribute(self, node: Node, name: str, default: int) -> int:
        """An integer attribute or its default."""
        return int(node.attrs.get(name, default))
