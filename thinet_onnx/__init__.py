"""Channel pruning for convolutional ONNX files: ThiNet on the graph, with calibration data and no training code.

    import thinet_onnx
    result = thinet_onnx.prune("model.onnx", "calibration.npz", target="macs=50%")
    onnx.save(result.model, "smaller.onnx")

`prune`, `curve`, `inspect`, `bench` and `verify_pruned` take paths or `onnx.ModelProto`s. The command line is `thinet-onnx`.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from thinet_onnx._version import __version__
from thinet_onnx.errors import (
    DataError,
    ModelError,
    NothingToPruneError,
    OptionError,
    OutputError,
    ProcessError,
    ReportError,
    StateError,
    TargetError,
    ThinetError,
)
from thinet_onnx.options import Method, Preset, Reconstruction, Scope

if "numpy" not in sys.modules:  # its threads wait for more work by taking turns with ours, unless told to sleep
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "10")  # 2^10 cycles

if TYPE_CHECKING:
    import onnx

    from thinet_onnx.acceptance.result import VerifyReport
    from thinet_onnx.check_options import EngineName, Precision
    from thinet_onnx.curve_result import By, CurveReport
    from thinet_onnx.pipeline import PruneResult
    from thinet_onnx.result import Inspection, Report
    from thinet_onnx.setting import Data
    from thinet_onnx.speed_result import BenchReport
    from thinet_onnx.torch_twin import Twin
    from thinet_onnx.training.options import FinetuneResult

# From 1.29 on ONNX Runtime's official builds report names and hashes of models to their maker, and leave a file in the folder
# for temporary ones, unless this is set before they are loaded. Whoever wants that sets it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = [
    "DataError",
    "ModelError",
    "NothingToPruneError",
    "OptionError",
    "OutputError",
    "ProcessError",
    "ReportError",
    "StateError",
    "TargetError",
    "ThinetError",
    "__version__",
    "bench",
    "curve",
    "finetune",
    "from_torch",
    "inspect",
    "prune",
    "to_torch",
    "verify_pruned",
    "write_page",
]


def prune(
    model: "onnx.ModelProto | str | os.PathLike[str]",
    data: "Data",
    *,
    target: str | None = None,
    keep: float | None = None,
    method: Method | None = None,
    reconstruct: Reconstruction | None = None,
    scope: Scope = "inner",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    round_to: int | None = None,
    positions: int | None = None,
    memory: float | None = None,
    drop_branches: bool = False,
    engine: "EngineName" = "ort",
    latency_batch: int | None = None,
    threads: int = 0,
    preset: Preset | None = None,
    samples: int | None = None,
    seed: int = 0,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    random_data: bool = False,
    test_data: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    examples: int = 0,
    task: str = "auto",
    classes: Sequence[str] = (),
    state: str | os.PathLike[str] | None = None,
    save_moments: str | os.PathLike[str] | None = None,
    from_moments: str | os.PathLike[str] | None = None,
    **pixels: Any,
) -> "PruneResult":
    """Prune a model: the command `thinet-onnx prune` as a function.

    Args:
        model: a path, or a ModelProto (left as it is).
        data: calibration data: a folder of images, .npy, .npz or `script.py:function` as a path; arrays by input name; one
            array for a model with one input; an iterable of feeds.
        target: what is to remain, `macs=50%`, `params=50%` or absolute (`macs=2.0G`), or `latency=60%` or
            `latency=4.0ms` as measured on this machine; half of the MACs by default.
        keep: in place of `target`, the share of channels to keep in every group.
        method: how channels are ranked; by default by what a refit leaves without them.
        reconstruct: how the weights that read the cut channels are rebuilt; by default the method's own way.
        scope: `inner` leaves residual streams alone, `all` prunes them too.
        include: regular expressions; only groups of matching nodes are pruned.
        exclude: regular expressions; groups of matching nodes are left whole.
        round_to: multiple that widths are rounded to; by default by the width of the group.
        positions: at how many positions, over all samples, each layer is seen; by default by its width.
        memory: bytes of activations that are kept in memory, 6.4e7 by default, more for wide
            layers; the rest goes to temporary files.
        drop_branches: residual branches may lose all their channels; with a latency target they always may.
        engine: where latency is measured, for a latency target: `ort`, `openvino` or `tensorrt`.
        latency_batch: at which batch; by default the file's own, 1 where it is open.
        threads: of an engine on the CPU; 0 leaves the number to it.
        preset: in place of `target`, a published recipe: `thinet-conv`.
        samples: how many of the data to take, at random.
        seed: of all that is random.
        shapes: sizes of inputs that the file leaves open.
        random_data: calibrate on noise, with `data` None; the report warns.
        test_data: labelled data, for accuracy before and after.
        output: where to write the result.
        examples: how many held-out samples the report shows with both networks' answers.
        task: how their outputs are read: `auto`, `detect` (boxes), `detect:cxcywh` or `detect:yxyx`.
        classes: names of the classes, for the examples.
        state: folder in which an interrupted run finds how far it got; the same call goes on from there.
        save_moments: file for what was learnt of the model before widths were chosen; no target matters to it.
        from_moments: such a file of an earlier run with the same model and data.
        pixels: `mean`, `std`, `scale`, `layout`, `resize` for uint8 images (see `data.Preprocess`).

    Returns:
        the pruned model, the plan and the report. Run by torchrun, the processes share the data, all return the same, and the
        first one writes.

    Raises:
        ThinetError: one sentence for people (see `errors`).
    """
    from pathlib import Path

    from thinet_onnx import pipeline
    from thinet_onnx.config import of_prune
    from thinet_onnx.data import Preprocess
    from thinet_onnx.options import PruneOptions, Show, Storage, Target

    if target is None and keep is None and preset is None:
        target = "macs=50%"
    options = PruneOptions(
        target=None if target is None else Target.parse(target), keep=keep, method=method, reconstruct=reconstruct,
        scope=scope, include=tuple(include), exclude=tuple(exclude), round_to=round_to, samples=samples, seed=seed,
        positions=positions, memory=memory, drop_branches=drop_branches, preset=preset,
        engine=engine, latency_batch=latency_batch, threads=threads, shapes=dict(shapes or {}),
    )  # fmt: skip
    preprocess = Preprocess(**pixels)
    asked = {"random-data": random_data, "test-data": None if test_data is None else os.fspath(test_data)}
    return pipeline.prune(
        model, data, options, preprocess=preprocess, random_data=random_data, test_data=test_data, output=output,
        show=Show.of(task, classes, examples), config=of_prune(options, preprocess, data, asked),
        storage=Storage(*(None if path is None else Path(path) for path in (state, save_moments, from_moments))),
    )  # fmt: skip


def curve(
    model: "onnx.ModelProto | str | os.PathLike[str]",
    data: "Data",
    *,
    by: "By" = "macs",
    targets: Sequence[float] = (),
    measure: bool = False,
    latency: bool = False,
    save_moments: str | os.PathLike[str] | None = None,
    from_moments: str | os.PathLike[str] | None = None,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    scale: float | None = None,
    layout: Any = "auto",
    resize: tuple[int, int] | None = None,
    **options: Any,
) -> "CurveReport":
    """What every target would cost: the command `thinet-onnx curve` as a function.

    Args:
        model: a path, or a ModelProto (left as it is).
        data: calibration data, in any form that `prune` takes.
        by: what targets count, `macs` or `params`.
        targets: shares (0..1) that are to remain; a dozen from 0.9 to 0.1 by default.
        measure: prune for every target, as `prune` does, and measure the error on held-out samples.
        latency: times too: by single layers, or of cut files with `measure`.
        save_moments: file for what was learnt of the model; `prune` and `curve` take it with `from_moments`.
        from_moments: such a file of an earlier run with the same model and data.
        mean: with `std`, `scale`, `layout` and `resize` for uint8 images (see `data.Preprocess`).
        std: see `mean`.
        scale: see `mean`.
        layout: see `mean`.
        resize: see `mean`.
        options: the other fields of `options.PruneOptions`: `scope`, `method`, `samples`, `seed`, `engine`, ….

    Raises:
        ThinetError: one sentence for people (see `errors`).
    """
    from pathlib import Path

    from thinet_onnx import tradeoff
    from thinet_onnx.curve_result import SHARES, CurveOptions
    from thinet_onnx.data import Preprocess
    from thinet_onnx.options import PruneOptions, Storage, Target

    pixels = Preprocess(mean=tuple(mean), std=tuple(std), scale=scale, layout=layout, resize=resize)
    chosen = PruneOptions(target=Target("latency" if latency else by, 0.5, True), **options)
    asked = CurveOptions(by, tuple(sorted(targets, reverse=True)) or SHARES, latency, measure)
    files = (None if path is None else Path(path) for path in (save_moments, from_moments))
    return tradeoff.curve(model, data, chosen, asked, preprocess=pixels, storage=Storage(None, *files))


def inspect(
    model: "onnx.ModelProto | str | os.PathLike[str]",
    *,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    scope: Scope = "all",
) -> "Inspection":
    """What of a model can be pruned, and why the rest can't: the command `thinet-onnx inspect` as a function.

    Args:
        model: a path, or a ModelProto.
        shapes: sizes of inputs that the file leaves open.
        scope: `inner` counts residual streams as staying.

    Raises:
        ThinetError: one sentence for people (see `errors`).
    """
    from thinet_onnx import pipeline

    return pipeline.inspect(model, shapes=dict(shapes or {}), scope=scope)


def finetune(
    pruned: "onnx.ModelProto | str | os.PathLike[str]",
    teacher: "onnx.ModelProto | str | os.PathLike[str]",
    data: "Data",
    *,
    samples: int | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    test_data: "Data" = None,
    output: str | os.PathLike[str] | None = None,
    state: str | os.PathLike[str] | None = None,
    resume: bool = False,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    scale: float | None = None,
    resize: tuple[int, int] | None = None,
    **options: Any,
) -> "FinetuneResult":
    """Train a pruned network so that it answers as the original does: the command `thinet-onnx finetune` as a function.

    Args:
        pruned: a path, or a ModelProto (left as it is).
        teacher: the original.
        data: what to train on, in any form that `prune` takes.
        samples: how many of the data to take, at random.
        shapes: sizes of inputs that the file leaves open.
        test_data: labelled data, for accuracies.
        output: where to write the result.
        state: folder of checkpoints and log.
        resume: go on from the checkpoint there.
        mean: with `std`, `scale` and `resize` for uint8 images (see `data.Preprocess`).
        std: see `mean`.
        scale: see `mean`.
        resize: see `mean`.
        options: the fields of `training.options.FinetuneOptions`: `epochs`, `learning_rate`, `feature_weight`, ….

    Raises:
        ThinetError: one sentence for people (see `errors`).
    """
    from pathlib import Path

    from thinet_onnx import tuning
    from thinet_onnx.data import Preprocess

    chosen = tuning.FinetuneOptions(**options)
    pixels = Preprocess(mean=tuple(mean), std=tuple(std), scale=scale, layout=chosen.layout, resize=resize)
    return tuning.finetune(
        pruned, teacher, data, chosen, preprocess=pixels, shapes=shapes, samples=samples, test_data=test_data,
        output=output, folder=None if state is None else Path(state), resume=resume,
    )  # fmt: skip


def to_torch(model: "onnx.ModelProto | str | os.PathLike[str]") -> "Twin":
    """The model as a torch module: takes the graph's inputs in order, returns its outputs in order; needs PyTorch.

    Raises:
        ModelError: an operator has no PyTorch twin, or the file can't be read.
    """
    from thinet_onnx import torch_twin

    return torch_twin.to_torch(_loaded(model))


def from_torch(module: "Twin", model: "onnx.ModelProto | str | os.PathLike[str]") -> "onnx.ModelProto":
    """A copy of the model with the weights of the module that `to_torch` made of it.

    Raises:
        ModelError: they don't fit together, or the file can't be read.
    """
    from thinet_onnx import torch_twin

    return torch_twin.from_torch(module, _loaded(model))


def _loaded(model: "onnx.ModelProto | str | os.PathLike[str]") -> "onnx.ModelProto":
    from onnx import ModelProto

    from thinet_onnx import graph

    return model if isinstance(model, ModelProto) else graph.load(model)


def bench(
    *models: "onnx.ModelProto | str | os.PathLike[str]",
    data: "Data" = None,
    batches: Sequence[int] = (),
    engines: "Sequence[EngineName]" = ("ort",),
    precision: "Precision" = "fp32",
    threads: int = 0,
    runs: int | None = None,
    seconds: float | None = None,
    samples: int | None = None,
    seed: int = 0,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    **pixels: Any,
) -> "BenchReport":
    """How long models take, measured side by side: the command `thinet-onnx bench` as a function.

    Args:
        models: paths or ModelProtos; the first is what the others are compared with.
        data: inputs, in any form that `prune` takes; noise by default.
        batches: batch sizes; by default the first model's own, 1 where it is open.
        engines: `ort`, `openvino`, `tensorrt`.
        precision: `fp32` leaves the types as the file has them; some engines can convert.
        threads: of an engine on the CPU; 0 leaves the number to it.
        runs: of each model at most; 500 if neither `runs` nor `seconds` is given.
        seconds: for an engine and batch size at most; 10 if neither is given.
        samples: how many of the data to take, at random.
        seed: of all that is random.
        shapes: sizes of inputs that a file leaves open.
        pixels: `mean`, `std`, `scale`, `layout`, `resize` for uint8 images (see `data.Preprocess`).

    Raises:
        ThinetError: one sentence for people (see `errors`).
    """
    from thinet_onnx import speed
    from thinet_onnx.check_options import BenchOptions
    from thinet_onnx.data import Preprocess

    options = BenchOptions(
        batches=tuple(batches), engines=tuple(engines), precision=precision, threads=threads, runs=runs, seconds=seconds,
        samples=samples, seed=seed, shapes=dict(shapes or {}),
    )  # fmt: skip
    return speed.bench(models, data, options, preprocess=Preprocess(**pixels))


def verify_pruned(
    pruned: "onnx.ModelProto | str | os.PathLike[str]",
    reference: "onnx.ModelProto | str | os.PathLike[str]",
    data: "Data",
    *,
    batches: Sequence[int] = (),
    engines: "Sequence[EngineName]" = (),
    precision: "Precision" = "fp32",
    tolerance: float | None = None,
    max_error: float | None = None,
    min_agreement: float | None = None,
    threads: int = 0,
    samples: int | None = None,
    seed: int = 0,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    random_data: bool = False,
    **pixels: Any,
) -> "VerifyReport":
    """Whether a pruned model can take the original's place: the command `thinet-onnx verify` as a function.

    Args:
        pruned: a path, or a ModelProto.
        reference: the model it was made from.
        data: inputs to compare them on, in any form that `prune` takes; labels among them give accuracies.
        batches: sizes to try; by default 1, 2 and 8, or the file's own where its shapes fix it.
        engines: those that the file is to be ready for: `ort`, `openvino`, `tensorrt`.
        precision: what it will be computed in there; `fp32` leaves the types as the file has them.
        tolerance: how far an engine may be from ONNX Runtime, relative to the largest value; by default by precision.
        max_error: bar for the relative error of every output.
        min_agreement: bar for the share of inputs with the same top-1, 0..1.
        threads: of an engine on the CPU; 0 leaves the number to it.
        samples: how many of the data to take, at random.
        seed: of all that is random.
        shapes: sizes of inputs that the files leave open.
        random_data: compare on noise, with `data` None; the report warns.
        pixels: `mean`, `std`, `scale`, `layout`, `resize` for uint8 images (see `data.Preprocess`).

    Returns:
        the report; `passed` says whether all checks did, `failures` which didn't.

    Raises:
        ThinetError: one sentence for people (see `errors`).
    """
    from thinet_onnx import acceptance
    from thinet_onnx.check_options import VerifyOptions
    from thinet_onnx.data import Preprocess

    options = VerifyOptions(
        batches=tuple(batches), engines=tuple(engines), precision=precision, tolerance=tolerance, max_error=max_error,
        min_agreement=min_agreement, threads=threads, samples=samples, seed=seed, shapes=dict(shapes or {}),
    )  # fmt: skip
    return acceptance.verify_pruned(
        pruned, reference, data, options, preprocess=Preprocess(**pixels), random_data=random_data
    )


def write_page(report: "Report", path: str | os.PathLike[str]) -> None:
    """Write a report as a page to look at, one HTML file: the option `prune --report` as a function.

    Args:
        report: the `report` of what `prune` returned, or what `restore.load_report` read.
        path: the file to write.

    Raises:
        OutputError: it can't be written.
    """
    from thinet_onnx import page

    page.write(report, path)
