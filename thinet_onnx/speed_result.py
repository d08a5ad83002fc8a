"""What `bench` reports, as plain data. Times are in milliseconds for one run at `batch`."""

from dataclasses import dataclass, field

from thinet_onnx.timing import Ratio, Timing


@dataclass(frozen=True)
class Measured:
    """One file in one engine at one batch size.

    `engine` has version and precision; `items_per_second` is batch / median time. `ratio` compares with the first file at
    the same engine and batch, round by round: below 1 is faster. It is None for that file itself, and where that file
    couldn't be run. `times_ms` are all runs in order.
    """

    file: str
    engine: str
    batch: int
    timing: Timing
    items_per_second: float
    ratio: Ratio | None
    times_ms: tuple[float, ...] = field(repr=False)


@dataclass(frozen=True)
class NotMeasured:
    """A file that an engine couldn't run at a batch size, and why."""

    file: str
    engine: str
    batch: int
    reason: str


@dataclass(frozen=True)
class Machine:
    """What it was measured on: the processor, the cores that this process may use, the operating system."""

    processor: str
    cores: int
    system: str


@dataclass(frozen=True)
class BenchReport:
    """The answer of `bench`. `inputs` says what the files were fed; `threads` 0 means that engines took their own number."""

    files: tuple[str, ...]
    rows: tuple[Measured, ...]
    not_measured: tuple[NotMeasured, ...]
    inputs: str
    random_inputs: bool
    threads: int
    machine: Machine
    versions: dict[str, str]
    warnings: tuple[str, ...] = ()
