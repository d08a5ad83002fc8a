"""Widths within a budget: exact costs, the limit held, and how near the greedy choice comes to the best there is."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import small_models
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import Net

from thinet_onnx import budget, runtime, surgery
from thinet_onnx.budget import Curve
from thinet_onnx.cost import Cost, Term
from thinet_onnx.errors import TargetError
from thinet_onnx.graph import Graph
from thinet_onnx.groups import Analysis, analyse, make_plan

MODELS = Path(__file__).parent.parent / "models"


class TestWidths:
    @pytest.mark.parametrize(
        ("size", "step"), [(1, 1), (15, 1), (16, 2), (31, 2), (32, 4), (63, 4), (64, 8), (100, 8), (2048, 8)]
    )
    def test_default_step(self, size: int, step: int) -> None:
        assert budget.default_step(size) == step

    @pytest.mark.parametrize(
        ("size", "floor", "step", "expected"),
        [
            (64, 1, 8, [8, 16, 24, 32, 40, 48, 56, 64]),
            (20, 1, 8, [8, 16, 20]),
            (5, 1, 1, [1, 2, 3, 4, 5]),
            (5, 0, 1, [0, 1, 2, 3, 4, 5]),
            (20, 0, 8, [0, 8, 16, 20]),
            (12, 1, 8, [6, 8, 12]),
            (8, 1, 8, [4, 8]),
            (3, 1, 8, [2, 3]),
            (32, 10, 4, [10, 12, 16, 20, 24, 28, 32]),
            (2, 1, 1, [1, 2]),
            (1, 1, 1, [1]),
        ],
    )
    def test_widths(self, size: int, floor: int, step: int, expected: list[int]) -> None:
        assert budget.widths(size, floor, step) == expected

    @settings(deadline=None)
    @given(st.integers(1, 300), st.integers(0, 5), st.integers(1, 40))
    def test_widths_are_ascending_and_within_bounds(self, size: int, floor: int, step: int) -> None:
        floor = min(floor, size)
        found = budget.widths(size, floor, step)
        assert found == sorted(set(found))
        assert found[-1] == size
        assert found[0] >= floor
        assert (found[0] == 0) == (floor == 0)
        assert all(width % step == 0 for width in found[1 + (floor == 0) : -1])


class TestUniform:
    def test_takes_the_nearest_width_and_the_narrower_of_two(self) -> None:
        choices = [list(range(8, 65, 8)), [2, 4, 6, 8], [5], [2, 4, 6, 12]]
        assert budget.uniform([64, 8, 5, 12], choices, 0.5) == [32, 4, 5, 6]
        assert budget.uniform([64, 8, 5, 12], choices, 0.7) == [48, 6, 5, 6]
        assert budget.uniform([20], [[8, 12, 20]], 0.5) == [8]

    @settings(deadline=None)
    @given(st.floats(0.01, 0.99), st.integers(1, 64))
    def test_nothing_allowed_is_nearer(self, keep: float, size: int) -> None:
        options = budget.widths(size, 1, budget.default_step(size))
        (width,) = budget.uniform([size], [options], keep)
        assert all(abs(width - keep * size) <= abs(other - keep * size) for other in options)


class TestCost:
    def test_terms_are_products_of_kept_channels(self) -> None:
        """3→g0 at 100 positions of 9 taps, (g0 and 2 fixed)→g1 at 25, a depthwise one over both, 4·g1 columns→10."""
        cost = Cost(
            [
                Term(900.0, ((3, ()), (0, ((0, 1),)))),
                Term(225.0, ((2, ((0, 1),)), (0, ((1, 1),)))),
                Term(90.0, ((0, ((0, 1), (1, 1))),)),
                Term(1.0, ((0, ((1, 4),)), (10, ()))),
                Term(7.0, ()),
            ],
            2,
        )
        for a, b in itertools.product(range(1, 6), range(1, 7)):
            assert cost.total([a, b]) == 900 * 3 * a + 225 * (2 + a) * b + 90 * (a + b) + 40 * b + 7

    @settings(max_examples=50, deadline=None)
    @given(st.data())
    def test_saving_is_the_difference_of_totals(self, data: st.DataObject) -> None:
        sizes, cost, _ = instance(data.draw(st.integers(0, 10_000)))
        kept = [data.draw(st.integers(1, size)) for size in sizes]
        group = data.draw(st.integers(0, len(sizes) - 1))
        width = data.draw(st.integers(1, sizes[group]))
        other = [*kept[:group], width, *kept[group + 1 :]]
        assert cost.saving(kept, group, width) == cost.total(kept) - cost.total(other)


def varied() -> onnx.ModelProto:
    """Grouped, depthwise and transposed convolutions, BatchNorm, Concat, a 3-D MatMul and a flattened Gemm."""
    net = Net(1)
    x = net.relu(net.conv(net.input("x", ("N", 3, 8, 8)), 3, 12, strides=[2, 2]))
    x = net.relu(net.conv(x, 12, 12, group=3))
    x = net.relu(net.conv(x, 12, 12, group=12))
    left = net.conv(x, 12, 8, kernel=1)
    right = net.node("ConvTranspose", x, net.weight(12, 6, 2, 2), strides=[2, 2])
    right = net.node("MaxPool", right, kernel_shape=[2, 2], strides=[2, 2])
    stats = [net.tensor(np.abs(net.rng.standard_normal(8)).astype(np.float32) + 0.5) for _ in range(4)]
    both = net.node("Concat", net.node("BatchNormalization", left, *stats), right, axis=1)
    tokens = net.node("Transpose", net.node("Reshape", both, net.tensor([0, 14, 16])), perm=[0, 2, 1])
    tokens = net.node("MatMul", net.relu(net.node("MatMul", tokens, net.weight(14, 10))), net.weight(10, 4))
    return net.model(net.gemm(net.node("Flatten", tokens), 64, 5))


def read(model: onnx.ModelProto, shape: Sequence[int]) -> tuple[Analysis, dict[str, np.ndarray]]:
    feeds = {model.graph.input[0].name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    graph = Graph(model)
    return analyse(graph, runtime.observed_shapes(graph, feeds)), feeds


def count(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> tuple[int, int]:
    """MACs of one input and parameters, by the shapes that the file and a run of it show."""
    weights = small_models.initializers(model)
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")]
    names = [name for node in layers for name in (node.input[0], node.output[0])]
    tensors = small_models.run_for(model, names, feeds)
    batch = next(iter(feeds.values())).shape[0]
    macs = 0
    for node in layers:
        weight = weights[node.input[1]]
        seen = tensors[node.input[0] if node.op_type == "ConvTranspose" else node.output[0]]
        channels_last = node.op_type in ("Gemm", "MatMul")
        macs += weight.size * seen.size // seen.shape[-1 if channels_last else 1] // batch
    return macs, sum(value.size for value in weights.values() if value.dtype.kind == "f")


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (varied(), (2, 3, 8, 8)),
        (small_models.residual(), (1, 3, 8, 8)),
        (MODELS / "fashion_resnet.onnx", (2, 1, 28, 28)),
        (MODELS / "fashion_vgg.onnx", (1, 1, 28, 28)),
    ],
    ids=["varied", "residual", "fashion_resnet", "fashion_vgg"],
)
def test_costs_are_those_of_the_file_that_is_cut(model: onnx.ModelProto | Path, shape: tuple[int, ...]) -> None:
    proto = onnx.load(str(model)) if isinstance(model, Path) else model
    analysis, feeds = read(proto, shape)
    assert (analysis.macs.total(analysis.sizes), analysis.params.total(analysis.sizes)) == count(proto, feeds)
    rng = np.random.default_rng(1)
    for _ in range(3):
        widths = [int(rng.integers(max(group.floor, 1), group.size + 1)) for group in analysis.groups]
        kept = [
            np.sort(rng.choice(group.size, width, replace=False))
            for group, width in zip(analysis.groups, widths, strict=True)
        ]
        pruned = surgery.apply(proto, make_plan(analysis, kept))
        assert (analysis.macs.total(widths), analysis.params.total(widths)) == count(pruned, feeds)


def instance(seed: int, *, convex: bool = True, fractions: bool = False) -> tuple[list[int], Cost, list[Curve]]:
    """A chain of 2 to 4 layers of 3 to 7 channels: bilinear costs, random rising error curves."""
    rng = np.random.default_rng(seed)
    groups = int(rng.integers(2, 5))
    sizes = rng.integers(3, 8, groups).tolist()
    terms = []
    for group in range(groups):
        inputs = (3, ()) if group == 0 else (0, ((group - 1, 1),))
        scale = float(rng.integers(1, 50)) / (rng.choice([3, 7, 11]) if fractions else 1)
        terms.append(Term(scale, (inputs, (0, ((group, 1),)))))
    terms.append(Term(float(rng.integers(1, 50)), ((0, ((groups - 1, 1),)), (10, ()))))
    curves = []
    for size in sizes:
        steps = rng.exponential(1, size) * rng.exponential(1)
        curves.append(Curve(np.concatenate([[0], np.cumsum(np.sort(steps) if convex else steps)])))
    return sizes, Cost(terms, groups), curves


def error(sizes: Sequence[int], curves: Sequence[Curve], kept: Sequence[int]) -> float:
    return float(sum(curve.error[size - width] for size, curve, width in zip(sizes, curves, kept, strict=True)))


def every(sizes: Sequence[int]) -> list[list[int]]:
    return [list(range(1, size + 1)) for size in sizes]


class TestAllocate:
    @settings(max_examples=100, deadline=None)
    @given(seed=st.integers(0, 100_000), share=st.floats(0.0, 1.0), step=st.integers(1, 3))
    def test_the_limit_is_held_and_what_fits_is_used(self, seed: int, share: float, step: int) -> None:
        sizes, cost, curves = instance(seed, convex=bool(seed % 2))
        choices = [budget.widths(size, 1, step) for size in sizes]
        floor = cost.total([options[0] for options in choices])
        limit = floor + share * (cost.total(sizes) - floor)
        kept = budget.allocate(sizes, choices, curves, cost, limit)
        assert all(width in options for width, options in zip(kept, choices, strict=True))
        room = limit * (1 + 1e-9)  # sums of floats
        assert cost.total(kept) <= room
        for group, options in enumerate(choices):  # no group alone could be wider
            wider = [width for width in options if width > kept[group]][:1]
            assert all(cost.total([*kept[:group], width, *kept[group + 1 :]]) > room for width in wider)

    @pytest.mark.parametrize("convex", [True, False])
    def test_is_near_the_best_there_is(self, convex: bool) -> None:
        """Of 600 small instances the error is on average within 1.1 of the least by force, 99% within 2, all within 3."""
        ratios = []
        for seed in range(150):
            sizes, cost, curves = instance(seed, convex=convex)
            all_widths = [list(kept) for kept in itertools.product(*every(sizes))]
            costs = np.array([cost.total(kept) for kept in all_widths])
            errors = np.array([error(sizes, curves, kept) for kept in all_widths])
            for share in (0.2, 0.4, 0.6, 0.8):
                limit = costs.min() + share * (costs.max() - costs.min())
                found = budget.allocate(sizes, every(sizes), curves, cost, limit)
                ratios.append(error(sizes, curves, found) / errors[costs <= limit].min())
        assert len(ratios) == 600
        assert min(ratios) > 1 - 1e-9
        assert np.mean(ratios) <= 1.1
        assert np.quantile(ratios, 0.99) <= 2
        assert max(ratios) <= 3

    def test_more_room_never_leaves_more_error(self) -> None:
        for seed in range(60):
            sizes, cost, curves = instance(seed)
            floor, whole = cost.total([1] * len(sizes)), cost.total(sizes)
            errors = [
                error(sizes, curves, budget.allocate(sizes, every(sizes), curves, cost, limit))
                for limit in np.linspace(floor, whole, 12)
            ]
            assert (np.diff(errors) <= 1e-9).all()

    def test_nothing_goes_where_everything_fits(self) -> None:
        sizes, cost, curves = instance(3)
        assert budget.allocate(sizes, every(sizes), curves, cost, cost.total(sizes)) == sizes

    def test_the_cheap_group_goes_first(self) -> None:
        cost = Cost([Term(10.0, ((0, ((0, 1),)),)), Term(10.0, ((0, ((1, 1),)),))], 2)
        curves = [Curve(np.arange(9) * 1.0), Curve(np.arange(9) * 5.0)]
        assert budget.allocate([8, 8], every([8, 8]), curves, cost, 100) == [2, 8]

    def test_a_flat_stretch_behind_a_steep_one_is_seen(self) -> None:
        """The first unit of group 0 is dear, all further ones are free; group 1 is cheap at first only."""
        cost = Cost([Term(10.0, ((0, ((0, 1),)),)), Term(10.0, ((0, ((1, 1),)),))], 2)
        curves = [Curve(np.array([0, 3, 3, 3, 3, 3.0])), Curve(np.array([0, 1, 2, 3, 4, 5.0]))]
        assert budget.allocate([5, 5], every([5, 5]), curves, cost, 60) == [1, 5]

    @pytest.mark.parametrize("fractions", [False, True])
    @settings(max_examples=50, deadline=None)
    @given(seed=st.integers(0, 100_000))
    def test_the_narrowest_can_just_be_asked_for(self, seed: int, fractions: bool) -> None:
        """Also where costs are no whole numbers, as those of three convolution groups."""
        sizes, cost, curves = instance(seed, fractions=fractions)
        assert budget.allocate(sizes, every(sizes), curves, cost, cost.total([1] * len(sizes))) == [1] * len(sizes)

    def test_less_than_the_narrowest_is_refused_with_both_numbers(self) -> None:
        cost = Cost([Term(1000.0, ((0, ((0, 1),)),)), Term(500.0, ())], 1)
        curves = [Curve(np.zeros(9))]
        with pytest.raises(TargetError, match=r"leaves 2,400 MACs.* narrowest 2,500 MACs remain, 29\.5% of"):
            budget.allocate([8], [[2, 4, 8]], curves, cost, 2400)
        assert budget.allocate([8], [[2, 4, 8]], curves, cost, 2500) == [2]

    def test_the_arguments_stay_as_they_are(self) -> None:
        sizes, cost, curves = instance(5)
        before = list(sizes), every(sizes), [curve.error.copy() for curve in curves]
        choices = every(sizes)
        budget.allocate(sizes, choices, curves, cost, 0.5 * cost.total(sizes))
        assert (sizes, choices) == before[:2]
        for curve, old in zip(curves, before[2], strict=True):
            np.testing.assert_array_equal(curve.error, old)


class TestGiveBack:
    def test_widens_the_most_worthwhile_that_fits(self) -> None:
        cost = Cost([Term(10.0, ((0, ((0, 1),)),)), Term(30.0, ((0, ((1, 1),)),))], 2)
        curves = [Curve(np.array([0, 1, 2, 3.0])), Curve(np.array([0, 2, 4, 9.0]))]
        kept = [1, 1]
        budget.give_back(kept, [3, 3], every([3, 3]), curves, cost, 75)
        # 35 to spend: group 0 gives 1 for 10, group 1 gives 2 for 30; two of group 0 fit, then nothing does.
        assert kept == [3, 1]

    def test_leaves_what_is_over_the_limit(self) -> None:
        cost = Cost([Term(10.0, ((0, ((0, 1),)),))], 1)
        kept = [2]
        budget.give_back(kept, [3], every([3]), [Curve(np.zeros(4))], cost, 5)
        assert kept == [2]

    def test_widens_for_nothing_gained_too(self) -> None:
        """Where the curve is flat the target is still used up: more channels can't do harm."""
        cost = Cost([Term(10.0, ((0, ((0, 1),)),))], 1)
        kept = [1]
        budget.give_back(kept, [5], every([5]), [Curve(np.zeros(6))], cost, 45)
        assert kept == [4]

    @settings(max_examples=50, deadline=None)
    @given(st.integers(0, 100_000), st.floats(0, 1))
    def test_only_widens_and_holds_the_limit(self, seed: int, share: float) -> None:
        sizes, cost, curves = instance(seed)
        start = [1 + seed % size for size in sizes]
        limit = cost.total(start) + share * (cost.total(sizes) - cost.total(start))
        kept = list(start)
        budget.give_back(kept, sizes, every(sizes), curves, cost, limit)
        assert all(before <= after for before, after in zip(start, kept, strict=True))
        assert cost.total(kept) <= limit


@pytest.mark.parametrize("seed", range(5))
def test_the_way_down_passes_what_is_allocated(seed: int) -> None:
    sizes, cost, curves = instance(seed)
    choices = [list(range(1, size + 1)) for size in sizes]
    way = list(budget.descent(sizes, choices, curves, cost))
    costs = [cost.total(kept) for kept in way]
    losses = [budget.loss(kept, sizes, curves) for kept in way]
    assert way[0] == sizes
    assert way[-1] == [1] * len(sizes)
    assert costs == sorted(costs, reverse=True)
    assert losses == sorted(losses)
    limit = costs[0] / 2
    kept = budget.allocate(sizes, choices, curves, cost, limit)
    first = next(place for place, total in enumerate(costs) if total <= limit)
    assert budget.loss(kept, sizes, curves) <= losses[first]
