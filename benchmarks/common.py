"""What the benchmarks share: work in a child process of its own, with so many threads, a time limit and a memory limit.

A child starts from nothing (`spawn`), so that what one file leaves behind never counts for the next, and so that a crash,
a hang or a file that eats the memory ends that child and no more.
"""

import functools
import multiprocessing
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from thinet_onnx import runtime
from thinet_onnx.data import InputSpec, Preprocess, Source, open_source, random_source
from thinet_onnx.errors import ThinetError

_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
_SLEEP = ("OPENBLAS_THREAD_TIMEOUT", "10")
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
GIB = 1 << 30


class ChildError(Exception):
    """What happened to a child that gave no answer: `kind` is "hang", "killed" or the name of an exception."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def in_child(
    function: Callable[..., Any], *arguments: Any, seconds: float, memory: float = 8 * GIB, threads: int = 1
) -> Any:
    """What a module's function returns in a fresh process.

    Args:
        function: a function of a module, by which the child finds it.
        arguments: what it takes; pickled, like the result.
        seconds: the child is killed when it takes longer.
        memory: bytes of data it may hold.
        threads: of NumPy and ONNX Runtime; 0 leaves them to their own choice.

    Raises:
        ChildError: it raised (`kind` is the class of the exception), was killed, or took too long.
    """
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(theirs, memory, threads, function, arguments), daemon=True)
    with _threads_of_children(threads):
        child.start()
    theirs.close()
    try:
        if not mine.poll(seconds):
            raise ChildError("hang", f"no answer within {seconds:.0f} s")
        kind, answer = mine.recv()
    except EOFError:
        child.join(5)
        raise ChildError("killed", f"the process ended with exit code {child.exitcode}") from None
    finally:
        child.kill()
        child.join()
        mine.close()
    if kind is not None:
        raise ChildError(kind, answer)
    return answer


@contextmanager
def _threads_of_children(threads: int) -> Iterator[None]:
    """Processes that start meanwhile have this many threads for linear algebra (0: as many as this one would).

    They put them to sleep as soon as the command does, which loads the package before NumPy.
    """
    before = {name: os.environ.get(name) for name in (*_THREADS, _SLEEP[0])}
    os.environ.setdefault(*_SLEEP)
    if threads:
        os.environ.update(dict.fromkeys(_THREADS, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _answer(
    pipe: Connection, memory: float, threads: int, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    """The child's life: limits, the work, the answer."""
    resource.setrlimit(resource.RLIMIT_DATA, (int(memory), resource.getrlimit(resource.RLIMIT_DATA)[1]))
    if threads:  # ONNX Runtime takes every core unless each session is told otherwise
        runtime.session = functools.partial(runtime.session, threads=threads)  # type: ignore[assignment]
    try:
        pipe.send((None, function(*arguments)))
    except BrokenPipeError:  # the parent has been ended
        pass
    except Exception as error:  # whatever it is, the parent tells
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = "" if isinstance(error, ThinetError) else f" ({Path(last.filename).name}:{last.lineno})"
        pipe.send((type(error).__name__, " ".join(str(error).split()) + place))
    finally:
        pipe.close()


class Meter:
    """Time and memory of a stretch of work in this process.

    `seconds` are seconds of the processor: with one thread those of the clock, without what other programs take.
    `total` is the most that was resident at once during the work, `more` that less what was resident when it began, both
    in bytes. Where the system can start the peak afresh (Linux), what came before doesn't count.
    """

    def __enter__(self) -> "Meter":
        self._fresh = _reset_peak()
        self._base = _resident()
        self._started = time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.process_time() - self._started
        self.total = _peak(self._fresh)
        self.more = max(self.total - self._base, 0)


def peak() -> int:
    """The most that was resident at once in this process since it began, in bytes, as the system says."""
    return _peak(_STATUS.exists())


def resident(parent: int) -> int:
    """What a process and those that it started hold at this moment, in bytes; pages that they share count once (Linux)."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            about = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(folder.name) == parent or int(about[1]) == parent:
                rollup = (folder / "smaps_rollup").read_text().splitlines()
                total += 1024 * int(next(line for line in rollup if line.startswith("Pss:")).split()[1])
        except (OSError, StopIteration):  # it has ended
            continue
    return total


def _reset_peak() -> bool:
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def _peak(fresh: bool) -> int:
    """Bytes; `ru_maxrss` of a child also counts what its parent held when it was forked, so the kernel's figure is better."""
    if fresh:
        return _field("VmHWM")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _resident() -> int:
    return _field("VmRSS") if _STATUS.exists() else _peak(False)


def _field(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def given_shapes(model: onnx.ModelProto, entry: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """A shape for each input: the manifest's `feed`, or the declared one with an open batch at 1, all else open at 64."""
    constants = {tensor.name for tensor in model.graph.initializer}
    shapes = {}
    for value in model.graph.input:
        if value.name not in constants:
            dims = value.type.tensor_type.shape.dim
            declared = [d.dim_value if d.dim_value > 0 else 1 if axis == 0 else 64 for axis, d in enumerate(dims)]
            shapes[value.name] = tuple((entry.get("feed") or {}).get(value.name, declared))
    return shapes


def samples_for(inputs: list[InputSpec], images: Path | None, count: int, seed: int) -> Source:
    """Real images where there are some and they fit, noise otherwise."""
    shape = inputs[0].shape
    if images is not None and len(inputs) == 1 and len(shape) == 4 and 3 in (shape[1], shape[3]):
        pixels = Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        return open_source(images, inputs, pixels, samples=count, seed=seed)
    return random_source(inputs, samples=count, seed=seed)


def other_shapes(model: onnx.ModelProto, shapes: dict[str, tuple[int, ...]]) -> list[dict[str, tuple[int, ...]]]:
    """Shapes that the file's open dimensions also allow: another batch, then other sizes of all else that is open.

    Dimensions of one name stay equal. Empty where everything is closed.
    """
    names: dict[tuple[str, int], str] = {}
    for value in model.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim if value.name in shapes else ()):
            if dim.dim_value <= 0:
                names[value.name, axis] = dim.dim_param or f"{value.name}:{axis}"
    batches = {name for (_, axis), name in names.items() if axis == 0}
    found = []
    for is_batch in (True, False):
        new = {name: list(shape) for name, shape in shapes.items()}
        for (value, axis), name in names.items():
            size = shapes[value][axis]
            if (name in batches) == is_batch:
                new[value][axis] = (3 if size != 3 else 2) if is_batch else size + min(size, 32)
        if new != {name: list(shape) for name, shape in shapes.items()}:
            found.append({name: tuple(shape) for name, shape in new.items()})
    return found


def noise(model: onnx.ModelProto, shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray[Any, Any]]:
    """One feed of these shapes."""
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    specs = [
        InputSpec(name, shape, np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kinds[name])))
        for name, shape in shapes.items()
    ]
    return random_source(specs, samples=1, seed=seed).batch([0])


def seen(shapes: dict[str, tuple[int, ...]]) -> str:
    """Shapes in words: 3×64×64."""
    return ", ".join("×".join(map(str, shape)) or "scalar" for shape in shapes.values())
