"""What fine-tuning adds, and whether it can take the place of the reconstruction: {ways to prune} × {epochs}.

    python benchmarks/finetuning.py --model zoo/aka_cifar_resnet20.onnx --calibration data/cifar10_calibration.npz \
        --train cifar10_train.npz --test data/cifar10_test.npz --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 \
        --rows none scale full joint --epochs 0 1 3 --images 10000 --finetune flip=on crop=4 [--json FILE]

A row is a way of this package to reconstruct (`none`, `scale`, `full`, `joint`) or the name of a peer (`peers.py`; takes
onnxsim, torch and torch-pruning): all are trained by `thinet_onnx.finetune` with the same options on the same images,
without labels. `--images` takes so many of the training images at random, so that an epoch is a pass over these.
`--start FILE` trains a network that is pruned already, such as one that `--keep FOLDER` wrote, and takes the place of `--rows`.
Networks without classes (`--labels none`) are measured by `error`, ‖after − before‖ / ‖before‖ of the
outputs in percent. With `--test` the same folder as `--calibration`, images that don't calibrate test, and those that do train.
`tools/cifar10.py` makes the file of all training images. Calibration and pruning are those of `accuracy.py`, seed 0.
"""

import argparse
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import onnx
from accuracy_cases import Case, Task
from accuracy_measure import Reference, open_data
from peers import Problem, UnavailableError, find

from thinet_onnx import pipeline, tuning
from thinet_onnx.cli.shared import floats
from thinet_onnx.cli.tuning import tune_options
from thinet_onnx.data import Preprocess, Source, open_source
from thinet_onnx.options import RECONSTRUCTIONS, PruneOptions, Target, parse_shapes
from thinet_onnx.setting import open_model


def pruned(
    name: str, case: Case, scope: str, share: float, source: Source, reference: Reference, seed: int
) -> onnx.ModelProto:
    """The network that is to be trained."""
    if name in RECONSTRUCTIONS:
        options = PruneOptions(
            target=Target("macs", share, True), scope=scope, reconstruct=name, seed=seed, shapes=dict(case.shapes)  # type: ignore[arg-type]
        )  # fmt: skip
        return pipeline.prune(case.model, source, options).model
    (peer,) = find([name])
    problem = Problem(case.model, source, share, scope, reference.remains, case.shapes, {})  # type: ignore[arg-type]
    return peer.prune(problem).model


def _percent(row: dict[str, Any], name: str) -> str:
    return f"{100 * row[name]:6.2f}" if name in row else f"{'–':>6s}"


def options() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "calibration", "test"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--train", type=Path, help="training images (default: those that calibrate)")
    parser.add_argument("--labels", choices=("data", "none"), default="data", help="whether there are classes to count")
    parser.add_argument("--mean", default=None)
    parser.add_argument("--std", default=None)
    parser.add_argument("--scale", type=float, help="pixels are multiplied by it (default 1/255)")
    parser.add_argument("--samples", type=int, default=1024, help="calibration images")
    parser.add_argument("--images", type=int, help="training images (default all)")
    parser.add_argument("--target", type=float, default=50, help="percent of the MACs that are to remain")
    parser.add_argument("--scope", choices=("inner", "all"), default="inner")
    parser.add_argument("--rows", nargs="+", default=["none", "scale", "full", "joint"])
    parser.add_argument("--start", type=Path, help="a pruned network, trained or not, in place of --rows")
    parser.add_argument("--keep", type=Path, help="a folder for the networks, each ROW-EPOCHS.onnx")
    parser.add_argument("--epochs", nargs="+", type=int, default=[0, 1, 3])
    parser.add_argument("--finetune", nargs="*", default=[], metavar="OPTION=VALUE", help="as prune --finetune")
    parser.add_argument(
        "--shape", nargs="*", default=[], metavar="NAME:SIZES", help="sizes of inputs that the file leaves open"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--logs", type=Path, help="a folder for each run's log and checkpoint")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    args = options()
    pixels = {"mean": floats("--mean", args.mean), "std": floats("--std", args.std), "scale": args.scale}
    task: Task = "scores" if args.labels == "data" else "other"
    case = Case(
        args.model, args.calibration, args.test, (args.target / 100,), samples=args.samples, pixels=pixels, labels=args.labels,
        shapes=parse_shapes(args.shape), task=task,
    )  # fmt: skip
    source, test = open_data(case, args.seed)
    reference = Reference(case, test)
    train = source
    if args.train is not None:
        inputs = open_model(case.model, case.shapes).inputs
        train = open_source(args.train, inputs, Preprocess(**pixels), samples=args.images, seed=args.seed)
    rows: list[dict[str, Any]] = []
    print(
        f"dense {_percent(reference.measure(case.model), 'accuracy').strip()}% on {len(test)} images; {train.description} train"
    )
    print(f"{'row':24s} {'MACs':>6s} {'epochs':>6s} {'top-1':>6s} {'agrees':>6s} {'error':>7s} {'seconds':>8s}")
    for name in args.rows if args.start is None else [args.start.name]:
        try:
            if args.start:
                start = onnx.load(args.start)
            else:
                start = pruned(name, case, args.scope, args.target / 100, source, reference, args.seed)
        except UnavailableError as error:
            print(f"{name:24s} {error}")
            continue
        for epochs in args.epochs:
            began = time.perf_counter()
            model = start
            if epochs:
                how = tune_options(args.finetune, epochs=epochs, seed=args.seed)
                folder = args.logs and args.logs / f"{name}-{epochs}"
                model = tuning.finetune(
                    start, case.model, train, how, preprocess=Preprocess(**pixels), shapes=case.shapes, folder=folder
                ).model
            if args.keep:
                args.keep.mkdir(parents=True, exist_ok=True)
                onnx.save(model, args.keep / f"{name.removesuffix('.onnx')}-{epochs}.onnx")
            row = {"row": name, "epochs": epochs, "seconds": time.perf_counter() - began, **reference.measure(model)}
            rows.append(row)
            print(f"{name:24s} {_percent(row, 'macs')} {epochs:6d} {_percent(row, 'accuracy')} {_percent(row, 'agreement')} "
                  f"{100 * row['error']:7.3f} {row['seconds']:8.1f}", flush=True)  # fmt: skip
            if args.json:
                args.json.write_text(json.dumps({"command": shlex.join(sys.argv), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
