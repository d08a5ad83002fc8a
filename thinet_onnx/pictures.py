"""Small pictures of inputs and outputs: arrays → pixels → PNG or JPEG, base64, ready to stand in a page.

An item is one sample's array without its batch axis. Pictures are at most `SIDE` pixels wide and high.
"""

import base64
import colorsys
import io
from typing import Any

import numpy as np
from PIL import Image

from thinet_onnx.images import ImageInput, Layout, Pixels
from thinet_onnx.result import Picture, PicturePair

Array = np.ndarray[Any, Any]

SIDE = 224
_LOSSLESS = 96  # pictures up to this side are stored as they are
_LEAST_SIDE = 16  # of an output that counts as a picture
_COARSEST = 4  # an output is a picture of the input if it is no more than so many times smaller
_USUAL = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))  # ranges of pixels
_GOLDEN = 0.618034


def of_input(item: Array, image: ImageInput) -> Picture | None:
    """The picture that went into a network, its normalisation undone; None if it has no 1, 3 or 4 channels."""
    values = item if image.layout == "nhwc" else item.transpose(1, 2, 0)
    if values.shape[2] not in (1, 3, 4) or not values.size:
        return None
    values = values[:, :, :3]
    if values.dtype == np.uint8:
        return encode(values)
    chosen = image.preprocess
    if chosen.normalises:
        mean, std = (
            np.asarray(given or plain, np.float64)[..., :3]
            for given, plain in ((chosen.mean, (0.0,)), (chosen.std, (1.0,)))
        )
        undone = (values * std + mean) / (1 / 255 if chosen.scale is None else chosen.scale)
        if np.isfinite(undone).all() and undone.min() > -8 and undone.max() < 263:
            return encode(_bytes(undone, 0, 255))
    low, high = span(values)
    return encode(_bytes(values, low, high), shown=_stretched(low, high))


def pair(name: str, before: Array, after: Array, layout: Layout, size: tuple[int, int] | None) -> PicturePair | None:
    """Both networks' outputs as pictures, and their difference; None if the output is no picture.

    One or three channels are a picture. Of two, four or more channels the largest is shown at each place, as for a
    segmentation, and so are whole numbers. Where the input is a picture of `size` (height, width), the output must have its
    shape and a quarter of its width at least.
    """
    if before.shape != after.shape or before.dtype.kind not in "fiu":
        return None
    old, new = _channels_last(before, layout), _channels_last(after, layout)
    if old is None or new is None or not _picture_like(old, size):
        return None
    channels, coloured = old.shape[2], before.dtype.kind == "f" or before.dtype == np.uint8
    if (channels == 1 and before.dtype.kind == "f") or (channels == 3 and coloured):
        return _as_pictures(name, old, new)
    return None if size is None else _as_labels(name, old, new)


def span(values: Array) -> tuple[float, float]:
    """What black and white stand for: 0..1, −1..1 or 0..255 if the values keep near to one of these, else their own range."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    return next((usual for usual in _USUAL if _keeps_to(low, high, *usual)), (low, high))


def _keeps_to(low: float, high: float, least: float, most: float) -> bool:
    """Whether values lie in a range, but for overshoots, and use some of it."""
    slack = 0.2 * (high - low)
    return least - slack <= low and high <= most + slack and high - low > 0.05 * (most - least)


def encode(pixels: Pixels, *, labels: bool = False, shown: str = "") -> Picture:
    """A picture (H, W), (H, W, 1) or (H, W, 3) of bytes, made smaller where it is too large; `labels` aren't mixed."""
    picture = Image.fromarray(pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)
    share = min(1.0, SIDE / max(picture.size))
    if share < 1:
        small = max(1, round(picture.width * share)), max(1, round(picture.height * share))
        picture = picture.resize(small, Image.Resampling.NEAREST if labels else Image.Resampling.LANCZOS)
    out = io.BytesIO()
    lossless = labels or max(picture.size) <= _LOSSLESS
    picture.save(out, "PNG", optimize=True) if lossless else picture.save(out, "JPEG", quality=82)
    text = base64.b64encode(out.getvalue()).decode("ascii")
    return Picture("png" if lossless else "jpeg", text, *picture.size, shown)


def _channels_last(item: Array, layout: Layout) -> Array | None:
    if item.ndim == 2:
        return item[:, :, None]
    if item.ndim != 3:
        return None
    return item.transpose(1, 2, 0) if layout == "nchw" else item


def _picture_like(values: Array, size: tuple[int, int] | None) -> bool:
    height, width = values.shape[:2]
    if min(height, width) < _LEAST_SIDE or not values.shape[2]:
        return False
    if size is None:
        return True
    alike = abs(height * size[1] - width * size[0]) <= 0.1 * height * size[1]
    return bool(alike and height * _COARSEST >= size[0])


def _as_pictures(name: str, before: Array, after: Array) -> PicturePair:
    low, high = span(before)
    shown = _stretched(low, high)
    apart = np.abs(np.nan_to_num(after.astype(np.float64) - before)).mean(2)
    most = float(apart.max())
    share = 100 * most / max(high - low, 1e-30)
    white = f"black: none, white: {share:.2g}% of the range" if most else "none at all"
    return PicturePair(
        name, encode(_bytes(before, low, high), shown=shown), encode(_bytes(after, low, high), shown=shown),
        encode(_bytes(apart, 0, most), shown=white),
    )  # fmt: skip


def _as_labels(name: str, before: Array, after: Array) -> PicturePair:
    old, new = (a.argmax(2) if a.shape[2] > 1 else a[:, :, 0].astype(np.int64) for a in (before, after))
    changed = old != new
    difference = np.where(changed[:, :, None], np.array([214, 51, 51]), np.array([128, 128, 128])).astype(np.uint8)
    what = f"the largest of {before.shape[2]} channels" if before.shape[2] > 1 else "a colour for each number"
    return PicturePair(
        name, encode(_coloured(old), labels=True, shown=what), encode(_coloured(new), labels=True, shown=what),
        encode(difference, labels=True, shown=f"red: {changed.mean():.1%} of the places differ"),
    )  # fmt: skip


def _coloured(labels: Array) -> Pixels:
    """A colour for each number, the same for the same number; 0 is dark grey."""
    numbers, places = np.unique(labels, return_inverse=True)
    colours = [
        (0.22, 0.24, 0.27) if number == 0 else colorsys.hsv_to_rgb(number * _GOLDEN % 1, 0.62, 0.92)
        for number in numbers.tolist()
    ]
    table = (np.array(colours) * 255).astype(np.uint8)
    return table[places.reshape(labels.shape)]


def _bytes(values: Array, low: float, high: float) -> Pixels:
    scaled = (np.nan_to_num(values.astype(np.float64), posinf=high, neginf=low) - low) / max(high - low, 1e-30)
    return np.asarray(np.clip(np.round(scaled * 255), 0, 255), np.uint8)


def _stretched(low: float, high: float) -> str:
    return "" if (low, high) in _USUAL else f"black is {low:.3g}, white {high:.3g}"
