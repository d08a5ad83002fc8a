"""Tables as they are printed: the few forms that every report uses.

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
