"""Show what `verify` found."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from thinet_onnx import tables, wording
from thinet_onnx.acceptance.result import BARS, Check, EngineAnswer, OutputRow, VerifyReport, WorstInput
from thinet_onnx.check_options import CALLED
from thinet_onnx.readiness.findings import Readiness

_MARKS = {"passed": ("ok", "green"), "failed": ("FAILED", "bold red"), "skipped": ("–", "dim")}
_LEVELS = {"fail": "FAILED", "warn": "mind", "note": "note"}


def render(report: VerifyReport, console: Console) -> None:
    """Print `report` to `console`, as wide as the console is."""
    tables.line(console, report.pruned, f", made from {report.reference}", style="bold")
    if report.before is not None:
        tables.print_table(_costs(report), console)
    if report.outputs and report.samples:
        title = f"Outputs compared with the original's, on {report.data}"
        tables.print_table(_outputs(report.outputs), console, title)
    if report.worst:
        tables.print_table(_worst(report.worst), console, "Inputs with the largest errors")
    tables.print_table(_checks(report.checks), console, "Checks")
    for found in report.readiness:
        answer = next((entry for entry in report.engines if entry.engine == found.engine), None)
        _readiness(found, answer, console)
    for warning in report.warnings:
        console.print()
        tables.line(console, "WARNING: ", warning, style="bold red")
    console.print()
    _verdict(report, console)


def _costs(report: VerifyReport) -> Table:
    before, after = report.before, report.after
    assert before is not None
    table = tables.table()
    table.add_column("", no_wrap=True)
    for heading in ("before", "after", "remains"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    for label, name, unit in (("MACs", "macs", ""), ("Parameters", "params", ""), ("File size", "bytes", "B")):
        old = getattr(before, name)
        new = None if after is None else getattr(after, name)
        figures = ("–", "–") if new is None else (wording.short(new, unit), wording.share(new, old))
        table.add_row(label, wording.short(old, unit), *figures, "")
    if (speed := report.speed) is not None:
        ratio = speed.ratio
        change = wording.speed(1, ratio.median) if ratio.clear else "no clear difference"
        note = (
            f"{change} (batch {speed.batch}, median of {speed.before.runs}; quartiles {ratio.low:.0%}–{ratio.high:.0%})"
        )
        times = wording.milliseconds(speed.before.median_ms), wording.milliseconds(speed.after.median_ms)
        table.add_row("Latency", *times, f"{ratio.median:.1%}", note)
    if (accuracy := report.accuracy) is not None:
        points = 100 * (accuracy.after - accuracy.before)
        note = f"{points:+.2f}".replace("-", "−") + f" points (top-1, {accuracy.samples} samples)"
        table.add_row("Accuracy", f"{accuracy.before:.2%}", f"{accuracy.after:.2%}", "", note)
    return table


def _outputs(rows: Sequence[OutputRow]) -> Table:
    table = tables.table()
    table.add_column("output", overflow="fold")
    for heading in ("cosine", "relative error", "same top-1", "samples"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for row in rows:
        notes = []
        if row.equal is not None:
            notes.append(f"{row.equal:.2%} of the elements are equal")
        if row.unlike:
            notes.append(f"{wording.plural(row.unlike, 'input')} with another shape, not compared")
        table.add_row(
            tables.Names((row.output,)), _figure(row.cosine), _figure(row.relative_error), _percent(row.top1), str(row.samples),
            "; ".join(notes),
        )  # fmt: skip
    return table


def _worst(rows: Sequence[WorstInput]) -> Table:
    table = tables.table()
    table.add_column("input", overflow="fold")
    table.add_column("output", overflow="fold")
    table.add_column("relative error", justify="right", no_wrap=True)
    picked = any(row.top1_before is not None for row in rows)
    if picked:
        table.add_column("top-1", no_wrap=True)
    for row in rows:
        top1 = "" if row.top1_before is None else f"{row.top1_before}"
        if row.top1_after != row.top1_before:
            top1 = f"{row.top1_before} → {row.top1_after}"
        names = tables.Names((row.title,)), tables.Names((row.output,))
        table.add_row(*names, f"{row.relative_error:.4f}", *([top1] if picked else []))
    return table


def _checks(rows: Sequence[Check]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        mark, style = _MARKS[row.status]
        table.add_row(tables.text(mark, style), row.name, tables.text(row.detail))
    return table


def _readiness(found: Readiness, answer: EngineAnswer | None, console: Console) -> None:
    """What is to be known of the file for an engine, and what to run next."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in sorted(found.findings, key=lambda entry: list(_LEVELS).index(entry.level)):
        table.add_row(_LEVELS[finding.level], tables.text(finding.text))
    if answer is not None and answer.difference is not None:
        original = "can't run it" if answer.original is None else f"the original: {answer.original:.1e}"
        told = f"largest difference from ONNX Runtime {answer.difference:.1e} on {answer.samples} inputs ({original})"
        table.add_row("ran", tables.text(told))
    elif answer is not None and answer.missing is not None:
        table.add_row("not run", tables.text(answer.missing))
    if not table.row_count:
        table.add_row("nothing to mind")
    called = CALLED[found.engine] if answer is None else answer.called
    tables.print_table(table, console, f"For {called}, by {found.rules}")
    if found.commands:
        console.print()
        for command in found.commands:
            tables.line(console, f"# {command.label}", style="dim")
            console.print(tables.text(command.line), soft_wrap=True)  # to be copied: no line break of ours inside


def _verdict(report: VerifyReport, console: Console) -> None:
    failures = report.failures
    skipped = sum(check.status == "skipped" for check in report.checks)
    rest = f", {skipped} skipped" if skipped else ""
    if failures:
        told = f" of {len(report.checks)} checks{rest}: {'; '.join(check.name for check in failures)}."
        tables.line(console, f"FAILED: {len(failures)}", told, style="bold red")
    else:
        passed = len(report.checks) - skipped
        barred = any(check.name in BARS for check in report.checks)
        free = "" if barred else "; how near the outputs are was not among them (--max-error, --min-agreement)"
        tables.line(
            console,
            f"All {passed} checks passed",
            f"{rest}{free}. Took {wording.seconds(report.seconds)}.",
            style="bold",
        )


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"
