"""What a run tells: rows of the report made from the analysis, the plan and the measurements."""

import platform
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import numpy as np

from thinet_onnx._version import __version__
from thinet_onnx.choose import Rebuilt
from thinet_onnx.decide import Decision, why_not
from thinet_onnx.groups import Analysis, Group
from thinet_onnx.observe import MAX_COLUMNS
from thinet_onnx.options import PruneOptions
from thinet_onnx.plan import PrunePlan
from thinet_onnx.result import ErrorCurve, Fidelity, GroupRow, Inspection, NotPruned
from thinet_onnx.temper import Tempered

Array = np.ndarray[Any, Any]

_SHOWN = 8
_FAR = 0.5  # the relative error of an output from which on a run warns
_CURVE_POINTS = 33  # of a group's error curve, at most, and the width chosen


def at_stake(analysis: Analysis, group: int) -> int:
    """MACs that go when this group alone is cut as far as it can be."""
    return round(analysis.macs.saving(analysis.sizes, group, analysis.groups[group].floor))


def _row(
    analysis: Analysis, index: int, after: int, error: float | None = None, decision: Decision | None = None
) -> GroupRow:
    group = analysis.groups[index]
    curve = sensitivity = None
    if decision is not None and index in decision.errors:
        curve = _curve(decision.errors[index], group.floor, after)
        sensitivity = decision.sensitivity.get(index)
    return GroupRow(
        group.name, tuple(p.node.title for p in group.producers), tuple(c.node.title for c in group.consumers),
        group.size, after, at_stake(analysis, index), error, curve, sensitivity,
    )  # fmt: skip


def _curve(squared: Array, floor: int, after: int) -> ErrorCurve:
    """Some points of an error curve; `squared[k]` is the squared error when k units are gone."""
    size = len(squared) - 1
    marks = np.linspace(floor, size, min(size - floor + 1, _CURVE_POINTS)).round().astype(int)
    widths = sorted({after, *marks.tolist()})
    return ErrorCurve(tuple(widths), tuple(float(np.sqrt(squared[size - width])) for width in widths))


def group_rows(
    analysis: Analysis, plan: PrunePlan, rebuilt: Sequence[Rebuilt], decision: Decision
) -> tuple[GroupRow, ...]:
    """One row for each group; its error is the largest that a refit left in one of its consumers."""
    left = {use.node.key: entry.error for entry in rebuilt for use in entry.consumer.uses}
    rows = []
    for index, cut in enumerate(plan.groups):
        errors = [
            left[layer.node.key] for layer in analysis.groups[index].consumers if left.get(layer.node.key) is not None
        ]
        error = max((e for e in errors if e is not None), default=None) if cut.after < cut.before else None
        rows.append(_row(analysis, index, cut.after, error, decision))
    return tuple(rows)


def not_pruned(analysis: Analysis, options: PruneOptions | None) -> tuple[NotPruned, ...]:
    """Channels that stay: those that can't go, and those that were left whole by choice."""
    rows = [NotPruned(entry.producer.node.title, entry.channels, entry.reason.phrase) for entry in analysis.frozen]
    if options is not None:
        for index, group in enumerate(analysis.groups):
            if (reason := why_not(analysis, index, options)) is not None:
                rows += [
                    NotPruned(layer.node.title, _channels(analysis, group, index), reason) for layer in group.producers
                ]
    return tuple(rows)


def _channels(analysis: Analysis, group: Group, index: int) -> int:
    """Output channels of the group's first producer that belong to it."""
    labels = group.producers[0].out_labels
    assert labels is not None
    return sum(analysis.group_of.get(root) == index for root in analysis.roots(labels).tolist())


def nothing_to_prune(name: str, analysis: Analysis, options: PruneOptions) -> str:
    """One sentence on why no group is left."""
    if not analysis.channels:
        return f"{name} holds no convolution or fully connected layer with constant weights; there is nothing to prune."
    reasons: dict[str, int] = {}
    for row in not_pruned(analysis, options):
        reasons[row.reason] = reasons.get(row.reason, 0) + row.channels
    most = sorted(reasons.items(), key=lambda item: -item[1])[:_SHOWN]
    told = "; ".join(f"{count} {reason}" for reason, count in most)
    return f"No channel of {name} can be removed. Of its {analysis.channels} output channels: {told}."


def channels_cut(analysis: Analysis, plan: PrunePlan) -> int:
    """Output channels of linear layers that a plan takes out; a weight that is used several times counts once."""
    cut = 0
    for index, group in enumerate(plan.groups):
        each = _channels(analysis, analysis.groups[index], index) // group.before
        cut += (group.before - group.after) * each * len(analysis.groups[index].producers)
    return cut


def left_alone(rebuilt: Sequence[Rebuilt]) -> list[str]:
    """Warnings about consumers that could only be scaled."""
    wide = [entry.consumer for entry in rebuilt if entry.consumer.columns > MAX_COLUMNS]
    return [
        f"{consumer.name} reads {consumer.columns:,} columns, more than the {MAX_COLUMNS:,} that are refitted in full; its "
        "channels were scaled instead."
        for consumer in wide
    ]


def held_back(tempered: Tempered, fitted: int, held: int) -> list[str]:
    """A warning where new weights were worse than the old ones on samples held out."""
    if tempered.share == 1.0:
        return []
    kept = f"{tempered.share:.0%} of the change was" if tempered.share else "none of them were"
    return [
        f"The weights refitted on {fitted} samples leave a relative error of {tempered.refitted:.3g} on the {held} held out, "
        f"the old ones {tempered.bare:.3g}: {kept} kept. More calibration samples, of what the network is for, help."
    ]


def far_off(near: Sequence[Fidelity], fitted: int) -> list[str]:
    """A warning where the answers have little to do with the original's, whatever the target says."""
    far = [row for row in near if row.relative_error > _FAR]
    if not far:
        return []
    worst = max(far, key=lambda row: row.relative_error)
    return [
        f"The answers are far from the original's: output {worst.output!r} is off by {worst.relative_error:.0%} of its size on "
        f"samples held out. Let more remain (--target), give more samples (it was fitted on {fitted}), or train it back "
        "(finetune)."
    ]


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    names = ("numpy", "onnx", "onnxruntime", "onnx-graphsurgeon")
    return {
        "thinet-onnx": __version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in names},
    }


def inspection(name: str, analysis: Analysis, options: PruneOptions, warnings: Sequence[str]) -> Inspection:
    """The answer of `inspect`."""
    rows = tuple(_row(analysis, index, group.size) for index, group in enumerate(analysis.groups))
    left_out = [index for index in range(len(rows)) if why_not(analysis, index, options) is not None]
    narrowest = [g.size if i in left_out else g.floor for i, g in enumerate(analysis.groups)]
    whole = not_pruned(analysis, options)
    total = round(analysis.macs.total(analysis.sizes))
    streams = sum(
        _channels(analysis, group, index) * len(group.producers)
        for index, group in enumerate(analysis.groups)
        if group.coupled and index not in left_out
    )
    inner = [g.size if g.coupled else least for g, least in zip(analysis.groups, narrowest, strict=True)]
    removable = analysis.channels - sum(row.channels for row in whole)
    return Inspection(
        name, tuple(row for index, row in enumerate(rows) if index not in left_out), whole, analysis.channels,
        removable, total, total - round(analysis.macs.total(narrowest)),
        round(analysis.params.total(analysis.sizes)), tuple(warnings),
        removable - streams, total - round(analysis.macs.total(inner)),
    )  # fmt: skip
