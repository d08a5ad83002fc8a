"""Every form of a detector's outputs that is read, and those that aren't."""

from typing import Any

import numpy as np
import pytest

from thinet_onnx import detections
from thinet_onnx.detections import UnreadableError

Array = np.ndarray[Any, Any]

SIZE = (100, 200)  # height, width
# Two objects and one below the least score, in pixels of the input: x0, y0, x1, y1.
PIXELS = np.array([[20, 10, 60, 50], [100, 20, 180, 90], [0, 0, 10, 10]], np.float32)
SHARES = PIXELS / np.array([200, 100, 200, 100], np.float32)
SCORES = np.array([0.6, 0.9, 0.1], np.float32)
CLASSES = np.array([3, 1, 0])
BY_CLASS = np.array([[0.1, 0.1, 0.0, 0.6], [0.0, 0.9, 0.05, 0.0], [0.1, 0.0, 0.0, 0.0]], np.float32)
WITH_BACKGROUND = np.array([[0.2, 0.1, 0.1, 0.6], [0.05, 0.9, 0.05, 0.0], [0.9, 0.0, 0.1, 0.0]], np.float32)
CENTRES = np.concatenate([(PIXELS[:, :2] + PIXELS[:, 2:]) / 2, PIXELS[:, 2:] - PIXELS[:, :2]], 1)


def columns(*parts: Array) -> Array:
    return np.concatenate([part.reshape(3, -1) for part in parts], 1).astype(np.float32)


def many(table: Array) -> Array:
    """The table with boxes of no score, so that there are more boxes than columns."""
    return np.concatenate([table, np.zeros((200, table.shape[1]), np.float32)])


FORMS: dict[str, tuple[dict[str, Array], str]] = {
    "apart, scores": ({"boxes": PIXELS, "scores": SCORES}, "xyxy"),
    "apart, a batch axis": ({"scores": SCORES[None], "boxes": PIXELS[None]}, "xyxy"),
    "apart, scores in a column": ({"scores": SCORES[None, :, None], "boxes": PIXELS[None]}, "xyxy"),
    "apart, shares": ({"boxes": SHARES, "scores": SCORES}, "xyxy"),
    "apart, rows first": ({"boxes": SHARES[:, [1, 0, 3, 2]], "scores": SCORES}, "yxyx"),
    "apart, centres": ({"boxes": CENTRES, "scores": SCORES}, "cxcywh"),
    "apart, logits": ({"boxes": PIXELS, "scores": np.log(SCORES / (1 - SCORES))}, "xyxy"),
    "apart, labels": ({"boxes": PIXELS, "labels": CLASSES, "scores": SCORES}, "xyxy"),
    "apart, labels as floats": ({"b": PIXELS, "c": CLASSES.astype(np.float32), "s": SCORES, "n": np.ones(1)}, "xyxy"),
    "apart, a score for each class": ({"boxes": PIXELS, "scores": BY_CLASS}, "xyxy"),
    "apart, background first": ({"boxes": PIXELS, "scores": WITH_BACKGROUND}, "xyxy"),
    "together, score": ({"out": columns(PIXELS, SCORES)}, "xyxy"),
    "together, score and class": ({"out": columns(PIXELS, SCORES, CLASSES)[None]}, "xyxy"),
    "together, a score for each class": ({"out": many(columns(PIXELS, BY_CLASS))}, "xyxy"),
    "together, on its side": ({"out": many(columns(CENTRES, BY_CLASS)).T[None]}, "cxcywh"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_boxes(form: str) -> None:
    outputs, order = FORMS[form]
    found = detections.read(outputs, order, SIZE)  # type: ignore[arg-type]
    assert found.corners == pytest.approx(SHARES[[1, 0]], abs=1e-6)
    assert found.scores == pytest.approx([0.9, 0.6], abs=1e-6)
    if any(word in form for word in ("label", "class", "background", "side")):
        assert found.classes is not None
        assert found.classes.tolist() == [1, 3]
    else:
        assert found.classes is None


@pytest.mark.parametrize(
    ("outputs", "order", "complaint"),
    [
        (
            {"logits": np.zeros((1, 1000), np.float32)},
            "xyxy",
            r"the outputs \(logits \(1, 1000\)\) are no boxes with scores",
        ),
        ({"boxes": PIXELS}, "xyxy", "are no boxes"),
        ({"boxes": PIXELS, "scores": SCORES[:2]}, "xyxy", "are no boxes"),
        ({"a": many(columns(PIXELS, SCORES)), "b": many(columns(PIXELS, SCORES))}, "xyxy", "are no boxes"),
        ({"boxes": CENTRES, "scores": SCORES}, "xyxy", "most boxes end before they begin when they are read as xyxy"),
        ({}, "xyxy", "are no boxes"),
    ],
)
def test_other_outputs_are_refused(outputs: dict[str, Array], order: Any, complaint: str) -> None:
    with pytest.raises(UnreadableError, match=complaint):
        detections.read(outputs, order, SIZE)


def test_doubles_go_within_a_class_only() -> None:
    boxes = np.array([[10, 10, 50, 50], [11, 11, 51, 51], [12, 10, 52, 50]], np.float32)
    outputs = {"boxes": boxes, "scores": np.array([0.8, 0.9, 0.7], np.float32), "labels": np.array([1, 1, 2])}
    found = detections.read(outputs, "xyxy", SIZE)
    assert found.scores.tolist() == pytest.approx([0.9, 0.7])
    del outputs["labels"]
    assert detections.read(outputs, "xyxy", SIZE).scores.tolist() == pytest.approx([0.9])


def test_no_detection_is_an_answer() -> None:
    found = detections.read({"boxes": np.zeros((0, 4), np.float32), "scores": np.zeros(0, np.float32)}, "xyxy", SIZE)
    assert len(found.corners) == len(found.scores) == 0


def test_numbers_that_are_none_are_no_boxes() -> None:
    odd = PIXELS.copy()
    odd[1, 2] = np.nan
    found = detections.read({"boxes": odd, "scores": SCORES}, "xyxy", SIZE)
    assert found.scores.tolist() == pytest.approx([0.6])
