"""A cut changes what the plan names and nothing else, and new weights go back to where the old ones were kept."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import Build, node_of, tensor, two_convs
from onnx import TensorProto, helper, numpy_helper
from oracle import analysed, holds, prune, random_kept

from thinet_onnx import graph as graphs
from thinet_onnx import prepare, runtime, surgery, verify
from thinet_onnx.groups import Analysis
from thinet_onnx.surgery import Refit

GONE = [1, 4, 5, 11]
STAYS = [0, 2, 3, 6, 7, 8, 9, 10]


def stays(analysis: Analysis, *, first: str = "/first") -> list[np.ndarray]:
    """`GONE` out of the group of `first`, everything else whole."""
    return [
        np.array(STAYS) if group.name == first else np.arange(group.size) for group in analysis.groups
    ]  # fmt: skip


def cut(b: Build, model: onnx.ModelProto | None = None) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The model and what is left of it, held against the oracle."""
    model = b.model() if model is None else model
    analysis = analysed(model, b.feed())
    _, pruned = holds(model, analysis, stays(analysis), b.feed())
    return model, pruned


def decorated() -> onnx.ModelProto:
    """Two convolutions with all the things that tools write into a file besides."""
    b = two_convs()
    model = b.model()
    model.doc_string, model.model_version, model.domain, model.producer_version = "a model", 7, "org.example", "1.2.3"
    model.metadata_props.add(key="classes", value="cat,dog")
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    graph = model.graph
    graph.name, graph.doc_string = "the graph", "its graph"
    for proto in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        proto.doc_string = f"about {proto.name}"
    if hasattr(graph, "metadata_props"):
        graph.metadata_props.add(key="exporter", value="dynamo")
        for proto in (*graph.node, *graph.initializer):
            proto.metadata_props.add(key="namespace", value=f"in {proto.name}")
    graph.value_info.append(helper.make_tensor_value_info("first", TensorProto.FLOAT, [1, 12, 8, 8]))
    return model


# --- what stays --------------------------------------------------------------------------------------------------------


def test_only_the_weights_differ() -> None:
    """Everything in the file but the cut constants and the value infos is as it was, byte by byte."""
    model, pruned = cut(two_convs(), decorated())
    for file in (model, pruned):
        del file.graph.value_info[:]
        for entry in file.graph.initializer:
            for name in ("dims", "raw_data", "float_data"):
                entry.ClearField(name)
    assert pruned.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


@pytest.mark.parametrize("field", ["metadata_props", "opset_import", "functions"])
def test_lists_of_the_file_stay(field: str) -> None:
    model, pruned = cut(two_convs(), decorated())
    assert list(getattr(pruned, field)) == list(getattr(model, field))


@pytest.mark.parametrize(
    "field", ["doc_string", "ir_version", "producer_name", "producer_version", "model_version", "domain"]
)
def test_fields_of_the_file_stay(field: str) -> None:
    model, pruned = cut(two_convs(), decorated())
    assert getattr(model, field)
    assert getattr(pruned, field) == getattr(model, field)


def test_doc_strings_stay() -> None:
    model, pruned = cut(two_convs(), decorated())
    assert pruned.graph.doc_string == "its graph"
    for field in ("node", "initializer", "input", "output"):
        docs = [proto.doc_string for proto in getattr(pruned.graph, field)]
        assert docs == [f"about {proto.name}" for proto in getattr(model.graph, field)]


def test_the_cut_weights_are_the_kept_ones() -> None:
    model, pruned = cut(two_convs())
    assert np.array_equal(tensor(pruned, "first.weight"), tensor(model, "first.weight")[STAYS])
    assert np.array_equal(tensor(pruned, "first.bias"), tensor(model, "first.bias")[STAYS])
    assert np.array_equal(tensor(pruned, "second.weight"), tensor(model, "second.weight")[:, STAYS])
    assert np.array_equal(tensor(pruned, "second.bias"), tensor(model, "second.bias"))


def test_no_value_info_contradicts_the_cut() -> None:
    _, pruned = cut(two_convs(), decorated())
    onnx.shape_inference.infer_shapes(pruned, check_type=True, strict_mode=True, data_prop=True)


def test_dynamic_axes_stay() -> None:
    b = Build(17)
    h = b.node("Relu", b.conv(b.input(dynamic="batch"), 3, 12, name="first"))
    b.output(b.conv(h, 12, 5, name="second"))
    model, pruned = cut(b)
    assert pruned.graph.input[0] == model.graph.input[0]
    assert pruned.graph.output[0] == model.graph.output[0]
    assert pruned.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    plan = prune(model, *_choice(model, b))[0]
    assert verify.oracle(model, pruned, plan, [b.feed(batch=3)]) <= 1e-5


def _choice(model: onnx.ModelProto, b: Build) -> tuple[Analysis, list[np.ndarray]]:
    analysis = analysed(model, b.feed())
    return analysis, stays(analysis)


def unrelated() -> Build:
    """A second path with layout operators and constants of many types that no cut touches."""
    b = two_convs(17)
    y = b.node("Transpose", "x", perm=[0, 2, 3, 1], name="turn", out="turned")
    y = b.node(
        "Slice", y, b.ints(0, name="begin"), b.ints(-1, name="end"), b.ints(1, name="axis"), name="crop", out="cropped"
    )
    y = b.node("Pad", y, b.ints(0, 0, 1, 0, 0, 0, 1, 0, name="amounts"), b.scalar(0.5), name="pad", out="padded")
    y = b.node("Reshape", y, b.ints(0, -1, 3, name="target"), name="fold", out="folded")
    y = b.node("Mul", y, b.const(np.float32([1, 2, 3]), node=True), name="scale", out="scaled")
    halves = b.many("Split", y, b.ints(1, 2, name="sizes"), outs=("left", "right"), axis=2, name="halve")
    b.output(b.node("Cast", halves[0], to=TensorProto.DOUBLE, out="wide"), kind=TensorProto.DOUBLE)
    b.output(halves[1])
    return b


def test_unrelated_nodes_and_constants_stay_byte_by_byte() -> None:
    model, pruned = cut(unrelated())
    assert [node.SerializeToString() for node in pruned.graph.node] == [
        node.SerializeToString() for node in model.graph.node
    ]
    touched = {"first.weight", "first.bias", "second.weight"}
    for before, after in zip(model.graph.initializer, pruned.graph.initializer, strict=True):
        assert before.name == after.name
        assert (before.SerializeToString() == after.SerializeToString()) == (before.name not in touched)


def other_branch(op: str) -> Build:
    """first is cut; on another branch an operator names sizes of channels that all stay."""
    b = two_convs(18)
    h = b.conv("x", 3, 12, name="other")
    if op == "Slice":
        h = b.node("Slice", h, b.ints(-8), b.ints(2**63 - 1), b.ints(1), out="odd")
    elif op == "Gather":
        h = b.node("Gather", h, b.ints(-1, 0, 5), axis=1, out="odd")
    elif op == "Expand":
        h = b.node("Expand", b.node("GlobalMaxPool", h), b.ints(1, 1, 4, 4), out="odd")
    elif op == "Pad":
        h = b.node("Pad", h, b.ints(0, 2, 0, 0, 0, 0, 0, 0), out="odd")
    elif op == "Resize":
        h = b.node("Resize", h, "", "", b.ints(1, 12, 4, 4), out="odd")
    elif op == "Reshape":
        h = b.node("Reshape", h, b.ints(0, -1, 64), out="odd")
    elif op == "Split":
        h = b.many("Split", h, b.ints(8, 4), axis=1, outs=("odd", "rest"))[0]
    elif op == "depthwise":
        h = b.node("Conv", h, b.weight(12, 1, 3, 3), group=12, out="odd")
    channels, rank = b.shape_of(h)[1], len(b.shape_of(h)) - 2
    b.output(b.conv(h, channels, 5, name="last", rank=rank))
    return b


@pytest.mark.parametrize("op", ["Slice", "Gather", "Expand", "Pad", "Resize", "Reshape", "Split", "depthwise"])
def test_operators_on_channels_that_stay_are_not_rewritten(op: str) -> None:
    model, pruned = cut(other_branch(op))
    assert node_of(pruned, "odd").SerializeToString() == node_of(model, "odd").SerializeToString()
    assert len(pruned.graph.initializer) == len(model.graph.initializer)


def test_argument_stays() -> None:
    b = unrelated()
    model = b.model()
    before = model.SerializeToString(deterministic=True)
    analysis = analysed(model, b.feed())
    plan, pruned = prune(model, analysis, random_kept(analysis, 0))
    surgery.refit(pruned, [Refit("second", 1, np.zeros_like(tensor(pruned, "second.weight")))])
    surgery.refit(model, [Refit("second", 1, np.zeros_like(tensor(model, "second.weight")))])
    verify.oracle(model, pruned, plan, [b.feed()])
    assert model.SerializeToString(deterministic=True) == before
    assert np.any(tensor(pruned, "second.weight"))


def test_cutting_twice_gives_the_same_file() -> None:
    b = unrelated()
    model = b.model()
    analysis = analysed(model, b.feed())
    plan, pruned = prune(model, analysis, random_kept(analysis, 3))
    assert surgery.apply(model, plan).SerializeToString(deterministic=True) == pruned.SerializeToString(
        deterministic=True
    )


def test_functions_of_the_file_stay_apart_from_the_cut() -> None:
    """Local functions are inlined before a model is pruned; the result holds none and still obeys the oracle."""
    b = Build(17)
    x = b.conv(b.input(), 3, 12, name="first")
    h = b.node("Twice", x, domain="local", out="doubled")
    b.output(b.node("Conv", h, b.weight(5, 12, 1, 1), out="second"), rank=4)
    b.domains = ("local",)
    model = b.model()
    body = [helper.make_node("Add", ["a", "a"], ["c"])]
    opsets = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("local", "Twice", ["a"], ["c"], body, opsets))
    inlined = prepare.prepare(model)
    assert inlined is not model
    _, pruned = cut(b, inlined)
    assert not pruned.functions
    plain = two_convs().model()
    assert prepare.prepare(plain) is plain


# --- where weights are kept --------------------------------------------------------------------------------------------


def kept_in(how: str) -> Build:
    """first → Relu → second, whose weights (and first's) are kept in different ways."""
    b = Build(17)
    x = b.input()
    one, two = b.values(12, 3, 3, 3), b.values(5, 12, 3, 3)
    if how == "Constant nodes":
        weights = [b.const(value, node=True) for value in (one, two)]
    elif how == "value_floats":
        scale = b.node("Constant", value_floats=np.arange(1.0, 13.0).tolist(), out="scale")
        scale = b.node("Reshape", scale, b.ints(-1, 1, 1))
        x = b.conv(x, 3, 12, name="before")
        weights = [b.const(b.values(12, 12, 3, 3)), b.const(two)]
        x = b.node("Mul", x, scale)
    elif how == "Transpose":
        weights = [b.node("Transpose", b.const(v.transpose(2, 3, 1, 0)), perm=[3, 2, 0, 1]) for v in (one, two)]
    elif how == "Cast":
        weights = [b.node("Cast", b.const(v.astype(np.float16)), to=TensorProto.FLOAT) for v in (one, two)]
    elif how == "Reshape":
        weights = [
            b.node("Reshape", b.const(v.reshape(len(v), -1)), b.ints(*v.shape)) for v in (one, two)
        ]  # fmt: skip
    elif how == "Identity":
        weights = [b.node("Identity", b.const(v)) for v in (one, two)]
    elif how == "Transpose of a Constant node of halves":
        weights = [
            b.node("Cast", b.node("Transpose", b.const(v.transpose(1, 0, 2, 3).astype(np.float16), node=True),
                                  perm=[1, 0, 2, 3]), to=TensorProto.FLOAT)
            for v in (one, two)
        ]  # fmt: skip
    elif how == "float_data":
        weights = [b.const(v) for v in (one, two)]
        for entry in b.initializers:
            values = numpy_helper.to_array(entry).ravel().tolist()
            entry.ClearField("raw_data")
            entry.float_data.extend(values)
    else:
        raise AssertionError(how)
    h = b.node("Relu", b.node("Conv", x, weights[0], pads=[1, 1, 1, 1], name="/first", out="first"))
    b.output(b.node("Conv", h, weights[1], pads=[1, 1, 1, 1], out="second"))
    return b


HOLDERS = [
    "Constant nodes", "value_floats", "Transpose", "Cast", "Reshape", "Identity", "Transpose of a Constant node of halves",
    "float_data",
]  # fmt: skip


@pytest.mark.parametrize("how", HOLDERS)
def test_weights_are_cut_where_they_are_kept(how: str) -> None:
    model, pruned = cut(kept_in(how))
    assert [node.op_type for node in pruned.graph.node] == [node.op_type for node in model.graph.node]
    assert {t.name for t in pruned.graph.initializer if t.data_type != TensorProto.INT64} <= {
        t.name for t in model.graph.initializer
    }


@pytest.mark.parametrize("how", [how for how in HOLDERS if how != "value_floats"])
def test_every_random_plan_holds_where_weights_are_moved(how: str) -> None:
    b = kept_in(how)
    model = b.model()
    analysis = analysed(model, b.feed())
    for seed in range(3):
        holds(model, analysis, random_kept(analysis, seed), b.feed())


def test_value_floats_are_cut() -> None:
    """A Constant node may keep its numbers in an attribute that is no tensor."""
    b = kept_in("value_floats")
    model = b.model()
    analysis = analysed(model, b.feed())
    (place,) = [i for i, group in enumerate(analysis.groups) if group.name == "/before"]
    kept = [np.array([0, 2]) if i == place else np.arange(group.size) for i, group in enumerate(analysis.groups)]
    _, pruned = holds(model, analysis, kept, b.feed())
    (floats,) = [a.floats for a in node_of(pruned, "scale").attribute if a.name == "value_floats"]
    assert list(floats) == [1.0, 3.0]


def test_initializers_listed_as_inputs() -> None:
    """Files of IR version 3 declare the shape of every initializer among the graph's inputs."""
    b = Build(7)
    h = b.node("Relu", b.batch_norm(b.conv(b.input(), 3, 12, name="first"), 12, name="bn"))
    b.output(b.conv(h, 12, 5, name="second"))
    model, pruned = cut(b)
    assert model.ir_version == pruned.ir_version == 3
    names = [value.name for value in pruned.graph.input]
    assert names == [value.name for value in model.graph.input]
    dims = {t.name: list(t.dims) for t in pruned.graph.initializer}
    for value in pruned.graph.input[1:]:
        assert [dim.dim_value for dim in value.type.tensor_type.shape.dim] == dims[value.name]
    assert dims["bn.var"] == [8]


def test_new_constants_of_old_files_are_listed_too() -> None:
    """A patched Reshape target becomes an initializer, which IR version 3 wants among the inputs."""
    b = Build(7)
    h = b.node("Relu", b.conv(b.input(), 3, 12, name="first"))
    h = b.node("Reshape", h, b.ints(1, 12 * 64, name="target"))
    b.output(b.gemm(h, 12 * 64, 5, name="second"))
    _, pruned = cut(b)
    assert {t.name for t in pruned.graph.initializer} <= {value.name for value in pruned.graph.input}


def test_halves_stay_halves() -> None:
    b = Build(17)
    x = b.input(kind=np.float16)
    h = b.node("Conv", x, b.const(b.values(12, 3, 3, 3).astype(np.float16)), pads=[1, 1, 1, 1], name="/first")
    h = b.node("Conv", b.node("Relu", h), b.const(b.values(5, 12, 3, 3).astype(np.float16)), pads=[1, 1, 1, 1])
    b.output(h, kind=TensorProto.FLOAT16)
    model = b.model()
    analysis = analysed(model, b.feed())
    plan, pruned = prune(model, analysis, stays(analysis))
    assert {t.data_type for t in pruned.graph.initializer} == {TensorProto.FLOAT16}
    assert verify.oracle(model, pruned, plan, [b.feed()]) <= 3e-3


def test_bfloat16_stays_bfloat16(capfd: pytest.CaptureFixture[str]) -> None:
    """ONNX Runtime's CPU kernels don't take it, so the values are compared."""
    b = two_convs()
    model = b.model()
    analysis = analysed(model, b.feed())
    for entry in model.graph.initializer:
        value = numpy_helper.to_array(entry)
        entry.CopyFrom(helper.make_tensor(entry.name, TensorProto.BFLOAT16, value.shape, value.ravel()))
    _, pruned = prune(model, analysis, stays(analysis))
    assert capfd.readouterr() == ("", "")
    for entry in pruned.graph.initializer:
        assert entry.data_type == TensorProto.BFLOAT16
    assert np.array_equal(tensor(pruned, "second.weight"), tensor(model, "second.weight")[:, STAYS])


def test_external_data_round_trip(tmp_path: Path) -> None:
    b = two_convs()
    analysis = analysed(b.model(), b.feed())
    source = tmp_path / "model.onnx"
    size = graphs.save(b.model(), source, beside=".data")
    assert (tmp_path / "model.onnx.data").stat().st_size > 4 * 5 * 12 * 9
    assert size == sum(file.stat().st_size for file in tmp_path.iterdir())
    model = graphs.load(source)
    assert np.array_equal(tensor(model, "second.weight"), tensor(b.model(), "second.weight"))
    plan, pruned = prune(model, analysis, stays(analysis))
    target = tmp_path / "small.onnx"
    assert graphs.save(pruned, target, beside=".data") < size
    again = graphs.load(target)
    assert verify.oracle(b.model(), again, plan, [b.feed()]) <= 1e-5
    assert runtime.outputs(again, [b.feed()])[0][0].shape == (1, 5, 8, 8)
    assert [file.name for file in graphs.data_files(target)] == [f"{target.name}.data"]
    inline = tmp_path / "inline.onnx"
    graphs.save(again, inline)
    assert graphs.data_files(inline) == []
    assert not (tmp_path / "inline.onnx.data").exists()
    assert verify.oracle(b.model(), graphs.load(inline), plan, [b.feed()]) <= 1e-5


def test_saving_leaves_the_model_in_memory_whole(tmp_path: Path) -> None:
    model = two_convs().model()
    before = model.SerializeToString(deterministic=True)
    graphs.save(model, tmp_path / "model.onnx", beside=".data")
    assert model.SerializeToString(deterministic=True) == before


# --- sizes -------------------------------------------------------------------------------------------------------------


def size_of(b: Build, x: str, axis: int) -> str:
    """x.size(axis) as a list: Shape → Gather → Unsqueeze."""
    size = b.node("Gather", b.node("Shape", x), b.const(np.int64(axis)), axis=0)
    return b.node("Unsqueeze", size, b.ints(0)) if b.opset >= 13 else b.node("Unsqueeze", size, axes=[0])


def baked_target(node: bool, opset: int = 13) -> Build:
    """x.view(x.size(0), 12 * 64): a computed batch, and a number that the exporter wrote down."""
    b = Build(opset)
    h = b.node("Relu", b.conv(b.input(dynamic="batch"), 3, 12, name="first"))
    target = [size_of(b, h, 0), b.const(np.array([12 * 64]), name="baked", node=node)]
    flat = b.node("Reshape", h, b.node("Concat", *target, axis=0, out="target"), out="flat")
    b.output(b.gemm(flat, 12 * 64, 5, name="second"))
    return b


@pytest.mark.parametrize("opset", [8, 11, 13])
@pytest.mark.parametrize("node", [False, True])
def test_baked_size_in_a_computed_target_is_patched(node: bool, opset: int) -> None:
    b = baked_target(node, opset)
    model, pruned = cut(b)
    assert list(tensor(pruned, "baked")) == [12 * 64]  # others may read it
    plan = prune(model, *_choice(model, b))[0]
    assert verify.oracle(model, pruned, plan, [b.feed(batch=4)]) <= 1e-5
    assert runtime.outputs(pruned, [b.feed(batch=4)])[0][0].shape == (4, 5)


@pytest.mark.parametrize("opset", [9, 11, 13])
def test_target_that_follows_by_itself_is_left_alone(opset: int) -> None:
    """x.view(x.size(0), x.size(1), −1)."""
    b = Build(opset)
    h = b.node("Relu", b.conv(b.input(), 3, 12, name="first"))
    target = b.node("Concat", size_of(b, h, 0), size_of(b, h, 1), b.ints(-1), axis=0)
    b.output(b.conv(b.node("Reshape", h, target, out="folded"), 12, 5, name="second", rank=1))
    model, pruned = cut(b)
    assert list(pruned.graph.node) == list(model.graph.node)


def test_target_shared_with_another_reshape_is_patched_for_one() -> None:
    b = Build(13)
    h = b.node("Relu", b.conv(b.input(), 3, 12, name="first"))
    other = b.conv("x", 3, 12, name="other")
    b.ints(1, 12, 64, name="target")
    ends = []
    for name, place in ((h, "a"), (other, "b")):
        folded = b.node("Reshape", name, "target", out=f"folded_{place}")
        ends.append(b.conv(folded, 12, 5, name=f"last_{place}", rank=1))
    b.output(*ends)
    model, pruned = cut(b)
    assert list(tensor(pruned, "target")) == [1, 12, 64]
    assert node_of(pruned, "folded_b") == node_of(model, "folded_b")
    assert node_of(pruned, "folded_a").input[1] != "target"


def test_split_without_sizes_gets_them_where_pieces_become_unequal() -> None:
    b = Build(13)
    h = b.node("Relu", b.conv(b.input(), 3, 12, name="first"))
    halves = b.many("Split", h, outs=("left", "right"), axis=1)
    b.output(*(b.conv(name, 6, 5, name=f"last_{name}") for name in halves))
    model = b.model()
    analysis = analysed(model, b.feed())
    assert [group.size for group in analysis.groups] == [6, 6]
    _, even = holds(model, analysis, [np.arange(4), np.arange(2, 6)], b.feed())
    assert node_of(even, "left") == node_of(model, "left")
    _, odd = holds(model, analysis, [np.arange(4), np.arange(3)], b.feed())
    assert list(tensor(odd, node_of(odd, "left").input[1])) == [4, 3]


def test_names_of_new_constants_are_free() -> None:
    """Another tensor may have the very name that a new constant would get."""
    b = Build(13)
    h = b.node("Relu", b.conv(b.input(), 3, 12, name="first"))
    b.output(b.conv(b.node("Reshape", h, b.ints(1, 12, 64), out="folded"), 12, 5, name="second", rank=1))
    b.output(b.node("Reshape", "x", b.ints(1, 12, 16, name="folded_thinet_1")))
    cut(b)


def test_pruning_a_pruned_file() -> None:
    b = baked_target(False)
    _, once = cut(b)
    analysis = analysed(once, b.feed())
    assert [group.size for group in analysis.groups] == [8]
    holds(once, analysis, [np.array([1, 2, 7])], b.feed())


# --- new weights -------------------------------------------------------------------------------------------------------


def refitted(model: onnx.ModelProto, b: Build, *, bias: bool = False) -> onnx.ModelProto:
    """New values for second's weights, checked against a model that is given them as an initializer."""
    graph = graphs.Graph(model)
    node = graph.producer["second"]
    operand = graph.fold(node.inputs[1])
    assert operand is not None
    rng = np.random.default_rng(5)
    value = rng.standard_normal(operand.shape).astype(operand.dtype)
    value = value.astype(np.float16).astype(operand.dtype)  # exact in whatever type the source is kept
    shift = rng.standard_normal(operand.shape[0]).astype(operand.dtype) if bias else None
    before = model.SerializeToString(deterministic=True)
    result = surgery.refit(model, [Refit("second", 1, value, 2 if bias else None, shift)])
    assert model.SerializeToString(deterministic=True) == before
    assert graphs.check(result) is None
    expected = onnx.ModelProto.FromString(before)
    expected.graph.initializer.append(numpy_helper.from_array(value, "expected"))
    proto = node_of(expected, "second")
    proto.input[1] = "expected"
    if shift is not None:
        expected.graph.initializer.append(numpy_helper.from_array(shift, "expected_bias"))
        del proto.input[2:]
        proto.input.append("expected_bias")
    found = verify.difference(*(runtime.outputs(each, [b.feed()]) for each in (expected, result)))
    assert found <= 1e-6
    assert np.array_equal(graphs.Graph(result).fold(graphs.Graph(result).producer["second"].inputs[1]), value)
    return result


@pytest.mark.parametrize("how", [how for how in HOLDERS if how != "value_floats"])
def test_refit_writes_back_to_the_source(how: str) -> None:
    b = kept_in(how)
    model = b.model()
    result = refitted(model, b)
    assert list(result.graph.node) == list(model.graph.node) or how in (
        "Constant nodes", "Transpose of a Constant node of halves",
    )  # fmt: skip
    assert [node.op_type for node in result.graph.node] == [node.op_type for node in model.graph.node]
    before = {t.name: t for t in model.graph.initializer}
    assert {t.name: (t.data_type, list(t.dims)) for t in result.graph.initializer} == {
        name: (t.data_type, list(t.dims)) for name, t in before.items()
    }


@pytest.mark.parametrize("per_channel", [False, True])
def test_refit_of_quantised_weights_rounds_to_their_scale(per_channel: bool) -> None:
    b = Build(17)
    h = b.node("Relu", b.conv(b.input(), 3, 12, name="first"))
    values = b.const(b.rng.integers(-127, 128, (5, 12, 3, 3)).astype(np.int8), name="values")
    scale = np.linspace(0.01, 0.02, 5, dtype=np.float32) if per_channel else np.float32(0.01)
    zero = np.zeros(np.shape(scale), np.int8)
    weight = b.node("DequantizeLinear", values, b.const(scale), b.const(zero), axis=0)
    b.output(b.node("Conv", h, weight, out="second"))
    model = b.model()
    wanted = np.random.default_rng(1).uniform(-1, 1, (5, 12, 3, 3)).astype(np.float32)
    result = surgery.refit(model, [Refit("second", 1, wanted)])
    assert graphs.check(result) is None
    found = graphs.Graph(result).fold(graphs.Graph(result).producer["second"].inputs[1])
    assert found is not None
    step = np.reshape(scale, (-1, 1, 1, 1))
    assert np.all(np.abs(found - wanted) <= 0.5001 * step)
    assert [node.op_type for node in result.graph.node] == [node.op_type for node in model.graph.node]
    assert tensor(result, "values").dtype == np.int8


def test_refit_keeps_doc_strings() -> None:
    model = decorated()
    value = np.ones_like(tensor(model, "second.weight"))
    result = surgery.refit(model, [Refit("second", 1, value)])
    (entry,) = [t for t in result.graph.initializer if t.name == "second.weight"]
    assert entry.doc_string == "about second.weight"
    assert np.array_equal(numpy_helper.to_array(entry), value)


def test_refit_of_a_bias() -> None:
    b = two_convs()
    model = b.model()
    result = refitted(model, b, bias=True)
    assert [t.name for t in result.graph.initializer] == [t.name for t in model.graph.initializer]


def test_refit_makes_a_bias_where_there_is_none() -> None:
    b = kept_in("Transpose")
    model = b.model()
    result = refitted(model, b, bias=True)
    assert len(node_of(result, "second").input) == 3
    assert len(result.graph.initializer) == len(model.graph.initializer) + 1


def sharing() -> Build:
    """second and an unrelated reader take the same weights."""
    b = Build(17)
    h = b.node("Relu", b.conv(b.input(), 3, 12, name="first"))
    b.weight(12, 12, 3, 3, name="shared")
    h = b.node("Relu", b.node("Conv", h, "shared", pads=[1, 1, 1, 1], out="second"))
    b.output(b.node("Conv", h, b.weight(5, 12, 1, 1)))
    b.output(b.node("ReduceSum", "shared", b.ints(0, 1, 2, 3)))
    return b


def test_shared_weights_make_way_for_an_initializer() -> None:
    b = sharing()
    model = b.model()
    result = refitted(model, b)
    assert np.array_equal(tensor(result, "shared"), tensor(model, "shared"))
    assert node_of(result, "second").input[1] != "shared"
    assert len(result.graph.initializer) == len(model.graph.initializer) + 1


def test_weights_that_are_an_output_make_way_too() -> None:
    b = Build(17)
    h = b.node("Relu", b.conv(b.input(), 3, 12, name="first"))
    weight = b.node("Transpose", b.weight(12, 5, 1, 1), perm=[1, 0, 2, 3], out="moved")
    b.output(b.node("Conv", h, weight, out="second"))
    b.output("moved")
    model = b.model()
    result = refitted(model, b)
    assert np.array_equal(graphs.Graph(result).fold("moved"), graphs.Graph(model).fold("moved"))


def test_weights_that_a_body_reads_make_way_too() -> None:
    b = Build(17)
    h = b.node("Relu", b.conv(b.input(), 3, 12, name="first"))
    b.output(b.node("Conv", h, b.weight(5, 12, 1, 1, name="shared"), out="second"))
    bodies = {}
    for name, op in (("then_branch", "Neg"), ("else_branch", "Identity")):
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, [5, 12, 1, 1])
        bodies[name] = helper.make_graph([helper.make_node(op, ["shared"], [name])], name, [], [out])
    b.output(b.node("If", b.input("flag", value=True), **bodies))
    model = b.model()
    result = refitted(model, b)
    assert np.array_equal(tensor(result, "shared"), tensor(model, "shared"))


def test_weights_used_twice_are_refitted_once() -> None:
    b = Build(17)
    x = b.input()
    b.weight(12, 3, 3, 3, name="shared")
    levels = [
        b.node("Conv", name, "shared", pads=[1, 1, 1, 1]) for name in (x, b.node("MaxPool", x, kernel_shape=[2, 2]))
    ]
    b.output(*(b.node("Conv", level, b.weight(5, 12, 1, 1)) for level in levels))
    model = b.model()
    value = np.random.default_rng(0).standard_normal((12, 3, 3, 3)).astype(np.float32)
    result = surgery.refit(model, [Refit(name, 1, value) for name in levels])
    assert list(result.graph.node) == list(model.graph.node)
    assert np.array_equal(tensor(result, "shared"), value)


def test_new_initializers_take_free_names() -> None:
    b = sharing()
    b.const(np.float32(1), name="second_thinet_weight")
    b.output(b.node("Neg", "second_thinet_weight"))
    model = b.model()
    result = refitted(model, b)
    names = [t.name for t in result.graph.initializer]
    assert len(names) == len(set(names))
    assert tensor(result, "second_thinet_weight") == 1
