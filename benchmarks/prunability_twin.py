"""The same files as PyTorch modules: `prunability.py --twin`. Needs torch.

For each file, on one sample: the largest difference between the twin and ONNX Runtime's plain run, relative to the largest
value of the output; how many constants would be trained, and of how many numbers; those whose gradient isn't finite, and
those whose gradient is zero everywhere; whether a module that goes straight back gives the file's initializers byte for
byte. A file fails if the difference is above 1e-4 (1e-2 with 16-bit floats, one step of the requantisation with 8-bit
integers), if a gradient is zero or not finite, or if a byte differs. Operators without a twin are named; then a part of the
network was compared.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import onnx
from common import GIB, ChildError, in_child
from prunability import REFUSED, number, ready, tolerance, write

from thinet_onnx.graph import load


@dataclass
class Row:
    """All that is known of one file's twin."""

    name: str
    cnn: bool = True
    verdict: str = ""
    reason: str = ""
    difference: float | None = None
    tolerance: float = 1e-4
    weights: int = 0
    parameters: int = 0
    dead: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    seconds: float | None = None


def one(path: str, entry: dict[str, Any], images: str | None) -> dict[str, Any]:
    """In a child: one file."""
    import torch  # noqa: PLC0415  the other sweeps don't need it

    from thinet_onnx.torch_twin import twin_check  # noqa: PLC0415

    torch.set_num_threads(1)
    setting, _, source, _ = ready(path, entry, images, 2)
    feeds = source.batch([0])
    started = time.perf_counter()
    found = twin_check(setting.model, feeds)
    return {
        **asdict(found), "tolerance": tolerance(setting, feeds), "seconds": time.perf_counter() - started,
        "changed": changed(load(path), whole=not found.left_out),
    }  # fmt: skip


def changed(model: onnx.ModelProto, *, whole: bool) -> list[str]:
    """Initializers that are other bytes after the way into PyTorch and back, without training; there and back is saved, too."""
    from thinet_onnx.graph import Graph  # noqa: PLC0415
    from thinet_onnx.torch_twin import find_cut, from_torch, to_torch  # noqa: PLC0415
    from thinet_onnx.torch_twin.convert import readable  # noqa: PLC0415

    model = readable(model)
    cut = find_cut(Graph(model))
    twin = to_torch(model) if whole else to_torch(model, starts=cut.starts, ends=cut.ends)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "again.onnx"
        onnx.save(from_torch(twin, model), file)
        again = {tensor.name: tensor for tensor in onnx.load(file).graph.initializer}
    before = {tensor.name: tensor for tensor in model.graph.initializer}
    return sorted(
        name
        for name in before.keys() | again.keys()
        if name not in before
        or name not in again
        or before[name].SerializeToString() != again[name].SerializeToString()
    )


def measure(path: Path, entry: dict[str, Any], args: argparse.Namespace) -> Row:
    row = Row(path.stem, entry.get("cnn", True))
    images = str(args.images) if args.images else None
    try:
        vars(row).update(in_child(one, str(path), entry, images, seconds=args.limit, memory=args.memory * GIB))
    except ChildError as error:
        row.verdict = "hang" if error.kind == "hang" else "refused" if error.kind in REFUSED else "FAIL"
        row.reason = str(error) if row.verdict != "FAIL" else f"{error.kind}: {error}"
        return row
    assert row.difference is not None
    wrong = [f"{len(names)} {what}: {names[0]}" for names, what in (
        (row.broken, "gradients not finite"), (row.dead, "gradients zero"), (row.changed, "initializers changed"),
    ) if names]  # fmt: skip
    if not row.difference <= row.tolerance:
        wrong.insert(0, f"differs by {row.difference:.1e}, more than {row.tolerance:.1e}")
    row.verdict = "FAIL" if wrong else "part" if row.left_out else "ok"
    row.reason = "; ".join([*wrong, *(f"no twin of {name}" for name in row.left_out[:2])])
    return row


HEADER = (
    f"{'file':38s} {'differs':>8s} {'weights':>7s} {'numbers':>11s} {'zero':>4s} {'not finite':>10s} {'changed':>7s} "
    f"{'time':>6s}  verdict"
)


def line(row: Row) -> str:
    return (
        f"{row.name[:38]:38s} {number(row.difference, '.1e'):>8s} {row.weights:7d} {row.parameters:11,d} {len(row.dead):4d} "
        f"{len(row.broken):10d} {len(row.changed):7d} {number(row.seconds, '.1f'):>4s} s  {row.verdict}"
        + (f": {row.reason[:140]}" if row.reason else "")
    )


def summed_up(rows: Sequence[Row]) -> str:
    lines = []
    for title, some in (("convolutional", [r for r in rows if r.cnn]), ("other", [r for r in rows if not r.cnn])):
        counts = {verdict: sum(row.verdict == verdict for row in some) for verdict in sorted({r.verdict for r in some})}
        lines.append(
            f"{len(some)} {title} files: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
        )
    exact = [(row.difference, row.name) for row in rows if row.difference is not None and row.tolerance <= 1e-4]
    if exact:
        lines.append("worst difference in float32 {:.1e} ({})".format(*max(exact)))
    lines.append(
        f"{sum(row.weights for row in rows):,} weights, {sum(len(row.dead) for row in rows)} without a gradient"
    )
    return "\n".join(lines)


def main(files: Sequence[tuple[Path, dict[str, Any]]], args: argparse.Namespace) -> int:
    rows = []
    print(HEADER)
    for path, entry in files:
        rows.append(measure(path, entry, args))
        print(line(rows[-1]), flush=True)
    print(summed_up(rows))
    write(args.json, [asdict(row) for row in rows])
    return 1 if any(row.verdict in ("FAIL", "hang") for row in rows) else 0
