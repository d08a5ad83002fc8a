"""Sliding windows: what convolutions and pools have in common."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from thinet_onnx.torch_twin.registry import Call

Ends = list[tuple[int, int]]  # what is added at both ends of each spatial axis


@dataclass(frozen=True)
class Window:
    """Strides, dilations and pads of each spatial axis, `auto_pad` and defaults resolved, and the output's sizes."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    pads: Ends
    sizes: list[int]

    @property
    def spans(self) -> list[int]:
        """How far the window reaches along each axis."""
        return [dilation * (kernel - 1) + 1 for dilation, kernel in zip(self.dilations, self.kernel, strict=True)]


def window_of(call: Call, shape: Sequence[int], kernel: Sequence[int]) -> Window:
    """The window of a convolution or a pool over the spatial sizes `shape`."""
    rank = len(kernel)
    strides = call.integers("strides") or [1] * rank
    dilations = call.integers("dilations") or [1] * rank
    spans = [dilation * (size - 1) + 1 for dilation, size in zip(dilations, kernel, strict=True)]
    auto = call.text("auto_pad", "NOTSET")
    pads = split_ends(call.integers("pads") or [0] * 2 * rank)
    if auto.startswith("SAME"):
        totals = [max((-(-n // s) - 1) * s + span - n, 0) for n, s, span in zip(shape, strides, spans, strict=True)]
        pads = [(t // 2, t - t // 2) if auto == "SAME_UPPER" else (t - t // 2, t // 2) for t in totals]
    elif auto == "VALID":
        pads = [(0, 0)] * rank
    up = call.integer("ceil_mode", 0) and auto == "NOTSET"
    sizes = [_count(*axis, bool(up)) for axis in zip(shape, pads, spans, strides, strict=True)]
    return Window(list(kernel), strides, dilations, pads, sizes)


def _count(size: int, pads: tuple[int, int], span: int, stride: int, up: bool) -> int:
    """How many windows fit; those that would begin behind the last element are left out."""
    room = size + sum(pads) - span
    if not up:
        return room // stride + 1
    count = -(-room // stride) + 1
    return count - 1 if (count - 1) * stride >= size + pads[0] else count


def split_ends(flat: Sequence[int]) -> Ends:
    """ONNX's pads (all begins, all ends) as a pair for each axis."""
    half = len(flat) // 2
    return list(zip(flat[:half], flat[half:], strict=True))


def symmetric(pads: Ends) -> list[int] | None:
    """One amount for each axis if both ends are alike, else None."""
    return [begin for begin, _ in pads] if all(begin == end >= 0 for begin, end in pads) else None


def padded(x: Tensor, pads: Ends, value: float) -> Tensor:
    """The spatial axes with a value added at their ends, or cropped where an amount is negative."""
    if not any(end for pair in pads for end in pair):
        return x
    return functional.pad(x, [end for pair in reversed(pads) for end in pair], value=value)
