"""`thinet-onnx report`."""

from pathlib import Path
from typing import Annotated

import typer

from thinet_onnx import interrupts
from thinet_onnx.cli import shared
from thinet_onnx.cli.shared import Debug

EXAMPLE = "thinet-onnx report small.json   (as the example of prune leaves it)"


def report(
    result: Annotated[Path, typer.Argument(metavar="RESULT", help="The file that prune --json wrote.")],
    output: Annotated[
        Path | None, typer.Argument(metavar="OUTPUT", help="The page to write.", show_default="RESULT.html")
    ] = None,
    *,
    debug: Debug = False,
) -> None:
    """Make the page of prune --report from the JSON file of an earlier run."""
    with shared.one_line_errors(debug):
        output = output or result.parent / f"{result.stem}.html"
        shared.check_output("OUTPUT", output, {"RESULT": result}, ".html", ".htm")

        from thinet_onnx import page, restore  # noqa: PLC0415

        interrupts.raise_from_now()
        page.write(restore.load_report(result), output)
        typer.echo(f"{output} is written.")
