"""The last word on a refit: on samples that nothing was fitted on, new weights must not be worse than the old ones, cut.

With few samples, or odd ones, layers that each fit well can add up to a network that doesn't. Then the weights go only a
part of the way from the old ones to the new ones, or stay.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from thinet_onnx import verify
from thinet_onnx.choose import Rebuilt
from thinet_onnx.consumers import Consumer
from thinet_onnx.graph import Array
from thinet_onnx.ranks import ALONE, Ranks
from thinet_onnx.surgery import Refit

_SHARES = (0.5, 0.25, 0.1)  # of the way to the new weights, tried where all of it is too far


@dataclass(frozen=True)
class Tempered:
    """What is left of a refit: `share` of the way to the new weights was gone (1: all of it).

    `refitted` and `bare` are the relative errors of the outputs with all of the refit, and with none; `answers` is what the
    cut network answers with what is left.
    """

    rebuilt: list[Rebuilt]
    share: float
    refitted: float
    bare: float
    answers: verify.Outputs


@dataclass(frozen=True)
class _Tried:
    """A share of the way: the new weights, what they answer, and the error."""

    share: float
    rebuilt: list[Rebuilt]
    answers: verify.Outputs
    error: float


def temper(
    rebuilt: Sequence[Rebuilt],
    columns: Callable[[Consumer], Array],
    run: Callable[[Sequence[Refit]], verify.Outputs],
    before: verify.Outputs,
    outputs: int,
    ranks: Ranks = ALONE,
) -> Tempered:
    """Go as far to the new weights as the outputs on some batches allow.

    Args:
        rebuilt: new weights.
        columns: which columns (n) of a layer's weights stay.
        run: what the cut network answers, with some weights, to samples that nothing was fitted on; this process's, of several.
        before: what the original answers to them.
        outputs: how many the network has.
        ranks: the processes.
    """

    def tried(share: float) -> _Tried:
        moved = [_moved(entry, columns(entry.consumer), share) for entry in rebuilt]
        after = run([refit for entry in moved for refit in entry.refits()])
        sums = verify.squares(before, after, outputs)
        ranks.add_up(sums)
        rows = sums[sums[:, 2] == 0]
        found = float(np.mean(np.sqrt(rows[:, 0]) / np.maximum(np.sqrt(rows[:, 1]), 1e-30))) if len(rows) else 0.0
        return _Tried(share, moved, after, found if np.isfinite(found) else np.inf)

    whole, none = tried(1.0), tried(0.0)
    best = whole
    if whole.error > none.error:
        best = min([none, *map(tried, _SHARES)], key=lambda one: (one.error, one.share))
    return Tempered(best.rebuilt, best.share, whole.error, none.error, best.answers)


def _moved(entry: Rebuilt, columns: Array, share: float) -> Rebuilt:
    """Weights a part of the way from the old ones, cut, to the new ones."""
    if share == 1.0:
        return entry
    old = (entry.consumer.matrix * columns).astype(np.float64)
    bias = None if entry.bias is None else entry.consumer.bias + share * (entry.bias - entry.consumer.bias)
    return Rebuilt(entry.consumer, old + share * (entry.matrix - old), bias, None)
