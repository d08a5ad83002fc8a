"""ThiNet's greedy choice of channels: by the Gram matrix of the sampled rows, and by the published double loop.

    OPENBLAS_NUM_THREADS=1 python benchmarks/selection.py [--json FILE]

Both pick the same channels in the same order (`select.sampled`, `select.sampled_reference`). The double loop takes the
norm of the summed rows anew for every candidate: to remove k of C channels, C + (C − 1) + … + (C − k + 1) norms of m
numbers. It is measured on two smaller cases, one with fewer channels and one with as many of which fewer go, and
extrapolated by the number of these norms (times m, which is the same). Rows are float32; both compute in float64. One
thread for both is fair (the loop has no use for more) and steady on a machine that does other work too; without the
variable BLAS takes all cores.

The Gram form is also timed in its two parts, since the matrix is a sum over rows that can be streamed as they come.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from thinet_onnx import select

Rows = np.ndarray[Any, Any]


def make_rows(rows: int, channels: int) -> Rows:
    """Partial sums as a layer behind a ReLU shows them: sparse, of unequal size, with something in common."""
    rng = np.random.default_rng(0)
    common = rng.standard_normal((rows, 16), dtype=np.float32) @ rng.standard_normal((16, channels), dtype=np.float32)
    x = np.maximum(common + 2 * rng.standard_normal((rows, channels), dtype=np.float32), 0)
    return x * rng.standard_normal(channels, dtype=np.float32)


def norms(channels: int, removed: int) -> int:
    """How many norms the double loop takes."""
    return sum(channels - step for step in range(removed))


def timed(function: Callable[[], Any], repeat: int) -> tuple[float, Any]:
    """The least time of some runs, and the result."""
    times = []
    for _ in range(repeat):
        started = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - started)
    return min(times), result


def measure_loop(x: Rows, channels: int, removed: int, whole: int) -> dict[str, Any]:
    """The double loop on some of the channels, with what `whole` norms of as many rows would take."""
    some = np.ascontiguousarray(x[:, :channels])
    seconds, picks = timed(lambda: select.sampled_reference(some, removed), 1)
    return {
        "channels": channels,
        "removed": removed,
        "rows": len(x),
        "norms": norms(channels, removed),
        "seconds": seconds,
        "extrapolated": seconds * whole / norms(channels, removed),
        "same_picks": bool(np.array_equal(picks, select.sampled(some, removed))),
    }


def measure_gram(x: Rows, removed: int, repeat: int) -> dict[str, Any]:
    """`select.sampled`, and the two parts that it is made of."""
    seconds, _ = timed(lambda: select.sampled(x, removed), repeat)
    wide = x.astype(np.float64)
    gram_seconds, gram = timed(lambda: wide.T @ wide, repeat)
    greedy_seconds, _ = timed(lambda: select.greedy(gram, removed), repeat)
    return {
        "channels": x.shape[1],
        "removed": removed,
        "rows": len(x),
        "seconds": seconds,
        "gram_seconds": gram_seconds,
        "greedy_seconds": greedy_seconds,
    }


def table(gram: dict[str, Any], loops: Sequence[dict[str, Any]], whole: int) -> str:
    lines = [f"{'':42s}{'C':>6s}{'removed':>9s}{'rows':>10s}{'norms':>10s}{'seconds':>12s}"]

    def line(name: str, case: dict[str, Any], count: int | str, seconds: float, digits: int = 2) -> None:
        lines.append(
            f"{name:42s}{case['channels']:6d}{case['removed']:9d}{case['rows']:10,d}{count:>10}{seconds:12.{digits}f}"
        )

    for loop in loops:
        line("double loop, measured", loop, f"{loop['norms']:,}", loop["seconds"])
        line("double loop, extrapolated from that", gram, f"{whole:,}", loop["extrapolated"])
    line("Gram form, measured", gram, "", gram["seconds"], 3)
    line("  of it the Gram matrix", gram, "", gram["gram_seconds"], 3)
    line("  of it the greedy choice", gram, "", gram["greedy_seconds"], 4)
    lines.append("")
    for loop in loops:
        of = f"{loop['removed']} of {loop['channels']} channels"
        lines.append(
            f"By {of}: {loop['seconds']:.2f} s × {whole:,} norms / {loop['norms']:,} norms = "
            f"{loop['extrapolated']:.1f} s; "
            f"the Gram form is {loop['extrapolated'] / gram['seconds']:,.0f} times faster, "
            f"its choice alone {loop['extrapolated'] / gram['greedy_seconds']:,.0f} times; "
            f"picks {'identical, in the same order' if loop['same_picks'] else 'DIFFERENT'}."
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=512)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--remove", type=int, default=256)
    parser.add_argument("--small-channels", type=int, default=128, help="of the case with fewer channels")
    parser.add_argument("--small-remove", type=int, default=32, help="of the case with fewer channels")
    parser.add_argument("--first", type=int, default=8, help="removed in the case with all channels")
    parser.add_argument("--repeat", type=int, default=5, help="runs of the Gram form, of which the fastest counts")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    x = make_rows(args.rows, args.channels)
    whole = norms(args.channels, args.remove)
    loops = [
        measure_loop(x, args.small_channels, args.small_remove, whole),
        measure_loop(x, args.channels, args.first, whole),
    ]
    gram = measure_gram(x, args.remove, args.repeat)
    threads = os.environ.get("OPENBLAS_NUM_THREADS", f"all {os.cpu_count()}")
    print(f"NumPy {np.__version__}, {platform.machine()}, threads of BLAS: {threads}\n")
    print(table(gram, loops, whole))
    if args.json:
        found = {"gram": gram, "double_loop": loops, "norms": whole, "threads": threads, "numpy": np.__version__}
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0 if all(loop["same_picks"] for loop in loops) else 1


if __name__ == "__main__":
    raise SystemExit(main())
