"""What can be asked of fine-tuning, and what comes back: frozen data. Needs no PyTorch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from thinet_onnx.check_options import check_seed
from thinet_onnx.errors import OptionError
from thinet_onnx.result import Fidelity, Scores

if TYPE_CHECKING:
    import onnx

Optimizer = Literal["whitened", "scaled", "adamw", "sgd"]
BatchNorm = Literal["frozen", "learned"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "fp32", "bf16"]
Layout = Literal["auto", "nchw", "nhwc"]

_CHOICES = {
    "optimizer": get_args(Optimizer), "batch_norm": get_args(BatchNorm), "device": get_args(Device),
    "layout": get_args(Layout), "precision": get_args(Precision),
}  # fmt: skip
_LEARNING_RATES: dict[str, float] = {"whitened": 1.5e-3, "scaled": 1e-3, "adamw": 3e-4, "sgd": 1e-2}


@dataclass(frozen=True)
class FinetuneOptions:
    """Every choice of a fine-tuning run but the networks and the data.

    How long: `epochs` passes over the data or, where that is given, `steps` steps of `batch` items. The learning rate
    (None: 1.5e-3 for whitened, 1e-3 for scaled, 3e-4 for adamw, 1e-2 for sgd) rises over the share `warmup` of the steps and
    falls to 0 by a cosine. `adamw` moves all weights alike. `scaled` is AdamW whose rate is a share of each filter's own size
    (its root mean square when training begins), so that it suits folded weights of any size. `whitened` is that in coordinates
    in which what each layer reads is white, as 64 items show it before the first step, so that answers learn in all directions.
    `weight_decay` leaves norms and biases alone, `clip` is the largest norm of the gradient (0: any), `ema` the decay of
    the averaged weights that are validated and kept (0: the weights themselves).

    What for: `distill` weighs the distance to the teacher's outputs (KL divergence at `temperature` for class scores, that of
    single chances behind a sigmoid, squared error divided by the teacher's variance for others, and the mean of these for an
    output that joins several; `output_weights` weighs outputs by name), `feature_weight` that of inner tensors (`features`
    by name; empty: some that both networks have in the same shape), `label_weight` the cross-entropy against the data's
    labels, `loss_weight` the user's own `loss`, a `script.py:function`. Weights of nodes before `trainable_from` (a name,
    None: the inputs) stay as they are.

    Where: `precision` bf16 multiplies in 16 bits with 32-bit weights (auto: on a GPU that can), `compile` uses
    `torch.compile`, `channels_last` keeps channels innermost.

    On what: items are mirrored (`flip`, half of them), shifted by up to `crop` pixels, enlarged (`zoom`: from a window
    whose sides are this share of the image's or more; 0: not), put beside three others (`mosaic`, this share of them) and
    mixed in pairs (`mix`, this share of them) if their input is an image of `layout`; so are those that validate, where
    `mix` is given. `held_out` is the share that is never trained on, 1,024 items at most.
    After each epoch, or every `validate_every` steps, the loss on it is taken (mixed where training mixes), and the best
    weights are kept; `patience` validations without a better one end the run (0: never). A checkpoint is written at every
    validation and every `checkpoint_every` steps (0: not in between).

    Raises OptionError for a value that can't be used.
    """

    epochs: int = 10
    steps: int | None = None
    batch: int = 32
    optimizer: Optimizer = "whitened"
    learning_rate: float | None = None
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup: float = 0.05
    clip: float = 1.0
    ema: float = 0.0
    distill: float = 1.0
    temperature: float = 2.0
    output_weights: Mapping[str, float] = field(default_factory=dict)
    feature_weight: float = 0.0
    features: tuple[str, ...] = ()
    label_weight: float = 0.0
    loss: str | None = None
    loss_weight: float = 1.0
    trainable_from: str | None = None
    flip: bool = False
    crop: int = 0
    mix: float = 0.0
    zoom: float = 0.0
    mosaic: float = 0.0
    layout: Layout = "auto"
    batch_norm: BatchNorm = "frozen"
    device: Device = "auto"
    precision: Precision = "auto"
    compile: bool = False
    channels_last: bool = False
    held_out: float = 0.125
    validate_every: int | None = None
    patience: int = 0
    checkpoint_every: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise OptionError(
                    f"{_flag(name)} {getattr(self, name)!r} is unknown: choose one of {', '.join(choices)}."
                )
        self._check_ranges()
        for name, what in (("mix", "a mixed image"), ("mosaic", "an image of four")):
            if getattr(self, name) and self.label_weight:
                raise OptionError(f"--{name} and --label-weight contradict each other: {what} has no label.")
        if self.compile and self.batch_norm == "learned":
            raise OptionError("--compile and --batch-norm learned don't go together: leave one of them out.")
        for name, positive in (("learning_rate", self.rate), ("temperature", self.temperature)):
            if positive <= 0:
                raise OptionError(f"{_flag(name)} {positive:g}: it must be positive.")
        if not (self.distill or self.feature_weight or self.label_weight or self.loss):
            raise OptionError(
                "Nothing is to be learned: give one of --distill, --feature-weight, --label-weight and --loss."
            )

    def _check_ranges(self) -> None:
        check_seed(self.seed)
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise OptionError(f"{_flag(name)} {value}: it must be a number.")
        for name in ("epochs", "steps", "batch", "validate_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionError(f"{_flag(name)} {value}: it must be 1 or more.")
        for name in (
            "weight_decay", "clip", "distill", "feature_weight", "label_weight", "loss_weight", "crop", "patience",
            "checkpoint_every",
        ):  # fmt: skip
            if getattr(self, name) < 0:
                raise OptionError(f"{_flag(name)} {getattr(self, name):g}: it must not be negative.")
        for name in ("mix", "mosaic"):
            if not 0 <= getattr(self, name) <= 1:
                raise OptionError(f"--{name} {getattr(self, name):g}: the share of images must lie between 0 and 1.")
        for name in ("momentum", "warmup", "ema", "zoom"):
            if not 0 <= getattr(self, name) < 1:
                raise OptionError(f"{_flag(name)} {getattr(self, name):g}: it must lie between 0 and 1, 1 excluded.")

    @property
    def rate(self) -> float:
        """The highest learning rate."""
        return _LEARNING_RATES[self.optimizer] if self.learning_rate is None else self.learning_rate


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


@dataclass(frozen=True)
class Validation:
    """What the held-out items say after `step` steps: the loss that is trained, and its parts.

    `agreement` is the share of them whose best class is the teacher's, None where no output looks like class scores.
    """

    step: int
    loss: float
    parts: dict[str, float]
    agreement: float | None


@dataclass(frozen=True)
class FinetuneResult:
    """The fine-tuned model and how it came about.

    `steps` were taken, the weights are those after `best_step` (0: training made nothing better); `losses` are those of the
    steps, on varied items. `fidelity` compares with the teacher on the `held` rows of the data in ONNX Runtime, after
    training and `fidelity_before`. `difference` is how far twin and file are from each other, relative to the largest
    output. `left_out` names operators that have no twin: then only a part of the network was trained.
    """

    model: "onnx.ModelProto"
    steps: int
    best_step: int
    losses: tuple[float, ...]
    validations: tuple[Validation, ...]
    fidelity_before: tuple[Fidelity, ...]
    fidelity: tuple[Fidelity, ...]
    held: tuple[int, ...]
    difference: float
    left_out: tuple[str, ...]
    seconds: float
    scores: Scores | None = None

    @property
    def before(self) -> Validation:
        """The held-out items before the first step."""
        return self.validations[0]

    @property
    def after(self) -> Validation:
        """The held-out items with the weights that were kept."""
        return next(entry for entry in self.validations if entry.step == self.best_step)
