"""What `finetune`, `verify`, `bench`, `report` and latency targets refuse: one sentence, exit code 2, nothing new on disk."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import small_models
from onnx import numpy_helper
from refusals import listing, run, sentence
from typer.testing import CliRunner

from thinet_onnx import cli, report

X = np.random.default_rng(0).standard_normal((16, 3, 8, 8)).astype(np.float32)
LOSSES = """
def fails(outputs, batch):
    raise ValueError("no\\nluck")

def quits(outputs, batch):
    raise SystemExit(3)

def number(outputs, batch):
    return 1.0

def many(outputs, batch):
    return next(iter(outputs.values()))

def none(outputs, batch):
    return next(iter(outputs.values())).mean() * float("nan")

nothing = 5
"""

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="PyTorch is not installed: what finetune refuses is NOT TESTED"
)


def changed(model: onnx.ModelProto, number: int, change: Callable[[Any], Any]) -> onnx.ModelProto:
    """The model with another value of an initializer."""
    tensor = model.graph.initializer[number]
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)).astype(np.float32), tensor.name))
    return model


def renamed(old: str, new: str) -> onnx.ModelProto:
    """The model with another name of an input or output."""
    model = small_models.plain()
    for value in (*model.graph.input, *model.graph.output):
        value.name = new if value.name == old else value.name
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]
    return model


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, data, scripts and files of many kinds."""
    folder = tmp_path_factory.mktemp("requests")
    models = {
        "net": small_models.plain(),
        "small": changed(small_models.plain(), 0, lambda w: 1.1 * w),
        "nan": changed(small_models.plain(), 4, lambda w: w * np.nan),
        "other_input": renamed("x", "y"),
        "other_output": renamed(small_models.plain().graph.output[0].name, "renamed"),
        "residual": small_models.residual(),
    }
    for name, model in models.items():
        onnx.save(model, folder / f"{name}.onnx")
    np.savez(folder / "data.npz", x=X)
    np.savez(folder / "one.npz", x=X[:1])
    np.savez(folder / "renamed.npz", picture=X)
    np.savez(folder / "labelled.npz", x=X, labels=np.arange(16) % 5)
    np.savez(folder / "many.npz", x=X, labels=np.arange(16))
    np.savez(folder / "below.npz", x=X, labels=np.arange(16) % 5 - 1)
    (folder / "text.onnx").write_bytes(b"no model")
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    (folder / "weights.bin").write_bytes(b"mine as well")
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "endless").symlink_to("/dev/zero")
    (folder / "loss.py").write_text(LOSSES, encoding="utf-8")
    (folder / "broken.py").write_text("def loss(: pass", encoding="utf-8")
    (folder / "raises.py").write_text("raise ImportError('gone')", encoding="utf-8")
    made = CliRunner().invoke(
        cli.app,
        ["prune", str(folder / "net.onnx"), str(folder / "kept.onnx"), "--data", str(folder / "data.npz"), "--keep", "0.5",
         "--json", str(folder / "good.json")],
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    whole = json.loads((folder / "good.json").read_text(encoding="utf-8"))
    for name, content in {
        "list": "[]", "number": "5", "null": "null", "empty": "", "cut": json.dumps(whole)[:3000], "deep": "[" * 200_000,
        "large": f'{{"plan": {"9" * 5000}}}', "words": json.dumps(whole | {"before": "much"}),
        "shapeless": json.dumps(whole | {"plan": []}), "infinite": json.dumps(whole).replace('"seed": 0', '"seed": 1e999'),
        "inspected": '{"macs_removable": 5}', "measured": '{"rows": [], "files": ["net.onnx"]}',
    }.items():  # fmt: skip
        (folder / f"{name}.json").write_text(content, encoding="utf-8")
    (folder / "bytes.json").write_bytes(b"\xff\xfe\x00{")
    return folder


@pytest.fixture
def here(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder to work in; nothing in it may have changed at the end."""
    monkeypatch.chdir(shelf)
    before = listing(shelf)
    yield shelf
    assert listing(shelf) == before


def rows(*table: tuple[str, str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("options", "words"), table, ids=[options[:60] or "none" for options, _ in table])


# --- finetune ---------------------------------------------------------------------------------------------------------

TUNE = "finetune small.onnx out.onnx --teacher net.onnx --data data.npz --steps 2 --batch 8"


@needs_torch
@rows(
    ("--lr nan", "--learning-rate nan: it must be a number"),
    ("--lr inf", "--learning-rate inf: it must be a number"),
    ("--lr -1", "--learning-rate -1: it must be positive"),
    ("--lr 1e30", "Training diverged at step \\d .*lower --learning-rate"),
    ("--temperature 0", "--temperature 0: it must be positive"),
    ("--clip nan", "--clip nan: it must be a number"),
    ("--weight-decay -1", "--weight-decay -1: it must not be negative"),
    ("--distill inf", "--distill inf: it must be a number"),
    ("--distill 0", "Nothing is to be learned: give one of --distill"),
    ("--warmup 1", "--warmup 1: it must lie between 0 and 1"),
    ("--ema 1", "--ema 1: it must lie between 0 and 1"),
    ("--momentum -1", "--momentum -1: it must lie between 0 and 1"),
    ("--mix 0.5 --label-weight 1", "--mix and --label-weight contradict each other"),
    ("--mosaic 2", "--mosaic 2: the share of images must lie between 0 and 1"),
    ("--compile --batch-norm learned", "--compile and --batch-norm learned don't go together"),
    ("--crop -1", "--crop -1: it must not be negative"),
    ("--zoom 1", "--zoom 1: it must lie between 0 and 1, 1 excluded"),
    ("--epochs 0", "--epochs 0: it must be 1 or more"),
    ("--steps 0", "--steps 0: it must be 1 or more"),
    ("--batch 0", "--batch 0: it must be 1 or more"),
    ("--validate-every 0", "--validate-every 0: it must be 1 or more"),
    ("--patience -1", "--patience -1: it must not be negative"),
    ("--held-out 1", "share of the data to hold out is 1"),
    ("--held-out nan", "--held-out nan: it must be a number"),
    ("--samples 0", "--samples 0: at least 1"),
    ("--seed -1", "--seed -1: it must be 0 or more"),
    (f"--seed {1 << 64}", f"--seed {1 << 64}: it must be 0 or more, and below"),
    ("--output-weight v6=nan", "--output-weight 'nan' is not understood"),
    ("--output-weight nobody=1", "--output-weight: the network has no output 'nobody'"),
    ("--feature-weight 1 --feature nobody", "no tensor 'nobody' to compare"),
    ("--trainable-from nobody", "--trainable-from nobody: the model has no node"),
    ("--shape y:1", "--shape y: small.onnx has no such input"),
    ("--mean 0.5", "--mean, --std, --scale and --resize apply to uint8 images"),
)
def test_training_that_makes_no_sense(here: Path, options: str, words: str) -> None:
    assert re.search(words, run(*TUNE.split(), *options.split()))


@needs_torch
@rows(
    ("--loss loss.py", "there is no such script; write script.py:function"),
    ("--loss gone.py:f", "there is no such script"),
    ("--loss loss.py:gone", "loss.py has no function 'gone'"),
    ("--loss loss.py:nothing", "loss.py has no function 'nothing'"),
    ("--loss broken.py:loss", "broken.py failed with SyntaxError: .*; mend the script"),
    ("--loss raises.py:loss", "raises.py failed with ImportError: gone; mend"),
    ("--loss loss.py:fails", "--loss: the function failed with ValueError: no; mend"),
    ("--loss loss.py:quits", "--loss: the function failed with SystemExit: 3; mend"),
    ("--loss loss.py:number", "must return a tensor of one element"),
    ("--loss loss.py:many", "must return a tensor of one element"),
    ("--loss loss.py:none", "Training diverged at step 1"),
)
def test_a_loss_that_can_not_be_used(here: Path, options: str, words: str) -> None:
    assert re.search(words, run(*TUNE.split(), *options.split()))


@needs_torch
@rows(
    ("--teacher gone.onnx", "gone.onnx: no such file"),
    ("--teacher text.onnx", "text.onnx is not an ONNX file"),
    ("--teacher folder", "folder is a folder"),
    ("--teacher pipe", "pipe is a device or a pipe"),
    ("--teacher endless", "endless is a device or a pipe"),
    ("--teacher other_input.onnx", "other_input.onnx takes 'y' .* but small.onnx takes 'x'"),
    ("--teacher other_output.onnx", "The original has no tensor"),
    ("--teacher residual.onnx", "in the pruned one and .* in the original; give the file"),
    ("--teacher nan.onnx", "of the original is NaN or infinite on the data"),
    ("--data gone.npz", "gone.npz doesn't exist"),
    ("--data one.npz", "too little data"),
    ("--data renamed.npz", "renamed.npz has no array 'x'"),
    ("--data pipe", "pipe is of no known kind"),
    ("--label-weight 1", "there are none in .*data.npz: leave --label-weight out"),
    ("--label-weight 1 --data many.npz", "many.npz: its labels range from 0 to 15, but the model tells 5 classes"),
    ("--label-weight 1 --data below.npz", "below.npz: its labels range from -1 to 3"),
    ("--test-data data.npz", "data.npz.* has no labels"),
    ("--test-data many.npz", "many.npz: its labels range from 0 to 15"),
)
def test_networks_and_data_that_do_not_fit(here: Path, options: str, words: str) -> None:
    assert re.search(words, run(*TUNE.split(), *options.split()))


@needs_torch
@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_here(here: Path, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    import torch  # noqa: PLC0415

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert f"--device {device}: PyTorch finds none here" in run(*TUNE.split(), "--device", device)


@needs_torch
@rows(
    ("small.onnx", "OUTPUT and PRUNED are the same file"),
    ("net.onnx", "OUTPUT and --teacher are the same file"),
    ("data.npz", "OUTPUT and --data are the same file"),
    ("notes.txt", "notes.txt is there and is no .onnx file"),
    ("folder", "folder can't be written: it is a folder"),
    ("/dev/full", "/dev/full can't be written: it is a device"),
    ("/proc/out.onnx", "/proc/out.onnx can't be written"),
    ("out.onnx --json out.onnx", "--json and OUTPUT are the same file"),
    ("out.onnx --json notes.txt", "notes.txt is there and is no .json file"),
    ("out.onnx --resume", "--resume goes on from the checkpoint in --state"),
    ("out.onnx --state notes.txt", "--state notes.txt: notes.txt is no folder"),
    ("out.onnx --state notes.txt/a/b", "--state notes.txt/a/b: notes.txt is no folder"),
    ("out.onnx --state pipe", "--state pipe: pipe is no folder"),
    ("out.onnx --state out.onnx", "--state and OUTPUT are the same"),
    ("out.onnx --state net.onnx", "--state and --teacher are the same"),
    ("out.onnx --state s --json s", "--state and --json are the same"),
    ("out.onnx --state /proc/state", "/proc/state can't be made a folder"),
)
def test_places_for_what_was_trained(here: Path, options: str, words: str) -> None:
    message = run(
        "finetune", "small.onnx", *options.split(), *["--teacher", "net.onnx", "--data", "data.npz", "--steps", "1"]
    )
    assert re.search(words, message)


@needs_torch
def test_an_output_never_takes_the_place_of_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("data.npz", x=X)
    onnx.save(small_models.plain(), "small.onnx")
    for name in ("net", "apart"):
        onnx.save(
            small_models.plain(), f"{name}.onnx", save_as_external_data=True, location=f"{name}.weights.onnx", size_threshold=0
        )  # fmt: skip
    before = listing(tmp_path)
    for pruned, output in (("small.onnx", "net.weights.onnx"), ("apart.onnx", "apart.weights.onnx")):
        message = run("finetune", pruned, output, "--teacher", "net.onnx", "--data", "data.npz", "--steps", "1")
        assert re.search(f"{output} can't be written: .* holds weights of", message)
    assert listing(tmp_path) == before


@pytest.fixture
def state(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the state of a run of 2 steps."""
    monkeypatch.chdir(shelf)
    made = CliRunner().invoke(
        cli.app, [*TUNE.replace("out.onnx", str(tmp_path / "out.onnx")).split(), "--state", str(tmp_path)]
    )
    assert made.exit_code == 0, made.output
    (tmp_path / "out.onnx").unlink()
    return tmp_path


@needs_torch
def test_the_state_of_another_run(here: Path, state: Path) -> None:
    """Other networks, data or options: the state is left as it is, and a run that is the same takes it."""
    before = listing(state)
    go_on = [*TUNE.replace("out.onnx", str(state / "out.onnx")).split(), "--state", str(state), "--resume"]
    for other in (["--lr", "1e-2"], ["--data", "labelled.npz"], ["--seed", "1"], ["--teacher", "small.onnx"]):
        assert "checkpoint.pt is of a run with other networks, data or options" in run(*go_on, *other)
        assert listing(state) == before
    assert CliRunner().invoke(cli.app, go_on).exit_code == 0


@needs_torch
@pytest.mark.parametrize("damage", ["cut", "noise", "empty", "flipped", "list", "folder", "no log"])
def test_a_damaged_state(here: Path, state: Path, damage: str) -> None:
    import torch  # noqa: PLC0415

    file, words = (
        state / "checkpoint.pt",
        r"checkpoint.pt (can't be read \(.*start again without --resume|is of a run with)",
    )
    whole = file.read_bytes()
    middle = len(whole) // 2
    content = {
        "cut": whole[:middle], "noise": np.random.default_rng(0).bytes(1000), "empty": b"",
        "flipped": whole[:200] + bytes(255 - byte for byte in whole[200:400]) + whole[400:],
    }.get(damage)  # fmt: skip
    if content is not None:
        file.write_bytes(content)
    elif damage == "list":
        torch.save([1, 2], file)
    else:
        log, words = state / "log.jsonl", r"log.jsonl can't be written"
        log.unlink()
        log.mkdir()
    if damage == "folder":
        file.unlink()
        file.mkdir()
    before = listing(state)
    go_on = [*TUNE.replace("out.onnx", str(state / "out.onnx")).split(), "--state", str(state), "--resume"]
    assert re.search(words, run(*go_on))
    assert listing(state) == before


@needs_torch
def test_a_disk_that_takes_no_checkpoint(here: Path, tmp_path: Path) -> None:
    """What fits of the state is whole; the result isn't written, and no temporary file is left."""
    command = [*TUNE.replace("out.onnx", str(tmp_path / "out.onnx")).split(), "--state", str(tmp_path / "state")]
    code = (
        "import resource, sys, torch; from thinet_onnx import cli; "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (3000,) * 2); sys.argv[1:] = {command!r}; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert re.search(
        r"state/\S+ can't be written \(File too large\)", sentence(done.returncode, done.stdout, done.stderr)
    )
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["state", "state/log.jsonl"]


# --- prune: latency targets, training, reports ------------------------------------------------------------------------

PRUNE = "prune net.onnx out.onnx --data data.npz"


@rows(
    ("--target latency", "--target 'latency' is not understood"),
    ("--target latency=", "--target 'latency=' is not understood"),
    ("--target latency=0", "--target 'latency=0': the share"),
    ("--target latency=0ms", "--target 'latency=0ms': a network takes some time"),
    ("--target latency=100%", "--target 'latency=100%': the share"),
    ("--target latency=-3ms", "--target 'latency=-3ms' is not understood"),
    ("--target latency=nanms", "--target 'latency=nanms' is not understood"),
    ("--target latency=5GHz", "--target 'latency=5GHz' is not understood"),
    ("--target latency=2.0G", "--target 'latency=2.0G' is not understood"),
    ("--target latency=1h", "--target 'latency=1h' is not understood"),
    (f"--target latency={'9' * 309}ms", "is not understood"),
    ("--target latency=60% --keep 0.5", "Say either --target"),
    ("--target latency=60% --preset thinet-conv", "Say either --target"),
    ("--keep 0.5 --preset thinet-conv", "Say either --target"),
    ("--target macs=50% --engine openvino", "--engine says how latency is measured"),
    ("--keep 0.5 --latency-batch 2", "--latency-batch says how latency is measured"),
    ("--preset thinet-conv --threads 1", "--threads says how latency is measured"),
    ("--target latency=60% --engine tensorrt", "tensorrt is not installed"),
    ("--target latency=60% --latency-batch 0", "--latency-batch 0: it must be 1 or more"),
    (
        "--target latency=60% --latency-batch 9999999999999",
        "--latency-batch 9999999999999 doesn't fit net.onnx: a batch of",
    ),
    ("--target latency=60% --threads -1", "--threads -1: it must be between 0 and 1,024"),
    ("--target latency=60% --threads 99999", "--threads 99999: it must be between 0 and 1,024"),
    ("--random-data", "--data and --random-data are both there"),
    ("--finetune learning-rate=1e-3", "say how long, with --finetune-epochs"),
    ("--finetune-epochs 0 --finetune batch=8", "say how long, with --finetune-epochs"),
    ("--finetune-epochs -1", "--finetune-epochs -1: it must not be negative"),
    ("--finetune-per-layer -1", "--finetune-per-layer -1: it must not be negative"),
    ("--finetune-epochs 1 --finetune nothing=3", "--finetune 'nothing=3' is not understood"),
    ("--finetune-epochs 1 --finetune epochs=3", "--finetune 'epochs=3' is not understood"),
    ("--finetune-epochs 1 --finetune batch", "--finetune 'batch' is not understood"),
    ("--finetune-epochs 1 --finetune batch=x", "--finetune 'batch=x' is not understood"),
    ("--finetune-epochs 1 --finetune flip=maybe", "--finetune 'flip=maybe' is not understood"),
    ("--finetune-epochs 1 --finetune batch=0", "--batch 0: it must be 1 or more"),
    ("--finetune-epochs 1 --finetune learning-rate=nan", "--learning-rate nan: it must be a number"),
    ("--finetune-epochs 1 --finetune device=tpu", "--device 'tpu' is unknown"),
    ("--report out.onnx", "--report and OUTPUT are the same file"),
    ("--report net.onnx", "--report and MODEL are the same file"),
    ("--report data.npz", "--report and --data are the same file"),
    ("--report r.html --json r.html", "--report and --json are the same file"),
    ("--report notes.txt", "notes.txt is there and is no .html file: it is not overwritten, name another --report"),
    ("--json weights.bin", "weights.bin is there and is no .json file: it is not overwritten, name another --json"),
    ("--report folder", "folder can't be written: it is a folder"),
    ("--report gone/r.html", "there is no folder gone"),
    ("--report /dev/full", "/dev/full can't be written: it is a device"),
    ("--report /proc/r.html", "/proc/r.html can't be written"),
    ("--json /proc/r.json", "/proc/r.json can't be written"),
    ("--report pipe", "pipe can't be written: it is a device or a pipe"),
    ("--report r.html --task boxes", "--task 'boxes' is unknown"),
    ("--report r.html --classes gone.txt", "--classes gone.txt can't be read"),
    ("--report r.html --classes folder", "--classes folder can't be read .it is a folder"),
    ("--report r.html --classes pipe", "--classes pipe can't be read .it is a device or a pipe"),
    ("--report r.html --classes endless", "--classes endless can't be read .it is a device or a pipe"),
    ("--report r.html --classes net.onnx", "--classes net.onnx can't be read .it is no text"),
    (f"--resize {'9' * 60}", "--resize .* is not understood"),
)
def test_requests_to_prune_that_make_no_sense(here: Path, options: str, words: str) -> None:
    assert re.search(words, run(*PRUNE.split(), *options.split()))


@rows(
    ("", "no calibration data"),
    ("--data gone.npz", "gone.npz doesn't exist"),
    ("--data data.npz --targets nonsense", "nonsense"),
    ("--data data.npz --targets 150%", "150%"),
    ("--data data.npz --engine openvino", "say --latency, too"),
    ("--data data.npz --latency --threads 99999", "--threads 99999: it must be between 0 and 1,024"),
    ("--data data.npz --seed -1", "--seed -1: it must be 0 or more"),
    ("--data data.npz --plot curve.png", "--plot curve.png: name a file that ends in"),
    ("--data data.npz --plot folder/gone/curve.svg", "there is no folder"),
    ("--data data.npz --json weights.bin", "weights.bin is there and is no .json file"),
    ("--data data.npz --json /proc/curve.json", "/proc/curve.json can't be written"),
    ("--data data.npz --json r.html --plot r.html", "--plot and --json are the same file"),
    ("--data data.npz --save-moments notes.txt", "notes.txt is there and is no .npz file"),
    ("--data data.npz --save-moments data.npz", "--save-moments and --data are the same file"),
    ("--data data.npz --save-moments /dev/full", "it is a device"),
    ("--data data.npz --from-moments gone.npz", "--from-moments gone.npz: there is no such file"),
    ("--data data.npz --from-moments data.npz", "data.npz"),
    ("--data data.npz --from-moments text.onnx", "text.onnx"),
)
def test_what_curve_refuses(here: Path, options: str, words: str) -> None:
    assert re.search(words, run("curve", "net.onnx", *options.split()))


@rows(
    ("--state notes.txt", "--state notes.txt: notes.txt is no folder"),
    ("--state pipe", "--state pipe: pipe is no folder"),
    ("--state out.onnx", "--state and OUTPUT are the same"),
    ("--state net.onnx/state", "net.onnx is no folder"),
    ("--state /proc/state", "--state /proc/state can't be made a folder"),
    ("--from-moments net.onnx", "net.onnx"),
)
def test_places_for_what_a_run_keeps(here: Path, options: str, words: str) -> None:
    assert re.search(words, run(*PRUNE.split(), *options.split()))


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("inspect net.onnx --json", "x.json"),
        ("bench net.onnx --runs 2 --json", "x.json"),
        ("verify net.onnx --reference net.onnx --data data.npz --json", "x.json"),
        ("curve net.onnx --data data.npz --json", "x.JSON"),
        ("curve net.onnx --data data.npz --plot", "x.svg"),
        ("curve net.onnx --data data.npz --save-moments", "x.npz"),
        ("report good.json", "x.htm"),
        (f"{PRUNE.replace('out.onnx', '')} --keep 0.5 -q", "x.onnx"),
    ],
)
def test_a_file_of_the_kind_that_is_written_is_replaced(here: Path, tmp_path: Path, command: str, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(b"old")
    arguments = command.split()
    place = 2 if arguments[0] == "prune" else len(arguments)
    outcome = CliRunner().invoke(cli.app, [*arguments[:place], str(file), *arguments[place:]])
    assert outcome.exit_code == 0, outcome.output
    assert len(file.read_bytes()) > 100
    assert list(tmp_path.iterdir()) == [file]


@rows(("--target latency=3600s", "the original takes .* no longer than that"))
def test_a_time_that_needs_no_pruning(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str, words: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert re.search(words, run(*PRUNE.split(), *options.split()))


def test_noise_teaches_nothing(here: Path) -> None:
    message = run("prune", "net.onnx", "out.onnx", "--random-data", "--finetune-epochs", "1")
    assert "--finetune-epochs and --random-data contradict each other" in message


# --- verify and bench -------------------------------------------------------------------------------------------------


@rows(
    ("--data data.npz --random-data", "contradict each other"),
    ("", "No data to compare the files on"),
    ("--data renamed.npz", "renamed.npz has no array 'x'"),
    ("--data pipe", "pipe is of no known kind"),
    ("--data data.npz --reference gone.onnx", "gone.onnx: no such file"),
    ("--data data.npz --reference text.onnx", "text.onnx is not an ONNX file"),
    ("--data data.npz --reference endless", "endless is a device or a pipe"),
    ("--data data.npz --batch 0", "--batch '0' is not understood"),
    (f"--data data.npz --batch {'9' * 60}", "--batch .* is not understood"),
    ("--data data.npz --threads 99999", "--threads 99999: it must be between 0 and 1,024"),
    ("--random-data --seed -1", "--seed -1: it must be 0 or more"),
    ("--random-data --samples 100000000000", "1,000,000 are the most that are made up"),
    ("--data data.npz --max-error nan", "--max-error nan"),
    ("--data data.npz --for ort,", "--for '' is unknown"),
    ("--data data.npz --precision fp16", "--precision is about the engine .* say which one, with --for"),
    ("--data data.npz --tolerance 0.1", "--tolerance is about the engine .* say which one, with --for"),
    ("--data data.npz --json small.onnx", "--json and PRUNED are the same file"),
    ("--data data.npz --json net.onnx", "--json and --reference are the same file"),
    ("--data data.npz --json weights.bin", "weights.bin is there and is no .json file"),
    ("--data data.npz --json folder", "it is a folder"),
    ("--data data.npz --json gone/x.json", "there is no folder gone"),
    ("--data data.npz --json /dev/full", "it is a device"),
    ("--data data.npz --json /proc/x.json", "/proc/x.json can't be written"),
)
def test_what_verify_refuses(here: Path, options: str, words: str) -> None:
    given = ["--reference", "net.onnx", *options.split()]
    assert re.search(words, run("verify", "small.onnx", *given))


@pytest.mark.parametrize("labels", ["many.npz", "below.npz"])
def test_verify_shows_no_accuracy_for_labels_that_are_no_classes(here: Path, labels: str, tmp_path: Path) -> None:
    told = tmp_path / "told.json"
    command = ["verify", "net.onnx", "--reference", "net.onnx", "--data", labels, "--json", str(told)]
    assert CliRunner().invoke(cli.app, command).exit_code == 0
    found = json.loads(told.read_text(encoding="utf-8"))
    assert found["accuracy"] is None
    assert any("No accuracy is shown: the labels range from" in warning for warning in found["warnings"])


@rows(
    ("gone.onnx", "gone.onnx: no such file"),
    ("net.onnx text.onnx", "text.onnx is not an ONNX file"),
    ("folder", "folder is a folder"),
    ("endless", "endless is a device or a pipe"),
    ("net.onnx other_input.onnx --data data.npz", "data.npz has no array 'y'"),
    ("net.onnx --batch 100000000", "a batch of 100,000,000 has 19,200,000,000 elements"),
    (f"net.onnx --batch {'9' * 60}", "--batch .* is not understood"),
    ("net.onnx --data data.npz --batch 100000000", "a batch of 100,000,000 has 19,200,000,000 elements"),
    ("net.onnx --threads 99999", "--threads 99999: it must be between 0 and 1,024"),
    ("net.onnx --seconds nan", "--seconds nan"),
    ("net.onnx --seconds inf", "--seconds inf"),
    ("net.onnx --seed -1", "--seed -1: it must be 0 or more"),
    ("net.onnx --precision fp16", "--precision fp16: ONNX Runtime computes in the types that the file has"),
    ("net.onnx --json net.onnx", "--json and MODEL are the same file"),
    ("net.onnx --json data.npz --data data.npz", "--json and --data are the same file"),
    ("net.onnx --json weights.bin", "weights.bin is there and is no .json file"),
    ("net.onnx --json /dev/full", "it is a device"),
    ("net.onnx --json /proc/x.json", "/proc/x.json can't be written"),
)
def test_what_bench_refuses(here: Path, options: str, words: str) -> None:
    assert re.search(words, run("bench", "--runs", "2", *options.split()))


# --- report -----------------------------------------------------------------------------------------------------------


@rows(
    ("gone.json", "gone.json can't be read: No such file"),
    ("folder", "folder can't be read: it is a folder"),
    (".", "can't be read: it is a folder"),
    ("/", "/ can't be read: it is a folder"),
    ("pipe", "pipe can't be read: it is a device or a pipe"),
    ("endless", "endless can't be read: it is a device or a pipe"),
    ("net.onnx", "net.onnx is no JSON"),
    ("empty.json", "empty.json is no JSON"),
    ("cut.json", "cut.json is no JSON"),
    ("deep.json", "deep.json is no JSON"),
    ("bytes.json", "bytes.json is no JSON"),
    ("large.json", "large.json is no JSON"),
    ("list.json", "list.json is no report"),
    ("number.json", "number.json is no report"),
    ("null.json", "null.json is no report"),
    ("inspected.json", "inspected.json is of inspect"),
    ("measured.json", "measured.json is no report"),
    ("words.json", "words.json is no report of prune .*before"),
    ("shapeless.json", "shapeless.json is no report of prune"),
    ("infinite.json", "infinite.json is no report of prune .*seed"),
    ("good.json good.json", "OUTPUT and RESULT are the same file"),
    ("good.json notes.txt", "notes.txt is there and is no .html file"),
    ("good.json folder", "folder can't be written: it is a folder"),
    ("good.json gone/x.html", "there is no folder gone"),
    ("good.json pipe", "it is a device or a pipe"),
    ("good.json /dev/full", "it is a device or a pipe"),
    ("good.json /proc/x.html", "/proc/x.html can't be written"),
)
def test_what_report_refuses(here: Path, options: str, words: str) -> None:
    assert re.search(words, run("report", *options.split()))


@pytest.mark.parametrize("command", ["report good.json {}/x.html", "bench net.onnx --runs 2 -q --json {}/x.json"])
def test_a_disk_that_takes_no_report(here: Path, tmp_path: Path, command: str) -> None:
    """Half of it fits; there is no piece of it afterwards."""
    arguments = command.format(tmp_path).split()
    code = (
        "import sys, resource; from thinet_onnx import cli, page, speed; "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (400,) * 2); sys.argv[1:] = {arguments!r}; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    message = sentence(done.returncode, done.stdout, done.stderr)
    assert re.search(r"x\.(html|json) can't be written: File too large", message)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_nothing_can_be_written_in(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that is read-only refuses even the superuser; it is known before any work."""

    def refuse(**_: Any) -> None:
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr(report.tempfile, "TemporaryFile", refuse)
    for option in ("--json", "--report"):
        file = tmp_path / f"x.{'json' if option == '--json' else 'html'}"
        message = run(*PRUNE.split(), option, str(file))
        assert message.endswith("can't be written: Read-only file system.")
