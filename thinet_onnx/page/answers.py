"""What both networks answer on held-out samples: histograms, the worst samples, examples."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from thinet_onnx import wording
from thinet_onnx.page import charts
from thinet_onnx.page.svg import NOTHING, drawing, tag
from thinet_onnx.result import Box, Example, Fidelity, Report, Score

MOST_OUTPUTS = 24
_WORST = 5
_FEW = 32  # samples that give only a coarse idea


@dataclass(frozen=True)
class Output:
    """One output: its figures, the histogram, the samples that are farthest off."""

    name: str
    figures: tuple[tuple[str, str], ...]
    chart: Markup
    worst: tuple[tuple[str, str], ...]
    unknown: int


@dataclass(frozen=True)
class Answer:
    """One line of an example's best classes: name, share of 1 and the score itself as text; new if the original hasn't it."""

    name: str
    share: float
    text: str
    score: str
    new: bool


@dataclass(frozen=True)
class Shown:
    """An example with what is drawn over it and listed beside it."""

    example: Example
    error: str
    before: tuple[Answer, ...]
    after: tuple[Answer, ...]
    same: bool
    boxes_before: Markup
    boxes_after: Markup
    found_before: str
    found_after: str


def outputs(report: Report) -> list[Output]:
    """The outputs that were compared."""
    return [_output(row, report.held) for row in report.fidelity[:MOST_OUTPUTS]]


def remark(report: Report) -> str:
    """How far the figures carry."""
    count = len(report.held) or max((row.samples for row in report.fidelity), default=0)
    if not report.fidelity or count >= _FEW:
        return ""
    return f"Only {wording.plural(count, 'sample')} held out: a coarse idea. More calibration data gives a better one."


def examples(report: Report) -> list[Shown]:
    """The samples that the run kept for show."""
    return [_shown(example) for example in report.examples.samples]


def _output(row: Fidelity, held: Sequence[str]) -> Output:
    figures = [("relative error", wording.percent(row.relative_error)), ("mean cosine", f"{row.cosine:.4f}")]
    if not math.isfinite(row.cosine):
        figures[1] = ("mean cosine", wording.NOTHING)
    if row.top1 is not None:
        figures.append(("same best class", wording.percent(row.top1)))
    figures.append(("samples", f"{row.samples:,}"))
    ranked = sorted(
        (place for place in range(len(row.errors)) if math.isfinite(row.errors[place])), key=lambda p: -row.errors[p]
    )
    names = held if len(held) == len(row.errors) else [f"sample {place}" for place in range(len(row.errors))]
    worst = tuple((names[place], wording.percent(row.errors[place])) for place in ranked[:_WORST])
    chart = charts.histogram(row.errors, f"Relative error of {row.output} on {len(row.errors)} samples")
    return Output(row.output, tuple(figures), chart, worst, len(row.errors) - len(ranked))


def _shown(example: Example) -> Shown:
    known = {score.index for score in example.scores_before}
    before = tuple(_answer(score, False) for score in example.scores_before)
    after = tuple(_answer(score, score.index not in known) for score in example.scores_after)
    best = [scores[0].index if scores else None for scores in (example.scores_before, example.scores_after)]
    return Shown(
        example, "" if example.error is None else wording.percent(example.error), before, after, best[0] == best[1],
        _boxes(example.boxes_before), _boxes(example.boxes_after), _found(example.boxes_before), _found(example.boxes_after),
    )  # fmt: skip


def _answer(score: Score, new: bool) -> Answer:
    share = score.share if math.isfinite(score.share) else 0.0
    return Answer(
        score.name or f"class {score.index}", min(max(share, 0.0), 1.0),
        wording.rough(score.share),
        f"class {score.index}, score {wording.figures(score.value)}", new,
    )  # fmt: skip


def _found(boxes: Sequence[Box] | None) -> str:
    """`2 boxes: dog 0.91, cat 0.32`."""
    told = [f"{_named(box)} {wording.figures(box.score)}".strip() for box in boxes or ()]
    count = "1 box" if len(told) == 1 else f"{len(told) or 'no'} boxes"
    return f"{count}: {wording.names(told, 3)}" if told else count


def _named(box: Box) -> str:
    return box.name or ("" if box.index is None else f"class {box.index}")


def _boxes(boxes: Sequence[Box] | None) -> Markup:
    """Boxes over a picture, in percent of its width and height."""
    if not boxes:
        return NOTHING
    drawn = []
    for box in boxes:
        corners = (box.left, box.top, box.right, box.bottom)
        if not all(map(math.isfinite, corners)):
            continue
        left, top, right, bottom = (100 * min(max(value, 0.0), 1.0) for value in corners)
        tip = f"{_named(box) or 'score'} {wording.figures(box.score)}"
        drawn.append(
            tag("rect", x=left, y=top, width=max(right - left, 0.0), height=max(bottom - top, 0.0), data_tip=tip)
        )
    return drawing(100, 100, *drawn, label=_found(boxes), class_="boxes", preserveAspectRatio="none")
