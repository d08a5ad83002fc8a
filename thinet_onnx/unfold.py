"""What a linear layer sees: input windows as rows of a matrix.

For a convolution a row is one input patch, channel-major (C·K² columns, zero padding included); for a fully connected
layer a row is one input vector. Rows are gathered at chosen positions; the full unfolding never exists.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

_LARGE, _SHARE = 65_536, 3  # elements of an image, and how many times as many positions there are as are picked


@dataclass(frozen=True)
class Window:
    """How an output position of a convolution sees its input: per spatial axis, in elements.

    `pads` are (begin, end) pairs. With `transposed` (ConvTranspose) the input is spread by the strides first, and the
    kernel is read backwards. An empty kernel is a fully connected layer.
    """

    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[tuple[int, int], ...] = ()
    transposed: bool = False
    output_padding: tuple[int, ...] = ()


def _spread(x: Floats, window: Window) -> Floats:
    """The input of a transposed convolution as that of the plain one that computes the same (kernel reversed)."""
    sizes = [s * (n - 1) + 1 for s, n in zip(window.strides, x.shape[2:], strict=True)]
    wide = np.zeros((*x.shape[:2], *sizes), x.dtype)
    wide[(slice(None), slice(None), *(slice(None, None, s) for s in window.strides))] = x
    margins = _margins(window)
    wide = np.pad(wide, [(0, 0), (0, 0), *((max(b, 0), max(e, 0)) for b, e in margins)])
    crop = tuple(slice(max(-b, 0), wide.shape[a + 2] - max(-e, 0)) for a, (b, e) in enumerate(margins))
    return wide[(slice(None), slice(None), *crop)]


def _gather_spread(wide: Floats, shape: tuple[int, ...], window: Window) -> Floats:
    """The adjoint of `_spread`."""
    sizes = [s * (n - 1) + 1 for s, n in zip(window.strides, shape[2:], strict=True)]
    margins = _margins(window)
    wide = np.pad(wide, [(0, 0), (0, 0), *((max(-b, 0), max(-e, 0)) for b, e in margins)])
    inner = tuple(slice(max(b, 0), max(b, 0) + size) for (b, _), size in zip(margins, sizes, strict=True))
    return wide[(slice(None), slice(None), *inner)][
        (slice(None), slice(None), *(slice(None, None, s) for s in window.strides))
    ]


def _margins(window: Window) -> list[tuple[int, int]]:
    """Zeros to put around the spread input of a transposed convolution (negative: elements to take off)."""
    spans = [d * (k - 1) for d, k in zip(window.dilations, window.kernel, strict=True)]
    return [
        (span - begin, span - end + extra)
        for (begin, end), extra, span in zip(window.pads, window.output_padding, spans, strict=True)
    ]


def count_positions(shape: tuple[int, ...], axis: int, window: Window) -> int:
    """Output positions of one input tensor of this shape, the batch included."""
    if not window.kernel:
        return int(np.prod(shape, dtype=np.int64)) // max(shape[axis], 1)
    return shape[0] * int(np.prod(places(shape[2:], window), dtype=np.int64))


def rows_at(x: Floats, axis: int, window: Window, picks: NDArray[np.int64]) -> Floats:
    """Input rows at some output positions.

    Args:
        x: the layer's input.
        axis: its channel axis (1 for a convolution).
        window: the layer's window.
        picks: indices into the flattened positions (batch first).

    Returns:
        (len(picks), channels · taps), float32.
    """
    if not window.kernel:
        return values_at(x, axis, picks)
    if window.transposed:
        x, window = _spread(x, window), _plain(window)
    sizes = tuple(size + sum(pads) for size, pads in zip(x.shape[2:], window.pads, strict=True))
    image, *place = np.unravel_index(picks, (len(x), *_positions(sizes, window)))
    first = np.zeros(len(picks), np.int64)  # where the window begins, in a padded image
    for size, stride, index in zip(sizes, window.strides, place, strict=True):
        first = first * size + index * stride
    offsets = np.zeros(1, np.int64)
    for size, dilation, kernel in zip(sizes, window.dilations, window.kernel, strict=True):
        offsets = (offsets[:, None] * size + dilation * np.arange(kernel)).ravel()
    channels, whole = x.shape[1], int(np.prod(sizes, dtype=np.int64))
    if _few(picks, x):
        ends = np.searchsorted(image, np.arange(len(x) + 1))
        rows = np.empty((len(picks), channels * len(offsets)), np.float32)
        for number, (start, end) in enumerate(pairwise(ends.tolist())):
            padded = _padded(x[number : number + 1], window).reshape(channels, whole)
            seen = padded.take((first[start:end] + offsets[:, None]).ravel(), 1)
            rows[start:end] = seen.reshape(channels * len(offsets), end - start).T
        return rows
    wide = np.zeros((len(x), *sizes, channels), np.float32)  # channels last
    inner = (slice(begin, begin + size) for size, (begin, _) in zip(x.shape[2:], window.pads, strict=True))
    wide[(slice(None), *inner)] = np.moveaxis(x, 1, -1)
    last, first = wide.reshape(-1, channels), first + image * whole
    result = np.empty((len(picks), channels, len(offsets)), np.float32)
    for number, offset in enumerate(offsets.tolist()):
        result[:, :, number] = last.take(first + offset, 0)
    return result.reshape(len(picks), -1)


def _few(picks: NDArray[np.int64], x: Floats) -> bool:
    """Whether it is quicker to pick from each image's channels one by one than to put the channels of all positions last.

    That needs positions in ascending order.
    """
    each = x[0].size if len(x) else 0
    return each >= _LARGE and len(picks) * x.shape[1] * _SHARE <= x.size and bool((np.diff(picks) >= 0).all())


def columns(x: Floats, axis: int, window: Window) -> Floats:
    """All input rows of a layer, turned on their side: (channels · taps, positions), float32, positions batch first."""
    if not window.kernel:
        return np.ascontiguousarray(np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1), np.float32)
    if window.transposed:
        x, window = _spread(x, window), _plain(window)
    padded = _padded(x, window).swapaxes(0, 1)
    sizes = _positions(padded.shape[2:], window)
    result = np.empty((x.shape[1], *window.kernel, x.shape[0], *sizes), np.float32)
    for tap in np.ndindex(window.kernel):
        result[(slice(None), *tap)] = padded[_seen(tap, sizes, window)]
    return result.reshape(x.shape[1] * int(np.prod(window.kernel)), -1)


def scatter(values: Floats, shape: tuple[int, ...], axis: int, window: Window) -> Floats:
    """The adjoint of `columns`: what each element of an input of this shape gets from all the rows that saw it."""
    if not window.kernel:
        moved = (shape[axis], *shape[:axis], *shape[axis + 1 :])
        return np.moveaxis(values.reshape(moved), 0, axis)
    if window.transposed:
        probe = np.broadcast_to(np.zeros((), np.float32), shape)
        wide = scatter(values, _spread(probe, window).shape, axis, _plain(window))
        return _gather_spread(wide, shape, window)
    padded = [size + sum(pads) for size, pads in zip(shape[2:], window.pads, strict=True)]
    sizes = _positions(padded, window)
    parts = values.reshape(shape[1], *window.kernel, shape[0], *sizes)
    total = np.zeros((shape[1], shape[0], *padded), np.float32)
    for tap in np.ndindex(window.kernel):
        total[_seen(tap, sizes, window)] += parts[(slice(None), *tap)]
    crop = tuple(slice(begin, begin + size) for size, (begin, _) in zip(shape[2:], window.pads, strict=True))
    return total[(slice(None), slice(None), *crop)].swapaxes(0, 1)


def _padded(x: Floats, window: Window) -> Floats:
    """A layer's input with the zeros around it."""
    if not any(map(any, window.pads)):
        return x
    sizes = (size + sum(pads) for size, pads in zip(x.shape[2:], window.pads, strict=True))
    wide = np.zeros((*x.shape[:2], *sizes), x.dtype)
    inner = (slice(begin, begin + size) for size, (begin, _) in zip(x.shape[2:], window.pads, strict=True))
    wide[(slice(None), slice(None), *inner)] = x
    return wide


def places(sizes: Sequence[int], window: Window) -> tuple[int, ...]:
    """Output positions on each spatial axis, for an input of these sizes."""
    if window.transposed:
        margins = zip(sizes, window.strides, _margins(window), strict=True)
        return _positions([s * (n - 1) + 1 + sum(margin) for n, s, margin in margins], _plain(window))
    return _positions([size + sum(pads) for size, pads in zip(sizes, window.pads, strict=True)], window)


def _plain(window: Window) -> Window:
    """The window that a transposed convolution puts over its spread input."""
    rank = len(window.kernel)
    return Window(window.kernel, (1,) * rank, window.dilations, ((0, 0),) * rank)


def _positions(padded: Sequence[int], window: Window) -> tuple[int, ...]:
    """Places of the window on each axis of a padded input."""
    return tuple(
        (size - d * (k - 1) - 1) // s + 1
        for size, k, s, d in zip(padded, window.kernel, window.strides, window.dilations, strict=True)
    )


def _seen(tap: tuple[int, ...], sizes: tuple[int, ...], window: Window) -> tuple[slice, ...]:
    """What one element of the kernel sees of a padded input, over all places of the window."""
    spans = (
        slice(t * d, t * d + s * (n - 1) + 1, s)
        for t, n, s, d in zip(tap, sizes, window.strides, window.dilations, strict=True)
    )
    return (slice(None), slice(None), *spans)


def values_at(x: Floats, axis: int, picks: NDArray[np.int64]) -> Floats:
    """Elements of an output-like tensor at some positions, as (len(picks), channels)."""
    if axis % x.ndim == 1 and x.ndim > 2 and _few(picks, x):
        flat = x.reshape(len(x), x.shape[1], -1)
        each = flat.shape[2]
        ends = np.searchsorted(picks, each * np.arange(len(x) + 1))
        values = np.empty((len(picks), x.shape[1]), np.float32)
        for number, (start, end) in enumerate(pairwise(ends.tolist())):
            values[start:end] = flat[number].take(picks[start:end] - number * each, 1).T
        return values
    last = np.moveaxis(x, axis, -1)
    if last.flags.c_contiguous:
        return last.reshape(-1, x.shape[axis]).take(picks, 0).astype(np.float32, copy=False)
    place = np.unravel_index(picks, last.shape[:-1])
    if 4 * len(picks) * x.shape[axis] <= x.size:
        return last[place].astype(np.float32, copy=False)
    return last.reshape(-1, x.shape[axis]).take(picks, 0).astype(np.float32, copy=False)


def weight_matrix(weight: Floats, in_axis: int, groups: int, window: Window) -> Floats:
    """The weights of each convolution group as a matrix that acts on that group's rows.

    Args:
        weight: the operand as the operator takes it.
        in_axis: its axis of input channels; the other of the first two is the outputs'.
        groups: convolution groups.
        window: the layer's window.

    Returns:
        (groups, outputs of a group, inputs of a group · taps), float32.
    """
    matrix = weight.astype(np.float32, copy=False)
    if in_axis == 0 and window.transposed:
        matrix = matrix.reshape(groups, weight.shape[0] // groups, *weight.shape[1:]).swapaxes(1, 2)
        matrix = np.flip(matrix, tuple(range(-len(window.kernel), 0)))
        return np.ascontiguousarray(matrix).reshape(groups, weight.shape[1], -1)
    if in_axis == 0:
        matrix = matrix.swapaxes(0, 1)
    return np.ascontiguousarray(matrix).reshape(groups, matrix.shape[0] // groups, -1)


def weight_operand(matrix: Floats, like: Floats, in_axis: int, groups: int, window: Window) -> Floats:
    """Inverse of `weight_matrix`: the operand with the shape and dtype of `like`."""
    if in_axis == 0 and window.transposed:
        per_group = matrix.reshape(groups, like.shape[1], like.shape[0] // groups, *like.shape[2:])
        per_group = np.flip(per_group, tuple(range(-len(window.kernel), 0))).swapaxes(1, 2)
        return np.ascontiguousarray(per_group.reshape(like.shape), like.dtype)
    if in_axis == 0:
        return np.ascontiguousarray(matrix.reshape(like.shape[1], like.shape[0]).swapaxes(0, 1), like.dtype)
    return np.ascontiguousarray(matrix.reshape(like.shape), like.dtype)
