"""What is printed and written about a run."""

import dataclasses
import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from thinet_onnx import report, summary, tables, wording
from thinet_onnx.errors import OutputError
from thinet_onnx.plan import ConsumerCut, GroupCut, IntEdit, PrunePlan, TensorCut
from thinet_onnx.result import Accuracy, Fidelity, GroupRow, Inspection, Latency, NotPruned, Report, Size

PLAN = PrunePlan(
    groups=(GroupCut("conv[1]", ("conv[1]",), 48, tuple(range(0, 48, 2))),),
    consumers=(ConsumerCut("conv2", "conv2.weight", 1, tuple(range(1, 48, 2))),),
    cuts=(TensorCut("conv1.weight", 0, tuple(range(1, 48, 2))),),
    edits=(IntEdit("reshaped", 1, None, (None, 24)),),
)
GROUPS = (
    GroupRow("conv[1]", ("conv[1]",), ("conv2",), 48, 24, 12_345_678, 0.0312),
    GroupRow("/stage/block/conv1/Conv", ("a", "b", "c"), ("/head/a", "/head/b", "/head/c"), 96, 96, 999, None),
)
FROZEN = (
    NotPruned("norm1", 10, "LayerNorm mixes the channels"),
    NotPruned("fc", 7, "they are the output 'logits'"),
    NotPruned("norm2", 1, "LayerNorm mixes the channels"),
)
REPORT = Report(
    model="net.onnx",
    output="net_pruned.onnx",
    before=Size(41_234_567, 272_474, 1_103_456),
    after=Size(20_617_283, 136_004, 551_234),
    target="macs=50%",
    target_met=True,
    latency=Latency(1.234, 0.801, 4, 200),
    fidelity=(Fidelity("logits", 0.99871, 0.0512, 0.981, 128), Fidelity("boxes", 0.9, 0.25, None, 128)),
    accuracy=Accuracy(0.9265, 0.9215, 2000),
    channels_before=720,
    channels_after=480,
    groups=GROUPS,
    not_pruned=FROZEN,
    oracle_error=2.13e-7,
    seconds=83.2,
    seed=5,
    options={"method": "thinet"},
    versions={"onnx": "1.0"},
    plan=PLAN,
    warnings=("the first warning", "the last warning"),
    stages={"observe": 4.1},
)
INSPECTION = Inspection("net.onnx", GROUPS, FROZEN, 720, 480, 41_234_567, 10_234_567, 272_474, ("beware",))


def rendered(result: Report | Inspection, width: int) -> list[str]:
    out = io.StringIO()
    report.render(result, Console(file=out, width=width))
    return out.getvalue().splitlines()


def row(lines: list[str], label: str) -> list[str]:
    """The cells of the one line that starts with `label`."""
    (line,) = [line for line in lines if line.startswith(label + "  ")]
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


@pytest.mark.parametrize("width", [80, 120])
def test_the_figures_of_a_run(width: int) -> None:
    lines = rendered(REPORT, width)
    assert max(map(len, lines)) <= width
    assert lines[:2] == ["net.onnx → net_pruned.onnx", "Target macs=50%: reached"]
    assert row(lines, "MACs") == ["MACs", "41.2 M", "20.6 M", "50.0%"]
    assert row(lines, "Parameters") == ["Parameters", "272 k", "136 k", "49.9%"]
    assert row(lines, "File size") == ["File size", "1.10 MB", "551 kB", "50.0%"]
    speed = "1.54× faster (batch 4, median of 200)"
    assert row(lines, "Latency") == ["Latency", "1.23 ms", "0.801 ms", "64.9%", speed]
    assert row(lines, "Channels") == ["Channels", "720", "480", "66.7%", "240 of 720 pruned"]
    assert row(lines, "Accuracy") == ["Accuracy", "92.65%", "92.15%", "−0.50 points (top-1, 2000 samples)"]
    assert row(lines, "logits") == ["logits", "0.9987", "0.0512", "98.1%", "128"]
    assert row(lines, "boxes") == ["boxes", "0.9000", "0.2500", "128"]
    assert row(lines, "conv[1]") == ["conv[1]", "conv2", "48 → 24", "50%", "0.0312"]
    assert row(lines, "/stage/block/conv1/Conv") == [
        "/stage/block/conv1/Conv",
        "/head/a",
        "96 → 96",
        "100%",
        "–",
    ]
    text = " ".join(" ".join(lines).split())
    assert "/head/a 96 → 96 100% – and 2 more" in text
    assert "11 channels LayerNorm mixes the channels (norm1, norm2)" in text
    assert "7 channels they are the output 'logits' (fc)" in text
    assert "at most 2.1e-07 (relative)" in text
    assert "Took 1 min 23 s (observe 4.1 s), seed 5." in text
    assert [line for line in lines if line][-2:] == ["WARNING: the first warning", "WARNING: the last warning"]


def test_what_was_not_measured_is_not_shown() -> None:
    bare = dataclasses.replace(
        REPORT,
        output=None,
        latency=None,
        fidelity=(),
        accuracy=None,
        groups=(),
        not_pruned=(),
        warnings=(),
        target_met=False,
        oracle_error=math.nan,
    )
    text = "\n".join(rendered(bare, 80))
    assert "Target macs=50%: NOT reached" in text
    for absent in ("Latency", "Accuracy", "cosine", "Channel groups", "Not pruned", "Check", "→", "WARNING", "nan"):
        assert absent not in text


def test_a_slower_network_and_a_better_accuracy_are_called_so() -> None:
    odd = dataclasses.replace(REPORT, latency=Latency(1.0, 2.0, 1, 9), accuracy=Accuracy(0.5, 0.51, 100))
    text = "\n".join(rendered(odd, 80))
    assert "2.00× slower" in text
    assert "+1.00 points" in text


def test_a_narrow_console_loses_no_name() -> None:
    lines = rendered(REPORT, 50)
    assert max(map(len, lines)) <= 50
    assert "…" not in "".join(lines)


@pytest.mark.parametrize(
    ("name", "width", "lines"),
    [
        ("/blocks.0/project_conv/Conv", 40, ["/blocks.0/project_conv/Conv"]),
        ("/blocks.0/project_conv/Conv", 26, ["/blocks.0/project_conv/", "  Conv"]),
        ("/blocks.0/project_conv/Conv", 8, ["/blocks.", "0/projec", "t_conv/", "Conv"]),
        ("a_name_without_any_place", 14, ["a_name_without", "  _any_place"]),
        ("名前/名前/名前", 10, ["名前/名前/", "名前"]),
    ],
)
def test_names_are_folded_behind_separators(name: str, width: int, lines: list[str]) -> None:
    assert tables.fold(name, width) == lines


def test_many_reasons_are_cut_short_after_a_run_but_not_by_inspect() -> None:
    frozen = tuple(NotPruned(f"node{i}", i, f"reason {i}") for i in range(1, 21))
    after_run = "\n".join(rendered(dataclasses.replace(REPORT, not_pruned=frozen), 80))
    assert after_run.count("reason ") == 11
    assert "45 channels  for 9 more reasons, see --json" in after_run
    assert "reason 20 (node20)" in after_run
    inspected = "\n".join(rendered(dataclasses.replace(INSPECTION, not_pruned=frozen), 80))
    assert inspected.count("reason ") == 20
    assert "1 channel  reason 1 (node1)" in inspected


def test_many_producers_are_counted_after_a_run_and_named_by_inspect() -> None:
    frozen = tuple(NotPruned(f"node{i}", 1, "because") for i in range(9))
    assert "because (node0, node1, node2 and 6 more)" in "\n".join(
        rendered(dataclasses.replace(REPORT, not_pruned=frozen), 80)
    )
    inspected = "\n".join(rendered(dataclasses.replace(INSPECTION, not_pruned=frozen), 80))
    assert all(f"node{i}" in inspected for i in range(9))


@pytest.mark.parametrize("width", [80, 120])
def test_the_figures_of_an_inspection(width: int) -> None:
    lines = rendered(INSPECTION, width)
    assert max(map(len, lines)) <= width
    assert row(lines, "Channels") == ["Channels", "720", "480 (66.7%) can be removed, in 2 groups"]
    assert row(lines, "MACs") == ["MACs", "41.2 M", "10.2 M (24.8%) can be removed"]
    assert row(lines, "Parameters") == ["Parameters", "272 k"]
    assert row(lines, "conv[1]") == ["conv[1]", "conv2", "48", "12.3 M"]
    assert row(lines, "a") == ["a", "/head/a", "96", "999"]
    assert lines[-1] == "WARNING: beware"


def test_an_inspection_tells_what_prune_leaves_by_default() -> None:
    line = "which prune takes under --scope all only: 300 channels, 5.00 M of the MACs."
    streams = dataclasses.replace(INSPECTION, removable_inner=300, macs_inner=5_000_000)
    assert line in " ".join(" ".join(rendered(streams, 80)).split())
    for none in (INSPECTION, dataclasses.replace(INSPECTION, removable_inner=480, macs_inner=10_200_000)):
        assert "--scope all" not in " ".join(rendered(none, 80))


def test_answers_far_from_the_originals_are_warned_of() -> None:
    near = Fidelity("boxes", 0.99, 0.1, None, 6)
    assert summary.far_off([near], 42) == []
    (warning,) = summary.far_off([near, dataclasses.replace(near, output="scores", relative_error=0.752)], 42)
    assert "output 'scores' is off by 75% of its size" in warning
    assert "fitted on 42" in warning


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (999, "999"),
        (999.9, "1.00 k"),
        (1000, "1.00 k"),
        (9994, "9.99 k"),
        (9996, "10.0 k"),
        (99_960, "100 k"),
        (999_600, "1.00 M"),
        (4.1e9, "4.10 G"),
        (1.5e12, "1.50 T"),
        (2e16, "20000 T"),
    ],
)
def test_numbers_have_three_figures(value: float, text: str) -> None:
    assert wording.short(value) == text


@pytest.mark.parametrize(
    ("told", "text"),
    [
        (wording.figures(0.14), "0.140"), (wording.figures(100), "100"), (wording.figures(1234.5), "1.23e+3"),
        (wording.figures(4.1e-7), "4.10e-7"), (wording.figures(0), "0"), (wording.figures(math.nan), "–"),
        (wording.figures(None), "–"), (wording.percent(0.984), "98.4%"), (wording.percent(0.00031), "0.031%"),
        (wording.percent(0), "0.0%"), (wording.percent(math.inf), "–"), (wording.rough(0.0001), "< 0.1%"),
        (wording.rough(0.5), "50.0%"), (wording.rough(None), "–"), (wording.seconds(7_500), "2 h 5 min"),
        (wording.seconds(math.nan), "–"), (wording.short(math.nan), "–"), (wording.share(1, 0), "–"),
        (wording.milliseconds(math.nan), "–"), (wording.milliseconds(1.0), "1.00 ms"), (wording.milliseconds(99.96), "100 ms"),
        (wording.speed(1.0, math.nan), "not measurable"),
        (wording.points(0.5, math.nan), "–"), (wording.plural(1, "group"), "1 group"), (wording.plural(2000, "x"), "2,000 xs"),
        (wording.names(["a", "b", "c"], 2), "a, b, c"), (wording.names(["a", "b", "c", "d"], 2), "a, b and 2 more"),
    ],
)  # fmt: skip
def test_words(told: str, text: str) -> None:
    assert told == text


def test_json_holds_everything_and_the_plan_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old", encoding="utf-8")
    report.write_json(REPORT, path)
    text = path.read_text(encoding="utf-8")
    plain = json.loads(text)
    assert PrunePlan.from_dict(plain["plan"]) == PLAN
    assert plain["before"] == {"macs": 41_234_567, "params": 272_474, "bytes": 1_103_456}
    assert (plain["seed"], plain["options"], plain["versions"]) == (5, {"method": "thinet"}, {"onnx": "1.0"})
    assert plain["warnings"] == list(REPORT.warnings)
    assert '"values": [null, 24]' in text
    assert [found.name for found in tmp_path.iterdir()] == ["report.json"]


def test_json_of_an_inspection(tmp_path: Path) -> None:
    report.write_json(INSPECTION, tmp_path / "found.json")
    plain = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert plain["not_pruned"][1] == {"producer": "fc", "channels": 7, "reason": "they are the output 'logits'"}


def test_json_survives_names_that_look_like_json_and_numbers_it_lacks(tmp_path: Path) -> None:
    name = 'a[\n 1,\n 2] "é"'
    odd = dataclasses.replace(REPORT, model=name, oracle_error=math.nan, stages={"x": math.inf}, warnings=(name,))
    report.write_json(odd, tmp_path / "odd.json")
    plain = json.loads((tmp_path / "odd.json").read_text(encoding="utf-8"))
    assert (plain["model"], plain["warnings"]) == (name, [name])
    assert (plain["oracle_error"], plain["stages"]) == (None, {"x": None})


@pytest.mark.parametrize(("name", "reason"), [("missing/report.json", "there is no folder"), (".", "it is a folder")])
def test_json_where_no_file_can_be(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(OutputError, match=reason):
        report.write_json(REPORT, tmp_path / name)


def test_json_that_fails_half_way_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    path = tmp_path / "report.json"
    path.write_text("old", encoding="utf-8")
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputError, match="No space left on device"):
        report.write_json(REPORT, path)
    assert path.read_text(encoding="utf-8") == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["report.json"]


def test_a_folder_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:  # root may write anywhere
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(report.tempfile, "TemporaryFile", refuse)
    with pytest.raises(OutputError, match="can't be written: Permission denied"):
        report.check_writable(tmp_path / "result.json")
