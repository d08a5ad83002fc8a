"""Which channels come out as one group, how few may stay, and what a choice costs."""

import json
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from graphs import Build, tensor, two_convs
from onnx import numpy_helper
from oracle import TOLERANCE, analysed, holds, prune, random_kept

from thinet_onnx import runtime, surgery, verify
from thinet_onnx.errors import NothingToPruneError
from thinet_onnx.graph import Graph
from thinet_onnx.groups import Analysis, Group, make_plan
from thinet_onnx.plan import PrunePlan


def by_name(analysis: Analysis) -> dict[str, Group]:
    return {group.name: group for group in analysis.groups}


def sizes(analysis: Analysis) -> dict[str, int]:
    return {group.name: group.size for group in analysis.groups}


def weights_of(layers: tuple) -> set[str]:
    return {layer.weight for layer in layers}


# --- the graphs --------------------------------------------------------------------------------------------------------


def residual() -> Build:
    """stem and two blocks whose second convolutions add into one stream."""
    b = Build(13)
    stream = b.node("Relu", b.conv(b.input(), 3, 8, name="stem"))
    for block in ("a", "b"):
        inner = b.node("Relu", b.conv(stream, 8, 6, name=f"{block}1"))
        stream = b.node("Relu", b.node("Add", b.conv(inner, 6, 8, name=f"{block}2"), stream))
    b.output(b.gemm(b.node("Flatten", b.node("GlobalAveragePool", stream)), 8, 5, name="head"))
    return b


def c2f() -> Build:
    """YOLOv8's block: split in halves, one goes on through a bottleneck, all pieces are joined."""
    b = Build(12)
    h = b.node("Relu", b.conv(b.input(), 3, 12, name="cv1"))
    left, right = b.many("Split", h, outs=2, axis=1, split=[6, 6])
    inner = b.node("Relu", b.conv(right, 6, 4, name="m1"))
    joined = b.node("Add", right, b.conv(inner, 4, 6, name="m2"))
    b.output(b.conv(b.node("Concat", left, right, joined, axis=1), 18, 5, name="cv2"))
    return b


def option_a() -> Build:
    """CIFAR-ResNet's shortcut: every other pixel, new channels are zeros."""
    b = Build(11)
    stream = b.node("Relu", b.conv(b.input(), 3, 8, name="stem"))
    inner = b.node("Relu", b.conv(stream, 8, 10, name="a1", strides=[2, 2]))
    short = b.node("Slice", stream, b.ints(0, 0), b.ints(2**31 - 1, 2**31 - 1), b.ints(2, 3), b.ints(2, 2))
    short = b.node("Pad", short, b.ints(0, 4, 0, 0, 0, 4, 0, 0), b.scalar(0.0))
    b.output(b.conv(b.node("Relu", b.node("Add", b.conv(inner, 10, 16, name="a2"), short)), 16, 5, name="head"))
    return b


def squeeze_excite() -> Build:
    b = Build(17)
    h = b.conv(b.input(), 3, 12, name="wide")
    scale = b.node("Relu", b.conv(b.node("GlobalAveragePool", h), 12, 4, 1, name="squeeze"))
    scale = b.node("HardSigmoid", b.conv(scale, 4, 12, 1, name="excite"))
    b.output(b.conv(b.node("Mul", h, scale), 12, 5, name="project"))
    return b


def shared_head() -> Build:
    """One head, run on two levels."""
    b = Build(17)
    first = b.node("Relu", b.conv(b.input(), 3, 8, name="level1"))
    second = b.node("Relu", b.conv(b.node("MaxPool", first, kernel_shape=[2, 2], strides=[2, 2]), 8, 8, name="level2"))
    b.weight(6, 8, 3, 3, name="head1.weight")
    b.weight(6, name="head1.bias")
    b.weight(4, 6, 1, 1, name="head2.weight")
    for place, level in enumerate((first, second)):
        h = b.node("Conv", level, "head1.weight", "head1.bias", name=f"/head1_{place}", pads=[1, 1, 1, 1])
        b.output(b.node("Conv", b.node("Relu", h), "head2.weight", name=f"/head2_{place}"))
    return b


def inception() -> Build:
    b = Build(17)
    x = b.input()
    branches = [b.node("Relu", b.conv(x, 3, count, name=name)) for name, count in (("a", 4), ("b", 6), ("c", 8))]
    joined = b.node("Concat", *branches, axis=1)
    b.output(b.conv(b.node("MaxPool", joined, kernel_shape=[2, 2]), 18, 5, name="after"))
    return b


def grouped() -> Build:
    """A shuffle unit with depthwise and grouped convolutions, flatten and fully connected layers behind it."""
    b = Build(13)
    h = b.batch_norm(b.conv(b.input(), 3, 18, name="stem", strides=[2, 2]), 18)
    h = b.node("Relu", b.conv(h, 18, 18, name="depth", group=18))
    h = b.node("Reshape", h, b.ints(0, 3, 6, 4, 4))
    h = b.node("Reshape", b.node("Transpose", h, perm=[0, 2, 1, 3, 4]), b.ints(0, -1, 4, 4))
    h = b.node("Relu", b.conv(h, 18, 9, name="group", group=3))
    h = b.node("Relu", b.gemm(b.node("Flatten", h), 9 * 16, 7, name="fc1"))
    b.output(b.gemm(h, 7, 5, name="fc2"))
    return b


GRAPHS = {
    "plain": two_convs, "residual": residual, "c2f": c2f, "option A": option_a, "squeeze-excite": squeeze_excite,
    "shared head": shared_head, "inception": inception, "grouped": grouped,
}  # fmt: skip
every_graph = pytest.mark.parametrize("build", GRAPHS.values(), ids=GRAPHS)


def known(build: Callable[[], Build]) -> tuple[Build, onnx.ModelProto, Analysis]:
    b = build()
    model = b.model()
    return b, model, analysed(model, b.feed())


# --- groups ------------------------------------------------------------------------------------------------------------


def test_residual_stream_is_one_coupled_group() -> None:
    _, _, analysis = known(residual)
    groups = by_name(analysis)
    assert sizes(analysis) == {"/stem": 8, "/a1": 6, "/b1": 6}
    assert {name: group.coupled for name, group in groups.items()} == {"/stem": True, "/a1": False, "/b1": False}
    assert weights_of(groups["/stem"].producers) == {"stem.weight", "a2.weight", "b2.weight"}
    assert weights_of(groups["/stem"].consumers) == {"a1.weight", "b1.weight", "head.weight"}
    assert weights_of(groups["/b1"].producers) == {"b1.weight"}
    assert weights_of(groups["/b1"].consumers) == {"b2.weight"}
    assert analysis.channels == 8 + 2 * (6 + 8) + 5
    assert analysis.removable == 8 + 2 * (6 + 8)
    assert [entry.producer.weight for entry in analysis.frozen] == ["head.weight"]
    assert "feeds the graph output" in analysis.frozen[0].reason.phrase


def test_c2f_splits_a_convolution_into_two_groups() -> None:
    _, _, analysis = known(c2f)
    groups = by_name(analysis)
    assert sizes(analysis) == {"/cv1#1": 6, "/cv1#2": 6, "/m1": 4}
    assert [groups[name].coupled for name in ("/cv1#1", "/cv1#2", "/m1")] == [False, True, False]
    assert weights_of(groups["/cv1#1"].consumers) == {"cv2.weight"}
    assert weights_of(groups["/cv1#2"].producers) == {"cv1.weight", "m2.weight"}
    assert weights_of(groups["/cv1#2"].consumers) == {"m1.weight", "cv2.weight"}


def test_option_a_shortcut_shrinks_with_its_padding() -> None:
    _, _, analysis = known(option_a)
    assert sizes(analysis) == {"/stem": 8, "/a1": 10, "/a2": 8}
    groups = by_name(analysis)
    assert groups["/stem"].coupled
    assert weights_of(groups["/stem"].producers) == {"stem.weight", "a2.weight"}
    assert weights_of(groups["/a2"].producers) == {"a2.weight"}
    assert analysis.removable == 8 + 10 + 16


def test_squeeze_excite_is_not_a_residual_stream() -> None:
    _, _, analysis = known(squeeze_excite)
    groups = by_name(analysis)
    assert sizes(analysis) == {"/wide": 12, "/squeeze": 4}
    assert not any(group.coupled for group in groups.values())
    assert weights_of(groups["/wide"].producers) == {"wide.weight", "excite.weight"}
    assert weights_of(groups["/wide"].consumers) == {"squeeze.weight", "project.weight"}


@pytest.mark.parametrize("same", [False, True])
def test_sum_within_a_convolution_is_a_residual_stream(same: bool) -> None:
    """ONNX Runtime's FusedConv adds its fourth operand."""
    b = Build(17)
    h = b.conv(b.input(), 3, 8, name="stem")
    other = b.conv("x", 3, 8, name="other")
    z = b.node("Relu", h if same else other)
    inner = b.conv(h, 8, 6, name="inner")
    y = b.node("FusedConv", inner, b.weight(8, 6, 1, 1), "", z, domain="com.microsoft", activation="Relu", out="sum")
    b.output(b.node("Conv", y, b.weight(5, 8, 1, 1)))
    coupled = {group.name for group in analysed(b.model(), b.feed()).groups if group.coupled}
    assert coupled == {"/stem" if same else "/other"}


def test_head_on_two_levels_ties_the_levels() -> None:
    _, _, analysis = known(shared_head)
    assert sizes(analysis) == {"/level1": 8, "/head1_0": 6}
    groups = by_name(analysis)
    assert weights_of(groups["/level1"].producers) == {"level1.weight", "level2.weight"}
    assert [layer.weight for layer in groups["/head1_0"].consumers] == ["head2.weight", "head2.weight"]
    assert analysis.channels == 8 + 8 + 6 + 4  # weights count once


def test_concat_keeps_its_branches_apart() -> None:
    _, _, analysis = known(inception)
    assert sizes(analysis) == {"/a": 4, "/b": 6, "/c": 8}
    assert {weight for group in analysis.groups for weight in weights_of(group.consumers)} == {"after.weight"}


def test_shuffle_unites_and_flatten_does_not() -> None:
    _, _, analysis = known(grouped)
    assert sizes(analysis) == {"/stem": 2, "/group": 3, "/fc1": 7}


# --- floors ------------------------------------------------------------------------------------------------------------


def floors(analysis: Analysis) -> dict[str, int]:
    return {group.name: group.floor for group in analysis.groups}


@every_graph
def test_what_every_tensor_needs_stays(build: Callable[[], Build]) -> None:
    """Everything at its floor is still a network, and one less anywhere leaves some tensor empty or is no group."""
    b, model, analysis = known(build)
    least = [np.arange(group.floor) for group in analysis.groups]
    holds(model, analysis, least, b.feed())


def test_a_layer_of_its_own_keeps_one() -> None:
    for build in (two_convs, squeeze_excite, shared_head, inception, grouped):
        assert set(floors(known(build)[2]).values()) == {1}


def test_one_piece_of_a_split_may_vanish_if_the_pieces_are_read_together() -> None:
    """Slices that no tensor holds alone need no channel of their own: the longest group keeps the one that is left."""
    b = Build(13)
    h = b.node("Relu", b.conv(b.input(), 3, 12, name="first"))
    order = [*range(4, 12), *range(4)]
    b.output(b.conv(b.node("Gather", h, b.ints(*order), axis=1), 12, 5, name="second"))
    assert floors(analysed(b.model(), b.feed())) == {"/first": 1}


def test_padding_that_stays_lets_everything_else_go() -> None:
    """Concat with a tensor that stays: the joined tensor is never empty, but each branch's own output would be."""
    b = Build(13)
    x = b.input()
    h = b.node("Relu", b.conv(x, 3, 8, name="first"))
    b.output(b.conv(b.node("Concat", x, h, axis=1), 11, 5, name="second"))
    assert floors(analysed(b.model(), b.feed())) == {"/first": 1}


def test_floor_is_shared_by_the_groups_of_one_layer() -> None:
    """Of a layer whose channels are read in two ways, it is enough that one of the groups keeps a channel."""
    b = Build(13)
    h = b.conv(b.input(), 3, 12, name="first")
    side = b.conv("x", 3, 16, name="side")
    padded = b.node("Pad", h, b.ints(0, 0, 0, 0, 0, 4, 0, 0))
    b.output(b.conv(b.node("Relu", b.node("Add", side, padded)), 16, 5, name="second"))
    model = b.model()
    analysis = analysed(model, b.feed())
    assert sizes(analysis) == {"/first": 12, "/side": 4}
    assert floors(analysis) == {"/first": 1, "/side": 0}
    holds(model, analysis, [np.array([3]), np.array([], np.int64)], b.feed())


def test_the_last_of_its_kind_stays_with_a_reason() -> None:
    b = Build(13)
    h = b.node("Relu", b.conv(b.input(), 3, 5, name="first"))
    one, rest = b.many("Split", h, b.ints(1, 4), outs=2, axis=1)
    b.output(b.conv(one, 1, 5, name="left"), b.conv(rest, 4, 5, name="right"))
    analysis = analysed(b.model(), b.feed())
    assert sizes(analysis) == {"/first": 4}
    assert "is the only channel of a tensor" in {entry.reason.phrase for entry in analysis.frozen}


def test_channels_without_a_consumer_stay_with_a_reason() -> None:
    b = Build(13)
    h = b.conv(b.input(), 3, 8, name="first")
    b.output(b.node("ReduceMax", h, axes=[0, 2, 3]))
    b.output(b.node("Softmax", b.node("ReduceMax", b.conv("x", 3, 8, name="second"), axes=[2, 3]), axis=-1))
    analysis = analysed(b.model(), b.feed())
    assert not analysis.groups
    assert len(analysis.frozen) == 2


# --- costs -------------------------------------------------------------------------------------------------------------


@every_graph
def test_costs_are_those_of_the_pruned_file(build: Callable[[], Build]) -> None:
    b, model, analysis = known(build)
    for seed in range(5):
        kept = random_kept(analysis, seed)
        counts = [len(units) for units in kept]
        _, pruned = prune(model, analysis, kept)
        after = analysed(pruned, b.feed())
        assert analysis.macs.total(counts) == pytest.approx(after.macs.total(after.sizes), rel=1e-9)
        assert analysis.macs.total(counts) == pytest.approx(macs_by_hand(pruned, b.feed()), rel=1e-9)
        assert analysis.params.total(counts) == weights_by_hand(pruned)


@every_graph
def test_costs_do_not_depend_on_the_batch(build: Callable[[], Build]) -> None:
    b, model, analysis = known(build)
    twice = analysed(model, b.feed(batch=2))
    assert twice.macs.total(twice.sizes) == analysis.macs.total(analysis.sizes)


@every_graph
def test_saving_is_the_difference_of_totals(build: Callable[[], Build]) -> None:
    _, _, analysis = known(build)
    rng = np.random.default_rng(0)
    for _ in range(10):
        counts = [int(rng.integers(max(group.floor, 1), group.size + 1)) for group in analysis.groups]
        for place in range(len(counts)):
            fewer = int(rng.integers(0, counts[place] + 1))
            other = [*counts[:place], fewer, *counts[place + 1 :]]
            for cost in (analysis.macs, analysis.params):
                expected = cost.total(counts) - cost.total(other)
                assert cost.saving(counts, place, fewer) == pytest.approx(expected, rel=1e-9, abs=1e-6)


def macs_by_hand(model: onnx.ModelProto, feeds: dict) -> float:
    """Multiply-accumulates of one input, counted from shapes alone."""
    graph = Graph(model)
    shapes = runtime.observed_shapes(graph, feeds)
    total = 0.0
    for node in graph.nodes:
        if node.op == "Conv":
            filters = tensor(model, node.inputs[1]).shape
            total += np.prod(filters) * np.prod(shapes[node.key][2:])
        elif node.op == "Gemm":
            total += np.prod(tensor(model, node.inputs[1]).shape)
    return total


def weights_by_hand(model: onnx.ModelProto) -> int:
    return sum(
        int(np.prod(entry.dims)) for entry in model.graph.initializer if entry.data_type != onnx.TensorProto.INT64
    )


def test_costs_of_transposed_and_multiplied_layers() -> None:
    """ConvTranspose counts positions of its input, a depthwise multiplier its outputs."""
    b = Build(13)
    h = b.node("Relu", b.conv(b.input(), 3, 6, name="first"))
    h = b.node("Conv", h, b.weight(12, 1, 3, 3), group=6, pads=[1, 1, 1, 1])
    h = b.node("ConvTranspose", h, b.weight(12, 5, 2, 2), strides=[2, 2])
    b.output(b.node("ConvTranspose", h, b.weight(5, 1, 3, 3), group=5))
    analysis = analysed(b.model(), b.feed())
    parts = [6 * 3 * 9 * 64, 12 * 9 * 64, 12 * 5 * 4 * 64, 5 * 9 * 256]
    assert analysis.macs.total(analysis.sizes) == sum(parts)
    assert sizes(analysis) == {"/first": 6}
    assert analysis.macs.total([2]) == parts[0] / 3 + parts[1] / 3 + parts[2] / 3 + parts[3]


# --- plans -------------------------------------------------------------------------------------------------------------


def test_nothing_removed_is_said() -> None:
    _, _, analysis = known(two_convs)
    with pytest.raises(NothingToPruneError, match="No channel is removed"):
        make_plan(analysis, [np.arange(group.size) for group in analysis.groups])


@every_graph
@pytest.mark.parametrize("seed", range(3))
def test_plan_as_json_is_enough_to_check_the_file(build: Callable[[], Build], seed: int) -> None:
    """With onnx and NumPy alone: zeros in the consumers' weights of the original give the pruned file's outputs."""
    b, model, analysis = known(build)
    plan, pruned = prune(model, analysis, random_kept(analysis, seed))
    masked = onnx.ModelProto.FromString(model.SerializeToString())
    for consumer in json.loads(json.dumps(plan.to_dict()))["consumers"]:
        (holder,) = [entry for entry in masked.graph.initializer if entry.name == consumer["weight"]]
        value = numpy_helper.to_array(holder).copy()
        index = [slice(None)] * value.ndim
        index[consumer["axis"]] = consumer["removed"]
        value[tuple(index)] = 0
        holder.CopyFrom(numpy_helper.from_array(value, holder.name))
    expected, actual = (runtime.outputs(each, [b.feed()]) for each in (masked, pruned))
    assert verify.difference(expected, actual) <= TOLERANCE


@every_graph
def test_plan_from_json_cuts_the_same(build: Callable[[], Build]) -> None:
    _, model, analysis = known(build)
    plan, pruned = prune(model, analysis, random_kept(analysis, 0))
    again = PrunePlan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert surgery.apply(model, again).SerializeToString(deterministic=True) == pruned.SerializeToString(
        deterministic=True
    )


@every_graph
def test_zeros_in_the_consumers_do_something(build: Callable[[], Build]) -> None:
    """The oracle can fail: the masked file isn't the original."""
    b, model, analysis = known(build)
    plan, _ = prune(model, analysis, [np.arange(group.floor) for group in analysis.groups])
    whole, masked = (runtime.outputs(each, [b.feed()]) for each in (model, verify.masked(model, plan)))
    assert verify.difference(whole, masked) > 100 * TOLERANCE


def weights_from(how: str) -> Build:
    """first → Relu → a layer whose weights are computed from several constants."""
    b = Build(17)
    h = b.node("Relu", b.conv(b.input(), 3, 12, name="first"))
    if how == "concat along the inputs":
        weight = b.node("Concat", b.weight(5, 7, 3, 3), b.weight(5, 5, 3, 3), axis=1)
    elif how == "concat along the outputs":
        weight = b.node("Concat", b.weight(2, 12, 3, 3), b.weight(3, 12, 3, 3), axis=0)
    elif how == "sum":
        weight = b.node("Add", b.weight(5, 12, 3, 3), b.weight(5, 12, 3, 3))
    elif how == "product":
        weight = b.node("Mul", b.weight(5, 12, 3, 3), b.weight(5, 1, 1, 1))
    elif how == "product per input channel":
        weight = b.node("Mul", b.weight(1, 12, 1, 1), b.weight(5, 12, 3, 3))
    elif how == "transpose":
        weight = b.node("Transpose", b.weight(3, 3, 12, 5), perm=[3, 2, 0, 1])
    elif how == "reshape":
        weight = b.node("Reshape", b.weight(5, 12 * 9), b.ints(5, 12, 3, 3))
    elif how == "asymmetric":
        values = b.const(b.rng.integers(0, 255, (5, 12, 3, 3)).astype(np.uint8))
        weight = b.node("DequantizeLinear", values, b.scalar(0.01), b.const(np.uint8(128)))
    else:
        weight = b.node("Cast", b.const(b.values(5, 12, 3, 3).astype(np.float16)), to=onnx.TensorProto.FLOAT)
    b.output(b.node("Conv", h, weight, pads=[1, 1, 1, 1]))
    return b


@pytest.mark.parametrize(
    "how",
    [
        "transpose", "reshape", "cast", "product", "product per input channel", "concat along the inputs",
        "concat along the outputs", "sum", "asymmetric",
    ],
)  # fmt: skip
def test_weights_that_are_computed_from_constants(how: str) -> None:
    b = weights_from(how)
    model = b.model()
    analysis = analysed(model, b.feed())
    assert sum(sizes(analysis).values()) == 12
    for seed in (0, 1):
        holds(model, analysis, random_kept(analysis, seed), b.feed())


# --- constants that follow from constants ------------------------------------------------------------------------------

VALUE = np.random.default_rng(0).standard_normal((1, 4, 3, 1)).astype(np.float32)
FOLDS: dict[str, tuple[int, list, dict]] = {
    "Squeeze": (11, [], {"axes": [0]}),
    "Unsqueeze": (11, [], {"axes": [0]}),
    "ReduceL2": (11, [], {"axes": [1, 2]}),
    "ReduceMean": (17, [], {"axes": [1], "keepdims": 0}),
    "Slice": (9, [], {"axes": [1], "starts": [1], "ends": [3]}),
    "Pad": (9, [], {"pads": [0, 1, 0, 0, 0, 0, 0, 0]}),
    "Clip": (9, [], {"min": -0.5, "max": 0.5}),
    "Flatten": (9, [], {}),
    "Transpose": (9, [], {"perm": [1, 0, 3, 2]}),
    "Reshape": (9, [np.array([0, -1])], {}),
    "Mul": (9, [np.float32([2])], {}),
    "DequantizeLinear": (13, [np.float32(0.5)], {}),
    "Cast": (13, [], {"to": onnx.TensorProto.DOUBLE}),
}


@pytest.mark.parametrize("op", FOLDS)
def test_constants_are_folded_as_onnx_runtime_does(op: str) -> None:
    """By the operator of the file's opset, not by the newest of that name."""
    opset, operands, attributes = FOLDS[op]
    b = Build(opset)
    value = (VALUE * 50).astype(np.int8) if op == "DequantizeLinear" else VALUE
    folded = b.node(op, *(b.const(each) for each in (value, *operands)), **attributes)
    b.output(folded, kind=attributes.get("to", onnx.TensorProto.FLOAT))
    b.output(b.node("Neg", b.input()))
    model = b.model()
    found = Graph(model).fold(folded)
    assert found is not None
    expected = runtime.outputs(model, [b.feed()])[0][0]
    assert found.shape == expected.shape
    assert np.allclose(found, expected)
