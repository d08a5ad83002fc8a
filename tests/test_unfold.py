"""Input rows times weight matrices against what ONNX Runtime computes at the same positions."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import small_models

from thinet_onnx.graph import Graph
from thinet_onnx.rules.linear import convolution_window
from thinet_onnx.unfold import (
    Window,
    columns,
    count_positions,
    rows_at,
    scatter,
    values_at,
    weight_matrix,
    weight_operand,
)  # fmt: skip


@dataclass
class Case:
    """A convolution: shapes of input and weight (as the operator takes it) and attributes."""

    name: str
    x: tuple[int, ...]
    weight: tuple[int, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    op: str = "Conv"

    @property
    def groups(self) -> int:
        return int(self.attributes.get("group", 1))

    @property
    def transposed(self) -> bool:
        return self.op == "ConvTranspose"

    @property
    def outputs(self) -> int:
        return self.weight[1] * self.groups if self.transposed else self.weight[0]


def conv(name: str, x: tuple[int, ...], weight: tuple[int, ...], **attributes: Any) -> Case:
    return Case(name, x, weight, attributes)


def deconv(name: str, x: tuple[int, ...], weight: tuple[int, ...], **attributes: Any) -> Case:
    return Case(f"T-{name}", x, weight, attributes, "ConvTranspose")


CASES = [
    conv("1d", (2, 3, 9), (4, 3, 3)),
    conv("1d-all", (2, 4, 11), (6, 2, 3), strides=[2], dilations=[2], pads=[3, 1], group=2),
    conv("2d", (2, 3, 6, 5), (4, 3, 3, 3)),
    conv("2d-1x1", (2, 3, 4, 5), (4, 3, 1, 1)),
    conv("2d-stride", (2, 3, 7, 8), (4, 3, 3, 3), strides=[2, 3]),
    conv("2d-dilation", (2, 3, 9, 8), (4, 3, 3, 2), dilations=[2, 3]),
    conv("2d-pads", (2, 3, 5, 6), (4, 3, 3, 4), pads=[1, 0, 2, 3]),
    conv("2d-groups", (2, 6, 5, 5), (4, 3, 3, 3), group=2, pads=[1, 1, 1, 1]),
    conv("2d-three-groups", (1, 6, 5, 5), (9, 2, 3, 3), group=3),
    conv("2d-all", (3, 4, 9, 10), (6, 2, 3, 2), group=2, strides=[2, 1], dilations=[1, 2], pads=[0, 1, 1, 2]),
    conv("2d-kernel-as-large", (2, 3, 4, 5), (4, 3, 4, 5)),
    conv("2d-same-upper", (2, 3, 7, 8), (4, 3, 3, 4), auto_pad="SAME_UPPER", strides=[2, 2]),
    conv("2d-same-lower", (2, 3, 7, 8), (4, 3, 3, 4), auto_pad="SAME_LOWER", strides=[2, 2]),
    conv("2d-valid", (2, 3, 7, 8), (4, 3, 3, 3), auto_pad="VALID", strides=[2, 1]),
    conv("3d", (2, 3, 4, 5, 6), (4, 3, 2, 3, 3)),
    conv("3d-all", (1, 4, 7, 6, 5), (4, 2, 3, 2, 3), group=2, strides=[2, 1, 2], pads=[1, 0, 1, 0, 1, 2]),
    deconv("1d", (2, 3, 5), (3, 4, 3)),
    deconv("1d-all", (2, 4, 5), (4, 3, 4), strides=[3], pads=[1, 2], output_padding=[1], group=2),
    deconv("2d", (2, 3, 4, 5), (3, 4, 3, 3)),
    deconv("2d-upsample", (2, 3, 4, 5), (3, 4, 2, 2), strides=[2, 2]),
    deconv("2d-stride", (2, 3, 4, 5), (3, 4, 3, 4), strides=[2, 3]),
    deconv("2d-gaps", (2, 3, 4, 5), (3, 4, 2, 2), strides=[3, 3]),
    deconv("2d-pads", (2, 3, 5, 5), (3, 4, 3, 3), strides=[2, 2], pads=[1, 0, 0, 2]),
    deconv("2d-pads-beyond-the-kernel", (1, 2, 6, 6), (2, 3, 2, 2), strides=[2, 2], pads=[2, 2, 1, 3]),
    deconv("2d-output-padding", (2, 3, 4, 4), (3, 4, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]),
    deconv("2d-one-sided-output-padding", (1, 2, 4, 4), (2, 3, 3, 3), strides=[3, 2], output_padding=[2, 1]),
    deconv("2d-dilation", (2, 3, 5, 4), (3, 4, 3, 2), dilations=[2, 3], strides=[1, 2]),
    deconv("2d-groups", (2, 4, 4, 4), (4, 3, 3, 3), group=2, strides=[2, 2], pads=[1, 1, 1, 1]),
    deconv("2d-depthwise", (2, 4, 4, 4), (4, 1, 3, 3), group=4, strides=[2, 2]),
    deconv("2d-same-upper", (2, 3, 4, 5), (3, 4, 3, 4), auto_pad="SAME_UPPER", strides=[2, 3]),
    deconv("2d-same-lower", (2, 3, 4, 5), (3, 4, 3, 4), auto_pad="SAME_LOWER", strides=[2, 3]),
    deconv("2d-same-odd", (2, 3, 4, 5), (3, 4, 4, 5), auto_pad="SAME_UPPER", strides=[1, 2]),
    deconv("2d-valid", (2, 3, 4, 5), (3, 4, 3, 3), auto_pad="VALID", strides=[2, 2]),
    deconv("2d-output-shape", (2, 3, 4, 5), (3, 4, 3, 4), strides=[2, 2], output_shape=[8, 9]),
    deconv("2d-shape-upper", (2, 3, 4, 5), (3, 4, 4, 4), strides=[2, 2], output_shape=[9, 9], auto_pad="SAME_UPPER"),
    deconv("2d-shape-lower", (2, 3, 4, 5), (3, 4, 4, 4), strides=[2, 2], output_shape=[9, 9], auto_pad="SAME_LOWER"),
    deconv("2d-same-small-kernel", (1, 2, 4, 5), (2, 3, 2, 1), auto_pad="SAME_UPPER", strides=[3, 3]),
    deconv("2d-large-output-shape", (1, 2, 4, 5), (2, 3, 3, 2), strides=[2, 3], output_shape=[10, 16]),
    deconv("3d", (1, 2, 3, 4, 3), (2, 3, 2, 3, 2), strides=[2, 1, 2], pads=[0, 1, 0, 1, 0, 1]),
]  # fmt: skip
CASE = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@dataclass
class Solved:
    """A convolution as ONNX Runtime computes it."""

    x: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    y: np.ndarray
    window: Window
    in_axis: int


def solve(case: Case) -> Solved:
    rng = np.random.default_rng(len(case.name))
    x = rng.standard_normal(case.x).astype(np.float32)
    weight = rng.standard_normal(case.weight).astype(np.float32)
    bias = rng.standard_normal(case.outputs).astype(np.float32)
    net = small_models.Net()
    y = net.node(case.op, net.input("x", case.x), net.tensor(weight), net.tensor(bias), **case.attributes)
    model = net.model(y)
    (answer,) = small_models.run(model, {"x": x})
    (node,) = Graph(model).nodes
    window = convolution_window(node, x.shape, weight.shape, answer.shape)
    return Solved(x, weight, bias, answer, window, 0 if case.transposed else 1)


def apply(rows: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Each group's matrix on its share of the row."""
    shares = np.split(rows, len(matrix), axis=1)
    return np.concatenate([share @ part.T for share, part in zip(shares, matrix, strict=True)], 1)


class TestConvolution:
    @CASE
    def test_rows_and_matrix_give_the_output_at_every_position(self, case: Case) -> None:
        solved = solve(case)
        expected = np.moveaxis(solved.y, 1, -1).reshape(-1, case.outputs)
        picks = np.random.default_rng(1).permutation(len(expected))
        matrix = weight_matrix(solved.weight, solved.in_axis, case.groups, solved.window)
        assert matrix.shape[:2] == (case.groups, case.outputs // case.groups)
        rows = rows_at(solved.x, 1, solved.window, picks)
        assert rows.dtype == np.float32
        np.testing.assert_allclose(apply(rows, matrix) + solved.bias, expected[picks], rtol=1e-4, atol=1e-4)

    @CASE
    def test_positions_are_those_of_the_output(self, case: Case) -> None:
        solved = solve(case)
        assert count_positions(solved.x.shape, 1, solved.window) == solved.y.size // case.outputs

    @CASE
    def test_the_columns_of_a_channel_are_its_own(self, case: Case) -> None:
        """A row is channel-major: what one channel adds comes from its own block of columns alone."""
        solved = solve(case)
        picks = np.arange(0, count_positions(solved.x.shape, 1, solved.window), 3)
        channels = solved.x.shape[1]
        whole = rows_at(solved.x, 1, solved.window, picks)
        taps = whole.shape[1] // channels
        assert taps == np.prod(case.weight[2:])
        for channel in (0, channels - 1):
            silent = solved.x.copy()
            silent[:, channel] = 0
            changed = (rows_at(silent, 1, solved.window, picks) != whole).any(0)
            assert changed.any()
            assert not np.delete(changed, np.s_[channel * taps : (channel + 1) * taps]).any()

    @CASE
    def test_columns_are_the_rows_turned(self, case: Case) -> None:
        solved = solve(case)
        picks = np.arange(count_positions(solved.x.shape, 1, solved.window))
        np.testing.assert_array_equal(columns(solved.x, 1, solved.window), rows_at(solved.x, 1, solved.window, picks).T)

    @CASE
    def test_scatter_is_the_adjoint_of_columns(self, case: Case) -> None:
        """⟨columns(x), r⟩ = ⟨x, scatter(r)⟩ for any r."""
        solved = solve(case)
        seen = columns(solved.x, 1, solved.window)
        r = np.random.default_rng(7).standard_normal(seen.shape).astype(np.float32)
        back = scatter(r, solved.x.shape, 1, solved.window)
        assert back.shape == solved.x.shape
        assert np.vdot(seen, r) == pytest.approx(np.vdot(solved.x, back), rel=1e-3, abs=1e-2)

    @CASE
    @pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
    def test_the_operand_comes_back(self, case: Case, dtype: type) -> None:
        solved = solve(case)
        operand = solved.weight.astype(dtype)
        matrix = weight_matrix(operand, solved.in_axis, case.groups, solved.window)
        assert matrix.dtype == np.float32
        back = weight_operand(matrix.astype(np.float64), operand, solved.in_axis, case.groups, solved.window)
        assert back.dtype == dtype
        assert back.flags.c_contiguous
        np.testing.assert_array_equal(back, operand.astype(np.float32).astype(dtype))

    def test_values_at_takes_the_same_positions(self) -> None:
        y = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
        picks = np.array([0, 21, 39, 7])
        expected = [y[n, :, h, w] for n, h, w in ((0, 0, 0), (1, 0, 1), (1, 3, 4), (0, 1, 2))]
        np.testing.assert_array_equal(values_at(y, 1, picks), expected)
        np.testing.assert_array_equal(values_at(np.moveaxis(y, 1, -1), 3, picks), expected)


@dataclass
class Matrix:
    """A matrix product: shapes of the input and the constant, and which axes are contracted and written."""

    name: str
    op: str
    x: tuple[int, ...]
    weight: tuple[int, ...]
    x_axis: int
    y_axis: int
    in_axis: int
    attributes: dict[str, Any] = field(default_factory=dict)
    weight_first: bool = False


MATRICES = [
    Matrix("gemm", "Gemm", (7, 5), (5, 4), 1, 1, 0),
    Matrix("gemm-transB", "Gemm", (7, 5), (4, 5), 1, 1, 1, {"transB": 1}),
    Matrix("gemm-transA", "Gemm", (5, 7), (5, 4), 0, 1, 0, {"transA": 1}),
    Matrix("gemm-both", "Gemm", (5, 7), (4, 5), 0, 1, 1, {"transA": 1, "transB": 1}),
    Matrix("gemm-square", "Gemm", (7, 5), (5, 5), 1, 1, 0),
    Matrix("matmul", "MatMul", (7, 5), (5, 4), 1, 1, 0),
    Matrix("matmul-3d", "MatMul", (2, 7, 5), (5, 4), 2, 2, 0),
    Matrix("matmul-4d", "MatMul", (2, 3, 4, 5), (5, 6), 3, 3, 0),
    Matrix("matmul-left", "MatMul", (2, 5, 7), (4, 5), 1, 1, 1, weight_first=True),
]


@pytest.mark.parametrize("case", MATRICES, ids=lambda case: case.name)
def test_a_matrix_product(case: Matrix) -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal(case.x).astype(np.float32)
    weight = rng.standard_normal(case.weight).astype(np.float32)
    net = small_models.Net()
    operands = [net.input("x", case.x), net.tensor(weight)]
    (y,) = small_models.run(
        net.model(net.node(case.op, *operands[:: -1 if case.weight_first else 1], **case.attributes)), {"x": x}
    )
    outputs = weight.size // case.weight[case.in_axis]
    expected = np.moveaxis(y, case.y_axis, -1).reshape(-1, outputs)
    window = Window()
    assert count_positions(x.shape, case.x_axis, window) == len(expected)
    picks = rng.permutation(len(expected))[:6]
    matrix = weight_matrix(weight, case.in_axis, 1, window)
    rows = rows_at(x, case.x_axis, window, picks)
    np.testing.assert_allclose(apply(rows, matrix), expected[picks], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(values_at(y, case.y_axis, picks), expected[picks])
    back = weight_operand(matrix, weight, case.in_axis, 1, window)
    np.testing.assert_array_equal(back, weight)
    assert back.flags.c_contiguous
    seen = columns(x, case.x_axis, window)
    np.testing.assert_array_equal(seen, rows_at(x, case.x_axis, window, np.arange(len(expected))).T)
    np.testing.assert_array_equal(scatter(seen, x.shape, case.x_axis, window), x)


def test_half_precision_inputs_become_single_precision_rows() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 5)).astype(np.float16)
    window = Window((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))
    picks = np.arange(0, 50, 7)
    rows = rows_at(x, 1, window, picks)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, rows_at(x.astype(np.float32), 1, window, picks))
    assert rows_at(x[:, :, 0, 0], 1, Window(), picks[:1]).dtype == np.float32


def test_the_full_unfolding_never_exists() -> None:
    """A few rows of a large input cost no more memory than its padded copy and the rows."""
    import tracemalloc  # noqa: PLC0415

    x = np.zeros((4, 64, 64, 64), np.float32)  # 4 MiB; unfolded by 3×3 it would take 36
    window = Window((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))
    tracemalloc.start()
    rows_at(x, 1, window, np.arange(10))
    count_positions(x.shape, 1, window)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * x.nbytes
