"""Branches of a sum that go altogether: which can, what is left in their place, and that the network stays right."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from graphs import Build, tensor
from oracle import analysed, holds, prune

from thinet_onnx import pipeline, runtime, surgery
from thinet_onnx.data import random_source
from thinet_onnx.groups import Analysis
from thinet_onnx.options import PruneOptions, Target
from thinet_onnx.setting import open_model

INNER = "/one"


def block(
    b: Build, x: str, inside: Callable[[Build, str], str] = lambda b, h: h, behind: Callable[[Build, str], str] = lambda b, h: h
) -> str:  # fmt: skip
    """x + behind(two(inside(relu(one(x))))), all 8 channels wide."""
    h = b.node("Relu", b.conv(x, 8, 8, name="one"))
    return b.node("Add", x, behind(b, b.conv(inside(b, h), 8, 8, name="two")))


def network(make: Callable[[Build, str], str]) -> Build:
    b = Build(17)
    x = b.node("Relu", b.conv(b.input(dynamic="n"), 3, 8, name="stem"))
    b.output(b.conv(b.node("Relu", make(b, x)), 8, 5, name="head"), rank=4)
    return b


def gate(b: Build, h: str) -> str:
    """Squeeze and excite, all inside the branch."""
    return b.node("Mul", h, b.node("Sigmoid", b.conv(b.node("GlobalAveragePool", h), 8, 8, k=1, name="gate")))


def transposed(b: Build, x: str) -> str:
    """The branch ends in a transposed convolution without bias."""
    h = b.node("Relu", b.conv(x, 8, 8, name="one"))
    return b.node("Add", b.node("ConvTranspose", h, b.weight(8, 8, 3, 3), out="two", pads=[1] * 4), x)


def depthwise(b: Build, h: str) -> str:
    return b.node("Relu", b.conv(h, 8, 8, group=8, name="each"))


VANISH = {
    "plain": block,
    "batch norm behind": lambda b, x: block(b, x, behind=lambda b, h: b.batch_norm(h, 8)),
    "batch norm and depthwise inside": lambda b, x: block(b, x, inside=lambda b, h: depthwise(b, b.batch_norm(h, 8))),
    "transposed": transposed,
    "scaled": lambda b, x: block(b, x, behind=lambda b, h: b.node("Mul", h, b.weight(1, 8, 1, 1))),
}


def erase(analysis: Analysis) -> list[np.ndarray]:
    """Nothing left of the inner group, the others whole."""
    return [np.arange(0 if group.name == INNER else group.size) for group in analysis.groups]


@pytest.mark.parametrize("name", VANISH)
def test_a_branch_may_vanish(name: str) -> None:
    b = network(VANISH[name])
    analysis = analysed(b.model(), b.feed())
    (inner,) = [group for group in analysis.groups if group.name == INNER]
    assert (inner.floor, inner.vanishes) == (0, True)
    plan, pruned = holds(b.model(), analysis, erase(analysis), b.feed())
    assert [layer.node for layer in plan.erased] == ["two"]
    names = {node.output[0] for node in pruned.graph.node}
    assert not {"one", "two", "each"} & names
    assert {"one.weight", "two.weight", "one.bias"}.isdisjoint(entry.name for entry in pruned.graph.initializer)
    assert tensor(pruned, "two").shape == (1, 8, 1, 1)
    assert runtime.outputs(pruned, [b.feed(batch=3)])[0][0].shape == (3, 5, 8, 8)


def test_a_gated_branch_keeps_what_the_gate_needs() -> None:
    """The inner channels feed the gate's layer too, which feeds no sum."""
    b = network(lambda b, x: block(b, x, inside=gate))
    analysis = analysed(b.model(), b.feed())
    assert [group.floor for group in analysis.groups if group.name == INNER] == [1]


def shared(b: Build, x: str) -> str:
    """The layer that ends the branch has a second use."""
    y = block(b, x)
    return b.node("Conv", y, "two.weight", "two.bias", pads=[1] * 4)


def seen(b: Build, x: str) -> str:
    y = block(b, x)
    b.output("one", rank=4)
    return y


def asked(b: Build, x: str) -> str:
    """The shape of a tensor inside is needed elsewhere."""
    y = block(b, x)
    return b.node("Reshape", y, b.node("Shape", "one"))


def multiplied(b: Build, x: str) -> str:
    h = b.node("Relu", b.conv(x, 8, 8, name="one"))
    return b.node("Mul", x, b.conv(h, 8, 8, name="two"))


def smaller(b: Build, x: str) -> str:
    """The sum broadcasts: the other side alone is not as large."""
    h = b.node("Relu", b.conv(x, 8, 8, name="one"))
    return b.node("Add", b.node("GlobalAveragePool", x), b.conv(h, 8, 8, name="two"))


def beside(b: Build, x: str) -> str:
    """A node that nobody needs has a bias with the branch's channels: it would stay in the file, and fail."""
    y = block(b, x)
    z = b.node("Gemm", b.input("z", (1, 4)), b.weight(4, 8), "one.bias")
    b.node("Reshape", z, b.ints(8))
    return y


STAY = {
    "a shared weight": shared, "an output of the graph": seen, "a shape": asked, "a product": multiplied,
    "broadcast": smaller, "a node that nobody needs": beside,
}  # fmt: skip


@pytest.mark.parametrize("name", STAY)
def test_a_branch_that_is_needed_otherwise_stays(name: str) -> None:
    b = network(STAY[name])
    analysis = analysed(b.model(), b.feed())
    assert not any(group.vanishes for group in analysis.groups)


def test_refits_of_an_erased_layer_set_its_constant() -> None:
    b = network(VANISH["plain"])
    analysis = analysed(b.model(), b.feed())
    _, pruned = prune(b.model(), analysis, erase(analysis))
    bias = np.arange(8, dtype=np.float32)
    result = surgery.refit(pruned, [surgery.Refit("two", 1, np.zeros((8, 0, 3, 3), np.float32), 2, bias)])
    np.testing.assert_array_equal(tensor(result, "two").ravel(), bias)
    onnx.checker.check_model(result)


def test_the_pipeline_erases_a_branch_that_does_nothing() -> None:
    """A branch of tiny weights is the cheapest thing to lose: its mean goes into the constant."""
    b = network(VANISH["plain"])
    model = b.model()
    for entry in model.graph.initializer:
        if entry.name == "two.weight":
            small = np.frombuffer(entry.raw_data, np.float32) * np.float32(1e-5)
            entry.raw_data = small.tobytes()
    data = random_source(open_model(model, {}).inputs, samples=64, seed=0)
    result = pipeline.prune(model, data, PruneOptions(target=Target.parse("macs=60%"), round_to=4, drop_branches=True))
    assert result.plan.erased
    assert {"one", "two"}.isdisjoint(node.output[0] for node in result.model.graph.node)
    assert result.report.fidelity[0].relative_error < 1e-3
    assert result.report.oracle_error < 1e-5
