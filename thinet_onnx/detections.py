"""A detector's outputs as boxes: the forms that are read, and what becomes of scores and corners.

The outputs of one image (a batch axis of 1 in front may be there or not), N boxes:

* *apart*: one output of (N, 4), one with scores, (N) or (N, classes), and perhaps one with class numbers, (N): what SSD-like
  and torchvision detectors give. Where the classes' scores of a box sum to 1, class 0 is the background.
* *together*: one output of (N, 5), corners and score; of (N, 6), corners, score and class number; or of (N, 4 + classes), also
  lying on its side, as YOLOv8 gives it.

Corners are x0, y0, x1, y1 unless the order says otherwise: pixels of the network's input, or shares of its width and height if
none is beyond 2. Scores beyond 0..1 are taken as logits. Boxes below a score of 0.3 are left out, and of two of the same
class that overlap by more than half the better one stays. Offsets from anchors, which code outside of the graph decodes,
can't be read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from thinet_onnx import wording
from thinet_onnx.options import BoxOrder

Array = np.ndarray[Any, Any]

_LEAST_SCORE, _MOST_OVERLAP = 0.3, 0.5
_MOST, _MOST_LOOKED_AT = 30, 1000
_LIKELY = 50  # of the best boxes at least half must be boxes
_IN_SHARES = 2.0  # corners no larger than this are shares of the picture


class UnreadableError(ValueError):
    """The outputs have none of the forms above; the message says what they are."""


@dataclass(frozen=True)
class Detections:
    """Corners (N, 4) as shares of the picture (x0, y0, x1, y1), scores (N), class numbers (N) or None; best first."""

    corners: Array
    scores: Array
    classes: Array | None


def read(outputs: Mapping[str, Array], order: BoxOrder, size: tuple[int, int]) -> Detections:
    """Boxes of one image, for an input of `size` (height, width).

    Raises UnreadableError if the outputs have another form.
    """
    plain = {name: _one_image(array) for name, array in outputs.items() if array.dtype.kind in "fiu"}
    found = _apart(plain) or _together(plain)
    if found is None:
        shapes = wording.names([f"{name} {tuple(array.shape)}" for name, array in outputs.items()], 3)
        raise UnreadableError(f"the outputs ({shapes}) are no boxes with scores")
    corners, scores, classes = found
    best = np.flatnonzero(np.isfinite(corners).all(1) & np.isfinite(scores) & (corners != 0).any(1))
    best = best[np.argsort(-scores[best], kind="stable")][:_MOST_LOOKED_AT]
    corners = _ordered(corners[best].astype(np.float64), order)
    if len(corners) and (corners[:_LIKELY, 2:] <= corners[:_LIKELY, :2]).any(1).mean() > 0.5:
        raise UnreadableError(
            f"most boxes end before they begin when they are read as {order}: say another order (--task detect:…), or "
            "they are offsets that the graph doesn't decode"
        )
    if corners.size and np.abs(corners).max() > _IN_SHARES:
        corners = corners / np.array([size[1], size[0], size[1], size[0]])
    good = scores[best] >= _LEAST_SCORE
    best, corners = best[good], corners[good]
    scores, classes = scores[best], None if classes is None else classes[best].astype(np.int64)
    kept = _without_doubles(corners, classes)
    return Detections(corners[kept], scores[kept], None if classes is None else classes[kept])


def _one_image(array: Array) -> Array:
    return array[0] if array.ndim > 1 and array.shape[0] == 1 and (array.ndim > 2 or array.shape[1] != 4) else array


def _apart(outputs: Mapping[str, Array]) -> tuple[Array, Array, Array | None] | None:
    """Boxes, scores and perhaps class numbers, each an output."""
    boxes = next((name for name, a in outputs.items() if a.ndim == 2 and a.shape[1] == 4), None)
    if boxes is None:
        return None
    count = len(outputs[boxes])
    fitting = {n: a for n, a in outputs.items() if n != boxes and a.ndim in (1, 2) and len(a) == count}
    labels = next((n for n, a in fitting.items() if a.ndim == 1 and _numbers(a, n)), None)
    scores = next((a for n, a in fitting.items() if n != labels and a.dtype.kind == "f"), None)
    if scores is None:
        return None
    if scores.ndim == 2:
        return outputs[boxes], *_best_class(scores)
    return outputs[boxes], _probabilities(scores), None if labels is None else outputs[labels]


def _numbers(array: Array, name: str) -> bool:
    """Whether these are class numbers and no scores."""
    whole = array.dtype.kind in "iu" or bool((array == np.floor(array)).all() and array.max(initial=0) > 1)
    return whole or any(word in name.lower() for word in ("class", "label"))


def _together(outputs: Mapping[str, Array]) -> tuple[Array, Array, Array | None] | None:
    """Corners and scores in the columns (or rows) of one output, the only one that could hold them."""
    tables = [found for array in outputs.values() if (found := _table(array)) is not None]
    return tables[0] if len(tables) == 1 else None


def _table(array: Array) -> tuple[Array, Array, Array | None] | None:
    if array.ndim != 2 or array.dtype.kind != "f":
        return None
    rows, columns = array.shape
    if columns in (5, 6):
        return array[:, :4], _probabilities(array[:, 4]), array[:, 5] if columns == 6 else None
    table = array.T if 5 <= rows < columns else array
    return (table[:, :4], *_best_class(table[:, 4:])) if table.shape[1] >= 5 else None


def _best_class(scores: Array) -> tuple[Array, Array | None]:
    """The best class of each box (but the background), its score and number."""
    if scores.shape[1] == 1:
        return _probabilities(scores[:, 0]), None
    chances = _probabilities(scores)
    background = bool(len(chances)) and bool(np.allclose(scores.sum(1), 1, atol=1e-3))
    named = chances[:, 1:] if background else chances
    return named.max(1), named.argmax(1) + int(background)


def _probabilities(scores: Array) -> Array:
    values = scores.astype(np.float64)
    beyond = bool(((values < 0) | (values > 1)).any())
    return 1 / (1 + np.exp(-np.clip(values, -60, 60))) if beyond else values


def _ordered(corners: Array, order: BoxOrder) -> Array:
    if order == "yxyx":
        return corners[:, [1, 0, 3, 2]]
    if order == "cxcywh":
        centre, half = corners[:, :2], corners[:, 2:] / 2
        return np.concatenate([centre - half, centre + half], 1)
    return corners


def _without_doubles(corners: Array, classes: Array | None) -> list[int]:
    """Indices of the boxes that no better one of their class covers; `corners` are the best first."""
    kept: list[int] = []
    areas = np.prod(np.maximum(corners[:, 2:] - corners[:, :2], 0), axis=1)
    for index, box in enumerate(corners):
        rivals = [k for k in kept if classes is None or classes[k] == classes[index]]
        width_height = np.minimum(corners[rivals, 2:], box[2:]) - np.maximum(corners[rivals, :2], box[:2])
        common = np.prod(np.maximum(width_height, 0), axis=1)
        if not (common > _MOST_OVERLAP * np.maximum(areas[rivals] + areas[index] - common, 1e-12)).any():
            kept.append(index)
        if len(kept) == _MOST:
            break
    return kept
