"""What can be asked for: the options of a run as frozen data, and the parsing of their spelling on a command line."""

import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, get_args

from thinet_onnx import files
from thinet_onnx.check_options import ENGINES, EngineName, check_seed, check_threads
from thinet_onnx.errors import OptionError

Method = Literal["obs", "thinet", "thinet-omp", "thinet-sampled", "weight-sum", "apoz", "random"]
Reconstruction = Literal["joint", "full", "scale", "none"]
Scope = Literal["inner", "all"]
Preset = Literal["thinet-conv"]
BoxOrder = Literal["xyxy", "yxyx", "cxcywh"]

METHODS: tuple[str, ...] = get_args(Method)
RECONSTRUCTIONS: tuple[str, ...] = get_args(Reconstruction)
PRESETS: tuple[str, ...] = get_args(Preset)
SCOPES: tuple[str, ...] = get_args(Scope)
BOX_ORDERS: tuple[str, ...] = get_args(BoxOrder)

_MOST_CLASSES = 100_000
MEMORY = 64_000_000.0  # bytes
_SUFFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
_COUNTED = {"macs": "MACs", "params": "parameters"}
_PERCENT = 100  # a number up to this without a unit was meant as a share

_UNITS = {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}  # in milliseconds


@dataclass(frozen=True)
class Target:
    """What is to remain: a share of the original (`relative`, 0..1), or a number of MACs, parameters or milliseconds."""

    kind: Literal["macs", "params", "latency"]
    value: float
    relative: bool

    @classmethod
    def parse(cls, text: str) -> "Target":
        """Read `macs=50%`, `params=0.5`, `macs=2.0G` (or 2e9; k, M, G, T are decimal), `latency=60%`, `latency=4.0ms` (us, s).

        Raises OptionError if the text is none of these.
        """
        match = re.fullmatch(
            r"(macs|params|latency)=([0-9.]+(?:e[+-]?[0-9]+)?)\s*(%|[kKmMgGtT]?|[uµm]?s)", text.strip()
        )
        try:
            if match is None or not math.isfinite(float(match[2])):
                raise ValueError
            kind, number, suffix = match[1], float(match[2]), match[3].lower()
            share = suffix == "%" or (not suffix and number <= 1)
            if not share and suffix not in (_UNITS if kind == "latency" else _SUFFIXES):
                raise ValueError
        except ValueError:
            shown = text if len(text) < 60 else f"{text[:60]}…"
            raise OptionError(
                f"--target {shown!r} is not understood: write what is to remain, such as macs=50%, params=50%, macs=2.0G, "
                "latency=60% or latency=4.0ms."
            ) from None
        if share:
            number = number / 100 if suffix == "%" else number
            if not 0 < number < 1:
                raise OptionError(f"--target {text!r}: the share that is to remain must lie between 0% and 100%.")
            return cls(kind, number, True)  # type: ignore[arg-type]
        if not suffix and number <= _PERCENT:
            raise OptionError(
                f"--target {text!r} would leave {number:g} {_COUNTED[kind]} in all: write {kind}={number:g}% for a share."
            )
        if kind == "latency" and not number:
            raise OptionError(f"--target {text!r}: a network takes some time; ask for more than none.")
        return cls(kind, number * (_UNITS | _SUFFIXES)[suffix], False)  # type: ignore[arg-type]

    def __str__(self) -> str:
        if self.relative:
            return f"{self.kind}={100 * self.value:g}%"
        return f"{self.kind}={self.value:.4g}" + ("ms" if self.kind == "latency" else "")


def parse_bytes(text: str) -> float:
    """Read `2G`, `500M`, `0` (k, M, G, T are decimal).

    Raises OptionError for anything else.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([kKmMgGtT]?)[bB]?", text.strip())
    if match is None:
        raise OptionError(f"--memory {text!r} is not understood: write a number of bytes, such as 2G or 500M.")
    return float(match[1]) * _SUFFIXES[match[2].lower()]


def parse_shapes(texts: list[str]) -> dict[str, tuple[int, ...]]:
    """Read `--shape name:1,3,224,224` (several times); sizes are positive.

    Raises OptionError for anything else.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, colon, sizes = text.rpartition(":")
        try:
            shape = tuple(int(size) for size in re.split("[,x]", sizes))
        except ValueError:
            shape = ()
        if not colon or not name or not shape or min(shape) < 1:
            raise OptionError(
                f"--shape {text!r} is not understood: write the input's name and sizes, such as input:1,3,224,224."
            )
        if shapes.setdefault(name, shape) != shape:
            raise OptionError(f"--shape {text!r} contradicts another --shape for {name!r}: say one of the two.")
    return shapes


@dataclass(frozen=True)
class PruneOptions:
    """Every choice of a run but the model and the data. Exactly one of `target`, `keep`, `widths` and `preset` is set.

    `keep` is the share of channels kept in each group (the paper's r), `widths` the number kept in the groups that it names
    (those it doesn't name stay whole), `preset` a published recipe (see `presets`). `reconstruct` None is the method's own: the
    papers' scale for `thinet-sampled` and `thinet-omp`, for all others a full refit of the layers that read cut channels,
    and jointly with it of those that make them. `method` None means `obs` before a full refit, else `thinet`.
    With `drop_branches` a residual branch may lose all its channels, where that serves the target best; with a latency
    target it always may. Latency is measured in `engine` with `threads` (0: the engine's own choice) at `latency_batch`
    (None: the file's own, 1 where it is open); the three mean nothing for other targets, and may not be set for them.
    Each layer is seen at `positions` positions over all samples (None: enough for its width, bounded by work). `memory` is how
    many bytes of activations a run keeps in memory (None: as many as it takes for statistics, `MEMORY` at least); what is more
    goes to temporary files, and changes nothing in the result.
    `round_to` is the multiple that widths are rounded to; None picks it by the width of the group. `include` and `exclude`
    are regular expressions searched in node names: a group is left whole if one of its producers is excluded or, with
    `include`, none is included.
    """

    target: Target | None = None
    keep: float | None = None
    widths: Mapping[str, int] | None = None
    preset: Preset | None = None
    method: Method | None = None
    reconstruct: Reconstruction | None = None
    scope: Scope = "inner"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    round_to: int | None = None
    positions: int | None = None
    memory: float | None = None
    drop_branches: bool = False
    engine: EngineName = "ort"
    latency_batch: int | None = None
    threads: int = 0
    samples: int | None = None
    seed: int = 0
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def wanted(self) -> str:
        """What is to remain, in a few words."""
        if self.target is not None:
            return str(self.target)
        if self.keep is not None:
            return f"keep={self.keep:g}"
        return f"preset={self.preset}" if self.preset is not None else "widths"

    @property
    def reconstruction(self) -> Reconstruction:
        """How the weights that read the cut channels are rebuilt."""
        return self.reconstruct or ("scale" if self.method in ("thinet-sampled", "thinet-omp") else "joint")

    @property
    def selection(self) -> Method:
        """How channels are ranked."""
        return self.method or ("obs" if self.refits else "thinet")

    @property
    def refits(self) -> bool:
        """Whether all weights of a layer are refitted by least squares."""
        return self.reconstruction in ("joint", "full")

    def __post_init__(self) -> None:
        if sum(choice is not None for choice in (self.target, self.keep, self.widths, self.preset)) != 1:
            raise OptionError("Say either --target (such as macs=50%), --keep (such as 0.5) or --preset, one of them.")
        self._check_latency()
        if self.preset is not None and self.preset not in PRESETS:
            raise OptionError(f"--preset {self.preset!r} is unknown: choose one of {', '.join(PRESETS)}.")
        if self.keep is not None and not 0 < self.keep < 1:
            raise OptionError(f"--keep {self.keep:g}: the share of channels to keep must lie between 0 and 1.")
        for option, value, choices in (
            ("method", self.selection, METHODS),
            ("reconstruct", self.reconstruction, RECONSTRUCTIONS),
            ("scope", self.scope, SCOPES),
        ):
            if value not in choices:
                raise OptionError(f"--{option} {value!r} is unknown: choose one of {', '.join(choices)}.")
        if self.round_to is not None and self.round_to < 1:
            raise OptionError(f"--round-to {self.round_to}: the multiple must be 1 or more.")
        if self.positions is not None and self.positions < 1:
            raise OptionError(f"--positions {self.positions}: a layer must be seen at 1 position or more.")
        if self.memory is not None and not 0 <= self.memory < float("inf"):
            raise OptionError(f"--memory {self.memory:g}: give a number of bytes, such as 2G.")
        if self.samples is not None and self.samples < 2:
            raise OptionError(f"--samples {self.samples}: at least 2 are needed, one to fit and one to check.")
        check_seed(self.seed)
        for option, patterns in (("include", self.include), ("exclude", self.exclude)):
            for pattern in patterns:
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise OptionError(f"--{option} {pattern!r} is not a regular expression ({error}).") from None

    @property
    def for_latency(self) -> bool:
        """Whether the target is a time."""
        return self.target is not None and self.target.kind == "latency"

    def _check_latency(self) -> None:
        for option, given in (
            ("--engine", self.engine != "ort"),
            ("--latency-batch", self.latency_batch is not None),
            ("--threads", self.threads != 0),
        ):
            if given and not self.for_latency:
                raise OptionError(f"{option} says how latency is measured; it needs --target latency=… (such as 60%).")
        if self.engine not in ENGINES:
            raise OptionError(f"--engine {self.engine!r} is unknown: choose one of {', '.join(ENGINES)}.")
        if self.latency_batch is not None and self.latency_batch < 1:
            raise OptionError(f"--latency-batch {self.latency_batch}: it must be 1 or more.")
        check_threads(self.threads)


@dataclass(frozen=True)
class Storage:
    """What a run keeps on disk, and starts from.

    `state` is a folder in which an interrupted run finds how far it got. `save_moments` is a file for what was learnt of the
    original before widths were chosen, `from_moments` such a file of an earlier run with the same model and data.
    """

    state: Path | None = None
    save_moments: Path | None = None
    from_moments: Path | None = None

    @property
    def used(self) -> bool:
        """Whether anything is kept or read."""
        return any(path is not None for path in (self.state, self.save_moments, self.from_moments))


@dataclass(frozen=True)
class Show:
    """What a report shows of the held-out samples: so many of them, and how their outputs are read.

    `boxes` is the order of a box's numbers where the outputs are detections, None where they aren't (see `detections`).
    `classes` are names by index.
    """

    count: int = 6
    boxes: BoxOrder | None = None
    classes: tuple[str, ...] = ()

    @classmethod
    def parse(cls, task: str, classes: Path | None) -> "Show":
        """As `of`, with a file that has the name of a class on each line.

        Raises OptionError if the task is unknown or the file isn't such a list.
        """
        return cls.of(task, () if classes is None else _read_classes(classes))

    @classmethod
    def of(cls, task: str, classes: Sequence[str] = (), count: int = 6) -> "Show":
        """Read a task: `auto`, `detect` or, with an order, `detect:cxcywh`.

        Raises OptionError if it is unknown or `count` is negative.
        """
        kind, colon, order = task.partition(":")
        order = order if colon else "xyxy"
        if kind not in ("auto", "detect") or (kind == "auto" and colon) or order not in BOX_ORDERS:
            known = ", ".join(f"detect:{order}" for order in BOX_ORDERS)
            raise OptionError(f"--task {task!r} is unknown: choose one of auto, detect, {known}.")
        if count < 0:
            raise OptionError(f"examples={count}: show so many held-out samples, or 0.")
        return cls(count, order if kind == "detect" else None, tuple(classes))  # type: ignore[arg-type]

    def name(self, index: int) -> str | None:
        """A class's name, if it is known."""
        return (self.classes[index] or None) if 0 <= index < len(self.classes) else None


def _read_classes(path: Path) -> tuple[str, ...]:
    try:
        lines = files.read_text(path, "utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise OptionError(f"--classes {path} can't be read ({reason}): write one name on each line.") from error
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines or len(lines) > _MOST_CLASSES:
        raise OptionError(f"--classes {path} has {len(lines):,} lines: write the name of one class on each line.")
    return tuple(line.strip() for line in lines)


class Progress(Protocol):
    """Who wants to know how far a run is: the command line draws bars, a library call passes nothing."""

    def start(self, stage: str, total: int) -> None:
        """A stage begins; it ends when the next one starts, or at `close`."""

    def advance(self, steps: int = 1) -> None:
        """`steps` of the stage's `total` are done."""

    def note(self, text: str) -> None:
        """A line for those who want to know more."""

    def close(self) -> None:
        """The run is over."""


class Timed:
    """Passes on to another progress how far a run is, and keeps the seconds of each stage."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._stages: dict[str, float] = {}
        self._now, self._since = "", 0.0

    @property
    def stages(self) -> dict[str, float]:
        """Seconds by stage in the order in which they first began, the one that goes on included."""
        found = dict(self._stages)
        if self._now:
            found[self._now] += time.perf_counter() - self._since
        return found

    def start(self, stage: str, total: int) -> None:
        """End the stage before, begin this one; a name that comes again adds to its time."""
        self._stages = self.stages
        self._stages.setdefault(stage, 0.0)
        self._now, self._since = stage, time.perf_counter()
        self._progress.start(stage, total)

    def advance(self, steps: int = 1) -> None:
        """Pass it on."""
        self._progress.advance(steps)

    def note(self, text: str) -> None:
        """Pass it on."""
        self._progress.note(text)

    def close(self) -> None:
        """End the stage, and pass it on."""
        self._stages, self._now = self.stages, ""
        self._progress.close()


class Silent:
    """The progress nobody watches."""

    def start(self, stage: str, total: int) -> None:
        """Ignore it."""

    def advance(self, steps: int = 1) -> None:
        """Ignore it."""

    def note(self, text: str) -> None:
        """Ignore it."""

    def close(self) -> None:
        """Ignore it."""
