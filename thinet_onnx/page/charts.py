"""The charts of the page, from the plain data of a report. Each answers with nothing where there is nothing to draw."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence

from markupsafe import Markup

from thinet_onnx import wording
from thinet_onnx.page.svg import NOTHING, Scale, drawing, figures, frame, path, tag
from thinet_onnx.result import ErrorCurve, GroupRow, Tradeoff, TuneCurve

WIDTH, HEIGHT = 420.0, 260.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 400.0, 34.0, 216.0
_MOST_BARS = 24
_LONGEST = 80  # characters of a name in a tip
_LETTER = 7.5  # width of one in a title, more or less


def finite(values: Iterable[float | None]) -> list[float]:
    """The values that are numbers."""
    return [value for value in values if value is not None and math.isfinite(value)]


def histogram(values: Sequence[float], label: str) -> Markup:
    """How many samples lie where; a few far-off ones are gathered in the last bar."""
    known = sorted(finite(values))
    if not known:
        return NOTHING
    usual = known[int(0.95 * (len(known) - 1))]
    high = known[-1] if known[-1] <= 4 * usual else 1.5 * usual
    high = high or 1.0
    bars = min(max(math.ceil(2 * math.sqrt(len(known))), 6), _MOST_BARS)
    counts = [0] * bars
    for value in known:
        counts[min(int(value / high * bars), bars - 1)] += 1
    x, y = Scale(0, high, _LEFT, _RIGHT), Scale(0, max(counts), _BOTTOM, _TOP, whole=True)
    drawn = []
    for place, count in enumerate(counts):
        start, end = place * high / bars, (place + 1) * high / bars
        beyond = place == bars - 1 and known[-1] > high
        between = f"{start:.3g} and more" if beyond else f"{start:.3g} to {end:.3g}"
        drawn.append(
            tag(
                "rect", x=x(start) + 0.75, width=x(end) - x(start) - 1.5, y=y(count), height=_BOTTOM - y(count), rx=1.5,
                class_="bar beyond" if beyond else "bar", data_tip=f"{between}: {wording.plural(count, 'sample')}",
            )
        )  # fmt: skip
    middle = statistics.median(known)
    drawn.append(tag("line", x1=x(middle), x2=x(middle), y1=_TOP - 12, y2=_BOTTOM, class_="mark"))
    drawn.append(_beside(x(middle), f"median {middle:.3g}", "samples"))
    axes = frame(x, y, x_title="relative error of a sample", y_title="samples", y_text=wording.short)
    return drawing(WIDTH, HEIGHT, axes, *drawn, label=label, class_="chart")


def _beside(x: float, text: str, title: str, gap: float = 5) -> Markup:
    """Words at the top beside a place, on the side with more room, and not on the title of the axis."""
    end = x > (_LEFT + _RIGHT) / 2
    start = max(x + gap, 4 + _LETTER * len(title))
    return tag(
        "text", text, x=x - gap if end else start, y=_TOP - 4, class_="note", text_anchor="end" if end else "start"
    )


def tradeoff(points: Sequence[Tradeoff], before: int) -> Markup:
    """The error that choices are expected to cost against the MACs they leave."""
    known = [point for point in points if math.isfinite(point.loss) and point.loss >= 0]
    drawn = [point for point in known if not point.chosen]
    chosen = [point for point in known if point.chosen]
    if len(drawn) < 2 or not before:
        return NOTHING
    errors = [math.sqrt(point.loss) for point in known]
    at_choice = max((math.sqrt(point.loss) for point in chosen), default=max(errors))
    high = min(max(errors), max(4 * at_choice, 0.05)) or 1.0
    low = min(point.macs for point in known) / before
    x, y = Scale(min(low, 0.95), 1, _LEFT, _RIGHT), Scale(0, high, _BOTTOM, _TOP)
    places = [(point.macs / before, math.sqrt(point.loss)) for point in drawn]
    line = [(x(share), y(error)) for share, error in _below(places, high)]
    if not line:
        return NOTHING
    ground = [(line[-1][0], _BOTTOM), (line[0][0], _BOTTOM)]
    area = path([*line, *ground], closed=True, class_="area")
    dots = [
        tag("circle", cx=x(share), cy=y(error), r=7, class_="spot", data_tip=_expected(share, error))
        for share, error in places
        if error <= high
    ]
    marks = [_choice(x, y, point.macs / before, math.sqrt(point.loss)) for point in chosen]
    axes = frame(x, y, x_title="MACs that remain", y_title="expected relative error of the outputs",
                 x_text=_percent, y_text=_percent)  # fmt: skip
    label = "Expected error against the MACs that remain"
    return drawing(WIDTH, HEIGHT, axes, area, path(line, class_="line"), *dots, *marks, label=label, class_="chart")


def _below(places: Sequence[tuple[float, float]], high: float) -> list[tuple[float, float]]:
    """The line as far as it stays below `high`, and to where it crosses."""
    kept: list[tuple[float, float]] = []
    for share, error in places:
        if error > high:
            if kept and error > kept[-1][1]:
                last, least = kept[-1]
                kept.append((last + (share - last) * (high - least) / (error - least), high))
            break
        kept.append((share, error))
    return kept


def _choice(x: Scale, y: Scale, share: float, error: float) -> Markup:
    place = x(share), y(error)
    return NOTHING.join(
        [
            tag("line", x1=place[0], x2=place[0], y1=place[1], y2=_BOTTOM, class_="mark"),
            tag(
                "circle", cx=place[0], cy=place[1], r=6, class_="chosen", data_tip="chosen: " + _expected(share, error)
            ),
            tag("text", f"chosen: {share:.1%}", x=min(place[0] + 8, _RIGHT - 90), y=place[1] - 12, class_="note"),
        ]
    )


def _expected(share: float, error: float) -> str:
    return f"{share:.1%} of the MACs: expected error {error:.1%}"


def sensitivities(groups: Sequence[GroupRow], macs: int) -> Markup:
    """Each weighed group: what it costs against how much the outputs feel it."""
    known = [
        (g, g.sensitivity) for g in groups if g.sensitivity is not None and 0 < g.sensitivity < math.inf and g.macs > 0
    ]
    if not known or not macs:
        return NOTHING
    x = _decades([group.macs / macs for group, _ in known], _LEFT, _RIGHT, most=1.0)
    y = _decades([value for _, value in known], _BOTTOM, _TOP)
    dots = [
        tag(
            "circle", cx=x(group.macs / macs), cy=y(value), r=3 + 1.2 * math.log10(max(group.before, 1)),
            class_="dot whole" if group.after == group.before else "dot",
            fill_opacity=0.25 + 0.75 * (1 - group.after / max(group.before, 1)),
            data_tip=f"{_width(group)}\nMACs at stake {wording.percent(group.macs / macs)}, sensitivity {value:.3g}",
        )
        for group, value in known
    ]  # fmt: skip
    axes = frame(x, y, x_title="MACs at stake, share of the network", y_title="sensitivity", x_text=_small_percent)
    label = "Sensitivity of each group against the MACs at stake"
    return drawing(WIDTH, HEIGHT, axes, *dots, label=label, class_="chart")


def _width(group: GroupRow) -> str:
    name = group.name if len(group.name) <= _LONGEST else f"{group.name[:_LONGEST]}…"
    return f"{name}\n{group.before} → {group.after} channels"


def _decades(values: Sequence[float], start: float, end: float, most: float = math.inf) -> Scale:
    """A logarithmic scale between round values, of four decades at most: what is less lies at its end."""
    high = min(_round(max(values) * 1.1, up=True), most)
    low = max(_round(min(values) / 1.1, up=False), high * 1e-4)
    return Scale(low, max(high, 2 * low), start, end, log=True)


def _round(value: float, *, up: bool) -> float:
    """The next value of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    steps = [factor * power for factor in (1, 2, 5, 10)]
    return next(s for s in steps if s >= value) if up else next(s for s in reversed(steps) if s <= value)


def spark(curve: ErrorCurve | None, after: int) -> Markup:
    """A group's error curve in small, with the width chosen."""
    if curve is None:
        return NOTHING
    points = [(w, e) for w, e in zip(curve.widths, curve.errors, strict=False) if math.isfinite(e)]
    if len(points) < 2:
        return NOTHING
    x = Scale(points[0][0], points[-1][0], 3, 93)
    y = Scale(0, max(error for _, error in points) or 1.0, 25, 3)
    line = [(x(width), y(error)) for width, error in points]
    here = [tag("circle", cx=x(w), cy=y(e), r=3, class_="chosen") for w, e in points if w == after]
    told = [points[round(place * (len(points) - 1) / 4)] for place in range(5)]
    told += [point for point in points if point[0] == after and point not in told]
    tip = "error by channels kept\n" + "\n".join(
        f"{width}: {error:.3g}" for width, error in dict.fromkeys(sorted(told))
    )
    label = f"error curve, from {points[0][1]:.3g} at {points[0][0]} channels to {points[-1][1]:.3g} at {points[-1][0]}"
    return drawing(96, 28, path(line, class_="line"), *here, label=label, class_="spark", data_tip=tip)


def profile(groups: Sequence[GroupRow]) -> Markup:
    """All groups side by side, in the order of the network: channels before and after."""
    most = max((group.before for group in groups), default=0)
    if not most:
        return NOTHING
    columns = []
    for place, group in enumerate(groups):
        pair = [
            tag("rect", x=place + 0.08, width=0.84, y=100 - height, height=height, class_=kind)
            for count, kind in ((group.before, "before"), (group.after, "after"))
            if (height := 100 * math.sqrt(count / most))
        ]
        columns.append(tag("g", *pair, data_tip=_width(group)))
    label = f"Channels of {wording.plural(len(groups), 'group')}, before and after"
    width = f"max-width:{5 * len(groups)}rem"  # a few groups aren't drawn as towers
    return drawing(len(groups), 100, *columns, label=label, class_="profile", preserveAspectRatio="none", style=width)


def training(curve: TuneCurve) -> list[tuple[str, Markup]]:
    """What the training run shows: the loss, and what was validated, each under its title."""
    checks = [(entry["step"], entry) for entry in curve.validations if entry.get("step") is not None]
    losses = [(float(step), loss) for step, loss in curve.steps]
    validated = [(float(step or 0), entry.get("loss")) for step, entry in checks]
    made = [
        (
            "Loss: training in grey, validation in blue",
            _lines([("line faint", losses), ("line", validated)], curve.best_step, "loss", figures),
        )
    ]
    for key, title in (("agreement", "Same answer as the original"), ("accuracy", "Accuracy")):
        series = [(float(step or 0), entry.get(key)) for step, entry in checks]
        made.append((title, _lines([("line", series)], curve.best_step, key, _percent, most=1.0)))
    return [(title, chart) for title, chart in made if chart]


def _lines(
    series: Sequence[tuple[str, Sequence[tuple[float, float | None]]]], best: int | None, title: str,
    text: Callable[[float], str], most: float = math.inf,
) -> Markup:  # fmt: skip
    """Values by step; the axis ends at `most`, beyond which there are none."""
    known = [
        (kind, [(s, v) for s, v in points if v is not None and math.isfinite(s) and math.isfinite(v)])
        for kind, points in series
    ]
    values = [value for _, points in known for _, value in points]
    steps = [step for _, points in known for step, _ in points]
    if not values:
        return NOTHING
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    x = Scale(min(steps), max(*steps, min(steps) + 1), _LEFT, _RIGHT, whole=True)
    y = Scale(low - margin if low < 0 or low > high / 2 else 0, max(min(high + margin, most), high), _BOTTOM, _TOP)
    drawn = [path(_thinned([(x(s), y(v)) for s, v in points]), class_=kind) for kind, points in known if points]
    drawn += [
        tag("circle", cx=x(step), cy=y(value), r=3.5, class_="bar", data_tip=f"step {step:g}: {title} {text(value)}")
        for kind, points in known
        if kind == "line"
        for step, value in points[:: max(1, len(points) // 100)]
    ]
    if best is not None and min(steps) <= best <= max(steps):
        drawn.append(tag("line", x1=x(best), x2=x(best), y1=_TOP - 4, y2=_BOTTOM, class_="mark"))
        drawn.append(_beside(x(best), f"best: step {best}", title))
    axes = frame(x, y, x_title="step", y_title=title, x_text=_thousands, y_text=text)
    return drawing(WIDTH, HEIGHT, axes, *drawn, label=f"{title} by step", class_="chart")


def _thinned(points: Sequence[tuple[float, float]], most: int = 600) -> Sequence[tuple[float, float]]:
    """No more points than the eye can tell: the mean of neighbours."""
    if len(points) <= most:
        return points
    every = math.ceil(len(points) / most)
    parts = [points[start : start + every] for start in range(0, len(points), every)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def _thousands(value: float) -> str:
    return f"{value:,.0f}"


def _percent(share: float) -> str:
    return f"{share:.0%}" if abs(share - round(share, 2)) < 1e-9 else f"{share:.1%}"


def _small_percent(share: float) -> str:
    return f"{100 * share:g}%"
