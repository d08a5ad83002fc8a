"""The whole way from a model and data to a smaller model: on the networks of `models/` and on small ones made here."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import small_models
from onnx import numpy_helper
from small_models import Net
from typer.testing import CliRunner

import thinet_onnx
from thinet_onnx import cli, consumers, data, pipeline
from thinet_onnx.errors import DataError, NothingToPruneError, OptionError, TargetError
from thinet_onnx.options import METHODS, RECONSTRUCTIONS, PruneOptions, Silent, Target
from thinet_onnx.pipeline import PruneResult

MODELS = Path(__file__).parent.parent / "models"
CALIBRATION = MODELS / "fashion_calibration.npz"
PIXELS: dict[str, Any] = {"mean": (0.286,), "std": (0.353,)}


@cache
def fashion(name: str, **options: Any) -> PruneResult:
    """A bundled network pruned with 96 of its calibration images, consumers refitted; each choice of options is run once."""
    options = {"reconstruct": "full", **options}
    return thinet_onnx.prune(MODELS / f"fashion_{name}.onnx", CALIBRATION, samples=96, **options, **PIXELS)


def images(count: int = 48, channels: int = 3, size: int = 8, seed: int = 1) -> np.ndarray:
    """Random pictures that are smooth, so that their channels have something to do with one another."""
    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal((count, channels, size // 2, size // 2))
    fine = np.kron(coarse, np.ones((2, 2))) + 0.3 * rng.standard_normal((count, channels, size, size))
    return fine.astype(np.float32)


@cache
def small(**options: Any) -> PruneResult:
    """The small residual network, pruned."""
    return thinet_onnx.prune(small_models.residual(), images(), **({"keep": 0.5} | options))


def cut(result: PruneResult) -> dict[str, tuple[int, int]]:
    """Channels before and after by the name of the group."""
    return {group.name: (group.before, group.after) for group in result.plan.groups}


def runs_like(result: PruneResult, model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> None:
    """The pruned model takes the original's inputs and answers in its shapes, with numbers."""
    for before, after in zip(small_models.run(model, feeds), small_models.run(result.model, feeds), strict=True):
        assert before.shape == after.shape
        assert before.dtype == after.dtype
        assert np.isfinite(after).all()


class TestTargets:
    @pytest.mark.parametrize("name", ["resnet", "vgg"])
    @pytest.mark.parametrize("kind", ["macs", "params"])
    def test_half_remains(self, name: str, kind: str) -> None:
        report = fashion(name, target=f"{kind}=50%").report
        share = getattr(report.after, kind) / getattr(report.before, kind)
        assert 0.49 <= share <= 0.5
        assert report.target_met
        assert report.target == f"{kind}=50%"
        assert report.warnings == ()
        assert report.oracle_error < 1e-4

    def test_half_remains_with_residual_streams_cut_too(self) -> None:
        result = fashion("resnet", target="macs=50%", scope="all")
        assert 0.49 <= result.report.after.macs / result.report.before.macs <= 0.5
        streams = {row.name for row in thinet_onnx.inspect(MODELS / "fashion_resnet.onnx").groups}
        streams -= {row.name for row in thinet_onnx.inspect(MODELS / "fashion_resnet.onnx", scope="inner").groups}
        assert len(streams) == 3
        assert any(after < before for name, (before, after) in cut(result).items() if name in streams)

    @pytest.mark.parametrize(
        ("name", "target", "kind", "value"),
        [("resnet", "macs=5.0M", "macs", 5.0e6), ("vgg", "params=200k", "params", 200e3)],
    )
    def test_an_absolute_target(self, name: str, target: str, kind: str, value: float) -> None:
        report = fashion(name, target=target).report
        before, after = getattr(report.before, kind), getattr(report.after, kind)
        assert value < before
        assert value - 0.01 * before <= after <= value
        assert report.target_met

    @pytest.mark.parametrize("name", ["resnet", "vgg"])
    def test_the_same_share_of_every_layer(self, name: str) -> None:
        result = fashion(name, keep=0.5)
        assert result.report.target == "keep=0.5"
        widths = cut(result)
        assert len(widths) >= 5
        inner = [after / before for before, after in widths.values() if after < before]
        assert set(inner) == {0.5}
        # Left whole are the residual streams alone.
        assert (len(inner) < len(widths)) == (name == "resnet")

    def test_what_the_widths_allowed_miss_is_said(self) -> None:
        result = small(keep=None, target="macs=70%", round_to=6, scope="inner")
        report = result.report
        assert all(after in (6, 12, 8) for _, after in cut(result).values())
        missed = 0.7 - report.after.macs / report.before.macs
        assert missed > 0.01
        assert not report.target_met
        assert any("macs=70%" in warning and "round-to" in warning for warning in report.warnings)

    def test_answers_that_are_far_off_are_warned_of_though_the_target_is_reached(self) -> None:
        report = small(keep=0.1, scope="all", reconstruct="none").report
        assert report.target_met
        assert max(row.relative_error for row in report.fidelity) > 0.5
        assert any("far from the original's" in warning for warning in report.warnings)

    @pytest.mark.parametrize("round_to", [1, 3, 4])
    def test_widths_are_multiples(self, round_to: int) -> None:
        widths = [after for before, after in cut(small(round_to=round_to)).values() if after < before]
        assert widths
        assert all(width % round_to == 0 for width in widths)

    def test_a_target_out_of_reach_is_refused_before_the_data_are_looked_at(self) -> None:
        stages: list[str] = []

        class Listening(Silent):
            def start(self, stage: str, total: int) -> None:
                stages.append(stage)

        with pytest.raises(TargetError, match="narrowest"):
            options = PruneOptions(target=Target.parse("macs=1%"))
            pipeline.prune(small_models.residual(), images(), options, progress=Listening())
        assert "Observing the original" not in stages

    def test_a_target_out_of_reach_is_refused_with_what_is_there(self) -> None:
        with pytest.raises(TargetError, match=r"narrowest [\d,]+ (MACs|parameters) remain"):
            small(keep=None, target="macs=1%")
        with pytest.raises(TargetError, match="no fewer than"):
            small(keep=None, target="macs=2G")

    def test_sizes_in_the_report_are_those_of_the_file(self) -> None:
        result = fashion("vgg", target="macs=50%")
        before = onnx.load(MODELS / "fashion_vgg.onnx")
        for model, size in ((before, result.report.before), (result.model, result.report.after)):
            floats = [v.size for v in small_models.initializers(model).values() if v.dtype.kind == "f"]
            assert size.params == sum(floats)
        assert result.report.before.bytes == (MODELS / "fashion_vgg.onnx").stat().st_size
        assert result.report.after.bytes == result.model.ByteSize()


class TestMethods:
    @pytest.mark.parametrize("reconstruct", RECONSTRUCTIONS)
    @pytest.mark.parametrize("method", METHODS)
    def test_every_method_with_every_reconstruction(self, method: str, reconstruct: str) -> None:
        result = small(method=method, reconstruct=reconstruct)
        runs_like(result, small_models.residual(), {"x": images(2)})
        assert result.report.oracle_error < 1e-4
        assert result.report.options["method"] == method
        assert result.report.options["reconstruct"] == reconstruct
        assert {after for before, after in cut(result).values() if before == 12} == {6}

    @pytest.mark.parametrize("method", METHODS)
    def test_a_full_refit_is_nearer_to_the_original(self, method: str) -> None:
        errors = [
            small(method=method, reconstruct=way).report.fidelity[0].relative_error for way in ("full", "scale", "none")
        ]
        assert errors[0] < 0.7 * min(errors[1:])

    def test_on_a_trained_network(self) -> None:
        errors = [
            fashion("resnet", keep=0.5, reconstruct=way).report.fidelity[0].relative_error
            for way in ("joint", "full", "scale", "none")
        ]
        assert errors[0] < errors[1]
        assert errors[1] < 0.5 * errors[2]
        assert errors[2] < errors[3]
        assert errors[0] < 0.3

    def test_the_methods_own_reconstruction(self) -> None:
        for method, way in (("thinet-sampled", "scale"), ("thinet", "joint"), ("random", "joint")):
            assert small(method=method).report.options["reconstruct"] == way
            same = small(method=method, reconstruct=way)
            assert small(method=method).model.SerializeToString() == same.model.SerializeToString()

    def test_methods_pick_differently(self) -> None:
        picks = {method: tuple(group.kept for group in small(method=method).plan.groups) for method in METHODS}
        for kin in ("thinet-sampled", "obs"):  # near enough to thinet to pick the same in a small network
            del picks[kin]
        assert len(set(picks.values())) == len(picks)

    def test_weight_sum_keeps_the_filters_with_the_largest_weights(self) -> None:
        model = small_models.residual()
        weights = small_models.initializers(model)
        producer = next(node for node in model.graph.node if node.name == "block1.a")
        sums = np.abs(weights[producer.input[1]]).sum((1, 2, 3))
        kept = next(g.kept for g in small(method="weight-sum").plan.groups if g.name == "block1.a")
        assert kept == tuple(sorted(np.argsort(sums)[6:].tolist()))

    def test_apoz_keeps_the_channels_that_are_least_often_zero(self) -> None:
        net = Net(2)
        bias = np.array([-9, 0.5, -0.5, 9, 1, -1, 0, 2], np.float32)  # from always off to always on
        weight = np.ones((8, 3, 1, 1), np.float32) / 3
        x = net.relu(net.node("Conv", net.input("x", ("N", 3, 8, 8)), net.tensor(weight), net.tensor(bias), name="c"))
        model = net.model(net.head(net.conv(x, 8, 6), 6))
        result = thinet_onnx.prune(model, images(), keep=0.5, method="apoz")
        kept = next(group.kept for group in result.plan.groups if group.name == "c")
        assert kept == tuple(sorted(np.argsort(bias)[4:].tolist()))

    def test_channels_that_repeat_others_go_without_loss(self) -> None:
        """Half of the filters are there twice, so half can go; the refit hands their weights to their twins."""
        net = Net(3)
        once = net.rng.standard_normal((4, 3, 3, 3)).astype(np.float32)
        twice = net.tensor(np.concatenate([once, 2 * once]))
        x = net.relu(net.node("Conv", net.input("x", ("N", 3, 8, 8)), twice, pads=[1, 1, 1, 1], name="twice"))
        model = net.model(net.head(net.relu(net.conv(x, 8, 6, name="last")), 6))
        whole = thinet_onnx.prune(model, images(96), keep=0.5, include=["twice"], method="weight-sum")
        assert cut(whole)["twice"] == (8, 4)
        assert whole.plan.groups[0].kept == (4, 5, 6, 7)
        assert whole.report.fidelity[0].relative_error < 0.02


def restorable(*, norm: bool) -> onnx.ModelProto:
    """Two residual blocks of which the second can make up for what the first one loses.

    Its inner layer holds the first one's features and as many dead ones; its last layer ignores the dead ones.
    """
    net = Net(4)
    x = net.input("x", ("N", 3, 8, 8))
    features = net.rng.standard_normal((16, 3, 1, 1)).astype(np.float32)
    first = net.relu(net.node("Conv", x, net.tensor(features), name="first.a"))
    stream = net.node("Add", net.conv(x, 3, 6, kernel=1), net.conv(first, 16, 6, kernel=1, name="first.b"))
    dead = 0.01 * net.rng.standard_normal((16, 3, 1, 1)).astype(np.float32)
    second = net.relu(net.node("Conv", x, net.tensor(np.concatenate([features, dead])), name="second.a"))
    last = net.rng.standard_normal((6, 32, 1, 1)).astype(np.float32) * (np.arange(32) < 16)[None, :, None, None]
    y = net.node("Conv", second, net.tensor(0.3 * last), net.tensor(np.zeros(6, np.float32)), name="second.b")
    if norm:
        stats = [net.rng.uniform(0.5, 2, 6).astype(np.float32) for _ in range(4)]
        y = net.node("BatchNormalization", y, *(net.tensor(values) for values in stats))
    return net.model(net.node("Add", stream, y))


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "BatchNorm"])
def test_a_later_block_makes_up_for_what_the_stream_lost(norm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = restorable(norm=norm), images(64)
    corrected = thinet_onnx.prune(model, x, keep=0.5, reconstruct="full")
    assert cut(corrected) == {"first.a": (16, 8), "second.a": (32, 16)}
    assert corrected.plan.groups[1].kept == tuple(range(16))

    def blind(_: Any, found: list[consumers.Consumer]) -> None:
        for consumer in found:
            consumer.other.extend("" for _ in consumer.uses)

    monkeypatch.setattr(consumers, "_settle_sums", blind)
    uncorrected = thinet_onnx.prune(model, x, keep=0.5, reconstruct="full")
    assert cut(uncorrected) == cut(corrected)
    with_it, without = (r.report.fidelity[0].relative_error for r in (corrected, uncorrected))
    assert without > 0.02
    assert with_it < 0.1 * without


class TestRepeatable:
    def test_path_and_proto_and_file_are_the_same_bytes(self, tmp_path: Path) -> None:
        """Which also shows that the same seed makes the same bytes."""
        path, output = MODELS / "fashion_resnet.onnx", tmp_path / "small.onnx"
        proto = onnx.load(path)
        before = proto.SerializeToString()
        result = thinet_onnx.prune(
            proto, str(CALIBRATION), target="macs=50%", reconstruct="full", samples=96, output=output, **PIXELS
        )
        assert proto.SerializeToString() == before
        expected = fashion("resnet", target="macs=50%")
        assert result.plan == expected.plan
        assert result.model.SerializeToString() == expected.model.SerializeToString()
        assert output.read_bytes() == result.model.SerializeToString()
        assert result.report.after.bytes == output.stat().st_size
        assert result.report.output == str(output)
        assert expected.report.output is None
        assert [file.name for file in tmp_path.iterdir()] == ["small.onnx"]

    @pytest.mark.parametrize("method", METHODS)
    def test_the_seed_decides(self, method: str) -> None:
        def run(seed: int) -> bytes:
            return thinet_onnx.prune(
                small_models.plain(), images(), keep=0.5, method=method, seed=seed
            ).model.SerializeToString()

        assert run(3) == run(3)
        assert run(3) != run(4)

    def test_samples_are_drawn_by_the_seed(self) -> None:
        runs = [small(samples=24, seed=seed).report for seed in (0, 1)]
        assert all(report.fidelity[0].samples == 3 for report in runs)
        assert "24 of" in runs[0].options["data"]
        assert runs[0].fidelity != runs[1].fidelity


class TestChoice:
    def test_include_names_what_is_pruned(self) -> None:
        widths = cut(small(include=("block2",)))
        assert widths["block1.a"] == (12, 12)
        assert widths["block2.a"] == (12, 6)

    def test_exclude_names_what_is_left(self) -> None:
        result = small(exclude=("block2",))
        assert cut(result)["block1.a"] == (12, 6)
        assert cut(result)["block2.a"] == (12, 12)
        assert ("block2.a", 12, "is excluded by --exclude") in [
            (row.producer, row.channels, row.reason) for row in result.report.not_pruned
        ]

    def test_exclude_wins_over_include(self) -> None:
        widths = cut(small(include=("block",), exclude=("1",)))
        assert [name for name, (before, after) in widths.items() if after < before] == ["block2.a"]

    @pytest.mark.parametrize("reconstruct", RECONSTRUCTIONS)
    def test_layers_before_the_first_that_is_cut_keep_their_weights(self, reconstruct: str) -> None:
        """Behind it a full refit makes use of all layers; the others touch only those that lose channels."""
        result = small(include=("block2",), reconstruct=reconstruct)
        old, new = (small_models.initializers(model) for model in (small_models.residual(), result.model))
        operands = {node.name: list(node.input[1:]) for node in small_models.residual().graph.node}
        changed = {name for name in old if not np.array_equal(old[name], new[name])}
        expected = {*operands["block2.a"], operands["block2.b"][0]}
        expected |= {*operands["block2.b"]} if reconstruct in ("full", "joint") else set()
        expected |= {*operands["head"]} if reconstruct == "full" else set()
        assert changed == expected

    def test_scope(self) -> None:
        inner, everything = small(scope="inner"), small(scope="all")
        stream = [row for row in inner.report.not_pruned if "residual stream" in row.reason]
        assert {row.producer for row in stream} == {"stem", "block1.b", "block2.b"}
        assert dict(cut(inner).values()) == {8: 8, 12: 6}
        assert dict(cut(everything).values()) == {8: 4, 12: 6}
        assert not any("residual stream" in row.reason for row in everything.report.not_pruned)
        runs_like(everything, small_models.residual(), {"x": images(2)})

    def test_nothing_left_to_prune_says_why(self) -> None:
        with pytest.raises(NothingToPruneError, match="is excluded by --exclude"):
            small(exclude=(".",))
        with pytest.raises(NothingToPruneError, match="not among what --include names"):
            small(include=("no such node",))


class TestInputs:
    def test_several_inputs(self) -> None:
        net = Net(5)
        seen = net.relu(net.conv(net.input("image", ("N", 3, 8, 8)), 3, 8, name="eye"))
        flat = net.node("Flatten", net.node("GlobalAveragePool", net.relu(net.conv(seen, 8, 8, name="eye2"))))
        told = net.relu(net.gemm(net.input("facts", ("N", 5)), 5, 8, name="ear"))
        model = net.model(net.gemm(net.node("Concat", flat, told, axis=1), 16, 4))
        facts = np.random.default_rng(2).standard_normal((48, 5)).astype(np.float32)
        arrays = {"facts": facts, "image": images()}
        result = thinet_onnx.prune(model, arrays, keep=0.5)
        assert cut(result) == {"eye": (8, 4), "eye2": (8, 4), "ear": (8, 4)}
        runs_like(result, model, {name: value[:3] for name, value in arrays.items()})

        def feeds(size: int) -> Any:
            for start in range(0, 48, size):
                yield {name: value[start : start + size] for name, value in arrays.items()}

        for size in (1, 6):  # the same items as an iterable of feeds
            again = thinet_onnx.prune(model, feeds(size), keep=0.5)
            assert again.model.SerializeToString() == result.model.SerializeToString()

    def test_open_height_and_width(self) -> None:
        net = Net(6)
        x = net.relu(net.conv(net.input("x", ("N", 3, "height", "width")), 3, 8, name="one"))
        model = net.model(net.head(net.relu(net.conv(x, 8, 8, name="two")), 8))
        with pytest.raises(OptionError, match=r"'x' .*open sizes.* --shape x:1,3,224,224"):
            thinet_onnx.inspect(model)
        found = thinet_onnx.inspect(model, shapes={"x": (1, 3, 12, 10)})
        assert found.macs == 12 * 10 * 9 * (3 * 8 + 8 * 8) + 8 * 5
        arrays = {"x": images(size=12)}
        result = thinet_onnx.prune(model, arrays, keep=0.5, shapes={"x": (1, 3, 12, 12)})
        assert result.report.after.macs == 12 * 12 * 9 * (3 * 4 + 4 * 4) + 4 * 5
        assert result.model.graph.input == model.graph.input  # sizes stay open in the file
        runs_like(result, model, {"x": images(2, size=16)})
        without = thinet_onnx.prune(model, arrays, keep=0.5)  # the data says the sizes as well
        assert without.model.graph == result.model.graph
        with pytest.raises(DataError, match="doesn't fit input"):
            thinet_onnx.prune(model, arrays, keep=0.5, shapes={"x": (1, 3, 16, 16)})

    @pytest.mark.parametrize("target", [(1, 8), (1, -1)])
    def test_a_file_for_one_image_with_a_reshape_that_says_so(self, target: tuple[int, int]) -> None:
        net = Net(7)
        x = net.relu(net.conv(net.input("x", (1, 3, 8, 8)), 3, 8, name="one"))
        pooled = net.node("GlobalAveragePool", net.relu(net.conv(x, 8, 8, name="two")))
        flat = net.node("Reshape", pooled, net.tensor(np.array(target), name="target"))
        model = net.model(net.gemm(flat, 8, 4))
        result = thinet_onnx.prune(model, images(), keep=0.5)
        assert cut(result) == {"one": (8, 4), "two": (8, 4)}
        runs_like(result, model, {"x": images(1)})
        assert result.model.graph.input == model.graph.input
        assert small_models.run(result.model, {"x": images(1)})[0].shape == (1, 4)
        (reshape,) = (node for node in result.model.graph.node if node.op_type == "Reshape")
        said = small_models.initializers(result.model)[reshape.input[1]].tolist()
        assert said == [1, 4 if target[1] == 8 else -1]
        assert result.report.fidelity[0].samples == 6

    def test_a_model_that_mixes_its_items_runs_one_by_one(self) -> None:
        """Each image's own mean is taken off; several images together would share one."""
        net = Net(8)
        x = net.relu(net.conv(net.input("x", (1, 3, 8, 8)), 3, 8, name="one"))
        x = net.node("Sub", x, net.node("ReduceMean", x, axes=[0, 2, 3], keepdims=1))
        model = net.model(net.head(net.relu(net.conv(x, 8, 8, name="two")), 8))
        result = thinet_onnx.prune(model, images(), keep=0.5)
        before, after = (
            np.concatenate([small_models.run(m, {"x": images()[i : i + 1]})[0] for i in held_out(48)])
            for m in (model, result.model)
        )
        error = np.linalg.norm(after - before) / np.linalg.norm(before)
        assert result.report.fidelity[0].relative_error == pytest.approx(error, rel=1e-3)

    def test_weights_in_a_file_beside_the_model_stay_there(self, tmp_path: Path) -> None:
        net = Net(9)
        x = net.relu(net.conv(net.input("x", ("N", 3, 8, 8)), 3, 32, name="one"))
        model = net.model(net.head(net.relu(net.conv(x, 32, 32, name="two")), 32))
        expected = thinet_onnx.prune(model, images(), keep=0.5)
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        onnx.save(copy, tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=100)
        result = thinet_onnx.prune(tmp_path / "m.onnx", images(), keep=0.5, output=tmp_path / "out.onnx")
        written = onnx.load(tmp_path / "out.onnx")
        runs_like(result, model, {"x": images(2)})
        for name, value in small_models.initializers(expected.model).items():
            np.testing.assert_array_equal(small_models.initializers(written)[name], value)
        assert sorted(file.name for file in tmp_path.iterdir()) == ["m.bin", "m.onnx", "out.onnx", "out.onnx.data"]
        sizes = [(tmp_path / name).stat().st_size for name in ("out.onnx", "out.onnx.data")]
        assert result.report.after.bytes == sum(sizes)

    def test_no_data_is_refused(self) -> None:
        with pytest.raises(OptionError, match="No calibration data"):
            thinet_onnx.prune(small_models.plain(), None)

    def test_one_sample_is_too_little(self) -> None:
        with pytest.raises((OptionError, DataError), match="2"):
            thinet_onnx.prune(small_models.plain(), images(1))

    def test_random_data_warns(self) -> None:
        result = pipeline.prune(small_models.plain(), None, PruneOptions(keep=0.5), random_data=True)
        assert "random data" in result.report.warnings[0]
        assert "random data" in result.report.options["data"]
        with pytest.raises(OptionError, match="contradict"):
            pipeline.prune(small_models.plain(), images(), PruneOptions(keep=0.5), random_data=True)


def held_out(count: int, seed: int = 0) -> list[int]:
    """The items that a run holds out, by the documented split."""
    source = data.from_arrays(np.zeros((count, 1), np.float32), [data.InputSpec("x", (None, 1), np.dtype("f"))])
    return data.split(source, pipeline.HELD_OUT, seed)[1]


class TestReport:
    def test_fidelity_is_measured_on_what_was_held_out(self) -> None:
        x = images()[held_out(48)]
        (before,), (after,) = (small_models.run(m, {"x": x}) for m in (small_models.residual(), small().model))
        (row,) = small().report.fidelity
        assert row.samples == 6
        assert row.relative_error == pytest.approx(np.linalg.norm(after - before) / np.linalg.norm(before), rel=1e-3)
        norms = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
        assert row.cosine == pytest.approx(((before * after).sum(1) / norms).mean(), rel=1e-3)
        assert row.top1 == pytest.approx((before.argmax(1) == after.argmax(1)).mean())

    def test_accuracy_is_that_on_the_test_data(self, tmp_path: Path) -> None:
        with np.load(MODELS / "fashion_test.npz") as file:
            pixels, labels = file["images"][:300], file["labels"][:300]
        np.savez(tmp_path / "test.npz", images=pixels, labels=labels)
        result = thinet_onnx.prune(
            MODELS / "fashion_resnet.onnx", CALIBRATION, keep=0.5, samples=64, test_data=tmp_path / "test.npz", **PIXELS
        )
        x = ((pixels.astype(np.float32) / 255 - 0.286) / 0.353).transpose(0, 3, 1, 2)
        right = [
            (small_models.run(model, {"image": x})[0].argmax(1) == labels).mean()
            for model in (onnx.load(MODELS / "fashion_resnet.onnx"), result.model)
        ]
        accuracy = result.report.accuracy
        assert accuracy is not None
        assert accuracy.samples == 300
        assert (accuracy.before, accuracy.after) == pytest.approx(right, abs=1 / 300)
        assert right[0] > 0.9
        assert right[1] > 0.75

    def test_channels_are_counted(self) -> None:
        report = small().report
        assert report.channels_before == 8 + 12 + 8 + 12 + 8 + 5
        assert report.channels_after == report.channels_before - 6 - 6
        assert [(row.name, row.before, row.after) for row in report.groups if row.after < row.before] == [
            ("block1.a", 12, 6), ("block2.a", 12, 6),
        ]  # fmt: skip
        assert {row.producer for row in report.not_pruned} == {"stem", "block1.b", "block2.b", "head"}

    def test_latency_is_measured(self) -> None:
        latency = small().report.latency
        assert latency is not None
        assert latency.before_ms > 0
        assert latency.after_ms > 0
        assert latency.runs >= 5
        assert latency.batch == 1

    def test_the_json_file_tells_all_that_is_needed_to_check_the_cut(self, tmp_path: Path) -> None:
        """Without a refit the pruned file equals the original with zeros in what the plan's consumers lose."""
        model = small_models.residual()
        onnx.save(model, tmp_path / "net.onnx")
        np.savez(tmp_path / "data.npz", x=images())
        arguments = ["prune", "net.onnx", "out.onnx", "--data", "data.npz", "--keep", "0.5", "--scope", "all"]
        arguments += ["--reconstruct", "none", "--seed", "5", "--json", "report.json"]
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path)
            outcome = CliRunner().invoke(cli.app, arguments)
        assert outcome.exit_code == 0, outcome.output
        told = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
        assert {"python", "numpy", "onnx", "onnxruntime", "thinet-onnx"} <= told["versions"].keys()
        assert told["versions"]["onnx"] == onnx.__version__
        assert told["seed"] == 5
        assert (told["options"]["keep"], told["options"]["method"], told["options"]["scope"]) == (0.5, "thinet", "all")
        assert told["options"]["reconstruct"] == "none"
        assert "data.npz" in told["options"]["data"]
        groups = {entry["name"]: entry for entry in told["plan"]["groups"]}
        assert {name: (group["before"], group["after"], len(group["kept"])) for name, group in groups.items()} == {
            "stem": (8, 4, 4), "block1.a": (12, 6, 6), "block2.a": (12, 6, 6),
        }  # fmt: skip
        masked = small_models.initializers(model)
        masked = {name: value.copy() for name, value in masked.items()}
        for consumer in told["plan"]["consumers"]:
            assert consumer["node"] in {node.name for node in model.graph.node}
            np.moveaxis(masked[consumer["weight"]], consumer["axis"], 0)[consumer["removed"]] = 0
        x = {"x": images(4, seed=9)}
        (expected,) = small_models.run(small_models.replaced(model, masked), x)
        (found,) = small_models.run(onnx.load(tmp_path / "out.onnx"), x)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
        assert not np.allclose(found, small_models.run(model, x)[0], rtol=1e-2)

    def test_random_data_warns_on_the_screen(self, tmp_path: Path) -> None:
        onnx.save(small_models.plain(), tmp_path / "net.onnx")
        outcome = CliRunner().invoke(cli.app, ["prune", str(tmp_path / "net.onnx"), "--random-data", "--keep", "0.5"])
        assert outcome.exit_code == 0, outcome.output
        assert re.search(r"(?i)warning.*random data", " ".join(outcome.output.split()))
        assert (tmp_path / "net_pruned.onnx").exists()


class TestInspect:
    def test_a_small_network(self) -> None:
        found = thinet_onnx.inspect(small_models.residual())
        assert {row.name: row.before for row in found.groups} == {"stem": 8, "block1.a": 12, "block2.a": 12}
        assert found.channels == 53
        assert found.removable == 48
        assert [(row.producer, row.channels) for row in found.not_pruned] == [("head", 5)]
        assert "output" in found.not_pruned[0].reason
        inner = thinet_onnx.inspect(small_models.residual(), scope="inner")
        assert [row.name for row in inner.groups] == ["block1.a", "block2.a"]
        assert inner.macs == found.macs == 64 * 9 * (3 * 8 + 4 * 8 * 12) + 8 * 5
        assert inner.macs_removable == 64 * 9 * 4 * 8 * 12  # both branches may vanish
        assert inner.macs_removable < found.macs_removable
        for one in (found, inner):
            assert (one.removable_inner, one.macs_inner) == (inner.removable, inner.macs_removable)

    @pytest.mark.parametrize("name", ["resnet", "vgg"])
    def test_path_and_proto_agree(self, name: str) -> None:
        path = MODELS / f"fashion_{name}.onnx"
        one, other = thinet_onnx.inspect(path), thinet_onnx.inspect(onnx.load(path))
        assert one.groups == other.groups
        assert one.not_pruned == other.not_pruned
        assert one.removable > 0.95 * one.channels
        report = fashion(name, target="macs=50%").report
        assert (report.before.macs, report.before.params) == (one.macs, one.params)

    def test_the_model_stays_as_it_is(self) -> None:
        model = small_models.residual()
        before = model.SerializeToString()
        thinet_onnx.inspect(model)
        assert model.SerializeToString() == before


def test_names_and_notes_of_the_file_survive() -> None:
    model = small_models.residual()
    model.doc_string, model.producer_name, model.graph.doc_string = "a net", "somebody", "its graph"
    model.graph.node[0].doc_string = "a node"
    entry = model.metadata_props.add()
    entry.key, entry.value = "classes", "a,b,c"
    result = thinet_onnx.prune(model, images(), keep=0.5).model
    for field in ("doc_string", "producer_name", "ir_version", "opset_import"):
        assert getattr(result, field) == getattr(model, field)
    assert [entry.key for entry in result.metadata_props] == ["classes", "thinet_onnx.config"]
    assert result.metadata_props[0] == entry
    assert result.graph.doc_string == "its graph"
    assert [(n.name, n.op_type, n.doc_string) for n in result.graph.node] == [
        (n.name, n.op_type, n.doc_string) for n in model.graph.node
    ]
    assert [t.name for t in result.graph.initializer] == [t.name for t in model.graph.initializer]
    assert result.graph.output == model.graph.output
    assert all(numpy_helper.to_array(t).dtype != np.float64 for t in result.graph.initializer)
