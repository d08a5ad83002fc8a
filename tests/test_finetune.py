"""Fine-tuning: it learns, it goes on where it was killed, two processes equal one, and what is written is what was trained."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

torch = pytest.importorskip("torch", reason="PyTorch is not installed: the twin and fine-tuning are NOT TESTED")

import small_models  # noqa: E402
from graphs import Build, two_convs  # noqa: E402
from small_models import initializers, plain, residual  # noqa: E402

import thinet_onnx  # noqa: E402
from thinet_onnx import graph as graphs  # noqa: E402
from thinet_onnx import runtime, verify  # noqa: E402
from thinet_onnx.data import Preprocess, Source, from_arrays, open_source  # noqa: E402
from thinet_onnx.errors import DataError, ModelError, OptionError  # noqa: E402
from thinet_onnx.graph import Graph  # noqa: E402
from thinet_onnx.images import InputSpec  # noqa: E402
from thinet_onnx.setting import open_model  # noqa: E402
from thinet_onnx.torch_twin import find_cut, to_torch  # noqa: E402
from thinet_onnx.torch_twin.check import disagreement  # noqa: E402
from thinet_onnx.training.feeding import Feeding, Variation, variation  # noqa: E402
from thinet_onnx.training.losses import Objective, scores_among, sources  # noqa: E402
from thinet_onnx.training.losses import Source as Place  # noqa: E402
from thinet_onnx.training.optimizers import sizes  # noqa: E402
from thinet_onnx.tuning import FinetuneOptions, FinetuneResult, finetune  # noqa: E402

MODELS = Path(__file__).parent.parent / "models"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def data_for(model: onnx.ModelProto, items: int = 24, *, labels: bool = False, seed: int = 0) -> Source:
    """Random items, the same for the same seed."""
    specs = open_model(model, {}).inputs
    rng = np.random.default_rng(seed)
    arrays = {spec.name: rng.standard_normal((items, *spec.shape[1:])).astype(spec.dtype) for spec in specs}
    return from_arrays(arrays, specs, labels=rng.integers(0, 5, items) if labels else None)


def shaken(model: onnx.ModelProto, by: float = 0.3) -> onnx.ModelProto:
    """The model with other weights: a student that has something to learn."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    rng = np.random.default_rng(5)
    for tensor in result.graph.initializer:
        value = onnx.numpy_helper.to_array(tensor)
        if value.dtype.kind == "f":
            moved = value + by * value.std() * rng.standard_normal(value.shape)
            tensor.raw_data = moved.astype(value.dtype).tobytes()
    return result


def learn(model: onnx.ModelProto, student: onnx.ModelProto | None = None, **options: Any) -> FinetuneResult:
    """A short run on random items."""
    chosen = {"steps": 6, "batch": 8, "learning_rate": 1e-2} | options
    data = data_for(model, labels=bool(chosen.get("label_weight") or chosen.get("loss")))
    return finetune(student or shaken(model), model, data, FinetuneOptions(**chosen))


# --- it learns ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fashion() -> tuple[onnx.ModelProto, onnx.ModelProto, Source]:
    """The bundled residual network, half of it without a refit, and 96 images."""
    model, images, pixels = (
        graphs.load(MODELS / "fashion_resnet.onnx"),
        MODELS / "fashion_calibration.npz",
        (0.286, 0.353),
    )
    result = thinet_onnx.prune(model, images, samples=48, reconstruct="none", mean=pixels[:1], std=pixels[1:])
    source = open_source(images, open_model(model, {}).inputs, Preprocess(pixels[:1], pixels[1:]), samples=96)
    return model, result.model, source


def test_a_pruned_network_comes_nearer_to_the_original(
    fashion: tuple[onnx.ModelProto, onnx.ModelProto, Source],
) -> None:
    model, pruned, data = fashion
    before = pruned.SerializeToString()
    result = finetune(pruned, model, data, FinetuneOptions(steps=12, batch=16, validate_every=4, optimizer="adamw"))
    assert pruned.SerializeToString() == before
    assert result.steps == 12
    assert [entry.step for entry in result.validations] == [0, 4, 8, 12]
    assert result.after.loss < 0.5 * result.before.loss
    assert result.difference <= 1e-4
    assert graphs.check(result.model) is None
    assert initializers(result.model).keys() == initializers(pruned).keys()
    held = data.batch(range(12))
    answers = [runtime.outputs(network, [held]) for network in (model, pruned, result.model)]
    first, last = (verify.fidelity(["logits"], answers[0], answer)[0] for answer in answers[1:])
    assert last.relative_error < 0.9 * first.relative_error
    assert result.fidelity[0].samples == 12
    assert result.before.agreement is not None
    assert result.after.agreement == result.fidelity[0].top1 >= result.before.agreement + 0.25


def test_nothing_is_lost_where_training_makes_it_worse() -> None:
    model = plain()
    student = shaken(model, 0.01)
    result = learn(model, student, optimizer="sgd", learning_rate=3.0, clip=0.0)
    assert result.best_step == 0
    assert result.model.SerializeToString() == student.SerializeToString()


def rescaled(model: onnx.ModelProto, factor: float) -> onnx.ModelProto:
    """The same function of Conv → Relu → Conv → Relu → …, each second layer's weights smaller, the next one's larger."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    values = {tensor.name: tensor for tensor in result.graph.initializer}
    convolutions = [node for node in result.graph.node if node.op_type == "Conv"]
    for place, node in enumerate(convolutions[: len(convolutions) // 2 * 2]):
        for operand in node.input[1:]:
            if place % 2 == 0 or operand == node.input[1]:
                array = numpy_helper.to_array(values[operand]) * np.float32(factor if place % 2 == 0 else 1 / factor)
                values[operand].CopyFrom(numpy_helper.from_array(array, operand))
    return result


def test_scaled_steps_suit_weights_of_any_size() -> None:
    net = small_models.Net(opset=17)
    x = net.input("x", (4, 3, 8, 8))
    for name, shape in (("a", (6, 3, 3, 3)), ("b", (6, 6, 3, 3)), ("c", (5, 6, 3, 3))):
        x = net.node("Conv", x, net.weight(*shape), net.weight(shape[0]), pads=[1] * 4)
        x = x if name == "c" else net.node("Relu", x)
    model = net.model(x)
    student = shaken(model, 0.2)
    curves = {}
    for optimizer, rate in (("scaled", 1e-2), ("adamw", 1e-3)):
        options = {"optimizer": optimizer, "learning_rate": rate, "clip": 0.0, "weight_decay": 0.0, "steps": 8}
        curves[optimizer] = [learn(model, s, **options).losses for s in (student, rescaled(student, 2**-6))]
    assert curves["scaled"][0] == pytest.approx(curves["scaled"][1], rel=1e-2)
    assert curves["scaled"][1][-1] < 0.8 * curves["scaled"][1][0]
    assert curves["adamw"][0] != pytest.approx(curves["adamw"][1], rel=0.1)


def depthwise(factors: Sequence[float]) -> onnx.ModelProto:
    """Conv → Relu → depthwise Conv → 1×1 Conv: the same function whatever the factors, which are powers of two."""
    net, rng = small_models.Net(opset=17), np.random.default_rng(3)
    sizes, x = np.float32(factors).reshape(-1, 1, 1, 1), net.input("x", (4, 3, 8, 8))
    values = [np.float32(rng.standard_normal(shape)) for shape in ((6, 3, 3, 3), (6, 1, 3, 3), (5, 6, 1, 1))]
    x = net.node("Relu", net.node("Conv", x, net.tensor(values[0] / sizes), pads=[1] * 4))
    x = net.node("Conv", x, net.tensor(values[1] * sizes), pads=[1] * 4, group=6)
    return net.model(net.node("Conv", x, net.tensor(values[2])))


def test_scaled_steps_suit_filters_of_any_size_in_one_tensor() -> None:
    teacher = depthwise([1] * 6)
    options = {"optimizer": "scaled", "learning_rate": 1e-2, "clip": 0.0, "weight_decay": 0.1, "steps": 8}
    curves = []
    for factors in ([1] * 6, [1, 1, 1, 1, 4, 2.0**24]):  # as folding leaves a filter that sees next to nothing
        student = depthwise(factors)
        shake = np.random.default_rng(5)
        for tensor in student.graph.initializer:
            array = numpy_helper.to_array(tensor)
            shaken = array * (1 + 0.2 * shake.standard_normal(array.shape).astype(np.float32))
            tensor.CopyFrom(numpy_helper.from_array(shaken, tensor.name))
        curves.append(learn(teacher, student, **options).losses)
    assert curves[0][-1] < 0.9 * curves[0][0]
    assert curves[0] == pytest.approx(curves[1], rel=1e-3)


def test_what_looks_like_class_scores() -> None:
    shapes = {
        "classes": (4, 10),
        "pooled": (4, 10, 1, 1),
        "line": (4, 7, 1),
        "faces": (4, 896, 1),
        "boxes": (4, 896, 16),
        "one": (4, 1),
    }
    seen = {name: torch.zeros(shape) for name, shape in shapes.items()}
    assert scores_among(seen) == {"classes", "pooled", "line"}
    assert "faces" in scores_among({"faces": seen["faces"]})
    assert not scores_among({"whole": torch.zeros(4, 10, dtype=torch.int64)})


def test_sizes_of_filters_and_of_vectors() -> None:
    weight = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 1e9], [1.0, 1.0]]).reshape(4, 2, 1, 1)
    median = 1.0  # of four the lower one of the middle
    expected = torch.tensor([12.5**0.5, 0.02 * median, 1e9 / 2**0.5, 1.0]).reshape(4, 1, 1, 1)
    assert torch.allclose(sizes(weight), expected)
    assert torch.allclose(sizes(torch.tensor([0.0, -2.0, 100.0])), torch.tensor([1.0, 2.0, 51.0]))
    assert torch.allclose(sizes(torch.zeros(3, 2)), torch.full((3, 1), 0.02 * 1e-3))
    assert torch.allclose(sizes(torch.zeros(1, 3, 1, 1)), torch.full((3,), 0.5e-3).reshape(1, 3, 1, 1))


def test_what_is_written_is_what_was_validated() -> None:
    model = residual()
    result = learn(model)
    cut = find_cut(Graph(result.model))
    assert (
        disagreement(result.model, to_torch(result.model, starts=cut.starts, ends=cut.ends), data_for(model).batch([0]))
        < 1e-6
    )
    assert result.after.loss == min(entry.loss for entry in result.validations)
    # its validation can be had again: a run that starts there
    again = learn(model, result.model, steps=1, learning_rate=1e-9)
    assert again.before.loss == pytest.approx(result.after.loss, rel=1e-5)


OPTIONS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd", "learning_rate": 3e-2},
    "scaled": {"optimizer": "scaled"},
    "averaged weights": {"ema": 0.7},
    "labels": {"label_weight": 1.0, "distill": 0.0, "learning_rate": 5e-2},
    "labels and teacher": {"label_weight": 0.5},
    "features": {"feature_weight": 1.0},
    "features by name": {"feature_weight": 1.0, "features": ("v2",), "distill": 0.0},
    "channels last": {"channels_last": True},
    "shifted and mirrored": {"flip": True, "crop": 2, "layout": "nchw"},
    "enlarged": {"zoom": 0.6, "layout": "nchw"},
    "unclipped": {"clip": 0.0, "learning_rate": 1e-3},
    "on the cpu": {"device": "cpu"},
    "in 16 bits": {"precision": "bf16"},
    "mixed": {"mix": 1.0, "layout": "nchw"},
    "four in one": {"mosaic": 1.0, "layout": "nchw"},
    "from a node on": {"trainable_from": "block1.a"},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_way_of_training_makes_its_loss_less(name: str) -> None:
    result = learn(residual(), steps=20, **OPTIONS[name])
    assert result.after.loss < 0.9 * result.before.loss
    assert result.best_step > 0


def test_nothing_in_front_of_the_node_is_trained() -> None:
    model = residual()
    names = [node.title for node in Graph(model).nodes if node.op == "Conv"]
    start = initializers(shaken(model))
    end = initializers(learn(model, trainable_from=names[1]).model)
    changed = {name for name in end if not np.array_equal(end[name], start[name])}
    first = {name for node in Graph(model).nodes if node.title == names[0] for name in node.inputs[1:]}
    assert changed
    assert not changed & first
    with pytest.raises(ModelError, match="--trainable-from nobody: the model has no node"):
        learn(model, trainable_from="nobody")


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler: torch.compile is NOT TESTED")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
def test_a_compiled_network_learns_as_the_plain_one() -> None:
    model = residual()
    plain_way, compiled = (learn(model, steps=4, compile=chosen) for chosen in (False, True))
    assert compiled.losses == pytest.approx(plain_way.losses, rel=1e-4)


def test_learned_statistics_reach_the_file() -> None:
    b = Build()
    x = b.batch_norm(b.conv(b.input(dynamic="N"), 3, 6, name="a"), 6, name="bn")
    b.output(b.conv(b.node("Relu", x), 6, 4, name="b"))
    model = b.model()
    start = initializers(shaken(model))
    learned, frozen = (initializers(learn(model, steps=30, batch_norm=kind).model) for kind in ("learned", "frozen"))
    changed = [
        {name for name, value in end.items() if not np.array_equal(value, start[name])} for end in (learned, frozen)
    ]
    assert changed[0] == set(start)
    assert changed[0] - changed[1] == {"bn.mean", "bn.var"}


def test_a_loss_of_the_users(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def loss(outputs, batch):\n"
        "    (name, scores), = outputs.items()\n"
        "    assert batch['labels'].shape == (len(batch['x']),) and batch['teacher'][name].shape == scores.shape\n"
        "    return torch.nn.functional.cross_entropy(scores, batch['labels'])\n"
        "def wrong(outputs, batch):\n"
        "    return next(iter(outputs.values()))\n"
        "def broken(outputs, batch):\n"
        "    return batch['nothing']\n"
    )
    result = learn(plain(), distill=0.0, loss=f"{tmp_path / 'mine.py'}:loss")
    assert result.after.parts.keys() == {"loss"}
    labels = learn(plain(), distill=0.0, label_weight=1.0)
    assert result.after.loss == pytest.approx(labels.after.loss, rel=1e-5)
    for function, words in (("wrong", "one element"), ("broken", "KeyError"), ("nowhere", "no function 'nowhere'")):
        with pytest.raises(OptionError, match=words):
            learn(plain(), loss=f"{tmp_path / 'mine.py'}:{function}")
    with pytest.raises(OptionError, match="no such script"):
        learn(plain(), loss="elsewhere.py:loss")


def test_training_ends_where_nothing_gets_better() -> None:
    result = learn(
        plain(), shaken(plain(), 0.01), steps=40, optimizer="sgd", learning_rate=2.0, patience=2, validate_every=1
    )
    assert result.steps < 40
    assert result.steps == result.best_step + 2


def test_training_that_diverges_says_so() -> None:
    with pytest.raises(OptionError, match="Training diverged at step"):
        learn(plain(), optimizer="sgd", learning_rate=1e30, clip=0.0)


# --- whatever the network ----------------------------------------------------------------------------------------------


def test_a_file_for_one_image_learns_in_batches() -> None:
    result = learn(plain(batch=1), steps=20)
    free = learn(plain(), steps=20)
    assert result.after.loss == pytest.approx(free.after.loss, rel=1e-4)


def test_items_that_can_not_be_joined_are_run_one_by_one() -> None:
    """A network that mixes what is in a batch."""
    b = Build()
    x = b.conv(b.input(), 3, 4, name="a")
    b.output(b.conv(b.node("Sub", x, b.node("ReduceMean", x, b.ints(0))), 4, 4, name="b"))
    result = learn(b.model(), steps=20)
    assert result.after.loss < 0.9 * result.before.loss
    with pytest.raises(OptionError, match="items are run one by one"):
        learn(b.model(), batch_norm="learned")


def unknown_in_front(b: Build) -> None:
    """Half of the network is behind an operator without a twin."""
    x = b.node("Relu", b.conv(b.input(), 3, 4, name="a"))
    drawn = b.node("RandomNormalLike", x, seed=1.0, scale=1e-9)
    b.output(b.conv(b.node("Add", x, drawn), 4, 8, name="b"))


def unknown_behind(b: Build) -> None:
    x = b.node("Relu", b.conv(b.input(), 3, 8, name="a"))
    b.output(b.node("Softmax", b.conv(x, 8, 4, name="b"), axis=1), b.node("NonZero", x, out="places"), rank=2)


@pytest.mark.parametrize(("make", "trained"), [(unknown_in_front, {"b"}), (unknown_behind, {"a", "b"})])
def test_the_part_that_has_a_twin_is_trained(make: Callable[[Build], None], trained: set[str]) -> None:
    b = Build()
    make(b)
    model = b.model()
    if make is unknown_behind:
        model.graph.output[1].type.tensor_type.elem_type = onnx.TensorProto.INT64
    student = shaken(model)
    result = learn(model, student, steps=20)
    assert len(result.left_out) == 1
    assert result.after.loss < 0.9 * result.before.loss
    old = initializers(student)
    changed = {
        name.split(".")[0] for name, value in initializers(result.model).items() if not np.array_equal(value, old[name])
    }
    assert changed == trained


def test_a_quantised_network_is_trained_as_it_is_stored() -> None:
    def quantised(values: np.ndarray) -> onnx.ModelProto:
        b = Build(dynamic := 18)
        assert dynamic
        scale = b.const(np.full(6, 0.01, np.float32))
        weight = b.node("DequantizeLinear", b.const(values, "steps"), scale, b.const(np.zeros(6, np.int8)), axis=0)
        b.output(b.node("Conv", b.input(), weight, pads=[1, 1, 1, 1]))
        return b.model()

    steps = np.random.default_rng(0).integers(-60, 60, (6, 3, 3, 3))
    model = quantised(steps.astype(np.int8))
    student = quantised(
        np.clip(steps + np.random.default_rng(1).integers(-20, 20, steps.shape), -128, 127).astype(np.int8)
    )
    result = learn(model, student, steps=40, learning_rate=3e-2)
    assert result.after.loss < 0.5 * result.before.loss
    assert initializers(result.model)["steps"].dtype == np.int8
    assert result.difference <= 1e-6


# --- it goes on where it was killed -------------------------------------------------------------------------------------

RUN = """
import os, signal, sys
from pathlib import Path
import numpy as np, onnx, torch
torch.set_num_threads(1)
from thinet_onnx.data import from_arrays
from thinet_onnx.tuning import FinetuneOptions, finetune
from thinet_onnx.setting import open_model

class Mortal:
    def __init__(self, life):
        self.left = life
    def start(self, stage, total):
        pass
    def advance(self, steps=1):
        self.left -= steps
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    def close(self):
        pass

folder = Path(sys.argv[1])
student, teacher = onnx.load(folder / "student.onnx"), onnx.load(folder / "teacher.onnx")
arrays = np.load(folder / "data.npz")
data = from_arrays({"x": arrays["x"]}, open_model(teacher, {}).inputs)
options = FinetuneOptions(**eval(sys.argv[2]))
result = finetune(
    student, teacher, data, options, folder=Path(sys.argv[3]), resume=True, progress=Mortal(int(sys.argv[4]))
)
onnx.save(result.model, folder / f"{sys.argv[5]}-{os.environ.get('RANK', 0)}.onnx")
"""


def laid_out(folder: Path, student: onnx.ModelProto, teacher: onnx.ModelProto, items: int) -> Source:
    """The files of a run in a process of its own."""
    onnx.save(student, folder / "student.onnx")
    onnx.save(teacher, folder / "teacher.onnx")
    x = np.random.default_rng(3).standard_normal((items, 3, 8, 8)).astype(np.float32)
    np.savez(folder / "data.npz", x=x)
    return from_arrays({"x": x}, open_model(teacher, {}).inputs)


def start(
    folder: Path, options: dict[str, Any], run: str, life: int, name: str, **environment: str
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", RUN, str(folder), repr(options), str(folder / run), str(life), name]
    variables = {"OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(command, env=os.environ | variables, stderr=subprocess.PIPE)


def logged(folder: Path) -> list[dict[str, Any]]:
    """The lines of a log, but for the time."""
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in entry.items() if name != "seconds"} for entry in entries]


@pytest.mark.parametrize("optimizer", ["scaled", "whitened"])
def test_a_killed_run_ends_with_the_same_weights(tmp_path: Path, optimizer: str) -> None:
    model = residual()
    options = {
        "epochs": 3, "batch": 8, "ema": 0.5, "flip": True, "crop": 1, "layout": "nchw", "checkpoint_every": 3,
        "batch_norm": "learned", "optimizer": optimizer,
    }  # fmt: skip
    data = laid_out(tmp_path, shaken(model), model, 48)
    killed = start(tmp_path, options, "run", 11, "killed")
    assert killed.wait(60) == -9
    killed.communicate()
    assert logged(tmp_path / "run")[-1]["step"] == 10  # behind the checkpoint, which is of step 9
    whole = finetune(shaken(model), model, data, FinetuneOptions(**options), folder=tmp_path / "whole")
    resumed = finetune(shaken(model), model, data, FinetuneOptions(**options), folder=tmp_path / "run", resume=True)
    assert resumed.model.SerializeToString() == whole.model.SerializeToString()
    assert resumed.validations == whole.validations
    records = [
        [json.loads(line) for line in (tmp_path / run / "log.jsonl").read_text().splitlines()]
        for run in ("whole", "run")
    ]
    for record in (entry for lines in records for entry in lines):
        del record["seconds"]
    assert records[0] == records[1]
    assert not list((tmp_path / "run").glob(".checkpoint-*"))


def test_a_finished_run_is_read_back(tmp_path: Path) -> None:
    model = plain()
    first = finetune(shaken(model), model, data_for(model), FinetuneOptions(steps=4, batch=8), folder=tmp_path)
    again = finetune(
        shaken(model), model, data_for(model), FinetuneOptions(steps=4, batch=8), folder=tmp_path, resume=True
    )
    assert again.steps == 4
    assert again.model.SerializeToString() == first.model.SerializeToString()


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    model = plain()
    finetune(shaken(model), model, data_for(model), FinetuneOptions(steps=2, batch=8), folder=tmp_path)
    with pytest.raises(OptionError, match="of a run with other networks, data or options"):
        finetune(shaken(model), model, data_for(model), FinetuneOptions(steps=3, batch=8), folder=tmp_path, resume=True)
    (tmp_path / "checkpoint.pt").write_bytes(b"nonsense")
    with pytest.raises(OptionError, match="can't be read"):
        finetune(shaken(model), model, data_for(model), FinetuneOptions(steps=2, batch=8), folder=tmp_path, resume=True)
    # without resume it is begun anew
    finetune(shaken(model), model, data_for(model), FinetuneOptions(steps=2, batch=8), folder=tmp_path)


# --- two processes equal one --------------------------------------------------------------------------------------------


def with_norms(b: Build) -> onnx.ModelProto:
    x = b.input(dynamic="N")
    for place, (before, after) in enumerate(((3, 6), (6, 6))):
        x = b.node(
            "Relu", b.batch_norm(b.conv(x, before, after, name=f"conv{place}", bias=False), after, name=f"bn{place}")
        )
    b.output(b.gemm(b.node("Flatten", b.node("GlobalAveragePool", x)), 6, 5, name="head"))
    return b.model()


@pytest.mark.parametrize("optimizer", ["scaled", "whitened"])
def test_two_processes_equal_one(tmp_path: Path, optimizer: str) -> None:
    """With statistics that are learned, which sum over processes in the forward and in the backward pass."""
    model = with_norms(Build())
    options = {"steps": 20, "batch": 8, "batch_norm": "learned", "validate_every": 10, "optimizer": optimizer}
    data = laid_out(tmp_path, shaken(model), model, 40)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    pair = [start(tmp_path, options, "pair", -1, "pair", RANK=str(rank), **shared) for rank in (0, 1)]
    one = finetune(shaken(model), model, data, FinetuneOptions(**options), folder=tmp_path / "one")
    for process in pair:
        _, errors = process.communicate(timeout=100)
        assert process.returncode == 0, errors.decode()
    ends = [torch.load(tmp_path / run / "checkpoint.pt", weights_only=True) for run in ("one", "pair")]
    begin = initializers(shaken(model))
    for name, value in ends[0]["twin"].items():
        assert (ends[1]["twin"][name] - value).abs().max() <= 1e-5 * max(value.abs().max(), 1), name
        assert not np.array_equal(value.numpy(), begin[name]), name
    for alone, together in zip(one.validations, ends[1]["validations"], strict=True):
        assert together["loss"] == pytest.approx(alone.loss, rel=1e-5)
    written = [(tmp_path / f"pair-{rank}.onnx").read_bytes() for rank in (0, 1)]
    assert written[0] == written[1]
    assert len(logged(tmp_path / "pair")) == 20 + 3  # one of them writes


# --- the order of the data ---------------------------------------------------------------------------------------------


def pictures() -> Source:
    x = np.arange(10 * 3 * 5 * 6, dtype=np.float32).reshape(10, 3, 5, 6)
    return from_arrays(x, [InputSpec("x", (None, 3, 5, 6), np.dtype(np.float32))])


def test_every_item_is_seen_once_in_an_epoch_in_an_order_of_its_own() -> None:
    feeding = Feeding(pictures(), list(range(8)), 4, 0, Variation())
    assert feeding.steps == 2
    epochs = [[row for step in (2 * epoch, 2 * epoch + 1) for row in feeding.rows(step)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert feeding.rows(3) == Feeding(pictures(), list(range(8)), 4, 0, Variation()).rows(3)


def test_images_are_varied_by_seed_epoch_and_item_alone() -> None:
    feeding = Feeding(pictures(), list(range(10)), 4, 0, Variation(True, 1, inputs={"x": (2, 3)}))
    alone, joined = feeding.feeds([7], 2)["x"], feeding.feeds([1, 7], 2)["x"]
    assert np.array_equal(alone[0], joined[1])
    assert not np.array_equal(feeding.feeds(list(range(10)), 1)["x"], feeding.feeds(list(range(10)), 2)["x"])


def test_images_are_mixed_with_one_other_that_is_trained_on() -> None:
    x = np.random.default_rng(0).standard_normal((10, 3, 5, 6)).astype(np.float32)
    source = from_arrays(x, [InputSpec("x", (None, 3, 5, 6), np.dtype(np.float32))])
    mixed, some = (Feeding(source, [2, 5, 7], 3, 0, Variation(mix=share, inputs={"x": (2, 3)})) for share in (1.0, 0.4))
    seen, untouched = [], 0
    for epoch in range(60):
        made = mixed.feeds([0, 1], epoch)["x"]
        assert np.array_equal(made[0], mixed.feeds([0], epoch)["x"][0])  # it doesn't matter what else is in the batch
        shares = {
            row: float(np.vdot(made[0] - x[0], x[row] - x[0]) / np.square(x[row] - x[0]).sum()) for row in range(1, 10)
        }
        (found,) = [r for r, s in shares.items() if np.allclose(made[0], x[0] + s * (x[r] - x[0]), atol=1e-5)]
        seen.append((found, shares[found]))
        untouched += bool(np.array_equal(some.feeds([0], epoch)["x"][0], x[0]))
    assert {row for row, _ in seen} == {2, 5, 7}
    assert min(share for _, share in seen) < 0.1
    assert max(share for _, share in seen) > 0.9
    assert 20 < untouched < 52


@pytest.mark.parametrize(("layout", "axes"), [("nchw", (2, 3)), ("nhwc", (1, 2))])
def test_images_are_mirrored_and_shifted_with_their_edges_continued(layout: str, axes: tuple[int, int]) -> None:
    x = np.arange(5 * 6, dtype=np.float32)
    picture = np.expand_dims(x.reshape(5, 6), (0, 1) if layout == "nchw" else (0, 3))
    seen = set()
    for seed in range(200):
        feeds = {"x": picture.copy()}
        Variation(True, 1, inputs={"x": axes}).apply(feeds, slice(0, 1), np.random.default_rng(seed))
        seen.add(feeds["x"].tobytes())
    edges = np.pad(x.reshape(5, 6), 1, mode="edge")
    crops = [edges[i : i + 5, j : j + 6] for i in range(3) for j in range(3)]
    assert seen == {np.ascontiguousarray(c[:, ::s]).tobytes() for c in crops for s in (1, -1)}


@pytest.mark.parametrize(("layout", "axes"), [("nchw", (2, 3)), ("nhwc", (1, 2))])
def test_windows_of_images_are_enlarged(layout: str, axes: tuple[int, int]) -> None:
    rows, columns = np.meshgrid(np.arange(40.0), np.arange(60.0), indexing="ij")
    picture = np.stack([rows, columns], 0 if layout == "nchw" else 2).astype(np.float32)[None]
    sides, corners = [], []
    for seed in range(300):
        feeds = {"x": picture.copy()}
        Variation(zoom=0.5, inputs={"x": axes}).apply(feeds, slice(0, 1), np.random.default_rng(seed))
        assert feeds["x"].dtype == np.float32
        y, x = (np.take(feeds["x"][0], place, 0 if layout == "nchw" else 2) for place in (0, 1))
        assert np.ptp(y, axis=1).max() < 1e-5  # upright: rows stay rows
        assert np.ptp(x, axis=0).max() < 1e-5
        inner = np.diff(y[2:-2, 0])
        assert np.allclose(inner, inner[0], atol=1e-4)  # evenly spaced, as linear interpolation of a slope is
        assert np.allclose(np.diff(x[0, 2:-2]), inner[0], atol=1e-4)  # the same in both directions
        sides.append(float(inner[0]))
        corners.append((float(y[0, 0]), float(x[0, 0])))
    assert 0.5 <= min(sides) < 0.52
    assert 0.98 < max(sides) <= 1
    places = np.array(corners) / (1 - np.array(sides)[:, None]) / [40, 60]
    assert np.quantile(places, 0.1, axis=0).max() < 0.2  # anywhere in the image
    assert np.quantile(places, 0.9, axis=0).min() > 0.8


@pytest.mark.parametrize(("layout", "axes"), [("nchw", (2, 3)), ("nhwc", (1, 2))])
def test_four_images_make_one(layout: str, axes: tuple[int, int]) -> None:
    """Each whole in its quarter; ramps along both axes tell a picture's number and how far it was shrunk."""

    def picture(number: float) -> np.ndarray:
        rows, columns = np.meshgrid((np.arange(40) + 0.5) / 40, (np.arange(60) + 0.5) / 60, indexing="ij")
        planes = [np.full((40, 60), number), rows, columns]
        return np.stack(planes, 0 if layout == "nchw" else 2).astype(np.float32)[None]

    corners = []
    for seed in range(100):
        feeds = {"x": np.concatenate([picture(9), picture(0)])}
        others = [{"x": picture(number)} for number in (1, 2, 3)]
        Variation(mosaic=1.0, inputs={"x": axes}).tile(feeds, slice(1, 2), others, np.random.default_rng(seed))
        assert np.array_equal(feeds["x"][:1], picture(9))
        made = feeds["x"][1] if layout == "nchw" else feeds["x"][1].transpose(2, 0, 1)
        y, x = int((made[0, :, 0] == 0).sum()), int((made[0, 0] == 0).sum())
        corners.append((y / 40, x / 60))
        for number, place in enumerate(np.ix_(*ends) for ends in _quarters(y, x)):
            quarter = made[(slice(None), *place)]
            assert (quarter[0] == number).all()
            for ramp, length in ((quarter[1][:, 0], quarter.shape[1]), (quarter[2][0], quarter.shape[2])):
                assert ramp == pytest.approx((np.arange(length) + 0.5) / length, abs=1e-5)
    assert 0.27 < np.min(corners) < 0.34
    assert 0.66 < np.max(corners) < 0.73


def _quarters(y: int, x: int) -> list[tuple[range, range]]:
    return [(rows, columns) for rows in (range(y), range(y, 40)) for columns in (range(x), range(x, 60))]


def test_some_images_get_others_beside_them_that_are_trained_on() -> None:
    x = np.arange(10, dtype=np.float32)[:, None, None, None] * np.ones((1, 1, 8, 8), np.float32)
    source = from_arrays(x, [InputSpec("x", (None, 1, 8, 8), np.dtype(np.float32))])
    some = Feeding(source, [2, 5, 7], 3, 0, Variation(mosaic=0.4, inputs={"x": (2, 3)}))
    whole, beside = 0, set()
    for epoch in range(60):
        made = some.feeds([0, 1], epoch)["x"]
        assert np.array_equal(made[0], some.feeds([0], epoch)["x"][0])  # it doesn't matter what else is in the batch
        numbers = set(np.unique(made[0]).tolist())
        assert 0 in numbers
        whole += numbers == {0}
        beside |= numbers
    assert 25 < whole < 47
    assert beside == {0, 2, 5, 7}


def test_what_is_no_image_is_not_varied() -> None:
    b = Build()
    b.output(b.gemm(b.input(shape=(1, 4)), 4, 3, name="fc"))
    assert variation(False, 0, "auto", b.model().graph.input) == Variation()
    with pytest.raises(OptionError, match="no input of the model has rank 4"):
        variation(True, 0, "auto", b.model().graph.input)
    unclear = Build()
    unclear.output(unclear.conv(unclear.input(shape=(1, 7, 8, 9)), 7, 3))
    with pytest.raises(OptionError, match="--flip, --crop, --zoom, --mosaic and --mix"):
        variation(True, 0, "auto", unclear.model().graph.input)


# --- losses ------------------------------------------------------------------------------------------------------------


def objective(seen: "torch.Tensor", place: Place | None = None, **options: Any) -> Objective:
    return Objective(FinetuneOptions(**options), [place or Place("y", "y")], (), {"y": seen})


def test_class_scores_are_compared_by_divergence_and_all_else_by_squares() -> None:
    generator = torch.Generator().manual_seed(0)
    t, z = (torch.randn(6, 5, generator=generator) for _ in "tz")
    p, q = (x.div(2).softmax(1) for x in (t, z))
    divergence = 4 * (p * (p / q).log()).sum(1).mean()
    squares = (z - t).square().mean() / t.var(correction=0)
    behind_softmax = Place("y", "y", axis=1)
    found = {
        "logits": objective(t).parts({"y": z}, {"y": t}, {})["y"],
        "behind a softmax": objective(t, behind_softmax).parts({"y": z}, {"y": t}, {})["y"],
        "probabilities": objective(t.softmax(1)).parts({"y": z.softmax(1)}, {"y": t.softmax(1)}, {})["y"],
        "maps": objective(t[..., None, None].repeat(1, 1, 2, 2)).parts(
            {"y": z[..., None, None].repeat(1, 1, 2, 2)}, {"y": t[..., None, None].repeat(1, 1, 2, 2)}, {})["y"],
    }  # fmt: skip
    expected = {
        "logits": divergence + squares, "behind a softmax": divergence, "probabilities": divergence, "maps": squares,
    }  # fmt: skip
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(float(value), rel=1e-4), name
    weighed = objective(t, behind_softmax, output_weights={"y": 0.5}, distill=3.0).parts({"y": z}, {"y": t}, {})["y"]
    assert float(weighed) == pytest.approx(1.5 * float(divergence), rel=1e-4)


@pytest.mark.parametrize(
    ("opset", "axis", "shape"), [(13, 1, (2, 4, 3, 3)), (13, -1, (2, 3, 3, 4)), (11, 3, (2, 3, 3, 4))]
)
def test_a_softmax_anywhere_is_compared_in_front_of_it(opset: int, axis: int, shape: tuple[int, ...]) -> None:
    b = Build(opset)
    x = b.conv(b.input(), 3, 4, name="scores")
    x = b.node("Transpose", x, perm=[0, 2, 3, 1]) if shape[1] == 3 else x
    b.output(b.node("Softmax", x, axis=axis, out="y"))
    graph = Graph(b.model())
    (place,) = sources(graph, find_cut(graph))
    assert (place.output, place.tensor) == ("y", x)
    z, t = torch.randn(2, *shape).unbind()
    chosen = Objective(FinetuneOptions(temperature=1.0), [place], (), {x: t})
    classes = axis % 4
    expected = (t.softmax(classes) * (t.log_softmax(classes) - z.log_softmax(classes))).sum() / 18
    assert float(chosen.parts({x: z}, {x: t}, {})["y"]) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("moved", [(), ("Transpose",), ("Transpose", "Reshape", "Identity")], ids="+".join)
def test_what_a_sigmoid_answers_is_compared_in_front_of_it(moved: tuple[str, ...]) -> None:
    b = Build(17)
    x = b.conv(b.input(), 3, 4, name="chances")
    y = b.node("Sigmoid", x, out="" if moved else "y")
    for place, kind in enumerate(moved):
        out = "y" if place == len(moved) - 1 else ""
        if kind == "Transpose":
            y = b.node(kind, y, perm=[0, 2, 3, 1], out=out)
        else:
            y = b.node(kind, y, *([b.const(np.array([0, -1]))] if kind == "Reshape" else []), out=out)
    b.output(y)
    graph = Graph(b.model())
    assert sources(graph, find_cut(graph)) == [Place(y, x, chances=True)]


def test_what_several_kinds_are_joined_in_is_compared_in_each() -> None:
    """A head as FastestDet's: an object's chance, a box, classes."""
    b = Build(17)
    x = b.input()
    chance, box, scores = (b.conv(x, 3, count, name=name) for count, name in ((1, "o"), (4, "b"), (5, "c")))
    classes = b.node("Transpose", b.node("Softmax", b.node("Transpose", scores, perm=[0, 2, 3, 1])), perm=[0, 3, 1, 2])
    y = b.node("Concat", b.node("Sigmoid", chance), box, classes, axis=1, out="y")
    b.output(y)
    graph = Graph(b.model())
    softmax = next(node for node in graph.nodes if node.op == "Softmax")
    found = sources(graph, find_cut(graph))
    assert found == [
        Place("y", chance, chances=True, parts=3),
        Place("y", box, part=1, parts=3),
        Place("y", softmax.inputs[0], axis=-1, part=2, parts=3),
    ]
    assert [place.name for place in found] == ["y[0]", "y[1]", "y[2]"]


def test_heads_of_several_scales_that_split_what_a_sigmoid_answers() -> None:
    """As YOLOv5's: boxes and chances come of one sigmoid, boxes are in pixels, scales are joined behind a Reshape."""
    b = Build(17)
    x = b.input()
    scales, expected = [], []
    for name in "ab":
        chances = b.node("Sigmoid", b.conv(x, 3, 6, name=name))
        box = b.node("Slice", chances, *(b.const(np.array([value])) for value in (0, 4, 1)))
        rest = b.node("Slice", chances, *(b.const(np.array([value])) for value in (4, 6, 1)))
        box = b.node("Mul", box, b.const(np.float32(32)))
        scales.append(b.node("Reshape", b.node("Concat", box, rest, axis=1), b.const(np.array([0, 6, -1]))))
        expected += [(box, False), (rest, True)]
    b.output(b.node("Concat", *scales, axis=2, out="y"))
    graph = Graph(b.model())
    found = sources(graph, find_cut(graph))
    assert [(place.tensor, place.certain) for place in found] == expected
    assert all(place.chances == place.certain and place.parts == 4 for place in found)


def test_what_is_joined_of_one_kind_is_compared_as_it_is() -> None:
    b = Build(17)
    x = b.input()
    b.output(b.node("Concat", b.conv(x, 3, 4, name="a"), b.conv(x, 3, 4, name="b"), axis=1, out="y"))
    graph = Graph(b.model())
    assert sources(graph, find_cut(graph)) == [Place("y", "y")]


def test_parts_of_an_output_count_as_much_as_each_other() -> None:
    """Boxes in pixels would drown chances otherwise: their squares are 1e7 times as large."""
    generator = torch.Generator().manual_seed(0)
    chances, boxes = torch.randn(6, 2, 9, generator=generator), 300 * torch.randn(6, 4, 9, generator=generator)
    seen = {"c": chances, "b": boxes}
    places = [Place("y", "c", chances=True, parts=2), Place("y", "b", part=1, parts=2)]
    chosen = Objective(FinetuneOptions(output_weights={"y": 3.0}), places, (), seen)
    means = {
        "c": torch.full_like(chances, float(chances.sigmoid().mean().logit())),
        "b": torch.full_like(boxes, float(boxes.mean())),
    }
    assert {name: float(part) for name, part in chosen.parts(means, seen, {}).items()} == pytest.approx(
        {"y[0]": 1.5, "y[1]": 1.5}, rel=1e-3
    )


def test_chances_behind_the_sigmoid_count_as_those_in_front_of_it() -> None:
    generator = torch.Generator().manual_seed(0)
    t, z = (3 * torch.randn(6, 2, 9, generator=generator) for _ in "tz")
    front = objective(t, Place("y", "y", chances=True)).parts({"y": z}, {"y": t}, {})["y"]
    behind = objective(t.sigmoid(), Place("y", "y", chances=True, certain=True))
    assert float(behind.parts({"y": z.sigmoid()}, {"y": t.sigmoid()}, {})["y"]) == pytest.approx(float(front), rel=1e-3)


def test_chances_count_by_their_share_of_what_the_mean_leaves_unsaid() -> None:
    generator = torch.Generator().manual_seed(0)
    t, z = (3 * torch.randn(6, 1, 5, 5, generator=generator) - 4 for _ in "tz")
    q, p = t.sigmoid(), z.sigmoid()

    def divergence(p: "torch.Tensor") -> "torch.Tensor":
        return (q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()).mean()

    chosen = objective(t, Place("y", "y", chances=True))
    found = float(chosen.parts({"y": z}, {"y": t}, {})["y"])
    assert found == pytest.approx(float(divergence(p) / divergence(q.mean())), rel=1e-4)
    assert float(chosen.parts({"y": t}, {"y": t}, {})["y"]) == pytest.approx(0, abs=1e-6)
    assert float(chosen.parts({"y": t - t + q.mean().logit()}, {"y": t}, {})["y"]) == pytest.approx(1, rel=1e-4)


def test_chances_that_do_not_vary_or_are_certain_give_no_infinite_loss() -> None:
    for same in (torch.full((4, 1, 3, 3), -200.0), torch.full((4, 1, 3, 3), 0.5), torch.full((4, 1, 3, 3), 200.0)):
        z = torch.randn(4, 1, 3, 3, requires_grad=True)
        loss = objective(same, Place("y", "y", chances=True)).parts({"y": z}, {"y": same}, {})["y"]
        loss.backward()  # type: ignore[no-untyped-call]
        assert z.grad is not None
        assert bool(loss.isfinite()) and bool(z.grad.isfinite().all())


def test_classes_behind_a_sigmoid_count_as_scores_too() -> None:
    t = torch.tensor([[4.0, -3, -3], [-3, 4, -3], [-3, -3, 4]])
    chosen = objective(t, Place("y", "y", chances=True), label_weight=1.0)
    assert chosen.agreeing({"y": t.roll(1, 0)}, {"y": t}) == (0, 3)
    found = chosen.parts({"y": t}, {"y": t}, {"labels": torch.tensor([0, 1, 2])})
    assert float(found["labels"]) == pytest.approx(float(-t.log_softmax(1).diag().mean()), rel=1e-5)


def test_agreement_counts_best_classes() -> None:
    chosen = objective(torch.randn(4, 3))
    scores = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]])
    assert chosen.agreeing({"y": scores.roll(1, 0)}, {"y": scores}) == (1, 4)
    assert objective(torch.randn(4, 3, 2, 2)).agreeing({"y": scores}, {"y": scores}) == (0, 0)


# --- what the user can mend ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optimizer": "adam"}, "--optimizer 'adam' is unknown: choose one of whitened, scaled, adamw, sgd"),
        ({"batch_norm": "fixed"}, "--batch-norm"),
        ({"device": "tpu"}, "--device"),
        ({"layout": "chw"}, "--layout"),
        ({"epochs": 0}, "--epochs 0"),
        ({"steps": 0}, "--steps 0"),
        ({"batch": 0}, "--batch 0"),
        ({"clip": -1.0}, "--clip -1: it must not be negative"),
        ({"ema": 1.0}, "--ema 1: it must lie between 0 and 1"),
        ({"learning_rate": 0.0}, "must be positive"),
        ({"temperature": 0.0}, "must be positive"),
        ({"distill": 0.0}, "Nothing is to be learned"),
        ({"held_out": 1.5}, "to hold out is 1.5"),
        ({"label_weight": 1.0}, "there are none in"),
        ({"output_weights": {"nowhere": 1.0}}, "no output 'nowhere'; it has"),
        ({"output_weights": {"v6": 0.0}}, "Every output has the weight 0"),
    ],
)
def test_options_that_can_not_be_used(options: dict[str, Any], words: str) -> None:
    model = plain()
    with pytest.raises(OptionError, match=words):
        finetune(model, model, data_for(model), FinetuneOptions(**options))


def test_networks_that_do_not_fit_together() -> None:
    with pytest.raises(ModelError, match="has no tensor 'nowhere' to compare"):
        learn(plain(), feature_weight=1.0, features=("nowhere",))
    other = two_convs()
    with pytest.raises(ModelError, match="The original has no tensor"):
        finetune(plain(), other.model(), data_for(plain()), FinetuneOptions(steps=1))
    with pytest.raises(OptionError, match="no output looks like class scores"):
        finetune(other.model(), other.model(), data_for(other.model(), labels=True), FinetuneOptions(label_weight=1.0))
    with pytest.raises(DataError, match="too little data"):
        finetune(plain(), plain(), data_for(plain(), 1), FinetuneOptions())


def test_more_processes_than_items_in_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    with pytest.raises(OptionError, match="A step has 1 items for 2 processes"):
        learn(plain(), batch=1)


def test_without_pytorch_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(OptionError, match="not installed: pip install torch"):
        finetune(plain(), plain(), data_for(plain()))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mix": 1.5}, "--mix 1.5: the share of images"),
        ({"mix": 0.5, "label_weight": 1.0}, "a mixed image has no label"),
        ({"mosaic": -0.1}, "--mosaic -0.1: the share of images"),
        ({"mosaic": 0.5, "label_weight": 1.0}, "an image of four has no label"),
        ({"compile": True, "batch_norm": "learned"}, "don't go together"),
        ({"precision": "fp8"}, "--precision 'fp8' is unknown: choose one of auto, fp32, bf16"),
    ],
)
def test_options_that_contradict_each_other(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        FinetuneOptions(**options)


def test_options_need_no_pytorch() -> None:
    code = "import sys, thinet_onnx.tuning as f; f.FinetuneOptions(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
