"""Which layers are refitted together with the one before them, and that it is worth it."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import small_models
from small_models import Net

import thinet_onnx
from thinet_onnx import pairs, polish, runtime
from thinet_onnx.calibration import Calibration
from thinet_onnx.choose import Rebuilt
from thinet_onnx.consumers import collect
from thinet_onnx.graph import Graph
from thinet_onnx.groups import Analysis, analyse
from thinet_onnx.joint import Rows, Weights
from thinet_onnx.ranks import ALONE


def found(model: onnx.ModelProto) -> dict[str, tuple[str, list[str]]]:
    """For each consumer of a pair: the producer's name and the operators between."""
    feeds = {"x": np.zeros((2, 3, 8, 8), np.float32)}
    graph = Graph(model)
    analysis = analyse(graph, runtime.observed_shapes(graph, feeds))
    return {
        consumer.name: (pair.producer.name, [node.op for node in pair.chain])
        for consumer, pair in pairs.find(analysis, collect(analysis)).items()
    }


def found_pairs(model: onnx.ModelProto) -> tuple[list[pairs.Pair], Analysis]:
    graph = Graph(model)
    analysis = analyse(graph, runtime.observed_shapes(graph, {"x": np.zeros((1, 3, 8, 8), np.float32)}))
    return list(pairs.find(analysis, collect(analysis)).values()), analysis


def between(make: Callable[[Net, str], str], **attributes: int) -> dict[str, tuple[str, list[str]]]:
    """Pairs of a network with something between its two convolutions `a` and `b`."""
    net = Net()
    x = make(net, net.conv(net.input("x", ("N", 3, 8, 8)), 3, 6, name="a"))
    return found(net.model(net.head(net.conv(x, 6, 4, name="b", **attributes), 4)))


def batch_norm(net: Net, x: str) -> str:
    one = [net.tensor(np.ones(6, np.float32)) for _ in range(4)]
    return net.node("BatchNormalization", x, *one)


def test_batch_norm_and_activation() -> None:
    assert between(lambda net, x: net.relu(batch_norm(net, x)))["b"] == ("a", ["BatchNormalization", "Relu"])


def test_nothing_in_between() -> None:
    assert between(lambda _, x: x)["b"] == ("a", [])


def test_an_activation_of_two_nodes() -> None:
    silu = between(lambda net, x: net.node("Mul", x, net.node("Sigmoid", x)))
    assert silu["b"] == ("a", ["Sigmoid", "Mul"])


def test_readers_of_the_shape_alone_dont_matter() -> None:
    def reshaped(net: Net, x: str) -> str:
        y = net.relu(x)
        net.node("CastLike", net.tensor(np.float64(0)), y)
        net.node("Shape", y)
        return y

    assert between(reshaped)["b"] == ("a", ["Relu"])


@pytest.mark.parametrize(
    "make",
    [
        lambda net, x: net.node("MaxPool", x, kernel_shape=[2, 2]),
        lambda net, x: net.node("Add", x, net.conv("x", 3, 6, name="other")),
        lambda net, x: net.node("Mul", x, net.node("GlobalAveragePool", x)),
        lambda net, x: net.node("Softmax", x, axis=1),
        lambda net, x: net.node("Concat", net.conv(x, 6, 2), net.conv(x, 6, 4), axis=1),
    ],
    ids=["pooling", "a second layer", "a gate from outside", "softmax", "concatenation"],
)
def test_more_in_between(make: Callable[[Net, str], str]) -> None:
    assert "b" not in between(make)


def test_another_reader_of_what_lies_between() -> None:
    net = Net()
    inner = net.relu(net.conv(net.input("x", ("N", 3, 8, 8)), 3, 6, name="a"))
    left, right = net.conv(inner, 6, 4, name="b"), net.conv(inner, 6, 4, name="c")
    assert not {"b", "c"} & found(net.model(net.head(net.node("Add", left, right), 4))).keys()
    net = Net()
    inner = net.relu(net.conv(net.input("x", ("N", 3, 8, 8)), 3, 6, name="a"))
    assert "b" not in found(net.model(net.head(net.conv(inner, 6, 4, name="b"), 4), inner))


def test_a_depthwise_convolution_is_a_producer() -> None:
    net = Net()
    x = net.relu(net.conv(net.input("x", ("N", 3, 8, 8)), 3, 6, name="wide"))
    x = net.relu(net.conv(x, 6, 6, name="depthwise", group=6))
    pairs_found = found(net.model(net.head(net.conv(x, 6, 4, kernel=1, name="narrow"), 4)))
    assert pairs_found["narrow"] == ("depthwise", ["Relu"])
    assert "depthwise" not in pairs_found


def test_grouped_convolutions_and_shared_weights_are_left_alone() -> None:
    assert "b" not in between(lambda net, x: net.relu(x), group=2)
    net = Net()
    weight = net.weight(6, 6, 3, 3)
    x = net.conv(net.input("x", ("N", 3, 8, 8)), 3, 6, name="a")
    for name in ("b", "c"):
        x = net.node("Conv", net.relu(x), weight, name=name, pads=[1] * 4)
    assert not {"b", "c"} & found(net.model(net.head(x, 6))).keys()


def student(seed: int = 0) -> tuple[onnx.ModelProto, np.ndarray]:
    net = Net(seed)
    x = net.relu(net.conv(net.input("x", ("N", 3, 8, 8)), 3, 8, name="stem"))
    for index in range(3):
        x = net.relu(net.conv(x, 8, 8, name=f"conv{index}"))
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((128, 3, 8, 8))
    smooth = noise + np.roll(noise, 1, 2) + np.roll(noise, 1, 3)
    return net.model(net.head(x, 8)), smooth.astype(np.float32)


@pytest.mark.parametrize("seed", range(3))
def test_a_joint_refit_leaves_less_error_behind_every_group(seed: int) -> None:
    model, data = student(seed)
    alone, together = (thinet_onnx.prune(model, data, keep=0.5, reconstruct=way) for way in ("full", "joint"))
    assert together.report.oracle_error < 1e-5
    for before, after in zip(alone.report.groups[:3], together.report.groups[:3], strict=True):
        assert after.error is not None
        assert before.error is not None
        assert after.error < before.error


def test_a_step_that_images_kept_apart_dont_approve_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = student()
    with monkeypatch.context() as patch:
        patch.setattr(polish, "_ROUNDS", 0)
        plain = thinet_onnx.prune(model, data, keep=0.5, reconstruct="joint")
    real = polish.Joint.step
    monkeypatch.setattr(
        polish.Joint, "step", lambda *arguments: real(*arguments).plus(real(*arguments), -3.0)
    )  # the wrong way
    stubborn = thinet_onnx.prune(model, data, keep=0.5, reconstruct="joint")
    assert stubborn.model.graph == plain.model.graph


@pytest.mark.parametrize(("positions", "turns"), [(800, 8), (799, 1), (10, 1)])
def test_the_curvature_is_seen_in_a_part_that_has_positions_enough_or_in_all(positions: int, turns: int) -> None:
    columns = 25  # of the wider layer: 100 positions at least in each part
    weights = Weights(np.zeros((1, 4, 9)), np.zeros(4), np.zeros((1, 2, columns)), np.zeros(2))
    rows = [
        Rows(np.zeros((1, 1)), np.zeros((2, len(part))), k)
        for k, part in enumerate(np.array_split(range(positions), 8))
    ]
    assert polish._turns(rows, weights, ALONE) == turns


@pytest.mark.parametrize("share", [0.05, 0.2, 0.7])
def test_what_a_pair_is_refitted_on_is_spread_evenly_over_images_to_fit_and_to_check(share: float) -> None:
    model, data = student()
    (pair, *_), analysis = found_pairs(model)
    calibration = Calibration.open(ALONE, lambda rows: {"x": data[rows]}, [0] * 1600, 4)
    polisher = polish.Polisher(pair, analysis, calibration, polish.Sampling(share))
    names = [*pair.consumer.answered, *pair.observed]
    shown = small_models.run_for(model, names, {"x": data[:4]})
    for _ in range(400):
        polisher.add(shown, shown)
    fit, check = (sum(map(len, part)) for part in polisher._x)
    assert fit / 1200 == pytest.approx(share, abs=0.02)
    assert check / 400 == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize(("items", "joint"), [(128, True), (12, False)])
def test_a_pair_needs_batches_enough_to_keep_some_apart(items: int, joint: bool) -> None:
    model, data = student()
    (pair, *_), analysis = found_pairs(model)
    calibration = Calibration.open(ALONE, lambda rows: {"x": data[rows]}, range(items), 4)
    assert (polish.Sampling.of(pair, analysis, calibration) is not None) == joint


def test_a_stream_that_only_the_producer_leads_to_is_no_pair() -> None:
    """What the consumer adds to would have to be known before its producer is."""
    net = Net()
    x = net.conv(net.input("x", ("N", 3, 8, 8)), 3, 6, name="a")
    y = net.relu(x)
    other = net.node("GlobalAveragePool", x)
    z = net.node("Add", net.conv(y, 6, 6, name="b"), other)
    assert "b" not in found(net.model(net.head(net.relu(z), 6)))


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("norm", [False, True])
def test_patches_that_cover_a_map_leave_the_error_of_the_whole(
    strides: int, norm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each patch of the output follows from its patch of the input, at the borders, too."""
    net = Net(3)
    x = net.conv(net.input("x", ("N", 3, 32, 32)), 3, 6, name="a")
    x = net.relu(batch_norm(net, x) if norm else x)
    x = net.node("Conv", x, net.weight(8, 6, 3, 3), name="b", pads=[1, 1, 1, 1], strides=[strides] * 2)
    model = net.model(net.head(net.relu(x), 8))
    data = np.random.default_rng(5).standard_normal((4, 3, 32, 32)).astype(np.float32)
    graph = Graph(model)
    analysis = analyse(graph, runtime.observed_shapes(graph, {"x": data[:1]}))
    consumers = collect(analysis)
    pair = next(pair for pair in pairs.find(analysis, consumers).values() if pair.consumer.name == "b")
    assert polish._has_patches(pair, analysis)
    shown = small_models.run_for(model, [*pair.consumer.answered, *pair.observed], {"x": data})
    size = 32 // strides
    tiles = [(0.0, 0.0), (0.0, 0.999), (0.999, 0.0), (0.999, 0.999)]  # the four corners of the map
    calibration = Calibration.open(ALONE, lambda rows: {"x": data[rows]}, range(4), 4)
    before = Rebuilt(pair.producer, pair.producer.matrix.astype(np.float64), None, None)
    keep_in, keep = np.ones(3, bool), np.array([True, False, True, True, True, True])

    def sums(sampling: polish.Sampling, corners: list[tuple[float, float]]) -> tuple[float, np.ndarray]:
        polisher = polish.Polisher(pair, analysis, calibration, sampling)
        for corner in corners:
            marks = [np.zeros(4), *(np.full(4, mark) for mark in corner)]
            monkeypatch.setattr(polish, "_spread", lambda _, __, axis, marks=marks: marks[axis])
            polisher._batches = 0
            polisher.add(shown, shown)
        problem, weights, _, _ = polisher._problem(before, keep_in, keep, map)
        return problem.error(weights, polisher._rows(0, keep_in)), polisher.statistics(before, keep_in, keep).h

    whole, h = sums(polish.Sampling(1.0), [(0.0, 0.0)])
    parts, tiled = sums(polish.Sampling(1.0, (size // 2, size // 2)), tiles)
    assert whole > 1e-3
    assert parts == pytest.approx(whole, rel=1e-4)
    np.testing.assert_allclose(tiled, h, rtol=1e-3, atol=1e-5)


def test_a_constant_that_is_not_the_same_at_all_places_leaves_no_patches() -> None:
    for shape, patches in (((1, 6, 1, 1), True), ((8, 8), False), ((), True)):
        net = Net()
        x = net.conv(net.input("x", ("N", 3, 8, 8)), 3, 6, name="a")
        x = net.relu(net.node("Mul", x, net.tensor(np.full(shape, 0.5, np.float32))))
        (pair, *_), analysis = found_pairs(net.model(net.head(net.conv(x, 6, 4, name="b"), 4)))
        assert polish._has_patches(pair, analysis) == patches
