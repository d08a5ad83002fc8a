"""Does a twin compute what ONNX Runtime computes, and do gradients reach its weights?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch

from thinet_onnx import runtime
from thinet_onnx.graph import Graph
from thinet_onnx.torch_twin.convert import readable, to_torch
from thinet_onnx.torch_twin.cut import find_cut, with_gradients
from thinet_onnx.torch_twin.module import Twin

Array = np.ndarray[Any, Any]

_ROUNDING = 4 * 2.0**-23


@dataclass(frozen=True)
class TwinCheck:
    """What `twin_check` found.

    `difference`: the largest difference from ONNX Runtime's outputs, relative to the largest output. `weights`: how many
    constants are trained, `parameters` their elements. `dead` are those whose gradient is zero everywhere though smooth
    operators lead from them to the outputs, `broken` those with one that isn't finite. `left_out` are operators without a
    twin; then only a part was compared.
    """

    difference: float
    weights: int
    parameters: int
    dead: tuple[str, ...]
    broken: tuple[str, ...]
    left_out: tuple[str, ...] = ()


def difference(expected: list[Array], actual: list[Array]) -> float:
    """max |a − e| / max |e| in float64, the worst over all outputs; infinite where shapes or what is finite differ.

    Four last digits of 1.0 are rounding and don't count: a detector's scores may all lie on the flat end of a sigmoid,
    where float32 has no more.
    """
    worst = 0.0
    for e, a in zip(expected, actual, strict=True):
        if e.shape != a.shape or not np.array_equal(np.isfinite(e), np.isfinite(a)):
            return float("inf")
        wide, other = (np.where(np.isfinite(x), x, 0).astype(np.float64) for x in (e, a))
        gap = max(float(np.abs(wide - other).max(initial=0.0)) - _ROUNDING, 0.0)
        worst = max(worst, gap / max(float(np.abs(wide).max(initial=0.0)), 1e-12))
    return worst


def tensors(model: onnx.ModelProto, feeds: Mapping[str, Array], names: Sequence[str]) -> list[Array]:
    """Any tensors of ONNX Runtime's plain run of a model (every node by itself, in the file's own precision).

    Raises:
        ModelError: ONNX Runtime can't run it.
    """
    exposed = runtime.runnable(model)
    inner = [name for name in dict.fromkeys(names) if name not in feeds]
    if not inner:
        return [feeds[name] for name in names]
    del exposed.graph.output[:]
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
    found = runtime.run(runtime.session(exposed, optimise=False), dict(feeds), inner)
    values = {**feeds, **dict(zip(inner, found, strict=True))}
    return [values[name] for name in names]


def disagreement(model: onnx.ModelProto, twin: Twin, feeds: Mapping[str, Array]) -> float:
    """How far a twin is from ONNX Runtime's plain run of the model, between the tensors that it begins and ends with.

    The scale is that of `difference`.
    """
    begins, ends = len(twin.input_names), twin.output_names
    values = tensors(model, feeds, (*twin.input_names, *ends))
    device = next((value.device for value in twin.state_dict().values()), torch.device("cpu"))
    with torch.no_grad():
        found = twin.run(
            {name: torch.from_numpy(np.array(v)).to(device) for name, v in zip(twin.input_names, values, strict=False)}
        )
    return difference(values[begins:], [value.cpu().numpy() for value in found])


def twin_check(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> TwinCheck:
    """Compare the twin with ONNX Runtime on one batch, and look at the gradients of a random sum of its outputs.

    All outputs are compared that the twin can compute. Gradients are those of the part that `find_cut` finds.

    Raises:
        ModelError: no weight of the model can be trained, or ONNX Runtime can't run it.
    """
    model = readable(model)
    graph = Graph(model)
    cut = find_cut(graph)
    twin = to_torch(model, starts=cut.starts, ends=cut.ends)
    apart = disagreement(model, twin, feeds)
    if not cut.left_out:  # outputs that no gradient passes count too
        apart = max(apart, disagreement(model, to_torch(model), feeds))
    values = tensors(model, feeds, twin.input_names)
    found = twin.run({name: torch.from_numpy(np.array(v)) for name, v in zip(twin.input_names, values, strict=True)})
    random = torch.Generator().manual_seed(0)
    parts = [
        (y * torch.randn(y.shape, generator=random)).mean() / y.detach().abs().amax().clamp(1e-12)
        for y in found if y.numel()
    ]  # fmt: skip
    weights = twin.weights()
    gradients = torch.autograd.grad(torch.stack(parts).sum(), list(weights.values()), allow_unused=True)
    smooth = with_gradients(graph, cut.ends)
    named = list(zip(weights, gradients, strict=True))
    return TwinCheck(
        apart, len(weights), sum(weight.numel() for weight in weights.values()),
        tuple(name for name, g in named if name in smooth and (g is None or not g.any())),
        tuple(name for name, g in named if g is not None and not g.isfinite().all()),
        cut.left_out,
    )  # fmt: skip
