"""`bench`: what is measured, what is said of it, and what a user can get wrong."""

import io
import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
import small_models
from rich.console import Console
from small_models import Net
from typer.testing import CliRunner

import thinet_onnx
from thinet_onnx import cli, engines, speed, speed_table, timing
from thinet_onnx.check_options import BenchOptions, parse_batches, parse_engines
from thinet_onnx.errors import ModelError, OptionError, ThinetError
from thinet_onnx.machine import machine
from thinet_onnx.speed_result import BenchReport, Machine, Measured, NotMeasured
from thinet_onnx.timing import Ratio, Timing

ROOT = Path(__file__).parent.parent
QUICK = ["--runs", "5"]


@pytest.fixture(autouse=True)
def no_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rounds are enough here."""
    real = timing.interleaved
    monkeypatch.setattr(speed, "interleaved", lambda calls, **bounds: real(calls, warm_up=0.0, **bounds))


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(small_models.residual(), "net.onnx")
    onnx.save(small_models.plain(), "small.onnx")
    onnx.save(small_models.plain(batch=1), "one.onnx")
    onnx.save(small_models.plain(batch=4), "four.onnx")
    net = Net()
    x = net.relu(net.conv(net.input("x", ("N", 3, "H", "W")), 3, 8))
    onnx.save(net.model(net.head(x, 8)), "open.onnx")
    net = Net()
    flat = net.node("Reshape", net.input("x", ("N", 3, 8, 8)), net.tensor(np.array([1, 192], np.int64)))
    onnx.save(net.model(net.gemm(flat, 192, 4)), "reshapes.onnx")
    np.savez("data.npz", x=np.random.default_rng(0).standard_normal((10, 3, 8, 8)).astype(np.float32))
    return tmp_path


def run(*arguments: str) -> Any:
    return CliRunner(env={"COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb"}).invoke(cli.app, ["bench", *arguments])


def text(*arguments: str) -> str:
    outcome = run(*arguments)
    assert outcome.exit_code == 0, outcome.output
    return " ".join(outcome.stdout.split())


class Recorder:
    """An engine that notes what it loads and runs, and can refuse a model by its number of nodes."""

    name: ClassVar[str] = "ort"
    called: ClassVar[str] = "Recorder"

    def __init__(self, refuses: int = -1, fails: int = -1) -> None:
        self.title, self.refuses, self.fails = "Recorder 1", refuses, fails
        self.shapes: list[Mapping[str, tuple[int, ...]]] = []
        self.runs: list[tuple[int, np.ndarray]] = []
        self.open = 0

    def load(self, model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> Any:
        nodes = len(model.graph.node)
        if nodes == self.refuses:
            raise ModelError("It is too long.")
        self.shapes.append(dict(shapes))
        self.open += 1
        engine = self

        class Program:
            def run(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
                if nodes == engine.fails:
                    raise ModelError("It broke.")
                engine.runs.append((nodes, next(iter(feeds.values()))))
                return []

            def close(self) -> None:
                engine.open -= 1

        return Program()


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    monkeypatch.setattr(engines, "make", lambda *_: made)
    return made


LONG, SHORT = len(small_models.residual().graph.node), len(small_models.plain().graph.node)


# --- what is run ------------------------------------------------------------------------------------------------------


def test_files_take_turns_on_the_same_inputs(shelf: Path, recorder: Recorder) -> None:
    report = thinet_onnx.bench("net.onnx", "small.onnx", data="data.npz", batches=[2], runs=6)
    checked, rounds = recorder.runs[:10], recorder.runs[10:]
    assert [nodes for nodes, _ in checked] == [LONG] * 5 + [SHORT] * 5  # five batches of two: each is tried once
    assert [nodes for nodes, _ in rounds] == [LONG, SHORT] * (3 + 6)
    counted = rounds[-12:]
    for (_, first), (_, second) in zip(counted[::2], counted[1::2], strict=True):
        np.testing.assert_array_equal(first, second)
    fed = {feed.tobytes() for _, feed in counted}
    assert len(fed) == 5
    assert report.rows[1].timing.runs == 6
    assert recorder.open == 0


def test_data_begins_anew_where_it_ends(shelf: Path, recorder: Recorder) -> None:
    thinet_onnx.bench("small.onnx", data="data.npz", batches=[16], runs=1)
    whole = np.load("data.npz")["x"]
    np.testing.assert_array_equal(recorder.runs[0][1], np.concatenate([whole, whole[:6]]))


def test_without_data_noise_of_the_right_shape(shelf: Path, recorder: Recorder) -> None:
    report = thinet_onnx.bench("open.onnx", batches=[3], shapes={"x": (1, 3, 6, 10)}, runs=1)
    assert {feed.shape for _, feed in recorder.runs} == {(3, 3, 6, 10)}
    assert abs(float(recorder.runs[0][1].std()) - 1) < 0.1
    assert report.random_inputs and report.inputs == "noise of the right shapes"


@pytest.mark.parametrize(
    ("model", "shapes", "batch"),
    [("small.onnx", {}, 1), ("four.onnx", {}, 4), ("open.onnx", {"x": (5, 3, 8, 8)}, 5), ("one.onnx", {}, 1)],
)
def test_the_batch_is_the_files_own_unless_it_is_asked_for(
    shelf: Path, recorder: Recorder, model: str, shapes: dict[str, tuple[int, ...]], batch: int
) -> None:
    report = thinet_onnx.bench(model, shapes=shapes, runs=1)
    assert report.rows[0].batch == batch == recorder.runs[0][1].shape[0]


def test_a_file_of_fixed_batch_takes_rows_of_the_data_together(shelf: Path, recorder: Recorder) -> None:
    thinet_onnx.bench("four.onnx", data="data.npz", runs=1)
    whole = np.load("data.npz")["x"]
    np.testing.assert_array_equal(recorder.runs[1][1], whole[4:8])


def test_the_files_own_nodes_are_run(shelf: Path, recorder: Recorder) -> None:
    """Not what pruning makes of them first: a weight that is computed stays computed."""
    net = Net()
    weight = net.node("Mul", net.weight(8, 3, 3, 3), net.weight(8, 1, 1, 1))
    model = net.model(net.head(net.node("Conv", net.input("x", ("N", 3, 8, 8)), weight), 8))
    thinet_onnx.bench(model, runs=1)
    assert recorder.runs[0][0] == len(model.graph.node)


# --- what is said -----------------------------------------------------------------------------------------------------


def test_a_report_for_programs(shelf: Path) -> None:
    out = text("net.onnx", "small.onnx", "--batch", "1,4", *QUICK, "--json", "bench.json", "--threads", "1")
    report = json.loads(Path("bench.json").read_text(encoding="utf-8"))
    assert [(row["file"], row["batch"]) for row in report["rows"]] == [
        ("net.onnx", 1), ("small.onnx", 1), ("net.onnx", 4), ("small.onnx", 4),
    ]  # fmt: skip
    for row in report["rows"]:
        times = row["times_ms"]
        assert len(times) == row["timing"]["runs"] == 5
        assert row["timing"]["median_ms"] == pytest.approx(np.median(times))
        assert row["items_per_second"] == pytest.approx(1e3 * row["batch"] / np.median(times))
    first, second = report["rows"][:2]
    assert first["ratio"] is None
    quotients = np.divide(second["times_ms"], first["times_ms"])
    assert second["ratio"]["median"] == pytest.approx(np.median(quotients))
    assert (report["threads"], report["machine"]["cores"] >= 1, report["random_inputs"]) == (1, True, True)
    assert "batch 4, 1 thread: 5 runs of each, in turn" in out
    assert "Inputs: noise of the right shapes" in out


def test_engines_side_by_side(shelf: Path) -> None:
    out = text("small.onnx", "--engine", "ort,openvino", *QUICK)
    assert "ONNX Runtime 1." in out and "OpenVINO 20" in out


def test_true_data_are_named(shelf: Path) -> None:
    out = text("small.onnx", *QUICK, "--data", "data.npz", "--samples", "6")
    assert "Inputs: 6 of 10 rows of data.npz." in out
    assert "noise" not in out


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (["small.onnx", "one.onnx"], "one.onnx, ONNX Runtime 1.* batch 8: it takes batches of 1 only (input 'x' float32 (1,3"),
        (["small.onnx", "reshapes.onnx"], "reshapes.onnx, ONNX Runtime 1.* batch 8: ONNX Runtime can't run the model on these"),
        (["one.onnx", "small.onnx"], "one.onnx, ONNX Runtime 1.* batch 8: it takes batches of 1 only"),
    ],
)  # fmt: skip
def test_a_batch_that_a_file_can_not_take_is_one_line(shelf: Path, files: list[str], reason: str) -> None:
    out = text(*files, "--batch", "8", *QUICK)
    before, _, after = reason.partition("1.*")
    assert before in out and after in out.partition(before)[2]
    assert "(quartiles)" not in out  # one of the two is missing, so there is nothing to compare


def test_data_that_do_not_stack(shelf: Path) -> None:
    feeds = [{"x": np.zeros((1, 3, 8, size), np.float32)} for size in (8, 9)]
    net = Net()
    x = net.relu(net.conv(net.input("x", ("N", 3, 8, "W")), 3, 8))
    model = net.model(net.head(x, 8))
    report = thinet_onnx.bench(model, data=feeds, batches=[1, 2], runs=2)
    assert [row.batch for row in report.rows] == [1]
    assert "can't be joined" in report.not_measured[0].reason


def test_a_file_that_is_refused_does_not_stop_the_others(shelf: Path, recorder: Recorder) -> None:
    recorder.refuses = LONG
    report = thinet_onnx.bench("net.onnx", "small.onnx", runs=2)
    assert [row.file for row in report.rows] == ["small.onnx"]
    assert report.rows[0].ratio is None
    assert report.not_measured == (NotMeasured("net.onnx", "Recorder 1", 1, "It is too long"),)


def test_a_file_that_fails_in_its_first_run_gives_back_what_it_holds(shelf: Path, recorder: Recorder) -> None:
    recorder.fails = SHORT
    assert len(thinet_onnx.bench("net.onnx", "small.onnx", runs=2).rows) == 1
    assert recorder.open == 0


def measured(file: str, batch: int, times: list[float], first: list[float] | None = None) -> Measured:
    ratio = None if first is None else Ratio.of(times, first)
    return Measured(file, "Engine 1", batch, Timing.of(times), 1e3 / float(np.median(times)), ratio, tuple(times))


def shown(rows: list[Measured], files: tuple[str, ...] = ("a/x.onnx", "b/y.onnx"), **others: Any) -> str:
    machine = Machine("A processor", 2, "An OS")
    report = BenchReport(files, tuple(rows), (), "noise", others.pop("noise", True), 0, machine, {}, **others)
    screen = io.StringIO()
    speed_table.render(report, Console(file=screen, width=100))
    return screen.getvalue()


def test_a_clear_difference_is_put_in_words_and_an_unclear_one_is_not() -> None:
    slow, fast, alike = [2.0] * 9, [1.0] * 9, [1.9, 2.1] * 4 + [2.0]
    drawn = shown([measured("a/x.onnx", 1, slow), measured("b/y.onnx", 1, fast, slow)])
    assert "0.500 (0.500–0.500)" in drawn
    assert "y.onnx: 2.00× faster than x.onnx." in drawn
    assert "a/x.onnx" not in drawn  # names tell them apart
    drawn = shown([measured("a/x.onnx", 1, slow), measured("b/y.onnx", 1, alike, slow)])
    assert "y.onnx: no clear difference from x.onnx." in drawn


def test_files_of_the_same_name_keep_their_folders() -> None:
    drawn = shown([measured("a/x.onnx", 1, [1.0] * 5), measured("b/x.onnx", 1, [2.0] * 5)], ("a/x.onnx", "b/x.onnx"))
    assert "a/x.onnx" in drawn and "b/x.onnx" in drawn


def test_few_runs_show_no_99th_percentile_and_say_so() -> None:
    few, many = shown([measured("a/x.onnx", 1, [1.0] * 20)]), shown([measured("a/x.onnx", 1, [1.0] * 200)])
    assert "No p99 below 100 runs" in few and "No p99" not in many


def test_names_are_no_markup() -> None:
    assert "[red]x.onnx" in shown([measured("[red]x.onnx", 1, [1.0] * 5)], ("[red]x.onnx",))


def test_a_machine_that_was_busy_is_mentioned() -> None:
    quiet = [measured("a.onnx", 1, [1.0] * 20), measured("b.onnx", 1, [1.0] * 15 + [9.0] * 5)]
    assert speed._unsteady(quiet[:1]) == []
    (warning,) = speed._unsteady(quiet)
    assert "b.onnx (batch 1) took 9.0 times" in warning


def test_quiet_prints_nothing(shelf: Path) -> None:
    outcome = run("small.onnx", *QUICK, "-q", "--json", "r.json")
    assert (outcome.exit_code, outcome.output) == (0, "")
    assert json.loads(Path("r.json").read_text(encoding="utf-8"))["files"] == ["small.onnx"]


# --- what is asked for ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "sizes"), [(["1,16"], (1, 16)), (["16", "1"], (16, 1)), (["1 4"], (1, 4)), (["2,2", "2"], (2,))]
)
def test_batches(texts: list[str], sizes: tuple[int, ...]) -> None:
    assert parse_batches(texts) == sizes


@pytest.mark.parametrize("texts", [["0"], ["a"], ["1,"], [""], ["-1"], ["1.5"]])
def test_batches_that_are_none(texts: list[str]) -> None:
    with pytest.raises(OptionError, match="--batch"):
        parse_batches(texts)


def test_engines() -> None:
    assert parse_engines("engine", ["openvino,ort", "ort"]) == ("openvino", "ort")
    with pytest.raises(OptionError, match="--for 'tpu' is unknown: choose one of ort, openvino, tensorrt"):
        parse_engines("for", ["tpu"])


@pytest.mark.parametrize(
    ("given", "bounds"),
    [
        ({}, (500, 10.0)),
        ({"runs": 7}, (7, None)),
        ({"seconds": 2.0}, (None, 2.0)),
        ({"runs": 7, "seconds": 2.0}, (7, 2.0)),
    ],
)
def test_what_bounds_a_measurement(given: dict[str, Any], bounds: tuple[int | None, float | None]) -> None:
    assert BenchOptions(**given).bounds == bounds


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nope.onnx"], "nope.onnx: no such file"),
        (["net.onnx", "data.npz"], "data.npz is not an ONNX file"),
        (["net.onnx", "--engine", "tpu"], "--engine 'tpu' is unknown: choose one of ort, openvino, tensorrt."),
        (["net.onnx", "--engine", "tensorrt"], "tensorrt is not installed: pip install tensorrt"),
        (["net.onnx", "--precision", "fp16"], "--precision fp16: ONNX Runtime"),
        (["net.onnx", "--batch", "x"], "--batch 'x' is not understood: write sizes such as 1,16."),
        (["net.onnx", "--runs", "0"], "--runs 0"),
        (["net.onnx", "--seconds", "-1"], "--seconds -1"),
        (["net.onnx", "--threads", "-1"], "--threads -1"),
        (["net.onnx", "--samples", "0"], "--samples 0"),
        (["net.onnx", "--shape", "y:1,3,8,8"], "--shape y: there is no such input; the inputs are x."),
        (["net.onnx", "--shape", "x:1,3,9,8"], "--shape x:1,3,9,8 contradicts"),
        (["open.onnx"], "say them, such as --shape x:1,3,224,224"),
        (["net.onnx", "--data", "gone.npz"], "gone.npz doesn't exist"),
        (["one.onnx", "--batch", "2"], "one.onnx can't be measured in ONNX Runtime"),
        (["net.onnx", "small.onnx", "--json", "small.onnx"], "--json and MODEL 2 are the same file, small.onnx"),
        (["net.onnx", "--json", "nowhere/r.json"], "there is no folder nowhere"),
    ],
)
def test_a_wrong_request_is_one_line(shelf: Path, arguments: list[str], words: str) -> None:
    outcome = run(*arguments)
    assert (outcome.exit_code, outcome.stdout) == (2, ""), outcome.output
    (line,) = outcome.stderr.splitlines()
    assert line.startswith("thinet-onnx: error: ") and words in line


def test_a_function_without_files() -> None:
    with pytest.raises(ThinetError, match="There is no file to measure"):
        thinet_onnx.bench()


def test_shapes_are_for_the_files_that_have_the_input(shelf: Path, recorder: Recorder) -> None:
    net = Net()
    y = net.relu(net.conv(net.input("y", ("N", 3, 8, 8)), 3, 8))
    other = net.model(net.head(y, 8))
    report = thinet_onnx.bench("open.onnx", other, shapes={"x": (1, 3, 6, 6)}, runs=1)
    assert recorder.shapes == [{"x": (1, 3, 6, 6)}, {"y": (1, 3, 8, 8)}]
    assert report.files == ("open.onnx", "model 2")


def test_the_example_in_the_help_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    (epilog,) = [entry.epilog for entry in cli.app.registered_commands if entry.callback.__name__ == "bench"]
    introduction, program, *arguments = shlex.split(epilog)
    assert (introduction, program, arguments[0]) == ("Example:", "thinet-onnx", "bench")
    assert " ".join(epilog.split()) in " ".join(run("--help").stdout.split())
    monkeypatch.chdir(ROOT)
    out = text(*arguments[1:])
    assert "batch 16" in out and "fashion_vgg.onnx" in out


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/cpuinfo")
def test_the_machine_is_named() -> None:
    found = machine()
    assert found.processor and found.cores >= 1 and "Linux" in found.system
