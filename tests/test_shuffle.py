"""Channel shuffles become Gather nodes: which runs of layout operators are one, and that the network stays the same."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from graphs import Build
from oracle import analysed, holds, random_kept

from thinet_onnx import engines, pipeline, runtime, shuffle
from thinet_onnx import graph as graphs
from thinet_onnx.data import random_source
from thinet_onnx.options import PruneOptions
from thinet_onnx.setting import open_model

Make = Callable[[Build, str], str]
CHANNELS = 12


def rows(groups: int) -> Make:
    """As most exporters write it."""

    def make(b: Build, h: str) -> str:
        y = b.node("Reshape", h, b.ints(-1, groups, CHANNELS // groups, 6, 6))
        y = b.node("Transpose", y, perm=[0, 2, 1, 3, 4])
        return b.node("Reshape", y, b.ints(-1, CHANNELS, 6, 6))

    return make


def computed(b: Build, h: str) -> str:
    """With sizes that are asked of the tensor."""
    shape = b.node("Shape", h)
    batch, height = (b.node("Gather", shape, b.ints(axis), axis=0) for axis in (0, 2))
    target = b.node("Concat", batch, b.ints(2), b.ints(CHANNELS // 2), height, b.ints(6), axis=0)
    y = b.node("Transpose", b.node("Reshape", h, target), perm=[0, 2, 1, 3, 4])
    return b.node("Reshape", y, shape)


def flat(b: Build, h: str) -> str:
    """Space is flattened on the way."""
    y = b.node("Transpose", b.node("Reshape", h, b.ints(0, 3, CHANNELS // 3, 36)), perm=[0, 2, 1, 3])
    return b.node("Reshape", y, b.ints(0, CHANNELS, 6, 6))


def last(b: Build, h: str) -> str:
    """Channels last."""
    y = b.node("Reshape", b.node("Transpose", h, perm=[0, 2, 3, 1]), b.ints(-1, 6, 6, 2, CHANNELS // 2))
    y = b.node("Reshape", b.node("Transpose", y, perm=[0, 1, 2, 4, 3]), b.ints(-1, 6, 6, CHANNELS))
    return b.node("Transpose", y, perm=[0, 3, 1, 2])


def halves(b: Build, h: str) -> str:
    """Even and odd channels apart, batch and channels in one axis (as the authors of ShuffleNet v2 wrote it)."""
    y = b.node("Transpose", b.node("Reshape", h, b.ints(CHANNELS // 2, 2, 36)), perm=[1, 0, 2])
    y = b.node("Reshape", y, b.ints(2, -1, CHANNELS // 2, 6, 6))
    even, odd = (b.node("Gather", y, b.const(np.array(index)), axis=0) for index in (0, 1))
    return b.node("Concat", b.node("Relu", odd), even, axis=1)


SHUFFLES = {
    "rows of 2": rows(2),
    "rows of 3": rows(3),
    "computed": computed,
    "flat": flat,
    "last": last,
    "halves": halves,
}


def network(make: Make, dynamic: str = "n") -> Build:
    """conv → shuffle → conv."""
    b = Build()
    h = b.node("Relu", b.conv(b.input(shape=(1, 3, 6, 6), dynamic=dynamic), 3, CHANNELS, name="first"))
    b.output(b.conv(make(b, h), CHANNELS, 5, name="second"), rank=4)
    return b


def unrolled(b: Build, *batches: int) -> onnx.ModelProto:
    model = b.model()
    graph = graphs.Graph(model)
    return shuffle.unroll(model, [runtime.observed_shapes(graph, b.feed(batch=batch)) for batch in batches or (1,)])


@pytest.mark.parametrize("name", SHUFFLES)
def test_a_shuffle_becomes_a_gather(name: str) -> None:
    b = network(SHUFFLES[name])
    model, plain = b.model(), unrolled(b)
    kinds = [node.op_type for node in plain.graph.node]
    assert "Gather" in kinds
    assert not {"Reshape", "Shape"} & set(kinds)
    onnx.checker.check_model(plain)
    (before,), (after,) = (runtime.outputs(m, [b.feed()], optimise=False) for m in (model, plain))
    np.testing.assert_array_equal(before[0], after[0])


@pytest.mark.parametrize("name", SHUFFLES)
def test_channels_of_a_shuffle_go_one_by_one(name: str) -> None:
    b = network(SHUFFLES[name])
    plain = unrolled(b)
    analysis = analysed(plain, b.feed())
    assert [group.size for group in analysis.groups] == ([6, 6] if name == "halves" else [CHANNELS])
    for seed in range(3):
        holds(plain, analysis, random_kept(analysis, seed), b.feed())


@pytest.mark.parametrize("name", SHUFFLES)
def test_openvino_answers_likewise(name: str) -> None:
    """It would fold a permutation whose axis is counted from the first into the next convolution the wrong way round."""
    b = network(SHUFFLES[name])
    plain = unrolled(b)
    assert all(node.attribute[0].i < 0 for node in plain.graph.node if node.op_type == "Gather")
    wanted = runtime.outputs(b.model(), [b.feed()])[0]
    program = engines.make("openvino", threads=1).load(plain, {name: array.shape for name, array in b.feed().items()})
    np.testing.assert_allclose(program.run(b.feed())[0], wanted[0], rtol=1e-4, atol=1e-5)


def test_a_chain_of_shuffles_ties_nothing() -> None:
    """Three units of ShuffleNet v2: half of the channels passes, the other half goes through a convolution."""
    b = Build()
    h = b.node("Relu", b.conv(b.input(shape=(1, 3, 6, 6)), 3, CHANNELS, name="first"))
    for _ in range(3):
        kept, worked = b.many("Split", rows(2)(b, h), b.ints(CHANNELS // 2, CHANNELS // 2), outs=2, axis=1)
        h = b.node("Concat", kept, b.node("Relu", b.conv(worked, CHANNELS // 2, CHANNELS // 2)), axis=1)
    b.output(b.conv(h, CHANNELS, 5, name="last"), rank=4)
    assert analysed(b.model(), b.feed()).removable < analysed(unrolled(b), b.feed()).removable
    analysis = analysed(unrolled(b), b.feed())
    assert analysis.removable == analysis.channels - 5
    for seed in range(3):
        holds(unrolled(b), analysis, random_kept(analysis, seed), b.feed())


def mixed(b: Build, h: str) -> str:
    """A shuffle for one item only: with two, batch and channels change places."""
    y = b.node("Transpose", b.node("Reshape", h, b.ints(2, -1, 6, 6)), perm=[1, 0, 2, 3])
    return b.node("Reshape", y, b.ints(-1, CHANNELS, 6, 6))


def test_what_is_a_shuffle_for_one_item_only_stays() -> None:
    b = network(mixed)
    assert unrolled(b).graph.node[2].op_type == "Gather"
    unchanged = unrolled(b, 1, 2)
    assert unchanged.SerializeToString() == b.model().SerializeToString()


@pytest.mark.parametrize(
    "make",
    [
        lambda b, h: h,
        lambda b, h: b.node("Reshape", b.node("Reshape", h, b.ints(-1, CHANNELS, 36)), b.ints(-1, CHANNELS, 6, 6)),
        lambda b, h: b.node("Reshape", b.node("Reshape", h, b.ints(0, CHANNELS * 6, 6)), b.ints(0, CHANNELS, 6, 6)),
        lambda b, h: b.node("Transpose", b.node("Transpose", h, perm=[0, 1, 3, 2]), perm=[0, 1, 3, 2]),
        lambda b, h: b.node("Relu", b.node("SpaceToDepth", b.node("DepthToSpace", h, blocksize=2), blocksize=2)),
    ],
    ids=["nothing", "flattened", "channels and rows", "turned", "pixel shuffle"],
)
def test_other_layouts_stay(make: Make) -> None:
    b = network(make)
    model = b.model()
    shapes = runtime.observed_shapes(graphs.Graph(model), b.feed())
    assert shuffle.unroll(model, [shapes]) is model


def test_a_tensor_that_others_read_stays() -> None:
    b = Build()
    h = b.node("Relu", b.conv(b.input(shape=(1, 3, 6, 6)), 3, CHANNELS, name="first"))
    apart = b.node("Reshape", h, b.ints(1, 2, 6, 6, 6))
    y = b.node("Reshape", b.node("Transpose", apart, perm=[0, 2, 1, 3, 4]), b.ints(1, CHANNELS, 6, 6))
    b.output(b.conv(y, CHANNELS, 5, name="second"), b.node("Neg", apart), rank=None)
    plain = unrolled(b)
    assert [node.op_type for node in plain.graph.node] == ["Conv", "Relu", "Reshape", "Gather", "Conv", "Neg"]
    before, after = (runtime.outputs(m, [b.feed()], optimise=False)[0] for m in (b.model(), plain))
    assert all(np.array_equal(x, y) for x, y in zip(before, after, strict=True))


def test_the_pipeline_prunes_shuffles() -> None:
    """`inspect` counts every channel but the last convolution's, and `prune` cuts them to what is asked."""
    model = network(rows(2)).model()
    told = pipeline.inspect(model, shapes={"x": (1, 3, 6, 6)})
    assert (told.channels, told.removable) == (CHANNELS + 5, CHANNELS)
    data = random_source(open_model(model, {}).inputs, samples=16, seed=0)
    result = pipeline.prune(model, data, PruneOptions(keep=0.5, round_to=1))
    assert result.report.oracle_error < 1e-5
    assert [node.op_type for node in result.model.graph.node] == ["Conv", "Relu", "Gather", "Conv"]
    (cut,) = result.plan.groups
    assert cut.after == CHANNELS // 2
