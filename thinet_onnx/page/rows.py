"""The page's tables: groups, what was left whole, the plan, the run; all as text ready to be shown."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from thinet_onnx import report as reports
from thinet_onnx import wording
from thinet_onnx.page import charts
from thinet_onnx.page.charts import finite
from thinet_onnx.result import GroupRow, Report

MOST_GROUPS, _MOST_REASONS, _MOST_NAMES = 500, 40, 40
_LISTED = 6  # names of a group's layers
_LONGEST = 300  # characters of a name


@dataclass(frozen=True)
class Measure:
    """A number for a cell: what it is sorted by (None: last), its text, and the length of its bar (0..1)."""

    value: float | None
    text: str
    bar: float | None


@dataclass(frozen=True)
class Group:
    """One row of the table of groups."""

    name: str
    producers: str
    consumers: str
    before: int
    after: int
    kept: Measure
    macs: Measure
    error: Measure
    sensitivity: Measure
    spark: Markup


@dataclass(frozen=True)
class Reason:
    """Why channels stay: how many in all, and whose."""

    text: str
    channels: int
    bar: float
    producers: tuple[tuple[str, int], ...]
    more: int


def shown(report: Report) -> Sequence[GroupRow]:
    """The groups of the page in the order of the network: all, or those with the most MACs at stake."""
    if len(report.groups) <= MOST_GROUPS:
        return report.groups
    places = sorted(range(len(report.groups)), key=lambda place: -report.groups[place].macs)[:MOST_GROUPS]
    return [report.groups[place] for place in sorted(places)]


def groups(shown: Sequence[GroupRow], macs: int) -> list[Group]:
    """Rows for these groups of a network of so many MACs."""
    most = max((row.macs for row in shown), default=0)
    worst = max(finite(row.error for row in shown), default=0.0)
    keenest = max(finite(row.sensitivity for row in shown), default=0.0)
    return [
        Group(
            _cut(row.name), _some(row.producers), _some(row.consumers), row.before, row.after,
            Measure(_part(row.after, row.before), wording.share(row.after, row.before, 0), _part(row.after, row.before)),
            Measure(row.macs, wording.rough(_part(row.macs, macs)), _part(row.macs, most)),
            _measure(row.error, worst), _measure(row.sensitivity, keenest), charts.spark(row.curve, row.after),
        )
        for row in shown
    ]  # fmt: skip


def reasons(report: Report) -> tuple[list[Reason], int]:
    """Why channels stay, most channels first, and how many more reasons there are."""
    ranked = reports.by_reason(report.not_pruned)
    told = [
        Reason(
            _cut(reason), sum(whose.values()), min(_part(sum(whose.values()), report.channels_before) or 0.0, 1.0),
            tuple((_cut(name), count) for name, count in list(whose.items())[:_MOST_NAMES]),
            max(0, len(whose) - _MOST_NAMES),
        )
        for reason, whose in ranked[:_MOST_REASONS]
    ]  # fmt: skip
    return told, max(0, len(ranked) - _MOST_REASONS)


def plan(report: Report) -> list[tuple[str, str]]:
    """What the plan takes out and edits, in numbers."""
    made = report.plan
    cut = sum(group.after < group.before for group in made.groups)
    return [
        ("groups cut", f"{cut:,} of {len(made.groups):,}"),
        ("channels of groups that go", f"{sum(group.before - group.after for group in made.groups):,}"),
        ("layers that read fewer channels", f"{len({cut.node for cut in made.consumers}):,}"),
        ("slices taken from constants", f"{len(made.cuts):,}, of {len({cut.tensor for cut in made.cuts}):,} tensors"),
        ("sizes and indices rewritten", f"{sum(v is not None for e in made.edits for v in e.values):,}"),
        ("layers gone with their whole branch", f"{len(made.erased):,}"),
    ]


def run(report: Report) -> list[tuple[str, str]]:
    """When, how long, with what."""
    stages = ", ".join(f"{name} {wording.seconds(seconds)}" for name, seconds in report.stages.items())
    rows = [
        ("finished", report.finished.replace("T", " ").replace("+00:00", " UTC")),
        ("took", wording.seconds(report.seconds) + (f" ({stages})" if stages else "")),
        ("seed", str(report.seed)),
    ]
    rows += sorted((name, _value(value)) for name, value in report.options.items() if name not in ("target", "seed"))
    return [(name, _cut(text)) for name, text in rows if text]


def oracle(report: Report) -> str:
    """What the check found."""
    if math.isnan(report.oracle_error):
        return "The check's figure is missing."
    size = "exactly" if report.oracle_error == 0 else f"to within {report.oracle_error:.1e}, relative,"
    return (
        f"Checked: the pruned file answers {size} as the original does when the removed channels are set to zero in it, "
        "once without and once with the new weights. A file that fails this check is not written."
    )


def _value(value: Any) -> str:
    if value is None or value in ([], (), {}, ""):
        return ""
    if isinstance(value, dict):
        return ", ".join(f"{key} {text}" for key, one in value.items() if (text := _value(one)))
    if isinstance(value, list | tuple):
        return ", ".join(map(_value, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _measure(value: float | None, most: float) -> Measure:
    known = value is not None and math.isfinite(value)
    return Measure(value if known else None, wording.figures(value), _part(value or 0.0, most) if known else None)


def _part(part: float, whole: float) -> float | None:
    return min(max(part / whole, 0.0), 1.0) if whole > 0 else None


def _some(names: Sequence[str]) -> str:
    return wording.names([_cut(name) for name in names], _LISTED)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
