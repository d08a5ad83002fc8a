"""`thinet-onnx bench`."""

from pathlib import Path
from typing import Annotated

import typer

from thinet_onnx import interrupts
from thinet_onnx.check_options import DEFAULT_RUNS, DEFAULT_SECONDS, ENGINES, BenchOptions, parse_batches, parse_engines
from thinet_onnx.cli import inputs, shared
from thinet_onnx.cli.inputs import INPUTS, RUNS, Precision, Seed, Shapes, Threads
from thinet_onnx.cli.shared import Config, Debug, Json, Layouts, Mean, Quiet, Resize, Scale, Std, Verbose, option
from thinet_onnx.options import parse_shapes

EXAMPLE = "thinet-onnx bench models/fashion_resnet.onnx models/fashion_vgg.onnx --batch 1,16 --runs 30"


def bench(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL", help="The .onnx files; the first is the yardstick.")],
    *,
    batch: Annotated[list[str] | None, inputs.batches("the first file's own")] = None,
    engine: Annotated[
        list[str] | None,
        option(RUNS, "NAME", "ort, openvino or tensorrt; repeatable.", "--engine", default="ort", choices=ENGINES),
    ] = None,
    precision: Precision = "fp32",
    threads: Threads = None,
    runs: Annotated[
        int | None, option(RUNS, "N", "Runs of each file at most.", default=f"{DEFAULT_RUNS}, if --seconds isn't given")
    ] = None,
    seconds: Annotated[
        float | None,
        option(
            RUNS, "S", "Seconds for an engine and batch at most.", default=f"{DEFAULT_SECONDS:g}, if --runs isn't given"
        ),
    ] = None,
    data: Annotated[
        str | None, option(INPUTS, "PATH", "A folder of images, .npy, .npz or script.py:function.", default="noise")
    ] = None,
    samples: Annotated[int | None, option(INPUTS, "N", "Take N samples at random.", default="all")] = None,
    shape: Shapes = None,
    seed: Seed = 0,
    mean: Mean = None,
    std: Std = None,
    scale: Scale = None,
    resize: Resize = None,
    layout: Layouts = "auto",
    json_file: Json = None,
    config: Config = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Measure how long files take, side by side: in turn, round by round, on the same inputs."""
    with shared.one_line_errors(debug):
        options = BenchOptions(
            batches=parse_batches(batch) if batch else (),
            engines=parse_engines("engine", engine or ["ort"]),
            precision=precision,
            threads=threads or 0,
            runs=runs,
            seconds=seconds,
            samples=samples,
            seed=seed,
            shapes=parse_shapes(shape or []),
        )
        pixels = shared.preprocess(mean, std, scale, resize, layout)
        if json_file is not None:
            shared.check_output("--json", json_file, {"--data": data, "--config": config, **_named(models)}, ".json")

        from thinet_onnx import speed, speed_table  # noqa: PLC0415

        interrupts.raise_from_now()
        with shared.watched(quiet, verbose) as progress:
            result = speed.bench(models, data, options, preprocess=pixels, progress=progress)
        shared.present(result, speed_table.render, json_file, quiet)


def _named(models: list[Path]) -> dict[str, str | Path | None]:
    return {f"MODEL {number}" if len(models) > 1 else "MODEL": model for number, model in enumerate(models, 1)}
