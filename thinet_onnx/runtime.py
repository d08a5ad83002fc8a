"""The only module that imports onnxruntime: sessions, shapes as they really are, whole-model runs, latency.

Everything here takes protobufs and arrays and returns arrays. Models for running are made from the user's by dropping the
declared shapes of inner tensors and outputs, so that a file exported for batch 1 may be tried with more.
"""

import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

from thinet_onnx import external, protos
from thinet_onnx.errors import ModelError
from thinet_onnx.graph import Graph, Shape

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]

_DISABLED = ["MatmulTransposeFusion"]  # in 1.32 it takes the process down at Transpose → Cast → MatMul and in float16
_LONGEST = 280  # characters of ONNX Runtime's own words in a message
_ORT_ERRORS: tuple[type[Exception], ...] = (
    ort.capi.onnxruntime_pybind11_state.Fail, ort.capi.onnxruntime_pybind11_state.InvalidArgument,
    ort.capi.onnxruntime_pybind11_state.InvalidGraph, ort.capi.onnxruntime_pybind11_state.InvalidProtobuf,
    ort.capi.onnxruntime_pybind11_state.NotImplemented, ort.capi.onnxruntime_pybind11_state.RuntimeException,
    ort.capi.onnxruntime_pybind11_state.NoSuchFile, ort.capi.onnxruntime_pybind11_state.EPFail,
)  # fmt: skip


def version() -> str:
    """ONNX Runtime's version."""
    return str(ort.__version__)


def session(
    model: onnx.ModelProto, weights: Mapping[str, Array] | None = None, *, optimise: bool = True, threads: int = 0,
    shared: bool = True,
) -> ort.InferenceSession:  # fmt: skip
    """A CPU session; without `optimise` every tensor of the file exists under its name.

    Args:
        model: what is to run.
        weights: values of external tensors that are in no file.
        optimise: let ONNX Runtime change the graph.
        threads: 0 for all cores, or a share of them if it is `shared`.
        shared: whether all processes that torchrun started on this machine are at work.

    Raises:
        ModelError: ONNX Runtime refuses the model.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    ort.set_default_logger_severity(4)  # an allocation that fails is logged by none of its sessions
    options.intra_op_num_threads = threads or (_cores() if shared else 0)
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # NumPy works in between
    if not optimise:  # for a few runs: planning the memory ahead takes time that grows with the square of the nodes
        options.enable_mem_pattern = False
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED  # a tensor is let go as soon as it can be
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    read = {name for node in model.graph.node for name in node.input} | protos.read_in_bodies(model.graph.node)
    beside = weights or {}
    outside = {name: value for name, value in external.arrays(model, without=beside) if name in read} | dict(beside)
    model, large = external.lightened(model)
    outside |= large
    if outside:
        options.add_external_initializers(
            list(outside), [ort.OrtValue.ortvalue_from_numpy(v) for v in outside.values()]
        )
    try:
        return ort.InferenceSession(
            model.SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=_DISABLED,
            enable_fallback=0,
        )
    except _ORT_ERRORS as error:
        raise ModelError(f"ONNX Runtime can't load the model ({_first_line(error)}).") from error


def _cores() -> int:
    """Threads for this process among those that torchrun started on this machine; 0, all of them, if it is alone."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, (os.cpu_count() or 1) // processes) if processes > 1 else 0


def run(active: ort.InferenceSession, feeds: Feeds, names: Sequence[str] | None = None) -> list[Array]:
    """One run.

    Raises:
        ModelError: ONNX Runtime fails on these feeds.
    """
    try:
        results: list[Array] = active.run(names, feeds)
    except _ORT_ERRORS as error:
        raise ModelError(f"ONNX Runtime can't run the model on these inputs ({_first_line(error)}).") from error
    return results


def _first_line(error: Exception) -> str:
    """What ONNX Runtime complains of, without its error codes and C++ signatures."""
    text = re.sub(r"^.*\[ONNXRuntimeError\] : \d+ : \w+ : ", "", " ".join(str(error).split())).rstrip(" .")
    text = re.sub(r"^/\S+:\d+ [^()]*\([^()]*\)(?: const)? ", "", text)
    if len(text) > _LONGEST:
        text = "… " + text[-_LONGEST:].partition(" ")[2]
    return text


def runnable(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without the declared shapes of outputs and inner tensors, and with a free batch."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    for output in copy.graph.output:
        output.type.tensor_type.ClearField("shape")
    constants = {tensor.name for tensor in copy.graph.initializer}
    for index, value in enumerate(copy.graph.input):
        dims = value.type.tensor_type.shape.dim
        if len(dims) and value.name not in constants:
            dims[0].ClearField("dim_value")
            dims[0].dim_param = f"thinet_batch_{index}"
    return copy


def observed_shapes(graph: Graph, feeds: Feeds) -> dict[str, Shape]:
    """The shape of every tensor in one run on `feeds`.

    A Shape node is hung onto each tensor, so that no activation is kept; sequences and optionals have none.
    """
    model = runnable(graph.model)
    names = sorted({name for node in graph.nodes for name in node.outputs if name} - _not_tensors(graph))
    del model.graph.output[:]
    for index, name in enumerate(names):
        model.graph.node.append(helper.make_node("Shape", [name], [f"thinet_shape_{index}"]))
        model.graph.output.append(helper.make_tensor_value_info(f"thinet_shape_{index}", onnx.TensorProto.INT64, None))
    results = run(session(model, optimise=False), feeds)
    shapes = {name: tuple(int(size) for size in result) for name, result in zip(names, results, strict=True)}
    return shapes | {name: feed.shape for name, feed in feeds.items()}


def _not_tensors(graph: Graph) -> set[str]:
    """Names that hold sequences, maps or optionals."""
    return {
        name for node in graph.nodes for name in node.outputs
        if node.op.startswith(("Sequence", "SplitToSequence", "Optional", "ZipMap"))
    }  # fmt: skip


def with_open_batch(graph: Graph, shapes: dict[str, Shape]) -> onnx.ModelProto:
    """A copy in which constant Reshape targets copy the batch (0) where they say 1: for running, never for writing."""
    copy = onnx.ModelProto()
    copy.CopyFrom(graph.model)
    protos = {proto.output[0]: proto for proto in copy.graph.node if proto.output}
    for node in graph.nodes:
        target = graph.fold(node.operand(1)) if node.op == "Reshape" and node.operand(1) else None
        source = shapes.get(node.operand(0))
        if target is None or not source or node.inputs[0] in graph.derived or 0 in target:
            continue
        if target.size and target[0] == 1 and source[0] == 1:
            kept = [a for a in protos[node.key].attribute if a.name != "allowzero"]
            del protos[node.key].attribute[:]
            protos[node.key].attribute.extend(kept)
            opened = np.array([0, *target[1:]], np.int64)
            name = f"thinet_open_{node.index}"
            copy.graph.initializer.append(onnx.numpy_helper.from_array(opened, name))
            protos[node.key].input[1] = name
    return copy


def batch_limit(
    model: onnx.ModelProto, opened: onnx.ModelProto, item: Callable[[Sequence[int]], Feeds], items: int, wanted: int
) -> int:
    """How many items can run together: `wanted`, or 1 where that fails or changes the answer.

    Args:
        model: the original, run on single items.
        opened: the copy that is to take several.
        item: feeds of some rows.
        items: how many rows there are.
        wanted: the batch size hoped for.
    """
    if items < 2 or wanted < 2:
        return 1
    single = session(runnable(model))
    alone = [run(single, item([row])) for row in (0, 1)]
    try:
        both = run(session(runnable(opened)), item([0, 1]))
    except ModelError:
        return 1
    return wanted if all(_same(a, b, joined) for a, b, joined in zip(*alone, both, strict=True)) else 1


def _same(first: Array, second: Array, joined: Array) -> bool:
    """Whether two items run together answer as they do alone."""
    if not first.ndim or joined.shape != (2 * first.shape[0], *first.shape[1:]):
        return False
    expected = np.concatenate([first, second])
    if expected.dtype.kind != "f":
        return bool((expected == joined).mean() > 0.99)
    return np.allclose(expected, joined, rtol=1e-3, atol=1e-3 * float(np.abs(expected).max() or 1))


def outputs(model: onnx.ModelProto, batches: Iterable[Feeds], *, optimise: bool = True) -> list[list[Array]]:
    """The graph's outputs for each batch, in graph order."""
    active = session(runnable(model), optimise=optimise)
    return [run(active, feeds) for feeds in batches]


def latency(
    models: Sequence[onnx.ModelProto], feeds: Feeds, *, runs: int = 30, seconds: float = 2.5
) -> tuple[list[float], int]:
    """Median run time of each model in milliseconds, measured in turn, and the number of runs each.

    Args:
        models: what to time; all take `feeds`.
        feeds: one batch.
        runs: at most so many runs of each, after warming up.
        seconds: stop sooner once this much time has passed (at least 5 runs).
    """
    sessions = [session(runnable(model), shared=False) for model in models]
    for active in sessions:
        for _ in range(2):
            run(active, feeds)
    times: list[list[float]] = [[] for _ in models]
    started = time.perf_counter()
    while len(times[0]) < runs and (len(times[0]) < 5 or time.perf_counter() - started < seconds):
        for record, active in zip(times, sessions, strict=True):
            begin = time.perf_counter()
            run(active, feeds)
            record.append(1e3 * (time.perf_counter() - begin))
    return [float(np.median(record)) for record in times], len(times[0])
