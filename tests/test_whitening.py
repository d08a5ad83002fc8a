"""Training in coordinates that whiten what layers read: they lead there and back, and say how much answers change."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: the twin and fine-tuning are NOT TESTED")

import small_models  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from thinet_onnx.data import Source, from_arrays  # noqa: E402
from thinet_onnx.setting import open_model  # noqa: E402
from thinet_onnx.torch_twin import to_torch  # noqa: E402
from thinet_onnx.training.whitening import Coordinates, find_coordinates  # noqa: E402
from thinet_onnx.tuning import FinetuneOptions, finetune  # noqa: E402

Net = small_models.Net


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def image(*sizes: int, **attributes: Any) -> Callable[[Net], str]:
    """A convolution of 4 channels and a bias; `sizes` of its weights, (outputs or inputs, …)."""

    def build(net: Net) -> str:
        x = net.input("x", ("N", 4, *[7] * (len(sizes) - 2)))
        kind = attributes.get("op", "Conv")
        outputs = sizes[1] * attributes.get("group", 1) if kind == "ConvTranspose" else sizes[0]
        rest = {name: value for name, value in attributes.items() if name != "op"}
        return net.node(kind, x, net.weight(*sizes, name="w"), net.weight(outputs, name="b"), **rest)

    return build


def product(op: str, *, left: bool = False, bias: bool = False, **attributes: Any) -> Callable[[Net], str]:
    """A matrix product with a constant."""

    def build(net: Net) -> str:
        shape = (5, 4) if left or attributes.get("transB") else (4, 5)
        w = net.weight(*shape, name="w")
        x = net.input("x", ("N", 4, 3) if left else ("N", 4))
        return net.node(op, *((w, x) if left else (x, w)), *([net.weight(5, name="b")] if bias else []), **attributes)

    return build


LAYERS = {
    "Conv": image(6, 4, 3, 3, pads=[1] * 4),
    "Conv, stride and dilation": image(6, 4, 3, 2, pads=[0, 1, 1, 0], strides=[2, 1], dilations=[1, 2]),
    "Conv, 1 axis": image(6, 4, 3),
    "Conv, 3 axes": image(6, 4, 2, 1, 3),
    "Conv, 2 groups": image(6, 2, 3, 3, group=2),
    "Conv, depthwise": image(4, 1, 3, 3, group=4),
    "Conv, depthwise with a multiplier": image(8, 1, 3, 3, group=4),
    "ConvTranspose": image(4, 6, 3, 2, op="ConvTranspose", strides=[2, 1]),
    "ConvTranspose, 2 groups": image(4, 3, 2, 3, op="ConvTranspose", group=2, pads=[1, 0, 0, 1]),
    "ConvTranspose, depthwise": image(4, 1, 2, 2, op="ConvTranspose", group=4, strides=[2, 2]),
    "Gemm": product("Gemm", bias=True),
    "Gemm, transposed": product("Gemm", bias=True, transB=1),
    "MatMul": product("MatMul"),
    "MatMul from the left": product("MatMul", left=True),
}


def case(name: str) -> tuple[onnx.ModelProto, Source]:
    """A layer, and items that are far from white: their mean isn't 0, and channels and neighbours are alike."""
    net = Net(seed=1)
    model = net.model(LAYERS[name](net))
    shape = open_model(model, {}).inputs[0].shape[1:]
    rng = np.random.default_rng(2)
    x = rng.standard_normal((64, *shape))
    for axis in range(1, x.ndim):
        x = x + 0.7 * np.roll(x, 1, axis)
    x[:, 0] *= 5
    x = (x + 3).astype(np.float32)
    return model, from_arrays({"x": x}, open_model(model, {}).inputs)


def coordinates(model: onnx.ModelProto, data: Source) -> tuple[Coordinates, Any, dict[str, Any]]:
    """Those of the only layer, and the twin with its weights."""
    twin = to_torch(model)
    found = find_coordinates(model, twin.weights().keys(), data, range(len(data)), 0)
    return found["w"], twin, twin.weights()


@pytest.mark.parametrize("name", LAYERS)
def test_the_way_there_is_the_way_back_and_gradients_go_against_it(name: str) -> None:
    model, data = case(name)
    found, _, weights = coordinates(model, data)
    weight = weights["w"].detach()
    there = found.inward(weight)
    back, _ = found.outward(there, weight)
    assert torch.allclose(back, weight, atol=1e-5)
    assert len(there) == found.layer.out_channels
    change, slope, other = torch.randn_like(there), torch.randn_like(weight), torch.randn(len(there))
    moved, shift = found.outward(change, weight)
    gained = (moved * slope).sum() + ((shift * other).sum() if found.bias else 0)
    expected = (change * found.gradient(slope, other if found.bias else None)).sum()
    assert float(gained) == pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize("name", LAYERS)
def test_a_filters_change_is_as_large_as_its_answers_change_and_the_mean_stays(name: str) -> None:
    model, data = case(name)
    found, twin, weights = coordinates(model, data)
    x = torch.from_numpy(data.batch(range(len(data)))["x"])
    with torch.no_grad():
        before = twin(x)
        change = torch.randn(found.inward(weights["w"]).shape, generator=torch.Generator().manual_seed(3))
        moved, shift = found.outward(change, weights["w"])
        weights["w"].add_(moved)
        if found.bias:
            weights[found.bias].add_(shift)
        apart = (twin(x) - before).double()
    assert bool(found.bias) == ("b" in weights)
    axes = [axis for axis in range(apart.ndim) if axis != 1]
    size = apart.square().mean(axes).sqrt()
    # the mean of squares of white numbers, less what the ridge takes and what the parting of channels and taps leaves out
    assert float(size.mean()) == pytest.approx(float(change.square().sum(1).sqrt().mean()), rel=0.35)
    if found.bias:
        assert float((apart.mean(axes).abs() / size).max()) < 0.2
        with torch.no_grad():
            weights[found.bias].sub_(shift)
            unmoved = (twin(x) - before).double()
        assert float(unmoved.mean(axes).abs().mean()) > 5 * float(apart.mean(axes).abs().mean())


def learned(student: onnx.ModelProto, teacher: onnx.ModelProto, data: Source, **options: Any) -> list[float]:
    """The losses of a short run, without what depends on the size of weights."""
    chosen = {"steps": 30, "batch": 16, "clip": 0.0, "weight_decay": 0.0, "warmup": 0.0, "validate_every": 30} | options
    return list(finetune(student, teacher, data, FinetuneOptions(**chosen)).losses)


def shaken(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same with all weights somewhat off."""
    result, rng = onnx.ModelProto(), np.random.default_rng(4)
    result.CopyFrom(model)
    for tensor in result.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.dtype != np.float32:
            continue
        noise = rng.standard_normal(value.shape).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(value + 0.3 * value.std() * noise, tensor.name))
    return result


def test_it_learns_sooner_what_is_off_in_directions_that_hardly_vary() -> None:
    model, data = case("Gemm")
    found, _, weights = coordinates(model, data)
    start = found.inward(weights["w"].detach())
    noise = torch.randn(start.shape, generator=torch.Generator().manual_seed(7))
    change, _ = found.outward(0.3 * start.square().mean().sqrt() * noise, weights["w"])  # all answers, alike
    student = onnx.ModelProto()
    student.CopyFrom(model)
    off = (weights["w"].detach() + change).numpy()
    student.graph.initializer[0].CopyFrom(numpy_helper.from_array(off, "w"))
    ends = {
        optimizer: min(
            float(np.mean(learned(student, model, data, optimizer=optimizer, learning_rate=rate, steps=100)[-5:]))
            for rate in (3e-2, 1e-1, 3e-1)
        )
        for optimizer in ("whitened", "scaled")
    }
    assert ends["whitened"] < 0.2 * ends["scaled"]


def test_the_scale_of_what_is_read_makes_no_difference() -> None:
    model, data = case("Conv")
    student = shaken(model)
    curves = []
    for factor in (np.float32(1), np.float32(2**10)):
        scaled = [onnx.ModelProto(), onnx.ModelProto()]
        for target, source in zip(scaled, (student, model), strict=True):
            target.CopyFrom(source)
            value = numpy_helper.to_array(target.graph.initializer[0])
            target.graph.initializer[0].CopyFrom(numpy_helper.from_array(value / factor, "w"))
        x = data.batch(range(len(data)))["x"] * factor
        curves.append(
            learned(*scaled, from_arrays({"x": x}, open_model(model, {}).inputs), optimizer="whitened", steps=8)
        )
    assert curves[0] == pytest.approx(curves[1], rel=1e-3)


def test_layers_that_have_no_coordinates_of_their_own() -> None:
    net = Net()
    x = net.input("x", (2, 3, 4, 4))
    derived = net.node("Transpose", net.weight(3, 4, 3, 3, name="turned"), perm=[1, 0, 2, 3])
    x = net.node("Conv", x, derived)
    x = net.node("Flatten", net.node("Tile", net.node("Relu", x), net.tensor(np.int64([1, 160, 1, 1]))))
    model = net.model(net.node("MatMul", x, net.weight(2560, 3, name="wide")))
    array = np.random.default_rng(0).standard_normal((8, 3, 4, 4)).astype(np.float32)
    data = from_arrays({"x": array}, open_model(model, {}).inputs)
    trained = to_torch(model).weights().keys()
    assert {"turned", "wide"} <= set(trained)
    assert find_coordinates(model, trained, data, range(len(data)), 0) == {}
    assert learned(shaken(model), model, data, optimizer="whitened", batch=4)[-1] > 0


def test_a_weight_that_is_used_twice_sees_both_places_and_a_bias_with_other_readers_stays() -> None:
    net = Net()
    x, y = net.input("x", ("N", 4, 5, 5)), net.input("y", ("N", 4, 5, 5))
    w, b = net.weight(4, 4, 1, 1, name="w"), net.weight(4, name="b")
    outputs = [net.node("Conv", value, w, b) for value in (x, y)]
    model = net.model(*outputs)
    rng = np.random.default_rng(0)
    arrays = {name: np.float32(rng.standard_normal((32, 4, 5, 5)) + at) for name, at in (("x", 1), ("y", 5))}
    data = from_arrays(arrays, open_model(model, {}).inputs)
    found = find_coordinates(model, {"w", "b"}, data, range(32), 0)["w"]
    assert found.bias == "b"
    assert found.mean.mean() == pytest.approx(3, abs=0.1)
    model.graph.node.append(helper.make_node("Neg", ["b"], ["other"]))
    model.graph.output.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, [4]))
    assert find_coordinates(model, {"w", "b"}, data, range(32), 0)["w"].bias == ""
    assert find_coordinates(model, {"w"}, data, range(32), 0)["w"].bias == ""


def test_channels_that_are_always_zero_or_constant_do_no_harm() -> None:
    net = Net()
    x = net.node("Relu", net.input("x", ("N", 4, 5, 5)))
    model = net.model(net.node("Conv", x, net.weight(4, 1, 3, 3), net.weight(4), group=4, pads=[1] * 4))
    array = np.random.default_rng(0).standard_normal((32, 4, 5, 5)).astype(np.float32)
    array[:, 0], array[:, 1] = -1, 0.5
    data = from_arrays({"x": array}, open_model(model, {}).inputs)
    losses = learned(shaken(model), model, data, optimizer="whitened", learning_rate=1e-2, steps=60)
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.3 * losses[0]
