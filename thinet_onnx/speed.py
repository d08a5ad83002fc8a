"""How fast files run, side by side: the work of `bench`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from thinet_onnx import data as sources
from thinet_onnx import engines, summary
from thinet_onnx.check_options import BenchOptions
from thinet_onnx.engines import Engine, Program
from thinet_onnx.errors import ModelError, OptionError
from thinet_onnx.machine import machine
from thinet_onnx.options import Progress, Silent
from thinet_onnx.speed_result import BenchReport, Measured, NotMeasured
from thinet_onnx.subject import Data, Feeds, Model, Subject, WrongBatchError, open_subjects
from thinet_onnx.timing import Ratio, Timing, interleaved

_UNSTEADY = 1.5
"""Where the 90th percentile is so many times the 10th, something else had the machine for a while."""


@dataclass
class _Ready:
    """A model in an engine, with what it is fed in turn."""

    subject: Subject
    program: Program
    feeds: list[Feeds]

    def run(self, number: int) -> object:
        return self.program.run(self.feeds[number % len(self.feeds)])


def bench(
    models: Sequence[Model],
    data: Data = None,
    options: BenchOptions | None = None,
    *,
    preprocess: sources.Preprocess | None = None,
    progress: Progress | None = None,
) -> BenchReport:
    """Time models side by side.

    For each engine and batch size all models are loaded, warmed up and then run in turn, each time on the same data.

    Args:
        models: paths or ModelProtos; the first is what the others are compared with.
        data: inputs; noise where it is None.
        options: what is asked for.
        preprocess: how images become inputs.
        progress: who is told how far the run is.

    Raises:
        OptionError: an engine isn't installed, or an option can't be met.
        DataError: the data doesn't fit.
        ModelError: a file can't be read, or none could be run at all.
    """
    options, progress = options or BenchOptions(), progress or Silent()
    if not models:
        raise OptionError("There is no file to measure; name one or several .onnx files.")
    started = [engines.make(name, options.precision, options.threads) for name in dict.fromkeys(options.engines)]
    subjects = open_subjects(
        models, data, shapes=options.shapes, preprocess=preprocess or sources.Preprocess(), samples=options.samples,
        seed=options.seed,
    )  # fmt: skip
    batches = options.batches or (subjects[0].own_batch,)
    rows: list[Measured] = []
    failed: list[NotMeasured] = []
    progress.start("Measuring", len(started) * len(batches))
    try:
        for engine in started:
            for batch in batches:
                measured, refused = _side_by_side(engine, batch, subjects, options)
                rows += measured
                failed += refused
                progress.advance()
    finally:
        progress.close()
    if not rows:
        first = failed[0]
        raise ModelError(f"{first.file} can't be measured in {first.engine} at batch {first.batch}: {first.reason}.")
    source = subjects[0].source
    return BenchReport(
        tuple(subject.name for subject in subjects), tuple(rows), tuple(failed),
        "noise of the right shapes" if source is None else source.description, source is None, options.threads,
        machine(), summary.versions(), tuple(_unsteady(rows)),
    )  # fmt: skip


def _side_by_side(
    engine: Engine, batch: int, subjects: Sequence[Subject], options: BenchOptions
) -> tuple[list[Measured], list[NotMeasured]]:
    """All models in one engine at one batch size."""
    ready: list[_Ready] = []
    failed: list[NotMeasured] = []
    try:
        for subject in subjects:
            try:
                ready.append(_load(engine, batch, subject, options.seed))
            except (WrongBatchError, ModelError) as error:
                failed.append(NotMeasured(subject.name, engine.title, batch, str(error).rstrip(".")))
        runs, seconds = options.bounds
        calls: list[Callable[[int], object]] = [entry.run for entry in ready]
        times = interleaved(calls, runs=runs, seconds=seconds) if ready else []
    finally:
        for entry in ready:
            entry.program.close()
    rows = []
    for entry, record in zip(ready, times, strict=True):
        timing = Timing.of(record)
        compared = ready[0].subject is subjects[0] and entry is not ready[0]
        ratio = Ratio.of(record, times[0]) if compared else None
        speed = 1e3 * batch / timing.median_ms
        rows.append(Measured(entry.subject.name, engine.title, batch, timing, speed, ratio, tuple(record)))
    return rows, failed


def _load(engine: Engine, batch: int, subject: Subject, seed: int) -> _Ready:
    """Load a model and run it once on each of its feeds, to know that it can."""
    feeds = subject.feeds(batch, seed)
    shapes = {name: array.shape for name, array in feeds[0].items()}
    feeds = [feed for feed in feeds if {name: array.shape for name, array in feed.items()} == shapes]
    program = engine.load(subject.model, shapes)
    try:
        for feed in feeds:
            program.run(feed)
    except ModelError:
        program.close()
        raise
    return _Ready(subject, program, feeds)


def _unsteady(rows: Sequence[Measured]) -> list[str]:
    """A warning where the times of a file differ a lot from run to run."""
    worst = max(rows, key=lambda row: row.timing.p90_ms / row.timing.p10_ms)
    spread = worst.timing.p90_ms / worst.timing.p10_ms
    if spread < _UNSTEADY:
        return []
    return [
        f"Run times vary: a tenth of the runs of {worst.file} (batch {worst.batch}) took {spread:.1f} times as long as its "
        "fastest tenth or longer. Something else may be using the machine; trust the ratios, which are taken round by round, "
        "more than the times."
    ]
