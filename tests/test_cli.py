"""The command line with a pipeline that only takes notes: what reaches it, what is printed, the exit codes."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

import thinet_onnx
from thinet_onnx import cli, errors
from thinet_onnx._version import __version__
from thinet_onnx.cli import bars
from thinet_onnx.data import Preprocess
from thinet_onnx.errors import ThinetError
from thinet_onnx.options import PruneOptions, Show, Silent, Target
from thinet_onnx.plan import PrunePlan
from thinet_onnx.result import Inspection, Report, Size

ROOT = Path(__file__).parent.parent
HALF = Target("macs", 0.5, True)
REPORT = Report(
    model="net.onnx",
    output="net_pruned.onnx",
    before=Size(2000, 200, 800),
    after=Size(1000, 100, 400),
    target="macs=50%",
    target_met=True,
    latency=None,
    fidelity=(),
    accuracy=None,
    channels_before=20,
    channels_after=12,
    groups=(),
    not_pruned=(),
    oracle_error=1e-7,
    seconds=1.0,
    seed=0,
    options={},
    versions={},
    plan=PrunePlan((), (), (), ()),
    warnings=("this is a warning",),
)
INSPECTION = Inspection("net.onnx", (), (), channels=20, removable=12, macs=2000, macs_removable=500, params=200)


class Pipeline:
    """Stands in for `thinet_onnx.pipeline`: keeps the arguments, returns a report or raises what it is told to."""

    def __init__(self) -> None:
        self.calls: list[SimpleNamespace] = []
        self.failure: BaseException | None = None

    def prune(self, model: Any, data: Any, options: PruneOptions, **others: Any) -> SimpleNamespace:
        self._note(model=model, data=data, options=options, **others)
        return SimpleNamespace(report=REPORT)

    def inspect(self, model: Any, **others: Any) -> Inspection:
        self._note(model=model, **others)
        return INSPECTION

    def _note(self, **arguments: Any) -> None:
        self.calls.append(SimpleNamespace(**arguments))
        if self.failure is not None:
            raise self.failure


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Pipeline:
    """Put the stand-in where the command line imports it from, in an empty folder that holds net.onnx."""
    fake = Pipeline()
    monkeypatch.setitem(sys.modules, "thinet_onnx.pipeline", fake)
    monkeypatch.setattr(thinet_onnx, "pipeline", fake, raising=False)
    monkeypatch.chdir(tmp_path)
    Path("net.onnx").write_bytes(b"")
    return fake


def run(*arguments: str) -> Any:
    return CliRunner(env={"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}).invoke(cli.app, arguments)


def prune(*arguments: str) -> Any:
    return run("prune", "net.onnx", "--data", "images", *arguments)


def error_line(outcome: Any) -> str:
    """The message of a run that ended as an error should: code 2, one line on stderr, nothing on stdout."""
    assert outcome.exit_code == 2, outcome.output
    assert outcome.stdout == ""
    lines = outcome.stderr.splitlines()
    assert len(lines) == 1
    prefix, message = lines[0][:20], lines[0][20:]
    assert prefix == "thinet-onnx: error: "
    return message


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", PruneOptions(target=HALF)),
        ("--target params=30%", PruneOptions(target=Target("params", 0.3, True))),
        ("--target macs=2.0G", PruneOptions(target=Target("macs", 2e9, False))),
        ("--keep 0.7", PruneOptions(keep=0.7)),
        (
            "--method thinet-sampled --reconstruct scale --scope all",
            PruneOptions(target=HALF, method="thinet-sampled", reconstruct="scale", scope="all"),
        ),
        ("--include a --include b.*", PruneOptions(target=HALF, include=("a", "b.*"))),
        ("--exclude head", PruneOptions(target=HALF, exclude=("head",))),
        (
            "--round-to 4 --samples 64 --seed 7",
            PruneOptions(target=HALF, round_to=4, samples=64, seed=7),
        ),
        (
            "--shape x:1,3,8,8 --shape a:b:2",
            PruneOptions(target=HALF, shapes={"x": (1, 3, 8, 8), "a:b": (2,)}),
        ),
    ],
)
def test_options_reach_the_pipeline(pipeline: Pipeline, arguments: str, expected: PruneOptions) -> None:
    outcome = prune(*arguments.split())
    assert outcome.exit_code == 0, outcome.output
    (call,) = pipeline.calls
    assert call.options == expected
    assert (call.model, call.data) == (Path("net.onnx"), "images")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", Preprocess()),
        ("--mean 0.286 --std 0.353", Preprocess(mean=(0.286,), std=(0.353,))),
        ("--mean 0.4,-1,2e-1 --scale 1", Preprocess(mean=(0.4, -1.0, 0.2), scale=1.0)),
        ("--resize 224 --layout nhwc", Preprocess(resize=(224, 224), layout="nhwc")),
        ("--resize 224X320", Preprocess(resize=(224, 320))),
    ],
)
def test_image_options_reach_the_pipeline(pipeline: Pipeline, arguments: str, expected: Preprocess) -> None:
    assert prune(*arguments.split()).exit_code == 0
    assert pipeline.calls[0].preprocess == expected


def test_data_options_reach_the_pipeline(pipeline: Pipeline) -> None:
    assert prune("--test-data", "labelled.npz").exit_code == 0
    assert run("prune", "net.onnx", "--random-data").exit_code == 0
    given, random = pipeline.calls
    assert (given.data, given.random_data, given.test_data) == ("images", False, "labelled.npz")
    assert (random.data, random.random_data, random.test_data) == (None, True, None)


@pytest.mark.parametrize(
    ("model", "arguments", "expected"),
    [
        ("net.onnx", [], "net_pruned.onnx"),
        ("folder/a.b.onnx", [], "folder/a.b_pruned.onnx"),
        ("net.onnx", ["small.onnx"], "small.onnx"),
        ("net.onnx", ["out.bin"], "out.bin"),
    ],
)
def test_output_is_the_one_named_or_lies_beside_the_model(
    pipeline: Pipeline, model: str, arguments: list[str], expected: str
) -> None:
    Path("folder").mkdir()
    assert run("prune", model, *arguments, "--data", "images").exit_code == 0
    assert pipeline.calls[0].output == Path(expected)


def test_an_output_that_exists_is_written_again(pipeline: Pipeline) -> None:
    Path("net_pruned.onnx").write_bytes(b"old")
    assert prune().exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("net.onnx", "no calibration data: pass --data with a folder of images, a .npy or .npz file"),
        ("net.onnx --data x --random-data", "say one of the two"),
        ("net.onnx --data x --target macs=50% --keep 0.5", "Say either --target"),
        ("net.onnx --data x --target flops=50%", "--target 'flops=50%' is not understood"),
        ("net.onnx --data x --keep 1.5", "--keep 1.5"),
        ("net.onnx --data x --mean 1;2", "--mean '1;2' is not understood"),
        ("net.onnx --data x --std nan", "--std 'nan' is not understood"),
        ("net.onnx --data x --mean 0.4 0.5 .6", "--mean 0.4 0.5 .6: write --mean 0.4,0.5,.6, without spaces"),
        ("net.onnx --data x --std 0.4, 0.5", "--std 0.4 0.5: write --std 0.4,0.5, without spaces"),
        ("net.onnx --data x --mean 123.7,116,103 --std 58.4", "add --scale 1, or divide both by 255"),
        ("net.onnx --data x --std 255", "--mean 0 and --std 255 are of pixels of 0 to 255"),
        ("net.onnx --data x --resize 0x8", "--resize '0x8' is not understood"),
        ("net.onnx --data x --shape 1,3", "--shape '1,3' is not understood"),
        ("net.onnx --data x --include (", "is not a regular expression"),
        ("net.onnx net.onnx --data x", "OUTPUT and MODEL are the same file"),
        ("net.onnx ./link.onnx --data x", "OUTPUT and MODEL are the same file"),
        ("net.onnx data.npz --data data.npz", "OUTPUT and --data are the same file"),
        ("net.onnx data.npz --random-data", "data.npz is there and is no .onnx file"),
        ("net.onnx out.onnx --data x --json out.onnx", "--json and OUTPUT are the same file"),
        ("net.onnx --data x --json net.onnx", "--json and MODEL are the same file"),
        ("net.onnx --data x --report net.onnx", "--report and MODEL are the same file"),
        ("net.onnx out.onnx --data x --report out.onnx", "--report and OUTPUT are the same file"),
        ("net.onnx --data x --json r --report r", "--report and --json are the same file"),
        ("net.onnx --data x --report r.html --classes r.html", "--classes r.html can't be read"),
        ("net.onnx --data x --report link.onnx --classes link.onnx", "has 0 lines"),
        ("net.onnx --data x --task boxes", "--task 'boxes' is unknown"),
        ("net.onnx --data x --report missing/r.html", "there is no folder missing"),
        ("net.onnx --data x --report folder", "it is a folder"),
        ("net.onnx missing/out.onnx --data x", "there is no folder missing"),
        ("net.onnx folder --data x", "it is a folder"),
        ("net.onnx --data x --json missing/r.json", "there is no folder missing"),
    ],
)
def test_a_wrong_request_is_one_line_before_any_work(pipeline: Pipeline, arguments: str, message: str) -> None:
    Path("link.onnx").symlink_to("net.onnx")
    Path("data.npz").write_bytes(b"")
    Path("folder").mkdir()
    assert message in error_line(run("prune", *arguments.split()))
    assert pipeline.calls == []


@pytest.mark.parametrize(
    "arguments",
    ["prune", "prune net.onnx --method best", "prune net.onnx --samples many", "prune net.onnx --what", "shrink"],
)
def test_a_usage_error_ends_with_code_2(pipeline: Pipeline, arguments: str) -> None:
    outcome = run(*arguments.split())
    assert outcome.exit_code == 2
    assert "Usage" in outcome.stderr
    assert pipeline.calls == []


@pytest.mark.parametrize("kind", [error for error in vars(errors).values() if isinstance(error, type)])
@pytest.mark.parametrize("command", [["prune", "net.onnx", "--data", "x"], ["inspect", "net.onnx"]])
def test_an_error_of_the_pipeline_is_one_line(pipeline: Pipeline, command: list[str], kind: type[ThinetError]) -> None:
    pipeline.failure = kind("The file is broken.\nMend it.")
    assert error_line(run(*command)) == "The file is broken. Mend it."


def test_debug_shows_the_traceback(pipeline: Pipeline) -> None:
    pipeline.failure = errors.ModelError("The file is broken.")
    outcome = prune("--debug")
    assert outcome.exit_code == 2
    assert "Traceback" in outcome.stderr
    assert outcome.stderr.splitlines()[-1] == "thinet-onnx: error: The file is broken."


def test_a_defect_stays_a_traceback(pipeline: Pipeline) -> None:
    pipeline.failure = ZeroDivisionError("a defect")
    assert prune().exception is pipeline.failure


def test_an_interrupt_is_one_line_and_code_130(pipeline: Pipeline) -> None:
    pipeline.failure = KeyboardInterrupt()
    outcome = prune()
    assert (outcome.exit_code, outcome.stdout, outcome.stderr) == (130, "", "thinet-onnx: interrupted\n")


def test_the_table_goes_to_stdout_and_nothing_to_stderr(pipeline: Pipeline) -> None:
    outcome = prune()
    assert "net.onnx → net_pruned.onnx" in outcome.stdout
    assert "WARNING: this is a warning" in outcome.stdout
    assert outcome.stderr == ""
    assert isinstance(pipeline.calls[0].progress, Silent)


def test_quiet_prints_nothing_but_writes_the_json_file(pipeline: Pipeline) -> None:
    outcome = prune("--quiet", "--json", "report.json")
    assert (outcome.exit_code, outcome.output) == (0, "")
    assert json.loads(Path("report.json").read_text(encoding="utf-8"))["after"]["macs"] == 1000


def test_a_page_and_the_json_of_the_same_run(pipeline: Pipeline) -> None:
    outcome = prune("--json", "r.json", "--report", "r.html", "--seed", "3", "--quiet")
    assert (outcome.exit_code, outcome.output) == (0, "")
    command = "thinet-onnx prune net.onnx --data images --json r.json --report r.html --seed 3 --quiet"
    assert json.loads(Path("r.json").read_text(encoding="utf-8"))["command"] == command
    assert command in re.sub("<[^>]*>", "", Path("r.html").read_text(encoding="utf-8"))
    assert run("report", "r.json", "again.html").output == "again.html is written.\n"
    assert Path("again.html").read_bytes() == Path("r.html").read_bytes()


def test_samples_are_kept_for_show_where_they_are_written_somewhere(pipeline: Pipeline) -> None:
    Path("names.txt").write_text("cat\ndog\n", encoding="utf-8")
    prune()
    prune("--json", "r.json")
    prune("--report", "r.html", "--task", "detect:cxcywh", "--classes", "names.txt")
    assert [call.show for call in pipeline.calls] == [None, Show(), Show(boxes="cxcywh", classes=("cat", "dog"))]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("missing.json", "missing.json can't be read"),
        ("r.json r.json", "OUTPUT and RESULT are the same file"),
        ("r.json net.onnx", "net.onnx is there and is no .html file"),
        ("r.json missing/r.html", "there is no folder missing"),
        ("net.onnx", "is no JSON"),
    ],
)
def test_a_page_that_cant_be_made(pipeline: Pipeline, arguments: str, message: str) -> None:
    assert prune("--json", "r.json").exit_code == 0
    assert message in error_line(run("report", *arguments.split()))
    assert list(Path().glob("**/*.html")) == []


def test_quiet_still_prints_errors(pipeline: Pipeline) -> None:
    pipeline.failure = errors.DataError("The data is empty.")
    assert error_line(prune("-q")) == "The data is empty."


def test_inspect(pipeline: Pipeline) -> None:
    outcome = run("inspect", "net.onnx", "--shape", "x:1,3,8,8", "--scope", "inner", "--json", "found.json")
    assert outcome.exit_code == 0
    assert "12 (60.0%) can be removed" in outcome.stdout
    assert json.loads(Path("found.json").read_text(encoding="utf-8"))["removable"] == 12
    (call,) = pipeline.calls
    assert (call.model, call.shapes, call.scope) == (Path("net.onnx"), {"x": (1, 3, 8, 8)}, "inner")


def test_inspect_looks_at_every_group_by_default(pipeline: Pipeline) -> None:
    assert run("inspect", "net.onnx").exit_code == 0
    assert (pipeline.calls[0].shapes, pipeline.calls[0].scope) == ({}, "all")


def test_inspect_does_not_write_over_the_model(pipeline: Pipeline) -> None:
    assert "--json and MODEL are the same file" in error_line(run("inspect", "net.onnx", "--json", "net.onnx"))


@pytest.mark.parametrize("command", ["prune", "inspect"])
def test_the_example_in_the_help_is_understood(pipeline: Pipeline, command: str) -> None:
    (epilog,) = [entry.epilog for entry in cli.app.registered_commands if entry.callback.__name__ == command]
    introduction, program, *arguments = shlex.split(epilog)
    assert (introduction, program, arguments[0]) == ("Example:", "thinet-onnx", command)
    assert " ".join(epilog.split()) in " ".join(run(command, "--help").stdout.split())
    Path("models").symlink_to(ROOT / "models")
    assert run(*arguments).exit_code == 0
    assert len(pipeline.calls) == 1


def test_the_version() -> None:
    assert run("--version").stdout == f"thinet-onnx {__version__}\n"


def test_the_module_is_the_command_and_its_help_loads_nothing_heavy() -> None:
    heavy = "{'onnx', 'onnxruntime', 'numpy', 'jinja2', 'cattrs'}"
    code = f"import sys; from thinet_onnx import __main__; print({heavy} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "set()"


@pytest.mark.parametrize(("given", "left"), [(None, "1"), ("0", "0")])
def test_the_telemetry_of_onnx_runtime_is_off_unless_it_is_wanted(tmp_path: Path, given: str | None, left: str) -> None:
    """With it ONNX Runtime would make a file in the folder for temporary ones, and start a thread that reports."""
    others = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment = others | {"TMPDIR": str(tmp_path)} | ({} if given is None else {"ORT_DISABLE_TELEMETRY": given})
    module = "thinet_onnx" if given else "thinet_onnx.runtime"  # nothing is loaded that would report
    code = f"import os, {module}; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == left
    assert list(tmp_path.iterdir()) == []


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bars_only_on_a_terminal_and_not_when_quiet(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    cli.prune.prune(Path("net.onnx"), data="images")
    cli.prune.prune(Path("net.onnx"), data="images", quiet=True)
    loud, quiet = pipeline.calls
    assert isinstance(loud.progress, bars.Bars)
    assert isinstance(quiet.progress, Silent)


def test_lines_on_stderr_when_verbose(pipeline: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    cli.prune.prune(Path("net.onnx"), data="images", verbose=True)
    progress = pipeline.calls[0].progress
    capsys.readouterr()
    progress.start("Weighing the [groups]", 2)
    progress.advance()
    progress.note("conv1, 64 channels: sensitivity 0.3")
    progress.start("Measuring", 1)
    progress.close()
    progress.close()
    out, told = capsys.readouterr()
    assert out == ""
    note, first, last = told.splitlines()
    assert note == "  conv1, 64 channels: sensitivity 0.3"
    assert re.fullmatch(r"Weighing the \[groups\]: 2 steps, 0\.0 s", first)
    assert re.fullmatch(r"Measuring: 1 step, 0\.0 s", last)


def test_quiet_and_verbose_contradict_each_other(pipeline: Pipeline) -> None:
    assert "--quiet and --verbose contradict each other" in error_line(prune("-q", "-v"))


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("prune a.onnx --method th", {"thinet", "thinet-omp", "thinet-sampled"}),
        ("prune a.onnx --engine o", {"ort", "openvino"}),
        ("prune a.onnx --target l", {"latency=60%"}),
        ("prune a.onnx --task detect:c", {"detect:cxcywh"}),
        ("prune a.onnx --config missing.toml --scope ", {"inner", "all"}),
        ("verify a.onnx --for t", {"tensorrt"}),
        ("bench a.onnx --precision b", {"bf16"}),
        ("finetune a.onnx --device c", {"cpu", "cuda"}),
        ("fin", {"finetune"}),
        ("prune --recon", {"--reconstruct"}),
    ],
)
def test_a_shell_is_offered_what_fits(words: str, offered: set[str]) -> None:
    typed = f"thinet-onnx {words}"
    env = {
        "_THINET_ONNX_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split(" ")) - 1)
    }  # fmt: skip
    outcome = CliRunner(env=env).invoke(cli.app, [], prog_name="thinet-onnx")
    assert {word for word in outcome.stdout.split() if word} == offered


def test_exit_codes_stand_in_the_help() -> None:
    told = " ".join(run("--help").stdout.split())
    assert "Exit codes: 0 done; 1 a check of verify was missed" in told


def test_bars_show_stage_count_and_time() -> None:
    screen = Terminal()
    drawing = bars.Bars(Console(file=screen, force_terminal=True, width=80))
    drawing.start("reading [1]", 3)
    drawing.advance()
    drawing.start("fitting", 5)
    drawing.advance(2)
    drawing.start("reading [1]", 4)
    drawing.close()
    drawing.close()
    drawn = screen.getvalue()
    assert "reading [1]" in drawn
    assert "4/4" in drawn
    assert "5/5" in drawn
