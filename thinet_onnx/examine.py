"""The shapes of all tensors as they really are, and a graph in which every channel can go that can."""

import contextlib
import dataclasses
from collections.abc import Sequence

from thinet_onnx import runtime, shuffle, sound
from thinet_onnx.errors import ModelError
from thinet_onnx.graph import Graph, Shape
from thinet_onnx.runtime import Feeds
from thinet_onnx.setting import Setting


def examine(setting: Setting, feeds: Sequence[Feeds]) -> tuple[Setting, dict[str, Shape]]:
    """Run the model once and unroll its channel shuffles.

    Args:
        setting: the model as it was read; left alone.
        feeds: one item, and two where the source can stack them: a shuffle has to be one at both batch sizes.

    Returns:
        the setting of the unrolled model, and the shape of each of its tensors for `feeds[0]`.

    Raises:
        ModelError: ONNX Runtime can't run it, or a tensor has more axes than NumPy can have.
    """
    try:
        shapes = [runtime.observed_shapes(setting.graph, feeds[0])]
    except ModelError as error:
        raise ModelError(f"{setting.name}: {error}") from error
    wide = next((name for name, shape in shapes[0].items() if len(shape) > sound.MOST_AXES), None)
    if wide is not None:
        axes = len(shapes[0][wide])
        raise ModelError(f"{setting.name}: its tensor {wide!r} has {axes} axes, where {sound.MOST_AXES} are the most.")
    model = shuffle.unroll(setting.model, shapes)
    if model is setting.model:
        return setting, shapes[0]
    for more in feeds[1:]:
        with contextlib.suppress(ModelError):  # a file for one item: nothing is to be compared
            shapes.append(runtime.observed_shapes(setting.graph, more))
    model = shuffle.unroll(setting.model, shapes)
    return dataclasses.replace(setting, model=model, graph=Graph(model)), shapes[0]
