"""Channel labels: which elements of which tensors go together.

A *label* is an integer that stands for one channel, wherever that channel appears. A tensor carries, for some of its
axes, a vector with one label per index of that axis (`Axes`): index i of the axis goes when its label goes. Labels that
can only go together are united (union-find); a label that can't go is frozen, with a reason for people.

Label 0 (`PINNED`) marks an index that never goes. Cutting must leave a rectangle behind, hence labels belong to one axis:
where a layout operator spreads them over several (a Reshape of C channels into g×C/g), `Labels.to_axes` picks the axis
that keeps the most labels apart and unites the others.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Axes = dict[int, Ids]
"""axis → labels, one per index of the axis; an axis that is absent has no labels and is never cut."""

PINNED = 0


@dataclass(frozen=True)
class Reason:
    """Why a channel stays: a phrase, and the node and tensor where it was decided."""

    phrase: str
    node: str
    tensor: str


class Labels:
    """Union-find over labels, with freezing. All array arguments are integer arrays of labels, any shape."""

    def __init__(self) -> None:
        self._parent: Ids = np.zeros(1024, np.int64)
        self._count = 1
        self._reasons: dict[int, Reason] = {PINNED: Reason("is not a channel of the network's own", "", "")}

    def __len__(self) -> int:
        return self._count

    def new(self, count: int) -> Ids:
        """`count` labels that were never used."""
        start, end = self._count, self._count + count
        while end > len(self._parent):
            self._parent = np.concatenate([self._parent, np.zeros_like(self._parent)])
        self._parent[start:end] = np.arange(start, end)
        self._count = end
        return self._parent[start:end].copy()

    def find(self, ids: Ids) -> Ids:
        """The representative of each label; equal for labels that go together."""
        roots = self._parent[ids]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                break
            roots = above
        self._parent[ids] = roots
        return roots

    def unite(self, first: Ids, second: Ids) -> None:
        """Element by element, let two arrays of labels (broadcast together) go together. Frozen spreads."""
        first, second = np.broadcast_arrays(first, second)
        a, b = self.find(first).ravel(), self.find(second).ravel()
        differ = a != b
        if not differ.any():
            return
        for x, y in np.unique(np.stack([a[differ], b[differ]], 1), axis=0).tolist():
            self._join(x, y)

    def _join(self, x: int, y: int) -> None:
        x, y = self._root(x), self._root(y)
        if x == y:
            return
        low, high = min(x, y), max(x, y)
        self._parent[high] = low
        reason = self._reasons.pop(high, None)
        if reason is not None and low not in self._reasons:
            self._reasons[low] = reason

    def _root(self, label: int) -> int:
        while (parent := int(self._parent[label])) != label:
            label = parent
        return label

    def freeze(self, ids: Ids, reason: Reason) -> None:
        """These labels stay. The first reason given is kept."""
        for root in np.unique(self.find(np.asarray(ids))).tolist():
            self._reasons.setdefault(root, reason)

    def frozen(self, ids: Ids) -> NDArray[np.bool_]:
        """For each label, whether it stays."""
        roots = self.find(np.asarray(ids))
        found = (root in self._reasons for root in roots.ravel().tolist())
        return np.fromiter(found, np.bool_, roots.size).reshape(roots.shape)

    def reason(self, label: int) -> Reason | None:
        """Why this label stays, None if it may go."""
        return self._reasons.get(self._root(label))

    def to_axes(self, spread: Ids) -> tuple[Axes, Ids]:
        """Labels that were given per element, as labels per axis.

        Args:
            spread: labels with the shape of the tensor; axes along which nothing varies may have stride 0.

        Returns:
            the labels per axis, one axis at most, and the labels that would take the whole tensor with them (the
            caller freezes those). Labels that share an index of the chosen axis are united.
        """
        spread = spread[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in spread.strides)]
        for axis in range(spread.ndim):
            first = spread.take([0], axis)
            if (spread == first).all():
                spread = first
        varying = [axis for axis, size in enumerate(spread.shape) if size > 1]
        if not varying:
            return {}, spread.ravel()
        lines = {axis: np.moveaxis(spread, axis, 0).reshape(spread.shape[axis], -1) for axis in varying}
        chosen = max(varying, key=lambda axis: len(np.unique(lines[axis][:, 0])))
        self.unite(lines[chosen], lines[chosen][:, :1])
        return {chosen: lines[chosen][:, 0].copy()}, np.empty(0, np.int64)


def spread(vector: Ids, axis: int, shape: tuple[int, ...]) -> Ids:
    """Labels of one axis as a stride-0 view with the tensor's shape, for layout operators to run on."""
    return np.broadcast_to(vector.reshape([-1 if a == axis else 1 for a in range(len(shape))]), shape)
