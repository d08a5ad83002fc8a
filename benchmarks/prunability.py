"""How far every .onnx file of a folder can be pruned, at what price, and whether what comes out is right.

    python benchmarks/prunability.py DIR [--images FOLDER] [--only NAME ...] [--seeds 2] [--no-prune] [--json FILE]
    python benchmarks/prunability.py DIR --peer onnxsim [--json FILE]
    python benchmarks/prunability.py DIR --twin [--images FOLDER] [--json FILE]

Each file is worked on in child processes with one thread, a time limit and a memory limit. The columns:

    channels     output channels of linear layers that may go, of all; the MACs that can be saved by that
    analysis     processor seconds of the label analysis alone; MB that it held beyond the loaded model, and in total
    oracle       largest difference of the mask oracle over random plans (30% and 60% of each group removed, both scopes,
                 `--seeds` of each; also at the other sizes below)
    left         MACs that are left when the whole pipeline was asked for half, or for three quarters of what can be saved
    refitted     the oracle's difference with new weights
    error        relative error of the outputs on samples held out: refitted, and the same plan without refit
    runs         sizes at which the saved file was run by ONNX Runtime: the file's own, and others where inputs are open
    verdict      ok · nothing prunable · refused (an error the user can mend) · hang · FAIL

A file fails if anything crashes, the checker objects to the result alone, the result doesn't run where the original does,
or the oracle differs by more than 1e-4 (1e-2 with 16-bit floats, one step of the requantisation with 8-bit integers).
Exit code 1 if any file fails or hangs.

Inputs are noise of the shape in the folder's `manifest.json` (key `feed`), or of the declared shape with open sizes at 64
and an open batch at 1; with `--images` models with one 3-channel image input get real images.

With `--peer onnxsim` every file is cut to half of its channels by thinet-onnx (`--keep 0.5`) and by onnxsim's structured
pruning (L2 and Wanda; after `onnxsim.simplify`, which folds the BatchNorms that it doesn't prune through), side by side.
"""

import argparse
import importlib.util
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from common import GIB, ChildError, Meter, given_shapes, in_child, noise, other_shapes, samples_for, seen

from thinet_onnx import data as sources
from thinet_onnx import errors as mendable
from thinet_onnx import pipeline, runtime, surgery, verify
from thinet_onnx.examine import examine
from thinet_onnx.graph import Graph, check, load
from thinet_onnx.groups import Analysis, analyse, make_plan
from thinet_onnx.options import PruneOptions, Target
from thinet_onnx.setting import Setting, open_model

Shapes = dict[str, tuple[int, ...]]
REFUSED = {name for name, kind in vars(mendable).items() if isinstance(kind, type)} - {"NothingToPruneError"}
_HALF_STEP = 0.5 / 127  # of an 8-bit tensor that uses its range


@dataclass
class Row:
    """All that is known of one file; what wasn't come to is None."""

    name: str
    cnn: bool = True
    verdict: str = ""
    reason: str = ""
    channels: int = 0
    removable: int = 0
    macs: int = 0
    macs_removable: int = 0
    analysis_seconds: float | None = None
    analysis_more: int | None = None
    analysis_total: int | None = None
    observe_seconds: float | None = None
    tolerance: float = 1e-4
    plans: int = 0
    oracle: float | None = None
    target: str = ""
    left: float | None = None
    oracle_refitted: float | None = None
    error_refitted: float | None = None
    error_bare: float | None = None
    prune_seconds: float | None = None
    checker_before: str | None = None
    checker_after: str | None = None
    runs: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def ready(
    path: str, entry: dict[str, Any], images: str | None, samples: int
) -> tuple[Setting, Shapes, sources.Source, Any]:
    """The model as it is pruned, the shapes of its inputs, samples, and the shapes of all tensors."""
    shapes = given_shapes(load(path), entry)
    setting = open_model(path, shapes)
    source = samples_for(setting.inputs, Path(images) if images else None, samples, 0)
    rows = sources.split(source, pipeline.HELD_OUT, 0)[0]
    counts = (1, 2) if source.stackable and len(rows) > 1 else (1,)
    setting, observed = examine(setting, [source.batch(rows[:count]) for count in counts])
    return setting, shapes, source, observed


def prepare(path: str, entry: dict[str, Any], images: str | None, samples: int, out: str) -> dict[str, Any]:
    """In a child: read the file, observe its shapes, leave the model as it is analysed at `out`."""
    with Meter() as meter:
        setting, _, _, observed = ready(path, entry, images, samples)
    onnx.save(setting.model, out)
    return {"shapes": observed, "seconds": meter.seconds, "checker": check(setting.model)}


def measure_analysis(path: str, shapes: dict[str, Any]) -> dict[str, Any]:
    """In a child that has done nothing else: time and memory of the analysis."""
    model = onnx.load(path)
    with Meter() as meter:
        analysis = analyse(Graph(model), shapes)
    total = analysis.macs.total(analysis.sizes)
    return {
        "channels": analysis.channels, "removable": analysis.removable, "macs": round(total),
        "macs_removable": round(total - analysis.macs.total([group.floor for group in analysis.groups])),
        "analysis_seconds": meter.seconds, "analysis_more": meter.more, "analysis_total": meter.total,
    }  # fmt: skip


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


def tolerance(setting: Setting, feeds: dict[str, Any]) -> float:
    """What the oracle may differ by: see the top of this file.

    One step of the requantisation is the scale of the DequantizeLinear that an output comes from, relative to the
    output's largest value; where other operators follow it, one step of a tensor that uses its range.
    """
    graph = setting.graph
    if any(node.op == "DequantizeLinear" for node in graph.nodes):
        steps = [2 * _HALF_STEP]
        for name, value in zip(graph.outputs, runtime.outputs(setting.model, [feeds])[0], strict=True):
            node = graph.producer.get(name)
            scale = graph.fold(node.inputs[1]) if node is not None and node.op == "DequantizeLinear" else None
            if scale is not None:
                steps.append(float(np.max(scale)) / max(float(np.abs(value).max()), 1e-12))
        return 1.01 * max(steps)
    short = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    return 1e-2 if any(tensor.data_type in short for tensor in graph.tensors.values()) else 1e-4


def try_file(path: str, entry: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """In a child: random plans against the oracle, the whole pipeline, and the saved file at several sizes."""
    setting, shapes, source, observed = ready(path, entry, settings["images"], settings["samples"])
    analysis = analyse(setting.graph, observed)
    feeds = source.batch([0])
    others = [noise(setting.model, other, 1) for other in other_shapes(setting.model, shapes)]
    others = [other for other in others if isinstance(outputs_of(path, other), list)]
    found: dict[str, Any] = {"tolerance": tolerance(setting, feeds), "failures": []}
    errors, cut = [], None
    for seed in range(settings["seeds"]):
        for kept in random_plans(analysis, seed):
            plan = make_plan(analysis, kept)
            cut = surgery.apply(setting.model, plan)
            errors += [
                verify.oracle(setting.model, cut, plan, [item]) for item in [feeds, *(others if not errors else [])]
            ]
    found |= {"plans": len(errors), "oracle": max(errors, default=None)}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "pruned.onnx"
        if settings["prune"]:
            found |= prune(path, setting, shapes, source, analysis, out)
        elif cut is not None:
            onnx.save(cut, out)
            found |= {"verdict": "ok"}
        else:
            found |= {"verdict": "nothing prunable", "reason": "no group can shrink"}
        if out.exists():
            found["checker_after"] = check(onnx.load(out))
            found |= run_everywhere(path, str(out), setting, shapes)
    for name in ("oracle", "oracle_refitted"):
        if not (found.get(name) or 0) <= found["tolerance"]:
            found["failures"].append(f"{name} differs by {found[name]:.1e}, more than {found['tolerance']:.1e}")
    if found.get("checker_after") and setting.checked:
        found["failures"].append(f"checker: {found['checker_after']}")
    return found


def prune(
    path: str, setting: Setting, shapes: Shapes, source: sources.Source, analysis: Analysis, out: Path
) -> dict[str, Any]:
    """The whole pipeline, at half the MACs or three quarters of what can be saved, and the same plan without refit."""
    started = time.perf_counter()
    total = analysis.macs.total(analysis.sizes)
    least = analysis.macs.total([group.floor for group in analysis.groups]) / max(total, 1)
    share = 0.5 if least < 0.4 else 0.25 + 0.75 * least
    if share < 0.995:
        target = f"macs={100 * share:.1f}%"
        options = PruneOptions(target=Target.parse(target), scope="all", shapes=shapes)
    else:
        target, options = "keep=0.5", PruneOptions(keep=0.5, scope="all", shapes=shapes)
    try:
        result = pipeline.prune(path, source, options, output=out)
    except mendable.NothingToPruneError as error:
        return {"verdict": "nothing prunable", "reason": str(error), "target": target}
    report = result.report
    held = [source.batch([row]) for row in sources.split(source, pipeline.HELD_OUT, options.seed)[1]]
    before = runtime.outputs(setting.model, held)
    bare, refitted = (
        max((row.relative_error for row in verify.fidelity(setting.graph.outputs, before, after)), default=None)
        for after in (
            runtime.outputs(model, held) for model in (surgery.apply(setting.model, result.plan), result.model)
        )
    )
    return {
        "verdict": "ok", "target": target, "left": report.after.macs / max(report.before.macs, 1),
        "oracle_refitted": report.oracle_error, "error_bare": bare, "error_refitted": refitted,
        "prune_seconds": time.perf_counter() - started,
    }  # fmt: skip


def outputs_of(path: str, feeds: dict[str, Any]) -> list[Any] | str:
    """The outputs of a file as it is on disk, or what ONNX Runtime says against it."""
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    try:
        return list(ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, feeds))
    except Exception as error:  # ONNX Runtime has many
        return " ".join(str(error).split())[:200]


def run_everywhere(original: str, pruned: str, setting: Setting, shapes: Shapes) -> dict[str, Any]:
    """Run two files at the shapes given and at the others that they leave open."""
    runs, failures = [], []
    for sizes in (shapes, *other_shapes(setting.model, shapes)):
        feeds = noise(setting.model, sizes, 1)
        before, after = outputs_of(original, feeds), outputs_of(pruned, feeds)
        if isinstance(before, str):
            told = "ok, original fails" if isinstance(after, list) else "original fails too"
        elif isinstance(after, str):
            told = "fails"
            failures.append(f"doesn't run at {seen(sizes)}: {after}")
        else:
            same = [np.shape(value) for value in before] == [np.shape(value) for value in after]
            told = "ok" if same else "other output shapes"
            failures += [] if same or data_dependent(setting) else [f"other output shapes at {seen(sizes)}"]
        runs.append(f"{seen(sizes)}: {told}")
    return {"runs": runs, "run_failures": failures}


def data_dependent(setting: Setting) -> bool:
    """Whether a shape depends on values, so that other weights may give other shapes."""
    return any(node.op in ("NonMaxSuppression", "NonZero", "Compress", "Unique") for node in setting.graph.nodes)


def measure(path: Path, entry: dict[str, Any], args: argparse.Namespace) -> Row:
    """One file, stage by stage; a stage that ends badly ends the row."""
    row = Row(path.stem, entry.get("cnn", True))
    ends = time.monotonic() + args.limit
    images = str(args.images) if args.images else None

    def stage(function: Any, *arguments: Any) -> Any:
        return in_child(function, *arguments, seconds=max(ends - time.monotonic(), 0.0), memory=args.memory * GIB)

    try:
        with tempfile.TemporaryDirectory() as folder:
            ready_file = str(Path(folder) / "ready.onnx")
            seen_first = stage(prepare, str(path), entry, images, args.samples, ready_file)
            row.observe_seconds, row.checker_before = seen_first["seconds"], seen_first["checker"]
            vars(row).update(stage(measure_analysis, ready_file, seen_first["shapes"]))
        settings = {"images": images, "samples": args.samples, "seeds": args.seeds, "prune": args.prune}
        found = stage(try_file, str(path), entry, settings)
        row.failures += found.pop("failures") + found.pop("run_failures", [])
        vars(row).update(found)
        if row.failures:
            row.verdict, row.reason = "FAIL", "; ".join(row.failures)
    except ChildError as error:
        row.verdict = "hang" if error.kind == "hang" else "refused" if error.kind in REFUSED else "FAIL"
        row.reason = str(error) if row.verdict != "FAIL" else f"{error.kind}: {error}"
    return row


def number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def line(row: Row) -> str:
    megabytes = [None if value is None else value / 1e6 for value in (row.analysis_more, row.analysis_total)]
    return (
        f"{row.name[:31]:31s} {row.removable:>6d}/{row.channels:<6d} {row.removable / max(row.channels, 1):6.1%} "
        f"{row.macs_removable / max(row.macs, 1):6.1%} {number(row.analysis_seconds, '.2f'):>6s} s "
        f"{number(megabytes[0], '.0f'):>4s} {number(megabytes[1], '.0f'):>4s} {number(row.oracle, '.1e'):>8s} "
        f"{number(row.left, '.1%'):>6s} {number(row.oracle_refitted, '.1e'):>8s} {number(row.error_refitted, '.3f'):>7s} "
        f"{number(row.error_bare, '.3f'):>7s} {number(row.prune_seconds, '.0f'):>4s} s  {row.verdict}"
        + (f": {row.reason[:100]}" if row.reason else "")
    )


HEADER = (
    f"{'file':31s} {'channels':>13s} {'share':>6s} {'MACs':>6s} {'analysis':>8s} {'MB':>4s} {'all':>4s} {'oracle':>8s} "
    f"{'left':>6s} {'refitted':>8s} {'error':>7s} {'no refit':>7s} {'time':>6s}  verdict"
)


def summed_up(rows: Sequence[Row]) -> str:
    cnn = [row for row in rows if row.cnn]
    total, removable = sum(row.channels for row in cnn), sum(row.removable for row in cnn)
    counts = {
        verdict: sum(row.verdict == verdict for row in rows) for verdict in dict.fromkeys(row.verdict for row in rows)
    }
    known = [row for row in rows if row.analysis_seconds is not None]
    exact = [row.oracle for row in rows if row.oracle is not None and row.tolerance <= 1e-4]
    lines = [
        f"\n{len(rows)} files: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()),
        f"{removable:,} of {total:,} channels of the {len(cnn)} convolutional ones removable ({removable / max(total, 1):.2%})",
        f"worst oracle error in float32 {max(exact, default=0):.1e}, slowest analysis "
        f"{max((row.analysis_seconds or 0 for row in known), default=0):.2f} s, most memory "
        f"{max((row.analysis_more or 0 for row in known), default=0) / 1e6:.0f} MB beyond the model, "
        f"{max((row.analysis_total or 0 for row in known), default=0) / 1e6:.0f} MB in total",
    ]
    others = [f"{run.split(': ')[1]}" for row in rows for run in row.runs[1:]]
    kinds = {kind: others.count(kind) for kind in dict.fromkeys(others)}
    if kinds:
        lines.append("at other batches and sizes: " + ", ".join(f"{count} {kind}" for kind, count in kinds.items()))
    errors = [(row.error_refitted, row.error_bare) for row in rows if row.error_refitted is not None and row.error_bare]
    if errors:
        refitted, bare = np.median(np.array(errors), axis=0)
        lines.append(
            f"error of the outputs, median of {len(errors)} files: {refitted:.3f}, {bare:.3f} without refit; refitted is "
            f"nearer in {sum(one < other for one, other in errors)}"
        )
    lines += [f"{row.verdict} {row.name}: {row.reason}" for row in rows if row.verdict not in ("ok", "")]
    return "\n".join(lines)


def files(args: argparse.Namespace) -> list[tuple[Path, dict[str, Any]]]:
    manifest = args.folder / "manifest.json"
    entries = {entry["name"]: entry for entry in json.loads(manifest.read_text())} if manifest.exists() else {}
    paths = sorted(args.folder.glob("*.onnx"))
    return [(path, entries.get(path.stem, {})) for path in paths if not args.only or path.stem in args.only]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=Path, help="folder of images for models with a 3-channel image input")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--samples", type=int, default=32, help="calibration samples of each pruning")
    parser.add_argument("--limit", type=float, default=600, help="seconds for one file")
    parser.add_argument("--memory", type=float, default=8, help="GiB for one file")
    parser.add_argument("--no-prune", dest="prune", action="store_false", help="analysis and oracle only")
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--peer", choices=["onnxsim"])
    other.add_argument(
        "--twin", action="store_true", help="the files as PyTorch modules: outputs, gradients, the way back"
    )
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    if args.peer and importlib.util.find_spec("onnxsim") is None:
        parser.exit(2, "onnxsim isn't installed in this Python; install it with pip install onnxsim.\n")
    if args.peer:
        import prunability_peer  # noqa: PLC0415  it imports this module

        return prunability_peer.main(files(args), args)
    if args.twin and importlib.util.find_spec("torch") is None:
        parser.exit(2, "torch isn't installed in this Python; install it with pip install '.[finetune]'.\n")
    if args.twin:
        import prunability_twin  # noqa: PLC0415  it imports this module

        return prunability_twin.main(files(args), args)
    rows = []
    print(HEADER)
    for path, entry in files(args):
        rows.append(measure(path, entry, args))
        print(line(rows[-1]), flush=True)
    print(summed_up(rows))
    write(args.json, [asdict(row) for row in rows])
    return 1 if any(row.verdict in ("FAIL", "hang") for row in rows) else 0


def write(path: Path | None, rows: list[Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
