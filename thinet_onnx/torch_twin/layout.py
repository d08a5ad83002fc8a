"""Operators that move elements about, and the arithmetic of shapes."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from onnx import numpy_helper
from torch import Tensor
from torch.nn import functional

from thinet_onnx.torch_twin.dtypes import to_tensor
from thinet_onnx.torch_twin.registry import Call, operator


@operator("Shape", smooth=False)
def shape(call: Call, x: Tensor) -> Tensor:
    """The sizes, on the host."""
    end = call.node.attrs.get("end")
    return torch.tensor(list(x.shape)[call.integer("start", 0) : end], dtype=torch.int64)


@operator("Size", smooth=False)
def size(_: Call, x: Tensor) -> Tensor:
    """The number of elements, on the host."""
    return torch.tensor(x.numel())


@operator("ConstantOfShape", sizes=(0,), smooth=False)
def constant_of_shape(call: Call, sizes: Sequence[int]) -> Tensor:
    """One value everywhere, zero by default; on the host."""
    value = call.node.attrs.get("value")
    one = torch.zeros(1) if value is None else to_tensor(numpy_helper.to_array(value))
    return one.reshape(()).expand(tuple(sizes)).clone()


@operator("Range", sizes=(0, 1, 2), smooth=False)
def range_(_: Call, start: float, limit: float, delta: float) -> Tensor:
    """Numbers at equal distances, on the host."""
    whole = all(isinstance(number, int) for number in (start, limit, delta))
    return torch.arange(start, limit, delta, dtype=torch.int64 if whole else torch.float32)


@operator("Reshape", sizes=(1,))
def reshape(call: Call, x: Tensor, target: Sequence[int] | None = None) -> Tensor:
    """Same elements, other axes: −1 is what is left over, 0 the size as it was.

    Where the file was exported for a batch of one size, and runs with another, a target that begins with the exported
    batch begins with the actual one; a first axis that holds more than the batch grows with it.
    """
    wanted = list(call.integers("shape") if target is None else target)
    if not call.integer("allowzero", 0):
        wanted = [x.shape[axis] if entry == 0 else entry for axis, entry in enumerate(wanted)]
    return x.reshape(_opened(call, x, wanted))


def _opened(call: Call, x: Tensor, wanted: list[int]) -> list[int]:
    """Sizes with the batch of this pass in place of the one in the file."""
    declared, batch = call.state.declared, call.state.batch
    if declared is None or batch is None or declared == batch or not wanted or not x.ndim:
        return wanted
    if wanted[0] == declared and x.shape[0] == batch:
        return [batch, *wanted[1:]]
    if min(wanted) > 0 and math.prod(wanted) * batch == x.numel() * declared and wanted[0] * batch % declared == 0:
        return [wanted[0] * batch // declared, *wanted[1:]]
    return wanted


@operator("Flatten")
def flatten(call: Call, x: Tensor) -> Tensor:
    """A matrix: the axes before `axis`, and those from there on."""
    axis = call.integer("axis", 1)
    axis += x.ndim if axis < 0 else 0
    return x.reshape(math.prod(x.shape[:axis]), -1) if x.numel() else x.reshape(math.prod(x.shape[:axis]), 0)


@operator("Squeeze", sizes=(1,))
def squeeze(call: Call, x: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    """Axes of size 1 go: those named, or all."""
    chosen = call.node.attrs.get("axes") if axes is None else axes
    if chosen is None:
        return x.squeeze()
    return x.squeeze(tuple(int(axis) for axis in chosen))


@operator("Unsqueeze", sizes=(1,))
def unsqueeze(call: Call, x: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    """Axes of size 1 come in, at the places that they have in the result."""
    chosen = call.integers("axes") if axes is None else axes
    rank = x.ndim + len(chosen)
    for axis in sorted(int(axis) % rank for axis in chosen):
        x = x.unsqueeze(axis)
    return x


@operator("Transpose")
def transpose(call: Call, x: Tensor) -> Tensor:
    """The axes change places."""
    return x.permute(call.integers("perm", range(x.ndim)[::-1]))


@operator("Concat")
def concat(call: Call, *parts: Tensor) -> Tensor:
    """Tensors one after another."""
    return torch.cat(parts, call.integer("axis", 1))


@operator("Split", sizes=(1,))
def split(call: Call, x: Tensor, sizes: Sequence[int] | None = None) -> Sequence[Tensor]:
    """Pieces of one axis; the last is smaller where the axis can't be divided evenly."""
    axis = call.integer("axis", 0)
    given = call.integers("split") if sizes is None else sizes
    count, length = len(call.node.outputs), x.shape[axis]
    piece = -(-length // count)
    even = [min(piece, max(length - place * piece, 0)) for place in range(count)]
    return torch.split(x, [int(entry) for entry in given] or even, axis)


@operator("Slice", sizes=(1, 2, 3, 4))
def slice_(
    call: Call, x: Tensor, starts: Sequence[int] | None = None, ends: Sequence[int] | None = None,
    axes: Sequence[int] | None = None, steps: Sequence[int] | None = None,
) -> Tensor:  # fmt: skip
    """Ranges of some axes, backwards too."""
    begins = call.integers("starts") if starts is None else starts
    stops = call.integers("ends") if ends is None else ends
    if axes is None:
        axes = call.integers("axes", range(len(begins)))
    for place, axis in enumerate(axes):
        step = 1 if steps is None else steps[place]
        picked = range(x.shape[axis])[slice(_bound(begins[place]), _bound(stops[place]), step)]
        if step < 0:
            x = x.index_select(axis, torch.tensor(picked, dtype=torch.int64, device=x.device))
        else:
            sliced = [slice(None)] * x.ndim
            sliced[axis] = slice(picked.start, max(picked.stop, picked.start), step)
            x = x[tuple(sliced)]
    return x


def _bound(place: int) -> int | None:
    """An end of a slice; the least integers mean beyond the first element, which Python writes as None."""
    return None if place <= -(2**31) + 1 else place


@operator("Gather")
def gather(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """Chosen indices of an axis; they count from the end where they are negative."""
    axis = call.integer("axis", 0) % max(x.ndim, 1)
    places = indices.reshape(-1).to(torch.int64) % max(x.shape[axis], 1)
    return x.index_select(axis, places).reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


@operator("GatherElements")
def gather_elements(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """One element of an axis for each index."""
    axis = call.integer("axis", 0)
    return x.gather(axis, indices.to(torch.int64) % max(x.shape[axis], 1))


@operator("GatherND")
def gather_nd(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    """Slices at tuples of indices."""
    if call.integer("batch_dims", 0):
        raise call.refuse("batch_dims")
    return x[tuple(indices.to(torch.int64).unbind(-1))]


@operator("ScatterElements")
def scatter_elements(call: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """Other elements at some places of an axis."""
    axis = call.integer("axis", 0)
    places = indices.to(torch.int64) % max(x.shape[axis], 1)
    match call.text("reduction", "none"):
        case "none":
            return x.scatter(axis, places, updates)
        case "add":
            return x.scatter_add(axis, places, updates)
        case other:
            raise call.refuse(f"the reduction {other!r}")


@operator("ScatterND")
def scatter_nd(call: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """Other slices at tuples of indices."""
    reduction = call.text("reduction", "none")
    if reduction not in ("none", "add"):
        raise call.refuse(f"the reduction {reduction!r}")
    return x.index_put(tuple(indices.to(torch.int64).unbind(-1)), updates, accumulate=reduction == "add")


@operator("Expand", sizes=(1,))
def expand(call: Call, x: Tensor, target: Sequence[int]) -> Tensor:
    """Axes of size 1 are repeated, in both directions of broadcasting."""
    sizes = np.broadcast_shapes(tuple(x.shape), tuple(int(entry) for entry in _opened(call, x, list(target))))
    return x.expand(sizes)


@operator("Tile", sizes=(1,))
def tile(_: Call, x: Tensor, repeats: Sequence[int]) -> Tensor:
    """Every axis so many times."""
    return x.repeat([int(count) for count in repeats])


@operator("DepthToSpace")
def depth_to_space(call: Call, x: Tensor) -> Tensor:
    """Channels to pixels; columns or rows of the block vary first."""
    block = call.integer("blocksize", 1)
    if call.text("mode", "DCR") == "CRD":
        return functional.pixel_shuffle(x, block)
    n, c, h, w = x.shape
    spread = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return spread.reshape(n, c // block**2, h * block, w * block)


@operator("SpaceToDepth")
def space_to_depth(call: Call, x: Tensor) -> Tensor:
    """Pixels to channels."""
    block = call.integer("blocksize", 1)
    n, c, h, w = x.shape
    spread = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return spread.reshape(n, c * block**2, h // block, w // block)


@operator("Pad", sizes=(1, 2, 3))
def pad(
    call: Call, x: Tensor, amounts: Sequence[int] | None = None, value: float | list[float] | None = None,
    axes: Sequence[int] | None = None,
) -> Tensor:  # fmt: skip
    """What is added at both ends of the axes: a value, the edge, a mirror image or the other end; negative amounts crop."""
    flat = call.integers("pads", call.integers("paddings")) if amounts is None else [int(entry) for entry in amounts]
    chosen = range(x.ndim) if axes is None else [int(axis) % x.ndim for axis in axes]
    ends = dict(zip(chosen, zip(flat[: len(flat) // 2], flat[len(flat) // 2 :], strict=True), strict=True))
    if call.text("mode", "constant") != "constant":
        for axis, (begin, end) in ends.items():
            if begin or end:
                x = _extended(call, x, axis, begin, end)
        return x
    filler = call.number("value", 0.0) if value is None else value
    filler = filler[0] if isinstance(filler, list) else filler
    return functional.pad(x, [n for axis in reversed(range(x.ndim)) for n in ends.get(axis, (0, 0))], value=filler)


def _extended(call: Call, x: Tensor, axis: int, begin: int, end: int) -> Tensor:
    """An axis continued at both ends by its own elements."""
    length = x.shape[axis]
    places = torch.arange(-begin, length + end, device=x.device)
    match call.text("mode", ""):
        case "edge":
            places = places.clamp(0, length - 1)
        case "wrap":
            places = places % length
        case "reflect":
            period = max(2 * (length - 1), 1)
            places = places % period
            places = torch.where(places < length, places, period - places)
        case mode:
            raise call.refuse(f"the mode {mode!r}")
    return x.index_select(axis, places)


@operator("OneHot", sizes=(1,), smooth=False)
def one_hot(call: Call, indices: Tensor, depth: int | list[int], values: Tensor) -> Tensor:
    """Two values: the second at the index, the first elsewhere."""
    count = int(depth[0] if isinstance(depth, list) else depth)
    axis = call.integer("axis", -1)
    places = torch.arange(count, device=indices.device)
    hot = (indices.to(torch.int64) % count).unsqueeze(-1) == places
    return torch.where(hot, values[1], values[0]).movedim(-1, axis if axis >= 0 else indices.ndim + 1 + axis)
