"""What a prune run costs: seconds and memory, beside ONNX Runtime's own passes over the same images.

    python benchmarks/cost.py NETWORK --random 256 [--target macs=50%] [--threads 2] [--json FILE]
    python benchmarks/cost.py MODEL.onnx --data DATA --mean M --std S [--samples 256] [...]
    python benchmarks/cost.py --suite depth|images|width|wide [--json FILE]
    python benchmarks/cost.py --suite peers [--peers onnxsim-wanda 'tp-*-global'] [--json FILE]

NETWORK is a name of `networks.py` (random weights, noise as images). With a suite, networks and `--samples` that are named
take the place of the suite's own:

    depth    8, 16, … 128 residual blocks; seconds per block must not vary by more than 20% from 16 blocks on
    images   256, 512, … 4,096 images on one network
    width    8 residual blocks of 32, 64, 128, 256 channels
    wide     a 3×3 convolution that reads 2,048 channels (18,432 columns)
    peers    ResNet-50: this package, and others on the same images (`peers.py`; take onnxsim, torch, torch-pruning);
             for Torch-Pruning's importances from gradients, also the scoring alone

Every figure is of a fresh process of its own. `pass` is the median of three passes of the original over all images, in
ONNX Runtime, at the batch that the run takes, only its calls being counted. `seconds` is a whole `prune` up to the written
file, without starting Python and loading modules; images are decoded before either. `÷ 2 passes` is the one as a share of
twice the other. With --processes the command itself is run, which shares its work among so many. `peak` is the most memory
that the process held at once, with Python, all libraries and the images, as the system tells. Of a peer, `seconds` has
everything that leads from the file to the pruned one, the search for its ratio included; without that search it takes what
the note says.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networks
import numpy as np
import onnx
from accuracy_measure import cost
from common import GIB, ChildError, in_child, peak, resident
from peers import Problem, UnavailableError, find, versions

from thinet_onnx import pipeline, runtime, summary
from thinet_onnx.batches import Batches
from thinet_onnx.cli.shared import floats
from thinet_onnx.data import Preprocess, Source, open_source, random_source
from thinet_onnx.errors import ThinetError
from thinet_onnx.machine import machine
from thinet_onnx.options import PruneOptions, Silent, Target, parse_shapes
from thinet_onnx.run import Run
from thinet_onnx.setting import closed_inputs, open_model

Row = dict[str, Any]
OWN = "thinet-onnx"
PEERS = ("onnxsim-wanda", "tp-taylor-global", "tp-hessian-global")
SCORED = ("taylor", "hessian")  # importances of Torch-Pruning that take gradients
STEADY, FROM = 1.2, 16  # seconds per block, the most over the least, from so many blocks on
_REPEAT = 3
_POLL = 0.05  # seconds between looks at what several processes hold


@dataclass(frozen=True)
class Suite:
    """Networks by name, and how many images each is measured on."""

    networks: tuple[str, ...]
    samples: tuple[int, ...] = (256,)


SUITES = {
    "depth": Suite(tuple(f"blocks:{count}" for count in (8, 16, 32, 64, 128))),
    "images": Suite(("blocks:16",), (256, 512, 1024, 2048, 4096)),
    "width": Suite(tuple(f"blocks:8:{width}" for width in (32, 64, 128, 256))),
    "wide": Suite(("wide:2048",)),
    "peers": Suite(("resnet50",)),
}


@dataclass(frozen=True)
class Job:
    """A file, its images as .npz, and what remains of it; all that a child needs."""

    model: Path
    data: Path
    target: str
    scope: str
    shapes: dict[str, tuple[int, ...]]
    reconstruct: str | None = None

    @property
    def options(self) -> PruneOptions:
        """Of the run."""
        return PruneOptions(
            target=Target.parse(self.target), scope=self.scope, shapes=self.shapes, reconstruct=self.reconstruct
        )  # type: ignore[arg-type]

    def source(self) -> Source:
        """The images."""
        return open_source(self.data, open_model(self.model, self.shapes).inputs)


class Stages(Silent):
    """Progress that notes the seconds of each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._now, self._since = "", 0.0

    def start(self, stage: str, total: int) -> None:  # noqa: ARG002
        """One stage ends where another begins."""
        self.close()
        self._now, self._since = stage, time.perf_counter()

    def close(self) -> None:
        """The last one ends."""
        if self._now:
            spent = time.perf_counter() - self._since
            self.seconds[self._now] = self.seconds.get(self._now, 0.0) + spent
        self._now = ""


def passes(job: Job) -> Row:
    """Child: seconds of some passes of the original over all images, and the batch."""
    setting, source = open_model(job.model, job.shapes), job.source()
    run = Run(setting, source, job.options, Preprocess(), Silent())
    active = runtime.session(runtime.runnable(run.model))
    feeds = list(Batches(source.batch, range(len(source)), run.size))
    runtime.run(active, feeds[0])
    found = []
    for _ in range(_REPEAT):
        began = time.perf_counter()
        for feed in feeds:
            runtime.run(active, feed)
        found.append(time.perf_counter() - began)
    return {"pass": float(np.median(found)), "passes": found, "batch": run.size}


def pruned(job: Job, output: Path) -> Row:
    """Child: seconds and peak memory of a whole run of this package."""
    stages, began = Stages(), time.perf_counter()
    result = pipeline.prune(job.model, job.data, job.options, output=output, progress=stages)
    seconds = time.perf_counter() - began
    report = result.report
    return {
        "seconds": seconds, "peak": peak(), "stages": stages.seconds, "macs": report.after.macs / report.before.macs,
        "note": "; ".join(report.warnings),
    }  # fmt: skip


def shared(job: Job, output: Path, processes: int) -> Row:
    """Child: the same by the command, in several processes; `peak` is the most that all of them held together."""
    told = output.with_suffix(".json")
    command = [
        sys.executable, "-m", "thinet_onnx", "prune", str(job.model), str(output), "--data", str(job.data),
        "--target", job.target, "--scope", job.scope, "--json", str(told), "--quiet", "--processes", str(processes),
        *((f"--reconstruct={job.reconstruct}",) if job.reconstruct else ()),
        *(f"--shape={name}:{','.join(map(str, sizes))}" for name, sizes in job.shapes.items()),
    ]  # fmt: skip
    started, most = subprocess.Popen(command), 0
    while started.poll() is None:
        most = max(most, resident(started.pid))
        time.sleep(_POLL)
    if started.returncode:
        raise RuntimeError(f"exit code {started.returncode}")
    report = json.loads(told.read_text(encoding="utf-8"))
    return {
        "seconds": report["seconds"], "peak": most, "stages": report["stages"], "processes": processes,
        "macs": report["after"]["macs"] / report["before"]["macs"], "note": "; ".join(report["warnings"]),
    }  # fmt: skip


def _problem(job: Job) -> Problem:
    whole = cost(job.model, job.shapes).macs
    share = job.options.target.value  # type: ignore[union-attr]

    def remains(model: onnx.ModelProto) -> float:
        return cost(model, job.shapes).macs / whole

    return Problem(job.model, job.source(), share, job.scope, remains, job.shapes, {})  # type: ignore[arg-type]


def peer(job: Job, name: str) -> Row:
    """Child: the same of a peer."""
    (other,), problem = find([name]), _problem(job)
    began = time.perf_counter()
    outcome = other.prune(problem)
    seconds, most = time.perf_counter() - began, peak()
    note = f"{outcome.seconds:.1f} s without the search; {outcome.note}"
    return {"seconds": seconds, "peak": most, "macs": problem.remains(outcome.model), "note": note}


def scoring(job: Job, importance: str) -> Row:
    """Child: Torch-Pruning's scores of all groups alone, the network being in torch already."""
    import peers_torch  # noqa: PLC0415  needs torch

    return {"seconds": peers_torch.scoring(_problem(job), importance), "peak": peak()}


def save_images(job: Job, source: Source) -> None:
    """Write what a source feeds to the job's .npz, decoded."""
    feeds = [source.batch([row]) for row in range(len(source))]
    np.savez(job.data, **{name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]})


class Meter:
    """The rows so far, on screen and in a file."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.rows: list[Row] = []

    def child(self, row: Row, function: Any, *arguments: Any) -> Row:
        """A row with what a child found, or with the reason why it didn't."""
        args = self.args
        try:
            found = in_child(function, *arguments, seconds=args.limit, memory=args.memory * GIB, threads=args.threads)
        except ChildError as error:
            found = {"failed": error.kind, "note": f"{error.kind}: {error}"}
        return {**row, **found}

    def add(self, row: Row) -> None:
        """Keep a row, print it, write the file."""
        if "seconds" in row and "pass" in row:
            row["ratio"] = row["seconds"] / (2 * row["pass"])
        self.rows.append(row)
        print(line(row), flush=True)
        if self.args.json is not None:
            meta = {
                "command": shlex.join(sys.argv), "machine": vars(machine()), "versions": {**summary.versions(), **versions()},
            }  # fmt: skip
            self.args.json.write_text(json.dumps({**meta, "rows": self.rows}, indent=1) + "\n", encoding="utf-8")

    def measure(self, job: Job, network: str, samples: int, others: Sequence[str]) -> None:
        """One network on so many images: this package, then the peers."""
        row = {
            "network": network,
            "samples": samples,
            "threads": self.args.threads,
            "target": job.target,
            "scope": job.scope,
        }
        base = self.child(row, passes, job)
        if "failed" in base:
            self.add({**base, "method": "pass"})
            return
        output = job.model.with_name("pruned.onnx")
        if (processes := self.args.processes) == 1:
            self.add(self.child({**base, "method": OWN}, pruned, job, output))
        else:
            self.add(self.child({**base, "method": f"{OWN}, {processes} processes"}, shared, job, output, processes))
        for name in others:
            self.add(self.child({**base, "method": name}, peer, job, name))
        for importance in SCORED:
            if any(name.startswith(f"tp-{importance}-") for name in others):
                self.add(self.child({**base, "method": f"tp-{importance}, scoring"}, scoring, job, importance))


def blocks(row: Row) -> int | None:
    """How many blocks a network of `networks.blocks` has."""
    kind, *numbers = row["network"].split(":")
    return int(numbers[0]) if kind == "blocks" else None


HEADER = (
    f"{'network':24s} {'images':>6s} {'method':28s} {'MACs':>6s} {'pass':>8s} {'seconds':>8s} {'÷ 2 passes':>10s} "
    f"{'s/block':>8s} {'ms/image':>8s} {'peak MB':>8s}  note"
)


def line(row: Row) -> str:
    """A row of the table."""

    def shown(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    seconds, count = row.get("seconds"), blocks(row)
    cells = (
        f"{shown(row.get('macs'), '.1%'):>6s}", f"{shown(row.get('pass'), '.2f'):>8s}", f"{shown(seconds, '.2f'):>8s}",
        f"{shown(row.get('ratio'), '.2f'):>10s}", f"{shown(seconds and count and seconds / count, '.3f'):>8s}",
        f"{shown(seconds and 1e3 * seconds / row['samples'], '.2f'):>8s}",
        f"{shown(row.get('peak') and row['peak'] / 1e6, '.0f'):>8s}",
    )  # fmt: skip
    return (
        f"{row['network'][-24:]:24s} {row['samples']:6d} {row['method']:28s} {' '.join(cells)}  {row.get('note', '')}"
    )


def steady(rows: Sequence[Row]) -> tuple[bool, str]:
    """Whether seconds per block stay the same from `FROM` blocks on, and a sentence that says so."""
    each = {count: row["seconds"] / count for row in rows if (count := blocks(row) or 0) >= FROM and "seconds" in row}
    if len(each) < 2:
        return True, f"fewer than two networks of {FROM} blocks or more: nothing to compare"
    spread = max(each.values()) / min(each.values())
    holds = spread <= STEADY
    return holds, (
        f"seconds per block from {min(each)} to {max(each)} blocks: the most is {spread:.2f} times the least, "
        f"{'within' if holds else 'MORE than'} {STEADY:g}"
    )


def jobs(args: argparse.Namespace, folder: Path) -> Iterator[tuple[Job, str, int]]:
    """The networks and images to measure, made or decoded in a folder.

    Raises:
        ThinetError: a file or its data can't be read.
    """
    suite = SUITES[args.suite] if args.suite else Suite((), (args.random or 256,))
    for network in args.networks or suite.networks:
        path = Path(network)
        if path.suffix != ".onnx":
            path = folder / "network.onnx"
            onnx.save(networks.make(network), path)
        job = Job(path, folder / "images.npz", args.target, args.scope, parse_shapes(args.shape), args.reconstruct)
        setting = open_model(path, job.shapes)
        for samples in args.samples or suite.samples:
            if args.data is None:
                source = random_source(closed_inputs(setting, job.shapes), samples=samples, seed=0)
            else:
                pixels = Preprocess(mean=floats("--mean", args.mean), std=floats("--std", args.std))
                source = open_source(args.data, setting.inputs, pixels, samples=samples)
            save_images(job, source)
            yield job, network, len(source)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("networks", nargs="*", metavar="NETWORK", help="an .onnx file, or a name of networks.py")
    made.add_argument("--suite", choices=SUITES)
    made.add_argument("--data", help="a folder of images, .npy or .npz (default noise)")
    made.add_argument("--random", type=int, metavar="N", help="so many images of noise (default 256)")
    made.add_argument(
        "--samples", nargs="+", type=int, metavar="N", help="images, of --data or noise; several make rows"
    )
    made.add_argument("--mean")
    made.add_argument("--std")
    made.add_argument(
        "--shape", nargs="*", default=[], metavar="NAME:SIZES", help="sizes of inputs that a file leaves open"
    )
    made.add_argument("--target", default="macs=50%", help="what remains")
    made.add_argument("--scope", choices=("inner", "all"), default="inner")
    made.add_argument("--reconstruct", choices=("joint", "full", "scale", "none"), help="default joint")
    made.add_argument("--peers", nargs="*", metavar="PATTERN", help=f"default none, in the suite {', '.join(PEERS)}")
    made.add_argument("--threads", type=int, default=0, help="default all")
    made.add_argument("--processes", type=int, default=1, help="of this package (default 1)")
    made.add_argument("--limit", type=float, default=3600, help="seconds for one child")
    made.add_argument("--memory", type=float, default=16, help="GiB of data that a child may hold")
    made.add_argument("--json", type=Path)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print; 1 if a child failed or a suite's promise doesn't hold, 2 for a mistake in the options."""
    options = parser()
    args = options.parse_args(arguments)
    if not args.suite and not args.networks:
        options.error("name a network, or a --suite")
    if args.data is not None and args.random is not None:
        options.error("--data and --random contradict each other")
    if args.random is not None and args.samples is not None:
        options.error("--random and --samples contradict each other")
    meter = Meter(args)
    try:
        wanted = args.peers if args.peers is not None else PEERS if args.suite == "peers" else ()
        others = [found.name for found in find(wanted)]
        with tempfile.TemporaryDirectory() as folder:
            print(HEADER)
            for job, network, samples in jobs(args, Path(folder)):
                meter.measure(job, network, samples, others)
    except (ThinetError, UnavailableError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    holds = True
    if args.suite == "depth":
        holds, told = steady([row for row in meter.rows if row["method"] == OWN])
        print(told)
    return 0 if holds and not any("failed" in row for row in meter.rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
