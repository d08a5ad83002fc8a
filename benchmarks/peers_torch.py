"""Torch-Pruning on an ONNX file: a torch module with the file's weights, pruned by `BasePruner`, and back to ONNX.

Only the CIFAR ResNets with padded shortcuts (He et al., 2016, option A) and ResNet-50 without BatchNorm have a module
(`peers_modules.py`); that it answers as the file does is checked before it is used. In the `inner` scope the layers that the
residual streams couple are ignored.
"""

import copy
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import torch
import torch_pruning as tp
from onnx import numpy_helper
from peers import Outcome, Problem, UnavailableError, search
from peers_modules import Network, module_for
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from thinet_onnx import runtime

_STEPS = 5  # of iterative pruning
_SAME = 1e-4  # how far the module may be from the file, relative to the largest answer
_BATCH, _ELEMENTS = 128, 1_200_000  # images run together, and elements of their pixels, at most
_GRADIENT_ELEMENTS = 100_000_000  # of the gradients of several images together, at most
_OPSET = 17


@dataclass(frozen=True)
class Twin:
    """The module, the calibration images (N, 3, H, W) with their classes (N,), and the names of the file's ends."""

    module: Network
    images: torch.Tensor
    classes: torch.Tensor
    ends: tuple[str, str]

    def batches(self, size: int | None = None) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Images and classes, in order."""
        size = size or _together(self.images)
        return zip(self.images.split(size), self.classes.split(size), strict=True)


def _together(images: torch.Tensor) -> int:
    """How many images are run together."""
    return max(1, min(_BATCH, _ELEMENTS // images[0].numel()))


def prune(problem: Problem, importance: str, *, pooled: bool, iterative: bool, renormalise: bool) -> Outcome:
    """The peer's run, see `peers.TorchPruning`.

    Raises:
        UnavailableError: the file has no module here.
    """
    twin = problem.once("twin", lambda: load(problem))
    if renormalise and not twin.module.pairs():
        raise UnavailableError("the network has no BatchNorm whose statistics could be measured anew")
    how = (importance, pooled, _STEPS if iterative else 1, problem.scope)

    def run() -> tuple[Network, float, float]:
        whole = _macs(twin.module, twin.images[:1])
        steps = _Steps(problem, twin, *how)
        ratio = search(lambda r: _macs(steps.cut(r), twin.images[:1]) / whole, problem.share)
        started = time.perf_counter()
        pruned = steps.cut(ratio)
        return pruned, ratio, time.perf_counter() - started + steps.once_seconds

    pruned, ratio, seconds = problem.once(("pruned", *how, problem.share), run)
    started = time.perf_counter()
    if renormalise:
        pruned = copy.deepcopy(pruned)
        _renormalise(pruned, twin)
    seconds += time.perf_counter() - started
    return Outcome(_export(pruned, twin), seconds, f"ratio {ratio:.3f}")


def scoring(problem: Problem, importance: str) -> float:
    """Seconds that the peer takes to score all groups once, the network and the images being in torch already.

    Raises:
        UnavailableError: the file has no module here.
    """
    return _Steps(problem, load(problem), importance, True, 1, problem.scope).scoring()


def load(problem: Problem) -> Twin:
    """The torch module of a file.

    Where the file's BatchNorms were folded into the convolutions, ones that change nothing are put back: with the mean
    and the deviation that each convolution's outputs have on the calibration images, which is about what they were.

    Raises:
        UnavailableError: the file isn't one of the networks that there is a module for.
    """
    model = onnx.load(str(problem.path))
    graph = model.graph
    values = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    pads = sum(node.op_type == "Pad" for node in graph.node)
    dense = [node for node in graph.node if node.op_type == "Gemm"]
    outputs = len(values[dense[0].input[2]]) if dense else 0
    module = module_for(len(convolutions), pads, len(dense), outputs)
    norms = {node.input[0]: node for node in graph.node if node.op_type == "BatchNormalization"}
    if module is None or (norms and not module.pairs()):
        raise UnavailableError(
            "Torch-Pruning takes a torch module, and there is one only for CIFAR ResNets with padding and for ResNet-50 "
            "without BatchNorm"
        )
    _fill(module.eval(), values, convolutions, dense[0], norms)
    rows = range(len(problem.calibration))
    (images,) = problem.calibration.batch(rows).values()
    tensor = torch.from_numpy(images)
    if not norms:
        _put_norms_back(module, tensor)
    classes = problem.calibration.labels
    with torch.no_grad():
        scores = torch.cat([module(part) for part in tensor.split(_together(tensor))])
    labels = scores.argmax(1) if classes is None else torch.from_numpy(classes)
    _compare(model, problem, scores.numpy())
    return Twin(module, tensor, labels, (graph.input[0].name, graph.output[0].name))


def _fill(
    module: Network, values: dict[str, torch.Tensor], convolutions: list[onnx.NodeProto], dense: onnx.NodeProto,
    norms: dict[str, onnx.NodeProto],
) -> None:  # fmt: skip
    """Give the module the file's weights; `norms` are the BatchNormalization nodes by what they read."""
    with torch.no_grad():
        module.linear.weight.copy_(values[dense.input[1]])
        module.linear.bias.copy_(values[dense.input[2]])
        for conv, node in zip(module.convolutions(), convolutions, strict=True):
            conv.weight.copy_(values[node.input[1]])
            conv.bias.copy_(values.get(node.input[2], torch.zeros(conv.out_channels)))
        for (_, norm), node in zip(module.pairs(), convolutions, strict=False):
            if (old := norms.get(node.output[0])) is not None:
                norm.eps = next(a.f for a in old.attribute if a.name == "epsilon")
                targets = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
                for target, name in zip(targets, old.input[1:5], strict=True):
                    target.copy_(values[name])


def _compare(model: onnx.ModelProto, problem: Problem, scores: Any) -> None:
    """Hold the module against the file on the first calibration images."""
    expected = np.concatenate([runtime.outputs(model, [problem.calibration.batch([row])])[0][0] for row in range(8)])
    gap = float(np.abs(expected - scores[:8]).max() / np.abs(expected).max())
    if not gap <= _SAME:
        raise UnavailableError(f"the torch module's answers are {gap:.1e} away from the file's")


def _put_norms_back(module: Network, images: torch.Tensor) -> None:
    """BatchNorms that change nothing, with the statistics of what goes into them."""
    for _, norm in module.pairs():  # so that the next line finds true inputs at every depth
        norm.running_mean.zero_()
        norm.running_var.fill_(1 - norm.eps)
    _statistics(module, images)
    with torch.no_grad():
        for _, norm in module.pairs():
            norm.weight.copy_(torch.sqrt(norm.running_var + norm.eps))
            norm.bias.copy_(norm.running_mean)


def _statistics(module: Network, images: torch.Tensor) -> None:
    """Set every BatchNorm's mean and variance to those of its inputs, the network itself running as it is."""
    sums: dict[nn.BatchNorm2d, list[torch.Tensor]] = {}

    def note(norm: nn.BatchNorm2d, inputs: tuple[torch.Tensor, ...]) -> None:
        x = inputs[0].double()
        sums.setdefault(norm, []).append(torch.stack([x.sum((0, 2, 3)), x.square().sum((0, 2, 3)),
                                                      torch.full((x.shape[1],), x.numel() / x.shape[1])]))  # fmt: skip

    hooks = [norm.register_forward_pre_hook(note) for _, norm in module.pairs()]
    with torch.no_grad():
        for part in images.split(_together(images)):
            module(part)
    for hook in hooks:
        hook.remove()
    for norm, parts in sums.items():
        first, second, count = torch.stack(parts).sum(0)
        norm.running_mean.copy_(first / count)
        norm.running_var.copy_(second / count - (first / count).square())


def _renormalise(module: Network, twin: Twin) -> None:
    """BatchNorm statistics anew: one pass in training mode, averaged over all batches."""
    for _, norm in module.pairs():
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for images, _ in twin.batches():
            module(images)
    module.eval()


class _Steps:
    """Pruning by one importance at any ratio, from the original each time."""

    def __init__(self, problem: Problem, twin: Twin, importance: str, pooled: bool, steps: int, scope: str) -> None:
        self.problem, self.twin, self.importance = problem, twin, importance
        self.pooled, self.steps, self.scope = pooled, steps, scope
        self.once_seconds = 0.0  # of what `cut` takes from memory

    def cut(self, ratio: float) -> Network:
        """A copy of the network without `ratio` of the channels that may go."""
        module = copy.deepcopy(self.twin.module)
        pruner = self._pruner(module, ratio)
        for step in range(self.steps):
            if self.importance in _GRADIENTS:
                self._fill_gradients(module, first=step == 0)
            pruner.step()
        return module.eval()

    def scoring(self) -> float:
        """Seconds to score every group that may be cut, once: gradients, where the importance takes them, and scores."""
        module = copy.deepcopy(self.twin.module)
        pruner, score = self._pruner(module, 0.5), _importance(self.importance)
        started = time.perf_counter()
        if self.importance in _GRADIENTS:
            self._fill_gradients(module, first=True)
        for group in pruner.DG.get_all_groups(self._kept(module), [nn.Conv2d, nn.Linear]):
            score(group)
        return time.perf_counter() - started

    def _kept(self, module: Network) -> list[nn.Module]:
        return [module.linear, *(module.streams() if self.scope == "inner" else [])]

    def _pruner(self, module: Network, ratio: float) -> tp.pruner.BasePruner:
        return tp.pruner.BasePruner(
            module, self.twin.images[:1], importance=_importance(self.importance), global_pruning=self.pooled,
            pruning_ratio=ratio, iterative_steps=self.steps, ignored_layers=self._kept(module),
            in_channel_groups={}, out_channel_groups={}, num_heads={},  # its defaults are shared by all pruners
        )  # fmt: skip

    def _fill_gradients(self, module: Network, *, first: bool) -> None:
        """Gradients of the loss on the calibration images; those of the uncut network are computed once."""
        if first:
            found, self.once_seconds = self.problem.once(("gradients", self.importance), lambda: self._measured(module))
        else:
            found, _ = self._measured(module)
        for name, parameter in module.named_parameters():
            parameter.grad = found[name].clone()

    def _measured(self, module: Network) -> tuple[dict[str, torch.Tensor], float]:
        started = time.perf_counter()
        return _GRADIENTS[self.importance](module, self.twin), time.perf_counter() - started


def _importance(name: str) -> tp.importance.Importance:
    return {
        "l1": lambda: tp.importance.GroupMagnitudeImportance(p=1),
        "l2": lambda: tp.importance.GroupMagnitudeImportance(p=2),
        "fpgm": tp.importance.FPGMImportance,
        "taylor": tp.importance.GroupTaylorImportance,
        "hessian": tp.importance.GroupHessianImportance,
    }[name]()


def _mean_gradients(module: Network, twin: Twin) -> dict[str, torch.Tensor]:
    """Of the mean cross-entropy, for Taylor importance."""
    module.zero_grad()
    for images, classes in twin.batches():
        (functional.cross_entropy(module(images), classes, reduction="sum") / len(twin.images)).backward()
    return {name: parameter.grad.clone() for name, parameter in module.named_parameters()}


def _squared_gradients(module: Network, twin: Twin) -> dict[str, torch.Tensor]:
    """The mean over images of each one's squared gradient, for Hessian importance.

    Its own `accumulate_grad` in 1.6 keeps the last image alone (it looks names up in a dict whose keys are parameters).
    """
    total = {name: torch.zeros_like(parameter) for name, parameter in module.named_parameters()}
    small = sum(value.numel() for value in total.values()) * (_BATCH // 4) <= _GRADIENT_ELEMENTS
    each = _each_mapped if small else _each_in_turn
    for squares in each(module, twin):
        for name, value in squares.items():
            total[name] += value / len(twin.images)
    return total


def _each_mapped(module: Network, twin: Twin) -> Iterator[dict[str, torch.Tensor]]:
    """Squared gradients, summed over a few images: those of small networks at once."""
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}
    buffers = dict(module.named_buffers())

    def one(weights: dict[str, torch.Tensor], image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        scores = functional_call(module, (weights, buffers), (image[None],))
        return functional.cross_entropy(scores, label[None])

    each = vmap(grad(one), in_dims=(None, 0, 0))
    for images, classes in twin.batches(_BATCH // 4):
        yield {name: value.square().sum(0) for name, value in each(parameters, images, classes).items()}


def _each_in_turn(module: Network, twin: Twin) -> Iterator[dict[str, torch.Tensor]]:
    """Squared gradients of one image after another, as the package's own example takes them."""
    for image, label in twin.batches(1):
        module.zero_grad()
        functional.cross_entropy(module(image), label).backward()
        yield {name: parameter.grad.square() for name, parameter in module.named_parameters()}


_GRADIENTS = {"taylor": _mean_gradients, "hessian": _squared_gradients}


def _macs(module: Network, image: torch.Tensor) -> int:
    """Multiply-accumulates of convolutions and the fully connected layer for one image."""
    found = []

    def note(layer: nn.Module, _: Any, output: torch.Tensor) -> None:
        positions = output[0, 0].numel() if output.ndim == 4 else 1
        found.append(layer.weight.numel() * positions)  # type: ignore[operator]

    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    with torch.no_grad():
        module(image)
    for hook in hooks:
        hook.remove()
    return sum(found)


def _export(module: Network, twin: Twin) -> onnx.ModelProto:
    """The module as an ONNX file with the original's names of input and output and an open batch."""
    first, last = twin.ends
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "pruned.onnx"
        torch.onnx.export(
            module.eval(), (twin.images[:1],), str(path), opset_version=_OPSET, dynamo=False, input_names=[first],
            output_names=[last], dynamic_axes={first: {0: "N"}, last: {0: "N"}},
        )  # fmt: skip
        return onnx.load(path)
