"""Show what a run did: tables for people (rich, to any console) and JSON for programs.

Every figure comes from the `Report` or `Inspection`, or is the ratio of two that do.
"""

import json
import math
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from thinet_onnx import tables, wording
from thinet_onnx.errors import OutputError
from thinet_onnx.result import Fidelity, GroupRow, Inspection, NotPruned, Report, Result, TuneCurve, TuneReport, to_dict

REASON_LINES = 12
"""So many reasons are listed after a run; the rest are counted, and stand in the JSON file."""


def render(result: Report | Inspection | TuneReport, console: Console) -> None:
    """Print `result` to `console`, as wide as the console is."""
    if isinstance(result, Report):
        _render_report(result, console)
    elif isinstance(result, TuneReport):
        _render_tuning(result, console)
    else:
        _render_inspection(result, console)
    for warning in result.warnings:
        console.print()
        tables.line(console, "WARNING: ", warning, style="bold red")


def write_json(result: Result, path: str | os.PathLike[str]) -> None:
    """Write `result` as JSON, whole or not at all.

    Numbers that JSON can't hold (NaN, infinity) become null. Raises OutputError if `path` can't be written.
    """
    plain = json.loads(json.dumps(to_dict(result)), parse_constant=lambda _: None)
    write_whole(_lists_on_one_line(json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False)) + "\n", path)


def write_whole(text: str, path: str | os.PathLike[str]) -> None:
    """Write a text file, whole or not at all (a temporary file beside it, renamed at the end).

    Raises OutputError if `path` can't be written.
    """
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
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise OutputError(f"{path} can't be written: {error.strerror}.") from None


def _lists_on_one_line(text: str) -> str:
    """Fold the indented lists of plain numbers in `text`: 500 kept indices are one line, not 500."""
    parts = text.split("[\n")  # a raw line break never stands inside a JSON string
    for i, part in enumerate(parts[1:], 1):
        head, bracket, tail = part.partition("]")
        parts[i] = part if set(head) & set('{["') else "\r" + " ".join(head.split()) + bracket + tail
    return "[\n".join(parts).replace("[\n\r", "[")


# --- prune -----------------------------------------------------------------------------------------------------------


def _render_report(report: Report, console: Console) -> None:
    tables.line(console, report.model, f" → {report.output}" if report.output else "", style="bold")
    met = "" if report.target_met else ", NOT reached (see below)"
    if (timed := report.latency_target) is not None:
        target = report.target.removeprefix("latency=")
        found = f"{timed.measured:.2f} of the original, measured on {timed.engine} at batch {timed.batch}{met}"
        tables.line(console, f"Latency target {target}: ", found)
    else:
        tables.line(console, f"Target {report.target}: ", met.removeprefix(", ") or "reached")
    tables.print_table(_before_after(report), console)
    if report.fidelity:
        title = "Outputs compared with the original's, on samples that were not used to fit"
        tables.print_table(_fidelity(report.fidelity), console, title)
    if report.groups:
        title = "Channel groups, and the relative error left in the layers that read them"
        tables.print_table(_groups(report.groups), console, title)
    if report.finetune is not None:
        console.print()
        _tuning_line(report.finetune, console)
    _print_not_pruned("Not pruned", report.not_pruned, console, REASON_LINES)
    console.print()
    if not math.isnan(report.oracle_error):
        tables.line(
            console,
            "Check: ",
            f"the cut alone, before any refit, changes the answers by at most {report.oracle_error:.1e} (relative) against the "
            "original with the same channels set to zero.",
        )
    stages = ", ".join(f"{name} {wording.seconds(seconds)}" for name, seconds in report.stages.items())
    tables.line(
        console, f"Took {wording.seconds(report.seconds)}", f" ({stages})" if stages else "", f", seed {report.seed}."
    )


def _before_after(report: Report) -> Table:
    before, after = report.before, report.after
    table = tables.table()
    table.add_column("", no_wrap=True)
    for heading in ("before", "after", "remains"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for label, old, new, unit in (
        ("MACs", before.macs, after.macs, ""),
        ("Parameters", before.params, after.params, ""),
        ("File size", before.bytes, after.bytes, "B"),
    ):
        table.add_row(label, wording.short(old, unit), wording.short(new, unit), wording.share(new, old), "")
    if (latency := report.latency) is not None:
        old_ms, new_ms = latency.before_ms, latency.after_ms
        note = f"{wording.speed(old_ms, new_ms)} (batch {latency.batch}, median of {latency.runs})"
        table.add_row(
            "Latency", wording.milliseconds(old_ms), wording.milliseconds(new_ms), wording.share(new_ms, old_ms), note
        )
    channels = report.channels_before, report.channels_after
    pruned = f"{channels[0] - channels[1]:,} of {channels[0]:,} pruned"
    table.add_row("Channels", f"{channels[0]:,}", f"{channels[1]:,}", wording.share(channels[1], channels[0]), pruned)
    if (accuracy := report.accuracy) is not None:
        points = 100 * (accuracy.after - accuracy.before)
        note = f"{points:+.2f}".replace("-", "−") + f" points (top-1, {accuracy.samples} samples)"
        table.add_row("Accuracy", f"{accuracy.before:.2%}", f"{accuracy.after:.2%}", "", note)
    return table


def _fidelity(rows: Sequence[Fidelity]) -> Table:
    table = tables.table()
    table.add_column("output", overflow="fold")
    for heading in ("cosine", "relative error", "same top-1", "samples"):
        table.add_column(heading, justify="right")
    for row in rows:
        same = "" if row.top1 is None else f"{row.top1:.1%}"
        table.add_row(
            tables.Names((row.output,)), f"{row.cosine:.4f}", f"{row.relative_error:.4f}", same, str(row.samples)
        )
    return table


def _groups(groups: Sequence[GroupRow]) -> Table:
    table = tables.table()
    table.add_column("group", overflow="fold")
    table.add_column("read by", overflow="fold")
    table.add_column("channels", justify="right", no_wrap=True)
    table.add_column("kept", justify="right", no_wrap=True)
    table.add_column("error", justify="right", no_wrap=True)
    for row in groups:
        table.add_row(
            tables.Names((row.name,)),
            tables.Names(row.consumers),
            f"{row.before} → {row.after}",
            wording.share(row.after, row.before, 0),
            "–" if row.error is None else f"{row.error:.4f}",
        )
    return table


# --- finetune --------------------------------------------------------------------------------------------------------


def _render_tuning(report: TuneReport, console: Console) -> None:
    tables.line(console, report.pruned, f" → {report.output}" if report.output else "", style="bold")
    curve = report.finetune
    _tuning_line(curve, console)
    first, best = curve.first, curve.best
    table = tables.table()
    table.add_column("", no_wrap=True)
    for heading in ("before", "after"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    held = wording.plural(report.held, "held-out item")
    table.add_row("Loss", f"{first['loss']:.4g}", f"{best['loss']:.4g}", f"on {held}")
    if first["agreement"] is not None:
        table.add_row("Same top-1", f"{first['agreement']:.1%}", f"{best['agreement']:.1%}", "as the original")
    after = {row.output: row for row in report.fidelity}
    for row in report.fidelity_before:
        now = after[row.output].relative_error
        table.add_row("Relative error", f"{row.relative_error:.4f}", f"{now:.4f}", tables.text(f"of {row.output}"))
    if (scores := report.scores) is not None:
        note = f"top-1, {scores.samples} samples; the original has {scores.original:.2%}"
        table.add_row("Accuracy", f"{scores.before:.2%}", f"{scores.after:.2%}", note)
    tables.print_table(table, console)
    console.print()
    if report.left_out:
        tables.line(
            console, "Trained in part: ", f"no PyTorch twin for {wording.names(report.left_out, 3)}.", style="bold"
        )
    tables.line(
        console,
        "Check: ",
        f"PyTorch and ONNX Runtime differ by at most {report.difference:.1e} (relative) on the result.",
    )
    tables.line(console, f"Took {wording.seconds(report.seconds)}, seed {report.options['seed']}.")


def _tuning_line(curve: TuneCurve, console: Console) -> None:
    kept = (
        f"kept the weights after step {curve.best_step}" if curve.best_step else "nothing got better, so none was kept"
    )
    losses = f"loss {curve.first['loss']:.4g} → {curve.best['loss']:.4g} on held-out items"
    tables.line(console, "Fine-tuned: ", f"{wording.plural(curve.total, 'step')}, {kept}; {losses}.", style="bold")


# --- inspect ---------------------------------------------------------------------------------------------------------


def _render_inspection(found: Inspection, console: Console) -> None:
    tables.line(console, found.model, style="bold")
    table = tables.table()
    table.add_column("", no_wrap=True)
    table.add_column("all", justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    removable = f"{found.removable:,} ({wording.share(found.removable, found.channels)}) can be removed"
    table.add_row("Channels", f"{found.channels:,}", f"{removable}, in {wording.plural(len(found.groups), 'group')}")
    reachable = (
        f"{wording.short(found.macs_removable)} ({wording.share(found.macs_removable, found.macs)}) can be removed"
    )
    table.add_row("MACs", wording.short(found.macs), reachable)
    table.add_row("Parameters", wording.short(found.params), "")
    tables.print_table(table, console)
    if found.macs_inner is not None and found.removable_inner not in (None, found.removable):
        console.print()
        tables.line(
            console,
            f"Without the residual streams, which prune takes under --scope all only: {found.removable_inner:,} channels, "
            f"{wording.short(found.macs_inner)} of the MACs.",
        )
    if found.groups:
        table = tables.table()
        table.add_column("made by", overflow="fold")
        table.add_column("read by", overflow="fold")
        table.add_column("channels", justify="right", no_wrap=True)
        table.add_column("MACs at\nstake", justify="right")
        for row in found.groups:
            made_by, read_by = tables.Names(row.producers or (row.name,)), tables.Names(row.consumers)
            table.add_row(made_by, read_by, str(row.before), wording.short(row.macs))
        tables.print_table(table, console, "Channel groups: what is cut from one member is cut from all of them")
    _print_not_pruned("Can't be pruned", found.not_pruned, console, None)


def by_reason(rows: Iterable[NotPruned]) -> list[tuple[str, dict[str, int]]]:
    """Reasons, most channels first, each with the channels of every producer."""
    found: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for row in rows:
        found[row.reason][row.producer] += row.channels
    return sorted(found.items(), key=lambda item: -sum(item[1].values()))


# --- shared ----------------------------------------------------------------------------------------------------------


def _print_not_pruned(title: str, rows: Iterable[NotPruned], console: Console, limit: int | None) -> None:
    """One entry for each reason, most channels first: how many channels, why, and whose."""
    ranked = by_reason(rows)
    if not ranked:
        return
    shown = len(ranked) if limit is None or len(ranked) <= limit else limit - 1
    grid = Table.grid(padding=(0, 2))
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(overflow="fold")
    for reason, producers in ranked[:shown]:
        names = wording.names(tuple(producers), 3 if limit else len(producers))
        cell = tables.text(reason) + tables.text(f" ({names})", "dim")
        grid.add_row(wording.plural(sum(producers.values()), "channel"), cell)
    if hidden := ranked[shown:]:
        channels = sum(sum(producers.values()) for _, producers in hidden)
        grid.add_row(wording.plural(channels, "channel"), f"for {len(hidden)} more reasons, see --json")
    console.print()
    tables.line(console, title, style="bold")
    console.print(Padding(grid, (0, 0, 0, 2)))
