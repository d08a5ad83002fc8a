"""The oracle over random graphs: more than a thousand, some for each way to use each operator of the rule table.

THINET_EXAMPLES is how many are drawn for each step (6), THINET_SEED draws others. Twenty thousand, in half an hour:

    THINET_EXAMPLES=100 THINET_SEED=1 python -m pytest tests/test_random_graphs.py
"""

import os
import zlib

import numpy as np
import onnx
import onnxruntime
import pytest
import random_steps  # noqa: F401  registers the steps
from graphs import Array
from hypothesis import HealthCheck, given, note, seed, settings
from hypothesis import strategies as st
from onnxruntime.capi import onnxruntime_pybind11_state as pybind
from oracle import Feeds, expected_shapes, prune, still_made
from random_graphs import STEPS, Entry, Program, programs

from thinet_onnx import graph as graphs
from thinet_onnx import runtime, shuffle, verify
from thinet_onnx.groups import Analysis, analyse, loss
from thinet_onnx.labels import Ids
from thinet_onnx.prepare import prepare
from thinet_onnx.rules import RULES

EXAMPLES = int(os.environ.get("THINET_EXAMPLES", "6"))
SEED = int(os.environ.get("THINET_SEED", "0"))
REFUSED = (pybind.Fail, pybind.InvalidGraph, pybind.NotImplemented, pybind.RuntimeException)
CRASHES = ["MatmulTransposeFusion"]  # ONNX Runtime 1.32, on Transpose–Cast–MatMul


def test_every_operator_has_a_step() -> None:
    assert {entry.kind for entry in STEPS} == set(RULES)
    assert len(STEPS) * EXAMPLES >= 1000


def chosen(analysis: Analysis, rng: np.random.Generator, share: float, inner: bool) -> list[Ids]:
    """For each group a random choice of units: all but `share` of them, at least its floor."""
    kept = []
    for group in analysis.groups:
        count = group.size if inner and group.coupled else max(group.floor, round(group.size * (1 - share)))
        kept.append(np.sort(rng.permutation(group.size)[:count]))
    return kept


class Run:
    """A model that shows some of its tensors; bfloat16, which no array can hold, as float."""

    def __init__(self, p: Program, model: onnx.ModelProto, names: list[str], *, optimise: bool = False) -> None:
        copy = runtime.runnable(model)
        self.names = [f"{name}_shown" if p.kinds.get(name) == "bfloat16" else name for name in names]
        for name, shown in zip(names, self.names, strict=True):
            if name != shown:
                copy.graph.node.append(onnx.helper.make_node("Cast", [name], [shown], to=onnx.TensorProto.FLOAT))
        present = {output.name for output in copy.graph.output}
        copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in self.names if name not in present)
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 4, 1
        if not optimise:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.session = onnxruntime.InferenceSession(
            copy.SerializeToString(), options, ["CPUExecutionProvider"], disabled_optimizers=CRASHES
        )

    def __call__(self, feeds: Feeds) -> list[Array]:
        return self.session.run(self.names, feeds)


class Pair:
    """A masked original and the pruned file, run side by side."""

    def __init__(self, p: Program, model: onnx.ModelProto, analysis: Analysis, kept: list[Ids]) -> None:
        self.p, self.model, self.analysis, self.lost = p, model, analysis, loss(analysis, kept)
        plan, self.pruned = prune(model, analysis, kept)
        self.masked = verify.masked(model, plan)
        graph, axes = analysis.graph, analysis.context.tensors
        self.shapes = expected_shapes(analysis, kept)
        inner = [name for name, own in axes.items() if own and name in graph.producer and name not in graph.derived]
        shown = still_made(plan, self.pruned, [*inner, *self.shapes])
        if plan.erased:  # what no output needs may have lost its operands
            needed = graph.ancestors(graph.outputs)
            shown = [name for name in shown if graph.producer[name].index in needed]
        self.names = list(dict.fromkeys([*graph.outputs, *shown]))
        self.runs = Run(p, self.masked, self.names), Run(p, self.pruned, self.names)
        self.optimised = self._optimised()

    def _optimised(self) -> Run | None:
        """The pruned model as ONNX Runtime optimises it; None where it can't do that with the original either."""
        outputs = self.analysis.graph.outputs
        try:
            return Run(self.p, self.pruned, outputs, optimise=True)
        except REFUSED:
            with pytest.raises(REFUSED):
                Run(self.p, self.model, outputs, optimise=True)
            return None

    def wrong(self, feeds: Feeds) -> dict[str, str]:
        """What is different in which tensor; shapes must be right without exception."""
        expected, actual = (run(feeds) for run in self.runs)
        found: dict[str, str] = {}
        for name, before, after in zip(self.names, expected, actual, strict=True):
            if name in self.shapes and before.shape == self.analysis.shapes[name]:
                assert after.shape == self.shapes[name], name
            left = before
            for axis, vector in self.analysis.context.tensors.get(name, {}).items():
                left = np.delete(left, np.flatnonzero(self.lost(vector)), axis)
            if not (difference := verify.difference([[left]], [[after]])) <= self.p.tolerance[name]:
                found[name] = f"differs by {difference}"
        outputs = self.analysis.graph.outputs
        return found | (self._beside(feeds, expected[: len(outputs)], outputs) if self.optimised and not found else {})

    def _beside(self, feeds: Feeds, plain: list[Array], outputs: list[str]) -> dict[str, str]:
        """The same of the optimised model, beyond what is rounding for `verify.oracle`."""
        assert self.optimised is not None
        actual, worst = self.optimised(feeds), max(self.p.tolerance[name] for name in outputs)
        if verify.difference([plain], [actual]) <= worst:
            return {}
        masked, original = (Run(self.p, m, outputs, optimise=True)(feeds) for m in (self.masked, self.model))
        difference = verify.difference([masked], [actual], [original], [plain])
        return {} if difference <= worst else {outputs[0]: f"or another output differs by {difference} when optimised"}


def holds(p: Program, model: onnx.ModelProto, analysis: Analysis, kept: list[Ids]) -> None:
    """Cut, and assert what `oracle.holds` asserts, with fewer sessions.

    A wrong channel is wrong on all inputs; what differs on some alone is a rounding that fell on the other side of a step.
    """
    note(str({group.name: units.tolist() for group, units in zip(analysis.groups, kept, strict=True)}))
    pair = Pair(p, model, analysis, kept)
    assert graphs.check(pair.pruned) is None
    for batch in [None] if p.single else [None, 3]:
        wrong = pair.wrong(p.feed(batch=batch))
        for seed_ in (2, 3):
            again = pair.wrong(p.feed(seed_, batch)) if wrong else {}
            wrong = {name: text for name, text in wrong.items() if name in again}
        assert not wrong, wrong


PLANS = (("all", 0.3), ("all", 0.6), ("inner", 0.3), ("inner", 0.6))


def verdict(p: Program, scope: str, share: float, *, rewritten: bool) -> None:
    model = p.model()
    assert graphs.check(model) is None
    shapes = runtime.observed_shapes(graphs.Graph(model), p.feed())
    assert {m.name: shapes[m.name] for m in p.maps} == {m.name: m.shape for m in p.maps}
    if rewritten:
        model = rewrite(p, model)
    analysis = analyse(graphs.Graph(model), shapes)
    assert not analysis.groups or analysis.removable
    rng = np.random.default_rng(len(p.nodes))
    for kept in (chosen(analysis, rng, share, scope == "inner"), chosen(analysis, rng, 1.0, False)):
        if any(len(units) < group.size for units, group in zip(kept, analysis.groups, strict=True)):
            holds(p, model, analysis, kept)


def rewrite(p: Program, model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in the form that a run prunes: computed weights folded, shuffles unrolled. It answers as before."""
    prepared = prepare(model)
    feeds = [p.feed()] if p.single else [p.feed(), p.feed(batch=3)]
    unrolled = shuffle.unroll(prepared, [runtime.observed_shapes(graphs.Graph(prepared), fed) for fed in feeds])
    outputs = [output.name for output in model.graph.output]
    first = prepared if p.kind == "float16" else model  # ONNX Runtime adds float16 constants in float
    for fed in feeds:
        before, after = (Run(p, m, outputs)(fed) for m in (first, unrolled))
        assert verify.difference([before], [after]) <= max(p.tolerance[name] for name in outputs)
    return unrolled


@pytest.mark.parametrize("focus", STEPS, ids=repr)
def test_random_graphs(focus: Entry) -> None:
    used: set[str] = set()

    @seed(zlib.crc32(f"{focus} {SEED}".encode()))
    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(programs(focus), st.sampled_from(PLANS), st.booleans())
    def check(p: Program, plan: tuple[str, float], rewritten: bool) -> None:
        used.update(node.kind for node in graphs.Graph(p.model()).nodes)
        verdict(p, *plan, rewritten=rewritten)

    check()
    assert focus.kind in used
