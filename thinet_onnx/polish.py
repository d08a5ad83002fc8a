"""Refit a pair of layers on what really reaches it: gather images, take the Gauss–Newton steps that others approve.

First the consumer alone, by least squares; then both. A step counts only if the error falls on batches it wasn't fitted on.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thinet_onnx import reconstruct, runtime, segment
from thinet_onnx.calibration import Calibration
from thinet_onnx.choose import Rebuilt
from thinet_onnx.crew import Map, crew
from thinet_onnx.graph import Graph
from thinet_onnx.groups import Analysis
from thinet_onnx.joint import Joint, Rows, Shape, Weights
from thinet_onnx.moments import Statistics
from thinet_onnx.observe import is_check
from thinet_onnx.pairs import Pair
from thinet_onnx.ranks import Ranks
from thinet_onnx.unfold import Window, places

Array = np.ndarray[Any, Any]
Doubles = NDArray[np.float64]
Tensors = dict[str, Array]
Bools = NDArray[np.bool_]

_MOST_POSITIONS = 65_536  # that one pair is fitted on
_MOST_WORK = 3e9  # multiply-adds of one pass of a pair over its positions
_ITEMS, _MOST_TIMES = 900, 2.0  # from so many inputs on both grow with their number, up to so many times as much
_LEAST_ROWS = 4  # positions for each input column; where there are more but the work would be too much: no joint refit
_MOST_NUMBERS = 1e8  # float32 values that the unfolded inputs of one pair may take
_CHUNK = 1e6  # of them that are worked on at a time
_RANKED = 16_384  # positions that channels are ranked by
_ROUNDS, _ITERATIONS, _TURNS = 6, 8, 8
_DAMPING, _LESS, _MORE, _FAILED = 1.0, 0.3, 3.0, 10.0  # at first; its factor after a full step, a shorter one, and none
_ALL = np.ones(1, bool)
_LEAST_IMAGES, _LEAST_BATCHES = 6, 4  # so that some are kept apart
ENOUGH = 128  # images that a layer is looked at in, where these have positions enough
_LEAST_SIDE = 16  # of a patch
_STEPS = tuple(math.sqrt(n) % 1 for n in (5, 2, 3, 7, 11))  # of sequences that fill an interval evenly
_WORTH = 0.005  # share of the error that a round must save for another one


@dataclass(frozen=True)
class Sampling:
    """What a pair is refitted on: a `share` of the images; of each a `patch` of the consumer's output, all of it if None."""

    share: float
    patch: tuple[int, ...] | None = None

    @classmethod
    def of(cls, pair: Pair, analysis: Analysis, data: Calibration) -> "Sampling | None":
        """For the work that one pair may be; None where that would be too much, or tell too little.

        Where there are more positions than are wanted, patches of many images tell more than all of a few images.

        Args:
            pair: the layers.
            analysis: of the graph.
            data: what there is.
        """
        consumer, layer = pair.consumer, pair.consumer.layer
        dense, x = analysis.shapes[layer.node.key], analysis.shapes[pair.producer.layer.x]
        if not dense or not x or dense[0] != x[0] or data.numbers.count < _LEAST_BATCHES:
            return None
        both = (pair.producer, consumer)
        numbers = sum(c.columns * c.matrix.shape[0] + 2 * c.layer.out_channels for c in both)
        times = float(np.clip(data.items / _ITEMS, 1, _MOST_TIMES))
        most = min(
            times * _MOST_POSITIONS, _MOST_NUMBERS / numbers, times * _MOST_WORK / sum(c.matrix.size for c in both)
        )
        patch, each = None, max(int(np.prod(dense[1:])) // layer.out_channels, 1)
        if most < each * data.items and _has_patches(pair, analysis):
            images = min(data.items, max(ENOUGH, data.items // 4))
            side = max(round((most / images) ** (1 / len(dense[2:]))), _LEAST_SIDE)
            patch = tuple(min(side, size) for size in dense[2:])
            each = int(np.prod(patch))
        there = each * data.items
        if most < min(there, max(_LEAST_ROWS * max(c.columns for c in both), _LEAST_IMAGES * each)):
            return None
        return cls(min(most / there, 1.0), None if patch == dense[2:] else patch)


def _has_patches(pair: Pair, analysis: Analysis) -> bool:
    """Whether a patch of the output follows from a patch of the input: two plain convolutions, the same at all places."""
    windows = [consumer.layer.window for consumer in (pair.producer, pair.consumer)]
    if any(not window.kernel or window.transposed for window in windows):
        return False
    nodes = (node for node in pair.chain if node.kind != "BatchNormalization")
    constants = (analysis.graph.fold(name) for node in nodes for name in node.inputs if name)
    spatial = len(windows[0].kernel)
    return all(value is None or set(value.shape[-spatial:]) <= {1} for value in constants)


def _back(start: Sequence[int], size: Sequence[int], window: Window) -> tuple[list[int], list[int]]:
    """Where the input of a convolution begins, and its size, for a patch of the output; the padding's zeros included."""
    axes = list(zip(start, size, window.kernel, window.strides, window.dilations, window.pads, strict=True))
    return [o * s - pad[0] for o, _, _, s, _, pad in axes], [(n - 1) * s + d * (k - 1) + 1 for _, n, k, s, d, _ in axes]


def _patch(value: Array, start: Sequence[int], size: Sequence[int]) -> Array:
    """A part of an image (channels first), with zeros around where it reaches beyond the image."""
    result = np.zeros((len(value), *size), value.dtype)
    inner = [(max(o, 0), min(o + n, whole)) for o, n, whole in zip(start, size, value.shape[1:], strict=True)]
    to = (slice(low - o, high - o) for (low, high), o in zip(inner, start, strict=True))
    result[(slice(None), *to)] = value[(slice(None), *(slice(low, high) for low, high in inner))]
    return result


class Polisher:
    """Gathers what one pair sees, then refits it.

    Of several processes each keeps the images that it saw: a fit adds up gradients, which are no larger than the weights.

    Args:
        pair: the layers.
        analysis: of the original's graph.
        data: the batches that will be seen.
        sampling: what is taken of them.
    """

    def __init__(self, pair: Pair, analysis: Analysis, data: Calibration, sampling: Sampling) -> None:
        self.pair, self.graph, self.ranks, self._numbers = pair, analysis.graph, data.ranks, data.numbers
        self._sampling, self._batches = sampling, data.numbers.first
        self._x: tuple[list[Array], list[Array]] = [], []
        self._targets: tuple[list[Array], list[Array]] = [], []
        self._masks: tuple[list[Array], list[Array]] = [], []
        self._blocks: tuple[list[int], list[int]] = [], []

    def add(self, original: Tensors, pruned: Tensors) -> None:
        """Take in one batch of both networks: the producer's input, what the consumer answered, the stream that it adds to."""
        place, number = is_check(self._batches), self._batches
        dense, x = original[self.pair.consumer.layer.node.key], pruned[self.pair.producer.layer.x]
        self._batches += 1
        chosen = np.flatnonzero(_spread(number, len(dense), 0) < self._sampling.share)
        if not len(chosen):
            return
        self._blocks[place].append(self._numbers.block(number))
        other = self.pair.consumer.other[0]
        loss = (original[other], pruned[other]) if other else None
        if self._sampling.patch is not None:
            self._add_patches(place, chosen, dense, x, loss)
            return
        self._x[place].append(x[chosen])
        lost = None if loss is None else loss[0][chosen] - loss[1][chosen]
        self._targets[place].append(self._target(dense[chosen], lost))

    def _add_patches(
        self, place: int, chosen: NDArray[np.int64], dense: Array, x: Array, loss: tuple[Array, Array] | None
    ) -> None:
        """A patch of each of these images, at places that fill the whole evenly."""
        size = self._sampling.patch
        assert size is not None
        room = [whole - n + 1 for whole, n in zip(dense.shape[2:], size, strict=True)]
        marks = [_spread(self._batches, len(dense), 1 + axis) for axis in range(len(size))]
        one, two = self.pair.producer.layer.window, self.pair.consumer.layer.window
        inputs, masks, answers, lost = list[Array](), list[Array](), list[Array](), list[Array]()
        inner = places(x.shape[2:], one)
        for image in chosen.tolist():
            start = [int(mark[image] * free) for mark, free in zip(marks, room, strict=True)]
            hidden = _back(start, size, two)
            inputs.append(_patch(x[image], *_back(*hidden, one)))
            masks.append(_patch(np.ones((1, *inner), np.float32), *hidden))
            answers.append(_patch(dense[image], start, size))
            if loss is not None:
                lost.append(_patch(loss[0][image], start, size) - _patch(loss[1][image], start, size))
        self._x[place].append(np.stack(inputs))
        self._masks[place].append(np.stack(masks))
        self._targets[place].append(self._target(np.stack(answers), np.stack(lost) if lost else None))

    def _target(self, dense: Array, loss: Array | None) -> Array:
        """What the consumer should answer (D, positions): its own output in the original, and what the stream lost."""
        layer = self.pair.consumer.layer
        answer: Array = np.moveaxis(dense, layer.y_axis, 0).reshape(layer.out_channels, -1)
        if loss is not None:
            answer = (
                answer
                + np.moveaxis(loss, layer.y_axis, 0).reshape(answer.shape) * self.pair.consumer.inverse_scale()[:, None]
            )
        return np.ascontiguousarray(answer, np.float32)

    def fit(self, before: Rebuilt, keep_in: Bools, keep: Bools) -> tuple[Rebuilt | None, Rebuilt]:
        """Refit the consumer alone, by least squares on what the producer of now shows it; then both together.

        Args:
            before: the present weights of the producer.
            keep_in: input channels of the producer that are left.
            keep: channels between the two that are left.

        Returns:
            New weights of the producer, None where moving them gained nothing, and of the consumer.
        """
        with crew() as each:
            return self._fit(before, keep_in, keep, each)

    def statistics(self, before: Rebuilt, keep_in: Bools, keep: Bools) -> Statistics:
        """Second moments of what the consumer reads while the producer is as it is now, of some of what was gathered.

        Args: see `fit`; all channels that are still to be picked from count as left.
        """
        with crew() as each:
            problem, weights, _, _ = self._problem(before, keep_in, keep, each)
            rows = self._rows(0, keep if self.pair.producer.layer.depthwise else keep_in)
            positions = sum(batch.target.shape[1] for batch in rows)
            return problem.statistics(weights, rows[:: max(1, positions // _RANKED)])

    def _problem(
        self, before: Rebuilt, keep_in: Bools, keep: Bools, each: Map
    ) -> tuple[Joint, Weights, tuple[Array, ...], Bools]:
        """The two layers as they are; which of the producer's weights and of the consumer's columns take part."""
        producer, consumer = self.pair.producer, self.pair.consumer
        one, two = producer.layer, consumer.layer
        windows = [
            layer.window if self._sampling.patch is None else replace(layer.window, pads=((0, 0),) * len(self._sampling.patch))
            for layer in (one, two)
        ]  # fmt: skip
        problem = Joint(
            Shape(windows[0], one.x_axis, one.y_axis, int(keep.sum()) if one.depthwise else 1),
            Shape(windows[1], two.x_axis, two.y_axis, 1),
            _Between(self.pair, self.graph, keep),
            consumer.scale,
            (producer.can_bias, consumer.can_bias),
            self.ranks,
            each,
        )
        taken = (keep, _ALL, np.ones(one.taps, bool)) if one.depthwise else (_ALL, keep, np.repeat(keep_in, one.taps))
        mine, read = np.ix_(*taken), np.repeat(keep, two.taps)
        bias = producer.bias if before.bias is None else before.bias
        arrays = before.matrix[mine], bias[keep], consumer.matrix[:, :, read], consumer.bias
        return problem, Weights(*(np.asarray(part, np.float32) for part in arrays)), mine, read

    def _fit(self, before: Rebuilt, keep_in: Bools, keep: Bools, each: Map) -> tuple[Rebuilt | None, Rebuilt]:
        producer, consumer = self.pair.producer, self.pair.consumer
        problem, old, mine, read = self._problem(before, keep_in, keep, each)
        rows, check = (self._rows(place, keep if producer.layer.depthwise else keep_in) for place in (0, 1))
        for gathered in (*self._x, *self._targets, *self._masks):
            gathered.clear()
        start, energy = _alone(problem, old, rows, check)
        moved = _descend(problem, start, rows, check)
        found = self.ranks.once(lambda: start if moved is None else moved)
        matrix = np.zeros(consumer.matrix.shape)
        matrix[:, :, read] = found.second
        error = (problem.error(found, [*rows, *check]) / energy) ** 0.5
        second = Rebuilt(consumer, matrix, found.second_bias.astype(np.float64) if consumer.can_bias else None, error)
        if moved is None:
            return None, second
        matrix = before.matrix.copy()
        bias = (producer.bias if before.bias is None else before.bias).copy()
        matrix[mine], bias[keep] = found.first, found.first_bias
        return Rebuilt(producer, matrix, bias if producer.can_bias else None, before.error), second

    def _rows(self, place: int, channels: Bools) -> list[Rows]:
        """What was gathered, some channels of it, in chunks."""
        axis = self.pair.producer.layer.x_axis
        numbers = self.pair.producer.columns + self.pair.consumer.columns
        chunks = _chunked(self._x[place], self._targets[place], self._masks[place], self._blocks[place], numbers)
        return [Rows(np.compress(channels, x, axis), target, turn, mask) for x, target, turn, mask in chunks]


def _alone(problem: Joint, weights: Weights, rows: list[Rows], check: list[Rows]) -> tuple[Weights, float]:
    """The second layer refitted by least squares, and the energy of what it should answer: the unit of its error.

    The ridge is the one that does best on `check`.
    """
    fit, held = (problem.statistics(weights, part) for part in (rows, check))
    scale, keep = problem.scale[:, 0].astype(np.float64) ** 2, np.ones(len(fit.h), bool)

    def solve(ridge: float) -> Doubles:
        old = weights.second[0]
        return old.astype(np.float64) if np.isinf(ridge) else reconstruct.full(fit, old, keep, ridge)

    def error(matrix: Doubles) -> float:
        shift = reconstruct.best_bias(held, matrix) - reconstruct.best_bias(fit, matrix) if fit.centred else 0.0
        return float(scale @ (held.error(matrix) + np.square(shift)))

    _, matrix, _ = reconstruct.best_ridge(solve, error)
    bias = reconstruct.best_bias(fit, matrix) if fit.centred else weights.second_bias
    found = Weights(weights.first, weights.first_bias, matrix[None].astype(np.float32), bias.astype(np.float32))
    return problem.ranks.once(lambda: found), max(float(scale @ (fit.energy + held.energy)) / 2, 1e-30)


def _descend(problem: Joint, weights: Weights, rows: list[Rows], check: list[Rows]) -> Weights | None:
    """Gauss–Newton steps for as long as the error on `check` falls; None if it never does."""
    start = error = problem.error(weights, check)
    damping, turns, failed = _DAMPING, _turns(rows, weights, problem.ranks), False
    for turn in range(_ROUNDS):
        step = problem.step(weights, rows, damping, _ITERATIONS, turn, turns)
        best, length = error, 0.0
        for size in (1.0, 0.5, 0.2):
            now = problem.error(weights.plus(step, size), check)
            if now < best:
                best, length = now, size
            if best < (1 - _WORTH) * error:
                break
        if not length:  # other rows show another curvature
            if failed or turns == 1:
                break
            failed, damping = True, damping * _FAILED
            continue
        saved, error, failed = 1 - best / max(error, 1e-30), best, False
        weights = weights.plus(step, length)
        if saved < _WORTH:
            break
        damping *= _LESS if length == 1.0 else _MORE
    return weights if error < start else None


def _turns(rows: list[Rows], weights: Weights, ranks: Ranks) -> int:
    """In how many parts the batches take turns to show the curvature: 1 where a part would have too few positions for it."""
    positions = np.zeros(_TURNS)
    for batch in rows:
        positions[batch.turn % _TURNS] += batch.target.shape[1]
    ranks.add_up(positions)
    columns = max(weights.first.shape[2], weights.second.shape[2])
    return _TURNS if positions.min() >= _LEAST_ROWS * columns else 1


def _chunked(
    xs: list[Array], targets: list[Array], masks: list[Array], blocks: list[int], numbers: int
) -> Iterator[tuple[Array, Array, int, Array | None]]:
    """Inputs, targets and masks (if any) in chunks of up to `_CHUNK` unfolded numbers, and the turn of each.

    A chunk holds images of one shape and one block, in the same way however many processes there are.
    """
    for number, group in groupby(range(len(xs)), lambda place: (blocks[place], xs[place].shape[1:])):
        mine = list(group)
        x, target = np.concatenate([xs[i] for i in mine]), np.concatenate([targets[i] for i in mine], 1)
        mask = np.concatenate([masks[i] for i in mine]) if masks else None
        positions = target.shape[1] // len(x)
        step = max(1, int(_CHUNK / max(positions * numbers, 1)))
        for turn, start in enumerate(range(0, len(x), step)):
            part = np.ascontiguousarray(target[:, start * positions : (start + step) * positions])
            covered = None if mask is None else mask[start : start + step]
            yield x[start : start + step], part, turn + number[0], covered


def _spread(batch: int, items: int, axis: int) -> NDArray[np.float64]:
    """A number from 0 to 1 for each item of a batch; all of them together, or those of every so many batches, lie evenly."""
    return np.asarray((batch * _STEPS[axis] + np.arange(items) * _STEPS[axis + 1]) % 1, np.float64)


class _Between:
    """What lies between the two layers, on the channels that are left."""

    def __init__(self, pair: Pair, graph: Graph, keep: Bools) -> None:
        self._pair, self._keep = pair, keep
        self._axis = pair.producer.layer.y_axis
        self._session = None
        if pair.chain:
            value = np.zeros((0,) * pair.rank, np.float32)
            self._session = runtime.session(
                *segment.build(graph, pair.chain, {pair.z: value}, [pair.consumer.layer.x]), threads=1
            )

    def __call__(self, hidden: Array) -> Array:
        if self._session is None:
            return hidden
        axis = self._axis % hidden.ndim
        whole = np.zeros((*hidden.shape[:axis], len(self._keep), *hidden.shape[axis + 1 :]), np.float32)
        np.moveaxis(whole, axis, 0)[self._keep] = np.moveaxis(hidden, axis, 0)
        (value,) = runtime.run(self._session, {self._pair.z: whole})
        return np.compress(self._keep, value, axis)
