"""The command `finetune`: what it prints and writes, how it goes on, what it refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import Result
from typer.testing import CliRunner

torch = pytest.importorskip("torch", reason="PyTorch is not installed: the command finetune is NOT TESTED")

from graphs import Build  # noqa: E402

import thinet_onnx  # noqa: E402
from thinet_onnx import cli, rounds  # noqa: E402
from thinet_onnx.errors import ThinetError  # noqa: E402
from thinet_onnx.options import PruneOptions  # noqa: E402
from thinet_onnx.training.options import FinetuneOptions  # noqa: E402

ROOT = Path(__file__).parent.parent


def run(*arguments: Any) -> Result:
    return CliRunner(env={"COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb"}).invoke(cli.app, [*map(str, arguments)])


def line(outcome: Result) -> str:
    assert outcome.exit_code == 2, outcome.output
    (only,) = outcome.stderr.splitlines()
    return only.removeprefix("thinet-onnx: error: ")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A classifier, the same with other weights, 40 items with labels."""
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    b = Build()
    x = b.node("Relu", b.conv(b.input(shape=(1, 3, 8, 8)), 3, 6, name="a"))
    x = b.node("Flatten", b.node("GlobalAveragePool", b.node("Relu", b.conv(x, 6, 8, name="b"))))
    b.output(b.gemm(x, 8, 4, name="fc"))
    model = b.model()
    onnx.save(model, "original.onnx")
    rng = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        value = onnx.numpy_helper.to_array(tensor)
        tensor.CopyFrom(
            onnx.numpy_helper.from_array(
                value + 0.1 * rng.standard_normal(value.shape).astype(value.dtype), tensor.name
            )
        )
    onnx.save(model, "small.onnx")
    name = model.graph.input[0].name
    np.savez(
        "data.npz", **{name: rng.standard_normal((40, 3, 8, 8)).astype(np.float32), "labels": rng.integers(0, 4, 40)}
    )
    return tmp_path


TRAIN = ("small.onnx", "--teacher", "original.onnx", "--data", "data.npz", "--lr", "1e-2", "--batch", "8")


def test_it_trains_writes_and_tells(folder: Path) -> None:
    outcome = run("finetune", *TRAIN, "--steps", "12", "--test-data", "data.npz", "--json", "told.json")
    assert outcome.exit_code == 0, outcome.output
    shown = " ".join(outcome.stdout.split())
    assert "small.onnx → small_finetuned.onnx" in shown
    assert "Fine-tuned: 12 steps, kept the weights after step" in shown
    assert "5 held-out items" in shown or "on 5 held-out" in shown
    told = json.loads(Path("told.json").read_text())
    assert told["finetune"]["total"] == 12
    assert [step for step, _ in told["finetune"]["steps"]] == list(range(1, 13))
    assert told["fidelity"][0]["relative_error"] < told["fidelity_before"][0]["relative_error"]
    assert 0 <= told["scores"]["before"] <= 1
    onnx.checker.check_model("small_finetuned.onnx")
    again = thinet_onnx.finetune(
        "small.onnx", "original.onnx", "data.npz", learning_rate=1e-2, batch=8, steps=12, test_data="data.npz"
    )
    assert again.model.SerializeToString() == Path("small_finetuned.onnx").read_bytes()
    assert again.scores is not None
    assert again.scores.after == told["scores"]["after"]


def test_it_goes_on_where_it_stopped(folder: Path) -> None:
    whole = run("finetune", *TRAIN, "whole.onnx", "--epochs", "3")
    assert whole.exit_code == 0, whole.output
    assert run("finetune", *TRAIN, "first.onnx", "--epochs", "3", "--state", "state").exit_code == 0
    outcome = run("finetune", *TRAIN, "again.onnx", "--epochs", "3", "--state", "state", "--resume", "--quiet")
    assert (outcome.exit_code, outcome.stdout) == (0, "")
    assert Path("whole.onnx").read_bytes() == Path("first.onnx").read_bytes() == Path("again.onnx").read_bytes()
    entries = [json.loads(text) for text in Path("state/log.jsonl").read_text().splitlines()]
    assert max(entry["step"] for entry in entries) == 12


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("small.onnx", "--teacher", "original.onnx"), "no data: pass --data"),
        ((*TRAIN, "--resume"), "--resume goes on from the checkpoint in --state"),
        ((*TRAIN, "original.onnx"), "OUTPUT and --teacher are the same file"),
        ((*TRAIN, "small.onnx"), "OUTPUT and PRUNED are the same file"),
        ((*TRAIN, "data.npz"), "OUTPUT and --data are the same file"),
        ((*TRAIN, "--epochs", "0"), "--epochs 0: it must be 1 or more"),
        ((*TRAIN, "--output-weight", "y"), "--output-weight 'y' is not understood"),
        ((*TRAIN, "--output-weight", "nobody=1"), "the network has no output 'nobody'"),
        ((*TRAIN, "--mix", "2"), "--mix 2: the share"),
        ((*TRAIN, "--trainable-from", "nobody"), "--trainable-from nobody"),
        ((*TRAIN, "--loss", "nothing.py:f"), "there is no such script"),
        (("gone.onnx", *TRAIN[1:]), "gone.onnx"),
        (("small.onnx", "--teacher", "data.npz", *TRAIN[3:]), "data.npz"),
    ],
)
def test_what_it_refuses(folder: Path, arguments: tuple[str, ...], words: str) -> None:
    before = sorted(path.name for path in folder.iterdir())
    assert words in line(run("finetune", *arguments))
    assert sorted(path.name for path in folder.iterdir()) == before


def test_prune_trains_as_well(folder: Path) -> None:
    common = ("prune", "original.onnx", "--data", "data.npz", "--keep", "0.5", "--json", "told.json")
    outcome = run(*common, "--finetune-epochs", "2", "--finetune", "batch=8", "--finetune", "learning-rate=1e-3")
    assert outcome.exit_code == 0, outcome.output
    assert "Fine-tuned: " in outcome.stdout
    assert json.loads(Path("told.json").read_text())["finetune"]["total"] == 8
    for extra, words in (
        (("--finetune", "batch=8"), "say how long"),
        (("--finetune-epochs", "1", "--finetune", "batch=no"), "--finetune 'batch=no' is not understood"),
        (("--finetune-epochs", "-1"), "must not be negative"),
    ):
        assert words in line(run(*common, *extra))
    noise = ("prune", "original.onnx", "--random-data", "--finetune-epochs", "1")
    assert "noise teaches nothing" in line(run(*noise))


def never(*_: Any, **__: Any) -> None:
    raise AssertionError("it pruned")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("loss=gone.py:f", "--loss gone.py:f: there is no such script; write script.py:function."),
        ("loss=own.py:g", "--loss own.py:g: own.py has no function 'g'."),
        ("loss=broken.py:f", "--loss broken.py:f: broken.py failed with ZeroDivisionError: division by zero"),
        ("device=mps", "--device mps: PyTorch finds none here; use --device auto, or cpu."),
        ("trainable-from=nobody", "--trainable-from nobody: the model has no node or tensor of this name."),
        ("label-weight=1", "Labels are to be learned, but there are none in 40 rows of bare.npz: leave"),
    ],
)
@pytest.mark.parametrize("how", ["--finetune-epochs", "--finetune-per-layer"])
def test_prune_refuses_to_train_before_it_prunes(
    folder: Path, how: str, options: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    monkeypatch.setattr("thinet_onnx.pipeline.prune", never)
    Path("own.py").write_text("def f(outputs, batch): ...\n", encoding="utf-8")
    Path("broken.py").write_text("1 / 0\n", encoding="utf-8")
    np.savez("bare.npz", **{name: array for name, array in np.load("data.npz").items() if name != "labels"})
    before = sorted(path.name for path in folder.glob("*.*"))
    arguments = ("prune", "original.onnx", "--data", "bare.npz", "--keep", "0.5", how, "1", "--finetune", options)
    assert words in line(run(*arguments))
    assert sorted(path.name for path in folder.glob("*.*")) == before


def test_labels_that_are_no_classes_are_refused_before_pruning(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thinet_onnx.pipeline.prune", never)
    arrays = dict(np.load("data.npz"))
    np.savez("data.npz", **{**arrays, "labels": arrays["labels"] + 40})
    common = ("prune", "original.onnx", "--data", "data.npz", "--keep", "0.5", "--finetune-epochs", "1")
    assert "number them from 0" in line(run(*common, "--finetune", "label-weight=1"))


def test_outputs_and_tensors_that_arent_there_are_refused_before_pruning(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thinet_onnx.pipeline.prune", never)
    for options, words in (
        ({"output_weights": {"nobody": 1.0}}, "the network has no output 'nobody'"),
        ({"feature_weight": 1.0, "features": ("nobody",)}, "has no tensor 'nobody'"),
    ):
        schedule = rounds.Schedule(1, 0, FinetuneOptions(**options))
        with pytest.raises(ThinetError, match=words):
            rounds.prune("original.onnx", "data.npz", PruneOptions(keep=0.5), schedule)


def test_torch_modules_from_paths(folder: Path) -> None:
    module = thinet_onnx.to_torch("small.onnx")
    result = thinet_onnx.from_torch(module, "small.onnx")
    assert result.SerializeToString() == onnx.load("small.onnx").SerializeToString()
