"""Which channels stay. NumPy only: matrices in, orders out.

All functions rank units for removal: the first k entries of an order are the units that go when k of them go.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
Floats = NDArray[np.floating[Any]]
Order = NDArray[np.int64]

_BLOCK = 4096  # rows multiplied in float32 before they are added in float64
_ROUNDING = 2e-7  # of such a Gram matrix, relative to two norms; twice the largest seen, and errors don't line up
_DENSE = 0.8  # share of columns that are left, below which matrices are made smaller
_WIDE = 384  # columns; from here on backward elimination takes several units at a time


def greedy(m: Floats, count: int | None = None) -> tuple[Order, Doubles]:
    """ThiNet's greedy choice (Luo et al. 2017, Algorithm 1) from the objective's matrix.

    Adds to the removed set T the unit with the least M_jj + 2 Σ_{t∈T} M_jt, that is the least J(T ∪ j); ties go to the
    lowest index. O(C²) where the published loop recomputes the norm of every candidate.

    Args:
        m: (C×C), J(T) = 1_Tᵀ M 1_T.
        count: how many to remove; all by default.

    Returns:
        the order of removal and J after each removal.
    """
    size = len(m)
    count = size if count is None else count
    gain = np.array(np.diag(m), np.float64)
    order = np.empty(count, np.int64)
    costs = np.empty(count)
    total = 0.0
    for step in range(count):
        unit = int(np.argmin(gain))
        total += gain[unit]
        order[step], costs[step] = unit, total
        gain += 2.0 * m[unit]
        gain[unit] = np.inf
    return order, costs


def sampled(x: Floats, count: int | None = None) -> Order:
    """The paper's choice from sampled rows: least ‖Σ_{T∪j} x‖ (Eq. 6), by the Gram matrix of the rows.

    The matrix is multiplied in float32 and summed in float64; candidates that its rounding can't tell apart are compared
    by their norms, computed in full. So the picks are those of the published loop.

    Args:
        x: (m×C) partial sums x̂ of one output filter at one position each.
        count: how many to remove.
    """
    rows = np.ascontiguousarray(x, np.float32)
    m = np.zeros((rows.shape[1], rows.shape[1]))
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        m += block.T @ block
    size = np.sqrt(np.diag(m))
    gain, reach = np.array(np.diag(m)), 0.0  # reach: Σ_T ‖x_t‖²
    order: list[int] = []
    for _ in range(len(m) if count is None else count):
        doubt = _ROUNDING * size * (size + 2 * np.sqrt(reach))
        least = int(np.argmin(gain + doubt))
        close = np.flatnonzero(gain - doubt <= gain[least] + doubt[least])
        unit = least if len(close) == 1 else _exact_least(x, order, close)
        order.append(unit)
        reach += m[unit, unit]
        gain += 2.0 * m[unit]
        gain[unit] = np.inf
    return np.array(order, np.int64)


def _exact_least(x: Floats, removed: list[int], candidates: Order) -> int:
    """The candidate with the least norm of the removed sum, in float64; the first of those that are equal."""
    total = np.asarray(x[:, removed], np.float64).sum(1)
    norms = [float(np.square(total + x[:, unit]).sum()) for unit in candidates.tolist()]
    return int(candidates[int(np.argmin(norms))])


def sampled_reference(x: Floats, count: int) -> Order:
    """The same by the published double loop: the norm of every candidate set, computed anew. For tests and benchmarks."""
    rows = np.asarray(x, np.float64)
    total = np.zeros(len(rows))
    rest = list(range(rows.shape[1]))
    order = []
    for _ in range(count):
        best, least = -1, np.inf
        for unit in rest:
            candidate = total + rows[:, unit]
            norm = float(candidate @ candidate)
            if norm < least:
                best, least = unit, norm
        order.append(best)
        rest.remove(best)
        total += rows[:, best]
    return np.array(order, np.int64)


def by_score(scores: Floats) -> Order:
    """Least score first, ties to the lowest index (weight sum, APoZ turned round, random numbers)."""
    return np.argsort(scores, kind="stable").astype(np.int64)


def apply_order(m: Floats, order: Order) -> Doubles:
    """J(T) = 1_Tᵀ M 1_T for every prefix T of an order of removal (C): the error without any refit."""
    ordered = np.asarray(m, np.float64)[np.ix_(order, order)]
    return np.cumsum(np.diag(ordered) + 2 * np.tril(ordered, -1).sum(1))


@dataclass(frozen=True)
class Reader:
    """One layer that reads the units: moments `h` (n×n) of its inputs and `p` (D×n) of target and input, on a common scale.

    `keys` (n): the unit (0 … units−1) that each column reads, −1 for a column that stays.
    """

    h: Floats
    p: Doubles
    keys: Order


def elimination(
    readers: Sequence[Reader], units: int, ridge: float, order: Order | None = None
) -> tuple[Order, Doubles]:
    """Backward elimination with refit: removal order and the error that a full refit leaves at every width.

    Optimal brain surgeon by blocks: with V = (H+λI)⁻¹ and B = P V of each reader remove the unit with the least sum of
    tr(B_c V_cc⁻¹ B_cᵀ), then B −= B_c V_cc⁻¹ V_c,: and V −= V_:,c V_cc⁻¹ V_c,:. Wide layers lose several units at a time;
    their error is exact at the end of each step and drawn straight in between.

    Args:
        readers: the layers that read the units; a convolution with groups counts as one for each.
        units: how many units may go.
        ridge: λ as a share of the mean diagonal of h.
        order: take this order of removal instead of the best.

    Returns:
        the order of removal of the units and the squared error, summed over readers and outputs, after each removal.
    """
    states = [_State(reader, units, ridge) for reader in readers]
    wide = max((len(state.v) for state in states), default=0) > _WIDE
    alive = list(range(units)) if order is None else order.tolist()
    picks: list[int] = []
    costs: list[float] = []
    while alive:
        step = max(1, len(alive) // 32) if wide else 1
        if order is None and step < len(alive):
            losses = np.sum([state.losses(alive) for state in states], axis=0)
            chosen = [alive[place] for place in np.argsort(losses, kind="stable")[:step].tolist()]
        else:
            chosen = alive[:step]
        lost = sum(state.remove(chosen) for state in states)
        base = costs[-1] if costs else 0.0
        costs += [base + lost * (place + 1) / len(chosen) for place in range(len(chosen))]
        picks += chosen
        gone = set(chosen)
        alive = [unit for unit in alive if unit not in gone]
    return np.array(picks, np.int64), np.array(costs)


class _State:
    """V and B of one reader while units go."""

    def __init__(self, reader: Reader, units: int, ridge: float) -> None:
        columns = reader.h.shape[0]
        strength = ridge * float(np.trace(reader.h)) / columns + 1e-12
        self.v: Doubles = np.linalg.inv(np.asarray(reader.h, np.float64) + strength * np.eye(columns))
        b: Doubles = reader.p @ self.v
        self.b: Doubles = b if len(b) <= columns else np.asarray(np.linalg.qr(b, "r"))  # only BᵀB counts
        self._members = [np.flatnonzero(reader.keys == unit) for unit in range(units)]
        self._stays = np.ones(columns, bool)

    def losses(self, alive: Sequence[int]) -> Doubles:
        """What each unit's removal would add; nothing for a unit that isn't read."""
        result = np.zeros(len(alive))
        read = [place for place, unit in enumerate(alive) if len(self._members[unit])]
        if read:
            result[read] = _losses(self.v, self.b, [self._members[alive[place]] for place in read])
        return result

    def remove(self, chosen: Sequence[int]) -> float:
        """Take units out; returns what that adds to the error."""
        index = np.concatenate([self._members[unit] for unit in chosen])
        if not len(index):
            return 0.0
        part = self.b[:, index]
        factor = np.linalg.solve(self.v[np.ix_(index, index)], np.concatenate([self.v[index], part.T], 1))
        factor, outer = factor[:, : len(self.v)], factor[:, len(self.v) :]
        lost = float(np.vdot(part.T, outer))
        self.b -= part @ factor
        self.v -= self.v[:, index] @ factor
        self._stays[index] = False
        if self._stays.sum() < _DENSE * len(self._stays):
            self._compact()
        return max(lost, 0.0)

    def _compact(self) -> None:
        """Leave out the columns that went: the work falls with the cube of those that stay."""
        kept = np.flatnonzero(self._stays)
        self.v, self.b = self.v[np.ix_(kept, kept)], self.b[:, kept]
        place = np.cumsum(self._stays) - 1
        self._members = [place[columns] if self._stays[columns].all() else columns[:0] for columns in self._members]
        self._stays = np.ones(len(kept), bool)


def _losses(v: Doubles, b: Doubles, blocks: list[Order]) -> Doubles:
    """tr(B_c V_cc⁻¹ B_cᵀ) of each block; blocks of one size are solved together."""
    if all(len(block) == 1 for block in blocks):
        single = np.concatenate(blocks)
        return np.asarray(np.square(b[:, single]).sum(0) / np.diag(v)[single])
    losses = np.empty(len(blocks))
    by_size: dict[int, list[int]] = {}
    for place, block in enumerate(blocks):
        by_size.setdefault(len(block), []).append(place)
    for places in by_size.values():
        index = np.stack([blocks[place] for place in places])
        inner = v[index[:, :, None], index[:, None, :]]
        outer = b.T[index]
        losses[places] = np.trace(np.linalg.solve(inner, outer @ outer.transpose(0, 2, 1)), axis1=1, axis2=2)
    return losses


def pursuit(m: Doubles, cross: Doubles) -> Order:
    """Forward orthogonal matching pursuit (the 2018 variant of ThiNet), turned round into an order of removal.

    Each step adds the unit that leaves the least residual after its own best factor, then refits the factors of all
    chosen ones. Units that add nothing (dead ones, sums of chosen ones) come first in the order of removal, ties going to
    the lowest index.

    Args:
        m: (C×C) products of the units' partial sums.
        cross: (C) products of the target with each partial sum.
    """
    size = len(m)
    energy = np.array(np.diag(m), np.float64)
    least = 1e-10 * max(float(energy.max(initial=0.0)), 1e-300)
    rest, correlation = energy.copy(), np.array(cross, np.float64)
    basis = np.zeros((size, size))
    chosen: list[int] = []
    while len(chosen) < size:
        usable = rest > np.maximum(least, 1e-9 * energy)
        usable[chosen] = False
        if not usable.any():
            break
        gains = np.where(usable, correlation**2 / np.maximum(energy, least), -1.0)
        unit = int(np.argmax(gains))
        known = basis[:, : len(chosen)]
        column = (m[:, unit] - known @ known[unit]) / np.sqrt(rest[unit])
        basis[:, len(chosen)] = column
        correlation -= column * (correlation[unit] / np.sqrt(rest[unit]))
        rest -= column**2
        chosen.append(unit)
    left = [unit for unit in range(size) if unit not in set(chosen)]
    return np.array([*left, *reversed(chosen)], np.int64)
