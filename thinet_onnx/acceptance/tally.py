"""Outputs of two files compared input by input: sums for each output, and the inputs that are worst."""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from thinet_onnx import verify
from thinet_onnx.acceptance.result import OutputRow, WorstInput
from thinet_onnx.result import Accuracy

Array = np.ndarray[Any, Any]

SHOWN = 5
"""So many of the worst inputs are listed."""


@dataclass
class _Sums:
    """Of one output: over samples of cosines and hits, over everything of squared errors and squared values."""

    samples: int = 0
    floats: bool = False
    cosines: float = 0.0
    hits: float | None = None
    errors: float = 0.0
    values: float = 0.0
    elements: int = 0
    equal: int = 0
    unlike: int = 0


@dataclass
class Tally:
    """Takes both files' answers to one input after the other.

    `broken` is the first input for which the pruned file gives NaN or infinity where the original doesn't.
    """

    names: Sequence[str]
    sums: dict[str, _Sums] = field(init=False)
    broken: str | None = None
    _worst: list[tuple[float, int, WorstInput]] = field(default_factory=list)
    _picks: list[tuple[int, int]] = field(default_factory=list)
    _inputs: int = 0

    def __post_init__(self) -> None:
        self.sums = {name: _Sums() for name in self.names}

    def add(self, title: str, before: Sequence[Array], after: Sequence[Array]) -> None:
        """Compare the answers to one input, `title`."""
        self._inputs += 1
        worst: WorstInput | None = None
        scored = False
        for name, old, new in zip(self.names, before, after, strict=True):
            if self.broken is None and _broke(old, new):
                self.broken = f"{title}, output {name!r}"
            error = self._add(name, old, new)
            classes = verify.is_classifier(old) and old.shape == new.shape
            picks = (int(old[0].argmax()), int(new[0].argmax())) if classes and len(old) == 1 else (None, None)
            if classes and not scored:
                scored = True
                self._picks += zip(_classes(old), _classes(new), strict=True)
            if error is not None and (worst is None or not error <= worst.relative_error):
                worst = WorstInput(title, name, error, *picks)
        if worst is not None:
            self._keep(worst)

    def _add(self, name: str, old: Array, new: Array) -> float | None:
        """The relative error of one output for one input; None where there is none."""
        sums = self.sums[name]
        if old.shape != new.shape:
            sums.unlike += 1
            return None
        if old.dtype.kind != "f" or not old.size:
            sums.elements += old.size
            sums.equal += int((old == new).sum())
            sums.samples += 1
            return None
        (row,) = verify.fidelity([name], [[old]], [[new]])
        norm = float(np.linalg.norm(old.astype(np.float64)))
        sums.floats = True
        sums.samples += row.samples
        sums.cosines += row.cosine * row.samples
        sums.errors += (row.relative_error * max(norm, 1e-30)) ** 2
        sums.values += norm**2
        if row.top1 is not None:
            sums.hits = (sums.hits or 0.0) + row.top1 * row.samples
        return row.relative_error

    def _keep(self, entry: WorstInput) -> None:
        key = entry.relative_error if math.isfinite(entry.relative_error) else math.inf
        heapq.heappush(self._worst, (key, -self._inputs, entry))
        if len(self._worst) > SHOWN:
            heapq.heappop(self._worst)

    def rows(self) -> tuple[OutputRow, ...]:
        """One row for each output."""
        return tuple(_row(name, sums) for name, sums in self.sums.items())

    def worst(self) -> tuple[WorstInput, ...]:
        """The inputs with the largest errors, largest first, without those that have none."""
        ordered = sorted(self._worst, key=lambda entry: entry[:2], reverse=True)
        return tuple(entry for key, _, entry in ordered if key > 0)

    def accuracy(self, labels: Array | None) -> Accuracy | None:
        """Top-1 of both files in the first output that looks like class scores; None without labels or scores."""
        if labels is None or len(self._picks) != len(labels):
            return None
        before, after = (float((picks == labels).mean()) for picks in np.array(self._picks).T)
        return Accuracy(before, after, len(labels))


def _row(name: str, sums: _Sums) -> OutputRow:
    return OutputRow(
        name,
        sums.cosines / sums.samples if sums.floats else None,
        math.sqrt(sums.errors) / max(math.sqrt(sums.values), 1e-30) if sums.floats else None,
        None if sums.hits is None else sums.hits / sums.samples,
        sums.equal / sums.elements if sums.elements else None,
        sums.samples,
        sums.unlike,
    )


def _classes(scores: Array) -> list[int]:
    return [int(row.argmax()) for row in scores]


def _broke(old: Array, new: Array) -> bool:
    """Whether there is NaN or infinity that the original doesn't have."""
    if new.dtype.kind != "f":
        return False
    here, there = np.isfinite(new), np.isfinite(old) if old.dtype.kind == "f" else True
    if old.shape != new.shape:
        return bool(np.all(there) and not here.all())
    return bool((~here & there).any())
