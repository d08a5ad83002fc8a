"""Is the pruned file right, and how near is it to the original?

Right is exact and needs no labels: *the original in which the removed channels' consumer weights are zero equals the
pruned file* (the mask oracle). Near is measured on data that was not used to fit.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from thinet_onnx import external, runtime
from thinet_onnx.errors import ModelError
from thinet_onnx.graph import Graph
from thinet_onnx.plan import PrunePlan
from thinet_onnx.ranks import ALONE, Ranks
from thinet_onnx.result import Fidelity

Array = np.ndarray[Any, Any]
Outputs = list[list[Array]]

_LEAST_PROBABILITY = 1e-6  # below it a probability's logarithm says nothing
_LAST_DIGIT = 2.0**-23  # of 1.0 in float32


def masked(model: onnx.ModelProto, plan: PrunePlan) -> onnx.ModelProto:
    """The model, uncut, with zeros in the weights that read the plan's removed channels.

    A quantised weight gets its zero point there; a weight that the graph computes is replaced as a whole.
    """
    graph = Graph(model)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    holders = {tensor.name: tensor for tensor in result.graph.initializer}
    for node in result.graph.node:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "value":
                holders[node.output[0]] = attribute.t
    made = {c.weight: graph.fold(c.weight) for c in plan.consumers if c.weight not in holders}
    for consumer in plan.consumers:
        tensor = holders.get(consumer.weight)
        value = made[consumer.weight] if tensor is None else external.array(tensor)
        value = np.array(value)
        place = (slice(None),) * consumer.axis + (list(consumer.removed),)
        value[place] = _zero(graph, consumer.weight, value)[place]
        if tensor is None:
            _stand_in(result, consumer.weight, value)
        else:
            external.assign(tensor, value)
    return result


def _zero(graph: Graph, weight: str, value: Array) -> Array:
    """What stands for zero in a constant: the zero points of a quantised one."""
    for node in graph.consumers.get(weight, []):
        points = graph.fold(node.operand(2)) if node.op == "DequantizeLinear" and node.operand(2) else None
        if points is not None and node.inputs[0] == weight:
            axis = node.attrs.get("axis", 1) % max(value.ndim, 1)
            return np.broadcast_to(points.reshape([-1 if a == axis else 1 for a in range(value.ndim)])
                                   if points.size > 1 else points.ravel()[0], value.shape)  # fmt: skip
    return np.zeros_like(value)


def _stand_in(model: onnx.ModelProto, name: str, value: Array) -> None:
    """Let every reader of a tensor read a new initializer instead."""
    model.graph.initializer.append(numpy_helper.from_array(value, f"{name}_masked"))
    for node in model.graph.node:
        for index, operand in enumerate(node.input):
            if operand == name:
                node.input[index] = f"{name}_masked"


def difference(
    expected: Outputs, actual: Outputs, original: Outputs | None = None, again: Outputs | None = None
) -> float:
    """The largest relative difference of two models' outputs: max |a − e| / scale, over outputs and batches.

    The scale is max |e| or, where that is larger, the original's max |o|: a masked network's scores may all be driven
    to the flat end of a sigmoid, where float32 has no digits left to compare. `again` are the expected outputs computed
    in another way; four times what they differ by (or one last digit of 1.0, which is all that a saturated sigmoid
    has) is rounding, and isn't counted. Infinite where shapes differ or one
    is not finite where the other is.
    """
    worst = 0.0
    for place, (left, right) in enumerate(zip(expected, actual, strict=True)):
        for index, (e, a) in enumerate(zip(left, right, strict=True)):
            if e.shape != a.shape:
                return float("inf")
            if e.dtype.kind != "f":
                worst = max(worst, float((e != a).mean()) if e.size else 0.0)
                continue
            if not np.array_equal(np.isfinite(e), np.isfinite(a)):
                return float("inf")
            scale = max(_largest(e), _largest(original[place][index]) if original else 0.0, 1e-12)
            noise = max(_gap(e, again[place][index]), _LAST_DIGIT) if again else 0.0
            worst = max(worst, max(_gap(e, a) - 4 * noise, 0.0) / scale)
    return worst


def _gap(first: Array, second: Array) -> float:
    """The largest absolute difference where both are finite."""
    finite = np.isfinite(first) & np.isfinite(second)
    return _largest(first[finite].astype(np.float64) - second[finite].astype(np.float64))


def _largest(values: Array) -> float:
    """The largest finite absolute value, 0 if there is none."""
    finite = values[np.isfinite(values)]
    return float(np.abs(finite).max()) if finite.size else 0.0


def disagreement(
    expected: onnx.ModelProto, actual: onnx.ModelProto, original: Outputs, batches: Sequence[dict[str, Array]]
) -> float:
    """How far `actual` is from `expected` beyond rounding (see `difference`), in units of the original's answers.

    Rounding is what ONNX Runtime's optimised and plain ways of running `expected` differ by.
    """
    plain = runtime.outputs(expected, batches, optimise=False)
    found = runtime.outputs(actual, batches)
    return difference(runtime.outputs(expected, batches), found, original, plain)


def oracle(
    model: onnx.ModelProto, pruned: onnx.ModelProto, plan: PrunePlan, batches: Sequence[dict[str, Array]],
    answers: Outputs | None = None,
) -> float:  # fmt: skip
    """The oracle's relative difference for a file that was cut and not refitted; `answers` are the model's, where known."""
    return disagreement(masked(model, plan), pruned, answers or runtime.outputs(model, batches), batches)


def is_classifier(output: Array) -> bool:
    """Whether one output looks like scores of classes: (batch, classes), or that with size-1 axes after it."""
    return (
        output.dtype.kind == "f"
        and output.ndim >= 2
        and output.shape[1] >= 2
        and output.size == np.prod(output.shape[:2])
    )


def fidelity(
    names: Sequence[str], before: Outputs, after: Outputs, *, items: Sequence[int] | None = None
) -> tuple[Fidelity, ...]:
    """How near the pruned model's outputs are to the original's, output by output.

    Args:
        names: of the outputs.
        before: the original's answers, batch by batch.
        after: the pruned model's.
        items: how many items each batch holds; without it, nothing is said of single items.
    """
    rows = []
    for index, name in enumerate(names):
        old = [batch[index] for batch in before]
        new = [batch[index] for batch in after]
        if not old or old[0].dtype.kind != "f" or any(o.shape != n.shape for o, n in zip(old, new, strict=True)):
            continue
        errors, cosines = _apart(old, new, items) if items is not None else ((), ())
        if any(len({array[0].size if array.ndim else 1 for array in arrays}) > 1 for arrays in (old, new)):
            old, new = ([np.concatenate([array.ravel() for array in arrays])[None]] for arrays in (old, new))
        a, b = (np.concatenate([_rows(array) for array in arrays]) for arrays in (old, new))
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        cosine = float(((a * b).sum(1) / np.maximum(norms, 1e-30)).mean())
        error = float(np.linalg.norm(b - a)) / max(float(np.linalg.norm(a)), 1e-30)
        top1 = float((a.argmax(1) == b.argmax(1)).mean()) if is_classifier(old[0]) else None
        rows.append(Fidelity(name, cosine, error, top1, len(a), errors, cosines))
    return tuple(rows)


def squares(before: Outputs, after: Outputs, outputs: int) -> NDArray[np.float64]:
    """Sums from which relative errors follow, (outputs × 3): Σ (a − b)², Σ b², and how many batches can't be compared."""
    sums = np.zeros((outputs, 3))
    for old, new in zip(before, after, strict=True):
        for row, b, a in zip(sums, old, new, strict=True):
            if b.dtype.kind != "f" or a.shape != b.shape:
                row[2] += 1
                continue
            b64, a64 = b.astype(np.float64), a.astype(np.float64)
            row[:2] += np.square(a64 - b64).sum(), np.square(b64).sum()
    return sums


def per_item(output: Array, items: int) -> list[Array] | None:
    """A batch's output divided into its items; None if axis 0 doesn't divide."""
    if items == 1:
        return [output]
    return np.split(output, items) if output.ndim and len(output) % items == 0 else None


def _apart(old: list[Array], new: list[Array], items: Sequence[int]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Relative error and cosine of each item alone; nothing where an output doesn't divide into items."""
    errors, cosines = [], []
    for before, after, count in zip(old, new, items, strict=True):
        if per_item(before, count) is None:
            return (), ()
        a, b = (array.reshape(count, -1).astype(np.float64) for array in (before, after))
        size, other = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
        errors += (np.linalg.norm(b - a, axis=1) / np.maximum(size, 1e-30)).tolist()
        cosines += ((a * b).sum(1) / np.maximum(size * other, 1e-30)).tolist()
    return tuple(errors), tuple(cosines)


def _rows(output: Array) -> Array:
    """One row of float64 for each sample."""
    return output.reshape(len(output) if output.ndim else 1, -1).astype(np.float64)


def distance(before: Outputs, after: Outputs, outputs: int, ranks: Ranks = ALONE) -> float:
    """How far two models' outputs are apart, as one number for the budget, each output weighed equally.

    The relative squared error: of a classifier's scores about each item's mean score (of the logarithms, if they are
    probabilities), of everything else about the mean. The Kullback–Leibler divergence would see little on images that the
    network was trained on and is sure of.

    Args:
        before, after: answers to the same batches; this process's, of several.
        outputs: how many there are of each.
        ranks: the processes.
    """
    seen = np.zeros((outputs, 2))  # what the first model answers, summed up, and how many numbers
    for batch in before:
        seen += [(a.sum(dtype=np.float64), a.size) if a.dtype.kind == "f" else (0, 0) for a in batch]
    ranks.add_up(seen)
    means = seen[:, 0] / np.maximum(seen[:, 1], 1)
    sums = np.zeros((outputs, 2))  # Σ (b − a)², and Σ a² about the mean
    for old, new in zip(before, after, strict=True):
        for place, (a, b) in enumerate(zip(old, new, strict=True)):
            if a.dtype.kind == "f":
                sums[place] += _score_squares(a, b) if is_classifier(a) else _plain_squares(a, b, means[place])
    ranks.add_up(sums)
    return float((sums[:, 0] / np.maximum(sums[:, 1], 1e-30)).sum())


def _plain_squares(old: Array, new: Array, mean: float) -> tuple[float, float]:
    if old.shape != new.shape:
        return np.inf, 0.0
    a, b = old.astype(np.float64), new.astype(np.float64)
    return float(np.square(b - a).sum()), float(np.square(a - mean).sum())


def _score_squares(old: Array, new: Array) -> tuple[float, float]:
    a, b = (scores.reshape(len(scores), -1).astype(np.float64) for scores in (old, new))
    if a.min() >= 0 and np.allclose(a.sum(1), 1, atol=1e-3):
        a, b = np.log(a + _LEAST_PROBABILITY), np.log(np.maximum(b, 0) + _LEAST_PROBABILITY)
    a, b = (x - x.mean(1, keepdims=True) for x in (a, b))
    return float(np.square(b - a).sum()), float(np.square(a).sum())


def require_numbers(names: Sequence[str], outputs: Sequence[Array]) -> None:
    """Refuse a network whose answer is no number.

    Raises:
        ModelError: an output holds NaN or infinity, from which no distance can be taken.
    """
    for name, value in zip(names, outputs, strict=True):
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise ModelError(
                f"The model's output {name!r} is NaN or infinite on the calibration data; look for such values among its "
                "weights, and check how the data are scaled."
            )


def unfit_labels(outputs: Sequence[Array], labels: Array | None) -> str | None:
    """Why labels can't be classes of the first output that looks like class scores; None if they can, or there is none."""
    scores = next((output for output in outputs if is_classifier(output)), None)
    if scores is None or labels is None or (labels.min() >= 0 and labels.max() < scores.shape[1]):
        return None
    return f"labels range from {labels.min()} to {labels.max()}, but the model tells {scores.shape[1]} classes apart"


def accuracy(model: onnx.ModelProto, batches: Iterable[dict[str, Array]], labels: Array) -> float | None:
    """Top-1 accuracy (0..1) of the first output that looks like class scores; None if there is none."""
    right = hits(model, batches, labels)
    return None if right is None else float(right.mean())


def hits(model: onnx.ModelProto, batches: Iterable[dict[str, Array]], labels: Array) -> Array | None:
    """Whether each item's top-1 is its label, by the first output that looks like class scores; None if there is none."""
    scores = runtime.outputs(model, batches)
    if not scores:
        return np.empty(0, np.bool_)
    place = next((i for i, output in enumerate(scores[0]) if is_classifier(output)), None)
    if place is None:
        return None
    picks = np.concatenate([batch[place].reshape(len(batch[place]), -1).argmax(1) for batch in scores])
    return np.asarray(picks == labels[: len(picks)])
