"""Gauss–Newton on two layers at once: the linearised network is the derivative, and steps find what can be found."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import small_models

from thinet_onnx.crew import crew
from thinet_onnx.graph import Graph
from thinet_onnx.joint import Joint, Rows, Shape, Weights, _Sums
from thinet_onnx.rules.linear import convolution_window
from thinet_onnx.unfold import Window, weight_matrix

Array = np.ndarray[Any, Any]


@dataclass
class Layer:
    """One layer of a case: operator, weight as the operator takes it, attributes."""

    op: str
    weight: tuple[int, ...]
    attributes: dict[str, Any]


def conv(*weight: int, **attributes: Any) -> Layer:
    return Layer("Conv", weight, attributes)


CASES = {
    "3x3-3x3": ((2, 3, 6, 7), conv(4, 3, 3, 3, pads=[1, 1, 1, 1]), conv(5, 4, 3, 3)),
    "strided": ((2, 3, 9, 8), conv(4, 3, 3, 3, strides=[2, 2], pads=[1, 0, 1, 0]), conv(2, 4, 2, 2, dilations=[2, 1])),
    "1d": ((2, 3, 9), conv(4, 3, 3), conv(2, 4, 3, strides=[2])),
    "depthwise-1x1": ((2, 4, 6, 6), conv(4, 1, 3, 3, group=4, pads=[1, 1, 1, 1]), conv(3, 4, 1, 1)),
    "transposed-3x3": ((2, 3, 4, 4), Layer("ConvTranspose", (3, 4, 2, 2), {"strides": [2, 2]}), conv(3, 4, 3, 3)),
    "1x1-transposed": ((2, 3, 4, 4), conv(4, 3, 1, 1), Layer("ConvTranspose", (4, 2, 3, 3), {"strides": [2, 2]})),
    "connected": ((6, 5), Layer("Gemm", (7, 5), {"transB": 1}), Layer("Gemm", (3, 7), {"transB": 1})),
}  # fmt: skip
ACTIVATIONS = {
    "tanh": np.tanh,
    "relu": lambda z: np.maximum(z, 0),
    "silu": lambda z: z / (1 + np.exp(-z)),
}


@dataclass
class Case:
    """A pair of layers as a problem, its weights, rows with random targets, and a model that computes the same."""

    problem: Joint
    weights: Weights
    rows: list[Rows]


def make(name: str, activation: str = "tanh", biases: tuple[bool, bool] = (True, True)) -> Case:
    shape, *layers = CASES[name]
    rng = np.random.default_rng(len(name))
    x = rng.standard_normal(shape).astype(np.float32)
    value, shapes, parts = x, [], []
    for layer in layers:
        weight = (rng.standard_normal(layer.weight) / np.sqrt(np.prod(layer.weight[1:]))).astype(np.float32)
        transposed = layer.op == "ConvTranspose"
        outputs = layer.weight[1] if transposed else layer.weight[0]
        bias = rng.standard_normal(outputs).astype(np.float32)
        net = small_models.Net()
        y = net.node(layer.op, net.input("x", value.shape), net.tensor(weight), net.tensor(bias), **layer.attributes)
        model = net.model(y)
        (answer,) = small_models.run(model, {"x": value})
        (node,) = Graph(model).nodes
        window = Window() if layer.op == "Gemm" else convolution_window(node, value.shape, weight.shape, answer.shape)
        groups = int(layer.attributes.get("group", 1))
        shapes.append(Shape(window, 1, 1, groups))
        parts += [weight_matrix(weight, 0 if transposed else 1, groups, window), bias]
        value = ACTIVATIONS[activation](answer) if layer is layers[0] else answer
    scale = rng.uniform(0.5, 2.0, value.shape[1])
    problem = Joint(shapes[0], shapes[1], ACTIVATIONS[activation], scale, biases)
    truth = np.moveaxis(value, 1, 0).reshape(value.shape[1], -1)
    return Case(problem, Weights(*parts), [Rows(x, truth)])


def some_step(weights: Weights, seed: int = 1) -> Weights:
    rng = np.random.default_rng(seed)
    return Weights(*(rng.standard_normal(part.shape).astype(np.float32) for part in weights.all()))


@pytest.mark.parametrize("name", CASES)
def test_the_two_layers_answer_as_onnx_runtime_does(name: str) -> None:
    case = make(name)
    assert case.problem.error(case.weights, case.rows) < 1e-9


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", CASES)
def test_a_push_is_the_derivative(name: str, activation: str) -> None:
    case = make(name, activation)
    step, small = some_step(case.weights), 1e-3
    seen = case.problem._see(case.weights, case.rows[0])
    pushed = case.problem._push(case.weights, seen, step)
    there, back = (case.problem._see(case.weights.plus(step, s), case.rows[0]).residual for s in (small, -small))
    difference = (there - back) / (2 * small)
    assert np.linalg.norm(pushed - difference) < 0.02 * np.linalg.norm(difference)


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_the_adjoint_of_the_push(name: str) -> None:
    case = make(name)
    step = some_step(case.weights)
    seen = case.problem._see(case.weights, case.rows[0])
    pushed = case.problem._push(case.weights, seen, step)
    r = np.random.default_rng(2).standard_normal(pushed.shape).astype(np.float32)
    sums = _Sums(case.weights)
    sums.add(case.problem._gradient(case.weights, seen, r))
    gradient = case.problem._mean(sums, 1.0)
    assert float(np.vdot(pushed, r)) / pushed.shape[1] == pytest.approx(step.dot(gradient), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_steps_find_the_weights_that_made_the_targets(name: str) -> None:
    case = make(name)
    weights = case.weights.plus(some_step(case.weights), 0.1)
    before = case.problem.error(weights, case.rows)
    for _ in range(8):
        weights = weights.plus(case.problem.step(weights, case.rows, 1e-6, 30))
    assert case.problem.error(weights, case.rows) < 1e-3 * before


def test_one_step_on_a_linear_pair_fits_the_second_layer_at_least_as_well_as_least_squares() -> None:
    case = make("3x3-3x3", "relu")
    rng = np.random.default_rng(5)
    rows = [Rows(case.rows[0].x, rng.standard_normal(case.rows[0].target.shape).astype(np.float32))]
    unit = Joint(case.problem.first, case.problem.second, ACTIVATIONS["relu"], np.ones(5), (True, True))
    hidden, _ = unit._hidden(case.weights, rows[0].x)
    seen = unit._unfold(np.maximum(hidden, 0))[0]
    design = np.vstack([seen, np.ones(seen.shape[1])]).T.astype(np.float64)
    answer = design @ np.linalg.lstsq(design, rows[0].target.T.astype(np.float64), rcond=None)[0]
    least = float(np.square(answer - rows[0].target.T).sum() / len(design))
    weights = case.weights
    for _ in range(10):
        step = unit.step(weights, rows, 1e-3, 40)
        length = min((1.0, 0.3, 0.1, 0.0), key=lambda s, w=weights, d=step: unit.error(w.plus(d, s), rows))  # type: ignore[misc]
        weights = weights.plus(step, length)
    assert unit.error(weights, rows) < least


@pytest.mark.parametrize("biases", [(True, False), (False, True), (False, False)])
def test_a_bias_that_may_not_change_stays(biases: tuple[bool, bool]) -> None:
    case = make("3x3-3x3", biases=biases)
    step = case.problem.step(case.weights.plus(some_step(case.weights), 0.1), case.rows, 1e-3, 5)
    assert (step.first_bias.any(), step.second_bias.any()) == biases
    assert step.first.any()
    assert step.second.any()


def test_a_dead_channel_is_no_trouble() -> None:
    case = make("3x3-3x3", "relu")
    case.weights.first[0, 0] = 0
    case.weights.first_bias[0] = -1
    step = case.problem.step(case.weights, case.rows, 1e-2, 5)
    assert all(np.isfinite(part).all() for part in step.all())


def test_turns_share_the_curvature_and_all_rows_make_the_gradient() -> None:
    case = make("3x3-3x3", "relu")
    weights = case.weights.plus(some_step(case.weights), 0.1)
    (rows,) = case.rows
    half, places = len(rows.x) // 2, rows.target.shape[1] // 2
    first, second = Rows(rows.x[:half], rows.target[:, :places], 0), Rows(rows.x[half:], rows.target[:, places:], 1)
    before = case.problem.error(weights, case.rows)
    for turn in range(12):
        step = case.problem.step(weights, [first, second], 0.3, 10, turn, 2)
        lengths = (1.0, 0.3, 0.1, 0.0)
        length = min(lengths, key=lambda s, w=weights, d=step: case.problem.error(w.plus(d, s), case.rows))  # type: ignore[misc]
        weights = weights.plus(step, length)
    assert case.problem.error(weights, case.rows) < 0.05 * before
    # with the same curvature, rows whose targets are met already change the step through the mean alone
    met = Rows(first.x, case.problem._second(weights.second, case.problem._unfold(
        ACTIVATIONS["relu"](case.problem._hidden(weights, first.x)[0]))) + weights.second_bias[:, None], 1)  # fmt: skip
    alone = case.problem.step(weights, [second], 0.1, 5)
    diluted = case.problem.step(weights, [met, Rows(second.x, second.target, 0)], 0.1, 5, 0, 2)
    share = second.target.shape[1] / (second.target.shape[1] + met.target.shape[1])
    for one, other in zip(alone.all(), diluted.all(), strict=True):
        np.testing.assert_allclose(other, share * one, rtol=1e-2, atol=1e-4 * float(np.abs(one).max()))


@pytest.mark.parametrize("name", ["3x3-3x3", "depthwise-1x1", "transposed-3x3", "connected"])
@pytest.mark.parametrize("free", [True, False])
def test_statistics_are_those_of_what_the_second_layer_reads(name: str, free: bool) -> None:
    case = make(name, biases=(True, free))
    half = len(case.rows[0].x) // 2
    positions = case.rows[0].target.shape[1] // len(case.rows[0].x)
    parts = [
        Rows(
            case.rows[0].x[some], case.rows[0].target[:, slice(*(n and n * positions for n in (some.start, some.stop)))]
        )
        for some in (slice(0, half), slice(half, None))
    ]
    found = case.problem.statistics(case.weights, parts)
    hidden, _ = case.problem._hidden(case.weights, case.rows[0].x)
    rows = case.problem._unfold(case.problem.activation(hidden))[0].T.astype(np.float64)
    targets = case.rows[0].target.T - (0 if free else case.weights.second_bias)
    less_u, less_t = (rows.mean(0), targets.mean(0)) if free else (0, 0)
    np.testing.assert_allclose(found.h, (rows - less_u).T @ (rows - less_u) / len(rows), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.p, (targets - less_t).T @ (rows - less_u) / len(rows), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.energy, np.square(targets - less_t).mean(0), rtol=1e-4)
    np.testing.assert_allclose(found.u, rows.mean(0), rtol=1e-4, atol=1e-6)


def test_the_same_step_on_one_thread_and_by_a_crew() -> None:
    case = make("3x3-3x3")
    rows = [Rows(case.rows[0].x + 0.1 * number, case.rows[0].target, number) for number in range(9)]
    alone = case.problem.step(case.weights, rows, 0.1, 5, 0, 2)
    with crew() as each:
        case.problem.each = each
        together = case.problem.step(case.weights, rows, 0.1, 5, 0, 2)
    for one, other in zip(alone.all(), together.all(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
