"""The top of the page: what came out, in a sentence and in cards."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath

from thinet_onnx import wording
from thinet_onnx.page.charts import finite
from thinet_onnx.result import Latency, Report

_SAME = 0.03  # medians of a few runs that differ by less say nothing


@dataclass(frozen=True)
class Card:
    """One figure: its value after and before, the change in words, the share that remains (0..1) for the bar, a footnote.

    `tone` is `good`, `bad` or nothing.
    """

    title: str
    after: str
    before: str
    change: str
    share: float | None
    note: str
    tone: str = ""


def title(report: Report) -> str:
    """The name of the model's file."""
    return PurePath(report.model).name or report.model


def sentence(report: Report) -> str:
    """What the run did, in words that claim no more than was measured."""
    said = f"{wording.share(report.after.macs, report.before.macs)} of the MACs remain"
    if report.latency is not None and (speed := _speed(report.latency)) is not None:
        said += f", and it runs {speed} on the machine of this run"
    return f"{said}. {_nearness(report)}"


def _nearness(report: Report) -> str:
    rows = report.fidelity
    if not rows:
        return "Its outputs could not be compared with the original's."
    if broken := [row.output for row in rows if not math.isfinite(row.relative_error)]:
        return f"Its outputs hold what is no number, or are infinitely far off: {wording.names(broken, 3)}."
    worst = max(rows, key=lambda row: row.relative_error)
    where = f" ({worst.output}, the worst of {len(rows)} outputs)" if len(rows) > 1 else ""
    samples = wording.plural(_samples(report), "sample")
    return (
        f"On {samples} held out of the fit, its outputs differ from the original's by "
        f"{wording.percent(worst.relative_error)}{where}: how near it is, not how right."
    )


def cards(report: Report) -> Iterator[Card]:
    """Six figures; those that weren't measured are left out."""
    before, after = report.before, report.after
    counted = "multiply-accumulates for one input; counted, not measured"
    yield _size("MACs", before.macs, after.macs, "", counted)
    yield _size("Parameters", before.params, after.params, "", "elements of all weights")
    yield _size("File size", before.bytes, after.bytes, "B", "on disk, without compression")
    if (latency := report.latency) is not None:
        yield _latency(latency)
    yield _size(
        "Channels", report.channels_before, report.channels_after, "",
        "output channels of convolutions and fully connected layers", exact=True,
    )  # fmt: skip
    yield from _quality(report)


def _size(name: str, before: int, after: int, unit: str, note: str, exact: bool = False) -> Card:
    texts = [f"{value:,}" if exact else wording.short(value, unit) for value in (after, before)]
    share = after / before if before else None
    change = "" if share is None else f"{wording.share(after, before)} remains"
    return Card(name, texts[0], texts[1], change, share, note)


def _latency(latency: Latency) -> Card:
    before, after = latency.before_ms, latency.after_ms
    share = after / before if before > 0 and math.isfinite(after / before) else None
    note = (
        f"ONNX Runtime, batch {latency.batch}, median of {wording.plural(latency.runs, 'run')} on this machine; "
        "other devices and runtimes differ, so measure on yours"
    )
    tone = "" if share is None or abs(share - 1) < _SAME else "good" if share < 1 else "bad"
    said = _speed(latency) or "not measurable"
    return Card("Latency", wording.milliseconds(after), wording.milliseconds(before), said, share, note, tone)


def _speed(latency: Latency) -> str | None:
    """`1.52× faster`; None if a time is missing."""
    before, after = latency.before_ms, latency.after_ms
    if not before > 0 or not after > 0 or not math.isfinite(after / before):
        return None
    return "about as fast as before" if abs(after / before - 1) < _SAME else wording.speed(before, after)


def _quality(report: Report) -> Iterator[Card]:
    """Accuracy where there were labels, else how often the best class is the same, else how far the outputs are off."""
    same = next((row for row in report.fidelity if row.top1 is not None), None)
    accuracy = report.accuracy
    agree = (
        "" if same is None else f"; same best class as the original on {wording.percent(same.top1)} of those held out"
    )
    if accuracy is not None:
        trained = report.finetune is not None and bool(report.finetune.best_step)
        how = "after fine-tuning" if trained else "without training"
        note = f"top-1 on {wording.plural(accuracy.samples, 'labelled sample')}, {how}" + agree
        if accuracy.samples:
            note += f"; one sample is {100 / accuracy.samples:.2g} points"
        yield Card(
            "Accuracy", wording.percent(accuracy.after, 2), wording.percent(accuracy.before, 2),
            wording.points(accuracy.before, accuracy.after), None, note,
        )  # fmt: skip
    elif same is not None:
        note = f"{wording.plural(same.samples, 'sample')} not used to fit; no labels, so this isn't accuracy"
        yield Card("Same best class", wording.percent(same.top1), "", "as the original", same.top1, note)
    elif errors := finite(row.relative_error for row in report.fidelity):
        note = f"{wording.plural(_samples(report), 'sample')} not used to fit; no labels, so this isn't accuracy"
        where = "of the output" if len(errors) == 1 else f"of the worst of {len(errors)} outputs"
        yield Card("Relative error", wording.percent(max(errors)), "", where, None, note)


def _samples(report: Report) -> int:
    return len(report.held) or max((row.samples for row in report.fidelity), default=0)
