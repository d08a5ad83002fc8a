"""The trade-off as a picture: one SVG, or a small HTML page with the picture and the table. Neither needs anything else."""

import os
from pathlib import Path

from markupsafe import Markup

from thinet_onnx import curve_table
from thinet_onnx import report as reports
from thinet_onnx.curve_result import CurveReport
from thinet_onnx.page.charts import HEIGHT, WIDTH, finite
from thinet_onnx.page.svg import NOTHING, Scale, drawing, frame, path, tag

_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 400.0, 52.0, 216.0
_STYLE = """
svg { font-family: system-ui, "Segoe UI", Roboto, "Liberation Sans", sans-serif; background: #fff; }
text { fill: #5a6675; } .tick { font-size: 11.5px; } .title, .note { font-size: 12px; } .grid { stroke: #e0e5eb; }
.axis { stroke: #5a6675; } .line { fill: none; stroke-width: 2; } .expected { stroke: #1769c4; } .error { stroke: #b3261e; }
.latency { stroke: #14734a; } circle.expected { fill: #1769c4; } circle.error { fill: #b3261e; }
circle.latency { fill: #14734a; } text.expected { fill: #1769c4; }
text.error { fill: #b3261e; } text.latency { fill: #14734a; } text.note { stroke: none; }
"""
_PAGE_STYLE = """
body { font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Liberation Sans", sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
svg { max-width: 46rem; } table { border-collapse: collapse; } th, td { text-align: right; padding: .2rem .7rem; border-bottom: 1px solid #e0e5eb; }
h1 { font-size: 1.2rem; overflow-wrap: anywhere; } p { color: #5a6675; }
"""  # noqa: E501

Points = list[tuple[float, float]]


def write(report: CurveReport, path: str | os.PathLike[str]) -> None:
    """Write the picture, or the page, by the file's name; whole or not at all.

    Raises:
        OutputError: `path` can't be written.
    """
    svg = draw(report)
    reports.write_whole(str(svg) + "\n" if Path(path).suffix.lower() == ".svg" else _page(report, svg), path)


def draw(report: CurveReport) -> Markup:
    """Errors (and times) against the share of the cost that remains."""
    points, whole = report.points, report.points[0]
    cost = [getattr(point, report.by) / getattr(whole, report.by) for point in points]
    ways = [(getattr(point, report.by) / getattr(whole, report.by), point.loss**0.5) for point in report.line]
    least = min(cost)
    line = [(share, error) for share, error in ways if share >= least - 1e-9]
    expected = [(share, point.expected_error) for share, point in zip(cost, points, strict=True)]
    error = [(share, point.error) for share, point in zip(cost, points, strict=True) if point.error is not None]
    times = [
        (share, point.latency_ms / whole.latency_ms)
        for share, point in zip(cost, points, strict=True)
        if point.latency_ms is not None and whole.latency_ms
    ]
    high = max(finite([value for _, value in (*expected, *error, *times)]), default=1.0) or 1.0
    x, y = Scale(max(0.0, least - 0.02), 1.0, _LEFT, _RIGHT), Scale(0.0, high, _BOTTOM, _TOP)
    axes = frame(
        x, y, x_title=f"{curve_table.NAMES[report.by]} that remain", y_title="", x_text=_percent, y_text=_percent
    )
    drawn = [
        _series(x, y, "expected", "expected error of the outputs", line or expected, expected, 0),
        _series(x, y, "error", f"measured error, {report.held} held-out samples", error, error, 1),
        _series(x, y, "latency", f"{report.latency} latency, share of the whole", times, times, 2),
    ]
    return drawing(
        WIDTH, HEIGHT, tag("style", Markup(_STYLE)), axes, *drawn, label=f"Trade-off of {report.model}",
        xmlns="http://www.w3.org/2000/svg",
    )  # fmt: skip


def _series(x: Scale, y: Scale, kind: str, title: str, line: Points, dots: Points, place: int) -> Markup:
    """A line with its dots, and its name above the chart."""
    if not dots:
        return NOTHING
    shown = sorted(point for point in line if point[1] <= y.high * (1 + 1e-9))
    marks = [
        tag("circle", tag("title", f"{title}: {_percent(value)} at {_percent(share)}"), cx=x(share), cy=y(value), r=3.5,
            class_=kind)
        for share, value in dots
    ]  # fmt: skip
    name = tag("text", title, x=_LEFT, y=14 + 14 * place, class_=f"note {kind}")
    return NOTHING.join([path([(x(s), y(v)) for s, v in shown], class_=f"line {kind}"), *marks, name])


def _page(report: CurveReport, svg: Markup) -> str:
    head = tag("tr", *(tag("th", name) for name in curve_table.headings(report)))
    rows = [tag("tr", *(tag("td", cell) for cell in curve_table.cells(report, point))) for point in report.points]
    told = [tag("p", text) for text in (*curve_table.notes(report), *report.warnings)]
    body = tag("body", tag("h1", report.model), svg, tag("table", head, *rows), *told)
    policy = Markup(
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    )
    title = tag("title", f"Trade-off of {report.model}")
    start = Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">')
    top = tag("head", start, policy, title, tag("style", Markup(_PAGE_STYLE)))
    return f"<!doctype html>\n{tag('html', top, body, lang='en')}\n"


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"
