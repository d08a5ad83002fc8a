"""Tables and figures as they are printed: the few forms that every report uses.

Names of nodes and files are put in as plain text: a name such as `conv[0]` must not be read as markup.
"""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


def table() -> Table:
    """An empty table in the style of all of them."""
    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True, padding=(0, 1))


def print_table(rows: Table, console: Console, title: str = "") -> None:
    """The table under its title; the title is no part of it, so that a narrow table doesn't wrap it."""
    console.print()
    if title:
        line(console, title, style="bold")
    console.print(rows)


def line(console: Console, *parts: str, style: str = "") -> None:
    """One paragraph of plain text; the first part carries the style."""
    console.print(Text.assemble((parts[0], style), *parts[1:]), soft_wrap=False)


def cell(titles: Sequence[str]) -> Text:
    """Names for a column of a table, two lines of them at most."""
    return Text("\n".join(titles) if len(titles) <= 2 else f"{titles[0]}\nand {len(titles) - 1} more")


def names(titles: Sequence[str], limit: int) -> str:
    """`a, b and 3 more`."""
    if len(titles) <= limit + 1:
        return ", ".join(titles)
    return f"{', '.join(titles[:limit])} and {len(titles) - limit} more"


def plural(count: int, noun: str) -> str:
    """`1 channel`, `2 channels`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def share(part: float, whole: float, digits: int = 1) -> str:
    """A part of a whole in percent, a dash where there is no whole."""
    return f"{part / whole:.{digits}%}" if whole else "–"


def short(value: float, unit: str = "") -> str:
    """Three figures and a decimal prefix: 41234567 is `41.2 M`."""
    prefix = ""
    for larger in ("k", "M", "G", "T"):
        if abs(value) < 999.5:
            break
        value, prefix = value / 1000, larger
    digits = 0 if not prefix or abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:.{digits}f} {prefix}{unit}".rstrip()


def milliseconds(value: float) -> str:
    """Three figures: `0.821 ms`."""
    return f"{value:.3g} ms" if value < 100 else f"{value:.0f} ms"


def seconds(value: float) -> str:
    """`12.3 s`, `2 min 5 s`."""
    return f"{value:.1f} s" if value < 60 else f"{int(value) // 60} min {int(value) % 60} s"


def speed(before: float, after: float) -> str:
    """How the time changed, in words: `1.52× faster`."""
    if not before or not after:
        return "not measurable"
    return f"{before / after:.2f}× faster" if before >= after else f"{after / before:.2f}× slower"
