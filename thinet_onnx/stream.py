"""Run a network over the calibration data piece by piece, stopping where a layer is to be observed.

The graph is cut into segments, one for each stop. The tensors alive at a cut are cached for every batch, so that each node
runs once however many stops there are (apart from what follows from constants alone). Weights may be replaced between
stops: a segment is built when the stream gets there. Two streams, of the original and of the network pruned so far,
advance side by side.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from thinet_onnx import runtime, segment
from thinet_onnx.graph import Graph, Node
from thinet_onnx.options import MEMORY
from thinet_onnx.shelf import Kept, Shelf

Array = np.ndarray[Any, Any]


class Stream:
    """One network's pass over the data.

    Args:
        graph: the network.
        batches: feeds of each batch; looked up again whenever a segment reads them.
        stops: for each stop the names of the tensors to observe there.
        memory: bytes of cached activations that may stay in memory.
    """

    def __init__(
        self,
        graph: Graph,
        batches: Sequence[dict[str, Array]],
        stops: Sequence[Sequence[str]],
        memory: float = MEMORY,
    ) -> None:
        self._graph = graph
        self._stops = [list(dict.fromkeys(names)) for names in stops]
        self._segments, self._exports = self._partition()
        self._batches, self._given = batches, frozenset(batches[0])
        self._shelf = Shelf(memory)
        self._cache: list[dict[str, Kept]] = [{} for _ in batches]
        self._replaced: dict[tuple[int, int], Array] = {}
        self._held: list[dict[str, Kept]] = []

    def replace(self, node: Node, operand: int, value: Array) -> None:
        """From the next segment on, this operand of this node is `value`."""
        self._replaced[node.index, operand] = value

    def advance(self, stop: int, *, hold: bool = False) -> Iterator[dict[str, Array]]:
        """Run up to a stop (stops are taken in order); yields the observed tensors of each batch in turn.

        With `hold`, what the segment read is kept, so that `again` can run it with other weights.
        """
        nodes, exports = self._segments[stop], self._exports[stop]
        known = self._given | self._cache[0].keys()
        wanted = list(dict.fromkeys([*exports, *(n for n in self._stops[stop] if n not in known)]))
        later = self._needed_after(stop)
        inputs = self._segment_inputs(nodes) if wanted else []
        active = None
        for index, cache in enumerate(self._cache):
            there = self._values(index, cache, [*inputs, *(n for n in self._stops[stop] if n not in wanted)])
            if wanted:
                if active is None:
                    active = runtime.session(*self._build(nodes, {name: there[name] for name in inputs}, wanted))
                results = runtime.run(active, {name: there[name] for name in inputs}, wanted)
                there |= zip(wanted, results, strict=True)
            yield {name: there[name] for name in self._stops[stop]}
            if hold:
                self._held.append({name: cache[name] for name in inputs if name in cache})
            for name in [name for name in cache if name not in later]:
                value = cache.pop(name)
                if not hold or name not in inputs:
                    value.drop()
            for name in exports:
                if name in later:
                    cache[name] = self._shelf.put(there[name])

    def rest(
        self, stop: int, replaced: Mapping[tuple[int, int], Array], batches: Sequence[int]
    ) -> list[dict[str, Array]]:
        """What the last stop will show of some batches, if other weights are taken from the stop on that was reached last.

        Tensors of the last stop that are there already are left out. Nothing of the stream changes.

        Args:
            stop: that was reached last.
            replaced: new operands by node index and place.
            batches: numbers of batches.
        """
        nodes = [node for nodes in self._segments[stop + 1 :] for node in nodes]
        own = {name for node in nodes for name in node.outputs}
        wanted = [name for name in self._stops[-1] if name in own]
        inputs, active, shown = self._segment_inputs(nodes), None, []
        for index in batches if wanted else ():
            there = self._values(index, self._cache[index], inputs)
            if active is None:
                active = runtime.session(
                    *segment.build(self._graph, nodes, there, wanted, {**self._replaced, **replaced})
                )
            shown.append(dict(zip(wanted, runtime.run(active, there, wanted), strict=True)))
        return shown or [{} for _ in batches]

    def again(self, stop: int) -> None:
        """Run the segment of the stop that was reached last, and held, once more with the weights of now."""
        nodes, exports = self._segments[stop], self._exports[stop]
        inputs = self._segment_inputs(nodes)
        active = None
        for index, (cache, held) in enumerate(zip(self._cache, self._held, strict=True)):
            if not exports:
                break
            there = self._values(index, held, inputs)
            if active is None:
                active = runtime.session(*self._build(nodes, there, exports))
            for name, value in zip(exports, runtime.run(active, there, exports), strict=True):
                cache[name].set(value)
        self.release()

    def release(self) -> None:
        """Let go of what the last segment read."""
        for cache, held in zip(self._cache, self._held, strict=False):
            for name, value in held.items():
                if name not in cache:
                    value.drop()
        self._held = []

    def close(self) -> None:
        """Drop the cache."""
        self._cache = [{} for _ in self._cache]
        self._held = []
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
