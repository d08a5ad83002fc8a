"""Resize and Upsample: every axis by itself, each output a weighted sum of few inputs (taps).

    y[i] = Σ_t weights[i, t] · x[places[i, t]]

That covers all modes on any axes. Coordinates are computed in float32, as ONNX Runtime does, since ties decide which
neighbour is nearest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from thinet_onnx.torch_twin.registry import Call, operator

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Axis:
    """One axis to be resized: sizes before and after, the factor, and the region of a crop (0 and 1 without one)."""

    before: int
    after: int
    factor: float
    start: float = 0.0
    end: float = 1.0


@operator("Resize", sizes=(1, 2, 3))
def resize(
    call: Call, x: Tensor, roi: Sequence[float] | None = None, scales: Sequence[float] | None = None,
    sizes: Sequence[int] | None = None,
) -> Tensor:  # fmt: skip
    """By factors or to sizes; operator set 10 has factors alone, in the place of the region."""
    if call.opset < 11:
        roi, scales = None, roi
    chosen = [axis % x.ndim for axis in call.integers("axes", range(x.ndim))]
    lengths = [x.shape[axis] for axis in chosen]
    if sizes:
        targets, factors = _targets(call, lengths, [int(size) for size in sizes])
    else:
        factors = [float(np.float32(factor)) for factor in scales or ()]
        targets = [int(np.floor(np.float32(n) * np.float32(f))) for n, f in zip(lengths, factors, strict=True)]
    crop = call.text("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize" and roi
    for place, axis in enumerate(chosen):
        ends = (roi[place], roi[place + len(chosen)]) if crop and roi else (0.0, 1.0)
        if (targets[place], factors[place], ends) != (lengths[place], 1.0, (0.0, 1.0)):
            x = _resized(call, x, axis, Axis(lengths[place], targets[place], factors[place], *ends))
    return x


def _targets(call: Call, lengths: list[int], sizes: list[int]) -> tuple[list[int], list[float]]:
    """Sizes and factors, the same factor for all axes where the aspect ratio is kept."""
    factors = [size / length for size, length in zip(sizes, lengths, strict=True)]
    policy = call.text("keep_aspect_ratio_policy", "stretch")
    if policy != "stretch":
        factors = [(min if policy == "not_larger" else max)(factors)] * len(factors)
        sizes = [int(factor * length + 0.5) for factor, length in zip(factors, lengths, strict=True)]
    return sizes, factors


@operator("Upsample", sizes=(1,))
def upsample(call: Call, x: Tensor, scales: Sequence[float] | None = None) -> Tensor:
    """Resize as it was before operator set 10: neighbours to the left, or linear, from the left edge."""
    factors = [float(f) for f in (call.node.attrs["scales"] if scales is None else scales)]
    for axis, factor in enumerate(factors):
        length = x.shape[axis]
        if factor != 1.0:
            x = _resized(call, x, axis, Axis(length, int(np.floor(np.float32(length) * np.float32(factor))), factor))
    return x


def _resized(call: Call, x: Tensor, axis: int, sizes: Axis) -> Tensor:
    """One axis at its new size."""
    places, weights = taps(call, sizes)
    spread = [-1 if place == axis else 1 for place in range(x.ndim)]
    total: Tensor | None = None
    for tap in range(places.shape[1]):
        part = x.index_select(axis, torch.from_numpy(places[:, tap].copy()).to(x.device))
        if weights is not None:
            column = torch.from_numpy(weights[:, tap].astype(np.float32)).to(x)
            part = part * column.reshape(spread)
        total = part if total is None else total + part
    assert total is not None
    outside = call.number("extrapolation_value", 0.0)
    if call.text("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        where = _coordinates(call, sizes)
        beyond = torch.from_numpy((where < 0) | (where > sizes.before - 1)).to(x.device).reshape(spread)
        total = torch.where(beyond, torch.full_like(total, outside), total)
    return total


def taps(call: Call, axis: Axis) -> tuple[NDArray[np.int64], Floats | None]:
    """Places (after × taps) and weights of the same shape; None where there is one tap of weight 1."""
    mode = call.text("mode", "nearest")
    where = _coordinates(call, axis)
    if mode == "nearest":
        return np.clip(_nearest(call, where, axis), 0, axis.before - 1)[:, None], None
    if call.integer("antialias", 0) and axis.factor < 1:
        return _antialiased(call, where, axis)
    if mode == "linear":
        inside = np.clip(where, 0, axis.before - 1)
        left = np.floor(inside).astype(np.int64)
        share = inside - left
        return np.stack([left, np.minimum(left + 1, axis.before - 1)], 1), np.stack([1 - share, share], 1)
    if mode == "cubic":
        first = np.floor(where).astype(np.int64) - 1
        places = first[:, None] + np.arange(4)
        return _held(call, places, _cubic(call, where[:, None] - places), axis)
    raise call.refuse(f"the mode {mode!r}")


def _held(call: Call, places: NDArray[np.int64], weights: Floats, axis: Axis) -> tuple[NDArray[np.int64], Floats]:
    """Taps beyond the edges read the edge, or count for nothing with `exclude_outside`."""
    if call.integer("exclude_outside", 0):
        weights = np.where((places < 0) | (places >= axis.before), 0.0, weights)
        weights = weights / weights.sum(1, keepdims=True)
    return np.clip(places, 0, axis.before - 1), weights


def _cubic(call: Call, distance: Floats) -> Floats:
    """The cubic convolution kernel (Keys, 1981)."""
    a, d = call.number("cubic_coeff_a", -0.75), np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d**2 + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def _antialiased(call: Call, where: Floats, axis: Axis) -> tuple[NDArray[np.int64], Floats]:
    """The kernel stretched over all inputs that one output stands for."""
    linear = call.text("mode", "") == "linear"
    reach = (1.0 if linear else 2.0) / axis.factor
    first = np.floor(where - reach).astype(np.int64)
    places = first[:, None] + np.arange(int(np.ceil(2 * reach)) + 2)
    distance = (where[:, None] - places) * axis.factor
    weights = np.maximum(1 - np.abs(distance), 0.0) if linear else _cubic(call, distance)
    return _held(call, places, weights / weights.sum(1, keepdims=True), axis)


def _coordinates(call: Call, axis: Axis) -> Floats:
    """Where each output lies on the input's axis."""
    x, factor = np.arange(axis.after, dtype=np.float32), np.float32(axis.factor)
    half, last, steps = np.float32(0.5), np.float32(axis.before - 1), np.float32(max(axis.after - 1, 1))
    default = "half_pixel" if call.node.op == "Resize" and call.opset >= 11 else "asymmetric"
    mode = call.text("coordinate_transformation_mode", default)
    if mode == "tf_crop_and_resize":
        start, end = np.float32(axis.start), np.float32(axis.end)
        one = half * (start + end) * last + np.zeros_like(x)
        return start * last + x * (end - start) * last / steps if axis.after > 1 else one
    half_pixel = (x + half) / factor - half
    share = np.float32(axis.after) / (factor * np.float32(axis.before))
    modes: dict[str, Floats] = {
        "half_pixel": half_pixel,
        "pytorch_half_pixel": half_pixel if axis.after > 1 else np.zeros_like(x),
        "align_corners": x * last / steps,
        "asymmetric": x / factor,
        "tf_half_pixel_for_nn": half_pixel + half,
        "half_pixel_symmetric": np.float32(axis.before / 2) * (1 - share) + half_pixel,
    }
    if mode not in modes:
        raise call.refuse(f"the coordinates {mode!r}")
    return modes[mode]


def _nearest(call: Call, where: Floats, axis: Axis) -> NDArray[np.int64]:
    """The neighbour of each coordinate, before the edges are minded."""
    old = call.node.op == "Upsample" or call.opset < 11
    half = np.float32(0.5)
    modes: dict[str, Floats] = {
        "shrinking": np.ceil(where) if axis.factor < 1 else np.floor(where),  # the only way of old operator sets
        "round_prefer_floor": np.ceil(where - half),
        "round_prefer_ceil": np.floor(where + half),
        "floor": np.floor(where),
        "ceil": np.ceil(where),
    }
    mode = "shrinking" if old else call.text("nearest_mode", "round_prefer_floor")
    if mode not in modes:
        raise call.refuse(f"the nearest mode {mode!r}")
    return modes[mode].astype(np.int64)
