"""Passes over the layers, shallow to deep: watch the original; then pick, refit and go on, the pruned network beside it."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from thinet_onnx import pairs, wording
from thinet_onnx.calibration import Calibration
from thinet_onnx.choose import Chooser, Rebuilt, View
from thinet_onnx.consumers import Consumer
from thinet_onnx.groups import Analysis
from thinet_onnx.labels import Ids
from thinet_onnx.observe import MAX_COLUMNS, Watcher, rows_wanted, tour
from thinet_onnx.options import MEMORY, Progress
from thinet_onnx.pairs import Pair
from thinet_onnx.polish import ENOUGH, Polisher, Sampling
from thinet_onnx.shelf import trim
from thinet_onnx.stream import Stream
from thinet_onnx.surgery import Refit
from thinet_onnx.trial import Answers, Run, Trial, Tried
from thinet_onnx.unfold import count_positions

Array = np.ndarray[Any, Any]
Columns = NDArray[np.bool_]
Feeds = dict[str, Array]


_SHARE_OF_MOMENTS = 3.0
_BY_MOMENTS = ("obs", "thinet", "thinet-omp")  # methods that rank by second moments


@dataclass(frozen=True)
class Weights:
    """New weights of a layer, as `Rebuilt` has them: `matrix` (G, D/G, n), `bias` (D), and the error that they leave."""

    matrix: Array
    bias: Array | None
    error: float | None

    @classmethod
    def of(cls, entry: Rebuilt) -> "Weights":
        """Those of a layer that was refitted."""
        return cls(entry.matrix, entry.bias, entry.error)

    def rebuilt(self, consumer: Consumer) -> Rebuilt:
        """For this layer."""
        return Rebuilt(consumer, self.matrix, self.bias, self.error)


@dataclass(frozen=True)
class Step:
    """What came of one stop: units that groups keep, the consumer's new weights, and its producer's if both were refitted."""

    picks: Mapping[int, Ids]
    weights: tuple[Weights, ...]


@dataclass(frozen=True)
class Surveyed:
    """What was seen of the original: `views` to be kept, what came of the groups `tried`, the `orders` in which units go."""

    views: dict[Consumer, View]
    tried: dict[int, Tried]
    orders: dict[int, Ids]


class Journal(Protocol):
    """Whoever takes the steps down, so that a run that was interrupted can go on."""

    def steps(self, widths: Sequence[int], stops: int) -> list[Step]:
        """The first steps of so many stops, from an earlier run that settled on these widths."""

    def add(self, stop: int, step: Step) -> None:
        """Take a step down."""


@dataclass
class _Now:
    """Where a sweep has got to: views of layers to come, orders known, units picked, new weights by the old ones' names."""

    views: dict[Consumer, View]
    orders: dict[int, Ids]
    data: Calibration
    picks: dict[int, Ids] = field(default_factory=dict)
    rebuilt: dict[str, Rebuilt] = field(default_factory=dict)

    def take(self, step: Step, consumer: Consumer, pair: Pair | None) -> list[Rebuilt]:
        """Take a step in; the new weights that it brings."""
        self.picks.update(step.picks)
        self.views.pop(consumer, None)  # picking is over for all groups that it reads
        layers = [consumer] if pair is None else [consumer, pair.producer]
        entries = [weights.rebuilt(layer) for weights, layer in zip(step.weights, layers, strict=False)]
        self.rebuilt.update({entry.consumer.layer.weight: entry for entry in entries})
        return entries


class Sweep:
    """The passes of one run.

    Args:
        analysis: of the graph.
        consumers: all layers that read channels of some group, in topological order.
        chooser: ranks and refits.
        data: calibration batches; of several processes each observes its own, and the first one picks and refits.
        progress: told of every layer.
    """

    def __init__(
        self,
        analysis: Analysis,
        consumers: list[Consumer],
        chooser: Chooser,
        data: Calibration,
        progress: Progress,
    ) -> None:
        self.analysis, self.consumers, self.chooser = analysis, consumers, chooser
        self.data, self.progress = data, progress
        widest = max((c.columns for c in consumers if c.columns <= MAX_COLUMNS), default=0)
        wanted = chooser.options.memory  # by default as much as the statistics of the widest layer take
        self._memory = max(MEMORY, _SHARE_OF_MOMENTS * 8 * widest**2) if wanted is None else wanted

    def sample(self, wanted: Sequence[Consumer]) -> Calibration:
        """what the original alone is watched on: images enough for the moments of some consumers, and a fair number."""
        return self.data.some(max([ENOUGH, *map(self._items_wanted, wanted)]))

    def _items_wanted(self, consumer: Consumer) -> int:
        """Images that have as many positions as are looked at for one consumer."""
        positions = 0
        for use in consumer.uses:
            shape = self.analysis.shapes[use.x]
            positions += count_positions(shape, use.x_axis, use.window) // max(shape[0], 1) if shape else 1
        _, outputs, columns = consumer.matrix.shape
        rows = self.chooser.options.positions or rows_wanted(columns, outputs, own=consumer.bias_known)
        return -(-rows // max(positions, 1))

    def survey(
        self,
        wanted: Sequence[Consumer],
        groups: Collection[int] = (),
        trial: Trial | None = None,
        later: Collection[Consumer] = (),
        data: Calibration | None = None,
    ) -> "Surveyed":
        """Watch the original at some consumers; try each group, or only rank its units, when all its readers were seen.

        Args:
            wanted: consumers, in the order of all of them.
            groups: to be tried or ranked.
            trial: tries them; they are only ranked if None.
            later: consumers whose views are to be kept, as far as ranking needs them; the others are let go.
            data: what to watch on, all data if None; a trial's own.
        """
        readers, graph, refits = self.chooser.readers, self.analysis.graph, self.chooser.options.refits
        views, tried, orders = dict[Consumer, View](), dict[int, Tried](), dict[int, Ids]()
        if not wanted:
            return Surveyed(views, tried, orders)
        self.progress.start("Observing the original", len(wanted))
        last = {group: max(wanted.index(c) for c in readers[group]) for group in groups}
        outputs = [name for name in graph.outputs if name not in graph.derived]
        stops = [
            *([use.x for use in c.uses] if c.bias_known else list({*c.observed, *c.answered}) for c in wanted),
            *([outputs] if trial is not None else []),
        ]
        data = data or self.data
        stream, seen = tour(self.analysis, stops, data.own, memory=self._memory)
        with closing(stream):
            for stop, (consumer, tensors) in enumerate(zip(wanted, seen, strict=False)):
                watcher = self._watcher(consumer, data, own=consumer.bias_known, checked="rows" if refits else True)
                for batch in tensors:
                    watcher.add(batch)
                watcher.add_up(data.ranks)
                views[consumer] = View.of(watcher, centred=self.chooser.centred, apart=refits)
                for group in [group for group, place in last.items() if place == stop]:
                    if trial is None:
                        orders[group] = data.ranks.once(partial(self.chooser.order, group, views))
                        continue
                    ahead = len(readers[group]) == 1 and consumer.bias_known  # nothing that changes has run yet
                    rest = self._rest(stream, stop, trial) if ahead else None
                    tried[group] = trial.one(group, views, rest)
                    orders[group] = tried[group].order
                    name, size = self.analysis.groups[group].name, self.analysis.groups[group].size
                    felt = wording.figures(tried[group].sensitivity)
                    self.progress.note(f"{name}, {wording.plural(size, 'channel')}: sensitivity {felt}")
                for known in list(views):
                    if all(last[group] <= stop for group in last if known in readers[group]):
                        if known in later:
                            views[known] = views[known].slim()
                        else:
                            del views[known]
                trim()
                self.progress.advance()
        return Surveyed(views, tried, orders)

    def _rest(self, stream: Stream, stop: int, trial: Trial) -> Run:
        """Runs what follows a stop, with new weights."""
        graph = self.analysis.graph

        def run(refits: list[Refit], batches: Sequence[int]) -> Answers:
            new = {}
            for refit in refits:
                node = graph.producer[refit.node]
                new[node.index, refit.weight_operand] = refit.weight
                if refit.bias_operand is not None and refit.bias is not None:
                    new[node.index, refit.bias_operand] = refit.bias
            shown = stream.rest(stop, new, batches, trial.items)
            return [
                [found.get(name, known) for name, known in zip(graph.outputs, answers, strict=True)]
                for found, answers in zip(shown, trial.reference, strict=True)
            ]

        return run

    def readers(self, groups: Collection[int]) -> list[Consumer]:
        """All consumers of some groups, in topological order."""
        return [c for c in self.consumers if any(c in self.chooser.readers[group] for group in groups)]

    def prune(
        self, views: Mapping[Consumer, View], widths: Sequence[int], journal: Journal | None = None,
        orders: Mapping[int, Ids] | None = None,
    ) -> tuple[list[Ids], list[Rebuilt]]:  # fmt: skip
        """Pick at a group's first consumer, refit each consumer on what really reaches it.

        Args:
            views: of the original, at later readers of a group; what is seen on the way takes their place.
            orders: in which the units of groups go, where the original has settled that; others are ranked on the way.
            widths: units that each group is to keep.
            journal: takes down every step, in the first process. Steps that it has from an earlier run aren't computed again:
                both networks run up to where that run stopped, the pruned one with the weights that were taken down.

        Returns:
            Units that each group keeps, and the new weights of every layer that has some.
        """
        analysis, chooser = self.analysis, self.chooser
        groups = analysis.groups
        cut = [g for g, group in enumerate(groups) if widths[g] < group.size]
        touched = self.readers(cut)
        if (
            chooser.options.reconstruction == "full" and touched
        ):  # layers behind the first cut can make up for what is lost
            touched = self.consumers[self.consumers.index(touched[0]) :]
        joint = self._pairs(touched, cut, widths)
        known = self.data.ranks.once(lambda: [] if journal is None else journal.steps(widths, len(touched)))
        now = _Now(dict(views), dict(orders or {}), data=self._enough(touched, joint))
        self.progress.start("Pruning, layer by layer", len(touched))
        if known:
            self.progress.note(f"{len(known)} of {len(touched)} layers are as an interrupted run left them")
        if len(known) == len(touched):
            for consumer, step in zip(touched, known, strict=True):
                now.take(step, consumer, joint.get(consumer))
        else:
            self._walk(touched, joint, widths, known, now, journal)
        whole = {g: np.arange(group.size) for g, group in enumerate(groups)}
        return [now.picks.get(g, whole[g]) for g in range(len(groups))], list(now.rebuilt.values())

    def _enough(self, touched: Sequence[Consumer], joint: Mapping[Consumer, Pair]) -> Calibration:
        """What the layers are refitted on: images enough for the one that wants the most."""
        alone = [self._items_wanted(c) for c in touched if c not in joint]
        sampled = (Sampling.of(pair, self.analysis, self.data) for pair in joint.values())
        wanted = [*alone, *(int(self.data.items * found.share) for found in sampled if found is not None)]
        return self.data.some(max([ENOUGH, *wanted]))

    def _walk(
        self, touched: Sequence[Consumer], joint: Mapping[Consumer, Pair], widths: Sequence[int], known: Sequence[Step],
        now: "_Now", journal: Journal | None,
    ) -> None:  # fmt: skip
        """Both networks side by side, from stop to stop."""
        data = now.data
        original, stops = tour(self.analysis, [c.answered for c in touched], data.own, memory=self._memory / 2)
        wanted = [joint[c].observed if c in joint else c.observed for c in touched]
        pruned, others = tour(self.analysis, wanted, data.own, memory=self._memory / 2)
        with closing(original), closing(pruned):
            for stop, (consumer, dense, thin) in enumerate(zip(touched, stops, others, strict=True)):
                pair = joint.get(consumer)
                if stop < len(known):
                    step = known[stop]
                    for _ in zip(dense, thin, strict=True):
                        pass
                else:
                    step = self._step(consumer, pair, zip(dense, thin, strict=True), widths, now)
                    if journal is not None:
                        journal.add(stop, step)
                new = now.take(step, consumer, pair)
                for entry in new:
                    self._replace(pruned, entry)
                self._tell(new[0], widths)
                trim()
                self.progress.advance()

    def _step(
        self, consumer: Consumer, pair: Pair | None, batches: Iterable[tuple[Feeds, Feeds]], widths: Sequence[int],
        now: "_Now",
    ) -> Step:  # fmt: skip
        """Pick and refit at one stop."""
        if pair is not None:
            return self._both(pair, batches, widths, now)
        columns = self._columns_known(consumer, widths, now)
        narrow = consumer if columns is None else consumer.narrowed(columns)
        known = columns is not None and self.chooser.known_ridge(consumer) is not None
        ranks, watcher = self.data.ranks, self._watcher(narrow, now.data, columns=columns, checked=not known)
        for left, right in batches:
            watcher.add(left, right)
        watcher.add_up(ranks)
        view = View.of(watcher, centred=self.chooser.centred)
        return ranks.once(partial(self._choose, consumer, view, columns, widths, now))

    def _columns_known(self, consumer: Consumer, widths: Sequence[int], now: "_Now") -> Columns | None:
        """Columns of a consumer that stay, where that can be told before it is watched, and it needn't look at the others."""
        mine = self._cut_groups(consumer, widths)
        if (
            not consumer.plain
            or consumer.columns > MAX_COLUMNS
            or not all(g in now.picks or g in now.orders for g in mine)
        ):
            return None
        picks = {g: now.picks[g] if g in now.picks else self._pick(g, widths[g], now, {}) for g in mine}
        columns = self.chooser.columns(consumer, picks)
        return columns if columns.any() and not columns.all() else None

    def _choose(
        self, consumer: Consumer, view: View, columns: Columns | None, widths: Sequence[int], now: "_Now"
    ) -> Step:
        """Pick what isn't picked yet of the groups that a consumer reads, and refit it alone."""
        seen = {**now.views, consumer: view}
        mine = self._cut_groups(consumer, widths)
        new = {g: self._pick(g, widths[g], now, seen) for g in mine if g not in now.picks}
        picks = now.picks | new
        if columns is None:
            return Step(new, (Weights.of(self.chooser.rebuild(view, {g: picks[g] for g in mine})),))
        found = self.chooser.rebuild(view, {}, ridge=self.chooser.known_ridge(consumer))
        matrix = np.zeros(consumer.matrix.shape)
        matrix[:, :, columns] = found.matrix
        return Step(new, (Weights(matrix, found.bias, found.error),))

    def _cut_groups(self, consumer: Consumer, widths: Sequence[int]) -> list[int]:
        """The groups that lose units and that a consumer reads."""
        groups, readers = self.analysis.groups, self.chooser.readers
        return [g for g, group in enumerate(groups) if widths[g] < group.size and consumer in readers[g]]

    def _pick(self, group: int, width: int, now: "_Now", seen: Mapping[Consumer, View]) -> Ids:
        """Units that a group keeps."""
        order = now.orders[group] if group in now.orders else self.chooser.order(group, seen)
        return np.sort(order[len(order) - width :])

    def _tell(self, entry: Rebuilt, widths: Sequence[int]) -> None:
        """A line on a layer that was refitted, and the groups it reads."""
        readers = self.chooser.readers
        read = [(group, widths[g]) for g, group in enumerate(self.analysis.groups) if entry.consumer in readers[g]]
        shrunk = ", ".join(f"{group.name} {group.size} → {width}" for group, width in read if width < group.size)
        error = "scaled" if entry.error is None else f"relative error {wording.percent(entry.error)}"
        self.progress.note(f"{entry.consumer.name} reads {shrunk or 'nothing cut'}: {error}")

    def _pairs(self, touched: Sequence[Consumer], cut: Sequence[int], widths: Sequence[int]) -> dict[Consumer, Pair]:
        """Consumers of cut groups that are refitted together with the layer before them."""
        if self.chooser.options.reconstruction != "joint":
            return {}
        readers = {consumer for g in cut for consumer in self.chooser.readers[g]}
        found = pairs.find(self.analysis, self.consumers)
        return {
            c: found[c]
            for c in touched
            if c in readers and c in found and all(widths[g] for g in self._cut_groups(c, widths))
            and Sampling.of(found[c], self.analysis, self.data) is not None
        }  # fmt: skip

    def _watcher(
        self, consumer: Consumer, data: Calibration, *, own: bool = False, columns: Columns | None = None,
        checked: bool | Literal["rows"] = True,
    ) -> Watcher:  # fmt: skip
        options = self.chooser.options
        method = options.selection
        return Watcher(
            consumer, data.items, options.seed, numbers=data.numbers, sampled=method == "thinet-sampled", own=own,
            zeros=method == "apoz", positions=options.positions, columns=columns, checked=checked,
        )  # fmt: skip

    def _both(self, pair: Pair, batches: Iterable[tuple[Feeds, Feeds]], widths: Sequence[int], now: "_Now") -> Step:
        """Pick, and refit a consumer together with the layer before it."""
        producer, consumer = pair.producer, pair.consumer
        sampling = Sampling.of(pair, self.analysis, now.data)
        assert sampling is not None
        polisher = Polisher(pair, self.analysis, now.data, sampling)
        for left, right in batches:
            polisher.add(left, right)
        before = now.rebuilt.get(producer.layer.weight)
        if before is None:
            before = Rebuilt(producer, producer.matrix.astype(np.float64), None, None)
        new = self._pick_anew(polisher, before, widths, now)
        picks = now.picks | new
        keep_in, keep = (self.chooser.columns(layer, picks)[:: layer.layer.taps] for layer in (producer, consumer))
        first, second = polisher.fit(before, keep_in, keep)
        return Step(new, tuple(map(Weights.of, (second,) if first is None else (second, first))))

    def _pick_anew(self, polisher: Polisher, before: Rebuilt, widths: Sequence[int], now: "_Now") -> dict[int, Ids]:
        """Units of the groups not picked from yet, by what the consumer is shown now, where the method ranks by that."""
        chooser, ranks, producer, consumer = self.chooser, self.data.ranks, before.consumer, polisher.pair.consumer
        mine = [g for g in self._cut_groups(consumer, widths) if g not in now.picks]
        if not mine or chooser.options.selection not in _BY_MOMENTS:
            return {g: self._pick(g, widths[g], now, {}) for g in mine}
        columns, keep_in = (chooser.columns(layer, now.picks) for layer in (consumer, producer))
        found = polisher.statistics(before, keep_in[:: producer.layer.taps], columns[:: consumer.layer.taps])
        view = View(consumer.narrowed(columns), [found], [], [], None, np.empty(0, np.int64), np.empty(0))
        for group in mine:
            now.orders.pop(group, None)
        return ranks.once(lambda: {g: self._pick(g, widths[g], now, {consumer: view}) for g in mine})

    def _replace(self, stream: Stream, entry: Rebuilt) -> None:
        for refit in entry.refits():
            node = self.analysis.graph.producer[refit.node]
            stream.replace(node, refit.weight_operand, refit.weight)
            if refit.bias_operand is not None and refit.bias is not None:
                stream.replace(node, refit.bias_operand, refit.bias)
