"""From a model and data to a pruned model: the order of the steps, and nothing numeric of its own.

read → analyse → observe the original → weigh the groups → allocate → prune, shallow to deep → cut → verify → report
"""

import dataclasses
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
import onnx

from thinet_onnx import data as sources
from thinet_onnx import examples, external, runtime, summary, surgery, verify
from thinet_onnx import graph as graphs
from thinet_onnx.calibration import Calibration, batched, check_same
from thinet_onnx.choose import Chooser, Rebuilt, View
from thinet_onnx.consumers import Consumer, collect
from thinet_onnx.decide import Decision, decide, why_not
from thinet_onnx.errors import NothingToPruneError, OptionError
from thinet_onnx.examine import examine
from thinet_onnx.groups import Analysis, LostFunction, analyse, cut_constant, loss, make_plan
from thinet_onnx.joined import join, joined
from thinet_onnx.labels import Ids
from thinet_onnx.latency import Bench
from thinet_onnx.options import Progress, PruneOptions, Scope, Show, Silent
from thinet_onnx.plan import PrunePlan
from thinet_onnx.ranks import ALONE, Ranks
from thinet_onnx.result import Accuracy, Examples, Inspection, Latency, Report, Size, TuneCurve
from thinet_onnx.rules import Linear
from thinet_onnx.setting import Data, Setting, closed_inputs, open_data, open_model
from thinet_onnx.stopwatch import Stopwatch
from thinet_onnx.sweep import Sweep
from thinet_onnx.temper import Tempered, temper

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]

_TOLERANCE = {False: 1e-3, True: 5e-2}  # of the oracle: for float32, and where 16 or 8 bits round more
HELD_OUT = 0.125  # share of the calibration samples that nothing is fitted on
_BATCH_ELEMENTS = 1_200_000  # input elements of one batch, more or less
_LEAST_BATCHES = 8  # so that some can be kept apart, to check on what the others fit


@dataclass(frozen=True)
class PruneResult:
    """The pruned model, the plan that made it (data, JSON round trip) and the report."""

    model: onnx.ModelProto
    plan: PrunePlan
    report: Report


def inspect(
    model: onnx.ModelProto | str | os.PathLike[str],
    *,
    shapes: dict[str, tuple[int, ...]] | None = None,
    scope: Scope = "all",
) -> Inspection:
    """What of a model can go, and why the rest can't; needs no data.

    Args:
        model: a path or a ModelProto.
        shapes: sizes of inputs that the file leaves open.
        scope: `inner` counts residual streams as staying.

    Raises:
        ModelError, OptionError.
    """
    setting = open_model(model, shapes or {})
    source = sources.random_source(closed_inputs(setting, shapes or {}), samples=2, seed=0)
    setting, observed = examine(setting, _one_and_two(source, [0, 1]))
    analysis = analyse(setting.graph, observed)
    return summary.inspection(setting.name, analysis, PruneOptions(keep=0.5, scope=scope), setting.warnings)


def prune(
    model: onnx.ModelProto | str | os.PathLike[str],
    data: Data,
    options: PruneOptions,
    *,
    preprocess: sources.Preprocess | None = None,
    random_data: bool = False,
    test_data: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    show: Show | None = None,
    progress: Progress | None = None,
    work: "Callable[[Run], Outcome] | None" = None,
    stopwatch: Stopwatch | None = None,
    ranks: Ranks | None = None,
) -> PruneResult:
    """Prune a model.

    Run by torchrun, each process observes its part of the data; all return the same, and the first one writes.

    Args:
        model: a path or a ModelProto; it is left as it is.
        data: calibration data: a path, arrays, an iterable of feeds, or a Source.
        options: what is asked for.
        preprocess: how images become inputs.
        random_data: calibrate on noise (for a try; the report warns).
        test_data: labelled data for accuracy before and after; the calibration data's own labels otherwise.
        output: where to write the result; nothing is written otherwise.
        show: which held-out samples the report shows, and how their outputs are read; none if None (or for noise).
        progress: who is told how far the run is.
        work: what is done in place of `Run.work`.
        stopwatch: who measures for a latency target; the engine of the options otherwise.
        ranks: the processes that take part; by default those that torchrun started.

    Raises:
        ThinetError: see `errors`.
    """
    if ranks is None:
        with joined(join()) as others:
            return prune(
                model, data, options, preprocess=preprocess, random_data=random_data, test_data=test_data, output=output,
                show=show, progress=progress, work=work, stopwatch=stopwatch, ranks=others,
            )  # fmt: skip
    started = time.perf_counter()
    progress = (progress if ranks.first else None) or Silent()
    preprocess = preprocess or sources.Preprocess()
    setting = open_model(model, options.shapes)
    if output is not None and ranks.first:
        graphs.writable(output)
    source = _open_data(setting, data, options, preprocess, random_data)
    test = sources.open_source(test_data, setting.inputs, preprocess) if test_data is not None else None
    if test is not None and test.labels is None:
        raise OptionError(
            f"--test-data {test_data} has no labels; add a key 'labels', or sort the images into folders."
        )
    check_same(ranks, len(source), setting.model)
    run = Run(setting, source, options, preprocess, progress, stopwatch, ranks)
    try:
        result = work(run) if work is not None else run.work()
        report = _report(run, result, test, random_data, output, started, None if random_data else show)
    finally:
        progress.close()
    return PruneResult(result.model, result.plan, report)


def _open_data(
    setting: Setting, data: Data, options: PruneOptions, preprocess: sources.Preprocess, random_data: bool
) -> sources.Source:
    if random_data:
        if data is not None:
            raise OptionError("--random-data and --data contradict each other; pass one of them.")
        return sources.random_source(
            closed_inputs(setting, options.shapes), samples=options.samples or 64, seed=options.seed
        )
    if data is None:
        raise OptionError("No calibration data: pass a folder of images, .npy, .npz, script.py:function, or arrays.")
    return open_data(data, setting, preprocess, options.samples, options.seed)


def _one_and_two(source: sources.Source, rows: list[int]) -> list[Feeds]:
    """Feeds of one item, and of two where they can run together."""
    return [source.batch(rows[:count]) for count in ((1, 2) if source.stackable and len(rows) > 1 else (1,))]


class Run:
    """The steps of one run; what one leaves for the next is kept here.

    `model` is the original with an open batch, to run many items at once; what is written is cut from the original itself.
    """

    def __init__(
        self, setting: Setting, source: sources.Source, options: PruneOptions, preprocess: sources.Preprocess,
        progress: Progress, stopwatch: Stopwatch | None = None, ranks: Ranks = ALONE,
    ) -> None:  # fmt: skip
        self.ranks = ranks
        self.source, self.options, self.preprocess, self.progress = source, options, preprocess, progress
        if len(source) < 2:
            raise OptionError(f"{source.description}: at least 2 samples are needed, one to fit and one to check.")
        progress.start("Reading", 1)
        self.fit, self.held = sources.split(source, HELD_OUT, options.seed)
        item = source.batch(self.fit[:1])
        elements = max(sum(array.size for array in item.values()), 1)
        most = min(64, _BATCH_ELEMENTS // elements, len(self.fit) // _LEAST_BATCHES)
        wanted = max(1, most) if source.stackable else 1
        self.setting, shapes = examine(setting, _one_and_two(source, self.fit))
        self.model = runtime.with_open_batch(self.setting.graph, shapes)
        self.size = ranks.once(
            lambda: runtime.batch_limit(setting.model, self.model, source.batch, len(source), wanted)
        )
        self.analysis = analyse(graphs.Graph(self.model), shapes)
        self.bench = Bench.open(self.setting, source, options, stopwatch, ranks) if options.for_latency else None

    def batches(self, rows: list[int]) -> list[Feeds]:
        """Feeds of some samples, in batches: this process's share of them."""
        return [self.source.batch(some) for some in self.ranks.share(batched(rows, self.size))]

    def calibration(self) -> Calibration:
        """The batches that are fitted on."""
        rows = batched(self.fit, self.size)
        return Calibration.open(self.ranks, len(self.fit), len(rows), lambda number: self.source.batch(rows[number]))

    def settle(self) -> "Settled":
        """Observe, and decide on widths."""
        options, analysis = self.options, self.analysis
        consumers = collect(analysis)
        chooser = Chooser(analysis, consumers, options)
        candidates = [
            g for g in range(len(analysis.groups)) if chooser.readers[g] and why_not(analysis, g, options) is None
        ]
        if not candidates:
            raise NothingToPruneError(summary.nothing_to_prune(self.setting.name, analysis, options))
        data = self.calibration()
        sweep = Sweep(analysis, consumers, chooser, data, self.progress)
        views = sweep.survey(candidates)
        decision = decide(self.model, chooser, views, candidates, data, self.progress, self.bench)
        return Settled(sweep, views, self.ranks.once(lambda: decision))

    def work(self) -> "Outcome":
        """Observe, decide, prune, cut, verify."""
        settled = self.settle()
        decision = settled.decision
        kept, rebuilt = settled.sweep.prune(settled.views, decision.widths)
        plan = make_plan(self.analysis, kept)
        self.progress.start("Cutting and verifying", 4)
        tempered = None
        if self.options.reconstruction != "none":
            columns = partial(settled.sweep.chooser.columns, kept=dict(enumerate(kept)))
            tempered = temper(self.model, rebuilt, columns, self.batches(self.held), self.ranks)
            rebuilt = tempered.rebuilt
        self.progress.advance()
        return self._cut(plan, kept, rebuilt, decision, tempered)

    def _cut(
        self,
        plan: PrunePlan,
        kept: list[Ids],
        rebuilt: list[Rebuilt],
        decision: Decision,
        tempered: Tempered | None,
    ) -> "Outcome":
        """Cut the file twice, without and with new weights, and hold both against the uncut network with zeros."""
        model, analysis = self.setting.model, self.analysis
        check = [self.source.batch([row]) for row in self.held[:4]]
        bare = surgery.apply(model, plan)
        error = verify.oracle(model, bare, plan, check)
        self.progress.advance()
        lost = loss(analysis, kept)
        uncut = [refit for entry in rebuilt for refit in entry.refits()]
        layers = {layer.node.key: layer for layer in analysis.context.linears}
        left = graphs.Graph(bare)  # a branch that went altogether took its layers along
        stays = [refit for refit in uncut if refit.node in left.producer or refit.node in left.tensors]
        cut = [_cut_refit(analysis, lost, layers[refit.node], refit) for refit in stays]
        pruned = surgery.refit(bare, cut)
        self.progress.advance()
        error = max(error, verify.disagreement(surgery.refit(model, uncut), pruned, model, check))
        if not error <= _TOLERANCE[self.setting.coarse]:
            raise RuntimeError(
                f"The cut file differs from the original with zeros in place of the removed channels (by {error:.1e}); "
                "nothing was written. This is a defect of thinet-onnx; please report it with the model."
            )
        if self.setting.checked and (complaint := graphs.check(pruned)) is not None:
            raise RuntimeError(f"The cut file fails onnx.checker ({complaint}); nothing was written. Please report it.")
        wide = surgery.refit(surgery.apply(self.model, plan), cut)
        return Outcome(pruned, wide, plan, rebuilt, decision, error, tempered)


def _cut_refit(analysis: Analysis, lost: LostFunction, layer: Linear, refit: surgery.Refit) -> surgery.Refit:
    """New weights of the uncut network, in the shape they have once the network is cut."""
    weight = cut_constant(analysis, lost, layer.weight, refit.weight)
    bias = refit.bias
    if bias is not None and layer.out_labels is not None:
        bias = np.delete(bias, np.flatnonzero(lost(layer.out_labels)))
    return surgery.Refit(refit.node, refit.weight_operand, weight, refit.bias_operand, bias)


@dataclass(frozen=True)
class Settled:
    """What `Run.settle` ends with: the passes, what they saw of the original, and the widths."""

    sweep: Sweep
    views: dict[Consumer, View]
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


def _report(
    run: Run, outcome: Outcome, test: sources.Source | None, random_data: bool, output: str | os.PathLike[str] | None,
    started: float, show: Show | None,
) -> Report:  # fmt: skip
    """Measure both models, write the pruned one, and tell: the first process does, with answers from all of them."""
    run.progress.start("Measuring", 3)
    held = run.batches(run.held)
    before, after = (run.ranks.gather_first(runtime.outputs(model, held)) for model in (run.model, outcome.twin))
    accuracy = _accuracy(run, outcome.twin, test)
    run.progress.advance()
    return run.ranks.once(
        lambda: _told(run, outcome, before, after, accuracy, test, random_data, output, started, show)
    )


def _told(
    run: Run, outcome: Outcome, before: verify.Outputs, after: verify.Outputs, accuracy: Accuracy | None,
    test: sources.Source | None, random_data: bool, output: str | os.PathLike[str] | None, started: float, show: Show | None,
) -> Report:  # fmt: skip
    """The report; the pruned model is written on the way."""
    setting, analysis, options = run.setting, run.analysis, run.options
    answers = examples.Held(run.source, run.held, run.size, setting.graph.outputs, before, after)
    near = verify.fidelity(answers.names, before, after, items=answers.items)
    shown = Examples()
    if show is not None:
        shown = examples.collect(answers, setting.inputs, run.preprocess, near, show, options.seed)
    run.progress.advance()
    single = run.source.batch(run.held[:1])
    (slow, fast), runs = runtime.latency([setting.model, outcome.model], single)
    run.progress.advance()
    size = external.size(outcome.model)
    if output is not None:
        size = graphs.save(outcome.model, output, beside=setting.beside)
    widths, sizes = [group.after for group in outcome.plan.groups], analysis.sizes
    warnings = list(setting.warnings)
    if random_data:
        warnings.insert(0, "Calibrated on random data: this network is of no use but to time it.")
    if outcome.decision.remark is not None:
        warnings.append(f"Target missed: {outcome.decision.remark}.")
    warnings += summary.left_alone(outcome.rebuilt)
    if outcome.tempered is not None:
        warnings += summary.held_back(outcome.tempered, len(run.fit), len(run.held))
    kept_channels = analysis.channels - summary.channels_cut(analysis, outcome.plan)
    return Report(
        model=setting.name, output=None if output is None else str(output),
        before=Size(round(analysis.macs.total(sizes)), round(analysis.params.total(sizes)), setting.bytes),
        after=Size(round(analysis.macs.total(widths)), round(analysis.params.total(widths)), size),
        target=options.wanted,
        target_met=outcome.decision.remark is None,
        latency=Latency(slow, fast, _batch_of(single), runs), fidelity=near, accuracy=accuracy,
        channels_before=analysis.channels, channels_after=kept_channels,
        groups=summary.group_rows(analysis, outcome.plan, outcome.rebuilt, outcome.decision),
        not_pruned=summary.not_pruned(analysis, options), oracle_error=outcome.oracle_error,
        seconds=time.perf_counter() - started, seed=options.seed,
        options=dataclasses.asdict(options)
        | {
            "method": options.selection, "reconstruct": options.reconstruction, "data": run.source.description,
            "test_data": None if test is None else test.description, "preprocess": dataclasses.asdict(run.preprocess),
            "processes": run.ranks.count,
        },
        versions=summary.versions(), plan=outcome.plan, warnings=tuple(warnings),
        finetune=outcome.tuned, latency_target=outcome.decision.timed,
        held=tuple(map(run.source.title, run.held)), tradeoff=outcome.decision.tradeoff, examples=shown,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )  # fmt: skip


def _batch_of(feeds: Feeds) -> int:
    first = next(iter(feeds.values()))
    return int(first.shape[0]) if first.ndim else 1


def _accuracy(run: Run, pruned: onnx.ModelProto, test: sources.Source | None) -> Accuracy | None:
    """Top-1 accuracy on the test data, or on the held-out calibration data if that has labels."""
    source, rows = (run.source, run.held) if test is None else (test, list(range(len(test))))
    if source.labels is None:
        return None
    mine = run.ranks.share(batched(rows, run.size if source.stackable else 1))
    labels = source.labels[[row for some in mine for row in some]]
    shares = []
    for model in (run.model, pruned):
        right = run.ranks.gather(verify.hits(model, map(source.batch, mine), labels))
        known = [part for part in right if part is not None]
        shares.append(float(np.concatenate(known).mean()) if len(known) == len(right) else None)
    before, after = shares
    return None if before is None or after is None else Accuracy(before, after, len(rows))
