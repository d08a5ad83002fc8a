"""The project's one oracle, and a deeper form of it that looks at every tensor in between."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx

from thinet_onnx import graph as graphs
from thinet_onnx import runtime, surgery, verify
from thinet_onnx.groups import Analysis, analyse, loss, make_plan
from thinet_onnx.labels import Ids
from thinet_onnx.plan import PrunePlan

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]

TOLERANCE = 1e-4


def analysed(model: onnx.ModelProto, feeds: Feeds) -> Analysis:
    graph = graphs.Graph(model)
    return analyse(graph, runtime.observed_shapes(graph, feeds))


def random_kept(analysis: Analysis, seed: int, *, inner: bool = False, least: int = 0) -> list[Ids]:
    """For each group a random choice of units, at least max(floor, `least`); something goes, if anything can.

    With `inner` the groups that several layers add into stay whole.
    """
    rng = np.random.default_rng(seed)
    free = [not (inner and group.coupled) for group in analysis.groups]
    kept = []
    for group, may in zip(analysis.groups, free, strict=True):
        count = int(rng.integers(max(group.floor, least), group.size + 1)) if may else group.size
        kept.append(np.sort(rng.permutation(group.size)[:count]))
    if all(len(units) == group.size for units, group in zip(kept, analysis.groups, strict=True)):
        places = [
            i for i, group in enumerate(analysis.groups) if free[i] and group.size > max(group.floor, least)
        ]  # fmt: skip
        for place in places[:1]:
            kept[place] = kept[place][1:]
    return kept


def prune(model: onnx.ModelProto, analysis: Analysis, kept: list[Ids]) -> tuple[PrunePlan, onnx.ModelProto]:
    plan = make_plan(analysis, kept)
    return plan, surgery.apply(model, plan)


def holds(
    model: onnx.ModelProto, analysis: Analysis, kept: list[Ids], feeds: Feeds, *, deep: bool = True
) -> tuple[PrunePlan, onnx.ModelProto]:
    """Cut, and assert all that must be true of what comes out; returns the plan and the pruned model."""
    before = model.SerializeToString(deterministic=True)
    plan, pruned = prune(model, analysis, kept)
    assert model.SerializeToString(deterministic=True) == before, "the argument was changed"
    assert graphs.check(pruned) is None
    assert weights_in(pruned) < weights_in(model)
    if deep:
        items = {name: value[: analysis.shapes[name][0]] if value.ndim else value for name, value in feeds.items()}
        observed = runtime.observed_shapes(graphs.Graph(pruned), items)
        expected = expected_shapes(analysis, kept)
        expected = {name: expected[name] for name in still_made(plan, pruned, expected)}
        assert {name: observed[name] for name in expected} == expected
    found = verify.oracle(model, pruned, plan, [feeds])
    assert found <= TOLERANCE, f"outputs differ by {found}"
    if deep:
        worst = deep_differences(model, pruned, plan, analysis, kept, feeds)
        wrong = {name: value for name, value in worst.items() if not value <= TOLERANCE}
        assert not wrong, f"tensors differ: {wrong}"
    return plan, pruned


def still_made(plan: PrunePlan, pruned: onnx.ModelProto, names: Iterable[str]) -> list[str]:
    """Of some tensors those that didn't vanish with a branch: what fed one is gone, what came out of one is a constant."""
    graph = graphs.Graph(pruned)
    return [name for name in names if not plan.erased or (name in graph.producer and name not in graph.derived)]


def weights_in(model: onnx.ModelProto) -> int:
    """Elements of all constants."""
    return sum(int(np.prod(tensor.dims, dtype=np.int64)) for tensor in graphs.Graph(model).tensors.values())


def expected_shapes(analysis: Analysis, kept: list[Ids]) -> dict[str, graphs.Shape]:
    """What the labels say about the shape of every tensor that is read, shape arithmetic aside."""
    lost = loss(analysis, kept)
    graph = analysis.graph
    shapes: dict[str, graphs.Shape] = {}
    for name in (graph.consumers.keys() | set(graph.outputs)) & graph.producer.keys() - analysis.context.values.keys():
        sizes = list(analysis.shapes[name])
        for axis, vector in analysis.context.tensors.get(name, {}).items():
            sizes[axis] -= int(lost(vector).sum())
        shapes[name] = tuple(sizes)
    return shapes


def deep_differences(
    model: onnx.ModelProto, pruned: onnx.ModelProto, plan: PrunePlan, analysis: Analysis, kept: list[Ids], feeds: Feeds
) -> dict[str, float]:
    """For each activation with labels: masked original without the lost indices against the pruned model's tensor.

    The difference is relative to the largest value of the tensor; infinite where the shapes differ.
    """
    graph = analysis.graph
    labelled = [name for name, axes in analysis.context.tensors.items() if axes]
    labelled = still_made(plan, pruned, labelled)
    names = [name for name in labelled if name in graph.producer and name not in graph.derived]
    if not names:
        return {}
    lost = loss(analysis, kept)
    masked = values_of(verify.masked(model, plan), names, feeds)
    cut = values_of(pruned, names, feeds)
    differences: dict[str, float] = {}
    for name in names:
        expected, actual = masked[name], cut[name]
        for axis, vector in analysis.context.tensors[name].items():
            expected = np.delete(expected, np.flatnonzero(lost(vector)), axis)
        differences[name] = verify.difference([[expected]], [[actual]])
    return differences


def values_of(model: onnx.ModelProto, names: list[str], feeds: Feeds) -> dict[str, Array]:
    """The values of some tensors, nothing fused."""
    copy = runtime.runnable(model)
    present = {output.name for output in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    results = runtime.run(runtime.session(copy, optimise=False), feeds, names)
    return dict(zip(names, results, strict=True))
