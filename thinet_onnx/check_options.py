"""What `bench` and `verify` can be asked for, as frozen data, and the parsing of its spelling on a command line."""

import math
import re
from dataclasses import dataclass, field
from typing import Literal, get_args

from thinet_onnx.errors import OptionError

EngineName = Literal["ort", "openvino", "tensorrt"]
Precision = Literal["fp32", "fp16", "bf16", "int8"]

CALLED: dict[EngineName, str] = {"ort": "ONNX Runtime", "openvino": "OpenVINO", "tensorrt": "TensorRT"}
"""What people call the engines."""

ENGINES: tuple[str, ...] = get_args(EngineName)
PRECISIONS: tuple[str, ...] = get_args(Precision)

DEFAULT_RUNS, DEFAULT_SECONDS = 500, 10.0
MOST_THREADS = 1024


def parse_batches(texts: list[str]) -> tuple[int, ...]:
    """Read `--batch 1,16` (several times), in the order given, each size once.

    Raises OptionError for anything but whole numbers above 0.
    """
    parts = [part for text in texts for part in re.split("[, ]+", text.strip())]
    if not all(re.fullmatch("[1-9][0-9]{0,8}", part) for part in parts):
        raise OptionError(f"--batch {' '.join(texts)!r} is not understood: write sizes such as 1,16.")
    return tuple(dict.fromkeys(map(int, parts)))


def parse_engines(option: str, texts: list[str]) -> tuple[EngineName, ...]:
    """Read `--engine ort,openvino` (several times), in the order given, each engine once.

    Raises OptionError for an unknown name.
    """
    names = tuple(dict.fromkeys(part.strip() for text in texts for part in text.split(",")))
    _check_names(option, names, ENGINES)
    return names  # type: ignore[return-value]


def check_seed(seed: int) -> None:
    """Raise OptionError for a seed that not every generator takes."""
    if not 0 <= seed < 1 << 63:
        raise OptionError(f"--seed {seed}: it must be 0 or more, and below 2⁶³.")


def check_threads(threads: int) -> None:
    """Raise OptionError for a number of threads that no engine could start."""
    if not 0 <= threads <= MOST_THREADS:
        raise OptionError(f"--threads {threads}: it must be between 0 and {MOST_THREADS:,}.")


def _check_names(option: str, names: tuple[str, ...], choices: tuple[str, ...]) -> None:
    for name in names:
        if name not in choices:
            raise OptionError(f"--{option} {name!r} is unknown: choose one of {', '.join(choices)}.")


def _check_above(option: str, value: float | None, least: float) -> None:
    if value is not None and not (math.isfinite(value) and value >= least):
        raise OptionError(f"--{option} {value:g}: it must be {least:g} or more.")


def _check_share(option: str, value: float | None) -> None:
    if value is not None and not 0 <= value <= 1:
        raise OptionError(f"--{option} {value:g}: the share must lie between 0 and 1.")


@dataclass(frozen=True)
class BenchOptions:
    """Every choice of `bench` but the files and the data.

    `batches` empty means the first file's own batch (1 where it is open). `threads` 0 leaves the number to the engine.
    `runs` and `seconds` bound the rounds of one engine and batch; the one that is reached first ends them. Where neither
    is given that is 500 rounds or 10 seconds. `precision` fp32 means the file's own types; others are the engine's to make.
    """

    batches: tuple[int, ...] = ()
    engines: tuple[EngineName, ...] = ("ort",)
    precision: Precision = "fp32"
    threads: int = 0
    runs: int | None = None
    seconds: float | None = None
    samples: int | None = None
    seed: int = 0
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def bounds(self) -> tuple[int | None, float | None]:
        """Rounds and seconds after which a measurement ends."""
        neither = self.runs is None and self.seconds is None
        return (DEFAULT_RUNS, DEFAULT_SECONDS) if neither else (self.runs, self.seconds)

    def __post_init__(self) -> None:
        _check_names("engine", self.engines, ENGINES)
        _check_names("precision", (self.precision,), PRECISIONS)
        check_threads(self.threads)
        check_seed(self.seed)
        _check_above("runs", self.runs, 1)
        _check_above("seconds", self.seconds, 0.01)
        _check_above("samples", self.samples, 1)
        for size in self.batches:
            _check_above("batch", size, 1)


@dataclass(frozen=True)
class VerifyOptions:
    """Every choice of `verify` but the files and the data.

    `batches` are tried; empty means 1, 2 and 8, or the file's own where its shapes fix it. `max_error` bounds the relative
    error of every output, 0..∞; `min_agreement` the share of inputs with the same top-1 in every output that looks like
    class scores, 0..1. `engines` are those that the file is to be ready for, `precision` the one it will run at there,
    `tolerance` how far an engine may be from ONNX Runtime (relative to the largest value of an output; None takes it by
    precision).
    """

    batches: tuple[int, ...] = ()
    engines: tuple[EngineName, ...] = ()
    precision: Precision = "fp32"
    tolerance: float | None = None
    max_error: float | None = None
    min_agreement: float | None = None
    threads: int = 0
    samples: int | None = None
    seed: int = 0
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_names("for", self.engines, ENGINES)
        _check_names("precision", (self.precision,), PRECISIONS)
        check_threads(self.threads)
        check_seed(self.seed)
        _check_above("max-error", self.max_error, 0)
        _check_above("tolerance", self.tolerance, 0)
        _check_share("min-agreement", self.min_agreement)
        for option, given in (("--precision", self.precision != "fp32"), ("--tolerance", self.tolerance is not None)):
            if given and not self.engines:
                raise OptionError(f"{option} is about the engine that the file will run in; say which one, with --for.")
        _check_above("samples", self.samples, 1)
        for size in self.batches:
            _check_above("batch", size, 1)
