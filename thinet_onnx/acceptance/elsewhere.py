"""The pruned file in other engines: is it ready for them, and do they answer what ONNX Runtime does?"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from thinet_onnx import engines, runtime, verify
from thinet_onnx.acceptance.result import Check, EngineAnswer
from thinet_onnx.check_options import CALLED, EngineName, Precision
from thinet_onnx.errors import ModelError
from thinet_onnx.readiness import Readiness
from thinet_onnx.subject import Feeds, Subject

Array = np.ndarray[Any, Any]

SAMPLES = 8
"""Inputs that an engine is tried on."""

_TOLERANCE: dict[Precision, float] = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 1e-1, "int8": 1e-1}
_AS_FAR = 1.5  # times what the original differs by: then it is the engine's doing, not that of pruning
_TF32, _COARSE = 1e-2, 5e-2  # TensorRT's float32; files that compute in 16 or 8 bits somewhere


def tolerance(engine: EngineName, precision: Precision, coarse: bool) -> float:
    """How far an engine may be from ONNX Runtime, relative to the largest value of an output."""
    bound = _TF32 if engine == "tensorrt" and precision == "fp32" else _TOLERANCE[precision]
    return max(bound, _COARSE) if coarse else bound


def ready(found: Readiness) -> Check:
    """Whether the file is ready for an engine, by what can be told without running it."""
    name = f"ready for {CALLED[found.engine]}"
    if found.failures:
        return Check(name, "failed", " ".join(found.failures))
    return Check(name, "passed", "nothing in the file speaks against it")


def answers(
    engine: EngineName, pruned: Subject, reference: Subject, feeds: Sequence[Feeds], precision: Precision,
    allowed: float | None, threads: int,
) -> tuple[EngineAnswer, Check]:  # fmt: skip
    """Run both files in an engine and in ONNX Runtime, on the feeds that have the shapes of the first.

    Raises:
        OptionError: the engine is there, but can't do what is asked for.
    """
    called = CALLED[engine]
    bound = tolerance(engine, precision, pruned.setting.coarse) if allowed is None else allowed
    name = f"answers in {called}"
    if (missing := engines.missing(engine)) is not None:
        return EngineAnswer(engine, called, missing, None, None, bound, 0), Check(name, "skipped", missing)
    shapes = {key: array.shape for key, array in feeds[0].items()}
    alike = [feed for feed in feeds if {key: array.shape for key, array in feed.items()} == shapes]
    started = engines.make(engine, precision, threads)
    try:
        difference = _difference(started, pruned, alike)
    except ModelError as error:
        return EngineAnswer(engine, started.title, None, None, None, bound, len(alike)), Check(
            name, "failed", str(error)
        )
    try:
        original = _difference(started, reference, alike)
    except ModelError:
        original = None  # the pruned file runs, which is what counts
    answer = EngineAnswer(engine, started.title, None, difference, original, bound, len(alike))
    told = f"{difference:.1e} from ONNX Runtime's at most, {bound:g} allowed, relative to the largest value"
    if difference <= bound:
        return answer, Check(name, "passed", told)
    if original is not None and difference <= _AS_FAR * original:
        return answer, Check(name, "skipped", f"{told}; but the original's are {original:.1e} away as well")
    return answer, Check(name, "failed", told)


def _difference(engine: engines.Engine, subject: Subject, feeds: Sequence[Feeds]) -> float:
    """Largest difference from ONNX Runtime's answers, over the largest value that an output takes on any of the feeds.

    Not on each: a picture in which a detector finds nothing has scores of 1e-7, in which float32 leaves no digits to compare.
    """
    program = engine.load(subject.model, {name: array.shape for name, array in feeds[0].items()})
    try:
        found = [program.run(feed) for feed in feeds]
    finally:
        program.close()
    session = runtime.session(subject.model)
    wanted = [runtime.run(session, feed) for feed in feeds]
    if any(w.shape != f.shape for pair in zip(wanted, found, strict=True) for w, f in zip(*pair, strict=True)):
        return float("inf")
    return verify.difference(*([_joined(answers)] for answers in (wanted, found)))


def _joined(answers: Sequence[Sequence[Array]]) -> list[Array]:
    """Each output's values for all feeds, flat."""
    return [np.concatenate([array.ravel() for array in arrays]) for arrays in zip(*answers, strict=True)]


def check_request(names: Sequence[EngineName], precision: Precision, threads: int) -> None:
    """Start the engines that are here once, before any work, so that a request they can't meet is known.

    Raises:
        OptionError: one can't do what is asked for.
    """
    for name in names:
        if name != "ort" and engines.missing(name) is None:
            engines.make(name, precision, threads)
