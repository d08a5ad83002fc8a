"""Watch the layers that read prunable channels: moments, sampled rows, zeros, streamed from running networks.

`Watcher` gathers what one consumer shows while one or two streams run; it knows arrays and the consumer's weights, and leaves
the choice of channels to `select` and `reconstruct`.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from thinet_onnx.calibration import ONE_BLOCK, Numbers
from thinet_onnx.consumers import Consumer
from thinet_onnx.errors import ModelError
from thinet_onnx.groups import Analysis
from thinet_onnx.moments import Held, Moments
from thinet_onnx.options import MEMORY
from thinet_onnx.ranks import Ranks
from thinet_onnx.rules import Linear
from thinet_onnx.stream import Stream
from thinet_onnx.unfold import count_positions, rows_at, values_at

Array = np.ndarray[Any, Any]
Tensors = dict[str, Array]

MAX_COLUMNS = 8192  # wider inputs are seen through sampled rows, since n×n moments would not fit
DRAWS = 10  # of each image for the paper's sampling
_WORK = 2.5e9  # multiply-adds that the moments of one layer may cost, where that is rows enough
_MOST_ROWS = 16384
_MOST_ANSWERS = 8e6  # numbers that a layer answers at these rows
_WIDE = 2304  # columns, from which on twice as many rows as columns have to do


def is_check(batch: int) -> bool:
    """Whether a batch (by its number) is kept apart, to check on what the others fit."""
    return batch % 4 == 3


def rows_wanted(columns: int, outputs: int = 0, *, own: bool = False) -> int:
    """Rows that the moments of a layer with n input columns are summed over: enough for n×n, bounded by work and memory.

    Half as many do for a wide layer that answers these very inputs (`own`).
    """
    least = 4 * columns if columns < _WIDE else max(2 * _WIDE, 2 * columns)
    most = min(_MOST_ROWS, _MOST_ANSWERS / max(outputs, 1))
    rows = int(np.clip(_WORK / (columns * (columns / 2 + outputs)), least, max(most, least)))
    return rows // 2 if own and columns >= _WIDE else rows


class Watcher:
    """What one consumer shows.

    Args:
        consumer: the weight.
        items: how many inputs will be seen, over all batches.
        seed: of the sampled positions; the same seed samples the same positions of the same batches.
        numbers: where the batches stand among those of all processes.
        moments: gather second moments (for selection by the exact objective, and for reconstruction).
        sampled: gather the paper's sampled rows.
        own: the targets are the layer's answers to the very inputs that are seen, so that they needn't be looked at.
        zeros: count zeros (for APoZ).
        positions: how many to look at, over all inputs; None: enough for the width.
        columns: of those that the layer reads (n), the ones that the consumer is `narrowed` to.
        checked: keep some batches apart, to check on what the others fit; "rows" those of wide layers as rows, where they
            are never to be added to the others.
    """

    def __init__(
        self,
        consumer: Consumer,
        items: int,
        seed: int,
        *,
        numbers: Numbers = ONE_BLOCK,
        moments: bool = True,
        sampled: bool = False,
        own: bool = False,
        zeros: bool = True,
        positions: int | None = None,
        columns: NDArray[np.bool_] | None = None,
        checked: bool | Literal["rows"] = True,
    ) -> None:
        self.consumer = consumer
        self._channels = None if columns is None else np.tile(columns[:: consumer.layer.taps], consumer.layer.groups)
        groups, outputs, width = consumer.matrix.shape
        self.wide = width > MAX_COLUMNS
        seen = range(groups if moments and not self.wide else 0)
        self._count_zeros = zeros
        self.own, answers = own, None if own else outputs
        self._checked = bool(checked)
        summed = checked is True or (checked == "rows" and not (own and width >= _WIDE))
        self.moments = [(Moments(width, answers), Moments(width, answers) if summed else Held(width)) for _ in seen]
        self._numbers, self._batches, self._block = numbers, numbers.first, 0
        wanted = positions or rows_wanted(width, outputs, own=own)
        self._per_item = max(1, -(-wanted // max(items * len(consumer.uses), 1)))
        self._sampled = sampled or self.wide
        self._rows: list[Array] = []
        self._answers: list[Array] = []
        self._seed = seed
        self._random = np.random.default_rng(seed)
        self._units = np.unique(consumer.keys[consumer.keys >= 0])
        self._zeros = np.zeros(width * groups)
        self._checking = False
        self._seen = 0

    def add(self, original: Tensors, pruned: Tensors | None = None) -> None:
        """Take in one batch: tensors of the original network and, if it is another, of the one pruned so far.

        Every fourth batch is kept apart, to check on what the others fit.

        Raises:
            ModelError: the original computes with NaN or infinity.
        """
        self._checking = self._checked and is_check(self._batches)
        self._random = np.random.default_rng([self._seed, self._batches])
        if self._block != (block := self._numbers.block(self._batches)):
            self._block = block
            for half in (half for pair in self.moments for half in pair):
                half.flush()
        self._batches += 1
        for use, other in zip(self.consumer.uses, self.consumer.other, strict=True):
            self._add_use(use, other, original, original if pruned is None else pruned)

    def _add_use(self, use: Linear, other: str, original: Tensors, pruned: Tensors) -> None:
        x = pruned[use.x]
        if self._channels is not None:
            x = np.compress(self._channels, x, use.x_axis)
        total = count_positions(x.shape, use.x_axis, use.window)
        per_item = max(total // max(x.shape[0], 1), 1)
        picks = self._picks(total, per_item, self._per_item)
        rows = rows_at(x, use.x_axis, use.window, picks)
        if self._count_zeros:
            self._zeros += (rows == 0).sum(0)
            self._seen += len(rows)
        if self.moments:
            targets = None
            if not self.own:
                targets = self._answer(use, rows if original is pruned else None, original, picks)
            seen = (self.consumer.matrix, self.consumer.bias) if targets is None else (targets,)
            _require_numbers(use, original.get(use.x, x), *seen)
            if targets is not None and other and original is not pruned:
                loss = values_at(original[other], use.y_axis, picks) - values_at(pruned[other], use.y_axis, picks)
                targets += loss * self.consumer.inverse_scale()
            for part, halves in enumerate(self.moments):
                halves[self._checking].add(
                    self._part(rows, part), None if targets is None else self._part(targets, part)
                )
        if self._sampled:
            picks = self._picks(total, per_item, DRAWS)
            self._sample(rows_at(x, use.x_axis, use.window, picks))

    def _picks(self, total: int, per_item: int, wanted: int) -> NDArray[np.int64]:
        """Positions, `wanted` of each image without repetition, all of them where there are no more."""
        if wanted >= per_item:
            return np.arange(total)
        starts = np.arange(0, total - total % per_item, per_item)
        offsets = self._random.random((len(starts), per_item)).argpartition(wanted, axis=1)[:, :wanted]
        return np.sort((starts[:, None] + offsets).ravel())

    def _part(self, rows: Array, part: int) -> Array:
        width = rows.shape[1] // self.consumer.matrix.shape[0]
        return rows[:, part * width : (part + 1) * width]

    def _answer(self, use: Linear, rows: Array | None, original: Tensors, picks: NDArray[np.int64]) -> Array:
        """The layer's own output at some positions, bias included: (m×D)."""
        if self.consumer.plain and use.node.key in original:
            return np.array(values_at(original[use.node.key], use.y_axis, picks))
        if rows is None:
            rows = rows_at(original[use.x], use.x_axis, use.window, picks)
        with np.errstate(over="ignore", invalid="ignore"):
            parts = [self._part(rows, part) @ matrix.T for part, matrix in enumerate(self.consumer.matrix)]
            return np.concatenate(parts, 1) + self.consumer.bias.astype(np.float32)

    def _sample(self, rows: Array) -> None:
        """The paper's rows: for each position one output filter, and every unit's partial sum of it."""
        groups, outputs, _ = self.consumer.matrix.shape
        filters = self._random.integers(0, groups * outputs, len(rows))
        keys = self.consumer.keys
        for part in range(groups):
            mine = np.flatnonzero(filters // outputs == part)
            products = self._part(rows[mine], part) * self.consumer.matrix[part, filters[mine] % outputs]
            sums = np.stack([products[:, keys == unit].sum(1) for unit in self._units], 1)
            self._rows.append(sums)
            self._answers.append(sums.sum(1))

    def add_up(self, ranks: Ranks) -> None:
        """Put together what the watchers of all processes saw: sums are added, sampled rows (they are few) gathered."""
        halves = [half for pair in self.moments for half in pair if isinstance(half, Moments)]
        counts = np.array([self._seen, *(half.count for half in halves)], np.float64)
        ranks.add_up(counts, self._zeros, *(part for half in halves for part in half.sums()))
        self._seen, *seen = (int(count) for count in counts)
        for half, count in zip(halves, seen, strict=True):
            half.count = count
        for held in (half for pair in self.moments for half in pair if isinstance(half, Held)):
            held.rows = [rows for parts in ranks.gather(held.rows) for rows in parts]
        if self._sampled:
            found = ranks.gather((self._rows, self._answers))
            self._rows, self._answers = (
                [array for part in parts for array in part] for parts in zip(*found, strict=True)
            )

    @property
    def has_samples(self) -> bool:
        """Whether the paper's rows were gathered."""
        return bool(self._rows)

    def sampled(self) -> tuple[Array, Array]:
        """The sampled rows x̂ (m×C), a column for each unit that `zero_share` names, and ŷ (m), their sum."""
        return np.concatenate(self._rows), np.concatenate(self._answers)

    def zero_share(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """APoZ of each unit: the share of zeros among what the layer reads of it."""
        keys = np.tile(self.consumer.keys, self.consumer.matrix.shape[0])
        used = keys >= 0
        zeros, seen = (np.bincount(keys[used], w[used]) for w in (self._zeros, np.full(len(keys), float(self._seen))))
        return self._units, (zeros / np.maximum(seen, 1))[self._units]


def tour(
    analysis: Analysis, stops: Sequence[Sequence[str]], batches: Sequence[Tensors], *, memory: float = MEMORY
) -> tuple[Stream, Iterator[Iterator[Tensors]]]:  # fmt: skip
    """A stream, and its stops in turn: what each batch shows there.

    Args:
        analysis: of the graph.
        stops: the names of the tensors to observe at each.
        batches: feeds.
        memory: bytes of activations that the stream may keep in memory.
    """
    stream = Stream(analysis.graph, batches, stops, memory, analysis.shapes)
    return stream, (_ahead(stream.advance(stop)) for stop in range(len(stops)))


def _ahead(items: Iterator[Tensors]) -> Iterator[Tensors]:
    """The same items, each made in another thread while the one before is being looked at."""
    with ThreadPoolExecutor(1, "thinet-stream") as worker:
        waiting = worker.submit(next, items, None)
        while (item := waiting.result()) is not None:
            waiting = worker.submit(next, items, None)
            yield item


def _require_numbers(use: Linear, *arrays: Array) -> None:
    """Raise ModelError if what a layer reads, is made of or answers is NaN, infinite or too large to be summed up."""
    with np.errstate(over="ignore", invalid="ignore"):
        sums = [values.sum(dtype=np.float32) for values in arrays]
    if not np.isfinite(sums).all():
        raise ModelError(
            f"The layer {use.node.title!r} computes NaN, infinite or huge values on the calibration data; look for such "
            "weights in the model, and check how the data are scaled."
        )
