"""Show what a run did: tables for people (rich, to any console) and JSON for programs.

Every figure comes from the `Report` or `Inspection`, or is the ratio of two that do. Names of nodes and files are put
in as plain text: a name such as `conv[0]` must not be read as markup.
"""

import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from thinet_onnx.errors import OutputError
from thinet_onnx.result import Fidelity, GroupRow, Inspection, NotPruned, Report, to_dict

REASON_LINES = 12
"""So many reasons are listed after a run; the rest are counted, and stand in the JSON file."""


def render(result: Report | Inspection, console: Console) -> None:
    """Print `result` to `console`, as wide as the console is."""
    if isinstance(result, Report):
        _render_report(result, console)
    else:
        _render_inspection(result, console)
    for warning in result.warnings:
        console.print()
        _line(console, "WARNING: ", warning, style="bold red")


def write_json(result: Report | Inspection, path: str | os.PathLike[str]) -> None:
    """Write `result` as JSON, whole or not at all (a temporary file beside it, renamed at the end).

    Numbers that JSON can't hold (NaN, infinity) become null. Raises OutputError if `path` can't be written.
    """
    plain = json.loads(json.dumps(to_dict(result)), parse_constant=lambda _: None)
    text = _lists_on_one_line(json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False)) + "\n"
    target = Path(os.path.realpath(path))
    check_writable(target)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", errors="replace")
        temporary.replace(target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(f"{path} can't be written: {error.strerror or error}.") from error


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise OutputError if a file can't be made at `path`: better known before a long run than after it."""
    target = Path(path)
    try:
        if target.is_dir():
            raise OutputError(f"{path} can't be written: it is a folder, name a file in it.")
        if target.exists() and not target.is_file():
            raise OutputError(f"{path} can't be written: it is a device or a pipe, name a file.")
        if not target.parent.is_dir():
            raise OutputError(f"{path} can't be written: there is no folder {target.parent}.")
    except OSError as error:
        raise OutputError(f"{path} can't be written: {error.strerror}.") from None
    if not os.access(target.parent, os.W_OK):
        raise OutputError(f"{path} can't be written: no permission to write in {target.parent}.")


def _lists_on_one_line(text: str) -> str:
    """Fold the indented lists of plain numbers in `text`: 500 kept indices are one line, not 500."""
    parts = text.split("[\n")  # a raw line break never stands inside a JSON string
    for i, part in enumerate(parts[1:], 1):
        head, bracket, tail = part.partition("]")
        parts[i] = part if set(head) & set('{["') else "\r" + " ".join(head.split()) + bracket + tail
    return "[\n".join(parts).replace("[\n\r", "[")


# --- prune -----------------------------------------------------------------------------------------------------------


def _render_report(report: Report, console: Console) -> None:
    _line(console, report.model, f" → {report.output}" if report.output else "", style="bold")
    _line(console, f"Target {report.target}: ", "reached" if report.target_met else "NOT reached (see below)")
    _print_table(_before_after(report), console)
    if report.fidelity:
        title = "Outputs compared with the original's, on samples that were not used to fit"
        _print_table(_fidelity(report.fidelity), console, title)
    if report.groups:
        title = "Channel groups, and the relative error left in the layers that read them"
        _print_table(_groups(report.groups), console, title)
    _print_not_pruned("Not pruned", report.not_pruned, console, REASON_LINES)
    console.print()
    if not math.isnan(report.oracle_error):
        _line(
            console,
            "Check: ",
            f"cut without refitting, the file differs by at most {report.oracle_error:.1e} (relative) from the original"
            " with the removed channels zeroed.",
        )
    stages = ", ".join(f"{name} {_seconds(seconds)}" for name, seconds in report.stages.items())
    _line(console, f"Took {_seconds(report.seconds)}", f" ({stages})" if stages else "", f", seed {report.seed}.")


def _before_after(report: Report) -> Table:
    before, after = report.before, report.after
    table = _table()
    table.add_column("", no_wrap=True)
    for heading in ("before", "after", "remains"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for label, old, new, unit in (
        ("MACs", before.macs, after.macs, ""),
        ("Parameters", before.params, after.params, ""),
        ("File size", before.bytes, after.bytes, "B"),
    ):
        table.add_row(label, _short(old, unit), _short(new, unit), _share(new, old), "")
    if (latency := report.latency) is not None:
        old_ms, new_ms = latency.before_ms, latency.after_ms
        note = f"{_speed(old_ms, new_ms)} (batch {latency.batch}, median of {latency.runs})"
        table.add_row("Latency", _milliseconds(old_ms), _milliseconds(new_ms), _share(new_ms, old_ms), note)
    channels = report.channels_before, report.channels_after
    pruned = f"{channels[0] - channels[1]} of {channels[0]} pruned"
    table.add_row("Channels", str(channels[0]), str(channels[1]), _share(channels[1], channels[0]), pruned)
    if (accuracy := report.accuracy) is not None:
        points = 100 * (accuracy.after - accuracy.before)
        note = f"{points:+.2f} points (top-1, {accuracy.samples} samples)".replace("-", "−", 1)
        table.add_row("Accuracy", f"{accuracy.before:.2%}", f"{accuracy.after:.2%}", "", note)
    return table


def _fidelity(rows: Sequence[Fidelity]) -> Table:
    table = _table()
    table.add_column("output", overflow="fold")
    for heading in ("cosine", "relative error", "same top-1", "samples"):
        table.add_column(heading, justify="right")
    for row in rows:
        same = "" if row.top1 is None else f"{row.top1:.1%}"
        table.add_row(
            Text(printable(row.output)), f"{row.cosine:.4f}", f"{row.relative_error:.4f}", same, str(row.samples)
        )
    return table


def _groups(groups: Sequence[GroupRow]) -> Table:
    table = _table()
    table.add_column("group", overflow="fold")
    table.add_column("read by", overflow="fold")
    table.add_column("channels", justify="right", no_wrap=True)
    table.add_column("kept", justify="right", no_wrap=True)
    table.add_column("error", justify="right", no_wrap=True)
    for row in groups:
        table.add_row(
            Text(printable(row.name)),
            _cell(row.consumers),
            f"{row.before} → {row.after}",
            _share(row.after, row.before, 0),
            "–" if row.error is None else f"{row.error:.4f}",
        )
    return table


# --- inspect ---------------------------------------------------------------------------------------------------------


def _render_inspection(found: Inspection, console: Console) -> None:
    _line(console, found.model, style="bold")
    table = _table()
    table.add_column("", no_wrap=True)
    table.add_column("all", justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    removable = f"{found.removable} ({_share(found.removable, found.channels)}) can be removed"
    table.add_row("Channels", str(found.channels), f"{removable}, in {_plural(len(found.groups), 'group')}")
    reachable = f"{_short(found.macs_removable)} ({_share(found.macs_removable, found.macs)}) can be removed"
    table.add_row("MACs", _short(found.macs), reachable)
    table.add_row("Parameters", _short(found.params), "")
    _print_table(table, console)
    if found.groups:
        table = _table()
        table.add_column("made by", overflow="fold")
        table.add_column("read by", overflow="fold")
        table.add_column("channels", justify="right", no_wrap=True)
        table.add_column("MACs at\nstake", justify="right")
        for row in found.groups:
            made_by, read_by = _cell(row.producers or (row.name,)), _cell(row.consumers)
            table.add_row(made_by, read_by, str(row.before), _short(row.macs))
        _print_table(table, console, "Channel groups: what is cut from one member is cut from all of them")
    _print_not_pruned("Can't be pruned", found.not_pruned, console, None)


# --- shared ----------------------------------------------------------------------------------------------------------


def _print_not_pruned(title: str, rows: Iterable[NotPruned], console: Console, limit: int | None) -> None:
    """One entry for each reason, most channels first: how many channels, why, and whose."""
    by_reason: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for row in rows:
        by_reason[row.reason][row.producer] += row.channels
    if not by_reason:
        return
    ranked = sorted(by_reason.items(), key=lambda item: -sum(item[1].values()))
    shown = len(ranked) if limit is None or len(ranked) <= limit else limit - 1
    grid = Table.grid(padding=(0, 2))
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(overflow="fold")
    for reason, producers in ranked[:shown]:
        names = _names(tuple(producers), 3 if limit else len(producers))
        cell = Text.assemble(printable(reason), (printable(f" ({names})"), "dim"))
        grid.add_row(_plural(sum(producers.values()), "channel"), cell)
    if hidden := ranked[shown:]:
        channels = sum(sum(producers.values()) for _, producers in hidden)
        grid.add_row(_plural(channels, "channel"), f"for {len(hidden)} more reasons, see --json")
    console.print()
    _line(console, title, style="bold")
    console.print(Padding(grid, (0, 0, 0, 2)))


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True, padding=(0, 1))


def _print_table(table: Table, console: Console, title: str = "") -> None:
    """The table under its title; the title is no part of it, so that a narrow table doesn't wrap it."""
    console.print()
    if title:
        _line(console, title, style="bold")
    console.print(table)


def _line(console: Console, *parts: str, style: str = "") -> None:
    """One paragraph of plain text; the first part carries the style."""
    first, *others = map(printable, parts)
    console.print(Text.assemble((first, style), *others), soft_wrap=False)


def printable(text: str) -> str:
    """Text with nothing in it that would move the cursor: names come from files that anybody may have made."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _cell(names: Sequence[str]) -> Text:
    """Names for a column of a table, two lines of them at most."""
    shown = list(map(printable, names))
    return Text("\n".join(shown) if len(shown) <= 2 else f"{shown[0]}\nand {len(shown) - 1} more")


def _names(names: Sequence[str], limit: int) -> str:
    """`a, b and 3 more`."""
    if len(names) <= limit + 1:
        return ", ".join(names)
    return f"{', '.join(names[:limit])} and {len(names) - limit} more"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _share(part: float, whole: float, digits: int = 1) -> str:
    return f"{part / whole:.{digits}%}" if whole else "–"


def _short(value: float, unit: str = "") -> str:
    """Three figures and a decimal prefix: 41234567 is `41.2 M`."""
    prefix = ""
    for larger in ("k", "M", "G", "T"):
        if abs(value) < 999.5:
            break
        value, prefix = value / 1000, larger
    digits = 0 if not prefix or abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:.{digits}f} {prefix}{unit}".rstrip()


def _milliseconds(value: float) -> str:
    return f"{value:.3g} ms" if value < 100 else f"{value:.0f} ms"


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 60 else f"{int(value) // 60} min {int(value) % 60} s"


def _speed(before: float, after: float) -> str:
    """How the time changed, in words: `1.52× faster`."""
    if not before or not after:
        return "not measurable"
    return f"{before / after:.2f}× faster" if before >= after else f"{after / before:.2f}× slower"
