"""`thinet-onnx prune`."""

import dataclasses
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from thinet_onnx import interrupts, linked
from thinet_onnx.check_options import EngineName
from thinet_onnx.cli import shared
from thinet_onnx.cli.shared import (
    DATA,
    EXAMPLE_DATA,
    HOW,
    REPORT,
    STORE,
    TIME,
    TRAIN,
    WHAT,
    Classes,
    Config,
    Data,
    Debug,
    FromMoments,
    Json,
    Layouts,
    Mean,
    Model,
    Output,
    Page,
    Quiet,
    Resize,
    Samples,
    SaveMoments,
    Scale,
    Scopes,
    Shapes,
    Std,
    Task,
    Verbose,
    option,
)
from thinet_onnx.cli.tuning import tune_options
from thinet_onnx.config import of_prune
from thinet_onnx.errors import OptionError
from thinet_onnx.options import (
    Method,
    Preset,
    PruneOptions,
    Reconstruction,
    Show,
    Target,
    parse_bytes,
    parse_shapes,
)

PAGES = (".html", ".htm")
DEFAULT_TARGET = "macs=50%"
EXAMPLE = f"thinet-onnx prune models/fashion_resnet.onnx small.onnx {EXAMPLE_DATA} --samples 64 --json small.json"
NO_DATA = (
    "no calibration data: pass --data with a folder of images, a .npy or .npz file, or script.py:function "
    "(or --random-data to try the command on noise; the network it makes is of no use)."
)


def prune(
    model: Model,
    output: Output = None,
    *,
    data: Data = None,
    samples: Samples = None,
    shape: Shapes = None,
    random_data: Annotated[bool, option(DATA, "", "In place of --data: noise, for a try.", "--random-data")] = False,
    mean: Mean = None,
    std: Std = None,
    scale: Scale = None,
    resize: Resize = None,
    layout: Layouts = "auto",
    target: Annotated[
        str | None,
        option(
            WHAT,
            "KIND=SIZE",
            "What remains: macs=50%, params=50%, macs=2.0G, latency=60%, latency=4.0ms.",
            default=DEFAULT_TARGET,
            choices=("macs=50%", "params=50%", "latency=60%"),
        ),
    ] = None,
    keep: Annotated[float | None, option(WHAT, "SHARE", "In place of --target: the same share per layer.")] = None,
    preset: Annotated[
        Preset | None,
        option(WHAT, "thinet-conv", "In place of --target: half of all layers but the last stage's.", default="none"),
    ] = None,
    scope: Scopes = "inner",
    include: Annotated[list[str] | None, option(WHAT, "REGEX", "Prune matching nodes only; repeatable.")] = None,
    exclude: Annotated[list[str] | None, option(WHAT, "REGEX", "Don't prune matching nodes; repeatable.")] = None,
    round_to: Annotated[int | None, option(WHAT, "N", "Keep multiples of N channels.", default="by width")] = None,
    positions: Annotated[
        int | None, option(DATA, "N", "See each layer at N positions, over all samples.", default="by width")
    ] = None,
    memory: Annotated[
        str | None,
        option(
            DATA,
            "SIZE",
            "Keep so much of activations in memory, the rest in files.",
            default="64M; more for wide layers",
        ),
    ] = None,
    drop_branches: Annotated[bool, option(WHAT, "", "Residual branches may go altogether.", "--drop-branches")] = False,
    engine: Annotated[EngineName, option(TIME, "NAME", "ort, openvino or tensorrt.")] = "ort",
    latency_batch: Annotated[int | None, option(TIME, "N", "Batch size.", default="the file's own, or 1")] = None,
    threads: Annotated[
        int | None, option(TIME, "N", "Threads of a CPU engine.", default="the engine's own choice")
    ] = None,
    method: Annotated[
        Method | None,
        option(
            HOW, "NAME", "Rank by: obs, thinet, thinet-omp, thinet-sampled, weight-sum, apoz, random.", default="obs"
        ),
    ] = None,
    reconstruct: Annotated[
        Reconstruction | None,
        option(
            HOW, "joint|full|scale|none", "Refit readers and makers of cut channels, or readers.", default="by method"
        ),
    ] = None,
    seed: Annotated[int, option(HOW, "N", "Seed of all that is random.")] = 0,
    processes: Annotated[
        int, option(HOW, "N", "Share the work among N processes on this machine; each needs memory of its own.")
    ] = 1,
    finetune_epochs: Annotated[int, option(TRAIN, "N", "Train so long at the end, on all of --data.")] = 0,
    finetune_per_layer: Annotated[
        int, option(TRAIN, "N", "Prune group by group, and train so long after each (the paper's loop).")
    ] = 0,
    finetune: Annotated[
        list[str] | None,
        option(TRAIN, "OPTION=VALUE", "How, as finetune has it: learning-rate=1e-4; repeatable.", default="its own"),
    ] = None,
    state: Annotated[
        Path | None, option(STORE, "DIR", "Keep how far the run is; the same command goes on after an interruption.")
    ] = None,
    save_moments: SaveMoments = None,
    from_moments: FromMoments = None,
    test_data: Annotated[
        str | None, option(REPORT, "PATH", "Data with labels: show accuracy before and after.")
    ] = None,
    json_file: Json = None,
    report_file: Page = None,
    task: Task = "auto",
    classes: Classes = None,
    config: Config = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Take channels out of MODEL and write the smaller network to OUTPUT.

    Under torchrun, the processes share the calibration data: torchrun --nproc-per-node 2 -m thinet_onnx prune …
    """
    if processes != 1 and interrupts.LINK not in os.environ:
        with shared.one_line_errors(debug):
            _check_processes(processes, training=bool(finetune_epochs or finetune_per_layer))
        raise typer.Exit(linked.run(processes, shared.ARGUMENTS.get()))
    with shared.together(debug) as ranks:
        options = PruneOptions(
            target=Target.parse(target or DEFAULT_TARGET) if target or (keep is None and preset is None) else None,
            keep=keep,
            preset=preset,
            method=method,
            reconstruct=reconstruct,
            scope=scope,
            include=tuple(include or ()),
            exclude=tuple(exclude or ()),
            round_to=round_to,
            positions=positions,
            memory=None if memory is None else parse_bytes(memory),
            drop_branches=drop_branches,
            engine=engine,
            latency_batch=latency_batch,
            threads=threads or 0,
            samples=samples,
            seed=seed,
            shapes=parse_shapes(shape or []),
        )
        schedule = None
        if finetune_epochs or finetune_per_layer:
            schedule = (finetune_epochs, finetune_per_layer, tune_options(finetune or [], seed=seed, layout=layout))
            if random_data:
                raise OptionError("--finetune-epochs and --random-data contradict each other: noise teaches nothing.")
        elif finetune:
            raise OptionError(
                "--finetune says how to train: say how long, with --finetune-epochs or --finetune-per-layer."
            )
        pixels = shared.preprocess(mean, std, scale, resize, layout)
        show = Show.parse(task, classes)
        if not data and not random_data:
            raise OptionError(NO_DATA)
        if data and random_data:
            raise OptionError("--data and --random-data are both there: say one of the two.")
        output = output or model.parent / f"{model.stem}_pruned.onnx"
        inputs = {"MODEL": model, "--data": data, "--test-data": test_data, "--classes": classes}
        if ranks.first:
            shared.check_output("OUTPUT", output, inputs, ".onnx")
        inputs |= {"--config": config}  # of which only OUTPUT may take the place
        storage = ranks.once(lambda: shared.storage(state, save_moments, from_moments, {**inputs, "OUTPUT": output}))
        inputs |= {"--save-moments": save_moments, "--from-moments": from_moments}
        if ranks.first:
            _check_reports(json_file, report_file, {**inputs, "OUTPUT": output})

        from thinet_onnx import pipeline  # noqa: PLC0415

        run: Callable[..., pipeline.PruneResult] = partial(pipeline.prune, random_data=random_data)
        if schedule is not None:
            from thinet_onnx import rounds  # noqa: PLC0415

            run = partial(rounds.prune, schedule=rounds.Schedule(*schedule))
        asked = {
            "random-data": random_data, "finetune-epochs": finetune_epochs, "finetune-per-layer": finetune_per_layer,
            "finetune": finetune, "test-data": test_data, "task": task, "classes": classes and str(classes),
        }  # fmt: skip
        interrupts.raise_from_now()
        with shared.watched(quiet or not ranks.first, verbose and ranks.first) as progress:
            common: dict[str, Any] = {
                "preprocess": pixels, "test_data": test_data, "output": output, "progress": progress, "ranks": ranks,
                "storage": storage,
                "show": show if json_file is not None or report_file is not None else None,
                "config": of_prune(options, pixels, data, asked),
            }  # fmt: skip
            result = run(model, data, options, **common)
        if ranks.first:
            told = dataclasses.replace(result.report, command=shared.command_line())
            shared.show(told, json_file, quiet, report_file)


def _check_processes(processes: int, *, training: bool) -> None:
    """Refuse a number of processes that can't be started."""
    if processes < 1:
        raise OptionError(f"--processes {processes}: it must be 1 or more.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise OptionError("--processes and torchrun don't go together: say the number to one of them.")
    if training:
        raise OptionError(
            "--processes and --finetune-epochs or --finetune-per-layer don't go together: start the command with torchrun."
        )


def _check_reports(json_file: Path | None, report_file: Path | None, others: dict[str, Path | str | None]) -> None:
    """Refuse reports that can't be written, or that would take the place of another file of the run."""
    if json_file is not None:
        shared.check_output("--json", json_file, others, ".json")
    if report_file is not None:
        shared.check_output("--report", report_file, {**others, "--json": json_file}, *PAGES)
