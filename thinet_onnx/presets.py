"""Published recipes for how many channels each layer keeps, told from the graph alone.

`thinet-conv` is ThiNet-Conv's (Luo, Wu and Lin 2017, section 4.1): VGG-16's first ten layers, which hold more than 90% of
its MACs, keep half of their filters, and the last stage (conv5) is left whole, since it costs little and holds much.
"""

from collections.abc import Sequence
from math import prod

from thinet_onnx import budget
from thinet_onnx.errors import OptionError
from thinet_onnx.groups import Analysis
from thinet_onnx.rules import Linear

_HALF = 0.5


def thinet_conv(analysis: Analysis, choices: Sequence[Sequence[int]], candidates: Sequence[int]) -> list[int]:
    """Widths: half in every group but those that only the last stage makes, and fully connected layers.

    The last stage is where convolutions give the fewest positions.

    Args:
        analysis: of the graph.
        choices: widths that each group may have, ascending.
        candidates: groups that may shrink.

    Raises:
        OptionError: all convolutions run at one size, so there is no last stage to leave whole.
    """
    places = [max(_positions(analysis, group) for group in entry.producers) for entry in analysis.groups]
    spread = sorted({count for count in places if count > 1})
    if len(spread) < 2:
        raise OptionError(
            "--preset thinet-conv leaves the last stage whole, but all of the network's convolutions run at one size; "
            "use --keep 0.5."
        )
    widths = list(analysis.sizes)
    for group in candidates:
        if places[group] > spread[0]:
            widths[group] = budget.uniform([widths[group]], [choices[group]], _HALF)[0]
    return widths


def _positions(analysis: Analysis, layer: Linear) -> int:
    """How many positions a layer's output has for each channel."""
    shape = analysis.shapes[layer.node.key]
    return prod(shape[1:]) // shape[layer.y_axis] if len(shape) > 1 else 1
