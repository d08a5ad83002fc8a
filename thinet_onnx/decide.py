"""How many channels each group keeps: error curves × measured sensitivity of the network's output, against the target."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from thinet_onnx import budget, presets
from thinet_onnx.calibration import Calibration
from thinet_onnx.choose import Chooser, View
from thinet_onnx.consumers import Consumer
from thinet_onnx.cost import Cost
from thinet_onnx.errors import OptionError, TargetError
from thinet_onnx.groups import Analysis
from thinet_onnx.latency import Bench, Search
from thinet_onnx.options import Progress, PruneOptions
from thinet_onnx.ranks import Ranks
from thinet_onnx.result import LatencyTarget, Tradeoff
from thinet_onnx.trial import Trial

_LANDING = 0.01  # a target is met when what remains is within this share of the original
_TRADEOFF_POINTS = 41
_SHARES = (0.5,)  # of a group that is removed alone, to see how far the output moves; three of them gained nothing


@dataclass(frozen=True)
class Decision:
    """`widths`: units that each group keeps; `sensitivity`: how far the output moves for one unit of a group's error.

    `remark` says why the target was missed, None if it was met. `errors` are the squared relative errors of a candidate's
    readers when 0, 1, … of its units are gone. `tradeoff` is what other targets would have cost, and the choice.
    `timed` is what was measured for a latency target.
    """

    widths: list[int]
    sensitivity: dict[int, float]
    remark: str | None
    errors: dict[int, np.ndarray[Any, Any]] = field(default_factory=dict)
    tradeoff: tuple[Tradeoff, ...] = ()
    timed: LatencyTarget | None = None


def why_not(analysis: Analysis, group: int, options: PruneOptions) -> str | None:
    """Why a group is left whole by choice; None if it may be pruned."""
    entry = analysis.groups[group]
    names = [layer.node.title for layer in entry.producers]
    if entry.coupled and options.scope == "inner":
        return "is part of a residual stream (--scope all prunes those)"
    if any(re.search(pattern, name) for pattern in options.exclude for name in names):
        return "is excluded by --exclude"
    if options.include and not any(re.search(pattern, name) for pattern in options.include for name in names):
        return "is not among what --include names"
    return None


def decide(
    model: onnx.ModelProto, chooser: Chooser, views: Mapping[Consumer, View], candidates: Sequence[int], data: Calibration,
    progress: Progress, bench: Bench | None = None,
) -> Decision:  # fmt: skip
    """Settle the width of every group.

    Args:
        model: the original.
        chooser: with the analysis and the options.
        views: statistics of the original at every consumer.
        candidates: groups that may shrink.
        data: calibration batches.
        progress: told of each group that is weighed.
        bench: where times are measured, for a latency target.

    Raises:
        TargetError: the target can't be reached.
        ModelError: the engine can't run a layer or a cut file, for a latency target.
    """
    analysis, options = chooser.analysis, chooser.options
    sizes = analysis.sizes
    choices = [_choices(analysis, g, options, g in candidates) for g in range(len(sizes))]
    if options.keep is not None:
        return Decision(budget.uniform(sizes, choices, options.keep), {}, None)
    if options.widths is not None:
        return Decision(_given(analysis, options.widths), {}, None)
    if options.preset == "thinet-conv":
        return Decision(presets.thinet_conv(analysis, choices, candidates), {}, None)
    assert options.target is not None
    if bench is not None:
        return _timed(bench, Trial(model, chooser, views, candidates, data), data.ranks, choices, candidates, progress)
    cost = analysis.macs if options.target.kind == "macs" else analysis.params
    unit = {"macs": "MACs", "params": "parameters"}[options.target.kind]
    base = cost.total(sizes)
    limit = options.target.value * (base if options.target.relative else 1)
    if limit >= base:
        raise TargetError(
            f"--target leaves {limit:,.0f} {unit}, no fewer than the {base:,.0f} there are; ask for fewer."
        )
    trial = Trial(model, chooser, views, candidates, data)
    curves, sensitivity = _weigh(trial, data.ranks, candidates, progress)
    widths = budget.allocate(sizes, choices, curves, cost, limit, unit)
    widths = _land(widths, chooser, candidates, curves, limit, base)
    missed = (limit - cost.total(widths)) / base
    remark = None
    if missed > _LANDING:
        remark = (
            f"the widths allowed come no nearer to {options.target} than {cost.total(widths) / base:.1%} of the original "
            "(a smaller --round-to allows more)"
        )
    return Decision(widths, sensitivity, remark, trial.errors, _tradeoff(analysis, choices, curves, cost, widths))


def _tradeoff(
    analysis: Analysis, choices: Sequence[Sequence[int]], curves: Sequence[budget.Curve], cost: Cost, widths: list[int]
) -> tuple[Tradeoff, ...]:
    """Points on the way down from the whole network, evenly spaced in cost, and the point chosen; largest first."""
    sizes = analysis.sizes
    way = list(budget.descent(sizes, choices, curves, cost))
    costs = np.array([cost.total(kept) for kept in way])
    marks = np.linspace(costs[0], costs[-1], _TRADEOFF_POINTS)
    picked = sorted({int(np.abs(costs - mark).argmin()) for mark in marks})
    chosen = [(way[place], False) for place in picked] + [(widths, True)]
    points = [
        Tradeoff(
            round(analysis.macs.total(kept)),
            round(analysis.params.total(kept)),
            budget.loss(kept, sizes, curves),
            is_choice,
        )
        for kept, is_choice in chosen
    ]
    return tuple(sorted(points, key=lambda point: -point.macs))


def _timed(
    bench: Bench, trial: Trial, ranks: Ranks, choices: Sequence[Sequence[int]], candidates: Sequence[int], progress: Progress
) -> Decision:  # fmt: skip
    """Widths for a latency target, measured."""
    analysis, target = trial.chooser.analysis, trial.chooser.options.target
    assert target is not None
    bench.share(target)  # known to be less than all before the work begins
    cost = bench.profile(analysis, candidates, progress)
    curves, sensitivity = _weigh(trial, ranks, candidates, progress)
    landing = Search(bench, analysis, choices, curves, cost).land(target, progress)
    tradeoff = _tradeoff(analysis, choices, curves, cost, landing.widths)
    return Decision(landing.widths, sensitivity, landing.remark, trial.errors, tradeoff, landing.timed)


def _given(analysis: Analysis, wanted: Mapping[str, int]) -> list[int]:
    """Widths by the names of groups."""
    found = {group.name: group for group in analysis.groups}
    for name, width in wanted.items():
        if name not in found:
            raise OptionError(f"widths: there is no group {name!r} that could be cut; the inspect command lists them.")
        if not found[name].floor <= width <= found[name].size:
            raise OptionError(
                f"widths: {name!r} has {found[name].size} channels, of which {width} can't be kept; "
                f"{found[name].floor} is the least."
            )
    return [wanted.get(group.name, group.size) for group in analysis.groups]


def _choices(analysis: Analysis, group: int, options: PruneOptions, candidate: bool, finer: int = 1) -> list[int]:
    """Widths that a group may have, ascending; `finer` divides the step that they are rounded to by default."""
    entry = analysis.groups[group]
    if not candidate:
        return [entry.size]
    floor = entry.floor if options.drop_branches or options.for_latency else max(entry.floor, 1)
    return budget.widths(entry.size, floor, options.round_to or max(1, budget.default_step(entry.size) // finer))


def _land(
    widths: list[int],
    chooser: Chooser,
    candidates: Sequence[int],
    curves: Sequence[budget.Curve],
    limit: float,
    base: float,
) -> list[int]:
    """Use up what rounding left of the target, with finer widths in as few groups as it takes."""
    analysis, options = chooser.analysis, chooser.options
    assert options.target is not None
    cost = analysis.macs if options.target.kind == "macs" else analysis.params
    divisor = 2
    while options.round_to is None and limit - cost.total(widths) > _LANDING * base and divisor <= 8:
        finer = [_choices(analysis, g, options, g in candidates, divisor) for g in range(len(analysis.sizes))]
        widths = list(widths)
        budget.give_back(widths, analysis.sizes, finer, curves, cost, limit)
        divisor *= 2
    return widths


def _weigh(
    trial: Trial, ranks: Ranks, candidates: Sequence[int], progress: Progress
) -> tuple[list[budget.Curve], dict[int, float]]:
    """Error curves in units of the output: prune each group alone, refit, see how far the output moves."""
    sizes = trial.chooser.analysis.sizes
    curves = [budget.Curve(np.zeros(size + 1)) for size in sizes]
    sensitivity: dict[int, float] = {}
    progress.start("Weighing the groups", -(-len(candidates) // ranks.count))

    def weigh(group: int) -> tuple[list[int], list[float]]:
        """Numbers of units that were removed, and how far the output moved for each unit of their error."""
        error, size = trial.errors[group], sizes[group]
        floor = trial.chooser.analysis.groups[group].floor
        gone = sorted({min(max(round(size * share), 1), size - floor) for share in _SHARES})
        rates = [
            trial.moved([*sizes[:group], size - count, *sizes[group + 1 :]]) / max(float(error[count]), 1e-12)
            for count in gone
        ]
        progress.advance()
        return gone, rates

    for group, (gone, rates) in zip(candidates, ranks.map(weigh, candidates), strict=True):
        error, size = trial.errors[group], sizes[group]
        curve = error * np.interp(np.arange(size + 1), gone, rates)
        curves[group] = budget.Curve(np.maximum.accumulate(curve))
        sensitivity[group] = float(np.median(rates))
    return curves, sensitivity
