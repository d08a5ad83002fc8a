"""Operators that sum up, normalise or sort along axes."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from thinet_onnx.torch_twin.registry import Call, operator

Axes = tuple[int, ...]


def _product(x: Tensor, axes: Axes, keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


_REDUCTIONS: dict[str, Callable[[Tensor, Axes, bool], Tensor]] = {
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep),
    "ReduceL2": lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep),
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keepdim=keep).log(),
    "ReduceLogSumExp": lambda x, axes, keep: x.logsumexp(axes, keepdim=keep),
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keepdim=keep),
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keepdim=keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keepdim=keep),
    "ReduceProd": _product,
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keepdim=keep, dtype=x.dtype),
    "ReduceSumSquare": lambda x, axes, keep: x.square().sum(axes, keepdim=keep),
}


@operator(*_REDUCTIONS, sizes=(1,))
def reduce(call: Call, x: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    """Some axes become one value; all of them where none is named."""
    given = call.node.attrs.get("axes", ()) if axes is None else axes
    chosen = tuple(sorted({int(axis) % max(x.ndim, 1) for axis in given}))
    if not chosen and call.integer("noop_with_empty_axes", 0):
        return x
    keep = bool(call.integer("keepdims", 1))
    return _REDUCTIONS[call.node.op](x, chosen or tuple(range(x.ndim)), keep)


@operator("ArgMax", "ArgMin", smooth=False)
def arg(call: Call, x: Tensor) -> Tensor:
    """The place of the largest or smallest element, the first of several unless the last is asked for."""
    axis, keep = call.integer("axis", 0), bool(call.integer("keepdims", 1))
    find = torch.argmax if call.node.op == "ArgMax" else torch.argmin
    if call.integer("select_last_index", 0):
        return x.shape[axis] - 1 - find(x.flip(axis), axis, keepdim=keep)
    return find(x, axis, keepdim=keep)


def _mixed(call: Call, x: Tensor, function: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Apply along one axis; before operator set 13 along all axes from there on, as one."""
    if call.opset >= 13:
        return function(x, call.integer("axis", -1))
    axis = call.integer("axis", 1) % max(x.ndim, 1)
    return function(x.flatten(axis), axis).reshape(x.shape)


@operator("Softmax")
def softmax(call: Call, x: Tensor) -> Tensor:
    """Probabilities."""
    return _mixed(call, x, torch.softmax)


@operator("LogSoftmax")
def log_softmax(call: Call, x: Tensor) -> Tensor:
    """Logarithms of probabilities."""
    return _mixed(call, x, torch.log_softmax)


@operator("Hardmax", smooth=False)
def hardmax(call: Call, x: Tensor) -> Tensor:
    """One at the first largest element, zero elsewhere."""

    def hot(values: Tensor, axis: int) -> Tensor:
        return torch.zeros_like(values).scatter(axis, values.argmax(axis, keepdim=True), 1.0)

    return _mixed(call, x, hot)


@operator("CumSum", sizes=(1,))
def cumulative_sum(call: Call, x: Tensor, axis: int | list[int]) -> Tensor:
    """Running sums, from either end, with or without the element itself."""
    place = int(axis[0] if isinstance(axis, list) else axis)
    backwards = bool(call.integer("reverse", 0))
    x = x.flip(place) if backwards else x
    sums = x.cumsum(place) - x if call.integer("exclusive", 0) else x.cumsum(place)
    return sums.flip(place) if backwards else sums


@operator("TopK", sizes=(1,))
def top_k(call: Call, x: Tensor, count: int | list[int] | None = None) -> tuple[Tensor, Tensor]:
    """The largest or smallest elements of an axis, sorted, and their places."""
    k = call.integer("k", 1) if count is None else int(count[0] if isinstance(count, list) else count)
    found = x.topk(k, call.integer("axis", -1), bool(call.integer("largest", 1)), True)
    return found.values, found.indices


@operator("LpNormalization")
def lp_normalization(call: Call, x: Tensor) -> Tensor:
    """Every vector of an axis divided by its norm; a vector of zeros stays."""
    norm = torch.linalg.vector_norm(x, call.integer("p", 2), call.integer("axis", -1), keepdim=True)
    return x / torch.where(norm == 0, torch.ones_like(norm), norm)
