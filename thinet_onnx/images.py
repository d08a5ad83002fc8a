"""One input's values: image files and arrays to tensors, checked against what the model takes.

    tensor = (pixels * scale - mean) / std        per channel, in the layout and dtype of the model's input

uint8 arrays for a float input of rank 4 are images (ImageArray), other arrays are tensors already (PlainArray). A pixel
is uint8 everywhere in here until `ImageInput.tensor`; pictures lie as (N, H, W, C).
"""

import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from thinet_onnx.errors import DataError, OptionError
from thinet_onnx.stored import Stored

Array = npt.NDArray[Any]
Rows = Array | Stored
Labels = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]
Layout = Literal["nchw", "nhwc"]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")
CHANNEL_COUNTS = (1, 3, 4)
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_CHANNEL_AXIS: dict[Layout, int] = {"nchw": 1, "nhwc": 3}
_CHECKED_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class InputSpec:
    """One input of a model. A size of None is dynamic."""

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]

    def __str__(self) -> str:
        """Write it as messages do: 'x' float32 (?,3,32,32)."""
        return f"{self.name!r} {self.dtype} ({_text(self.shape)})"


@dataclass(frozen=True)
class Preprocess:
    """How uint8 images become numbers: (pixels * scale - mean) / std, per channel.

    `mean` and `std` hold one value or one for each channel; empty means 0 and 1. `scale` of None is 1/255, so that
    pixels span 0..1. `layout` is the model's, where its shape doesn't tell. `resize` is (height, width); None is the
    size the model's input has. Images are stretched to that size (bilinear), never cropped.

    Raises OptionError for a value that can't be used.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    scale: float | None = None
    layout: Literal["auto", "nchw", "nhwc"] = "auto"
    resize: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        scale = () if self.scale is None else (self.scale,)
        for option, values in (("mean", self.mean), ("std", self.std), ("scale", scale)):
            if not all(math.isfinite(value) for value in values):
                raise OptionError(f"--{option} {_text(values)}: every value must be a finite number.")
            if option != "mean" and 0 in values:
                raise OptionError(f"--{option} {_text(values)}: no value may be 0.")
        if self.layout not in ("auto", "nchw", "nhwc"):
            raise OptionError(f"--layout {self.layout!r} is unknown: choose one of auto, nchw, nhwc.")
        if self.resize is not None and (len(self.resize) != 2 or min(self.resize) < 1):
            raise OptionError(f"--resize {_text(self.resize)}: give height and width, both 1 or more.")

    @property
    def normalises(self) -> bool:
        """Whether --mean, --std or --scale was given."""
        return bool(self.mean or self.std or self.scale is not None)


@dataclass(frozen=True)
class ImageInput:
    """One rank-4 input of a model, seen as a place for images.

    `channels` of None is dynamic; `size` of None means that images keep their own (height, width). `dtype` is a float
    type, or uint8: then pixels go in as they are.

    Raises OptionError if mean or std don't fit the channels, or are given where pixels go in unchanged.
    """

    name: str
    layout: Layout
    channels: int | None
    size: tuple[int, int] | None
    dtype: np.dtype[Any]
    preprocess: Preprocess

    def __post_init__(self) -> None:
        if self.dtype.kind != "f" and self.preprocess.normalises:
            raise OptionError(
                f"--mean, --std and --scale don't apply to input {self.name!r}, which takes {self.dtype} pixels: leave "
                f"these options out."
            )
        for option, values in (("mean", self.preprocess.mean), ("std", self.preprocess.std)):
            if self.channels is not None and len(values) not in (0, 1, self.channels):
                raise OptionError(
                    f"--{option} {_text(values)} has {len(values)} values, but input {self.name!r} has {self.channels} "
                    f"channels: give one value, or one for each channel."
                )

    @classmethod
    def resolve(cls, spec: InputSpec, preprocess: Preprocess) -> "ImageInput":
        """Find layout, channels and size of an input of rank 4.

        Raises DataError if the layout can't be told, OptionError if `preprocess` contradicts the input.
        """
        shape, layout = spec.shape, _model_layout(spec, preprocess)
        height, width = (shape[2], shape[3]) if layout == "nchw" else (shape[1], shape[2])
        size = (height, width) if height is not None and width is not None else None
        if preprocess.resize is not None:
            if any(own not in (None, new) for own, new in zip((height, width), preprocess.resize, strict=True)):
                raise OptionError(
                    f"--resize {_text(preprocess.resize)} contradicts input {spec}, of height and width "
                    f"{_text((height, width))}: leave it out, or change the input's size with --shape."
                )
            size = preprocess.resize
        return cls(spec.name, layout, shape[_CHANNEL_AXIS[layout]], size, spec.dtype, preprocess)

    def tensor(self, pixels: Pixels) -> Array:
        """Turn pixels (N, H, W, C) into the input's tensor, (N, C, H, W) or (N, H, W, C), C-contiguous, of `dtype`."""
        values: Array = pixels
        if self.dtype.kind == "f":
            chosen = self.preprocess
            # float16 would lose half the digits on the way, so only the result is rounded to it.
            values = pixels.astype(np.result_type(self.dtype, np.float32))
            values *= 1 / 255 if chosen.scale is None else chosen.scale
            values -= np.asarray(chosen.mean or 0, values.dtype)
            values /= np.asarray(chosen.std or 1, values.dtype)
        if self.layout == "nchw":
            values = values.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(values, dtype=self.dtype)


class ImageArray:
    """A uint8 array of images kept as it was given; `take` makes tensors of some of its rows.

    `shape` is what the whole array would be as a tensor of the model.
    """

    def __init__(self, array: Rows, image: ImageInput, where: str) -> None:
        """Take (N, H, W, C), (N, C, H, W) or grey (N, H, W) for `image`; `where` names the array in messages.

        Raises DataError if the shape is none of these or the channels aren't the model's.
        """
        self._array = array
        self._layout: Layout | Literal["grey"] = _array_layout(array.shape, image, where)
        self._image = replace(image, channels=self._as_nhwc(array[:1]).shape[3])
        height, width = image.size or self._as_nhwc(array[:1]).shape[1:3]
        channels = self._image.channels or 0
        inner = (channels, height, width) if image.layout == "nchw" else (height, width, channels)
        self.shape: tuple[int, ...] = (len(array), *inner)

    def take(self, rows: Any) -> Array:
        """Make the tensor of some rows (an index of axis 0, or `...` for all)."""
        pixels = self._as_nhwc(self._array[rows])
        return self._image.tensor(resize_pixels(pixels, self._image.size))

    def _as_nhwc(self, array: Array) -> Pixels:
        if self._layout == "grey":
            return array[..., np.newaxis]
        return array.transpose(0, 2, 3, 1) if self._layout == "nchw" else array


class PlainArray:
    """An array that is a tensor of the model but for its dtype, with the face of ImageArray."""

    def __init__(self, array: Rows, spec: InputSpec, where: str) -> None:
        """Take an array whose dtype casts to the input's without loss (but for float precision) and is finite.

        Raises DataError otherwise.
        """
        _check_dtype(array, spec, where)
        _check_finite(array, spec, where)
        self._array, self._dtype = array, spec.dtype
        self.shape: tuple[int, ...] = array.shape

    def take(self, rows: Any) -> Array:
        """Make the tensor of some rows (an index of axis 0, or `...` for all)."""
        return np.array(self._array[rows], dtype=self._dtype, order="C")


Column = PlainArray | ImageArray


def column(values: npt.ArrayLike | Stored, spec: InputSpec, preprocess: Preprocess, where: str, copy: bool) -> Column:
    """Check the array for one input, `where` naming it in messages, and get it ready to make tensors of its rows.

    The size of axis 0 is free, but not 0. Raises DataError if the array doesn't fit the input, OptionError if
    `preprocess` doesn't.
    """
    array = values if isinstance(values, Stored) else _as_array(values, where, copy)
    if 0 in array.shape:
        raise DataError(f"{where} is empty, of shape {array.shape}: give at least one row for input {spec}.")
    made: Column
    if array.dtype == np.uint8 and spec.dtype.kind == "f" and len(spec.shape) == 4:
        made = ImageArray(array, ImageInput.resolve(spec, preprocess), where)
    else:
        made = PlainArray(array, spec, where)
    fits = len(made.shape) == len(spec.shape) and all(
        want in (None, have) for have, want in zip(made.shape[1:], spec.shape[1:], strict=True)
    )
    if not fits:
        raise DataError(
            f"{where} has shape {array.shape}, which doesn't fit input {spec}: give that shape, with the rows along "
            f"axis 0, or change the input's size with --shape."
        )
    return made


def columns(
    arrays: Mapping[str, Any], inputs: Sequence[InputSpec], preprocess: Preprocess, origin: str, copy: bool = False
) -> tuple[dict[str, Column], Any]:
    """Check one dict of arrays; give each input's column, and the labels, unchecked but for being an array, or None.

    Raises DataError or OptionError as `match_keys` and `column` do.
    """
    keys = match_keys(arrays, inputs, origin)
    feed = {
        spec.name: column(arrays[keys[spec.name]], spec, preprocess, f"{origin}: array {keys[spec.name]!r}", copy)
        for spec in inputs
    }
    labels = None if "labels" in keys.values() else arrays.get("labels")
    return feed, labels if labels is None else _as_array(labels, f"{origin}: 'labels'", copy)


def match_keys(keys: Collection[str], inputs: Sequence[InputSpec], origin: str) -> dict[str, str]:
    """Find the key of each input: its name or, for a model of one input, `images`. Raises DataError for other keys."""
    found = {spec.name: spec.name for spec in inputs if spec.name in keys}
    if not found and len(inputs) == 1 and "images" in keys:
        found = {inputs[0].name: "images"}
    listed = ", ".join(map(repr, keys)) or "nothing"
    missing = ", ".join(repr(spec.name) for spec in inputs if spec.name not in found)
    if missing:
        wanted = ", ".join(map(str, inputs))
        raise DataError(f"{origin} has no array {missing}: name its arrays ({listed}) like the inputs ({wanted}).")
    unknown = ", ".join(repr(key) for key in keys if key != "labels" and key not in found.values())
    if unknown:
        raise DataError(f"{origin} has the unknown array {unknown}: leave only {', '.join(found.values())} and labels.")
    return found


def only_input(inputs: Sequence[InputSpec], origin: str) -> InputSpec:
    """Give the one input of a model that has no other. Raises DataError if it has."""
    if len(inputs) != 1:
        listed = ", ".join(map(str, inputs))
        raise DataError(f"{origin} is a single array, but the model takes {listed}: give a .npz file or a dict.")
    return inputs[0]


def check_labels(labels: npt.ArrayLike | None, count: int, origin: str) -> Labels | None:
    """Make labels (N,) int64; None stays None. Raises DataError unless they are `count` integers."""
    if labels is None:
        return None
    array = np.atleast_1d(_as_array(labels, f"{origin}: 'labels'"))
    if array.dtype.kind not in "iu":
        raise DataError(f"{origin}: 'labels' has dtype {array.dtype}: give integers, the indices of the classes.")
    if array.shape != (count,):
        raise DataError(f"{origin}: 'labels' has shape {array.shape} for {count} items: give one label for each.")
    return array.astype(np.int64)


def resize_pixels(pixels: Pixels, size: tuple[int, int] | None) -> Pixels:
    """Stretch pixels (N, H, W, C) to `size` (height, width), bilinear; unchanged if they have it or it is None."""
    if size is None or pixels.shape[1:3] == size:
        return pixels
    resized: Pixels = np.empty((len(pixels), *size, pixels.shape[3]), np.uint8)
    for row, channel in np.ndindex(len(pixels), pixels.shape[3]):
        # Channel by channel, because Pillow weighs colours by alpha when it resizes RGBA.
        plane = Image.fromarray(np.ascontiguousarray(pixels[row, :, :, channel]))
        resized[row, :, :, channel] = np.asarray(plane.resize(size[::-1], Image.Resampling.BILINEAR))
    return resized


def find_images(folder: Path) -> tuple[list[Path], Labels | None]:
    """Search a folder for image files, sorted by path, and their labels if all lie in subfolders, two or more.

    A label is the place of the subfolder's name among these, sorted. Raises DataError if there is no image.
    """
    below = (path.relative_to(folder).parts for path in folder.rglob("*") if path.is_file())
    # A dot begins the names of what isn't meant to be seen, such as the ._x.jpg that macOS leaves in archives.
    seen = (parts for parts in below if not any(part.startswith(".") for part in parts))
    places = sorted(parts for parts in seen if parts[-1].lower().endswith(IMAGE_SUFFIXES))
    if not places:
        raise DataError(f"{folder} holds no image: put files there that end in {', '.join(IMAGE_SUFFIXES)}.")
    classes = sorted({parts[0] for parts in places})
    labelled = len(classes) > 1 and all(len(parts) > 1 for parts in places)
    labels = np.array([classes.index(parts[0]) for parts in places], dtype=np.int64) if labelled else None
    return [folder.joinpath(*parts) for parts in places], labels


def load_pixels(path: Path, image: ImageInput) -> Pixels:
    """Decode an image file, turned upright by its EXIF orientation, to (1, H, W, C) of `image`'s size and channels.

    1 channel is grey, 3 are RGB, 4 are RGBA. Raises DataError, naming the file, if it can't be decoded or its pixels
    have more than 8 bits (cutting them to 8 would guess their range).
    """
    mode = _MODES[image.channels or 3]
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as file:
            if file.mode[0] in "IF":
                raise DataError(
                    f"{path} has more than 8 bits a pixel: convert it, or give float arrays in a .npz file."
                )
            pixels: Pixels = np.array(ImageOps.exif_transpose(file).convert(mode), np.uint8)
    except Exception as error:  # of any kind: there is a decoder for each format, and files as damaged as can be
        if isinstance(error, DataError | MemoryError):
            raise
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else first_line(error)
        raise DataError(f"{path} can't be read as an image ({reason}): replace it or take it away.") from error
    return resize_pixels(pixels.reshape(1, *pixels.shape[:2], len(mode)), image.size)


def first_line(error: BaseException) -> str:
    """Say what went wrong in one line: the first of the error's text, or its type."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _model_layout(spec: InputSpec, preprocess: Preprocess) -> Layout:
    if preprocess.layout != "auto":
        return preprocess.layout
    if spec.shape[1] in CHANNEL_COUNTS:
        return "nchw"
    if spec.shape[3] in CHANNEL_COUNTS:
        return "nhwc"
    raise DataError(
        f"Input {spec} has no axis of 1, 3 or 4 channels: pass --layout and --shape if it takes images, or give float "
        f"arrays if it doesn't."
    )


def _as_array(values: npt.ArrayLike, where: str, copy: bool = False) -> Array:
    try:
        return np.array(values) if copy else np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"{where} is no array ({first_line(error)}): give numbers in a regular shape.") from error


def _check_dtype(array: Rows, spec: InputSpec, where: str) -> None:
    have, want = array.dtype, spec.dtype
    if (have.kind == want.kind == "f") or (have.kind in "biuf" and np.can_cast(have, want, "safe")):
        return
    if have.kind in "iu" and want.kind in "iu":
        limits = np.iinfo(want)
        array = np.asarray(array)
        if limits.min > array.min() or array.max() > limits.max:
            raise DataError(f"{where} has values beyond {want}, which input {spec} takes: mend these values.")
        return
    raise DataError(f"{where} has dtype {have}, but input {spec} takes {want}: convert it with astype.")


def _check_finite(array: Rows, spec: InputSpec, where: str) -> None:
    if array.dtype.kind != "f":
        return
    rows = array if array.ndim else np.atleast_1d(array)
    step = max(1, _CHECKED_AT_ONCE * len(rows) // rows.size)
    count, first = 0, -1
    for start in range(0, len(rows), step):
        with np.errstate(over="ignore"):
            bad = ~np.isfinite(rows[start : start + step].astype(spec.dtype))
        if bad.any():
            count += int(bad.sum())
            first = first if first >= 0 else start + int(np.argmax(bad.reshape(len(bad), -1).any(axis=1)))
    if count:
        raise DataError(
            f"{where} has {count} values that are NaN, infinite or too large for {spec.dtype}, the first in row "
            f"{first}: mend or remove such rows."
        )


def _array_layout(shape: tuple[int, ...], image: ImageInput, where: str) -> Layout | Literal["grey"]:
    wanted = CHANNEL_COUNTS if image.channels is None else (image.channels,)
    if len(shape) == 3:
        # (H, W, C) of a single image is a likelier thing than pictures 1, 3 or 4 pixels wide.
        single = shape[2] in CHANNEL_COUNTS and shape[1:] != image.size
        if 1 in wanted and not single:
            return "grey"
    elif len(shape) == 4:
        fits = [layout for layout in (image.layout, "nchw", "nhwc") if shape[_CHANNEL_AXIS[layout]] in wanted]
        sized = [layout for layout in fits if (shape[2:] if layout == "nchw" else shape[1:3]) == image.size]
        if fits:
            return (sized or fits)[0]
    raise DataError(
        f"{where} has shape {shape}, which isn't uint8 images for input {image.name!r} with "
        f"{image.channels or '1, 3 or 4'} channels: give (N, H, W, C), (N, C, H, W), or (N, H, W) if it is grey."
    )


def _text(values: Sequence[float | None]) -> str:
    return ",".join("?" if value is None else str(value) for value in values)
