"""The optimizers. Folded networks have weights of any size, filter by filter, so that steps go by each filter's own."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from thinet_onnx.training.options import FinetuneOptions
from thinet_onnx.training.whitening import Coordinates

_LEAST = 0.02  # of a tensor's median filter: a filter of zeros moves as if it were that large
_LEAST_SIZE = 1e-3  # of that median: a tensor of zeros, too, has to move


def optimizer(
    weights: Mapping[str, Tensor], options: FinetuneOptions, coordinates: Mapping[str, Coordinates]
) -> torch.optim.Optimizer:
    """The optimizer that is asked for; norms and biases, which have one axis longer than 1, don't decay.

    Args:
        weights: what is trained, by name.
        options: the run's.
        coordinates: where some of the weights are trained by `whitened`.
    """
    groups = [
        {"params": [weight], "weight_decay": options.weight_decay if is_matrix(weight) else 0.0}
        for weight in weights.values()
    ]
    if options.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=options.rate, momentum=options.momentum)
    if options.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=options.rate)
    return Scaled(weights, groups, options.rate, coordinates)


def is_matrix(weight: Tensor) -> bool:
    """Whether more than one axis is longer than 1."""
    return sum(size > 1 for size in weight.shape) > 1


def sizes(weight: Tensor) -> Tensor:
    """How large each filter of a weight (filters on its first axis) or each value of a vector is; it broadcasts.

    A filter's root mean square; of a vector's value its own size and the vector's, half each. What counts for the whole is the
    median, since a filter that sees next to nothing may be folded to any size (1e7 beside 1 in MediaPipe's face detector),
    and no filter of some size counts as larger, since the next layer may be as large as it is small.
    """
    found = weight.detach().abs()
    if is_matrix(weight):
        found = found.square().mean(dim=tuple(range(1, weight.ndim)), keepdim=True).sqrt()
    whole = found.median().clamp_min(_LEAST_SIZE)
    return torch.where(found > 0, found, _LEAST * whole) if is_matrix(weight) else (found + whole) / 2


class Scaled(torch.optim.AdamW):
    """AdamW on other coordinates q of each weight p, that are linear in it: rates are shares of the weight's own size.

    Without `coordinates` they are p = s · q with s the filter's size when training begins, so that a filter moves by a share of
    its size, as whole tensors do in Adafactor (Shazeer and Stern, 2018). With them p is a layer's weights W, and q the rows of
    V = W Q Λ^½, each divided by its size when training begins: a filter moves by a share of how much its answers vary.

    Only steps pass through q, so that the weights are no part of the optimizer's state, and what doesn't move stays what it
    was, to the bit. Coordinates follow from what the weights were at first, so they are no part of it either.
    """

    def __init__(
        self, weights: Mapping[str, Tensor], groups: list[dict[str, Any]], lr: float, coordinates: Mapping[str, Coordinates]
    ) -> None:  # fmt: skip
        self._weights, self._coordinates = weights, coordinates
        starts = {n: coordinates[n].inward(w.detach()) if n in coordinates else w for n, w in weights.items()}
        self._sizes = {name: sizes(start) for name, start in starts.items()}
        self._steps = {name: torch.zeros_like(start) for name, start in starts.items()}
        super().__init__([{**g, "params": [q]} for g, q in zip(groups, self._steps.values(), strict=True)], lr=lr)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of the weights."""
        super().zero_grad(set_to_none)
        for weight in self._weights.values():
            weight.grad = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every weight by its gradient."""
        assert closure is None, "gradients are at hand"
        gradients = {name: weight.grad for name, weight in self._weights.items()}
        for name, step in self._steps.items():
            gradient, where = gradients[name], self._coordinates.get(name)
            assert gradient is not None
            turned = gradient if where is None else where.gradient(gradient, gradients.get(where.bias))
            step.zero_().grad = turned * self._sizes[name]
        super().step()  # from 0, so that the decay does nothing and what is there now is the step
        for group, (name, weight) in zip(self.param_groups, self._weights.items(), strict=True):
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            step = self._steps[name] * self._sizes[name]
            if name in self._coordinates:
                step, shift = self._coordinates[name].outward(step, weight)
                if self._coordinates[name].bias:
                    self._weights[self._coordinates[name].bias].add_(shift)
            weight.add_(step)
