"""From two models and data to a fine-tuned model: everything is made ready, checked, run, and checked again."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch

from thinet_onnx import graph as graphs
from thinet_onnx import runtime, verify
from thinet_onnx.data import Source, split
from thinet_onnx.errors import DataError, ModelError, OptionError
from thinet_onnx.graph import Graph
from thinet_onnx.options import Progress, Silent
from thinet_onnx.torch_twin import Cut, find_cut, from_torch, to_torch
from thinet_onnx.torch_twin.check import disagreement
from thinet_onnx.torch_twin.convert import readable
from thinet_onnx.training.checkpoints import Folder, fingerprint
from thinet_onnx.training.feeding import Feeding, variation
from thinet_onnx.training.loop import Loop
from thinet_onnx.training.losses import Objective, check_features, check_outputs, shared_features, sources, user_loss
from thinet_onnx.training.networks import Network, Teacher, Tensors, works_together
from thinet_onnx.training.options import FinetuneOptions, FinetuneResult
from thinet_onnx.training.processes import Processes, find_device, has_short
from thinet_onnx.training.whitening import Coordinates, find_coordinates

_FEATURES = 4  # inner tensors that are compared where none are named
_SEEN = 64  # items that say what an output is and how much it varies
_MOST_HELD = 1024  # items that tell how far training is
_TOLERANCE = {False: 1e-4, True: 5e-2}  # between twin and file: for float32, and where 16 or 8 bits round more
_ROUGH = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})


def run(
    pruned: onnx.ModelProto, teacher: onnx.ModelProto, data: Source, options: FinetuneOptions, held: Sequence[int] | None,
    folder: Path | None, resume: bool, progress: Progress,
) -> FinetuneResult:  # fmt: skip
    """See `tuning.finetune`."""
    started = time.perf_counter()
    pruned, teacher = readable(pruned), readable(teacher)
    cut = find_cut(Graph(pruned), options.trainable_from)
    rows, held = _divided(data, options, held)
    if options.label_weight:
        _need_labels(data)
    _compare(pruned, cut, data, held[0])
    if options.label_weight:
        check_labels(pruned, data)
    processes = Processes(find_device(options.device))
    try:
        loop = _made_ready(pruned, teacher, cut, data, rows, held, options, processes)
        store = Folder(
            folder,
            fingerprint([pruned, teacher], f"{data.description} {len(data)} {held}", options),
            writes=processes.first,
        )
        loop.run(store, progress if processes.first else Silent(), store.load() if resume else None)
        processes.wait()
    finally:
        processes.close()
    model = from_torch(loop.twin, pruned)
    complaint = graphs.check(model)
    if complaint and not graphs.check(pruned):
        raise ModelError(f"The fine-tuned model is not valid ({complaint}).")
    apart = _compare(model, cut, data, held[0])
    batches = [data.batch([row]) for row in held]
    names = [value.name for value in pruned.graph.output]
    expected, before, after = (runtime.outputs(network, batches) for network in (teacher, pruned, model))
    return FinetuneResult(
        model, loop.step, loop.best.step, tuple(loop.losses), tuple(loop.validations),
        verify.fidelity(names, expected, before), verify.fidelity(names, expected, after), tuple(held), apart, cut.left_out,
        time.perf_counter() - started,
    )  # fmt: skip


def check(original: onnx.ModelProto, data: Source, options: FinetuneOptions) -> None:
    """Refuse what is known to fail before there is a pruned network: a run that prunes first shouldn't tell at its end.

    Raises:
        OptionError: the device isn't here, the user's loss can't be loaded, or an output or labels aren't there.
        ModelError: no weight can be trained, or there is no such node or tensor.
        DataError: the labels are no classes of the network.
    """
    find_device(options.device)
    if options.loss:
        user_loss(options.loss)
    original = readable(original)
    graph = Graph(original)
    check_outputs(options, [place.output for place in sources(graph, find_cut(graph, options.trainable_from))])
    check_features(options.features, graph)
    if options.label_weight:
        _need_labels(data)
        check_labels(original, data)


def _need_labels(data: Source) -> None:
    if data.labels is None:
        raise OptionError(
            f"Labels are to be learned, but there are none in {data.description}: leave --label-weight out."
        )


def _divided(data: Source, options: FinetuneOptions, held: Sequence[int] | None) -> tuple[list[int], list[int]]:
    """Rows to train on, and rows to hold out."""
    if held is None:
        _, apart = split(data, options.held_out, options.seed)
        order = np.random.default_rng(options.seed).permutation(apart)
        held = sorted(order[:_MOST_HELD].tolist())
    rest = sorted(set(range(len(data))) - set(held))
    if not rest or not held:
        raise DataError(f"There is too little data ({data.description}): give 2 items, one to fit and one to check.")
    return rest, list(held)


def _made_ready(
    pruned: onnx.ModelProto, teacher: onnx.ModelProto, cut: Cut, data: Source, rows: list[int], held: list[int],
    options: FinetuneOptions, processes: Processes,
) -> Loop:  # fmt: skip
    """The loop with all that it needs."""
    torch.manual_seed(options.seed)
    graph, device = Graph(pruned), processes.device
    places = sources(graph, cut)
    features = _features(pruned, teacher, data, options)
    names = list(dict.fromkeys([*cut.ends, *(place.tensor for place in places), *features]))
    how = {
        "channels_last": options.channels_last, "compiled": options.compile,
        "short": options.precision == "bf16" or (options.precision == "auto" and has_short(device)),
    }  # fmt: skip
    student = Network(pruned, cut, names, device, **how)
    original = Teacher(teacher, names, device, **how)
    one, two = data.batch(held[:1]), data.batch(rows[:1])
    _check_comparable(student(one), original(one), names)
    together = data.stackable and works_together(student, original, one, two, data.batch([held[0], rows[0]]))
    size = options.batch if together else 1
    seen = [original(data.batch(rows[:_SEEN][first : first + size])) for first in range(0, len(rows[:_SEEN]), size)]
    objective = Objective(options, places, features, {name: torch.cat([each[name] for each in seen]) for name in names})
    varied = variation(
        options.flip, options.crop, options.layout, graph.inputs, options.mix, options.zoom, options.mosaic
    )
    feeding = Feeding(data, rows, options.batch, options.seed, varied)
    _check_steps(feeding, options, processes, together=together)
    coordinates = (
        _coordinates(pruned, student, data, rows, options, processes) if options.optimizer == "whitened" else {}
    )
    return Loop(student, original, objective, feeding, data, held, options, processes, coordinates, together=together)


def _check_steps(feeding: Feeding, options: FinetuneOptions, processes: Processes, *, together: bool) -> None:
    """Refuse steps that have too few items."""
    if feeding.batch < processes.count:
        raise OptionError(f"A step has {feeding.batch} items for {processes.count} processes: give a larger --batch.")
    if options.batch_norm == "learned" and not together:
        raise OptionError(
            "Running statistics can't be learned here, since items are run one by one (the network answers otherwise when "
            "they are joined, or the data can't be joined): use --batch-norm frozen."
        )


def _coordinates(
    pruned: onnx.ModelProto, student: Network, data: Source, rows: list[int], options: FinetuneOptions, processes: Processes
) -> dict[str, Coordinates]:  # fmt: skip
    """Where weights are trained: in all processes where the first one says, since eigenvectors may turn out otherwise."""
    found = find_coordinates(pruned, student.twin.weights().keys(), data, rows, options.seed)
    found = {name: each.to(processes.device) for name, each in found.items()}
    tensors = [tensor for each in found.values() for tensor in each.tensors()]
    if not processes.first:
        for tensor in tensors:
            tensor.zero_()
    processes.add_up(tensors)
    return found


def check_labels(model: onnx.ModelProto, data: Source) -> None:
    """Refuse labels that can't be classes of a network.

    Raises:
        DataError: one is below 0, or the network doesn't tell as many classes apart.
    """
    (answer,) = runtime.outputs(model, [data.batch([0])])
    if (unfit := verify.unfit_labels(answer, data.labels)) is not None:
        raise DataError(f"{data.description}: its {unfit}; number them from 0.")


@torch.no_grad()
def _check_comparable(student: Tensors, original: Tensors, names: Sequence[str]) -> None:
    """Refuse tensors of other shapes, and answers that are no numbers.

    Raises:
        ModelError: with the first tensor by which the networks can't be compared.
    """
    for name in names:
        own, other = student[name], original[name]
        if own.shape != other.shape:
            shapes = [tuple(tensor.shape) for tensor in (own, other)]
            raise ModelError(
                f"The tensor {name!r}, by which the networks are compared, has the shape {shapes[0]} in the pruned one and "
                f"{shapes[1]} in the original; give the file that the pruned one was made from."
            )
        for whose, tensor in (("pruned network", own), ("original", other)):
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise ModelError(
                    f"The tensor {name!r} of the {whose} is NaN or infinite on the data; look for such values among its "
                    "weights, and check how the data are scaled."
                )


def _features(
    pruned: onnx.ModelProto, teacher: onnx.ModelProto, data: Source, options: FinetuneOptions
) -> tuple[str, ...]:
    """Names of the inner tensors that are compared."""
    if not options.feature_weight:
        return ()
    student, original = Graph(pruned), Graph(teacher)
    check_features(options.features, student)
    if options.features:
        return options.features
    feeds = data.batch([0])
    shapes = [runtime.observed_shapes(graph, feeds) for graph in (student, original)]
    found = tuple(shared_features(student, original, shapes, _FEATURES))
    if not found:
        raise OptionError("The networks have no inner tensor in common to compare: leave --feature-weight out.")
    return found


def _compare(model: onnx.ModelProto, cut: Cut, data: Source, row: int) -> float:
    """How far the twin is from ONNX Runtime on one item.

    Raises:
        ModelError: too far.
    """
    apart = disagreement(model, to_torch(model, starts=cut.starts, ends=cut.ends), data.batch([row]))
    rough = any(node.op_type in _ROUGH for node in model.graph.node) or any(
        tensor.data_type in (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
        for tensor in Graph(model).tensors.values()
    )
    if not apart <= _TOLERANCE[rough]:
        raise ModelError(
            f"The network in PyTorch differs from ONNX Runtime by {apart:.1e} of its largest output, so training it would not "
            f"train the file."
        )
    return apart
