"""Pruning with training: at the end, group by group as the paper does, and what the command makes of its options."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pruning with training is NOT TESTED")

from graphs import Build  # noqa: E402
from small_models import plain, residual  # noqa: E402

from thinet_onnx import pipeline as pipelines  # noqa: E402
from thinet_onnx import presets, rounds, runtime, surgery  # noqa: E402
from thinet_onnx.cli.tuning import tune_options  # noqa: E402
from thinet_onnx.data import Preprocess, Source, from_arrays  # noqa: E402
from thinet_onnx.errors import OptionError  # noqa: E402
from thinet_onnx.graph import Graph, check  # noqa: E402
from thinet_onnx.options import PruneOptions, Silent, Target  # noqa: E402
from thinet_onnx.rounds import Schedule  # noqa: E402
from thinet_onnx.setting import open_model  # noqa: E402
from thinet_onnx.training.options import FinetuneOptions  # noqa: E402

QUICK = FinetuneOptions(batch=8, learning_rate=3e-3)
HALF = PruneOptions(target=Target("macs", 0.5, True))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def items(model: onnx.ModelProto, count: int = 48, *, labels: bool = False) -> Source:
    specs = open_model(model, {}).inputs
    rng = np.random.default_rng(1)
    arrays = {spec.name: rng.standard_normal((count, *spec.shape[1:])).astype(spec.dtype) for spec in specs}
    return from_arrays(arrays, specs, labels=rng.integers(0, 4, count) if labels else None)


def shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}


def test_training_at_the_end_comes_nearer_and_writes_what_was_trained(tmp_path: Path) -> None:
    model, data = residual(), items(residual())
    options = PruneOptions(target=HALF.target, reconstruct="none")
    bare = pipelines.prune(model, data, options)
    tuned = rounds.prune(model, data, options, Schedule(6, 0, QUICK), output=tmp_path / "out.onnx")
    assert tuned.plan == bare.plan
    assert shapes(tuned.model) == shapes(bare.model)
    assert tuned.report.finetune is not None
    assert tuned.report.finetune.best_step > 0
    assert tuned.report.finetune.best["loss"] < tuned.report.finetune.first["loss"]
    assert tuned.report.fidelity[0].relative_error < bare.report.fidelity[0].relative_error
    written = onnx.load(tmp_path / "out.onnx")
    assert check(written) is None
    assert shapes(written) == shapes(tuned.model)
    feeds = [data.batch([0])]
    assert np.array_equal(runtime.outputs(written, feeds)[0][0], runtime.outputs(tuned.model, feeds)[0][0])


@pytest.mark.parametrize("make", [plain, residual])
def test_group_by_group_keeps_the_plan_of_one_shot_widths(make: Any) -> None:
    model, data = make(), items(make())
    result = rounds.prune(model, data, HALF, Schedule(1, 1, QUICK))
    cut = [group for group in result.plan.groups if group.after < group.before]
    assert len(cut) >= 1
    assert [g.after for g in result.plan.groups] == [g.after for g in pipelines.prune(model, data, HALF).plan.groups]
    assert shapes(surgery.apply(open_model(model, {}).model, result.plan)) == shapes(result.model)
    assert result.report.oracle_error < 1e-4
    assert all(row.error is not None for row in result.report.groups if row.after < row.before)


def test_what_is_held_out_to_report_is_not_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    honest = rounds.tuning.finetune

    def spying(*arguments: Any, held: list[int], **others: Any) -> Any:
        seen.append(held)
        result = honest(*arguments, held=held, **others)
        assert result.held == tuple(held)
        return result

    monkeypatch.setattr(rounds.tuning, "finetune", spying)
    model, data = plain(), items(plain(), 64)
    options = PruneOptions(target=Target("macs", 0.5, True), samples=24, seed=3)
    result = rounds.prune(model, data, options, Schedule(1, 0, QUICK))
    run = pipelines.Run(open_model(model, {}), rounds.sources.sampled(data, 24, 3)[0], options, Preprocess(), Silent())
    picked = rounds.sources.sampled(data, 24, 3)[1]
    assert seen == [[picked[row] for row in run.held]]
    assert result.report.fidelity[0].samples == len(run.held) == 3
    some, all_of_it = run.source.batch(run.held), data.batch(seen[0])
    assert all(np.array_equal(some[name], all_of_it[name]) for name in some)


def stages() -> onnx.ModelProto:
    """Two convolutions at 8×8, two at 4×4, a classifier."""
    b = Build()
    x = b.input(shape=(1, 3, 8, 8))
    for name, stride, channels in (("a", 1, (3, 8)), ("b", 1, (8, 8)), ("c", 2, (8, 12)), ("d", 1, (12, 12))):
        x = b.node("Relu", b.conv(x, *channels, strides=[stride, stride], name=name))
    b.output(b.gemm(b.node("Flatten", b.node("GlobalAveragePool", x)), 12, 4, name="fc"))
    return b.model()


def test_the_papers_recipe_halves_all_but_the_last_stage() -> None:
    result = pipelines.prune(stages(), items(stages()), PruneOptions(preset="thinet-conv"))
    widths = {group.producers[0]: (group.before, group.after) for group in result.plan.groups}
    assert widths == {"/a": (8, 4), "/b": (8, 4), "/c": (12, 12), "/d": (12, 12)}
    assert result.report.target == "preset=thinet-conv"


def test_the_recipe_needs_stages() -> None:
    with pytest.raises(OptionError, match="run at one size; use --keep"):
        pipelines.prune(plain(), items(plain()), PruneOptions(preset="thinet-conv"))


def test_widths_by_name() -> None:
    model, data = stages(), items(stages())
    names = {
        group.producers[0]: group.name for group in pipelines.prune(model, data, PruneOptions(keep=0.5)).plan.groups
    }
    result = pipelines.prune(model, data, PruneOptions(widths={names["/c"]: 5}))
    assert [group.after for group in result.plan.groups] == [8, 8, 5, 12]
    for widths, words in (({"nobody": 3}, "there is no group 'nobody'"), ({names["/c"]: 13}, "13 can't be kept")):
        with pytest.raises(OptionError, match=words):
            pipelines.prune(model, data, PruneOptions(widths=widths))


def test_positions_count_places_not_channels() -> None:
    setting = open_model(stages(), {})
    data = items(stages())
    run = pipelines.Run(setting, data, PruneOptions(keep=0.5), Preprocess(), Silent())
    places = [presets._positions(run.analysis, group.producers[0]) for group in run.analysis.groups]
    assert places == [64, 64, 16, 16]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((-1, 0), "--finetune-epochs -1: it must not be negative"),
        ((0, -2), "--finetune-per-layer -2: it must not be negative"),
        ((0, 0), "Nothing is to be trained"),
    ],
)
def test_schedules_that_make_no_sense(arguments: tuple[int, int], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        Schedule(*arguments)


def test_training_options_on_the_command_line() -> None:
    made = tune_options(
        ["learning-rate=1e-4", "flip=on", "optimizer=sgd", "steps=7", "loss=own.py:f"], seed=5, layout="nhwc"
    )
    assert made == FinetuneOptions(
        learning_rate=1e-4, flip=True, optimizer="sgd", steps=7, loss="own.py:f", seed=5, layout="nhwc"
    )
    made = tune_options(["feature=a", "output-weight=y=0.5", "feature=b=c", "output-weight=x=2"])
    assert made == FinetuneOptions(features=("a", "b=c"), output_weights={"y": 0.5, "x": 2.0})
    with pytest.raises(OptionError, match="--output-weight 'y' is not understood"):
        tune_options(["output-weight=y"])
    for text in ("flip=yes", "nonsense=1", "batch", "feature", "batch=many", "output-weights=1", "epochs=3"):
        with pytest.raises(OptionError, match=f"--finetune {text!r} is not understood"):
            tune_options([text])


def test_the_graph_after_all_rounds_has_the_inputs_of_the_original() -> None:
    model = residual()
    result = rounds.prune(model, items(model), HALF, Schedule(0, 1, QUICK))
    assert [value.name for value in Graph(result.model).inputs] == [value.name for value in Graph(model).inputs]
