"""How far every .onnx file of a folder can be pruned, and whether what comes out is right.

    python benchmarks/prunability.py DIR [--images FOLDER] [--only NAME ...] [--json FILE] [--seeds 1] [--no-prune]

For each file: channels removable, seconds of the analysis, the mask oracle's error over random plans (30% and 60% of each
group removed, both scopes), and one run of the whole pipeline at `macs=50%` (or as far down as the file allows), with what
remains, the oracle's error with new weights, `onnx.checker` before and after, and whether it runs at another batch.

Inputs are noise of the shape in the folder's `manifest.json` (key `feed`), or of the declared shape with open sizes at 64
and an open batch at 1; with `--images` models with one 3-channel image input get real images.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from thinet_onnx import pipeline, runtime, surgery, verify
from thinet_onnx.data import InputSpec, Preprocess, Source, open_source, random_source
from thinet_onnx.errors import NothingToPruneError, TargetError, ThinetError
from thinet_onnx.graph import Graph, check
from thinet_onnx.groups import Analysis, analyse, make_plan
from thinet_onnx.options import PruneOptions, Target


@dataclass
class Row:
    name: str
    cnn: bool = True
    channels: int = 0
    removable: int = 0
    analysis_seconds: float = 0.0
    oracle: float | None = None
    plans: int = 0
    target: str = ""
    remains: float | None = None
    oracle_refitted: float | None = None
    relative_error: float | None = None
    prune_seconds: float | None = None
    checker_before: bool = True
    checker_after: bool | None = None
    other_batch: bool | None = None
    note: str = ""


def feeds_of(graph: Graph, shapes: dict[str, list[int]]) -> list[InputSpec]:
    """Closed specs of the graph's inputs."""
    specs = []
    for value in graph.inputs:
        tensor = value.type.tensor_type
        declared = [d.dim_value or (1 if i == 0 else 64) for i, d in enumerate(tensor.shape.dim)]
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        specs.append(InputSpec(value.name, tuple(shapes.get(value.name, declared)), dtype))
    return specs


def calibration(specs: list[InputSpec], images: Path | None, samples: int, seed: int) -> Source:
    """Real images where they fit, noise otherwise."""
    if (
        images is not None
        and len(specs) == 1
        and len(specs[0].shape) == 4
        and 3 in (specs[0].shape[1], specs[0].shape[3])
    ):
        pixels = Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        return open_source(images, specs, pixels, samples=samples, seed=seed)
    return random_source(specs, samples=samples, seed=seed)


def random_plans(analysis: Analysis, seed: int) -> list[list[np.ndarray[Any, Any]]]:
    """Units kept in each group: 70% and 40%, without and with residual streams."""
    random = np.random.default_rng(seed)
    plans = []
    for share in (0.7, 0.4):
        for scope in ("inner", "all"):
            kept = []
            for group in analysis.groups:
                whole = scope == "inner" and group.coupled
                count = group.size if whole else max(group.floor, round(share * group.size))
                kept.append(np.sort(random.choice(group.size, count, replace=False)))
            if any(len(units) < group.size for units, group in zip(kept, analysis.groups, strict=True)):
                plans.append(kept)
    return plans


def measure(path: Path, entry: dict[str, Any], args: argparse.Namespace) -> Row:
    row = Row(path.stem, entry.get("cnn", True))
    setting = pipeline.open_model(path, {})
    row.checker_before = check(setting.model) is None
    specs = feeds_of(setting.graph, entry.get("feed") or {})
    source = calibration(specs, args.images, args.samples, 0)
    feeds = source.batch([0])
    shapes = runtime.observed_shapes(setting.graph, feeds)
    started = time.perf_counter()
    analysis = analyse(setting.graph, shapes)
    row.analysis_seconds = time.perf_counter() - started
    row.channels, row.removable = analysis.channels, analysis.removable
    errors = []
    for seed in range(args.seeds):
        for kept in random_plans(analysis, seed):
            plan = make_plan(analysis, kept)
            errors.append(verify.oracle(setting.model, surgery.apply(setting.model, plan), plan, [feeds]))
    row.plans, row.oracle = len(errors), max(errors, default=None)
    if args.prune:
        prune(row, path, source, specs)
    return row


def prune(row: Row, path: Path, source: Source, specs: list[InputSpec]) -> None:
    """The whole pipeline, at half the MACs or as near to it as the file allows."""
    started = time.perf_counter()
    shapes = {spec.name: tuple(int(size or 1) for size in spec.shape) for spec in specs}
    row.target = "macs=50%"
    try:
        try:
            result = pipeline.prune(
                path, source, PruneOptions(target=Target.parse(row.target), scope="all", shapes=shapes)
            )
        except TargetError:
            told = pipeline.inspect(path, shapes=shapes, scope="all")
            least = 1 - told.macs_removable / told.macs
            row.target = f"macs={100 * least + 2:.1f}%"
            result = pipeline.prune(
                path, source, PruneOptions(target=Target.parse(row.target), scope="all", shapes=shapes)
            )
    except NothingToPruneError as error:
        row.note = f"nothing prunable: {error}"
        return
    row.prune_seconds = time.perf_counter() - started
    report = result.report
    row.remains = report.after.macs / report.before.macs
    row.oracle_refitted = report.oracle_error
    row.relative_error = max((f.relative_error for f in report.fidelity), default=None)
    row.checker_after = check(result.model) is None
    open_batch = all(
        not value.type.tensor_type.shape.dim or not value.type.tensor_type.shape.dim[0].dim_value
        for value in Graph(result.model).inputs
    )
    if open_batch and source.stackable and len(source) > 1:
        runtime.run(runtime.session(result.model), source.batch([0, 1]))
        row.other_batch = True


def line(row: Row) -> str:
    share = f"{row.removable}/{row.channels}"
    number = lambda value, form: "–" if value is None else format(value, form)  # noqa: E731
    return (
        f"{row.name:32s} {share:>12s} {row.removable / max(row.channels, 1):6.1%} {row.analysis_seconds:6.2f} s "
        f"{number(row.oracle, '.1e'):>8s} {row.target:>12s} {number(row.remains, '.1%'):>6s} "
        f"{number(row.oracle_refitted, '.1e'):>8s} {number(row.relative_error, '.3f'):>6s} "
        f"{number(row.prune_seconds, '.0f'):>4s} s {'ok' if row.checker_after in (True, None) else 'no':>3s}  {row.note[:90]}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=Path, help="folder of images for models with a 3-channel image input")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--samples", type=int, default=32, help="calibration samples of each pruning")
    parser.add_argument("--no-prune", dest="prune", action="store_false", help="analysis and oracle only")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    manifest = args.folder / "manifest.json"
    entries = {e["name"]: e for e in json.loads(manifest.read_text())} if manifest.exists() else {}
    print(f"{'file':32s} {'removable':>12s} {'share':>6s} {'analysis':>8s} {'oracle':>8s} {'target':>12s} {'left':>6s} "
          f"{'refitted':>8s} {'error':>6s} {'time':>6s} checker")  # fmt: skip
    rows, failed = [], 0
    for path in sorted(args.folder.glob("*.onnx")):
        if args.only and path.stem not in args.only:
            continue
        try:
            row = measure(path, entries.get(path.stem, {}), args)
        except ThinetError as error:
            row = Row(path.stem, entries.get(path.stem, {}).get("cnn", True), note=f"refused: {error}")
        except Exception as error:  # a crash is what this benchmark looks for
            row = Row(
                path.stem, entries.get(path.stem, {}).get("cnn", True), note=f"CRASH {type(error).__name__}: {error}"
            )
            failed += 1
        rows.append(row)
        print(line(row), flush=True)
    cnn = [row for row in rows if row.cnn]
    total, removable = sum(row.channels for row in cnn), sum(row.removable for row in cnn)
    worst = max((row.oracle or 0.0 for row in rows), default=0.0)
    print(f"{len(rows)} files, {failed} crashes; {removable:,} of {total:,} channels of the convolutional ones removable "
          f"({removable / max(total, 1):.1%}); worst oracle error {worst:.1e}; slowest analysis "
          f"{max((row.analysis_seconds for row in rows), default=0):.2f} s")  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
