"""Run the label rules over a graph and collect channel groups.

A *group* is a set of labels that occur in exactly the same tensors, equally often. Any number of them can go, one is as
costly as another, and every tensor that holds one holds them all; so where each tensor has one group that keeps a label,
nothing is ever emptied. A convolution's outputs are one group as a rule; where a Split or a Concat treats them
differently they are several.
"""

import bisect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import onnx

from thinet_onnx.cost import Cost, macs, params
from thinet_onnx.errors import NothingToPruneError
from thinet_onnx.graph import Array, Graph, Shape, shape_values
from thinet_onnx.labels import Ids, Labels, Reason
from thinet_onnx.plan import ConsumerCut, ErasedLayer, GroupCut, IntEdit, PrunePlan, TensorCut
from thinet_onnx.rules import RULES, Context, Linear, SizeUse
from thinet_onnx.rules.branches import vanishing
from thinet_onnx.rules.counting import freeze_counted

_WEIGHT_TYPES = {
    onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE,
    onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.INT32,
}  # fmt: skip

LostFunction = Callable[[Ids], Array]
"""Which of some labels go."""


@dataclass(frozen=True)
class Group:
    """Channels that can go one by one. `roots[u]` is the label of unit u, in the order of the first producer's outputs.

    `coupled` says that several layers add into these channels (a residual stream). At least `floor` units stay: 1, or 0
    where every tensor that holds these channels holds others that can't all go, or where the whole branch `vanishes`:
    its consumers then answer with their biases.
    """

    name: str
    roots: Ids
    producers: tuple[Linear, ...]
    consumers: tuple[Linear, ...]
    coupled: bool
    floor: int = 1
    vanishes: bool = False

    @property
    def size(self) -> int:
        """Units there are."""
        return len(self.roots)


@dataclass(frozen=True)
class Frozen:
    """Output channels of one linear layer that stay, and why."""

    producer: Linear
    channels: int
    reason: Reason


@dataclass
class Analysis:
    """All that is known of a graph: labels, groups, costs, what stays and why."""

    graph: Graph
    shapes: dict[str, Shape]
    context: Context
    groups: list[Group]
    frozen: list[Frozen]
    channels: int
    group_of: dict[int, int]
    macs: Cost
    params: Cost

    @property
    def removable(self) -> int:
        """Output channels of linear layers that may go, of `channels`."""
        return self.channels - sum(entry.channels for entry in self.frozen)

    def roots(self, ids: Ids) -> Ids:
        """The representative of each label."""
        return self.context.labels.find(ids)

    def units(self, layer: Linear) -> tuple[Ids, Ids]:
        """For each input channel of a layer: index of its group and of the unit in it; −1 where the channel stays."""
        assert layer.in_labels is not None
        group_of, unit_of = self._places
        roots = self.roots(layer.in_labels)
        return group_of[roots], unit_of[roots]

    @cached_property
    def sizes(self) -> list[int]:
        """Units of each group, nothing removed."""
        return [group.size for group in self.groups]

    @cached_property
    def _places(self) -> tuple[Ids, Ids]:
        """For each label that stands for others: index of its group and of the unit in it, or −1."""
        group_of, unit_of = np.full((2, len(self.context.labels)), -1, np.int64)
        for index, group in enumerate(self.groups):
            group_of[group.roots] = index
            unit_of[group.roots] = np.arange(group.size)
        return group_of, unit_of

    @cached_property
    def constant_labels(self) -> list[tuple[int, int, str, int]]:
        """The first label of each axis of a constant, how many there are, the constant and the axis; ascending."""
        constants = self.context.constants.items()
        return sorted((int(v[0]), len(v), name, axis) for name, axes in constants for axis, v in axes.items())


def analyse(graph: Graph, shapes: dict[str, Shape]) -> Analysis:
    """Follow every channel through the graph (one pass in topological order).

    Args:
        graph: the model.
        shapes: the concrete shape of every tensor, as ONNX Runtime reported it.
    """
    shapes = dict(shapes) | {name: tuple(tensor.dims) for name, tensor in graph.tensors.items()}
    context = Context(graph, shapes, shape_values(graph, shapes))
    for name, tensor in graph.tensors.items():
        if tensor.data_type in _WEIGHT_TYPES:
            context.constants[name] = {a: context.labels.new(size) for a, size in enumerate(tensor.dims) if size > 1}
            context.tensors[name] = dict(context.constants[name])
    for node in graph.nodes:
        context.node = node
        rule = RULES.get(node.kind)
        if rule is None:
            context.freeze_node(node, f"feeds the operator {node.kind}, which is unknown (see CONTRIBUTING)")
        elif any(shapes.get(name) is None for name in (*node.inputs, *node.outputs) if name) and node.op != "Shape":
            context.freeze_node(node, f"is used by {node.title}, where a shape is not known before the run")
        else:
            rule(context, node)
    for name in graph.outputs:
        context.node = graph.producer.get(name, context.node)
        context.freeze_axes(context.axes(name), f"feeds the graph output {name!r}")
    freeze_counted(context)
    return _collect(graph, shapes, context)


def _collect(graph: Graph, shapes: dict[str, Shape], context: Context) -> Analysis:
    """Groups, what stays, and costs, once all labels have settled."""
    labels = context.labels
    weights = {layer.weight: layer for layer in reversed(context.linears) if not layer.depthwise}
    producers = list(reversed(weights.values()))  # a weight that is used several times counts once
    signature = _signatures(context)
    groups = _named_apart(_with_floors(context, _sorted_groups(context, producers, signature)))
    frozen = [entry for layer in producers for entry in _frozen_outputs(labels, layer)]
    frozen += [entry for group in groups for entry in _left_whole(labels, group)]
    groups = [group for group in groups if group.size > group.floor and group.consumers]
    gone = vanishing(context, [(group.roots, group.consumers) for group in groups])
    groups = [replace(g, floor=0, vanishes=True) if vanishes else g for g, vanishes in zip(groups, gone, strict=True)]
    group_of = {root: index for index, group in enumerate(groups) for root in group.roots.tolist()}
    batch = _batch(graph, shapes)
    return Analysis(
        graph, shapes, context, groups, frozen, sum(layer.out_channels for layer in producers), group_of,
        macs(context.linears, batch, group_of, labels.find, len(groups)),
        params(graph, context.constants, group_of, labels.find, len(groups)),
    )  # fmt: skip


def _sorted_groups(context: Context, producers: list[Linear], signature: Array) -> list[Group]:
    """Labels that may go, by signature, in the order of the layers that make them."""
    labels = context.labels
    residual = set(labels.find(np.concatenate([np.empty(0, np.int64), *context.residual])).tolist())
    members: dict[int, dict[int, None]] = {}
    makers: dict[int, dict[str, Linear]] = {}
    for layer in producers:
        if layer.out_labels is None:
            continue
        for root in labels.find(layer.out_labels[~labels.frozen(layer.out_labels)]).tolist():
            members.setdefault(int(signature[root]), {})[root] = None
            makers.setdefault(int(signature[root]), {})[layer.weight] = layer
    takers = _takers(context, signature)
    groups = []
    for key, units in members.items():
        made_by, roots = tuple(makers[key].values()), np.array(list(units), np.int64)
        coupled = not residual.isdisjoint(units)
        groups.append(Group(made_by[0].node.title, roots, made_by, tuple(takers.get(key, ())), coupled))
    return groups


def _frozen_outputs(labels: Labels, layer: Linear) -> list[Frozen]:
    """The output channels of a layer that stay, by reason."""
    if layer.out_labels is None:
        phrase = "is the only output channel" if layer.out_channels == 1 else "has weights that can't be cut"
        return [Frozen(layer, layer.out_channels, Reason(phrase, layer.node.title, layer.weight))]
    stays: dict[Reason, int] = {}
    for label in layer.out_labels[labels.frozen(layer.out_labels)].tolist():
        reason = labels.reason(label)
        assert reason is not None
        stays[reason] = stays.get(reason, 0) + 1
    return [Frozen(layer, count, reason) for reason, count in stays.items()]


def _left_whole(labels: Labels, group: Group) -> list[Frozen]:
    """The channels of a group of which none can go, for each layer that makes them."""
    if group.size > group.floor and group.consumers:
        return []
    phrase = "is the last of its kind in some tensor"
    if not group.consumers:
        phrase = "has no linear layer after it that could make up for it"
    entries = []
    for layer in group.producers:
        assert layer.out_labels is not None
        count = int(np.isin(labels.find(layer.out_labels), group.roots).sum())
        entries.append(Frozen(layer, count, Reason(phrase, layer.node.title, layer.node.key)))
    return entries


def _batch(graph: Graph, shapes: dict[str, Shape]) -> int:
    """The batch of the analysed shapes: axis 0 of the first input with a rank."""
    return next((shapes[value.name][0] for value in graph.inputs if shapes.get(value.name)), 1) or 1


def _signatures(context: Context) -> Array:
    """For each representative a number that tells in which tensors, on which axes and how often its label occurs."""
    labels = context.labels
    signature = np.zeros(len(labels), np.uint64)
    generator = np.random.default_rng(0)
    for axes in context.tensors.values():
        for vector in axes.values():
            token = generator.integers(1, 1 << 63, dtype=np.uint64)
            np.add.at(signature, labels.find(vector), token)
    return signature


def _with_floors(context: Context, groups: list[Group]) -> list[Group]:
    """Settle how many units of each group must stay so that no tensor loses an axis altogether."""
    owner = {root: index for index, group in enumerate(groups) for root in group.roots.tolist()}
    floors = [0] * len(groups)
    held: set[frozenset[int]] = set()
    for axes in context.tensors.values():
        for vector in axes.values():
            owners = {owner.get(root, -1) for root in np.unique(context.labels.find(vector)).tolist()}
            if -1 not in owners:
                held.add(frozenset(owners))
    for together in sorted(held, key=lambda s: (len(s), sorted(s))):
        if not any(floors[index] for index in together):
            floors[max(together, key=lambda index: (groups[index].size, -index))] = 1
    return [replace(group, floor=floor) for group, floor in zip(groups, floors, strict=True)]


def _takers(context: Context, signature: Array) -> dict[int, list[Linear]]:
    takers: dict[int, list[Linear]] = {}
    for layer in context.linears:
        if layer.depthwise or layer.in_labels is None:
            continue
        for key in dict.fromkeys(signature[context.labels.find(layer.in_labels)].tolist()):
            takers.setdefault(key, []).append(layer)
    return takers


def _named_apart(groups: list[Group]) -> list[Group]:
    """Groups of one producer get numbers after its name."""
    total: dict[str, int] = {}
    for group in groups:
        total[group.name] = total.get(group.name, 0) + 1
    count: dict[str, int] = {}
    renamed = []
    for group in groups:
        count[group.name] = count.get(group.name, 0) + 1
        name = group.name if total[group.name] == 1 else f"{group.name}#{count[group.name]}"
        renamed.append(replace(group, name=name))
    return renamed


def loss(analysis: Analysis, kept: list[Ids]) -> LostFunction:
    """A function that tells which of some labels go when group g keeps the units `kept[g]`."""
    gone = np.zeros(len(analysis.context.labels), bool)
    for group, units in zip(analysis.groups, kept, strict=True):
        gone[np.delete(group.roots, units)] = True
    return lambda labels: gone[analysis.roots(labels)]


def cut_constant(analysis: Analysis, lost: LostFunction, name: str, value: Array) -> Array:
    """An array that has the axes of tensor `name`, without the indices that go."""
    for axis, vector in analysis.context.tensors.get(name, {}).items():
        value = np.delete(value, np.flatnonzero(lost(vector)), axis)
    return value


def make_plan(analysis: Analysis, kept: list[Ids]) -> PrunePlan:
    """Everything that changes when group g keeps the units `kept[g]` (ascending), as data.

    Raises:
        NothingToPruneError: no group loses a unit.
    """
    cuts_of_group = tuple(
        GroupCut(group.name, tuple(p.node.title for p in group.producers), group.size, tuple(map(int, units)))
        for group, units in zip(analysis.groups, kept, strict=True)
    )
    if all(cut.after == cut.before for cut in cuts_of_group):
        raise NothingToPruneError(
            "No channel is removed by this choice; ask for a smaller target or a smaller --round-to."
        )
    lost = loss(analysis, kept)
    cuts = [
        TensorCut(name, axis, tuple(np.flatnonzero(lost(vector)).tolist()))
        for name, axes in analysis.context.constants.items()
        for axis, vector in axes.items()
        if lost(vector).any()
    ]
    consumers: dict[tuple[str, int], ConsumerCut] = {}
    for layer in analysis.context.linears:
        if not layer.depthwise and layer.in_labels is not None and lost(layer.in_labels).any():
            weight, axis = source_axis(analysis, layer)
            removed = np.flatnonzero(lost(analysis.context.tensors[weight][axis]))
            consumers[weight, axis] = ConsumerCut(layer.node.title, weight, axis, tuple(removed.tolist()))
    erased = tuple(
        ErasedLayer(layer.node.key, layer.y_axis, len(analysis.shapes[layer.node.key]))
        for group, units in zip(analysis.groups, kept, strict=True)
        if group.vanishes and not len(units)
        for layer in group.consumers
    )
    return PrunePlan(cuts_of_group, tuple(consumers.values()), tuple(cuts), tuple(_edits(analysis, lost)), erased)


def source_axis(analysis: Analysis, layer: Linear) -> tuple[str, int]:
    """The constant and its axis that hold a layer's input channels, through Transpose, Cast and the like.

    Weights that the graph computes from constants in another way (a sum, ConstantOfShape) are named by the operand.
    """
    label = int(analysis.context.tensors[layer.weight][layer.in_axis][0])
    if not analysis.graph.moved_from(layer.weight):
        return layer.weight, layer.in_axis
    starts = analysis.constant_labels
    found = starts[bisect.bisect_right(starts, label, key=lambda entry: entry[0]) - 1]
    first, size, name, axis = found
    return (name, axis) if first <= label < first + size else (layer.weight, layer.in_axis)


def _edits(analysis: Analysis, lost: LostFunction) -> list[IntEdit]:
    """The integers that change; those that the graph itself computes right are left alone."""
    context, graph = analysis.context, analysis.graph
    after = dict(analysis.shapes)
    for name, axes in context.tensors.items():
        sizes = list(after[name])
        for axis, vector in axes.items():
            sizes[axis] -= int(lost(vector).sum())
        after[name] = tuple(sizes)
    values = shape_values(graph, after)
    edits = []
    for use in context.sizes:
        now = _present(use, values)
        touched = (lost(v).any() for name in (*use.node.inputs, *use.node.outputs) for v in context.axes(name).values())
        if now == _present(use, context.values) and not any(touched):
            continue
        new = _wanted(use, lost)
        if use.implicit and len(set(new.values())) == 1:
            continue
        if now is not None and not use.implicit and _agrees(use, now, new, after.get(use.node.inputs[0], ())):
            continue
        length = len(new) if use.positions is not None else use.length
        edits.append(IntEdit(use.node.key, use.operand, use.attribute, tuple(new.get(i) for i in range(length))))
        if use.drops:
            edits.append(IntEdit(use.node.key, None, use.drops, ()))
    return edits


def _agrees(use: SizeUse, now: list[int], new: dict[int, int], source: Shape) -> bool:
    """Whether the integers already say what is wanted (in a Reshape, −1 fits itself and 0 copies)."""
    if use.positions is not None and len(now) != len(new):
        return False
    if use.node.op == "Reshape":
        now = [new.get(i, v) if v == -1 else source[i] if v == 0 and i < len(source) else v for i, v in enumerate(now)]
    return all(now[index] == value for index, value in new.items())


def _present(use: SizeUse, values: dict[str, Array]) -> list[int] | None:
    """What the operand or attribute would say after the cut if nobody touched it; None if unknown or absent."""
    if use.attribute is not None:
        found = use.node.attrs.get(use.attribute)
        return None if found is None else [found] if isinstance(found, int) else list(found)
    assert use.operand is not None
    name = use.node.operand(use.operand)
    value = values.get(name)
    return None if value is None else [int(v) for v in np.ravel(value)]


def _wanted(use: SizeUse, lost: LostFunction) -> dict[int, int]:
    if use.positions is not None:
        assert use.labels is not None
        stays = ~lost(use.labels)
        place = np.cumsum(stays) - 1
        return dict(enumerate(place[use.positions][stays[use.positions]].tolist()))
    return {index: use.sign * int((~lost(vector)).sum()) for index, vector in use.elements}
