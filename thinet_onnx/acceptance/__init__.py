"""Is a pruned file fit to take the original's place? The work of `verify`.

checks of the file → runs at several batches → outputs against the original's, input by input → costs → other engines
"""

import dataclasses
import time
from typing import Any

import numpy as np
import onnx

from thinet_onnx import data as sources
from thinet_onnx import engines, runtime, summary, verify
from thinet_onnx.acceptance import checks, elsewhere
from thinet_onnx.acceptance.result import BARS, Check, EngineAnswer, OutputRow, Speed, VerifyReport
from thinet_onnx.acceptance.tally import Tally
from thinet_onnx.check_options import VerifyOptions
from thinet_onnx.errors import ModelError, OptionError
from thinet_onnx.examine import examine
from thinet_onnx.groups import Analysis, analyse
from thinet_onnx.options import Progress, Silent
from thinet_onnx.readiness import File, Readiness, assess
from thinet_onnx.result import Size
from thinet_onnx.setting import closed_inputs, open_model
from thinet_onnx.subject import Data, Feeds, Model, Subject, open_data
from thinet_onnx.timing import Ratio, Timing, interleaved

Array = np.ndarray[Any, Any]

_RANDOM_SAMPLES = 16
_BATCHES = (1, 2, 8)  # to try a file of open batch at
_RUNS, _SECONDS = 100, 5.0  # of the latency
NO_DATA = (
    "No data to compare the files on: pass --data with a folder of images, a .npy or .npz file, or script.py:function (or "
    "--random-data, which shows that the file runs but not how good it is)."
)


def verify_pruned(
    pruned: Model,
    reference: Model,
    data: Data,
    options: VerifyOptions | None = None,
    *,
    preprocess: sources.Preprocess | None = None,
    random_data: bool = False,
    progress: Progress | None = None,
) -> VerifyReport:
    """Check a pruned model against the original it was made from.

    Args:
        pruned: a path or a ModelProto.
        reference: the original, likewise.
        data: inputs to compare them on; with labels, accuracy is compared too.
        options: what is asked for.
        preprocess: how images become inputs.
        random_data: take noise, with `data` None.
        progress: who is told how far the run is.

    Returns:
        the report; a check that fails is in there and no exception.

    Raises:
        ModelError: a file can't be read, or ONNX Runtime can't run the original.
        DataError: the data doesn't fit the original.
        OptionError: an option can't be met.
    """
    started, options, progress = time.perf_counter(), options or VerifyOptions(), progress or Silent()
    elsewhere.check_request(options.engines, options.precision, options.threads)
    old = _open_reference(reference, data, options, preprocess or sources.Preprocess(), random_data)
    new = _open_pruned(pruned, options, old)
    run = _Run(new, old, options, progress)
    try:
        run.work()
    finally:
        progress.close()
    source = run.source
    accuracy = run.tally.accuracy(None if run.unfit else source.labels)
    warnings = [*old.setting.warnings]
    if run.unfit is not None:
        warnings.append(f"No accuracy is shown: the {run.unfit} ({source.description}).")
    if random_data:
        warnings.insert(0, "Compared on random data: how near the outputs are on true inputs can't be told from that.")
    return VerifyReport(
        new.name, old.name, all(check.status != "failed" for check in run.checks), tuple(run.checks), source.description,
        random_data, len(source), run.outputs, run.tally.worst(), accuracy, run.before, run.after,
        run.speed, tuple(run.answers), tuple(run.readiness), time.perf_counter() - started, summary.versions(),
        tuple(warnings),
    )  # fmt: skip


def _open_reference(
    model: Model, data: Data, options: VerifyOptions, preprocess: sources.Preprocess, random_data: bool
) -> Subject:
    """The original with the data; a file from before operator sets as it is renewed, which is how it was pruned."""
    if random_data and data is not None:
        raise OptionError("--random-data and --data contradict each other; pass one of them.")
    if data is None and not random_data:
        raise OptionError(NO_DATA)
    setting = open_model(model, options.shapes)
    if not setting.read.opset_import:
        setting = dataclasses.replace(setting, read=setting.model)
    source: sources.Source | None
    if random_data:
        specs = closed_inputs(setting, options.shapes)
        source = sources.random_source(specs, samples=options.samples or _RANDOM_SAMPLES, seed=options.seed)
    else:
        source = open_data(data, setting, preprocess, options.samples, options.seed)
    name = "the original" if isinstance(model, onnx.ModelProto) else str(model)
    return Subject(name, setting, options.shapes, source)


def _open_pruned(model: Model, options: VerifyOptions, reference: Subject) -> Subject:
    """The pruned model, with the original's data."""
    own = open_model(model, {})
    shapes = {spec.name: options.shapes[spec.name] for spec in own.inputs if spec.name in options.shapes}
    setting = open_model(model, shapes) if shapes else own
    name = "the pruned model" if isinstance(model, onnx.ModelProto) else str(model)
    return Subject(name, setting, shapes, reference.source)


class _Run:
    """The steps of one run, and what each leaves for the report."""

    def __init__(self, new: Subject, old: Subject, options: VerifyOptions, progress: Progress) -> None:
        assert old.source is not None
        self.new, self.old, self.source = new, old, old.source
        self.options, self.progress = options, progress
        self.batches = options.batches or (_BATCHES if new.open_inputs else (new.own_batch,))
        self.checks: list[Check] = []
        self.tally = Tally(old.setting.graph.outputs)
        self.outputs: tuple[OutputRow, ...] = ()
        self.before: Size | None = None
        self.after: Size | None = None
        self.speed: Speed | None = None
        self.answers: list[EngineAnswer] = []
        self.readiness: list[Readiness] = []
        self.unfit: str | None = None

    def work(self) -> None:
        """All steps; what a failed check makes impossible is left out."""
        reference = runtime.session(self.old.model, threads=self.options.threads)
        first = self.source.batch([0])
        self.unfit = verify.unfit_labels(runtime.run(reference, first), self.source.labels)
        original = _analyse(self.old, first)
        self.before = _size(self.old, original)
        self.checks += checks.static_checks(self.new, self.old)
        session = self._load(first)
        if session is None:
            return
        analysis = _analyse(self.new, first)
        self.after = _size(self.new, analysis)
        self.checks += checks.runs(self.new, self.old, self.batches, session)
        self._compare(reference, session)
        self._bars()
        self.speed = self._speed(first)
        self._elsewhere(analysis, original, first)

    def _load(self, first: Feeds) -> Any | None:
        """The pruned file's session, once it has run on the first input; None if it doesn't."""
        try:
            session = runtime.session(self.new.model, threads=self.options.threads)
        except ModelError as error:
            self.checks.append(Check("loads in ONNX Runtime", "failed", str(error)))
            return None
        self.checks.append(Check("loads in ONNX Runtime", "passed", runtime.version()))
        if any(check.name == checks.INTERFACE and check.status == "failed" for check in self.checks):
            return None
        try:
            runtime.run(session, first)
        except ModelError as error:
            self.checks.append(Check("runs on the data", "failed", str(error)))
            return None
        return session

    def _compare(self, reference: Any, session: Any) -> None:
        """All inputs, one by one."""
        self.progress.start("Comparing", len(self.source))
        failed: str | None = None
        for row in range(len(self.source)):
            feeds = self.source.batch([row])
            try:
                answer = runtime.run(session, feeds)
            except ModelError as error:
                failed = failed or f"{self.source.title(row)}: {error}"
                continue
            self.tally.add(self.source.title(row), runtime.run(reference, feeds), answer)
            self.progress.advance()
        self.outputs = self.tally.rows()
        if failed is not None:
            self.checks.append(Check("runs on the data", "failed", failed))
        finite = "passed" if self.tally.broken is None else "failed"
        told = "wherever the original's are" if self.tally.broken is None else f"not for {self.tally.broken}"
        self.checks.append(Check("outputs are finite", finite, told))  # type: ignore[arg-type]

    def _bars(self) -> None:
        """Hold the outputs against the user's bars.

        Raises:
            OptionError: there is no output that a bar could be held against.
        """
        if (bar := self.options.max_error) is not None:
            errors = {row.output: row.relative_error for row in self.outputs if row.relative_error is not None}
            if not errors:
                raise OptionError("--max-error: no output is floating point with the original's shape; leave it out.")
            over = [f"{name!r} {error:.4f}" for name, error in errors.items() if not error <= bar]
            told = (
                f"over {bar:g}: {', '.join(over)}" if over else f"{max(errors.values()):.4f} at most, {bar:g} allowed"
            )
            self.checks.append(Check(BARS[0], "failed" if over else "passed", told))
        if (bar := self.options.min_agreement) is not None:
            shares = {row.output: row.top1 for row in self.outputs if row.top1 is not None}
            if not shares:
                raise OptionError(
                    "--min-agreement: no output looks like class scores, of shape (N, classes); leave it out."
                )
            under = [f"{name!r} {share:.2%}" for name, share in shares.items() if share < bar]
            told = (
                f"under {bar:.2%}: {', '.join(under)}" if under else f"{min(shares.values()):.2%}, {bar:.2%} asked for"
            )
            self.checks.append(Check(BARS[1], "failed" if under else "passed", told))

    def _speed(self, feeds: Feeds) -> Speed:
        """Both files in ONNX Runtime, in turn, on the first input."""
        self.progress.start("Measuring", 1)
        engine = engines.make("ort", threads=self.options.threads)
        shapes = {name: array.shape for name, array in feeds.items()}
        programs = [engine.load(subject.model, shapes) for subject in (self.old, self.new)]
        before, after = interleaved(
            [lambda _, program=program: program.run(feeds) for program in programs],  # type: ignore[misc]
            runs=_RUNS, seconds=_SECONDS, warm_up=0.2,
        )  # fmt: skip
        sizes = [array.shape[0] for array in feeds.values() if array.ndim]
        return Speed(sizes[0] if sizes else 1, Timing.of(before), Timing.of(after), Ratio.of(after, before))

    def _elsewhere(self, analysis: Analysis, original: Analysis, first: Feeds) -> None:
        """Readiness for the engines asked for, and their answers."""
        options = self.options
        file = File(self.new.model, self.new.name if self.new.name.endswith(".onnx") else "pruned.onnx")
        shapes = {name: array.shape for name, array in first.items()}
        feeds = [self.source.batch([row]) for row in range(min(elsewhere.SAMPLES, len(self.source)))]
        for engine in options.engines:
            found = assess(
                engine, file, analysis, original, precision=options.precision, batches=self.batches, shapes=shapes
            )
            self.readiness.append(found)
            self.checks.append(elsewhere.ready(found))
            if engine == "ort":
                continue
            answer, check = elsewhere.answers(
                engine, self.new, self.old, feeds, options.precision, options.tolerance, options.threads
            )
            self.answers.append(answer)
            self.checks.append(check)


def _analyse(subject: Subject, feeds: Feeds) -> Analysis:
    setting, shapes = examine(subject.setting, [feeds])
    return analyse(setting.graph, shapes)


def _size(subject: Subject, analysis: Analysis) -> Size:
    return Size(
        round(analysis.macs.total(analysis.sizes)), round(analysis.params.total(analysis.sizes)), subject.setting.bytes
    )
