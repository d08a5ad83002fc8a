"""How time and memory of the graph analysis grow with the graph: channels, layers, nodes, pixels.

    python benchmarks/analysis.py [--only chain wide ...] [--repeat 3] [--profile] [--json FILE]

Graphs are made here, in three sizes each:

    chain   convolutions one after another (3×3, with BatchNorm and Relu)             500, 1,000, 2,000 convolutions
    wide    one layer, depthwise and residual behind it                               2,048, 4,096, 8,192 channels
    layout  one layer, channel shuffle, Split, Slice, Concat, flattened maps behind   2,048, 4,096, 8,192 channels
    nodes   mostly cheap operators between few convolutions                           7,500, 15,000, 30,000 nodes
    frozen  the same, and every block ends in an operator that the package doesn't know
    unet    a U-Net with skips                                                        1×3×160×160, 320×320, 640×640

Each graph is measured in a child process of its own, with one thread: the shapes of all tensors in one run (`observe`),
how ONNX Runtime loads the file alone (`load`, for comparison), the label analysis (`analyse`), who reads what
(`collect`), the answer of `inspect`, and what `make_plan` and `surgery.apply` take to remove half of everything; the least
processor seconds of some runs, and the memory that the first run held at once beyond what was there before. The slope is
that of log(seconds) over log(size): 1 is linear. A slope above 1.25 fails, if the smallest graph takes 0.05 s or more;
`observe` may be as steep as `load`. Memory has a slope where the smallest graph takes 1 MB or more.
"""

import argparse
import cProfile
import json
import pstats
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from common import ChildError, Meter, in_child
from onnx import TensorProto, helper, numpy_helper

from thinet_onnx import runtime, summary, surgery
from thinet_onnx.consumers import collect
from thinet_onnx.graph import Graph
from thinet_onnx.groups import analyse, make_plan
from thinet_onnx.options import PruneOptions

STEEPEST, SHORTEST = 1.25, 0.05
PARTS = ("observe", "load", "analyse", "collect", "inspect", "plan", "apply")


class Net:
    """A graph in the making; every method returns the name of a tensor."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def node(self, op: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> Any:
        names = [f"v{len(self.nodes)}_{index}" for index in range(outputs)]
        self.nodes.append(
            helper.make_node(op, list(inputs), names, f"{op}{len(self.nodes)}", domain=domain, **attributes)
        )
        return names if outputs > 1 else names[0]

    def tensor(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"t{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def weight(self, *shape: int) -> str:
        return self.tensor(self.rng.standard_normal(shape) / np.sqrt(max(np.prod(shape[1:]), 1)))

    def conv(self, x: str, channels: int, filters: int, kernel: int = 3, **attributes: Any) -> str:
        weight = self.weight(filters, channels // attributes.get("group", 1), kernel, kernel)
        bias = self.tensor(np.zeros(filters))
        return str(self.node("Conv", x, weight, bias, pads=[kernel // 2] * 4, **attributes))

    def norm(self, x: str, channels: int) -> str:
        values = [self.tensor(np.ones(channels)) for _ in range(4)]
        return str(self.node("BatchNormalization", x, *values))

    def block(self, x: str, channels: int, filters: int) -> str:
        return str(self.node("Relu", self.norm(self.conv(x, channels, filters), filters)))

    def model(self, output: str, side: int) -> onnx.ModelProto:
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, side, side])
        y = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "scaling", [x], [y], self.tensors)
        imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=imports, ir_version=8)


def chain(convolutions: int) -> onnx.ModelProto:
    net = Net()
    x = net.block("x", 3, 8)
    for _ in range(convolutions - 2):
        x = net.block(x, 8, 8)
    return net.model(net.conv(x, 8, 4), 8)


def wide(channels: int) -> onnx.ModelProto:
    net = Net()
    stream = net.block("x", 3, channels)
    inner = net.node("Relu", net.conv(stream, channels, channels, group=channels))
    total = net.node("Add", net.node("Mul", inner, net.weight(1, channels, 1, 1)), net.conv("x", 3, channels, 1))
    return net.model(net.conv(total, channels, 4, 1), 8)


def layout(channels: int) -> onnx.ModelProto:
    net = Net()
    x = net.block("x", 3, channels)
    x = net.node("Reshape", x, net.tensor([0, 2, channels // 2, 4, 4], np.int64))
    x = net.node("Transpose", x, perm=[0, 2, 1, 3, 4])
    x = net.node("Reshape", x, net.tensor([0, channels, 4, 4], np.int64))
    left, right = net.node(
        "Split", x, net.tensor([channels // 4, channels - channels // 4], np.int64), outputs=2, axis=1
    )
    ends = [net.tensor([value], np.int64) for value in (0, channels // 2, 1)]
    x = net.node("Concat", net.node("Slice", right, *ends), left, net.conv("x", 3, 16), axis=1)
    flat = net.node("Flatten", net.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]))
    columns = 4 * (channels // 2 + channels // 4 + 16)
    return net.model(net.node("Gemm", flat, net.weight(columns, 4)), 4)


def nodes(count: int, *, unknown: bool = False) -> onnx.ModelProto:
    net = Net()
    x = net.block("x", 3, 16)
    while len(net.nodes) < count:
        inner = net.node("Relu", net.conv(x, 16, 16, 1))
        y = net.node("Add", net.conv(inner, 16, 16, 1), net.conv(inner, 16, 16, 1))
        y = net.node("Reshape", y, net.tensor([1, 16, 4, 4], np.int64))
        for _ in range(4):
            y = net.node("Relu", net.node("Add", y, net.node("Mul", y, net.weight(16, 1, 1))))
        left, right = net.node("Split", y, outputs=2, axis=1)
        y = net.node("Concat", net.node("Sigmoid", right), net.node("Tanh", left), axis=1)
        for _ in range(3):
            y = net.node("Clip", net.node("Identity", net.node("LeakyRelu", y)), net.tensor(-3.0), net.tensor(3.0))
        if unknown:
            y = net.node(
                "BiasGelu", net.node("Transpose", y, perm=[0, 2, 3, 1]), net.weight(16), domain="com.microsoft"
            )
            y = net.node("Transpose", y, perm=[0, 3, 1, 2])
        x = y if len(net.nodes) % 2 else net.node("Add", x, y)
    return net.model(net.conv(x, 16, 4, 1), 4)


def frozen(count: int) -> onnx.ModelProto:
    return nodes(count, unknown=True)


def unet(pixels: int) -> onnx.ModelProto:
    side = max(round(pixels**0.5 / 16), 1) * 16
    net, widths = Net(), (8, 16, 32, 64, 128)
    x, channels, skips = "x", 3, []
    for level, width in enumerate(widths):
        x = net.block(net.block(x, channels, width), width, width)
        channels = width
        if level < len(widths) - 1:
            skips.append(x)
            x = net.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    for skip, width in zip(reversed(skips), reversed(widths[:-1]), strict=True):
        x = net.node("Resize", x, "", net.tensor([1, 1, 2, 2]), mode="nearest")
        x = net.node("Concat", skip, x, axis=1)
        x = net.block(net.block(x, channels + width, width), width, width)
        channels = width
    return net.model(net.node("Sigmoid", net.conv(x, channels, 2, 1)), side)


CASES: dict[str, tuple[Callable[[int], onnx.ModelProto], tuple[int, ...], str]] = {
    "chain": (chain, (500, 1000, 2000), "convolutions"),
    "wide": (wide, (2048, 4096, 8192), "channels"),
    "layout": (layout, (2048, 4096, 8192), "channels"),
    "nodes": (nodes, (7500, 15000, 30000), "nodes"),
    "frozen": (frozen, (7500, 15000, 30000), "nodes"),
    "unet": (unet, (160**2, 320**2, 640**2), "pixels"),
}


def measure(path: str, repeat: int, profile: bool) -> dict[str, dict[str, float]]:
    """Seconds and memory of each part, in this process.

    Returns:
        for each part `seconds` (least of all runs), `first` (the first run's), `more` and `total` (bytes, of the first run).
    """
    graph = Graph(onnx.load(path))
    feeds = {v.name: np.zeros([d.dim_value for d in v.type.tensor_type.shape.dim], np.float32) for v in graph.inputs}
    found: dict[str, Any] = {}

    def run(part: str, work: Callable[[], Any]) -> Any:
        times = []
        for turn in range(repeat):
            with Meter() as meter:
                result = work()
            times.append(meter.seconds)
            if turn == 0:
                first = meter
        found[part] = {"seconds": min(times), "first": times[0], "more": first.more, "total": first.total}
        if profile:
            profiler = cProfile.Profile()
            profiler.runcall(work)
            print(f"\n== {Path(path).stem}: {part}", flush=True)
            pstats.Stats(profiler).sort_stats("tottime").print_stats(12)
        return result

    shapes = run("observe", lambda: runtime.observed_shapes(graph, feeds))
    run("load", lambda: runtime.session(runtime.runnable(graph.model), optimise=False))
    analysis = run("analyse", lambda: analyse(Graph(graph.model), shapes))
    run("collect", lambda: collect(analysis))
    run("inspect", lambda: summary.inspection("", analysis, PruneOptions(keep=0.5), []))
    kept = [np.arange(max(group.floor, group.size // 2)) for group in analysis.groups]
    plan = run("plan", lambda: make_plan(analysis, kept))
    run("apply", lambda: surgery.apply(graph.model, plan))
    found["counts"] = {"nodes": len(graph.nodes), "channels": analysis.channels, "removable": analysis.removable}
    return found


def slope(sizes: Sequence[int], values: Sequence[float]) -> float:
    """The exponent of growth: the slope of the line through (log size, log value)."""
    return float(np.polyfit(np.log(sizes), np.log(np.maximum(values, 1e-9)), 1)[0])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--shrink", type=int, default=1, help="divide all sizes by this, for a quick look")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each part, of which the fastest counts")
    parser.add_argument("--limit", type=float, default=600, help="seconds for one graph")
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    rows, steep = [], []
    print(f"{'case':8s}{'size':>8s}{'nodes':>8s}{'channels':>10s}"
          + "".join(f"{part:>10s}{'MB':>7s}" for part in PARTS) + "   seconds; MB more")  # fmt: skip
    for case in args.only:
        build, sizes, unit = CASES[case]
        sizes = tuple(size // args.shrink // 4 * 4 for size in sizes)
        found = []
        for size in sizes:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"{case}_{size}.onnx"
                onnx.save(build(size), path)
                try:
                    found.append(in_child(measure, str(path), args.repeat, args.profile, seconds=args.limit))
                except ChildError as error:
                    print(f"{case:8s}{size:8d}  {error.kind}: {error}", flush=True)
                    steep.append(f"{case} at {size} {unit}: {error.kind}")
                    break
            row = found[-1]
            rows.append({"case": case, "size": size, "unit": unit, **row})
            cells = "".join(f"{row[part]['seconds']:10.3f}{row[part]['more'] / 1e6:7.1f}" for part in PARTS)
            print(f"{case:8s}{size:8d}{row['counts']['nodes']:8d}{row['counts']['channels']:10d}{cells}", flush=True)
        if len(found) < len(sizes):
            continue
        slopes = {part: slope(sizes, [row[part]["seconds"] for row in found]) for part in PARTS}
        growth = {
            part: slope(sizes, [row[part]["more"] for row in found]) for part in PARTS if found[0][part]["more"] > 1e6
        }
        rows.append({"case": case, "unit": unit, "slope": slopes, "memory_slope": growth})
        cells = "".join(
            f"{slopes[part]:10.2f}" + (f"{growth[part]:7.2f}" if part in growth else f"{'–':>7s}") for part in PARTS
        )
        print(f"{case:8s}{'slope':>8s}{'':18s}{cells}", flush=True)
        allowed = {"load": np.inf, "observe": max(STEEPEST, slopes["load"] + 0.1)}
        steep += [
            f"{case}: {part} grows with the power {slopes[part]:.2f} of {unit}" for part in PARTS
            if slopes[part] > allowed.get(part, STEEPEST) and found[0][part]["seconds"] >= SHORTEST
        ]  # fmt: skip
    print(
        "\nsteeper than linear:" if steep else "\nnothing is steeper than linear", *steep, sep="\n  " if steep else ""
    )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 1 if steep else 0


if __name__ == "__main__":
    raise SystemExit(main())
