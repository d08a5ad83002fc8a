"""One-shot accuracy: this package and its peers on the same model, the same images and the same share of the MACs.

    python benchmarks/accuracy.py --suite bundled|cifar|imagenet|detectors [--shared FOLDER] [--json FILE] [--plot FILE.png]
    python benchmarks/accuracy.py --model M.onnx --calibration DATA --test DATA --targets 70 50 33 --scope inner [...]
    python benchmarks/accuracy.py --suite bundled --targets 50 --ablate --peers

Every suite but `bundled` takes models and data from a folder with `zoo/` and `data/` (`accuracy_cases.py` names the files).
Peers (`peers.py`) are named by patterns: `--peers 'onnxsim-*' tp-fpgm-global+bn`; `--peers` alone runs none. They take onnxsim,
torch and torch-pruning, which this package doesn't. `--ablate` runs this package with each ingredient changed alone
(`METHODS` in `accuracy_cases.py`); `--methods 'name:option=value,…'` tries options that are not in that table.

A row says: which scope was asked for and which was really cut, the MACs that remain (this package's count of the resulting
ONNX file, for everyone), top-1 accuracy, agreement with the original's top-1, the mean relative error of the outputs, test
images, seed, and seconds of the pruning alone. Where a peer stops above the target, this package is run at what the peer
reaches, too. Rows are written to --json as they come; --resume keeps those that are there.
"""

import argparse
import dataclasses
import json
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ablation
import accuracy_plot
from accuracy_cases import METHODS, SEARCH, SUITES, Case, Method, methods
from accuracy_measure import Reference, open_data
from peers import LANDED, Outcome, Peer, Problem, UnavailableError, find, search, versions

from thinet_onnx import pipeline, summary
from thinet_onnx.data import Source
from thinet_onnx.errors import ThinetError
from thinet_onnx.options import PruneOptions, Target

Row = dict[str, Any]
KEYS = ("model", "scope", "target", "method", "samples", "images", "seed")  # what --resume goes by
COLUMNS = ("accuracy", "agreement", "error", "psnr", "iou")


def own(
    method: Method, case: Case, scope: str, share: float, source: Source, seed: int, reference: Reference
) -> Outcome:
    """One run of this package."""
    changes = dict(method.overrides)
    options = PruneOptions(target=Target("macs", share, True), scope=scope, seed=seed, shapes=dict(case.shapes))  # type: ignore[arg-type]
    if changes.get("keep") is not None:
        changes["target"] = None
    if changes.get("keep") == SEARCH:
        changes["keep"] = _uniform_share(dataclasses.replace(options, target=None, keep=0.5), case, share, reference)
    started = time.perf_counter()
    with ablation.switched_off(changes.pop("without", "")):
        result = pipeline.prune(case.model, source, dataclasses.replace(options, **changes))
    seconds = time.perf_counter() - started
    told = [f"{name} {value}" for name, value in changes.items() if name == "keep"]
    return Outcome(result.model, seconds, "; ".join([*told, *result.report.warnings]))


def _uniform_share(options: PruneOptions, case: Case, share: float, reference: Reference) -> float:
    """The `keep` of all groups that leaves the MACs asked for: widths don't depend on data, so noise will do."""

    def remains(ratio: float) -> float:
        plain = dataclasses.replace(options, keep=1 - ratio, method="random", reconstruct="none", samples=2)
        return reference.remains(pipeline.prune(case.model, None, plain, random_data=True).model)

    return round(1 - search(remains, share), 4)


class Bench:
    """The rows so far, on screen and in a file."""

    def __init__(self, file: Path | None, resume: bool) -> None:
        self.file = file
        kept = resume and file is not None and file.exists()
        self.rows: list[Row] = json.loads(file.read_text())["rows"] if kept else []  # type: ignore[union-attr]

    def find(self, **wanted: Any) -> Row | None:
        """The row with these values, if there is one."""
        return next((row for row in self.rows if all(row.get(key) == value for key, value in wanted.items())), None)

    def add(self, row: Row) -> None:
        """Keep a row, print it, and write the file."""
        self.rows.append(row)
        print(line(row), flush=True)
        if self.file is not None:
            meta = {"command": shlex.join(sys.argv), "versions": {**summary.versions(), **versions()}}
            self.file.write_text(json.dumps({**meta, "rows": self.rows}, indent=1) + "\n")


def line(row: Row) -> str:
    """A row of the table."""
    macs = "–" if row.get("macs") is None else f"{100 * row['macs']:.1f}"
    target = "–" if row["target"] is None else f"{100 * row['target']:.1f}"
    shown = [
        "–" if row.get(name) is None else f"{row[name]:.2f}" if name == "psnr" else f"{100 * row[name]:.2f}"
        for name in COLUMNS
    ]
    seconds = "–" if row.get("seconds") is None else f"{row['seconds']:.1f}"
    return (
        f"{row['model']:24s} {row['scope']:5s} {row.get('cut', '–'):5s} {target:>6s} {macs:>6s}  {row['method']:28s} "
        f"{' '.join(f'{text:>9s}' for text in shown)} {row['samples']:>6d} {row['images']:>6d} {row['seed']:>4d} "
        f"{seconds:>8s}  {row.get('note', '')[:100]}"
    )


def header() -> str:
    """The names of the table's columns; all figures but PSNR are percent."""
    return (
        f"{'model':24s} {'scope':5s} {'cut':5s} {'target':>6s} {'MACs':>6s}  {'method':28s} "
        f"{' '.join(f'{name:>9s}' for name in COLUMNS)} {'calib.':>6s} {'tests':>6s} {'seed':>4s} {'seconds':>8s}  note"
    )


class Runner:
    """One case: everyone on the same images."""

    def __init__(self, case: Case, bench: Bench, seed: int) -> None:
        self.case, self.bench, self.seed = case, bench, seed
        self.source, test = open_data(case, seed)
        self.reference = Reference(case, test)
        self.memory: dict[Any, Any] = {}

    def base(self, method: str, kind: str, scope: str, share: float | None) -> Row:
        """What a row says before anything is measured."""
        return {
            "model": self.case.model.stem, "kind": kind, "scope": scope, "target": share, "method": method,
            "samples": len(self.source), "images": len(self.reference.test), "seed": self.seed,
        }  # fmt: skip

    def original(self) -> None:
        """The row of the network as it is."""
        row = self.base("original", "original", "", None)
        if self.bench.find(**{key: row[key] for key in KEYS}) is None:
            self.bench.add({**row, **self.reference.measure(self.case.model)})

    def run(self, row: Row, prune: Callable[[], Outcome]) -> Row:
        """Prune, measure and keep a row, unless it is there already; a failure is a row, too."""
        if (old := self.bench.find(**{key: row[key] for key in KEYS})) is not None:
            return old
        try:
            outcome = prune()
            found = self.reference.measure(outcome.model)
            row = {**row, **found, "seconds": outcome.seconds, "note": outcome.note}
            if row["target"] is not None and abs(row["macs"] - row["target"]) > LANDED:
                row["note"] = f"misses the target by {100 * (row['macs'] - row['target']):+.1f} points; {row['note']}"
        except (UnavailableError, ThinetError) as error:
            row["note"] = f"refuses: {error}"
        except Exception as error:  # a crash of a peer is a finding
            if row["kind"] == "own":
                raise
            row["note"] = f"crashes: {type(error).__name__}: {error}"
            row["traceback"] = traceback.format_exc()
        self.bench.add(row)
        return row

    def peer(self, peer: Peer, scope: str, share: float) -> Row:
        """One peer at one target."""
        problem = Problem(
            self.case.model, self.source, share, scope, self.reference.remains, self.case.shapes, self.memory  # type: ignore[arg-type]
        )  # fmt: skip
        return self.run(
            self.base(peer.name, "peer", scope if peer.scoped else "any", share), lambda: peer.prune(problem)
        )

    def ours(self, method: Method, scope: str, share: float) -> Row:
        """One way of this package at one target."""
        return self.run(
            self.base(method.name, "own", scope, share),
            lambda: own(method, self.case, scope, share, self.source, self.seed, self.reference),
        )

    def all(self, ways: Sequence[Method], others: Sequence[Peer]) -> None:
        """Every target and scope."""
        self.original()
        for share in self.case.targets:
            rows = [self.peer(peer, scope, share) for peer, scope in self._pairs(others)]
            stops = sorted({round(row["macs"], 3) for row in rows if share + LANDED < row.get("macs", 0) < 1 - LANDED})
            for scope in self.case.scopes:
                for method in ways:
                    self.ours(method, scope, share)
                for stop in stops if ways else ():
                    self.ours(ways[0], scope, stop)

    def _pairs(self, others: Sequence[Peer]) -> Iterator[tuple[Peer, str]]:
        for scope in self.case.scopes:
            yield from ((peer, scope) for peer in others if peer.scoped or scope == self.case.scopes[0])


def cases(args: argparse.Namespace) -> list[Case]:
    """What to run, from the suite or from the options."""
    changes: dict[str, Any] = {}
    if args.targets:
        changes["targets"] = tuple(target / 100 for target in args.targets)
    if args.scope:
        changes["scopes"] = tuple(args.scope)
    for name in ("samples", "tests", "labels", "task"):
        if getattr(args, name) is not None:
            changes[name] = getattr(args, name)
    if args.suite:
        made = SUITES[args.suite](args.shared)
        chosen = [case for case in made if not args.only or case.model.stem in args.only]
        return [dataclasses.replace(case, **changes) for case in chosen]
    if not (args.model and args.calibration and args.test):
        raise SystemExit("say --suite, or all of --model, --calibration and --test")
    pixels = {
        name: getattr(args, name)
        for name in ("mean", "std", "scale", "layout", "resize")
        if getattr(args, name) is not None
    }
    return [
        Case(
            args.model,
            args.calibration,
            args.test,
            **{"targets": (0.5,), "pixels": pixels, "shapes": shapes(args.shape), **changes},
        )
    ]


def shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Parse `--shape input:1,3,224,224`."""
    from thinet_onnx.options import parse_shapes  # noqa: PLC0415

    return parse_shapes(list(texts))


def numbers(text: str) -> tuple[float, ...]:
    """Parse `0.485,0.456,0.406`."""
    return tuple(float(part) for part in text.split(","))


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = made.add_argument_group("what")
    what.add_argument("--suite", choices=SUITES)
    what.add_argument("--shared", type=Path, default=Path(), help="folder with zoo/ and data/, for the suites")
    what.add_argument("--only", nargs="*", default=[], metavar="MODEL", help="of the suite, these models alone")
    what.add_argument("--model", type=Path)
    what.add_argument("--calibration", type=Path, help="a folder of images, .npy or .npz")
    what.add_argument("--test", type=Path, help="the same; may be the same place, then the rest of it tests")
    what.add_argument("--samples", type=int, help="calibration images (default 1024, or the suite's)")
    what.add_argument("--tests", type=int, help="test images (default all, or the suite's)")
    what.add_argument(
        "--labels", choices=("data", "prefix", "none"), help="classes: of the data, of file names, or none"
    )
    what.add_argument("--task", choices=("scores", "image", "mask", "other"), help="what an output is")
    for name in ("mean", "std"):
        what.add_argument(f"--{name}", type=numbers)
    what.add_argument("--scale", type=float)
    what.add_argument("--layout", choices=("auto", "nchw", "nhwc"))
    what.add_argument("--resize", type=lambda text: tuple(int(part) for part in text.split("x")), metavar="HxW")
    what.add_argument(
        "--shape", nargs="*", default=[], metavar="NAME:SIZES", help="sizes of inputs that the file leaves open"
    )
    how = made.add_argument_group("how")
    how.add_argument("--targets", nargs="+", type=float, metavar="PERCENT", help="of the MACs that are to remain")
    how.add_argument("--scope", nargs="+", choices=("inner", "all"))
    how.add_argument("--methods", nargs="*", default=["thinet-onnx"], metavar="NAME[:OPTION=VALUE,…]",
                     help=f"of this package: {', '.join(name for name, _ in METHODS)}; none if empty")  # fmt: skip
    how.add_argument("--ablate", action="store_true", help="all of these methods")
    how.add_argument("--peers", nargs="*", default=None, metavar="PATTERN", help="default the suite's; none if empty")
    how.add_argument("--seed", type=int, default=0)
    out = made.add_argument_group("results")
    out.add_argument("--json", type=Path)
    out.add_argument("--resume", action="store_true", help="keep the rows that --json has, run the others")
    out.add_argument("--plot", type=Path)
    return made


def main() -> None:
    """Run the cases and print the table."""
    options = parser()
    args = options.parse_args()
    try:
        ways = methods([name for name, _ in METHODS] if args.ablate else args.methods)
        work = [(case, find(case.peers if args.peers is None else args.peers)) for case in cases(args)]
    except (ValueError, UnavailableError) as error:
        options.error(str(error))
    bench = Bench(args.json, args.resume)
    print(header())
    for row in bench.rows:
        print(line(row))
    for case, others in work:
        Runner(case, bench, args.seed).all(ways, others)
    if args.plot:
        accuracy_plot.draw(bench.rows, args.plot)


if __name__ == "__main__":
    main()
