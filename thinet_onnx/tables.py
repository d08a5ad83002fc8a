"""Tables as they are printed: the few forms that every report uses.

Names of nodes and files are put in as plain text: a name such as `conv[0]` must not be read as markup.
"""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from thinet_onnx import wording


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


def cell(titles: Sequence[str]) -> Text:
    """Names for a column of a table, two lines of them at most."""
    shown = list(map(text, titles))
    return Text("\n").join(shown) if len(shown) <= 2 else shown[0] + f"\nand {len(shown) - 1} more"
