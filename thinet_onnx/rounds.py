"""Pruning and fine-tuning in one run: all groups at once and then training, or the paper's loop, group by group.

The loop (Luo, Wu and Lin 2017, algorithm 1): prune one layer, train a little, go on with the next one, train at the end.
Each round works on the file that the last one left. A group is whole until its own round, so its units have the same numbers
in all files, and the plan of the whole run is put together from those of the rounds.
"""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from thinet_onnx import data as sources
from thinet_onnx import graph as graphs
from thinet_onnx import pipeline, runtime, surgery, tuning, verify
from thinet_onnx.choose import Rebuilt
from thinet_onnx.errors import OptionError
from thinet_onnx.groups import make_plan
from thinet_onnx.options import Progress, PruneOptions, Show, Storage
from thinet_onnx.pipeline import PruneResult
from thinet_onnx.ranks import Ranks
from thinet_onnx.run import Outcome, Run
from thinet_onnx.setting import Data, open_data, open_model
from thinet_onnx.training.options import FinetuneOptions, FinetuneResult


@dataclass(frozen=True)
class Schedule:
    """How a run trains: `options`, for `final` epochs at the end and `per_layer` after each group (0: not)."""

    final: int = 0
    per_layer: int = 0
    options: FinetuneOptions = field(default_factory=FinetuneOptions)

    def __post_init__(self) -> None:
        for name, value in (("--finetune-epochs", self.final), ("--finetune-per-layer", self.per_layer)):
            if value < 0:
                raise OptionError(f"{name} {value}: it must not be negative.")
        if not self.final and not self.per_layer:
            raise OptionError("Nothing is to be trained: give --finetune-epochs or --finetune-per-layer.")


def prune(
    model: onnx.ModelProto | str | os.PathLike[str], data: Data, options: PruneOptions, schedule: Schedule, *,
    preprocess: sources.Preprocess | None = None, test_data: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None, show: Show | None = None, progress: Progress | None = None,
    storage: Storage | None = None, config: str = "", ranks: Ranks | None = None,
) -> PruneResult:  # fmt: skip
    """Prune and fine-tune a model; `pipeline.prune` with training. All of the data trains, `options.samples` calibrate.

    Args:
        model: a path or a ModelProto; it is left as it is.
        data: to calibrate and to train on.
        options: what is to be removed.
        schedule: how to train.
        preprocess: how images become inputs.
        test_data: labelled data, for accuracy before and after.
        output: where to write the result.
        show: which held-out samples the report shows.
        progress: who is told how far the run is.
        storage: what the run keeps on disk, and starts from; the checkpoints of the training at the end lie in its state, too.
        config: what was asked for, as TOML; the pruned model and the report carry it.
        ranks: the processes that take part; by default those that torchrun started.

    Raises:
        ThinetError: see `errors`.
    """
    tuning.need_torch()
    storage = storage or Storage()
    if schedule.per_layer and storage.state is not None:
        raise OptionError(
            "--state and --finetune-per-layer don't go together: that loop can't go on after an interruption; "
            "use --finetune-epochs, or leave --state out."
        )
    setting = open_model(model, options.shapes)
    full = open_data(data, setting, preprocess or sources.Preprocess(), None, options.seed)
    tuning.check(setting.model, full, schedule.options)
    some, rows = sources.sampled(full, options.samples, options.seed)
    work = partial(_work, trainer=_Trainer(full, rows, schedule, storage.state))
    return pipeline.prune(
        model, some, options, preprocess=preprocess, test_data=test_data, output=output, show=show, progress=progress,
        work=work, storage=storage, config=config, ranks=ranks,
    )  # fmt: skip


@dataclass(frozen=True)
class _Trainer:
    """Data and options of all trainings of a run; `rows` are those of the calibration items in the data.

    `state` is the folder of the run's state; checkpoints are kept in it.
    """

    data: sources.Source
    rows: list[int]
    schedule: Schedule
    state: Path | None = None

    def train(self, student: onnx.ModelProto, run: Run, epochs: int) -> FinetuneResult:
        """Train, on all but what the run holds out."""
        options = dataclasses.replace(self.schedule.options, epochs=epochs)
        held = [self.rows[row] for row in run.held]
        folder = None if self.state is None else self.state / "training"
        with run.ranks.apart():
            return tuning.finetune(student, run.setting.model, self.data, options, held=held, progress=run.progress,
                                   folder=folder, resume=folder is not None)  # fmt: skip


def _work(run: Run, trainer: _Trainer) -> Outcome:
    outcome = _group_by_group(run, trainer) if trainer.schedule.per_layer else run.work()
    if not trainer.schedule.final:
        return outcome
    result = trainer.train(outcome.model, run, trainer.schedule.final)
    return _with_model(outcome, run, result.model, tuning.curve(result))


def _with_model(outcome: Outcome, run: Run, model: onnx.ModelProto, curve: Any) -> Outcome:
    graph = graphs.Graph(model)
    opened = runtime.with_open_batch(graph, runtime.observed_shapes(graph, run.source.batch(run.held[:1])))
    return dataclasses.replace(outcome, model=model, twin=opened, tuned=curve)


def _group_by_group(run: Run, trainer: _Trainer) -> Outcome:
    """One round for each group that is to shrink, in the order of the layers."""
    groups = run.analysis.groups
    decision = run.settle().decision
    place = {layer.node.key: index for index, layer in enumerate(run.analysis.context.linears)}
    cut = [g for g, group in enumerate(groups) if decision.widths[g] < group.size]
    cut.sort(key=lambda g: min(place[layer.node.key] for layer in groups[g].producers))
    kept = [np.arange(group.size) for group in groups]
    model, rebuilt, worst, curve = run.setting.model, list[Rebuilt](), 0.0, None
    for g in cut:
        options = dataclasses.replace(
            run.options, target=None, keep=None, preset=None, widths={groups[g].name: decision.widths[g]}, scope="all",
            include=(), exclude=(), engine="ort", latency_batch=None, threads=0,
        )  # fmt: skip
        setting = open_model(model, run.options.shapes)
        part = Run(setting, run.source, options, run.preprocess, run.progress, ranks=run.ranks).work()
        kept[g] = np.array(_kept(part, groups[g].name, groups[g].size))
        rebuilt += [entry for entry in part.rebuilt if entry.error is not None]  # a maker of channels has its own round
        worst = max(worst, part.oracle_error)
        result = trainer.train(part.model, run, trainer.schedule.per_layer)
        model, curve = result.model, tuning.curve(result)
    plan = make_plan(run.analysis, kept)
    check = [run.source.batch([row]) for row in run.held[:4]]
    bare = surgery.apply(run.setting.model, plan)
    worst = max(worst, verify.oracle(run.setting.model, bare, plan, check))
    _same_shapes(bare, model)
    outcome = Outcome(model, model, plan, rebuilt, decision, worst, None)
    return _with_model(outcome, run, model, curve)


def _kept(part: Outcome, name: str, size: int) -> Sequence[int]:
    """Units that a round kept of its group."""
    found = next((group for group in part.plan.groups if group.name == name), None)
    if found is None or found.before != size:
        raise RuntimeError(f"The group {name!r} is another one after earlier groups were cut; nothing was written.")
    return found.kept


def _same_shapes(one: onnx.ModelProto, other: onnx.ModelProto) -> None:
    """The rounds together must have cut what their plans together say."""
    shapes = [{tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer} for model in (one, other)]
    if any(shapes[1].get(name, shape) != shape for name, shape in shapes[0].items()):
        raise RuntimeError("The rounds cut something else than their plans say; nothing was written. Please report it.")
