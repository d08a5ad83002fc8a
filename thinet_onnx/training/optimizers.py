"""The optimizers. Folded networks have weights of any size, filter by filter, so that steps go by each filter's own."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from thinet_onnx.training.options import FinetuneOptions

_LEAST = 0.02  # of a tensor's median filter: a filter of zeros moves as if it were that large
_LEAST_SIZE = 1e-3  # of that median: a tensor of zeros, too, has to move


def optimizer(weights: Iterable[Tensor], options: FinetuneOptions) -> torch.optim.Optimizer:
    """The optimizer that is asked for; norms and biases, which have one axis longer than 1, don't decay."""
    groups = [
        {"params": [weight], "weight_decay": options.weight_decay if is_matrix(weight) else 0.0} for weight in weights
    ]
    if options.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=options.rate, momentum=options.momentum)
    return (Scaled if options.optimizer == "scaled" else torch.optim.AdamW)(groups, lr=options.rate)


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
    """AdamW on q, where each weight is p = s · q with s its filter's size when training begins: rates are shares of it.

    So a filter moves by a share of its size, as whole tensors do in Adafactor (Shazeer and Stern, 2018). Sizes follow from the
    weights it is made with, so they are no part of its state.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float) -> None:
        super().__init__(groups, lr=lr)
        self._sizes = {weight: sizes(weight) for group in self.param_groups for weight in group["params"]}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every weight that has a gradient."""
        assert closure is None, "gradients are at hand"
        moved = [(weight, size) for weight, size in self._sizes.items() if weight.grad is not None]
        before = [weight.clone() for weight, _ in moved]
        for weight, size in moved:
            weight.div_(size)
            weight.grad.mul_(size)
        starts = [weight.clone() for weight, _ in moved]
        super().step()
        for (weight, size), old, start in zip(moved, before, starts, strict=True):
            weight.copy_(old + (weight - start) * size)  # what doesn't move stays what it was, to the bit
