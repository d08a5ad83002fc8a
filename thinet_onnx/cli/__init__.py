"""The command `thinet-onnx`: options become frozen data, an error becomes one line and exit code 2.

One module for each command; what they share is in `shared`. Whatever loads ONNX Runtime or NumPy is imported when the
options are in order: `--help` and a slip answer at once.
"""

import io
import logging
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from thinet_onnx._version import __version__
from thinet_onnx.cli import bench, curve, finetune, inspect, prune, report, verify
from thinet_onnx.cli.config import ConfiguredCommand
from thinet_onnx.cli.shared import ARGUMENTS

EXIT_CODES = (
    "Exit codes: 0 done; 1 a check of verify was missed, or a defect (with a traceback); 2 an option, file or target that is "
    "to be mended, in one line; 130 interrupted."
)


class _Group(TyperGroup):
    """Keeps the arguments: a report tells the command line that made it."""

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> Any:
        """Note the arguments before they are taken apart."""
        ARGUMENTS.set(tuple(args))
        return super().make_context(info_name, args, *rest, **extra)


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EXIT_CODES,
)


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that can't show × or a node's name shows ?
    logging.getLogger().addHandler(logging.NullHandler())  # what libraries log is no part of the answer
    app(prog_name="thinet-onnx")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"thinet-onnx {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", metavar="", help="Show the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Make convolutional ONNX networks smaller: take out the channels that the next layers can do without."""


for _command, _example in (
    (prune.prune, prune.EXAMPLE),
    (curve.curve, curve.EXAMPLE),
    (finetune.finetune, finetune.EXAMPLE),
    (verify.verify, verify.EXAMPLE),
    (bench.bench, bench.EXAMPLE),
    (inspect.inspect, inspect.EXAMPLE),
    (report.report, report.EXAMPLE),
):
    app.command(cls=ConfiguredCommand, epilog=f"Example: {_example}")(_command)
