"""Prune a model in one process and in several, one thread each: time, bytes that processes exchange, memory.

    python benchmarks/scale.py MODEL DATA [--samples N] [--processes 1 2] [--target macs=50%] [--mean X] [--std X] [--json FILE]

The processes are started as torchrun starts them, on this machine. It has to be quiet, with a core for each process.
"""

import argparse
import dataclasses
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import common
from rich.console import Console
from rich.table import Table

from thinet_onnx import observe, pipeline, polish
from thinet_onnx.data import Preprocess
from thinet_onnx.joined import join, joined
from thinet_onnx.machine import machine
from thinet_onnx.options import Progress, PruneOptions, Target
from thinet_onnx.ranks import Ranks

_ONE = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Clock(Progress):
    """Seconds of every stage of a run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._stage, self._since = "", 0.0

    def start(self, stage: str, total: int) -> None:  # noqa: ARG002
        self.close()
        self._stage, self._since = stage, time.perf_counter()

    def advance(self, steps: int = 1) -> None:
        pass

    def close(self) -> None:
        if self._stage:
            self.seconds[self._stage] += time.perf_counter() - self._since
        self._stage = ""


def worker(arguments: argparse.Namespace) -> None:
    """One process: prune, and leave a file with what it took."""
    common._one_thread()
    ranks, clock = join(), Clock()
    layers = _metered(ranks)
    options = PruneOptions(target=Target.parse(arguments.target), samples=arguments.samples)
    pixels = Preprocess(mean=tuple(arguments.mean), std=tuple(arguments.std))
    started = time.perf_counter()
    with joined(ranks):
        result = pipeline.prune(
            arguments.model, arguments.data, options, preprocess=pixels, progress=clock, ranks=ranks
        )
    told = {
        "seconds": time.perf_counter() - started, "stages": dict(clock.seconds), "bytes": ranks.bytes, "layers": layers,
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "plan": [list(group.kept) for group in result.plan.groups], "samples": result.report.options["data"],
    }  # fmt: skip
    Path(arguments.worker, f"{ranks.rank}.json").write_text(json.dumps(told))


def _metered(ranks: Ranks) -> list[dict[str, Any]]:
    """A list that gets an entry for each sum over processes: whose it is, the layer's inputs and outputs, its bytes."""
    found: list[dict[str, Any]] = []

    def metered(kind: str, honest: Any, consumer_of: Any) -> Any:
        def work(self: Any, *rest: Any) -> Any:
            before, consumer = ranks.bytes, consumer_of(self)
            result = honest(self, *rest)
            groups, outputs, columns = consumer.matrix.shape
            found.append(
                {
                    "layer": consumer.layer.node.title,
                    "kind": kind,
                    "groups": groups,
                    "columns": columns,
                    "outputs": groups * outputs,
                    "bytes": ranks.bytes - before,
                }
            )
            return result

        return work

    observe.Watcher.add_up = metered("moments", observe.Watcher.add_up, lambda self: self.consumer)  # type: ignore[method-assign]
    polish.Polisher.fit = metered("joint refit", polish.Polisher.fit, lambda self: self.pair.consumer)  # type: ignore[method-assign]
    return found


def measure(arguments: list[str], count: int) -> list[dict[str, Any]]:
    """What each of some processes tells."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} | dict.fromkeys(_ONE, "1")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, *arguments, "--worker", folder]
        started = [subprocess.Popen(command, env=os.environ | shared | {"RANK": str(rank)}) for rank in range(count)]
        codes = [process.wait() for process in started]
        if any(codes):
            raise SystemExit(f"{count} processes ended with the codes {codes}.")
        return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(count)]


def render(runs: dict[int, list[dict[str, Any]]]) -> None:
    """The tables."""
    console = Console()
    table = Table("processes", "seconds", "ratio", "bytes reduced", "peak memory each", title="Runs")
    first = runs[min(runs)][0]["seconds"]
    for count, told in runs.items():
        peak = max(one["peak_bytes"] for one in told)
        seconds = told[0]["seconds"]
        table.add_row(
            str(count),
            f"{seconds:.1f}",
            f"{first / seconds:.2f}",
            f"{told[0]['bytes'] / 1e6:.2f} MB",
            f"{peak / 1e6:.0f} MB",
        )
    console.print(table)
    stages = Table("stage", *map(str, runs), title="Seconds of each stage, by processes")
    for stage in runs[min(runs)][0]["stages"]:
        stages.add_row(stage, *(f"{told[0]['stages'].get(stage, 0.0):.2f}" for told in runs.values()))
    console.print(stages)
    most = runs[max(runs)][0]["layers"]
    layers = Table("layer", "sum", "columns", "outputs", "bytes", title=f"Bytes reduced, {max(runs)} processes")
    for row in most:
        layers.add_row(row["layer"], row["kind"], str(row["columns"]), str(row["outputs"]), f"{row['bytes']:,}")
    console.print(layers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--samples", type=int)
    parser.add_argument("--target", default="macs=50%")
    parser.add_argument("--mean", type=float, nargs="*", default=[])
    parser.add_argument("--std", type=float, nargs="*", default=[])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments)
        return
    runs = {count: measure(sys.argv[1:], count) for count in arguments.processes}
    plans = [one["plan"] for told in runs.values() for one in told]
    if any(plan != plans[0] for plan in plans):
        raise SystemExit("The plans differ.")
    render(runs)
    if arguments.json is not None:
        about = {"machine": dataclasses.asdict(machine()), "argv": sys.argv[1:]}
        arguments.json.write_text(json.dumps(about | {"runs": runs}, indent=1))


if __name__ == "__main__":
    main()
