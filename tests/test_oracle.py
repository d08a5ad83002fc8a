"""The oracle over everything: random small graphs, the two bundled networks, and real files where they are at hand.

*The original with zeros in place of the weights that read removed channels equals the pruned file.*
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx.printer
import pytest
from conftest import ZOO_ABSENT
from graphs import Build, two_convs
from hypothesis import HealthCheck, assume, given, note, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from oracle import TOLERANCE, Feeds, analysed, holds, prune, random_kept
from PIL import Image

from thinet_onnx import graph as graphs
from thinet_onnx import verify
from thinet_onnx.groups import Analysis

ROOT = Path(__file__).parents[1]
SEEDS = 10
SCOPES = {"inner": True, "all": False}

# --- random graphs -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Map:
    """A feature map: its name, channels, and height = width."""

    name: str
    channels: int
    size: int


Step = Callable[[st.DataObject, Build, Map], list[Map]]
"""Adds operators behind a feature map; returns the maps that came of it."""


def convolve(data: st.DataObject, b: Build, x: Map) -> list[Map]:
    channels = data.draw(st.sampled_from([4, 6, 8, 12]), "channels")
    kernel, stride = data.draw(st.sampled_from([(1, 1), (3, 1), (3, 2)]), "kernel and stride")
    y = b.conv(x.name, x.channels, channels, kernel, strides=[stride, stride], bias=data.draw(st.booleans(), "bias"))
    return [Map(y, channels, -(-x.size // stride))]


def depthwise(data: st.DataObject, b: Build, x: Map) -> list[Map]:
    times = data.draw(st.sampled_from([1, 1, 2]), "multiplier")
    return [Map(b.conv(x.name, x.channels, times * x.channels, group=x.channels), times * x.channels, x.size)]


def grouped(data: st.DataObject, b: Build, x: Map) -> list[Map]:
    groups = data.draw(st.sampled_from([g for g in (2, 3, 4, x.channels) if x.channels % g == 0]), "groups")
    channels = groups * data.draw(st.sampled_from([1, 2, 4]), "channels of a group")
    return [Map(b.conv(x.name, x.channels, channels, 1, group=groups), channels, x.size)]


def residual(data: st.DataObject, b: Build, x: Map) -> list[Map]:
    inner = b.node("Relu", b.conv(x.name, x.channels, 6))
    return [Map(b.node("Add", x.name, b.conv(inner, 6, x.channels)), x.channels, x.size)]


def branches(data: st.DataObject, b: Build, x: Map) -> list[Map]:
    """Concat, of the map itself in part."""
    counts = data.draw(st.lists(st.sampled_from([0, 3, 4]), min_size=2, max_size=3), "branches (0 is the map itself)")
    names = [b.conv(x.name, x.channels, count, 1) if count else x.name for count in counts]
    return [Map(b.node("Concat", *names, axis=1), sum(count or x.channels for count in counts), x.size)]


def split(data: st.DataObject, b: Build, x: Map) -> list[Map]:
    first = data.draw(st.integers(1, x.channels - 1), "size of the first piece")
    sizes = [first, x.channels - first]
    if x.channels % 2 == 0 and data.draw(st.booleans(), "halves"):
        sizes = [x.channels // 2] * 2
        extra = {"num_outputs": 2} if b.opset >= 18 else {}
        names = b.many("Split", x.name, outs=2, axis=1, **extra)
    elif b.opset < 13:
        names = b.many("Split", x.name, outs=2, axis=1, split=sizes)
    else:
        names = b.many("Split", x.name, b.ints(*sizes), outs=2, axis=1)
    return [Map(name, size, x.size) for name, size in zip(names, sizes, strict=True)]


def excite(data: st.DataObject, b: Build, x: Map) -> list[Map]:
    small = b.node("Relu", b.conv(b.node("GlobalAveragePool", x.name), x.channels, 4, 1))
    gate = b.node("Sigmoid", b.conv(small, 4, x.channels, 1))
    return [Map(b.node("Mul", *data.draw(st.permutations([x.name, gate]), "operands")), x.channels, x.size)]


def pool(data: st.DataObject, b: Build, x: Map) -> list[Map]:
    op = data.draw(st.sampled_from(["MaxPool", "AveragePool"]), "pool")
    return [Map(b.node(op, x.name, kernel_shape=[3, 3], pads=[1, 1, 1, 1]), x.channels, x.size)]


def pad(data: st.DataObject, b: Build, x: Map) -> list[Map]:
    before, after, border = (data.draw(st.integers(0, 2), "amount") for _ in range(3))
    amounts = b.ints(0, before, border, border, 0, after, border, border)
    return [Map(b.node("Pad", x.name, amounts, b.scalar(0.5)), x.channels + before + after, x.size + 2 * border)]


def shuffle(data: st.DataObject, b: Build, x: Map) -> list[Map]:
    groups = data.draw(st.sampled_from([g for g in (1, 2, 3, 4) if x.channels % g == 0]), "groups")
    target = b.ints(
        *data.draw(
            st.sampled_from([(0, groups, -1, x.size, x.size), (1, groups, x.channels // groups, x.size, x.size)])
        )
    )
    y = b.node("Transpose", b.node("Reshape", x.name, target), perm=[0, 2, 1, 3, 4])
    return [Map(b.node("Reshape", y, b.ints(0, -1, x.size, x.size)), x.channels, x.size)]


def normalise(data: st.DataObject, b: Build, x: Map) -> list[Map]:
    return [Map(b.batch_norm(x.name, x.channels), x.channels, x.size)]


def rectify(data: st.DataObject, b: Build, x: Map) -> list[Map]:
    return [Map(b.node("Relu", x.name), x.channels, x.size)]


STEPS: list[Step] = [
    convolve, depthwise, grouped, residual, branches, split, excite, pool, pad, shuffle, normalise, rectify,
]  # fmt: skip


def end(data: st.DataObject, b: Build, x: Map) -> None:
    """A layer that reads the map, and is an output."""
    how = data.draw(st.sampled_from(["conv", "flatten", "pool"]), "end")
    if how == "conv":
        b.output(b.conv(x.name, x.channels, 3))
        return
    y = b.node("Flatten", b.node("GlobalAveragePool", x.name) if how == "pool" else x.name)
    width = x.channels * (1 if how == "pool" else x.size**2)
    b.output(b.gemm(b.node("Relu", b.gemm(y, width, 6)), 6, 3))


def random_graph(data: st.DataObject) -> Build:
    """A stem, some steps behind maps that are at hand, and ends behind some of them."""
    b = Build(data.draw(st.sampled_from([11, 13, 18]), "opset"), data.draw(st.integers(0, 3), "weights"))
    maps = convolve(data, b, Map(b.input(), 3, 8))
    for step in data.draw(st.lists(st.sampled_from(STEPS), min_size=1, max_size=7), "steps"):
        x = maps[-1 - data.draw(st.integers(0, min(2, len(maps) - 1)), "behind")]
        if x.channels > 1 and x.channels <= 48:
            maps += step(data, b, x)
    ends = data.draw(st.sets(st.integers(0, min(2, len(maps) - 1)), min_size=1, max_size=2), "ends behind")
    for place in sorted(ends):
        end(data, b, maps[-1 - place])
    return b


@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)  # fmt: skip
@given(st.data())
def test_random_graphs(data: st.DataObject) -> None:
    b = random_graph(data)
    model = b.model()
    note(onnx.printer.to_text(model))
    analysis = analysed(model, b.feed())
    assume(analysis.groups)
    kept = random_kept(analysis, data.draw(st.integers(0, 999), "plan"))
    note(str({group.name: units.tolist() for group, units in zip(analysis.groups, kept, strict=True)}))
    holds(model, analysis, kept, b.feed())


# --- the oracle itself -------------------------------------------------------------------------------------------------


def test_oracle_sees_other_channels_and_another_number() -> None:
    b = two_convs()
    model = b.model()
    analysis = analysed(model, b.feed())
    plan, pruned = prune(model, analysis, [np.arange(6)])
    assert verify.oracle(model, pruned, plan, [b.feed()]) <= TOLERANCE
    _, other = prune(model, analysis, [np.arange(1, 7)])
    assert verify.oracle(model, other, plan, [b.feed()]) > 100 * TOLERANCE
    assert verify.oracle(model, model, plan, [b.feed()]) > 100 * TOLERANCE


@pytest.mark.parametrize("name", ["first.weight", "first.bias", "second.weight", "second.bias"])
def test_oracle_sees_one_changed_number(name: str) -> None:
    b = two_convs()
    model = b.model()
    plan, pruned = prune(model, analysed(model, b.feed()), [np.arange(6)])
    (entry,) = [t for t in pruned.graph.initializer if t.name == name]
    value = numpy_helper.to_array(entry).copy()
    value.flat[0] += 0.1
    entry.CopyFrom(numpy_helper.from_array(value, name))
    assert verify.oracle(model, pruned, plan, [b.feed()]) > TOLERANCE


# --- the bundled networks ----------------------------------------------------------------------------------------------


def fashion_images(rows: slice) -> np.ndarray:
    with np.load(ROOT / "models" / "fashion_calibration.npz") as data:
        pixels = data["images"][rows].astype(np.float32)
    return ((pixels / 255 - 0.286) / 0.353).transpose(0, 3, 1, 2)


@cache
def bundled(name: str) -> tuple[onnx.ModelProto, Analysis]:
    model = graphs.load(ROOT / "models" / f"{name}.onnx")
    return model, analysed(model, {model.graph.input[0].name: fashion_images(slice(1))})


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("name", ["fashion_resnet", "fashion_vgg"])
def test_bundled_networks(name: str, scope: str, seed: int) -> None:
    model, analysis = bundled(name)
    feeds = {model.graph.input[0].name: fashion_images(slice(seed, seed + 4))}
    holds(model, analysis, random_kept(analysis, seed, inner=SCOPES[scope], least=1), feeds)


def test_bundled_residual_network_has_both_scopes() -> None:
    _, analysis = bundled("fashion_resnet")
    assert {group.coupled for group in analysis.groups} == {True, False}


# --- real files --------------------------------------------------------------------------------------------------------

BESIDE = ROOT.parent / "shared"
ZOO = [
    "aka_cifar_resnet20", "aka_cifar_resnet56", "mobilenet_v2_tv_l11_bn", "efficientnet_lite0_l13", "own_yolov8_like_l12",
    "ultraface_rfb320", "ppocrv4_det",
]  # fmt: skip
IMAGENET = (np.array([0.485, 0.456, 0.406]) * 255, np.array([0.229, 0.224, 0.225]) * 255)
NORMALISED = {"ultraface_rfb320": (np.full(3, 127.0), np.full(3, 128.0))}


@cache
def real(name: str) -> tuple[onnx.ModelProto, Analysis, str, tuple[int, ...]]:
    """A model, its analysis, and the name and shape of its input."""
    manifest = json.loads((BESIDE / "zoo" / "manifest.json").read_text())
    (entry,) = [entry for entry in manifest if entry["name"] == name]
    ((feed, shape),) = entry["feed"].items()
    model = graphs.load(BESIDE / "zoo" / entry["file"])
    return model, analysed(model, photograph(name, feed, tuple(shape), 0)), feed, tuple(shape)


def photograph(name: str, feed: str, shape: tuple[int, ...], index: int) -> Feeds:
    """One real image, the way the model wants it."""
    files = sorted((BESIDE / "data" / "imagenet224").glob("*.jpg"))
    with Image.open(files[7 * index]) as image:
        pixels = np.asarray(image.convert("RGB").resize(shape[:1:-1], Image.Resampling.BILINEAR), np.float64)
    mean, std = NORMALISED.get(name, IMAGENET)
    return {feed: ((pixels - mean) / std).astype(np.float32).transpose(2, 0, 1)[None]}


@pytest.mark.skipif(not (BESIDE / "zoo").is_dir(), reason=ZOO_ABSENT)
@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("name", ZOO)
def test_real_files(name: str, scope: str, seed: int) -> None:
    model, analysis, feed, shape = real(name)
    kept = random_kept(analysis, seed, inner=SCOPES[scope], least=1)
    holds(model, analysis, kept, photograph(name, feed, shape, seed))
