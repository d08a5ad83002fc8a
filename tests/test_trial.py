"""Groups tried alone while the original streams by: the answers must be those of the whole network with new weights."""

from typing import Any

import numpy as np
import onnx
import pytest
from small_models import Net

from thinet_onnx import pipeline, trial
from thinet_onnx.options import PruneOptions, Target


def network(late_bias: bool, join: bool = False) -> onnx.ModelProto:
    """Three convolutions; with `late_bias` their biases, the same numbers, are known at run time only."""
    net = Net(3)
    x = net.input("x", ("N", 3, 8, 8))

    def conv(y: str, channels: int, filters: int, name: str) -> str:
        weight = net.weight(filters, channels, 3, 3)
        bias = net.tensor((0.1 * net.rng.standard_normal(filters)).astype(np.float32))
        if late_bias:
            bias = net.node("CastLike", bias, x)
        return net.node("Conv", y, weight, bias, name=name, pads=[1, 1, 1, 1])

    stem = net.relu(conv(x, 3, 8, "stem"))
    y = net.relu(conv(stem, 8, 8, "middle"))
    y = conv(y, 8, 8, "last")
    return net.model(net.head(net.relu(net.node("Add", y, stem) if join else y), 8))


def tries(model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[list[trial.Tried], Any]:
    """What came of every group, and the result of the run."""
    found: list[trial.Tried] = []
    real = trial.Trial.one

    def one(self: trial.Trial, *given: Any) -> trial.Tried:
        found.append(real(self, *given))
        return found[-1]

    monkeypatch.setattr(trial.Trial, "one", one)
    x = np.random.default_rng(0).standard_normal((64, 3, 8, 8)).astype(np.float32)
    return found, pipeline.prune(model, {"x": x}, PruneOptions(target=Target("macs", 0.6, True), **options))


@pytest.mark.parametrize("late_bias", [False, True])
@pytest.mark.parametrize("join", [False, True])
def test_what_follows_a_stop_answers_as_the_whole_network(
    late_bias: bool, join: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network(late_bias, join)
    with monkeypatch.context() as patch:
        streamed, _ = tries(model, patch, scope="all")
    with monkeypatch.context() as patch:
        real = trial.Trial.one
        patch.setattr(trial.Trial, "one", lambda self, group, views, _: real(self, group, views, None))
        whole, _ = tries(model, patch, scope="all")
    assert len(streamed) == len(whole) > 0
    for one, other in zip(streamed, whole, strict=True):
        assert list(one.moved) == list(other.moved)
        np.testing.assert_allclose(list(one.moved.values()), list(other.moved.values()), rtol=1e-3)
        assert min(one.moved.values()) > 1e-4


def test_a_bias_that_is_known_late_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for late_bias in (False, True):
        with monkeypatch.context() as patch:
            results.append(tries(network(late_bias), patch))
    (early, known), (late, unknown) = results
    for one, other in zip(early, late, strict=True):
        np.testing.assert_allclose(one.errors, other.errors, rtol=1e-3, atol=1e-6)
    assert [group.kept for group in known.plan.groups] == [group.kept for group in unknown.plan.groups]
