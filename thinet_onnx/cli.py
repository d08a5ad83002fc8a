"""The command `thinet-onnx`: options become a `PruneOptions`, an error becomes one line and exit code 2.

Whatever loads ONNX Runtime or NumPy is imported when the options are in order: `--help` and a slip answer at once.
"""

import io
import math
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich import progress as bars
from rich.console import Console

from thinet_onnx import report
from thinet_onnx._version import __version__
from thinet_onnx.errors import OptionError, OutputError, ThinetError
from thinet_onnx.options import Method, Progress, PruneOptions, Reconstruction, Scope, Silent, Target, parse_shapes
from thinet_onnx.result import Inspection, Report

DEFAULT_TARGET = "macs=50%"
EXAMPLE_DATA = "--data models/fashion_calibration.npz --mean 0.286 --std 0.353"
NO_DATA = (
    "no calibration data: pass --data with a folder of images, a .npy or .npz file, or script.py:function "
    "(or --random-data to try the command on noise; the network it makes is of no use)."
)

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line; the entry point of the package."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that can't show × or a node's name shows ?
    app(prog_name="thinet-onnx")


# --- commands --------------------------------------------------------------------------------------------------------

DATA, PIXELS, WHAT, HOW, REPORT = (
    "Calibration data",
    "Images (folders, and arrays of uint8): (pixel × scale − mean) / std",
    "What to remove",
    "How to remove it",
    "Checking and reporting",
)


def _option(panel: str, metavar: str, text: str, *names: str, default: str | bool = True) -> Any:
    """Declare an option; `default` is what its help shows where None stands for something else."""
    return typer.Option(*names, metavar=metavar, help=text, show_default=default, rich_help_panel=panel)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"thinet-onnx {__version__}")
        raise typer.Exit


Layout = Literal["auto", "nchw", "nhwc"]
Model = Annotated[Path, typer.Argument(metavar="MODEL", help="The .onnx file to read; it stays as it is.")]
Output = Annotated[
    Path | None,
    typer.Argument(metavar="OUTPUT", help="The .onnx file to write.", show_default="MODEL_pruned.onnx"),
]
Shapes = Annotated[
    list[str] | None, _option(DATA, "NAME:N,C,H,W", "Sizes of an input, where left open; repeatable.", "--shape")
]
Scopes = Annotated[Scope, _option(WHAT, "inner|all", "all: the channels of residual streams too.", "--scope")]
Json = Annotated[Path | None, _option(REPORT, "FILE", "Write a JSON report: all that is shown, and more.", "--json")]
Debug = Annotated[bool, _option(REPORT, "", "Show the traceback of an error.", "--debug")]


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", metavar="", help="Show the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Make convolutional ONNX networks smaller: take out the channels that the next layers can do without."""


@app.command(epilog=f"Example: thinet-onnx prune models/fashion_resnet.onnx {EXAMPLE_DATA}")
def prune(
    model: Model,
    output: Output = None,
    *,
    data: Annotated[
        str | None, _option(DATA, "PATH", "Needed: a folder of images, .npy, .npz or script.py:function.")
    ] = None,
    samples: Annotated[int | None, _option(DATA, "N", "Take N samples at random.", default="all")] = None,
    shape: Shapes = None,
    random_data: Annotated[bool, _option(DATA, "", "In place of --data: noise, for a try.", "--random-data")] = False,
    mean: Annotated[str | None, _option(PIXELS, "X[,X..]", "One value, or one per channel.", default="0")] = None,
    std: Annotated[str | None, _option(PIXELS, "X[,X..]", "One value, or one per channel.", default="1")] = None,
    scale: Annotated[float | None, _option(PIXELS, "X", "For pixels of 0 to 255.", default="1/255")] = None,
    resize: Annotated[str | None, _option(PIXELS, "HxW", "Stretch images to this.", default="the input's size")] = None,
    layout: Annotated[Layout, _option(PIXELS, "auto|nchw|nhwc", "The model's, if its shape doesn't tell.")] = "auto",
    target: Annotated[
        str | None,
        _option(WHAT, "KIND=SIZE", "What remains: macs=50%, params=50%, macs=2.0G.", default=DEFAULT_TARGET),
    ] = None,
    keep: Annotated[float | None, _option(WHAT, "SHARE", "In place of --target: the same share per layer.")] = None,
    scope: Scopes = "inner",
    include: Annotated[list[str] | None, _option(WHAT, "REGEX", "Prune matching nodes only; repeatable.")] = None,
    exclude: Annotated[list[str] | None, _option(WHAT, "REGEX", "Don't prune matching nodes; repeatable.")] = None,
    round_to: Annotated[int | None, _option(WHAT, "N", "Keep multiples of N channels.", default="by width")] = None,
    method: Annotated[
        Method | None,
        _option(
            HOW, "NAME", "Rank by: obs, thinet, thinet-omp, thinet-sampled, weight-sum, apoz, random.", default="obs"
        ),
    ] = None,
    reconstruct: Annotated[
        Reconstruction | None,
        _option(
            HOW, "joint|full|scale|none", "Refit readers and makers of cut channels, or readers.", default="by method"
        ),
    ] = None,
    seed: Annotated[int, _option(HOW, "N", "Seed of all that is random.")] = 0,
    test_data: Annotated[
        str | None, _option(REPORT, "PATH", "Data with labels: show accuracy before and after.")
    ] = None,
    json_file: Json = None,
    quiet: Annotated[bool, _option(REPORT, "", "Print errors only.", "--quiet", "-q")] = False,
    debug: Debug = False,
) -> None:
    """Take channels out of MODEL and write the smaller network to OUTPUT."""
    with _one_line_errors(debug):
        options = PruneOptions(
            target=Target.parse(target or DEFAULT_TARGET) if target or keep is None else None,
            keep=keep,
            method=method,
            reconstruct=reconstruct,
            scope=scope,
            include=tuple(include or ()),
            exclude=tuple(exclude or ()),
            round_to=round_to,
            samples=samples,
            seed=seed,
            shapes=parse_shapes(shape or []),
        )
        means, stds, size = _floats("--mean", mean), _floats("--std", std), _size(resize)
        if not data and not random_data:
            raise OptionError(NO_DATA)
        if data and random_data:
            raise OptionError("--data and --random-data are both there: say one of the two.")
        output = output or model.parent / f"{model.stem}_pruned.onnx"
        inputs = {"MODEL": model, "--data": data, "--test-data": test_data}
        _check_output("OUTPUT", output, inputs)
        if output.exists() and output.suffix != ".onnx":
            raise OutputError(f"{output} is there and is no .onnx file: it is not overwritten, name another OUTPUT.")
        if json_file is not None:
            _check_output("--json", json_file, {**inputs, "OUTPUT": output})

        from thinet_onnx import pipeline  # noqa: PLC0415
        from thinet_onnx.data import Preprocess  # noqa: PLC0415

        progress: Progress = Silent() if quiet or not sys.stderr.isatty() else Bars(Console(stderr=True))
        try:
            result = pipeline.prune(
                model,
                data,
                options,
                preprocess=Preprocess(mean=means, std=stds, scale=scale, layout=layout, resize=size),
                random_data=random_data,
                test_data=test_data,
                output=output,
                progress=progress,
            )
        finally:
            progress.close()
        _show(result.report, json_file, quiet)


@app.command(epilog="Example: thinet-onnx inspect models/fashion_resnet.onnx")
def inspect(
    model: Model, *, shape: Shapes = None, scope: Scopes = "all", json_file: Json = None, debug: Debug = False
) -> None:
    """Show which channels of MODEL can be removed, and why the others can't."""
    with _one_line_errors(debug):
        shapes = parse_shapes(shape or [])
        if json_file is not None:
            _check_output("--json", json_file, {"MODEL": model})

        from thinet_onnx import pipeline  # noqa: PLC0415

        _show(pipeline.inspect(model, shapes=shapes, scope=scope), json_file)


# --- what they share -------------------------------------------------------------------------------------------------


@contextmanager
def _one_line_errors(debug: bool) -> Iterator[None]:
    """End the command with code 2 and one line for a ThinetError, with 130 when interrupted."""
    try:
        yield
    except ThinetError as error:
        if debug:
            traceback.print_exc()
        typer.echo(f"thinet-onnx: error: {' '.join(str(error).splitlines())}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo("thinet-onnx: interrupted", err=True)
        raise typer.Exit(130) from None


def _show(result: Report | Inspection, json_file: Path | None, quiet: bool = False) -> None:
    try:
        if not quiet:
            report.render(result, Console(highlight=False))
    finally:  # a reader that closed the pipe early still gets the file
        if json_file is not None:
            report.write_json(result, json_file)


def _floats(option: str, text: str | None) -> tuple[float, ...]:
    if text is None:
        return ()
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = (math.nan,)
    if not all(map(math.isfinite, values)):
        raise OptionError(f"{option} {text!r} is not understood: write numbers such as 0.485,0.456,0.406.")
    return values


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"([1-9][0-9]*)(?:x([1-9][0-9]*))?", text.lower())
    if match is None:
        raise OptionError(f"--resize {text!r} is not understood: write height x width, such as 224x320, or one number.")
    return int(match[1]), int(match[2] or match[1])


def _check_output(name: str, path: Path, others: Mapping[str, str | Path | None]) -> None:
    """Refuse, before the work and not after it, a file that can't be written or that is one of `others`."""
    for other_name, other in others.items():
        if other is not None and _same_file(path, Path(other)):
            raise OutputError(f"{name} and {other_name} are the same file, {path}: write to another one.")
    report.check_writable(path)


def _same_file(one: Path, other: Path) -> bool:
    with suppress(OSError):
        return one.samefile(other)
    return one.resolve() == other.resolve()


class Bars(Progress):
    """A bar for each stage: how far, how many, how long still, how long it took. All are cleared away at the end."""

    def __init__(self, console: Console) -> None:
        self._display = bars.Progress(
            bars.TextColumn("{task.description}", markup=False),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            transient=True,
        )
        self._tasks: dict[str, bars.TaskID] = {}
        self._now: bars.TaskID | None = None

    def start(self, stage: str, total: int) -> None:
        """Draw a bar for the stage; one that comes again gets its old bar."""
        self._finish()
        self._display.start()
        if stage in self._tasks:
            self._display.reset(self._tasks[stage], total=total)
        else:
            self._tasks[stage] = self._display.add_task(stage, total=total)
        self._now = self._tasks[stage]

    def advance(self, steps: int = 1) -> None:
        """Move the bar of the stage."""
        if self._now is not None:
            self._display.advance(self._now, steps)

    def close(self) -> None:
        """Clear the bars away."""
        self._finish()
        self._display.stop()

    def _finish(self) -> None:
        """Fill the bar of the stage that ends, and stop its clock."""
        if self._now is not None:
            total = self._display.tasks[self._now].total
            self._display.update(self._now, completed=total)
            self._now = None
