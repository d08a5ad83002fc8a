"""Two linear layers refitted at once, with the activation between them: Gauss–Newton steps by conjugate gradients.

A group's producer and its consumer answer y = W₂ · cols(f(W₁ · cols(x) + b₁)) + b₂, where cols unfolds windows and f works
element by element. Refitting W₂ alone picks among the filters that stayed; moving W₁ as well makes them into the best
few filters for this target. NumPy only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thinet_onnx.crew import Map
from thinet_onnx.moments import Statistics
from thinet_onnx.ranks import ALONE, Ranks
from thinet_onnx.unfold import Window, columns, places, scatter

Floats = NDArray[np.floating[Any]]
Activation = Callable[[Floats], Floats]

_WIDE = 2400  # columns from which on the preconditioner is diagonal
_SMALL = 1e-3  # of the spread of a channel: the step of the finite differences


@dataclass(frozen=True)
class Shape:
    """How one layer sees its input: window, axes of input and output channels, convolution groups."""

    window: Window
    x_axis: int
    y_axis: int
    groups: int


@dataclass(frozen=True)
class Weights:
    """What is fitted: `first` (G₁, O/G₁, n₁) and its bias (O), `second` (G₂, D/G₂, n₂) and its bias (D).

    A bias that may not change is `None` in a step, and stays.
    """

    first: Floats
    first_bias: Floats
    second: Floats
    second_bias: Floats

    def all(self) -> tuple[Floats, Floats, Floats, Floats]:
        """The four arrays."""
        return self.first, self.first_bias, self.second, self.second_bias

    def plus(self, step: "Weights", length: float = 1.0) -> "Weights":
        """These weights moved by `length` times a step."""
        return Weights(*((a + length * b).astype(np.float32) for a, b in zip(self.all(), step.all(), strict=True)))

    def dot(self, other: "Weights") -> float:
        """The inner product of all numbers."""
        return sum(float(np.vdot(a, b)) for a, b in zip(self.all(), other.all(), strict=True))


@dataclass(frozen=True)
class Rows:
    """One batch: the input of the first layer, and what the second should answer (D, positions).

    `turn` says which steps see their curvature in it: those whose own turn is the same, modulo the number of turns. `mask`,
    of one channel, is 0 where the second layer is padded rather than shown what the first one answers.
    """

    x: Floats
    target: Floats
    turn: int = 0
    mask: Floats | None = None


@dataclass
class _Seen:
    """One batch at some weights: unfolded inputs of both layers, slopes of the activation (O, …), weighed residuals."""

    first: Floats
    slope: Floats
    shape: tuple[int, ...]
    second: Floats
    residual: Floats


class Joint:
    """The problem: two layers, the activation between them, and what each output counts.

    Args:
        first, second: how the layers see their inputs.
        activation: from a tensor as the first layer puts it out to one as the second takes it in, element by element.
        scale: (D) what the network multiplies the outputs by.
        biases: whether the first and the second layer's bias may change.
        ranks: processes that have rows of their own each, and fit the same weights to all of them: errors, gradients and
            second moments are sums over rows.
        each: takes a function of one batch to all batches.
    """

    def __init__(
        self, first: Shape, second: Shape, activation: Activation, scale: Floats, biases: tuple[bool, bool],
        ranks: Ranks = ALONE, each: Map = map,
    ) -> None:  # fmt: skip
        self.first, self.second, self.activation, self.biases = first, second, activation, biases
        self.scale = scale.astype(np.float32)[:, None]
        self.ranks, self.each = ranks, each

    def error(self, weights: Weights, rows: Sequence[Rows]) -> float:
        """Mean squared error of the scaled outputs, summed over them."""
        sums = np.zeros(2)  # of squares, and of positions

        def of(batch: Rows) -> tuple[float, int]:
            hidden, _ = self._hidden(weights, batch.x)
            answer = self._second(weights.second, self._unfold(self._between(hidden, batch)))
            gap = (answer + weights.second_bias[:, None] - batch.target) * self.scale
            return float(np.vdot(gap, gap)), gap.shape[1]

        for found in self.each(of, rows):
            sums += found
        self.ranks.add_up(sums)
        return float(sums[0] / max(sums[1], 1))

    def statistics(self, weights: Weights, rows: Sequence[Rows]) -> Statistics:
        """Second moments of what the second layer sees and should answer; without its bias, where that may not change."""
        size, outputs, centred = weights.second.shape[2], len(weights.second_bias), self.biases[1]
        count, h, p = np.zeros(1), np.zeros((size, size)), np.zeros((outputs, size))
        u, t, t2 = np.zeros(size), np.zeros(outputs), np.zeros(outputs)
        shift = np.float32(0) if centred else weights.second_bias[:, None]

        def of(batch: Rows) -> tuple[Floats, ...]:
            seen = self._unfold(self._between(self._hidden(weights, batch.x)[0], batch))[0]
            target = batch.target - shift
            return (
                np.array([seen.shape[1]]), seen @ seen.T, target @ seen.T, seen.sum(1, dtype=np.float64),
                target.sum(1, dtype=np.float64), np.square(target, dtype=np.float64).sum(1),
            )  # fmt: skip

        sums = count, h, p, u, t, t2
        for found in self.each(of, rows):
            for total, part in zip(sums, found, strict=True):
                np.add(total, part, out=total)
        self.ranks.add_up(*sums)
        for total in sums[1:]:
            np.divide(total, max(count[0], 1), out=total)
        if centred:
            h -= np.outer(u, u)
            p -= np.outer(t, u)
            t2 = np.maximum(t2 - t * t, 0)
        return Statistics(h, p, t2, u, t, centred)

    def step(
        self, weights: Weights, rows: Sequence[Rows], damping: float, iterations: int, turn: int = 0, turns: int = 1
    ) -> Weights:
        """One Gauss–Newton step: conjugate gradients on the network made linear at these weights.

        The gradient is that of all batches; with `turns` the curvature is seen in a share of them, another one at each turn
        (Byrd, Chin, Neveitt and Nocedal, 2011), which is what a step costs and hardly matters to where the steps lead.

        Args:
            weights: where to start.
            rows: the batches to fit.
            damping: pull to the present weights, as a share of the mean curvature (Levenberg, Marquardt).
            iterations: of conjugate gradients, each two passes over the batches that show the curvature.
            turn, turns: which of the batches these are (`Rows.turn`): one in so many.
        """
        seen, sums = list[_Seen](), _Sums(weights)

        def of(batch: Rows) -> tuple[_Seen | None, _Parts]:
            entry = self._see(weights, batch)
            return entry if (batch.turn - turn) % turns == 0 else None, self._gradient(weights, entry, entry.residual)

        for shown, part in self.each(of, rows):
            sums.add(part)
            seen += [shown] if shown is not None else []
        rest = self._mean(sums, -1.0)
        condition = _Condition(self, weights, seen, damping)
        found = Weights(*(np.zeros_like(part) for part in rest.all()))
        near = condition.solve(rest)
        direction, energy = near, rest.dot(near)
        for _ in range(iterations):
            curved = condition.damped(self._curved(weights, seen, direction), direction)
            bent = direction.dot(curved)
            if not bent > 0 or not energy > 0:
                break
            length = energy / bent
            found, rest = found.plus(direction, length), rest.plus(curved, -length)
            near = condition.solve(rest)
            before, energy = energy, rest.dot(near)
            direction = near.plus(direction, energy / before)
        return found

    def _hidden(self, weights: Weights, x: Floats) -> tuple[Floats, Floats]:
        """What the first layer puts out, as a tensor, and its unfolded input (G₁, n₁, positions)."""
        seen = columns(x, self.first.x_axis, self.first.window)
        seen = seen.reshape(self.first.groups, -1, seen.shape[1])
        flat = (weights.first @ seen).reshape(-1, seen.shape[2]) + weights.first_bias[:, None]
        return _raise(flat, self._hidden_shape(x, len(flat)), self.first.y_axis), seen

    def _hidden_shape(self, x: Floats, outputs: int) -> tuple[int, ...]:
        window, axis = self.first.window, self.first.y_axis
        if not window.kernel:
            rest = [size for place, size in enumerate(x.shape) if place != self.first.x_axis % x.ndim]
            rest.insert(axis % x.ndim, outputs)
            return tuple(rest)
        return (len(x), outputs, *places(x.shape[2:], window))

    def _between(self, hidden: Floats, batch: Rows) -> Floats:
        """What the second layer is shown."""
        value = self.activation(hidden)
        return value if batch.mask is None else value * batch.mask

    def _unfold(self, value: Floats) -> Floats:
        seen = columns(value, self.second.x_axis, self.second.window)
        return seen.reshape(self.second.groups, -1, seen.shape[1])

    def _second(self, matrix: Floats, seen: Floats) -> Floats:
        return (matrix @ seen).reshape(-1, seen.shape[2])

    def _see(self, weights: Weights, batch: Rows) -> _Seen:
        hidden, first = self._hidden(weights, batch.x)
        axis = self.first.y_axis
        others = tuple(place for place in range(hidden.ndim) if place != axis % hidden.ndim)
        small = _SMALL * np.maximum(hidden.std(others, keepdims=True), 1e-6)
        value = self._between(hidden, batch)
        slope = (self._between(hidden + small, batch) - value) / small
        second = self._unfold(value)
        answer = self._second(weights.second, second) + weights.second_bias[:, None]
        residual = (answer - batch.target) * self.scale
        return _Seen(first, np.ascontiguousarray(_flatten(slope, axis)), hidden.shape, second, residual)

    def _push(self, weights: Weights, seen: _Seen, step: Weights) -> Floats:
        """How a small change of the weights moves the scaled outputs (D, positions)."""
        flat = (step.first @ seen.first).reshape(len(seen.slope), -1) + step.first_bias[:, None]
        moved = self._unfold(_raise(flat * seen.slope, seen.shape, self.first.y_axis))
        answer = self._second(weights.second, moved) + self._second(step.second, seen.second)
        return (answer + step.second_bias[:, None]) * self.scale

    def _curved(self, weights: Weights, seen: Sequence[_Seen], direction: Weights) -> Weights:
        """The curvature (JᵀJ, averaged over positions) times a direction."""
        sums = _Sums(weights)
        for part in self.each(
            lambda batch: self._gradient(weights, batch, self._push(weights, batch, direction)), seen
        ):
            sums.add(part)
        return self._mean(sums, 1.0)

    def _gradient(self, weights: Weights, batch: _Seen, given: Floats) -> "_Parts":
        """The adjoint of `_push`."""
        back = given * self.scale
        parted = back.reshape(self.second.groups, -1, back.shape[1])
        spread = (weights.second.swapaxes(1, 2) @ parted).reshape(-1, back.shape[1])
        hidden = scatter(spread, batch.shape, self.second.x_axis, self.second.window)
        flat = _flatten(hidden, self.first.y_axis) * batch.slope
        first = flat.reshape(self.first.groups, -1, flat.shape[1]) @ batch.first.swapaxes(1, 2)
        second = parted @ batch.second.swapaxes(1, 2)
        biases = (
            part.sum(1, dtype=np.float64) if may else 0.0 for may, part in zip(self.biases, (flat, back), strict=True)
        )
        return back.shape[1], (first, next(biases), second, next(biases))

    def _mean(self, sums: "_Sums", sign: float) -> Weights:
        """Sums of all processes, averaged over positions."""
        self.ranks.add_up(sums.count, *sums.totals)
        return Weights(*((sign / max(sums.count[0], 1) * total).astype(np.float32) for total in sums.totals))


_Parts = tuple[int, tuple[Any, ...]]  # positions of one batch, and its sums


class _Sums:
    """Sums over positions, one for each weight, and the number of positions."""

    def __init__(self, weights: Weights) -> None:
        self.totals = [np.zeros(part.shape, np.float64) for part in weights.all()]
        self.count = np.zeros(1)

    def add(self, parts: _Parts) -> None:
        """Take in what comes of one batch."""
        self.count += parts[0]
        for total, part in zip(self.totals, parts[1], strict=True):
            np.add(total, part, out=total)


class _Condition:
    """Damping and preconditioner: the inputs' second moments times each output's curvature (a Kronecker product)."""

    def __init__(self, joint: Joint, weights: Weights, seen: Sequence[_Seen], damping: float) -> None:
        count = np.array([sum(batch.residual.shape[1] for batch in seen)], np.float64)
        slopes = np.zeros(len(weights.first_bias))
        wide = [_is_wide(*weight.shape[::2]) for weight in (weights.first, weights.second)]
        moments = [np.zeros((len(w), *[w.shape[2]] * (1 if many else 2))) for w, many in zip(
            (weights.first, weights.second), wide, strict=True)]  # fmt: skip

        def of(batch: _Seen) -> tuple[Floats, ...]:
            both = zip((batch.first, batch.second), wide, strict=True)
            return (np.square(batch.slope, dtype=np.float64).sum(1), *(_moments(rows, many) for rows, many in both))

        for found in joint.each(of, seen):
            for total, part in zip((slopes, *moments), found, strict=True):
                np.add(total, part, out=total)
        joint.ranks.add_up(count, slopes, *moments)
        many = max(count[0], 1)
        squares = np.square(weights.second * joint.scale.reshape(len(weights.second), -1, 1)).sum(1)
        squares = squares.reshape(len(weights.first_bias), -1).sum(1)
        self.first_weight = _floored(slopes / many * squares)
        self.second_weight = _floored(np.square(joint.scale[:, 0], dtype=np.float64))
        self.damping = damping
        self.first, self.first_pull = _inverse(moments[0] / many, damping)
        self.second, self.second_pull = _inverse(moments[1] / many, damping)
        self.groups = joint.first.groups, joint.second.groups

    def _spread(self, weight: Floats, place: int) -> Floats:
        return weight.reshape(self.groups[place], -1, 1)

    def solve(self, gradient: Weights) -> Weights:
        """Roughly the step that this gradient asks for."""
        first, second = (
            (part @ inverse if inverse.ndim == 3 else part * inverse[:, None]) / self._spread(weight, place)
            for place, (part, inverse, weight) in enumerate(
                ((gradient.first, self.first, self.first_weight), (gradient.second, self.second, self.second_weight))
            )
        )
        biases = gradient.first_bias / self.first_weight, gradient.second_bias / self.second_weight
        return Weights(*(part.astype(np.float32) for part in (first, biases[0], second, biases[1])))

    def damped(self, curved: Weights, direction: Weights) -> Weights:
        """The pull to the present weights added to a product with the curvature."""
        pulls = (
            self.first_pull[:, None, None] * self._spread(self.first_weight, 0),
            self.damping * self.first_weight,
            self.second_pull[:, None, None] * self._spread(self.second_weight, 1),
            np.zeros(len(self.second_weight)),
        )
        return Weights(
            *(
                (part + pull * move).astype(np.float32)
                for part, pull, move in zip(curved.all(), pulls, direction.all(), strict=True)
            )
        )


def _is_wide(groups: int, size: int) -> bool:
    """Whether only the diagonal of second moments is looked at."""
    return size > _WIDE or groups * size > _WIDE * 8


def _moments(rows: Floats, wide: bool) -> Floats:
    """Σ u uᵀ of each convolution group (groups, size, size), or its diagonal (groups, size)."""
    return np.square(rows, dtype=np.float64).sum(2) if wide else rows @ rows.swapaxes(1, 2)


def _inverse(h: NDArray[np.float64], damping: float) -> tuple[Floats, Floats]:
    """(H + pull · I)⁻¹ of each convolution group (or of its diagonal, where that is all there is) and the pull."""
    if h.ndim == 2:
        pull = damping * h.mean(1) + 1e-12
        return (1.0 / (h + pull[:, None])).astype(np.float32), pull
    size = h.shape[1]
    pull = damping * np.trace(h, axis1=1, axis2=2) / size + 1e-12
    return np.linalg.inv(h + pull[:, None, None] * np.eye(size)).astype(np.float32), pull


def _floored(weight: Floats) -> NDArray[np.float64]:
    """Curvatures, none of them next to nothing."""
    return np.asarray(weight + 1e-3 * weight.mean() + 1e-12, np.float64)


def _flatten(value: Floats, axis: int) -> Floats:
    """(channels, positions) of a tensor."""
    return np.moveaxis(value, axis, 0).reshape(value.shape[axis], -1)


def _raise(flat: Floats, shape: tuple[int, ...], axis: int) -> Floats:
    """A tensor from (channels, positions)."""
    axis %= len(shape)
    moved = (shape[axis], *shape[:axis], *shape[axis + 1 :])
    return np.moveaxis(flat.reshape(moved), 0, axis)
