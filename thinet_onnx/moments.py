"""Second moments of what a linear layer sees and should answer, streamed in blocks (DESIGN: the whole layer, not a sample).

For input rows u (of the network pruned so far) and targets t (of the original) the sums

    H = Σ u uᵀ (n×n)    P = Σ t uᵀ (D×n)    Σ u    Σ t    Σ t²

hold all that selection and reconstruction need. They are sums: any number of shards add up.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
Floats = NDArray[np.floating[Any]]

_BLOCK = 8192  # rows that are multiplied in float32 before they are added in float64
_NUMBERS = 8_000_000  # of a block, of few very long rows
_DENSE = 0.9  # share of columns in use, below which the others are left out of a product
_WIDE = 2048  # columns, from which on products of weights are taken in float32
_PANEL = 512  # rows of H that are summed up at a time


class Moments:
    """Running sums for one layer (one convolution group of it).

    Args:
        columns: n.
        outputs: D; None where targets follow from the inputs, by the layer's own weights (`statistics`).
    """

    def __init__(self, columns: int, outputs: int | None) -> None:
        self.count = 0
        self.h = np.zeros((columns, columns))
        self.p = np.zeros((outputs or 0, columns))
        self.u = np.zeros(columns)
        self.t = np.zeros(outputs or 0)
        self.t2 = np.zeros(outputs or 0)
        self._waiting: list[tuple[Floats, Floats]] = []

    def add(self, rows: Floats, targets: Floats | None = None) -> None:
        """Take in rows (m×n) and their targets (m×D), float32; they are summed up in blocks."""
        self._waiting.append((rows, np.empty((len(rows), 0), np.float32) if targets is None else targets))
        self.count += len(rows)
        if sum(len(u) for u, _ in self._waiting) >= min(_BLOCK, _NUMBERS // len(self.h)):
            self.flush()

    def flush(self) -> None:
        """Sum up the rows that are waiting for a full block."""
        if not self._waiting:
            return
        rows, targets = (np.concatenate(parts) for parts in zip(*self._waiting, strict=True))
        self._waiting.clear()
        for start in range(0, len(rows), _BLOCK):
            u, t = rows[start : start + _BLOCK], targets[start : start + _BLOCK]
            if not all(np.isfinite(_energy(part)) for part in (u, t)):  # products might not fit float32
                u, t = u.astype(np.float64), t.astype(np.float64)
            self.p += t.T @ u
            for left in range(0, len(self.h), _PANEL):  # on the diagonal and to the right of it
                self.h[left : left + _PANEL, left:] += u[:, left : left + _PANEL].T @ u[:, left:]
            self.u += u.sum(0, np.float64)
            self.t += t.sum(0, np.float64)
            self.t2 += np.square(t, dtype=np.float64).sum(0)

    def merge(self, other: "Moments") -> None:
        """Add another shard's sums."""
        self.count += other.count
        for mine, theirs in zip(self.sums(), other.sums(), strict=True):
            np.add(mine, theirs, out=mine)

    def plus(self, other: "Moments") -> "Moments":
        """The sums of two shards, in new arrays."""
        both = Moments.__new__(Moments)
        both.count, both._waiting = self.count + other.count, []
        both.h, both.p, both.u, both.t, both.t2 = (a + b for a, b in zip(self.sums(), other.sums(), strict=True))
        return both

    def sums(self) -> tuple[Doubles, ...]:
        """The sums themselves, of all rows taken in so far; of H what is on the diagonal and to the right of it is filled."""
        self.flush()
        return self.h, self.p, self.u, self.t, self.t2

    def statistics(self, *, centred: bool, weights: Floats | None = None, bias: Doubles | None = None) -> "Statistics":
        """Means instead of sums, in the same memory (nothing may be added any more).

        Args:
            centred: about the means of u and t (a bias takes those up).
            weights: (D×n) the layer's own, where no targets were added: these are W u + b of the very inputs.
            bias: (D) b, zero if None.
        """
        if not self.count:
            raise ValueError("no rows were added")
        self.flush()
        n, h, u = self.count, self.h, self.u
        u /= n
        _mirror(h, n, u if centred else None)
        if weights is not None:
            return _answered(h, u, weights, np.zeros(len(weights)) if bias is None else bias, centred)
        p, t, t2 = self.p, self.t, self.t2
        p /= n
        t /= n
        t2 /= n
        if centred:
            p -= np.outer(t, u)
            t2 = np.maximum(t2 - t * t, 0)
        return Statistics(h, p, t2, u, t, centred)


class Held:
    """Rows (m×n, float32) of a very wide layer, kept as they are: to check a few refits they take less work than moments.

    The targets are the layer's own answers to them.
    """

    def __init__(self, columns: int) -> None:
        self.columns, self.rows = columns, list[Floats]()

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(map(len, self.rows))

    def add(self, rows: Floats, _targets: Floats | None = None) -> None:
        """Take in rows (m×n)."""
        self.rows.append(rows)

    def flush(self) -> None:
        """There is nothing to sum up."""

    def seen(self, weights: Floats, bias: Doubles, *, centred: bool) -> "Seen":
        """With the layer's weights (D×n) and bias (D)."""
        rows = np.concatenate([np.empty((0, self.columns), np.float32), *self.rows])
        self.rows.clear()
        answers = rows @ weights.T.astype(np.float32, copy=False) + bias.astype(np.float32)
        return Seen(rows, answers, centred)


@dataclass(frozen=True)
class Seen:
    """Rows `x` (m×n), float32, and what a layer should answer to them, `y` (m×D). As `Statistics`, but for the moments."""

    x: Floats
    y: Floats
    centred: bool

    @property
    def u(self) -> Doubles:
        """Mean row (n)."""
        return np.asarray(self.x.mean(0, np.float64))

    @property
    def t(self) -> Doubles:
        """Mean answer (D)."""
        return np.asarray(self.y.mean(0, np.float64))

    def narrowed(self, keep: NDArray[np.bool_]) -> "Seen":
        """Of some columns (n) alone."""
        return replace(self, x=self.x[:, keep])

    def error(self, weights: Floats) -> Doubles:
        """Mean squared error of each output (D) when `weights` (D×n) answer, the best bias included if centred."""
        used = np.flatnonzero(weights.any(0))
        x, some = (self.x, weights) if len(used) == len(weights[0]) else (self.x[:, used], weights[:, used])
        missed = self.y - x @ some.T.astype(np.float32, copy=False)
        return np.asarray(missed.var(0, np.float64) if self.centred else np.square(missed).mean(0, np.float64))


def _product(first: Floats, second: Doubles) -> Doubles:
    """Their product; of very large ones in float32."""
    if len(second) < _WIDE:
        return np.asarray(first @ second)
    return (first.astype(np.float32) @ second.astype(np.float32)).astype(np.float64)


def _energy(rows: Floats) -> float:
    """The sum of squares, by float32; as large as the sum of any products of columns can be."""
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.vdot(rows, rows))


def _mirror(h: Doubles, count: int, u: Doubles | None) -> None:
    """Divide what is on the diagonal and to the right of it, less u uᵀ, and put it below, too."""
    for start in range(0, len(h), _PANEL):
        mine = slice(start, start + _PANEL)
        h[mine, start:] /= count
        if u is not None:
            h[mine, start:] -= np.outer(u[mine], u[start:])
        inner = h[mine, mine]
        inner[:] = np.triu(inner) + np.triu(inner, 1).T
        h[start + _PANEL :, mine] = h[mine, start + _PANEL :].T


def _answered(h: Doubles, u: Doubles, weights: Floats, bias: Doubles, centred: bool) -> "Statistics":
    """When the targets are W u + b: P = W H and so on."""
    w = weights.astype(np.float64)
    p = _product(w, h)
    energy = np.maximum((p * w).sum(1), 0)
    mean = w @ u
    if not centred:
        energy += 2 * bias * mean + bias**2
        p += np.outer(bias, u)
    return Statistics(h, p, energy, u, mean + bias, centred)


@dataclass(frozen=True)
class Statistics:
    """Second moments: `h` (n×n) of the inputs, `p` (D×n) of target and input, `energy` (D) of the targets; means `u`, `t`."""

    h: Doubles
    p: Doubles
    energy: Doubles
    u: Doubles
    t: Doubles
    centred: bool

    def narrowed(self, keep: NDArray[np.bool_]) -> "Statistics":
        """Of some columns (n) alone."""
        kept = np.flatnonzero(keep)
        return replace(self, h=self.h[np.ix_(kept, kept)], p=self.p[:, kept], u=self.u[kept])

    def error(self, weights: Floats) -> Doubles:
        """Mean squared error of each output (D) when `weights` (D×n) answer, the best bias included if centred."""
        weights = weights.astype(np.float64, copy=False)
        used = np.flatnonzero(weights.any(0))
        h, p = self.h, self.p
        if len(used) < _DENSE * len(h):
            h, p, weights = h[np.ix_(used, used)], p[:, used], weights[:, used]
        error: Doubles = self.energy - 2 * (weights * p).sum(1) + (_product(weights, h) * weights).sum(1)
        return np.maximum(error, 0)


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
    columns = np.flatnonzero(keys >= 0)
    columns = columns[np.argsort(keys[columns], kind="stable")]
    if not np.array_equal(columns, np.arange(len(h))):
        h, weights = h[np.ix_(columns, columns)], weights[:, columns]
    weights = weights.astype(np.float64 if len(columns) < _WIDE else np.float32, copy=False)
    found, starts = np.unique(keys[columns], return_index=True)
    sums = np.empty((len(found), len(found)))
    step = max(1, len(found) * _PANEL // max(len(columns), 1))
    for first in range(0, len(found), step):  # some units at a time
        part = starts[first : first + step]
        end = starts[first + step] if first + step < len(found) else len(columns)
        mine = slice(part[0], end)
        products = (weights[:, mine].T @ weights) * h[mine]
        sums[first : first + step] = np.add.reduceat(np.add.reduceat(products, part - part[0], 0), starts, 1)
    result = np.zeros((units, units))
    result[np.ix_(found, found)] = sums
    return result
