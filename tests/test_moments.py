"""Streamed sums against the same statistics of all rows at once, in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thinet_onnx import moments
from thinet_onnx.moments import Moments, Statistics, objective

CUTS = st.lists(st.integers(0, 60), max_size=4).map(sorted)


def make(seed: int, rows: int = 60, columns: int = 7, outputs: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Inputs that are not centred, and targets that follow them in part."""
    rng = np.random.default_rng(seed)
    u = np.maximum(rng.standard_normal((rows, columns)) + rng.uniform(-1, 2, columns), 0)
    t = u @ rng.standard_normal((columns, outputs)) + rng.standard_normal((rows, outputs)) + rng.uniform(-3, 3, outputs)
    return u, t


def gather(u: np.ndarray, t: np.ndarray) -> Moments:
    result = Moments(u.shape[1], t.shape[1])
    result.add(u, t)
    return result


def check(statistics: Statistics, u: np.ndarray, t: np.ndarray, *, centred: bool, rtol: float) -> None:
    """Against NumPy's own means, covariances and variances."""
    np.testing.assert_allclose(statistics.u, u.mean(0), rtol=rtol, atol=rtol)
    np.testing.assert_allclose(statistics.t, t.mean(0), rtol=rtol, atol=rtol)
    if centred:
        both = np.cov(u.T, t.T, bias=True).reshape(u.shape[1] + t.shape[1], -1)
        h, p = both[: u.shape[1], : u.shape[1]], both[u.shape[1] :, : u.shape[1]]
        energy = t.var(0)
    else:
        h, p, energy = u.T @ u / len(u), t.T @ u / len(u), np.square(t).mean(0)
    np.testing.assert_allclose(statistics.h, h, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(statistics.p, p, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(statistics.energy, energy, rtol=rtol, atol=rtol)
    assert statistics.centred is centred


@pytest.mark.parametrize("centred", [True, False])
class TestStreaming:
    @settings(max_examples=30, deadline=None)
    @given(seed=st.integers(0, 1000), cuts=CUTS)
    def test_in_any_pieces(self, seed: int, cuts: list[int], centred: bool) -> None:
        u, t = make(seed)
        streamed = Moments(u.shape[1], t.shape[1])
        for start, end in zip([0, *cuts], [*cuts, len(u)], strict=True):
            streamed.add(u[start:end], t[start:end])
        check(streamed.statistics(centred=centred), u, t, centred=centred, rtol=1e-10)

    @settings(max_examples=30, deadline=None)
    @given(seed=st.integers(0, 1000), cut=st.integers(0, 60))
    def test_shards_add_up(self, seed: int, cut: int, centred: bool) -> None:
        u, t = make(seed)
        first, second = gather(u[:cut], t[:cut]), gather(u[cut:], t[cut:])
        first.merge(second)
        check(first.statistics(centred=centred), u, t, centred=centred, rtol=1e-10)
        assert second.count == len(u) - cut

    @settings(max_examples=30, deadline=None)
    @given(seed=st.integers(0, 1000), cut=st.integers(1, 59))
    def test_a_sum_of_two_shards_leaves_them_as_they_are(self, seed: int, cut: int, centred: bool) -> None:
        u, t = make(seed)
        first, second = gather(u[:cut], t[:cut]), gather(u[cut:], t[cut:])
        check(first.plus(second).statistics(centred=centred), u, t, centred=centred, rtol=1e-10)
        check(first.statistics(centred=centred), u[:cut], t[:cut], centred=centred, rtol=1e-10)
        check(second.statistics(centred=centred), u[cut:], t[cut:], centred=centred, rtol=1e-10)

    def test_blocks_of_float32_rows(self, centred: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(moments, "_BLOCK", 100)
        u, t = make(3, rows=1234)
        u, t = u.astype(np.float32), t.astype(np.float32)
        found = gather(u, t)
        assert found.count == 1234
        assert found.h.dtype == np.float64
        check(found.statistics(centred=centred), u.astype(np.float64), t.astype(np.float64), centred=centred, rtol=2e-5)

    def test_the_rounding_of_many_rows_does_not_pile_up(self, centred: bool) -> None:
        u, t = make(4, rows=100_000, columns=3, outputs=2)
        u, t = u.astype(np.float32), t.astype(np.float32)
        check(
            gather(u, t).statistics(centred=centred), u.astype(np.float64), t.astype(np.float64), centred=centred,
            rtol=1e-5,
        )  # fmt: skip


class TestError:
    @pytest.mark.parametrize("centred", [True, False])
    @pytest.mark.parametrize("seed", range(5))
    def test_is_the_mean_squared_residual(self, seed: int, centred: bool) -> None:
        u, t = make(seed)
        weights = np.random.default_rng(seed).standard_normal((t.shape[1], u.shape[1]))
        residual = t - u @ weights.T
        if centred:
            residual -= residual.mean(0)  # the best bias
        measured = np.square(residual).mean(0)
        found = gather(u, t).statistics(centred=centred).error(weights)
        np.testing.assert_allclose(found, measured, rtol=1e-9)
        np.testing.assert_allclose(
            gather(u, t).statistics(centred=centred).error(weights.astype(np.float32)), measured, rtol=1e-5
        )

    def test_is_never_negative(self) -> None:
        u, _ = make(0)
        weights = np.random.default_rng(0).standard_normal((4, u.shape[1]))
        found = gather(u, u @ weights.T).statistics(centred=True).error(weights)
        assert (found >= 0).all()
        assert (found < 1e-10).all()

    def test_no_rows_is_refused(self) -> None:
        with pytest.raises(ValueError, match="no rows"):
            Moments(3, 2).statistics(centred=True)


@pytest.mark.parametrize("centred", [True, False])
def test_targets_that_are_the_layers_own_answers(centred: bool) -> None:
    u, _ = make(1)
    rng = np.random.default_rng(1)
    weights, bias = rng.standard_normal((4, u.shape[1])), rng.standard_normal(4)
    seen = Moments(u.shape[1], None)
    seen.add(u[:20])
    seen.add(u[20:])
    found = seen.statistics(centred=centred, weights=weights, bias=bias)
    check(found, u, u @ weights.T + bias, centred=centred, rtol=1e-10)


class TestObjective:
    @pytest.mark.parametrize(
        "keys",
        [
            [0, 1, 2, 3, 4, 5, 6],
            [2, 0, 1, 2, 0, 1, 2],
            [-1, 0, 0, -1, 1, 1, 2],
            [3, 3, 3, 0, 0, 0, 1],  # no column of unit 2
            [0, 0, 0, 0, 0, 0, 0],
        ],
    )
    def test_is_the_energy_of_what_is_removed(self, keys: list[int]) -> None:
        """J(T) = E‖Σ_{c∈T} x̂_c‖², all outputs and all rows, for every set T."""
        u, _ = make(5)
        weights = np.random.default_rng(5).standard_normal((4, u.shape[1]))
        units = max(keys) + 1
        m = objective(u.T @ u / len(u), weights, np.array(keys), units)
        assert m.shape == (units, units)
        np.testing.assert_allclose(m, m.T, rtol=1e-12)
        for subset in range(1 << units):
            members = np.array([bool(subset >> unit & 1) for unit in range(units)])
            columns = [c for c, key in enumerate(keys) if key >= 0 and members[key]]
            removed = u[:, columns] @ weights[:, columns].T
            assert members @ m @ members == pytest.approx(np.square(removed).sum(1).mean(), abs=1e-10)

    def test_with_units_that_no_column_has(self) -> None:
        u, _ = make(6, columns=3)
        m = objective(u.T @ u / len(u), np.ones((1, 3)), np.array([1, -1, 4]), 6)
        assert np.flatnonzero(m.any(0)).tolist() == [1, 4]
        assert m[1, 4] == pytest.approx((u[:, 0] * u[:, 2]).mean())


@pytest.mark.parametrize("centred", [True, False])
def test_rows_that_are_held_check_a_refit_as_their_moments_do(centred: bool) -> None:
    rng = np.random.default_rng(5)
    rows, weights, bias = rng.standard_normal((90, 6)) + 1, rng.standard_normal((3, 6)), rng.standard_normal(3)
    held, sums = moments.Held(6), Moments(6, None)
    for part in np.split(rows.astype(np.float32), 3):
        held.add(part)
        sums.add(part)
    assert held.count == 90
    seen = held.seen(weights.astype(np.float32), bias, centred=centred)
    known = sums.statistics(centred=centred, weights=weights, bias=bias)
    np.testing.assert_allclose(seen.u, known.u, rtol=1e-5)
    np.testing.assert_allclose(seen.t, known.t, rtol=1e-5)
    keep = np.array([True, False, True, True, True, False])
    other = rng.standard_normal((3, 6)) * keep
    np.testing.assert_allclose(seen.error(other), known.error(other), rtol=1e-4)
    narrow, cut = seen.narrowed(keep), known.narrowed(keep)
    np.testing.assert_allclose(narrow.error(other[:, keep]), cut.error(other[:, keep]), rtol=1e-4)
