"""Tensors seen at the stops of a stream against one run of the whole model."""

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import small_models
from onnx import TensorProto, helper
from small_models import Net

from thinet_onnx import runtime, shelf
from thinet_onnx import stream as streams
from thinet_onnx.choose import View
from thinet_onnx.consumers import Consumer, collect
from thinet_onnx.graph import Graph
from thinet_onnx.groups import analyse
from thinet_onnx.observe import Watcher
from thinet_onnx.stream import Stream

Feeds = dict[str, np.ndarray[Any, Any]]
Seen = list[list[dict[str, np.ndarray[Any, Any]]]]


def feeds(*sizes: int, shape: Sequence[int] = (3, 8, 8), name: str = "x", seed: int = 0) -> list[Feeds]:
    """Batches of these sizes."""
    rng = np.random.default_rng(seed)
    return [{name: rng.standard_normal((size, *shape)).astype(np.float32)} for size in sizes]


def walk(stream: Stream, stops: Sequence[Sequence[str]]) -> Seen:
    """Everything that all stops show, copied, since a stream may drop what it has shown."""
    return [
        [{name: np.array(value) for name, value in seen.items()} for seen in stream.advance(stop)]
        for stop in range(len(stops))
    ]


def check(seen: Seen, model: onnx.ModelProto, batches: Sequence[Feeds], stops: Sequence[Sequence[str]]) -> None:
    assert [len(shown) for shown in seen] == [len(batches)] * len(stops)
    for names, shown in zip(stops, seen, strict=True):
        for batch, values in zip(batches, shown, strict=True):
            expected = small_models.run_for(model, list(dict.fromkeys(names)), batch)
            assert values.keys() == expected.keys()
            for name, value in expected.items():
                np.testing.assert_allclose(values[name], value, rtol=1e-4, atol=1e-5)


def branching() -> onnx.ModelProto:
    """Branches that leave and meet again, weights behind a Transpose, a constant that follows from constants alone."""
    net = Net(1)
    stem = net.relu(net.conv(net.input("x", ("N", 3, 8, 8)), 3, 6, name="stem"))
    left = net.relu(net.conv(stem, 6, 4, name="left"))
    right = net.relu(net.conv(stem, 6, 5, kernel=1, name="right"))
    both = net.node("Concat", left, right, axis=1)
    late = net.conv(net.node("Concat", both, stem, axis=1), 15, 7, name="late")
    flat = net.node("Flatten", net.node("GlobalAveragePool", late))
    weight = net.node("Transpose", net.weight(4, 7))
    doubled = net.node("Mul", weight, net.tensor(np.float32(2.0)))
    return net.model(net.node("MatMul", flat, doubled))


def outputs_of(model: onnx.ModelProto) -> list[str]:
    """The outputs of all nodes that depend on an input, in order."""
    graph = Graph(model)
    return [node.key for node in graph.nodes if node.key not in graph.derived]


MODELS = {"plain": small_models.plain, "residual": small_models.residual, "branching": branching}


class TestStops:
    @pytest.mark.parametrize("name", MODELS)
    def test_every_tensor_at_a_stop_of_its_own(self, name: str) -> None:
        model, batches = MODELS[name](), feeds(3, 3, 1)
        stops = [[tensor] for tensor in outputs_of(model)]
        check(walk(Stream(Graph(model), batches, stops), stops), model, batches, stops)

    @pytest.mark.parametrize("name", MODELS)
    @pytest.mark.parametrize("seed", range(3))
    def test_some_tensors_at_some_stops(self, name: str, seed: int) -> None:
        model, batches = MODELS[name](), feeds(2, 2, seed=seed)
        rng = np.random.default_rng(seed)
        names = ["x", *outputs_of(model)]
        places = np.sort(rng.choice(len(names), 4, replace=False))
        # At each stop also some tensor of before: seen already, or passed by without being looked at.
        stops = [[names[place], names[rng.integers(place + 1)]] for place in places]
        check(walk(Stream(Graph(model), batches, stops), stops), model, batches, stops)

    def test_a_tensor_may_be_seen_again_and_again(self) -> None:
        model, batches = small_models.residual(), feeds(2)
        names = outputs_of(model)
        stops = [[names[1], "x"], [names[6], names[1], names[6]], [names[1]], ["x", names[-1]]]
        check(walk(Stream(Graph(model), batches, stops), stops), model, batches, stops)

    def test_a_model_with_two_inputs(self) -> None:
        net = Net(2)
        a = net.conv(net.input("a", ("N", 3, 6, 6)), 3, 4)
        b = net.conv(net.input("b", ("N", 2, 6, 6)), 2, 4)
        model = net.model(net.head(net.node("Add", a, b), 4))
        batches = [
            one | other
            for one, other in zip(
                feeds(2, 1, shape=(3, 6, 6), name="a"), feeds(2, 1, shape=(2, 6, 6), name="b"), strict=True
            )
        ]
        stops = [[b], [a], outputs_of(model)[-1:]]
        check(walk(Stream(Graph(model), batches, stops), stops), model, batches, stops)

    def test_what_a_branch_of_an_if_takes_from_outside(self) -> None:
        """The If reads tensors that are none of its operands."""
        net = Net(3)
        x = net.input("x", ("N", 3, 8, 8))
        inner = net.conv(x, 3, 4, name="inner")
        weight = net.weight(4, 4, 1, 1)

        def branch(name: str, node: onnx.NodeProto) -> onnx.GraphProto:
            return helper.make_graph([node], name, [], [helper.make_tensor_value_info(f"{name}_out", 1, None)])

        mean = net.node("ReduceMean", inner, keepdims=0)
        positive = net.node("Greater", mean, net.tensor(np.float32(0)))
        y = net.node(
            "If", positive,
            then_branch=branch("then", helper.make_node("Relu", [inner], ["then_out"])),
            else_branch=branch("else", helper.make_node("Conv", [inner, weight], ["else_out"])),
        )  # fmt: skip
        graph = helper.make_graph(net.nodes, "net", net.inputs, [onnx.ValueInfoProto(name=y)], net.tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        batches = feeds(1, 1, 1, 1, seed=5)
        signs = {bool(small_models.run_for(model, [positive], batch)[positive]) for batch in batches}
        assert signs == {True, False}
        stops = [[inner], [positive], [y]]
        check(walk(Stream(Graph(model), batches, stops), stops), model, batches, stops)

    def test_integer_and_boolean_tensors(self) -> None:
        net = Net(4)
        x = net.relu(net.conv(net.input("x", ("N", 3, 8, 8)), 3, 4))
        mask = net.node("Greater", x, net.tensor(np.float32(0.1)))
        top = net.node("ArgMax", x, axis=1, keepdims=0)
        y = net.node("Where", mask, x, net.tensor(np.float32(-1)))
        cast = net.node("Cast", top, to=TensorProto.FLOAT)
        total = net.node("Add", net.node("ReduceSum", y), net.node("ReduceSum", cast))
        batches = feeds(2, 2)
        stops = [[mask, top], [total]]
        model = net.model(total)
        check(walk(Stream(Graph(model), batches, stops), stops), model, batches, stops)


@pytest.mark.parametrize("name", MODELS)
def test_each_node_is_in_at_most_one_segment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told by the sessions that the stream opens: a node that depends on an input is in one of them and no more."""
    model = MODELS[name]()
    opened: list[onnx.ModelProto] = []
    real = runtime.session
    monkeypatch.setattr(streams.runtime, "session", lambda proto, weights: opened.append(proto) or real(proto, weights))
    names = outputs_of(model)
    stops = [names[1:2], names[4:5], names[4:6], names[-3:-2]]
    walk(Stream(Graph(model), feeds(2, 2), stops), stops)
    graph = Graph(model)
    ran = [out for proto in opened for node in proto.graph.node for out in node.output if out not in graph.derived]
    assert len(ran) == len(set(ran))
    last = max(names.index(stop[-1]) for stop in stops)
    assert set(ran) <= set(names[: last + 1])
    assert set(names[:2]) <= set(ran)


class TestReplace:
    def test_takes_effect_after_the_stop_and_not_before(self) -> None:
        model, batches = small_models.plain(), feeds(2, 2)
        graph = Graph(model)
        first, second = (node for node in graph.nodes if node.op == "Conv")
        rng = np.random.default_rng(0)
        old = {n: small_models.initializers(model)[n] for n in (*first.inputs[1:], *second.inputs[1:])}
        new = {name: rng.standard_normal(value.shape).astype(np.float32) for name, value in old.items()}
        stream = Stream(graph, batches, [[first.inputs[0]], [second.inputs[0]], ["v3"]])
        list(stream.advance(0))
        for operand in (1, 2):
            stream.replace(first, operand, new[first.inputs[operand]])
        # The second stop is the second convolution's input, so the first one runs with its new weights.
        seen = [{name: value.copy() for name, value in shown.items()} for shown in stream.advance(1)]
        halfway = small_models.replaced(model, {name: new[name] for name in first.inputs[1:]})
        check([seen], halfway, batches, [[second.inputs[0]]])
        with pytest.raises(AssertionError):
            check([seen], model, batches, [[second.inputs[0]]])
        for operand in (1, 2):
            stream.replace(second, operand, new[second.inputs[operand]])
            stream.replace(first, operand, old[first.inputs[operand]])  # too late: that segment has run
        seen = [{name: value.copy() for name, value in shown.items()} for shown in stream.advance(2)]
        check([seen], small_models.replaced(model, new), batches, [["v3"]])

    def test_adds_a_bias_that_was_absent(self) -> None:
        net = Net(5)
        conv = net.node("Conv", net.input("x", ("N", 3, 8, 8)), net.weight(4, 3, 3, 3))
        model, batches = net.model(net.relu(conv)), feeds(2)
        graph = Graph(model)
        stream = Stream(graph, batches, [["x"], [conv]])
        list(stream.advance(0))
        bias = np.arange(4, dtype=np.float32)
        stream.replace(graph.producer[conv], 2, bias)
        (shown,) = stream.advance(1)
        expected = small_models.run_for(model, [conv], batches[0])[conv] + bias[:, None, None]
        np.testing.assert_allclose(shown[conv], expected, rtol=1e-4, atol=1e-5)

    def test_weights_that_are_shared_or_derived_are_replaced_at_this_node_alone(self) -> None:
        net = Net(6)
        weight = net.node("Transpose", net.weight(3, 3, 1, 1, name="w"), perm=[1, 0, 2, 3])
        first = net.node("Conv", net.input("x", ("N", 3, 8, 8)), weight)
        second = net.node("Conv", net.relu(first), weight)
        model, batches = net.model(second), feeds(2)
        graph = Graph(model)
        stream = Stream(graph, batches, [[first], [second]])
        list(stream.advance(0))
        new = np.zeros((3, 3, 1, 1), np.float32)
        new[[0, 1, 2], [1, 2, 0]] = 1
        stream.replace(graph.producer[second], 1, new)
        (shown,) = stream.advance(1)
        before = np.maximum(small_models.run_for(model, [first], batches[0])[first], 0)
        np.testing.assert_allclose(shown[second], before[:, [1, 2, 0]], rtol=1e-5, atol=1e-6)


def test_two_streams_of_a_residual_network() -> None:
    """Side by side, the pruned one with new weights on its way: each shows its own network at every stop."""
    model, batches = small_models.residual(), feeds(2, 3)
    graph = Graph(model)
    convs = [node for node in graph.nodes if node.op == "Conv"]
    stops = [[node.inputs[0], *(["v1"] if node.name.endswith(".b") else [])] for node in convs]
    dense, thin = (Stream(graph, batches, stops) for _ in range(2))
    current = model
    rng = np.random.default_rng(1)
    for stop, node in enumerate(convs):
        for batch, left, right in zip(batches, dense.advance(stop), thin.advance(stop), strict=True):
            for shown, network in ((left, model), (right, current)):
                expected = small_models.run_for(network, stops[stop], batch)
                for name in stops[stop]:
                    np.testing.assert_allclose(shown[name], expected[name], rtol=1e-4, atol=1e-5)
        weight = small_models.initializers(current)[node.inputs[1]]
        new = (weight + 0.3 * rng.standard_normal(weight.shape)).astype(np.float32)
        thin.replace(node, 1, new)
        current = small_models.replaced(current, {node.inputs[1]: new})
    dense.close()
    thin.close()


def files(folder: Path) -> list[Path]:
    """All files below a folder."""
    return [path for path in folder.rglob("*") if path.is_file()]


class TestMemory:
    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """Where temporary folders are made."""
        monkeypatch.setattr(shelf.tempfile, "tempdir", str(tmp_path))
        return tmp_path

    @pytest.mark.parametrize("name", MODELS)
    def test_activations_that_go_to_a_file_are_the_same(self, name: str, folder: Path) -> None:
        model, batches = MODELS[name](), feeds(3, 2)
        stops = [[tensor] for tensor in outputs_of(model)]
        stream = Stream(Graph(model), batches, stops, memory=0)
        seen, used = [], 0
        for stop in range(len(stops)):
            seen.append([{n: np.array(value) for n, value in shown.items()} for shown in stream.advance(stop)])
            used = max(used, len(files(folder)))
        check(seen, model, batches, stops)
        assert used >= len(batches)
        stream.close()
        gc.collect()
        assert list(folder.iterdir()) == []

    def test_what_is_kept_is_bounded(self, folder: Path) -> None:
        """With room for three tensors, those of the fourth and the fifth batch go to files, at every cut.

        Files of tensors that are needed no more make way for the next.
        """
        model, batches = small_models.residual(), feeds(2, 2, 2, 2, 2)
        each = 2 * 8 * 8 * 8 * 4
        sums = [node.key for node in Graph(model).nodes if node.op == "Add"]
        stops = [["v1"], [sums[0]], [sums[1]]]
        stream = Stream(Graph(model), batches, [*stops, outputs_of(model)[-1:]], memory=3 * each)
        for stop in range(len(stops)):
            list(stream.advance(stop))
            assert len(files(folder)) == 2
        stream.close()

    def test_nothing_is_written_while_memory_lasts(self, folder: Path) -> None:
        model, batches = small_models.residual(), feeds(2, 2)
        stops = [[tensor] for tensor in outputs_of(model)]
        stream = Stream(Graph(model), batches, stops)
        for stop in range(len(stops)):
            list(stream.advance(stop))
            assert list(folder.iterdir()) == []
        stream.close()

    def test_what_is_needed_no_more_is_dropped(self) -> None:
        model, batches = small_models.plain(), feeds(2, 2)
        names = outputs_of(model)
        stops = [[name] for name in names]
        stream = Stream(Graph(model), batches, stops)
        for stop in range(len(stops)):
            list(stream.advance(stop))
            assert all(len(cache) <= 2 for cache in stream._cache)
        assert all(not cache for cache in stream._cache)
        assert len(batches[0]) == 1  # the caller's own dicts are left alone

    def test_closing_twice_does_no_harm(self, folder: Path) -> None:
        stream = Stream(Graph(small_models.residual()), feeds(2), [["v1"], ["v6"]], memory=0)
        list(stream.advance(0))
        stream.close()
        stream.close()
        assert list(folder.iterdir()) == []


def watched(model: onnx.ModelProto, name: str) -> Consumer:
    """The consumer that is a node of this name."""
    graph = Graph(model)
    shapes = runtime.observed_shapes(graph, feeds(1)[0])
    return next(consumer for consumer in collect(analyse(graph, shapes)) if consumer.name == name)


def patches(x: np.ndarray) -> np.ndarray:
    """All 3×3 patches of a padded input, channel-major, one a row: loops and slices, nothing else."""
    wide = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)])
    height, width = x.shape[2:]
    rows = [
        wide[n, :, i : i + 3, j : j + 3].ravel() for n in range(len(x)) for i in range(height) for j in range(width)
    ]
    return np.array(rows, np.float64)


def answers(y: np.ndarray) -> np.ndarray:
    """Outputs as rows in the order of `patches`."""
    return np.moveaxis(y, 1, -1).reshape(-1, y.shape[1]).astype(np.float64)


class TestWatcher:
    """What is gathered of a layer while streams run, against the layer's tensors."""

    def watch(
        self, consumer: Consumer, streams_of: Sequence[onnx.ModelProto], **options: Any
    ) -> tuple[Watcher, list[Any]]:
        batches = feeds(4, 4, 4, 4)
        watcher = Watcher(consumer, 16, 0, **options)
        shown = [
            [small_models.run_for(model, [*consumer.observed, consumer.layer.node.key], batch) for model in streams_of]
            for batch in batches
        ]
        for networks in shown:
            watcher.add(*networks)
        return watcher, [
            {name: np.concatenate([networks[place][name] for networks in shown]) for name in shown[0][place]}
            for place in range(len(streams_of))
        ]

    def test_what_some_columns_show_is_a_part_of_what_all_do(self) -> None:
        model = small_models.plain()
        consumer = watched(model, "conv2")
        channels = np.arange(consumer.layer.in_channels) % 3 != 1
        columns = np.repeat(channels, consumer.layer.taps)
        whole, _ = self.watch(consumer, [model, model], positions=400)
        part, _ = self.watch(consumer.narrowed(columns), [model, model], positions=400, columns=columns)
        for every, some in zip(whole.moments[0], part.moments[0], strict=True):
            found = [moments.statistics(centred=True) for moments in (every, some)]
            expected = found[0].narrowed(columns)
            for name in ("h", "p", "energy", "u", "t"):
                np.testing.assert_allclose(
                    getattr(found[1], name), getattr(expected, name), rtol=1e-4, atol=1e-5, err_msg=name
                )

    def test_moments_of_the_original(self) -> None:
        model = small_models.plain()
        consumer = watched(model, "conv2")
        watcher, (seen,) = self.watch(consumer, [model])
        (found,) = View.of(watcher, centred=False).parts
        u, t = patches(seen[consumer.layer.x]), answers(seen[consumer.layer.node.key])
        np.testing.assert_allclose(found.h, u.T @ u / len(u), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.p, t.T @ u / len(u), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.energy, np.square(t).mean(0), rtol=1e-4)

    @pytest.mark.parametrize("norm", [False, True], ids=["plain", "BatchNorm"])
    def test_targets_take_in_what_the_stream_has_lost(self, norm: bool) -> None:
        """Input: the pruned network's; target: the original's output, and what the pruned stream lacks of its own."""
        net = Net(7)
        x = net.relu(net.conv(net.input("x", ("N", 3, 8, 8)), 3, 8, name="stem"))
        stream = net.node("Add", x, net.conv(net.relu(net.conv(x, 8, 6, name="a")), 6, 8, name="b"))
        last = net.conv(net.relu(net.conv(x, 8, 6, name="c")), 6, 8, name="d")
        scale = np.ones(8)
        if norm:
            stats = [net.rng.uniform(0.5, 2, 8).astype(np.float32) for _ in range(4)]
            last = net.node("BatchNormalization", last, *(net.tensor(values) for values in stats))
            scale = stats[0] / np.sqrt(stats[3] + 1e-5)
        model = net.model(net.head(net.node("Add", stream, last), 8))
        weights = {node.name: node.input[1] for node in model.graph.node if node.op_type == "Conv"}
        lossy = small_models.initializers(model)[weights["b"]].copy()
        lossy[:, ::2] = 0
        other = 0.7 * small_models.initializers(model)[weights["c"]]
        thin = small_models.replaced(model, {weights["b"]: lossy, weights["c"]: other})
        consumer = watched(model, "d")
        assert consumer.other == [stream]
        watcher, (dense, pruned) = self.watch(consumer, [model, thin])
        (found,) = View.of(watcher, centred=True).parts
        u = patches(pruned[consumer.layer.x])
        assert not np.allclose(u, patches(dense[consumer.layer.x]))
        t = answers(dense[consumer.layer.node.key]) + answers(dense[stream] - pruned[stream]) / scale
        np.testing.assert_allclose(found.t, t.mean(0), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(found.energy, t.var(0), rtol=1e-3)
        expected = (t - t.mean(0)).T @ (u - u.mean(0)) / len(u)
        np.testing.assert_allclose(found.p, expected, rtol=1e-3, atol=1e-4)

    def test_sampled_rows_are_the_papers(self) -> None:
        """Ten of each image, each one filter at one position: partial sums that add up to the output less its bias."""
        model = small_models.plain()
        consumer = watched(model, "conv2")
        watcher, (seen,) = self.watch(consumer, [model], moments=False, sampled=True)
        rows, sums = watcher.sampled()
        assert rows.shape == (160, 8)
        bare = seen[consumer.layer.node.key] - consumer.bias[None, :, None, None]
        weight = small_models.initializers(model)[consumer.layer.weight]
        channels = patches(seen[consumer.layer.x]).reshape(16, 64, 8, 9)
        partial = np.einsum("ipck,dck->idpc", channels, weight.reshape(8, 8, 9)).reshape(16, 512, 8)
        filters = set()
        for image in range(16):
            mine = slice(10 * image, 10 * image + 10)
            distance = np.abs(rows[mine, None] - partial[image]).max(2)
            nearest = distance.argmin(1)
            assert distance.min(1).max() < 1e-5
            np.testing.assert_allclose(sums[mine], bare[image].reshape(512)[nearest], rtol=1e-3, atol=1e-4)
            assert len(set(nearest % 64)) == 10  # ten positions …
            filters.update(nearest // 64)  # … each with a filter of its own
        assert filters == set(range(8))

    def test_the_share_of_zeros(self) -> None:
        model = small_models.plain()
        consumer = watched(model, "head")
        watcher, (seen,) = self.watch(consumer, [model])
        assert watcher.zero_share()[1].tolist() == (seen[consumer.layer.x] == 0).mean(0).tolist()
        consumer = watched(model, "conv2")
        watcher, (seen,) = self.watch(consumer, [model])
        units, shares = watcher.zero_share()
        expected = (patches(seen[consumer.layer.x]).reshape(-1, 8, 9) == 0).mean((0, 2))
        np.testing.assert_allclose(shares, expected, rtol=1e-6)
        assert len(units) == 8
