"""Which items a step is trained on, and how they are varied: a pure function of seed, epoch and step. NumPy only."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from thinet_onnx.data import InputSpec, Source
from thinet_onnx.errors import DataError, OptionError
from thinet_onnx.graph import Array
from thinet_onnx.images import ImageInput, Preprocess

_MEET = (0.3, 0.7)  # where the four images of a mosaic meet, in shares of its sides


@dataclass(frozen=True)
class Variation:
    """How images are varied: mirrored, shifted by up to `crop` pixels, their edges continued, enlarged, tiled, and mixed.

    With `zoom` a window whose sides are uniform in `zoom` … 1 of the image's is stretched over all of it, linearly between
    pixels. `mosaic` is the share of items that share their image with three others: each is stretched over one of its
    quarters, which meet at a place that is uniform in 0.3 … 0.7 of the sides (as in YOLOv4, Bochkovskiy et al., 2020, but
    images are whole), so that what they show is seen smaller and in other surroundings. `mix` is the share of items that are
    replaced by λ of themselves and 1 − λ of another one, λ uniform in 0..1 (mixup, Zhang et al., 2018; for distillation
    Beyer et al., 2022). The original is sure of what it was trained on, but not of mixtures: there its answers say most.
    `inputs` are (height axis, width axis) of each input that holds images; all of an
    item's are varied alike.
    """

    flip: bool = False
    crop: int = 0
    mix: float = 0.0
    zoom: float = 0.0
    mosaic: float = 0.0
    inputs: dict[str, tuple[int, int]] = field(default_factory=dict)

    def apply(self, feeds: dict[str, Array], place: slice, rng: np.random.Generator) -> None:
        """Vary some rows of the feeds, in place."""
        mirrored = self.flip and rng.random() < 0.5
        shifts = rng.integers(-self.crop, self.crop + 1, 2)
        size, starts = (rng.uniform(self.zoom, 1), rng.random(2)) if self.zoom else (1.0, np.zeros(2))
        for name, axes in self.inputs.items():
            part = feeds[name][place]
            for axis, shift, start in zip(axes, shifts, starts, strict=True):
                places = np.clip(np.arange(part.shape[axis]) + shift, 0, part.shape[axis] - 1)
                if mirrored and axis == axes[1]:
                    places = places[::-1]
                part = part.take(places, axis)
                if self.zoom:
                    part = _stretched(part, axis, size, start)
            feeds[name][place] = part

    def tile(
        self, feeds: dict[str, Array], place: slice, others: list[dict[str, Array]], rng: np.random.Generator
    ) -> None:
        """Make some rows of the feeds the top left quarter, in place, and three other feeds the rest."""
        meet = rng.uniform(*_MEET, 2)
        for name, axes in self.inputs.items():
            whole = feeds[name][place]
            parts = [whole.copy(), *(other[name] for other in others)]
            for part, second in zip(parts, ((False, False), (False, True), (True, False), (True, True)), strict=True):
                where, shrunk = [slice(None)] * whole.ndim, part
                for axis, share, far in zip(axes, meet, second, strict=True):
                    edge = round(share * whole.shape[axis])
                    where[axis] = slice(edge, None) if far else slice(edge)
                    shrunk = _stretched(shrunk, axis, 1, 0, whole.shape[axis] - edge if far else edge)
                whole[tuple(where)] = shrunk


def _stretched(x: Array, axis: int, size: float, start: float, over: int | None = None) -> Array:
    """A part of an axis, `size` of it and `start` (0 … 1) of the way along, over all of it or `over`; linear in between."""
    length = x.shape[axis]
    over = length if over is None else over
    places = (np.arange(over) + 0.5) * (size * length / max(over, 1)) + start * (1 - size) * length - 0.5
    places = np.clip(places, 0, length - 1)
    below = np.minimum(places.astype(np.int64), max(length - 2, 0))
    shares = (places - below).astype(x.dtype).reshape(-1, *[1] * (x.ndim - axis - 1))
    low, high = x.take(below, axis), x.take(np.minimum(below + 1, length - 1), axis)
    return np.asarray(low + shares * (high - low))


def variation(
    flip: bool,
    crop: int,
    layout: str,
    inputs: Sequence[onnx.ValueInfoProto],
    mix: float = 0.0,
    zoom: float = 0.0,
    mosaic: float = 0.0,
) -> Variation:
    """The variation of a model's image inputs: those of rank 4 and a float type.

    Raises:
        OptionError: there is none, or its layout can't be told.
    """
    if not (flip or crop or mix or zoom or mosaic):
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
                raise OptionError(f"--flip, --crop, --zoom, --mosaic and --mix: {error}") from None
            found[value.name] = (2, 3) if image.layout == "nchw" else (1, 2)
    if not found:
        raise OptionError(
            "--flip, --crop, --zoom, --mosaic and --mix apply to images, but no input of the model has rank 4 and a float type."
        )
    return Variation(flip, crop, mix, zoom, mosaic, found)


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
        if not self._varied.inputs:
            return feeds
        feeds = {name: np.array(value) for name, value in feeds.items()}
        rngs = [np.random.default_rng([self._seed, epoch, row]) for row in rows]
        self._vary(feeds, rngs)
        self._tile(feeds, rngs)
        shares = [rng.random() if rng.random() < self._varied.mix else 1.0 for rng in rngs if self._varied.mix]
        if shares:
            others = self._others(rngs)
            for name in self._varied.inputs:
                own = np.repeat(np.array(shares, feeds[name].dtype), len(feeds[name]) // len(rows))
                own = own.reshape(-1, *[1] * (feeds[name].ndim - 1))
                feeds[name] = own * feeds[name] + (1 - own) * others[name]
        return feeds

    def _others(self, rngs: Sequence[np.random.Generator]) -> dict[str, Array]:
        """The feed of as many items that are trained on, each drawn and varied by a generator."""
        rows = [int(rng.choice(self._rows)) for rng in rngs]
        others = {name: np.array(value) for name, value in self._source.batch(rows).items()}
        self._vary(others, rngs)
        return others

    def _tile(self, feeds: dict[str, Array], rngs: Sequence[np.random.Generator]) -> None:
        """Put three other images beside some of a feed's, in place."""
        for place, rng in self._places(feeds, rngs):
            if self._varied.mosaic and rng.random() < self._varied.mosaic:
                self._varied.tile(feeds, place, [self._others([rng]) for _ in range(3)], rng)

    def _vary(self, feeds: dict[str, Array], rngs: Sequence[np.random.Generator]) -> None:
        """Vary each item of a feed, in place, with a generator of its own."""
        for place, rng in self._places(feeds, rngs):
            self._varied.apply(feeds, place, rng)

    def _places(
        self, feeds: dict[str, Array], rngs: Sequence[np.random.Generator]
    ) -> Iterator[tuple[slice, np.random.Generator]]:
        """Each item's rows in a feed, and its generator."""
        width = min(len(feeds[name]) // len(rngs) for name in self._varied.inputs)
        for number, rng in enumerate(rngs):
            yield slice(number * width, (number + 1) * width), rng
