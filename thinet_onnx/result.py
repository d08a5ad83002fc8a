"""What a run reports, as plain data: filled by the pipeline, rendered by `report`, written as JSON.

Units: MACs are multiply-accumulates of one input at the shapes given (Conv, ConvTranspose, Gemm, MatMul); latency is in
milliseconds for one run at `Latency.batch`; sizes are bytes.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

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
    """

    output: str
    cosine: float
    relative_error: float
    top1: float | None
    samples: int


@dataclass(frozen=True)
class Accuracy:
    """Top-1 accuracy against labels (shares of 1) and on how many samples."""

    before: float
    after: float
    samples: int


@dataclass(frozen=True)
class GroupRow:
    """One group in the report: its channels before and after, MACs at stake, and the error the fit left.

    `error` is the relative error of the consumers' outputs on the calibration data after reconstruction
    (None where the group was left whole or has no linear consumer that could be measured).
    """

    name: str
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    before: int
    after: int
    macs: int
    error: float | None


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
    network costs less with every group at its narrowest.
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

    `steps` are (step, mean loss up to it since the entry before), `validations` what `training.options.Validation` holds;
    `total` steps were taken, the weights that were kept are those after `best_step`.
    """

    steps: tuple[tuple[int, float], ...]
    validations: tuple[dict[str, Any], ...]
    total: int
    best_step: int

    @property
    def first(self) -> dict[str, Any]:
        """The validation before the first step."""
        return self.validations[0]

    @property
    def best(self) -> dict[str, Any]:
        """The validation of the weights that were kept."""
        return next(entry for entry in self.validations if entry["step"] == self.best_step)


@dataclass(frozen=True)
class Report:
    """The answer of `prune`."""

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
    finetune: TuneCurve | None = None
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
