"""Fine-tune a pruned network against the original. PyTorch is imported when `finetune` is called, not before."""

import dataclasses
import importlib.util
import os
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import onnx

from thinet_onnx import graph as graphs
from thinet_onnx import runtime, verify
from thinet_onnx.data import Preprocess, Source
from thinet_onnx.errors import ModelError, OptionError
from thinet_onnx.options import Progress, Silent
from thinet_onnx.result import Scores, TuneCurve, TuneReport
from thinet_onnx.setting import Data, Setting, open_data, open_model
from thinet_onnx.summary import versions
from thinet_onnx.training.options import FinetuneOptions, FinetuneResult, Validation

__all__ = ["FinetuneOptions", "FinetuneResult", "Validation", "check", "finetune", "need_torch", "report", "score"]

Model = onnx.ModelProto | str | os.PathLike[str]

_POINTS = 500  # of a curve
_TOGETHER = 64  # items that are scored at once


def need_torch() -> None:
    """Raise OptionError where PyTorch is missing: better known before a long run than after it."""
    if importlib.util.find_spec("torch") is None:
        raise OptionError("Fine-tuning needs PyTorch, which is not installed: pip install torch.")


def check(original: onnx.ModelProto, data: Source, options: FinetuneOptions) -> None:
    """Refuse, before a run prunes, what training would refuse after it; see `training.start.check`."""
    from thinet_onnx.training import start  # noqa: PLC0415

    start.check(original, data, options)


def finetune(
    pruned: Model, teacher: Model, data: Data, options: FinetuneOptions | None = None, *,
    preprocess: Preprocess | None = None, shapes: Mapping[str, tuple[int, ...]] | None = None,
    samples: int | None = None, held: Sequence[int] | None = None, test_data: Data = None,
    output: str | os.PathLike[str] | None = None,
    folder: Path | None = None, resume: bool = False, progress: Progress | None = None,
) -> FinetuneResult:  # fmt: skip
    """Train the weights of a pruned network so that it answers as the original does.

    Run by torchrun, every process takes its part of each batch; all return the same, and the first one writes.

    Args:
        pruned: the network to train, a path or a ModelProto; left alone.
        teacher: the original, with the same inputs; tensors are compared by name.
        data: what to train on: a path, arrays, feeds or a Source; labels are used with `label_weight` only.
        options: see `FinetuneOptions`; its defaults if None.
        preprocess: how images become inputs.
        shapes: sizes of inputs that the file leaves open.
        samples: how many of the data to take, at random.
        held: rows of the data that are never trained on; by default some are picked (`FinetuneOptions.held_out`).
        test_data: labelled data: top-1 accuracy of original, pruned and fine-tuned network.
        output: where to write the result; nothing is written otherwise.
        folder: where checkpoints and `log.jsonl` (one line for each step and validation) are kept; None to keep none.
        resume: go on from the folder's checkpoint, if there is one; on a CPU the result is the one of an unbroken run.
        progress: who wants to know.

    Raises:
        OptionError: PyTorch is missing, an option doesn't fit, or the checkpoint is of another run.
        ModelError: no weight can be trained, or the twin doesn't compute what ONNX Runtime does.
        DataError: there is too little data.
    """
    need_torch()
    from thinet_onnx.training.start import check_labels, run  # noqa: PLC0415

    options, preprocess = options or FinetuneOptions(), preprocess or Preprocess()
    if resume and folder is None:
        raise OptionError("--resume goes on from the checkpoint of --state: say both.")
    setting, original = (open_model(model, shapes or {}) for model in (pruned, teacher))
    _check_inputs(setting, original)
    if output is not None:
        setting.check_output(output)
        original.check_output(output)
    source = open_data(data, setting, preprocess, samples, options.seed)
    test = None if test_data is None else open_data(test_data, setting, preprocess, None, options.seed)
    if test is not None and test.labels is None:
        raise OptionError(
            f"The test data ({test.description}) has no labels; add a key 'labels', or sort images into folders."
        )
    if test is not None:
        check_labels(original.model, test)
    result = run(setting.model, original.model, source, options, held, folder, resume, progress or Silent())
    if test is not None:
        first, before, after = (score(model, test) for model in (original.model, setting.model, result.model))
        if first is not None and before is not None and after is not None:
            result = dataclasses.replace(result, scores=Scores(first, before, after, len(test)))
    if output is not None and int(os.environ.get("RANK", "0")) == 0:
        graphs.save(result.model, output, beside=setting.beside)
    return result


def _check_inputs(pruned: Setting, original: Setting) -> None:
    """Refuse an original that can't be fed what the pruned network is.

    Raises:
        ModelError: their inputs differ in name or type.
    """
    one, other = ({spec.name: spec.dtype for spec in setting.inputs} for setting in (pruned, original))
    if one != other:
        told = [", ".join(map(str, setting.inputs)) for setting in (pruned, original)]
        raise ModelError(
            f"{original.name} takes {told[1]}, but {pruned.name} takes {told[0]}; give the file that the pruned one was made "
            "from."
        )


def report(
    result: FinetuneResult, pruned: str, teacher: str, output: str | None, options: FinetuneOptions, data: str
) -> TuneReport:
    """What a run tells, as plain data."""
    return TuneReport(
        pruned, teacher, output, curve(result), result.fidelity_before, result.fidelity, len(result.held), result.scores,
        result.difference, result.left_out, result.seconds, dataclasses.asdict(options) | {"data": data},
        versions() | {"torch": metadata.version("torch")},
    )  # fmt: skip


def curve(result: FinetuneResult) -> TuneCurve:
    """The losses of a run, thinned to a few hundred points, and its validations."""
    width = -(-len(result.losses) // _POINTS) if result.losses else 1
    blocks = [(end, result.losses[end - width : end]) for end in range(width, len(result.losses) + 1, width)]
    validations = [
        {"step": entry.step, "loss": entry.loss, "agreement": entry.agreement} for entry in result.validations
    ]
    return TuneCurve(
        tuple((end, sum(losses) / width) for end, losses in blocks), tuple(validations), result.best_step, result.steps
    )  # fmt: skip


def score(model: onnx.ModelProto, test: Source) -> float | None:
    """Top-1 accuracy (0..1) on labelled data; None if no output looks like class scores."""
    assert test.labels is not None
    item = test.batch([0])
    opened = runtime.with_open_batch(graphs.Graph(model), runtime.observed_shapes(graphs.Graph(model), item))
    together = runtime.batch_limit(model, opened, test.batch, len(test), _TOGETHER if test.stackable else 1)
    batches = (test.batch(range(first, min(first + together, len(test)))) for first in range(0, len(test), together))
    return verify.accuracy(opened, batches, test.labels)
