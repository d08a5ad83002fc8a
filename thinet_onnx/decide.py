"""How many channels each group keeps: error curves × measured sensitivity of the network's output, against the target."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from thinet_onnx import budget, presets
from thinet_onnx.choose import Chooser
from thinet_onnx.cost import Cost
from thinet_onnx.errors import OptionError, TargetError
from thinet_onnx.groups import Analysis
from thinet_onnx.latency import Bench, Search
from thinet_onnx.options import Progress, PruneOptions, Target
from thinet_onnx.result import LatencyTarget, Tradeoff
from thinet_onnx.weigh import Weighed

_LANDING = 0.01  # a target is met when what remains is within this share of the original
_TRADEOFF_POINTS = 41
_UNITS = {"macs": "MACs", "params": "parameters"}


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


def price(chooser: Chooser, candidates: Collection[int], progress: Progress, bench: Bench | None = None) -> Cost:
    """What a target counts, by the groups' widths; known before the work begins, as is whether it asks for less than there is.

    Args:
        chooser: with the analysis and the options.
        candidates: groups that may shrink.
        progress: told of each layer that is timed.
        bench: where times are measured, for a latency target.

    Raises:
        TargetError: the target is no less than what there is, or less than the narrowest groups leave.
        ModelError: the engine can't run a layer alone, for a latency target.
    """
    analysis, target = chooser.analysis, chooser.options.target
    assert target is not None
    if bench is not None:
        bench.share(target)
        return bench.profile(analysis, candidates, progress)
    cost = analysis.macs if target.kind == "macs" else analysis.params
    base = cost.total(analysis.sizes)
    if (limit := _limit(target, base)) >= base:
        raise TargetError(
            f"--target leaves {limit:,.0f} {_UNITS[target.kind]}, no fewer than the {base:,.0f} there are; ask for fewer."
        )
    budget.check_floor(analysis.sizes, choices(chooser, candidates), cost, limit, _UNITS[target.kind])
    return cost


def given(chooser: Chooser, candidates: Collection[int]) -> Decision | None:
    """The widths where the options say them and nothing has to be weighed; None if there is a target.

    Raises:
        OptionError: a width or a recipe that doesn't fit the network.
    """
    analysis, options = chooser.analysis, chooser.options
    allowed = choices(chooser, candidates)
    if options.keep is not None:
        return Decision(budget.uniform(analysis.sizes, allowed, options.keep), {}, None)
    if options.widths is not None:
        return Decision(_given(analysis, options.widths), {}, None)
    if options.preset == "thinet-conv":
        return Decision(presets.thinet_conv(analysis, allowed, sorted(candidates)), {}, None)
    return None


def decide(
    chooser: Chooser, weighed: Weighed, candidates: Collection[int], cost: Cost, progress: Progress, bench: Bench | None = None
) -> Decision:  # fmt: skip
    """Settle the width of every group, for a target.

    Args:
        chooser: with the analysis and the options.
        weighed: what is known of the groups.
        candidates: groups that may shrink.
        cost: what the target counts (see `price`).
        progress: told of files that are cut and timed.
        bench: where times are measured, for a latency target.

    Raises:
        TargetError: the target can't be reached.
        ModelError: the engine can't run a cut file, for a latency target.
    """
    analysis, target = chooser.analysis, chooser.options.target
    assert target is not None
    allowed, curves = choices(chooser, candidates), weighed.curves_of(analysis.sizes)
    timed = None
    if bench is not None:
        landing = Search(bench, analysis, allowed, curves, cost).land(target, progress)
        widths, remark, timed = landing.widths, landing.remark, landing.timed
    else:
        widths, remark = fewest(chooser, candidates, curves, cost, target)
    tradeoff = tradeoff_of(analysis, allowed, curves, cost, widths)
    return Decision(widths, weighed.sensitivity, remark, weighed.errors, tradeoff, timed)


def _limit(target: Target, base: float) -> float:
    return target.value * (base if target.relative else 1)


def fewest(
    chooser: Chooser, candidates: Collection[int], curves: Sequence[budget.Curve], cost: Cost, target: Target
) -> tuple[list[int], str | None]:
    """Widths for a target of MACs or parameters, and a remark where it is missed."""
    sizes = chooser.analysis.sizes
    base = cost.total(sizes)
    limit = _limit(target, base)
    widths = budget.allocate(sizes, choices(chooser, candidates), curves, cost, limit, _UNITS[target.kind])
    widths = _land(widths, chooser, candidates, curves, cost, limit)
    missed = (limit - cost.total(widths)) / base
    if missed <= _LANDING:
        return widths, None
    return widths, (
        f"the widths allowed come no nearer to {target} than {cost.total(widths) / base:.1%} of the original "
        "(a smaller --round-to allows more)"
    )


def tradeoff_of(
    analysis: Analysis, allowed: Sequence[Sequence[int]], curves: Sequence[budget.Curve], cost: Cost, widths: list[int]
) -> tuple[Tradeoff, ...]:
    """Points on the way down from the whole network, evenly spaced in cost, and the point chosen; largest first."""
    sizes = analysis.sizes
    way = list(budget.descent(sizes, allowed, curves, cost))
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


def choices(chooser: Chooser, candidates: Collection[int], finer: int = 1) -> list[list[int]]:
    """Widths that each group may have, ascending; `finer` divides the step that they are rounded to by default."""
    analysis, options = chooser.analysis, chooser.options
    allowed = [[group.size] for group in analysis.groups]
    for number in candidates:
        group = analysis.groups[number]
        floor = group.floor if options.drop_branches or options.for_latency else max(group.floor, 1)
        step = options.round_to or max(1, budget.default_step(group.size) // finer)
        allowed[number] = budget.widths(group.size, floor, step)
    return allowed


def _land(
    widths: list[int],
    chooser: Chooser,
    candidates: Collection[int],
    curves: Sequence[budget.Curve],
    cost: Cost,
    limit: float,
) -> list[int]:
    """Use up what rounding left of the target, with finer widths in as few groups as it takes."""
    sizes = chooser.analysis.sizes
    base, divisor = cost.total(sizes), 2
    while chooser.options.round_to is None and limit - cost.total(widths) > _LANDING * base and divisor <= 8:
        widths = list(widths)
        budget.give_back(widths, sizes, choices(chooser, candidates, divisor), curves, cost, limit)
        divisor *= 2
    return widths
