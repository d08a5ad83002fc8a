"""A picture of what `accuracy.py` measured: the metric against the MACs that remain; needs `pip install matplotlib`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

METRICS = ("accuracy", "agreement", "psnr", "iou", "error")
_LABELS = {
    "accuracy": "top-1 accuracy, %", "agreement": "top-1 as the original, %", "psnr": "PSNR to the original, dB",
    "iou": "IoU with the original's mask, %", "error": "relative output error, %",
}  # fmt: skip
_MARKS = "osD^v<>PX*ph"


def metric_of(row: dict[str, Any]) -> str:
    """The metric that counts for a row."""
    return next(name for name in METRICS if row.get(name) is not None)


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """One panel for each model: this package's methods solid, the best variant of each peer's criteria dashed.

    The original is a level. What can't be told a scope stands in all panels of its model.

    Rows without figures (crashes) are left out.
    """
    import matplotlib  # noqa: PLC0415  the table needs none

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    shown = [row for row in rows if row.get("macs") is not None]
    told = [row for row in shown if row["kind"] != "original"]
    panels = list(dict.fromkeys((row["model"], row["scope"]) for row in told if row["scope"] != "any"))
    panels += [(model, "any") for model in dict.fromkeys(row["model"] for row in told) if model not in dict(panels)]
    if not panels:
        raise ValueError("no row has figures, so there is nothing to draw")
    figure, axes = plt.subplots(1, len(panels), figsize=(1 + 5.5 * len(panels), 6), squeeze=False)
    for axis, (model, scope) in zip(axes[0], panels, strict=True):
        _panel(axis, [row for row in shown if row["model"] == model and row["scope"] in (scope, "any", "")])
        axis.set_title(f"{model}, scope {scope}", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _panel(axis: Any, rows: Sequence[dict[str, Any]]) -> None:
    metric = metric_of(next(row for row in rows if row["kind"] != "original"))
    factor = 1 if metric == "psnr" else 100
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["kind"] != "original":
            lines.setdefault(row["method"], []).append(row)
    for place, name in enumerate(_shown(lines, metric)):
        line = sorted(lines[name], key=lambda row: row["macs"])
        own = line[0]["kind"] == "own"
        axis.plot(
            [100 * row["macs"] for row in line], [factor * row[metric] for row in line], "-" if own else "--", label=name,
            marker=_MARKS[place % len(_MARKS)], linewidth=2 if own else 1, markersize=6,
        )  # fmt: skip
    for row in rows:
        if row["kind"] == "original" and row.get(metric) is not None and metric != "psnr":
            axis.axhline(factor * row[metric], color="black", linewidth=0.8, linestyle=":", label="original")
    low, high = axis.get_xlim()
    axis.set_xlim(low - 5, high + 5)
    axis.set_xlabel("MACs that remain, %")
    axis.set_ylabel(_LABELS[metric])
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncol=2)


def _shown(lines: dict[str, list[dict[str, Any]]], metric: str) -> list[str]:
    """All of this package's methods; of each criterion of a peer the variant that does best on average."""
    sign = -1 if metric == "error" else 1
    best: dict[str, tuple[float, str]] = {}
    for name, rows in lines.items():
        family = name if rows[0]["kind"] == "own" else "-".join(name.partition("+")[0].split("-")[:2])
        score = sign * sum(row[metric] for row in rows) / len(rows)
        best[family] = max(best.get(family, (score, name)), (score, name))
    return [name for _, name in best.values()]
