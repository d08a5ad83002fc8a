"""Run a network over the calibration data piece by piece, stopping where a layer is to be observed.

The graph is cut into segments, one for each stop. The tensors alive at a cut are cached for every batch, so that each node
runs once however many stops there are (apart from what follows from constants alone). Weights may be replaced between
stops: a segment is built when the stream gets there. Two streams, of the original and of the network pruned so far,
advance side by side.
"""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from thinet_onnx import runtime, segment
from thinet_onnx.graph import Graph, Node

Array = np.ndarray[Any, Any]

_RAM = 2_000_000_000  # bytes of cached activations that one stream keeps in memory; the rest goes to a file


class Stream:
    """One network's pass over the data.

    Args:
        graph: the network.
        batches: feeds of each batch.
        stops: for each stop the names of the tensors to observe there.
    """

    def __init__(self, graph: Graph, batches: Sequence[dict[str, Array]], stops: Sequence[Sequence[str]]) -> None:
        self._graph = graph
        self._stops = [list(dict.fromkeys(names)) for names in stops]
        self._segments, self._exports = self._partition()
        self._cache: list[dict[str, Array]] = [dict(feeds) for feeds in batches]
        self._given = {name for feeds in batches for name in feeds}  # the caller's arrays: not this stream's memory
        self._replaced: dict[tuple[int, int], Array] = {}
        self._held: list[dict[str, Array]] = []
        self._spill: tempfile.TemporaryDirectory[str] | None = None
        self._bytes = 0

    def replace(self, node: Node, operand: int, value: Array) -> None:
        """From the next segment on, this operand of this node is `value`."""
        self._replaced[node.index, operand] = value

    def advance(self, stop: int, *, hold: bool = False) -> Iterator[dict[str, Array]]:
        """Run up to a stop (stops are taken in order); yields the observed tensors of each batch in turn.

        With `hold`, what the segment read is kept, so that `again` can run it with other weights.
        """
        nodes, exports = self._segments[stop], self._exports[stop]
        wanted = list(dict.fromkeys([*exports, *(n for n in self._stops[stop] if n not in self._cache[0])]))
        later = self._needed_after(stop)
        active = inputs = None
        if wanted:
            inputs = self._segment_inputs(nodes)
            active = runtime.session(self._build(nodes, inputs, wanted))
        for index, cache in enumerate(self._cache):
            fresh: dict[str, Array] = {}
            if active is not None and inputs is not None:
                results = runtime.run(active, {name: cache[name] for name in inputs}, wanted)
                fresh = dict(zip(wanted, results, strict=True))
            yield {name: fresh[name] if name in fresh else cache[name] for name in self._stops[stop]}
            if hold:
                self._held.append({name: cache[name] for name in inputs or ()})
            for name in [name for name in cache if name not in later]:
                value = cache.pop(name)
                if not hold or name not in (inputs or ()):
                    self._drop(name, value)
            for name in exports:
                if name in later:
                    cache[name] = self._keep(fresh[name], f"{stop}-{index}-{len(cache)}")

    def again(self, stop: int) -> None:
        """Run the segment of the stop that was reached last, and held, once more with the weights of now."""
        nodes, exports = self._segments[stop], self._exports[stop]
        inputs = self._segment_inputs(nodes)
        if exports:
            held = self._held[0]
            active = runtime.session(
                segment.build(self._graph, nodes, {name: held[name] for name in inputs}, exports, self._replaced)
            )
            for cache, held in zip(self._cache, self._held, strict=True):
                for name, value in zip(exports, runtime.run(active, held, exports), strict=True):
                    cache[name][...] = value
        self.release()

    def release(self) -> None:
        """Let go of what the last segment read."""
        for cache, held in zip(self._cache, self._held, strict=False):
            for name, value in held.items():
                if name not in cache:
                    self._drop(name, value)
        self._held = []

    def close(self) -> None:
        """Drop the cache."""
        self._cache = [{} for _ in self._cache]
        if self._spill is not None:
            self._spill.cleanup()

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

    def _build(self, nodes: list[Node], inputs: list[str], wanted: list[str]) -> onnx.ModelProto:
        """The model of one segment, its cached inputs open in every size."""
        values = {name: self._cache[0][name] for name in inputs}
        return segment.build(self._graph, nodes, values, wanted, self._replaced)

    def _drop(self, name: str, value: Array) -> None:
        if name in self._given:
            return
        if isinstance(value, np.memmap):
            with contextlib.suppress(OSError):  # Windows keeps a mapped file; `close` gets rid of it
                Path(str(value.filename)).unlink()
        else:
            self._bytes -= value.nbytes

    def _keep(self, value: Array, name: str) -> Array:
        self._bytes += value.nbytes
        if self._bytes <= _RAM or not value.nbytes:
            return value
        self._bytes -= value.nbytes
        if self._spill is None:
            self._spill = tempfile.TemporaryDirectory(prefix="thinet-")
        file = np.memmap(Path(self._spill.name) / name, value.dtype, "w+", shape=value.shape)
        file[...] = value
        return file
