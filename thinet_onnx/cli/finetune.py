"""`thinet-onnx finetune`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from thinet_onnx import interrupts
from thinet_onnx.cli import shared
from thinet_onnx.cli.shared import (
    DATA,
    EXAMPLE_DATA,
    REPORT,
    Config,
    Data,
    Debug,
    Json,
    Layouts,
    Mean,
    Quiet,
    Resize,
    Samples,
    Scale,
    Shapes,
    Std,
    Verbose,
    option,
)
from thinet_onnx.cli.tuning import output_weights
from thinet_onnx.errors import OptionError
from thinet_onnx.options import parse_shapes
from thinet_onnx.training.options import BatchNorm, Device, FinetuneOptions, Optimizer, Precision

LEARN, TRAIN, LONG = "What to learn", "How to train", "How long, and going on"
EXAMPLE = (
    f"thinet-onnx finetune small.onnx --teacher models/fashion_resnet.onnx {EXAMPLE_DATA} --epochs 1   "
    "(small.onnx as the example of prune leaves it)"
)
_DEFAULT = FinetuneOptions()


def finetune(
    pruned: Annotated[Path, typer.Argument(metavar="PRUNED", help="The .onnx file to train; it stays as it is.")],
    output: Annotated[
        Path | None,
        typer.Argument(metavar="OUTPUT", help="The .onnx file to write.", show_default="PRUNED_finetuned.onnx"),
    ] = None,
    *,
    teacher: Annotated[Path, option(LEARN, "ORIGINAL", "Needed: the .onnx file that PRUNED was made from.")],
    data: Data = None,
    samples: Samples = None,
    shape: Shapes = None,
    held_out: Annotated[
        float, option(DATA, "SHARE", "Never trained on, at most 1,024 items; says which weights are best.")
    ] = _DEFAULT.held_out,
    mean: Mean = None,
    std: Std = None,
    scale: Scale = None,
    resize: Resize = None,
    layout: Layouts = "auto",
    flip: Annotated[bool, option(shared.PIXELS, "", "Mirror half of the images.", "--flip")] = False,
    crop: Annotated[int, option(shared.PIXELS, "N", "Shift images by up to N pixels.")] = _DEFAULT.crop,
    zoom: Annotated[
        float, option(shared.PIXELS, "SHARE", "Enlarge windows of images, their sides this share or more.")
    ] = _DEFAULT.zoom,
    mosaic: Annotated[
        float, option(shared.PIXELS, "SHARE", "Put so many images beside three others, each in a quarter.")
    ] = _DEFAULT.mosaic,
    mix: Annotated[float, option(shared.PIXELS, "SHARE", "Mix so many images with another one.")] = _DEFAULT.mix,
    distill: Annotated[float, option(LEARN, "W", "Weight of the distance to ORIGINAL's outputs.")] = _DEFAULT.distill,
    temperature: Annotated[float, option(LEARN, "T", "Softens class scores.")] = _DEFAULT.temperature,
    output_weight: Annotated[
        list[str] | None, option(LEARN, "NAME=W", "Weight of one output; repeatable.", default="1 each")
    ] = None,
    feature_weight: Annotated[float, option(LEARN, "W", "Weight of inner tensors.")] = _DEFAULT.feature_weight,
    feature: Annotated[
        list[str] | None, option(LEARN, "NAME", "An inner tensor; repeatable.", default="4 that both have")
    ] = None,
    label_weight: Annotated[float, option(LEARN, "W", "Weight of the data's labels.")] = _DEFAULT.label_weight,
    loss: Annotated[
        str | None, option(LEARN, "FILE", "Your own, too: script.py:function(outputs, batch).", "--loss")
    ] = None,
    loss_weight: Annotated[float, option(LEARN, "W", "Weight of --loss.")] = _DEFAULT.loss_weight,
    trainable_from: Annotated[
        str | None, option(LEARN, "NODE", "Train from this node on; ONNX Runtime runs the rest.", default="the inputs")
    ] = None,
    optimizer: Annotated[
        Optimizer,
        option(TRAIN, "KIND", "whitened (by what layers read), scaled (by filters' sizes), adamw, sgd."),
    ] = _DEFAULT.optimizer,
    learning_rate: Annotated[
        float | None, option(TRAIN, "X", "The highest one.", "--learning-rate", "--lr", default="by optimizer")
    ] = None,
    batch: Annotated[int, option(TRAIN, "N", "Items of a step, over all processes.")] = _DEFAULT.batch,
    weight_decay: Annotated[float, option(TRAIN, "X", "Not of norms and biases.")] = _DEFAULT.weight_decay,
    momentum: Annotated[float, option(TRAIN, "X", "Of sgd.")] = _DEFAULT.momentum,
    warmup: Annotated[float, option(TRAIN, "SHARE", "Of the steps, while the rate rises.")] = _DEFAULT.warmup,
    clip: Annotated[float, option(TRAIN, "X", "The gradients' largest norm; 0: any.")] = _DEFAULT.clip,
    ema: Annotated[float, option(TRAIN, "X", "Decay of averaged weights; 0: no average.")] = _DEFAULT.ema,
    batch_norm: Annotated[
        BatchNorm, option(TRAIN, "frozen|learned", "Statistics: ORIGINAL's, or of what is seen.")
    ] = _DEFAULT.batch_norm,
    device: Annotated[Device, option(TRAIN, "auto|cpu|cuda|mps", "What computes.")] = _DEFAULT.device,
    precision: Annotated[
        Precision, option(TRAIN, "auto|fp32|bf16", "Of products; auto: bf16 on a GPU that has it.")
    ] = _DEFAULT.precision,
    channels_last: Annotated[bool, option(TRAIN, "", "Keep channels innermost.", "--channels-last")] = False,
    compiled: Annotated[bool, option(TRAIN, "", "Use torch.compile.", "--compile")] = False,
    epochs: Annotated[int, option(LONG, "N", "Passes over the data.")] = _DEFAULT.epochs,
    steps: Annotated[int | None, option(LONG, "N", "In place of --epochs.", default="by --epochs")] = None,
    validate_every: Annotated[int | None, option(LONG, "STEPS", "Validate so often.", default="each epoch")] = None,
    patience: Annotated[int, option(LONG, "N", "Stop after N validations without a better one.")] = _DEFAULT.patience,
    state: Annotated[Path | None, option(LONG, "DIR", "Keep checkpoints and a log here.")] = None,
    checkpoint_every: Annotated[
        int, option(LONG, "STEPS", "Write one so often, and at validations.")
    ] = _DEFAULT.checkpoint_every,
    resume: Annotated[bool, option(LONG, "", "Go on from the checkpoint in --state.", "--resume")] = False,
    seed: Annotated[int, option(TRAIN, "N", "Seed of all that is random.")] = 0,
    test_data: Annotated[str | None, option(REPORT, "PATH", "Data with labels: show accuracies.")] = None,
    json_file: Json = None,
    config: Config = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Train the weights of PRUNED so that it answers as ORIGINAL does, and write OUTPUT. Needs PyTorch.

    Under torchrun, the processes share each step's items: torchrun --nproc-per-node 2 -m thinet_onnx finetune …
    """
    with shared.one_line_errors(debug):
        options = FinetuneOptions(
            epochs=epochs, steps=steps, batch=batch, optimizer=optimizer, learning_rate=learning_rate, momentum=momentum,
            weight_decay=weight_decay, warmup=warmup, clip=clip, ema=ema, distill=distill, temperature=temperature,
            output_weights=output_weights(output_weight or []), feature_weight=feature_weight, features=tuple(feature or ()),
            label_weight=label_weight, loss=loss, loss_weight=loss_weight, trainable_from=trainable_from, flip=flip,
            crop=crop, mix=mix, mosaic=mosaic, zoom=zoom, layout=layout, batch_norm=batch_norm, device=device,
            precision=precision, compile=compiled, channels_last=channels_last, held_out=held_out,
            validate_every=validate_every, patience=patience, checkpoint_every=checkpoint_every, seed=seed,
        )  # fmt: skip
        pixels, shapes = shared.preprocess(mean, std, scale, resize, layout), parse_shapes(shape or [])
        if not data:
            raise OptionError(
                "no data: pass --data with a folder of images, a .npy or .npz file, or script.py:function."
            )
        if resume and state is None:
            raise OptionError("--resume goes on from the checkpoint in --state: say --state, too.")
        output = output or pruned.parent / f"{pruned.stem}_finetuned.onnx"
        inputs: dict[str, str | Path | None] = {
            "PRUNED": pruned, "--teacher": teacher, "--data": data, "--test-data": test_data
        }  # fmt: skip
        shared.check_output("OUTPUT", output, inputs, ".onnx")
        if json_file is not None:
            shared.check_output("--json", json_file, {**inputs, "OUTPUT": output, "--config": config}, ".json")
        if state is not None:
            shared.check_folder("--state", state, {**inputs, "OUTPUT": output, "--json": json_file, "--config": config})

        from thinet_onnx import tuning  # noqa: PLC0415

        interrupts.raise_from_now()
        first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started
        with shared.watched(quiet or not first, verbose and first) as progress:
            result = tuning.finetune(
                pruned, teacher, data, options, preprocess=pixels, shapes=shapes, samples=samples, test_data=test_data,
                output=output, folder=state, resume=resume, progress=progress,
            )  # fmt: skip
        if first:
            shared.show(tuning.report(result, str(pruned), str(teacher), str(output), options, data), json_file, quiet)
