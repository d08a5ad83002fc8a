"""What `accuracy.py` runs, as data: the ways of this package to prune, and the models, data and targets of the suites."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import ablation

from thinet_onnx.options import PruneOptions

Labels = Literal["data", "prefix", "none"]
Task = Literal["scores", "image", "mask", "other"]

SEARCH = "search"  # as the value of `keep`: the share of every group that leaves the MACs asked for

METHODS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("thinet-onnx", {}),
    ("consumers-only", {"reconstruct": "full"}),
    ("scale-only", {"reconstruct": "scale"}),
    ("no-refit", {"reconstruct": "none"}),
    ("thinet-picks", {"method": "thinet"}),
    ("uniform-widths", {"keep": SEARCH}),
    ("no-rounding", {"round_to": 1}),
    ("branches-may-go", {"drop_branches": True}),
    ("cut-consumers-only", {"reconstruct": "full", "without": "only-cut-layers"}),
    ("sampled-picks", {"method": "thinet-sampled", "reconstruct": "full"}),
    ("weight-sum-picks", {"method": "weight-sum"}),
    ("apoz-picks", {"method": "apoz"}),
    ("random-picks", {"method": "random"}),
    *((name, {"without": name}) for name in ablation.SWITCHES if name != "only-cut-layers"),
    ("thinet-2017", {"method": "thinet-sampled", "reconstruct": "scale", "keep": SEARCH}),
)
"""(name, fields of PruneOptions to change, or the ingredient to go `without`). All but the first and the last change one
ingredient; `--ablate` runs all."""


@dataclass(frozen=True)
class Method:
    """A way of this package to prune: a name and the options that differ from the defaults."""

    name: str
    overrides: Mapping[str, Any]

    @classmethod
    def parse(cls, text: str) -> "Method":
        """A name of METHODS, or `name:option=value,option=value` (values as in JSON, anything else a word).

        Raises ValueError for an unknown name or option.
        """
        name, colon, rest = text.partition(":")
        known = dict(METHODS)
        if not colon and name not in known:
            raise ValueError(f"no method {name!r}: choose from {', '.join(known)}, or write name:option=value")
        changes = dict(part.split("=", 1) for part in rest.split(",") if part) if colon else known[name]
        fields = {entry.name for entry in dataclasses.fields(PruneOptions)} | {"without"}
        if unknown := sorted(set(changes) - fields):
            raise ValueError(
                f"method {name!r} changes {', '.join(unknown)}, but the options are {', '.join(sorted(fields))}"
            )
        return cls(name, {key: _value(value) for key, value in changes.items()})


def _value(text: Any) -> Any:
    try:
        return json.loads(text) if isinstance(text, str) else text
    except json.JSONDecodeError:
        return text


@dataclass(frozen=True)
class Case:
    """One model on one set of images.

    `targets` are shares of the MACs that are to remain. `calibration` and `test` are what `--data` of the command line
    takes; where they are the same, `samples` random images calibrate and the rest test. `labels` says where classes come
    from: the data, the number an image file's name begins with, or nowhere. `task` says what an output is, beyond numbers:
    an image (PSNR), a map of probabilities (masks). Peers that can't be told a scope run once.
    """

    model: Path
    calibration: Path
    test: Path
    targets: tuple[float, ...]
    scopes: tuple[Literal["inner", "all"], ...] = ("inner",)
    samples: int = 1024
    tests: int | None = None
    labels: Labels = "data"
    pixels: Mapping[str, Any] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    task: Task = "scores"
    peers: tuple[str, ...] = ()


_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_CENTRED = {"mean": (127 / 255,), "std": (128 / 255,)}
_CRITERIA = ("onnxsim-l2", "onnxsim-l2-global", "onnxsim-wanda", "onnxsim-wanda-global")
_ALL_PEERS = ("onnxsim-*", "tp-*")


def cifar(shared: Path) -> list[Case]:
    """CIFAR-10 ResNets: 1,024 calibration images, 5,000 test images."""
    data = shared / "data"
    large, small = (shared / "zoo" / f"aka_cifar_resnet{depth}.onnx" for depth in (56, 20))
    case = Case(
        large, data / "cifar10_calibration.npz", data / "cifar10_test.npz", (0.7, 0.5, 0.33), pixels=_IMAGENET, peers=_ALL_PEERS
    )  # fmt: skip
    return [
        case,
        dataclasses.replace(case, targets=(0.5,), scopes=("all",), peers=("tp-*-local", "tp-*-global")),
        dataclasses.replace(case, model=small, targets=(0.5,)),
    ]


def imagenet(shared: Path) -> list[Case]:
    """ImageNet classifiers: 400 images to calibrate, the other 100 for agreement with the original and top-1."""
    images = shared / "data" / "imagenet224"
    case = Case(
        shared / "zoo" / "efficientnet_lite0_l13.onnx", images, images, (0.8, 0.7, 0.6, 0.5), scopes=("inner", "all"),
        samples=400, tests=100, labels="prefix", pixels=_CENTRED, peers=_CRITERIA,
    )  # fmt: skip
    other = shared / "zoo" / "mobilenet_v2_tv_l11_bn.onnx"
    return [case, dataclasses.replace(case, model=other, pixels=_IMAGENET)]


def detectors(shared: Path) -> list[Case]:
    """Two detectors, a text segmenter and a network for super-resolution at 70% of their MACs.

    400 images to calibrate, 100 to compare outputs (for super-resolution 100 and 50)."""
    images, zoo = shared / "data" / "imagenet224", shared / "zoo"
    case = Case(
        zoo / "picodet_s_320_coco.onnx", images, images, (0.7,), scopes=("inner", "all"), samples=400, tests=100, labels="none",
        pixels=_IMAGENET, task="other", peers=_CRITERIA,
    )  # fmt: skip
    return [
        case,
        dataclasses.replace(case, model=zoo / "ultraface_rfb320.onnx", pixels=_CENTRED),
        dataclasses.replace(case, model=zoo / "ppocrv4_det.onnx", shapes={"x": (1, 3, 320, 320)}, task="mask"),
        dataclasses.replace(
            case, model=zoo / "super_resolution_2019.onnx", pixels={}, samples=100, tests=50, task="image"
        ),
    ]


def bundled(shared: Path) -> list[Case]:  # noqa: ARG001  needs no other folder
    """The networks that come with this repository: 512 calibration images, 2,000 test images."""
    models = Path(__file__).parent.parent / "models"
    case = Case(
        models / "fashion_resnet.onnx", models / "fashion_calibration.npz", models / "fashion_test.npz", (0.7, 0.5, 0.33),
        samples=512, pixels={"mean": (0.286,), "std": (0.353,)}, peers=(*_CRITERIA, "onnxsim-wanda+finetune"),
    )  # fmt: skip
    return [case, dataclasses.replace(case, model=models / "fashion_vgg.onnx")]


SUITES = {"bundled": bundled, "cifar": cifar, "imagenet": imagenet, "detectors": detectors}


def methods(names: Sequence[str]) -> list[Method]:
    """Parse names; raises ValueError as `Method.parse`."""
    return [Method.parse(name) for name in names]
