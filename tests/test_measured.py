"""What a report tells of a run beyond its result: curves, sensitivities, the trade-off, every held-out sample."""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import small_models
from small_models import Net

import thinet_onnx
from thinet_onnx import data, verify
from thinet_onnx.pipeline import PruneResult
from thinet_onnx.result import Report


def images(count: int = 48, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((count, channels, 8, 8)).astype(np.float32)


@cache
def pruned(target: str = "macs=60%") -> PruneResult:
    return thinet_onnx.prune(small_models.residual(), images(), target=target, scope="all", reconstruct="full")


@cache
def evenly() -> Report:
    return thinet_onnx.prune(small_models.residual(), images(), keep=0.5).report


class TestCurves:
    def test_every_weighed_group_has_one(self) -> None:
        rows = [row for row in pruned().report.groups if row.curve is not None]
        assert len(rows) >= 3
        for row in rows:
            assert row.curve is not None
            widths, errors = row.curve.widths, row.curve.errors
            assert len(widths) == len(errors)
            assert widths[-1] == row.before
            assert errors[-1] == 0
            assert row.after in widths
            assert all(a < b for a, b in pairwise(widths))
            assert all(a >= b for a, b in pairwise(errors))
            assert row.sensitivity is not None
            assert row.sensitivity > 0

    def test_a_wide_group_has_few_points(self) -> None:
        net = Net()
        x = net.relu(net.conv(net.input("x", ("N", 3, 8, 8)), 3, 200))
        report = thinet_onnx.prune(net.model(net.head(x, 200)), images(), target="macs=50%").report
        (row,) = (row for row in report.groups if row.curve is not None)
        assert row.curve is not None
        assert len(row.curve.widths) in (33, 34)
        assert row.after in row.curve.widths

    def test_the_same_share_of_every_layer_weighs_none(self) -> None:
        assert all(row.curve is None and row.sensitivity is None for row in evenly().groups)
        assert evenly().tradeoff == ()


class TestTradeoff:
    def test_from_the_whole_network_down(self) -> None:
        report = pruned().report
        points = report.tradeoff
        assert points[0].macs == report.before.macs
        assert points[0].params == report.before.params
        assert points[0].loss == 0
        assert all(a.macs >= b.macs for a, b in pairwise(points))
        way = [point for point in points if not point.chosen]
        assert all(a.loss <= b.loss for a, b in pairwise(way))
        assert way[-1].macs < 0.2 * report.before.macs

    def test_the_choice_is_the_runs_own(self) -> None:
        for target in ("macs=60%", "params=70%"):
            report = pruned(target).report
            (choice,) = (point for point in report.tradeoff if point.chosen)
            assert (choice.macs, choice.params) == (report.after.macs, report.after.params)
            by_hand = sum(
                row.sensitivity * row.curve.errors[row.curve.widths.index(row.after)] ** 2
                for row in report.groups
                if row.curve is not None and row.sensitivity is not None
            )
            assert choice.loss == pytest.approx(by_hand, rel=1e-6)


class TestHeldOut:
    def test_every_sample_is_known_by_name_and_error(self) -> None:
        report = pruned().report
        source = data.from_arrays(images(), [data.InputSpec("x", (None, 3, 8, 8), np.dtype(np.float32))])
        rows = data.split(source, 0.125, 0)[1]
        assert report.held == tuple(f"sample {row}" for row in rows)
        (row,) = report.fidelity
        feeds = {"x": images()[rows]}
        (before,), (after,) = (small_models.run(m, feeds) for m in (small_models.residual(), pruned().model))
        expected = np.linalg.norm(after - before, axis=1) / np.linalg.norm(before, axis=1)
        assert row.errors == pytest.approx(expected, rel=1e-3)
        assert np.mean(row.cosines) == pytest.approx(row.cosine, rel=1e-6)

    def test_outputs_with_several_rows_for_each_item(self) -> None:
        before = [np.ones((6, 4)), np.ones((3, 4))]
        after = [batch.copy() for batch in before]
        after[0][0] = 2.0  # the first item of three rows
        (row,) = verify.fidelity(["y"], [[b] for b in before], [[a] for a in after], items=[2, 1])
        assert row.errors == pytest.approx([np.sqrt(1 / 3), 0, 0])

    def test_outputs_that_do_not_divide_say_nothing_of_single_items(self) -> None:
        before, after = [[np.ones(5)]], [[np.ones(5)]]
        assert verify.fidelity(["y"], before, after, items=[2])[0].errors == ()
        assert verify.fidelity(["y"], before, after)[0].errors == ()
        assert verify.fidelity(["y"], before, after, items=[1])[0].errors == (0.0,)

    def test_an_output_of_zeros(self) -> None:
        (row,) = verify.fidelity(["y"], [[np.zeros((2, 3))]], [[np.zeros((2, 3))]], items=[2])
        assert row.errors == (0.0, 0.0)


def test_when_and_how_is_told() -> None:
    report = evenly()
    assert report.finished.endswith("+00:00")
    assert report.command == ""
    assert report.options["preprocess"]["layout"] == "auto"
    assert report.options["test_data"] is None
