"""Student and teacher as functions from feeds to tensors by name, whoever computes them."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from thinet_onnx import runtime
from thinet_onnx.errors import ModelError
from thinet_onnx.graph import Array, Graph
from thinet_onnx.torch_twin import Cut, Twin, find_cut, to_torch

Feeds = dict[str, Array]
Tensors = dict[str, Tensor]


class Reference:
    """A network, or the first part of it, in ONNX Runtime.

    Args:
        model: the network.
        names: tensors that are wanted of it.

    Raises:
        ModelError: it has no such tensor, or ONNX Runtime refuses it.
    """

    def __init__(self, model: onnx.ModelProto, names: Sequence[str]) -> None:
        exposed = runtime.runnable(model)
        self._inputs = {value.name for value in Graph(model).inputs}
        self._names = [name for name in dict.fromkeys(names) if name not in self._inputs]
        del exposed.graph.output[:]
        exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in self._names)
        self._session = runtime.session(exposed)

    def __call__(self, feeds: Feeds) -> Feeds:
        """The tensors asked for, and the feeds."""
        if not self._names:
            return dict(feeds)
        found = runtime.run(self._session, {name: feeds[name] for name in self._inputs}, self._names)
        return {**feeds, **dict(zip(self._names, found, strict=True))}


class Network:
    """A network that gives the tensors that were asked for: its twin, behind a part in ONNX Runtime if it needs one.

    Args:
        model: the network.
        cut: which part has a twin.
        names: tensors that are wanted; `Cut.ends` are among them.
        device: where the twin computes.
        channels_last: keep images and kernels with their channels innermost.
        short: multiply in bfloat16; weights and results stay float32.
        compiled: let `torch.compile` make one program of the twin, for each shape of its inputs.
    """

    def __init__(
        self, model: onnx.ModelProto, cut: Cut, names: Sequence[str], device: torch.device, *, channels_last: bool = False,
        short: bool = False, compiled: bool = False,
    ) -> None:  # fmt: skip
        inputs = {value.name for value in Graph(model).inputs}
        self._head = Reference(model, cut.starts) if set(cut.starts) - inputs else None
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self.twin = to_torch(model, starts=cut.starts, ends=tuple(names)).to(device)
        for weight in self.twin.parameters():
            weight.data = self._laid_out(weight.data)
        self._device, self._short = device, short
        self._run: Callable[[Tensors], Sequence[Tensor]] = Compiled(self.twin) if compiled else self.twin.run

    def __call__(self, feeds: Feeds) -> Tensors:
        """The tensors that were asked for, by name."""
        values = feeds if self._head is None else self._head(feeds)
        inputs = {name: self.placed(values[name]) for name in self.twin.input_names}
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._short):
            found = self._run(inputs)
        if self._short:
            found = [value.float() if value.is_floating_point() else value for value in found]
        return dict(zip(self.twin.output_names, found, strict=True))

    def placed(self, value: Array) -> Tensor:
        """An array as a tensor where the twin computes."""
        tensor = torch.from_numpy(np.ascontiguousarray(value)).to(self._device)
        return self._laid_out(tensor)

    def _laid_out(self, tensor: Tensor) -> Tensor:
        return tensor.contiguous(memory_format=self._format) if tensor.ndim == 4 else tensor


class Compiled:
    """A twin as one compiled program for each shape of its inputs: traced to plain operators, then `torch.compile`."""

    def __init__(self, twin: Twin) -> None:
        self._twin = twin
        self._programs: dict[tuple[Any, ...], Callable[..., Sequence[Tensor]]] = {}

    def __call__(self, inputs: Tensors) -> Sequence[Tensor]:
        """What `Twin.run` returns."""
        key = (torch.is_grad_enabled(), *(tuple(value.shape) for value in inputs.values()))
        weights, buffers = dict(self._twin.named_parameters()), dict(self._twin.named_buffers())
        if key not in self._programs:
            self._programs[key] = torch.compile(make_fx(self._function())(weights, buffers, inputs))
        return self._programs[key](weights, buffers, inputs)

    def _function(self) -> Callable[[Tensors, Tensors, Tensors], tuple[Tensor, ...]]:
        def run(weights: Tensors, buffers: Tensors, inputs: Tensors) -> tuple[Tensor, ...]:
            found = functional_call(self._twin, {**weights, **buffers}, tuple(inputs.values()))
            return found if isinstance(found, tuple) else (found,)

        return run


class Teacher:
    """The original: by its twin if it has one, else by ONNX Runtime.

    Raises:
        ModelError: it lacks a tensor that the student is compared by.
    """

    def __init__(self, model: onnx.ModelProto, names: Sequence[str], device: torch.device, **how: bool) -> None:
        graph = Graph(model)
        for name in names:
            if name not in graph.producer:
                raise ModelError(
                    f"The original has no tensor {name!r}, by which the pruned network is compared with it."
                )
        self._names, self._device = list(names), device
        cut = find_cut(graph)
        self._network: Network | None = None
        if cut.left_out:
            self._reference = Reference(model, names)
        else:
            self._network = Network(model, Cut(cut.starts, tuple(names), ()), names, device, **how)
            self._network.twin.requires_grad_(False)

    def __call__(self, feeds: Feeds) -> Tensors:
        """The tensors that were asked for, by name, without gradients."""
        if self._network is not None:
            with torch.no_grad():
                return self._network(feeds)
        values = self._reference(feeds)
        return {name: torch.from_numpy(values[name]).float().to(self._device) for name in self._names}


def works_together(network: Network, teacher: Teacher, one: Feeds, two: Feeds, both: Feeds) -> bool:
    """Whether two items that are run together answer as they do alone, in student and teacher."""
    with torch.no_grad():
        for run in (network, teacher):
            try:
                first, second, joined = run(one), run(two), run(both)
            except (RuntimeError, ModelError):
                return False
            if not all(_same(first[name], second[name], joined[name]) for name in joined):
                return False
    return True


def _same(first: Tensor, second: Tensor, joined: Tensor) -> bool:
    if not first.ndim or joined.shape != (first.shape[0] + second.shape[0], *first.shape[1:]):
        return False
    expected = torch.cat([first, second])
    if not expected.is_floating_point():
        return True
    gap, scale = (expected - joined).abs(), expected.abs().max().clamp(1e-12)
    return bool((gap <= 1e-3 * scale).float().mean() > 0.99)  # a rounded step apart is no other answer
