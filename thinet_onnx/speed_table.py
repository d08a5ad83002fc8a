"""Show what `bench` measured: one table for each engine and batch size."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.table import Table

from thinet_onnx import tables, wording
from thinet_onnx.speed_result import BenchReport, Measured
from thinet_onnx.timing import LEAST_FOR_P99, Ratio


def render(report: BenchReport, console: Console) -> None:
    """Print `report` to `console`, as wide as the console is."""
    threads = wording.plural(report.threads, "thread") if report.threads else "the engine's own number of threads"
    shown = _short_names(report.files)
    for (engine, batch), group in groupby(report.rows, key=lambda row: (row.engine, row.batch)):
        rows = list(group)
        runs = rows[0].timing.runs
        turns = wording.plural(runs, "run") + ("" if len(rows) == 1 else " of each, in turn")
        title = f"{engine}, batch {batch}, {threads}: {turns}; milliseconds"
        tables.print_table(_table(rows, shown), console, title)
        for row in rows:
            if row.ratio is not None:
                tables.line(console, f"{shown[row.file]}: {_in_words(row.ratio, shown[report.files[0]])}.")
    if report.not_measured:
        console.print()
        tables.line(console, "Not measured", style="bold")
        for entry in report.not_measured:
            tables.line(console, f"  {entry.file}, {entry.engine}, batch {entry.batch}: {entry.reason}.")
    console.print()
    for note in _notes(report):
        tables.line(console, note)
    for warning in report.warnings:
        console.print()
        tables.line(console, "WARNING: ", warning, style="bold red")


def _short_names(files: Sequence[str]) -> dict[str, str]:
    """What files are called in tables: without their folders, where that tells them apart."""
    last = [Path(file).name for file in files]
    return dict(zip(files, last if len(set(last)) == len(set(files)) else files, strict=True))


def _table(rows: Sequence[Measured], shown: Mapping[str, str]) -> Table:
    table = tables.table()
    table.add_column("file", overflow="fold")
    for heading in ("median", "p10", "p90", "p99", "items/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    compared = any(row.ratio is not None for row in rows)
    if compared:
        table.add_column("ratio (quartiles)", no_wrap=True)
    for row in rows:
        timing = row.timing
        times = (timing.median_ms, timing.p10_ms, timing.p90_ms, timing.p99_ms)
        figures = ["–" if time is None else wording.milliseconds(time).removesuffix(" ms") for time in times]
        ratio = "" if row.ratio is None else f"{row.ratio.median:.3f} ({row.ratio.low:.3f}–{row.ratio.high:.3f})"
        table.add_row(
            tables.Names((shown[row.file],)),
            *figures,
            wording.short(row.items_per_second),
            *([ratio] if compared else []),
        )
    return table


def _in_words(ratio: Ratio, first: str) -> str:
    if not ratio.clear:
        return f"no clear difference from {first}"
    return f"{wording.speed(1, ratio.median)} than {first}"


def _notes(report: BenchReport) -> list[str]:
    """What a reader has to know to judge the figures."""
    notes = [f"Inputs: {report.inputs}."]
    if report.random_inputs:
        notes = [
            f"Inputs: {report.inputs}; where the work depends on what is in a picture, --data shows the true times."
        ]
    if any(row.ratio is not None for row in report.rows):
        notes.append(
            "Ratio: a run's time over that of the first file in the same round; the median of all rounds, and the quartiles."
        )
    if any(row.timing.p99_ms is None for row in report.rows):
        notes.append(f"No p99 below {LEAST_FOR_P99} runs: --runs or --seconds takes more.")
    machine = report.machine
    notes.append(f"Measured on {machine.processor}, {wording.plural(machine.cores, 'core')} to use, {machine.system}.")
    return notes
