"""Which items a step is trained on, and how they are varied: a pure function of seed, epoch and step. NumPy only."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from thinet_onnx.data import InputSpec, Source
from thinet_onnx.errors import DataError, OptionError
from thinet_onnx.graph import Array
from thinet_onnx.images import ImageInput, Preprocess


@dataclass(frozen=True)
class Variation:
    """How images are varied: mirrored, and shifted by up to `crop` pixels, their edges continued.

    `inputs` are (height axis, width axis) of each input that holds images; all of an item's are varied alike.
    """

    flip: bool = False
    crop: int = 0
    inputs: dict[str, tuple[int, int]] = field(default_factory=dict)

    def apply(self, feeds: dict[str, Array], place: slice, rng: np.random.Generator) -> None:
        """Vary some rows of the feeds, in place."""
        mirrored = self.flip and rng.random() < 0.5
        shifts = rng.integers(-self.crop, self.crop + 1, 2)
        for name, axes in self.inputs.items():
            part = feeds[name][place]
            for axis, shift in zip(axes, shifts, strict=True):
                places = np.clip(np.arange(part.shape[axis]) + shift, 0, part.shape[axis] - 1)
                if mirrored and axis == axes[1]:
                    places = places[::-1]
                part = part.take(places, axis)
            feeds[name][place] = part


def variation(flip: bool, crop: int, layout: str, inputs: Sequence[onnx.ValueInfoProto]) -> Variation:
    """The variation of a model's image inputs: those of rank 4 and a float type.

    Raises:
        OptionError: there is none, or its layout can't be told.
    """
    if not flip and not crop:
        return Variation()
    found: dict[str, tuple[int, int]] = {}
    for value in inputs:
        tensor = value.type.tensor_type
        sizes = tuple(dim.dim_value if dim.dim_value > 0 else None for dim in tensor.shape.dim)
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        if len(sizes) == 4 and dtype.kind == "f":
            try:
                image = ImageInput.resolve(InputSpec(value.name, sizes, dtype), Preprocess(layout=layout))  # type: ignore[arg-type]
            except DataError as error:
                raise OptionError(f"--flip and --crop: {error}") from None
            found[value.name] = (2, 3) if image.layout == "nchw" else (1, 2)
    if not found:
        raise OptionError("--flip and --crop apply to images, but no input of the model has rank 4 and a float type.")
    return Variation(flip, crop, found)


class Feeding:
    """Items of a source in the order of training: `batch` of them a step, `steps` steps an epoch.

    Args:
        source: where they come from.
        rows: which of them are trained on.
        batch: how many make a step; the last ones of an epoch are left out where they are fewer.
        seed: of order and variation.
        varied: how images are varied.
    """

    def __init__(self, source: Source, rows: Sequence[int], batch: int, seed: int, varied: Variation) -> None:
        self._source, self._rows, self._seed, self._varied = source, np.array(rows), seed, varied
        self.batch = min(batch, len(rows))
        self.steps = len(rows) // self.batch

    def rows(self, step: int) -> list[int]:
        """The items of a step, counted through all epochs."""
        epoch, place = divmod(step, self.steps)
        order = np.random.default_rng([self._seed, epoch]).permutation(self._rows)
        return [int(row) for row in order[place * self.batch : (place + 1) * self.batch]]

    def feeds(self, rows: Sequence[int], epoch: int) -> dict[str, Array]:
        """The feed of some items as the epoch varies them."""
        feeds = self._source.batch(rows)
        if self._varied.inputs:
            feeds = {name: np.array(value) for name, value in feeds.items()}
            for place, row in enumerate(rows):
                size = {name: len(feeds[name]) // len(rows) for name in self._varied.inputs}
                width = min(size.values())
                rng = np.random.default_rng([self._seed, epoch, row])
                self._varied.apply(feeds, slice(place * width, (place + 1) * width), rng)
        return feeds
