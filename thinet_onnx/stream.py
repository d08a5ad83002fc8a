"""Run a network over the calibration data piece by piece, stopping where a layer is to be observed.

The graph is cut into segments, one for each stop. The tensors alive at a cut are cached for every batch, so that each node
runs once however many stops there are (apart from what follows from constants alone). Weights may be replaced between
stops: a segment is built when the stream gets there. Two streams, of the original and of the network pruned so far,
advance side by side.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from thinet_onnx import runtime, segment
from thinet_onnx.graph import Graph, Node, Shape
from thinet_onnx.options import MEMORY
from thinet_onnx.shelf import Kept, Shelf

Array = np.ndarray[Any, Any]


_STRIDE = (
    12  # stops; at every such one begins a piece that goes to the end, for those who want to know what comes out there
)


class Stream:
    """One network's pass over the data.

    Args:
        graph: the network.
        batches: feeds of each batch; looked up again whenever a segment reads them.
        stops: for each stop the names of the tensors to observe there.
        memory: bytes of cached activations that may stay in memory.
        shapes: of the tensors, for one item.
    """

    def __init__(
        self,
        graph: Graph,
        batches: Sequence[dict[str, Array]],
        stops: Sequence[Sequence[str]],
        memory: float = MEMORY,
        shapes: Mapping[str, Shape] | None = None,
    ) -> None:
        self._graph, self._shapes = graph, shapes or {}
        self._stops = [list(dict.fromkeys(names)) for names in stops]
        self._segments, self._exports = self._partition()
        self._batches, self._given = batches, frozenset(batches[0])
        self._shelf = Shelf(memory)
        self._cache: list[dict[str, Kept]] = [{} for _ in batches]
        self._replaced: dict[tuple[int, int], Array] = {}
        self._ahead: dict[tuple[int, int], Any] = {}  # sessions of segments (first, last) that `rest` ran

    def replace(self, node: Node, operand: int, value: Array) -> None:
        """From the next segment on, this operand of this node is `value`."""
        self._ahead.clear()
        self._replaced[node.index, operand] = value

    def advance(self, stop: int) -> Iterator[dict[str, Array]]:
        """Run up to a stop (stops are taken in order); yields the observed tensors of each batch in turn."""
        nodes, exports = self._segments[stop], self._exports[stop]
        wanted = self._wanted(stop, self._cache[0].keys())
        later = self._needed_after(stop)
        inputs = self._segment_inputs(nodes) if wanted else []
        active = self._ahead.pop((stop, stop), None)
        self._ahead = {piece: session for piece, session in self._ahead.items() if piece[0] > stop}
        for index, cache in enumerate(self._cache):
            there = self._values(index, cache, [*inputs, *(n for n in self._stops[stop] if n not in wanted)])
            if wanted:
                if active is None:
                    active = runtime.session(*self._build(nodes, {name: there[name] for name in inputs}, wanted))
                results = runtime.run(active, {name: there[name] for name in inputs}, wanted)
                there |= zip(wanted, results, strict=True)
            yield {name: there[name] for name in self._stops[stop]}
            for name in [name for name in cache if name not in later]:
                cache.pop(name).drop()
            for name in exports:
                if name in later:
                    cache[name] = self._shelf.put(there[name])

    def rest(
        self, stop: int, replaced: Mapping[tuple[int, int], Array], batches: Sequence[int], items: int | None = None
    ) -> list[dict[str, Array]]:
        """What the last stop will show of some batches, if other weights are taken from the stop on that was reached last.

        Tensors of the last stop that are there already are left out. Nothing of the stream changes. What keeps its weights is
        built once: the segments up to the next long piece, which the stream itself will run, and that piece.

        Args:
            stop: that was reached last.
            replaced: new operands by node index and place.
            batches: numbers of batches.
            items: show so many of each batch, and run no others where every tensor has them on its first axis; None: all.
        """
        shown = [name for name in self._stops[-1] if name in self._made_after(stop)]
        own: dict[tuple[int, int], Any] = {}  # sessions with weights that only this call has
        found = []
        for index in batches:
            cached = {name: kept.get() for name, kept in self._cache[index].items()}
            there = self._follow(stop, replaced, self._some(cached | dict(self._batches[index]), items), own)
            found.append({name: there[name][:items] for name in shown if name in there})
        return found

    def _made_after(self, stop: int) -> set[str]:
        return {name for nodes in self._segments[stop + 1 :] for node in nodes for name in node.outputs}

    def _follow(
        self, stop: int, replaced: Mapping[tuple[int, int], Array], there: dict[str, Array],
        own: dict[tuple[int, int], Any],
    ) -> dict[str, Array]:  # fmt: skip
        """Tensors of one batch at the last stop, from those at another."""
        last = len(self._stops) - 1
        whole = min(-(-(stop + 1) // _STRIDE) * _STRIDE, last)  # from here on all is one piece
        for first in range(stop + 1, whole + 1):
            end = last if first == whole else first
            nodes = [node for segment in self._segments[first : end + 1] for node in segment]
            if not nodes:
                continue
            inputs, later = self._segment_inputs(nodes), self._needed_after(end) | {*self._stops[-1]}
            wanted = [name for node in nodes for name in node.outputs if name in later] if end > first else None
            wanted = wanted or self._wanted(first, there.keys())
            changed = {(node.index, place) for node in nodes for place in range(8)} & replaced.keys()
            sessions, feeds = own if changed else self._ahead, {name: there[name] for name in inputs}
            if (first, end) not in sessions:
                weights = {**self._replaced, **replaced}
                model = segment.build(self._graph, nodes, feeds, wanted, weights)
                sessions[first, end] = runtime.session(*model)
            both = there | dict(zip(wanted, runtime.run(sessions[first, end], feeds, wanted), strict=True))
            there = {name: value for name, value in both.items() if name in later or name in self._given}
        return there

    def _some(self, values: dict[str, Array], items: int | None) -> dict[str, Array]:
        """The first items of a batch; all of them where some tensor doesn't have them on its first axis."""
        if items is not None and all(
            value.ndim and self._shapes.get(name, ())[:1] == (1,) and value.shape[1:] == self._shapes[name][1:]
            for name, value in values.items()
        ):
            return {name: value[:items] for name, value in values.items()}
        return values

    def close(self) -> None:
        """Drop the cache."""
        self._cache = [{} for _ in self._cache]
        self._ahead = {}
        self._shelf.close()

    def _values(self, index: int, cache: dict[str, Kept], names: Sequence[str]) -> dict[str, Array]:
        """Tensors of one batch that are there already: its feeds, and what is cached."""
        given = self._batches[index] if self._given.intersection(names) else {}
        return {name: given[name] if name in self._given else cache[name].get() for name in names}

    def _partition(self) -> tuple[list[list[Node]], list[list[str]]]:
        """The nodes that each stop adds, and the tensors that later stops need of them."""
        graph = self._graph
        stop_of: dict[int, int] = {}
        for stop, names in enumerate(self._stops):
            for index in graph.ancestors(names, graph.derived):
                stop_of.setdefault(index, stop)
        by_index = {node.index: node for node in graph.nodes}
        segments: list[list[Node]] = [[] for _ in self._stops]
        for index in sorted(stop_of):
            segments[stop_of[index]].append(by_index[index])
        self._users: dict[str, int] = {}
        for index, stop in stop_of.items():
            for name in (*by_index[index].inputs, *by_index[index].captured):
                self._users[name] = max(self._users.get(name, -1), stop)
        for stop, names in enumerate(self._stops):
            for name in names:
                self._users[name] = max(self._users.get(name, -1), stop)
        exports = [
            [name for node in nodes for name in node.outputs if self._users.get(name, -1) > stop]
            for stop, nodes in enumerate(segments)
        ]
        return segments, exports

    def _wanted(self, stop: int, cached: Collection[str]) -> list[str]:
        """What the segment of a stop has to put out, if these tensors are there already."""
        known = self._given.union(cached)
        return list(dict.fromkeys([*self._exports[stop], *(n for n in self._stops[stop] if n not in known)]))

    def _needed_after(self, stop: int) -> set[str]:
        return {name for name, last in self._users.items() if last > stop}

    def _segment_inputs(self, nodes: list[Node]) -> list[str]:
        own = {name for node in nodes for name in node.outputs}
        used = dict.fromkeys(name for node in nodes for name in (*node.inputs, *sorted(node.captured)) if name)
        return [name for name in used if name not in own and name not in self._graph.derived]

    def _build(
        self, nodes: list[Node], inputs: dict[str, Array], wanted: list[str]
    ) -> tuple[onnx.ModelProto, dict[str, Array]]:
        """The model of one segment, what it reads open in every size."""
        return segment.build(self._graph, nodes, inputs, wanted, self._replaced)
