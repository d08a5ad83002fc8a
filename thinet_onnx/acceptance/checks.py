"""Is the file in order? The checker, shape inference, the same face as the original, runs at several batch sizes.

What the original fails at as well isn't the pruned file's fault: such a check is skipped, with the reason.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from thinet_onnx import external, graph, runtime, verify
from thinet_onnx.acceptance.result import Check
from thinet_onnx.errors import ModelError
from thinet_onnx.subject import Feeds, Subject, WrongBatchError

INTERFACE = "inputs and outputs"
"""The name of the check without which nothing can be compared."""

_CLOSE = {False: 1e-3, True: 5e-2}  # of a batch and its items alone: for float32, and where 16 or 8 bits round more


def static_checks(pruned: Subject, reference: Subject) -> list[Check]:
    """Checks that run nothing: checker, shape inference, inputs and outputs."""
    new, old = pruned.model, reference.model
    return [
        _judge("onnx.checker", graph.check(new), graph.check(old), "it has no objection"),
        _judge("shape inference", _inference(new), _inference(old), "strict, with data propagation"),
        _interface(new, old),
    ]


def _judge(name: str, complaint: str | None, of_reference: str | None, content: str) -> Check:
    if complaint is None:
        return Check(name, "passed", content)
    if of_reference is not None:
        return Check(name, "skipped", f"the original fails it as well ({of_reference})")
    return Check(name, "failed", complaint)


def _inference(model: onnx.ModelProto) -> str | None:
    """What strict shape inference says against a model, in one line."""
    if any(map(external.is_external, model.graph.initializer)):
        return None  # too large for it; ONNX Runtime infers the same shapes when it loads the file
    try:
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        return " ".join(str(error).split())[:300]
    return None


def _interface(pruned: onnx.ModelProto, reference: onnx.ModelProto) -> Check:
    """Inputs and outputs: a pruned file takes the original's place."""
    faces = [_face(model) for model in (pruned, reference)]
    for kind in ("input", "output"):
        new, old = (face[kind] for face in faces)
        if list(new) != list(old):
            told = f"its {kind}s are {', '.join(new) or 'none'}, the original's {', '.join(old) or 'none'}"
            return Check(INTERFACE, "failed", told)
        for name in old:
            if new[name] != old[name]:
                told = f"{kind} {name!r} is {new[name]}, the original's {old[name]}"
                return Check(INTERFACE, "failed", told)
    return Check(INTERFACE, "passed", "names, types and shapes are the original's")


def _face(model: onnx.ModelProto) -> dict[str, dict[str, str]]:
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    return {
        kind: {value.name: _described(value) for value in values}
        for kind, values in (("input", inputs), ("output", model.graph.output))
    }


def _described(value: onnx.ValueInfoProto) -> str:
    """`FLOAT (?,3,224,224)`; names of open sizes don't count."""
    tensor = value.type.tensor_type
    kind = str(onnx.TensorProto.DataType.Name(tensor.elem_type))
    if not tensor.HasField("shape"):
        return kind
    return f"{kind} ({','.join(str(dim.dim_value) if dim.dim_value > 0 else '?' for dim in tensor.shape.dim)})"


def runs(pruned: Subject, reference: Subject, batches: Sequence[int], session: Any) -> list[Check]:
    """Run the pruned file at each batch size.

    Args:
        pruned: with data.
        reference: the original, with data.
        batches: sizes to try.
        session: of the pruned file, as it is.
    """
    checks = []
    alone: dict[str, Any] = {}
    for batch in batches:
        try:
            feeds = pruned.feeds(batch, most=1)[0]
        except WrongBatchError as error:
            checks.append(_unreachable(batch, str(error), reference))
            continue
        try:
            together = runtime.run(session, feeds)
        except ModelError as error:
            checks.append(_fails(batch, str(error), reference))
            continue
        checks.append(_compared(batch, feeds, together, pruned, reference, session, alone))
    return checks


def _name(batch: int) -> str:
    return f"runs at batch {batch}"


def _unreachable(batch: int, reason: str, reference: Subject) -> Check:
    """A batch size that the pruned file's shapes, or the data, rule out."""
    try:
        reference.feeds(batch, most=1)
    except WrongBatchError:
        return Check(_name(batch), "skipped", reason)
    return Check(_name(batch), "failed", f"{reason}; the original takes it")


def _fails(batch: int, reason: str, reference: Subject) -> Check:
    try:
        runtime.run(runtime.session(reference.model), reference.feeds(batch, most=1)[0])
    except (ModelError, WrongBatchError):
        return Check(_name(batch), "skipped", "the original can't run at it either")
    return Check(_name(batch), "failed", reason)


def _compared(
    batch: int,
    feeds: Feeds,
    together: list[Any],
    pruned: Subject,
    reference: Subject,
    session: Any,
    alone: dict[str, Any],
) -> Check:
    """The answers to a batch against those to its items alone, where the file takes single items."""
    if batch == 1 or not pruned.open_inputs:
        return Check(_name(batch), "passed", "it does")
    gap = _gap(feeds, together, pruned, session)
    close = _CLOSE[pruned.setting.coarse]
    if gap is None or gap <= close:
        told = "it does" if gap is None else "with the answers that the items have alone"
        return Check(_name(batch), "passed", told)
    if "reference" not in alone:
        alone["reference"] = runtime.session(reference.model)
    try:
        theirs = _gap(feeds, runtime.run(alone["reference"], feeds), reference, alone["reference"])
    except ModelError:
        theirs = None
    if theirs is not None and theirs > close:
        return Check(_name(batch), "passed", "items influence each other, as in the original")
    return Check(
        _name(batch), "failed", f"the answers differ from those to the items alone by {gap:.1e} of the largest value"
    )


def _gap(feeds: Feeds, together: list[Any], subject: Subject, session: Any) -> float | None:
    """The largest difference between a batch and its items run one by one; None where that says nothing."""
    free = {spec.name for spec in subject.open_inputs}
    count = len(next(feeds[name] for name in feeds if name in free))
    singles = []
    try:
        for row in range(count):
            item = {name: array[row : row + 1] if name in free else array for name, array in feeds.items()}
            singles.append(runtime.run(session, item))
    except ModelError:
        return None
    worst = 0.0
    for index, whole in enumerate(together):
        parts = [single[index] for single in singles]
        if not whole.ndim or any(part.ndim != whole.ndim for part in parts):
            continue
        if len(whole) == sum(map(len, parts)) and len({part.shape[1:] for part in parts} | {whole.shape[1:]}) == 1:
            worst = max(worst, verify.difference([[np.concatenate(parts)]], [[whole]]))
    return worst
