"""Refit a pair of layers on what really reaches it: gather images, run Gauss–Newton steps, keep what images kept apart approve.

The start is what the layer-by-layer refit left. A step counts only if the error falls on batches that it wasn't fitted on.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thinet_onnx import runtime, segment
from thinet_onnx.calibration import ONE_BLOCK, Numbers
from thinet_onnx.choose import Rebuilt
from thinet_onnx.graph import Graph
from thinet_onnx.joint import Joint, Rows, Shape, Weights
from thinet_onnx.observe import is_check
from thinet_onnx.pairs import Pair
from thinet_onnx.ranks import ALONE, Ranks

Array = np.ndarray[Any, Any]
Tensors = dict[str, Array]
Bools = NDArray[np.bool_]

_MOST_POSITIONS = 65_536  # that one pair is fitted on
_MOST_WORK = 3e9  # multiply-adds of one pass of a pair over its positions
_ITEMS, _MOST_TIMES = 900, 2.0  # from so many inputs on both grow with their number, up to so many times as much
_LEAST_ROWS = 4  # positions for each input column; where there are more but the work would be too much: no joint refit
_MOST_NUMBERS = 1e8  # float32 values that the unfolded inputs of one pair may take
_CHUNK = 1e6  # of them that are worked on at a time
_ROUNDS, _ITERATIONS, _TURNS = 6, 8, 8
_DAMPING, _LESS, _MORE, _FAILED = 1.0, 0.3, 3.0, 10.0  # at first; its factor after a full step, a shorter one, and none
_ALL = np.ones(1, bool)
_WORTH = 0.005  # share of the error that a round must save for another one


@dataclass
class Polisher:
    """Gathers what one pair sees, then refits it.

    `graph` is the original's, `items` how many inputs will be seen over all batches, `numbers` says where these stand.
    Of several processes each keeps the images that it saw: a fit adds up gradients, which are no larger than the weights.
    """

    pair: Pair
    graph: Graph
    items: int
    seed: int
    ranks: Ranks = ALONE
    numbers: Numbers = ONE_BLOCK
    _x: list[list[Array]] = field(default_factory=lambda: [[], []])
    _targets: list[list[Array]] = field(default_factory=lambda: [[], []])
    _blocks: list[list[int]] = field(default_factory=lambda: [[], []])

    def __post_init__(self) -> None:
        self._batches = self.numbers.first

    def add(self, original: Tensors, pruned: Tensors) -> None:
        """Take in one batch of both networks: inputs of both layers, and the stream that the consumer adds to."""
        consumer, layer = self.pair.consumer, self.pair.consumer.layer
        place, dense, x = is_check(self._batches), original[layer.node.key], pruned[self.pair.producer.layer.x]
        random, block = np.random.default_rng([self.seed, self._batches]), self.numbers.block(self._batches)
        self._batches += 1
        positions = max(dense[0].size // layer.out_channels, 1)
        both = (self.pair.producer, consumer)
        numbers = sum(c.columns * c.matrix.shape[0] + 2 * c.layer.out_channels for c in both)
        times = np.clip(self.items / _ITEMS, 1, _MOST_TIMES)
        most = min(
            times * _MOST_POSITIONS, _MOST_NUMBERS / numbers, times * _MOST_WORK / sum(c.matrix.size for c in both)
        )
        there = positions * max(self.items, 1)
        if most < min(there, _LEAST_ROWS * max(c.columns for c in both)):
            return
        share = most / there
        chosen = np.flatnonzero(random.random(len(dense)) < share)
        if len(chosen) and len(x) == len(dense):
            other = consumer.other[0]
            loss = (original[other][chosen] - pruned[other][chosen]) if other else None
            self._x[place].append(x[chosen])
            self._blocks[place].append(block)
            self._targets[place].append(self._target(dense[chosen], loss))

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

    def fit(self, first: Rebuilt, second: Rebuilt, keep_in: Bools, keep: Bools) -> tuple[Rebuilt, Rebuilt] | None:
        """Refit both layers, starting from what they are now.

        Args:
            first, second: the present weights of producer and consumer.
            keep_in: input channels of the producer that are left.
            keep: channels between the two that are left.

        Returns:
            New weights of both, None where nothing was gained.
        """
        seen = np.array([len(part) for part in self._x], np.float64)
        self.ranks.add_up(seen)
        if not seen.all() or not keep.any():
            return None
        producer, consumer = self.pair.producer, self.pair.consumer
        one, two = producer.layer, consumer.layer
        inner = keep if one.depthwise else keep_in
        rows, check = (self._rows(place, inner) for place in (0, 1))
        problem = Joint(
            Shape(one.window, one.x_axis, one.y_axis, int(keep.sum()) if one.depthwise else 1),
            Shape(two.window, two.x_axis, two.y_axis, 1),
            _Between(self.pair, self.graph, keep),
            consumer.scale,
            (producer.can_bias, consumer.can_bias),
            self.ranks,
        )
        taken = (keep, _ALL, np.ones(one.taps, bool)) if one.depthwise else (_ALL, keep, np.repeat(keep_in, one.taps))
        mine = np.ix_(*taken)
        read = np.repeat(keep, two.taps)
        biases = [entry.consumer.bias if entry.bias is None else entry.bias for entry in (first, second)]
        start = (first.matrix[mine], biases[0][keep], second.matrix[:, :, read], biases[1])
        found = _descend(problem, Weights(*(np.asarray(part, np.float32) for part in start)), rows, check)
        found = self.ranks.once(lambda: found)
        if found is None:
            return None
        matrix, bias = first.matrix.copy(), biases[0].copy()
        matrix[mine], bias[keep] = found.first, found.first_bias
        other = second.matrix.copy()
        other[:, :, read] = found.second
        return (
            Rebuilt(producer, matrix, bias if producer.can_bias else None, first.error),
            Rebuilt(
                consumer,
                other,
                found.second_bias.astype(np.float64) if consumer.can_bias else None,
                problem.error(found, [*rows, *check]) ** 0.5,
            ),
        )

    def _rows(self, place: int, channels: Bools) -> list[Rows]:
        """What was gathered, some channels of it, in chunks; it is let go here."""
        axis = self.pair.producer.layer.x_axis
        numbers = self.pair.producer.columns + self.pair.consumer.columns
        chunks = _chunked(self._x[place], self._targets[place], self._blocks[place], numbers)
        rows = [Rows(np.compress(channels, x, axis), target, turn) for x, target, turn in chunks]
        self._x[place], self._targets[place] = [], []
        return rows


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
    xs: list[Array], targets: list[Array], blocks: list[int], numbers: int
) -> Iterator[tuple[Array, Array, int]]:
    """Inputs and targets in chunks of up to `_CHUNK` unfolded numbers, and the turn of each.

    A chunk holds images of one shape and one block, in the same way however many processes there are.
    """
    for number, places in groupby(range(len(xs)), lambda place: (blocks[place], xs[place].shape[1:])):
        x, target = _join(list(places), xs, targets)
        positions = target.shape[1] // len(x)
        step = max(1, int(_CHUNK / max(positions * numbers, 1)))
        for turn, start in enumerate(range(0, len(x), step)):
            part = np.ascontiguousarray(target[:, start * positions : (start + step) * positions])
            yield x[start : start + step], part, turn + number[0]


def _join(places: list[int], xs: list[Array], targets: list[Array]) -> tuple[Array, Array]:
    return np.concatenate([xs[i] for i in places]), np.concatenate([targets[i] for i in places], 1)


class _Between:
    """What lies between the two layers, on the channels that are left."""

    def __init__(self, pair: Pair, graph: Graph, keep: Bools) -> None:
        self._pair, self._keep = pair, keep
        self._axis = pair.producer.layer.y_axis
        self._session = None
        if pair.chain:
            value = np.zeros((0,) * pair.rank, np.float32)
            self._session = runtime.session(*segment.build(graph, pair.chain, {pair.z: value}, [pair.consumer.layer.x]))

    def __call__(self, hidden: Array) -> Array:
        if self._session is None:
            return hidden
        axis = self._axis % hidden.ndim
        whole = np.zeros((*hidden.shape[:axis], len(self._keep), *hidden.shape[axis + 1 :]), np.float32)
        np.moveaxis(whole, axis, 0)[self._keep] = np.moveaxis(hidden, axis, 0)
        (value,) = runtime.run(self._session, {self._pair.z: whole})
        return np.compress(self._keep, value, axis)
