"""Tables as they are printed: the few forms that every report uses.

Names of nodes and files are put in as plain text: a name such as `conv[0]` must not be read as markup.
"""

from collections.abc import Sequence

from rich import box
from rich.cells import cell_len, chop_cells
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from thinet_onnx import wording

_SEPARATORS = "/.:;"
_INDENT, _ROOMY = "  ", 12  # of the rest of a name, in columns wider than this


def table() -> Table:
    """An empty table in the style of all of them."""
    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True, padding=(0, 1))


def print_table(rows: Table, console: Console, title: str = "") -> None:
    """The table under its title; the title is no part of it, so that a narrow table doesn't wrap it."""
    console.print()
    if title:
        line(console, title, style="bold")
    console.print(rows)


def text(words: str, style: str = "") -> Text:
    """Words as they are, with `?` for whatever would move the cursor."""
    return Text(wording.printable(words), style)


def line(console: Console, *parts: str, style: str = "") -> None:
    """One paragraph of plain text; the first part carries the style."""
    first, *others = map(text, parts)
    first.stylize(style)
    console.print(Text.assemble(first, *others), soft_wrap=False)


class Names:
    """Names for a column of a table: two of them at most, each folded behind a separator where the column is narrow."""

    def __init__(self, titles: Sequence[str]) -> None:
        shown = list(map(wording.printable, titles))
        self._lines = shown if len(shown) <= 2 else [shown[0], f"and {len(shown) - 1} more"]

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """As wide as the longest name, if there is room."""
        return Measurement.get(console, options, Text("\n".join(self._lines)))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """What doesn't fit on a name's line is indented below it."""
        yield Text("\n".join(part for line in self._lines for part in fold(line, options.max_width)))


def fold(name: str, width: int) -> list[str]:
    """Lines of `width` cells at most that a name takes: broken behind a separator if one is in their second half."""
    lines, indent = [], ""
    while cell_len(indent + name) > width:
        (head, *_) = chop_cells(name, width - len(indent))
        cut = max(head.rfind(mark) for mark in _SEPARATORS) + 1
        cut = cut if cut > len(head) // 2 else len(head)
        lines.append(indent + name[:cut])
        name, indent = name[cut:], _INDENT if width > _ROOMY else ""
    return [*lines, indent + name]
