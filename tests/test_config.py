"""`--config`: what may stand in the file, what wins, what is refused; and that the file of a run repeats the run."""

import json
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import small_models
from test_cli import Pipeline, error_line, pipeline, run

import thinet_onnx
from thinet_onnx import cli, config, restore
from thinet_onnx.data import Preprocess
from thinet_onnx.options import PruneOptions, Show, Target

__all__ = ["pipeline"]  # the fixture

HALF = Target("macs", 0.5, True)


def given(toml: str, *arguments: str) -> Any:
    """What `prune net.onnx` ends with, with a file of options and some that were typed."""
    Path("run.toml").write_text(toml, encoding="utf-8")
    return run("prune", "net.onnx", "--config", "run.toml", *arguments)


@pytest.mark.parametrize(
    ("toml", "typed", "options"),
    [
        ("data = 'images'", "", PruneOptions(target=HALF)),
        ("data = 'images'\ntarget = 'params=30%'", "", PruneOptions(target=Target("params", 0.3, True))),
        ("data = 'images'\n[prune]\nkeep = 0.7\nround-to = 4", "", PruneOptions(keep=0.7, round_to=4)),
        ("data = 'images'\nseed = 1\n[prune]\nseed = 2", "", PruneOptions(target=HALF, seed=2)),
        ("data = 'images'\nseed = 1\n[prune]\nseed = 2", "--seed 3", PruneOptions(target=HALF, seed=3)),
        ("data = 'images'\ninclude = ['a', 'b']", "", PruneOptions(target=HALF, include=("a", "b"))),
        ("data = 'images'\ninclude = ['a', 'b']", "--include c", PruneOptions(target=HALF, include=("c",))),
        ("data = 'images'\nexclude = 'a,b'", "", PruneOptions(target=HALF, exclude=("a,b",))),
        ("data = 'images'\nscope = 'all'", "", PruneOptions(target=HALF, scope="all")),
        ("data = 'images'\ndrop-branches = true", "", PruneOptions(target=HALF, drop_branches=True)),
        ("data = 'images'\ndrop-branches = false", "", PruneOptions(target=HALF)),
        ("data = 'images'\ntarget = 'macs=30%'", "--keep 0.5", PruneOptions(keep=0.5)),
        ("data = 'images'\nkeep = 0.3", "--target macs=50%", PruneOptions(target=HALF)),
        ("data = 'images'\nshape = ['x:1,3,8,8']", "", PruneOptions(target=HALF, shapes={"x": (1, 3, 8, 8)})),
        ("data = 'images'\n[finetune]\nepochs = 3\n[verify]\nfor = 'tensorrt'", "", PruneOptions(target=HALF)),
    ],
)  # fmt: skip
def test_options_of_a_file(pipeline: Pipeline, toml: str, typed: str, options: PruneOptions) -> None:
    outcome = given(toml, *typed.split())
    assert outcome.exit_code == 0, outcome.output
    assert pipeline.calls[0].options == options
    assert pipeline.calls[0].data == "images"


@pytest.mark.parametrize(
    ("toml", "expected"),
    [
        ("mean = 0.286\nstd = '0.353'", Preprocess(mean=(0.286,), std=(0.353,))),
        ("mean = [0.4, -1, 0.5]\nscale = 1", Preprocess(mean=(0.4, -1.0, 0.5), scale=1.0)),
        ("mean = [-0.5]\nlayout = 'nhwc'", Preprocess(mean=(-0.5,), layout="nhwc")),
        ("resize = 224", Preprocess(resize=(224, 224))),
        ("resize = [224, 320]", Preprocess(resize=(224, 320))),
        ("resize = '224x320'", Preprocess(resize=(224, 320))),
    ],
)
def test_numbers_and_lists_of_them(pipeline: Pipeline, toml: str, expected: Preprocess) -> None:
    assert given(f"data = 'images'\n{toml}").exit_code == 0
    assert pipeline.calls[0].preprocess == expected


def test_data_typed_takes_the_place_of_noise(pipeline: Pipeline) -> None:
    assert given("random-data = true").exit_code == 0
    assert given("random-data = true", "--data", "images").exit_code == 0
    assert given("data = 'images'\nquiet = true\njson = 'r.json'\ntask = 'detect'", "--random-data").output == ""
    assert [(call.data, call.random_data) for call in pipeline.calls] == [(None, True), ("images", False), (None, True)]
    assert pipeline.calls[2].show == Show(boxes="xyxy")
    assert Path("r.json").exists()


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("roundto = 4", "run.toml: roundto is no option of prune; did you mean round-to?"),
        ("[prune]\nround_to = 4", "run.toml: [prune] round_to is no option of prune; did you mean round-to?"),
        ("xyz = 4", "run.toml: xyz is no option of prune; thinet-onnx prune --help lists them."),
        ("[prun]\nseed = 4", "run.toml: prun is no option of prune"),
        ("epochs = 4", "run.toml: epochs is no option of prune"),
        ("config = 'other.toml'", "run.toml: config is no option of prune"),
        ("model = 'net.onnx'", "run.toml: model is no option of prune"),
        ("samples = 'many'", "run.toml: samples = 'many' does not fit: it must be a whole number."),
        ("samples = 3.0", "samples = 3.0 does not fit: it must be a whole number."),
        ("samples = true", "samples = True does not fit: it must be a whole number."),
        ("keep = '0.5'", "keep = '0.5' does not fit: it must be a number."),
        ("target = 0.5", "target = 0.5 does not fit: it must be a text."),
        ("mean = [0.5, '1']", "does not fit: it must be a number, a list of numbers, or a text such as X[,X..]."),
        ("mean = []", "mean = [] does not fit"),
        ("include = [1]", "include = [1] does not fit: it must be a text, or a list of texts."),
        ("[prune]\ndrop-branches = 1", "[prune] drop-branches = 1 does not fit: it must be true or false."),
        ("scope = 'outer'", "scope = 'outer' does not fit: it must be one of inner, all."),
        ("keep = 1.5", "--keep 1.5"),
        ("seed = ", "run.toml is no TOML: "),
    ],
)
def test_a_file_that_is_refused(pipeline: Pipeline, toml: str, message: str) -> None:
    assert message in error_line(given(toml, "--data", "images"))
    assert pipeline.calls == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.toml", "--config missing.toml can't be read (No such file or directory)"),
        ("folder", "--config folder can't be read (it is a folder)"),
        ("latin.toml", "--config latin.toml can't be read (it is no text in UTF-8)"),
        ("missing.onnx", "missing.onnx: no such file"),
        ("net.onnx", "net.onnx is not an ONNX model"),
        ("other.onnx", "--config other.onnx holds no configuration: give a .toml file, or a model that thinet-onnx pruned."),
    ],
)  # fmt: skip
def test_a_file_that_cant_be_read(pipeline: Pipeline, name: str, message: str) -> None:
    Path("folder").mkdir()
    Path("latin.toml").write_bytes(b"data = '\xe9'")
    onnx.save(small_models.plain(), "other.onnx")
    assert message in error_line(run("prune", "net.onnx", "--data", "images", "--config", name))
    assert pipeline.calls == []


def test_a_usage_error_and_help_come_before_the_file(pipeline: Pipeline) -> None:
    assert "--config" in run("prune", "--help", "--config", "missing.toml").stdout
    outcome = run("prune", "net.onnx", "--config", "missing.toml", "--what")
    assert (outcome.exit_code, "No such option" in outcome.stderr) == (2, True)


def test_every_command_with_options_takes_a_file(pipeline: Pipeline) -> None:
    Path("run.toml").write_text("scope = 'inner'\n[prune]\nkeep = 0.5\n", encoding="utf-8")
    assert run("inspect", "net.onnx", "--config", "run.toml").exit_code == 0
    assert pipeline.calls[0].scope == "inner"
    Path("run.toml").write_text("[finetune]\nteacher = 'net.onnx'\nlr = '1'\n", encoding="utf-8")
    assert "[finetune] lr = '1' does not fit" in error_line(run("finetune", "net.onnx", "--config", "run.toml"))
    Path("run.toml").write_text("batch = [1, 16, 0]\n", encoding="utf-8")
    assert "--batch '1 16 0' is not understood" in error_line(run("bench", "net.onnx", "--config", "run.toml"))


TARGETS = [Target("macs", 0.5, True), Target("params", 1 / 3, True), Target("macs", 123456789.0, False),
           Target("latency", 0.6, True), Target("latency", 4.25, False), Target("latency", 0.004, False),
           Target("macs", 1e-7, True), Target("params", 3e21, False)]  # fmt: skip


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_targets_are_spelled_exactly(target: Target) -> None:
    assert Target.parse(config.spelled(target)) == target


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small network and images for it."""
    monkeypatch.chdir(tmp_path)
    onnx.save(small_models.residual(), "net.onnx")
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    np.savez("data.npz", images=images, labels=np.arange(40) % 5)
    return tmp_path


def stored(path: str) -> str:
    (text,) = [entry.value for entry in onnx.load(path).metadata_props if entry.key == config.KEY]
    return text


@pytest.mark.parametrize(
    "arguments",
    [
        "--target macs=60% --mean 0.1,0.2,0.3 --std 0.7 --samples 32 --seed 5 --test-data data.npz",
        "--keep 0.5 --method thinet-sampled --scope all --exclude stem --round-to 2 --shape x:1,3,8,8 --layout nchw",
    ],
)
def test_a_run_is_repeated_by_its_file_and_by_what_it_wrote(folder: Path, arguments: str) -> None:
    first = run("prune", "net.onnx", "one.onnx", "--data", "data.npz", *arguments.split(), "--json", "one.json")
    assert first.exit_code == 0, first.output
    report = restore.load_report("one.json")
    assert report.config == stored("one.onnx")
    assert str(folder) not in report.config
    Path("saved.toml").write_text(report.config, encoding="utf-8")
    for file in ("saved.toml", "one.onnx"):
        again = run("prune", "net.onnx", "two.onnx", "--config", file)
        assert again.exit_code == 0, again.output
        assert Path("two.onnx").read_bytes() == Path("one.onnx").read_bytes()
    other = run("prune", "net.onnx", "two.onnx", "--config", "one.onnx", "--seed", "6")
    assert other.exit_code == 0
    assert tomllib.loads(stored("two.onnx"))["prune"]["seed"] == 6


def test_a_pruned_file_tells_other_commands_what_it_is_fed_with(folder: Path) -> None:
    mean = ("--mean", "0.5", "--std", "0.25")
    assert run("prune", "net.onnx", "one.onnx", "--data", "data.npz", "--keep", "0.5", *mean).exit_code == 0
    arguments = ("one.onnx", "--reference", "net.onnx", "--batch", "1", "--json")
    assert run("verify", *arguments, "a.json", "--config", "one.onnx").exit_code == 0
    assert run("verify", *arguments, "b.json", "--data", "data.npz", *mean).exit_code == 0
    one, other = (json.loads(Path(name).read_text(encoding="utf-8")) for name in ("a.json", "b.json"))
    assert one["outputs"] == other["outputs"]


def test_inspect_takes_shapes_from_a_pruned_file_and_leaves_out_the_data(folder: Path) -> None:
    net = small_models.Net()
    x = net.relu(net.conv(net.input("x", ("N", 3, "H", "W")), 3, 8, name="conv1"))
    onnx.save(net.model(net.head(net.relu(net.conv(x, 8, 8, name="conv2")), 8)), "open.onnx")
    shape = ("--shape", "x:1,3,8,8", "--mean", "0.5", "--resize", "8")
    outcome = run("prune", "open.onnx", "one.onnx", "--data", "data.npz", "--keep", "0.5", *shape)
    assert outcome.exit_code == 0, outcome.output
    assert "has open sizes" in error_line(run("inspect", "one.onnx"))
    Path("saved.toml").write_text(stored("one.onnx"), encoding="utf-8")
    for file in ("one.onnx", "saved.toml"):
        outcome = run("inspect", "one.onnx", "--config", file)
        assert outcome.exit_code == 0, outcome.output
    Path("saved.toml").write_text("data = 'data.npz'\n[inspect]\ndata = 'data.npz'\n", encoding="utf-8")
    assert "[inspect] data is no option of inspect" in error_line(run("inspect", "one.onnx", "--config", "saved.toml"))


def test_python_stores_what_was_asked_for_too(folder: Path) -> None:
    result = thinet_onnx.prune("net.onnx", Path("data.npz"), keep=0.5, mean=(0.5,), output="one.onnx")
    assert stored("one.onnx") == result.report.config
    assert run("prune", "net.onnx", "two.onnx", "--config", "one.onnx", "--task", "auto").exit_code == 0
    one, other = (onnx.load(name) for name in ("one.onnx", "two.onnx"))
    assert one.graph == other.graph
    arrays = {"x": np.zeros((8, 3, 8, 8), np.float32) + np.arange(8, dtype=np.float32)[:, None, None, None]}
    told = thinet_onnx.prune("one.onnx", arrays, keep=0.5).report.config
    assert "came from a Python program" in told
    assert "data" not in tomllib.loads(told)


def test_all_that_prune_can_be_asked_is_in_the_file_or_left_out_on_purpose(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new option must be stored, or named here as one that doesn't belong to the result."""

    def trained(model: Any, data: Any, options: PruneOptions, *, schedule: Any, **others: Any) -> SimpleNamespace:
        return pipeline.prune(model, data, options, **others)

    rounds = SimpleNamespace(Schedule=lambda *schedule: schedule, prune=trained)
    monkeypatch.setitem(sys.modules, "thinet_onnx.rounds", rounds)
    monkeypatch.setattr(thinet_onnx, "rounds", rounds, raising=False)
    Path("names.txt").write_text("cat\n", encoding="utf-8")
    found = set()
    for arguments in (
        "--data a --samples 9 --shape x:1 --mean 1 --std 1 --scale 1 --resize 8 --target latency=60% --include a --exclude b "
        "--round-to 2 --positions 9 --drop-branches --latency-batch 2 --threads 1 --test-data b --classes names.txt",
        "--data a --preset thinet-conv --finetune-epochs 1 --finetune-per-layer 1 --finetune flip=on",
        "--random-data --keep 0.5",
    ):
        outcome = run("prune", "net.onnx", *arguments.split())
        assert outcome.exit_code == 0, outcome.output
        told = tomllib.loads(pipeline.calls[-1].config)
        found |= {*told.pop("prune"), *told}
    (command,) = [entry.callback for entry in cli.app.registered_commands if entry.callback.__name__ == "prune"]
    options = {name.replace("_", "-") for name in command.__annotations__}
    assert found == options - {
        "model",
        "output",
        "memory",
        "return",
        "json-file",
        "report-file",
        "quiet",
        "verbose",
        "debug",
        "config",
        "state",  # these three change nothing of the result
        "save-moments",
        "from-moments",
        "processes",
    }
