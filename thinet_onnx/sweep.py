"""Passes over the layers, shallow to deep: watch the original; then pick, refit and go on, the pruned network beside it."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np

from thinet_onnx import pairs
from thinet_onnx.calibration import Calibration
from thinet_onnx.choose import Chooser, Rebuilt, View
from thinet_onnx.consumers import Consumer
from thinet_onnx.groups import Analysis
from thinet_onnx.labels import Ids
from thinet_onnx.observe import Watcher, tour
from thinet_onnx.options import Progress
from thinet_onnx.pairs import Pair
from thinet_onnx.polish import Polisher
from thinet_onnx.stream import Stream

Array = np.ndarray[Any, Any]

READ_ON = ("full",)
"""Ways to reconstruct that refit all layers behind the first cut one: worth 2 points of ResNet-20 where producers stay as they
are, nothing where they are refitted, too (docs/results.md)."""


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

    def survey(self, candidates: Sequence[int]) -> dict[Consumer, View]:
        """Watch the original at every consumer of a candidate."""
        wanted = [c for c in self.consumers if any(c in self.chooser.readers[group] for group in candidates)]
        self.progress.start("Observing the original", len(wanted))
        stream, stops = tour(self.analysis, wanted, self.data.own)
        views = {}
        with closing(stream):
            for consumer, tensors in stops:
                watcher = self._watcher(consumer)
                for batch in tensors:
                    watcher.add(batch)
                watcher.add_up(self.data.ranks)
                views[consumer] = View.of(watcher, centred=self.chooser.centred)
                self.progress.advance()
        return views

    def prune(self, views: Mapping[Consumer, View], widths: Sequence[int]) -> tuple[list[Ids], list[Rebuilt]]:
        """Pick at a group's first consumer, refit each consumer on what really reaches it.

        Args:
            views: of the original; what is seen on the way takes their place.
            widths: units that each group is to keep.

        Returns:
            Units that each group keeps, and the new weights of every layer that has some.
        """
        analysis, chooser = self.analysis, self.chooser
        groups, seen = analysis.groups, dict(views)
        whole = {g: np.arange(group.size) for g, group in enumerate(groups)}
        cut = [g for g, group in enumerate(groups) if widths[g] < group.size]
        touched = [c for c in self.consumers if any(c in chooser.readers[g] for g in cut)]
        if (
            chooser.options.reconstruction == "full" and touched
        ):  # layers behind the first cut can make up for what is lost
            touched = self.consumers[self.consumers.index(touched[0]) :]
        joint = self._pairs(touched, cut)
        self.progress.start("Pruning, layer by layer", len(touched))
        original, stops = tour(analysis, touched, self.data.own)
        pruned, others = tour(analysis, touched, self.data.own, {c: pair.producer.layer.x for c, pair in joint.items()})
        picks: dict[int, Ids] = {}
        rebuilt: dict[str, Rebuilt] = {}
        with closing(original), closing(pruned):
            for stop, ((consumer, dense), (_, thin)) in enumerate(zip(stops, others, strict=True)):
                watcher = self._watcher(consumer)
                polisher = self._polisher(joint.get(consumer))
                for left, right in zip(dense, thin, strict=True):
                    watcher.add(left, right)
                    if polisher is not None:
                        polisher.add(left, right)
                watcher.add_up(self.data.ranks)
                view = View.of(watcher, centred=chooser.centred)
                seen[consumer] = view
                for g in cut:
                    if g not in picks and consumer in chooser.readers[g]:
                        picks[g] = self.data.ranks.once(partial(self._pick, g, seen, widths[g]))
                new = self._rebuild(view, {g: picks[g] for g in cut if consumer in chooser.readers[g]})
                rebuilt[consumer.layer.weight] = new
                self._replace(pruned, new)
                if polisher is not None:
                    self._polish(polisher, view, picks, rebuilt, pruned, stop)
                self.progress.advance()
        return [picks.get(g, whole[g]) for g in range(len(groups))], list(rebuilt.values())

    def _pick(self, group: int, views: Mapping[Consumer, View], width: int) -> Ids:
        """The units of a group that stay."""
        order = self.chooser.order(group, views)
        return np.sort(order[len(order) - width :])

    def _rebuild(self, view: View, kept: Mapping[int, Ids]) -> Rebuilt:
        """New weights of a consumer, the same for all processes to the last bit."""

        def parts() -> tuple[Array, Array | None, float | None]:
            new = self.chooser.rebuild(view, kept)
            return new.matrix, new.bias, new.error

        return Rebuilt(view.consumer, *self.data.ranks.once(parts))

    def _pairs(self, touched: Sequence[Consumer], cut: Sequence[int]) -> dict[Consumer, Pair]:
        """Consumers of cut groups that are refitted together with the layer before them."""
        if self.chooser.options.reconstruction != "joint":
            return {}
        readers = {consumer for g in cut for consumer in self.chooser.readers[g]}
        return {
            c: pair for c, pair in pairs.find(self.analysis, self.consumers).items() if c in readers and c in touched
        }

    def _watcher(self, consumer: Consumer) -> Watcher:
        options = self.chooser.options
        sampled = options.selection == "thinet-sampled"
        return Watcher(consumer, self.data.items, options.seed, numbers=self.data.numbers, sampled=sampled)

    def _polisher(self, pair: Pair | None) -> Polisher | None:
        if pair is None:
            return None
        data, seed = self.data, self.chooser.options.seed
        return Polisher(pair, self.analysis.graph, data.items, seed, data.ranks, data.numbers)

    def _polish(
        self,
        polisher: Polisher,
        view: View,
        picks: Mapping[int, Ids],
        rebuilt: dict[str, Rebuilt],
        pruned: Stream,
        stop: int,
    ) -> None:
        """Refit a consumer together with its producer, and let the stream take the new weights in."""
        producer, consumer = polisher.pair.producer, polisher.pair.consumer
        before = rebuilt.get(producer.layer.weight)
        if before is None:
            before = Rebuilt(producer, producer.matrix.astype(np.float64), None, None)
        keep_in, keep = (self.chooser.columns(layer, picks)[:: layer.layer.taps] for layer in (producer, consumer))
        found = polisher.fit(before, rebuilt[consumer.layer.weight], keep_in, keep)
        if found is None:
            pruned.release()
            return
        first, second = found
        if second.error is not None:
            second.error /= np.sqrt(view.energy)
        for entry in (first, second):
            rebuilt[entry.consumer.layer.weight] = entry
            self._replace(pruned, entry)
        pruned.again(stop)

    def _replace(self, stream: Stream, entry: Rebuilt) -> None:
        for refit in entry.refits():
            node = self.analysis.graph.producer[refit.node]
            stream.replace(node, refit.weight_operand, refit.weight)
            if refit.bias_operand is not None and refit.bias is not None:
                stream.replace(node, refit.bias_operand, refit.bias)
