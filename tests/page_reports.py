"""Reports to be shown as pages: one with everything in it, and what goes wrong with data, names and sizes."""

import base64
import dataclasses
import io
import math

from PIL import Image
from test_report import REPORT

from thinet_onnx.result import (
    Box,
    ErrorCurve,
    Example,
    Examples,
    Fidelity,
    GroupRow,
    Latency,
    NotPruned,
    Picture,
    PicturePair,
    Report,
    Score,
    Size,
    Tradeoff,
    TuneCurve,
)

NAMES = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(2)'>",
    "' onmouseover=alert(3) x='",
    "</style></script><script>alert(4)</script>",
    "{{ 7 * 7 }} {% raw %} &lt;b&gt; &amp;",
    "javascript:alert(5)",
    "https://example.org/track.png",
    "a/" * 100,
    "x" * 200,
    "\u202e right to left ☃ 層",
)


def picture(side: int = 24, shown: str = "") -> Picture:
    out = io.BytesIO()
    Image.linear_gradient("L").resize((side, side)).save(out, "PNG")
    return Picture("png", base64.b64encode(out.getvalue()).decode(), side, side, shown)


def group(place: int, name: str, before: int = 64) -> GroupRow:
    after = before if place % 3 == 0 else before // 2
    widths = (*range(1, before, 8), before)
    curve = ErrorCurve(widths, tuple(0.9 * (before - width) / before for width in widths))
    error = None if after == before else 0.01 * (place % 17)
    return GroupRow(
        name, (name,), (f"{name}/reader",), before, after, 1000 * (place + 1), error, curve, 0.1 * (place + 1)
    )


def example(place: int, name: str, *, boxes: bool = False) -> Example:
    scores = tuple(Score(index, name if index else None, 3.0 - index, 0.5 / (index + 1)) for index in range(5))
    pair = PicturePair(name, picture(), picture(), picture(shown=name))
    found = (Box(0.1, 0.2, 0.5, 0.9, 0.87, 3, name), Box(0.4, 0.4, 0.6, 0.6, 0.5)) if boxes else None
    return Example(
        name, "at random" if place else "largest error", name, 0.1, picture(shown=name), () if boxes else scores,
        () if boxes else scores[::-1], found, found, (pair,),
    )  # fmt: skip


def with_names(names: tuple[str, ...]) -> Report:
    """Everything a page can show, and each of these names at every place where there is one."""
    held = tuple(f"{name} {place}" for place in range(8) for name in names)
    errors = tuple(0.01 + 0.001 * place for place in range(len(held)))
    return dataclasses.replace(
        REPORT,
        model=names[0],
        output=names[-1],
        fidelity=tuple(Fidelity(name, 0.99, 0.03, 0.9, len(held), errors, errors) for name in names),
        groups=tuple(group(place, name) for place, name in enumerate(names)),
        not_pruned=tuple(NotPruned(name, 3, name) for name in names),
        options={name: [name, {"inner": name}] for name in names},
        versions=dict.fromkeys(names, names[0]),
        warnings=names,
        stages=dict.fromkeys(names, 1.0),
        held=held,
        tradeoff=tuple(Tradeoff(41_000_000 - 4_000_000 * k, 1, 0.01 * k**2, k == 5) for k in range(9)),
        examples=Examples(tuple(example(k, name, boxes=k % 2 == 1) for k, name in enumerate(names)), names),
        finetune=TuneCurve(
            tuple((step, 1 / (step + 1)) for step in range(2000)),
            tuple({"step": 200.0 * k, "loss": 1 / (k + 1), "agreement": 0.5 + 0.04 * k} for k in range(10)),
            1800,
        ),
        command=" ".join(names),
        config="\n".join(names),
        finished="2026-01-02T03:04:05+00:00",
    )  # fmt: skip


FULL = with_names(("conv1/Conv", "conv2/Conv", "head/Gemm"))
HOSTILE = with_names(NAMES)
MANY = dataclasses.replace(FULL, groups=tuple(group(k, f"{k}/{'long/' * 38}Conv"[:200]) for k in range(500)))
TOO_MANY = dataclasses.replace(
    FULL,
    groups=tuple(group(k, f"{k}/{'long/' * 38}Conv"[:200]) for k in range(3000)),
    not_pruned=tuple(NotPruned(f"{k}/" + "y" * 200, 1, f"reason {k % 300} " + "z" * 200) for k in range(20_000)),
    fidelity=tuple(Fidelity(f"output{k}", 0.9, 0.1, None, 8, (0.1,) * 24, (0.9,) * 24) for k in range(100)),
)
EMPTY = dataclasses.replace(
    REPORT, output=None, latency=None, fidelity=(), accuracy=None, groups=(), not_pruned=(), options={}, versions={},
    warnings=(), target_met=False, before=Size(0, 0, 0), after=Size(0, 0, 0), channels_before=0, channels_after=0,
)  # fmt: skip
NAN = math.nan
UNKNOWN = dataclasses.replace(
    FULL,
    latency=Latency(NAN, 0.0, 1, 0),
    fidelity=(
        Fidelity("all", NAN, NAN, NAN, 24, (NAN,) * 24, (NAN,) * 24),
        Fidelity("some", 0.9, math.inf, None, 24, (0.1, NAN, math.inf) * 8, (0.9,) * 24),
        Fidelity("none", 1.0, 0.0, 1.0, 0),
    ),
    groups=(
        GroupRow("nothing", (), (), 0, 0, 0, NAN, ErrorCurve((), ()), NAN),
        GroupRow("infinite", ("a",), ("b",), 8, 4, 100, math.inf, ErrorCurve((4, 8), (NAN, 0.0)), math.inf),
        GroupRow("flat", ("a",), ("b",), 8, 8, 100, 0.0, ErrorCurve((4, 8), (0.0, 0.0)), 0.0),
    ),
    tradeoff=(Tradeoff(100, 1, NAN), Tradeoff(50, 1, math.inf), Tradeoff(20, 1, 0.0, True)),
    examples=Examples(
        (
            Example("bare", "at random", None, NAN, None),
            Example(
                "odd", "at random", None, None, picture(), (Score(1, None, NAN, NAN),), (Score(1, None, NAN, NAN),),
            ),
            Example("boxes", "at random", None, 0.0, picture(), boxes_before=(), boxes_after=(Box(NAN, 0, 1, 1, NAN),)),
        )
    ),
    finetune=TuneCurve(((0, NAN),), ({"loss": 1.0}, {"step": 1.0, "loss": None}), None),
    oracle_error=NAN,
    seconds=NAN,
)  # fmt: skip
REPORTS = {"full": FULL, "hostile": HOSTILE, "many": MANY, "too many": TOO_MANY, "empty": EMPTY, "unknown": UNKNOWN}
