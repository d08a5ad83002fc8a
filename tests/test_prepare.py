"""Models in the form that is cut: computed weights folded, files from before operator sets renewed."""

from typing import Any

import numpy as np
import onnx
import pytest
from graphs import Build, tensor
from onnx import AttributeProto, helper, numpy_helper
from oracle import analysed, holds, random_kept

from thinet_onnx import graph as graphs
from thinet_onnx import runtime, surgery
from thinet_onnx.errors import ModelError
from thinet_onnx.groups import make_plan
from thinet_onnx.prepare import prepare
from thinet_onnx.setting import open_model


def weight_norm(b: Build, c_in: int, c_out: int, name: str) -> str:
    """g · v / ‖v‖, as weight normalisation leaves it in a file."""
    v, g = b.weight(c_out, c_in, 3, 3, name=f"{name}.v"), b.weight(c_out, 1, 1, 1, name=f"{name}.g")
    norm = b.node("ReduceL2", v, b.ints(1, 2, 3), keepdims=1)
    return b.node("Mul", v, b.node("Div", g, norm), out=f"{name}.weight")


def normed() -> Build:
    b = Build(18)
    h = b.node("Conv", b.input(), weight_norm(b, 3, 8, "one"), out="first", pads=[1] * 4)
    b.output(b.node("Conv", b.node("Relu", h), weight_norm(b, 8, 5, "two"), out="second", pads=[1] * 4), rank=4)
    return b


def test_computed_weights_are_folded() -> None:
    b = normed()
    folded = prepare(b.model())
    assert [node.op_type for node in folded.graph.node] == ["Conv", "Relu", "Conv"]
    assert {entry.name for entry in folded.graph.initializer} == {"one.weight", "two.weight"}
    onnx.checker.check_model(folded)
    before, after = (runtime.outputs(model, [b.feed()])[0][0] for model in (b.model(), folded))
    np.testing.assert_allclose(before, after, rtol=1e-5, atol=1e-6)
    assert analysed(b.model(), b.feed()).removable == 0
    analysis = analysed(folded, b.feed())
    assert analysis.removable == 8
    holds(folded, analysis, random_kept(analysis, 0), b.feed())


def test_weights_that_are_moved_or_quantised_are_not_folded() -> None:
    """They have a place of their own in the file, to which new values go back."""
    b = Build(18)
    weight = b.node("Transpose", b.weight(3, 8, 3, 3), perm=[1, 0, 2, 3])
    h = b.node("Conv", b.input(), weight, pads=[1] * 4)
    scale = b.scalar(0.01)
    rounded = b.node("DequantizeLinear", b.node("QuantizeLinear", b.weight(5, 8, 1, 1, name="float"), scale), scale)
    h = b.node("Conv", h, rounded, out="second")
    large = b.node("Expand", b.weight(1, 5, 1, 1), b.ints(6, 5, 1, 1))
    b.output(b.node("Conv", h, large), rank=4)
    model = b.model()
    assert prepare(model) is model


def test_refitted_weights_go_through_fake_quantisation() -> None:
    """The float weight in front of QuantizeLinear takes the new values; the pair of nodes stays and rounds them."""
    b = Build(18)
    h = b.conv(b.input(), 3, 8, name="first")
    scale = b.scalar(0.01)
    rounded = b.node("DequantizeLinear", b.node("QuantizeLinear", b.weight(5, 8, 1, 1, name="float"), scale), scale)
    b.output(b.node("Conv", h, rounded, out="second"), rank=4)
    model = b.model()
    analysis = analysed(model, b.feed())
    plan = make_plan(analysis, [np.arange(3)])
    pruned = surgery.apply(model, plan)
    new = np.random.default_rng(0).uniform(-1, 1, (5, 3, 1, 1)).astype(np.float32)
    refitted = surgery.refit(pruned, [surgery.Refit("second", 1, new)])
    np.testing.assert_array_equal(tensor(refitted, "float"), new)
    assert [node.op_type for node in refitted.graph.node] == [node.op_type for node in model.graph.node]


# --- files from before operator sets -----------------------------------------------------------------------------------


def ancient() -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Conv, Add along an axis, Relu, Conv, Reshape by attribute: attributes without types, no operator set, IR 1."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((8, 3, 3, 3)), "b": rng.standard_normal(8), "v": rng.standard_normal((5, 8, 1, 1)),
    }  # fmt: skip
    tensors = {name: value.astype(np.float32) for name, value in weights.items()}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c", "b"], ["s"], broadcast=1, axis=1),
        helper.make_node("Relu", ["s"], ["r"]),
        helper.make_node("Conv", ["r", "v"], ["d"], kernel_shape=[1, 1]),
        helper.make_node("Reshape", ["d"], ["y"], shape=[1, 5, 36]),
    ]
    shape = {"x": [1, 3, 6, 6]} | {name: list(value.shape) for name, value in tensors.items()}
    inputs = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, dims) for name, dims in shape.items()]
    output = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 5, 36])
    graph = helper.make_graph(
        nodes, "old", inputs, [output], [numpy_helper.from_array(value, name) for name, value in tensors.items()]
    )
    model = helper.make_model(graph, ir_version=1)
    del model.opset_import[:]
    for node in model.graph.node:
        for attribute in node.attribute:
            attribute.ClearField("type")
    return model, tensors


def test_a_file_without_operator_sets_is_renewed() -> None:
    model, tensors = ancient()
    setting = open_model(model, {})
    assert any("older than operator sets" in warning for warning in setting.warnings)
    assert graphs.check(setting.model) is None
    feed = {"x": np.random.default_rng(1).standard_normal((1, 3, 6, 6)).astype(np.float32)}
    twin = Build(7)
    x = twin.input(shape=(1, 3, 6, 6))
    h = twin.node("Conv", x, twin.const(tensors["w"]), twin.const(tensors["b"]), pads=[1] * 4)
    h = twin.node("Conv", twin.node("Relu", h), twin.const(tensors["v"]))
    twin.output(twin.node("Reshape", h, twin.ints(1, 5, 36)), rank=3)
    after, expected = (runtime.outputs(m, [feed])[0][0] for m in (setting.model, twin.model()))
    np.testing.assert_allclose(after, expected, rtol=1e-5, atol=1e-6)
    analysis = analysed(setting.model, feed)
    assert analysis.removable == 8
    holds(setting.model, analysis, random_kept(analysis, 0), feed)


def of_another_type(node: onnx.NodeProto, name: str) -> None:
    attribute = next(entry for entry in node.attribute if entry.name == name)
    attribute.CopyFrom(helper.make_attribute(name, [1.5, 2.5]))


@pytest.mark.parametrize(
    ("place", "damage", "words"),
    [
        (1, lambda node: of_another_type(node, "axis"), "its attribute 'axis' is not what Add 's' has to have"),
        (1, lambda node: of_another_type(node, "broadcast"), "its attribute 'broadcast' is not what Add 's' has to have"),
        (1, lambda node: node.input.pop(), "the number of its operands is not what Add 's' has to have"),
        (1, lambda node: node.output.pop(), "the number of its outputs is not what Add 'Add' has to have"),
        (2, lambda node: node.output.pop(), "the number of its outputs is not what Relu 'Relu' has to have"),
        (4, lambda node: of_another_type(node, "shape"), "its attribute 'shape' is not what Reshape 'y' has to have"),
        (4, lambda node: node.output.pop(), "the number of its outputs is not what Reshape 'Reshape' has to have"),
    ],
)  # fmt: skip
def test_a_damaged_file_without_operator_sets_is_refused(place: int, damage: Any, words: str) -> None:
    model, _ = ancient()
    damage(model.graph.node[place])
    with pytest.raises(ModelError, match=rf"^the model is damaged \({words}\); export or copy it again\.$"):
        prepare(model)


def test_an_operator_that_changed_since_is_named() -> None:
    model, _ = ancient()
    model.graph.node[2].op_type = "Hardtanh"
    with pytest.raises(ModelError, match=r"older than operator sets.*Hardtanh.*export it again"):
        prepare(model)


@pytest.mark.parametrize(
    ("attribute", "value"),
    [("a", 3), ("a", 0.5), ("a", "word"), ("a", [1, 2]), ("a", [0.5, 1.5]), ("a", ["b", "c"])],
)
def test_the_type_of_an_attribute_follows_from_its_field(attribute: str, value: object) -> None:
    model, _ = ancient()
    known = helper.make_attribute(attribute, value)
    bare = AttributeProto.FromString(known.SerializeToString())
    bare.ClearField("type")
    model.graph.node[0].attribute.append(bare)
    with pytest.raises(ModelError, match=r"Unrecognized attribute: a"):  # the checker reads it, and knows no such name
        prepare(model)
