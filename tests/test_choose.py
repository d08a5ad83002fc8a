"""What becomes of an error curve on images that weren't fitted, dead channels included."""

from typing import Any

import numpy as np
import onnx
import pytest
import small_models

import thinet_onnx
from thinet_onnx import budget, choose, trial

Array = np.ndarray[Any, Any]


def test_between_measured_widths_ratios_are_drawn_straight() -> None:
    error = np.array([0.1, 0.2, 0.3, 0.4])
    drawn = budget.held_out(error, {3: 0.9, 1: 0.1}, 1e-8)
    assert drawn == pytest.approx([0.1 * 1, 0.2 * 2, 0.3 * 3, 0.4 * 3])


def test_an_error_that_is_nothing_has_no_ratio() -> None:
    error = np.array([1e-17, 2e-17, 1e-16, 1e-16, 0.01, 0.02])
    drawn = budget.held_out(error, {1: 1e-7, 2: 2e-7, 6: 0.03}, 1e-8)
    assert drawn == pytest.approx([1e-7, 2e-7, 2e-7, 2e-7, 0.015, 0.03])


def test_a_curve_of_nothing_stays_one() -> None:
    assert budget.held_out(np.zeros(3), {1: 0.0, 2: 0.0}, 1e-8).tolist() == [0, 0, 0]
    assert budget.held_out(np.full(3, 1e-12), {}, 1e-8).tolist() == [1e-12] * 3


def network(alive: int, dead: int) -> onnx.ModelProto:
    """Two convolutions, the first one of so many channels and of others that are 0 whatever comes in."""
    rng = np.random.default_rng(3)
    net = small_models.Net(3)
    weight = np.concatenate([np.zeros((dead, 3, 3, 3)), 0.2 * rng.standard_normal((alive, 3, 3, 3))]).astype(np.float32)
    bias = np.concatenate([-np.ones(dead), 0.1 * rng.standard_normal(alive)]).astype(np.float32)
    reads = 0.1 * rng.standard_normal((8, alive, 3, 3))
    reads = np.concatenate([0.1 * rng.standard_normal((8, dead, 3, 3)), reads], 1).astype(np.float32)
    x = net.input("x", ("N", 3, 8, 8))
    x = net.relu(net.node("Conv", x, net.tensor(weight), net.tensor(bias), name="conv1", pads=[1] * 4))
    x = net.relu(net.node("Conv", x, net.tensor(reads), name="conv2", pads=[1] * 4))
    return net.model(net.head(x, 8))


def curve(model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> tuple[Array, list[int]]:
    """The error curve of the group of the first convolution, and at how many channels gone it was tried."""
    noise = np.random.default_rng(3).standard_normal((96, 3, 8, 8))
    images = (noise + np.roll(noise, 1, 2) + np.roll(noise, 1, 3)).astype(np.float32)
    seen: list[Array] = []
    tried: list[list[int]] = []
    one, cuts = choose.Chooser.curve, trial.Trial._cuts

    def curve(self: choose.Chooser, group: int, views: Any) -> Any:
        found = one(self, group, views)
        seen.append(found[1])
        return found

    def spied(self: trial.Trial, group: int, views: Any) -> Any:
        found = cuts(self, group, views)
        tried.append(list(found[2]))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(choose.Chooser, "curve", curve)
        patch.setattr(trial.Trial, "_cuts", spied)
        thinet_onnx.prune(model, images, target="macs=60%", round_to=1)
    return seen[0], tried[0]


@pytest.mark.parametrize("dead", [2, 5, 12])
def test_dead_channels_cost_nothing_and_the_others_what_they_cost(dead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = curve(network(12, 0), monkeypatch)
    error, (tried,) = curve(network(12, dead), monkeypatch)
    assert (len(whole), len(error)) == (13, 13 + dead)
    assert whole[1] > 1e-4
    assert error[dead] < 1e-6
    assert tried == dead + 6
    assert error[dead + 1 :] == pytest.approx(whole[1:], rel=0.5)


def test_where_no_channel_is_dead_every_measured_width_counts() -> None:
    error = np.geomspace(1e-6, 0.5, 16)
    held = {gone: 1.3 * error[gone - 1] for gone in (2, 4, 6, 8, 10, 12, 14)}
    widths = np.arange(1, 17)
    ratios = [held[gone] / max(error[gone - 1], 1e-12) for gone in held]
    assert np.array_equal(budget.held_out(error, held, 1e-8), error * np.interp(widths, list(held), ratios))
