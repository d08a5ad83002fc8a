"""New weights are held against the old ones on samples that nothing was fitted on."""

from typing import Any

import numpy as np
import pytest
import small_models

import thinet_onnx
from thinet_onnx import runtime, sweep
from thinet_onnx.choose import Rebuilt

Array = np.ndarray[Any, Any]


def data(count: int = 64) -> Array:
    rng = np.random.default_rng(3)
    noise = rng.standard_normal((count, 3, 8, 8))
    return (noise + np.roll(noise, 1, 2) + np.roll(noise, 1, 3)).astype(np.float32)


def errors(reconstruct: str) -> float:
    result = thinet_onnx.prune(small_models.residual(), data(), keep=0.5, reconstruct=reconstruct)
    return result.report.fidelity[0].relative_error


def spoil(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    """Let the pass over the layers go `factor` times as far as it should."""
    real = sweep.Sweep.prune

    def prune(self: sweep.Sweep, *arguments: Any) -> Any:
        kept, rebuilt = real(self, *arguments)
        worse = []
        for entry in rebuilt:
            whole = self.chooser.columns(entry.consumer, dict(enumerate(kept)))
            old = entry.consumer.matrix * whole
            bias = None if entry.bias is None else entry.consumer.bias + factor * (entry.bias - entry.consumer.bias)
            worse.append(Rebuilt(entry.consumer, old + factor * (entry.matrix - old), bias, entry.error))
        return kept, worse

    monkeypatch.setattr(sweep.Sweep, "prune", prune)


def test_a_refit_that_helps_is_kept_whole() -> None:
    report = thinet_onnx.prune(small_models.residual(), data(), keep=0.5).report
    assert not report.warnings
    assert report.fidelity[0].relative_error < errors("none")


def test_one_that_went_too_far_is_taken_back_part_of_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, 4.0)
    report = thinet_onnx.prune(small_models.residual(), data(), keep=0.5).report
    assert report.oracle_error < 1e-4
    assert report.fidelity[0].relative_error < errors("none")
    (warning,) = report.warnings
    assert "25% of the change was kept" in warning
    assert "on the 8 held out" in warning


def test_one_that_points_the_wrong_way_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = thinet_onnx.prune(small_models.residual(), data(), keep=0.5, reconstruct="none", method="obs")
    spoil(monkeypatch, -3.0)
    result = thinet_onnx.prune(small_models.residual(), data(), keep=0.5)
    assert "none of them were kept" in result.report.warnings[0]
    assert result.report.fidelity[0].relative_error == pytest.approx(plain.report.fidelity[0].relative_error, rel=1e-4)


@pytest.mark.parametrize("factor", [1.0, 4.0, -3.0], ids=["whole", "in part", "dropped"])
def test_what_the_report_tells_of_held_out_samples_is_what_the_file_answers(
    monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    spoil(monkeypatch, factor)
    samples, model = data(), small_models.residual()
    result = thinet_onnx.prune(model, samples, keep=0.5)
    held = samples[[int(title.removeprefix("sample ")) for title in result.report.held]]
    name = model.graph.input[0].name
    before, after = (
        np.concatenate([answers[0] for answers in runtime.outputs(file, [{name: row[None]} for row in held])])
        for file in (model, result.model)
    )
    error = np.linalg.norm(after - before) / np.linalg.norm(before)
    assert result.report.fidelity[0].relative_error == pytest.approx(float(error), rel=1e-3)


def test_weights_that_are_no_numbers_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, 1e30)
    report = thinet_onnx.prune(small_models.residual(), data(), keep=0.5).report
    assert report.fidelity[0].relative_error <= 1.01 * errors("none")
    assert report.warnings
