"""Second moments of what a linear layer sees and should answer, streamed in blocks (DESIGN: the whole layer, not a sample).

For input rows u (of the network pruned so far) and targets t (of the original) the sums

    H = Σ u uᵀ (n×n)    P = Σ t uᵀ (D×n)    Σ u    Σ t    Σ t²

hold all that selection and reconstruction need. They are sums: any number of shards add up.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
Floats = NDArray[np.floating[Any]]

_BLOCK = 8192  # rows that are multiplied in float32 before they are added in float64
_LARGE = 1e16  # values whose products might not fit float32


class Moments:
    """Running sums for one layer (one convolution group of it)."""

    def __init__(self, columns: int, outputs: int) -> None:
        self.count = 0
        self.h = np.zeros((columns, columns))
        self.p = np.zeros((outputs, columns))
        self.u = np.zeros(columns)
        self.t = np.zeros(outputs)
        self.t2 = np.zeros(outputs)
        self._waiting: list[tuple[Floats, Floats]] = []

    def add(self, rows: Floats, targets: Floats) -> None:
        """Take in rows (m×n) and their targets (m×D), float32; they are summed up in blocks."""
        self._waiting.append((rows, targets))
        self.count += len(rows)
        if sum(len(u) for u, _ in self._waiting) >= _BLOCK:
            self.flush()

    def flush(self) -> None:
        """Sum up the rows that are waiting for a full block."""
        if not self._waiting:
            return
        rows, targets = (np.concatenate(parts) for parts in zip(*self._waiting, strict=True))
        self._waiting.clear()
        for start in range(0, len(rows), _BLOCK):
            u, t = rows[start : start + _BLOCK], targets[start : start + _BLOCK]
            largest = max(float(np.abs(u).max(initial=0)), float(np.abs(t).max(initial=0)))
            if largest > _LARGE:
                u, t = u.astype(np.float64), t.astype(np.float64)
            self.h += u.T @ u
            self.p += t.T @ u
            self.u += u.sum(0, np.float64)
            self.t += t.sum(0, np.float64)
            self.t2 += np.square(t, dtype=np.float64).sum(0)

    def merge(self, other: "Moments") -> None:
        """Add another shard's sums."""
        self.count += other.count
        for mine, theirs in zip(self.sums(), other.sums(), strict=True):
            np.add(mine, theirs, out=mine)

    def sums(self) -> tuple[Doubles, ...]:
        """The sums themselves, of all rows taken in so far."""
        self.flush()
        return self.h, self.p, self.u, self.t, self.t2

    def statistics(self, *, centred: bool) -> "Statistics":
        """Means instead of sums; with `centred` about the means of u and t (a bias takes those up)."""
        if not self.count:
            raise ValueError("no rows were added")
        self.flush()
        n = self.count
        h, p, t2 = self.h / n, self.p / n, self.t2 / n
        u, t = self.u / n, self.t / n
        if centred:
            h = h - np.outer(u, u)
            p = p - np.outer(t, u)
            t2 = np.maximum(t2 - t * t, 0)
        return Statistics(h, p, t2, u, t, centred)


@dataclass(frozen=True)
class Statistics:
    """Second moments: `h` (n×n) of the inputs, `p` (D×n) of target and input, `energy` (D) of the targets; means `u`, `t`."""

    h: Doubles
    p: Doubles
    energy: Doubles
    u: Doubles
    t: Doubles
    centred: bool

    def error(self, weights: Floats) -> Doubles:
        """Mean squared error of each output (D) when `weights` (D×n) answer, the best bias included if centred."""
        weights = weights.astype(np.float64, copy=False)
        error: Doubles = self.energy - 2 * (weights * self.p).sum(1) + ((weights @ self.h) * weights).sum(1)
        return np.maximum(error, 0)

    @classmethod
    def of_original(cls, moments: Moments, weights: Floats, *, centred: bool) -> "Statistics":
        """When the targets are W u of the very inputs that were summed up: P = W H and so on (the bias left out)."""
        bare = moments.statistics(centred=centred)
        w = weights.astype(np.float64, copy=False)
        p = w @ bare.h
        return cls(bare.h, p, np.maximum((p * w).sum(1), 0), bare.u, w @ bare.u, centred)


def objective(h: Floats, weights: Floats, keys: NDArray[np.int64], units: int) -> Doubles:
    """ThiNet's objective over all positions and outputs: J(T) = 1_Tᵀ M 1_T.

    Args:
        h: (n×n) second moments of the inputs.
        weights: (D×n) the layer's weights.
        keys: (n) the unit (0 … units−1) that each column belongs to, −1 for columns that stay.
        units: C, the number of units.

    Returns:
        M = blocksum((WᵀW) ∘ H), (C×C).
    """
    weights = weights.astype(np.float64, copy=False)
    columns = np.flatnonzero(keys >= 0)
    columns = columns[np.argsort(keys[columns], kind="stable")]
    product = (weights[:, columns].T @ weights[:, columns]) * h[np.ix_(columns, columns)]
    found, starts = np.unique(keys[columns], return_index=True)
    result = np.zeros((units, units))
    result[np.ix_(found, found)] = np.add.reduceat(np.add.reduceat(product, starts, 0), starts, 1)
    return result
