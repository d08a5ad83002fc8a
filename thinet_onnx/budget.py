"""A target becomes the number of channels to keep in each group.

One constrained choice over all groups: the least total error, each group's error curve weighed by how much the network's
output moves with it, for the MACs (or parameters) asked for. Costs are exact and bilinear in neighbouring groups.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from thinet_onnx.cost import Cost
from thinet_onnx.errors import TargetError

NOTHING = 1e-8  # of a layer's output energy: an error below it, as dead channels leave it, is rounding
_ROUNDING = 1 + 1e-9  # of sums of floats
_WIDE = 64  # from this many channels on, widths are multiples of 8


@dataclass(frozen=True)
class Curve:
    """What removing channels of one group costs: `error[k]` when k of them are gone (error[0] = 0), weighed for the sum."""

    error: NDArray[np.float64]


def held_out(error: NDArray[np.float64], held: Mapping[int, float], nothing: float) -> NDArray[np.float64]:
    """An error curve (at 1, 2, … units gone) after what was measured on the batches kept apart.

    Args:
        error: the curve on the batches that were fitted.
        held: the error on the others for some numbers of units gone, in ascending order.
        nothing: up to here an error is rounding.
    """
    widths = np.arange(1, len(error) + 1)
    ratios = {gone: found / float(error[gone - 1]) for gone, found in sorted(held.items()) if error[gone - 1] > nothing}
    drawn = error * np.interp(widths, list(ratios), list(ratios.values())) if ratios else error.copy()
    dead = {gone: found for gone, found in sorted(held.items()) if gone not in ratios}
    if dead:
        flat = error <= nothing
        drawn[flat] = np.interp(widths[flat], [0, *dead], [0.0, *dead.values()])
    return drawn


def default_step(size: int) -> int:
    """Multiples that a group's width is rounded to: 8 from 64 channels on, 4 from 32, 2 from 16, else 1."""
    return 8 if size >= _WIDE else 4 if size >= 32 else 2 if size >= 16 else 1


def widths(size: int, floor: int, step: int) -> list[int]:
    """Widths a group may have, ascending: multiples of `step` from the first that `floor` allows, and the full size.

    A group whose size is no multiple keeps at least `step`, or half its size where that is less; or nothing at all, where
    `floor` is 0.
    """
    least = max(floor, min(step, -(-size // 2)))
    return sorted({size, least} | {w for w in range(step, size, step) if w >= least} | ({0} if floor == 0 else set()))


def uniform(sizes: Sequence[int], choices: Sequence[Sequence[int]], keep: float) -> list[int]:
    """The paper's way: the same share of every group, the nearest allowed width."""
    return [
        min(filter(None, options), key=lambda width, size=size: (abs(width - keep * size), width))  # type: ignore[misc]
        for size, options in zip(sizes, choices, strict=True)
    ]


def allocate(
    sizes: Sequence[int],
    choices: Sequence[Sequence[int]],
    curves: Sequence[Curve],
    cost: Cost,
    limit: float,
    unit: str = "MACs",
) -> list[int]:
    """Channels to keep in each group so that the cost is at most `limit` and the added error least.

    Greedy on added error per saved cost, over all widths of a group at once (so that a flat stretch behind a steep one is
    seen), then gives back what the last step took too much.

    Args:
        sizes: channels of each group.
        choices: allowed widths of each group, ascending, the full size last.
        curves: error of each group.
        cost: the network's cost.
        limit: what may remain.
        unit: what the cost counts, for the message.

    Raises:
        TargetError: the narrowest choice of all groups still costs more.
    """
    check_floor(sizes, choices, cost, limit, unit)
    kept = reach(sizes, choices, curves, cost, limit)
    if kept is None:
        raise TargetError("No group is left whose removal would save anything; ask for more to remain.")
    return kept


def check_floor(
    sizes: Sequence[int], choices: Sequence[Sequence[int]], cost: Cost, limit: float, unit: str = "MACs"
) -> None:
    """Raise TargetError if the narrowest choice of all groups still costs more than `limit`; see `allocate`."""
    floor = cost.total([options[0] for options in choices])
    if floor > limit * _ROUNDING:
        least = math.ceil(1000 * floor / cost.total(list(sizes))) / 10
        raise TargetError(
            f"--target leaves {limit:,.0f} {unit}, but with every group at its narrowest {floor:,.0f} {unit} remain, "
            f"{least:.1f}% of the original; ask for more, or allow more groups (--scope all, a smaller --round-to, fewer "
            "--exclude)."
        )


def reach(
    sizes: Sequence[int], choices: Sequence[Sequence[int]], curves: Sequence[Curve], cost: Cost, limit: float
) -> list[int] | None:
    """The choice of `allocate`, also for costs that don't always fall with the width; None where the greedy way ends early."""
    limit *= _ROUNDING
    for kept in descent(sizes, choices, curves, cost):
        if cost.total(kept) <= limit:
            break
    else:
        return None
    give_back(kept, sizes, choices, curves, cost, limit)
    return kept


def descent(
    sizes: Sequence[int], choices: Sequence[Sequence[int]], curves: Sequence[Curve], cost: Cost
) -> Iterator[list[int]]:
    """Widths from the whole network down to the narrowest that saves anything, the cheapest step first; each its own list."""
    kept = list(sizes)
    steps = [_best_step(group, kept, choices[group], curves[group], cost) for group in range(len(sizes))]
    while True:
        yield list(kept)
        group = min(range(len(steps)), key=lambda g: steps[g][0], default=-1)
        if group < 0 or np.isinf(steps[group][0]):
            return
        kept[group] = steps[group][1]
        for changed in {group, *cost.neighbours(group)}:
            steps[changed] = _best_step(changed, kept, choices[changed], curves[changed], cost)


def loss(kept: Sequence[int], sizes: Sequence[int], curves: Sequence[Curve]) -> float:
    """The error that a choice of widths adds up to."""
    return float(sum(curve.error[size - width] for width, size, curve in zip(kept, sizes, curves, strict=True)))


def _best_step(group: int, kept: list[int], options: Sequence[int], curve: Curve, cost: Cost) -> tuple[float, int]:
    """The least added error per saved cost of one group's steps down, and the width it leads to."""
    now, size = kept[group], options[-1]
    best, width = np.inf, now
    for option in options:
        if option >= now:
            break
        saved = cost.saving(kept, group, option)
        added = float(curve.error[size - option] - curve.error[size - now])
        rate = max(added, 0.0) / saved if saved > 0 else np.inf
        if rate <= best and not np.isinf(rate):
            best, width = rate, option
    return best, width


def give_back(
    kept: list[int],
    sizes: Sequence[int],
    choices: Sequence[Sequence[int]],
    curves: Sequence[Curve],
    cost: Cost,
    limit: float,
) -> None:
    """Widen groups again, in place, while the limit allows, the most error saved per cost first."""
    room = limit - cost.total(kept)
    while True:
        best, most = (-1, -1), 0.0
        for group, options in enumerate(choices):
            for width in options:
                if width <= kept[group]:
                    continue
                price = -cost.saving(kept, group, width)
                if price > room:
                    break
                gain = float(
                    curves[group].error[sizes[group] - kept[group]] - curves[group].error[sizes[group] - width]
                )
                rate = max(gain, 1e-30) / max(price, 1e-30)
                if rate > most:
                    best, most = (group, width), rate
        if best[0] < 0:
            return
        room += cost.saving(kept, *best)
        kept[best[0]] = best[1]
