"""The seconds of a run's stages."""

import numpy as np
import pytest
import small_models

import thinet_onnx
from thinet_onnx import options, rounds
from thinet_onnx.options import PruneOptions, Silent, Timed
from thinet_onnx.training.options import FinetuneOptions


def test_stages_are_timed_and_those_that_come_again_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 1.0, 4.0, 4.0, 6.0, 9.0])
    monkeypatch.setattr(options.time, "perf_counter", lambda: next(clock))
    timed = Timed(Silent())
    assert timed.stages == {}
    timed.start("one", 1)
    timed.start("two", 3)
    timed.advance(2)
    timed.note("half")
    timed.start("one", 1)
    assert timed.stages == {"one": 3.0, "two": 3.0}
    timed.close()
    timed.close()
    assert timed.stages == {"one": 6.0, "two": 3.0}


def test_a_run_tells_its_stages() -> None:
    images = np.random.default_rng(0).standard_normal((24, 3, 8, 8)).astype(np.float32)
    report = thinet_onnx.prune(small_models.residual(), images, target="macs=60%").report
    assert list(report.stages) == [
        "Reading",
        "Observing the original",
        "Pruning, layer by layer",
        "Cutting and verifying",
        "Measuring",
    ]
    assert all(seconds > 0 for seconds in report.stages.values())
    assert sum(report.stages.values()) <= report.seconds + 0.05


def test_training_is_a_stage_too() -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed: the stage of training is NOT TESTED")
    images = np.random.default_rng(0).standard_normal((24, 3, 8, 8)).astype(np.float32)
    schedule = rounds.Schedule(1, 0, FinetuneOptions(batch=8))
    report = rounds.prune(small_models.residual(), images, PruneOptions(keep=0.5), schedule).report
    assert "Fine-tuning" in report.stages
