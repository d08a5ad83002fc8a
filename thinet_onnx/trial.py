"""Groups tried out alone: cut one, refit what reads it, run, and see how far the output moves.

Picks and refits come from what was seen of the original. That is right for groups cut alone; for whole plans it isn't, since
refitting layer by layer makes up for much of what a trial sees.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from thinet_onnx import runtime, surgery, verify
from thinet_onnx.budget import NOTHING
from thinet_onnx.calibration import Calibration
from thinet_onnx.choose import Chooser, View
from thinet_onnx.consumers import Consumer
from thinet_onnx.labels import Ids
from thinet_onnx.observe import is_check
from thinet_onnx.surgery import Refit

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]
Answers = list[list[Array]]
Run = Callable[[list[Refit], Sequence[int]], Answers]
"""The graph's outputs with some weights replaced, for some of this process's calibration batches."""

_MOST_IMAGES, _LEAST_IMAGES = 64, 8
_PART = 8  # images that run at once
_SHARES = (0.5,)  # of a group that is removed; of its channels that aren't dead, which all go first
_FAR = 1e6  # stands for a distance that isn't a number


@dataclass(frozen=True)
class Tried:
    """One group cut alone: the `order` in which its units go, the squared relative `errors` of its readers when 0, 1, … of
    them are gone, and how far the output `moved` when so many were (KL divergence or relative error)."""

    order: Ids
    errors: NDArray[np.float64]
    moved: dict[int, float]

    @property
    def rates(self) -> dict[int, float]:
        """For each number of units that were taken out: how far the output moves for one unit of error."""
        return {gone: moved / max(float(self.errors[gone]), 1e-12) for gone, moved in self.moved.items()}

    @property
    def sensitivity(self) -> float:
        """How far the output moves for one unit of error; the median of the rates."""
        return float(np.median(list(self.rates.values())))


class Trial:
    """The original, and a few batches that nothing is fitted on.

    Of several processes the first one ranks and refits, each runs the batches that it has, and distances are added up.

    Args:
        model: the original, with an open batch.
        chooser: ranks and refits.
        candidates: how many groups will be tried; the more there are, the fewer batches each is tried on.
        data: calibration batches.
    """

    def __init__(self, model: onnx.ModelProto, chooser: Chooser, candidates: int, data: Calibration) -> None:
        self._model, self._chooser, self._data = model, chooser, data
        first = next(iter(data.own[0].values()))
        batch, count = max(first.shape[0] if first.ndim else 1, 1), data.numbers.count
        images = np.clip(count * batch // max(candidates, 1), _LEAST_IMAGES, _MOST_IMAGES)
        apart = [number for number in range(count) if is_check(number)] or list(range(count))
        wanted = min(max(1, -(-int(images) // min(batch, _PART))), len(apart))
        spread = (apart[len(apart) * place // wanted] - data.numbers.first for place in range(wanted))
        self._batches = [place for place in spread if 0 <= place < len(data.own)]
        some = -(-int(images) // wanted)
        self.items = some if some < batch else None  # of each of these batches; all if None
        self._reference: Answers | None = None

    @property
    def reference(self) -> Answers:
        """What the original answers to this process's batches."""
        if self._reference is None:
            self._reference = self._whole([], self._batches)
        return self._reference

    def one(self, group: int, views: Mapping[Consumer, View], run: Run | None = None) -> Tried:
        """Try a group.

        Args:
            group: its number.
            views: of the layers that read it.
            run: answers for new weights; the whole network is run if None.
        """
        ranks, moved = self._data.ranks, {}
        order, errors, cuts = ranks.once(lambda: self._cuts(group, views))
        for gone, refits in cuts.items():
            answers = (run or self._whole)(refits, self._batches)
            with np.errstate(over="ignore", invalid="ignore"):
                far = verify.distance(self.reference, answers, len(self._model.graph.output), ranks)
            moved[gone] = far if np.isfinite(far) else _FAR
        return Tried(order, errors, moved)

    def _cuts(
        self, group: int, views: Mapping[Consumer, View]
    ) -> tuple[Ids, NDArray[np.float64], dict[int, list[Refit]]]:
        """A group's order of removal, its errors at every width, and for some of them the new weights of its readers."""
        order, errors = self._chooser.curve(group, views)
        entry = self._chooser.analysis.groups[group]
        readers = [consumer for consumer in self._chooser.readers[group] if consumer in views]
        dead = int(np.sum(errors[1:] <= NOTHING * len(readers)))
        tried = {dead + round((entry.size - dead) * share) for share in _SHARES}
        cuts = {}
        for gone in sorted({min(max(count, 1), entry.size - entry.floor) for count in tried}):
            kept = {group: np.sort(order[gone:])}
            cuts[gone] = [r for c in readers for r in self._chooser.rebuild(views[c], kept, only_fit=True).refits()]
        return order, errors, cuts

    def _whole(self, refits: list[Refit], batches: Sequence[int]) -> Answers:
        feeds = [self._data.own[place] for place in batches]
        if self.items is not None:
            feeds = [{name: value[: self.items] for name, value in some.items()} for some in feeds]
        return runtime.outputs(surgery.refit(self._model, refits), feeds)
