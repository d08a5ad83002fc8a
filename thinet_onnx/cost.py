"""MACs and parameters of a network as exact functions of which labels are kept.

MACs are multiply-accumulates of one run at the analysed shapes, divided by the batch: Conv, ConvTranspose, Gemm and MatMul
by a constant. They are bilinear: (kept inputs) × (kept outputs) × taps × positions / groups for a layer.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from thinet_onnx.graph import Graph
from thinet_onnx.labels import Axes, Ids
from thinet_onnx.rules import Linear

Kept = Callable[[Ids], np.ndarray]
Factor = tuple[int, tuple[tuple[int, int], ...]]
"""The size of an axis, (base, ((group, count), …)): base + Σ_g count_g × kept channels of group g."""


class Priced(Protocol):
    """What a `Cost` is the sum of: a part of the network whose price depends on the groups that `factors` name."""

    @property
    def factors(self) -> tuple[Factor, ...]:
        """Sizes that the price depends on."""

    def value(self, kept: Sequence[int], changed: int = -1, width: int = 0) -> float:
        """The price when group g keeps `kept[g]` channels, and group `changed` keeps `width`."""


@dataclass(frozen=True)
class Term:
    """`scale` × Π over factors of (base + Σ_g count_g × kept channels of group g); MACs of a layer or size of a tensor."""

    scale: float
    factors: tuple[Factor, ...]

    def value(self, kept: Sequence[int], changed: int = -1, width: int = 0) -> float:
        """The term's value when group g keeps `kept[g]` channels, and group `changed` keeps `width`."""
        result = self.scale
        for base, parts in self.factors:
            result *= base + sum(count * (width if group == changed else kept[group]) for group, count in parts)
        return result


class Cost:
    """The sum of terms; fast to evaluate for one group's change."""

    def __init__(self, terms: Iterable[Priced], groups: int) -> None:
        self.terms = list(terms)
        self._touching: list[list[Priced]] = [[] for _ in range(groups)]
        for term in self.terms:
            for group in {group for _, parts in term.factors for group, _ in parts}:
                self._touching[group].append(term)

    def total(self, kept: list[int]) -> float:
        """The whole network's cost."""
        return sum(term.value(kept) for term in self.terms)

    def neighbours(self, group: int) -> set[int]:
        """Groups whose savings depend on this group's width."""
        return {other for term in self._touching[group] for _, parts in term.factors for other, _ in parts}

    def saving(self, kept: Sequence[int], group: int, fewer: int) -> float:
        """What the network costs less when `group` keeps `fewer` channels instead of `kept[group]`."""
        return sum(term.value(kept) - term.value(kept, group, fewer) for term in self._touching[group])


def factor(size: int, labels: Ids | None, group_of: dict[int, int], roots: Callable[[Ids], Ids]) -> Factor:
    """An axis of `size` as base + Σ count_g·kept_g; each label of group g occurs equally often on the axis."""
    if labels is None:
        return size, ()
    found, times = np.unique(roots(labels), return_counts=True)
    parts: dict[int, tuple[int, int]] = {}
    base = 0
    for root, count in zip(found.tolist(), times.tolist(), strict=True):
        group = group_of.get(root)
        if group is None:
            base += count
        else:
            parts[group] = (count, parts.get(group, (0, 0))[1] + 1)
    return base, tuple((group, count) for group, (count, _) in sorted(parts.items()))


def macs(
    linears: Iterable[Linear], batch: int, group_of: dict[int, int], roots: Callable[[Ids], Ids], groups: int
) -> Cost:
    """The network's MACs for one input, by the number of channels each group keeps.

    Args:
        linears: all linear layers.
        batch: the batch size of the analysed shapes.
        group_of: representative of a label → index of its group; labels that stay are absent.
        roots: representative of each label.
        groups: the number of groups.
    """
    terms = []
    for layer in linears:
        scale = layer.taps * layer.positions / batch
        inputs = factor(layer.in_channels, layer.in_labels, group_of, roots)
        outputs = factor(layer.out_channels, layer.out_labels, group_of, roots)
        if layer.depthwise:
            factors: tuple[Factor, ...] = (outputs,)
        else:
            factors, scale = (inputs, outputs), scale / layer.groups
        terms.append(Term(scale, factors))
    return Cost(terms, groups)


def params(
    graph: Graph, constants: dict[str, Axes], group_of: dict[int, int], roots: Callable[[Ids], Ids], groups: int
) -> Cost:
    """The number of elements of all weight constants (floating point or quantised), likewise."""
    terms = []
    for name, tensor in graph.tensors.items():
        if name not in constants:
            continue
        axes = constants[name]
        terms.append(
            Term(1.0, tuple(factor(size, axes.get(axis), group_of, roots) for axis, size in enumerate(tensor.dims)))
        )
    return Cost(terms, groups)
