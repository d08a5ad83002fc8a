"""A model to be run as its file has it, and the inputs it is fed."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from thinet_onnx import data as sources
from thinet_onnx.data import InputSpec
from thinet_onnx.errors import OptionError
from thinet_onnx.setting import LARGEST_INPUT, Setting, closed_inputs, open_model

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]
Model = onnx.ModelProto | str | os.PathLike[str]
Data = str | os.PathLike[str] | sources.Source | Mapping[str, Array] | Array | Iterable[Mapping[str, Array]] | None

_FEEDS = 8  # different batches of data to run in turn
_ELEMENTS = 50_000_000  # of all of them together


class WrongBatchError(Exception):
    """A batch size that a file's shapes, or the data, rule out; the message is the reason."""


@dataclass
class Subject:
    """A model, what it takes (`shapes` are sizes given for what the file leaves open), and data for it if there is any."""

    name: str
    setting: Setting
    shapes: dict[str, tuple[int, ...]]
    source: sources.Source | None

    @property
    def model(self) -> onnx.ModelProto:
        """The model as its file has it."""
        return self.setting.read

    @property
    def open_inputs(self) -> list[InputSpec]:
        """Inputs whose first axis takes any size."""
        return [spec for spec in self.setting.inputs if spec.shape and spec.shape[0] is None]

    @property
    def own_batch(self) -> int:
        """The batch size to run at if none is asked for: the file's, or that of `--shape`, or 1."""
        given = [self.shapes[spec.name][0] for spec in self.open_inputs if spec.name in self.shapes]
        fixed = [spec.shape[0] for spec in self.setting.inputs if spec.shape and spec.shape[0] is not None]
        return given[0] if given else 1 if self.open_inputs or not fixed else int(fixed[0] or 1)

    def feeds(self, batch: int, seed: int = 0, most: int = _FEEDS) -> list[Feeds]:
        """Feeds of `batch` items: up to `most` different ones of the data, or one of noise.

        Raises:
            WrongBatchError: the file or the data can't have this batch size.
        """
        if not self.open_inputs and batch != self.own_batch:
            fixed = next(spec for spec in self.setting.inputs if spec.shape)
            raise WrongBatchError(f"it takes batches of {self.own_batch} only (input {fixed})")
        self._check_size(batch)
        if self.source is None:
            return [sources.random_source(self._specs(batch), samples=1, seed=seed).batch([0])]
        return [self.source.batch(rows) for rows in self._rows(self.source, batch, most)]

    def _check_size(self, batch: int) -> None:
        """Raise WrongBatchError for a batch that would not fit into any memory."""
        for spec in self.open_inputs:
            count = batch * math.prod(size or 1 for size in self.shapes.get(spec.name, spec.shape)[1:])
            if count * spec.dtype.itemsize > LARGEST_INPUT:
                raise WrongBatchError(f"a batch of {batch:,} has {count:,} elements in the input {spec.name!r}")

    def _specs(self, batch: int) -> list[InputSpec]:
        free = {spec.name for spec in self.open_inputs}
        return [
            InputSpec(spec.name, (batch, *spec.shape[1:]), spec.dtype) if spec.name in free else spec
            for spec in closed_inputs(self.setting, self.shapes)
        ]

    def _rows(self, source: sources.Source, batch: int, most: int) -> list[list[int]]:
        """Rows of the data for each feed; the data begins anew where it ends."""
        each = batch if self.open_inputs else 1  # an item of data for a file of batch B is B rows
        if each > 1 and not source.stackable:
            raise WrongBatchError(f"the data can't be joined into batches ({source.description})")
        elements = sum(array.size for array in source.batch([0]).values()) * each
        count = max(1, min(most, math.ceil(len(source) / each), _ELEMENTS // max(elements, 1)))
        return [[(number * each + place) % len(source) for place in range(each)] for number in range(count)]


def open_subjects(
    models: Sequence[Model],
    data: Data,
    *,
    shapes: Mapping[str, tuple[int, ...]],
    preprocess: sources.Preprocess,
    samples: int | None,
    seed: int,
) -> list[Subject]:
    """Read models, and open the data for each of them.

    Args:
        models: paths or ModelProtos.
        data: as `prune` takes it; None for noise.
        shapes: sizes of inputs that a file leaves open; each name must be an input of one of the models.
        preprocess: how images become inputs.
        samples: how many of the data to take, at random.
        seed: of all that is random.

    Raises:
        ModelError, DataError, OptionError.
    """
    settings = [open_model(model, {}) for model in models]
    known = {spec.name for setting in settings for spec in setting.inputs}
    for wrong in sorted(set(shapes) - known):
        raise OptionError(f"--shape {wrong}: there is no such input; the inputs are {', '.join(sorted(known))}.")
    subjects = []
    for number, (model, closed) in enumerate(zip(models, settings, strict=True), 1):
        own = {spec.name: shapes[spec.name] for spec in closed.inputs if spec.name in shapes}
        setting = open_model(model, own) if own else closed
        name = f"model {number}" if isinstance(model, onnx.ModelProto) else str(model)
        source = open_data(data, setting, preprocess, samples, seed)
        subjects.append(Subject(name, setting, own, source))
    return subjects


def open_data(
    data: Data, setting: Setting, preprocess: sources.Preprocess, samples: int | None, seed: int
) -> sources.Source | None:
    """The data for a model; None stays None."""
    if data is None or isinstance(data, sources.Source):
        return data
    if isinstance(data, str | os.PathLike):
        return sources.open_source(data, setting.inputs, preprocess, samples=samples, seed=seed)
    return sources.from_arrays(data, setting.inputs, preprocess, samples=samples, seed=seed)
