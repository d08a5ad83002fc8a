"""What a run reports, as plain data: filled by the pipeline, rendered by `report`, written as JSON.

Units: MACs are multiply-accumulates of one input at the shapes given (Conv, ConvTranspose, Gemm, MatMul); latency is in
milliseconds for one run at `Latency.batch`; sizes are bytes.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from thinet_onnx.plan import PrunePlan

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Result: TypeAlias = "DataclassInstance"  # the answer of any command


@dataclass(frozen=True)
class Size:
    """What a model costs: MACs of one input, parameters (elements of float constants), bytes of the file."""

    macs: int
    params: int
    bytes: int


@dataclass(frozen=True)
class Latency:
    """Median ONNX Runtime latency in milliseconds, both models measured in turn within one run."""

    before_ms: float
    after_ms: float
    batch: int
    runs: int


@dataclass(frozen=True)
class LatencyTarget:
    """How a latency target was met: median milliseconds of original and cut file, measured in turn in `engine` at `batch`.

    `wanted`, `measured` and `predicted` are shares of the original's time: asked for, measured (the median over rounds)
    and expected from the times of single layers. `tries` files were cut and measured; `threads` 0 means the engine's choice.
    """

    wanted: float
    measured: float
    predicted: float
    original_ms: float
    pruned_ms: float
    engine: str
    batch: int
    threads: int
    tries: int


@dataclass(frozen=True)
class Fidelity:
    """How near one output is to the original's, on calibration samples that were not used to fit.

    `cosine` is the mean over samples; `relative_error` is ‖after − before‖ / ‖before‖ over all of them; `top1` is the
    share of samples with the same arg-max where the output looks like a classifier's, else None.

    `errors` and `cosines` are the same for each held-out item alone, in the order of `Report.held`; they are empty where an
    output can't be divided into items.
    """

    output: str
    cosine: float
    relative_error: float
    top1: float | None
    samples: int
    errors: tuple[float, ...] = ()
    cosines: tuple[float, ...] = ()


@dataclass(frozen=True)
class Accuracy:
    """Top-1 accuracy against labels (shares of 1) and on how many samples."""

    before: float
    after: float
    samples: int


@dataclass(frozen=True)
class ErrorCurve:
    """What a group costs at each of `widths` (channels kept, ascending): the relative error of the layers that read it.

    The root of their squared errors, summed, each refitted alone on the original's statistics and checked on batches kept
    apart: what the widths were chosen by, no measurement of the finished network.
    """

    widths: tuple[int, ...]
    errors: tuple[float, ...]


@dataclass(frozen=True)
class GroupRow:
    """One group in the report: its channels before and after, MACs at stake, and the error the fit left.

    `error` is the relative error of the consumers' outputs on the calibration data after reconstruction
    (None where the group was left whole or has no linear consumer that could be measured). `sensitivity` is how far the
    network's outputs move (relative squared error) for one unit of the group's own squared error: measured with the group
    alone cut to half. `curve` and `sensitivity` are None for groups that weren't weighed.
    """

    name: str
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    before: int
    after: int
    macs: int
    error: float | None
    curve: ErrorCurve | None = None
    sensitivity: float | None = None


@dataclass(frozen=True)
class Tradeoff:
    """What a choice of widths is expected to cost: `loss` is the relative squared error of the outputs, groups added up.

    The sum ignores that later layers make up for earlier ones, and counts no joint refit: it orders choices, and isn't what a
    finished network will show. `chosen` marks the run's own choice.
    """

    macs: int
    params: int
    loss: float
    chosen: bool = False


@dataclass(frozen=True)
class NotPruned:
    """Channels that stay whatever the target is, and why: `producer` is a node, `reason` a phrase for people."""

    producer: str
    channels: int
    reason: str


@dataclass(frozen=True)
class Inspection:
    """The answer of `inspect`: groups that can shrink, channels that can't, and the sums.

    `channels` are output channels of linear layers, `removable` those of them that may go; `macs_removable` is what the
    network costs less with every group at its narrowest. `removable_inner` and `macs_inner` are the same without the groups of
    residual streams, which `prune` leaves whole unless --scope is all.
    """

    model: str
    groups: tuple[GroupRow, ...]
    not_pruned: tuple[NotPruned, ...]
    channels: int
    removable: int
    macs: int
    macs_removable: int
    params: int
    warnings: tuple[str, ...] = ()
    removable_inner: int | None = None
    macs_inner: int | None = None


@dataclass(frozen=True)
class Scores:
    """Top-1 accuracy (0..1) on `samples` labelled items: of the original, before training, and after it."""

    original: float
    before: float
    after: float
    samples: int


@dataclass(frozen=True)
class TuneCurve:
    """How a fine-tuning run went.

    `steps` are (step, mean loss up to it since the entry before); each of `validations` has `step` and any of `loss`,
    `agreement` and `accuracy` (shares of 1). The weights that were kept are those after `best_step`, of `total` steps.
    """

    steps: tuple[tuple[int, float], ...]
    validations: tuple[dict[str, float | None], ...] = ()
    best_step: int | None = None
    total: int = 0

    @property
    def first(self) -> dict[str, float | None]:
        """The validation before the first step."""
        return self.validations[0]

    @property
    def best(self) -> dict[str, float | None]:
        """The validation of the weights that were kept."""
        return next(entry for entry in self.validations if entry["step"] == self.best_step)


@dataclass(frozen=True)
class Picture:
    """A small picture, base64: `shown` says what its pixels stand for where they aren't simply those of an image."""

    kind: Literal["png", "jpeg"]
    data: str
    width: int
    height: int
    shown: str = ""


@dataclass(frozen=True)
class Score:
    """One of a sample's best classes: its index, its name if known, the output's value and the share of 1 (softmax)."""

    index: int
    name: str | None
    value: float
    share: float


@dataclass(frozen=True)
class Box:
    """A detection: corners as shares of the picture's width and height (0..1), score, class if there is one."""

    left: float
    top: float
    right: float
    bottom: float
    score: float
    index: int | None = None
    name: str | None = None


@dataclass(frozen=True)
class PicturePair:
    """An output that is a picture, of both networks, and how they differ."""

    output: str
    before: Picture
    after: Picture
    difference: Picture


@dataclass(frozen=True)
class Example:
    """A held-out sample and what both networks answer; what an answer isn't stays empty (`boxes`: None).

    `error` is the mean relative error of the outputs, `why` says how the sample was picked.
    """

    sample: str
    why: str
    label: str | None
    error: float | None
    picture: Picture | None
    scores_before: tuple[Score, ...] = ()
    scores_after: tuple[Score, ...] = ()
    boxes_before: tuple[Box, ...] | None = None
    boxes_after: tuple[Box, ...] | None = None
    pictures: tuple[PicturePair, ...] = ()


@dataclass(frozen=True)
class Examples:
    """The samples that are shown, and in `remarks` what couldn't be and why."""

    samples: tuple[Example, ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """The answer of `prune`.

    `held` names the held-out samples. `tradeoff` is empty where widths weren't chosen by a target, `examples` where none were
    asked for, `command` from Python. `config` is the run as a TOML file that repeats it. `finished` is the time of day in UTC
    (ISO 8601).
    """

    model: str
    output: str | None
    before: Size
    after: Size
    target: str
    target_met: bool
    latency: Latency | None
    fidelity: tuple[Fidelity, ...]
    accuracy: Accuracy | None
    channels_before: int
    channels_after: int
    groups: tuple[GroupRow, ...]
    not_pruned: tuple[NotPruned, ...]
    oracle_error: float
    seconds: float
    seed: int
    options: dict[str, Any]
    versions: dict[str, str]
    plan: PrunePlan
    warnings: tuple[str, ...] = ()
    stages: dict[str, float] = field(default_factory=dict)
    held: tuple[str, ...] = ()
    tradeoff: tuple[Tradeoff, ...] = ()
    examples: Examples = Examples()
    finetune: TuneCurve | None = None
    command: str = ""
    config: str = ""
    finished: str = ""
    latency_target: LatencyTarget | None = None


@dataclass(frozen=True)
class TuneReport:
    """The answer of `finetune`: fidelity to the original on `held` items before and after, accuracies, and the way there.

    `difference` is how far PyTorch and ONNX Runtime are apart on the result, relative to its largest output; `left_out`
    names operators without a PyTorch twin.
    """

    pruned: str
    teacher: str
    output: str | None
    finetune: TuneCurve
    fidelity_before: tuple[Fidelity, ...]
    fidelity: tuple[Fidelity, ...]
    held: int
    scores: Scores | None
    difference: float
    left_out: tuple[str, ...]
    seconds: float
    options: dict[str, Any]
    versions: dict[str, str]
    warnings: tuple[str, ...] = ()


def to_dict(result: Result) -> dict[str, Any]:
    """Plain lists, dicts and numbers; `plan` in the form of `PrunePlan.to_dict`."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(result), default=str))
    if isinstance(result, Report):
        plain["plan"] = result.plan.to_dict()
    return plain
