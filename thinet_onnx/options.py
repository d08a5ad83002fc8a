"""What can be asked for: the options of a run as frozen data, and the parsing of their spelling on a command line."""

import re
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args

from thinet_onnx.errors import OptionError

Method = Literal["obs", "thinet", "thinet-omp", "thinet-sampled", "weight-sum", "apoz", "random"]
Reconstruction = Literal["joint", "full", "scale", "none"]
Scope = Literal["inner", "all"]

METHODS: tuple[str, ...] = get_args(Method)
RECONSTRUCTIONS: tuple[str, ...] = get_args(Reconstruction)
SCOPES: tuple[str, ...] = get_args(Scope)

_SUFFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}


@dataclass(frozen=True)
class Target:
    """What is to remain: a share of the original (`relative`, 0..1) or an absolute number of MACs or parameters."""

    kind: Literal["macs", "params"]
    value: float
    relative: bool

    @classmethod
    def parse(cls, text: str) -> "Target":
        """Read `macs=50%`, `params=0.5`, `macs=2.0G` (k, M, G, T are decimal).

        Raises OptionError if the text is none of these.
        """
        match = re.fullmatch(r"(macs|params)=([0-9.]+)\s*(%|[kKmMgGtT]?)", text.strip())
        try:
            if match is None:
                raise ValueError
            number, suffix = float(match[2]), match[3].lower()
        except ValueError:
            raise OptionError(
                f"--target {text!r} is not understood: write what is to remain, such as macs=50%, params=50% or macs=2.0G."
            ) from None
        if suffix == "%" or (not suffix and number <= 1):
            share = number / 100 if suffix == "%" else number
            if not 0 < share < 1:
                raise OptionError(f"--target {text!r}: the share that is to remain must lie between 0% and 100%.")
            return cls(match[1], share, True)  # type: ignore[arg-type]
        return cls(match[1], number * _SUFFIXES[suffix], False)  # type: ignore[arg-type]

    def __str__(self) -> str:
        return f"{self.kind}={self.value:.4g}" if not self.relative else f"{self.kind}={100 * self.value:g}%"


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
    """Every choice of a run but the model and the data. Exactly one of `target` and `keep` is set.

    `keep` is the share of channels kept in each group (the paper's r). `reconstruct` None means the method's own: the
    papers' scale for `thinet-sampled` and `thinet-omp`, for all others a full refit of the layers that read cut channels,
    and jointly with it of those that make them. `method` None means `obs` before a full refit, else `thinet`.
    `round_to` is the multiple that widths are rounded to; None picks it by the width of the group. `include` and `exclude`
    are regular expressions searched in node names: a group is left whole if one of its producers is excluded or, with
    `include`, none is included.
    """

    target: Target | None = None
    keep: float | None = None
    method: Method | None = None
    reconstruct: Reconstruction | None = None
    scope: Scope = "inner"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    round_to: int | None = None
    samples: int | None = None
    seed: int = 0
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

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
        if (self.target is None) == (self.keep is None):
            raise OptionError("Say either --target (such as macs=50%) or --keep (such as 0.5), one of the two.")
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
        if self.samples is not None and self.samples < 2:
            raise OptionError(f"--samples {self.samples}: at least 2 are needed, one to fit and one to check.")
        if self.seed < 0:
            raise OptionError(f"--seed {self.seed}: it must be 0 or more.")
        for option, patterns in (("include", self.include), ("exclude", self.exclude)):
            for pattern in patterns:
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise OptionError(f"--{option} {pattern!r} is not a regular expression ({error}).") from None


class Progress(Protocol):
    """Who wants to know how far a run is: the command line draws bars, a library call passes nothing."""

    def start(self, stage: str, total: int) -> None:
        """A stage begins; it ends when the next one starts, or at `close`."""

    def advance(self, steps: int = 1) -> None:
        """`steps` of the stage's `total` are done."""

    def close(self) -> None:
        """The run is over."""


class Silent:
    """The progress nobody watches."""

    def start(self, stage: str, total: int) -> None:
        """Ignore it."""

    def advance(self, steps: int = 1) -> None:
        """Ignore it."""

    def close(self) -> None:
        """Ignore it."""
