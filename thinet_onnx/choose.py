"""Rank the channels of a group, price every width, refit what reads them: from what the watchers saw to numbers.

`View` is what is known of one consumer at one moment; `Chooser` puts the views of a group's consumers together, each divided
by its output energy, and calls `select` and `reconstruct`.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thinet_onnx import budget, reconstruct, select
from thinet_onnx.consumers import Consumer, unit_offsets
from thinet_onnx.groups import Analysis, Group
from thinet_onnx.labels import Ids
from thinet_onnx.moments import Held, Moments, Seen, Statistics, objective
from thinet_onnx.observe import Watcher
from thinet_onnx.options import PruneOptions
from thinet_onnx.reconstruct import RIDGE
from thinet_onnx.surgery import Refit
from thinet_onnx.unfold import weight_matrix

Array = np.ndarray[Any, Any]
Doubles = NDArray[np.float64]

_MANY_COLUMNS = 2304  # from here on a refit is dear: ranking goes by units, and fewer widths are checked
_MANY_RIDGE = 1e-2  # where the search begins then: of few rows for their width, more has to be said by the old weights
_SOME_COLUMNS = 512  # from here on the ridge is searched for at one width only, and few are checked
_SOME_STEPS, _FEW_STEPS = (2, 4, 6), (4, 6)  # eighths of a group that are taken out then


@dataclass(frozen=True)
class Solved:
    """A refit: the columns that stay, the ridge, the weights, and the squared error they leave on the batches kept apart."""

    columns: NDArray[np.bool_]
    ridge: float
    matrix: Doubles
    error: float


@dataclass
class View:
    """One consumer's statistics for each convolution group, the paper's sampled rows, and the share of zeros of its units.

    `fit` and `check` are `parts` divided by batches, to see how a fit fares on images it hasn't seen; empty where there
    are too few batches. `solved` is the refit on `fit` that was found last.
    """

    consumer: Consumer
    parts: list[Statistics]
    fit: list[Statistics]
    check: list[Statistics | Seen]
    sampled: tuple[Array, Array] | None
    units: Ids
    zeros: Doubles
    solved: "Solved | None" = None

    @classmethod
    def of(cls, watcher: Watcher, *, centred: bool, apart: bool = False) -> "View":
        """What a watcher has gathered, summed up.

        With `apart`, `parts` leave out the batches kept apart, too, where there are some: enough to rank by, and less work.
        """
        units, zeros = watcher.zero_share()
        consumer, own = watcher.consumer, watcher.own
        biases = consumer.bias.reshape(len(consumer.matrix), -1)
        parts, fit, check = list[Statistics](), list[Statistics](), list[Statistics | Seen]()
        divided = all(half.count for halves in watcher.moments for half in halves)

        def add_up(sums: Moments, matrix: Array, bias: Array) -> Statistics:
            return sums.statistics(centred=centred, weights=matrix if own else None, bias=bias if own else None)

        for (most, rest), *layer in zip(watcher.moments, consumer.matrix, biases, strict=False):
            if isinstance(rest, Moments) and not apart:
                whole = most.plus(rest) if divided else most if most.count else rest
                parts.append(add_up(whole, *layer))
            if divided or apart or isinstance(rest, Held):
                fit.append(add_up(most, *layer))
            if divided:
                check.append(rest.seen(*layer, centred=centred) if isinstance(rest, Held) else add_up(rest, *layer))
        if not parts:
            parts = fit
        if not divided:
            fit = []
        watcher.moments.clear()
        return cls(consumer, parts, fit, check, watcher.sampled() if watcher.has_samples else None, units, zeros)

    def slim(self) -> "View":
        """Only what ranking needs."""
        return dataclasses.replace(self, fit=[], check=[], solved=None)

    @property
    def energy(self) -> float:
        """What the consumer puts out, its channels weighed as the network does: the unit of its errors."""
        if not self.parts:
            assert self.sampled is not None
            return max(float(np.square(self.sampled[1], dtype=np.float64).mean()), 1e-30)
        scales = self.consumer.scale.reshape(len(self.parts), -1)
        return max(sum(float(s**2 @ part.energy) for s, part in zip(scales, self.parts, strict=True)), 1e-30)

    def weighted(self) -> Iterable[tuple[Statistics, Doubles, Doubles]]:
        """For each convolution group: statistics, weights and targets with the scale behind the layer multiplied in."""
        scales = self.consumer.scale.reshape(len(self.parts), -1)
        for part, matrix, scale in zip(self.parts, self.consumer.matrix, scales, strict=True):
            yield part, matrix * scale[:, None], part.p * scale[:, None]


class Chooser:
    """Decisions of one run, group by group."""

    def __init__(self, analysis: Analysis, consumers: list[Consumer], options: PruneOptions) -> None:
        self.analysis = analysis
        self.options = options
        self.offsets = unit_offsets(analysis)
        self.ridges: dict[Consumer, float] = {}
        self.readers: list[list[Consumer]] = [
            [c for c in consumers if self._local(c.keys, index).max(initial=-1) >= 0]
            for index in range(len(analysis.groups))
        ]

    @property
    def centred(self) -> bool:
        """A full refit has a bias to take up the means; the other ways have none."""
        return self.options.refits

    def _local(self, keys: Ids, group: int) -> Ids:
        """Keys of one group's units, counted from 0; −1 elsewhere."""
        start, end = self.offsets[group : group + 2]
        return np.where((keys >= start) & (keys < end), keys - start, -1)

    def order(self, group: int, views: Mapping[Consumer, View]) -> Ids:
        """The order in which the units of a group go, by the chosen method."""
        size, method = self.analysis.groups[group].size, self.options.selection
        if method == "random":
            return np.random.default_rng([self.options.seed, group]).permutation(size).astype(np.int64)
        if method == "weight-sum":
            return select.by_score(self._weight_sum(self.analysis.groups[group]))
        own = [views[consumer] for consumer in self.readers[group] if consumer in views]
        if method == "apoz":
            shares = np.zeros(size)
            for view in own:
                local = self._local(view.units, group)
                shares[local[local >= 0]] += view.zeros[local >= 0]
            return select.by_score(-shares)
        if method == "obs" and all(view.parts for view in own):
            return select.elimination(self._readers(group, own), size, RIDGE)[0]
        if method == "thinet-omp" and all(view.parts for view in own):
            return select.pursuit(self.objective(group, own), self._cross(group, own))
        matrix = self.gram(group, own) if method == "thinet-sampled" else self.objective(group, own)
        return select.greedy(matrix)[0]

    def _readers(self, group: int, views: Iterable[View]) -> list[select.Reader]:
        """The layers that read a group, their outputs weighed as the network does and divided by their energy.

        Of very wide ones only what one factor for each unit could make up for is looked at: a matrix of units, not columns.
        """
        size = self.analysis.groups[group].size
        readers = []
        for view in views:
            keys = self._local(view.consumer.keys, group)
            for part, w, p in view.weighted():
                if view.consumer.columns < _MANY_COLUMNS:
                    readers.append(select.Reader(part.h, p / np.sqrt(view.energy), keys))
                    continue
                cross = reconstruct.cross_products(_own(part.h, w, p, keys), w, keys, size) / view.energy
                m = objective(part.h, w, keys, size) / view.energy
                readers.append(select.Reader(m, cross[None], np.arange(size)))
        return readers

    def _cross(self, group: int, views: Iterable[View]) -> Doubles:
        """Products of the target, less what other channels contribute, with each unit's partial sum."""
        size = self.analysis.groups[group].size
        total = np.zeros(size)
        for view in views:
            keys = self._local(view.consumer.keys, group)
            for part, w, p in view.weighted():
                total += reconstruct.cross_products(_own(part.h, w, p, keys), w, keys, size) / view.energy
        return total

    def objective(self, group: int, views: Iterable[View]) -> Doubles:
        """M of a group, summed over its consumers."""
        size = self.analysis.groups[group].size
        total = np.zeros((size, size))
        for view in views:
            if not view.parts:
                total += self.gram(group, [view])
                continue
            keys = self._local(view.consumer.keys, group)
            total += sum(objective(part.h, w, keys, size) for part, w, _ in view.weighted()) / view.energy
        return total

    def gram(self, group: int, views: Iterable[View]) -> Doubles:
        """The Gram matrix of the paper's sampled rows of a group, summed over its consumers."""
        size = self.analysis.groups[group].size
        total = np.zeros((size, size))
        for view in views:
            assert view.sampled is not None
            local = self._local(view.units, group)
            rows = view.sampled[0][:, local >= 0].astype(np.float64)
            place = np.ix_(local[local >= 0], local[local >= 0])
            total[place] += (
                rows.T @ rows / (len(rows) * max(float(np.square(view.sampled[1], dtype=np.float64).mean()), 1e-30))
            )
        return total

    def curve(self, group: int, views: Mapping[Consumer, View]) -> tuple[Ids, Doubles]:
        """An order of removal and the relative error at every width (size + 1 values, from 0), consumers summed up.

        With a full refit the error is that on the batches kept apart: measured at some widths, and in between drawn
        after the shape that elimination gives.
        """
        size = self.analysis.groups[group].size
        own = [views[consumer] for consumer in self.readers[group] if consumer in views]
        full = self.options.refits
        refitted = [view for view in own if full and view.parts]
        plain = [view for view in own if not (full and view.parts)]
        if self.options.selection == "obs" and not plain:
            order, error = select.elimination(self._readers(group, refitted), size, RIDGE)
        else:
            order = self.order(group, views)
            error = select.apply_order(self.objective(group, plain), order) if plain else np.zeros(size)
            if refitted:
                error = error + select.elimination(self._readers(group, refitted), size, RIDGE, order)[1]
        if full and all(view.check for view in own):
            error = self._honest(group, own, order, error)
        return order, np.concatenate([[0.0], np.maximum.accumulate(np.maximum(error, 0))])

    def _honest(self, group: int, views: list[View], order: Ids, error: Doubles) -> Doubles:
        """The error at each width on images that weren't fitted, refitted in full: measured at some, drawn in between.

        What is drawn is by how much it is larger than on the others. Where that is a ratio to nothing, because all that went
        is dead there, the error itself is drawn, and takes no part in the ratios of other widths.
        """
        size = len(order)
        most = max(view.consumer.columns for view in views)
        steps = _FEW_STEPS if most >= _MANY_COLUMNS else _SOME_STEPS if most >= _SOME_COLUMNS else range(1, 8)
        gone = sorted({min(max(size * step // 8, 1), size) for step in steps}, key=lambda count: abs(count - size // 2))
        found_at: dict[int, float] = {}
        middle: dict[int, Solved] = {}
        for count in gone:  # half of the group first, where the ridge is searched for in any case
            kept = {group: np.sort(order[count:])}
            held = 0.0
            for place, view in enumerate(views):
                columns = self.columns(view.consumer, kept)
                if most >= _SOME_COLUMNS and place in middle:
                    found = _held_out(view, _solve(view.fit, view.consumer.matrix, columns, middle[place].ridge))
                else:
                    solved = self._ridge(view, columns)
                    middle.setdefault(place, solved)
                    found = solved.error
                held += found / view.energy
            found_at[count] = held
        for place, view in enumerate(views):
            view.solved = middle[place]
            self.ridges[view.consumer] = middle[place].ridge
        return budget.held_out(error, found_at, budget.NOTHING * len(views))

    def _weight_sum(self, group: Group) -> Doubles:
        """Sum of absolute weights of the filters that make each unit."""
        scores = np.zeros(group.size)
        for layer in group.producers:
            weight = self.analysis.graph.fold(layer.weight)
            if weight is None or layer.out_labels is None:
                continue
            matrix = weight_matrix(weight.astype(np.float32), layer.in_axis, layer.groups, layer.window)
            sums = np.abs(matrix).reshape(-1, matrix.shape[2]).sum(1, dtype=np.float64)
            unit_of = {root: unit for unit, root in enumerate(group.roots.tolist())}
            for channel, root in enumerate(self.analysis.roots(layer.out_labels).tolist()):
                if root in unit_of:
                    scores[unit_of[root]] += sums[channel]
        return scores

    def rebuild(
        self, view: View, kept: Mapping[int, Ids], *, only_fit: bool = False, ridge: float | None = None
    ) -> "Rebuilt":
        """New weights of a consumer once the groups in `kept` (index → units that stay) are cut.

        Groups that are not in `kept` stay whole. Columns that go are zero. `only_fit` leaves out the batches kept apart, and
        doesn't tell the error. `ridge`: to refit with; one that does well is looked for if None.
        """
        consumer, way = view.consumer, self.options.reconstruction
        columns = self.columns(view.consumer, kept)
        if way == "none" or (columns.all() and not self.options.refits):
            matrix = (consumer.matrix * columns).astype(np.float64)
            return Rebuilt(consumer, matrix, None, self._left(view, matrix))
        if way == "scale" or not view.parts:
            factors = self._scales(view, self._stays(kept))
            matrix = consumer.matrix.astype(np.float64) * np.where(consumer.keys >= 0, factors[consumer.keys], 1.0)
            return Rebuilt(consumer, matrix, None, self._left(view, matrix))
        parts = view.fit if only_fit and view.fit else view.parts
        if only_fit and view.solved is not None and np.array_equal(view.solved.columns, columns):
            matrix = view.solved.matrix
        else:
            strength = self._ridge_for(view, columns) if ridge is None else ridge
            matrix = _solve(parts, consumer.matrix, columns, strength)
        bias = None
        if consumer.can_bias:
            bias = np.concatenate([reconstruct.best_bias(part, m) for part, m in zip(parts, matrix, strict=True)])
        return Rebuilt(consumer, matrix, bias, None if only_fit else self._left(view, matrix))

    def _stays(self, kept: Mapping[int, Ids]) -> NDArray[np.bool_]:
        """For each unit, numbered through all groups, whether it stays; the last entry stands for key −1."""
        stays = np.ones(int(self.offsets[-1]) + 1, bool)
        for group, units in kept.items():
            stays[self.offsets[group] : self.offsets[group + 1]] = False
            stays[self.offsets[group] + units] = True
        return stays

    def columns(self, consumer: Consumer, kept: Mapping[int, Ids]) -> NDArray[np.bool_]:
        """Which columns of a consumer (n) stay when the groups in `kept` keep these units."""
        return self._stays(kept)[consumer.keys]

    def _ridge_for(self, view: View, columns: NDArray[np.bool_]) -> float:
        """The ridge to refit with."""
        if not view.check:
            return RIDGE
        known = self.known_ridge(view.consumer)
        return self._ridge(view, columns).ridge if known is None else known

    def known_ridge(self, consumer: Consumer) -> float | None:
        """Of very wide layers the ridge that served the original."""
        return self.ridges.get(consumer) if consumer.columns >= _MANY_COLUMNS else None

    def _ridge(self, view: View, columns: NDArray[np.bool_]) -> Solved:
        """The ridge that does best on the batches kept apart, and what it leads to."""
        fit, check = [part.narrowed(columns) for part in view.fit], [part.narrowed(columns) for part in view.check]
        old, every = view.consumer.matrix[:, :, columns], np.ones(int(columns.sum()), bool)
        narrow = dataclasses.replace(view, fit=fit, check=check)
        start = _MANY_RIDGE if view.consumer.columns >= _MANY_COLUMNS else RIDGE
        ridge, found, error = reconstruct.best_ridge(
            lambda ridge: _solve(fit, old, every, ridge), lambda solved: _held_out(narrow, solved), start
        )
        matrix = np.zeros(view.consumer.matrix.shape)
        matrix[:, :, columns] = found
        return Solved(columns, ridge, matrix, error)

    def _scales(self, view: View, stays: NDArray[np.bool_]) -> Doubles:
        """Eq. 7's factor of every unit, numbered through all groups; 1 for units this consumer doesn't read."""
        consumer, units = view.consumer, view.units
        factors = np.ones(len(stays))
        if view.sampled is not None and (self.options.selection == "thinet-sampled" or not view.parts):
            factors[units] = reconstruct.scale_sampled(*view.sampled, stays[units])
            return factors
        local = np.searchsorted(units, consumer.keys)
        keys = np.where(consumer.keys >= 0, local, -1)
        m = np.zeros((len(units), len(units)))
        cross = np.zeros(len(units))
        biases = consumer.bias.reshape(len(view.parts), -1)
        for part, matrix, bias in zip(view.parts, consumer.matrix, biases, strict=True):
            fixed = matrix * (keys < 0)
            p = part.p - fixed @ part.h - (0 if part.centred else np.outer(bias, part.u))
            m += objective(part.h, matrix, keys, len(units))
            cross += reconstruct.cross_products(p, matrix, keys, len(units))
        factors[units] = reconstruct.scale(m, cross, stays[units])
        return factors

    def _left(self, view: View, matrix: Array) -> float | None:
        """The relative error that the new weights leave in the consumer's output; None where it wasn't observed."""
        if not view.parts:
            return None
        scales = view.consumer.scale.reshape(len(view.parts), -1)
        old = view.consumer.bias.reshape(len(view.parts), -1)
        total = 0.0
        for part, weights, scale, shift in zip(view.parts, matrix, scales, old, strict=True):
            error = part.error(weights)
            if not part.centred:  # the mean product of answer and bias
                error = error + shift**2 - 2 * shift * part.t + 2 * shift * (weights @ part.u)
            total += float(scale**2 @ np.maximum(error, 0))
        return float(np.sqrt(total / view.energy))


def _own(h: Doubles, w: Doubles, p: Doubles, keys: Ids) -> Doubles:
    """Products of the target, less what columns of no unit (key −1) contribute, with every column."""
    others = np.flatnonzero(keys < 0)
    return p - w[:, others] @ h[others] if len(others) else p


def _solve(parts: list[Statistics], matrices: Array, columns: NDArray[np.bool_], ridge: float) -> Doubles:
    """Refitted weights of each convolution group; the old ones, cut, at an infinite ridge."""
    if np.isinf(ridge):
        return (matrices * columns).astype(np.float64)
    return np.stack([reconstruct.full(part, w, columns, ridge) for part, w in zip(parts, matrices, strict=True)])


def _held_out(view: View, matrix: Doubles) -> float:
    """Squared error on the batches kept apart, bias fitted on the others, outputs weighed as the network does."""
    scales = view.consumer.scale.reshape(len(view.parts), -1)
    total = 0.0
    for fit, check, weights, scale in zip(view.fit, view.check, matrix, scales, strict=True):
        error = check.error(weights)
        if fit.centred:
            error = error + np.square(reconstruct.best_bias(check, weights) - reconstruct.best_bias(fit, weights))
        total += float(scale**2 @ error)
    return total


@dataclass
class Rebuilt:
    """A consumer's new weights (G, D/G, n) and bias (D), in the shape of the uncut model, and the error that they leave."""

    consumer: Consumer
    matrix: Doubles
    bias: Doubles | None
    error: float | None

    def refits(self) -> list[Refit]:
        """For surgery: one entry for each use."""
        weight = self.consumer.rebuilt(self.matrix)
        bias = None if self.bias is None else self.bias.astype(weight.dtype)
        return [
            Refit(use.node.key, use.weight_operand, weight, use.bias if bias is not None else None, bias)
            for use in self.consumer.uses
        ]
