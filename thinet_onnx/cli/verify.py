"""`thinet-onnx verify`."""

from pathlib import Path
from typing import Annotated

import typer

from thinet_onnx import interrupts
from thinet_onnx.check_options import ENGINES, VerifyOptions, parse_batches, parse_engines
from thinet_onnx.cli import inputs, shared
from thinet_onnx.cli.inputs import INPUTS, RUNS, Precision, Seed, Shapes, Threads
from thinet_onnx.cli.shared import Config, Debug, Json, Layouts, Mean, Quiet, Resize, Scale, Std, Verbose, option
from thinet_onnx.options import parse_shapes

EXAMPLE = (
    "thinet-onnx verify small.onnx --reference models/fashion_resnet.onnx --data models/fashion_test.npz "
    "--mean 0.286 --std 0.353 --samples 200 --min-agreement 0.9   (small.onnx as the example of prune leaves it)"
)
BARS = "Bars, for an exit code of 1 where they are missed"


def verify(
    pruned: Annotated[Path, typer.Argument(metavar="PRUNED", help="The .onnx file to check.")],
    *,
    reference: Annotated[Path, option(INPUTS, "ORIGINAL", "The .onnx file it was made from.", "--reference")],
    data: Annotated[
        str | None, option(INPUTS, "PATH", "Needed: a folder of images, .npy, .npz or script.py:function.")
    ] = None,
    random_data: Annotated[bool, option(INPUTS, "", "In place of --data: noise, for a try.", "--random-data")] = False,
    samples: Annotated[int | None, option(INPUTS, "N", "Take N samples at random.", default="all")] = None,
    shape: Shapes = None,
    seed: Seed = 0,
    mean: Mean = None,
    std: Std = None,
    scale: Scale = None,
    resize: Resize = None,
    layout: Layouts = "auto",
    max_error: Annotated[
        float | None, option(BARS, "X", "Relative error of every output, at most.", default="none")
    ] = None,
    min_agreement: Annotated[
        float | None, option(BARS, "X", "Share of inputs with the same top-1, at least (0.99).", default="none")
    ] = None,
    tolerance: Annotated[
        float | None, option(BARS, "X", "How far an engine may be from ONNX Runtime.", default="by precision")
    ] = None,
    engines: Annotated[
        list[str] | None,
        option(RUNS, "NAME", "Is it ready for ort, openvino or tensorrt? Repeatable.", "--for", choices=ENGINES),
    ] = None,
    precision: Precision = "fp32",
    batch: Annotated[list[str] | None, inputs.batches("1,2,8, or the file's own")] = None,
    threads: Threads = None,
    json_file: Json = None,
    config: Config = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Check that PRUNED can take the place of the file it was made from; the exit code is 1 if it can't."""
    with shared.one_line_errors(debug):
        options = VerifyOptions(
            batches=parse_batches(batch) if batch else (),
            engines=parse_engines("for", engines or []),
            precision=precision,
            tolerance=tolerance,
            max_error=max_error,
            min_agreement=min_agreement,
            threads=threads or 0,
            samples=samples,
            seed=seed,
            shapes=parse_shapes(shape or []),
        )
        pixels = shared.preprocess(mean, std, scale, resize, layout)
        if json_file is not None:
            shared.check_output(
                "--json",
                json_file,
                {"PRUNED": pruned, "--reference": reference, "--data": data, "--config": config},
                ".json",
            )

        from thinet_onnx import acceptance  # noqa: PLC0415
        from thinet_onnx.acceptance import table  # noqa: PLC0415

        interrupts.raise_from_now()
        with shared.watched(quiet, verbose) as progress:
            result = acceptance.verify_pruned(
                pruned, reference, data, options, preprocess=pixels, random_data=random_data, progress=progress
            )
        shared.present(result, table.render, json_file, quiet)
    if not result.passed:
        raise typer.Exit(1)
