"""Coordinates of a linear layer's weights in which what it reads is as if it were white.

A layer answers W u + b to an input row u (an input patch of a convolution). Neighbouring pixels are alike, channels go
together, and behind a ReLU nothing is 0 on average: a few directions of W make nearly all of a gradient, the others hardly
learn. With the second moments of what the layer reads, those of its channels and those of its taps taken apart (as KFAC does
for convolutions, Grosse and Martens, 2016)

    E[(u − μ)(u − μ)ᵀ] ≈ Q Λ Qᵀ,  Q = Q_channels ⊗ Q_taps

steps are taken in V = W Q Λ^½, where a change of any element changes the answers as much as one of any other, and for each
change ΔW the bias moves by −ΔW μ, so that the mean answer stays as it was.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from thinet_onnx import runtime
from thinet_onnx.data import Source
from thinet_onnx.graph import Graph
from thinet_onnx.groups import analyse
from thinet_onnx.rules import Linear
from thinet_onnx.training.networks import Reference
from thinet_onnx.unfold import count_positions, rows_at

Doubles = NDArray[np.float64]

_ITEMS = 64  # that are looked at
_POSITIONS = 256  # of each
_WIDEST = 2048  # channels: the moments of more aren't taken
_RIDGE = 0.1  # of the mean variance, which is added to all


@dataclass(frozen=True)
class Coordinates:
    """Where the weights of one layer are trained.

    Args:
        layer: how the operand is read; with convolution groups, each has its own coordinates.
        bias: the name of the bias that keeps the mean answer, "" if there is none that could.
        mean: (G, n) μ, the mean input row of each convolution group; n is channels of a group · taps.
        channels: (G, C, C) Q_channels, an eigenvector in each column.
        taps: (G, K, K) Q_taps, likewise.
        spread: (G, C, K) Λ^½.
    """

    layer: Linear
    bias: str
    mean: Tensor
    channels: Tensor
    taps: Tensor
    spread: Tensor

    def tensors(self) -> list[Tensor]:
        """All numbers that were measured."""
        return [self.mean, self.channels, self.taps, self.spread]

    def to(self, device: torch.device) -> "Coordinates":
        """The same with its numbers where they are needed."""
        return Coordinates(self.layer, self.bias, *(tensor.to(device) for tensor in self.tensors()))

    def inward(self, weight: Tensor) -> Tensor:
        """The operand W as V, (D, n) with one filter in each row."""
        return (self._turned(self._matrix(weight)) * self.spread[:, None]).flatten(2).flatten(0, 1)

    def gradient(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The gradient for V (D, n) from that for the operand and that for the bias (D) which moves along, if there is one."""
        matrix = self._matrix(weight)
        if bias is not None:
            matrix = matrix - bias.reshape(len(matrix), -1, 1) * self.mean[:, None]
        return (self._turned(matrix) / self.spread[:, None]).flatten(2).flatten(0, 1)

    def outward(self, change: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """For a change of V (D, n) that of the operand, in the shape of `like`, and that of the bias (D)."""
        groups, channels, taps = self.spread.shape
        flat = change.reshape(groups, -1, channels, taps) / self.spread[:, None]
        matrix = (self.channels[:, None] @ flat @ self.taps[:, None].mT).flatten(2)
        return self._operand(matrix, like), -(matrix @ self.mean[:, :, None]).reshape(-1)

    def _turned(self, matrix: Tensor) -> Tensor:
        """Along the eigenvectors, (G, D/G, C, K)."""
        parted = matrix.reshape(*matrix.shape[:2], *self.spread.shape[1:])
        return self.channels[:, None].mT @ parted @ self.taps[:, None]

    def _matrix(self, operand: Tensor) -> Tensor:
        """The operand as (G, D/G, n), as `unfold.weight_matrix` has it."""
        groups = self.layer.groups
        if self.layer.window.transposed:
            parted = operand.reshape(groups, -1, *operand.shape[1:]).transpose(1, 2)
            return parted.flip(*range(3, parted.ndim)).flatten(2)
        if self.layer.in_axis == 0:
            operand = operand.mT
        return operand.reshape(groups, len(operand) // groups, -1)

    def _operand(self, matrix: Tensor, like: Tensor) -> Tensor:
        """Inverse of `_matrix`."""
        if self.layer.window.transposed:
            parted = matrix.reshape(*matrix.shape[:2], -1, *like.shape[2:])
            return parted.flip(*range(3, parted.ndim)).transpose(1, 2).reshape(like.shape)
        return matrix.reshape(like.shape[::-1]).mT if self.layer.in_axis == 0 else matrix.reshape(like.shape)


class Seen:
    """Sums over what a layer reads: second moments of its channels, of its taps, and the mean row.

    Args:
        layer: which one.
    """

    def __init__(self, layer: Linear) -> None:
        groups, inputs, taps = layer.groups, layer.in_channels // layer.groups, layer.taps
        self.count = 0
        self.total = np.zeros((groups, inputs, taps))
        self.channels = np.zeros((groups, inputs, inputs))
        self.taps = np.zeros((groups, taps, taps))

    def add(self, layer: Linear, x: NDArray[Any], rng: np.random.Generator) -> None:
        """Take in what one use of the layer reads of an item, at random positions."""
        there = count_positions(x.shape, layer.x_axis, layer.window)
        wanted = min(there, _POSITIONS)
        picks = np.sort(rng.choice(there, wanted, replace=False)).astype(np.int64)
        rows = rows_at(x, layer.x_axis, layer.window, picks).astype(np.float64)
        parted = rows.reshape(wanted, *self.total.shape).transpose(1, 2, 3, 0)  # (G, C, K, rows)
        self.count += wanted
        self.total += parted.sum(-1)
        self.channels += _products(parted)
        self.taps += _products(parted.swapaxes(1, 2))

    @property
    def finite(self) -> bool:
        """Whether all sums are numbers."""
        return all(bool(np.isfinite(sums).all()) for sums in (self.total, self.channels, self.taps)) and self.count > 0

    def coordinates(self, layer: Linear, bias: str) -> Coordinates:
        """The coordinates, about the mean where there is a bias."""
        mean = self.total / self.count
        centre = mean if bias else np.zeros_like(mean)
        inputs, taps = mean.shape[1:]
        channels = self.channels / (self.count * taps) - centre @ centre.swapaxes(1, 2) / taps
        other = self.taps / (self.count * inputs) - centre.swapaxes(1, 2) @ centre / inputs
        (large, first), (small, second) = np.linalg.eigh(channels), np.linalg.eigh(other)
        variance = large.clip(0)[:, :, None] * small.clip(0)[:, None]
        variance /= np.maximum(small.clip(0).mean(1), 1e-30)[:, None, None]
        whole = variance.mean((1, 2), keepdims=True)
        # few rows don't tell variances of many channels apart
        variance = np.where(whole > 1e-30, variance + (_RIDGE + inputs / self.count) * whole, 1.0)
        arrays = mean.reshape(len(mean), -1), first, second, np.sqrt(variance)
        return Coordinates(layer, bias, *(torch.from_numpy(np.float32(array)) for array in arrays))


def _products(parted: Doubles) -> Doubles:
    """Σ over the two last axes of the products of each two along the second: (G, A, B, rows) → (G, A, A)."""
    flat = parted.reshape(*parted.shape[:2], -1)
    return flat @ flat.swapaxes(1, 2)


def find_coordinates(
    model: onnx.ModelProto, trained: Collection[str], data: Source, rows: Sequence[int], seed: int
) -> dict[str, Coordinates]:
    """Look at what the linear layers of a network read, and give the coordinates of their weights by name.

    Layers whose weights are computed from others, that read more than 2,048 channels, or infinite ones, have none.

    Args:
        model: the network.
        trained: names of the constants that are trained.
        data: where items come from.
        rows: those that may be looked at; 64 of them are.
        seed: of the positions that are looked at.
    """
    graph = Graph(model)
    some = list(rows[:: max(1, len(rows) // _ITEMS)][:_ITEMS])
    shapes = runtime.observed_shapes(graph, data.batch(some[:1]))
    uses: dict[str, list[Linear]] = {}
    for layer in analyse(graph, shapes).context.linears:
        if layer.weight in trained and layer.in_channels // layer.groups <= _WIDEST:
            uses.setdefault(layer.weight, []).append(layer)
    uses = {name: layers for name, layers in uses.items() if len({_read(layer) for layer in layers}) == 1}
    if not uses:
        return {}
    run = Reference(model, [layer.x for layers in uses.values() for layer in layers])
    seen = {name: Seen(layers[0]) for name, layers in uses.items()}
    rng = np.random.default_rng(seed)
    for row in some:
        values = run(data.batch([row]))
        for name, layers in uses.items():
            for layer in layers:
                seen[name].add(layer, values[layer.x], rng)
    return {
        name: sums.coordinates(uses[name][0], _bias(graph, uses[name], trained))
        for name, sums in seen.items()
        if sums.finite
    }


def _read(layer: Linear) -> tuple[int, ...]:
    """How a layer reads its weight."""
    return layer.weight_operand, layer.in_axis, layer.groups, layer.window.transposed


def _bias(graph: Graph, layers: list[Linear], trained: Collection[str]) -> str:
    """The trained constant that all uses of a weight, and nothing else, add to their answers."""
    names = {layer.node.operand(layer.bias) if layer.bias is not None and layer.beta == 1.0 else "" for layer in layers}
    (name, *others) = names
    if others or name not in trained or graph.tensors[name].dims != [layers[0].out_channels]:
        return ""
    return name if len(graph.consumers[name]) == len(layers) and all(layer.alpha == 1.0 for layer in layers) else ""
