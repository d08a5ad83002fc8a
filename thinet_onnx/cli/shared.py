"""What commands share: options with the same name mean the same everywhere, errors are one line, files are checked first."""

import errno
import io
import math
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, TypeVar

import typer
from rich.console import Console

from thinet_onnx import interrupts, report, wording
from thinet_onnx.cli.bars import Bars, Lines
from thinet_onnx.errors import OptionError, OutputError, StateError, ThinetError
from thinet_onnx.joined import join
from thinet_onnx.options import BOX_ORDERS, Progress, Scope, Silent, Storage
from thinet_onnx.ranks import ALONE, Ranks
from thinet_onnx.result import Inspection, Report, Result, TuneReport

if TYPE_CHECKING:
    from thinet_onnx.data import Preprocess

ARGUMENTS: ContextVar[tuple[str, ...]] = ContextVar("arguments", default=())  # that the program was called with
EXAMPLE_DATA = "--data models/fashion_calibration.npz --mean 0.286 --std 0.353"

DATA, PIXELS, WHAT, TIME, HOW, TRAIN, STORE, REPORT = (
    "Calibration data",
    "Images (folders, and arrays of uint8): (pixel × scale − mean) / std",
    "What to remove",
    "Where latency is measured (for --target latency)",
    "How to remove it",
    "Fine-tuning (needs PyTorch)",
    "Long runs, and several of them",
    "Checking and reporting",
)


def option(
    panel: str, metavar: str, text: str, *names: str, default: str | bool = True, choices: Sequence[str] = ()
) -> Any:
    """Declare an option; `default` is what its help shows where None stands for something else.

    A shell offers `choices` where the type of the value doesn't tell them.
    """

    def complete(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    return typer.Option(
        *names, metavar=metavar, help=text, show_default=default, rich_help_panel=panel,
        autocompletion=complete if choices else None,
    )  # fmt: skip


Shown = TypeVar("Shown", bound=Result)
Layout = Literal["auto", "nchw", "nhwc"]
Model = Annotated[Path, typer.Argument(metavar="MODEL", help="The .onnx file to read; it stays as it is.")]
Output = Annotated[
    Path | None,
    typer.Argument(metavar="OUTPUT", help="The .onnx file to write.", show_default="MODEL_pruned.onnx"),
]
Shapes = Annotated[
    list[str] | None, option(DATA, "NAME:N,C,H,W", "Sizes of an input, where left open; repeatable.", "--shape")
]
Data = Annotated[str | None, option(DATA, "PATH", "Needed: a folder of images, .npy, .npz or script.py:function.")]
Samples = Annotated[int | None, option(DATA, "N", "Take N samples at random.", default="all")]
Mean = Annotated[str | None, option(PIXELS, "X[,X..]", "One value, or one per channel.", default="0")]
Std = Annotated[str | None, option(PIXELS, "X[,X..]", "One value, or one per channel.", default="1")]
Scale = Annotated[float | None, option(PIXELS, "X", "For pixels of 0 to 255.", default="1/255")]
Resize = Annotated[str | None, option(PIXELS, "HxW", "Stretch images to this.", default="the input's size")]
Layouts = Annotated[Layout, option(PIXELS, "auto|nchw|nhwc", "The model's, if its shape doesn't tell.")]
Quiet = Annotated[bool, option(REPORT, "", "Print errors only.", "--quiet", "-q")]
Scopes = Annotated[Scope, option(WHAT, "inner|all", "all: the channels of residual streams too.", "--scope")]
Json = Annotated[Path | None, option(REPORT, "FILE", "Write a JSON report: all that is shown, and more.", "--json")]
Page = Annotated[Path | None, option(REPORT, "FILE", "Write a report to look at: one HTML file.", "--report")]
SaveMoments = Annotated[Path | None, option(STORE, "FILE", "Keep what was learnt of MODEL: no target matters to it.")]
FromMoments = Annotated[
    Path | None, option(STORE, "FILE", "Start from that of an earlier run, and learn nothing anew.")
]
Task = Annotated[
    str,
    option(
        REPORT,
        "auto|detect",
        "How the report shows outputs: detect draws boxes; also detect:cxcywh, detect:yxyx.",
        choices=("auto", "detect", *(f"detect:{order}" for order in BOX_ORDERS)),
    ),
]
Classes = Annotated[Path | None, option(REPORT, "FILE", "Names of the classes for the report, one a line.")]
Config = Annotated[
    Path | None,
    option(REPORT, "FILE", "Options from a .toml file, or a pruned .onnx; those typed win.", "--config"),
]
Verbose = Annotated[bool, option(REPORT, "", "Say on stderr what is done, and how long it takes.", "--verbose", "-v")]
Debug = Annotated[bool, option(REPORT, "", "Show the traceback of an error.", "--debug")]


_LARGEST_STD = 10  # that pixels of 0 to 1 can have been divided by
NO_MEMORY = "There is not enough memory ({}); take fewer samples or smaller inputs."


@contextmanager
def one_line_errors(debug: bool, ranks: Ranks = ALONE) -> Iterator[None]:
    """End the command with code 2 and one line for a ThinetError or want of memory, with 130 when interrupted.

    Of several processes the first one tells; what ends one of them alone it tells itself, too.
    """
    try:
        with ranks.agreeing():
            yield
    except (ThinetError, MemoryError) as error:
        if debug:
            traceback.print_exc()
        if not ranks.speaks and isinstance(error, ThinetError):
            raise typer.Exit(2) from None
        _complain(str(error) if isinstance(error, ThinetError) else NO_MEMORY.format(error or "allocation failed"))
    except KeyboardInterrupt:
        if not interrupts.silent():
            typer.echo(interrupts.MESSAGE, err=True)
        raise typer.Exit(interrupts.CODE) from None


def _complain(message: str) -> NoReturn:
    """Print one line, whatever a name from a file holds, and end the command with code 2."""
    line = " ".join(message.splitlines())
    typer.echo(f"thinet-onnx: error: {wording.printable(line)}", err=True)
    raise typer.Exit(2) from None


@contextmanager
def together(debug: bool) -> Iterator[Ranks]:
    """`one_line_errors` for a command that torchrun may start several times: the first process tells, then all end."""
    with one_line_errors(debug):
        ranks = join()
    try:
        with one_line_errors(debug, ranks):
            yield ranks
    finally:
        ranks.close()


def preprocess(
    mean: str | None, std: str | None, scale: float | None, resize: str | None, layout: Layout
) -> "Preprocess":
    """How images become inputs, from the options of that name."""
    means, stds, size = floats("--mean", mean), floats("--std", std), _size(resize)
    if scale is None and (max(means, default=0.0) > 1 or max(stds, default=0.0) > _LARGEST_STD):
        raise OptionError(
            f"--mean {mean or 0} and --std {std or 1} are of pixels of 0 to 255, but --scale makes them 0 to 1 first: add "
            "--scale 1, or divide both by 255."
        )
    from thinet_onnx.data import Preprocess  # noqa: PLC0415

    return Preprocess(mean=means, std=stds, scale=scale, layout=layout, resize=size)


@contextmanager
def watched(quiet: bool, verbose: bool = False) -> Iterator[Progress]:
    """Bars for a run on a terminal, cleared away at its end; nothing elsewhere. `verbose`: lines on stderr, too."""
    if quiet and verbose:
        raise OptionError("--quiet and --verbose contradict each other: say one of the two.")
    console = Console(stderr=True)
    progress: Progress = Silent() if quiet or not sys.stderr.isatty() else Bars(console)
    progress = Lines(console, progress) if verbose else progress
    try:
        yield progress
    finally:
        progress.close()


def show(
    result: Report | Inspection | TuneReport, json_file: Path | None, quiet: bool = False, page: Path | None = None
) -> None:
    """Print a result, and write it as JSON and as a page if files are named."""
    present(result, report.render, json_file, quiet, page)


def present(
    result: Shown, render: Callable[[Shown, Console], None], json_file: Path | None, quiet: bool = False,
    page: Path | None = None,
) -> None:  # fmt: skip
    """Print a result in its own way, and write it as JSON and as a page if files are named."""
    try:
        if not quiet:
            _print(result, render)
    finally:  # a reader that closed the pipe early still gets the files
        if json_file is not None:
            report.write_json(result, json_file)
        if page is not None:
            assert isinstance(result, Report)
            from thinet_onnx.page import write  # noqa: PLC0415

            write(result, page)


def command_line() -> str:
    """The command as it could be typed again; empty where a command's function is called without one."""
    arguments = ARGUMENTS.get()
    return shlex.join(["thinet-onnx", *arguments]) if arguments else ""


def _print(result: Shown, render: Callable[[Shown, Console], None]) -> None:
    """Print a result; a reader that has gone away is none of our business, a full disk is."""
    try:
        render(result, Console(highlight=False))
        sys.stdout.flush()
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        sys.stdout = io.StringIO()  # what is left in the buffer would fail again at the end
        raise OutputError(f"The report can't be printed ({error.strerror}).") from None


def floats(option: str, text: str | None) -> tuple[float, ...]:
    """Parse `0.485,0.456,0.406`; raises OptionError."""
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
    match = re.fullmatch(r"([1-9][0-9]{0,4})(?:x([1-9][0-9]{0,4}))?", text.lower())
    if match is None:
        raise OptionError(f"--resize {text!r} is not understood: write height x width, such as 224x320, or one number.")
    return int(match[1]), int(match[2] or match[1])


def check_output(name: str, path: Path, others: Mapping[str, str | Path | None], suffix: str, *more: str) -> None:
    """Refuse, before the work and not after it, a file that can't be written or that is one of `others`.

    A file that is there already is only overwritten if its name ends in `suffix`, or in one of the others.
    """
    for other_name, other in others.items():
        if other is not None and _same_file(path, Path(other)):
            raise OutputError(f"{name} and {other_name} are the same file, {path}: write to another one.")
    report.check_writable(path)
    if path.exists() and path.suffix.lower() not in (suffix, *more):
        raise OutputError(f"{path} is there and is no {suffix} file: it is not overwritten, name another {name}.")


def check_folder(name: str, path: Path, others: Mapping[str, str | Path | None]) -> None:
    """Refuse, before the work and not after it, a folder that can't be made, or in whose place a file is or will be."""
    for other_name, other in others.items():
        if other is not None and _same_file(path, Path(other)):
            raise OutputError(f"{name} and {other_name} are the same, {path}: name another folder.")
    there = path
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise OutputError(f"{name} {path}: {there} is no folder; name another one.")
    if not os.access(there, os.W_OK):
        raise OutputError(f"{name} {path}: no permission to write in {there}.")


def storage(
    state: Path | None, save_moments: Path | None, from_moments: Path | None, others: Mapping[str, str | Path | None]
) -> Storage:
    """What a run keeps, from the options of that name; raises OutputError, OptionError and StateError."""
    if from_moments is not None and not from_moments.is_file():
        raise StateError(f"--from-moments {from_moments}: there is no such file; make one with --save-moments.")
    if save_moments is not None:
        check_output("--save-moments", save_moments, {**others, "--from-moments": from_moments}, ".npz")
    if state is not None:
        check_folder("--state", state, {**others, "--save-moments": save_moments, "--from-moments": from_moments})
    return Storage(state, save_moments, from_moments)


def _same_file(one: Path, other: Path) -> bool:
    with suppress(OSError):
        return one.samefile(other)
    return os.path.realpath(one) == os.path.realpath(other)
