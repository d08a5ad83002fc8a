"""`thinet-onnx prune`."""

from typing import Annotated

from thinet_onnx import interrupts
from thinet_onnx.cli import shared
from thinet_onnx.cli.shared import (
    DATA,
    EXAMPLE_DATA,
    HOW,
    REPORT,
    WHAT,
    Data,
    Debug,
    Json,
    Layouts,
    Mean,
    Model,
    Output,
    Quiet,
    Resize,
    Samples,
    Scale,
    Scopes,
    Shapes,
    Std,
    option,
)
from thinet_onnx.errors import OptionError, OutputError
from thinet_onnx.options import Method, PruneOptions, Reconstruction, Target, parse_shapes

DEFAULT_TARGET = "macs=50%"
EXAMPLE = f"thinet-onnx prune models/fashion_resnet.onnx {EXAMPLE_DATA}"
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
        option(WHAT, "KIND=SIZE", "What remains: macs=50%, params=50%, macs=2.0G.", default=DEFAULT_TARGET),
    ] = None,
    keep: Annotated[float | None, option(WHAT, "SHARE", "In place of --target: the same share per layer.")] = None,
    scope: Scopes = "inner",
    include: Annotated[list[str] | None, option(WHAT, "REGEX", "Prune matching nodes only; repeatable.")] = None,
    exclude: Annotated[list[str] | None, option(WHAT, "REGEX", "Don't prune matching nodes; repeatable.")] = None,
    round_to: Annotated[int | None, option(WHAT, "N", "Keep multiples of N channels.", default="by width")] = None,
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
    test_data: Annotated[
        str | None, option(REPORT, "PATH", "Data with labels: show accuracy before and after.")
    ] = None,
    json_file: Json = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Take channels out of MODEL and write the smaller network to OUTPUT."""
    with shared.one_line_errors(debug):
        options = PruneOptions(
            target=Target.parse(target or DEFAULT_TARGET) if target or keep is None else None,
            keep=keep,
            method=method,
            reconstruct=reconstruct,
            scope=scope,
            include=tuple(include or ()),
            exclude=tuple(exclude or ()),
            round_to=round_to,
            samples=samples,
            seed=seed,
            shapes=parse_shapes(shape or []),
        )
        pixels = shared.preprocess(mean, std, scale, resize, layout)
        if not data and not random_data:
            raise OptionError(NO_DATA)
        if data and random_data:
            raise OptionError("--data and --random-data are both there: say one of the two.")
        output = output or model.parent / f"{model.stem}_pruned.onnx"
        inputs = {"MODEL": model, "--data": data, "--test-data": test_data}
        shared.check_output("OUTPUT", output, inputs)
        if output.exists() and output.suffix != ".onnx":
            raise OutputError(f"{output} is there and is no .onnx file: it is not overwritten, name another OUTPUT.")
        if json_file is not None:
            shared.check_output("--json", json_file, {**inputs, "OUTPUT": output})

        from thinet_onnx import pipeline  # noqa: PLC0415

        interrupts.raise_from_now()
        with shared.watched(quiet) as progress:
            result = pipeline.prune(
                model,
                data,
                options,
                preprocess=pixels,
                random_data=random_data,
                test_data=test_data,
                output=output,
                progress=progress,
            )
        shared.show(result.report, json_file, quiet)
