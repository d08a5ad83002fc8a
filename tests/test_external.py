"""Models whose weights stay in files of their own, as those over 2 GB do: the limit is lowered for small ones."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import Build
from oracle import analysed, holds, random_kept

from thinet_onnx import external, pipeline, runtime
from thinet_onnx import graph as graphs
from thinet_onnx.data import random_source
from thinet_onnx.errors import ModelError
from thinet_onnx.options import PruneOptions
from thinet_onnx.setting import open_model


def network() -> Build:
    b = Build(17)
    h = b.node("Relu", b.conv(b.input(dynamic="n"), 3, 16, name="first"))
    h = b.node("Relu", b.conv(h, 16, 16, name="second"))
    h = b.node("Flatten", b.node("GlobalAveragePool", h))
    b.output(b.gemm(h, 16, 300, name="head"), rank=2)
    return b


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model with external data that counts as too large for one message."""
    graphs.save(network().model(), tmp_path / "model.onnx", beside=".data")
    monkeypatch.setattr(external, "LARGEST", 1000)
    return tmp_path / "model.onnx"


def outside(model: onnx.ModelProto) -> list[str]:
    return [tensor.name for tensor in model.graph.initializer if external.is_external(tensor)]


def test_a_large_model_stays_outside_and_runs(file: Path) -> None:
    model = graphs.load(file)
    assert outside(model) == ["first.weight", "second.weight", "head.weight", "head.bias"]
    assert model.ByteSize() < 3000 < external.size(model)
    b = network()
    expected, found = (runtime.outputs(m, [b.feed()])[0][0] for m in (b.model(), model))
    np.testing.assert_array_equal(expected, found)


def test_a_large_model_obeys_the_oracle(file: Path) -> None:
    model = graphs.load(file)
    analysis = analysed(model, network().feed())
    _, pruned = holds(model, analysis, random_kept(analysis, 0), network().feed())
    assert outside(pruned) == outside(model)


def test_a_large_model_is_pruned_and_written(file: Path, tmp_path: Path) -> None:
    target = tmp_path / "pruned.onnx"
    before = file.read_bytes(), (tmp_path / "model.onnx.data").read_bytes()
    data = random_source(open_model(file, {}).inputs, samples=16, seed=0)
    result = pipeline.prune(file, data, PruneOptions(keep=0.5, round_to=4), output=target)
    assert result.report.oracle_error < 1e-4
    assert result.report.after.bytes < result.report.before.bytes
    assert before == (file.read_bytes(), (tmp_path / "model.onnx.data").read_bytes())
    written = onnx.load(target)  # with onnx's own reader of external data
    feed = network().feed()
    expected, found = (runtime.outputs(m, [feed])[0][0] for m in (result.model, written))
    np.testing.assert_array_equal(expected, found)


@pytest.mark.parametrize(
    ("location", "complaint"),
    [
        ("../other.data", "not inside the model's folder"),
        ("/etc/hosts", "not inside"),
        ("gone.data", "there is no file"),
    ],
)
def test_external_data_has_to_be_beside_the_model(file: Path, location: str, complaint: str) -> None:
    model = onnx.load(file, load_external_data=False)
    model.graph.initializer[0].external_data[0].value = location
    file.write_bytes(model.SerializeToString())
    (file.parent.parent / "other.data").write_bytes(b"x" * 100_000)
    with pytest.raises(ModelError, match=complaint):
        graphs.load(file)


def test_a_data_file_that_is_too_short_is_refused(file: Path) -> None:
    data = file.with_name("model.onnx.data")
    data.write_bytes(data.read_bytes()[:-8])
    with pytest.raises(ModelError, match=r"ends before 'head\.bias' does"):
        graphs.load(file)


def test_a_model_whose_data_is_not_loaded_is_refused(file: Path) -> None:
    with pytest.raises(ModelError, match="external data isn't loaded; pass the path"):
        open_model(onnx.load(file, load_external_data=False), {})
