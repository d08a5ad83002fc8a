"""What `curve` reports, as plain data, and what it is asked for."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from thinet_onnx.errors import OptionError
from thinet_onnx.result import Tradeoff

By = Literal["macs", "params"]
How = Literal["modelled", "measured"]

BYS: tuple[str, ...] = get_args(By)
PLOTS = (".svg", ".html", ".htm")  # what a picture's file may end in
SHARES = (0.9, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1)


@dataclass(frozen=True)
class CurveOptions:
    """What a curve shows: targets that leave `shares` of the cost `by`; times (`latency`), measured errors (`measure`)."""

    by: By = "macs"
    shares: tuple[float, ...] = SHARES
    latency: bool = False
    measure: bool = False

    def __post_init__(self) -> None:
        if self.by not in BYS:
            raise OptionError(f"--by {self.by!r} is unknown: choose one of {', '.join(BYS)}.")


def parse_shares(text: str | None) -> tuple[float, ...]:
    """Read `75%,50%,0.25`, largest first; raises OptionError."""
    if text is None:
        return SHARES
    try:
        shares = {float(part[:-1]) / 100 if part.endswith("%") else float(part) for part in text.split(",")}
    except ValueError:
        shares = set()
    if not shares or not all(0 < share < 1 for share in shares):
        raise OptionError(
            f"--targets {text!r} is not understood: write shares between 0% and 100% that are to remain, such as 75%,50%,25%."
        )
    return tuple(sorted(shares, reverse=True))


@dataclass(frozen=True)
class CurvePoint:
    """The network for one target: `share` of the cost asked for, and what `prune --target` would choose for it.

    `expected_error` is the relative error of the outputs that choosing went by (see `Tradeoff`), not measured. `latency_ms` is
    modelled from single layers, or measured (`CurveReport.latency`). `error` (relative, the mean over outputs) and `top1` (the
    share of samples with the same arg-max, None without class scores) are of the network that `prune` makes of it, measured on
    held-out samples.
    """

    share: float
    macs: int
    params: int
    expected_error: float
    latency_ms: float | None = None
    error: float | None = None
    top1: float | None = None


@dataclass(frozen=True)
class CurveReport:
    """The answer of `curve`. The first of `points` is the whole network; `line` has many more choices, only expected.

    `latency` is None without times, else `modelled` or `measured`, in `engine` at `batch`. `held` samples were measured on.
    """

    model: str
    by: By
    points: tuple[CurvePoint, ...]
    line: tuple[Tradeoff, ...]
    measured: bool
    held: int
    latency: How | None
    engine: str | None
    batch: int | None
    options: dict[str, Any]
    versions: dict[str, str]
    seconds: float
    warnings: tuple[str, ...] = ()
    command: str = ""
