"""`thinet-onnx curve`."""

import dataclasses
from pathlib import Path
from typing import Annotated

from thinet_onnx import interrupts
from thinet_onnx.check_options import EngineName
from thinet_onnx.cli import shared
from thinet_onnx.cli.shared import (
    EXAMPLE_DATA,
    HOW,
    REPORT,
    TIME,
    WHAT,
    Config,
    Data,
    Debug,
    FromMoments,
    Json,
    Layouts,
    Mean,
    Model,
    Quiet,
    Resize,
    Samples,
    SaveMoments,
    Scale,
    Scopes,
    Shapes,
    Std,
    Verbose,
    option,
)
from thinet_onnx.curve_result import PLOTS, By, CurveOptions, parse_shares
from thinet_onnx.errors import OptionError
from thinet_onnx.options import Method, PruneOptions, Reconstruction, Target, parse_shapes

EXAMPLE = f"thinet-onnx curve models/fashion_resnet.onnx {EXAMPLE_DATA} --save-moments moments.npz --plot curve.svg"
_POINTS = "What to show"
_HALF = Target("macs", 0.5, True)  # one is needed to say that there is a target at all
_TIMES = Target("latency", 0.5, True)


def curve(
    model: Model,
    *,
    data: Data = None,
    samples: Samples = None,
    shape: Shapes = None,
    mean: Mean = None,
    std: Std = None,
    scale: Scale = None,
    resize: Resize = None,
    layout: Layouts = "auto",
    by: Annotated[By, option(_POINTS, "macs|params", "What targets count.")] = "macs",
    targets: Annotated[
        str | None, option(_POINTS, "SHARE[,..]", "What remains, such as 75%,50%,25%.", default="a dozen, 90% to 10%")
    ] = None,
    measure: Annotated[
        bool, option(_POINTS, "", "Prune for every target as prune does, and measure the error.", "--measure")
    ] = False,
    latency: Annotated[
        bool, option(_POINTS, "", "Times too: by single layers, or of cut files with --measure.", "--latency")
    ] = False,
    engine: Annotated[EngineName, option(TIME, "NAME", "ort, openvino or tensorrt.")] = "ort",
    latency_batch: Annotated[int | None, option(TIME, "N", "Batch size.", default="the file's own, or 1")] = None,
    threads: Annotated[
        int | None, option(TIME, "N", "Threads of a CPU engine.", default="the engine's own choice")
    ] = None,
    scope: Scopes = "inner",
    include: Annotated[list[str] | None, option(WHAT, "REGEX", "Prune matching nodes only; repeatable.")] = None,
    exclude: Annotated[list[str] | None, option(WHAT, "REGEX", "Don't prune matching nodes; repeatable.")] = None,
    round_to: Annotated[int | None, option(WHAT, "N", "Keep multiples of N channels.", default="by width")] = None,
    drop_branches: Annotated[bool, option(WHAT, "", "Residual branches may go altogether.", "--drop-branches")] = False,
    method: Annotated[Method | None, option(HOW, "NAME", "Rank by, as prune has it.", default="obs")] = None,
    reconstruct: Annotated[
        Reconstruction | None, option(HOW, "joint|full|scale|none", "Refit, as prune has it.", default="by method")
    ] = None,
    seed: Annotated[int, option(HOW, "N", "Seed of all that is random.")] = 0,
    save_moments: SaveMoments = None,
    from_moments: FromMoments = None,
    plot: Annotated[Path | None, option(REPORT, "FILE", "Draw the curve: an .svg, or an .html page.")] = None,
    json_file: Json = None,
    config: Config = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Show what every target would cost, before you choose one: error, MACs, parameters and time in one table.

    With --save-moments, a prune --from-moments then needs no second look at the original.
    """
    with shared.one_line_errors(debug):
        asked = CurveOptions(by, parse_shares(targets), latency, measure)
        if not latency and (engine != "ort" or latency_batch is not None or threads):
            raise OptionError(
                "--engine, --latency-batch and --threads say how latency is measured: say --latency, too."
            )
        options = PruneOptions(
            target=_TIMES if latency else _HALF, method=method, reconstruct=reconstruct, scope=scope,
            include=tuple(include or ()), exclude=tuple(exclude or ()), round_to=round_to, drop_branches=drop_branches,
            engine=engine, latency_batch=latency_batch, threads=threads or 0, samples=samples, seed=seed,
            shapes=parse_shapes(shape or []),
        )  # fmt: skip
        pixels = shared.preprocess(mean, std, scale, resize, layout)
        if not data:
            raise OptionError(
                "no calibration data: pass --data with a folder of images, a .npy or .npz file, or script.py:function."
            )
        inputs: dict[str, str | Path | None] = {"MODEL": model, "--data": data, "--config": config}
        storage = shared.storage(None, save_moments, from_moments, inputs)
        inputs |= {"--save-moments": save_moments, "--from-moments": from_moments}
        if json_file is not None:
            shared.check_output("--json", json_file, inputs, ".json")
        if plot is not None:
            shared.check_output("--plot", plot, {**inputs, "--json": json_file}, *PLOTS)
            if plot.suffix.lower() not in PLOTS:
                raise OptionError(f"--plot {plot}: name a file that ends in .svg or .html.")

        from thinet_onnx import curve_table, tradeoff  # noqa: PLC0415
        from thinet_onnx.page import curve as pictures  # noqa: PLC0415

        interrupts.raise_from_now()
        with shared.watched(quiet, verbose) as progress:
            found = tradeoff.curve(
                model, data, options, asked, preprocess=pixels, progress=progress, storage=storage
            )  # fmt: skip
        told = dataclasses.replace(found, command=shared.command_line())
        try:
            shared.present(told, curve_table.render, json_file, quiet)
        finally:
            if plot is not None:
                pictures.write(told, plot)
