"""What the next layer's weights become once channels are gone. NumPy only.

`full` refits every weight and the bias by least squares against the original's output; `scale` multiplies each kept
channel by one number (Luo et al. 2017, Eq. 7); both are closed forms of streamed moments.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from thinet_onnx.moments import Seen, Statistics

Doubles = NDArray[np.float64]
Floats = NDArray[np.floating[Any]]
S = TypeVar("S")

RIDGE = 1e-3  # λ as a share of the mean diagonal of H, where nothing is there to check it on
_WIDE, _STRONG = (
    1024,
    1e-2,
)  # columns and ridge from which on float32 solves as well: its rounding is a far smaller ridge
RIDGES = (1e-4, RIDGE, 1e-2, 1e-1, 1.0, 10.0, np.inf)  # tried on data kept apart; infinite: the old weights


def full(statistics: Statistics, weights: Floats, keep: NDArray[np.bool_], ridge: float) -> Doubles:
    """B* = (P + λW)_S (H_SS + λI)⁻¹: the ridge shrinks to the old weights, not to zero.

    Args:
        statistics: moments of the layer, centred where a bias can follow.
        weights: (D×n) the layer's weights.
        keep: (n) columns that stay.
        ridge: λ as a share of the mean diagonal of H over the kept columns.

    Returns:
        (D×n) new weights, zero in the columns that go.
    """
    if not keep.all():
        result = np.zeros(weights.shape)
        result[:, keep] = full(statistics.narrowed(keep), weights[:, keep], np.ones(int(keep.sum()), bool), ridge)
        return result
    h = statistics.h.copy()
    strength = ridge * float(np.trace(h)) / max(len(h), 1) + 1e-12
    h.flat[:: len(h) + 1] += strength
    right = statistics.p + strength * weights.astype(np.float64, copy=False)
    if len(h) >= _WIDE and ridge >= _STRONG:
        left, answers = ((part / strength).astype(np.float32) for part in (h, right.T))
        return np.asarray(np.linalg.solve(left, answers).T, np.float64)
    return np.asarray(np.linalg.solve(h, right.T).T)


def best_ridge(
    solve: Callable[[float], S], error: Callable[[S], float], start: float = RIDGE
) -> tuple[float, S, float]:
    """The ridge whose refit does best on data that it wasn't fitted on, that refit, and its error: downhill from `start`.

    Args:
        solve: the refit at a ridge; infinite: the old weights.
        error: of a refit.
        start: one of `RIDGES`.
    """
    found: dict[int, tuple[S, float]] = {}

    def at(place: int) -> float:
        if place not in found:
            solved = solve(RIDGES[place])
            found[place] = solved, error(solved)
        return found[place][1]

    best = RIDGES.index(start)
    for step in (1, -1):
        while 0 <= best + step < len(RIDGES) and at(best + step) < at(best):
            best += step
    at(best)
    return RIDGES[best], *found[best]


def best_bias(statistics: Statistics | Seen, weights: Floats) -> Doubles:
    """b' = E[t] − B E[u]: the bias (D) that leaves no mean error."""
    result: Doubles = statistics.t - weights @ statistics.u
    return result


def scale(m: Doubles, cross: Doubles, keep: NDArray[np.bool_]) -> Doubles:
    """One factor per unit: s = M_SS⁻¹ c_S, least squares of the original's output on the kept partial sums (Eq. 7).

    Args:
        m: (C×C) products of partial sums of the network pruned so far.
        cross: (C) products of the target with each partial sum; with the original's own input it is M's row sum.
        keep: (C) units that stay.

    Returns:
        (C) factors, zero for the units that go. Dead units (no energy) keep the factor 1.
    """
    factors = np.zeros(len(m))
    dead = np.diag(m) <= 1e-12 * max(float(np.max(np.diag(m))), 1e-300)
    factors[keep & dead] = 1.0
    kept = np.flatnonzero(keep & ~dead)
    if len(kept):
        factors[kept] = np.linalg.lstsq(m[np.ix_(kept, kept)], cross[kept], rcond=1e-12)[0]
    return factors


def scale_sampled(x: Floats, y: Floats, keep: NDArray[np.bool_]) -> Doubles:
    """The paper's own: w = argmin ‖y − X_S w‖ over sampled rows (m×C) and targets (m), unregularised."""
    factors = np.zeros(x.shape[1])
    kept = np.flatnonzero(keep)
    factors[kept] = np.linalg.lstsq(np.asarray(x[:, kept], np.float64), np.asarray(y, np.float64), rcond=None)[0]
    return factors


def cross_products(p: Doubles, weights: Floats, keys: NDArray[np.int64], units: int) -> Doubles:
    """E[⟨t, x̂_c⟩] of the target with each unit's partial sum, from P (D×n) and the weights: (C)."""
    per_column = (weights * p).sum(0)
    result: Doubles = np.bincount(keys[keys >= 0], per_column[keys >= 0], units).astype(np.float64)
    return result
