"""What a pruned network is worth: MACs by this package's own count, and its answers beside the original's.

Every network, whoever pruned it, goes through the same functions, as an ONNX file in ONNX Runtime.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from accuracy_cases import Case, Labels, Task

from thinet_onnx import runtime, verify
from thinet_onnx.data import Preprocess, Source, open_source, random_source
from thinet_onnx.groups import analyse
from thinet_onnx.images import find_images
from thinet_onnx.setting import closed_inputs, open_model

Array = np.ndarray[Any, Any]
Shapes = Mapping[str, tuple[int, ...]]

_BATCH_ELEMENTS = 1_200_000  # input elements of one batch, more or less
_MASK = 0.3  # probability from which a pixel belongs to the mask


class Rows(Source):
    """Some items of another source, with labels of their own."""

    def __init__(self, inner: Source, rows: Sequence[int], labels: Array | None) -> None:
        kept = None if labels is None else labels[list(rows)]
        super().__init__(f"{len(rows)} of {inner.description}", len(rows), kept, stackable=inner.stackable)
        self._inner, self._rows = inner, list(rows)

    def _feed(self, rows: list[int]) -> dict[str, Array]:
        return self._inner.batch([self._rows[row] for row in rows])


def open_data(case: Case, seed: int) -> tuple[Source, Source]:
    """Calibration and test images of a case, disjoint where both come from the same place.

    The choice is random by `seed`: the same images for everyone who is measured.

    Raises ThinetError if the data doesn't fit the model.
    """
    inputs = open_model(case.model, case.shapes).inputs
    pixels = Preprocess(**case.pixels)
    if case.calibration != case.test:
        fit, test = (open_source(path, inputs, pixels) for path in (case.calibration, case.test))
        fit_rows, test_rows = _draw(len(fit), case.samples, seed), _draw(len(test), case.tests, seed)
    else:
        fit = test = open_source(case.calibration, inputs, pixels)
        order = np.random.default_rng(seed).permutation(len(fit))
        fit_rows = np.sort(order[: case.samples])
        test_rows = np.sort(order[case.samples :][: case.tests])
    return (
        Rows(fit, fit_rows.tolist(), labels_of(fit, case.calibration, case.labels)),
        Rows(test, test_rows.tolist(), labels_of(test, case.test, case.labels)),
    )


def _draw(count: int, wanted: int | None, seed: int) -> Array:
    if wanted is None or wanted >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, wanted, replace=False))


def labels_of(source: Source, path: Path, kind: Labels) -> Array | None:
    """Classes (N,) int64 of a source's items, or None.

    Raises ValueError where file names are to give them and don't.
    """
    if kind != "prefix":
        return source.labels if kind == "data" else None
    files, _ = find_images(path)
    found = [re.match(r"\d+", file.name) for file in files]
    if None in found:
        raise ValueError(f"not every image file of {path} has a name that begins with the number of its class")
    return np.array([int(match[0]) for match in found if match is not None], np.int64)


@dataclass(frozen=True)
class Cost:
    """MACs of one input, parameters, and the channels that several layers add into (residual streams)."""

    macs: int
    params: int
    streams: int


def cost(model: onnx.ModelProto | Path, shapes: Shapes) -> Cost:
    """Count a model; `shapes` closes inputs with open sizes."""
    setting = open_model(model, shapes)
    feeds = random_source(closed_inputs(setting, shapes), samples=1, seed=0).batch([0])
    analysis = analyse(setting.graph, runtime.observed_shapes(setting.graph, feeds))
    streams = sum(group.size for group in analysis.groups if group.coupled)
    return Cost(
        round(analysis.macs.total(analysis.sizes)), round(analysis.params.total(analysis.sizes)), streams
    )  # fmt: skip


def answers(model: onnx.ModelProto | Path, source: Source, shapes: Shapes) -> list[Array]:
    """The graph's outputs for all items, each joined along axis 0; in batches where that doesn't change them."""
    setting = open_model(model, shapes)
    item = source.batch([0])
    opened = runtime.with_open_batch(setting.graph, runtime.observed_shapes(setting.graph, item))
    wanted = min(64, max(1, _BATCH_ELEMENTS // max(sum(array.size for array in item.values()), 1)))
    size = runtime.batch_limit(
        setting.model, opened, source.batch, len(source), wanted if source.stackable else 1
    )  # fmt: skip
    batches = (source.batch(range(start, min(start + size, len(source)))) for start in range(0, len(source), size))
    outputs = runtime.outputs(opened, batches)
    return [np.concatenate([np.atleast_1d(array) for array in arrays]) for arrays in zip(*outputs, strict=True)]


class Reference:
    """The original: its cost, its answers on the test images, and how near another network comes to them."""

    def __init__(self, case: Case, test: Source) -> None:
        self.case, self.test = case, test
        self.cost = cost(case.model, case.shapes)
        self.answers = answers(case.model, test, case.shapes)

    def remains(self, model: onnx.ModelProto) -> float:
        """The share of the MACs that a network still has."""
        return cost(model, self.case.shapes).macs / self.cost.macs

    def measure(self, model: onnx.ModelProto | Path) -> dict[str, Any]:
        """The columns of a row: shares of MACs and parameters, the scope that was really cut, and the metrics."""
        now = cost(model, self.case.shapes)
        found = answers(model, self.test, self.case.shapes)
        return {
            "macs": now.macs / self.cost.macs,
            "params": now.params / self.cost.params,
            "cut": "all" if now.streams < self.cost.streams else "inner",
            **metrics(self.answers, found, self.test.labels, self.case.task),
        }


def metrics(before: list[Array], after: list[Array], labels: Array | None, task: Task) -> dict[str, float]:
    """How near the answers are.

    `error` is ‖after − before‖ / ‖before‖ of each floating-point output, averaged over outputs. Scores of classes: `agreement`,
    the share of images with the original's top-1, and with labels `accuracy`. Images: `psnr` in dB, the peak being the
    range of the original's values. Masks: `iou` of the pixels above a threshold over all images, `pixels` the share
    that agrees.
    """
    pairs = [(a, b) for a, b in zip(before, after, strict=True) if a.dtype.kind == "f"]
    errors = [np.linalg.norm((b - a).ravel()) / max(np.linalg.norm(a.ravel()), 1e-30) for a, b in pairs]
    result = {"error": float(np.mean(errors))}
    a, b = pairs[0]
    if task == "scores" and (scores := [pair for pair in pairs if verify.is_classifier(pair[0][:1])]):
        picks, others = (array.reshape(len(array), -1).argmax(1) for array in scores[0])
        result["agreement"] = float((picks == others).mean())
        if labels is not None:
            result["accuracy"] = float((others == labels).mean())
    elif task == "image":
        noise = float(np.square(b - a, dtype=np.float64).mean())
        result["psnr"] = float(10 * np.log10(float(np.ptp(a)) ** 2 / max(noise, 1e-30)))
    elif task == "mask":
        old, new = a > _MASK, b > _MASK
        result["iou"] = float((old & new).sum() / max((old | new).sum(), 1))
        result["pixels"] = float((old == new).mean())
    return result
