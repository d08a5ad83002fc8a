"""What can be told of a file for an engine without the engine: one row for each thing that is looked at."""

import importlib.util
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import small_models
from onnx import TensorProto, helper
from small_models import Net

from thinet_onnx import runtime
from thinet_onnx.graph import Graph
from thinet_onnx.groups import Analysis, analyse
from thinet_onnx.readiness import File, assess, commands, openvino, ort, padding, tensorrt, widths
from thinet_onnx.readiness.findings import Readiness

TOOL = Path(__file__).parent.parent / "tools" / "tensorrt_operators.py"


def file(model: onnx.ModelProto, path: str = "net.onnx") -> File:
    return File(model, path)


def analysis(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> Analysis:
    graph = Graph(model)
    return analyse(graph, runtime.observed_shapes(graph, feeds))


def graph_of(
    op: str, *operands: Any, outputs: int = 1, opset: int = 17, domain: str = "", **attributes: Any
) -> onnx.ModelProto:
    """One node on `x`, a float tensor; operands are constants, and inputs where they are text. It is only looked at."""
    names, constants = [], []
    for number, operand in enumerate(operands):
        if isinstance(operand, str):
            names.append(operand)
        else:
            names.append(f"c{number}")
            constants.append(onnx.numpy_helper.from_array(np.asarray(operand), f"c{number}"))
    outs = [f"y{number}" for number in range(outputs)]
    node = helper.make_node(op, ["x", *names], outs, name="it", domain=domain, **attributes)
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4, 8, 8])
        for name in ("x", *(n for n in names if n and not n.startswith("c")))
    ]
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outs]
    graph = helper.make_graph([node], "g", inputs, made, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def levels(findings: list[Any], level: str) -> list[str]:
    return [finding.text for finding in findings if finding.level == level]


I8, U8, ONE = np.int8(0), np.uint8(128), np.float32(1)
LONGS = np.array([2], np.int64)

FINE = [
    graph_of("Relu"),
    graph_of("MaxPool", kernel_shape=[2, 2]),
    graph_of("MaxPool", kernel_shape=[2, 2], dilations=[1, 1]),
    graph_of("AveragePool", kernel_shape=[2, 2, 2]),
    graph_of("QuantizeLinear", ONE, I8),
    graph_of("DequantizeLinear", ONE, I8),
    graph_of("QuantizeLinear", ONE),
    graph_of("ReduceSum", LONGS),
    graph_of("ReduceMean", axes=[2, 3]),
    graph_of("Unsqueeze", LONGS),
    graph_of("TopK", np.array([5], np.int64), outputs=2),
    graph_of("TopK", "k", outputs=2),
    graph_of(
        "Resize", "", np.array([1, 1, 2, 2], np.float32), mode="linear", coordinate_transformation_mode="half_pixel"
    ),
    graph_of("Resize", "", np.array([1, 1, 2, 2], np.float32), mode="nearest", nearest_mode="floor"),
    graph_of("LayerNormalization", ONE),
    graph_of("ScatterND", LONGS, ONE, opset=18),
    graph_of("GRU", ONE, ONE, direction="bidirectional", activations=["Sigmoid", "Tanh"] * 2),
    graph_of("CumSum", np.int64(1)),
]


@pytest.mark.parametrize("model", FINE, ids=lambda model: model.graph.node[0].op_type)
def test_what_the_parser_reads(model: onnx.ModelProto) -> None:
    found = tensorrt.check(file(model), "fp32")
    assert levels(found, "fail") == []
    assert levels(found, "warn") == []


REJECTED = [
    (graph_of("Det"), "Its parser doesn't read Det (1 node: it)."),
    (graph_of("Swish", opset=24), "doesn't read Swish"),
    (
        graph_of("FusedConv", ONE, domain="com.microsoft"),
        "need a plugin of that name: com.microsoft::FusedConv (1 node: it).",
    ),
    (graph_of("MaxPool", kernel_shape=[2, 2], outputs=2), "MaxPool (1 node: it): its second output"),
    (graph_of("MaxPool", kernel_shape=[2, 2], dilations=[2, 2]), "dilations"),
    (graph_of("AveragePool", kernel_shape=[2, 2], dilations=[2, 1], opset=19), "dilations"),
    (graph_of("QuantizeLinear", ONE, U8), "uint8 isn't supported"),
    (graph_of("DequantizeLinear", ONE, np.int8(3)), "its zero point isn't 0"),
    (graph_of("DequantizeLinear", ONE, "zero"), "its zero point isn't constant"),
    (graph_of("ReduceSum", "axes"), "the list of axes isn't constant"),
    (graph_of("Squeeze", "axes"), "the list of axes isn't constant"),
    (graph_of("OneHot", "depth", ONE), "the depth isn't constant"),
    (graph_of("TopK", np.array([4000], np.int64), outputs=2), "K of 4000 is over 3839"),
    (graph_of("TopK", LONGS, outputs=2, sorted=0), "sorted=0"),
    (graph_of("Resize", "", LONGS, mode="cubic"), "mode=cubic isn't supported"),
    (graph_of("Resize", "", LONGS, coordinate_transformation_mode="tf_crop_and_resize"), "tf_crop_and_resize"),
    (graph_of("Resize", "", LONGS, antialias=1, opset=18), "antialias"),
    (graph_of("LayerNormalization", ONE, outputs=2), "only its first output"),
    (graph_of("ScatterND", LONGS, ONE, reduction="add", opset=18), "reduction=add"),
    (graph_of("LSTM", ONE, ONE, layout=1), "layout=1"),
    (graph_of("RNN", ONE, ONE, direction="bidirectional", activations=["Tanh", "Relu"]), "activations differ"),
]


@pytest.mark.parametrize(("model", "words"), REJECTED, ids=[words[:30] for _, words in REJECTED])
def test_what_the_parser_does_not_read(model: onnx.ModelProto, words: str) -> None:
    (told,) = levels(tensorrt.check(file(model), "fp32"), "fail")
    assert words in told


def test_the_list_says_what_it_is() -> None:
    assert tensorrt.operators()["tensorrt"] == "10.15"
    assert "onnx-tensorrt" in tensorrt.RULES
    read, not_read = set(tensorrt.operators()["read"]), set(tensorrt.operators()["not_read"])
    assert {"Conv", "Gemm", "Relu", "GridSample"} <= read
    assert {"Det", "QLinearConv", "Compress"} <= not_read
    assert not read & not_read
    known = {schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain}
    legacy = {"ImageScaler", "ParametricSoftplus", "ScaledTanh", "Scatter", "Upsample"}
    assert (read | not_read) - known <= legacy


def test_a_restriction_without_a_rule_is_passed_on() -> None:
    model = graph_of("GridSample", "grid", opset=20)
    (note,) = [text for text in levels(tensorrt.check(file(model), "fp32"), "note") if "GridSample" in text]
    assert note == "GridSample is restricted; see to it: Input must be 4D input."


def test_pooling_over_one_axis_is_only_a_doubt() -> None:
    (told,) = levels(tensorrt.check(file(graph_of("MaxPool", kernel_shape=[3])), "fp32"), "warn")
    assert told.startswith("MaxPool (1 node: it): the list has")


@pytest.mark.parametrize(("opset", "words"), [(8, "operator set 8"), (25, "operator set 25")])
def test_operator_sets_outside_the_list(opset: int, words: str) -> None:
    (told,) = levels(tensorrt.check(file(graph_of("Relu", opset=opset)), "fp32"), "warn")
    assert words in told and "9 to 24" in told


@pytest.mark.parametrize(
    ("value", "level", "words"),
    [
        (np.array([1.0]), "warn", "1 constant (c0) in float64 will be cast to float32"),
        (np.array([2**40], np.int64), "warn", "1 constant (c0) in int64 beyond int32's range"),
        (np.array([np.iinfo(np.int64).max], np.int64), "note", "1 constant (c0) in int64, all within"),
        (np.array([5], np.int64), "note", "1 constant (c0) in int64, all within"),
    ],
)
def test_types_of_constants(value: np.ndarray, level: str, words: str) -> None:
    found = tensorrt.check(file(graph_of("Add", value)), "fp32")
    assert any(words in text for text in levels(found, level))


@pytest.mark.parametrize("check", [tensorrt.check, openvino.check])
def test_int8_wants_a_quantised_file(check: Any) -> None:
    (told,) = levels(check(file(small_models.plain()), "int8"), "fail")
    assert "no QuantizeLinear and DequantizeLinear" in told


@pytest.mark.parametrize(
    ("check", "words"), [(tensorrt.check, "optimization profile"), (openvino.check, "Model.reshape")]
)
def test_open_sizes_are_named(check: Any, words: str) -> None:
    notes = levels(check(file(small_models.plain()), "fp32"), "note")
    assert any(words in note and "x (N, 3, 8, 8)" in note for note in notes)
    assert not any(words in note for note in levels(check(file(small_models.plain(batch=1)), "fp32"), "note"))


def test_operators_in_bodies_count_and_functions_of_the_file_are_no_strangers() -> None:
    body = helper.make_graph(
        [helper.make_node("Det", ["x"], ["d"], name="inner")], "b", [], [onnx.ValueInfoProto(name="d")]
    )
    model = graph_of("Relu")
    model.graph.node.append(helper.make_node("If", ["x"], ["z"], name="if", then_branch=body, else_branch=body))
    assert "Det (2 nodes: inner, inner)" in levels(tensorrt.check(file(model), "fp32"), "fail")[0]
    model = graph_of("Mine", domain="my")
    inner = [helper.make_node("Relu", ["x"], ["y"])]
    model.functions.append(helper.make_function("my", "Mine", ["x"], ["y"], inner, [helper.make_opsetid("", 17)]))
    for check in (tensorrt.check, openvino.check, ort.check):
        assert levels(check(file(model), "fp32"), "fail") == levels(check(file(model), "fp32"), "note") == []


@pytest.mark.parametrize(
    ("domain", "level", "words"),
    [("my", "fail", "no operators of this domain: my::Own"), ("com.microsoft", "warn", "converts some operators only")],
)
def test_operators_from_elsewhere_in_openvino(domain: str, level: str, words: str) -> None:
    (told,) = levels(openvino.check(file(graph_of("Own", domain=domain)), "fp32"), level)
    assert words in told


@pytest.mark.parametrize(
    ("indices", "axis", "told"),
    [
        ([1, 2, 0, 3], 1, True),
        ([1, 2, 0, 3], -3, False),
        ([3, 2, 1, 0], 1, False),  # its own inverse
        ([1, 2, 0], 1, True),
        ([1, 2, 3], 1, False),
        ([[1, 2, 0, 3]], 1, False),
        ([1, 2, 0, 3], 0, False),
    ],
)
def test_permutations_that_openvino_turns_round(indices: list[Any], axis: int, told: bool) -> None:
    warned = levels(openvino.check(file(graph_of("Gather", np.array(indices), axis=axis)), "fp32"), "warn")
    assert [text.startswith("Gather (1 node: it): OpenVINO") for text in warned] == [True] * told


def test_permutations_that_are_computed_are_not_judged() -> None:
    assert levels(openvino.check(file(graph_of("Gather", "places", axis=1)), "fp32"), "warn") == []


def test_what_onnx_runtime_keeps_silent_about() -> None:
    found = ort.check(file(graph_of("FusedConv", np.float16(1), domain="com.microsoft")), "fp16")
    assert "com.microsoft::FusedConv" in levels(found, "note")[0]
    warned = levels(found, "warn")
    assert "--precision fp16 changes nothing" in warned[0] and "1 weights are float16" in warned[1]
    assert ort.check(file(small_models.plain()), "fp32") == []


# --- widths -----------------------------------------------------------------------------------------------------------


def odd() -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """3 → 6 → 8 channels on 8×8 and a depthwise layer, then 8 → 5 classes."""
    net = Net()
    x = net.relu(net.conv(net.input("x", ("N", 3, 8, 8)), 3, 6, name="first"))
    x = net.conv(net.conv(x, 6, 6, name="depthwise", group=6), 6, 8, kernel=1, name="second")
    return net.model(net.head(x, 8, 5)), {"x": np.zeros((1, 3, 8, 8), np.float32)}


def test_what_padding_costs() -> None:
    found = padding(analysis(*odd()), 4)
    assert [(entry.layer, entry.channels, entry.padded) for entry in found.padded] == [
        ("first", (3, 6), (4, 8)), ("second", (6, 8), (8, 8)), ("head", (8, 5), (8, 8)),
    ]  # fmt: skip
    actual, computed = 64 * 9 * 18 + 64 * 48 + 40, 64 * 9 * 32 + 64 * 64 + 64
    assert found.extra == pytest.approx(computed / actual - 1)
    assert (found.layers, found.multiple) == (3, 4)


@pytest.mark.parametrize(("precision", "multiple"), [("fp32", 4), ("fp16", 8), ("bf16", 8), ("int8", 32)])
def test_multiples_by_precision(precision: Any, multiple: int) -> None:
    found = judged(*odd(), precision=precision)
    assert found.padding is not None and found.padding.multiple == multiple


def judged(
    model: onnx.ModelProto, feeds: dict[str, np.ndarray], original: Any = None, precision: Any = "fp32"
) -> Readiness:
    new = analysis(model, feeds)
    shapes = {name: array.shape for name, array in feeds.items()}
    return assess("tensorrt", file(model), new, original or new, precision=precision, batches=(1, 8), shapes=shapes)


def test_a_warning_only_where_pruning_made_it_worse() -> None:
    model, feeds = odd()
    told = [text for text in levels(list(judged(model, feeds).findings), "note") if "multiples of 4" in text]
    assert len(told) == 1 and "first 3→6 as 4→8" in told[0] and "--round-to" not in told[0]
    aligned = small_models.residual()
    (warned,) = levels(list(judged(model, feeds, analysis(aligned, feeds)).findings), "warn")
    assert "Pruning with --round-to 4 avoids that." in warned


def test_widths_that_fit() -> None:
    net = Net()
    x = net.conv(net.input("x", (1, 4, 8, 8)), 4, 8)
    model = net.model(net.head(x, 8, 4))
    found = padding(analysis(model, {"x": np.zeros((1, 4, 8, 8), np.float32)}), 4)
    (told,) = widths.findings(found, found)
    assert (found.extra, found.padded, told.level) == (0.0, (), "note")
    assert "without padding" in told.text


# --- command lines ----------------------------------------------------------------------------------------------------


def lines(
    model: onnx.ModelProto, precision: Any = "fp32", path: str = "net.onnx", **shapes: tuple[int, ...]
) -> list[str]:
    shapes = shapes or {"x": (1, 3, 8, 8)}
    return [command.line for command in commands.for_tensorrt(file(model, path), precision, (1, 16, 4), shapes)]


def test_an_open_batch_gets_a_profile() -> None:
    build, compare = lines(small_models.plain())
    assert build == (
        "trtexec --onnx=net.onnx --saveEngine=net.plan --minShapes=x:1x3x8x8 --optShapes=x:16x3x8x8 --maxShapes=x:16x3x8x8"
    )
    assert compare == (
        "polygraphy run net.onnx --trt --onnxrt --tf32 --trt-min-shapes 'x:[1,3,8,8]' --trt-opt-shapes 'x:[16,3,8,8]' "
        "--trt-max-shapes 'x:[16,3,8,8]' --input-shapes 'x:[16,3,8,8]' --rtol 1e-2 --atol 1e-2"
    )


def test_fixed_shapes_need_none() -> None:
    build, compare = lines(small_models.plain(batch=1))
    assert build == "trtexec --onnx=net.onnx --saveEngine=net.plan"
    assert compare == "polygraphy run net.onnx --trt --onnxrt --tf32 --rtol 1e-2 --atol 1e-2"


def test_open_heights_have_the_size_of_the_data_and_a_fixed_batch_stays() -> None:
    net = Net()
    x = net.relu(net.conv(net.input("x", (1, 3, "H", "W")), 3, 8))
    build, _ = lines(net.model(net.head(x, 8)), x=(1, 3, 20, 30))
    assert "--minShapes=x:1x3x20x30 --optShapes=x:1x3x20x30 --maxShapes=x:1x3x20x30" in build


def test_half_precision_depends_on_the_release() -> None:
    found = lines(small_models.plain(), "fp16", "a b/net.onnx")
    assert found[0].endswith(" --fp16") and "'a b/net.onnx'" in found[0]
    assert " --fp16 " in found[1]
    assert found[2] == (
        "python -m modelopt.onnx.autocast --onnx_path 'a b/net.onnx' --output_path 'a b/net_fp16.onnx' --low_precision_type "
        "fp16 --keep_io_types"
    )
    assert "net_fp16.onnx" in found[3] and "--fp16" not in found[3]
    assert "net_fp16.onnx" in found[4]


def test_files_with_types_of_their_own_are_built_with_them() -> None:
    model = small_models.plain()
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(3, np.float16), "half"))
    build, compare = lines(model)
    assert build.endswith(" --stronglyTyped") and " --strongly-typed " in compare and "--tf32" not in compare


def test_names_that_a_shell_or_the_tools_would_misread() -> None:
    net = Net()
    x = net.relu(net.conv(net.input("in put:0", ("N", 3, 8, 8)), 3, 8))
    build, compare = lines(net.model(net.head(x, 8)), **{"in put:0": (1, 3, 8, 8)})
    assert "--minShapes='in put:0':1x3x8x8" in shlex.split(build)
    assert "in put:0:[1,3,8,8]" in shlex.split(compare)


def test_the_comparison_is_one_that_polygraphy_takes() -> None:
    """Its own parser of shapes reads ours back."""
    parse_meta = importlib.import_module("polygraphy.tools.args.util").parse_meta
    parts = shlex.split(lines(small_models.plain())[1])
    meta = parse_meta([parts[parts.index("--trt-opt-shapes") + 1]], includes_dtype=False)
    assert tuple(meta["x"].shape) == (16, 3, 8, 8)


# --- the tool ---------------------------------------------------------------------------------------------------------


def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tensorrt_operators", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAGE = """# Supported ONNX Operators

TensorRT 10.15 supports operators in the inclusive range of opset 9 to opset 24. Latest information is elsewhere.

| Operator                  | Supported  | Supported Types | Restrictions      |
|---------------------------|------------|-----------------|-------------------|
| Abs                       | Y          | FP32, FP16 |
| MaxPool                   | Y          | FP32, FP16 | 2D or 3D pooling only. `Indices` unsupported<br />More
| NonMaxSuppression         | Y [EXPERIMENTAL] | FP32, FP16 | Inputs must be initializers |
| Clip                      | Y          | FP32 |                                 |
| Det                       | N          |
| DynamicQuantizeLinear     | N          | Not supported. Compose it.
"""


def test_the_page_becomes_the_list() -> None:
    found = tool().table(PAGE)
    assert (found["tensorrt"], found["opsets"]) == ("10.15", [9, 24])
    assert found["read"] == {
        "Abs": "", "Clip": "", "MaxPool": "2D or 3D pooling only. Indices unsupported More",
        "NonMaxSuppression": "Inputs must be initializers",
    }  # fmt: skip
    assert found["not_read"] == ["Det", "DynamicQuantizeLinear"]


def test_a_page_that_is_none() -> None:
    with pytest.raises(SystemExit, match="which TensorRT"):
        tool().table("404")
