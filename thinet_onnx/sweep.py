"""Passes over the layers, shallow to deep: watch the original; then pick, refit and go on, the pruned network beside it."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np

from thinet_onnx import pairs, wording
from thinet_onnx.calibration import Calibration
from thinet_onnx.choose import Chooser, Rebuilt, View
from thinet_onnx.consumers import Consumer
from thinet_onnx.groups import Analysis
from thinet_onnx.labels import Ids
from thinet_onnx.observe import Watcher, tour
from thinet_onnx.options import Progress
from thinet_onnx.pairs import Pair
from thinet_onnx.polish import Polisher
from thinet_onnx.shelf import trim
from thinet_onnx.stream import Stream
from thinet_onnx.surgery import Refit
from thinet_onnx.trial import Answers, Run, Trial, Tried

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]


READ_ON = ("full",)
"""Ways to reconstruct that refit all layers behind the first cut one: worth 2 points of ResNet-20 where producers stay as they
are, nothing where they are refitted, too (docs/results.md)."""


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


class Journal(Protocol):
    """Whoever takes the steps down, so that a run that was interrupted can go on."""

    def steps(self, widths: Sequence[int], stops: int) -> list[Step]:
        """The first steps of so many stops, from an earlier run that settled on these widths."""

    def add(self, stop: int, step: Step) -> None:
        """Take a step down."""


@dataclass
class _Now:
    """Where a sweep has got to: views of layers to come, units picked, new weights by the name of the old ones."""

    views: dict[Consumer, View]
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
        self._memory = chooser.options.memory

    def survey(
        self,
        wanted: Sequence[Consumer],
        groups: Collection[int] = (),
        trial: Trial | None = None,
        later: Collection[Consumer] = (),
    ) -> tuple[dict[Consumer, View], dict[int, Tried]]:
        """Watch the original at some consumers; try each group as soon as all its readers were seen.

        Args:
            wanted: consumers, in the order of all of them.
            groups: to be tried.
            trial: tries them.
            later: consumers whose views are to be kept, as far as ranking needs them; the others are let go.

        Returns:
            The views that were kept, and what came of the groups.
        """
        readers, graph = self.chooser.readers, self.analysis.graph
        views, tried = dict[Consumer, View](), dict[int, Tried]()
        if not wanted:
            return views, tried
        self.progress.start("Observing the original", len(wanted))
        last = {group: max(wanted.index(c) for c in readers[group]) for group in groups}
        outputs = [name for name in graph.outputs if name not in graph.derived]
        stops = [
            *([use.x for use in c.uses] if c.bias_known else list({*c.observed, *c.answered}) for c in wanted),
            *([outputs] if trial is not None else []),
        ]
        stream, seen = tour(self.analysis, stops, self.data.own, memory=self._memory)
        with closing(stream):
            for stop, (consumer, tensors) in enumerate(zip(wanted, seen, strict=False)):
                watcher = self._watcher(consumer, own=consumer.bias_known)
                for batch in tensors:
                    watcher.add(batch)
                watcher.add_up(self.data.ranks)
                views[consumer] = View.of(watcher, centred=self.chooser.centred, apart=self.chooser.options.refits)
                for group in [group for group, place in last.items() if place == stop]:
                    assert trial is not None
                    ahead = len(readers[group]) == 1 and consumer.bias_known  # nothing that changes has run yet
                    rest = self._rest(stream, stop, trial) if ahead else None
                    tried[group] = trial.one(group, views, rest)
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
        return views, tried

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
        self, views: Mapping[Consumer, View], widths: Sequence[int], journal: Journal | None = None
    ) -> tuple[list[Ids], list[Rebuilt]]:
        """Pick at a group's first consumer, refit each consumer on what really reaches it.

        Args:
            views: of the original, at later readers of a group; what is seen on the way takes their place.
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
        joint = self._pairs(touched, cut)
        known = self.data.ranks.once(lambda: [] if journal is None else journal.steps(widths, len(touched)))
        now = _Now(dict(views))
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

    def _walk(
        self, touched: Sequence[Consumer], joint: Mapping[Consumer, Pair], widths: Sequence[int], known: Sequence[Step],
        now: "_Now", journal: Journal | None,
    ) -> None:  # fmt: skip
        """Both networks side by side, from stop to stop."""
        inputs = {c: pair.producer.layer.x for c, pair in joint.items()}
        held = [stop for stop, consumer in enumerate(touched) if consumer in joint]
        original, stops = tour(self.analysis, [c.answered for c in touched], self.data.own, memory=self._memory / 2)
        wanted = [[*c.observed, *((inputs[c],) if c in inputs else ())] for c in touched]
        pruned, others = tour(self.analysis, wanted, self.data.own, hold=held, memory=self._memory / 2)
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
                if pair is not None and len(step.weights) > 1:
                    pruned.again(stop)
                elif pair is not None:
                    pruned.release()
                trim()
                self.progress.advance()

    def _step(
        self, consumer: Consumer, pair: Pair | None, batches: Iterable[tuple[Feeds, Feeds]], widths: Sequence[int],
        now: "_Now",
    ) -> Step:  # fmt: skip
        """Pick and refit at one stop."""
        ranks = self.data.ranks
        watcher, polisher = self._watcher(consumer), self._polisher(pair)
        for left, right in batches:
            watcher.add(left, right)
            if polisher is not None:
                polisher.add(left, right)
        watcher.add_up(ranks)
        view = View.of(watcher, centred=self.chooser.centred)
        step = ranks.once(partial(self._choose, view, widths, now))
        if polisher is None:
            return step
        refitted = step.weights[0].rebuilt(consumer)
        both = self._polish(polisher, view, {**now.picks, **step.picks}, refitted, now.rebuilt)
        return step if both is None else Step(step.picks, tuple(map(Weights.of, both)))

    def _choose(self, view: View, widths: Sequence[int], now: "_Now") -> Step:
        """Pick what isn't picked yet of the groups that a consumer reads, and refit it alone."""
        chooser, groups = self.chooser, self.analysis.groups
        seen = {**now.views, view.consumer: view}
        mine = [g for g, group in enumerate(groups) if widths[g] < group.size and view.consumer in chooser.readers[g]]
        new = {g: np.sort(chooser.order(g, seen)[groups[g].size - widths[g] :]) for g in mine if g not in now.picks}
        picks = now.picks | new
        return Step(new, (Weights.of(chooser.rebuild(view, {g: picks[g] for g in mine})),))

    def _tell(self, entry: Rebuilt, widths: Sequence[int]) -> None:
        """A line on a layer that was refitted, and the groups it reads."""
        readers = self.chooser.readers
        read = [(group, widths[g]) for g, group in enumerate(self.analysis.groups) if entry.consumer in readers[g]]
        shrunk = ", ".join(f"{group.name} {group.size} → {width}" for group, width in read if width < group.size)
        error = "scaled" if entry.error is None else f"relative error {wording.percent(entry.error)}"
        self.progress.note(f"{entry.consumer.name} reads {shrunk or 'nothing cut'}: {error}")

    def _pairs(self, touched: Sequence[Consumer], cut: Sequence[int]) -> dict[Consumer, Pair]:
        """Consumers of cut groups that are refitted together with the layer before them."""
        if self.chooser.options.reconstruction != "joint":
            return {}
        readers = {consumer for g in cut for consumer in self.chooser.readers[g]}
        return {
            c: pair for c, pair in pairs.find(self.analysis, self.consumers).items() if c in readers and c in touched
        }

    def _watcher(self, consumer: Consumer, *, own: bool = False) -> Watcher:
        options = self.chooser.options
        method = options.selection
        return Watcher(
            consumer, self.data.items, options.seed, numbers=self.data.numbers, sampled=method == "thinet-sampled", own=own,
            zeros=method == "apoz", positions=options.positions,
        )  # fmt: skip

    def _polisher(self, pair: Pair | None) -> Polisher | None:
        if pair is None:
            return None
        data, seed = self.data, self.chooser.options.seed
        return Polisher(pair, self.analysis.graph, data.items, seed, data.ranks, data.numbers)

    def _polish(
        self, polisher: Polisher, view: View, picks: Mapping[int, Ids], refitted: Rebuilt, rebuilt: Mapping[str, Rebuilt]
    ) -> tuple[Rebuilt, Rebuilt] | None:  # fmt: skip
        """A consumer refitted together with its producer: the new weights of both, None where nothing was gained."""
        producer, consumer = polisher.pair.producer, polisher.pair.consumer
        before = rebuilt.get(producer.layer.weight)
        if before is None:
            before = Rebuilt(producer, producer.matrix.astype(np.float64), None, None)
        keep_in, keep = (self.chooser.columns(layer, picks)[:: layer.layer.taps] for layer in (producer, consumer))
        found = polisher.fit(before, refitted, keep_in, keep)
        if found is None:
            return None
        first, second = found
        if second.error is not None:
            second.error /= np.sqrt(view.energy)
        return second, first

    def _replace(self, stream: Stream, entry: Rebuilt) -> None:
        for refit in entry.refits():
            node = self.analysis.graph.producer[refit.node]
            stream.replace(node, refit.weight_operand, refit.weight)
            if refit.bias_operand is not None and refit.bias is not None:
                stream.replace(node, refit.bias_operand, refit.bias)
