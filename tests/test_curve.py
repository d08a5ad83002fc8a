"""`curve`: what every target would cost, against what `prune` makes of it; the table, the picture, the page."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import small_models
from test_latency import Watch
from test_state import images, joined
from typer.testing import CliRunner

import thinet_onnx
from thinet_onnx import cli, tradeoff
from thinet_onnx.curve_result import SHARES, CurveOptions, CurveReport, parse_shares
from thinet_onnx.errors import OptionError, TargetError
from thinet_onnx.options import PruneOptions, Target
from thinet_onnx.page import curve as pictures


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What was learnt of the network once, for all tests."""
    file = tmp_path_factory.mktemp("curve") / "moments.npz"
    thinet_onnx.curve(joined(), images(), scope="all", round_to=1, save_moments=file)
    return file


def found(moments: Path, **options: Any) -> CurveReport:
    options = {"scope": "all", "round_to": 1} | options
    return thinet_onnx.curve(joined(), images(), from_moments=moments, **options)


def test_a_dozen_targets_and_the_whole_network(moments: Path) -> None:
    report = found(moments)
    assert [point.share for point in report.points] == [1.0, *SHARES]
    whole, *cut = report.points
    assert (whole.expected_error, whole.error, whole.latency_ms) == (0.0, None, None)
    for point in cut:
        assert point.share - 0.03 <= point.macs / whole.macs <= point.share
    errors = [point.expected_error for point in report.points]
    assert errors == sorted(errors)
    assert errors[-1] > 0.1
    assert len(report.line) > 20
    assert not any(point.chosen for point in report.line)


@pytest.mark.parametrize("by", ["macs", "params"])
def test_a_row_is_what_prune_makes_of_the_target(moments: Path, by: Any) -> None:
    report = found(moments, by=by, targets=(0.5,), measure=True)
    result = thinet_onnx.prune(
        joined(), images(), target=f"{by}=50%", scope="all", round_to=1, from_moments=moments
    ).report  # fmt: skip
    point = report.points[1]
    assert (point.macs, point.params) == (result.after.macs, result.after.params)
    assert point.error == result.fidelity[0].relative_error
    assert point.top1 == result.fidelity[0].top1
    (chosen,) = [entry for entry in result.tradeoff if entry.chosen]
    assert point.expected_error == pytest.approx(chosen.loss**0.5)
    assert report.points[0].error == 0
    assert report.held == len(result.held)


@pytest.mark.parametrize("measure", [False, True])
def test_times_are_modelled_or_measured_and_said_to_be(
    moments: Path, measure: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    watch = Watch()
    options = PruneOptions(target=Target("latency", 0.5, True), scope="all", round_to=1, latency_batch=4)
    asked = CurveOptions(shares=(0.5,), latency=True, measure=measure)
    report = tradeoff.curve(joined(), images(), options, asked, stopwatch=watch)
    assert (report.latency, report.engine, report.batch) == ("measured" if measure else "modelled", "Watch 1.0", 4)
    assert watch.compared == (1 if measure else 0)
    whole, half = (point.latency_ms for point in report.points)
    assert whole is not None
    assert half is not None
    assert 0 < half < 0.8 * whole


def test_targets_out_of_reach_are_named(moments: Path) -> None:
    report = found(moments, targets=(0.5, 0.001))
    assert [point.share for point in report.points] == [1.0, 0.5]
    assert report.warnings == ("Out of reach with the groups that may be pruned: 0.1%.",)
    with pytest.raises(TargetError, match=r"None of the targets \(0\.1%\) can be reached"):
        found(moments, targets=(0.001,))


@pytest.mark.parametrize(("text", "shares"), [(None, SHARES), ("50%", (0.5,)), ("0.25,75%,25%", (0.75, 0.25))])
def test_targets(text: str | None, shares: tuple[float, ...]) -> None:
    assert parse_shares(text) == shares


@pytest.mark.parametrize("text", ["", "half", "0%", "100%", "50%,", "1.5", "nan"])
def test_targets_that_are_not_understood(text: str) -> None:
    with pytest.raises(OptionError, match="is not understood: write shares between"):
        parse_shares(text)


def test_the_picture_holds_a_dot_for_each_figure(moments: Path, tmp_path: Path) -> None:
    report = found(moments, targets=(0.6, 0.4), measure=True)
    pictures.write(report, tmp_path / "curve.svg")
    drawn = ET.parse(tmp_path / "curve.svg").getroot()
    space = {"s": "http://www.w3.org/2000/svg"}
    assert drawn.tag == "{http://www.w3.org/2000/svg}svg"
    kinds = [dot.get("class") for dot in drawn.findall(".//s:circle", space)]
    assert (kinds.count("expected"), kinds.count("error")) == (3, 3)
    words = [text.text for text in drawn.findall(".//s:text", space)]
    assert f"measured error, {report.held} held-out samples" in words


def test_names_of_strangers_stay_text(moments: Path, tmp_path: Path) -> None:
    import dataclasses  # noqa: PLC0415

    report = dataclasses.replace(found(moments, targets=(0.5,)), model="<script>alert(1)</script>&.onnx")
    pictures.write(report, tmp_path / "curve.html")
    page = (tmp_path / "curve.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert page.count("<tr>") == 3


def run(*arguments: str) -> Any:
    return CliRunner(env={"COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb"}).invoke(cli.app, ["curve", *arguments])


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(joined(), "net.onnx")
    np.save("x.npy", images())
    common = ["net.onnx", "--data", "x.npy", "--scope", "all", "--targets", "60%,40%"]
    ended = run(*common, "--save-moments", "m.npz", "--json", "c.json", "--plot", "c.html")
    assert ended.exit_code == 0, ended.output
    assert "a proxy that widths are chosen by" in " ".join(ended.stdout.split())
    assert "…" not in ended.stdout
    plain = json.loads(Path("c.json").read_text(encoding="utf-8"))
    assert [point["share"] for point in plain["points"]] == [1.0, 0.6, 0.4]
    assert Path("c.html").is_file()
    again = run(*common, "--from-moments", "m.npz", "--json", "d.json", "-q")
    assert (again.exit_code, again.stdout) == (0, "")
    assert json.loads(Path("d.json").read_text(encoding="utf-8"))["points"] == plain["points"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("net.onnx", "no calibration data: pass --data"),
        ("net.onnx --data x.npy --engine openvino", "say --latency, too"),
        ("net.onnx --data x.npy --targets all", "--targets 'all' is not understood"),
        ("net.onnx --data x.npy --plot curve.png", "--plot curve.png: name a file that ends in .svg or .html"),
        ("net.onnx --data x.npy --plot net.onnx", "--plot and MODEL are the same file"),
        ("net.onnx --data x.npy --json a.svg --plot a.svg", "--plot and --json are the same file"),
        ("net.onnx --data x.npy --from-moments x.npy", "can't be read as the moments"),
    ],
)
def test_what_can_be_said_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, told: str) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(small_models.plain(), "net.onnx")
    np.save("x.npy", images(8))
    ended = run(*arguments.split())
    assert ended.exit_code == 2, ended.output
    assert told in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
