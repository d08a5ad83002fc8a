"""`verify`: every check passes where it should and fails where it should, by name; figures are what NumPy makes of them."""

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
import small_models
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from rich.console import Console
from small_models import Net
from typer.testing import CliRunner

import thinet_onnx
from thinet_onnx import acceptance, cli, engines, timing
from thinet_onnx.acceptance import elsewhere, table
from thinet_onnx.acceptance.result import VerifyReport
from thinet_onnx.acceptance.tally import Tally
from thinet_onnx.check_options import VerifyOptions
from thinet_onnx.errors import ModelError, OptionError

ROOT = Path(__file__).parent.parent
X = np.random.default_rng(0).standard_normal((12, 3, 8, 8)).astype(np.float32)
Change = Callable[[onnx.ModelProto], None]


@pytest.fixture(autouse=True)
def few_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The latency of five rounds is enough here."""
    real = timing.interleaved
    monkeypatch.setattr(acceptance, "interleaved", lambda calls, **_: real(calls, runs=5, seconds=None, warm_up=0.0))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network, what pruning makes of it, and data."""
    folder = tmp_path_factory.mktemp("verify")
    onnx.save(small_models.residual(), folder / "net.onnx")
    thinet_onnx.prune(folder / "net.onnx", {"x": np.repeat(X, 4, 0)}, target="macs=70%", output=folder / "pruned.onnx")
    np.savez(folder / "data.npz", x=X)
    np.savez(folder / "labelled.npz", x=X, labels=np.arange(12) % 5)
    return folder


@pytest.fixture
def here(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    return made


def run(*arguments: str) -> Any:
    return CliRunner(env={"COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb"}).invoke(cli.app, ["verify", *arguments])


def checked(change: Change, data: Any = None, **options: Any) -> VerifyReport:
    """The report on a copy of `plain` with a change."""
    model = small_models.plain()
    change(model)
    return thinet_onnx.verify_pruned(model, small_models.plain(), X[:4] if data is None else data, **options)


def statuses(report: VerifyReport) -> dict[str, str]:
    return {check.name: check.status for check in report.checks}


def failed(report: VerifyReport) -> dict[str, str]:
    assert report.passed is (not report.failures)
    return {check.name: check.detail for check in report.failures}


# --- all is well ------------------------------------------------------------------------------------------------------


def test_a_pruned_file_passes(here: Path) -> None:
    outcome = run("pruned.onnx", "--reference", "net.onnx", "--data", "data.npz", "--json", "report.json")
    assert outcome.exit_code == 0, outcome.output
    assert "All 8 checks passed; how near the outputs are was not among them" in outcome.stdout
    report = json.loads(Path("report.json").read_text(encoding="utf-8"))
    assert report["passed"] is True
    assert [check["name"] for check in report["checks"]] == [
        "onnx.checker", "shape inference", "inputs and outputs", "loads in ONNX Runtime", "runs at batch 1",
        "runs at batch 2", "runs at batch 8", "outputs are finite",
    ]  # fmt: skip
    before, after = report["before"], report["after"]
    assert after["macs"] < 0.72 * before["macs"]
    assert after["params"] < before["params"]
    assert after["bytes"] == Path("pruned.onnx").stat().st_size
    assert before["bytes"] == Path("net.onnx").stat().st_size
    assert report["speed"]["before"]["runs"] == 5


def test_figures_are_those_of_the_outputs(here: Path) -> None:
    report = thinet_onnx.verify_pruned("pruned.onnx", "net.onnx", "labelled.npz")
    old, new = (
        small_models.run(onnx.load(name), {"x": X})[0].astype(np.float64) for name in ("net.onnx", "pruned.onnx")
    )
    (row,) = report.outputs
    norms = np.linalg.norm(old, axis=1), np.linalg.norm(new, axis=1)
    assert row.cosine == pytest.approx(((old * new).sum(1) / norms[0] / norms[1]).mean(), rel=1e-5)
    assert row.relative_error == pytest.approx(np.linalg.norm(new - old) / np.linalg.norm(old), rel=1e-4)
    assert row.top1 == (old.argmax(1) == new.argmax(1)).mean()
    assert (row.samples, row.equal, row.unlike) == (12, None, 0)
    errors = np.linalg.norm(new - old, axis=1) / norms[0]
    worst = np.argsort(-errors)[:5]
    assert [entry.title for entry in report.worst] == [f"sample {number}" for number in worst]
    assert [entry.relative_error for entry in report.worst] == pytest.approx(errors[worst], rel=1e-3)
    assert [(e.top1_before, e.top1_after) for e in report.worst] == [(old[n].argmax(), new[n].argmax()) for n in worst]
    assert report.accuracy is not None
    labels = np.arange(12) % 5
    assert report.accuracy.before == pytest.approx((old.argmax(1) == labels).mean())
    assert report.accuracy.after == pytest.approx((new.argmax(1) == labels).mean())


def test_a_file_equals_itself(here: Path) -> None:
    report = thinet_onnx.verify_pruned("net.onnx", "net.onnx", "data.npz", max_error=0, min_agreement=1)
    assert failed(report) == {}
    assert (report.outputs[0].relative_error, report.outputs[0].top1, report.worst) == (0.0, 1.0, ())
    assert report.after is not None and report.before == report.after


def test_the_worst_inputs_are_named_by_their_files(here: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for name in ("a.png", "b.png", "c.png"):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / name)
    report = thinet_onnx.verify_pruned("pruned.onnx", "net.onnx", tmp_path)
    assert {entry.title for entry in report.worst} == {"a.png", "b.png", "c.png"}


def test_batches_are_the_files_own_where_it_fixes_them() -> None:
    model = small_models.plain(batch=4)
    report = thinet_onnx.verify_pruned(model, model, X)
    assert [name for name in statuses(report) if name.startswith("runs")] == ["runs at batch 4"]
    assert report.outputs[0].samples == 12
    skipped = statuses(thinet_onnx.verify_pruned(model, model, X, batches=[4, 8]))
    assert (skipped["runs at batch 4"], skipped["runs at batch 8"]) == ("passed", "skipped")


def test_a_file_from_before_operator_sets_is_compared_as_it_was_renewed() -> None:
    def build(old: bool) -> onnx.ModelProto:
        net = Net(opset=7)
        model = net.model(net.head(net.relu(net.conv(net.input("x", (1, 3, 8, 8)), 3, 8)), 8))
        model.ir_version = 3
        for tensor in model.graph.initializer:
            model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        if old:
            del model.opset_import[:]
            model.ir_version = 2
        return model

    report = thinet_onnx.verify_pruned(build(False), build(True), X[:2])
    assert failed(report) == {} and report.outputs[0].relative_error == 0.0
    assert any("older than operator sets" in warning for warning in report.warnings)


# --- what fails, and by which name -------------------------------------------------------------------------------------


def replace(name: str, change: Callable[[np.ndarray], Any]) -> Change:
    def apply(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.name == name:
                tensor.CopyFrom(numpy_helper.from_array(np.asarray(change(numpy_helper.to_array(tensor))), name))

    return apply


def old_ir(model: onnx.ModelProto) -> None:
    model.ir_version = 3  # constants would have to be among the inputs


def wrong_inner_shape(model: onnx.ModelProto) -> None:
    model.graph.value_info.append(helper.make_tensor_value_info("v1", TensorProto.FLOAT, ["N", 9, 8, 8]))


def other_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "other"
    model.graph.node[-1].output[0] = "other"


def other_input_shape(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def other_sizes(model: onnx.ModelProto) -> None:
    """A size is declared for an inner tensor that it can't have."""
    name = model.graph.node[0].output[0]
    model.graph.value_info.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 99, 8, 8]))


def unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "Konv"


def _insert(model: onnx.ModelProto, *nodes: onnx.NodeProto) -> None:
    """Put nodes between the input and the first convolution: they read x and end in `inserted`."""
    model.graph.node[0].input[0] = "inserted"
    whole = [*nodes, *model.graph.node]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in whole]
    del model.graph.node[:]
    model.graph.node.extend(copies)


def one_item_only(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 3, 8, 8], np.int64), "to"))
    _insert(model, helper.make_node("Reshape", ["x", "to"], ["inserted"]))


def mixed_items(model: onnx.ModelProto) -> None:
    _insert(
        model,
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Add", ["x", "mean"], ["inserted"]),
    )


def wants_eight(model: onnx.ModelProto) -> None:
    """Runs on nothing smaller than eight items."""
    model.graph.initializer.append(numpy_helper.from_array(np.array([8, -1, 8, 8], np.int64), "to"))
    _insert(model, helper.make_node("Reshape", ["x", "to"], ["inserted"]))


@pytest.mark.parametrize(
    ("change", "name", "words"),
    [
        (old_ir, "onnx.checker", "in initializer but not in graph input"),
        (wrong_inner_shape, "shape inference", "(8) vs (9)"),
        (other_output, "inputs and outputs", "its outputs are other, the original's v"),
        (other_input_shape, "inputs and outputs", "input 'x' is FLOAT (1,3,8,8), the original's FLOAT (?,3,8,8)"),
        (unknown_operator, "loads in ONNX Runtime", "Konv"),
        (other_sizes, "shape inference", "99"),
        (one_item_only, "runs at batch 2", "can't run the model on these inputs"),
        (mixed_items, "runs at batch 8", "the answers differ from those to the items alone"),
        (wants_eight, "runs on the data", "can't run the model on these inputs"),
        (replace("t0", lambda w: w * np.float32(np.nan)), "outputs are finite", "not for sample 0, output"),
        (replace("t0", lambda w: w * np.float32(1e38)), "outputs are finite", "not for sample"),
    ],
)
def test_a_fault_is_found_by_its_check(change: Change, name: str, words: str) -> None:
    report = checked(change)
    assert words in failed(report)[name]


def test_what_can_not_be_reached_is_left_out() -> None:
    report = checked(unknown_operator)
    assert (report.outputs, report.after, report.speed) == ((), None, None)
    assert list(statuses(report))[-1] == "loads in ONNX Runtime"
    report = checked(other_output)
    assert statuses(report)["loads in ONNX Runtime"] == "passed"
    assert report.after is None


@pytest.mark.parametrize(
    ("change", "name", "status"),
    [
        (old_ir, "onnx.checker", "skipped"),
        (wrong_inner_shape, "shape inference", "skipped"),
        (one_item_only, "runs at batch 8", "skipped"),
        (mixed_items, "runs at batch 8", "passed"),
        (other_output, "inputs and outputs", "passed"),
    ],
)
def test_what_the_original_does_as_well_is_no_fault(change: Change, name: str, status: str) -> None:
    model = small_models.plain()
    change(model)
    report = thinet_onnx.verify_pruned(model, model, X[:4])
    assert statuses(report)[name] == status
    assert report.passed


def test_a_batch_that_only_the_original_takes_is_a_fault() -> None:
    model = small_models.plain(batch=1)
    report = thinet_onnx.verify_pruned(model, small_models.plain(), X[:4], batches=[2])
    assert "input 'x' is FLOAT (1,3,8,8)" in failed(report)["inputs and outputs"]


@pytest.mark.parametrize(
    ("options", "name", "words"),
    [
        ({"max_error": 0.001}, "relative error", "over 0.001: 'v"),
        ({"min_agreement": 0.999}, "top-1 agreement", "under 99.90%: 'v"),
    ],
)
def test_bars(options: dict[str, float], name: str, words: str) -> None:
    worse = replace("t4", lambda w: -9 * w)
    assert words in failed(checked(worse, X, **options))[name]
    assert failed(checked(worse, X, **{key: {"max_error": 99.0}.get(key, 0.0) for key in options})) == {}
    assert failed(checked(worse, X)) == {}  # without a bar an error is only shown


def test_nan_is_over_every_bar() -> None:
    broken = replace("t0", lambda w: w * np.float32(np.nan))
    assert "relative error" in failed(checked(broken, max_error=1e9))


def argmax_only() -> onnx.ModelProto:
    net = Net()
    return net.model(net.node("ArgMax", net.head(net.relu(net.conv(net.input("x", ("N", 3, 8, 8)), 3, 8)), 8), axis=1))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_error": 1.0}, "--max-error: no output is floating point"),
        ({"min_agreement": 0.5}, "--min-agreement: no output looks"),
    ],
)
def test_a_bar_that_nothing_can_be_held_against(options: dict[str, float], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        thinet_onnx.verify_pruned(argmax_only(), argmax_only(), X[:2], **options)


def test_integers_are_compared_element_by_element() -> None:
    (row,) = thinet_onnx.verify_pruned(argmax_only(), argmax_only(), X[:3]).outputs
    assert (row.equal, row.relative_error, row.top1) == (1.0, None, None)


def test_the_exit_code_is_1_and_the_last_line_says_which(here: Path) -> None:
    outcome = run(
        "pruned.onnx", "--reference", "net.onnx", "--data", "data.npz", "--max-error", "1e-9", "--json", "r.json"
    )
    assert outcome.exit_code == 1
    assert outcome.stdout.splitlines()[-1] == "FAILED: 1 of 9 checks: relative error."
    assert json.loads(Path("r.json").read_text(encoding="utf-8"))["passed"] is False
    assert outcome.stderr == ""


def test_quiet_leaves_the_exit_code(here: Path) -> None:
    outcome = run("pruned.onnx", "--reference", "net.onnx", "--data", "data.npz", "--max-error", "1e-9", "-q")
    assert (outcome.exit_code, outcome.output) == (1, "")


# --- sums over inputs -------------------------------------------------------------------------------------------------


def test_outputs_of_varying_shape() -> None:
    """Detections: as many rows as there are objects."""
    tally = Tally(["boxes"])
    ones = np.ones((2, 4), np.float32)
    tally.add("a", [ones], [ones])
    tally.add("b", [ones], [ones[:1]])
    tally.add("c", [ones[:0]], [ones[:0]])
    (row,) = tally.rows()
    assert (row.unlike, row.relative_error) == (1, 0.0)
    assert tally.broken is None


def test_outputs_that_are_all_zero() -> None:
    tally = Tally(["y"])
    tally.add("a", [np.zeros((1, 3), np.float32)], [np.zeros((1, 3), np.float32)])
    assert tally.rows()[0].relative_error == 0.0


def test_nan_that_the_original_has_too_is_no_fault() -> None:
    tally = Tally(["y"])
    broken = np.array([[np.nan, 1.0]], np.float32)
    tally.add("a", [broken], [broken])
    assert tally.broken is None
    tally.add("b", [broken], [broken[:, ::-1]])
    assert tally.broken == "b, output 'y'"


def test_the_worst_output_of_an_input_is_the_one_that_is_named() -> None:
    tally = Tally(["y", "z"])
    one = np.ones((1, 4, 2, 2), np.float32)
    tally.add("a", [one, one], [one, 1.5 * one])
    for number in range(6):
        tally.add(f"{number}", [one, one], [(1.01 + number / 100) * one, one])
    worst = tally.worst()
    assert [(entry.title, entry.output) for entry in worst] == [
        ("a", "z"),
        ("5", "y"),
        ("4", "y"),
        ("3", "y"),
        ("2", "y"),
    ]
    assert worst[0].top1_before is None


# --- other engines ----------------------------------------------------------------------------------------------------


def test_openvino_for_real(here: Path) -> None:
    outcome = run(
        "pruned.onnx", "--reference", "net.onnx", "--data", "data.npz", "--for", "openvino,ort", "--json", "r.json"
    )
    assert outcome.exit_code == 0, outcome.output
    (answer,) = json.loads(Path("r.json").read_text(encoding="utf-8"))["engines"]
    assert (answer["engine"], answer["samples"], answer["missing"]) == ("openvino", 8, None)
    assert 0 <= answer["difference"] < 1e-4 and 0 <= answer["original"] < 1e-4
    assert "For OpenVINO 20" in outcome.stdout and "For ONNX Runtime" in outcome.stdout


def test_what_is_not_installed_is_said_and_the_file_judged_all_the_same(here: Path) -> None:
    outcome = run("pruned.onnx", "--reference", "net.onnx", "--data", "data.npz", "--for", "tensorrt", "--batch", "1,4")
    out = " ".join(outcome.stdout.split())
    assert outcome.exit_code == 0, outcome.output
    assert "not run tensorrt is not installed: pip install tensorrt" in out
    assert "trtexec --onnx=pruned.onnx --saveEngine=pruned.plan --minShapes=x:1x3x8x8 --optShapes=x:4x3x8x8" in out
    assert "ready for TensorRT" in out and "1 skipped" in out


def test_a_file_that_is_not_ready_fails() -> None:
    def det(model: onnx.ModelProto) -> None:
        _insert(
            model,
            helper.make_node("Det", ["x"], ["d"], name="det"),
            helper.make_node("Unsqueeze", ["d", "two"], ["e"]),
            helper.make_node("Add", ["x", "e"], ["inserted"]),
        )
        model.graph.initializer.append(numpy_helper.from_array(np.array([2, 3], np.int64), "two"))

    report = checked(det, engines=["tensorrt"])
    assert failed(report) == {"ready for TensorRT": "Its parser doesn't read Det (1 node: det)."}


class Shifted:
    """An engine that answers ONNX Runtime's answer plus a share of its largest value, more or less by the size of the file."""

    name: ClassVar[str] = "tensorrt"
    called: ClassVar[str] = "TensorRT"
    title = "TensorRT 99"

    def __init__(self, new: float, old: float | None) -> None:
        self.new, self.old = new, old
        self.open = 0

    def load(self, model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> Any:
        assert shapes == {"x": (1, 3, 8, 8)}
        share = self.new if model.producer_name == "pruned" else self.old
        if share is None:
            raise ModelError("It can't.")
        self.open += 1
        engine = self

        class Program:
            def run(self, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
                (answer,) = small_models.run(model, feeds)
                return [answer + share * np.abs(answer).max()]

            def close(self) -> None:
                engine.open -= 1

        return Program()


@pytest.mark.parametrize(
    ("new", "old", "options", "status"),
    [
        (0.005, 0.005, {}, "passed"),
        (0.05, 0.001, {}, "failed"),
        (0.05, 0.05, {}, "skipped"),
        (0.05, None, {}, "failed"),
        (0.05, 0.001, {"precision": "bf16"}, "passed"),
        (0.05, 0.001, {"tolerance": 0.1}, "passed"),
        (0.005, 0.001, {"tolerance": 0.001}, "failed"),
        (None, 0.001, {}, "failed"),
    ],
)
def test_an_engine_that_is_here_is_asked(
    monkeypatch: pytest.MonkeyPatch, new: float, old: float, options: dict[str, Any], status: str
) -> None:
    shifted = Shifted(new, old)
    monkeypatch.setattr(elsewhere.engines, "missing", lambda _: None)
    real = engines.make
    monkeypatch.setattr(elsewhere.engines, "make", lambda name, *a, **k: shifted if name == "tensorrt" else real(name))

    def mark(model: onnx.ModelProto) -> None:
        model.producer_name = "pruned"

    report = checked(mark, engines=["tensorrt"], **options)
    assert statuses(report)["answers in TensorRT"] == status
    assert shifted.open == 0
    (answer,) = report.engines
    assert answer.called == "TensorRT 99"
    if new is not None:
        assert answer.difference == pytest.approx(new, rel=1e-3)


class Off:
    """An engine that adds a little to every input, or answers in another shape."""

    def __init__(self, more: float, shape: tuple[int, ...] | None = None) -> None:
        self.more, self.shape = more, shape

    def load(self, *_: Any) -> "Off":
        return self

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        answer = np.maximum(feeds["x"], 0) + np.float32(self.more)
        return [answer if self.shape is None else answer.reshape(self.shape)]

    def close(self) -> None:
        pass


def test_an_engine_is_compared_on_the_scale_of_all_inputs() -> None:
    """A picture with nothing to find has scores of 1e-6; they aren't what the others are measured by."""
    net = Net()
    subject: Any = SimpleNamespace(model=net.model(net.relu(net.input("x", (1, 4)))))
    feeds = [{"x": np.full((1, 4), value, np.float32)} for value in (1e-6, 2.0)]
    assert elsewhere._difference(Off(1e-6), subject, feeds) == pytest.approx(5e-7, rel=0.2)  # type: ignore[arg-type]
    assert elsewhere._difference(Off(0.0, (4, 1)), subject, feeds) == float("inf")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("engine", "precision", "coarse", "bound"),
    [
        ("openvino", "fp32", False, 1e-3),
        ("tensorrt", "fp32", False, 1e-2),
        ("openvino", "fp32", True, 5e-2),
        ("openvino", "bf16", True, 0.1),
    ],
)
def test_how_far_an_engine_may_be(engine: Any, precision: Any, coarse: bool, bound: float) -> None:
    assert elsewhere.tolerance(engine, precision, coarse) == bound


def test_a_request_that_an_engine_can_not_meet_is_known_before_any_work(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OptionError("--precision fp16: not here.")

    monkeypatch.setattr(elsewhere.engines, "make", refuse)
    outcome = run("nothing.onnx", "--reference", "net.onnx", "--data", "data.npz", "--for", "openvino")
    assert outcome.exit_code == 2
    assert "--precision fp16: not here." in outcome.stderr


# --- what is shown and asked for --------------------------------------------------------------------------------------


def test_random_data_are_owned_up_to(here: Path) -> None:
    outcome = run("pruned.onnx", "--reference", "net.onnx", "--random-data", "--samples", "3")
    assert outcome.exit_code == 0
    assert "WARNING: Compared on random data" in outcome.stdout
    assert "on 3 items of random data" in outcome.stdout


def test_names_are_no_markup(here: Path) -> None:
    report = thinet_onnx.verify_pruned("pruned.onnx", "net.onnx", "data.npz")
    screen = io.StringIO()
    marked = VerifyReport(**(vars(report) | {"pruned": "[red]x.onnx", "warnings": ("[b]w",)}))
    table.render(marked, Console(file=screen, width=100))
    assert "[red]x.onnx" in screen.getvalue() and "[b]w" in screen.getvalue()


FINE = ["pruned.onnx", "--reference", "net.onnx", "--data", "data.npz"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pruned.onnx", "--reference", "net.onnx"], "No data to compare the files on: pass --data"),
        ([*FINE, "--random-data"], "contradict each other"),
        (["gone.onnx", "--reference", "net.onnx", "--data", "data.npz"], "gone.onnx: no such file"),
        (["pruned.onnx", "--reference", "gone.onnx", "--data", "data.npz"], "gone.onnx: no such file"),
        (["data.npz", "--reference", "net.onnx", "--data", "data.npz"], "data.npz is not an ONNX file"),
        (["pruned.onnx", "--reference", "net.onnx", "--data", "gone.npz"], "gone.npz doesn't exist"),
        ([*FINE, "--max-error", "-1"], "--max-error -1"),
        ([*FINE, "--min-agreement", "99"], "--min-agreement 99"),
        ([*FINE, "--tolerance", "nan"], "--tolerance nan"),
        ([*FINE, "--for", "tpu"], "--for 'tpu' is unknown"),
        ([*FINE, "--batch", "x"], "--batch 'x'"),
        ([*FINE, "--shape", "y:1"], "--shape y: net.onnx has no such"),
        ([*FINE, "--json", "net.onnx"], "--json and --reference are the same"),
    ],
)
def test_a_wrong_request_is_one_line(here: Path, arguments: list[str], words: str) -> None:
    outcome = run(*arguments)
    assert (outcome.exit_code, outcome.stdout) == (2, ""), outcome.output
    (line,) = outcome.stderr.splitlines()
    assert line.startswith("thinet-onnx: error: ") and words in line


def test_the_reference_is_needed(here: Path) -> None:
    outcome = run("pruned.onnx", "--data", "data.npz")
    assert outcome.exit_code == 2 and "--reference" in outcome.stderr


@pytest.mark.parametrize(
    "given", [{"max_error": -1.0}, {"min_agreement": 2.0}, {"batches": (0,)}, {"threads": -1}, {"samples": 0}]
)
def test_options_that_can_not_be(given: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="--"):
        VerifyOptions(**given)
