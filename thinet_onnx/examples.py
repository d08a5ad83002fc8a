"""A few held-out samples with both networks' answers, for a report: best classes, boxes, or pictures that come out."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from thinet_onnx import detections, pictures, verify
from thinet_onnx.data import InputSpec, Preprocess, Source
from thinet_onnx.errors import DataError
from thinet_onnx.images import ImageInput
from thinet_onnx.options import Show
from thinet_onnx.result import Box, Example, Examples, Fidelity, Picture, PicturePair, Score

Array = np.ndarray[Any, Any]

_BEST = 5  # classes
_OUTPUTS = 2  # that are shown as pictures
_MOST_CHARACTERS = 600_000  # of all pictures


@dataclass(frozen=True)
class Held:
    """Held-out items of a source with the answers of both networks to `size` of them at a time."""

    source: Source
    rows: Sequence[int]
    size: int
    names: Sequence[str]
    before: verify.Outputs
    after: verify.Outputs

    @property
    def items(self) -> list[int]:
        """How many items each batch holds."""
        return [min(self.size, len(self.rows) - start) for start in range(0, len(self.rows), self.size)]

    def answer(self, place: int, answers: verify.Outputs) -> dict[str, Array]:
        """The outputs for one item, without those that don't divide into items."""
        batch, inner = divmod(place, self.size)
        parts = (verify.per_item(array, self.items[batch]) for array in answers[batch])
        return {name: part[inner] for name, part in zip(self.names, parts, strict=True) if part is not None}


def collect(
    held: Held, inputs: Sequence[InputSpec], preprocess: Preprocess, near: Sequence[Fidelity], show: Show, seed: int
) -> Examples:
    """Examples for a report: a third of them the items that the new network is farthest off on, the others at random."""
    errors = _errors(near, len(held.rows))
    image = _image(inputs, preprocess)
    remarks: dict[str, None] = {}
    samples, used = [], 0
    for place, why in _pick(errors, len(held.rows), show.count, seed):
        example = _example(held, place, why, image, show, remarks)
        used += sum(len(picture.data) for picture in _all(example))
        if used > _MOST_CHARACTERS:
            remarks["Some pictures were left out to keep the report small."] = None
            example = dataclasses.replace(example, picture=None, pictures=())
        samples.append(dataclasses.replace(example, error=None if errors is None else float(errors[place])))
    return Examples(tuple(samples), tuple(remarks))


def _example(
    held: Held, place: int, why: str, image: ImageInput | None, show: Show, remarks: dict[str, None]
) -> Example:
    row = held.rows[place]
    before, after = held.answer(place, held.before), held.answer(place, held.after)
    picture = size = None
    if image is not None:
        values = held.source.batch([row])[image.name]
        size = _size(values, image)
        picture = pictures.of_input(values[0], image)
    scores = ((), ()) if show.boxes else _scores(before, after, show)
    boxes = _boxes(before, after, size, show, remarks) if show.boxes else (None, None)
    return Example(
        held.source.title(row), why, _label(held.source, row, show), None, picture, *scores, *boxes,
        _pictures(before, after, image, size),
    )  # fmt: skip


def _errors(near: Sequence[Fidelity], count: int) -> Array | None:
    """The mean error of the outputs for each item."""
    known = [row.errors for row in near if len(row.errors) == count]
    return np.mean(known, axis=0) if known else None


def _pick(errors: Array | None, items: int, count: int, seed: int) -> list[tuple[int, str]]:
    """Places among the held-out items, and why each was picked."""
    count = min(count, items)
    worst = (
        [] if errors is None else np.argsort(-np.nan_to_num(errors, nan=np.inf), kind="stable")[: count // 3].tolist()
    )
    rest = np.setdiff1d(np.arange(items), worst)
    others = np.random.default_rng([seed, items]).choice(rest, count - len(worst), replace=False)
    return [(place, "largest error") for place in worst] + [(place, "at random") for place in sorted(others.tolist())]


def _image(inputs: Sequence[InputSpec], preprocess: Preprocess) -> ImageInput | None:
    """The first input that takes pictures."""
    for spec in inputs:
        if len(spec.shape) == 4 and (spec.dtype.kind == "f" or spec.dtype == np.uint8):
            try:
                image = ImageInput.resolve(spec, preprocess)
            except DataError:
                continue
            if image.channels in (1, 3, 4, None):
                return image
    return None


def _size(values: Array, image: ImageInput) -> tuple[int, int]:
    height, width = values.shape[2:] if image.layout == "nchw" else values.shape[1:3]
    return int(height), int(width)


def _label(source: Source, row: int, show: Show) -> str | None:
    if source.labels is None:
        return None
    index = int(source.labels[row])
    return show.name(index) or f"class {index}"


def _scores(
    before: dict[str, Array], after: dict[str, Array], show: Show
) -> tuple[tuple[Score, ...], tuple[Score, ...]]:
    """The best classes of the first output that looks like class scores."""
    name = next((name for name, array in before.items() if verify.is_classifier(array)), None)
    if name is None or name not in after or after[name].shape != before[name].shape:
        return (), ()
    return _top(before[name], show), _top(after[name], show)


def _top(output: Array, show: Show) -> tuple[Score, ...]:
    values = output[0].reshape(-1).astype(np.float64)
    shares = values
    if values.min() < 0 or abs(values.sum() - 1) > 1e-3:
        with np.errstate(invalid="ignore"):  # infinite scores have no shares
            powers = np.exp(values - values.max())
        shares = powers / powers.sum()
    best = np.argsort(-values, kind="stable")[:_BEST].tolist()
    return tuple(Score(i, show.name(i), float(values[i]), float(shares[i])) for i in best)


def _boxes(
    before: dict[str, Array],
    after: dict[str, Array],
    size: tuple[int, int] | None,
    show: Show,
    remarks: dict[str, None],
) -> tuple[tuple[Box, ...] | None, tuple[Box, ...] | None]:
    assert show.boxes is not None
    if size is None:
        remarks["--task detect: no input is a picture, so there is nothing to draw boxes on."] = None
        return None, None
    try:
        old, new = (detections.read(answer, show.boxes, size) for answer in (before, after))
    except detections.UnreadableError as error:
        remarks[f"--task detect: {error}."] = None
        return None, None
    return _named(old, show), _named(new, show)


def _named(found: detections.Detections, show: Show) -> tuple[Box, ...]:
    numbers = [None] * len(found.scores) if found.classes is None else found.classes.tolist()
    return tuple(
        Box(left, top, right, bottom, score, number, None if number is None else show.name(number))
        for (left, top, right, bottom), score, number in zip(
            np.clip(found.corners, 0, 1).tolist(), found.scores.tolist(), numbers, strict=True
        )
    )


def _pictures(
    before: dict[str, Array], after: dict[str, Array], image: ImageInput | None, size: tuple[int, int] | None
) -> tuple[PicturePair, ...]:
    layout = image.layout if image is not None else "nchw"
    pairs = (
        pictures.pair(name, old[0], after[name][0], layout, size)
        for name, old in before.items()
        if name in after and old.ndim and after[name].ndim and len(old) and len(after[name])
    )
    return tuple(made for made in pairs if made is not None)[:_OUTPUTS]


def _all(example: Example) -> list[Picture]:
    own = [] if example.picture is None else [example.picture]
    return own + [part for pair in example.pictures for part in (pair.before, pair.after, pair.difference)]
