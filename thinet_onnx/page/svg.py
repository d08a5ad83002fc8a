"""Drawing: SVG elements with their text escaped, and scales from values to places."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from markupsafe import Markup

NOTHING = Markup("")


def tag(name: str, *inner: str, **attributes: object) -> Markup:
    """One element; `stroke_width=2` writes `stroke-width="2"`, `class_` writes `class`, None is left out, floats are short."""
    written = NOTHING.join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _plain(value))
        for key, value in attributes.items()
        if value is not None
    )
    return Markup("<{0}{1}>{2}</{0}>").format(name, written, NOTHING.join(inner))


def drawing(width: float, height: float, *inner: str, label: str, **attributes: object) -> Markup:
    """An SVG of that many units that grows with its place; `label` says what it shows to those who can't see it."""
    return tag("svg", *inner, viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=label, **attributes)


def path(points: Iterable[tuple[float, float]], *, closed: bool = False, **attributes: object) -> Markup:
    """A line through points; if it is closed, the area within."""
    steps = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return tag("path", d=f"M{steps}{'Z' if closed else ''}" if steps else "", **attributes)


def figures(value: float) -> str:
    """A round value beside an axis: `0.1`, `20`, `2e-5`."""
    return f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e+")


@dataclass(frozen=True)
class Scale:
    """Values from `low` to `high` at places from `start` to `end`, evenly or by their logarithms; `whole` ones are counts."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    whole: bool = False

    def __call__(self, value: float) -> float:
        """The place of a value; one beyond the ends is at the end."""
        low, high, at = (math.log10(x) if self.log else x for x in (self.low, self.high, self._inside(value)))
        share = (at - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)

    def _holds(self, value: float) -> bool:
        return self.low * (1 - 1e-9) <= value <= self.high * (1 + 1e-9)

    def _inside(self, value: float) -> float:
        return min(max(value, self.low), self.high)

    def ticks(self, most: int = 5) -> list[float]:
        """Round values in between: 1, 2 or 5 times a power of ten; on a long logarithmic scale powers of ten alone."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            inside = [v for p in powers for v in (10.0**p, 2 * 10.0**p, 5 * 10.0**p) if self._holds(v)]
            if len(inside) > most:
                every = max(1, math.ceil(len(powers) / most))
                inside = [10.0**p for p in powers if p % every == 0 and self._holds(10.0**p)]
            return inside
        if not self.high > self.low:
            return [self.low]
        raw = max((self.high - self.low) / most, 1.0 if self.whole else 0.0)
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
        first = math.ceil(self.low / step - 1e-9)
        return [count * step for count in range(first, math.floor(self.high / step + 1e-9) + 1)]


def frame(
    x: Scale, y: Scale, *, x_title: str, y_title: str,
    x_text: Callable[[float], str] = figures, y_text: Callable[[float], str] = figures,
) -> Markup:  # fmt: skip
    """Axes: grid lines and values, the titles at their ends."""
    left, right, bottom, top = x.start, x.end, y.start, y.end
    lines = [tag("line", x1=left, x2=right, y1=y(value), y2=y(value), class_="grid") for value in y.ticks()]
    lines.append(tag("line", x1=left, x2=right, y1=bottom, y2=bottom, class_="axis"))
    values = [tag("text", y_text(v), x=left - 6, y=y(v) + 4, class_="tick", text_anchor="end") for v in y.ticks()]
    values += [tag("text", x_text(v), x=x(v), y=bottom + 16, class_="tick", text_anchor="middle") for v in x.ticks()]
    titles = [
        tag("text", x_title, x=right, y=bottom + 33, class_="title", text_anchor="end"),
        tag("text", y_title, x=4, y=top - 10, class_="title"),
    ]
    return NOTHING.join([*lines, *values, *titles])


def _plain(value: object) -> object:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value
