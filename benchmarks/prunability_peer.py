"""The same files cut to half of their channels by thinet-onnx and by onnxsim's structured pruning: `prunability.py --peer`.

For each file and tool: layers (weights) with fewer output channels than before, of all; output channels, parameters and
MACs that are left; the relative error of the outputs on samples held out; whether the result runs at the file's own and at
other sizes, and what the tool says. onnxsim gets the file with its functions inlined and after `onnxsim.simplify` (where that
leaves a BatchNorm, after ONNX Runtime's basic optimisation as well), since it prunes through no BatchNorm; its shares are
relative to that file. Quantised files it gets as they are.
"""

import argparse
import importlib.metadata
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from common import GIB, ChildError, in_child
from prunability import number, ready, run_everywhere, write

from thinet_onnx import data as sources
from thinet_onnx import pipeline, runtime, verify
from thinet_onnx.graph import Graph, check
from thinet_onnx.groups import analyse
from thinet_onnx.options import PruneOptions
from thinet_onnx.prepare import prepare as inlined

TOOLS = ("thinet-onnx", "onnxsim-l2", "onnxsim-wanda")


@dataclass(frozen=True)
class Count:
    """Widths of the layers by the name of their output, and what the network costs."""

    widths: dict[str, int]
    macs: float
    params: float

    @classmethod
    def of(cls, model: onnx.ModelProto, feeds: dict[str, Any]) -> "Count":
        graph = Graph(model)
        analysis = analyse(graph, runtime.observed_shapes(graph, feeds))
        layers = {layer.weight: layer for layer in analysis.context.linears if not layer.depthwise}
        widths = {layer.node.key: layer.out_channels for layer in layers.values()}
        return cls(widths, analysis.macs.total(analysis.sizes), analysis.params.total(analysis.sizes))


def prepared(model: onnx.ModelProto, folder: str) -> onnx.ModelProto:
    """The model as onnxsim wants it: a quantised one as it is, since `simplify` takes apart what it looks for."""
    import onnxsim  # noqa: PLC0415  an optional peer

    model = inlined(model)
    if any(node.op_type == "DequantizeLinear" for node in model.graph.node):
        return model
    simple, _ = onnxsim.simplify(model)
    if any(node.op_type == "BatchNormalization" for node in simple.graph.node):
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        simple, _ = onnxsim.simplify(onnx.load(options.optimized_model_filepath))
    runtime.session(simple)
    return simple


def cut_by_peer(model: onnx.ModelProto, tool: str, calibration: list[dict[str, Any]]) -> onnx.ModelProto:
    """onnxsim's structured pruning at half of each layer; quantised weights have a function of their own."""
    import onnxsim  # noqa: PLC0415

    if tool == "onnxsim-wanda":
        return onnxsim.apply_structured_wanda_pruning(model, calibration_data=calibration, sparsity=0.5)
    result = onnxsim.apply_structured_pruning(model, sparsity=0.5)
    if any(node.op_type == "DequantizeLinear" for node in model.graph.node):
        result = onnxsim.apply_structured_pruning_qdq(result, sparsity=0.5)
    return result


def one(path: str, entry: dict[str, Any], images: str | None, samples: int, tool: str) -> dict[str, Any]:
    """In a child: one file, one tool."""
    setting, shapes, source, _ = ready(path, entry, images, samples)
    fit, held = sources.split(source, pipeline.HELD_OUT, 0)
    feeds = source.batch(fit[:1])
    with tempfile.TemporaryDirectory() as folder:
        base, note = setting.model, ""
        started = time.perf_counter()
        if tool == "thinet-onnx":
            options = PruneOptions(keep=0.5, scope="all", shapes=shapes)
            result = pipeline.prune(path, source, options).model
        else:
            original = onnx.load(path)
            try:
                base = prepared(original, folder)
            except Exception as error:  # then it gets the file as it is
                base, note = inlined(original), f"without simplify, after which: {short(error)}"
            result = cut_by_peer(base, tool, [source.batch([row]) for row in fit])
        seconds = time.perf_counter() - started
        out = str(Path(folder) / "pruned.onnx")
        onnx.save(result, out)
        before = Count.of(base, feeds)
        found = run_everywhere(path, out, setting, shapes) | {
            "seconds": seconds, "note": note, "checker": check(result), "layers": len(before.widths),
        }  # fmt: skip
        if found["run_failures"]:
            return found
        after = Count.of(result, feeds)
        batches = [source.batch([row]) for row in held]
        near = verify.fidelity(setting.graph.outputs, *(runtime.outputs(model, batches) for model in (base, result)))
    common = before.widths.keys() & after.widths.keys()
    return found | {
        "cut": sum(after.widths[name] < before.widths[name] for name in common),
        "channels": sum(after.widths[name] for name in common) / max(sum(before.widths[name] for name in common), 1),
        "params": after.params / max(before.params, 1), "macs": after.macs / max(before.macs, 1),
        "error": max((row.relative_error for row in near), default=None),
    }  # fmt: skip


def short(error: object) -> str:
    return " ".join(str(error).split())[:160]


def measure(path: Path, entry: dict[str, Any], tool: str, args: argparse.Namespace) -> dict[str, Any]:
    """One row of the table."""
    row: dict[str, Any] = {"name": path.stem, "cnn": entry.get("cnn", True), "tool": tool}
    images = str(args.images) if args.images else None
    try:
        row |= in_child(
            one, str(path), entry, images, args.samples, tool, seconds=args.limit, memory=args.memory * GIB
        )  # fmt: skip
    except ChildError as error:
        return row | {"says": f"{error.kind}: {short(error)}", "outcome": "refused" if tool == TOOLS[0] else "raises"}
    outcome = "broken file" if row["run_failures"] else "runs" if row["cut"] else "nothing cut"
    return row | {
        "outcome": outcome,
        "says": "; ".join(filter(None, [*row["run_failures"], row["checker"], row["note"]])),
    }


def line(row: dict[str, Any]) -> str:
    layers = f"{row.get('cut', '–')}/{row['layers']}" if "layers" in row else "–"
    shares = " ".join(f"{number(row.get(key), '.1%'):>8s}" for key in ("channels", "params", "macs"))
    return (
        f"{row['name'][:31]:31s} {row['tool']:14s} {layers:>9s} {shares} {number(row.get('error'), '.3f'):>8s} "
        f"{number(row.get('seconds'), '.1f'):>6s} s  {row['outcome']:12s} {row['says'][:110]}"
    )


def main(files: Sequence[tuple[Path, dict[str, Any]]], args: argparse.Namespace) -> int:
    print(f"onnxsim {importlib.metadata.version('onnxsim')}, half of the channels, {args.samples} samples")
    print(
        f"{'file':31s} {'tool':14s} {'layers':>9s} {'channels':>8s} {'params':>8s} {'MACs':>8s} {'error':>8s} {'time':>8s}"
    )
    rows = []
    for path, entry in files:
        for tool in TOOLS:
            rows.append(measure(path, entry, tool, args))
            print(line(rows[-1]), flush=True)
    print()
    for tool in TOOLS:
        mine = [row for row in rows if row["tool"] == tool]
        kinds = [row["outcome"] for row in mine]
        cut, layers = (sum(row.get(key) or 0 for row in mine) for key in ("cut", "layers"))
        left = [row["macs"] for row in mine if "macs" in row]
        print(f"{tool:14s} " + ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
              + f"; {cut:,} of {layers:,} layers cut; MACs left {np.mean(left or [np.nan]):.1%} on average")  # fmt: skip
    write(args.json, rows)
    return 1 if any(row["tool"] == TOOLS[0] and row["outcome"] == "broken file" for row in rows) else 0
