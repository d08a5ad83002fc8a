"""`thinet-onnx report`."""

from pathlib import Path
from typing import Annotated

import typer

from thinet_onnx.cli import shared
from thinet_onnx.cli.shared import Debug
from thinet_onnx.errors import OutputError

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
        output = output or result.with_suffix(".html")
        shared.check_output("OUTPUT", output, {"RESULT": result})
        if output.exists() and output.suffix not in (".html", ".htm"):
            raise OutputError(f"{output} is there and is no .html file: it is not overwritten, name another OUTPUT.")

        from thinet_onnx import page, restore  # noqa: PLC0415

        page.write(restore.load_report(result), output)
