"""The torch twin: every operator's forward equals ONNX Runtime's, gradients reach the weights, weights go back to the file.

The table of `test_rules` has a row for each operator that has a rule; here each of these graphs is run by its twin. The
rows below are for modes that make no difference to channels: pads, rounding, coordinates.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

torch = pytest.importorskip("torch", reason="PyTorch is not installed: the twin and fine-tuning are NOT TESTED")

from graphs import Build, node_of, tensor, two_convs  # noqa: E402
from test_rules import CASES, Case, built  # noqa: E402

from thinet_onnx import graph as graphs  # noqa: E402
from thinet_onnx.errors import ModelError  # noqa: E402
from thinet_onnx.rules import RULES  # noqa: E402
from thinet_onnx.torch_twin import (  # noqa: E402
    OPERATORS,
    Cut,
    Twin,
    TwinCheck,
    decoded,
    encoded,
    find_cut,
    from_torch,
    to_torch,
    twin_check,
)
from thinet_onnx.torch_twin.check import difference, disagreement  # noqa: E402

MODELS = Path(__file__).parent.parent / "models"
NO_TWIN = {
    "Bernoulli", "EyeLike", "GRU", "If", "LSTM", "Loop", "MaxRoiPool", "NonMaxSuppression", "NonZero", "RNN", "RandomNormal",
    "RandomNormalLike", "RandomUniform", "RandomUniformLike", "RoiAlign", "Scan",
}  # fmt: skip
REFUSED = {"com.microsoft::FusedMatMul-transposed batch": "transBatchA"}
"""Modes that a twin refuses, with a piece of its words."""
FLAT = {"IsNaN", "IsInf", "Mod-scalar", "TopK-places on the last axis"}
"""Rows whose operator puts out a constant, or places: gradients of what is behind or before it are zero."""
HALF = {"Cast-to float16 and back"}
EMPTY = {"Split-uneven by count"}
"""A convolution over no channels, which PyTorch gives no output."""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def check(model: onnx.ModelProto, feeds: dict, tolerance: float = 1e-5, *, flat: bool = False) -> TwinCheck:
    found = twin_check(model, feeds)
    assert found.difference <= tolerance
    assert not found.broken
    assert not found.left_out
    assert flat == bool(found.dead)
    return found


def as_torch(feeds: dict) -> dict:
    return {name: torch.from_numpy(value) for name, value in feeds.items()}


# --- every operator ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [c for c in CASES if not c.shapes and c.name not in EMPTY], ids=lambda case: case.name)
def test_a_twin_computes_what_onnx_runtime_computes(case: Case) -> None:
    b = built(case)
    model = b.model()
    if case.name in REFUSED:
        with pytest.raises(ModelError, match=REFUSED[case.name]):
            twin_check(model, b.feed())
    elif any(node.op_type in NO_TWIN for node in model.graph.node):
        found = twin_check(model, b.feed())  # of the part that has a twin
        assert found.left_out
        assert found.difference <= 1e-5
        assert not found.broken
    else:
        check(model, b.feed(), 1e-3 if case.name in HALF else 1e-5, flat=case.name in FLAT)


def test_every_operator_with_a_rule_has_a_twin_or_is_listed() -> None:
    assert {kind for kind in RULES if kind not in OPERATORS} == NO_TWIN
    assert OPERATORS.keys() <= {case.kind for case in CASES}


# --- modes that make no difference to channels -------------------------------------------------------------------------

Make = Callable[[Build, str], str]
ROWS: list[tuple[str, Make, int, tuple[int, ...]]] = []


def row(title: str, make: Make, opset: int = 18, shape: tuple[int, ...] = (2, 3, 9, 10)) -> None:
    """A graph: a convolution (3 → 6 channels, sizes as the input's) and what `make` puts behind it."""
    ROWS.append((title, make, opset, shape))


def op(kind: str, *constants: object, domain: str = "", **attributes: object) -> Make:
    """One operator with constant operands behind the first; None is an absent one."""

    def make(b: Build, x: str) -> str:
        operands = ["" if value is None else b.const(np.asarray(value)) for value in constants]
        return b.node(kind, x, *operands, domain=domain, **attributes)

    return make


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def weighted(kind: str, *shape: int, bias: int = 0, domain: str = "", **attributes: object) -> Make:
    def make(b: Build, x: str) -> str:
        operands = [b.weight(*shape), *([b.weight(bias)] if bias else [])]
        return b.node(kind, x, *operands, domain=domain, **attributes)

    return make


for auto in ("SAME_UPPER", "SAME_LOWER", "VALID"):
    for kernel in (2, 3):
        for stride in (1, 2):
            strided = {"auto_pad": auto, "strides": [stride, stride]}
            row(f"Conv {auto} {kernel} {stride}", weighted("Conv", 5, 6, kernel, kernel, bias=5, **strided))
            row(f"MaxPool {auto} {kernel} {stride}", op("MaxPool", kernel_shape=[kernel, kernel], **strided))
            row(f"AveragePool {auto} {kernel} {stride}", op("AveragePool", kernel_shape=[kernel, kernel], **strided))
    row(f"ConvTranspose {auto}", weighted("ConvTranspose", 6, 5, 3, 3, bias=5, auto_pad=auto, strides=[2, 2]))
row("Conv uneven pads", weighted("Conv", 5, 6, 3, 3, pads=[0, 1, 2, 3]))
row("Conv dilated, grouped", weighted("Conv", 6, 2, 3, 3, bias=6, dilations=[2, 3], group=3, strides=[1, 2]))
row("Conv 1-D", weighted("Conv", 5, 6, 3, pads=[1, 0], strides=[2]), shape=(2, 3, 11))
row("Conv 3-D", weighted("Conv", 5, 6, 3, 2, 1, pads=[1, 0, 0, 1, 1, 0]), shape=(1, 3, 4, 5, 6))
row("Conv by a computed weight", lambda b, x: b.node("Conv", x, b.node("Reshape", b.node("Slice", x, b.ints(0), b.ints(36),
    b.ints(3)), b.ints(-1, 6, 3, 3))), shape=(2, 3, 9, 9))  # fmt: skip
row("ConvTranspose uneven pads", weighted("ConvTranspose", 6, 5, 3, 4, bias=5, pads=[0, 1, 2, 1], strides=[2, 3]))
row(
    "ConvTranspose output_padding, dilated, grouped",
    weighted("ConvTranspose", 6, 2, 3, 3, bias=4, output_padding=[1, 0], strides=[2, 2], dilations=[2, 1], group=2),
)
for auto in ("NOTSET", "SAME_UPPER", "SAME_LOWER"):
    row(
        f"ConvTranspose to a size, {auto}",
        weighted("ConvTranspose", 6, 5, 3, 3, bias=5, strides=[2, 2], output_shape=[18, 20], auto_pad=auto),
    )
row("ConvTranspose 1-D", weighted("ConvTranspose", 6, 5, 4, strides=[2], pads=[1, 1]), shape=(2, 3, 7))
row("ConvTranspose 3-D", weighted("ConvTranspose", 6, 5, 2, 2, 2, strides=[2, 1, 2]), shape=(1, 3, 3, 4, 2))
ACTIVATIONS = {
    "Relu": [],
    "Tanh": [],
    "Sigmoid": [],
    "LeakyRelu": [0.3],
    "Clip": [-0.1, 0.2],
    "HardSigmoid": [0.3, 0.4],
}
for name, params in ACTIVATIONS.items():
    extra = {"activation_params": params} if params else {}
    row(
        f"FusedConv {name}",
        weighted("FusedConv", 5, 6, 3, 3, bias=5, domain="com.microsoft", activation=name, **extra),
    )
row("FusedConv with a sum", lambda b, x: b.node("FusedConv", x, b.weight(6, 6, 1, 1), b.weight(6), x,
    domain="com.microsoft", activation="Relu"))  # fmt: skip

for ceil in (0, 1):
    for pads in ([0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 1, 0]):
        window = {"kernel_shape": [3, 2], "strides": [2, 3], "pads": pads, "ceil_mode": ceil}
        name = f"ceil_mode={ceil} pads={pads}"
        row(f"MaxPool {name}", op("MaxPool", **window))
        row(f"MaxPool dilated {name}", op("MaxPool", **(window | {"dilations": [1, 2]})))
        row(f"LpPool {name}", op("LpPool", p=3, **window))
        for whole in (0, 1):
            row(
                f"AveragePool {name} count_include_pad={whole}",
                op("AveragePool", count_include_pad=whole, **window),
                19,
            )
row("AveragePool dilated", op("AveragePool", kernel_shape=[3, 2], dilations=[2, 1], pads=[1, 0, 1, 0]), 19)
row("AveragePool old", op("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]), 7)
row("AveragePool 1-D", op("AveragePool", kernel_shape=[3], pads=[1, 1]), shape=(2, 3, 9))
row("AveragePool 3-D", op("AveragePool", kernel_shape=[2, 2, 2]), shape=(1, 3, 4, 4, 4))
row("MaxPool 1-D", op("MaxPool", kernel_shape=[3], strides=[2]), shape=(2, 3, 9))
row("MaxPool 3-D", op("MaxPool", kernel_shape=[2, 2, 2]), shape=(1, 3, 4, 4, 4))
row("MaxPool with more pads than half the window", op("MaxPool", kernel_shape=[3, 3], pads=[2, 2, 2, 2]))

COORDINATES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric")
for mode in ("nearest", "linear", "cubic"):
    for coordinates in COORDINATES:
        for factor in (2.0, 0.6, 1.7):
            row(
                f"Resize {mode} {coordinates} {factor}",
                op("Resize", None, floats(1, 1, factor, factor), mode=mode, coordinate_transformation_mode=coordinates),
                19,
            )
for nearest in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"):
    for target in ([2, 6, 18, 20], [2, 6, 6, 7]):
        row(
            f"Resize {nearest} to {target}",
            op("Resize", None, None, target, mode="nearest", nearest_mode=nearest,
               coordinate_transformation_mode="asymmetric"),
        )  # fmt: skip
row("Resize tf_half_pixel_for_nn", op("Resize", floats(), floats(1, 1, 2, 2), mode="nearest",
    coordinate_transformation_mode="tf_half_pixel_for_nn"), 11)  # fmt: skip
row("Resize cubic, outside excluded", op("Resize", None, floats(1, 1, 2, 0.5), mode="cubic", exclude_outside=1,
    cubic_coeff_a=-0.5))  # fmt: skip
for mode in ("linear", "cubic"):
    row(f"Resize {mode} antialiased", op("Resize", None, floats(1, 1, 0.4, 0.7), mode=mode, antialias=1))
row("Resize some axes", op("Resize", None, None, [12, 5], mode="linear", axes=[3, 2]), 18)
for policy in ("not_larger", "not_smaller"):
    row(f"Resize {policy}", op("Resize", None, None, [15, 20], mode="nearest", axes=[2, 3],
        keep_aspect_ratio_policy=policy), 18)  # fmt: skip
row("Resize a region", op("Resize", floats(0, 0, 0.2, -0.1, 1, 1, 0.8, 1.2), None, [2, 6, 5, 12], mode="linear",
    coordinate_transformation_mode="tf_crop_and_resize", extrapolation_value=0.5), 13)  # fmt: skip
for mode in ("nearest", "linear"):
    row(f"Resize {mode}, operator set 10", op("Resize", floats(1, 1, 2, 3), mode=mode), 10)
    row(f"Resize {mode} smaller, operator set 10", op("Resize", floats(1, 1, 0.5, 0.7), mode=mode), 10)
    row(f"Upsample {mode}, operator set 9", op("Upsample", floats(1, 1, 2, 3), mode=mode), 9)
    row(f"Upsample {mode}, attribute", op("Upsample", mode=mode, scales=[1.0, 1.0, 2.0, 3.0]), 7)

for mode in ("edge", "reflect", "wrap"):
    row(f"Pad {mode}", op("Pad", [0, 0, 1, 2, 0, 0, 3, 1], mode=mode), 19)
row("Pad by a value", op("Pad", [0, 1, 1, 2, 0, 0, 3, 1], np.float32(0.5)))
row("Pad some axes", op("Pad", [1, 2, 3, 0], None, [-1, 2]))
row("Pad cropping", op("Pad", [0, 0, -1, 2, 0, 0, -2, -1]))
row("Pad attributes", op("Pad", pads=[0, 0, 1, 2, 0, 0, 3, 1], value=0.25), 7)

row("Split unevenly", lambda b, x: b.node("Concat", *b.many("Split", x, outs=4, axis=2, num_outputs=4)[::-1], axis=2))
for axis in (0, 1, 3):
    row(f"CumSum {axis}", op("CumSum", np.int64(axis)))
row("CumSum exclusive, backwards", op("CumSum", np.int64(-1), exclusive=1, reverse=1))
row("TopK smallest", lambda b, x: b.many("TopK", x, b.ints(3), outs=2, axis=2, largest=0)[0])
row("TopK attribute", lambda b, x: b.many("TopK", x, outs=2, axis=1, k=2)[0], 7)
row("LRN of all channels", op("LRN", size=13, alpha=0.1, beta=0.6, bias=1.5))
row("LpNormalization 1", op("LpNormalization", p=1, axis=1))
row(
    "LayerNormalization of three axes",
    lambda b, x: b.many("LayerNormalization", x, b.weight(6, 9, 10), outs=1, axis=1)[0],
)
row("LayerNormalization statistics", lambda b, x: b.node("Concat", *b.many("LayerNormalization", x, b.weight(10), b.weight(10),
    outs=3), axis=-1))  # fmt: skip
row("GroupNormalization before 21", weighted("GroupNormalization", 3, bias=3, num_groups=3), 18)
row("GroupNormalization", weighted("GroupNormalization", 6, bias=6, num_groups=3, epsilon=1e-3), 21)
row("MeanVarianceNormalization by axes", op("MeanVarianceNormalization", axes=[2, 3]))
for opset in (7, 9, 14, 15):
    row(f"BatchNormalization {opset}", lambda b, x: b.batch_norm(x, 6), opset)
row("BatchNormalization 1-D", lambda b, x: b.batch_norm(x, 6), shape=(2, 3, 7))
row("BatchNormalization 3-D", lambda b, x: b.batch_norm(x, 6), shape=(1, 3, 4, 3, 2))
row(
    "BatchNormalization of a matrix", lambda b, x: b.batch_norm(b.node("ReduceMean", x, axes=[2, 3], keepdims=0), 6), 13
)
row("Einsum", lambda b, x: b.node("Einsum", x, b.weight(6, 4), equation="nchw,cd->ndhw"))
row("GatherElements", op("GatherElements", np.array([[[[0, -1], [1, 2]]]]), axis=3), shape=(1, 3, 4, 4))
row("ScatterElements added", lambda b, x: b.node("ScatterElements", x, b.const(np.array([[[[0, 1], [1, 2]]]])),
    b.weight(1, 1, 2, 2), axis=3, reduction="add"))  # fmt: skip
row("ScatterND added", lambda b, x: b.node("ScatterND", x, b.const(np.array([[0, 1], [0, 1]])), b.weight(2, 9, 10),
    reduction="add"))  # fmt: skip
row("OneHot in front", lambda b, x: b.node("Mul", x, b.node("OneHot", b.const(np.array([1, -1])), b.const(np.int64(2)),
    b.const(floats(1, 3)), axis=0, out="hot")), shape=(2, 3, 2, 2))  # fmt: skip
row("Range in the data", lambda b, x: b.node("Add", x, b.node("Cast", b.node("Range", b.const(np.int64(0)),
    b.node("Gather", b.node("Shape", x), b.const(np.int64(3))), b.const(np.int64(1))), to=TensorProto.FLOAT)))  # fmt: skip
row("Size in the data", lambda b, x: b.node("Div", x, b.node("Cast", b.node("Size", x), to=TensorProto.FLOAT)))
row("double precision", lambda b, x: b.node("Cast", b.node("Exp", b.node("Cast", x, to=TensorProto.DOUBLE)),
    to=TensorProto.FLOAT))  # fmt: skip


def made(make: Make, opset: int, shape: tuple[int, ...], *, dynamic: str = "") -> Build:
    b = Build(opset)
    b.output(make(b, b.conv(b.input(shape=shape, dynamic=dynamic), 3, 6, name="first", rank=len(shape) - 2)))
    return b


@pytest.mark.parametrize(("title", "make", "opset", "shape"), ROWS, ids=[entry[0] for entry in ROWS])
def test_modes(title: str, make: Make, opset: int, shape: tuple[int, ...]) -> None:
    b = made(make, opset, shape)
    check(b.model(), b.feed())


# --- any batch ---------------------------------------------------------------------------------------------------------


def separately(twin: Twin, feeds: dict) -> list:
    halves = [twin.run({name: torch.from_numpy(v[i : i + 1]) for name, v in feeds.items()}) for i in (0, 1)]
    return [torch.cat(parts) for parts in zip(*halves, strict=True)]


def grouped(b: Build, x: str) -> str:
    """A channel shuffle that holds the batch in its first axis, as exporters write it for one image."""
    y = b.node("Transpose", b.node("Reshape", x, b.ints(3, 2, 90)), perm=[1, 0, 2])
    first, second = (
        b.node("Gather", b.node("Reshape", y, b.ints(2, -1, 3, 9, 10)), b.const(np.int64(i))) for i in (0, 1)
    )
    return b.node("Concat", first, second, axis=1)


@pytest.mark.parametrize(
    "make",
    [
        op("Reshape", [1, 540]),
        op("Reshape", [1, 6, -1]),
        op("Reshape", [1, 2, 3, 90]),
        grouped,
        lambda b, x: b.node("Expand", b.node("GlobalAveragePool", x), b.ints(1, 6, 4, 4)),
        lambda b, x: b.node("Mul", b.node("Reshape", x, b.ints(1, -1)), b.weight(1, 540)),
    ],
)
def test_a_file_for_one_image_runs_with_more(make: Make) -> None:
    b = made(make, 18, (1, 3, 9, 10))
    twin = to_torch(b.model())
    feeds = b.feed(batch=2)
    with torch.no_grad():
        for joined, apart in zip(twin.run(as_torch(feeds)), separately(twin, feeds), strict=True):
            assert joined.shape == apart.shape
            assert torch.allclose(joined, apart, atol=1e-5)


def test_shape_arithmetic_follows_the_batch_and_the_size() -> None:
    def flat(b: Build, x: str) -> str:
        shape = b.node("Shape", x)
        batch = b.node("Gather", shape, b.const(np.array([0])), axis=0)
        return b.node("Reshape", x, b.node("Concat", batch, b.ints(-1), axis=0))

    b = made(flat, 18, (1, 3, 8, 8), dynamic="N")
    model = b.model()
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_param = "size"
    twin = to_torch(model)
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 3, 5, 7)).astype(np.float32)}
    assert disagreement(model, twin, feeds) <= 1e-6
    assert twin(torch.from_numpy(feeds["x"])).shape == (3, 210)


def test_the_order_of_inputs_and_outputs_is_the_graphs() -> None:
    b = Build()
    left, right = b.input("left"), b.input("right")
    b.output(b.node("Sub", b.conv(left, 3, 4, name="a"), b.conv(right, 3, 4, name="b")), "b", "a")
    model = b.model()
    feeds = as_torch(b.feed())
    twin = to_torch(model)
    assert twin.input_names == ("left", "right")
    assert twin.output_names == ("sub_1", "b", "a")
    difference_of, second, first = twin(feeds["left"], feeds["right"])
    assert torch.equal(difference_of, first - second)
    with pytest.raises(ValueError, match="argument"):
        twin(feeds["left"])


# --- what is trained, and under which name ------------------------------------------------------------------------------


def test_names_of_constants_can_be_read_back() -> None:
    for name in ("layer1.0.weight", "a%2Eb", "a/b:0", "training", "forward", "ä.ö", "%"):
        b = Build()
        x = b.node("Conv", b.input(), b.weight(4, 3, 3, 3, name=name))
        b.output(x)
        twin = to_torch(b.model())
        ((attribute, value),) = twin.named_parameters()
        assert decoded(attribute) == name
        assert twin.weights() == {name: value}
        assert attribute == encoded(name) or hasattr(torch.nn.Module(), name)


def trained_in(b: Build) -> set[str]:
    return set(to_torch(b.model()).weights())


def test_biases_and_folded_norms_are_trained_and_input_normalisation_is_not() -> None:
    b = Build()
    x = b.node("Mul", b.node("Sub", b.input(), b.weight(1, 3, 1, 1, name="mean")), b.const(floats(2.0), "gain"))
    x = b.node("Conv", x, b.weight(6, 3, 3, 3, name="kernel"))
    x = b.node("Add", b.node("Mul", x, b.weight(6, 1, 1, name="scale")), b.weight(1, 6, 1, 1, name="shift"))
    x = b.node("Mul", b.node("Transpose", b.node("Relu", x), perm=[0, 2, 3, 1]), b.weight(6, name="last"))
    x = b.node("Add", x, b.weight(6, 6, 6, name="table"))
    x = b.node("Mul", b.node("Reshape", x, b.ints(0, -1, 4)), b.weight(1, 54, 1, name="anchors"))
    b.output(b.node("Add", b.node("MatMul", x, b.weight(4, 5, name="matrix")), b.weight(5, name="bias")))
    assert trained_in(b) == {"kernel", "scale", "shift", "last", "matrix", "bias"}
    check(b.model(), b.feed())


def test_a_shared_weight_is_one_parameter() -> None:
    b = Build()
    x, weight = b.input(), b.weight(3, 3, 3, 3, name="shared")
    once = b.node("Conv", x, weight, pads=[1, 1, 1, 1])
    b.output(b.node("Conv", once, b.node("Identity", weight), pads=[1, 1, 1, 1]))
    assert trained_in(b) == {"shared"}
    check(b.model(), b.feed())


def behind(op_type: str) -> Build:
    """A convolution whose weight reaches it through another operator, and a fully connected layer likewise."""
    b = Build(21)
    x, flat = b.input(), b.values(4, 27)
    if op_type == "Constant":
        weight = b.const(flat.reshape(4, 3, 3, 3), "stored", node=True)
    elif op_type == "Transpose":
        weight = b.node(
            "Transpose", b.const(flat.reshape(4, 3, 3, 3).transpose(2, 3, 1, 0), "stored"), perm=[3, 2, 0, 1]
        )
    elif op_type == "Reshape":
        weight = b.node("Reshape", b.const(flat, "stored"), b.ints(4, 3, 3, 3))
    elif op_type == "Cast":
        weight = b.node("Cast", b.const(flat.reshape(4, 3, 3, 3).astype(np.float16), "stored"), to=TensorProto.FLOAT)
    elif op_type == "norm":  # weight norm: a direction and a length
        v = b.const(flat.reshape(4, 3, 3, 3), "stored")
        weight = b.node(
            "Mul", b.node("Div", v, b.node("ReduceL2", v, b.ints(1, 2, 3))), b.weight(4, 1, 1, 1, name="length")
        )
    elif op_type == "QuantizeLinear":
        scale, zero = b.const(np.float32(0.02)), b.const(np.int8(3))
        q = b.node("QuantizeLinear", b.const(flat.reshape(4, 3, 3, 3), "stored"), scale, zero)
        weight = b.node("DequantizeLinear", q, scale, zero)
    else:
        kind = {"per tensor": np.uint8, "per channel": np.int8, "blocks": np.int8, "int4": "int4"}[op_type]
        steps = b.rng.integers(0, 7 if kind == "int4" else 100, (4, 3, 3, 3))
        scales = {"per tensor": (), "per channel": (4,), "blocks": (2, 3, 3, 3), "int4": (4,)}[op_type]
        stored = (
            onnx.helper.make_tensor("stored", TensorProto.INT4, steps.shape, steps.ravel()) if kind == "int4" else None
        )
        if stored is None:
            b.const(steps.astype(kind), "stored")
        else:
            b.initializers.append(stored)
        operands = [b.const((b.rng.random(scales) * 0.01 + 0.01).astype(np.float32))]
        operands += [] if op_type in ("blocks", "int4") else [b.const(np.full(scales, 2, kind))]
        extra = {"block_size": 2} if op_type == "blocks" else {}
        weight = b.node("DequantizeLinear", "stored", *operands, axis=0, **extra)
    b.output(b.node("Conv", x, weight))
    return b


WAYS = (
    "Constant",
    "Transpose",
    "Reshape",
    "Cast",
    "norm",
    "QuantizeLinear",
    "per tensor",
    "per channel",
    "blocks",
    "int4",
)


@pytest.mark.parametrize("way", WAYS)
def test_the_constant_behind_a_weight_is_trained_and_written_back(way: str) -> None:
    b = behind(way)
    model = b.model()
    before = model.SerializeToString()
    check(model, b.feed())
    twin = to_torch(model)
    assert "stored" in twin.weights()
    assert from_torch(twin, model).SerializeToString() == before
    with torch.no_grad():
        for value in twin.weights().values():
            value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(1)) * value.std())
    written = from_torch(twin, model)
    assert model.SerializeToString() == before
    assert graphs.check(written) is None
    kinds = [t.data_type for m in (model, written) for t in [graphs.Graph(m).tensors["stored"]]]
    assert kinds[0] == kinds[1]
    assert not np.array_equal(tensor(model, "stored"), tensor(written, "stored"))
    assert disagreement(written, twin, b.feed()) <= (1e-3 if way == "Cast" else 1e-5)
    assert disagreement(written, to_torch(written), b.feed()) <= 1e-5


@pytest.mark.parametrize("name", ["value_float", "value_floats"])
def test_constants_that_are_lists_are_written_back(name: str) -> None:
    b = Build()
    x = b.conv(b.input(), 3, 4, name="first")
    value = [0.25, -0.5, 0.75, 1.0] if name == "value_floats" else 0.5
    b.nodes.append(helper.make_node("Constant", [], ["slope"], **{name: value}))
    slope = b.node("Reshape", "slope", b.ints(4, 1, 1)) if name == "value_floats" else "slope"
    b.output(b.node("PRelu", x, slope))
    model = b.model()
    twin = to_torch(model)
    assert from_torch(twin, model) == model
    with torch.no_grad():
        twin.weights()["slope"].add_(1.0)
    written = from_torch(twin, model)
    assert helper.get_attribute_value(node_of(written, "slope").attribute[0]) == (np.array(value) + 1).tolist()
    assert disagreement(written, twin, b.feed()) <= 1e-6


def test_what_is_written_leaves_everything_else_alone() -> None:
    b = two_convs()
    model = b.model()
    model.graph.initializer[0].doc_string = "the first weight"
    entry = model.metadata_props.add()
    entry.key, entry.value = "author", "someone"
    values = tensor(model, "second.weight")
    model.graph.initializer[2].ClearField("raw_data")
    model.graph.initializer[2].float_data.extend(values.ravel().tolist())
    twin = to_torch(model)
    assert from_torch(twin, model).SerializeToString() == model.SerializeToString()
    with torch.no_grad():
        twin.weights()["first.weight"].mul_(2.0)
    written = from_torch(twin, model)
    assert np.array_equal(tensor(written, "first.weight"), 2 * tensor(model, "first.weight"))
    expected = onnx.ModelProto()
    expected.CopyFrom(model)
    expected.graph.initializer[0].raw_data = (2 * tensor(model, "first.weight")).tobytes()
    assert written.SerializeToString() == expected.SerializeToString()


def test_weights_go_into_their_own_model_only() -> None:
    twin = to_torch(two_convs(channels=12).model())
    with pytest.raises(ModelError, match=r"'first\.bias' has the shape \(12,\) in the module and \(8,\)"):
        from_torch(twin, two_convs(channels=8).model())


def test_half_precision_is_trained_in_float32() -> None:
    b = Build()
    x = b.node("Cast", b.input(kind=np.float16), to=TensorProto.FLOAT16)
    x = b.node("Conv", x, b.const(b.values(4, 3, 3, 3).astype(np.float16), "weight"))
    b.output(b.node("Cast", x, to=TensorProto.FLOAT))
    model = b.model()
    twin = to_torch(model)
    assert twin.weights()["weight"].dtype == torch.float32
    check(model, b.feed(), 1e-3)
    assert from_torch(twin, model).SerializeToString() == model.SerializeToString()


def test_rounding_passes_gradients_straight_through_and_cut_off_values_get_none() -> None:
    b = Build()
    x = b.input(shape=(1, 4))
    x = b.node("MatMul", x, b.const(np.eye(4, dtype=np.float32), "eye"))
    operands = [b.const(np.float32(0.1)), b.const(np.int8(0))]
    b.output(b.node("DequantizeLinear", b.node("QuantizeLinear", x, *operands), *operands))
    twin = to_torch(b.model())
    value = torch.tensor([[0.33, -20.0, 20.0, 0.0]], requires_grad=True)
    result = twin(value)
    assert torch.allclose(result, torch.tensor([[0.3, -12.8, 12.7, 0.0]]))
    result.sum().backward()
    assert torch.equal(value.grad, torch.tensor([[1.0, 0.0, 0.0, 1.0]]))


# --- running statistics ------------------------------------------------------------------------------------------------


def normed() -> Build:
    b = Build()
    b.output(b.node("Relu", b.batch_norm(b.conv(b.input(dynamic="N"), 3, 6, name="first"), 6, name="bn")))
    return b


def test_norms_are_frozen_until_they_are_told_to_learn() -> None:
    b = normed()
    model = b.model()
    twin = to_torch(model).train()
    assert set(twin.statistics()) == {"bn.mean", "bn.var"}
    assert disagreement(model, twin, b.feed(batch=4)) <= 1e-6
    assert from_torch(twin, model).SerializeToString() == model.SerializeToString()


def test_learned_statistics_are_written_back() -> None:
    b = normed()
    model = b.model()
    twin = to_torch(model).train()
    twin.learn_statistics = True
    x = torch.from_numpy(b.feed(batch=4)["x"])
    normal = torch.nn.functional.batch_norm(
        torch.nn.functional.conv2d(x, twin.weights()["first.weight"], twin.weights()["first.bias"], padding=1),
        None, None, twin.weights()["bn.scale"], twin.weights()["bn.shift"], True,
    )  # fmt: skip
    assert torch.allclose(twin(x), normal.relu(), atol=1e-5)
    written = from_torch(twin, model)
    assert not np.array_equal(tensor(model, "bn.mean"), tensor(written, "bn.mean"))
    assert disagreement(written, twin.eval(), b.feed()) <= 1e-6


def test_statistics_over_processes_are_those_of_the_whole_batch() -> None:
    """`share_statistics` with a sum that adds nothing is the same as none."""
    b = normed()
    results = []
    for total in (None, lambda value: value):
        twin = to_torch(b.model()).train()
        twin.learn_statistics = True
        twin.share_statistics(total)
        x = torch.from_numpy(b.feed(batch=4)["x"])
        y = twin(x)
        (gradient,) = torch.autograd.grad(y.square().sum(), [twin.weights()["first.weight"]])
        results.append([y, gradient, *twin.statistics().values()])
    for ours, torchs in zip(*results, strict=True):
        assert torch.allclose(ours, torchs, atol=1e-5, rtol=1e-4)


def test_shared_statistics_stay_as_they_are() -> None:
    b = Build()
    names = [b.weight(6, name=name, positive=True) for name in ("scale", "shift", "mean", "var")]
    x = b.node("BatchNormalization", b.conv(b.input(), 3, 6, name="a"), *names)
    b.output(b.node("BatchNormalization", b.conv(x, 6, 6, name="b"), *names))
    model = b.model()
    twin = to_torch(model).train()
    twin.learn_statistics = True
    twin(torch.from_numpy(b.feed()["x"]))
    assert from_torch(twin, model).SerializeToString() == model.SerializeToString()


# --- parts of a network ------------------------------------------------------------------------------------------------


def test_a_missing_operator_is_named() -> None:
    b = two_convs()
    b.nodes.insert(1, helper.make_node("NonZero", ["first"], ["places"], "where"))
    b.outputs.append(helper.make_tensor_value_info("places", TensorProto.INT64, [None, None]))
    with pytest.raises(ModelError, match=r"no PyTorch twin for the operator NonZero \(node where\)"):
        to_torch(b.model())


def test_a_wrong_name_of_a_part_is_refused() -> None:
    with pytest.raises(ModelError, match="no tensor 'nowhere'"):
        to_torch(two_convs().model(), starts=("nowhere",))


def test_the_part_before_an_unknown_operator_is_trained_where_it_holds_more_weights() -> None:
    b = Build()
    x = b.conv(b.conv(b.input(), 3, 8, name="a"), 8, 8, name="b")
    places = b.node("NonZero", x)
    b.output(
        b.node("Sigmoid", x, out="scores"), b.node("GatherND", x, b.node("Transpose", places), out="picked"), rank=1
    )
    found = find_cut(graphs.Graph(b.model()))
    assert found == Cut(("x",), ("scores", "b"), ("NonZero(nonzero_1) (NonZero)",))
    assert set(to_torch(b.model(), ends=found.ends).weights()) == {"a.weight", "a.bias", "b.weight", "b.bias"}


def test_the_part_behind_an_unknown_operator_is_trained_where_it_holds_more_weights() -> None:
    b = Build()
    lower = b.node("Bernoulli", b.node("Sigmoid", b.conv(b.input(), 3, 4, name="a")), seed=1.0, out="drawn")
    b.output(b.conv(b.node("Relu", b.node("Concat", lower, "x", axis=1)), 7, 8, name="b"))
    model = b.model()
    found = find_cut(graphs.Graph(model))
    assert found == Cut(("drawn", "x"), ("b",), ("Bernoulli(drawn) (Bernoulli)",))
    result = twin_check(model, b.feed())
    assert result.weights == 2
    assert result.difference <= 1e-5


def test_outputs_that_no_gradient_passes_make_way_for_what_they_are_made_of() -> None:
    b = Build()
    x = b.conv(b.input(), 3, 4, name="a")
    b.output(b.node("ArgMax", b.node("Softmax", x, axis=1, out="scores"), axis=1), kind=TensorProto.INT64)
    assert find_cut(graphs.Graph(b.model())).ends == ("scores",)
    check(b.model(), b.feed())


def test_a_network_without_weights_is_refused() -> None:
    b = Build()
    b.output(b.node("Relu", b.input()))
    with pytest.raises(ModelError, match="no constant weight leads to an output"):
        find_cut(graphs.Graph(b.model()))


# --- whole files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fashion_resnet", "fashion_vgg"])
def test_the_bundled_networks(name: str) -> None:
    model = graphs.load(MODELS / f"{name}.onnx")
    feeds = {"image": np.random.default_rng(0).standard_normal((3, 1, 28, 28)).astype(np.float32)}
    found = check(model, feeds)
    assert found.parameters == sum(np.prod(t.dims) for t in model.graph.initializer if t.data_type == 1) - sum(
        value.numel() for value in to_torch(model).statistics().values()
    )
    assert from_torch(to_torch(model), model).SerializeToString() == model.SerializeToString()


def test_functions_of_the_file_are_inlined() -> None:
    b = Build(17)
    x = b.conv(b.input(), 3, 4, name="a")
    b.nodes.append(helper.make_node("Twice", [x], ["double"], domain="local"))
    b.outputs.append(helper.make_tensor_value_info("double", TensorProto.FLOAT, [None] * 4))
    model = b.model()
    model.opset_import.append(helper.make_opsetid("local", 1))
    body = [helper.make_node("Add", ["a", "a"], ["c"])]
    model.functions.append(helper.make_function("local", "Twice", ["a"], ["c"], body, [helper.make_opsetid("", 17)]))
    twin = to_torch(model)
    assert disagreement(model, twin, b.feed()) <= 1e-6
    assert not from_torch(twin, model).functions


def test_a_difference_in_shape_or_in_what_is_finite_is_infinite() -> None:
    one = np.ones(3, np.float32)
    assert difference([one], [one[:2]]) == float("inf")
    assert difference([one], [np.array([1, np.nan, 1], np.float32)]) == float("inf")
    assert difference([one], [one + np.float32(0.5)]) == pytest.approx(0.5, abs=1e-5)


def test_the_package_does_not_load_torch() -> None:
    code = "import sys, thinet_onnx, thinet_onnx.cli, thinet_onnx.pipeline; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
