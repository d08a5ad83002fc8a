"""Ways to damage an .onnx file, or the JSON report of a run: of its bytes, and of what the bytes say.

Every mutation takes its random choices from the generator it is given and nothing else, so a case can be made again from
its seed. The bytes of large weights are mostly left alone: a flipped bit there is another weight, and no damage.
"""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError

Mutation = Callable[[bytes, np.random.Generator], bytes]
ProtoMutation = Callable[[onnx.ModelProto, np.random.Generator], None]

ODD_SIZES = (0, -1, 1, 2, 3, 7, 255, 1 << 16, (1 << 31) - 1, 1 << 31, 1 << 40, (1 << 63) - 1, -(1 << 63))
ODD_BYTES = (0x00, 0x01, 0x7F, 0x80, 0xFF)
WEIGHTS = 64  # bytes; what is longer is skipped by most mutations of bytes
ODD_ENTRIES = (
    None, True, 0, -1, 1, 2, 1 << 31, 1 << 70, 0.0, -0.5, 1e308, float("nan"), float("inf"), "", "x", "</script>", "é" * 300,
    "a\nb\x1b[31m", "\ud800", [], [0], [[1, 2], [3]], {}, {"x": 1},
)  # fmt: skip
BYTES: dict[str, Mutation] = {}
PROTOS: dict[str, ProtoMutation] = {}


def mutate(data: bytes, other: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """Damage a file in one to three ways: the ways' names, and the new bytes.

    Args:
        data: an .onnx file.
        other: another one, that pieces may come from.
        rng: where all that is random comes from.
    """
    names = []
    for _ in range(int(rng.choice([1, 2, 3], p=[0.7, 0.2, 0.1]))):
        if rng.random() < 0.35:
            name = str(rng.choice([*BYTES, "splice"]))
            data = BYTES[name](data, rng) if name in BYTES else _spliced(data, other, rng)
        else:
            name = str(rng.choice(list(PROTOS)))
            data = _in_proto(data, PROTOS[name], rng)
        names.append(name)
    return "+".join(names), data


def mutate_json(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """Damage a JSON file in one to three ways: most often an entry is another, gone, or there twice."""
    names = []
    for _ in range(int(rng.choice([1, 2, 3], p=[0.5, 0.3, 0.2]))):
        name = str(rng.choice(list(BYTES))) if rng.random() < 0.15 else "entry"
        try:
            data = BYTES[name](data, rng) if name in BYTES else _in_json(data, rng)
        except (ValueError, _NothingError):
            name = "nothing"
        names.append(name)
    return "+".join(names), data


def _in_json(data: bytes, rng: np.random.Generator) -> bytes:
    """Change one entry, as deep as it may be; short lists and dicts are hit as often as long ones."""
    whole = json.loads(data)
    place = whole
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = keys[int(rng.integers(len(keys)))] if keys else None
        if key is None:
            raise _NothingError
        if not isinstance(place[key], dict | list) or not place[key] or rng.random() < 0.15:
            break
        place = place[key]
    if rng.random() < 0.15:
        del place[key]
    elif isinstance(place, list) and rng.random() < 0.2:
        place.extend(place[: int(rng.integers(1, 4))])
    elif isinstance(place[key], int | float) and rng.random() < 0.5:
        place[key] = float(_pick((-place[key], 10 * place[key], 0.5 + place[key], 1e300, 5e-324), rng))
    else:
        place[key] = _pick(ODD_ENTRIES, rng)
    return json.dumps(whole).encode()


def _in_proto(data: bytes, change: ProtoMutation, rng: np.random.Generator) -> bytes:
    """Change a message; bytes that are none any more, and changes that find nothing to change, leave it as it is."""
    try:
        model = onnx.ModelProto.FromString(data)
        change(model, rng)
        return bytes(model.SerializeToString())
    except (DecodeError, _NothingError, UnicodeError):
        return data


class _NothingError(Exception):
    """There is nothing of the kind that a mutation changes."""


def _bytes(function: Mutation) -> Mutation:
    BYTES[function.__name__.strip("_")] = function
    return function


def _proto(function: ProtoMutation) -> ProtoMutation:
    PROTOS[function.__name__.strip("_")] = function
    return function


def _pick(entries: Any, rng: np.random.Generator) -> Any:
    entries = list(entries)
    if not entries:
        raise _NothingError
    return entries[int(rng.integers(len(entries)))]


def _place(data: bytes, rng: np.random.Generator) -> int:
    """A position, nine times of ten outside of large weights."""
    if len(data) < 2:
        return 0
    spans = _weights(data) if rng.random() < 0.9 else []
    free = len(data) - sum(end - start for start, end in spans)
    position = int(rng.integers(max(free, 1)))
    for start, end in spans:
        if position >= start:
            position += end - start
    return min(position, len(data) - 1)


def _weights(data: bytes) -> list[tuple[int, int]]:
    try:
        model = onnx.ModelProto.FromString(data)
    except DecodeError:
        return []
    spans, start = [], 0
    for tensor in model.graph.initializer:
        found = data.find(tensor.raw_data, start) if len(tensor.raw_data) > WEIGHTS else -1
        if found >= 0:
            start = found + len(tensor.raw_data)
            spans.append((found, start))
    return spans


# --- bytes -----------------------------------------------------------------------------------------------------------


@_bytes
def _flip(data: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 5)) if data else 0):
        changed[_place(data, rng)] ^= 1 << int(rng.integers(8))
    return bytes(changed)


@_bytes
def _overwrite(data: bytes, rng: np.random.Generator) -> bytes:
    start, length = _place(data, rng), int(rng.integers(1, 9))
    values = [int(rng.choice(ODD_BYTES)) if rng.random() < 0.5 else int(rng.integers(256)) for _ in range(length)]
    return data[:start] + bytes(values) + data[start + length :]


@_bytes
def _truncate(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: _place(data, rng) if rng.random() < 0.8 else max(len(data) - int(rng.integers(1, 9)), 0)]


@_bytes
def _insert(data: bytes, rng: np.random.Generator) -> bytes:
    start = _place(data, rng)
    return data[:start] + rng.bytes(int(rng.integers(1, 17))) + data[start:]


@_bytes
def _remove(data: bytes, rng: np.random.Generator) -> bytes:
    start = _place(data, rng)
    return data[:start] + data[start + int(rng.integers(1, 65)) :]


def _spliced(data: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """A piece of another file, in place of one here or between two."""
    start, source, length = _place(data, rng), _place(other, rng), int(rng.integers(1, 513))
    skipped = length if rng.random() < 0.5 else 0
    return data[:start] + other[source : source + length] + data[start + skipped :]


@_bytes
def _repeat(data: bytes, rng: np.random.Generator) -> bytes:
    start, length = _place(data, rng), int(rng.integers(1, 257))
    return data[: start + length] + data[start:]


# --- messages --------------------------------------------------------------------------------------------------------


@_proto
def _attribute(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Another value of an attribute, or another number of values."""
    attribute = _pick((a for node in model.graph.node for a in node.attribute), rng)
    if attribute.ints:
        if rng.random() < 0.7:
            attribute.ints[int(rng.integers(len(attribute.ints)))] = int(_pick(ODD_SIZES, rng))
        elif rng.random() < 0.5:
            attribute.ints.append(1)
        else:
            del attribute.ints[-1]
    elif attribute.HasField("f"):
        attribute.f = float(_pick((0.0, -1.0, 1e38, -1e38, np.inf, -np.inf, np.nan), rng))
    elif attribute.HasField("s"):
        attribute.s = bytes(_pick((b"", b"VALID", b"\xff\xfe", b"x" * 5000, attribute.s[:-1]), rng))
    elif attribute.HasField("t"):
        _damage_tensor(attribute.t, rng)
    else:
        attribute.i = int(_pick(ODD_SIZES, rng))


@_proto
def _attribute_type(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    attribute = _pick((a for node in model.graph.node for a in node.attribute), rng)
    attribute.type = int(rng.integers(15))


@_proto
def _attribute_gone(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    node = _pick((node for node in model.graph.node if node.attribute), rng)
    del node.attribute[int(rng.integers(len(node.attribute)))]


@_proto
def _dim(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Another size in a declared shape."""
    graph = model.graph
    values = [*graph.input, *graph.output, *graph.value_info] if rng.random() < 0.5 else graph.input
    dim = _pick((dim for value in values for dim in value.type.tensor_type.shape.dim), rng)
    dim.dim_value = int(_pick(ODD_SIZES, rng))


@_proto
def _rank(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    value = _pick((*model.graph.input, *model.graph.output), rng)
    dims = value.type.tensor_type.shape.dim
    if len(dims) and rng.random() < 0.5:
        del dims[-1]
    elif rng.random() < 0.5:
        dims.add().dim_value = 1
    else:
        value.type.ClearField("value")


@_proto
def _dtype(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    kind = int(rng.integers(28)) if rng.random() < 0.9 else 99
    if rng.random() < 0.5:
        _pick((*model.graph.input, *model.graph.output), rng).type.tensor_type.elem_type = kind
    else:
        _pick(model.graph.initializer, rng).data_type = kind


@_proto
def _tensor(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    _damage_tensor(_pick(model.graph.initializer, rng), rng)


def _damage_tensor(tensor: onnx.TensorProto, rng: np.random.Generator) -> None:
    way = int(rng.integers(6))
    if way == 0 and tensor.dims:
        tensor.dims[int(rng.integers(len(tensor.dims)))] = int(_pick(ODD_SIZES, rng))
    elif way == 1:
        tensor.dims.append(int(_pick(ODD_SIZES, rng)))
    elif way == 2:
        tensor.raw_data = tensor.raw_data[: int(rng.integers(len(tensor.raw_data) + 1))]
    elif way == 3:
        tensor.raw_data = rng.bytes(len(tensor.raw_data))
    elif way == 4:
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(
            key="location", value=str(_pick(("model.onnx", "/dev/zero", "../model.onnx", ""), rng))
        )
        tensor.external_data.add(key="offset", value=str(_pick((*ODD_SIZES, "x"), rng)))
    elif tensor.dims:
        del tensor.dims[-1]


@_proto
def _name(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """A tensor gets the name of another one, or none, or an odd one."""
    graph = model.graph
    names = [name for node in graph.node for name in (*node.input, *node.output)] or [""]
    some = [names[index] for index in rng.integers(len(names), size=5)]  # no array: one name may be megabytes long
    new = str(_pick((*some, "", "nowhere", "é" * 300, "a\nb\x1b[31m"), rng))
    way = int(rng.integers(4))
    if way == 0:
        node = _pick((node for node in graph.node if node.input), rng)
        node.input[int(rng.integers(len(node.input)))] = new
    elif way == 1:
        node = _pick((node for node in graph.node if node.output), rng)
        node.output[int(rng.integers(len(node.output)))] = new
    elif way == 2:
        _pick(graph.initializer, rng).name = new
    else:
        _pick((*graph.input, *graph.output), rng).name = new


@_proto
def _operands(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """A node with an operand or an output more or less."""
    node = _pick(model.graph.node, rng)
    ends = node.input if rng.random() < 0.6 else node.output
    if len(ends) and rng.random() < 0.5:
        del ends[int(rng.integers(len(ends)))]
    else:
        ends.append(f"extra_{rng.integers(1000)}")


@_proto
def _operator(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Another operator in a node's place."""
    node = _pick(model.graph.node, rng)
    known = sorted({schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain})
    node.op_type = str(_pick((*known, "", "Konv"), rng))
    if rng.random() < 0.1:
        node.domain = str(_pick(("com.microsoft", "ai.onnx.ml", "ai.onnx.preview.training", "example.org"), rng))


@_proto
def _node_gone(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    _pick(model.graph.node, rng)
    del model.graph.node[int(rng.integers(len(model.graph.node)))]


@_proto
def _node_moved(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Two nodes change places, or one is there twice."""
    nodes = list(model.graph.node)
    one, other = _pick(range(len(nodes)), rng), _pick(range(len(nodes)), rng)
    if rng.random() < 0.6:
        nodes[one], nodes[other] = nodes[other], nodes[one]
    else:
        nodes.insert(one, nodes[other])
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)


@_proto
def _entry_gone(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """An initializer, input or output less."""
    graph = model.graph
    entries = _pick([e for e in (graph.initializer, graph.input, graph.output) if len(e)], rng)
    del entries[int(rng.integers(len(entries)))]


@_proto
def _version(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Another IR version or operator set, or none."""
    way = int(rng.integers(4))
    if way == 0:
        model.ir_version = int(_pick((0, 1, 2, 3, 4, 99, 1 << 40, -1), rng))
    elif way == 1:
        del model.opset_import[:]
    elif way == 2:
        model.opset_import.add(domain=str(_pick(("", "ai.onnx", "com.microsoft", "x"), rng)), version=1)
    else:
        _pick(model.opset_import, rng).version = int(_pick((0, 1, 6, 7, 9, 12, 18, 99, 1 << 40, -1), rng))
