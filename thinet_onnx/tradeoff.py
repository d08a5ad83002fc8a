"""How error and cost trade off, over many targets, from one look at the data: `thinet-onnx curve`."""

import dataclasses
import os
import time
from collections.abc import Sequence

import numpy as np
import onnx

from thinet_onnx import decide, summary, verify
from thinet_onnx.budget import Curve, loss
from thinet_onnx.choose import Chooser
from thinet_onnx.cost import Cost
from thinet_onnx.curve_result import CurveOptions, CurvePoint, CurveReport, How
from thinet_onnx.data import Preprocess
from thinet_onnx.decide import Decision
from thinet_onnx.errors import TargetError
from thinet_onnx.latency import Bench
from thinet_onnx.options import Progress, PruneOptions, Silent, Storage, Target
from thinet_onnx.result import Tradeoff
from thinet_onnx.run import Prepared, Run
from thinet_onnx.setting import Data, open_data, open_model
from thinet_onnx.stopwatch import Stopwatch
from thinet_onnx.sweep import Sweep
from thinet_onnx.weigh import Weighed


def curve(
    model: onnx.ModelProto | str | os.PathLike[str], data: Data, options: PruneOptions, asked: CurveOptions | None = None, *,
    preprocess: Preprocess | None = None, progress: Progress | None = None, stopwatch: Stopwatch | None = None,
    storage: Storage | None = None,
) -> CurveReport:  # fmt: skip
    """What every target would cost.

    Args:
        model: a path or a ModelProto; it is left as it is.
        data: calibration data, as for `prune`.
        options: those of `prune`. A target among them says nothing, but one of latency says where times are measured.
        asked: what to show.
        preprocess: how images become inputs.
        progress: who is told how far the run is.
        stopwatch: measures in place of the engine.
        storage: moments to keep, or to start from.

    Raises:
        TargetError: none of the targets can be reached.
        ThinetError: see `errors`.
    """
    started = time.perf_counter()
    asked, progress, preprocess = asked or CurveOptions(), progress or Silent(), preprocess or Preprocess()
    setting = open_model(model, options.shapes)
    source = open_data(data, setting, preprocess, options.samples, options.seed)
    plain = dataclasses.replace(
        options, target=Target(asked.by, 0.5, True), keep=None, preset=None, engine="ort", latency_batch=None, threads=0
    )
    bench = Bench.open(setting, source, options, stopwatch) if asked.latency else None
    try:
        made = _Curve(Run(setting, source, plain, preprocess, progress, storage=storage), asked, bench)
        points = made.points()
    finally:
        progress.close()
    latency: How | None = None if bench is None else "measured" if asked.measure else "modelled"
    return CurveReport(
        setting.name, asked.by, points, made.line(), asked.measure, len(made.run.held), latency,
        None if bench is None else bench.stopwatch.title, None if bench is None else bench.batch,
        dataclasses.asdict(plain) | dataclasses.asdict(asked)
        | {"method": plain.selection, "reconstruct": plain.reconstruction, "data": source.description,
           "preprocess": dataclasses.asdict(preprocess)},
        summary.versions(), time.perf_counter() - started, (*setting.warnings, *made.remarks),
    )  # fmt: skip


class _Curve:
    """One run's statistics, and the choices for several targets."""

    def __init__(self, run: Run, asked: CurveOptions, bench: Bench | None) -> None:
        self.run, self._asked, self._bench = run, asked, bench
        self.remarks: list[str] = []
        self._prepared: Prepared = run.prepare()
        analysis, candidates = run.analysis, self._prepared.candidates
        self._times: Cost | None = None
        if bench is not None and not asked.measure:
            self._times = bench.profile(analysis, candidates, run.progress)
        self._weighed: Weighed = run.weighed(self._prepared, candidates)
        self._curves: list[Curve] = self._weighed.curves_of(analysis.sizes)
        self._cost = analysis.macs if asked.by == "macs" else analysis.params

    def points(self) -> tuple[CurvePoint, ...]:
        """The whole network, and one network for each target that can be reached."""
        sizes = self.run.analysis.sizes
        found = [(1.0, list(sizes), self._chooser(0.5))]
        missed: list[str] = []
        for share in self._asked.shares:
            chooser = self._chooser(share)
            target = chooser.options.target
            assert target is not None
            try:
                widths, remark = decide.fewest(chooser, self._prepared.candidates, self._curves, self._cost, target)
            except TargetError:
                missed.append(f"{100 * share:g}%")
                continue
            if remark is not None:
                self.remarks.append(f"For {100 * share:g}%, {remark}.")
            found.append((share, widths, chooser))
        if missed and len(found) > 1:
            self.remarks.append(f"Out of reach with the groups that may be pruned: {', '.join(missed)}.")
        elif missed:
            raise TargetError(
                f"None of the targets ({', '.join(missed)}) can be reached with the groups that may be pruned; ask for more to "
                "remain with --targets, or allow more groups (--scope all, a smaller --round-to, fewer --exclude)."
            )
        return tuple(self._point(*entry) for entry in found)

    def line(self) -> tuple[Tradeoff, ...]:
        """Many choices on the way down, only expected."""
        allowed = decide.choices(self._prepared.sweep.chooser, self._prepared.candidates)
        every = decide.tradeoff_of(self.run.analysis, allowed, self._curves, self._cost, self.run.analysis.sizes)
        return tuple(point for point in every if not point.chosen)

    def _chooser(self, share: float) -> Chooser:
        """With the options of a target."""
        options = dataclasses.replace(self.run.options, target=Target(self._asked.by, share, True))
        chooser = Chooser(self.run.analysis, self._prepared.sweep.consumers, options)
        chooser.ridges = dict(self._weighed.ridges)
        return chooser

    def _point(self, share: float, widths: list[int], chooser: Chooser) -> CurvePoint:
        analysis = self.run.analysis
        whole = widths == analysis.sizes
        error, top1 = (0.0, 1.0) if whole else (None, None)
        if self._asked.measure and not whole:
            error, top1 = self._measured(widths, chooser)
        elif not self._asked.measure:
            error = top1 = None
        return CurvePoint(
            share, round(analysis.macs.total(widths)), round(analysis.params.total(widths)),
            float(np.sqrt(loss(widths, analysis.sizes, self._curves))), self._time(widths), error, top1,
        )  # fmt: skip

    def _time(self, widths: list[int]) -> float | None:
        """Milliseconds: measured beside the original, in proportion to it, or by the times of single layers."""
        if self._bench is None:
            return None
        if self._times is not None:
            return self._times.total(widths)
        if widths == self.run.analysis.sizes:
            return self._bench.original_ms
        return self._bench.compare(self.run.analysis, widths).ratio * self._bench.original_ms

    def _measured(self, widths: list[int], chooser: Chooser) -> tuple[float | None, float | None]:
        """Prune as `prune` does, and compare the outputs on held-out samples."""
        run, old = self.run, self._prepared.sweep
        sweep = Sweep(run.analysis, old.consumers, chooser, old.data, run.progress)
        outcome = run.finish(sweep, self._weighed, Decision(widths, {}, None))
        before, after = run.held_before, run.held_after(outcome)
        rows = verify.fidelity(run.setting.graph.outputs, before, after)
        return _mean([row.relative_error for row in rows]), _mean([row.top1 for row in rows if row.top1 is not None])


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
