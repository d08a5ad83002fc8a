"""Show what `curve` found: a row for each target, and words on what the columns are."""

from rich.console import Console
from rich.table import Table

from thinet_onnx import tables, wording
from thinet_onnx.curve_result import CurvePoint, CurveReport

NAMES = {"macs": "MACs", "params": "parameters"}


def render(report: CurveReport, console: Console) -> None:
    """Print `report` to `console`, as wide as the console is."""
    tables.line(console, report.model, style="bold")
    tables.print_table(_table(report), console)
    console.print()
    for note in notes(report):
        tables.line(console, note)
    for warning in report.warnings:
        tables.line(console, "Note: ", warning, style="bold")
    tables.line(console, f"Took {wording.seconds(report.seconds)}, seed {report.options['seed']}.")


def headings(report: CurveReport) -> list[str]:
    """What the columns are called."""
    names = ["target", "MACs", "", "parameters", "expected error"]
    if report.latency is not None:
        names += [f"{report.latency} latency", ""]
    if report.measured:
        names.append("error")
        if _classes(report):
            names.append("same top-1")
    return names


def cells(report: CurveReport, point: CurvePoint) -> list[str]:
    """A row of the table."""
    first = report.points[0]
    row = [
        "whole" if point.share == 1 else f"{100 * point.share:g}%",
        wording.short(point.macs), wording.share(point.macs, first.macs),
        wording.short(point.params), wording.percent(point.expected_error),
    ]  # fmt: skip
    if report.latency is not None and point.latency_ms is not None and first.latency_ms is not None:
        row += [wording.milliseconds(point.latency_ms), wording.share(point.latency_ms, first.latency_ms)]
    if report.measured:
        row.append(wording.percent(point.error))
        if _classes(report):
            row.append(wording.percent(point.top1))
    return row


def notes(report: CurveReport) -> list[str]:
    """What the columns are."""
    told = [
        f"Target: the share of the {NAMES[report.by]} that is to remain, as in prune --target {report.by}=50%.",
        "Expected error: a proxy that widths are chosen by, not measured on a cut network: the relative error of the outputs, "
        "groups added up as if each were cut alone. It orders choices; what prune leaves may be less, or more.",
    ]
    if report.measured:
        columns = "Error, same top-1" if _classes(report) else "Error"
        told.append(
            f"{columns}: measured on {wording.plural(report.held, 'held-out sample')}, against the original; each network "
            "pruned and refitted as prune does it."
        )
    if report.latency == "modelled":
        told.append(
            f"Modelled latency: the times of single layers, measured on {report.engine} at batch {report.batch} and added up; "
            "--measure times whole cut files."
        )
    if report.latency == "measured":
        told.append(f"Measured latency: cut files in turn with the original, {report.engine}, batch {report.batch}.")
    return told


def _classes(report: CurveReport) -> bool:
    return any(point.top1 is not None for point in report.points[1:])


def _table(report: CurveReport) -> Table:
    table = tables.table()
    for name in headings(report):
        table.add_column(name.replace(" ", "\n", 1), justify="right", no_wrap=True)
    for point in report.points:
        table.add_row(*cells(report, point))
    return table
