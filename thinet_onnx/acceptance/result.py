"""What `verify` reports, as plain data."""

from dataclasses import dataclass
from typing import Literal

from thinet_onnx.check_options import EngineName
from thinet_onnx.readiness.findings import Readiness
from thinet_onnx.result import Accuracy, Size
from thinet_onnx.timing import Ratio, Timing

Status = Literal["passed", "failed", "skipped"]
BARS = ("relative error", "top-1 agreement")  # checks that are made where the user asks for them only


@dataclass(frozen=True)
class Check:
    """One thing that was looked at; `skipped` is what couldn't be, for a reason that isn't the pruned file's fault."""

    name: str
    status: Status
    detail: str


@dataclass(frozen=True)
class OutputRow:
    """How near one output is to the original's.

    `cosine` is the mean over samples, `relative_error` ‖after − before‖ / ‖before‖ over all of them, `top1` the share with the
    same arg-max where the output looks like class scores. `equal` is the share of equal elements of an output that isn't
    floating point. `unlike` counts inputs for which the two have different shapes (detections, for instance); these are in
    none of the other figures.
    """

    output: str
    cosine: float | None
    relative_error: float | None
    top1: float | None
    equal: float | None
    samples: int
    unlike: int


@dataclass(frozen=True)
class WorstInput:
    """An input with a large relative error: its file or number, the output it is largest in, the classes picked there."""

    title: str
    output: str
    relative_error: float
    top1_before: int | None
    top1_after: int | None


@dataclass(frozen=True)
class Speed:
    """Run times of both files in ONNX Runtime, measured in turn, and the pruned file's over the original's."""

    batch: int
    before: Timing
    after: Timing
    ratio: Ratio


@dataclass(frozen=True)
class EngineAnswer:
    """What an engine answers, beside ONNX Runtime on the same file: largest difference over largest value, on `samples` inputs.

    `missing` says how to install an engine that isn't here; then nothing was run. `original` is the same difference of the
    original file, so that one sees whether pruning has anything to do with it.
    """

    engine: EngineName
    called: str
    missing: str | None
    difference: float | None
    original: float | None
    tolerance: float
    samples: int


@dataclass(frozen=True)
class VerifyReport:
    """The answer of `verify`. `passed` is whether no check failed."""

    pruned: str
    reference: str
    passed: bool
    checks: tuple[Check, ...]
    data: str
    random_data: bool
    samples: int
    outputs: tuple[OutputRow, ...]
    worst: tuple[WorstInput, ...]
    accuracy: Accuracy | None
    before: Size | None
    after: Size | None
    speed: Speed | None
    engines: tuple[EngineAnswer, ...]
    readiness: tuple[Readiness, ...]
    seconds: float
    versions: dict[str, str]
    warnings: tuple[str, ...] = ()

    @property
    def failures(self) -> list[Check]:
        """The checks that failed."""
        return [check for check in self.checks if check.status == "failed"]
