"""Which channels go: every closed form against the sum, the norm or the least squares that it stands for."""

import importlib.util
import json
import shlex
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from thinet_onnx import select

# Integers: sums and products are exact, so ties are real ties.
INTEGER_ROWS = hnp.arrays(
    np.float64, st.tuples(st.integers(1, 6), st.integers(1, 7)), elements=st.integers(-3, 3).map(float)
)


def cost(m: np.ndarray, units: list[int]) -> float:
    """J(T) = 1ᵀ M 1 over the units of T, element by element."""
    return float(sum(m[a, b] for a in units for b in units))


def by_force(m: np.ndarray, count: int) -> tuple[list[int], list[float]]:
    """The published rule to the letter: each time the unit, lowest index first, that leaves the least J(T ∪ j)."""
    gone: list[int] = []
    costs = []
    for _ in range(count):
        rest = [unit for unit in range(len(m)) if unit not in gone]
        found = [cost(m, [*gone, unit]) for unit in rest]
        gone.append(rest[found.index(min(found))])
        costs.append(min(found))
    return gone, costs


def covariance(seed: int, size: int, rows: int = 50) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((rows, size))
    return x.T @ x / rows


class TestGreedy:
    @settings(deadline=None)
    @given(INTEGER_ROWS)
    def test_each_pick_leaves_the_least_objective(self, rows: np.ndarray) -> None:
        m = rows.T @ rows
        order, costs = select.greedy(m)
        expected, expected_costs = by_force(m, len(m))
        assert order.tolist() == expected
        assert costs.tolist() == expected_costs

    @settings(deadline=None)
    @given(st.integers(0, 10_000), st.integers(1, 7))
    def test_of_real_numbers(self, seed: int, size: int) -> None:
        m = covariance(seed, size)
        order, costs = select.greedy(m)
        expected, expected_costs = by_force(m, size)
        assert order.tolist() == expected
        np.testing.assert_allclose(costs, expected_costs, rtol=1e-9, atol=1e-12)

    def test_ties_go_to_the_lowest_index(self) -> None:
        one, two = [1.0, 0.0], [0.0, 2.0]
        rows = np.array([two, one, one, two, one]).T
        order, costs = select.greedy(rows.T @ rows)
        assert order.tolist() == [1, 2, 0, 4, 3]  # norms of (1,0) (2,0) (2,2) (3,2) (3,4): of equals the first
        assert costs.tolist() == [1, 4, 8, 13, 25]

    def test_units_that_cancel_go_together(self) -> None:
        rows = np.array([[5.0, 1.0, -5.0, 2.0]])
        assert select.greedy(rows.T @ rows)[0].tolist() == [1, 3, 2, 0]
        rows = np.array([[1.0, 5.0, -1.0, -4.0]])
        order, costs = select.greedy(rows.T @ rows, 2)
        assert order.tolist() == [0, 2]
        assert costs.tolist() == [1.0, 0.0]

    def test_fewer_are_the_first_of_all(self) -> None:
        m = covariance(1, 12)
        order, costs = select.greedy(m)
        for count in (0, 1, 5, 12):
            few, few_costs = select.greedy(m, count)
            assert few.tolist() == order[:count].tolist()
            assert few_costs.tolist() == costs[:count].tolist()

    def test_the_matrix_stays_as_it_is(self) -> None:
        m = covariance(2, 6)
        before = m.copy()
        select.greedy(m)
        np.testing.assert_array_equal(m, before)


class TestSampled:
    @pytest.mark.parametrize(
        ("rows", "channels", "count"),
        [(2000, 64, 64), (2000, 64, 32), (300, 17, 10), (40, 9, 9), (5, 30, 30), (1, 3, 3)],
    )
    @pytest.mark.parametrize("seed", [0, 1])
    def test_picks_are_those_of_the_published_double_loop(
        self, rows: int, channels: int, count: int, seed: int
    ) -> None:
        rng = np.random.default_rng(seed)
        x = np.maximum(rng.standard_normal((rows, channels)), 0) * rng.standard_normal((rows, channels))
        x = x.astype(np.float32)
        assert select.sampled(x, count).tolist() == select.sampled_reference(x, count).tolist()

    @settings(deadline=None)
    @given(INTEGER_ROWS)
    def test_picks_are_the_same_with_ties(self, rows: np.ndarray) -> None:
        count = rows.shape[1]
        assert select.sampled(rows, count).tolist() == select.sampled_reference(rows, count).tolist()

    @settings(deadline=None)
    @given(INTEGER_ROWS)
    def test_the_double_loop_takes_the_least_norm_of_the_removed_sum(self, rows: np.ndarray) -> None:
        gone: list[int] = []
        for pick in select.sampled_reference(rows, rows.shape[1]).tolist():
            norms = {
                unit: np.square(rows[:, [*gone, unit]].sum(1)).sum()
                for unit in range(rows.shape[1])
                if unit not in gone
            }
            assert pick == min(norms, key=lambda unit: (norms[unit], unit))
            gone.append(pick)

    def test_a_channel_that_repeats_another_has_the_later_turn(self) -> None:
        x = np.array([[1.0, 1.0, 3.0, 1.0], [0.0, 0.0, 1.0, 0.0]], np.float32)
        assert select.sampled(x, 4).tolist() == [0, 1, 3, 2]


class TestScores:
    def test_least_first_and_ties_in_order(self) -> None:
        assert select.by_score(np.array([2.0, 1.0, 2.0, 1.0, 0.5])).tolist() == [4, 1, 3, 0, 2]

    def test_many_ties_stay_in_order(self) -> None:
        scores = np.random.default_rng(0).integers(0, 3, 300).astype(np.float64)
        assert select.by_score(scores).tolist() == sorted(range(300), key=lambda unit: (scores[unit], unit))


class TestApplyOrder:
    @settings(deadline=None)
    @given(st.integers(0, 10_000), st.integers(1, 9))
    def test_costs_are_the_objective_of_every_prefix(self, seed: int, size: int) -> None:
        m = covariance(seed, size)
        order = np.random.default_rng(seed).permutation(size)
        expected = [cost(m, order[: k + 1].tolist()) for k in range(size)]
        np.testing.assert_allclose(select.apply_order(m, order), expected, rtol=1e-9, atol=1e-12)

    def test_agrees_with_greedy(self) -> None:
        m = covariance(3, 20)
        order, costs = select.greedy(m)
        np.testing.assert_allclose(select.apply_order(m, order), costs, rtol=1e-9)


class Problem:
    """Rows and targets, their moments, and the refit by least squares on the rows themselves."""

    def __init__(self, keys: list[int], seed: int = 0, outputs: int = 3, rows: int = 200, ridge: float = 1e-3) -> None:
        rng = np.random.default_rng(seed)
        self.keys = np.array(keys)
        self.units = max(keys) + 1
        self.ridge = ridge
        mixing = rng.standard_normal((len(keys), len(keys))) * rng.uniform(0.2, 2.0, len(keys))
        self.u = rng.standard_normal((rows, len(keys))) @ mixing
        self.t = self.u @ rng.standard_normal((len(keys), outputs)) + 0.3 * rng.standard_normal((rows, outputs))
        self.h = self.u.T @ self.u / rows
        self.p = self.t.T @ self.u / rows
        self.reader = select.Reader(self.h, self.p, self.keys)

    def left(self, gone: list[int]) -> float:
        """The mean squared error, penalty included, of the best weights on the columns that stay.

        A ridge is least squares with extra rows: √(mλ) I on the left, zeros on the right.
        """
        rows, columns = self.u.shape
        penalty = np.sqrt(rows * (self.ridge * np.trace(self.h) / columns + 1e-12))
        kept = np.flatnonzero(~np.isin(self.keys, gone))
        left = np.concatenate([self.u[:, kept], penalty * np.eye(len(kept))])
        right = np.concatenate([self.t, np.zeros((len(kept), self.t.shape[1]))])
        weights = np.linalg.lstsq(left, right, rcond=None)[0] if len(kept) else np.zeros((0, self.t.shape[1]))
        return float(np.square(right - left @ weights).sum() / rows)

    def added(self, gone: list[int]) -> float:
        """What the refit without some units leaves more than the refit with all."""
        return self.left(gone) - self.left([])

    def eliminate(self, order: list[int] | None = None) -> tuple[list[int], np.ndarray]:
        given_order = None if order is None else np.array(order)
        picks, costs = select.elimination([self.reader], self.units, self.ridge, given_order)
        return picks.tolist(), costs


LAYOUTS = {
    "one column each": [0, 1, 2, 3, 4, 5],
    "shuffled": [3, 0, 5, 1, 4, 2],
    "taps": [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3],
    "columns that stay": [-1, 0, 1, -1, 2, 3, -1],
    "taps and columns that stay": [0, 0, -1, -1, 1, 1, 2, 2, -1, 3, 3],
    "blocks of several sizes": [0, 1, 1, 2, 2, 2, 3, -1, 0],
    "a unit that nobody reads": [0, 2, 2, 3, -1],
    "one unit": [0, 0, -1],
}


class TestElimination:
    @pytest.mark.parametrize("ridge", [1e-3, 0.1, 0.0])
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_costs_are_those_of_a_refit_at_every_width(self, layout: str, ridge: float) -> None:
        problem = Problem(LAYOUTS[layout], seed=len(layout), ridge=ridge)
        picks, costs = problem.eliminate()
        assert sorted(picks) == list(range(problem.units))
        expected = [problem.added(picks[: k + 1]) for k in range(problem.units)]
        np.testing.assert_allclose(costs, expected, rtol=1e-6, atol=1e-9)

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_costs_of_a_given_order(self, layout: str) -> None:
        problem = Problem(LAYOUTS[layout], seed=7)
        order = np.random.default_rng(8).permutation(problem.units).tolist()
        picks, costs = problem.eliminate(order)
        assert picks == order
        expected = [problem.added(order[: k + 1]) for k in range(problem.units)]
        np.testing.assert_allclose(costs, expected, rtol=1e-6, atol=1e-9)

    @settings(max_examples=40, deadline=None)
    @given(st.integers(0, 10_000), st.sampled_from(sorted(LAYOUTS)))
    def test_every_removal_is_the_best_that_is_left(self, seed: int, layout: str) -> None:
        problem = Problem(LAYOUTS[layout], seed=seed)
        picks, _ = problem.eliminate()
        for k, pick in enumerate(picks):
            gone = picks[:k]
            rest = {unit: problem.added([*gone, unit]) for unit in range(problem.units) if unit not in gone}
            assert rest[pick] <= min(rest.values()) * (1 + 1e-6) + 1e-9

    def test_a_unit_that_others_can_stand_in_for_goes_first(self) -> None:
        rng = np.random.default_rng(0)
        u = rng.standard_normal((500, 4))
        u[:, 2] = u[:, 0] - u[:, 3]  # loud, but a sum of others
        h = u.T @ u / 500
        p = np.array([[1.0, 0.1, 5.0, 1.0]]) @ h
        picks, costs = select.elimination([select.Reader(h, p, np.arange(4))], 4, 1e-9)
        assert picks[0] in (0, 2, 3)
        assert costs[0] < 1e-6
        assert costs[1] > 5e-3

    def test_costs_never_fall(self) -> None:
        _, costs = Problem(list(range(40)), seed=3).eliminate()
        assert (np.diff(costs) >= 0).all()

    def test_moments_stay_as_they_are(self) -> None:
        problem = Problem(LAYOUTS["taps"])
        h, p = problem.h.copy(), problem.p.copy()
        problem.eliminate()
        np.testing.assert_array_equal(problem.h, h)
        np.testing.assert_array_equal(problem.p, p)


class TestSeveralReaders:
    """A group that several layers read: what it costs is the sum."""

    FIRST, SECOND = LAYOUTS["taps"], [3, 2, 1, -1]  # the second doesn't read unit 0

    def test_costs_add_up(self) -> None:
        problems = [Problem(keys, seed=seed) for seed, keys in enumerate((self.FIRST, self.SECOND))]
        picks, costs = select.elimination([problem.reader for problem in problems], 4, 1e-3)
        singles = [select.elimination([problem.reader], 4, 1e-3, picks)[1] for problem in problems]
        np.testing.assert_allclose(costs, np.sum(singles, axis=0), rtol=1e-9)

    def test_the_first_pick_is_the_least_sum(self) -> None:
        problems = [Problem(keys, seed=seed) for seed, keys in enumerate((self.FIRST, self.SECOND))]
        picks, _ = select.elimination([problem.reader for problem in problems], 4, 1e-3)
        sums = [sum(p.added([unit]) for p in problems if unit in p.keys) for unit in range(4)]
        assert picks[0] == int(np.argmin(sums))

    def test_a_unit_that_nobody_reads_costs_nothing(self) -> None:
        picks, costs = select.elimination([Problem([1, 2, 2, -1]).reader], 3, 1e-3)
        assert picks[0] == 0
        assert costs[0] == 0


class TestPursuit:
    """The 2018 paper's forward choice, against the residuals computed from the rows."""

    @settings(max_examples=30, deadline=None)
    @given(st.integers(0, 10_000))
    def test_every_pick_leaves_the_least_residual_after_its_own_factor(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((60, 7)) @ rng.standard_normal((7, 7))
        y = x.sum(1) + 0.5 * rng.standard_normal(60)
        picks = select.pursuit(x.T @ x, x.T @ y)[::-1].tolist()
        for count in range(len(picks)):
            chosen = picks[:count]
            fitted = x[:, chosen] @ np.linalg.lstsq(x[:, chosen], y, rcond=None)[0] if chosen else 0.0
            residual = y - fitted
            left = {
                unit: float(np.square(residual - x[:, unit] * (x[:, unit] @ residual) / (x[:, unit] @ x[:, unit])).sum())
                for unit in range(7) if unit not in chosen
            }  # fmt: skip
            assert left[picks[count]] <= min(left.values()) * (1 + 1e-6)

    def test_dead_units_and_sums_of_others_go_first(self) -> None:
        rng = np.random.default_rng(0)
        x = rng.standard_normal((80, 5))
        x[:, 1] = 0
        x[:, 3] = 2 * x[:, 0]
        order = select.pursuit(x.T @ x, x.T @ x.sum(1))
        assert order[0] == 1 or order[1] == 1
        assert {0, 3} & set(order[:2].tolist())
        assert sorted(order.tolist()) == list(range(5))


class TestWideElimination:
    """Above a limit several units go at a time."""

    UNITS = 70

    @pytest.fixture
    def problem(self, monkeypatch: pytest.MonkeyPatch) -> Problem:
        monkeypatch.setattr(select, "_WIDE", 8)
        return Problem([unit for unit in range(self.UNITS) for _ in range(2)] + [-1, -1], seed=5, rows=250)

    def ends(self, problem: Problem, picks: list[int], costs: np.ndarray) -> list[int]:
        """How many are gone where the cost is exactly that of a refit: the ends of the steps."""
        exact = [problem.added(picks[: k + 1]) for k in range(self.UNITS)]
        return (np.flatnonzero(np.isclose(costs, exact, rtol=1e-7, atol=0)) + 1).tolist()

    @pytest.mark.parametrize("free", [True, False])
    def test_costs_are_exact_at_the_end_of_each_step_and_straight_in_between(
        self, problem: Problem, free: bool
    ) -> None:
        order = None if free else np.random.default_rng(1).permutation(self.UNITS).tolist()
        picks, costs = problem.eliminate(order)
        assert sorted(picks) == list(range(self.UNITS))
        assert order is None or picks == order
        ends = [0, *self.ends(problem, picks, costs)]
        assert ends[-1] == self.UNITS
        steps = np.diff(ends)
        assert steps[0] > 1  # several at a time …
        assert (steps <= np.maximum((self.UNITS - np.array(ends[:-1])) / 16, 1)).all()  # … but few of those left
        points = [0.0, *(costs[end - 1] for end in ends[1:])]
        np.testing.assert_allclose(costs, np.interp(np.arange(1, self.UNITS + 1), ends, points), rtol=1e-9)

    def test_the_first_step_takes_the_cheapest_alone(self, problem: Problem) -> None:
        picks, costs = problem.eliminate()
        first = self.ends(problem, picks, costs)[0]
        alone = np.array([problem.added([unit]) for unit in range(self.UNITS)])
        assert sorted(picks[:first]) == sorted(np.argsort(alone)[:first].tolist())

    def test_the_curve_is_near_that_of_one_at_a_time(self, problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
        _, coarse = problem.eliminate()
        monkeypatch.undo()
        _, fine = problem.eliminate()
        assert coarse[self.UNITS // 2] <= 1.25 * fine[self.UNITS // 2]
        assert coarse[-1] == pytest.approx(fine[-1], rel=1e-9)


class TestBenchmark:
    """`benchmarks/selection.py` with sizes that take no time."""

    SIZES = "--channels 24 --rows 300 --remove 12 --small-channels 9 --small-remove 5 --first 3 --repeat 1"

    @pytest.fixture
    def benchmark(self) -> ModuleType:
        path = Path(__file__).parent.parent / "benchmarks" / "selection.py"
        spec = importlib.util.spec_from_file_location("selection_benchmark", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def test_picks_agree_and_the_loop_is_extrapolated_by_its_norms(
        self, benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert benchmark.main([*shlex.split(self.SIZES), "--json", str(tmp_path / "found.json")]) == 0
        shown = capsys.readouterr().out
        assert shown.count("identical, in the same order") == 2
        assert "extrapolated" in shown
        found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
        assert found["norms"] == sum(range(13, 25))
        assert [loop["norms"] for loop in found["double_loop"]] == [9 + 8 + 7 + 6 + 5, 24 + 23 + 22]
        for loop in found["double_loop"]:
            assert loop["extrapolated"] == pytest.approx(loop["seconds"] * found["norms"] / loop["norms"])

    def test_other_picks_are_a_failure(
        self, benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        real = select.sampled
        monkeypatch.setattr(select, "sampled", lambda x, count: real(x, count)[::-1])
        assert benchmark.main(shlex.split(self.SIZES)) == 1
        assert "DIFFERENT" in capsys.readouterr().out
