"""What is minimised: the distance to the teacher, output by output, labels, and the user's own loss.

For class scores z (student) and t (teacher) and temperature T

    T² · KL(softmax(t/T) ‖ softmax(z/T))                     (Hinton, Vinyals and Dean, 2015)

for numbers behind a sigmoid, p of the student and q of the teacher, each one's share of what the mean q̄ leaves unsaid

    mean KL(q ‖ p) / mean KL(q ‖ q̄)

(a detector's chances are next to 0 nearly everywhere: squares of them would be those of a few places) and for every other
tensor mean((z − t)²) / variance of t. An output that joins boxes in pixels and chances counts part by part, or nothing
but the boxes would be learned. All are means over items, so that parts of a batch add up.
"""

import dataclasses
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from thinet_onnx.errors import ModelError, OptionError
from thinet_onnx.graph import Graph, Node
from thinet_onnx.torch_twin import Cut
from thinet_onnx.training.options import FinetuneOptions

Tensors = Mapping[str, Tensor]
UserLoss = Callable[[dict[str, Tensor], dict[str, Any]], Tensor]

_LEAST = 1e-12  # of a probability
_SURE = 1e-6  # and of one that is told from 0 or 1
_UNTOLD = 1e-4  # a divergence from the mean (nats) that is taken for none
_LAYOUT = {"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity"}
_PARTED = {"Slice", "Split", "Gather"}
_FLAT = 1e-8  # a variance that is taken for none


@dataclass(frozen=True)
class Source:
    """Where the distance in one output is taken: at `tensor`, which is the output itself or what its softmax or sigmoid reads.

    With `axis` the tensor is known to be class scores along this axis (and, with `flat`, all behind it); `chances` says that
    the output holds its sigmoids, in the same order or another, and `certain` that it is these itself. `part` (counted from 0,
    of `parts`) is what of an output that joins several this is.
    """

    output: str
    tensor: str
    axis: int | None = None
    flat: bool = False
    chances: bool = False
    certain: bool = False
    part: int = 0
    parts: int = 1

    @property
    def name(self) -> str:
        """The output's name, and the number of the part in brackets if it has several."""
        return self.output if self.parts == 1 else f"{self.output}[{self.part}]"


def sources(graph: Graph, cut: Cut) -> list[Source]:
    """For each tensor that the twin ends with the places where it is compared: in front of a softmax or sigmoid, if any.

    One that joins what a softmax or sigmoid answers with something else is compared in each of its parts.
    """
    return [source for name in cut.ends for source in _sources(graph, name)]


def _sources(graph: Graph, output: str) -> list[Source]:
    found = {tensor: _source(graph, output, tensor) for tensor in _joined(graph, output)}
    if not any(source.chances or source.axis is not None for source in found.values()):
        return [Source(output, output)]
    distinct = list({source.tensor: source for source in found.values()}.values())
    return [dataclasses.replace(source, part=n, parts=len(distinct)) for n, source in enumerate(distinct)]


def _joined(graph: Graph, tensor: str) -> list[str]:
    """What a tensor is joined of, in any order of its numbers; the tensor itself if it isn't."""
    node = _maker(graph, tensor, _LAYOUT)
    if node.op != "Concat":
        return [tensor]
    inputs = [name for name in node.inputs if name not in graph.derived]
    if not all(name in graph.producer for name in inputs):
        return [tensor]
    return [part for name in inputs for part in _joined(graph, name)]


def _source(graph: Graph, output: str, tensor: str) -> Source:
    node = _maker(graph, tensor, _LAYOUT)
    if node.op in ("Softmax", "LogSoftmax") and node.inputs[0] not in graph.derived:
        old = graph.opset < 13
        return Source(output, node.inputs[0], int(node.attrs.get("axis", 1 if old else -1)), old)
    if node.op == "Sigmoid" and node.inputs[0] not in graph.derived:
        return Source(output, node.inputs[0], chances=True)
    if _maker(graph, tensor, _LAYOUT | _PARTED).op == "Sigmoid":
        return Source(output, tensor, chances=True, certain=True)
    return Source(output, tensor)


def _maker(graph: Graph, tensor: str, through: Set[str]) -> Node:
    """The node that makes a tensor's numbers, seen through operators of some kinds."""
    node = graph.producer[tensor]
    while node.op in through and node.inputs[0] in graph.producer:
        node = graph.producer[node.inputs[0]]
    return node


@dataclass(frozen=True)
class Term:
    """One tensor's part of the loss.

    `scores` says that rows of it are class scores, `logits` or `probabilities`; `squared` that its values count as they
    are, in units of `scale`, the variance of the teacher's. A sigmoid's are in units of the teacher's divergence from its mean.
    """

    source: Source
    weight: float
    scores: Literal["", "logits", "probabilities"] = ""
    squared: bool = True
    scale: float = 1.0

    def distance(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """How far the student's tensor is from the teacher's."""
        total = torch.zeros((), device=student.device)
        if self.scores:
            z, t = ((self.rows(x) / temperature).log_softmax(1) for x in (student, teacher))
            total = total + temperature**2 * functional.kl_div(z, t, reduction="batchmean", log_target=True)
        if self.source.chances:
            total = total + _divergence(self.logits(student), self.logits(teacher)) / self.scale
        if self.squared:
            total = total + (student - teacher).square().mean() / self.scale
        return total

    def logits(self, x: Tensor) -> Tensor:
        """What the sigmoids read."""
        return x.logit(_SURE) if self.source.certain else x

    def rows(self, x: Tensor) -> Tensor:
        """One row of class scores for each distribution."""
        axis = 1 if self.source.axis is None else self.source.axis
        if self.source.flat or self.source.axis is None:
            rows = x.flatten(axis)
            rows = rows.reshape(-1, rows.shape[-1])
        else:
            rows = x.movedim(axis, -1).reshape(-1, x.shape[axis])
        return rows.clamp(_LEAST).log() if self.scores == "probabilities" else rows


def scores_among(seen: Tensors) -> set[str]:
    """Names of the tensors that look like scores of classes: (batch, classes), or that with size-1 axes after it.

    But not (batch, places, 1) beside (batch, places, more), which are what a detector says of each place.
    """
    places = {x.shape[1] for x in seen.values() if x.ndim == 3 and x.shape[2] > 1}
    return {
        name for name, x in seen.items()
        if x.is_floating_point() and x.ndim >= 2 and x.shape[1] >= 2 and x.numel() == x.shape[0] * x.shape[1]
        and not (x.ndim == 3 and x.shape[1] in places)
    }  # fmt: skip


def _term(source: Source, seen: Tensor, weight: float, looks_like_scores: bool) -> Term:
    """What the teacher's tensor is compared by.

    Class scores behind no softmax might be anything with few numbers (a box, landmarks): these count squared as well.
    """
    if source.axis is not None:
        return Term(source, weight, "logits", False)
    if source.chances:
        logits = Term(source, weight).logits(seen.double())
        mean = logits.sigmoid().mean().logit().clamp(-20, 20)
        return Term(source, weight, "", False, max(float(_divergence(mean.expand(seen.shape), logits)), _UNTOLD))
    if not looks_like_scores:
        return Term(source, weight, scale=_variance(seen))
    rows = seen.flatten(1)
    certain = bool((rows >= 0).all()) and torch.allclose(rows.sum(1), torch.ones_like(rows[:, 0]), atol=1e-3)
    if certain:
        return Term(source, weight, "probabilities", False)
    return Term(source, weight, "logits", True, _variance(seen))


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean of KL(sigmoid(teacher) ‖ sigmoid(student)), element by element; both are what the sigmoids read."""
    chances = teacher.sigmoid()
    most, least = (functional.binary_cross_entropy_with_logits(x, chances) for x in (student, teacher))
    return most - least


def _variance(x: Tensor) -> float:
    """The variance of a tensor's elements; not less than what can be told from none."""
    wide = x.cpu().double()
    return max(float(wide.var(correction=0)), 0.01 * float(wide.square().mean()), _FLAT)


class Objective:
    """The loss of a batch, and its parts.

    Args:
        options: weights and temperature.
        places: where outputs are compared.
        features: inner tensors that are compared.
        seen: the teacher's tensors for some items, which say what is class scores, and how much a tensor varies.

    Raises:
        OptionError: an option names an output that isn't there, or labels are asked for where no output is class scores.
    """

    def __init__(
        self, options: FinetuneOptions, places: Sequence[Source], features: Sequence[str], seen: Tensors
    ) -> None:
        check_outputs(options, [place.output for place in places])
        weighed = [options.distill * options.output_weights.get(place.output, 1.0) / place.parts for place in places]
        self._temperature = options.temperature
        scores = scores_among({place.tensor: seen[place.tensor] for place in places})
        self._outputs = [_term(p, seen[p.tensor], w, p.tensor in scores) for p, w in zip(places, weighed, strict=True)]
        share = options.feature_weight / max(len(features), 1)
        self._features = [Term(Source(name, name), share, scale=_variance(seen[name])) for name in features]
        self._classes = next((term for term in self._outputs if term.source.tensor in scores), None)
        self._label_weight, self._loss_weight = options.label_weight, options.loss_weight
        self._user = user_loss(options.loss) if options.loss else None
        if not self.names:
            raise OptionError("Every output has the weight 0, so nothing is to be learned: give one of them another.")
        if self._label_weight and self._classes is None:
            raise OptionError(
                "Labels are to be learned, but no output looks like class scores: leave --label-weight out."
            )

    @property
    def names(self) -> list[str]:
        """The names of the parts."""
        own = [("labels", self._label_weight), ("loss", float(self._user is not None))]
        terms = [(term.source.name, term.weight) for term in (*self._outputs, *self._features)]
        return [name for name, weight in (*terms, *own) if weight]

    def parts(self, student: Tensors, teacher: Tensors, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The weighed parts of the loss; their sum is the loss.

        Args:
            student: its tensors by name.
            teacher: the same of the teacher's.
            batch: the inputs by name, and `labels` where the data has any.
        """
        found = {}
        for term in (*self._outputs, *self._features):
            name = term.source.tensor
            if term.weight:
                apart = term.distance(student[name], teacher[name], self._temperature)
                found[term.source.name] = term.weight * apart
        if self._label_weight and self._classes is not None:
            scores = self._classes.rows(student[self._classes.source.tensor])
            found["labels"] = self._label_weight * functional.cross_entropy(scores, batch["labels"])
        if self._user is not None:
            found["loss"] = self._loss_weight * self._called(dict(student), {**batch, "teacher": dict(teacher)})
        return found

    def _called(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> Tensor:
        assert self._user is not None
        try:
            result = self._user(outputs, batch)
        except (Exception, SystemExit) as error:
            raise OptionError(f"--loss: the function failed with {_told(error)}; mend the script.") from error
        if not isinstance(result, Tensor) or result.numel() != 1:
            raise OptionError("--loss: the function must return a tensor of one element, the mean over the batch.")
        return result.reshape(())

    def agreeing(self, student: Tensors, teacher: Tensors) -> tuple[int, int]:
        """How many items have the teacher's best class, of how many; none of none without class scores."""
        if self._classes is None:
            return 0, 0
        best = [self._classes.rows(side[self._classes.source.tensor]).argmax(1) for side in (student, teacher)]
        return int((best[0] == best[1]).sum()), len(best[0])


def _told(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def user_loss(text: str) -> UserLoss:
    """The function that `script.py:function` names.

    It is called with the outputs by name, and a dict with the inputs by name, `labels` if the data has any, and
    `teacher`, the teacher's outputs by name; it returns the mean loss over the batch.

    Raises:
        OptionError: there is no such script or function, or the script fails.
    """
    stem, _, function = text.rpartition(".py:")
    path = Path(f"{stem}.py")
    if not stem or not path.is_file():
        raise OptionError(f"--loss {text}: there is no such script; write script.py:function.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None, "a .py file has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise OptionError(f"--loss {text}: {path} failed with {_told(error)}; mend the script.") from error
    finally:
        sys.path.pop(0)
    found = getattr(module, function, None)
    if not callable(found):
        raise OptionError(f"--loss {text}: {path} has no function {function!r}.")
    result: UserLoss = found
    return result


def shared_features(
    student: Graph, teacher: Graph, shapes: Sequence[Mapping[str, tuple[int, ...]]], count: int
) -> list[str]:
    """Names of inner tensors that both networks have in the same shape: `count` of them, spread evenly over the depth.

    Args:
        student: the pruned network.
        teacher: the original.
        shapes: the shape of every tensor in a run of each.
        count: how many.
    """
    own, other = shapes
    linear = {"Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "com.microsoft::FusedConv"}
    found = [
        node.key for node in student.nodes
        if node.kind in linear and node.key not in student.derived and node.key not in student.outputs
        and node.key in teacher.producer and own.get(node.key) == other.get(node.key) and len(own.get(node.key, ())) > 1
    ]  # fmt: skip
    picks = sorted({round((place + 1) * (len(found) - 1) / count) for place in range(count)}) if found else []
    return [found[place] for place in picks]


def check_outputs(options: FinetuneOptions, outputs: Sequence[str]) -> None:
    """Refuse weights of outputs that the network doesn't have.

    Raises:
        OptionError: one is missing.
    """
    for name in options.output_weights:
        if name not in outputs:
            raise OptionError(
                f"--output-weight: the network has no output {name!r}; it has {', '.join(dict.fromkeys(outputs))}."
            )


def check_features(names: Sequence[str], graph: Graph) -> None:
    """Refuse names of tensors that the pruned network doesn't have.

    Raises:
        ModelError: one is missing.
    """
    for name in names:
        if name not in graph.producer:
            raise ModelError(f"The pruned network has no tensor {name!r} to compare with the original's.")
