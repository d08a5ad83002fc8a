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

from thinet_onnx import runtime
from thinet_onnx import stream as streams
from thinet_onnx.graph import Graph
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
    monkeypatch.setattr(streams.runtime, "session", lambda proto: opened.append(proto) or real(proto))
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


class TestMemory:
    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """Where temporary folders are made."""
        monkeypatch.setattr(streams.tempfile, "tempdir", str(tmp_path))
        return tmp_path

    @pytest.mark.parametrize("name", MODELS)
    def test_activations_that_go_to_a_file_are_the_same(
        self, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(streams, "_RAM", 0)
        model, batches = MODELS[name](), feeds(3, 2)
        stops = [[tensor] for tensor in outputs_of(model)]
        stream = Stream(Graph(model), batches, stops)
        seen, used = [], 0
        for stop in range(len(stops)):
            seen.append([{n: np.array(value) for n, value in shown.items()} for shown in stream.advance(stop)])
            used = max(used, len(list(folder.rglob("*-*-*"))))
        check(seen, model, batches, stops)
        assert used >= len(batches)
        stream.close()
        gc.collect()
        assert list(folder.iterdir()) == []

    def test_what_is_kept_is_bounded(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """With room for three tensors, those of the fourth and the fifth batch go to files, at every cut.

        Files of tensors that are needed no more make way for the next.
        """
        model, batches = small_models.residual(), feeds(2, 2, 2, 2, 2)
        each = 2 * 8 * 8 * 8 * 4
        monkeypatch.setattr(streams, "_RAM", 3 * each)
        sums = [node.key for node in Graph(model).nodes if node.op == "Add"]
        stops = [["v1"], [sums[0]], [sums[1]]]
        stream = Stream(Graph(model), batches, [*stops, outputs_of(model)[-1:]])
        for stop in range(len(stops)):
            list(stream.advance(stop))
            assert len(list(folder.rglob("*-*-*"))) == 2
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

    def test_closing_twice_does_no_harm(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(streams, "_RAM", 0)
        stream = Stream(Graph(small_models.residual()), feeds(2), [["v1"], ["v6"]])
        list(stream.advance(0))
        stream.close()
        stream.close()
        assert list(folder.iterdir()) == []
