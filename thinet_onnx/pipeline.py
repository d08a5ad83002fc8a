"""From a model and data to a pruned model and what is told of it: read → `run` → measure → write → report."""

import dataclasses
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import onnx

from thinet_onnx import data as sources
from thinet_onnx import examples, external, protos, runtime, summary, verify
from thinet_onnx import graph as graphs
from thinet_onnx.calibration import batched, check_same
from thinet_onnx.config import KEY as CONFIG
from thinet_onnx.errors import OptionError
from thinet_onnx.examine import examine
from thinet_onnx.groups import analyse
from thinet_onnx.joined import join, joined
from thinet_onnx.options import Progress, PruneOptions, Scope, Show, Silent, Storage, Timed
from thinet_onnx.plan import PrunePlan
from thinet_onnx.ranks import Ranks
from thinet_onnx.result import Accuracy, Examples, Inspection, Latency, Report, Size
from thinet_onnx.run import HELD_OUT, Outcome, Run, one_and_two
from thinet_onnx.setting import Data, Setting, closed_inputs, open_data, open_model
from thinet_onnx.stopwatch import Stopwatch

__all__ = ["HELD_OUT", "PruneResult", "inspect", "open_model", "prune"]

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]


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
    setting, observed = examine(setting, one_and_two(source, [0, 1]))
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
    storage: Storage | None = None,
    config: str = "",
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
        storage: what the run keeps on disk, and starts from; the first process writes and reads it.
        config: what was asked for, as TOML; the pruned model and the report carry it.
        ranks: the processes that take part; by default those that torchrun started.

    Raises:
        ThinetError: see `errors`.
    """
    if ranks is None:
        with joined(join()) as others:
            return prune(
                model, data, options, preprocess=preprocess, random_data=random_data, test_data=test_data, output=output,
                show=show, progress=progress, work=work, stopwatch=stopwatch, storage=storage, config=config,
                ranks=others,
            )  # fmt: skip
    started = time.perf_counter()
    progress = Timed((progress if ranks.first else None) or Silent())
    preprocess = preprocess or sources.Preprocess()
    setting = open_model(model, options.shapes)
    if output is not None and ranks.first:
        setting.check_output(output)
    source = _open_data(setting, data, options, preprocess, random_data)
    test = sources.open_source(test_data, setting.inputs, preprocess) if test_data is not None else None
    if test is not None and test.labels is None:
        raise OptionError(
            f"--test-data {test_data} has no labels; add a key 'labels', or sort the images into folders."
        )
    check_same(ranks, len(source), setting.model)
    run = Run(setting, source, options, preprocess, progress, stopwatch, storage, test, ranks)
    try:
        result = work(run) if work is not None else run.work()
        if config:
            protos.note(result.model, CONFIG, config)
        report = _report(run, result, random_data, output, started, None if random_data else show)
        if run.kept is not None:
            run.kept.done()
    finally:
        progress.close()
    return PruneResult(result.model, result.plan, dataclasses.replace(report, config=config, stages=progress.stages))


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


def _report(
    run: Run, outcome: Outcome, random_data: bool, output: str | os.PathLike[str] | None, started: float,
    show: Show | None,
) -> Report:  # fmt: skip
    """Measure both models, write the pruned one, and tell: the first process does, with answers from all of them."""
    run.progress.start("Measuring", 3)
    answers = run.held_before, run.held_after(outcome)
    before, after = map(run.ranks.gather_first, answers)
    accuracy = _accuracy(run, outcome.twin)
    run.progress.advance()
    return run.ranks.once(lambda: _told(run, outcome, before, after, accuracy, random_data, output, started, show))


def _told(
    run: Run, outcome: Outcome, before: verify.Outputs, after: verify.Outputs, accuracy: Accuracy | None,
    random_data: bool, output: str | os.PathLike[str] | None, started: float, show: Show | None,
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
    if run.unfit is not None:
        warnings.append(f"No accuracy is shown: the {run.unfit} ({run.source.description}).")
    if random_data:
        warnings.insert(0, "Calibrated on random data: this network is of no use but to time it.")
    if outcome.decision.remark is not None:
        warnings.append(f"Target missed: {outcome.decision.remark}.")
    warnings += summary.left_alone(outcome.rebuilt)
    if outcome.tempered is not None:
        warnings += summary.held_back(outcome.tempered, len(run.fit), len(run.held))
    if not random_data:
        warnings += summary.far_off(near, len(run.fit))
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
            "test_data": None if run.test is None else run.test.description, "preprocess": dataclasses.asdict(run.preprocess),
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


def _accuracy(run: Run, pruned: onnx.ModelProto) -> Accuracy | None:
    """Top-1 accuracy on the test data, or on the held-out calibration data if that has labels."""
    source, rows = (run.source, run.held) if run.test is None else (run.test, list(range(len(run.test))))
    if source.labels is None or run.unfit is not None:
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
