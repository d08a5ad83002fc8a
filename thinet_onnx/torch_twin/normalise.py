"""Norms: over the batch, over space, over channels."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from thinet_onnx.torch_twin.registry import Call, operator


@operator("BatchNormalization", weights=(1, 2), statistics=(3, 4))
def batch_norm(call: Call, x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """By running statistics or, while these are learned, by those of the batch.

    The running ones then move towards the batch's, in place; it is the one function that changes its operands.
    """
    if call.integer("spatial", 1) == 0:
        raise call.refuse("statistics for each place (spatial=0)")
    epsilon, rate = call.number("epsilon", 1e-5), 1.0 - call.number("momentum", 0.9)
    learning = call.node.key in call.state.learning
    if not learning or call.state.total is None:
        return functional.batch_norm(x, mean, variance, scale, shift, learning, rate, epsilon)
    axes = (0, *range(2, x.ndim))
    count = call.state.total(torch.full((), x.numel() / x.shape[1], device=x.device))
    middle = call.state.total(x.sum(axes)) / count
    centred = x - _spread(middle, x)
    found = call.state.total(centred.square().sum(axes)) / count
    with torch.no_grad():
        mean.lerp_(middle, rate)
        variance.lerp_(found * count / (count - 1), rate)
    return centred * _spread(scale * torch.rsqrt(found + epsilon), x) + _spread(shift, x)


def _spread(vector: Tensor, x: Tensor) -> Tensor:
    """One value for each channel, as it meets (N, C, …)."""
    return vector.reshape(-1, *[1] * (x.ndim - 2))


@operator("InstanceNormalization", weights=(1, 2))
def instance_norm(call: Call, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Every channel of every item by itself."""
    return functional.instance_norm(x, None, None, scale, shift, True, 0.0, call.number("epsilon", 1e-5))


@operator("GroupNormalization", weights=(1, 2))
def group_norm(call: Call, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Groups of channels; scale and shift belong to channels, before operator set 21 to groups."""
    groups = call.integer("num_groups", 1)
    if scale.numel() == groups != x.shape[1]:
        scale, shift = (vector.repeat_interleave(x.shape[1] // groups) for vector in (scale, shift))
    return functional.group_norm(x, groups, scale, shift, call.number("epsilon", 1e-5))


@operator("LayerNormalization", weights=(1, 2))
def layer_norm(call: Call, x: Tensor, scale: Tensor, shift: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """All axes from `axis` on; also the mean and the inverse deviation."""
    axes = tuple(range(call.integer("axis", -1) % x.ndim, x.ndim))
    mean = x.mean(axes, keepdim=True)
    inverse = torch.rsqrt((x - mean).square().mean(axes, keepdim=True) + call.number("epsilon", 1e-5))
    result = (x - mean) * inverse * scale
    return result if shift is None else result + shift, mean, inverse


@operator("RMSNormalization", weights=(1,))
def rms_norm(call: Call, x: Tensor, scale: Tensor) -> Tensor:
    """All axes from `axis` on by their root mean square."""
    axes = tuple(range(call.integer("axis", -1) % x.ndim, x.ndim))
    return x * torch.rsqrt(x.square().mean(axes, keepdim=True) + call.number("epsilon", 1e-5)) * scale


@operator("com.microsoft::SkipLayerNormalization", weights=(2, 3, 4))
def skip_layer_norm(
    call: Call, x: Tensor, other: Tensor, scale: Tensor, shift: Tensor | None = None, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The sum of two tensors and a bias, normalised over the last axis; also mean, inverse deviation and the sum."""
    total = x + other if bias is None else x + other + bias
    mean = total.mean(-1, keepdim=True)
    inverse = torch.rsqrt((total - mean).square().mean(-1, keepdim=True) + call.number("epsilon", 1e-12))
    result = (total - mean) * inverse * scale
    return result if shift is None else result + shift, mean, inverse, total


@operator("LRN")
def local_response(call: Call, x: Tensor) -> Tensor:
    """By the squares of neighbouring channels; of an even number of neighbours one more lies behind."""
    length = call.integer("size", 1)
    before = (length - 1) // 2
    squares = functional.pad(x.square().movedim(1, -1), (before, length - 1 - before))
    sums = squares.unfold(-1, length, 1).sum(-1).movedim(-1, 1)
    alpha, beta = call.number("alpha", 1e-4), call.number("beta", 0.75)
    return x / (call.number("bias", 1.0) + alpha / length * sums) ** beta


@operator("MeanVarianceNormalization")
def mean_variance(call: Call, x: Tensor) -> Tensor:
    """Centred and divided by the deviation, over the named axes."""
    axes = tuple(call.integers("axes", (0, 2, 3)))
    centred = x - x.mean(axes, keepdim=True)
    return centred / (centred.square().mean(axes, keepdim=True) + math.ulp(1.0)).sqrt()
