"""Widths tried out: cut groups, refit what reads them, run, and see how far the output moves.

Picks and refits come from what was seen of the original, so a trial needs no pass over the layers. That is right for groups
cut alone; for whole plans it isn't, since refitting layer by layer makes up for much of what a trial sees.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from thinet_onnx import runtime, surgery, verify
from thinet_onnx.calibration import Calibration
from thinet_onnx.choose import Chooser, View
from thinet_onnx.consumers import Consumer
from thinet_onnx.observe import is_check
from thinet_onnx.surgery import Refit

Feeds = dict[str, np.ndarray[Any, Any]]

_MOST_IMAGES, _LEAST_IMAGES = 256, 8


class Trial:
    """The original, what was seen of it, and a few batches that nothing is fitted on.

    `orders` and `errors`: for each candidate group the order of removal and the error of its consumers at every width.
    Of several processes each tries groups of its own on all of these batches: weights are refitted and sessions opened for
    every trial, which takes longer than the few images.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        chooser: Chooser,
        views: Mapping[Consumer, View],
        candidates: Sequence[int],
        data: Calibration,
    ) -> None:
        self.model, self.chooser, self.views = model, chooser, views
        first = next(iter(data.own[0].values()))
        batch = max(first.shape[0] if first.ndim else 1, 1)
        images = np.clip(2 * data.numbers.count * batch // max(len(candidates), 1), _LEAST_IMAGES, _MOST_IMAGES)
        apart = [n for n in range(data.numbers.count) if is_check(n)] or list(range(data.numbers.count))
        self.feeds = [data.batch(number) for number in apart[: max(1, -(-int(images) // batch))]]
        self.reference = runtime.outputs(model, self.feeds)
        curves = data.ranks.map(lambda group: chooser.curve(group, views), candidates)
        self.orders = {group: order for group, (order, _) in zip(candidates, curves, strict=True)}
        self.errors = {group: error for group, (_, error) in zip(candidates, curves, strict=True)}
        self._known: dict[tuple[Consumer, tuple[int, ...]], list[Refit]] = {}

    def moved(self, widths: Sequence[int]) -> float:
        """How far the output moves when group g keeps `widths[g]` units: KL divergence or relative error."""
        sizes = self.chooser.analysis.sizes
        cut = [group for group in self.orders if widths[group] < sizes[group]]
        readers = dict.fromkeys(c for group in cut for c in self.chooser.readers[group] if c in self.views)
        refits = [refit for consumer in readers for refit in self._refits(consumer, cut, widths)]
        moved = verify.distance(self.reference, runtime.outputs(surgery.refit(self.model, refits), self.feeds))
        return moved if np.isfinite(moved) else 1e6

    def _refits(self, consumer: Consumer, cut: Sequence[int], widths: Sequence[int]) -> list[Refit]:
        sizes = self.chooser.analysis.sizes
        mine = [group for group in cut if consumer in self.chooser.readers[group]]
        key = consumer, tuple(value for group in mine for value in (group, widths[group]))
        if key not in self._known:
            kept = {group: np.sort(self.orders[group][sizes[group] - widths[group] :]) for group in mine}
            self._known[key] = self.chooser.rebuild(self.views[consumer], kept, only_fit=True).refits()
        return self._known[key]
