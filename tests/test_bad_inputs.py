"""Files and requests that are damaged, hostile or odd: each gets one sentence that says what is wrong, and leaves no trace.

Rows are made in an empty folder; `test_errors.py` holds the everyday slips, and what goes wrong while a result is written.
"""

import json
import os
import re
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import small_models
from onnx import AttributeProto, TensorProto, helper, numpy_helper
from PIL import Image
from refusals import listing, run, sentence
from small_models import Net
from typer.testing import CliRunner

from thinet_onnx import arrays, cli, data, pipeline, sound
from thinet_onnx.options import PruneOptions

PLAIN = small_models.plain().SerializeToString()
WEIGHT = PLAIN.index(small_models.plain().graph.initializer[0].raw_data)
SHAPE = (3, 8, 8)
VALUES = np.random.default_rng(0).standard_normal((16, *SHAPE)).astype(np.float32)

Model = onnx.ModelProto
Make = Callable[[Path], Any]


def plain() -> Model:
    return Model.FromString(PLAIN)


def write(content: bytes, name: str = "model.onnx") -> Make:
    return lambda folder: (folder / name).write_bytes(content)


def packed(suffix: str) -> bytes:
    buffer = BytesIO()
    if suffix == "png":
        Image.new("RGB", (8, 8)).save(buffer, "png")
    elif suffix == "zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("model.onnx", PLAIN)
    else:
        np.savez(buffer, x=VALUES)
    return buffer.getvalue()


# --- files that are no models ----------------------------------------------------------------------------------------

DAMAGED = "not an ONNX|truncated|holds no graph|is damaged|can't load"
FILES: list[tuple[str, Make, str]] = [
    ("empty", write(b""), "model.onnx is not an ONNX model"),
    ("first byte", write(PLAIN[:1]), "model.onnx is not an ONNX file or is truncated"),
    ("first bytes", write(PLAIN[:9]), "model.onnx.*(truncated|not an ONNX)"),
    ("cut inside the graph", write(PLAIN[:80]), "model.onnx is not an ONNX file or is truncated"),
    ("cut inside a weight", write(PLAIN[: WEIGHT + 100]), "model.onnx is not an ONNX file or is truncated"),
    ("cut behind a weight", write(PLAIN[: len(PLAIN) - 40]), "model.onnx is not an ONNX file or is truncated"),
    ("last byte missing", write(PLAIN[:-1]), "model.onnx is not an ONNX file or is truncated"),
    ("one byte more", write(PLAIN + b"\x0a"), "model.onnx is not an ONNX file or is truncated"),
    ("picture", write(packed("png")), "model.onnx is not an ONNX file"),
    ("archive", write(packed("zip")), "model.onnx is not an ONNX file"),
    ("arrays", write(packed("npz")), "model.onnx is not an ONNX file"),
    ("compressed", write(zlib.compress(PLAIN)), "model.onnx is not an ONNX file"),
    ("JSON", write(b'{"graph": {"node": []}}'), "model.onnx is not an ONNX file"),
    ("noise", write(np.random.default_rng(1).bytes(5000)), "model.onnx is not an ONNX file"),
    ("dangling link", lambda f: (f / "model.onnx").symlink_to(f / "gone.onnx"), "model.onnx: no such file"),
    ("link to itself", lambda f: (f / "model.onnx").symlink_to(f / "model.onnx"), "model.onnx can't be read"),
    ("pipe", lambda f: os.mkfifo(f / "model.onnx"), "model.onnx is a device or a pipe"),
    ("endless device", lambda f: (f / "model.onnx").symlink_to("/dev/zero"), "model.onnx is a device or a pipe"),
    ("folder", lambda f: (f / "model.onnx").mkdir(), "model.onnx is a folder"),
]


@pytest.mark.parametrize(
    ("name", "tool"), [("net.pt", "torch.onnx.export"), ("NET.PTH", "torch.onnx.export"), ("net.tflite", "tf2onnx")]
)
def test_files_of_other_frameworks_are_told_how_to_become_onnx(here: Path, name: str, tool: str) -> None:
    (here / name).write_bytes(packed("zip"))
    for command in (["inspect", name], ["prune", name, "--random-data"]):
        assert f"{name} is not an ONNX file or is truncated; export the network with {tool} first" in run(*command)


def refused(folder: Path, *arguments: str) -> str:
    """The message of a command that leaves everything in the folder as it is."""
    before = listing(folder)
    message = run(*arguments)
    assert listing(folder) == before
    return message


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


COMMANDS = (["inspect", "model.onnx"], ["prune", "model.onnx", "out.onnx", "--random-data", "--samples", "4"])


@pytest.mark.parametrize("command", COMMANDS, ids=["inspect", "prune"])
@pytest.mark.parametrize(("make", "words"), [row[1:] for row in FILES], ids=[row[0] for row in FILES])
def test_a_file_that_is_no_model(here: Path, command: list[str], make: Make, words: str) -> None:
    make(here)
    assert re.search(words, refused(here, *command))


@pytest.mark.parametrize("name", ["x" * 300 + ".onnx", "netz-\u00fc\u4e2d.onnx", "a\nb\x1b[31m.onnx", "\udcff.onnx"])
def test_names_of_files_that_are_not_there(here: Path, name: str) -> None:
    assert re.search("no such file|can't be read", refused(here, "inspect", name))


# --- models that are damaged ------------------------------------------------------------------------------------------

Change = Callable[[Model], Any]


def attribute(name: str, value: Any) -> Change:
    """The first node, with another value of an attribute."""

    def change(model: Model) -> None:
        node = model.graph.node[0]
        kept = [entry for entry in node.attribute if entry.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])

    return change


def weight(value: np.ndarray[Any, Any]) -> Change:
    """The first convolution, with other weights."""

    def change(model: Model) -> None:
        tensor = model.graph.initializer[0]
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))

    return change


def node(op: str, inputs: list[str], domain: str = "", **attributes: Any) -> Change:
    """One more node, whose output is the model's."""

    def change(model: Model) -> None:
        model.graph.node.append(helper.make_node(op, inputs, ["more"], domain=domain, **attributes))
        model.graph.output[0].name = "more"

    return change


def cycle(model: Model) -> None:
    model.graph.node[0].input[0] = model.graph.node[2].output[0]


def loop(model: Model) -> None:
    model.graph.node[1].input[0] = model.graph.node[1].output[0]


def again(entries: str) -> Change:
    def change(model: Model) -> None:
        repeated = getattr(model.graph, entries)
        repeated.append(repeated[0])

    return change


def typed(kind: onnx.TypeProto) -> Change:
    return lambda model: model.graph.input[0].type.CopyFrom(kind)


def size(*sizes: int | None) -> Change:
    """Another shape of the input."""
    return typed(helper.make_tensor_type_proto(TensorProto.FLOAT, sizes))


def raw(change_of: Callable[[bytes], bytes]) -> Change:
    def change(model: Model) -> None:
        model.graph.initializer[0].raw_data = change_of(model.graph.initializer[0].raw_data)

    return change


def kind(number: int) -> Change:
    """A weight of another data type, with as many bytes as that takes."""

    def change(model: Model) -> None:
        tensor = model.graph.initializer[0]
        tensor.data_type = number
        tensor.raw_data = b"\1" * {TensorProto.FLOAT4E2M1: 108, TensorProto.INT4: 108}.get(number, 216)

    return change


def values(model: Model) -> None:
    """Weights as numbers instead of bytes, one too few."""
    tensor = model.graph.initializer[0]
    tensor.float_data.extend(numpy_helper.to_array(tensor).ravel()[:-1].tolist())
    tensor.ClearField("raw_data")


def functions(count: int, *, endless: bool = False) -> Change:
    """Functions that call one another twice each."""

    def change(model: Model) -> None:
        domain = helper.make_opsetid("local", 1)
        sets = [helper.make_opsetid("", 17), domain]
        for number in range(count):
            last = number == count - 1 and not endless
            inner = [
                helper.make_node("Relu", [a], [b])
                if last
                else helper.make_node(f"f{(number + 1) % count}", [a], [b], domain="local")
                for a, b in (("a", "b"), ("b", "c"))
            ]
            model.functions.append(helper.make_function("local", f"f{number}", ["a"], ["c"], inner, sets))
        model.opset_import.append(domain)
        node("f0", [model.graph.output[0].name], "local")(model)

    return change


def bad_text(model: Model) -> None:
    """A name that isn't UTF-8; it can't be set, so it is put into the bytes."""
    model.graph.node[0].name = "name-to-be-damaged"
    model.ParseFromString(
        model.SerializeToString().replace(b"name-to-be-damaged", b"name-to-be-\xff\xfe\xfd\xfc\xfb\xfa!")
    )


def no_tensor(model: Model) -> None:
    model.graph.node[0].attribute.add(name="value", type=AttributeProto.TENSOR)


def no_type(model: Model) -> None:
    model.graph.node[0].attribute[0].type = AttributeProto.UNDEFINED


def training(model: Model) -> None:
    model.opset_import.append(helper.make_opsetid("ai.onnx.preview.training", 1))
    made = helper.make_node(
        "Gradient", ["x"], ["more"], domain="ai.onnx.preview.training", xs=["x"], y=model.graph.output[0].name
    )
    model.graph.node.append(made)
    model.graph.output[0].name = "more"


def foreign(model: Model) -> None:
    model.opset_import.append(helper.make_opsetid("example.org", 1))
    node("Sparkle", ["x"], "example.org")(model)


FLOAT = helper.make_tensor_type_proto(TensorProto.FLOAT, [1])


def many_axes(model: onnx.ModelProto) -> None:
    """A tensor inside has more than an array of NumPy can have."""
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1] + [1] * 70, np.int64), "long"))
    model.graph.node.append(helper.make_node("Reshape", ["x", "long"], ["wide"]))


MODELS: list[tuple[str, Change, str]] = [
    ("cycle", cycle, "damaged .its nodes form a cycle"),
    ("node that reads itself", loop, "damaged .its nodes form a cycle"),
    ("two nodes of one name", lambda m: setattr(m.graph.node[2], "name", "conv1"), "two nodes with same node name .conv1"),
    ("tensor made twice", lambda m: m.graph.node[2].output.__setitem__(0, "v0"), "two tensors of the name 'v0'"),
    ("initializer twice", again("initializer"), "two tensors of the name 't0'"),
    ("input twice", again("input"), "two tensors of the name 'x'"),
    ("output twice", again("output"), "two tensors of the name"),
    ("node makes an initializer", lambda m: m.graph.node[1].output.__setitem__(0, "t0"), "two tensors of the name 't0'"),
    ("undefined tensor", lambda m: m.graph.node[1].input.__setitem__(0, "nowhere"), "reads 'nowhere', which nothing makes"),
    ("undefined output", lambda m: setattr(m.graph.output[0], "name", "gone"), "output 'gone' is made by nothing"),
    ("no output", lambda m: m.graph.output.pop(), "it has no output"),
    ("no input", lambda m: m.graph.input.pop(), "reads 'x', which nothing makes"),
    ("no operator", lambda m: m.graph.node[1].ClearField("op_type"), "has no operator"),
    ("node without outputs", lambda m: m.graph.node.add(op_type="Relu", input=["x"]), "'Relu' has no output"),
    ("unknown operator", lambda m: setattr(m.graph.node[1], "op_type", "Konv"), "model.onnx: ONNX Runtime.*Konv"),
    ("operator of another domain", foreign, "model.onnx: ONNX Runtime can't load.*example.org"),
    ("domain that isn't imported", node("Sparkle", ["x"], "example.org"), "model.onnx: ONNX Runtime can't load.*example"),
    ("training operator", training, "model.onnx: ONNX Runtime can't load.*(Gradient|training)"),
    ("text that isn't UTF-8", bad_text, "damaged .a name in it is no text"),
    ("too few bytes", raw(lambda data: data[:-4]), "'t0' of shape 8×3×3×3 should hold 864 bytes, but holds 860"),
    ("too many bytes", raw(lambda data: data + b"1234"), "'t0' of shape 8×3×3×3 should hold 864 bytes, but holds 868"),
    ("too few values", values, "'t0' of shape 8×3×3×3 should hold 216 values, but holds 215"),
    ("unknown data type", lambda m: setattr(m.graph.initializer[0], "data_type", 99), "'t0' has the data type 99"),
    ("no data type", lambda m: setattr(m.graph.initializer[0], "data_type", 0), "'t0' has the data type 0"),
    ("negative size", lambda m: m.graph.initializer[0].dims.__setitem__(0, -8), "'t0' has the shape -8×3×3×3"),
    ("huge size", lambda m: m.graph.initializer[0].dims.__setitem__(0, 1 << 60), "'t0' has the shape 1152921504606846976×"),
    ("huge and empty", lambda m: m.graph.initializer[0].dims.extend([1 << 60, 0]), "'t0' has the shape 8×3×3×3×11529"),
    ("attribute without a type", no_type, "attribute .* has no value of a type"),
    ("attribute without a value", no_tensor, "attribute 'value' has no value"),
    ("IR version to come", lambda m: setattr(m, "ir_version", 99), "model.onnx: ONNX Runtime.*IR version"),
    ("operator set to come", lambda m: setattr(m.opset_import[0], "version", 999), "model.onnx: ONNX Runtime.*opset"),
    ("operator set 0", lambda m: setattr(m.opset_import[0], "version", 0), "model.onnx: ONNX Runtime"),
    ("two operator sets", lambda m: m.opset_import.append(helper.make_opsetid("ai.onnx", 9)), "two versions of the op"),
    ("function without end", functions(3, endless=True), "its function 'f[012]' calls itself"),
    ("functions without measure", functions(60), "its functions are 1,152,921,504,606,846,\\d+ nodes"),
    ("function with other operands", lambda m: (functions(1)(m), m.graph.node[-1].input.extend("xx")), "can't be inlined"),
    ("no groups", attribute("group", 0), "model.onnx: ONNX Runtime"),
    ("negative groups", attribute("group", -1), "model.onnx: ONNX Runtime"),
    ("strides of 0", attribute("strides", [0, 0]), "model.onnx: ONNX Runtime"),
    ("kernel of 0", attribute("kernel_shape", [0, 0]), "model.onnx: ONNX Runtime"),
    ("huge padding", attribute("pads", [1 << 40] * 4), "model.onnx: ONNX Runtime|not enough memory"),
    ("negative dilation", attribute("dilations", [-1, -1]), "model.onnx: ONNX Runtime"),
    ("layer without channels", weight(np.zeros((0, 3, 3, 3), np.float32)), "model.onnx: ONNX Runtime"),
    ("weights of another rank", weight(np.zeros((8, 3), np.float32)), "model.onnx: ONNX Runtime"),
    ("weights of other channels", weight(np.zeros((8, 5, 3, 3), np.float32)), "model.onnx: ONNX Runtime"),
    ("weights of int8", kind(TensorProto.INT8), "model.onnx: ONNX Runtime.*int8"),
    ("weights of int4", kind(TensorProto.INT4), "model.onnx: ONNX Runtime"),
    ("weights of float8", kind(TensorProto.FLOAT8E4M3FN), "model.onnx: ONNX Runtime"),
    ("weights of float4", kind(TensorProto.FLOAT4E2M1), "model.onnx: ONNX Runtime"),
    ("scalar input", size(), "model.onnx: ONNX Runtime|has no axis|'x'"),
    ("input of no elements", size(1, 3, 0, 8), "input 'x' of model.onnx has open sizes"),
    ("input of negative size", size(1, 3, -8, 8), "input 'x' of model.onnx has open sizes"),
    ("huge input", size(1, 3, 1 << 30, 1 << 30), "One item of the input 'x' of model.onnx has 3,458,764,513,820,540,928 elem"),
    ("input of many axes", size(*[1] * 70), "damaged .a tensor has 70 axes, where 32 are the most"),
    ("weights of many axes", lambda m: m.graph.initializer[0].dims.extend([1] * 70), "'t0' has 74 axes, where 32 are the"),
    ("many axes inside", many_axes, "model.onnx: its tensor 'wide' has 71 axes, where 32 are the most"),
    ("input of sequences", typed(helper.make_sequence_type_proto(FLOAT)), "input 'x' is no tensor"),
    ("input of maps", typed(helper.make_map_type_proto(TensorProto.INT64, FLOAT)), "input 'x' is no tensor"),
    ("optional input", typed(helper.make_optional_type_proto(FLOAT)), "input 'x' is no tensor"),
    ("sparse input", typed(helper.make_sparse_tensor_type_proto(TensorProto.FLOAT, [1, 3, 8, 8])), "'x' is no tensor"),
    ("input of strings", typed(helper.make_tensor_type_proto(TensorProto.STRING, [1, 3, 8, 8])), "'x'.*can't be fed"),
    ("input of complex numbers", typed(helper.make_tensor_type_proto(TensorProto.COMPLEX64, [1])), "'x'.*can't be fed"),
    ("input of float8", typed(helper.make_tensor_type_proto(TensorProto.FLOAT8E5M2, [1])), "model.onnx: ONNX Runtime"),
    ("input of double", typed(helper.make_tensor_type_proto(TensorProto.DOUBLE, [1, 3, 8, 8])), "model.onnx: ONNX Runtime"),
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=["inspect", "prune"])
@pytest.mark.parametrize(("change", "words"), [row[1:] for row in MODELS], ids=[row[0] for row in MODELS])
def test_a_model_that_is_damaged(here: Path, command: list[str], change: Change, words: str) -> None:
    model = plain()
    change(model)
    (here / "model.onnx").write_bytes(model.SerializeToString())
    assert re.search(words, refused(here, *command))


def test_nodes_out_of_order_are_put_in_order(here: Path) -> None:
    model = plain()
    nodes = list(plain().graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    (here / "model.onnx").write_bytes(model.SerializeToString())
    found, expected = pipeline.inspect("model.onnx"), pipeline.inspect(plain())
    assert (found.groups, found.not_pruned, found.warnings) == (expected.groups, expected.not_pruned, ())


# --- weights in other files -------------------------------------------------------------------------------------------

BYTES = 864  # of the weight that is outside


def outside(location: str, **entries: str) -> Change:
    """The first weight is in another file."""

    def change(model: Model) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, **entries}.items():
            tensor.external_data.add(key=key, value=value)

    return change


def outside_constant(model: Model) -> None:
    """The value of a Constant node, which nothing but its type says, is in another file."""
    value = TensorProto(data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    value.external_data.add(key="location", value="../secret.bin")
    node("Constant", [], value=value)(model)


def link(folder: Path) -> None:
    (folder / "link.bin").symlink_to("../secret.bin")


def folder_link(folder: Path) -> None:
    (folder / "sub").symlink_to("..")


def nothing(folder: Path) -> None:
    """Make nothing more."""


INSIDE = "is not inside the model's folder"
EXTERNAL: list[tuple[str, Change, Make, str]] = [
    ("folder above", outside("../secret.bin"), nothing, INSIDE),
    ("folder above, roundabout", outside("a/../../secret.bin"), nothing, INSIDE),
    ("absolute path", outside("/etc/hostname"), nothing, INSIDE),
    ("no path", outside(""), nothing, INSIDE),
    ("link out of the folder", outside("link.bin"), link, INSIDE),
    ("linked folder", outside("sub/secret.bin"), folder_link, INSIDE),
    ("in a Constant", outside_constant, nothing, INSIDE),
    ("link to itself", outside("me.bin"), lambda f: (f / "me.bin").symlink_to("me.bin"), "there is no file 'me.bin'"),
    ("missing", outside("gone.bin"), nothing, "there is no file 'gone.bin'"),
    ("folder", outside("."), nothing, "there is no file '.'"),
    ("pipe", outside("pipe.bin"), lambda f: os.mkfifo(f / "pipe.bin"), "there is no file 'pipe.bin'"),
    ("device", outside("link.bin"), lambda f: (f / "link.bin").symlink_to("/dev/zero"), INSIDE),
    ("too short", outside("d.bin"), write(bytes(BYTES - 1), "d.bin"), "'d.bin' ends before 't0' does"),
    ("offset beyond the end", outside("d.bin", offset="99999"), write(bytes(BYTES), "d.bin"), "'d.bin' ends before"),
    ("offset to the end", outside("d.bin", offset="4"), write(bytes(BYTES), "d.bin"), "'d.bin' ends before 't0' does"),
    ("negative offset", outside("d.bin", offset="-4"), write(bytes(BYTES), "d.bin"), "offset .* is no number from 0 on"),
    ("offset in words", outside("d.bin", offset="four"), write(bytes(BYTES), "d.bin"), "offset .* is no number"),
    ("endless offset", outside("d.bin", offset="9" * 5000), write(bytes(BYTES), "d.bin"), "offset .* is no number"),
    ("too long", outside("d.bin", length="900"), write(bytes(900), "d.bin"), "have 900 bytes in 'd.bin', but needs 864"),
    ("negative length", outside("d.bin", length="-1"), write(bytes(BYTES), "d.bin"), "length .* is no number from 0 on"),
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=["inspect", "prune"])
@pytest.mark.parametrize(("change", "make", "words"), [r[1:] for r in EXTERNAL], ids=[row[0] for row in EXTERNAL])
def test_weights_that_are_not_where_they_should_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], change: Change, make: Make, words: str
) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(5000))
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    model = plain()
    change(model)
    Path("model.onnx").write_bytes(model.SerializeToString())
    make(Path())
    message = refused(tmp_path, *command)
    assert message.startswith("model.onnx: its external data can't be read (")
    assert re.search(words, message)


@pytest.mark.parametrize("output", ["new.onnx", "weights.onnx", "link.onnx"])
def test_an_output_never_takes_the_place_of_weights(here: Path, output: str) -> None:
    """A model that was renamed still has its weights where its old name put them."""
    location = {"new.onnx": "new.onnx.data"}.get(output, "weights.onnx")
    onnx.save(plain(), here / "old.onnx", save_as_external_data=True, location=location, size_threshold=0)
    (here / "link.onnx").symlink_to("weights.onnx")
    message = refused(here, "prune", "old.onnx", output, "--random-data", "--samples", "4")
    assert re.search(f"{output} can't be written: .* holds weights of old.onnx; name another", message)


# --- data -------------------------------------------------------------------------------------------------------------

FINE = ["--random-data", "--samples", "4"]


def saved(name: str, **columns: Any) -> Make:
    return lambda folder: np.savez(folder / name, **columns)


def array_file(name: str, header: str, content: bytes = b"", version: tuple[int, int] = (1, 0)) -> Make:
    """A .npy file with any header, or a .npz file with one in it."""
    text = header.encode("latin-1")
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    whole = b"\x93NUMPY" + bytes(version) + length + text + content

    def make(folder: Path) -> None:
        if name.endswith(".npy"):
            (folder / name).write_bytes(whole)
            return
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("x.npy", whole)

    return make


def header(shape: str, kind: str = "<f4") -> str:
    return f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n"


def bomb(claimed: int) -> Make:
    """An archive whose table says that a few bytes unpack to `claimed`."""

    def make(folder: Path) -> None:
        np.savez_compressed(folder / "bomb.npz", x=VALUES)
        content = bytearray((folder / "bomb.npz").read_bytes())
        place = content.index(b"PK\x01\x02")  # the size in the central directory
        content[place + 24 : place + 28] = struct.pack("<I", claimed)
        (folder / "bomb.npz").write_bytes(content)

    return make


def with_hole(value: float) -> np.ndarray[Any, Any]:
    changed = VALUES.copy()
    changed[7, 1, 2, 3] = value
    return changed


ARRAYS: list[tuple[str, str, Make, str]] = [
    ("complex", "a.npz", saved("a.npz", x=VALUES.astype(np.complex64)), "a.npz.*dtype complex64, but input 'x'"),
    ("dates", "a.npz", saved("a.npz", x=np.zeros((4, *SHAPE), "M8[s]")), "a.npz.*dtype datetime64"),
    ("words", "a.npz", saved("a.npz", x=np.full((4, *SHAPE), "one")), "a.npz.*dtype <U3"),
    ("records", "a.npz", saved("a.npz", x=np.zeros((4, *SHAPE), [("r", "f4")])), "a.npz.*dtype"),
    ("wrong bytes", "a.npz", saved("a.npz", x=VALUES.astype(">f4").view("V4")), "a.npz.*dtype"),
    ("objects", "a.npz", lambda f: np.savez(f / "a.npz", x=np.array([{}, 1], object)), "'x'.*Python objects, .* never"),
    ("a pickle", "a.npy", write(b"\x80\x04K\x01.", "a.npy"), "a.npy can't be read .*magic string"),
    ("NaN", "a.npz", saved("a.npz", x=with_hole(np.nan)), "a.npz: array 'x' has 1 values that are NaN.*row 7"),
    ("infinite", "a.npz", saved("a.npz", x=with_hole(-np.inf)), "a.npz: array 'x' has 1 values that are NaN.*row 7"),
    ("too large", "a.npz", saved("a.npz", x=with_hole(1).astype(np.float64) * 1e300), "too large for float32"),
    ("scalar", "a.npy", lambda f: np.save(f / "a.npy", np.float32(1)), "a.npy.*shape \\(\\), which doesn't fit"),
    ("one image", "a.npz", saved("a.npz", x=VALUES[0]), "a.npz.*shape \\(3, 8, 8\\)"),
    ("no rows", "a.npz", saved("a.npz", x=VALUES[:0]), "a.npz.*is empty"),
    ("one row", "a.npz", saved("a.npz", x=VALUES[:1]), "at least 2 samples"),
    ("nothing in it", "a.npz", saved("a.npz"), "a.npz has no array 'x'.*nothing"),
    ("only labels", "a.npz", saved("a.npz", labels=np.arange(4)), "a.npz has no array 'x'.*'labels'"),
    ("few labels", "a.npz", saved("a.npz", x=VALUES, labels=np.arange(3)), "'labels' has shape \\(3,\\) for 16 items"),
    ("labels of floats", "a.npz", saved("a.npz", x=VALUES, labels=np.ones(16)), "'labels' has dtype float64"),
    ("labels by name", "a.npz", saved("a.npz", x=VALUES, labels=np.full(16, "cat")), "'labels' has dtype <U3"),
    ("shape beyond the file", "a.npy", array_file("a.npy", header("(9, 3, 8, 8)"), bytes(99)), "6,912 bytes, but there are 99"),
    ("shape beyond memory", "a.npy", array_file("a.npy", header("(1099511627776, 3, 8, 8)")), "bytes, but there are 0"),
    ("shape beyond integers", "a.npz", array_file("a.npz", header(f"({'9' * 40}, 3)")), "a.npz: array 'x' .*there are 0"),
    ("negative shape", "a.npy", array_file("a.npy", header("(-1, 3, 8, 8)"), bytes(7680)), "an array of shape \\(-1, 3, 8, 8"),
    ("negative shape, packed", "a.npz", array_file("a.npz", header("(-4, -1)"), bytes(16)), "array of shape \\(-4, -1"),
    ("shape in words", "a.npy", array_file("a.npy", header("('a',)")), "a.npy can't be read"),
    ("code in the header", "a.npy", array_file("a.npy", "__import__('os').abort()\n"), "a.npy can't be read"),
    ("broken header", "a.npy", array_file("a.npy", "{'descr': [(((((\n"), "a.npy can't be read"),
    ("long header", "a.npy", array_file("a.npy", header("(1,)") + " " * 20000), "a.npy can't be read .*Header"),
    ("later version", "a.npy", array_file("a.npy", header("(1,)"), b"1234", (3, 0)), "no array of plain numbers"),
    ("future version", "a.npy", array_file("a.npy", header("(1,)"), b"1234", (9, 0)), "a.npy can't be read"),
    ("bomb", "bomb.npz", bomb(3 << 30), "bomb.npz can't be read .* bytes that would unpack to 3,221,225,"),
    ("more than it says", "bomb.npz", bomb(200), "bomb.npz: array 'x' can't be read"),
    ("no array in it", "a.npz", lambda f: zipfile.ZipFile(f / "a.npz", "w").writestr("x", "text"), "'x' can't be read"),
    ("the model", "model.onnx", nothing, "model.onnx is of no known kind"),
    ("pipe", "a.npz", lambda f: os.mkfifo(f / "a.npz"), "a.npz is a device or a pipe"),
    ("link to itself", "a.npz", lambda f: (f / "a.npz").symlink_to("a.npz"), "a.npz doesn't exist"),
    ("endless device", "a.npy", lambda f: (f / "a.npy").symlink_to("/dev/zero"), "a.npy is a device or a pipe"),
    ("long name", "x" * 300 + ".npz", nothing, "doesn't exist"),
]  # fmt: skip


def picture(name: str, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> bytes:
    buffer = BytesIO()
    Image.new(mode, size, 100).save(buffer, name)
    return buffer.getvalue()


def noise() -> bytes:
    buffer = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


HUGE = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)) + chunk(b"IEND", b"")
TIFF = picture("tiff").replace(struct.pack("<HHII", 277, 3, 1, 3), struct.pack("<HHII", 277, 3, 1, 211))
PNG, JPEG, NOISE = picture("png"), picture("jpeg", (64, 64)), noise()


def image(content: bytes, name: str = "a.png") -> Make:
    """A folder with one good image, and one that isn't."""

    def make(folder: Path) -> None:
        (folder / "images").mkdir()
        (folder / "images" / "good.png").write_bytes(PNG)
        (folder / "images" / name).write_bytes(content)

    return make


def only(name: str) -> Make:
    """A folder with one file."""

    def make(folder: Path) -> None:
        (folder / "images").mkdir()
        (folder / "images" / name).write_bytes(PNG)

    return make


def links(*targets: str) -> Make:
    def make(folder: Path) -> None:
        (folder / "images").mkdir()
        for number, target in enumerate(targets):
            (folder / "images" / f"{number}.png").symlink_to(target)

    return make


UNREADABLE = "a.png can't be read as an image"
IMAGES: list[tuple[str, str, Make, str]] = [
    ("empty folder", "images", lambda f: (f / "images").mkdir(), "images holds no image"),
    ("other files", "images", only("a.txt"), "images holds no image"),
    ("hidden files", "images", only("._a.png"), "images holds no image"),
    ("dangling links", "images", links("gone.png"), "images holds no image"),
    ("links to themselves", "images", links("0.png", "2.png", "1.png"), "images holds no image"),
    ("links to the folder", "images", links("."), "images holds no image"),
    ("links to the model", "images", links("../model.onnx", "../model.onnx"), "[01].png can't be read as an image"),
    ("text", "images", image(b"no picture"), f"{UNREADABLE} .unknown format"),
    ("nothing", "images", image(b""), f"{UNREADABLE} .unknown format"),
    ("first bytes", "images", image(PNG[:20]), UNREADABLE),
    ("cut PNG", "images", image(NOISE[: len(NOISE) // 2]), f"{UNREADABLE} .*truncated"),
    ("cut JPEG", "images", image(JPEG[:-200], "a.jpg"), "a.jpg can't be read as an image .[Tt]runcated"),
    ("damaged PNG", "images", image(PNG[:45] + b"\xff" * 8 + PNG[53:]), UNREADABLE),
    ("no size", "images", image(PNG[:16] + bytes(8) + PNG[24:]), UNREADABLE),
    ("decompression bomb", "images", image(HUGE), f"{UNREADABLE} .*3600000000 pixels"),
    ("211 samples a pixel", "images", image(TIFF, "a.tif"), "a.tif can't be read as an image"),
    ("16 bits", "images", image(picture("png", mode="I;16")), "a.png has more than 8 bits"),
]  # fmt: skip

SCRIPTS: list[tuple[str, str, str]] = [
    ("not Python", "def feeds(: pass", "feeds.* failed with SyntaxError"),
    ("no function", "other = 1", "has no function 'feeds'"),
    ("not a function", "feeds = 5", "has no function 'feeds'"),
    ("fails", "def feeds():\n    yield {'x': X}\n    raise OSError('gone')", "failed with OSError: gone"),
    ("fails when loaded", "raise ImportError('no such thing')", "failed with ImportError: no such thing"),
    ("ends the process", "def feeds():\n    import sys\n    sys.exit(3)", "failed with SystemExit: 3"),
    ("never returns from itself", "def feeds():\n    return feeds()", "failed with RecursionError"),
    ("wants arguments", "def feeds(count):\n    yield {'x': X}", "failed with TypeError.*count"),
    ("returns a number", "def feeds():\n    return 5", "returned int: yield dicts"),
    ("returns nothing", "def feeds():\n    pass", "returned NoneType: yield dicts"),
    ("returns a dict", "def feeds():\n    return {'x': X}", "returned dict: yield dicts"),
    ("yields nothing", "def feeds():\n    return iter(())", "there is no feed"),
    ("yields arrays", "def feeds():\n    yield X", "feed 1 is of type ndarray: give dicts"),
    ("yields words", "def feeds():\n    yield {'x': 'picture'}", "feed 1: array 'x' has dtype"),
    ("yields ragged lists", "def feeds():\n    yield {'x': [[1, 2], [3]]}", "feed 1: array 'x' is no array"),
    ("yields objects", "def feeds():\n    yield {'x': object()}", "feed 1: array 'x' has dtype object"),
    ("yields other names", "def feeds():\n    yield {1: X}", "feed 1 has no array 'x'"),
    ("changes its mind", "def feeds():\n    yield {'x': X}\n    yield {'x': X[:, :2]}", "feed 2: array 'x' has shape"),
    ("yields NaN", "def feeds():\n    yield {'x': X * float('nan')}", "feed 1: array 'x' has .* NaN"),
    ("labels here and there", "def feeds():\n    yield {'x': X, 'labels': [1] * 4}\n    yield {'x': X}", "1 of 2 feeds have"),
]  # fmt: skip


def script(body: str) -> Make:
    start = "import numpy\nX = numpy.ones((4, 3, 8, 8), 'f')\n"
    return lambda folder: (folder / "calib.py").write_text(start + body, encoding="utf-8")


DATA = [*ARRAYS, *IMAGES, *((name, "calib.py:feeds", script(body), words) for name, body, words in SCRIPTS)]


@pytest.mark.parametrize(("source", "make", "words"), [row[1:] for row in DATA], ids=[row[0] for row in DATA])
def test_data_that_can_not_be_used(here: Path, source: str, make: Make, words: str) -> None:
    (here / "model.onnx").write_bytes(PLAIN)
    make(here)
    assert re.search(words, refused(here, "prune", "model.onnx", "out.onnx", "--data", source))


def test_what_a_library_logs_is_not_shown(here: Path) -> None:
    """Pillow logs an error for such a file, and raises one as well."""
    (here / "model.onnx").write_bytes(PLAIN)
    image(TIFF, "a.tif")(here)
    command = [sys.executable, "-m", "thinet_onnx", "prune", "model.onnx", "--data", "images"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "a.tif can't be read as an image" in sentence(done.returncode, done.stdout, done.stderr)


def test_a_function_without_end(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "model.onnx").write_bytes(PLAIN)
    script("def feeds():\n    while True:\n        yield {'x': X}")(here)
    command = ["prune", "model.onnx", "out.onnx", "--data", "calib.py:feeds"]
    monkeypatch.setattr(data, "_MOST_BYTES", 100_000)
    assert re.search("feed 34: 101,376 bytes so far and no end in sight", refused(here, *command))
    monkeypatch.setattr(data, "_MOST_FEEDS", 20)
    assert re.search("feed 21: 61,440 bytes so far and no end in sight", refused(here, *command))


def test_a_bomb_is_never_unpacked(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is really as regular as that, and what only says so: both are refused by what the archive says of itself."""
    (here / "model.onnx").write_bytes(PLAIN)
    np.savez_compressed(here / "zeros.npz", x=np.zeros((3000, *SHAPE), np.float32))
    command = ["prune", "model.onnx", "out.onnx", "--data", "zeros.npz", "--samples", "4"]
    monkeypatch.setattr(arrays, "_HARMLESS", 1 << 20)
    monkeypatch.setattr(zipfile.ZipExtFile, "read", lambda *_: pytest.fail("it is unpacked"))
    assert re.search("zeros.npz can't be read .* bytes that would unpack to 2,304,128", refused(here, *command))


@pytest.mark.parametrize("labels", [np.arange(16) - 1, np.arange(16) % 6])
def test_labels_that_are_no_classes_of_the_model(here: Path, labels: Any) -> None:
    (here / "model.onnx").write_bytes(PLAIN)
    np.savez(here / "test.npz", x=VALUES, labels=labels)
    message = refused(here, "prune", "model.onnx", "out.onnx", *FINE, "--test-data", "test.npz")
    assert re.search("test.npz: its labels range from -?\\d to \\d+, but the model tells 5 classes apart", message)


def test_labels_beside_the_calibration_data_may_be_of_another_kind(here: Path) -> None:
    """Images are in subfolders for many reasons."""
    np.savez(here / "data.npz", x=VALUES, labels=np.arange(16))
    made = pipeline.prune(plain(), "data.npz", PruneOptions(keep=0.5)).report
    assert made.accuracy is None
    assert any("No accuracy is shown" in warning and "0 to 15" in warning for warning in made.warnings)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 2, 4])
def test_weights_that_are_no_numbers(here: Path, place: int, value: float) -> None:
    model = plain()
    tensor = model.graph.initializer[place]
    changed = numpy_helper.to_array(tensor).copy()
    changed[0] = value
    tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
    (here / "model.onnx").write_bytes(model.SerializeToString())
    message = refused(here, "prune", "model.onnx", "out.onnx", *FINE)
    assert re.search("is NaN or infinite on the calibration data|computes NaN, infinite or huge values", message)


# --- requests and results ---------------------------------------------------------------------------------------------

OPTIONS: list[tuple[str, str]] = [
    ("--target macs=50% --keep 0.5", "Say either --target"),
    ("--data a.npz", "--data and --random-data are both there"),
    ("--include nobody", "model.onnx .*--include"),
    ("--target macs", "--target 'macs' is not understood"),
    ("--target macs=", "--target 'macs=' is not understood"),
    ("--target macs=-50%", "--target 'macs=-50%' is not understood"),
    ("--target macs=nan", "--target 'macs=nan' is not understood"),
    ("--target macs=1.2.3", "--target 'macs=1.2.3' is not understood"),
    ("--target macs=0%", "--target 'macs=0%': the share"),
    ("--target params=150%", "--target 'params=150%': the share"),
    (f"--target macs={'9' * 400}", "--target"),
    ("--keep 0", "--keep 0: the share"),
    ("--keep nan", "--keep nan: the share"),
    ("--keep -1", "--keep -1: the share"),
    ("--samples 1", "--samples 1: at least 2"),
    ("--samples 1000000000000", "--samples 1000000000000: 1,000,000 are the most that are made up"),
    ("--seed -1", "--seed -1: it must be 0 or more"),
    ("--round-to -2", "--round-to -2: the multiple"),
    ("--mean 1,2,x", "--mean '1,2,x' is not understood"),
    ("--std 0", "--std 0.0: no value may be 0"),
    ("--scale inf", "--scale inf: every value"),
    ("--resize 8x", "--resize '8x' is not understood"),
    ("--shape x:1,3,8,8 --shape x:2,3,8,8", "--shape 'x:2,3,8,8' contradicts another --shape"),
    ("--shape x:1,3,0,8", "--shape 'x:1,3,0,8' is not understood"),
    (f"--shape x:{'9' * 30},3,8,8", "--shape|input 'x'"),
    ("--include *", "--include '.' is not a regular expression"),
]


@pytest.mark.parametrize(("options", "words"), OPTIONS, ids=[options[:40] for options, _ in OPTIONS])
def test_options_that_make_no_sense(here: Path, options: str, words: str) -> None:
    (here / "model.onnx").write_bytes(PLAIN)
    assert re.search(words, refused(here, "prune", "model.onnx", "out.onnx", "--random-data", *options.split()))


OUTPUTS: list[tuple[list[str], str]] = [
    (["model.onnx"], "OUTPUT and MODEL are the same file"),
    (["hard.onnx"], "OUTPUT and MODEL are the same file"),
    (["soft.onnx"], "OUTPUT and MODEL are the same file"),
    (["folder"], "folder can't be written: it is a folder"),
    (["/dev/null"], "/dev/null can't be written: it is a device"),
    (["/dev/full"], "/dev/full can't be written: it is a device"),
    (["/proc/new.onnx"], "/proc/new.onnx can't be written"),
    (["pipe.onnx"], "pipe.onnx can't be written: it is a device or a pipe"),
    (["gone/new.onnx"], "there is no folder"),
    (["model.onnx/new.onnx"], "there is no folder"),
    ([f"{'x' * 300}.onnx"], "can't be written"),
    (["notes.txt"], "notes.txt is there and is no .onnx file"),
    (["out.onnx", "--json", "/dev/full"], "/dev/full can't be written: it is a device"),
    (["out.onnx", "--json", "folder"], "folder can't be written: it is a folder"),
    (["out.onnx", "--json", "out.onnx"], "--json and OUTPUT are the same file"),
    (["out.onnx", "--json", "model.onnx"], "--json and MODEL are the same file"),
    (["loop.onnx", "--json", "loop.onnx"], "--json and OUTPUT are the same file"),
]


@pytest.mark.parametrize(("arguments", "words"), OUTPUTS, ids=[" ".join(a)[:40] for a, _ in OUTPUTS])
def test_places_that_nothing_can_be_written_to(here: Path, arguments: list[str], words: str) -> None:
    (here / "model.onnx").write_bytes(PLAIN)
    (here / "hard.onnx").hardlink_to("model.onnx")
    (here / "soft.onnx").symlink_to("model.onnx")
    (here / "loop.onnx").symlink_to("loop.onnx")
    (here / "folder").mkdir()
    (here / "notes.txt").write_text("mine", encoding="utf-8")
    os.mkfifo(here / "pipe.onnx")
    assert re.search(words, refused(here, "prune", "model.onnx", *arguments, *FINE))


def test_names_from_a_file_do_not_move_the_cursor(here: Path) -> None:
    model = plain()
    model.graph.node[0].name = model.graph.node[2].name = ""
    model.graph.node[0].name = "red\x1b[31m\nname"
    (here / "model.onnx").write_bytes(model.SerializeToString())
    outcome = CliRunner().invoke(cli.app, ["inspect", "model.onnx", "--json", "found.json"])
    assert outcome.exit_code == 0
    assert "red?[31m?name" in outcome.stdout
    assert json.loads(Path("found.json").read_text(encoding="utf-8"))["groups"][0]["producers"] == ["red\x1b[31m\nname"]


def test_a_report_on_a_file_whose_name_is_no_text(here: Path) -> None:
    (here / "\udcff.onnx").write_bytes(PLAIN)
    outcome = CliRunner().invoke(cli.app, ["inspect", "\udcff.onnx", "--json", "found.json", "--debug"])
    assert outcome.exit_code == 0
    assert json.loads(Path("found.json").read_text(encoding="utf-8"))["model"] == "?.onnx"


def test_a_full_disk_behind_standard_output(here: Path) -> None:
    (here / "model.onnx").write_bytes(PLAIN)
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        command = [sys.executable, "-m", "thinet_onnx", "inspect", "model.onnx"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        2, "thinet-onnx: error: The report can't be printed (No space left on device).\n"
    )  # fmt: skip


def test_too_little_memory(here: Path) -> None:
    """What a request asks for in vain, in a process that may not have much."""
    net = Net()
    x = net.relu(net.conv(net.input("x", ("N", 3, "H", "W")), 3, 8))
    onnx.save(net.model(net.head(net.relu(net.conv(x, 8, 8)), 8)), here / "model.onnx")
    limit = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (5 << 28,) * 2); from thinet_onnx import cli; "
    )
    code = f"{limit}sys.argv[1:] = ['inspect', 'model.onnx', '--shape', 'x:1,3,8000,8000']; cli.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert re.search(
        r"not enough memory \(Unable to allocate 1\.43 GiB", sentence(done.returncode, done.stdout, done.stderr)
    )
    assert [file.name for file in here.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("old", [None, b"what was there"])
def test_a_disk_that_takes_no_more(here: Path, old: bytes | None, beside: bool) -> None:
    """Half the result fits, with its weights inside and beside it; what was there before still is."""
    onnx.save(plain(), here / "model.onnx", save_as_external_data=beside, location="weights", size_threshold=0)
    if old is not None:
        (here / "out.onnx").write_bytes(old)
    before = listing(here)
    limit = "import resource, sys; from thinet_onnx import cli; resource.setrlimit(resource.RLIMIT_FSIZE, (700,) * 2); "
    code = f"{limit}sys.argv[1:] = {['prune', 'model.onnx', 'out.onnx', *FINE, '--keep', '0.5']!r}; cli.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    message = sentence(done.returncode, done.stdout, done.stderr)
    assert message == "out.onnx can't be written (File too large)."
    assert listing(here) == before


def test_the_checks_take_no_copy_and_let_real_files_pass() -> None:
    for file in sorted((Path(__file__).parents[1] / "models").glob("*.onnx")):
        model = onnx.load(file)
        before = model.SerializeToString()
        sound.check(model)
        assert model.SerializeToString() == before


def test_what_onnx_runtime_logs_of_a_failed_allocation_is_no_part_of_the_answer(tmp_path: Path) -> None:
    net = small_models.Net()
    x, far = net.input("x", (1, 3, 4, 4)), net.tensor(np.array([7627351667165183475], np.int64))
    large = net.node("ReduceSum", net.node("ConstantOfShape", far), keepdims=0)
    onnx.save(net.model(net.node("Add", x, large)), tmp_path / "model.onnx")
    command = [sys.executable, "-m", "thinet_onnx", "inspect", str(tmp_path / "model.onnx")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("thinet-onnx: error: ")
    assert ended.stderr.count("\n") == 1
