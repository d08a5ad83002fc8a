"""Numbers and names for people, the same on a terminal and in a page. A number that isn't one is a dash."""

import math
from collections.abc import Sequence

NOTHING = "–"


def printable(text: str) -> str:
    """Text with nothing in it that would move the cursor: names come from files that anybody may have made."""
    return "".join(c if c.isprintable() else "?" for c in text)


def names(names: Sequence[str], limit: int) -> str:
    """`a, b and 3 more`."""
    if len(names) <= limit + 1:
        return ", ".join(names)
    return f"{', '.join(names[:limit])} and {len(names) - limit} more"


def plural(count: int, noun: str) -> str:
    """`1 group`, `2 groups`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def share(part: float, whole: float, digits: int = 1) -> str:
    """`49.9%`."""
    return f"{part / whole:.{digits}%}" if whole and math.isfinite(part / whole) else NOTHING


def short(value: float, unit: str = "") -> str:
    """Three figures and a decimal prefix: 41234567 is `41.2 M`."""
    if not math.isfinite(value):
        return NOTHING
    prefix = ""
    for larger in ("k", "M", "G", "T"):
        if abs(value) < 999.5:
            break
        value, prefix = value / 1000, larger
    digits = 0 if not prefix or abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:.{digits}f} {prefix}{unit}".rstrip()


def figures(value: float | None) -> str:
    """Three figures of any number: `0.0312`, `12.0`, `4.10e-7`."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{value:#.3g}".rstrip(".").replace(".e", "e").replace("e-0", "e-").replace("e+0", "e+") if value else "0"


def percent(value: float | None, digits: int = 1) -> str:
    """A share of 1: `98.4%`; one that would be rounded to 0 keeps two figures: `0.031%`."""
    if value is None or not math.isfinite(value):
        return NOTHING
    tiny = 0 < abs(value) < 0.5 * 10.0 ** -(digits + 2)
    return f"{100 * value:.2g}%" if tiny else f"{value:.{digits}%}"


def rough(value: float | None) -> str:
    """A share of 1 whose smallest values don't matter: `12.0%`, `< 0.1%`."""
    return "< 0.1%" if value is not None and 0 < value < 0.0005 else percent(value)


def milliseconds(value: float) -> str:
    """`0.801 ms`, `1.00 ms`, `120 ms`."""
    if not math.isfinite(value):
        return NOTHING
    return f"{value:#.3g} ms" if 0 < value < 99.95 else f"{value:.0f} ms"


def seconds(value: float) -> str:
    """`4.1 s`, `1 min 23 s`, `2 h 5 min`."""
    if not math.isfinite(value):
        return NOTHING
    if value >= 3600:
        return f"{int(value) // 3600} h {int(value) // 60 % 60} min"
    return f"{value:.1f} s" if value < 60 else f"{int(value) // 60} min {int(value) % 60} s"


def speed(before: float, after: float) -> str:
    """How the time changed, in words: `1.52× faster`."""
    if not before > 0 or not after > 0:
        return "not measurable"
    return f"{before / after:.2f}× faster" if before >= after else f"{after / before:.2f}× slower"


def points(before: float, after: float) -> str:
    """The change of a share of 1, in points of a percent: `−0.50 points`."""
    change = 100 * (after - before)
    return f"{change:+.2f} points".replace("-", "−", 1) if math.isfinite(change) else NOTHING
