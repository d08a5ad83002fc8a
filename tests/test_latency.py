"""Latency targets: layers are priced by what they take, and whole files are measured, with watches that foretell times."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import small_models
from small_models import Net
from typer.testing import CliRunner

import thinet_onnx
from thinet_onnx import cli, engines, known_times, pipeline, runtime, stopwatch
from thinet_onnx.budget import Curve
from thinet_onnx.cost import Cost
from thinet_onnx.errors import ModelError, OptionError, TargetError
from thinet_onnx.graph import Graph
from thinet_onnx.groups import Analysis, analyse
from thinet_onnx.latency import NEAR, Bench, Landing, Search
from thinet_onnx.options import PruneOptions, Silent, Target
from thinet_onnx.profile import Profile, TimeTerm
from thinet_onnx.stopwatch import Compared, EngineStopwatch, Feeds

Price = Callable[[Analysis], float]
"""Milliseconds of a network, by its layers."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder for each test, and nothing known of other tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(known_times, "_OF_PROCESS", {})
    return tmp_path / "cache" / "thinet-onnx"


def by_work(analysis: Analysis, per_mac: float = 1e-6, per_layer: float = 0.0) -> float:
    return sum(
        per_mac * layer.taps * layer.positions * layer.in_channels * layer.out_channels / layer.groups + per_layer
        for layer in analysis.context.linears
    )


class Watch:
    """Tells times from the layers of a model, without running for long; `whole` multiplies those of more than one layer."""

    threads = 0

    def __init__(self, price: Price = by_work, whole: float = 1.0, title: str = "Watch 1.0") -> None:
        self.price, self.whole, self.title = price, whole, title
        self.alone = self.compared = 0

    def one(self, model: onnx.ModelProto, feeds: Feeds, seconds: float) -> float:
        self.alone += 1
        return self._time(model, feeds)

    def both(self, first: onnx.ModelProto, second: onnx.ModelProto, feeds: Feeds, seconds: float) -> Compared:
        self.compared += 1
        one, other = self._time(first, feeds), self._time(second, feeds)
        return Compared(one, other, other / one)

    def _time(self, model: onnx.ModelProto, feeds: Feeds) -> float:
        graph = Graph(model)
        found = analyse(graph, runtime.observed_shapes(graph, feeds))
        return 0.1 + self.price(found) * (self.whole if len(found.context.linears) > 1 else 1.0)


def chain(*widths: int) -> onnx.ModelProto:
    """Convolutions one behind the other on 8×8 pixels, and a head."""
    net = Net()
    x, before = net.input("x", ("N", 3, 8, 8)), 3
    for number, width in enumerate(widths):
        x, before = net.relu(net.conv(x, before, width, name=f"conv{number}")), width
    return net.model(net.head(x, before))


def blocks(count: int = 3) -> onnx.ModelProto:
    """Residual blocks of 16 channels."""
    net = Net()
    x = net.relu(net.conv(net.input("x", ("N", 3, 8, 8)), 3, 16, name="stem"))
    for number in range(count):
        inner = net.relu(net.conv(x, 16, 16, name=f"{number}.a"))
        x = net.relu(net.node("Add", x, net.conv(inner, 16, 16, name=f"{number}.b")))
    return net.model(net.head(x, 16))


def bench_of(model: onnx.ModelProto, watch: Watch, batch: int = 1) -> tuple[Bench, Analysis]:
    feeds = {"x": np.random.default_rng(0).standard_normal((batch, 3, 8, 8)).astype(np.float32)}
    graph = Graph(model)
    return Bench(model, model, feeds, batch, watch), analyse(graph, runtime.observed_shapes(graph, feeds))


def land(
    model: onnx.ModelProto, watch: Watch, target: str, errors: Sequence[float] = (), floors: int = 1
) -> tuple[Landing, Analysis, list[Any]]:
    """Search with error curves that rise faster and faster; `errors` are what the groups' last channels are worth."""
    bench, analysis = bench_of(model, watch)
    curves = [
        Curve(rate * np.arange(size + 1) ** 2.0 / size**2)
        for size, rate in zip(analysis.sizes, errors or [1.0] * len(analysis.sizes), strict=True)
    ]
    choices = [
        list(range(0 if group.floor == 0 else floors, group.size + 1, 2 if group.size % 2 == 0 and floors != 1 else 1))
        for group in analysis.groups
    ]
    cost = bench.profile(analysis, range(len(curves)), Silent())
    search = Search(bench, analysis, choices, curves, cost)
    return search.land(Target.parse(target), Silent()), analysis, search.tried


@pytest.mark.parametrize(
    ("text", "expected", "again"),
    [
        ("latency=60%", Target("latency", 0.6, True), "latency=60%"),
        ("latency=0.6", Target("latency", 0.6, True), "latency=60%"),
        ("latency=4.0ms", Target("latency", 4.0, False), "latency=4ms"),
        ("latency=1s", Target("latency", 1000.0, False), "latency=1000ms"),
        ("latency=250us", Target("latency", 0.25, False), "latency=0.25ms"),
    ],
)
def test_spelling(text: str, expected: Target, again: str) -> None:
    assert Target.parse(text) == expected
    assert str(expected) == again


@pytest.mark.parametrize(
    "text", ["latency=4", "latency=4G", "macs=4ms", "latency=0ms", "latency=4 min", "latency=120%"]
)
def test_spelling_that_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="--target"):
        Target.parse(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "openvino"}, "--engine says how latency is measured; it needs --target latency="),
        ({"latency_batch": 4}, "--latency-batch says how"),
        ({"threads": 2}, "--threads says how"),
        ({"target": "latency=60%", "latency_batch": 0}, "must be 1 or more"),
        ({"target": "latency=60%", "threads": -1}, "must be between 0 and 1,024"),
        ({"target": "latency=60%", "engine": "abacus"}, "choose one of ort, openvino, tensorrt"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        thinet_onnx.prune(chain(8, 8), None, random_data=True, **options)


class TestTerm:
    TERM = TimeTerm((4, 8), (8, 16), ((1.0, 2.0), (2.0, 4.0)), ((0, ((0, 1),)), (2, ((1, 1),))))

    @pytest.mark.parametrize(
        ("kept", "expected"),
        [([4, 6], 1.0), ([8, 14], 4.0), ([6, 6], 1.5), ([4, 10], 1.5), ([6, 10], 2.25), ([2, 6], 0.5), ([0, 14], 0.0)],
    )
    def test_times_between_and_below_the_grid(self, kept: list[int], expected: float) -> None:
        assert self.TERM.value(kept) == pytest.approx(expected)
        assert self.TERM.value([1, kept[1]], 0, kept[0]) == pytest.approx(expected)

    def test_a_group_that_takes_the_layer_along(self) -> None:
        term = TimeTerm((4,), (8,), ((3.0,),), ((4, ()), (8, ()), (1, ((2, 0),))), gone=(2,))
        assert term.value([1, 1, 5]) == 3.0
        assert Cost([term], 3).saving([1, 1, 5], 2, 0) == 3.0


class TestProfile:
    def test_full_widths_take_what_the_network_takes(self) -> None:
        """Exact where times are bilinear: layers and a rest."""
        bench, analysis = bench_of(chain(16, 32, 16), Watch(whole=1.5))
        cost = bench.profile(analysis, [0, 1, 2], Silent())
        assert cost.total(analysis.sizes) == pytest.approx(bench.original_ms)
        saved = cost.saving(analysis.sizes, 0, 8)
        assert saved == pytest.approx(1e-6 * analysis.macs.saving(analysis.sizes, 0, 8), rel=1e-6)

    def test_layers_that_take_longer_alone_are_scaled(self) -> None:
        bench, analysis = bench_of(chain(16, 16), Watch(whole=0.25))
        cost = bench.profile(analysis, [0, 1], Silent())
        assert cost.total(analysis.sizes) == pytest.approx(bench.original_ms)

    def test_every_kind_of_layer_is_timed_alone(self) -> None:
        """Grouped, depthwise with a multiplier, transposed and matrix layers run at every width of the grid."""
        net = Net(1)
        x = net.relu(net.conv(net.input("x", ("N", 3, 8, 8)), 3, 6))
        x = net.relu(net.conv(x, 6, 6, group=3))
        x = net.relu(net.conv(x, 6, 12, group=6))
        x = net.relu(net.node("ConvTranspose", x, net.weight(12, 4, 2, 2), strides=[2, 2]))
        x = net.node("Reshape", x, net.tensor(np.array([0, 4, 256])))
        x = net.relu(net.node("MatMul", net.weight(6, 4), x))
        x = net.node("Transpose", x, perm=[0, 2, 1])
        x = net.node("MatMul", x, net.weight(6, 10))
        model = net.model(net.gemm(net.node("Flatten", net.relu(x)), 2560, 5))
        bench, analysis = bench_of(model, Watch(), batch=2)
        shapes = runtime.observed_shapes(Graph(model), bench.feeds)
        cost = Profile(analysis, model, shapes, EngineStopwatch("ort", 1), seconds=0.0, clock=lambda: 0.0).cost(
            1e9, range(len(analysis.groups)), Silent()
        )
        assert len(cost.terms) == 1 + len(analysis.context.linears) == 8
        grids = [(len(term.inputs), len(term.outputs)) for term in cost.terms if isinstance(term, TimeTerm)]
        assert grids[0][0] == 1 and grids[0][1] > 1
        assert grids[2][0] == 1 and grids[2][1] > 1  # depthwise
        assert min(grids[1]) > 1 and min(grids[3]) > 1

    def test_equal_layers_are_measured_once_and_kept(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        watch = Watch()
        bench, analysis = bench_of(blocks(1), watch)
        first = bench.profile(analysis, [0, 1], Silent())
        once = watch.alone
        bench_more, analysis_more = bench_of(blocks(4), watch)
        bench_more.profile(analysis_more, range(5), Silent())
        assert watch.alone == once + 2  # the original, and the empty run
        (file,) = cache.iterdir()
        assert json.loads(file.read_text())["engine"] == "Watch 1.0"
        for content in (file.read_text(), "{", '{"times_ms": 3}', "[]"):
            monkeypatch.setattr(known_times, "_OF_PROCESS", {})
            file.write_text(content)
            again = Watch()
            bench, analysis = bench_of(blocks(1), again)
            assert bench.profile(analysis, [0, 1], Silent()).total([8, 8]) == pytest.approx(first.total([8, 8]))
            assert (again.alone == 2) == (content != "{" and len(content) > 20)
            assert json.loads(file.read_text())["times_ms"]

    def test_a_folder_that_cannot_be_written(self, cache: Path) -> None:
        cache.parent.parent.mkdir(exist_ok=True)
        cache.parent.write_text("a file where the folder would be")
        bench, analysis = bench_of(chain(8, 8), Watch())
        assert bench.profile(analysis, [0, 1], Silent()).total([8, 8]) == pytest.approx(bench.original_ms)

    def test_a_slow_engine_gets_a_coarse_grid(self) -> None:
        bench, analysis = bench_of(chain(32, 32), Watch())
        shapes = runtime.observed_shapes(Graph(bench.model), bench.feeds)
        ticks = iter(range(0, 1000, 10))
        cost = Profile(analysis, bench.model, shapes, bench.stopwatch, clock=lambda: float(next(ticks))).cost(
            1.0, [0, 1], Silent()
        )
        inner = cost.terms[2]
        assert isinstance(inner, TimeTerm)
        assert inner.inputs == inner.outputs == (8, 32)

    def test_a_layer_that_the_engine_refuses(self) -> None:
        def refuse(analysis: Analysis) -> float:
            if len(analysis.context.linears) == 1:
                raise ModelError("no such kernel")
            return 1.0

        bench, analysis = bench_of(chain(8, 8), Watch(refuse))
        with pytest.raises(ModelError, match=r"conv0 can't be timed alone, as --target latency needs: no such kernel"):
            bench.profile(analysis, [0, 1], Silent())


class TestLanding:
    @pytest.mark.parametrize("per_layer", [0.0, 0.02])
    @pytest.mark.parametrize("whole", [1.0, 1.5])
    @pytest.mark.parametrize("target", ["latency=80%", "latency=60%", "latency=45%"])
    def test_lands_near_the_target(self, target: str, whole: float, per_layer: float) -> None:
        watch = Watch(lambda analysis: by_work(analysis, 1e-6, per_layer), whole)
        landing, _, tried = land(chain(16, 32, 32, 16), watch, target)
        assert abs(landing.timed.measured - Target.parse(target).value) <= NEAR
        assert landing.remark is None
        assert landing.timed.tries == len(tried) == watch.compared <= 6
        assert landing.timed.pruned_ms / landing.timed.original_ms == pytest.approx(landing.timed.measured)

    def test_milliseconds(self) -> None:
        model = chain(16, 32, 32, 16)
        bench, _ = bench_of(model, Watch())
        landing, *_ = land(model, Watch(), f"latency={0.7 * bench.original_ms}ms")
        assert landing.timed.measured == pytest.approx(0.7, abs=NEAR)
        assert landing.timed.wanted == pytest.approx(0.7)

    def test_layers_that_cost_nothing_stay_whole(self) -> None:
        """Only the layers with 32 channels on one side take time."""

        def price(analysis: Analysis) -> float:
            linears = analysis.context.linears
            return sum(
                1e-3 * layer.out_channels
                for layer in linears
                if layer.window.kernel == (3, 3) and layer.in_channels == 3
            )

        landing, analysis, _ = land(chain(32, 16, 16), Watch(price), "latency=97%")
        assert landing.widths[0] < 32
        assert landing.widths[1:] == analysis.sizes[1:]

    def test_narrow_layers_that_are_slow_are_avoided(self) -> None:
        """Half as wide as 32 takes longer than 24 in the second layer, so that it is cut elsewhere."""

        def price(analysis: Analysis) -> float:
            slow = [layer for layer in analysis.context.linears if layer.out_channels <= 16 and layer.positions == 64]
            return by_work(analysis) + 0.3 * len([layer for layer in slow if layer.taps == 9])

        landing, _, _ = land(chain(32, 32, 32), Watch(price), "latency=75%")
        assert landing.timed.measured <= 0.75 + NEAR
        assert min(landing.widths) > 16

    def test_branches_go_where_overhead_dominates(self) -> None:
        watch = Watch(lambda analysis: by_work(analysis, 1e-8, 1.0))
        landing, analysis, _ = land(blocks(3), watch, "latency=80%")
        gone = [analysis.groups[index].name for index, width in enumerate(landing.widths) if width == 0]
        assert len(gone) == 1 and gone[0].endswith(".a")
        assert landing.timed.measured == pytest.approx(0.75, abs=0.01)  # 6 of 8 layers
        assert landing.remark is not None and "none comes nearer to latency=80% than 7" in landing.remark

    def test_a_rest_that_shrinks_along_does_not_hide_what_can_be_reached(self) -> None:
        """By single layers 40% can't be reached; measured it can, and not by cutting everything."""
        watch = Watch(whole=4.0)
        landing, analysis, _ = land(chain(16, 32, 32, 16), watch, "latency=40%")
        assert abs(landing.timed.measured - 0.4) <= NEAR
        assert landing.timed.predicted > 0.4
        assert sum(landing.widths) > len(analysis.sizes)

    def test_the_least_share_is_told(self) -> None:
        watch = Watch(lambda analysis: by_work(analysis, 1e-7, 1.0))
        with pytest.raises(
            TargetError, match=r"every group at its fastest \d+\.\d% of the original's time remain, measured on"
        ):
            land(chain(16, 16), watch, "latency=50%")
        assert watch.compared <= 2

    def test_times_that_widths_do_not_change(self) -> None:
        with pytest.raises(TargetError, match="No group that may be pruned takes any time"):
            land(chain(16, 16), Watch(lambda analysis: float(len(analysis.context.linears))), "latency=50%")

    def test_more_milliseconds_than_the_original_takes(self) -> None:
        with pytest.raises(TargetError, match=r"--target latency=1000ms: the original takes .* at batch 1, no longer"):
            land(chain(16, 16), Watch(), "latency=1s")


class TestPipeline:
    def test_the_report_tells_what_was_measured(self) -> None:
        watch = Watch()
        options = PruneOptions(target=Target.parse("latency=60%"), scope="all", latency_batch=2)
        data = np.random.default_rng(0).standard_normal((32, 3, 8, 8)).astype(np.float32)
        result = pipeline.prune(blocks(2), data, options, stopwatch=watch)
        timed = result.report.latency_target
        assert timed is not None and (timed.engine, timed.batch) == ("Watch 1.0", 2)
        assert abs(timed.measured - 0.6) <= NEAR
        assert result.report.target_met
        widths = {group.name: group.after for group in result.plan.groups}
        assert min(widths.values()) < 16
        before, after = (watch._time(model, {"x": data[:2]}) for model in (blocks(2), result.model))
        assert after / before == pytest.approx(timed.measured, abs=1e-6)

    def test_a_batch_that_the_file_rules_out(self) -> None:
        options = PruneOptions(target=Target.parse("latency=60%"), latency_batch=3)
        data = np.zeros((32, 3, 8, 8), np.float32)
        with pytest.raises(OptionError, match=r"--latency-batch 3 doesn't fit the model: it takes batches of 1 only"):
            pipeline.prune(small_models.plain(batch=1), data, options)

    def test_an_engine_that_is_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def absent(*_: Any, **__: Any) -> None:
            raise OptionError("TensorRT is not installed")

        monkeypatch.setattr(engines, "make", absent)
        with pytest.raises(OptionError, match="TensorRT is not installed"):
            thinet_onnx.prune(chain(8, 8), None, random_data=True, target="latency=60%", engine="tensorrt")

    def test_the_command_in_onnx_runtime(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The engine really runs; what it takes is replaced, for times mean nothing here."""
        real, watch = EngineStopwatch.both, Watch()

        def both(self: EngineStopwatch, first: onnx.ModelProto, second: onnx.ModelProto, *rest: Any) -> Compared:
            assert real(self, first, second, *rest).ratio > 0
            return watch.both(first, second, *rest)

        monkeypatch.setattr(EngineStopwatch, "both", both)
        bounded = stopwatch.interleaved
        monkeypatch.setattr(
            stopwatch, "interleaved", lambda calls, **_: bounded(calls, runs=5, seconds=0.0, warm_up=0.0)
        )
        model, output, found = (str(tmp_path / name) for name in ("net.onnx", "small.onnx", "report.json"))
        onnx.save(chain(32, 64, 64), model)
        arguments = [
            "prune",
            model,
            output,
            "--random-data",
            "--samples",
            "16",
            "--target",
            "latency=60%",
            "--threads",
            "1",
        ]
        environment = {"COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb"}
        outcome = CliRunner(env=environment).invoke(cli.app, [*arguments, "--json", found])
        assert outcome.exit_code == 0, outcome.output
        assert "Latency target 60%: 0." in outcome.output
        assert f"of the original, measured on ONNX Runtime {runtime.version()} at batch 1" in outcome.output
        report = json.loads(Path(found).read_text())
        assert report["latency_target"]["engine"] == f"ONNX Runtime {runtime.version()}"
        assert report["latency_target"]["threads"] == 1
        assert report["after"]["macs"] < report["before"]["macs"]
        small_models.run(onnx.load(output), {"x": np.zeros((3, 3, 8, 8), np.float32)})


class Keeping(Watch):
    """Keeps the files that it timed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[onnx.ModelProto] = []

    def both(self, first: onnx.ModelProto, second: onnx.ModelProto, feeds: Feeds, seconds: float) -> Compared:
        self.seen.append(second)
        return super().both(first, second, feeds, seconds)


def constant_biases(model: onnx.ModelProto) -> tuple[tuple[tuple[int, ...], bool], ...]:
    """For each convolution the shape of its weight, and whether its bias is a constant of the file."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    convs = [node for node in model.graph.node if node.op_type == "Conv"]
    return tuple((tuple(constants[node.input[1]].dims), node.input[2] in constants) for node in convs)


@pytest.mark.parametrize(("way", "constant"), [("joint", 2), ("full", 1), ("none", 0)])
def test_what_is_timed_has_the_biases_that_the_refit_will_make_constants(way: str, constant: int) -> None:
    net = Net(0, opset=18)
    x = net.input("x", ("N", 3, 8, 8))
    for index, (channels, filters) in enumerate([(3, 4), (4, 16), (16, 4)]):
        bias = net.node("CastLike", net.tensor(net.rng.standard_normal(filters)), x)  # doubles, until it runs
        weight = net.weight(filters, channels, 3, 3)
        x = net.relu(net.node("Conv", x, weight, bias, name=f"conv{index}", pads=[1] * 4))
    model, watch = net.model(net.head(x, 4)), Keeping()
    data = np.random.default_rng(0).standard_normal((64, 3, 8, 8)).astype(np.float32)
    options = PruneOptions(target=Target.parse("latency=80%"), reconstruct=way, include=("conv1",))  # type: ignore[arg-type]
    final = pipeline.prune(model, data, options, stopwatch=watch).model
    assert sum(is_constant for _, is_constant in constant_biases(final)) == constant
    assert constant_biases(final) in [constant_biases(seen) for seen in watch.seen]
