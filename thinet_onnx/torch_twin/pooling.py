"""Pools over windows or over all of space."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from thinet_onnx.torch_twin.registry import Call, operator
from thinet_onnx.torch_twin.windows import Ends, Window, padded, symmetric, window_of

_MAXIMA: dict[int, Callable[..., Tensor]] = {
    1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d,
}  # fmt: skip
_MEANS: dict[int, Callable[..., Tensor]] = {
    1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d,
}  # fmt: skip


def _window(call: Call, x: Tensor) -> Window:
    return window_of(call, x.shape[2:], call.integers("kernel_shape"))


def _reach(window: Window, x: Tensor) -> Ends:
    """Pads that make exactly the windows of the result, `ceil_mode` included."""
    ends = []
    for size, (begin, end), stride, span, count in zip(
        x.shape[2:], window.pads, window.strides, window.spans, window.sizes, strict=True
    ):
        ends.append((begin, max((count - 1) * stride + span - size - begin, end)))
    return ends


@operator("MaxPool")
def max_pool(call: Call, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    """The largest value in each window, and its place in the flat tensor; what is padded is never the largest."""
    window, indexed = _window(call, x), any(call.node.outputs[1:])
    rank = len(window.kernel)
    if rank not in _MAXIMA:
        raise call.refuse(f"{rank} spatial axes")
    reach, pads = _reach(window, x), symmetric(window.pads)
    bare = x
    if pads is None or reach != window.pads or any(2 * p > k for p, k in zip(pads, window.kernel, strict=True)):
        floor = -torch.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
        x, pads = padded(x, reach, floor), [0] * rank
    if not indexed:
        return _MAXIMA[rank](x, window.kernel, window.strides, pads, window.dilations)
    if x is not bare or call.integer("storage_order", 0):
        raise call.refuse("a second output (Indices) with uneven pads, ceil_mode or storage_order")
    found, places = _MAXIMA[rank](x, window.kernel, window.strides, pads, window.dilations, return_indices=True)
    channels = torch.arange(x.shape[0] * x.shape[1], device=x.device).reshape(*x.shape[:2], *[1] * rank)
    return found, places + channels * math.prod(x.shape[2:])


@operator("AveragePool")
def average_pool(call: Call, x: Tensor) -> Tensor:
    """The mean of each window, over its elements inside the input or, with `count_include_pad`, inside the pads too."""
    window, whole = _window(call, x), bool(call.integer("count_include_pad", 0))
    rank, reach = len(window.kernel), _reach(window, x)
    if rank in _MEANS and set(window.dilations) == {1} and not any(end for pair in reach for end in pair):
        return _MEANS[rank](x, window.kernel, window.strides)
    counted = torch.ones_like(x[:1, :1])
    if whole:
        counted = padded(counted, window.pads, 1.0)
        rest = [(0, to - end) for (_, to), (_, end) in zip(reach, window.pads, strict=True)]
        counted = padded(counted, rest, 0.0)
    else:
        counted = padded(counted, reach, 0.0)
    return _sums(padded(x, reach, 0.0), window) / _sums(counted, window)


def _sums(x: Tensor, window: Window) -> Tensor:
    """The sum of each window."""
    for axis, (span, stride, dilation) in enumerate(
        zip(window.spans, window.strides, window.dilations, strict=True), start=2
    ):
        x = x.unfold(axis, span, stride)[..., ::dilation].sum(-1)
    return x


@operator("LpPool")
def lp_pool(call: Call, x: Tensor) -> Tensor:
    """The p-norm of each window."""
    power, window = call.integer("p", 2), _window(call, x)
    return _sums(padded(x.abs() ** power, _reach(window, x), 0.0), window) ** (1 / power)


@operator("GlobalAveragePool")
def global_average_pool(_: Call, x: Tensor) -> Tensor:
    """The mean over space."""
    return x.mean(tuple(range(2, x.ndim)), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(_: Call, x: Tensor) -> Tensor:
    """The largest value over space."""
    return x.amax(tuple(range(2, x.ndim)), keepdim=True)


@operator("GlobalLpPool")
def global_lp_pool(call: Call, x: Tensor) -> Tensor:
    """The p-norm over space."""
    power = call.integer("p", 2)
    return (x.abs() ** power).sum(tuple(range(2, x.ndim)), keepdim=True) ** (1 / power)
