"""New weights against least squares on the rows themselves."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thinet_onnx import reconstruct
from thinet_onnx.moments import Moments, Statistics, objective


class Layer:
    """Rows that a layer sees, what it should answer, and its old weights."""

    def __init__(self, seed: int, *, centred: bool = True, rows: int = 80, columns: int = 6, outputs: int = 3) -> None:
        rng = np.random.default_rng(seed)
        self.u = rng.standard_normal((rows, columns)) @ rng.standard_normal((columns, columns)) + rng.uniform(
            -2, 2, columns
        )
        self.w = rng.standard_normal((outputs, columns))
        self.bias = rng.standard_normal(outputs)
        self.t = self.u @ self.w.T + self.bias + 0.5 * rng.standard_normal((rows, outputs))
        self.centred = centred

    @property
    def statistics(self) -> Statistics:
        moments = Moments(self.u.shape[1], self.t.shape[1])
        moments.add(self.u, self.t)
        return moments.statistics(centred=self.centred)


MASKS = [
    np.array([True, True, True, True, True, True]),
    np.array([True, False, True, True, False, False]),
    np.array([False, False, False, False, False, True]),
]


class TestFull:
    @pytest.mark.parametrize("centred", [True, False])
    @pytest.mark.parametrize("ridge", [0.0, 1e-3, 0.5, 100.0])
    @pytest.mark.parametrize("keep", MASKS, ids=["all", "some", "one"])
    def test_is_ridge_regression_that_shrinks_to_the_old_weights(
        self, keep: np.ndarray, ridge: float, centred: bool
    ) -> None:
        """min ‖t − B u‖² + mλ ‖B − W‖², as least squares with the rows √(mλ) I → √(mλ) W added."""
        layer = Layer(1, centred=centred)
        u, t = (layer.u - layer.u.mean(0), layer.t - layer.t.mean(0)) if centred else (layer.u, layer.t)
        kept = u[:, keep]
        strength = np.sqrt(len(u) * ridge * np.square(kept).sum() / len(u) / kept.shape[1])
        left = np.concatenate([kept, strength * np.eye(kept.shape[1])])
        right = np.concatenate([t, strength * layer.w[:, keep].T])
        expected = np.zeros_like(layer.w)
        expected[:, keep] = np.linalg.lstsq(left, right, rcond=None)[0].T
        found = reconstruct.full(layer.statistics, layer.w, keep, ridge)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)
        assert not found[:, ~keep].any()

    @pytest.mark.parametrize("centred", [True, False])
    @pytest.mark.parametrize("ridge", [0.0, 1e-3, 10.0])
    def test_nothing_changes_if_nothing_is_lost(self, ridge: float, centred: bool) -> None:
        layer = Layer(2, centred=centred)
        layer.t = layer.u @ layer.w.T + (layer.bias if centred else 0)
        found = reconstruct.full(layer.statistics, layer.w, MASKS[0], ridge)
        np.testing.assert_allclose(found, layer.w, rtol=1e-6, atol=1e-7)
        if centred:
            np.testing.assert_allclose(reconstruct.best_bias(layer.statistics, found), layer.bias, atol=1e-6)

    def test_a_channel_that_repeats_another_is_taken_over_by_it(self) -> None:
        layer = Layer(3)
        layer.u[:, 4] = 2 * layer.u[:, 1] + 3
        layer.t = layer.u @ layer.w.T + layer.bias
        keep = np.arange(6) != 4
        found = reconstruct.full(layer.statistics, layer.w, keep, 1e-9)
        expected = layer.w * keep
        expected[:, 1] += 2 * layer.w[:, 4]
        np.testing.assert_allclose(found, expected, atol=1e-5)
        np.testing.assert_allclose(
            reconstruct.best_bias(layer.statistics, found), layer.bias + 3 * layer.w[:, 4], atol=1e-4
        )

    def test_a_channel_without_signal_keeps_its_weights(self) -> None:
        layer = Layer(4)
        layer.u[:, 2] = 1.5
        found = reconstruct.full(layer.statistics, layer.w, MASKS[1], 1e-3)
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found[:, 2], layer.w[:, 2], rtol=1e-6)

    def test_nothing_kept(self) -> None:
        layer = Layer(5)
        assert not reconstruct.full(layer.statistics, layer.w, np.zeros(6, bool), 1e-3).any()

    @settings(max_examples=25, deadline=None)
    @given(st.integers(0, 1000))
    def test_no_other_weights_answer_better(self, seed: int) -> None:
        layer = Layer(seed)
        keep = MASKS[1]
        best = reconstruct.full(layer.statistics, layer.w, keep, 0.0)
        nudge = 0.01 * np.random.default_rng(seed).standard_normal(best.shape) * keep
        statistics = layer.statistics
        assert (statistics.error(best) <= statistics.error(best + nudge) + 1e-12).all()
        assert (statistics.error(best) <= statistics.error(layer.w * keep) + 1e-12).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000))
def test_best_bias_leaves_no_mean_error(seed: int) -> None:
    layer = Layer(seed)
    weights = np.random.default_rng(seed).standard_normal(layer.w.shape)
    bias = reconstruct.best_bias(layer.statistics, weights)
    np.testing.assert_allclose((layer.t - layer.u @ weights.T - bias).mean(0), 0, atol=1e-10)


class PartialSums:
    """A layer whose units have several columns each: what each unit adds to every output."""

    def __init__(self, seed: int, keys: Sequence[int]) -> None:
        self.layer = Layer(seed, centred=False, columns=len(keys))
        self.keys, self.units = np.array(keys), max(keys) + 1
        self.h = self.layer.u.T @ self.layer.u / len(self.layer.u)
        own = [self.keys == unit for unit in range(self.units)]
        self.parts = np.stack([self.layer.u[:, mine] @ self.layer.w[:, mine].T for mine in own], -1)  # (m, D, C)
        self.m = objective(self.h, self.layer.w, self.keys, self.units)

    def fit(self, keep: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Eq. 7 on every row and output: one factor for each kept unit, by least squares on partial sums."""
        factors = np.zeros(self.units)
        left = self.parts.reshape(-1, self.units)[:, keep]
        factors[keep] = np.linalg.lstsq(left, target.ravel(), rcond=None)[0]
        return factors


class TestScale:
    KEYS = (0, 0, 1, 1, 1, 2, 3, 3, 4)
    KEEP = np.array([True, False, True, True, False])

    def test_is_least_squares_on_partial_sums(self) -> None:
        sums = PartialSums(1, self.KEYS)
        target = sums.layer.u @ sums.layer.w.T
        found = reconstruct.scale(sums.m, sums.m.sum(1), self.KEEP)
        np.testing.assert_allclose(found, sums.fit(self.KEEP, target), rtol=1e-8)

    def test_with_another_target(self) -> None:
        sums = PartialSums(2, self.KEYS)
        p = sums.layer.t.T @ sums.layer.u / len(sums.layer.u)
        cross = reconstruct.cross_products(p, sums.layer.w, sums.keys, sums.units)
        found = reconstruct.scale(sums.m, cross, self.KEEP)
        np.testing.assert_allclose(found, sums.fit(self.KEEP, sums.layer.t), rtol=1e-8)

    def test_all_kept_is_all_ones(self) -> None:
        sums = PartialSums(3, self.KEYS)
        np.testing.assert_allclose(reconstruct.scale(sums.m, sums.m.sum(1), np.ones(5, bool)), 1, rtol=1e-6)

    def test_a_dead_unit_keeps_its_factor(self) -> None:
        sums = PartialSums(4, self.KEYS)
        sums.m[2] = sums.m[:, 2] = 0
        found = reconstruct.scale(sums.m, sums.m.sum(1), self.KEEP)
        assert found[2] == 1
        alive = np.array([0, 3])
        expected = np.linalg.solve(sums.m[np.ix_(alive, alive)], sums.m.sum(1)[alive])
        np.testing.assert_allclose(found[alive], expected, rtol=1e-8)
        assert not found[~self.KEEP].any()

    def test_a_dead_layer_keeps_its_factors(self) -> None:
        assert reconstruct.scale(np.zeros((5, 5)), np.zeros(5), self.KEEP).tolist() == self.KEEP.astype(float).tolist()


class TestScaleSampled:
    def make(self) -> tuple[np.ndarray, np.ndarray]:
        x = np.random.default_rng(6).standard_normal((100, 6)).astype(np.float32)
        return x, x.sum(1)

    @pytest.mark.parametrize("keep", MASKS, ids=["all", "some", "one"])
    def test_is_least_squares_without_a_ridge(self, keep: np.ndarray) -> None:
        x, y = self.make()
        kept = x[:, keep].astype(np.float64)
        expected = np.zeros(6)
        expected[keep] = np.linalg.inv(kept.T @ kept) @ kept.T @ y  # the paper's own formula
        np.testing.assert_allclose(reconstruct.scale_sampled(x, y, keep), expected, rtol=1e-6, atol=1e-9)

    def test_a_dead_channel_does_no_harm(self) -> None:
        x, _ = self.make()
        x[:, 2] = 0
        y = x.sum(1)
        found = reconstruct.scale_sampled(x, y, MASKS[1])
        alive = x[:, [0, 3]].astype(np.float64)
        np.testing.assert_allclose(found[[0, 3]], np.linalg.lstsq(alive, y, rcond=None)[0], rtol=1e-6)
        assert np.isfinite(found).all()

    def test_nothing_kept(self) -> None:
        x, y = self.make()
        assert not reconstruct.scale_sampled(x, y, np.zeros(6, bool)).any()


@pytest.mark.parametrize("keys", [[0, 0, 1, 2, 2, 1], [-1, 0, 0, -1, 1, 2], [3, 3, 0, 0, -1, 1]])
def test_cross_products_are_mean_products_of_target_and_partial_sum(keys: list[int]) -> None:
    layer = Layer(7)
    p = layer.t.T @ layer.u / len(layer.u)
    units = max(keys) + 2  # the last one has no column
    found = reconstruct.cross_products(p, layer.w, np.array(keys), units)
    assert found.shape == (units,)
    for unit in range(units):
        mine = np.array(keys) == unit
        partial = layer.u[:, mine] @ layer.w[:, mine].T
        assert found[unit] == pytest.approx((layer.t * partial).sum(1).mean(), abs=1e-10)


@pytest.mark.parametrize("unit", [1e-2, 1.0, 1e12])
def test_very_wide_layers_are_solved_in_float32_as_well(unit: float) -> None:
    """Fewer rows than columns, all of them much alike, and values whose squares leave float32: the worst that there is."""
    rng = np.random.default_rng(8)
    columns, keep = 1100, np.arange(1100) % 16 != 0
    u = unit * (rng.standard_normal((300, 12)) @ rng.standard_normal((12, columns)) + rng.standard_normal((300, 1)))
    w = rng.standard_normal((4, columns))
    moments = Moments(columns, 4)
    moments.add(u, u @ w.T)
    statistics = moments.statistics(centred=True)
    found = reconstruct.full(statistics, w, keep, 1e-2)
    h, strength = statistics.h[np.ix_(keep, keep)], 1e-2 * statistics.h.diagonal()[keep].mean()
    right = statistics.p[:, keep] + strength * w[:, keep]
    exact = np.zeros(w.shape)
    exact[:, keep] = np.linalg.solve(h + strength * np.eye(len(h)), right.T).T
    assert not found[:, ~keep].any()
    np.testing.assert_allclose(
        statistics.error(found), statistics.error(exact), rtol=1e-2, atol=1e-8 * statistics.energy.max()
    )
    np.testing.assert_allclose(found, exact, atol=1e-3)
