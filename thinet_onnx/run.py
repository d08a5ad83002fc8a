"""The steps of one pruning run, from a model made ready and data to the cut file.

examine → analyse → observe the original → weigh the groups → widths → prune, shallow to deep → cut → check
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import onnx

from thinet_onnx import data as sources
from thinet_onnx import graph as graphs
from thinet_onnx import runtime, summary, surgery, verify, weigh
from thinet_onnx.batches import Batches
from thinet_onnx.calibration import Calibration, own_rows
from thinet_onnx.choose import Chooser, Rebuilt
from thinet_onnx.consumers import Consumer, collect, late_biases
from thinet_onnx.decide import Decision, decide, given, price, why_not
from thinet_onnx.errors import DataError, NothingToPruneError, OptionError
from thinet_onnx.examine import examine
from thinet_onnx.groups import Analysis, LostFunction, analyse, cut_constant, loss, make_plan
from thinet_onnx.latency import Bench
from thinet_onnx.options import Progress, PruneOptions, Storage
from thinet_onnx.plan import PrunePlan
from thinet_onnx.ranks import ALONE, Ranks
from thinet_onnx.result import TuneCurve
from thinet_onnx.rules import Linear
from thinet_onnx.setting import Setting
from thinet_onnx.state import Kept
from thinet_onnx.stopwatch import Stopwatch
from thinet_onnx.sweep import Sweep
from thinet_onnx.temper import Tempered, temper
from thinet_onnx.trial import Trial
from thinet_onnx.weigh import Weighed

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]

HELD_OUT = 0.125  # share of the calibration samples that nothing is fitted on
_TOLERANCE = {False: 1e-3, True: 5e-2}  # of the oracle: for float32, and where 16 or 8 bits round more
_BATCH_ELEMENTS = 650_000  # input elements of one batch, more or less
_LEAST_BATCHES = 8  # so that some can be kept apart, to check on what the others fit


def one_and_two(source: sources.Source, rows: list[int]) -> list[Feeds]:
    """Feeds of one item, and of two where they can run together."""
    return [source.batch(rows[:count]) for count in ((1, 2) if source.stackable and len(rows) > 1 else (1,))]


class Run:
    """The steps of one run; what one leaves for the next is kept here.

    `model` is the original with an open batch, to run many items at once; what is written is cut from the original itself.
    Of several processes each has its share of the batches, those held out, too, and the first one keeps what is kept.
    """

    def __init__(
        self, setting: Setting, source: sources.Source, options: PruneOptions, preprocess: sources.Preprocess,
        progress: Progress, stopwatch: Stopwatch | None = None, storage: Storage | None = None,
        test: sources.Source | None = None, ranks: Ranks = ALONE,
    ) -> None:  # fmt: skip
        self.ranks = ranks
        self.source, self.options, self.preprocess, self.progress = source, options, preprocess, progress
        if len(source) < 2:
            raise OptionError(f"{source.description}: at least 2 samples are needed, one to fit and one to check.")
        progress.start("Reading", 1)
        self.fit, self.held = sources.split(source, HELD_OUT, options.seed)
        item = source.batch(self.fit[:1])
        elements = max(sum(array.size for array in item.values()), 1)
        most = min(32, _BATCH_ELEMENTS // elements, len(self.fit) // _LEAST_BATCHES)
        wanted = max(1, most) if source.stackable else 1
        self.setting, shapes = examine(setting, one_and_two(source, self.fit))
        self.model = runtime.with_open_batch(self.setting.graph, shapes)
        self.size = ranks.once(
            lambda: runtime.batch_limit(setting.model, self.model, source.batch, len(source), wanted)
        )
        self.held_batches = Batches(source.batch, own_rows(ranks, self.held, self.size), self.size)
        self.analysis = analyse(graphs.Graph(self.model), shapes)
        self.test = test
        (answer,) = runtime.outputs(self.model, [item])
        verify.require_numbers(self.setting.graph.outputs, answer)
        self.unfit = verify.unfit_labels(answer, (test or source).labels)
        if self.unfit is not None and test is not None:
            raise DataError(f"{test.description}: its {self.unfit}; number them from 0.")
        self.storage = storage or Storage()
        self.kept: Kept | None = None
        self.bench = Bench.open(self.setting, source, options, stopwatch, ranks) if options.for_latency else None

    @cached_property
    def held_before(self) -> list[list[Array]]:
        """What the original answers to `held_batches`."""
        return runtime.outputs(self.model, self.held_batches)

    def prepare(self) -> "Prepared":
        """Find out what may shrink, and who reads it.

        Raises:
            NothingToPruneError: nothing may.
        """
        options, analysis = self.options, self.analysis
        consumers = collect(analysis)
        self._find_biases(consumers)
        chooser = Chooser(analysis, consumers, options)
        candidates = [
            g for g in range(len(analysis.groups)) if chooser.readers[g] and why_not(analysis, g, options) is None
        ]
        if not candidates:
            raise NothingToPruneError(summary.nothing_to_prune(self.setting.name, analysis, options))
        data = Calibration.open(self.ranks, self.source.batch, self.fit, self.size)
        if self.storage.used:
            batches = data.own, self.held_batches
            self.kept = Kept.open(self.storage, self.setting.read, batches, options, summary.versions(), self.ranks)
        return Prepared(Sweep(analysis, consumers, chooser, data, self.progress), candidates)

    def _find_biases(self, consumers: list[Consumer]) -> None:
        """Look up biases that only a run of the network can tell."""
        late = late_biases(self.analysis, consumers)
        if not late:
            return
        names = list(dict.fromkeys(late.values()))
        shown = runtime.runnable(self.model)
        del shown.graph.output[:]
        shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        answers = runtime.run(runtime.session(shown), self.source.batch(self.fit[:1]), names)
        found = dict(zip(names, answers, strict=True))
        for consumer, name in late.items():
            value = np.asarray(found[name], np.float64).ravel() * consumer.layer.beta
            consumer.bias = np.broadcast_to(value, (consumer.layer.out_channels,)).copy()
            consumer.bias_known = True

    def settle(self) -> "Settled":
        """Observe, and decide on widths."""
        prepared = self.prepare()
        sweep, candidates = prepared.sweep, prepared.candidates
        decision = given(sweep.chooser, candidates)
        if decision is not None:
            cut = [g for g, size in enumerate(self.analysis.sizes) if decision.widths[g] < size]
            return Settled(sweep, self.weighed(prepared, cut, weights=False), decision)
        known = self.ranks.once(lambda: None if self.kept is None else self.kept.decision())
        cost = None if known is not None else price(sweep.chooser, candidates, self.progress, self.bench)
        weighed = self.weighed(prepared, candidates)
        if cost is None:
            assert known is not None
            return Settled(sweep, weighed, known.of(weighed))
        found = decide(sweep.chooser, weighed, candidates, cost, self.progress, self.bench)
        decision = self.ranks.once(lambda: found)
        if self.kept is not None:
            self.kept.add_decision(decision)
        return Settled(sweep, weighed, decision)

    def weighed(self, prepared: "Prepared", cut: Sequence[int], *, weights: bool = True) -> Weighed:
        """What is known of the groups: read where an earlier run kept it, else found out, and kept.

        Args:
            prepared: what may shrink.
            cut: groups whose channels will be picked.
            weights: find out the groups' errors and sensitivities, too; without them a few layers are observed only.
        """
        sweep, candidates = prepared.sweep, prepared.candidates
        reuse, weights = weights, weights or self.storage.save_moments is not None
        cut = candidates if weights else cut
        later = weigh.later_readers(sweep.chooser, cut)
        read = None if self.kept is None else self.kept.weighed(sweep.consumers, weights=weights)
        told = self.ranks.once(lambda: None if read is None else read.bare())
        found = told if read is None else read
        if found is None and weights:
            readers = sweep.readers(candidates)
            data = sweep.sample(readers)
            trial = Trial(self.model, sweep.chooser, len(candidates), data)
            seen = sweep.survey(readers, candidates, trial, later, data)
            found = weigh.weigh(seen.tried, seen.views, sweep.chooser.ridges)
        elif found is None:
            ranked = cut if self.options.reconstruction == "joint" else []
            both = {*sweep.readers(ranked), *later}
            seen = sweep.survey([c for c in sweep.consumers if c in both], ranked, later=later)
            found = Weighed({}, {}, {}, seen.views, orders=seen.orders)
        sweep.chooser.ridges = dict(found.ridges) if reuse else {}
        if self.kept is not None:
            self.kept.add_weighed(found)
        return found

    def work(self) -> "Outcome":
        """Observe, decide, prune, cut, verify."""
        settled = self.settle()
        return self.finish(settled.sweep, settled.weighed, settled.decision)

    def finish(self, sweep: Sweep, weighed: Weighed, decision: Decision) -> "Outcome":
        """Prune, cut, verify."""
        orders = weighed.orders if self.options.reconstruction == "joint" else {}
        journal = None if self.kept is None else self.kept.journal
        kept, rebuilt = sweep.prune(weighed.views, decision.widths, journal, orders)
        plan = make_plan(self.analysis, kept)
        self.progress.start("Cutting and verifying", 4)
        wide = surgery.apply(self.model, plan)
        narrow = partial(_narrow, self.analysis, loss(self.analysis, kept), graphs.Graph(wide))
        tempered = None
        if self.options.reconstruction != "none":

            def run(refits: Sequence[surgery.Refit]) -> verify.Outputs:
                return runtime.outputs(surgery.refit(wide, narrow(refits)), self.held_batches)

            columns = partial(sweep.chooser.columns, kept=dict(enumerate(kept)))
            tempered = temper(rebuilt, columns, run, self.held_before, len(wide.graph.output), self.ranks)
            rebuilt = tempered.rebuilt
        self.progress.advance()
        uncut = [refit for entry in rebuilt for refit in entry.refits()]
        pruned, error = self._cut(plan, uncut, narrow(uncut))
        return Outcome(pruned, surgery.refit(wide, narrow(uncut)), plan, rebuilt, decision, error, tempered)

    def held_after(self, outcome: "Outcome") -> verify.Outputs:
        """What the pruned network answers to `held_batches`."""
        if outcome.tempered is not None and outcome.tuned is None:
            return outcome.tempered.answers
        return runtime.outputs(outcome.twin, self.held_batches)

    def _cut(
        self, plan: PrunePlan, uncut: list[surgery.Refit], cut: list[surgery.Refit]
    ) -> tuple[onnx.ModelProto, float]:
        """Cut the file twice, without and with new weights, and hold both against the uncut network with zeros."""
        model = self.setting.model
        check = [self.source.batch([row]) for row in self.held[:4]]
        answers = runtime.outputs(model, check)
        bare = surgery.apply(model, plan)
        error = verify.oracle(model, bare, plan, check, answers)
        self.progress.advance()
        pruned = surgery.refit(bare, cut)
        self.progress.advance()
        error = max(error, verify.disagreement(surgery.refit(model, uncut), pruned, answers, check))
        if not error <= _TOLERANCE[self.setting.coarse]:
            raise RuntimeError(
                f"The cut file differs from the original with zeros in place of the removed channels (by {error:.1e}); "
                "nothing was written. This is a defect of thinet-onnx; please report it with the model."
            )
        if self.setting.checked and (complaint := graphs.check(pruned)) is not None:
            raise RuntimeError(f"The cut file fails onnx.checker ({complaint}); nothing was written. Please report it.")
        return pruned, error


def _narrow(
    analysis: Analysis, lost: LostFunction, left: graphs.Graph, refits: Sequence[surgery.Refit]
) -> list[surgery.Refit]:
    """New weights of the uncut network, in the shapes that they have once it is cut, of the layers that are left."""
    layers = {layer.node.key: layer for layer in analysis.context.linears}
    stays = [refit for refit in refits if refit.node in left.producer or refit.node in left.tensors]
    return [
        _cut_refit(analysis, lost, layers[refit.node], refit) for refit in stays
    ]  # a branch may have gone altogether


def _cut_refit(analysis: Analysis, lost: LostFunction, layer: Linear, refit: surgery.Refit) -> surgery.Refit:
    """New weights of the uncut network, in the shape they have once the network is cut."""
    weight = cut_constant(analysis, lost, layer.weight, refit.weight)
    bias = refit.bias
    if bias is not None and layer.out_labels is not None:
        bias = np.delete(bias, np.flatnonzero(lost(layer.out_labels)))
    return surgery.Refit(refit.node, refit.weight_operand, weight, refit.bias_operand, bias)


@dataclass(frozen=True)
class Prepared:
    """What a run goes on with once the graph is understood: the passes, and the groups that may shrink."""

    sweep: Sweep
    candidates: list[int]


@dataclass(frozen=True)
class Settled:
    """What `Run.settle` ends with: the passes, what is known of the groups, and the widths."""

    sweep: Sweep
    weighed: Weighed
    decision: Decision


@dataclass
class Outcome:
    """What `Run.work` ends with: the pruned model (and its twin with an open batch), how it was made, the oracle's error.

    `tuned` is the curve of a training that came after.
    """

    model: onnx.ModelProto
    twin: onnx.ModelProto
    plan: PrunePlan
    rebuilt: list[Rebuilt]
    decision: Decision
    oracle_error: float
    tempered: Tempered | None
    tuned: TuneCurve | None = None
