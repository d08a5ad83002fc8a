"""The last word on a refit: on samples that nothing was fitted on, new weights must not be worse than the old ones, cut.

With few samples, or odd ones, layers that each fit well can add up to a network that doesn't. Then the weights go only a
part of the way from the old ones to the new ones, or stay.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from thinet_onnx import runtime, surgery, verify
from thinet_onnx.choose import Rebuilt
from thinet_onnx.consumers import Consumer
from thinet_onnx.graph import Array
from thinet_onnx.ranks import ALONE, Ranks

_SHARES = (0.5, 0.25, 0.1)  # of the way to the new weights, tried where all of it is too far


@dataclass(frozen=True)
class Tempered:
    """What is left of a refit: `share` of the way to the new weights was gone (1: all of it).

    `refitted` and `bare` are the relative errors of the outputs with all of the refit, and with none.
    """

    rebuilt: list[Rebuilt]
    share: float
    refitted: float
    bare: float


def temper(
    model: onnx.ModelProto,
    rebuilt: Sequence[Rebuilt],
    columns: Callable[[Consumer], Array],
    batches: Sequence[dict[str, Array]],
    before: list[list[Array]],
    ranks: Ranks = ALONE,
) -> Tempered:
    """Go as far to the new weights as the outputs on some batches allow.

    Args:
        model: the original, uncut.
        rebuilt: new weights.
        columns: which columns (n) of a layer's weights stay.
        batches: samples that nothing was fitted on; this process's, of several.
        before: what the original answers to them.
        ranks: the processes.
    """

    def error(share: float) -> float:
        moved = [refit for entry in rebuilt for refit in _moved(entry, columns(entry.consumer), share).refits()]
        after = runtime.outputs(surgery.refit(model, moved), batches)
        sums = verify.squares(before, after, len(model.graph.output))
        ranks.add_up(sums)
        rows = sums[sums[:, 2] == 0]
        found = float(np.mean(np.sqrt(rows[:, 0]) / np.maximum(np.sqrt(rows[:, 1]), 1e-30))) if len(rows) else 0.0
        return found if np.isfinite(found) else np.inf

    refitted, bare = error(1.0), error(0.0)
    if refitted <= bare:
        return Tempered(list(rebuilt), 1.0, refitted, bare)
    errors = {0.0: bare} | {share: error(share) for share in _SHARES}
    best = min(errors, key=lambda share: (errors[share], share))
    return Tempered([_moved(entry, columns(entry.consumer), best) for entry in rebuilt], best, refitted, bare)


def _moved(entry: Rebuilt, columns: Array, share: float) -> Rebuilt:
    """Weights a part of the way from the old ones, cut, to the new ones."""
    if share == 1.0:
        return entry
    old = (entry.consumer.matrix * columns).astype(np.float64)
    bias = None if entry.bias is None else entry.consumer.bias + share * (entry.bias - entry.consumer.bias)
    return Rebuilt(entry.consumer, old + share * (entry.matrix - old), bias, None)
