"""The adapters: ONNX Runtime and OpenVINO for real, TensorRT by the calls that reach Polygraphy, whose signatures are real."""

import importlib.util
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, create_autospec

import numpy as np
import onnx
import pytest
import small_models
from small_models import Net

from thinet_onnx import engines, external
from thinet_onnx.check_options import ENGINES
from thinet_onnx.errors import ModelError, OptionError

X = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
SHAPES = {"x": (2, 3, 8, 8)}
HERE = ["ort", "openvino"]


def two_heads() -> onnx.ModelProto:
    """Two outputs in an order that is not that of the nodes, one of them integers; an input that nobody reads."""
    net = Net()
    net.input("unread", ("N", 4))
    x = net.relu(net.conv(net.input("x", ("N", 3, 8, 8)), 3, 4))
    scores = net.head(x, 4)
    return net.model(net.node("ArgMax", scores, axis=1), scores)


def quantised() -> onnx.ModelProto:
    net = Net()
    scale, zero = net.tensor(np.float32(0.05)), net.tensor(np.int8(0))
    x = net.node(
        "DequantizeLinear", net.node("QuantizeLinear", net.input("x", ("N", 3, 8, 8)), scale, zero), scale, zero
    )
    return net.model(net.head(net.relu(net.conv(x, 3, 8)), 8))


@pytest.mark.parametrize("engine", HERE)
def test_answers_are_those_of_the_file(engine: Any) -> None:
    program = engines.make(engine, threads=1).load(small_models.residual(), SHAPES)
    (answer,) = program.run({"x": X})
    np.testing.assert_allclose(answer, small_models.run(small_models.residual(), {"x": X})[0], rtol=1e-4, atol=1e-5)
    program.close()


@pytest.mark.parametrize("engine", HERE)
def test_outputs_keep_the_order_of_the_file(engine: Any) -> None:
    feeds = {"x": X, "unread": np.zeros((2, 4), np.float32)}
    program = engines.make(engine).load(two_heads(), {name: array.shape for name, array in feeds.items()})
    classes, scores = program.run(feeds)
    assert classes.dtype == np.int64
    assert (classes.ravel() == scores.argmax(1)).all()


@pytest.mark.parametrize("engine", HERE)
def test_an_answer_is_not_overwritten_by_the_next(engine: Any) -> None:
    program = engines.make(engine).load(small_models.plain(), SHAPES)
    (first,) = program.run({"x": X})
    kept = first.copy()
    program.run({"x": 2 * X})
    assert (first == kept).all()


@pytest.mark.parametrize("engine", HERE)
def test_weights_in_a_file_of_their_own(engine: Any, tmp_path: Path) -> None:
    """Models over 2 GB are kept as their graph alone; here a small one is."""
    onnx.save(
        small_models.plain(), tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=64
    )
    model = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    external.attach(model, tmp_path)
    (answer,) = engines.make(engine).load(model, SHAPES).run({"x": X})
    np.testing.assert_allclose(answer, small_models.run(small_models.plain(), {"x": X})[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("engine", "words"), [("ort", "Konv"), ("openvino", "No conversion rule found for operations: Konv")]
)
def test_a_model_that_is_refused(engine: Any, words: str) -> None:
    model = small_models.plain()
    model.graph.node[0].op_type = "Konv"
    with pytest.raises(ModelError, match=words) as caught:
        engines.make(engine).load(model, SHAPES)
    assert "\n" not in str(caught.value) and "src/" not in str(caught.value)


@pytest.mark.parametrize(("engine", "words"), [("ort", "can't run"), ("openvino", r"can't load .*channel count \(4\)")])
def test_inputs_that_do_not_fit(engine: Any, words: str) -> None:
    wrong = np.zeros((2, 4, 8, 8), np.float32)
    with pytest.raises(ModelError, match=words):
        engines.make(engine).load(small_models.plain(), {"x": wrong.shape}).run({"x": wrong})


def test_inputs_of_another_shape_than_it_was_loaded_for() -> None:
    program = engines.make("openvino").load(small_models.plain(), SHAPES)
    with pytest.raises(ModelError, match=r"OpenVINO can't run .*2,3,8,8"):
        program.run({"x": X[:1]})


def test_openvino_computes_in_the_types_of_the_file_unless_told_otherwise() -> None:
    """By default its answers are float32's, also on a processor where OpenVINO itself would take bfloat16."""
    expected = small_models.run(small_models.residual(), {"x": X})[0]
    exact = engines.make("openvino").load(small_models.residual(), SHAPES).run({"x": X})[0]
    assert np.abs(exact - expected).max() < 1e-5 * np.abs(expected).max()
    assert engines.make("openvino").title.startswith("OpenVINO 2")


def test_a_precision_that_the_processor_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    openvino = importlib.import_module("openvino")
    core = SimpleNamespace(get_property=lambda *_: ["FP32", "INT8"])
    monkeypatch.setattr(openvino, "Core", lambda: core)
    with pytest.raises(OptionError, match=r"--precision bf16: OpenVINO can't .* \(FP32, INT8\)"):
        engines.make("openvino", "bf16")


@pytest.mark.parametrize("engine", ["openvino"])
def test_int8_wants_a_quantised_file(engine: Any) -> None:
    with pytest.raises(ModelError, match="QuantizeLinear"):
        engines.make(engine, "int8").load(small_models.plain(), SHAPES)
    (answer,) = engines.make(engine, "int8").load(quantised(), SHAPES).run({"x": X})
    assert np.abs(answer - small_models.run(quantised(), {"x": X})[0]).max() < 0.05


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_onnx_runtime_takes_a_file_as_it_is(precision: Any) -> None:
    with pytest.raises(
        OptionError, match=f"--precision {precision}: ONNX Runtime computes in the types that the file has"
    ):
        engines.make("ort", precision)


# --- what isn't installed ---------------------------------------------------------------------------------------------


def hide(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    real = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> Any:
        return None if name in names else real(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)


@pytest.mark.parametrize(
    ("engine", "hidden", "line"),
    [
        ("openvino", ["openvino"], "openvino is not installed: pip install openvino"),
        ("tensorrt", ["tensorrt"], "tensorrt is not installed: pip install tensorrt"),
        ("tensorrt", ["tensorrt", "polygraphy"], "tensorrt is not installed: pip install tensorrt polygraphy"),
    ],
)
def test_what_is_not_installed_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, engine: Any, hidden: list[str], line: str
) -> None:
    hide(monkeypatch, *hidden)
    assert engines.missing(engine) == line
    with pytest.raises(OptionError) as caught:
        engines.make(engine)
    assert str(caught.value) == f"{line}."


def test_what_is_here_is_not_missing() -> None:
    assert [engine for engine in ENGINES if engines.missing(engine) is None] == HERE  # type: ignore[arg-type]


# --- TensorRT ---------------------------------------------------------------------------------------------------------


class Gpu:
    """Polygraphy's functions with their real signatures, and notes of what they were called with."""

    def __init__(self, backend: ModuleType) -> None:
        self.profile = create_autospec(backend.Profile, instance=True)
        self.runner = create_autospec(backend.TrtRunner, instance=True)
        self.parse = create_autospec(backend.network_from_onnx_path, side_effect=self._parse)
        self.config = create_autospec(backend.CreateConfig)
        self.build = create_autospec(backend.engine_from_network, return_value="an engine")
        self.runs = create_autospec(backend.TrtRunner, return_value=self.runner)
        self.parsed: list[onnx.ModelProto] = []

    def _parse(self, path: str, **_: Any) -> str:
        self.parsed.append(onnx.load(path))
        return "a network"


def pretend(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """A module `tensorrt` that has everything and does nothing."""
    fake = ModuleType("tensorrt")
    fake.__version__ = version  # type: ignore[attr-defined]
    fake.__spec__ = importlib.util.spec_from_loader("tensorrt", None)

    def missing(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock(name=name)

    fake.__getattr__ = missing  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    for name in [name for name in sys.modules if name.partition(".")[0] == "polygraphy"]:
        monkeypatch.delitem(sys.modules, name)  # it looks at tensorrt when it is imported


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    pretend(monkeypatch, "10.15.1")
    trt = importlib.import_module("polygraphy.backend.trt")
    made = Gpu(trt)
    monkeypatch.setattr(trt, "Profile", lambda: made.profile)
    for name, function in (
        ("network_from_onnx_path", made.parse), ("CreateConfig", made.config),
        ("engine_from_network", made.build), ("TrtRunner", made.runs),
    ):  # fmt: skip
        monkeypatch.setattr(trt, name, function)
    yield made
    logging.getLogger("Polygraphy").handlers.clear()


def version(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys.modules["tensorrt"], "__version__", text)


def test_tensorrt_builds_for_the_shapes_asked_for_and_runs(gpu: Gpu) -> None:
    answer = np.ones((2, 5), np.float32)
    model = small_models.plain()
    name = model.graph.output[0].name
    gpu.runner.infer.return_value = {name: answer}
    engine = engines.make("tensorrt")
    program = engine.load(model, SHAPES)
    assert engine.title == "TensorRT 10.15.1"
    gpu.profile.add.assert_called_once_with("x", min=(2, 3, 8, 8), opt=(2, 3, 8, 8), max=(2, 3, 8, 8))
    assert gpu.parsed == [model]
    assert gpu.parse.call_args.kwargs == {"strongly_typed": True}
    gpu.config.assert_called_once_with(profiles=[gpu.profile], tf32=True)
    gpu.build.assert_called_once_with("a network", config=gpu.config.return_value)
    gpu.runs.assert_called_once_with("an engine")
    gpu.runner.activate.assert_called_once_with()
    (found,) = program.run({"x": X})
    gpu.runner.infer.assert_called_once()
    assert gpu.runner.infer.call_args.args[0]["x"] is X
    answer[:] = 0  # Polygraphy reuses its buffers
    assert (found == 1).all()
    program.close()
    gpu.runner.deactivate.assert_called_once_with()


@pytest.mark.parametrize(
    ("release", "precision", "strong", "flags"),
    [
        ("8.6.1", "fp32", False, {}),
        ("8.6.1", "fp16", False, {"fp16": True}),
        ("8.6.1", "int8", False, {"int8": True}),
        ("10.15.1", "fp16", False, {"fp16": True}),
        ("10.15.1", "bf16", False, {"bf16": True}),
        ("10.15.1", "int8", True, {}),
        ("11.4.0", "fp32", True, {}),
        ("11.4.0", "int8", True, {}),
    ],
)
def test_types_are_the_networks_or_the_builders(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch, release: str, precision: Any, strong: bool, flags: dict[str, bool]
) -> None:
    version(monkeypatch, release)
    engines.make("tensorrt", precision).load(quantised(), SHAPES)
    assert gpu.parse.call_args.kwargs == {"strongly_typed": strong}
    assert gpu.config.call_args.kwargs == {"profiles": [gpu.profile], "tf32": True, **flags}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_newer_releases_take_types_from_the_file_only(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch, precision: Any
) -> None:
    version(monkeypatch, "11.4.0")
    with pytest.raises(OptionError, match=rf"--precision {precision}: TensorRT 11\.4\.0 .* modelopt"):
        engines.make("tensorrt", precision)


def test_int8_without_quantisation_is_refused(gpu: Gpu) -> None:
    with pytest.raises(ModelError, match="TensorRT needs QuantizeLinear"):
        engines.make("tensorrt", "int8").load(small_models.plain(), SHAPES)
    gpu.build.assert_not_called()


def test_the_parsers_own_words_are_the_reason(gpu: Gpu, capfd: pytest.CaptureFixture[str]) -> None:
    """Polygraphy logs why, and raises something general."""
    engine = engines.make("tensorrt")
    logger = importlib.import_module("polygraphy.logger").G_LOGGER

    def parse(*_: Any, **__: Any) -> None:
        logger.info("reading")
        logger.error("In node 3 (importFoo): no importer for Foo")
        logger.critical("Could not parse ONNX correctly")

    gpu.parse.side_effect = parse
    with pytest.raises(
        ModelError, match=r"TensorRT can't build the model \(In node 3 \(importFoo\): no importer for Foo\)\."
    ):
        engine.load(small_models.plain(), SHAPES)
    assert capfd.readouterr() == ("", "")


def test_a_machine_without_a_gpu(gpu: Gpu) -> None:
    gpu.parse.side_effect = TypeError("pybind11::init(): factory function returned nullptr")
    with pytest.raises(ModelError, match=r"can't build the model .*nullptr"):
        engines.make("tensorrt").load(small_models.plain(), SHAPES)


def test_a_run_that_fails(gpu: Gpu) -> None:
    gpu.runner.infer.side_effect = RuntimeError("out of memory")
    program = engines.make("tensorrt").load(small_models.plain(), SHAPES)
    with pytest.raises(ModelError, match=r"TensorRT can't run the model on these inputs \(out of memory"):
        program.run({"x": X})


def test_tensorrt_that_can_not_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "10.15.1")
    monkeypatch.setitem(sys.modules, "polygraphy.backend", None)
    with pytest.raises(OptionError, match="tensorrt is installed but can't be loaded"):
        engines.make("tensorrt")
